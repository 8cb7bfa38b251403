"""Correlation without an inverse: terms that stay stable in batches smaller than the dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives.inputs import at_least, full_precision, pairs, raised


def soft_cca(
    a: Tensor,
    v: Tensor,
    *,
    weight: float,
    covariance: tuple[Tensor, Tensor] | None = None,
    momentum: float = 0.0,
) -> Tensor:
    r"""Soft CCA: matched embeddings alike, the dimensions of each view uncorrelated, no matrix inverted.

    ``L = 1/(2B) ‖Z_a - Z_v‖²_F + weight · ½ (Σ_{i≠j} |φ_a,ij| + Σ_{i≠j} |φ_v,ij|)``, Z the embeddings with each column
    brought to mean 0 and variance 1 over the batch, ``φ = (1 - m) ZᵀZ/B + m C``

    so that the first term is ``Σ_d (1 - corr(a_d, v_d))``: the exact whitening of CCA becomes a penalty, as L1.

    Shapes: ``a``, ``v`` [B, D], row i of both from one clip · result: a scalar ≥ 0, float32 at least. Sign: lower is
    better. Reduction: mean over rows, sum over dimensions and pairs of them. ``covariance`` C: the two correlation
    matrices [D, D] of past batches and ``momentum`` m in [0, 1) their share, for batches too small to tell a
    correlation from noise; the caller keeps them, ``C ← m C + (1 - m) batch_correlation(z)``, and no gradient flows
    into them.

    Raises: BatchError where shapes disagree or B < 2, ConfigError for weight < 0 or m outside [0, 1). A constant column
    counts as zero. Paper: Chang, Xiang, Hospedales 2018 (whose matching term and running average leave the scale to
    batch normalization). Pitfall: the penalty has D (D - 1) terms beside D of the other: weight ~ 1/D balances them.
    """
    at_least("weight", weight)
    a, v = _rows("soft_cca", a, v)
    if not 0 <= momentum < 1 or (momentum > 0) != (covariance is not None):
        raise ConfigError(
            f"momentum = {momentum} must be in [0, 1), above 0 where a covariance is given and only there."
        )
    if covariance is not None and any(c.shape != (a.shape[1], a.shape[1]) for c in covariance):
        raise BatchError(f"covariance must be two [{a.shape[1]}, {a.shape[1]}].")
    with full_precision(a):
        x, y = _standardized(a), _standardized(v)
        matching = 0.5 * (x - y).square().sum(1).mean()
        penalty = a.new_zeros(())
        for i, z in enumerate((x, y)):
            phi = z.T @ z / len(z)
            if covariance is not None:
                phi = (1 - momentum) * phi + momentum * covariance[i].detach().to(phi.dtype)
            penalty = penalty + _off_diagonal(phi).abs().sum()
        return matching + 0.5 * weight * penalty


def barlow_twins(a: Tensor, v: Tensor, *, weight: float) -> Tensor:
    r"""Redundancy reduction: the cross-correlation of the two views is driven to the identity.

    ``L = Σ_i (1 - C_ii)² + weight Σ_{i≠j} C_ij²``, ``C = Z_aᵀ Z_v / B``, Z the embeddings with each column brought to
    mean 0 and variance 1 over the batch

    Shapes: ``a``, ``v`` [B, D], row i of both from one clip · result: a scalar ≥ 0, float32 at least. Sign: lower is
    better. Reduction: sum over pairs of dimensions of a mean over rows. Raises: BatchError where shapes disagree or
    B < 2, ConfigError for weight < 0. A constant column counts as zero. Paper: Zbontar et al. 2021 (weight .005).
    Pitfall: an off-diagonal entry of uncorrelated columns has variance 1/B, so in small batches most of the loss is
    noise; wide projections (D of thousands) are what the paper needs.
    """
    at_least("weight", weight)
    a, v = _rows("barlow_twins", a, v)
    with full_precision(a):
        c = _standardized(a).T @ _standardized(v) / len(a)
        return (1 - c.diagonal()).square().sum() + weight * _off_diagonal(c).square().sum()


def pearson(a: Tensor, v: Tensor) -> Tensor:
    r"""One minus the Pearson correlation of matched embeddings, each centered over its own dimensions.

    ``L = 1/B Σ_i (1 - cos(a_i - mean(a_i), v_i - mean(v_i)))``

    Shapes: ``a``, ``v`` [B, D], row i of both from one clip · result: a scalar in [0, 2], float32 at least. Sign: lower
    is better. Reduction: mean over rows. A row that is constant has correlation 0. Raises: BatchError where shapes
    disagree. Paper: the correlation that the code of Zhang et al. 2021 (VAE-CCA) uses. Pitfall: this is not CCA: it
    compares dimension d of one view with dimension d of the other within a sample, and finds no directions; without
    negatives it collapses.
    """
    a, v = pairs("pearson", a, v)
    with full_precision(a):
        x, y = (_unit(z - z.mean(1, keepdim=True), 1) for z in (a - a[:, :1].detach(), v - v[:, :1].detach()))
        return 1 - (x * y).sum(1).mean()


def batch_correlation(z: Tensor) -> Tensor:
    """The correlation matrix [D, D] of the columns of ``z`` [B, D], B ≥ 2; a constant column is zero."""
    if z.ndim != 2 or len(z) < 2:
        raise BatchError(f"batch_correlation needs [B, D] with B > 1, not {tuple(z.shape)}.")
    (z,) = raised(z)
    with full_precision(z):
        x = _standardized(z)
        return x.T @ x / len(x)


def _rows(name: str, a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    a, v = pairs(name, a, v)
    if len(a) < 2:
        raise BatchError(f"{name} needs at least two rows: one has no variance.")
    return a, v


def _standardized(z: Tensor) -> Tensor:
    """Columns of mean 0 and variance 1. The first row goes first, so that equal rows are zero and not rounding."""
    z = z - z[:1].detach()
    return _unit(z - z.mean(0), 0) * len(z) ** 0.5


def _unit(z: Tensor, dim: int) -> Tensor:
    """Vectors along ``dim`` brought to unit length; zero stays zero, with the slope zero."""
    top = z.detach().abs().amax(dim, keepdim=True)  # squares of huge or tiny values would leave the range
    z = z / torch.where(top > 0, top, 1)
    square = z.square().sum(dim, keepdim=True)
    return z * torch.where(square > 0, square, 1).rsqrt() * (square > 0)


def _off_diagonal(square: Tensor) -> Tensor:
    return square - torch.diag(square.diagonal())
