"""Small towers for whole clips: what is in it as one vector, and what happens when as a sequence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from avcl.encoders.audio import LogMelConv
from avcl.encoders.conv2d import ChangeConv, FrameConv, glimpses
from avcl.nn.pooling import masked_max, masked_mean
from avcl.types import Stream


class Seen(NamedTuple):
    """What a tower makes of a clip: pooled feature [B, P], and the sequence where the modality has timing."""

    pooled: Tensor
    sequence: Stream | None


class PictureTower(nn.Module):
    """Looks twice: at ``frames`` frames in full size (what is there) and at all frames in 16 × 16 gray with their
    change (when it moves). Video [B, T, 3, H, W] to mean and maximum of the first and the mean of the second, [B, dim],
    and the second as a sequence [B, T, sequence_dim].
    """

    def __init__(self, frames: int):
        super().__init__()
        self.frames, self.what, self.when = frames, FrameConv(), ChangeConv()
        self.dim, self.sequence_dim = 2 * self.what.dim + self.when.dim, self.when.dim

    def forward(self, stream: Stream) -> Seen:
        what, when = self.what(glimpses(stream, self.frames)), self.when(stream)
        parts = masked_mean(what.data, what.mask), masked_max(what.data, what.mask), masked_mean(when.data, when.mask)
        return Seen(torch.cat(parts, 1), when)


class SoundTower(nn.Module):
    """Reads the log-mel: audio [B, T, C] to mean and maximum over time [B, dim], and the sequence at 8 steps a second
    [B, T', sequence_dim].
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = LogMelConv()
        self.dim, self.sequence_dim = 2 * self.conv.dim, self.conv.dim

    def forward(self, stream: Stream) -> Seen:
        heard = self.conv(stream)
        return Seen(torch.cat([masked_mean(heard.data, heard.mask), masked_max(heard.data, heard.mask)], 1), heard)


def in_unit_range(stream: Stream) -> Stream:
    """uint8 pictures as float in [0, 1]; anything else as it is."""
    return stream._replace(data=stream.data.float() / 255) if stream.data.dtype == torch.uint8 else stream
