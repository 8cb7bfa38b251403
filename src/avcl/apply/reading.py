"""What the verbs on files share: a model that can do it, and a file in the windows of that model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from avcl import discover
from avcl.data import collate
from avcl.errors import ConfigError, NoAudioStream, NoVideoStream
from avcl.media import probe, read_inputs, segments
from avcl.model import Media, Model
from avcl.seeds import seed_for
from avcl.types import Batch, Clip


class Window(NamedTuple):
    """Seconds of the file's clock, and what is there as the model reads it."""

    start: float
    end: float
    clip: Clip


def opened(model: Model | Media, capability: type, what: str) -> Model:
    """The model, from its folder if need be; CapabilityError, with the systems that can, unless it can ``what``."""
    model = Model.load(model) if isinstance(model, str | Path) else model
    discover.require(model.system, capability, what)
    return model


def windows(
    model: Model,
    path: Media,
    *,
    modalities: Sequence[str] = ("audio", "video"),
    start: float | None = None,
    end: float | None = None,
    hop: float | None = None,
    length: float | None = None,
) -> Iterator[Window]:
    """The file in windows of ``length`` seconds (default: the model's), one every ``hop`` seconds (default: the
    window); the last ends with the file. NoAudioStream, NoVideoStream: the file lacks what is asked for; ConfigError:
    no time from start to end.
    """
    info = probe(path)
    for name, there, error in (("audio", info.audio, NoAudioStream), ("video", info.video, NoVideoStream)):
        if name in modalities and there is None:
            raise error(f"the file has no {name} stream.", file=path, hint="Give a file with sound and picture.")
    first = start or 0.0
    last = info.duration if end is None else end if info.duration is None else min(end, info.duration)
    last = first + model.window if last is None else last
    if last <= first:
        raise ConfigError(f"there is nothing between {first:g} s and {last:g} s.", file=path)
    for a, b in segments(last - first, length or model.window, hop):
        clip = read_inputs(path, model.inputs, first + a, first + b, modalities=tuple(modalities))
        yield Window(first + a, first + b, clip)


def batch_of(model: Model, clips: Sequence[Clip]) -> Batch:
    """Clips side by side, where the model is, pictures as float32 in [0, 1]."""
    return collate(list(clips)).to(model.device)


def generator_of(seed: int, *names: str) -> torch.Generator:
    """The random state of one answer, a function of ``seed`` and what it is for."""
    return torch.Generator().manual_seed(seed_for(seed, *names))
