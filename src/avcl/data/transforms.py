"""Seeded changes of a clip for training: each is a frozen value, called as (Clip, view, torch.Generator) -> Clip.

The loader seeds the generator by (seed, epoch, id, view), so what is drawn does not depend on workers, order or batch.
A stream that a transform has nothing to say about passes unchanged; what a transform moves out of a clip leaves zeros
with mask False.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from avcl.errors import ConfigError
from avcl.types import Clip, Stream


@dataclass(frozen=True)
class Gain:
    """Sound times 10^(g/20), g uniform in [``low``, ``high``] dB; samples beyond 1 are left as they are."""

    low: float = -6.0
    high: float = 6.0

    def __call__(self, clip: Clip, view: int, generator: torch.Generator) -> Clip:
        factor = 10 ** (_uniform(self.low, self.high, generator) / 20)
        return _changed(clip, audio=lambda s: s._replace(data=s.data * factor))


@dataclass(frozen=True)
class Noise:
    """Gaussian noise over the sound, uniform in [``low``, ``high``] dB below its power; silence and gaps stay what they
    are.
    """

    low: float = 10.0
    high: float = 40.0

    def __call__(self, clip: Clip, view: int, generator: torch.Generator) -> Clip:
        below = _uniform(self.low, self.high, generator)
        if "audio" not in clip.streams:
            return clip
        stream = clip.streams["audio"]
        there = stream.mask[..., None]
        power = (stream.data.square() * there).sum() / (there.sum() * stream.data.shape[-1]).clamp(min=1)
        noise = torch.randn(stream.data.shape, generator=generator) * (power * 10 ** (-below / 10)).sqrt() * there
        return _changed(clip, audio=lambda s: s._replace(data=s.data + noise))


@dataclass(frozen=True)
class Flip:
    """With probability ``p`` the pictures are mirrored, left and right of stereo sound with them (their places stay
    true).
    """

    p: float = 0.5

    def __call__(self, clip: Clip, view: int, generator: torch.Generator) -> Clip:
        if _uniform(0.0, 1.0, generator) >= self.p or "video" not in clip.streams:
            return clip
        return _changed(
            clip,
            video=lambda s: s._replace(data=s.data.flip(-1)),
            audio=lambda s: s._replace(data=s.data.flip(-1)) if s.data.shape[-1] == 2 else s,
        )


@dataclass(frozen=True)
class Crop:
    """One rectangle for all pictures of a clip, ``smallest`` to 1 of the area, of the same aspect, resized to the old
    size.
    """

    smallest: float = 0.6

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= 1:
            raise ConfigError(f"smallest = {self.smallest:g} is not in (0, 1].")

    def __call__(self, clip: Clip, view: int, generator: torch.Generator) -> Clip:
        side = math.sqrt(_uniform(self.smallest, 1.0, generator))
        down, across = _uniform(0.0, 1.0, generator), _uniform(0.0, 1.0, generator)
        return _changed(clip, video=lambda s: s._replace(data=_zoomed(s.data, side, down, across)))


@dataclass(frozen=True)
class Shift:
    """All streams move by the same time, uniform in [-``seconds``, ``seconds``] and a whole number of steps of the
    slowest.

    Sound and picture stay together; what moves out is lost and what is not covered is zeros with mask False. Streams of
    one step (stills) and tokens stay.
    """

    seconds: float = 0.5

    def __call__(self, clip: Clip, view: int, generator: torch.Generator) -> Clip:
        drawn = _uniform(-self.seconds, self.seconds, generator)
        moving = _moving(clip)
        if not moving:
            return clip
        slowest = min(stream.rate for stream in moving.values())
        time = round(drawn * slowest) / slowest
        return _replaced(clip, {name: _shifted(s, round(time * s.rate)) for name, s in moving.items()})


@dataclass(frozen=True)
class Window:
    """The same ``seconds`` out of every stream, from a moment drawn among the steps of the slowest one; shorter clips
    stay whole.
    """

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ConfigError(f"seconds = {self.seconds:g} is not greater than 0.")

    def __call__(self, clip: Clip, view: int, generator: torch.Generator) -> Clip:
        drawn = _uniform(0.0, 1.0, generator)
        moving = _moving(clip)
        if not moving:
            return clip
        slowest = min(stream.rate for stream in moving.values())
        length = max(stream.data.shape[1] / stream.rate for stream in moving.values())
        places = math.floor((length - self.seconds) * slowest + 1e-6)
        if places < 0:
            return clip
        begin = min(places, int(drawn * (places + 1))) / slowest
        cut = {}
        for name, stream in moving.items():
            first, steps = round(begin * stream.rate), max(1, round(self.seconds * stream.rate))
            data, mask = stream.data[:, first : first + steps], stream.mask[:, first : first + steps]
            cut[name] = Stream(data, mask, stream.rate) if data.shape[1] else _shifted(stream, -first)
        return _replaced(clip, cut)


@dataclass(frozen=True)
class Mask:
    """Zeros over up to ``times`` spans of steps and ``bands`` spans of features (as SpecAugment), in the stream
    ``name``.

    A span covers 0 to ``longest`` of the steps or features. The mask of the stream stays: what is hidden was recorded.
    For spectra [1,T,F,C] the bands are along F, for features [1,T,D] along D; other streams are refused with
    ConfigError.
    """

    name: str
    times: int = 1
    bands: int = 1
    longest: float = 0.2

    def __call__(self, clip: Clip, view: int, generator: torch.Generator) -> Clip:
        if self.name not in clip.streams:
            return clip
        stream = clip.streams[self.name]
        if stream.data.ndim not in (3, 4) or not stream.data.is_floating_point():
            raise ConfigError(f'"{self.name}" {tuple(stream.data.shape)} has no steps and features to hide.')
        data = stream.data.clone()
        for axis, spans in ((1, self.times), (2, self.bands)):
            for _ in range(spans):
                size = data.shape[axis]
                width = int(_uniform(0.0, self.longest, generator) * size)
                first = int(_uniform(0.0, 1.0, generator) * (size - width + 1))
                data.narrow(axis, min(first, size - width), width).zero_()
        return _replaced(clip, {self.name: stream._replace(data=data)})


# ------------------------------------------------------------------------------------------------------------- helpers
def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _replaced(clip: Clip, streams: Mapping[str, Stream]) -> Clip:
    return replace(clip, streams={**clip.streams, **streams})


def _changed(clip: Clip, **change) -> Clip:
    return _replaced(
        clip, {name: function(clip.streams[name]) for name, function in change.items() if name in clip.streams}
    )


def _moving(clip: Clip) -> dict[str, Stream]:
    """The streams that have a course in time: more than one step, and no tokens."""
    return {k: s for k, s in clip.streams.items() if s.data.shape[1] > 1 and s.data.dtype != torch.long}


def _shifted(stream: Stream, steps: int) -> Stream:
    """``steps`` later (earlier where negative)."""
    data, mask = torch.zeros_like(stream.data), torch.zeros_like(stream.mask)
    kept = stream.data.shape[1] - abs(steps)
    if kept > 0:
        source, target = max(0, -steps), max(0, steps)
        data[:, target : target + kept] = stream.data[:, source : source + kept]
        mask[:, target : target + kept] = stream.mask[:, source : source + kept]
    return Stream(data, mask, stream.rate)


def _zoomed(video: Tensor, side: float, down: float, across: float) -> Tensor:
    """[1,T,3,H,W]: a part of ``side`` times the height and width, at (``down``, ``across``) in [0, 1] of the room there
    is.
    """
    height, width = video.shape[-2:]
    h, w = max(1, round(height * side)), max(1, round(width * side))
    top, left = round(down * (height - h)), round(across * (width - w))
    part = video[0, :, :, top : top + h, left : left + w]
    large = functional.interpolate(
        part.float(), size=(height, width), mode="bilinear", align_corners=False, antialias=False
    )
    return (large.round().to(torch.uint8) if video.dtype == torch.uint8 else large)[None]
