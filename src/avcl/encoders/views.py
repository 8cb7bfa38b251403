"""Fixed views of a stream that can be turned back into a stream: what a small model generates, and is compared in.

A view maps every clip to one row of numbers of known meaning, nothing learned: `of` [B, T, ...] to [B, dim], in
``blocks`` of like numbers. `stream` is the way back: the simplest stream that looks like this row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from avcl.dsp.phase import griffin_lim, power_of_mel
from avcl.encoders.audio import log_mel_stream
from avcl.encoders.conv2d import change_channels
from avcl.errors import ConfigError
from avcl.nn.pooling import masked_mean, on_clock
from avcl.types import Kind, Stream, StreamSpec

PLACES, COARSE = 6, 16  # cells a side of the map of motion, and of the gray picture whose change is motion
PHASE_STEPS = 8  # rounds of the search for a phase: more change the sound little and its view not at all
LEVEL = 0.1  # root mean square of a sound that is made: its level is not in the view


@dataclass(frozen=True)
class View(ABC):
    """A stream as one row of numbers, in ``blocks``; ``name`` says of what."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def blocks(self) -> tuple[int, ...]: ...

    @property
    def dim(self) -> int:
        return sum(self.blocks)

    @abstractmethod
    def of(self, stream: Stream) -> Tensor:
        """float32 [B, dim], of what was recorded only."""

    @abstractmethod
    def stream(self, rows: Tensor, *, generator: torch.Generator | None = None) -> Stream:
        """The simplest stream whose view is near ``rows`` [B, dim]; ``generator`` of what the rows leave open."""


@dataclass(frozen=True)
class FeatureView(View):
    """Features (or a map of them) as their mean over time and cells: [B, width]; back: one step of them."""

    width: int

    @property
    def name(self) -> str:
        return f"mean feature of {self.width}"

    @property
    def blocks(self) -> tuple[int, ...]:
        return (self.width,)

    def of(self, stream: Stream) -> Tensor:
        data = stream.data.mean((2, 3)) if stream.data.ndim == 5 else stream.data
        return masked_mean(data.float(), stream.mask)

    def stream(self, rows: Tensor, *, generator: torch.Generator | None = None) -> Stream:
        return Stream(rows[:, None], torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device), 1.0)


@dataclass(frozen=True)
class SoundView(View):
    """Sound as its level-free log-mel in ``slots`` of its first ``seconds``, taken apart: how loud in every slot, the
    mean spectrum, and what is left of every band and slot: [B, slots + bands + slots · bands].

    Back: their sum as powers, a phase found by Griffin-Lim, at a fixed level.
    """

    sample_rate: float
    seconds: float
    slots: int = 24
    bands: int = 40

    @property
    def name(self) -> str:
        return f"loudness, spectrum and rest of a log-mel of {self.slots} x {self.bands} in {self.seconds:g} s"

    @property
    def blocks(self) -> tuple[int, ...]:
        return (self.slots, self.bands, self.slots * self.bands)

    def of(self, stream: Stream) -> Tensor:
        mel = log_mel_stream(stream._replace(data=stream.data.float()), bands=self.bands)
        cells = on_clock(mel, steps=self.slots, seconds=self.seconds)  # [B, slots, bands]
        loud, spectrum = cells.mean(2), cells.mean(1)
        rest = cells - loud[:, :, None] - spectrum[:, None]
        return torch.cat([loud, spectrum, rest.flatten(1)], 1)

    def cells(self, rows: Tensor) -> Tensor:
        """The log-mel [B, slots, bands] that ``rows`` are the parts of."""
        loud, spectrum, rest = rows.split(self.blocks, 1)
        return rest.unflatten(1, (self.slots, self.bands)) + loud[:, :, None] + spectrum[:, None]

    def stream(self, rows: Tensor, *, generator: torch.Generator | None = None) -> Stream:
        rate = self.sample_rate
        length = max(1, round(self.seconds * rate))
        n_fft = 1 << max(5, round(0.032 * rate) - 1).bit_length()
        hop = n_fft // 4
        level = 3 * self.cells(rows.float())  # log_mel_stream divides by 3
        level = level - level.amax((1, 2), keepdim=True)
        columns = interpolate(level.transpose(1, 2), size=-(-length // hop), mode="nearest").transpose(1, 2)
        power = power_of_mel(columns.exp(), sample_rate=rate, n_fft=n_fft, fmin=50.0, scale="htk")
        how = {"n_fft": n_fft, "hop": hop, "length": length, "steps": PHASE_STEPS}
        wave = griffin_lim(power.sqrt(), **how, generator=generator)
        wave = wave * (LEVEL / wave.square().mean(1, keepdim=True).sqrt().clamp(min=1e-9))
        wave = wave / (wave.abs().amax(1, keepdim=True) / 0.99).clamp(min=1)
        return Stream(wave[:, :, None], torch.ones(wave.shape, dtype=torch.bool, device=wave.device), rate)


@dataclass(frozen=True)
class PictureView(View):
    """Pictures as the mean picture in ``side`` × ``side`` cells of 3 colors, where they change (6 × 6) and when (in
    ``slots`` of the first ``seconds``): [B, 3 side² + 36 + slots]; with one slot the mean picture alone.

    Back: that picture, brightened and darkened by turns, there and then, so that it changes as much as it should. It
    shows what is known of the motion and does not pretend to more.
    """

    seconds: float
    side: int = 12
    slots: int = 24
    size: tuple[int, int] = (64, 64)

    @property
    def name(self) -> str:
        still = f"mean picture of {self.side} x {self.side}"
        motion = f"change in 6 x 6 places and {self.slots} slots in {self.seconds:g} s"
        return still if self.slots == 1 else f"{still}, {motion}"

    @property
    def blocks(self) -> tuple[int, ...]:
        still = (3 * self.side**2,)
        return still if self.slots == 1 else (*still, PLACES**2, self.slots)

    def of(self, stream: Stream) -> Tensor:
        data = stream.data.float() / 255 if stream.data.dtype == torch.uint8 else stream.data.float()
        cells = adaptive_avg_pool2d(data.flatten(0, 1), self.side).unflatten(0, stream.mask.shape)
        still = masked_mean(cells, stream.mask).flatten(1)
        if self.slots == 1:
            return still
        change = change_channels(stream._replace(data=data), COARSE)[:, :, 2] / 8  # [B, T, 16, 16]; 0 at the start
        both = torch.zeros_like(stream.mask)
        both[:, 1:] = stream.mask[:, 1:] & stream.mask[:, :-1]
        where = masked_mean(adaptive_avg_pool2d(change, PLACES), both).flatten(1)
        amount = change.mean((2, 3))[:, :, None]
        when = on_clock(stream._replace(data=amount), steps=self.slots, seconds=self.seconds)
        return torch.cat([still, where, when.flatten(1)], 1)

    def stream(self, rows: Tensor, *, generator: torch.Generator | None = None) -> Stream:
        still, *motion = rows.float().split(self.blocks, 1)
        picture = still.reshape(-1, 3, self.side, self.side)
        picture = interpolate(picture, size=self.size, mode="bilinear", align_corners=False).clamp(0, 1)
        frames = picture[:, None].expand(-1, self.slots, -1, -1, -1)
        if motion:
            where, when = (part.clamp(min=0) for part in motion)
            place = where.reshape(-1, 1, PLACES, PLACES)
            place = place / place.mean((1, 2, 3), keepdim=True).clamp(min=1e-6)
            place = interpolate(place, size=self.size, mode="bilinear", align_corners=False)[:, None]
            frames = (frames + _swings(when)[:, :, None, None, None] * place).clamp(0, 1)
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=rows.device)
        return Stream(frames, mask, self.slots / self.seconds)


def _swings(change: Tensor) -> Tensor:
    """[B, S] numbers around 0, each as far from the one before as ``change`` [B, S] says (the first from nothing)."""
    at = torch.zeros_like(change[:, 0])
    found = [at]
    for step in change.T[1:]:
        at = torch.where(at > 0, at - step, at + step)
        found.append(at)
    return torch.stack(found, 1)


def view_of(
    spec: StreamSpec, *, seconds: float, side: int = 12, slots: int = 24, bands: int = 40, still: bool = False
) -> View:
    """The view of a stream of that form. ConfigError for a kind that has none (tokens)."""
    if spec.kind == "audio":
        return SoundView(spec.rate, seconds, slots, bands)
    if spec.kind == "video":
        return PictureView(seconds, side, 1 if still else slots, (spec.shape[1], spec.shape[2]))
    if spec.kind in ("features", "map"):
        return FeatureView(spec.shape[-1])
    raise ConfigError(f'a stream of kind "{spec.kind}" has no view.', hint="Use sound, pictures or features.")


def kind_of(stream: Stream) -> Kind:
    """What a stream must be by its form and its clock: video [B, T, 3, H, W], audio [B, T, C] at 1,000 steps a second
    or more, tokens [B, T], a map or features else.
    """
    if stream.data.ndim == 5:
        return "video" if stream.data.shape[2] == 3 else "map"
    if stream.data.ndim == 2:
        return "tokens"
    return "audio" if stream.rate >= 1000 else "features"


def spec_of(stream: Stream) -> StreamSpec:
    """The form of a stream as ``view_of`` asks for it."""
    return StreamSpec(kind_of(stream), tuple(stream.data.shape[2:]), stream.rate)


def block_scale(blocks: Iterable[int]) -> Tensor:
    """[dim]: 1 / √(numbers of the block · blocks), by which standardized blocks count alike and sum to variance 1."""
    sizes = list(blocks)
    return torch.cat([torch.full((n,), (n * len(sizes)) ** -0.5) for n in sizes])
