"""Encoders and the embeddings of systems as ONNX, checked against torch as they are written.

A file takes, for every stream, ``<name>`` [B, T, ...] and ``<name>_mask`` [B, T] bool, and gives ``output`` (and
``output_mask`` where the encoder gives a Stream). The batch is dynamic, and T too unless ``steps`` fixes it. Sample
and frame rates are those of the example: they are constants of the graph, and stand in the file's metadata.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avcl.encoders.pretrained import missing
from avcl.errors import ConfigError
from avcl.files import write_atomic
from avcl.model import Media, Model
from avcl.system import Embeds
from avcl.types import Batch, Stream

try:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401 - torch's exporter needs it, and would name it in the middle of its work
except ImportError as error:
    raise missing(error, "export", "export") from error

ALLOWED = 1e-4  # relative to the largest output


class _Plain(nn.Module):
    """The encoder as a function of tensors."""

    def __init__(self, encoder: nn.Module, rates: tuple[float, ...]):
        super().__init__()
        self.encoder, self.rates = encoder, rates

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(tensors[::2], tensors[1::2], self.rates, strict=True)
        found = self.encoder(*(Stream(data, mask, rate) for data, mask, rate in pairs))
        return (found.data, found.mask) if isinstance(found, Stream) else (found,)


class _Embedding(nn.Module):
    """One modality of a system to its embedding."""

    def __init__(self, system: nn.Module, modality: str):
        super().__init__()
        self.system, self.modality = system, modality

    def forward(self, stream: Stream) -> Tensor:
        none = torch.zeros(0, dtype=torch.int64)
        batch = Batch((), {self.modality: stream}, none, none, none, ())
        assert isinstance(self.system, Embeds)
        return self.system.embed(batch, self.modality)


def export_encoder(
    encoder: nn.Module, streams: Mapping[str, Stream], out: str | Path, *, steps: bool = False
) -> dict[str, Any]:
    """Write ``encoder`` as ONNX to ``out`` and return {"file", "inputs", "error", "rate", ...}.

    ``streams``: an example of every input, in the encoder's order, of two clips or more · ``steps``: T is fixed to the
    example's. The file is run on the example and on a batch of another size (and other lengths): ConfigError where
    torch cannot export an operator, or where results differ by more than 1e-4 of the largest.
    """
    if any(len(stream.mask) < 2 for stream in streams.values()):
        raise ConfigError("the example needs two clips or more, else the batch would be fixed to one.")
    for name, parameter in encoder.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            raise ConfigError(f"{name} is {parameter.dtype} on {parameter.device}; export takes float32 on the cpu.")
    training = encoder.training
    try:
        return _exported(encoder.eval(), streams, Path(out), steps)
    finally:
        encoder.train(training)


def _exported(encoder: nn.Module, streams: Mapping[str, Stream], out: Path, steps: bool) -> dict[str, Any]:
    rates = tuple(stream.rate for stream in streams.values())
    plain = _Plain(encoder, rates)
    tensors = [x for stream in streams.values() for x in (stream.data, stream.mask)]
    names = [n for name in streams for n in (name, f"{name}_mask")]
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple({0: dynamic} if steps else {0: dynamic, 1: dynamic} for _ in tensors)
    with torch.no_grad():
        expected = plain(*tensors)
    outputs = ["output", "output_mask"][: len(expected)]
    with _silence():
        try:
            graph = torch.export.export(plain, tuple(tensors), dynamic_shapes=(shapes,), strict=False)
            program = torch.onnx.export(graph, dynamo=True, input_names=names, output_names=outputs, verbose=False)
        except Exception as error:  # the exporter raises a dozen types
            said = str(error.__cause__ or error).strip().partition("\n")[0][:200]
            raise ConfigError(f"{type(encoder).__name__} cannot be exported: {said}", file=out) from error
    assert program is not None
    model = program.model_proto
    rate = _rate(encoder, streams)
    about = {"avcl.encoder": type(encoder).__name__, "avcl.rates": json.dumps(dict(zip(streams, rates, strict=True)))}
    about |= {"avcl.rate": json.dumps(rate)}
    onnx.helper.set_model_props(model, about)
    off = 0.0
    for seed in (None, 0, 1):
        given = tensors if seed is None else _other(streams, seed, steps)
        off = max(off, _difference(model, names, given, plain, out))
    write_atomic(out, model.SerializeToString())
    return {"file": str(out), "inputs": names, "outputs": outputs, "rate": rate, "error": off}


def export_embeddings(
    system: nn.Module, streams: Mapping[str, Stream], folder: str | Path, *, steps: bool = True
) -> list[dict[str, Any]]:
    """``<modality>.onnx`` for each of ``streams``, from a stream to the embedding [B, D] of the system.

    As ``export_encoder``; by default with the number of steps of the example, which is best the model's window.
    """
    if not isinstance(system, Embeds):
        raise ConfigError(f"{type(system).__name__} does not embed.")
    return [
        export_encoder(_Embedding(system, name), {name: stream}, Path(folder) / f"{name}.onnx", steps=steps)
        for name, stream in streams.items()
    ]


def export_model(model: Model | Media, folder: str | Path) -> list[dict[str, Any]]:
    """``export_embeddings`` of a saved model, for every modality, in clips as long as its window."""
    model = Model.load(model) if isinstance(model, str | Path) else model
    generator, found = torch.Generator().manual_seed(0), []
    for name, spec in model.spec.streams.items():
        media = spec.kind in ("audio", "video")
        shape = (2, max(1, round(model.inputs.window * spec.rate)) if media else 2, *spec.shape)
        words = len(model.spec.vocabulary) or 256
        tokens = torch.randint(words, shape, generator=generator)
        data = tokens if spec.kind == "tokens" else torch.rand(shape, generator=generator)
        stream = Stream(data, torch.ones(shape[:2], dtype=torch.bool), spec.rate)
        found += export_embeddings(model.system, {name: stream}, folder, steps=media)
    return found


@torch.no_grad()
def _rate(encoder: nn.Module, streams: Mapping[str, Stream]) -> float | None:
    found = encoder(*streams.values())
    return found.rate if isinstance(found, Stream) else None


def _other(streams: Mapping[str, Stream], seed: int, steps: bool) -> list[Tensor]:
    """Other clips: one more than in the example, of other lengths, the last without its second half."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for stream in streams.values():
        length = stream.mask.shape[1] if steps else max(2, stream.mask.shape[1] * (3 if seed else 2) // 3 + 1)
        shape = (len(stream.mask) + 1, length)
        which = torch.randint(stream.mask.shape[1], (length,), generator=generator)
        data = stream.data[:, which]
        data = torch.cat([data, data[:1].flip(1)])
        mask = torch.ones(shape, dtype=torch.bool)
        mask[-1, (length + 1) // 2 :] = False
        found += [data, mask]
    return found


def _difference(model: Any, names: list[str], tensors: list[Tensor], plain: nn.Module, out: Path) -> float:
    """Of the largest output; ConfigError where it is too large."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        given = {name: x.numpy() for name, x in zip(names, tensors, strict=True)}
        known = {i.name for i in session.get_inputs()}  # a mask that nothing reads is no input
        found = session.run(None, {name: x for name, x in given.items() if name in known})
    except Exception as error:  # its errors have no common base
        raise ConfigError(f"onnxruntime cannot run it: {str(error)[:150]}", file=out) from error
    with torch.no_grad():
        expected = [x.numpy() for x in plain(*tensors)]
    if not np.array_equal(found[1:], expected[1:]):
        raise ConfigError("the exported mask is another one.", file=out)
    off = float(np.abs(found[0] - expected[0]).max() / max(1.0, float(np.abs(expected[0]).max())))
    if not off <= ALLOWED:
        raise ConfigError(f"the exported file differs by {off:.1e}, allowed are {ALLOWED:g}.", file=out)
    return off


@contextmanager
def _silence() -> Iterator[None]:
    """Without the exporter's warnings, which are about its own code, and its notices on the log."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [log.level for log in loggers]
    with warnings.catch_warnings():
        for category in (UserWarning, DeprecationWarning, FutureWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", category)
        for log in loggers:
            log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
