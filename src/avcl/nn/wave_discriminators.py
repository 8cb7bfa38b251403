"""Waveform discriminators: at several scales (coarser and coarser) and at several periods (every p-th sample)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, pad

from avcl.errors import BatchError, ConfigError
from avcl.nn.judging import Condition, Conditioned, Head, HeadKind, Layer, MaskedConvs, Verdict, judged
from avcl.nn.players import Norm
from avcl.nn.pooling import strided_mask
from avcl.types import Stream


class WaveDiscriminator(Conditioned):
    """One scale: sound [B, T, channels] to a `Verdict` with scores [B, T'], T' = ceil(T / Π stride).

    A convolution of 15 samples, one of 41 (strided and grouped, ``per_group`` channels a group) for each of
    ``strides``, one of 5, then the head. Rate and mask follow the strides; what was not recorded neither scores nor is
    seen.

    Paper: MelGAN (Kumar et al. 2019), whose sizes are ``widths=(16, 64, 256, 1024, 1024)``, ``strides=(4, 4, 4, 4)``;
    its last convolution of 3 is pointwise here. Pitfall: a score that sees 50 ms hears texture, not words.
    """

    def __init__(
        self,
        channels: int = 1,
        *,
        widths: tuple[int, ...] = (16, 32, 64, 64),
        strides: tuple[int, ...] = (4, 4, 4),
        per_group: int = 4,
        condition: Condition | None = None,
        head: HeadKind = "score",
        classes: int = 0,
        norm: Norm = "weight",
    ):
        super().__init__(condition)
        if len(widths) != len(strides) + 1:
            raise ConfigError(f"WaveDiscriminator needs one more width than strides, not {widths} and {strides}.")
        layers = [Layer(widths[0], (15,), (1,))]
        layers += [Layer(w, (41,), (s,), per_group) for w, s in zip(widths[1:], strides, strict=True)]
        layers.append(Layer(widths[-1], (5,), (1,)))
        self.channels = channels
        self.convs = MaskedConvs(channels + self.extra, layers, norm=norm)
        self.head = Head(widths[-1], condition=condition, kind=head, classes=classes, norm=norm)

    def forward(self, stream: Stream, given: Tensor | None = None) -> Verdict:
        x = _sound(stream, self.channels)
        told = self.told(given, len(x))
        found = self.convs(self.entered(x, told), stream.mask)
        return judged(self.head, found, self.convs.strides, stream.rate, told)


class PeriodDiscriminator(Conditioned):
    """One period: sound [B, T, channels] folded to [T / period, period]; scores [B, T', period].

    Convolutions of 5 × 1 with a stride of 3 go along time, each of the ``period`` columns for itself, so that what
    repeats at that period (and aliases of it) is seen where smooth kernels see nothing. The last row is filled up with
    zeros; a row is recorded where any of its samples is.

    Paper: HiFi-GAN (Kong et al. 2020), whose sizes are ``widths=(32, 128, 512, 1024, 1024)``, filled up by reflection.
    Pitfall: use several periods without common factors, or their blind spots coincide.
    """

    def __init__(
        self,
        period: int,
        channels: int = 1,
        *,
        widths: tuple[int, ...] = (16, 32, 64, 64),
        condition: Condition | None = None,
        head: HeadKind = "score",
        classes: int = 0,
        norm: Norm = "weight",
    ):
        super().__init__(condition)
        if period < 1 or not widths:
            raise ConfigError(f"PeriodDiscriminator needs a period and widths, not {period} and {widths}.")
        layers = [Layer(w, (5, 1), (3, 1)) for w in widths[:-1]] + [Layer(widths[-1], (5, 1), (1, 1))]
        self.period, self.channels = period, channels
        self.convs = MaskedConvs(channels + self.extra, layers, norm=norm)
        self.head = Head(widths[-1], condition=condition, kind=head, classes=classes, norm=norm)

    def forward(self, stream: Stream, given: Tensor | None = None) -> Verdict:
        x = _sound(stream, self.channels)
        told = self.told(given, len(x))
        x = x * stream.mask[:, None].to(x.dtype)  # a row that is recorded in part has no padding in it
        x = pad(x, (0, -x.shape[2] % self.period)).unflatten(2, (-1, self.period))
        found = self.convs(self.entered(x, told), strided_mask(stream.mask, self.period))
        return judged(self.head, found, self.convs.strides, stream.rate / self.period, told)


class MultiScaleDiscriminator(nn.Module):
    """A `WaveDiscriminator` at each of ``scales`` rates, each half of the one before: a verdict a scale.

    The slower waves are means of 4 samples, over those that were recorded. Losses are added over the verdicts:
    ``sum(hinge_gan_generator(v.recorded) for v in verdicts)``. Settings as in `WaveDiscriminator`.

    Paper: MelGAN (Kumar et al. 2019), 3 scales. Pitfall: averaging hides what is above each new rate: the first scale
    alone judges the highest frequencies, hence `MultiPeriodDiscriminator` beside it in HiFi-GAN.
    """

    def __init__(
        self,
        scales: int = 3,
        channels: int = 1,
        *,
        widths: tuple[int, ...] = (16, 32, 64, 64),
        strides: tuple[int, ...] = (4, 4, 4),
        per_group: int = 4,
        condition: Condition | None = None,
        norm: Norm = "weight",
    ):
        super().__init__()
        if scales < 1:
            raise ConfigError(f"scales = {scales} must be at least 1.")
        self.scales = nn.ModuleList(
            WaveDiscriminator(
                channels, widths=widths, strides=strides, per_group=per_group, condition=condition, norm=norm
            )
            for _ in range(scales)
        )

    def forward(self, stream: Stream, given: Tensor | None = None) -> tuple[Verdict, ...]:
        verdicts = []
        for number, scale in enumerate(self.scales):
            stream = slower(stream) if number else stream
            verdicts.append(scale(stream, given))
        return tuple(verdicts)


class MultiPeriodDiscriminator(nn.Module):
    """A `PeriodDiscriminator` for each of ``periods``: a verdict a period. Settings as there.

    Paper: HiFi-GAN (Kong et al. 2020), periods 2, 3, 5, 7, 11.
    """

    def __init__(
        self,
        periods: tuple[int, ...] = (2, 3, 5, 7, 11),
        channels: int = 1,
        *,
        widths: tuple[int, ...] = (16, 32, 64, 64),
        condition: Condition | None = None,
        norm: Norm = "weight",
    ):
        super().__init__()
        if not periods or len(set(periods)) < len(periods):
            raise ConfigError(f"periods = {periods} must be different, and at least one.")
        self.periods = nn.ModuleList(
            PeriodDiscriminator(period, channels, widths=widths, condition=condition, norm=norm) for period in periods
        )

    def forward(self, stream: Stream, given: Tensor | None = None) -> tuple[Verdict, ...]:
        return tuple(period(stream, given) for period in self.periods)


def slower(stream: Stream) -> Stream:
    """Sound [B, T, C] at half the rate: the mean of the recorded of 4 samples around 2 i + ½; ceil(T / 2) steps."""
    x = (stream.data * stream.mask[:, :, None]).transpose(1, 2)
    odd = x.shape[2] % 2
    both = torch.cat([x, stream.mask[:, None].to(x.dtype)], 1)
    means = avg_pool1d(pad(both, (1, 1 + odd)), 4, 2)
    mask = strided_mask(stream.mask, 2)
    value = means[:, :-1] / means[:, -1:].clamp(min=0.25)  # 0.25: one of four
    return Stream((value * mask[:, None]).transpose(1, 2), mask, stream.rate / 2)


def _sound(stream: Stream, channels: int) -> Tensor:
    """[B, T, C] as [B, C, T]; BatchError for anything else."""
    if stream.data.ndim != 3 or stream.data.shape[2] != channels:
        raise BatchError(f"a waveform discriminator needs [B, T, {channels}], not {tuple(stream.data.shape)}.")
    return stream.data.transpose(1, 2)
