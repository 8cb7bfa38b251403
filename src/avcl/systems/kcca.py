"""Kernel CCA: the correlations that linear CCA cannot see, found among the similarities to known clips (Bach & Jordan
2002; Hardoon, Szedmak, Shawe-Taylor 2004).

Claim: linear CCA in the feature space of a radial kernel bends with the data and is still a closed form.

    (K₁ + κI)^{-1} K₂ (K₂ + κI)^{-1} K₁ α = ρ² α,     f₁(x) = Σ_i α_i (k₁(x, x_i) - mean),     k = exp(-‖x - y‖² / 2s)

K₁, K₂: centered kernels of all n training clips, which cost n² memory and n³ time. So the kernel is known by its values
at ``landmarks`` = m training clips, the same for both modalities (Nyström): φ(x) = K_mm^{-½} k_m(x) has the scalar
products k_m(x)ᵀ K_mm^{-1} k_m(y) ≈ k(x, y), and linear CCA of φ with the ridge κ / (n - 1), from one pass over all
clips, is kernel CCA of that kernel; with m ≥ n it is the exact one. s is ``width`` times the mean squared distance of
the landmarks. Items are compared by the cosine of f. Features are averaged over time, media summarized by fixed
statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from avcl import system
from avcl.encoders.statistics import summarize, summary_dim
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.objectives.correlation import Moments, add_moments, canonical_directions
from avcl.objectives.inputs import above
from avcl.objectives.kernels import rbf_kernel
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec

ROWS = 512  # clips whose kernel is added to the moments at once

CARD = Card(
    title="Canonical correlation analysis: an overview with application to learning methods (kernel CCA)",
    year=2004,
    venue="Neural Computation",
    authors="D. R. Hardoon, S. Szedmak, J. Shawe-Taylor",
    paper=(
        "VEGAS, mAP by class: sound to picture .288, picture to sound .273; AVE .133 and .135 (tables of Zeng et al., "
        "recalled)",
    ),
    fidelity="paper: the closed form in float64; exact where there are as many landmarks as clips, else Nyström.",
    deviations=(
        "Beyond the landmarks the kernel is approximated, for n² numbers do not fit in memory.",
        "More than two modalities share one space by the sum of pairwise correlations.",
        "Raw media are summarized by fixed statistics, for the method has no encoder of its own.",
    ),
    limits={"gradient": "fitted in closed form; there is no parameter to train"},
)


@dataclass(frozen=True)
class KCCAConfig(MediaConfig):
    """Settings of ``kcca``; those of the optimization are not used."""

    components: int = 10  # dimension of the common space
    kernel: Literal["rbf", "linear"] = "rbf"
    width: float = 1.0  # s of the radial kernel, in mean squared distances of the landmarks
    ridge: float = 1.0  # κ, in units of the kernel of all n clips
    landmarks: int = 1000  # m: memory grows with m², time with m³ and n m
    standardize: bool = False  # features to unit variance, as media always are

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "components": (1, MAX),
        "width": (1e-9, MAX),
        "ridge": (0.0, MAX),
        "landmarks": (2, 20_000),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(components=4, landmarks=20)


class _Kernel(nn.Module):
    """k(x, x_i) for the landmarks x_i and f(x) = k(x) A - shift: [B, D] to [B, k], random until it is fitted."""

    mean: Tensor
    deviation: Tensor
    landmarks: Tensor
    scale: Tensor
    weight: Tensor
    shift: Tensor

    def __init__(self, size: int, landmarks: int, components: int, kernel: str):
        super().__init__()
        self.kernel = kernel
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("deviation", torch.ones(size, dtype=torch.float64))
        self.register_buffer("landmarks", torch.randn(landmarks, size, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(float(size), dtype=torch.float64))
        self.register_buffer("weight", torch.randn(landmarks, components, dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(components, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.similar(x) @ self.weight - self.shift

    def similar(self, x: Tensor) -> Tensor:
        """k between rows [B, D] and the landmarks: [B, m]."""
        x = (x - self.mean) / self.deviation
        if self.kernel == "linear":
            return x @ self.landmarks.T
        return rbf_kernel(x, self.landmarks, scale=float(self.scale))

    def place(self, rows: Tensor, width: float, *, standardize: bool) -> Tensor:
        """Take ``rows`` [n, D], at most m of them, as landmarks; K_mm^{-½} [m, r], zeros where there are none."""
        if standardize:
            found = rows.std(0, correction=0)
            self.deviation.copy_(torch.where(found > 1e-12, found, 1.0))
            self.mean.copy_(rows.mean(0))
        n, scaled = len(rows), (rows - self.mean) / self.deviation
        self.landmarks.zero_()[:n] = scaled
        self.scale.copy_((2 * width * scaled.var(0, correction=0).sum()).clamp(min=1e-12))
        own = self.similar(rows)[:, :n]
        values, vectors = torch.linalg.eigh((own + own.T) / 2)
        kept = values > n * torch.finfo(values.dtype).eps * values.max()
        root = own.new_zeros(len(self.landmarks), int(kept.sum()))
        root[:n] = vectors[:, kept] * values[kept].rsqrt()
        return root


class KCCA(system.System):
    """Kernel CCA of all modalities of the data; ``finish`` fits it from two passes over the training clips."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = KCCAConfig
    closed_form: ClassVar[bool] = True
    similarity_name = "cosine"
    config: KCCAConfig
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        fresh=False,  # the closed form is all it takes
    )
    correlation: Tensor

    def __init__(self, config: KCCAConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.modalities = config.chosen(spec)
        if config.kernel not in ("rbf", "linear"):
            raise ConfigError(f'kernel = "{config.kernel}" must be rbf or linear.')
        above("width", config.width)
        self.components = min(config.components, config.landmarks)
        self.kernels = nn.ModuleDict(
            {
                name: _Kernel(
                    summary_dim(spec.streams[name], len(spec.vocabulary)),
                    config.landmarks,
                    self.components,
                    config.kernel,
                )
                for name in self.modalities
            }
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

    def _rows(self, batches: Iterable[Batch]) -> Iterator[list[Tensor]]:
        """The summaries of the clips that have all modalities, batch by batch."""
        for batch in batches:
            kept = batch.complete(*self.modalities)
            yield [rows[kept] for rows in self.encode(batch).values()]

    @torch.no_grad()
    def finish(self, batches: Iterable[Batch]) -> None:
        """One pass that draws the landmarks, one for the moments of φ; then solve."""
        landmarks = self._drawn(batches)
        if landmarks is None or len(landmarks[0]) < 2:
            raise BatchError(f"kcca needs at least two clips that have {' and '.join(self.modalities)}.")
        kernels: list[_Kernel] = [self.kernels[name] for name in self.modalities]  # type: ignore[misc]
        roots = []
        for name, kernel, rows in zip(self.modalities, kernels, landmarks, strict=True):
            plain = self.spec.streams[name].kind in ("features", "map") and not self.config.standardize
            roots.append(kernel.place(rows, self.config.width, standardize=not plain))
        moments: Moments | None = None
        for held in _together(self._rows(batches)):
            mapped = [kernel.similar(x) @ root for kernel, x, root in zip(kernels, held, roots, strict=True)]
            moments = add_moments(moments, torch.cat(mapped, 1))
        if moments is None or moments.n < 2:
            raise BatchError("kcca passes over the clips twice, and the second time there were none.")
        sizes, n = [root.shape[1] for root in roots], moments.n - 1
        covariance, ridge = moments.scatter / n, self.config.ridge / n
        found = canonical_directions(covariance, sizes, dim=self.components, ridge=ridge)
        k = len(found.correlation)  # fewer directions than columns may exist: the rest stays zero
        self.correlation.zero_()[:k] = found.correlation
        means = moments.mean.split(sizes)
        for kernel, root, weight, mean in zip(kernels, roots, found.weights, means, strict=True):
            kernel.weight.zero_()[:, :k] = root @ weight
            kernel.shift.zero_()[:k] = mean @ weight

    def _drawn(self, batches: Iterable[Batch]) -> list[Tensor] | None:
        """``landmarks`` of the clips at random, or all where there are no more: [m, D] for each modality."""
        generator, most = torch.Generator().manual_seed(0), self.config.landmarks
        kept: list[Tensor] | None = None
        draws = torch.zeros(0)  # of every clip a number; those with the smallest stay
        for rows in self._rows(batches):
            draws = torch.cat([draws, torch.rand(len(rows[0]), generator=generator)])
            kept = rows if kept is None else [torch.cat(pair) for pair in zip(kept, rows, strict=True)]
            if len(draws) > most:
                chosen = draws.argsort()[:most].sort().values
                draws, kept = draws[chosen], [x[chosen.to(x.device)] for x in kept]
        return kept

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """For the log only: minus the mean cosine of matched projections."""
        first, *others = (self.kernels[name](encoded[name]) for name in self.modalities)
        return {"cosine": -torch.stack([nn.functional.cosine_similarity(first, o).mean() for o in others]).mean()}

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """The summary before the kernel, float32 [B, D]."""
        return self._summary(batch, modality).float()

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """Projections of one modality, or of the sum of several ("audio+text"), of unit length: float32 [B, k]."""
        total = self.correlation.new_zeros(len(batch), self.components)
        for name in modality.split("+"):
            if name not in self.kernels:
                raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
            unit = normalize(self.kernels[name](self._summary(batch, name)), dim=1)
            total += unit * batch.streams[name].mask.any(1)[:, None]
        return normalize(total, dim=1).float()

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return normalize(q, dim=1) @ normalize(g, dim=1).T


def _together(batches: Iterator[list[Tensor]]) -> Iterator[list[Tensor]]:
    """The rows of several batches at once, ``ROWS`` or more: each call of the moments copies m² numbers."""
    held: list[list[Tensor]] = []
    for rows in batches:
        held.append(rows)
        if sum(len(part[0]) for part in held) >= ROWS:
            yield [torch.cat(parts) for parts in zip(*held, strict=True)]
            held = []
    if held:
        yield [torch.cat(parts) for parts in zip(*held, strict=True)]
