"""Convolutions on the waveform itself: the network learns its own filters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, finfo, nn

from avcl.encoders.checks import at_least_one
from avcl.encoders.norm import ChannelNorm
from avcl.errors import BatchError, ConfigError
from avcl.nn.pooling import strided_mask
from avcl.types import Stream


class WaveLayer(NamedTuple):
    """One layer: channels, kernel and stride of the convolution, then the largest of every ``pool`` steps."""

    width: int
    kernel: int
    stride: int = 1
    pool: int = 1


SMALL = (WaveLayer(32, 10, 5), WaveLayer(48, 8, 4), WaveLayer(64, 8, 4), WaveLayer(96, 8, 4))


class WaveformConv(nn.Module):
    """Strided convolutions on sound: audio [B, T, C] to [B, T', dim] at sample rate / product of strides and pools.

    Layer: convolution, norm over channels, GELU, maximum over ``pool`` recorded steps. ``channels`` = 1 hears the mean
    of any C; otherwise C = ``channels``. T' = ceil(T / stride), and a step is recorded where any sample under it is.
    Kernels lie around the sample at which their step begins (an even one reaches one further ahead), padded so that
    no sample is lost. What was not recorded is zero before every layer.

    ``wav2vec()``: Baevski et al. 2020, 50 steps a second at 16 kHz, 4,210,176 parameters · ``m5()``: Dai et al. 2017.
    Pitfalls: kernels count samples, so a network belongs to one sample rate: resample first. The norms forget level;
    what is left of it comes by the biases, against which the signal is strong or weak.
    """

    def __init__(self, layers: Sequence[WaveLayer | tuple[int, ...]] = SMALL, *, channels: int = 1):
        super().__init__()
        plan = tuple(WaveLayer(*layer) for layer in layers)
        if not plan:
            raise ConfigError("a waveform network has at least one layer.")
        at_least_one({"channels": channels}, "WaveformConv")
        for i, layer in enumerate(plan):
            at_least_one(layer._asdict(), f"WaveformConv: layer {i}")
            if layer.kernel < layer.stride:
                raise ConfigError(f"layer {i}: a kernel of {layer.kernel} skips samples at a stride of {layer.stride}.")
        inputs = (channels, *(layer.width for layer in plan))
        self.plan, self.channels, self.dim = plan, channels, plan[-1].width
        self.convs = nn.ModuleList(
            nn.Conv1d(i, layer.width, layer.kernel, stride=layer.stride) for i, layer in zip(inputs, plan, strict=False)
        )
        self.norms = nn.ModuleList(ChannelNorm(layer.width) for layer in plan)
        self.stride = math.prod(layer.stride * layer.pool for layer in plan)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # type: ignore[arg-type]

    @classmethod
    def tiny(cls) -> WaveformConv:
        """Four layers of 8 to 16 channels, a stride of 320: four thousand parameters."""
        return cls((WaveLayer(8, 10, 5), WaveLayer(8, 8, 4), WaveLayer(16, 8, 4), WaveLayer(16, 8, 4)))

    @classmethod
    def wav2vec(cls, width: int = 512) -> WaveformConv:
        """The seven layers of wav2vec 2.0 (the variant with biases and a layer norm behind each): a stride of 320."""
        kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
        return cls(tuple(WaveLayer(width, k, s) for k, s in zip(kernels, strides, strict=True)))

    @classmethod
    def m5(cls) -> WaveformConv:
        """The five-layer network of Dai et al. 2017 (its last layer is the classifier): half a million parameters,
        a stride of 1,024; made for 8 kHz.
        """
        return cls(
            (WaveLayer(128, 80, 4, 4), WaveLayer(128, 3, 1, 4), WaveLayer(256, 3, 1, 4), WaveLayer(512, 3, 1, 4))
        )

    def forward(self, stream: Stream) -> Stream:
        data, mask, rate = stream
        if data.ndim != 3 or not data.is_floating_point() or self.channels not in (1, data.shape[2]):
            raise BatchError(f"audio [B, T, {self.channels}] is needed, not {data.dtype} {list(data.shape)}.")
        wave = data.masked_fill(~mask[:, :, None], 0)
        wave = wave.mean(2, keepdim=True) if self.channels == 1 else wave
        x = wave.transpose(1, 2)
        for conv, norm, layer in zip(self.convs, self.norms, self.plan, strict=True):
            before = (layer.kernel - 1) // 2
            x = conv(nn.functional.pad(x, (before, layer.kernel - 1 - before)))
            mask = strided_mask(mask, layer.stride)
            x = nn.functional.gelu(norm(x))
            x, mask = _largest(x, mask, layer.pool)
        return Stream(x.transpose(1, 2), mask, rate / self.stride)


def _largest(x: Tensor, mask: Tensor, pool: int) -> tuple[Tensor, Tensor]:
    """The largest of every ``pool`` recorded steps of x [B, D, T]; zeros where there is none."""
    if pool > 1:
        x = x.masked_fill(~mask[:, None], finfo(x.dtype).min)
        x, mask = nn.functional.max_pool1d(x, pool, ceil_mode=True), strided_mask(mask, pool)
    return x.masked_fill(~mask[:, None], 0), mask
