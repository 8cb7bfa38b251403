"""From features back to signals: pictures, video, spectrograms, waveforms. Sizes and clocks come out exact."""

from __future__ import annotations

from fractions import Fraction
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, leaky_relu

from avcl.encoders.checks import at_least_one, one_of, recorded
from avcl.encoders.norm import ChannelNorm
from avcl.errors import BatchError, ConfigError
from avcl.types import Stream

Enlarging = Literal["nearest", "bilinear"]


class PictureDecoder(nn.Module):
    """Latent [B, k] to a picture [B, 3, H, W] in [0, 1], any H and W.

    A linear map to a grid of about H / 2^n × W / 2^n cells (n = number of ``widths``), then n times: enlarge to the
    next size, 3 × 3 convolution, norm, GELU; a last 3 × 3 convolution and a sigmoid. Enlarging before a convolution
    with stride 1 covers every pixel alike, where transposed convolutions leave a checkerboard (Odena et al. 2016).
    ``squash=False`` leaves the sigmoid out, for losses on logits. ``channels``: 3, or what a picture has else.
    """

    def __init__(
        self,
        features: int,
        *,
        size: tuple[int, int] = (64, 64),
        widths: tuple[int, ...] = (64, 48, 32, 16),
        channels: int = 3,
        upsampling: Enlarging = "nearest",
        squash: bool = True,
    ):
        super().__init__()
        numbers = {"features": features, "H": size[0], "W": size[1], "levels": len(widths), "channels": channels}
        at_least_one({**numbers, "width": min(widths, default=1)}, "PictureDecoder")
        one_of(upsampling, ("nearest", "bilinear"), "upsampling", "PictureDecoder")
        self.features, self.upsampling, self.squash, self.channels = features, upsampling, squash, channels
        # The sizes on the way, from the grid to the picture: each the half of the next, rounded up.
        self.sizes = [(-(-size[0] // 2**i), -(-size[1] // 2**i)) for i in range(len(widths), -1, -1)]
        self.width = widths[0]
        self.grid = nn.Linear(features, widths[0] * prod(self.sizes[0]))
        narrow = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in narrow)
        self.norms = nn.ModuleList(ChannelNorm(w) for w in widths)
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        if latent.ndim != 2 or latent.shape[1] != self.features:
            raise BatchError(f"PictureDecoder needs latents [B, {self.features}], not {list(latent.shape)}.")
        x = self.grid(latent).reshape(len(latent), self.width, *self.sizes[0])
        x = x.contiguous(memory_format=torch.channels_last)
        for size, conv, norm in zip(self.sizes[1:], self.convs, self.norms, strict=True):
            x = gelu(norm(conv(interpolate(x, size=size, mode=self.upsampling))))
        x = self.last(x)
        return torch.sigmoid(x) if self.squash else x


class VideoDecoder(nn.Module):
    """Features [B, T, D] to video [B, T · per_step, 3, H, W] in [0, 1]: motion along time first, then every picture.

    Residual convolutions over time (each sees ``reach`` steps), a linear map from every step to ``per_step`` frames'
    latents, and one ``PictureDecoder`` for all. Rate · per_step; frames of an unrecorded step are zeros. ``dim`` = W.
    """

    def __init__(
        self,
        features: int,
        *,
        size: tuple[int, int] = (64, 64),
        hidden: int = 64,
        depth: int = 2,
        reach: int = 3,
        per_step: int = 1,
        widths: tuple[int, ...] = (64, 48, 32, 16),
        upsampling: Enlarging = "nearest",
        squash: bool = True,
    ):
        super().__init__()
        at_least_one({"hidden": hidden, "reach": reach, "per_step": per_step}, "VideoDecoder")
        self.features, self.hidden, self.per_step, self.dim = features, hidden, per_step, size[1]
        self.motion = TimeMix(features, hidden, depth=depth, reach=reach)
        self.frames = nn.Linear(hidden, per_step * hidden)
        self.picture = PictureDecoder(hidden, size=size, widths=widths, upsampling=upsampling, squash=squash)

    def forward(self, stream: Stream) -> Stream:
        x = self.motion(recorded(stream, self.features, "VideoDecoder"), stream.mask)
        mask = stream.mask.repeat_interleave(self.per_step, 1)
        frames = self.picture(self.frames(x).reshape(-1, self.hidden)).unflatten(0, mask.shape)
        return Stream(frames * mask[:, :, None, None, None], mask, stream.rate * self.per_step)


class SpectrogramDecoder(nn.Module):
    """Features [B, T, D] to a spectrum [B, T · per_step, bands, 1], real numbers (log magnitudes).

    Residual convolutions over time, a linear map to a column of about bands / 2^n cells, then n times: twice as many
    cells along frequency, and along time until a step has become ``per_step`` (a power of two up to 2^n) columns; 3 × 3
    convolution, norm, GELU. Rate · per_step; ``dim`` = ``channels``. A latent of a whole clip is a stream of one step.
    """

    def __init__(
        self,
        features: int,
        *,
        bands: int = 64,
        per_step: int = 1,
        widths: tuple[int, ...] = (48, 32, 16),
        channels: int = 1,
        depth: int = 1,
        reach: int = 3,
    ):
        super().__init__()
        numbers = {"bands": bands, "per_step": per_step, "channels": channels, "levels": len(widths)}
        at_least_one({**numbers, "width": min(widths, default=1)}, "SpectrogramDecoder")
        if per_step & (per_step - 1) or per_step > 2 ** len(widths):
            raise ConfigError(
                f"SpectrogramDecoder: per_step = {per_step} must be a power of two up to {2 ** len(widths)}.",
                hint="One level of widths doubles time once.",
            )
        self.features, self.per_step, self.dim = features, per_step, channels
        self.bands = [-(-bands // 2**i) for i in range(len(widths), -1, -1)]
        self.width = widths[0]
        self.motion = TimeMix(features, self.width, depth=depth, reach=reach)
        self.column = nn.Linear(self.width, self.width * self.bands[0])
        narrow = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in narrow)
        self.norms = nn.ModuleList(ChannelNorm(w) for w in widths)
        self.last = nn.Conv2d(widths[-1], channels, 1)

    def forward(self, stream: Stream) -> Stream:
        x, mask = self.motion(recorded(stream, self.features, "SpectrogramDecoder"), stream.mask), stream.mask
        x = self.column(x).unflatten(2, (self.width, -1)).permute(0, 2, 3, 1)  # [B, C, F, T]
        for level, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if 2**level < self.per_step:
                mask = mask.repeat_interleave(2, 1)
            bigger = interpolate(x, size=(self.bands[level + 1], mask.shape[1]), mode="nearest")
            x = gelu(norm(conv(bigger * mask[:, None, None])))
        out = self.last(x).permute(0, 3, 2, 1) * mask[:, :, None, None]
        return Stream(out, mask, stream.rate * self.per_step)


class WaveformDecoder(nn.Module):
    """Features [B, T, D] to audio [B, T · Π strides, 1] in [-1, 1]: exactly ``samples(T)``, at rate · Π strides.

    A convolution of 7; then per stride s: LeakyReLU(0.1), transposed convolution of 2s steps with stride s ("nearest":
    repeat s times and convolve, no checkerboard of tones), and the mean of residual stacks with kernels ``kernels`` and
    dilations ``dilations``; a last convolution of 7 and tanh (HiFi-GAN, Kong et al. 2020, without its weight norm).
    Channels start at ``width`` and halve with every stride. Samples of unrecorded steps are zeros.

    ``strides_for(25, 16_000)`` gives strides for a frame rate and a sample rate. ``paper()``: HiFi-GAN's V1 for mel
    frames of 256 samples. Pitfall: about Π strides outputs per step: memory, not parameters, is what this costs.
    """

    def __init__(
        self,
        features: int,
        *,
        strides: tuple[int, ...] = (8, 8, 5, 2),
        width: int = 64,
        kernels: tuple[int, ...] = (3, 7),
        dilations: tuple[int, ...] = (1, 3),
        upsampling: Literal["transposed", "nearest"] = "transposed",
    ):
        super().__init__()
        numbers = {
            "features": features,
            "strides": len(strides),
            "kernels": len(kernels),
            "dilation": min(dilations, default=1),
        }
        at_least_one(numbers, "WaveformDecoder")
        one_of(upsampling, ("transposed", "nearest"), "upsampling", "WaveformDecoder")
        if min(strides) < 2 or any(k % 2 == 0 for k in kernels) or width < 2 ** len(strides):
            raise ConfigError(
                f"WaveformDecoder needs strides of at least 2, odd kernels and a width of at least 2^{len(strides)}, "
                f"not {strides}, {kernels}, {width}.",
            )
        self.features, self.strides, self.upsampling, self.dim = features, strides, upsampling, 1
        self.first = nn.Conv1d(features, width, 7, padding=3)
        widths = [width // 2**i for i in range(len(strides) + 1)]
        self.ups = nn.ModuleList(_up(upsampling, i, o, s) for i, o, s in zip(widths, widths[1:], strides, strict=False))
        self.stacks = nn.ModuleList(
            nn.ModuleList(DilatedStack(w, kernel, dilations) for kernel in kernels) for w in widths[1:]
        )
        self.last = nn.Conv1d(widths[-1], 1, 7, padding=3)

    @classmethod
    def paper(cls, features: int = 80) -> WaveformDecoder:
        """HiFi-GAN V1: 22,050 Hz from mel frames 256 samples apart, 512 channels."""
        return cls(features, strides=(8, 8, 2, 2), width=512, kernels=(3, 7, 11), dilations=(1, 3, 5))

    def samples(self, steps: int) -> int:
        """How many samples come of so many steps."""
        return steps * prod(self.strides)

    def forward(self, stream: Stream) -> Stream:
        mask = stream.mask[:, None]  # [B, 1, T]
        x = self.first(recorded(stream, self.features, "WaveformDecoder").transpose(1, 2)) * mask
        for stride, up, stacks in zip(self.strides, self.ups, self.stacks, strict=True):
            x = leaky_relu(x, 0.1)
            mask = mask.repeat_interleave(stride, 2)
            x = up(x.repeat_interleave(stride, 2) if self.upsampling == "nearest" else x) * mask
            total = torch.zeros_like(x)
            for stack in stacks:  # type: ignore[attr-defined]
                total = total + stack(x, mask)
            x = total / len(stacks)  # type: ignore[arg-type]
        wave = torch.tanh(self.last(leaky_relu(x, 0.1))) * mask
        return Stream(wave.transpose(1, 2), mask[:, 0], stream.rate * prod(self.strides))


class DilatedStack(nn.Module):
    """``x ← x + conv(σ(conv_d(σ(x))))`` for every dilation d, σ = LeakyReLU(0.1): [B, C, T] with mask [B, 1, T]."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        half = kernel // 2
        self.wide = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * half) for d in dilations
        )
        self.near = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=half) for _ in dilations)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for wide, near in zip(self.wide, self.near, strict=True):
            x = (x + near(leaky_relu(wide(leaky_relu(x, 0.1)) * mask, 0.1))) * mask
        return x


class TimeMix(nn.Module):
    """A linear map to ``dim``, then ``depth`` residual convolutions over time: [B, T, D] and mask to [B, T, dim]."""

    def __init__(self, features: int, dim: int, *, depth: int, reach: int):
        super().__init__()
        at_least_one({"features": features, "dim": dim, "reach": reach}, "TimeMix")
        if reach % 2 == 0:
            raise ConfigError(f"TimeMix: reach = {reach} must be odd to see both sides alike.")
        self.inward = nn.Linear(features, dim)
        self.norms = nn.ModuleList(ChannelNorm(dim) for _ in range(depth))
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, reach, padding=reach // 2) for _ in range(depth))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        keep = mask[:, None]
        x = self.inward(x).transpose(1, 2) * keep
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = (x + conv(gelu(norm(x)) * keep)) * keep
        return x.transpose(1, 2)


def strides_for(rate: float, sample_rate: float, *, largest: int = 8) -> tuple[int, ...]:
    """Strides, large first, whose product is exactly ``sample_rate / rate``: ``strides_for(25, 16_000)`` is
    (8, 8, 5, 2).

    Each is at most ``largest`` where its primes allow. Raises ConfigError where the ratio is not a whole number above
    one: then no stack of strides ends on the last sample of a step, and features want another rate first.
    """
    at_least_one({"largest": largest}, "strides_for")
    if not (rate > 0 and sample_rate > 0):
        raise ConfigError(f"strides_for needs positive rates, not {rate} and {sample_rate}.")
    exact = Fraction(sample_rate).limit_denominator(10_000) / Fraction(rate).limit_denominator(10_000)
    if exact.denominator != 1 or exact == 1:
        raise ConfigError(f"{sample_rate} samples a second are not a whole number of samples for each of {rate} steps.")
    rest, found = exact.numerator, []
    while rest > 1:
        divisors = [d for d in range(min(largest, rest), 1, -1) if rest % d == 0]
        stride = divisors[0] if divisors else next(d for d in range(largest + 1, rest + 1) if rest % d == 0)
        found.append(stride)
        rest //= stride
    return tuple(sorted(found, reverse=True))


def _up(upsampling: str, wide: int, narrow: int, stride: int) -> nn.Module:
    """A layer whose output has exactly ``stride`` times the steps (those that "nearest" has already repeated)."""
    if upsampling == "nearest":
        return nn.Conv1d(wide, narrow, 2 * stride + 1, padding=stride)
    margin = (stride + 1) // 2
    return nn.ConvTranspose1d(wide, narrow, 2 * stride, stride, padding=margin, output_padding=stride % 2)
