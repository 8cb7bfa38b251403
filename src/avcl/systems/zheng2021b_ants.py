"""ANTS: which part of one view matters is told by the other (Zheng, Cheng, Yang, Cao, He 2021).

Claim: two views of one thing are classified better from a space where both agree, if the segments of a view are weighed
by what the other view shows, and if what the common space cannot hold is not thrown away but classified beside it.

    C = tanh(Z₁ W Z₂ᵀ)                              Z_m [k, h]: segments of view m, each mapped by a matrix of its own
    s₁ = softmax(tanh(Z₁U₁ + C Z₂U₂) w₁),   s₂ = softmax(tanh(Z₂U₂ + Cᵀ Z₁U₁) w₂)             weights of the segments
    z_m = V_m Σ_k s_mk Z_mk                         the view in the common space [D]
    x̂_m,n = f_m(z_n)                                each view rebuilt from both codes
    r_m = g_m(x_m - ½ Σ_n x̂_m,n)                    what is not common
    p = Σ_m ω_m softmax(c_m[z_m ; r_m]),   p₀ = softmax(c₀(½ (z₁ + z₂)))                       ω = ½, or learned

    discriminator  mean (D(z₁) - 1)² + mean D(z₂)²
    networks       γ [mean D(z₁)² + mean (D(z₂) - 1)²] + β [CE(p) + CE(p₀)]
                   + α/5 [Σ_m,n Σ_k s_mk mean_h |x_mk - x̂_mk,n| + mean |z₁ - z₂|]
    classifiers    β [CE(p) + CE(p₀)]

x_m is the mean of the features over time, or fixed statistics of the medium, cut into k parts of equal width; with
``split = "time"`` the k segments are instead the means over k equal parts of the window. A view without a partner
weighs its segments by itself (C = 0): so a sound is embedded without its picture, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.statistics import summarize, summary_dim
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.aggregation import masked_softmax
from avcl.nn.players import frozen
from avcl.nn.pooling import lacking, on_clock
from avcl.nn.standardize import Standardize
from avcl.objectives.adversarial import lsgan_discriminator
from avcl.objectives.classification import binary_cross_entropy, cross_entropy
from avcl.objectives.correlation import Moments, add_moments
from avcl.system import MAX, MediaConfig, Phase, Step, Trial
from avcl.types import Batch, Card, DataSpec, StreamSpec

CARD = Card(
    title="Deep co-attention network for multi-view subspace learning",
    year=2021,
    venue="WWW",
    authors="L. Zheng, Y. Cheng, H. Yang, N. Cao, J. He",
    fidelity="reconstruction: networks, losses, their weights and the 2 : 2 : 3 updates are those of the authors' code "
    "(Leo02016/ANTS); the paper itself and its tables were not at hand.",
    deviations=(
        "Cross-entropy of the predictions; the authors' code hands softmax outputs to a loss that expects logits, "
        "which flattens the gradient (`literal` has that form).",
        "AdamW without weight decay, with warm-up and cosine, instead of SGD with momentum .95 at .08, float32 instead "
        "of float64: the one loop of this library.",
        "The discriminator normalizes both codes in one batch, as what sets them apart must not be taken away first.",
        "A view alone weighs its segments by itself, which makes of a classifier of pairs a system for retrieval: the "
        "authors' code always has both views. Cosine of the codes decides.",
        "Of raw media the fixed statistics of this library are read, for want of pretrained features and of the "
        "detector that cut the authors' pictures into segments.",
    ),
    original_license="none stated",
)


@dataclass(frozen=True)
class ANTSConfig(MediaConfig):
    """Settings of ``zheng2021b_ants``."""

    batch_size: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    segments: int = 3  # k, of either view
    split: Literal["columns", "time"] = "columns"  # what a segment is: a part of the feature, or of the clip
    dim: int = 100  # D
    hidden: int = 300  # units of the decoders f
    units: int = 256  # of the classifiers c and of g
    judge: tuple[int, ...] = (512, 256)  # hidden layers of the discriminator
    adversarial: float = 1.0  # γ
    classification: float = 1.0  # β
    cycle: float = 2.0  # α
    updates: tuple[int, ...] = (2, 2, 3)  # a batch: of the discriminator, the networks, the classifiers
    dropout: float = 0.3  # of what the reconstructions leave
    learn_mix: bool = False  # ω learned, each in [.3, .7]; the authors' code declares it and does not train it
    literal: bool = False  # the classification loss as released

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "segments": (1, MAX),
        "dim": (1, MAX),
        "hidden": (1, MAX),
        "units": (1, MAX),
        "judge": (1, MAX),
        "adversarial": (0.0, MAX),
        "classification": (0.0, MAX),
        "cycle": (0.0, MAX),
        "updates": (1, MAX),
        "dropout": (0.0, 0.99),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(
            epochs=2,
            batch_size=8,
            segments=2,
            dim=12,
            hidden=16,
            units=16,
            judge=(16, 8),
            updates=(1, 1, 1),
            dropout=0.0,
            learn_mix=True,
        )


class Segments(NamedTuple):
    """A view in segments: data [B, k, h] and which were recorded [B, k]; zeros elsewhere."""

    data: Tensor
    mask: Tensor


class CoAttention(nn.Module):
    """s₁ and s₂ [B, k] of two views in segments: each sums to 1, or to 0 where nothing of the view was recorded."""

    def __init__(self, widths: tuple[int, int], dim: int):
        super().__init__()
        first, second = widths
        self.affinity = nn.Linear(first, second, bias=False)  # W
        self.lift = nn.ModuleList(nn.Linear(width, dim, bias=False) for width in widths)  # U
        self.score = nn.ModuleList(nn.Linear(dim, 1, bias=False) for _ in widths)  # w

    def forward(self, one: Segments, two: Segments) -> tuple[Tensor, Tensor]:
        both = one.mask[:, :, None] & two.mask[:, None]
        affinity = torch.tanh(self.affinity(one.data) @ two.data.mT) * both  # C [B, k, k]
        a, b = self.lift[0](one.data), self.lift[1](two.data)
        scores = self.score[0](torch.tanh(a + affinity @ b)), self.score[1](torch.tanh(b + affinity.mT @ a))
        first, second = (masked_softmax(s, v.mask)[:, :, 0] for s, v in zip(scores, (one, two), strict=True))
        return first, second


class _View(nn.Module):
    """What belongs to one view: its segments, its way into the common space and back, and what is left over."""

    def __init__(self, spec: StreamSpec, config: ANTSConfig, *, vocabulary: int, classes: int):
        super().__init__()
        self.spec, self.config, self.vocabulary = spec, config, vocabulary
        if config.split == "time" and spec.kind != "features":
            raise ConfigError(f'split = "time" is for arrays of features, not for a stream of kind "{spec.kind}".')
        width, k = summary_dim(spec, vocabulary), config.segments
        self.scale = Standardize(width)
        self.lack = 0 if config.split == "time" else lacking(width, k)  # columns of zeros up to a multiple of k
        self.width = width if config.split == "time" else (width + self.lack) // k  # h
        whole, rest = k * self.width, max(config.dim // 2, 10)
        self.maps = nn.ModuleList(nn.Linear(self.width, self.width) for _ in range(k))
        self.into = nn.Linear(self.width, config.dim)  # V
        self.decode = nn.Sequential(  # f
            nn.Linear(config.dim, config.hidden),
            nn.ReLU(),
            nn.BatchNorm1d(config.hidden),
            nn.Linear(config.hidden, whole),
        )
        self.leftover = nn.Sequential(  # g
            nn.Dropout(config.dropout), nn.Linear(whole, config.units), nn.ReLU(), nn.Linear(config.units, rest)
        )
        self.classify = _classifier(config.dim + rest, config.units, classes)

    def rows(self, batch: Batch, name: str) -> Segments:
        """What stands for the clip, before it is scaled: [B, 1, width], or [B, k, width] in parts of time."""
        (stream,) = batch.require(name)
        if self.config.split == "columns":
            row = summarize(stream, self.spec, seconds=self.config.window, vocabulary=self.vocabulary)
            return Segments(row[:, None], stream.mask.any(1, keepdim=True))
        k, seconds = self.config.segments, self.config.window
        there = on_clock(stream._replace(data=stream.mask[:, :, None].double()), steps=k, seconds=seconds)
        means = on_clock(stream._replace(data=stream.data.double()), steps=k, seconds=seconds)
        return Segments(means, there[:, :, 0] > 0)

    def segments(self, batch: Batch, name: str) -> Segments:
        """x in segments [B, k, h]."""
        data, mask = self.rows(batch, name)
        data = self.scale(data.float()) * mask[:, :, None]
        if self.config.split == "time":
            return Segments(data, mask)
        parts = nn.functional.pad(data[:, 0], (0, self.lack)).unflatten(1, (self.config.segments, self.width))
        return Segments(parts, mask.expand(-1, self.config.segments))

    def mapped(self, x: Segments) -> Segments:
        """Z [B, k, h]."""
        parts = [net(x.data[:, i]) for i, net in enumerate(self.maps)]
        return x._replace(data=torch.stack(parts, 1) * x.mask[:, :, None])

    def code(self, mapped: Segments, weight: Tensor) -> Tensor:
        """z [B, D], zeros where nothing was recorded."""
        return self.into((weight[:, :, None] * mapped.data).sum(1)).float() * mapped.mask.any(1)[:, None]

    def rebuilt(self, z: Tensor) -> Tensor:
        """f(z): [B, k, h]."""
        return self.decode(z).unflatten(1, (self.config.segments, self.width))


def _classifier(width: int, units: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, units), nn.BatchNorm1d(units), nn.ReLU(), nn.Linear(units, classes))


class Judged(NamedTuple):
    """log p and log p₀ [B, C], and the reconstructions: of each view, from each code."""

    views: Tensor
    common: Tensor
    rebuilt: list[list[Tensor]]


class ANTS(system.System):
    """Co-attention, one common space, reconstruction across the views, and the classes of all that."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = ANTSConfig
    similarity_name = "cosine"
    config: ANTSConfig
    # One update of each player, as each of them reads the batch anew; and codes that agree before all, as retrieval
    # compares one with the other, which the classifier of pairs does not.
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        clips=2400,
        fresh=False,
        settings={
            "epochs": 4,
            "batch_size": 40,
            "learning_rate": 2e-3,
            "updates": (1, 1, 1),
            "cycle": 10.0,
            "adversarial": 0.1,
        },
        short={"epochs": 8, "batch_size": 32},
        watch="classify",
    )

    def __init__(self, config: ANTSConfig, spec: DataSpec):
        super().__init__(config, spec)
        if config.split not in ("columns", "time"):
            raise ConfigError(f'split = "{config.split}" is not "columns" or "time".')
        if len(config.updates) != 3:
            raise ConfigError(f"updates = {config.updates} must be three numbers, one for each player.")
        self.modalities = config.chosen(spec)
        if len(self.modalities) != 2:
            raise ConfigError(f"ants reads two views, not {', '.join(self.modalities)}.", hint="Set modalities.")
        if spec.n_classes < 2:
            raise ConfigError("zheng2021b_ants learns from labels, and the data have no two classes.")
        shape = {"vocabulary": len(spec.vocabulary), "classes": spec.n_classes}
        views = [_View(spec.streams[name], config, **shape) for name in self.modalities]
        self.views = nn.ModuleList(views)
        self.attend = CoAttention((views[0].width, views[1].width), config.dim)
        self.common = _classifier(config.dim, config.units, spec.n_classes)
        self.mix = nn.Parameter(torch.full((2,), 0.5), requires_grad=config.learn_mix)
        sizes = (config.dim, *config.judge)
        layers = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU())]
        self.judge = nn.Sequential(*layers, nn.Linear(sizes[-1], 1), nn.Sigmoid())  # D

    def _view(self, name: str) -> _View:
        if name not in self.modalities:
            raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
        view = self.views[self.modalities.index(name)]
        assert isinstance(view, _View)
        return view

    def phases(self) -> tuple[Phase, ...]:
        judge = tuple(self.judge.parameters())
        classifiers = [p for name in self.modalities for p in self._view(name).classify.parameters()]
        classifiers += [p for p in (*self.common.parameters(), self.mix) if p.requires_grad]
        taken = {id(p) for p in (*judge, *classifiers, self.mix)}
        networks = tuple(p for p in self.parameters() if id(p) not in taken)
        judged, moved, named = self.config.updates
        return (
            Phase("discriminator", judge, ("discriminate",), repeat=judged),
            Phase("networks", networks, ("mislead", "classify", "cycle"), repeat=moved),
            Phase("classifiers", classifiers, ("classify",), repeat=named),
        )

    # --------------------------------------------------------------------------------------------------------- learning
    @torch.no_grad()
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of the columns of x, before the first step."""
        if epoch:
            return
        moments: dict[str, Moments | None] = dict.fromkeys(self.modalities)
        for batch in batches:
            for name in self.modalities:
                data, mask = self._view(name).rows(batch, name)
                moments[name] = add_moments(moments[name], data[mask]) if bool(mask.any()) else moments[name]
        for name, found in moments.items():
            if found is not None:
                self._view(name).scale.learn(found)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Of each view z [B, D] ("audio"), x ("audio x" [B, k, h]), what of it was recorded ("audio?" [B, k]) and s
        ("audio s" [B, k])."""
        views = {name: self._view(name) for name in self.modalities}
        x = {name: view.segments(batch, name) for name, view in views.items()}
        mapped = {name: view.mapped(x[name]) for name, view in views.items()}
        weights = dict(zip(self.modalities, self.attend(*mapped.values()), strict=True))
        encoded = {}
        for name, view in views.items():
            encoded[name] = view.code(mapped[name], weights[name])
            encoded |= {f"{name} x": x[name].data, f"{name}?": x[name].mask, f"{name} s": weights[name]}
        return encoded

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """ "discriminate" of the discriminator; "mislead", "classify" and "cycle" of the networks, weights included."""
        c = self.config
        both = torch.stack([encoded[f"{name}?"].any(1) for name in self.modalities]).all(0)
        seen, label = {key: value[both] for key, value in encoded.items()}, batch.label[both]
        if bool((label < 0).any()):
            raise BatchError("zheng2021b_ants needs a label for every clip.", hint="infonce needs none.")
        if len(label) < 2:
            raise BatchError(f"ants needs two clips or more with {' and '.join(self.modalities)} in a batch.")
        z = [seen[name] for name in self.modalities]
        terms = {}
        if at.turn in ("", "discriminator"):
            first, second = self.judge(torch.cat(z).detach()).float().chunk(2)
            terms["discriminate"] = 2 * lsgan_discriminator(first, second)
        if at.turn == "discriminator":
            return terms
        judged = self._judged(seen)
        told = [self._told(log, label) for log in (judged.views, judged.common)]
        terms["classify"] = c.classification * (told[0] + told[1])
        if at.turn == "classifiers":
            return terms
        with frozen(self.judge):
            first, second = self.judge(torch.cat(z)).float().chunk(2)
        terms["mislead"] = c.adversarial * 2 * lsgan_discriminator(second, first)
        gap = (z[0] - z[1]).abs().mean()
        for name, made in zip(self.modalities, judged.rebuilt, strict=True):
            for x in made:
                error = (seen[f"{name} x"] - x).abs().mean(2)  # [B, k]
                gap = gap + (seen[f"{name} s"] * error).sum(1).mean()
        terms["cycle"] = c.cycle / 5 * gap
        return terms

    def _told(self, log: Tensor, label: Tensor) -> Tensor:
        if self.config.literal:
            return binary_cross_entropy(log.exp(), nn.functional.one_hot(label, log.shape[1]).float())
        return cross_entropy(log, label)  # of logarithms of probabilities: minus that of the right one

    def _judged(self, seen: Mapping[str, Tensor]) -> Judged:
        """What follows from the codes. A view that was not recorded has no say."""
        views = [self._view(name) for name in self.modalities]
        z, x = [seen[name] for name in self.modalities], [seen[f"{name} x"] for name in self.modalities]
        masks = [seen[f"{name}?"] for name in self.modalities]
        there = torch.stack([mask.any(1) for mask in masks], 1).float()  # [B, 2]
        share = there / there.sum(1, keepdim=True).clamp(min=1)
        rebuilt, logs = [], []
        for view, own, code, mask in zip(views, x, z, masks, strict=True):
            made = [view.rebuilt(other) for other in z]
            mean = share[:, :1, None] * made[0] + share[:, 1:, None] * made[1]
            rest = view.leftover(((own - mean) * mask[:, :, None]).flatten(1))
            logs.append(view.classify(torch.cat([code, rest], 1)).float().log_softmax(1))
            rebuilt.append(made)
        weight = there * (self.mix / self.mix.sum()).clamp(0.3, 0.7)
        weight = torch.where(there.any(1, keepdim=True), weight, 0.5)
        mixed = (torch.stack(logs, 2) + (weight / weight.sum(1, keepdim=True)).log()[:, None]).logsumexp(2)
        common = self.common(share[:, :1] * z[0] + share[:, 1:] * z[1]).float().log_softmax(1)
        return Judged(mixed, common, rebuilt)

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """log p of the classes, from whichever views were recorded: float32 [B, C]."""
        return self._judged(self.encode(batch)).views

    @torch.no_grad()
    def attention(self, batch: Batch) -> dict[str, Tensor]:
        """s of each view [B, k]: how much each of its segments counts, each row summing to 1."""
        encoded = self.encode(batch)
        return {name: encoded[f"{name} s"] for name in self.modalities}

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """z of one view by itself, or of both together ("audio+video"), of unit length: float32 [B, D]."""
        names = tuple(modality.split("+"))
        mapped = {name: self._view(name).mapped(self._view(name).segments(batch, name)) for name in names}
        some = next(iter(mapped.values()))
        for name in self.modalities:
            if name not in mapped:  # nothing of it is known
                k = self.config.segments
                blank = some.data.new_zeros(len(batch), k, self._view(name).width)
                mapped[name] = Segments(blank, blank.new_zeros(len(batch), k, dtype=torch.bool))
        weights = dict(zip(self.modalities, self.attend(*(mapped[n] for n in self.modalities)), strict=True))
        codes = [self._view(name).code(mapped[name], weights[name]) for name in names]
        return nn.functional.normalize(torch.stack(codes).sum(0), dim=1)

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return nn.functional.normalize(q, dim=1) @ nn.functional.normalize(g, dim=1).T
