"""A trained system as a folder: ``config.json`` + ``weights.safetensors`` + ``README.md``; loading runs none of it.

    fingerprint = SHA-256(system, config, spec, inputs; of each tensor in order of its name: name, type, shape, bytes)

It names model and preprocessing at once: two folders with one fingerprint give the same vectors for the same file. It
guards against damage and mix-ups, not against a forger, who could compute a new one.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from avcl import __version__
from avcl.discover import system_class, system_name
from avcl.errors import ConfigError, StoreError
from avcl.files import read_json, write_atomic, write_json
from avcl.seeds import kept_random_state
from avcl.system import System
from avcl.types import DataSpec, Inputs, jsonable

FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "weights.safetensors", "README.md"


@dataclass(frozen=True)
class Saved:
    """What ``load`` returns. ``inputs``: how media must be decoded for it · ``meta``: what was saved beside it."""

    system: System
    inputs: Inputs
    meta: Mapping[str, Any]
    fingerprint: str


def fingerprint(system: System, inputs: Inputs) -> str:
    """16 hex digits that name this model, weights and preprocessing included."""
    head = {
        "system": system_name(system),
        "config": jsonable(system.config),
        "spec": jsonable(system.spec),
        "inputs": jsonable(inputs),
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True, separators=(",", ":")).encode())
    for name, tensor in sorted(system.state_dict().items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]


def save(system: System, folder: str | Path, *, inputs: Inputs, meta: Mapping[str, Any]) -> str:
    """Write ``folder`` (other files in it stay) and return the fingerprint.

    ``meta`` must be plain values; its numbers go onto the model card. A process that dies on the way leaves the folder
    without a ``config.json``, which ``load`` refuses, never one model's configuration with another's weights.
    ConfigError where the class could not be found again by name.
    """
    folder, mark = Path(folder), fingerprint(system, inputs)
    described = {
        "format": FORMAT,
        "system": system_name(system),
        "config": jsonable(system.config),
        "spec": jsonable(system.spec),
        "inputs": jsonable(inputs),
        "meta": jsonable(meta),
        "fingerprint": mark,
        "versions": {"avcl": __version__, "python": platform.python_version(), "torch": torch.__version__},
    }
    # Clones, for safetensors refuses tensors that share memory (tied weights).
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in system.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    write_atomic(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    write_atomic(folder / CARD, model_card(system, described))
    write_json(folder / CONFIG, described)
    return mark


def load(folder: str | Path, *, device: torch.device | str = "cpu") -> Saved:
    """The system in ``folder``, in evaluation mode on ``device``.

    Only names that ``discover`` lists are imported, and only numbers are read. ConfigError for an unknown system or
    setting; StoreError where a file is missing, damaged, or not what was saved.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        hint = "Give the folder of a finished run (avcl train DATA --out RUN), or one that Model.save wrote."
        raise StoreError(f"there is no saved model here (no {CONFIG}).", file=folder, hint=hint)
    found = read_json(folder / CONFIG)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise StoreError(f"this is not a model that this version of avcl can read (format {FORMAT}).", file=folder)
    for key in ("system", "config", "spec", "inputs", "meta", "fingerprint"):
        if not isinstance(found.get(key), str if key in ("system", "fingerprint") else dict):
            raise StoreError(f'{CONFIG} has no valid "{key}".', file=folder)
    cls = system_class(found["system"])
    config = cls.Config.from_json(found["config"])
    tensors = _read_weights(folder / WEIGHTS)
    try:
        spec, inputs = DataSpec.from_json(found["spec"]), Inputs.from_json(found["inputs"])
        with kept_random_state():  # loading a model must not disturb the caller's random numbers
            system = cls(config, spec)
    except ConfigError:
        raise
    except (ArithmeticError, AttributeError, KeyError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise StoreError(f"{CONFIG} does not describe a system ({type(error).__name__}).", file=folder) from error
    _check_shapes(tensors, system.state_dict(), folder / WEIGHTS)
    system.load_state_dict(tensors)
    if fingerprint(system, inputs) != found["fingerprint"]:
        what = "configuration and weights are not those that were saved together."
        raise StoreError(what, file=folder, hint="Copy the folder again, or train again.")
    return Saved(system.eval().to(device), inputs, found["meta"], found["fingerprint"])


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise StoreError("the weights are missing.", file=path) from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise StoreError(f"the weights are damaged or not safetensors ({type(error).__name__}).", file=path) from None


def _check_shapes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    for name in sorted({*wanted, *tensors}):
        if name not in tensors:
            raise StoreError(f'the weights lack "{name}".', file=path)
        if name not in wanted:
            raise StoreError(f'the weights hold "{name[:60]}", which the system does not have.', file=path)
        one, two = tensors[name], wanted[name]
        if one.shape != two.shape or one.dtype != two.dtype:
            has, needs = f"{one.dtype} {tuple(one.shape)}", f"{two.dtype} {tuple(two.shape)}"
            raise StoreError(f'the weight "{name}" is {has}; the system needs {needs}.', file=path)


# -------------------------------------------------------------------------------------------------------- model card
def model_card(system: System, described: Mapping[str, Any]) -> str:
    """The README of a saved model, with the front matter that model hubs read."""
    card, name = system.card, described["system"]
    streams = described["spec"]["streams"]
    front = {
        "library_name": "avcl",
        "pipeline_tag": "feature-extraction",
        "tags": ["avcl", "audio-visual", "cross-modal-retrieval", name, *sorted(streams)],
    }
    count = sum(t.numel() for t in system.state_dict().values())
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", "", f"# {name}", ""]
    source = ", ".join(part for part in (card.authors, f"{card.venue} {card.year}".strip()) if part)
    lines.append(f"{_sentence(card.title)} {_sentence(source)}")
    if card.fidelity:
        lines += ["", _sentence(card.fidelity)]
    lines += ["", "Deviations:", "", *(f"- {_sentence(text)}" for text in card.deviations)] if card.deviations else []
    lines += ["", f"{count:,} numbers · fingerprint `{described['fingerprint']}`"]
    if card.original_license != "none":
        lines[-1] += f" · license of the original code: {card.original_license}"
    lines += ["", "```python", "import avcl", "", 'model = avcl.load("this folder")']
    lines += [f'vectors = model.embed({stream}="...")' for stream in sorted(streams)] + ["```", ""]
    for title, values in {
        "Data": {k: f"{v['kind']} {tuple(v['shape'])}, {v['rate']:g} a second" for k, v in streams.items()},
        "Inputs": described["inputs"],
        "Settings": described["config"],
        "Results and origin": described["meta"],
        "Versions": described["versions"],
    }.items():
        rows = [f"| {_cell(key)} | {_cell(value)} |" for key, value in _scalars(values)]
        if rows:
            lines += [f"## {title}", "", "| | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def _scalars(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of what fits into a table; long lists do not."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _scalars(inner, f"{prefix}.{key}" if prefix else str(key))
    elif not isinstance(value, list | tuple) or len(value) <= 8:
        yield prefix, value


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.replace("|", "\\|").split())[:120]
