"""Residual networks of 2-D convolutions: on frames, each for itself, and on spectrograms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avcl.encoders.audio import log_mel_stream
from avcl.encoders.checks import at_least_one
from avcl.encoders.conv2d import centered
from avcl.encoders.norm import ChannelNorm, NormName, norm_layer
from avcl.errors import BatchError, ConfigError
from avcl.nn.pooling import strided_mask
from avcl.types import Stream

Conv = nn.Conv2d | nn.Conv3d
# Variance below which a response stays weak: at 1e-5 every flat picture, bright or dim, would give the same numbers.
NORM_EPS = 0.01


def keep(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` [N, C, T, ...] with zeros at the steps that ``mask`` [N, T] does not hold; as it is without a mask."""
    return x if mask is None else x * mask.reshape(mask.shape[0], 1, -1, *[1] * (x.ndim - 3))


def strides_of(convs: Sequence[Conv]) -> tuple[int, ...]:
    """The stride along each axis of convolutions one after the other."""
    return tuple(math.prod(steps) for steps in zip(*(conv.stride for conv in convs), strict=True))


class ResidualBlock(nn.Module):
    """``relu(s(x) + n_k(c_k(… relu(n_1(c_1(x))))))`` (He et al. 2016), on [N, C, T, ...] with a mask of steps, or none.

    ``convs``: two 3 × 3 (basic), 1 × 1, 3 × 3, 1 × 1 (bottleneck), or spatial and temporal ones in turn (R(2+1)D). s is
    the identity, or a strided 1 × 1 convolution and a norm where the shape changes. The gain of the last norm starts
    at zero, so that a deep network starts as its shortcuts and not as a constant. Before every convolution the steps
    that were not recorded are zeros: what a bias put there never reaches their neighbors.
    """

    def __init__(self, convs: Sequence[Conv], *, norm: NormName = "channel"):
        super().__init__()
        strides, axes = strides_of(convs), convs[0].weight.ndim - 2
        inside, outside = convs[0].in_channels, convs[-1].out_channels
        self.steps = [conv.stride[0] for conv in convs]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(norm_layer(norm, conv.out_channels, axes=axes, eps=NORM_EPS) for conv in convs)
        last = self.norms[-1]
        nn.init.zeros_((last.norm if isinstance(last, ChannelNorm) else last).weight)  # type: ignore[arg-type]
        self.shortcut = nn.Sequential()
        if inside != outside or max(strides) > 1:
            side = type(convs[0])(inside, outside, 1, stride=strides, bias=False)  # type: ignore[arg-type]
            self.shortcut.extend([side, norm_layer(norm, outside, axes=axes, eps=NORM_EPS)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if i:
                y = keep(nn.functional.relu(y), mask)
            y = norm(conv(y))
            mask = None if mask is None else strided_mask(mask, self.steps[i])
        return keep(nn.functional.relu(y + self.shortcut(x)), mask), mask


def wake(net: nn.Module, gain: float = 0.5) -> None:
    """Residual branches of ``net`` that speak from the start: few blocks gain nothing from starting without them."""
    for block in net.modules():
        if isinstance(block, ResidualBlock):
            last = block.norms[-1]
            nn.init.constant_((last.norm if isinstance(last, ChannelNorm) else last).weight, gain)  # type: ignore[arg-type]


class ResidualTrunk(nn.Module):
    """Stem convolutions, a 3 × 3 maximum of stride two where ``pool``, blocks: [N, C, T, ...] and a mask of T, or none.

    ``strides``: along each axis, from the input to the output; ``reach``: how far one output sees along the last
    axis. Every convolution is padded by half of its kernel, hence output i stands at input i · stride and sees the
    inputs i · stride ± reach. Stem: convolution, norm and ReLU each.
    """

    def __init__(
        self, stem: Sequence[Conv], blocks: Sequence[Sequence[Conv]], *, pool: bool = False, norm: NormName = "channel"
    ):
        super().__init__()
        axes = stem[0].weight.ndim - 2
        self.steps = [conv.stride[0] for conv in stem]
        self.stem = nn.ModuleList(stem)
        self.stem_norms = nn.ModuleList(norm_layer(norm, c.out_channels, axes=axes, eps=NORM_EPS) for c in stem)
        self.pool = pool
        self.blocks = nn.ModuleList(ResidualBlock(convs, norm=norm) for convs in blocks)
        self.dim = blocks[-1][-1].out_channels
        every = [*stem, *(conv for convs in blocks for conv in convs)]
        self.strides = tuple(s * (2 if pool else 1) for s in strides_of(every))
        pairs = [(conv.kernel_size[-1], conv.stride[-1]) for conv in every]
        if pool:
            pairs.insert(len(stem), (3, 2))
        self.reach, jump = 0, 1
        for kernel, stride in pairs:
            self.reach += kernel // 2 * jump
            jump *= stride
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        for conv, norm, steps in zip(self.stem, self.stem_norms, self.steps, strict=True):
            mask = None if mask is None else strided_mask(mask, steps)
            x = keep(nn.functional.relu(norm(conv(x))), mask)
        if self.pool:  # nothing is below zero here: neither an edge nor a step that is missing can win
            mask = None if mask is None else strided_mask(mask, 2)
            x = keep(nn.functional.max_pool2d(x, 3, stride=2, padding=1), mask)  # a maximum spreads past the end
        for block in self.blocks:
            x, mask = block(x, mask)
        return x, mask


def square(inside: int, outside: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """k × k, padded by half of it, no bias: a norm follows."""
    return nn.Conv2d(inside, outside, kernel, stride=stride, padding=kernel // 2, bias=False)


def trunk2d(
    channels: int,
    widths: Sequence[int],
    depths: Sequence[int],
    strides: Sequence[int],
    *,
    pool: bool,
    bottleneck: bool,
    norm: NormName,
) -> ResidualTrunk:
    """The network of He et al. 2016: a 7 × 7 stem of stride two, then ``depths[i]`` blocks of ``widths[i]``."""
    check_stages(widths, depths, strides)
    blocks: list[list[Conv]] = []
    inside = widths[0]
    for width, depth, first in zip(widths, depths, strides, strict=True):
        for stride in [first] + [1] * (depth - 1):
            if bottleneck:
                blocks.append([square(inside, width, 1), square(width, width, 3, stride), square(width, 4 * width, 1)])
            else:
                blocks.append([square(inside, width, 3, stride), square(width, width, 3)])
            inside = blocks[-1][-1].out_channels
    return ResidualTrunk([square(channels, widths[0], 7, 2)], blocks, pool=pool, norm=norm)


def check_stages(widths: Sequence[int], depths: Sequence[int], strides: Sequence[int]) -> None:
    """ConfigError unless there is one width, depth and stride per stage, all of at least one."""
    if not len(widths) == len(depths) == len(strides) > 0:
        raise ConfigError(
            f"a residual network has one width, depth and stride per stage, not {len(widths)}, {len(depths)}, "
            f"{len(strides)} of them."
        )
    for i, sizes in enumerate(zip(widths, depths, strides, strict=True)):
        at_least_one(dict(zip(("width", "depth", "stride"), sizes, strict=True)), f"stage {i}")


class FrameResNet(nn.Module):
    """ResNet (He et al. 2016) on every frame for itself: video [B, T, 3, H, W] to [B, T, dim]; any H and W.

    A 7 × 7 stem of stride two, a 3 × 3 maximum of stride two (unless ``pool`` is off), ``depths[i]`` residual blocks
    of ``widths[i]``, the first of stride ``strides[i]``; mean over the cells. ``paper()``: ResNet-18, 11,176,512
    parameters; ``bottleneck`` with depths 3, 4, 6, 3: ResNet-50, 23,508,032. Rate and mask stay as they are. Channels
    last in memory.

    ``maps`` gives the cells themselves, for localization. Geometry: cell (y, x) is centered on pixel (offset +
    y · stride, offset + x · stride), here with an offset of 0, and sees ``reach`` pixels to each side; there are
    ceil(H / stride) × ceil(W / stride). So the grid leans to the upper left: at 224 pixels and a stride of 32 the last
    cell stands at 192. A stride of 1 instead of 2 in the last stage doubles the grid.

    ``norm``: "channel", or "batch" as in the paper, which breaks the contract: frames of other clips and padding then
    change the outputs of a training step.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (16, 32, 64, 128),
        depths: Sequence[int] = (1, 1, 1, 1),
        strides: Sequence[int] = (1, 2, 2, 2),
        pool: bool = True,
        bottleneck: bool = False,
        norm: NormName = "channel",
    ):
        super().__init__()
        self.trunk = trunk2d(3, widths, depths, strides, pool=pool, bottleneck=bottleneck, norm=norm)
        self.dim, self.stride, self.offset, self.reach = self.trunk.dim, self.trunk.strides[-1], 0.0, self.trunk.reach

    @classmethod
    def tiny(cls) -> FrameResNet:
        """Three stages of 8, 12, 16 channels, stride 16: nine thousand parameters."""
        return cls(widths=(8, 12, 16), depths=(1, 1, 1), strides=(1, 2, 2))

    @classmethod
    def paper(cls, *, norm: NormName = "channel") -> FrameResNet:
        """ResNet-18 without its classifier."""
        return cls(widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), norm=norm)

    def maps(self, stream: Stream) -> Stream:
        """The cells before the mean: [B, T, H', W', dim], zeros in frames that were not recorded."""
        batch, steps = stream.mask.shape
        x = centered(stream).flatten(0, 1).to(memory_format=torch.channels_last)
        x, _ = self.trunk(x)
        x = x.permute(0, 2, 3, 1).unflatten(0, (batch, steps))
        return stream._replace(data=x * stream.mask[:, :, None, None, None])

    def forward(self, stream: Stream) -> Stream:
        cells = self.maps(stream)
        return cells._replace(data=cells.data.mean((2, 3)))


class SpectrumResNet(nn.Module):
    """ResNet (He et al. 2016) over time and frequency: spectrum [B, T, F] or [B, T, F, C] to [B, T', dim].

    Time has the strides of ``FrameResNet``: rate / stride, with T' = ceil(T / stride), and a step is recorded where
    any of the frames under it is. Mean over the frequency cells, so that a pitch is a texture and not a place.
    Channels last in memory; ``norm`` as there.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        widths: Sequence[int] = (16, 32, 64, 128),
        depths: Sequence[int] = (1, 1, 1, 1),
        strides: Sequence[int] = (1, 2, 2, 2),
        pool: bool = True,
        bottleneck: bool = False,
        norm: NormName = "channel",
    ):
        super().__init__()
        at_least_one({"channels": channels}, "SpectrumResNet")
        self.trunk = trunk2d(channels, widths, depths, strides, pool=pool, bottleneck=bottleneck, norm=norm)
        self.channels, self.dim, self.stride = channels, self.trunk.dim, self.trunk.strides[0]

    def forward(self, stream: Stream) -> Stream:
        data, mask, rate = stream
        data = data[..., None] if data.ndim == 3 else data
        if data.ndim != 4 or data.shape[3] != self.channels or not data.is_floating_point():
            raise BatchError(f"a spectrum [B, T, F, {self.channels}] is needed, not {list(stream.data.shape)}.")
        x = data.permute(0, 3, 1, 2).masked_fill(~mask[:, None, :, None], 0).to(memory_format=torch.channels_last)
        x, kept = self.trunk(x, mask)
        return Stream(x.mean(3).transpose(1, 2), kept, rate / self.stride)


class LogMelResNet(nn.Module):
    """ResNet on the level-free log-mel spectrogram: audio [B, T, C] to [B, T', dim], any sample rate.

    ``log_mel_stream`` with ``bands`` and frames every ``hop`` seconds, then ``SpectrumResNet``: 1 / (hop · stride)
    steps a second, as near as whole samples allow. ``paper()``: ResNet-18 on one channel, 11,170,240 parameters.
    """

    def __init__(
        self,
        *,
        bands: int = 64,
        hop: float = 1 / 64,
        window: float = 0.032,
        widths: Sequence[int] = (16, 32, 64, 128),
        depths: Sequence[int] = (1, 1, 1, 1),
        strides: Sequence[int] = (1, 2, 2, 2),
        pool: bool = True,
        bottleneck: bool = False,
        norm: NormName = "channel",
    ):
        super().__init__()
        at_least_one({"bands": bands}, "LogMelResNet")
        if min(hop, window) <= 0:
            raise ConfigError(f"hop ({hop}) and window ({window}) are seconds above 0.")
        self.bands, self.hop, self.window = bands, hop, window
        self.net = SpectrumResNet(
            widths=widths, depths=depths, strides=strides, pool=pool, bottleneck=bottleneck, norm=norm
        )
        self.dim = self.net.dim

    @classmethod
    def tiny(cls) -> LogMelResNet:
        """Three stages of 8, 12, 16 channels: eight thousand parameters, four steps a second."""
        return cls(bands=32, widths=(8, 12, 16), depths=(1, 1, 1), strides=(1, 2, 2))

    @classmethod
    def paper(cls, *, norm: NormName = "channel") -> LogMelResNet:
        """ResNet-18 without its classifier: two steps a second."""
        return cls(widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), norm=norm)

    def forward(self, stream: Stream) -> Stream:
        return self.net(log_mel_stream(stream, bands=self.bands, hop=self.hop, window=self.window))
