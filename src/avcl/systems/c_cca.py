"""Cluster-CCA: linear CCA of every sound with every picture of its class, in closed form (Rasiwasia et al. 2014).

Claim: where the class is what is searched for, the directions that correlate all pairs of a class with each other find
it better than those that correlate a clip with its own partner, at the same cost.

    T = (Σ₁₁ + r₁I)^{-½} Σ₁₂ (Σ₂₂ + r₂I)^{-½} = U diag(ρ) Vᵀ,   f(x) = (x - mean₁) (Σ₁₁ + r₁I)^{-½} U_k

- ``pairs`` "all": the covariances of all M = Σ_c n_c² pairs (x_i, y_j) of one class, which are never listed:
  Σ₁₁ = 1/M Σ_c n_c Σ_{i∈c} x̄_i x̄_iᵀ,   Σ₁₂ = 1/M Σ_c (Σ_{i∈c} x̄_i)(Σ_{j∈c} ȳ_j)ᵀ,   means weighted by n_c
- "mixed" (Zeng et al. 2018): ordinary means, Σ₁₁ and Σ₂₂, and Σ₁₂ = β Σ₁₂_pair + (1 - β) Σ₁₂_class

Items are compared by the cosine of their projections. Features are averaged over time; media are summarized by fixed
statistics, whose columns are brought to unit variance. Between C classes at most C - 1 correlations are above zero
(unless β > 0), so more components add little but noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from avcl import system
from avcl.encoders.statistics import column_scale, summarize, summary_dim
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.objectives.cluster_correlation import ClusterMoments, add_cluster_moments, cluster_covariance
from avcl.objectives.correlation import canonical_directions
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec

CARD = Card(
    title="Cluster canonical correlation analysis",
    year=2014,
    venue="AISTATS",
    authors="N. Rasiwasia, D. Mahajan, V. Mahadevan, G. Aggarwal",
    paper=(
        "VEGAS, mAP by class, 10 components: sound to picture .6516, picture to sound .6435 (as C-CCA in the figure "
        "code of Zeng et al. 2020)",
        "VEGAS, the same: .711 and .704 (later tables of the same authors, recalled)",
    ),
    fidelity="paper: the closed form over all pairs of a class, in float64; the ridge is relative to the mean "
    "eigenvalue of each covariance.",
    deviations=(
        "The ridge is an addition: covariances of features that sum to one, or that are wider than the data are many, "
        "have no inverse.",
        "Raw media are summarized by fixed statistics, for the method has no encoder of its own.",
    ),
    limits={"gradient": "fitted in closed form; there is no parameter to train"},
)


@dataclass(frozen=True)
class CCCAConfig(MediaConfig):
    """Settings of ``c_cca``; those of the optimization are not used."""

    components: int = 10  # dimension of the common space, at most the smallest feature width
    pairs: Literal["all", "mixed"] = "all"
    pair_weight: float = 0.2  # β of "mixed": share of the own pair in Σ₁₂
    ridge: float = 0.1  # of the mean eigenvalue of each covariance
    ridge_unit: Literal["eigenvalue", "one"] = "eigenvalue"  # "one": r as it is, as in most published code
    standardize: bool = False  # features too to unit variance, as media always are

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "components": (1, MAX),
        "pair_weight": (0.0, 1.0),
        "ridge": (0.0, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(components=4)


class CCCA(system.System):
    """Linear cluster-CCA of all modalities of the data; ``finish`` fits it from the class moments of the clips."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = CCCAConfig
    closed_form: ClassVar[bool] = True
    similarity_name = "cosine"
    config: CCCAConfig
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        fresh=False,  # the closed form is all it takes
    )
    mean: Tensor
    weight: Tensor
    correlation: Tensor

    def __init__(self, config: CCCAConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.modalities = config.chosen(spec)
        if spec.n_classes < 2:
            hint = 'Add a "label" column, or take a system that learns from pairs alone, such as cca.'
            raise ConfigError(f"cluster-CCA learns from classes, and the data have {spec.n_classes}.", hint=hint)
        for name, known in (("pairs", ("all", "mixed")), ("ridge_unit", ("eigenvalue", "one"))):
            if getattr(config, name) not in known:
                raise ConfigError(f'{name} = "{getattr(config, name)}" must be {" or ".join(known)}.')
        self.sizes = [summary_dim(spec.streams[name], len(spec.vocabulary)) for name in self.modalities]
        self.components, width = min(config.components, *self.sizes), sum(self.sizes)
        # Random directions until it is fitted, so that an untrained copy is a random projection.
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("weight", torch.randn(width, self.components, dtype=torch.float64))
        self.register_buffer("correlation", torch.zeros(self.components, dtype=torch.float64))

    # ------------------------------------------------------------------------------------------------- the closed form
    @torch.no_grad()
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """The summary of each modality [B, D] in float64."""
        return {name: self._summary(batch, name) for name in self.modalities}

    def _summary(self, batch: Batch, name: str) -> Tensor:
        (stream,) = batch.require(name)
        spec, words = self.spec.streams[name], len(self.spec.vocabulary)
        return summarize(stream, spec, seconds=self.config.window, vocabulary=words)

    @torch.no_grad()
    def finish(self, batches: Iterable[Batch]) -> None:
        """One pass for the class moments, for ``pairs`` = "all" after one that counts; then solve.

        Clips without one of the modalities are left out.
        """
        mixed, weight = self.config.pairs == "mixed", self.mean.new_ones(self.spec.n_classes)
        if not mixed:  # a clip stands in as many pairs as its class has members
            weight = torch.zeros_like(weight)
            for batch in batches:
                _, label = self._rows(batch)
                weight += torch.bincount(label, minlength=len(weight)).to(weight)
        moments: ClusterMoments | None = None
        for batch in batches:
            kept, label = self._rows(batch)
            rows = torch.cat(list(self.encode(batch).values()), 1)[kept]
            moments = add_cluster_moments(moments, rows, label, weight=weight)
        if moments is None or int(moments.seen.sum()) < 2:
            raise BatchError("cluster-CCA needs at least two labeled clips that have all modalities.")
        share = moments.seen if mixed else moments.seen.square()
        beta = self.config.pair_weight if mixed else None
        mean = share @ moments.mean / share.sum()
        self._solve(mean, cluster_covariance(moments, self.sizes, pair_weight=beta))

    def _rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which clips have all modalities [B] bool, and the labels of those."""
        kept = batch.complete(*self.modalities)
        label = batch.label[kept]
        if bool((label < 0).any()):
            raise BatchError("c_cca needs a label for every clip.", hint="cca and infonce need none.")
        return kept, label

    def _solve(self, mean: Tensor, covariance: Tensor) -> None:
        variance = covariance.diagonal()
        streams, standardize = self.spec.streams, self.config.standardize
        parts = self._split(variance).items()
        scale = torch.cat([column_scale(v, streams[n], standardize=standardize) for n, v in parts])
        scaled, ridge = covariance * scale * scale[:, None], [self.config.ridge] * len(self.sizes)
        if self.config.ridge_unit == "eigenvalue":
            ridge = [self.config.ridge * float(part.mean()) for part in self._split(scaled.diagonal()).values()]
        found = canonical_directions(scaled, self.sizes, dim=self.components, ridge=ridge)
        k = len(found.correlation)  # fewer directions than columns may exist: the rest stays zero
        self.mean.copy_(mean)
        self.correlation.zero_()[:k] = found.correlation
        self.weight.zero_()[:, :k] = torch.cat(list(found.weights)) * scale[:, None]

    def _split(self, values: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.modalities, values.split(self.sizes), strict=True))

    def _project(self, x: Tensor, name: str) -> Tensor:
        return (x - self._split(self.mean)[name]) @ self._split(self.weight)[name]

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """For the log only: minus the mean cosine of matched projections."""
        first, *others = (self._project(encoded[name], name) for name in self.modalities)
        return {"cosine": -torch.stack([nn.functional.cosine_similarity(first, o).mean() for o in others]).mean()}

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """The summary before the projection, float32 [B, D]."""
        return self._summary(batch, modality).float()

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """Projections of one modality, or of the sum of several ("audio+text"), of unit length: float32 [B, k]."""
        total = self.mean.new_zeros(len(batch), self.components)
        for name in modality.split("+"):
            if name not in self.modalities:
                raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
            unit = normalize(self._project(self._summary(batch, name), name), dim=1)
            total += unit * batch.streams[name].mask.any(1)[:, None]
        return normalize(total, dim=1).float()

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return normalize(q, dim=1) @ normalize(g, dim=1).T
