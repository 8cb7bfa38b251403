"""Linear cluster-CCA as a part of a network: two views into one space in closed form, refitted as they change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.objectives.cluster_correlation import ClusterMoments, add_cluster_moments, cluster_covariance
from avcl.objectives.correlation import canonical_directions


class ClusterCCA(nn.Module):
    r"""Linear cluster-CCA of two views: ``f_m(x) = (x - mean_m) W_m``, ``W_m = (Σ_mm + rI)^{-½} U_m``.

    U are the singular vectors of ``(Σ₁₁ + rI)^{-½} Σ₁₂ (Σ₂₂ + rI)^{-½}``, ``Σ₁₂ = β Σ₁₂_pair + (1 - β) Σ₁₂_class``,
    the second over all pairs (x_i, y_j) of one class (``cluster_covariance``).

    ``sizes``: width of each of the two views by name · ``components`` k, at most the smaller width · ``classes``: how
    many there are · ``ridge`` r ≥ 0 in units of the variance · ``pair_weight`` β in [0, 1]; 1 is plain CCA ·
    ``standardize``: views whose columns are brought to unit variance first. Shapes: a view [B, D_m] to float64 [B, k];
    where fewer than k directions have variance the rest is zero. Without parameters; random directions until it is
    fitted, so that an untrained copy is a random projection.

    ``fit`` takes the rows of a whole data set, ``follow`` one batch after another: the covariance is then their moving
    average, so that a network can be scored while it is still learning. Raises: ConfigError unless there are two views
    and two classes, BatchError where rows or labels do not fit. Pitfall: what a loss of correlation gives two networks
    are two spaces, each with a basis of its own; a cosine between them says nothing until this has been applied.
    """

    mean: Tensor
    covariance: Tensor
    weight: Tensor
    correlation: Tensor
    followed: Tensor

    def __init__(
        self,
        sizes: Mapping[str, int],
        components: int,
        *,
        classes: int,
        ridge: float = 1e-4,
        pair_weight: float = 0.2,
        standardize: Sequence[str] = (),
    ):
        super().__init__()
        if len(sizes) != 2:
            hint = "Name two of them in the setting `modalities`."
            raise ConfigError(f"cluster-CCA relates two modalities, not {len(sizes)} ({', '.join(sizes)}).", hint=hint)
        if classes < 2:
            hint = 'Add a "label" column, or take a system that learns from pairs alone, such as cca.'
            raise ConfigError(f"cluster-CCA learns from classes, and the data have {classes}.", hint=hint)
        self.sizes, self.classes = dict(sizes), classes
        self.ridge, self.pair_weight, self.standardize = ridge, pair_weight, tuple(standardize)
        self.components = min(components, *sizes.values())
        width = sum(sizes.values())
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("covariance", torch.zeros(width, width, dtype=torch.float64))
        self.register_buffer("weight", torch.randn(width, self.components, dtype=torch.float64))
        self.register_buffer("correlation", torch.zeros(self.components, dtype=torch.float64))
        self.register_buffer("followed", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, view: str) -> Tensor:
        mean, weight = (dict(zip(self.sizes, self._split(t), strict=True))[view] for t in (self.mean, self.weight))
        return (x.to(torch.float64) - mean) @ weight

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split(list(self.sizes.values()))

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Mapping[str, Tensor], Tensor]]) -> None:
        """Solve for all rows of ``batches``: (the two views [B, D_m] by name, label [B]), each row once."""
        moments: ClusterMoments | None = None
        for views, label in batches:
            moments = self._add(moments, views, label)
        if moments is None or int(moments.seen.sum()) < 2:
            raise BatchError("cluster-CCA needs at least two labeled clips that have both modalities.")
        self._solve(*self._statistics(moments))

    @torch.no_grad()
    def follow(self, views: Mapping[str, Tensor], label: Tensor, *, momentum: float = 0.1) -> None:
        """Solve for the moving average of the statistics of the batches seen so far, this one included."""
        if len(label) < 2:
            return
        mean, covariance = self._statistics(self._add(None, views, label))
        self.followed += 1
        share = max(momentum, 1 / int(self.followed))  # a plain average at first
        self._solve(self.mean.lerp(mean, share), self.covariance.lerp(covariance, share))

    def _add(self, moments: ClusterMoments | None, views: Mapping[str, Tensor], label: Tensor) -> ClusterMoments:
        rows = torch.cat([views[name].to(torch.float64) for name in self.sizes], 1)
        return add_cluster_moments(moments, rows, label, weight=self.mean.new_ones(self.classes))

    def _statistics(self, moments: ClusterMoments) -> tuple[Tensor, Tensor]:
        mean = (moments.mean * moments.seen[:, None]).sum(0) / moments.seen.sum()
        return mean, cluster_covariance(moments, list(self.sizes.values()), pair_weight=self.pair_weight)

    def _solve(self, mean: Tensor, covariance: Tensor) -> None:
        scale = torch.cat(
            [self._scale(n, v) for n, v in zip(self.sizes, self._split(covariance.diagonal()), strict=True)]
        )
        scaled, sizes = covariance * scale * scale[:, None], list(self.sizes.values())
        found = canonical_directions(scaled, sizes, dim=self.components, ridge=self.ridge)
        k = len(found.correlation)
        self.mean.copy_(mean)
        self.covariance.copy_(covariance)
        self.correlation.zero_()[:k] = found.correlation
        self.weight.zero_()[:, :k] = torch.cat(list(found.weights)) * scale[:, None]

    def _scale(self, view: str, variance: Tensor) -> Tensor:
        """Factor of each column: one over its standard deviation where asked for, 0 for a constant."""
        if view not in self.standardize:
            return torch.ones_like(variance)
        constant = variance <= 1e-12 * variance.max()
        return torch.where(constant, 0, variance.clamp(min=torch.finfo(variance.dtype).tiny).rsqrt())
