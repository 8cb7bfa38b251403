"""Convolutions over time and picture together: 3-D residual networks, whole and factorized."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from avcl.encoders.conv2d import centered
from avcl.encoders.norm import NormName
from avcl.encoders.resnet import Conv, ResidualTrunk, check_stages
from avcl.types import Stream


def middle_channels(inside: int, outside: int, *, time: int = 3, space: int = 3) -> int:
    r"""Channels between the two halves of a factorized convolution with the weights of the whole one.

    .. math:: M = ⌊t d^2 N_{i-1} N_i / (d^2 N_{i-1} + t N_i)⌋

    t = ``time``, d = ``space``: kernel sizes (Tran et al. 2018, section 3.5).
    """
    return time * space**2 * inside * outside // (space**2 * inside + time * outside)


def spatial(inside: int, outside: int, kernel: int = 3, stride: int = 1) -> nn.Conv3d:
    """1 × k × k: every frame for itself."""
    half = kernel // 2
    return nn.Conv3d(
        inside, outside, (1, kernel, kernel), stride=(1, stride, stride), padding=(0, half, half), bias=False
    )


def temporal(inside: int, outside: int, kernel: int = 3, stride: int = 1) -> nn.Conv3d:
    """t × 1 × 1: every pixel for itself."""
    return nn.Conv3d(inside, outside, (kernel, 1, 1), stride=(stride, 1, 1), padding=(kernel // 2, 0, 0), bias=False)


class VideoResNet(nn.Module):
    """3-D ResNet, or R(2+1)D (Tran et al. 2018) where ``factorized``: video [B, T, 3, H, W] to [B, T', dim].

    Stem 3 × 7 × 7 of stride 1 × 2 × 2 (``stem_stride`` 4: a quarter of the work); ``depths[i]`` blocks of two
    3 × 3 × 3 convolutions of ``widths[i]``, the first of stride ``strides[i]`` over the picture and
    ``time_strides[i]`` over time; mean over the cells. Factorized: each of them becomes 1 × 3 × 3 to M channels, norm,
    ReLU, 3 × 1 × 1, with M by ``middle_channels`` (the stem's: ``stem_middle``, or the same formula): as many weights,
    twice as many nonlinearities.

    The rate is that of the frames over ``time_stride``, T' = ceil(T / time_stride); a step is recorded where any frame
    under it is. Frames that were not recorded are zeros before every convolution over time. Any T, H and W.
    ``maps``: the cells, with the geometry of ``FrameResNet`` (``stride``, ``offset``, ``reach``). ``norm``: "batch" as
    in the paper breaks the contract as described there.

    ``paper()``: 18 layers, 33,166,272 parameters, R(2+1)D 33,165,639 (common weights of R(2+1)D-18 use the M of a
    block's first half for its second too and have 31,300,125: they do not fit).
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (16, 32, 64),
        depths: Sequence[int] = (1, 1, 1),
        strides: Sequence[int] = (1, 2, 2),
        time_strides: Sequence[int] | None = None,
        factorized: bool = False,
        stem_middle: int | None = None,
        stem_stride: int = 2,
        norm: NormName = "channel",
    ):
        super().__init__()
        time_strides = strides if time_strides is None else time_strides
        check_stages(widths, depths, strides)
        check_stages(widths, depths, time_strides)
        first = widths[0]
        over = (1, stem_stride, stem_stride)
        stem: list[Conv] = [nn.Conv3d(3, first, (3, 7, 7), stride=over, padding=(1, 3, 3), bias=False)]
        if factorized:
            middle = middle_channels(3, first, space=7) if stem_middle is None else stem_middle
            stem = [spatial(3, middle, 7, stem_stride), temporal(middle, first)]
        blocks: list[list[Conv]] = []
        inside = first
        for width, depth, across, along in zip(widths, depths, strides, time_strides, strict=True):
            for space, time in [(across, along)] + [(1, 1)] * (depth - 1):
                one, two = _conv(inside, width, space, time, factorized), _conv(width, width, 1, 1, factorized)
                blocks.append([*one, *two])
                inside = width
        self.trunk = ResidualTrunk(stem, blocks, norm=norm)
        self.dim, self.offset, self.reach = self.trunk.dim, 0.0, self.trunk.reach
        self.time_stride, self.stride = self.trunk.strides[0], self.trunk.strides[-1]

    @classmethod
    def tiny(cls, *, factorized: bool = False) -> VideoResNet:
        """Two stages of 6 and 8 channels, stride 2 in time and 4 over the picture: about eight thousand parameters."""
        return cls(widths=(6, 8), depths=(1, 1), strides=(1, 2), factorized=factorized)

    @classmethod
    def paper(cls, *, factorized: bool = False, norm: NormName = "channel") -> VideoResNet:
        """R3D-18, or R(2+1)D-18 with 45 channels within the stem; one step per eight frames, one cell per 16 pixels."""
        widths, strides = (64, 128, 256, 512), (1, 2, 2, 2)
        middle = 45 if factorized else None
        return cls(
            widths=widths, depths=(2, 2, 2, 2), strides=strides, factorized=factorized, stem_middle=middle, norm=norm
        )

    def maps(self, stream: Stream) -> Stream:
        """The cells before the mean: [B, T', H', W', dim]."""
        x = centered(stream).transpose(1, 2).to(memory_format=torch.channels_last_3d)  # [B, 3, T, H, W]
        x, mask = self.trunk(x, stream.mask)
        return Stream(x.permute(0, 2, 3, 4, 1), mask, stream.rate / self.time_stride)

    def forward(self, stream: Stream) -> Stream:
        cells = self.maps(stream)
        return cells._replace(data=cells.data.mean((2, 3)))


def _conv(inside: int, outside: int, stride: int, time_stride: int, factorized: bool) -> list[Conv]:
    if factorized:
        middle = middle_channels(inside, outside)
        return [spatial(inside, middle, stride=stride), temporal(middle, outside, stride=time_stride)]
    return [nn.Conv3d(inside, outside, 3, stride=(time_stride, stride, stride), padding=1, bias=False)]
