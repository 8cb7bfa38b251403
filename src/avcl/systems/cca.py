"""Regularized linear CCA: the classical baseline of cross-modal retrieval, in closed form and float64.

Claim: the directions w₁, w₂ with the largest correlation of w₁ᵀx and w₂ᵀy, found from the covariances alone, already
carry much of what two modalities share (Hotelling 1936; as cross-modal retrieval: Rasiwasia et al. 2010).

    T = (Σ₁₁ + r₁I)^{-½} Σ₁₂ (Σ₂₂ + r₂I)^{-½} = U diag(ρ) Vᵀ,   f(x) = (x - mean₁) (Σ₁₁ + r₁I)^{-½} U_k,   r_i = ridge
    · tr Σ_ii / D_i

Items are compared by the cosine of their projections. Features are averaged over time; media are first summarized by
fixed statistics (``avcl.encoders.statistics``) whose columns are brought to unit variance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.statistics import column_scale, summarize, summary_dim
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.objectives.correlation import Moments, add_moments, canonical_directions
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec

CARD = Card(
    title="Regularized linear canonical correlation analysis",
    year=1936,
    venue="Biometrika",
    authors="H. Hotelling",
    paper=(
        "Wikipedia features, mAP of the image query .249, of the text query .196 (Rasiwasia et al. 2010, recalled)",
    ),
    fidelity="The closed form in float64; the ridge is relative to the mean eigenvalue of each covariance.",
    deviations=(
        "More than two modalities share one space by the sum of pairwise correlations, as plain CCA knows only two.",
        "Raw media are summarized by fixed statistics, for CCA has no encoder of its own.",
    ),
    limits={"gradient": "fitted in closed form; there is no parameter to train"},
)


@dataclass(frozen=True)
class CCAConfig(MediaConfig):
    """Settings of ``cca``; those of the optimization are not used."""

    components: int = 10  # dimension of the common space, at most the smallest feature width
    ridge: float = 0.1  # of the mean eigenvalue of each covariance
    standardize: bool = False  # features too to unit variance, as media always are

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "components": (1, MAX),
        "ridge": (0.0, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(components=4)


class _Projection(nn.Module):
    """(x - mean) W in float64; random until fitted, so that an untrained copy is a random projection."""

    mean: Tensor
    weight: Tensor

    def __init__(self, size: int, components: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("weight", torch.randn(size, components, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) @ self.weight

    def set(self, mean: Tensor, weight: Tensor) -> None:
        """Fewer directions than columns may exist: the rest stays zero and does not touch the cosine."""
        self.mean.copy_(mean)
        self.weight.zero_()[:, : weight.shape[1]] = weight


class CCA(system.System):
    """Linear CCA of all modalities of the data; ``finish`` fits it from one pass over the training clips."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = CCAConfig
    closed_form: ClassVar[bool] = True
    similarity_name = "cosine"
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "pair"},
        fresh=False,  # one pass is all it takes
        settings={"components": 20},
    )
    config: CCAConfig
    correlation: Tensor

    def __init__(self, config: CCAConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.modalities = config.chosen(spec)
        self.sizes = tuple(summary_dim(spec.streams[name], len(spec.vocabulary)) for name in self.modalities)
        self.components = min(config.components, *self.sizes)
        self.project = nn.ModuleDict(
            {n: _Projection(size, self.components) for n, size in zip(self.modalities, self.sizes, strict=True)}
        )
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
        """Accumulate the moments of all modalities side by side, then solve. Rows without one of them are left out."""
        moments: Moments | None = None
        for batch in batches:
            encoded = self.encode(batch)
            present = batch.complete(*self.modalities)
            moments = add_moments(moments, torch.cat([encoded[n] for n in self.modalities], 1)[present])
        if moments is None or moments.n < 2:
            seen = 0 if moments is None else moments.n
            raise BatchError(f"cca needs at least two clips that have {' and '.join(self.modalities)}, not {seen}.")
        covariance = moments.scatter / (moments.n - 1)
        streams, standardize = self.spec.streams, self.config.standardize
        parts = self._split(covariance.diagonal()).items()
        scale = torch.cat([column_scale(c, streams[n], standardize=standardize) for n, c in parts])
        scaled = covariance * scale * scale[:, None]
        ridge = [self.config.ridge * float(part.mean()) for part in self._split(scaled.diagonal()).values()]
        found = canonical_directions(scaled, self.sizes, dim=self.components, ridge=ridge)
        k = len(found.correlation)
        means, scales = self._split(moments.mean), self._split(scale)
        self.correlation.zero_()[:k] = found.correlation
        for name, weight in zip(self.modalities, found.weights, strict=True):
            self._projection(name).set(means[name], weight * scales[name][:, None])

    def _projection(self, name: str) -> _Projection:
        return cast(_Projection, self.project[name])

    def _split(self, values: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.modalities, values.split(list(self.sizes)), strict=True))

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """For the log only: minus the mean cosine of matched projections."""
        first, *others = (self._projection(name)(encoded[name]) for name in self.modalities)
        return {"cosine": -torch.stack([nn.functional.cosine_similarity(first, o).mean() for o in others]).mean()}

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """The summary before the projection, float32 [B, D]."""
        return self._summary(batch, modality).float()

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """Projections of one modality, or of the sum of several ("audio+text"), of unit length: float32 [B, k]."""
        total = self.correlation.new_zeros(len(batch), self.components)
        for name in modality.split("+"):
            if name not in self.project:
                raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
            unit = nn.functional.normalize(self._projection(name)(self._summary(batch, name)), dim=1)
            total += unit * batch.streams[name].mask.any(1)[:, None]
        return nn.functional.normalize(total, dim=1).float()

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return nn.functional.normalize(q, dim=1) @ nn.functional.normalize(g, dim=1).T
