"""What discriminators are made of: verdicts, conditions, masked convolutions, heads, and matching of features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, one_hot

from avcl.errors import BatchError, ConfigError
from avcl.nn.conditioning import beside
from avcl.nn.players import Norm, normalized
from avcl.nn.pooling import masked_mean, strided_mask
from avcl.objectives.conditional import projection_logits
from avcl.objectives.inputs import classes as checked_classes
from avcl.objectives.reconstruction import l1
from avcl.types import Stream

SLOPE = 0.2
HeadKind = Literal["score", "auxiliary", "semi-supervised"]


class Verdict(NamedTuple):
    """What a discriminator says. ``scores`` [B, T', cells...] with their own clock, zeros where nothing was recorded;
    ``features`` of every hidden layer, first to last, [B, T, cells..., C]; ``classes`` [B, K] logits of a head that has
    them (K + 1 where it is semi-supervised, the last "generated").
    """

    scores: Stream
    features: tuple[Stream, ...]
    classes: Tensor | None = None

    @property
    def recorded(self) -> Tensor:
        """The scores of everything that was recorded, [N]: what the losses take. Long items count more."""
        return self.scores.data[self.scores.mask].flatten()

    @property
    def mean(self) -> Tensor:
        """One score an item, [B]: the mean over what was recorded (0 where nothing was)."""
        means = masked_mean(self.scores.data, self.scores.mask)
        return means.flatten(1).mean(1) if means.ndim > 1 else means


@dataclass(frozen=True)
class Condition:
    """What a discriminator is told beside the sample, and where it comes in.

    ``kind``: "label", class numbers [B] in [0, size) · "vector", [B, size]: the latent of the other modality, or a
    classifier's prediction (`FrozenClassifier`). ``how``:

    ``projection``: ``w · φ + b + (E c) · φ`` at every position (Miyato & Koyama 2018) ·
    ``input``: c as ``size`` further channels, constant over positions, of the sample ·
    ``head``: c beside the last features, then a hidden layer of ``mix`` units. ``cells`` (h, w): the vector is
    laid out as a map [size / (h w), h, w] instead of being repeated (Fanzeres & Nadeu 2021: 512 as 128 × 2 × 2).

    Pitfall: with ``mix=0``, the literal reading of "concatenated before the last layer", that layer is linear, so the
    score is a(x) + b(c): it cannot tell a matching pair from a mismatched one. Whatever the kind, show mismatched real
    pairs too (`matching_discriminator`), or the condition may be ignored.
    """

    kind: Literal["label", "vector"]
    size: int
    how: Literal["projection", "input", "head"] = "projection"
    mix: int = 64
    cells: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("label", "vector") or self.how not in ("projection", "input", "head"):
            raise ConfigError(f"Condition({self.kind!r}, how={self.how!r}) is not known.")
        if self.size < 1 or self.mix < 0:
            raise ConfigError(f"Condition needs size > 0 and mix >= 0, not {self.size} and {self.mix}.")
        if self.cells is not None:
            if self.how != "head" or self.kind != "vector":
                raise ConfigError("cells are for vectors at the head.")
            if self.size % math.prod(self.cells):
                raise ConfigError(f"a vector of {self.size} cannot be laid out on {self.cells} cells.")

    @property
    def channels(self) -> int:
        """Channels that a concatenation adds."""
        return self.size if self.cells is None else self.size // math.prod(self.cells)

    def rows(self, given: Tensor, count: int) -> Tensor:
        """The condition as [B, size]; BatchError where it is something else."""
        if self.kind == "label":
            label = checked_classes("the condition", given, count, self.size)
            return one_hot(label, self.size).to(torch.get_default_dtype())
        if given.shape != (count, self.size) or not given.is_floating_point():
            raise BatchError(f"the condition must be [{count}, {self.size}], not {given.dtype} {tuple(given.shape)}.")
        return given


@dataclass(frozen=True)
class Layer:
    """A convolution: output channels, kernel (odd) and stride by axis, time first; input channels per group (0: all).

    T' = ceil(T / stride) steps; step i is centered on step i · stride.
    """

    width: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    per_group: int = 0

    def __post_init__(self) -> None:
        if len(self.kernel) != len(self.stride) or any(k % 2 == 0 or k < 1 for k in self.kernel):
            raise ConfigError(f"a layer needs odd kernels and a stride for each, not {self.kernel}, {self.stride}.")
        if self.width < 1 or min(self.stride) < 1:
            raise ConfigError(f"a layer needs width and strides of at least 1, not {self.width}, {self.stride}.")


class MaskedConvs(nn.Module):
    """Convolutions with leaky ReLU between, zeros wherever nothing was recorded: [N, C, T, ...] and mask [N, T] to the
    features [N, C', T', ...] and mask of every layer. A strided step is recorded where any of its steps is.
    """

    def __init__(self, channels: int, layers: Sequence[Layer], *, norm: Norm):
        super().__init__()
        if channels < 1 or not layers:
            raise ConfigError(f"a discriminator needs channels and layers, not {channels} and {len(layers)}.")
        convs: list[nn.Module] = []
        for layer in layers:
            groups = max(1, channels // layer.per_group) if layer.per_group else 1
            if channels % groups or layer.width % groups:
                raise ConfigError(f"{channels} channels to {layer.width} cannot be split into {groups} groups.")
            kind = nn.Conv1d if len(layer.kernel) == 1 else nn.Conv2d
            edge = tuple(k // 2 for k in layer.kernel)
            conv = kind(channels, layer.width, layer.kernel, layer.stride, edge, groups=groups)  # type: ignore[arg-type]
            convs.append(normalized(conv, norm))
            channels = layer.width
        self.convs = nn.ModuleList(convs)
        self.strides = tuple(layer.stride[0] for layer in layers)
        self.dim = channels

    def forward(self, x: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        x = x * _like(mask, x)
        found = []
        for conv, stride in zip(self.convs, self.strides, strict=True):
            mask = strided_mask(mask, stride)
            x = leaky_relu(conv(x), SLOPE)
            x = x * _like(mask, x)
            found.append((x, mask))
        return found


class Head(nn.Module):
    """Scores of the last features at each position, with the condition: [N, C, ...] to [N, ...].

    ``kind``: "score", real or not · "auxiliary", ``classes`` further logits (AC-GAN, for `auxiliary_classifier`) ·
    "semi-supervised", one softmax over ``classes`` and "generated" (for `semi_supervised_discriminator`), whose score
    is the log-odds of real, ``log Σ_{k<K} exp l_k - l_K``. Class logits are means over what was recorded.
    """

    def __init__(
        self, width: int, *, condition: Condition | None = None, kind: HeadKind = "score", classes: int = 0, norm: Norm
    ):
        super().__init__()
        if kind not in ("score", "auxiliary", "semi-supervised"):
            raise ConfigError(f"head = {kind!r} must be 'score', 'auxiliary' or 'semi-supervised'.")
        if (kind == "score") != (classes == 0) or classes < 0 or classes == 1:
            raise ConfigError(f"a head of kind {kind!r} cannot have {classes} classes.")
        how = None if condition is None else condition.how
        labeled = condition is not None and condition.kind == "label"
        if labeled and classes and (how == "input" or kind == "semi-supervised"):
            raise ConfigError("a class head that is told the label has nothing to learn.")
        self.condition, self.kind = condition, kind
        self.mix: nn.Module | None = None
        last = width
        if condition is not None and how == "head":
            last = width + condition.channels
            if condition.mix:
                self.mix, last = normalized(nn.Linear(last, condition.mix), norm), condition.mix
        self.embed: nn.Module | None = None
        if condition is not None and how == "projection":
            self.embed = normalized(nn.Linear(condition.size, width, bias=False), norm)
        self.score: nn.Module | None = None
        self.classify: nn.Module | None = None
        if kind != "semi-supervised":
            self.score = normalized(nn.Linear(last, 1), norm)
        if kind == "auxiliary":
            self.classify = normalized(nn.Linear(width, classes), norm)  # of the features alone
        if kind == "semi-supervised":
            self.classify = normalized(nn.Linear(last, classes + 1), norm)

    def forward(self, features: Tensor, mask: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = own = features.movedim(1, -1)  # [N, ..., C]
        if self.condition is not None and self.condition.how == "head":
            assert given is not None
            x = torch.cat([x, _laid_out(given.to(x.dtype), self.condition, x)], -1)
            if self.mix is not None:
                x = leaky_relu(self.mix(x), SLOPE)
        logits = None
        if self.score is None:
            assert self.classify is not None
            logits = self.classify(x).float()
            scores = logits[..., :-1].logsumexp(-1) - logits[..., -1]
        elif self.embed is not None:
            assert given is not None
            embedding = _spread(self.embed(given.to(x.dtype)), x)
            weight, bias = cast(Tensor, self.score.weight)[0], cast(Tensor, self.score.bias)
            flat = projection_logits(x.flatten(0, -2), weight, bias, embedding.flatten(0, -2))
            scores = flat.reshape(x.shape[:-1])
        else:
            scores = self.score(x)[..., 0]
        if self.kind == "auxiliary":
            assert self.classify is not None
            logits = self.classify(own).float()
        scores = scores * mask.reshape(*mask.shape, *[1] * (scores.ndim - mask.ndim)).to(scores.dtype)
        return scores, None if logits is None else _mean_logits(logits, mask)


class Conditioned(nn.Module):
    """What all discriminators share: the condition, and the way from its check to the head."""

    def __init__(self, condition: Condition | None):
        super().__init__()
        self.condition = condition

    @property
    def extra(self) -> int:
        """Channels that the condition adds to the sample."""
        return self.condition.size if self.condition is not None and self.condition.how == "input" else 0

    def told(self, given: Tensor | None, rows: int) -> Tensor | None:
        if (given is None) != (self.condition is None):
            what = "needs" if given is None else "was built without"
            raise BatchError(f"{type(self).__name__} {what} a condition.")
        return None if given is None or self.condition is None else self.condition.rows(given, rows)

    def entered(self, x: Tensor, given: Tensor | None) -> Tensor:
        """The sample [N, C, ...] with the condition as further channels, where that is its place."""
        if given is None or not self.extra:
            return x
        return beside(x, given)


def feature_matching(real: Verdict | Sequence[Verdict], fake: Verdict | Sequence[Verdict]) -> Tensor:
    """The generator's fakes look alike to every hidden layer: the mean over layers of ``l1(φ_l(x̃), φ_l(x))``.

    Shapes: verdicts (or one for each scale or period) on the generated and the paired real sample, of one shape ·
    result: a scalar ≥ 0. Only what was recorded in both counts, and the real side gets no gradient.

    Paper: Larsen et al. 2016; MelGAN (Kumar et al. 2019), HiFi-GAN (Kong et al. 2020), which add layers up instead:
    multiply by their number. Pitfall: it needs pairs in time; a shift of a few samples costs as much as another sound.
    """
    some, others = ([v] if isinstance(v, Verdict) else list(v) for v in (real, fake))
    if len(some) != len(others) or not some:
        raise BatchError(f"feature_matching needs as many real verdicts as fake ones, not {len(some)}, {len(others)}.")
    terms = []
    for one, other in zip(some, others, strict=True):
        for x, y in zip(one.features, other.features, strict=True):
            both = x.mask & y.mask
            terms.append(l1(y.data, x.data.detach(), weight=both.reshape(*both.shape, *[1] * (x.data.ndim - 2))))
    return torch.stack(terms).mean()


def judged(
    head: Head, found: Sequence[tuple[Tensor, Tensor]], strides: Sequence[int], rate: float, told: Tensor | None
) -> Verdict:
    """The verdict on features [N, C, T, ...] of the layers of `MaskedConvs`."""
    streams = []
    for (x, mask), stride in zip(found, strides, strict=True):
        rate /= stride
        streams.append(Stream(x.movedim(1, -1), mask, rate))
    last, mask = found[-1]
    scores, classes = head(last, mask, told)
    return Verdict(Stream(scores, mask, rate), tuple(streams), classes)


def _like(mask: Tensor, x: Tensor) -> Tensor:
    """mask [N, T] beside x [N, C, T, ...]."""
    return mask.reshape(len(mask), 1, -1, *[1] * (x.ndim - 3)).to(x.dtype)


def _spread(rows: Tensor, like: Tensor) -> Tensor:
    """rows [N, K] at every position of like [N, ..., C]."""
    return rows.reshape(len(rows), *[1] * (like.ndim - 2), -1).expand(*like.shape[:-1], -1)


def _laid_out(rows: Tensor, condition: Condition, like: Tensor) -> Tensor:
    if condition.cells is None:
        return _spread(rows, like)
    if like.shape[1:-1] != condition.cells:
        raise BatchError(f"the last map is {tuple(like.shape[1:-1])}, not the {condition.cells} of the condition.")
    return rows.reshape(len(rows), -1, *condition.cells).movedim(1, -1)


def _mean_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """[N, T, ..., K] and mask [N, T] to [N, K]."""
    return masked_mean(logits, mask).flatten(1, -2).mean(1) if logits.ndim > 3 else masked_mean(logits, mask)
