"""Checkpoints of a training run: safetensors and JSON, each folder whole or absent, never a pickle.

``checkpoints/step-00000120/`` holds ``tensors.safetensors`` (weights and banks ``system/…``, ``ema/…``, ``best/…``,
``optimizer/…``) and ``state.json`` (position, history, identity of the run, SHA-256 of both files). A new folder is
written beside and renamed, then all but the newest two are removed: whenever the process dies, a whole one stands.
``final`` is the finished run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from avcl.errors import ExistsError, StoreError
from avcl.files import read_json, sweep, write_folder, write_json

FORMAT = 1
KEPT = 2  # the newest, and one to fall back to if its disk blocks go bad
_NAME = re.compile(r"step-\d{8,}|final")
_log = logging.getLogger("avcl")


class Checkpoint(NamedTuple):
    path: Path
    state: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of ``name/…`` without that prefix."""
        return {key[len(name) + 1 :]: t for key, t in self.tensors.items() if key.startswith(name + "/")}


def write_checkpoint(folder: Path, name: str, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write ``folder/name`` whole, then drop what is older than the checkpoint before it."""
    # Clones, for safetensors refuses tensors that share memory (tied weights).
    plain = {key: t.detach().to("cpu", copy=True).contiguous() for key, t in tensors.items()}

    def fill(part: Path) -> None:
        save_file(plain, part / "tensors.safetensors")
        full = {"format": FORMAT, **state, "tensors": _sha256(part / "tensors.safetensors")}
        write_json(part / "state.json", {**full, "checksum": _checksum(full)})

    write_folder(folder / name, fill)
    for old in _newest_first(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; a damaged one is removed with a warning and the one before it taken.

    StoreError where there are checkpoints but none is whole. The caller holds the lock of the run.
    """
    sweep(folder)
    damage: StoreError | None = None
    for path in _newest_first(folder):
        try:
            found = _read(path)
        except StoreError as error:
            _log.warning("%s Falling back to the checkpoint before it.", error)
            damage = error
            continue
        if damage is not None:
            for bad in _newest_first(folder):
                if bad == path:
                    break
                shutil.rmtree(bad, ignore_errors=True)
        return found
    if damage is not None:
        hint = f"Delete {folder} to start the run again."
        raise StoreError("no checkpoint of this run is whole.", file=folder, hint=hint) from damage
    return None


def check_identity(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """A checkpoint continues only the run that wrote it: ExistsError that names what differs."""
    before, now = dict(_flat(found)), dict(_flat(json.loads(json.dumps(wanted))))
    differing = [key for key in [*now, *(k for k in before if k not in now)] if before.get(key) != now.get(key)]
    if not differing:
        return
    parts = [f"{key} was {_short(before.get(key))}, is {_short(now.get(key))}" for key in differing[:3]]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    what = f"the run in this folder is another one: {'; '.join(parts)}{more}."
    raise ExistsError(what, file=folder, hint="Give another output folder, or delete this one.")


def _newest_first(folder: Path) -> list[Path]:
    found = [p for p in folder.glob("*") if p.is_dir() and _NAME.fullmatch(p.name)]
    return sorted(found, key=lambda p: float("inf") if p.name == "final" else int(p.name[5:]), reverse=True)


def _read(path: Path) -> Checkpoint:
    state = read_json(path / "state.json")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise StoreError("this is not a checkpoint of this version of avcl.", file=path)
    if state.pop("checksum", None) != _checksum(state):
        raise StoreError("the state of this checkpoint is damaged.", file=path)
    weights = path / "tensors.safetensors"
    try:
        if _sha256(weights) != state.get("tensors"):
            raise StoreError("the tensors of this checkpoint are damaged.", file=path)
        return Checkpoint(path, state, load_file(weights))
    except (OSError, SafetensorError) as error:
        reason = type(error).__name__
        raise StoreError(f"the tensors of this checkpoint cannot be read ({reason}).", file=path) from None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else text[:21] + "..."
