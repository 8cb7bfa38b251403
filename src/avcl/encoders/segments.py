"""A clip in segments of equal length: its sound as one vector a segment, its picture as cells of a few frames each.

What event localization reads: ``Pair(sound, regions)``, from media or from features of pretrained towers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from avcl.encoders.audio import LogMelConv
from avcl.encoders.checks import at_least_one
from avcl.encoders.conv2d import FrameConv, centered
from avcl.errors import ConfigError
from avcl.nn.pooling import on_clock
from avcl.types import Batch, DataSpec, Stream


class CellConv(FrameConv):
    """The cells that ``FrameConv`` pools: video [B, T, 3, H, W] to a map [B, T, H / 16, W / 16, dim], dim = last width.

    Every frame for itself; a cell sees 31 pixels. Rate and mask stay as they are, frames that were not recorded are
    zeros.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 96)):
        super().__init__(widths)
        self.dim = widths[-1]

    def forward(self, stream: Stream) -> Stream:
        x = centered(stream).flatten(0, 1).to(memory_format=torch.channels_last)
        for conv, norm in zip((self.stem, self.down, self.last), self.norms, strict=True):
            x = nn.functional.gelu(norm(conv(x)))
        cells = x.permute(0, 2, 3, 1).unflatten(0, stream.mask.shape)
        return stream._replace(data=cells * stream.mask[:, :, None, None, None])


class Pair(NamedTuple):
    """``sound`` [B, S, sound_dim], a step for each segment · ``regions`` [B, S · n, H, W, region_dim], n of them."""

    sound: Stream
    regions: Stream

    def tensors(self) -> dict[str, Tensor]:
        """What ``System.encode`` returns, one row a clip; ``SegmentTowers.pair`` is the way back."""
        (sound, heard, _), (regions, seen, _) = self
        return {"sound": sound, "heard": heard, "regions": regions, "seen": seen}


class SegmentTowers(nn.Module):
    """``encode(batch)``: the ``Pair`` of a clip, in S = ``steps`` segments of ``seconds / steps`` seconds.

    Sound: ``LogMelConv``, its steps averaged in each segment · pictures: ``CellConv`` of ``frames`` frames a segment,
    those nearest to the middles of its equal parts · features and maps of other towers (VGGish, VGG-19) are brought to
    unit length and averaged in each segment; features of a picture are a map of one cell. A segment is recorded where
    anything in it is. ``sound_dim``, ``region_dim``: the widths · ``placed``: the picture has places to choose from.

    ConfigError for a stream of another kind. Pitfall: a map is averaged over time before anything looks at its cells,
    so what moves fast inside a segment is blurred; frames are not.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        seconds: float,
        steps: int,
        frames: int = 1,
        dim: int = 64,
        widths: tuple[int, ...] = (32, 64, 96),
    ):
        super().__init__()
        at_least_one({"steps": steps, "frames": frames, "dim": dim}, "SegmentTowers")
        if len(widths) != 3:
            raise ConfigError(f"SegmentTowers: widths = {widths} must be three numbers.")
        self.seconds, self.steps, self.frames = seconds, steps, frames
        audio, video = spec.streams["audio"], spec.streams["video"]
        for name, stream, known in (("audio", audio, ("audio", "features")), ("video", video, ("video", "map"))):
            if stream.kind not in (*known, "features"):
                raise ConfigError(f'segments cannot be read from {name} of the kind "{stream.kind}".')
        self.hear = LogMelConv(dim=dim) if audio.kind == "audio" else None
        self.see = CellConv((widths[0], widths[1], widths[2])) if video.kind == "video" else None
        self.sound_dim = audio.shape[-1] if self.hear is None else dim
        self.region_dim = video.shape[-1] if self.see is None else self.see.dim
        self.placed = video.kind != "features"

    def encode(self, batch: Batch) -> Pair:
        audio, video = batch.require("audio", "video")
        sound = unit(audio) if self.hear is None else self.hear(audio)
        if self.see is not None:
            return Pair(self.averaged(sound), self.see(self.picked(video)))
        cells = unit(video)
        if cells.data.ndim == 3:
            cells = cells._replace(data=cells.data[:, :, None, None])
        return Pair(self.averaged(sound), self.averaged(cells))

    def pair(self, encoded: Mapping[str, Tensor]) -> Pair:
        """The ``Pair`` whose ``tensors`` these are."""
        rate = self.steps / self.seconds
        per = encoded["regions"].shape[1] / self.steps
        return Pair(
            Stream(encoded["sound"], encoded["heard"], rate), Stream(encoded["regions"], encoded["seen"], rate * per)
        )

    def averaged(self, stream: Stream) -> Stream:
        """The stream [B, T, ...] as means of the segments [B, steps, ...]."""
        inner = stream.data.shape[2:]
        there = stream._replace(data=stream.mask[:, :, None].to(stream.data.dtype))
        data = on_clock(stream._replace(data=stream.data.flatten(2)), steps=self.steps, seconds=self.seconds)
        mask = on_clock(there, steps=self.steps, seconds=self.seconds)[:, :, 0] > 0
        return Stream(data.unflatten(2, inner), mask, self.steps / self.seconds)

    def picked(self, video: Stream) -> Stream:
        """``frames`` frames of every segment; what lies behind the end of the stream was not recorded."""
        count = self.steps * self.frames
        middle = (torch.arange(count, device=video.mask.device, dtype=torch.float64) + 0.5) / count * self.seconds
        at = (middle * video.rate).floor().long()
        there = at < video.mask.shape[1]
        at = at.clamp(max=video.mask.shape[1] - 1)
        return Stream(video.data[:, at], video.mask[:, at] & there, count / self.seconds)


def unit(stream: Stream) -> Stream:
    """Rows of unit length along the last axis, zeros where nothing was recorded."""
    keep = stream.mask.reshape(*stream.mask.shape, *[1] * (stream.data.ndim - 2))
    return stream._replace(data=nn.functional.normalize(stream.data.masked_fill(~keep, 0), dim=-1))
