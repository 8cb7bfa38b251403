"""Discriminators: is the sample real, and does it fit its condition? Of vectors, pictures, spectra and sequences.

Each returns a `Verdict`: scores without a squashing at the end, for any loss of ``avcl.objectives.adversarial``, and
the hidden features for `feature_matching`. No batch statistics anywhere, so every score is its item's own: what
gradient penalties, chunks and processes need. Waveforms: ``wave_discriminators``; modalities: ``adversary``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from avcl.errors import BatchError, ConfigError
from avcl.nn.judging import SLOPE, Condition, Conditioned, Head, HeadKind, Layer, MaskedConvs, Verdict, judged
from avcl.nn.players import Norm, normalized
from avcl.nn.pooling import masked_mean
from avcl.types import Stream


class VectorDiscriminator(Conditioned):
    """Multi-layer perceptron on single vectors: [B, dim] to a `Verdict` with scores [B, 1].

    Condition and head as in `Condition` and `Head`; ``norm`` "spectral" bounds it, "none" is for gradient penalties.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: tuple[int, ...] = (64, 64),
        condition: Condition | None = None,
        head: HeadKind = "score",
        classes: int = 0,
        norm: Norm = "none",
        dropout: float = 0.0,
    ):
        super().__init__(condition)
        if dim < 1 or not hidden or min(hidden) < 1:
            raise ConfigError(f"VectorDiscriminator needs dim and hidden widths above 0, not {dim} and {hidden}.")
        if condition is not None and condition.cells is not None:
            raise ConfigError("cells are for pictures, not for vectors.")
        self.dim = dim
        widths = (dim + self.extra, *hidden)
        self.layers = nn.ModuleList(normalized(nn.Linear(i, o), norm) for i, o in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.head = Head(hidden[-1], condition=condition, kind=head, classes=classes, norm=norm)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Verdict:
        if x.ndim != 2 or x.shape[1] != self.dim or not x.is_floating_point():
            raise BatchError(f"VectorDiscriminator needs [B, {self.dim}], not {x.dtype} {tuple(x.shape)}.")
        told = self.told(given, len(x))
        mask = torch.ones(len(x), 1, dtype=torch.bool, device=x.device)
        x, features = self.entered(x, told), []
        for layer in self.layers:
            x = self.dropout(leaky_relu(layer(x), SLOPE))
            features.append(Stream(x[:, None], mask, 1.0))
        scores, classes = self.head(x[:, :, None], mask, told)
        return Verdict(Stream(scores, mask, 1.0), tuple(features), classes)


class SequenceDiscriminator(Conditioned):
    """Is this how things go on? Convolutions over time: features [B, T, dim] to scores [B, ceil(T / Π stride)].

    Each score sees ``reach`` steps, so motion and rhythm count, not single frames. Put it behind an encoder of frames,
    or on latents. Rate and mask are those after the strides; padding neither scores nor is seen.

    Paper: temporal discriminators of Vondrick et al. 2016, Saito et al. 2017 (in width and depth our own). Pitfall: a
    generator can please it with one good period; a condition that is constant in time does not see order either.
    """

    def __init__(
        self,
        dim: int,
        *,
        widths: tuple[int, ...] = (64, 64, 64),
        kernel: int = 5,
        strides: tuple[int, ...] = (1, 2, 2),
        condition: Condition | None = None,
        head: HeadKind = "score",
        classes: int = 0,
        norm: Norm = "spectral",
    ):
        super().__init__(condition)
        if len(widths) != len(strides):
            raise ConfigError(f"SequenceDiscriminator needs a stride for each width, not {strides} for {widths}.")
        if condition is not None and condition.cells is not None:
            raise ConfigError("cells are for pictures, not for sequences.")
        layers = [Layer(w, (kernel,), (s,)) for w, s in zip(widths, strides, strict=True)]
        self.dim, self.reach = dim, _reach([kernel] * len(widths), strides)
        self.convs = MaskedConvs(dim + self.extra, layers, norm=norm)
        self.head = Head(widths[-1], condition=condition, kind=head, classes=classes, norm=norm)

    def forward(self, stream: Stream, given: Tensor | None = None) -> Verdict:
        if stream.data.ndim != 3 or stream.data.shape[2] != self.dim:
            raise BatchError(f"SequenceDiscriminator needs [B, T, {self.dim}], not {tuple(stream.data.shape)}.")
        told = self.told(given, len(stream.data))
        found = self.convs(self.entered(stream.data.transpose(1, 2), told), stream.mask)
        return judged(self.head, found, self.convs.strides, stream.rate, told)


class PatchDiscriminator(Conditioned):
    """Every patch for itself: a score for each cell of a coarse grid, seeing ``reach`` × ``reach`` pixels or bins.

    Spectra [B, T, F] or [B, T, F, channels] become scores [B, T', F'] at the rate of the strides; pictures [B, T, 3, H,
    W] (``still`` makes one of [B, C, H, W]) become [B, T, H', W'], frame by frame. What was not recorded neither scores
    nor is seen. ``verdict.mean`` is the global score.

    Paper: Isola et al. 2017 (patches of 70 × 70; here ``reach`` = 61 by default, odd kernels, no batch statistics).
    Pitfall: it judges texture only; what spans more than ``reach`` needs a second one on a smaller picture.
    """

    def __init__(
        self,
        channels: int = 1,
        *,
        widths: tuple[int, ...] = (32, 64, 128, 128),
        kernel: int = 5,
        strides: tuple[int, ...] = (2, 2, 2, 1),
        condition: Condition | None = None,
        head: HeadKind = "score",
        classes: int = 0,
        norm: Norm = "spectral",
    ):
        super().__init__(condition)
        if len(widths) != len(strides):
            raise ConfigError(f"PatchDiscriminator needs a stride for each width, not {strides} for {widths}.")
        layers = [Layer(w, (kernel, kernel), (s, s)) for w, s in zip(widths, strides, strict=True)]
        self.channels, self.reach = channels, _reach([kernel] * len(widths), strides)
        self.convs = MaskedConvs(channels + self.extra, layers, norm=norm)
        self.head = Head(widths[-1], condition=condition, kind=head, classes=classes, norm=norm)

    def forward(self, stream: Stream, given: Tensor | None = None) -> Verdict:
        data, mask, rate = stream
        told = self.told(given, len(data))
        if data.ndim == 5 and data.shape[2] == self.channels:
            rows, steps = mask.shape
            told = None if told is None else told.repeat_interleave(steps, 0)
            tall = mask.reshape(-1, 1).expand(-1, data.shape[3])
            found = self.convs(self.entered(data.flatten(0, 1), told), tall)
            one = judged(self.head, found, self.convs.strides, rate, told)
            streams = [Stream(s.data.reshape(rows, steps, *s.data.shape[1:]), mask, rate) for s in one.features]
            scores = Stream(one.scores.data.reshape(rows, steps, *one.scores.data.shape[1:]), mask, rate)
            classes = one.classes
            if classes is not None:
                classes = masked_mean(classes.reshape(rows, steps, -1), mask)
            return Verdict(scores, tuple(streams), classes)
        if data.ndim == 3:
            data = data[..., None]
        if data.ndim != 4 or data.shape[3] != self.channels:
            wanted = f"spectra [B, T, F, {self.channels}] or pictures [B, T, {self.channels}, H, W]"
            raise BatchError(f"PatchDiscriminator needs {wanted}, not {tuple(stream.data.shape)}.")
        found = self.convs(self.entered(data.movedim(3, 1), told), mask)
        return judged(self.head, found, self.convs.strides, rate, told)


def still(picture: Tensor) -> Stream:
    """Pictures [B, C, H, W] as videos of one frame [B, 1, C, H, W]."""
    if picture.ndim != 4:
        raise BatchError(f"a picture is [B, C, H, W], not {tuple(picture.shape)}.")
    return Stream(picture[:, None], torch.ones(len(picture), 1, dtype=torch.bool, device=picture.device), 1.0)


def _reach(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Input steps that one output step sees."""
    reach, step = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        reach, step = reach + (kernel - 1) * step, step * stride
    return reach
