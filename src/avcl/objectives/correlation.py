"""Correlation objectives in closed form: canonical correlation analysis from accumulated covariances, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from avcl.errors import BatchError, ConfigError


class Moments(NamedTuple):
    """Count n, mean [D] and centered scatter Σ (x - mean)(x - mean)ᵀ [D, D] of the rows seen so far, float64."""

    n: int
    mean: Tensor
    scatter: Tensor


def add_moments(moments: Moments | None, rows: Tensor) -> Moments:
    """The moments of what was seen before and of ``rows`` [n, D] together, without keeping a row.

    ``M = M₁ + M₂ + δδᵀ n₁n₂/(n₁+n₂)`` with δ = mean₂ - mean₁ (Chan, Golub, LeVeque 1983): exact in one pass, and free
    of the cancellation that Σxxᵀ - n·mean·meanᵀ suffers far from the origin. ``moments`` None: nothing was seen.
    """
    x = rows.detach().to(torch.float64)
    if x.ndim != 2:
        raise BatchError(f"moments need rows [n, D], not {tuple(x.shape)}.")
    if moments is not None and len(x) == 0:
        return moments
    mean = x.mean(0) if len(x) else x.new_zeros(x.shape[1])
    centered = x - mean
    new = Moments(len(x), mean, centered.T @ centered)
    if moments is None or moments.n == 0:
        return new
    total = moments.n + new.n
    delta = new.mean - moments.mean
    scatter = moments.scatter + new.scatter + torch.outer(delta, delta) * (moments.n * new.n / total)
    return Moments(total, moments.mean + delta * (new.n / total), scatter)


class Canonical(NamedTuple):
    """Directions of each view (columns of ``weights[i]`` [D_i, k]) and the canonical correlations [k], falling."""

    weights: tuple[Tensor, ...]
    correlation: Tensor


def canonical_directions(
    covariance: Tensor, sizes: Sequence[int], *, dim: int, ridge: float | Sequence[float] = 0.0
) -> Canonical:
    r"""Regularized linear CCA of two or more views from one covariance matrix.

    ``T = (Σ₁₁ + r₁I)^{-½} Σ₁₂ (Σ₂₂ + r₂I)^{-½} = U diag(ρ) Vᵀ``, ``W₁ = (Σ₁₁ + r₁I)^{-½} U_k``, ``W₂ = (Σ₂₂ +
    r₂I)^{-½} V_k``

    With M > 2 views (sum of correlations, Kettenring 1971): the top eigenvectors of the block matrix of all T_ij with
    zero diagonal blocks, the part of each view brought to unit length; ρ is then eigenvalue / (M - 1), the mean pair
    correlation.

    ``covariance`` [D, D] of the views side by side (D = Σ sizes) · ``ridge`` r in units of the covariance, one for
    all views or one for each. Directions without variance (eigenvalue + r ≤ D·ε·largest) are left out of the inverse
    root, so views of deficient rank need no ridge; k = min(dim, ranks). Sign: the largest loading of the first view
    is positive. Raises: ConfigError for dim < 1 or a negative ridge, BatchError where sizes or values do not fit.
    Pitfall: ρ of a training set is optimistic as soon as n is not much larger than D: choose r on held-out rows.
    """
    if dim < 1:
        raise ConfigError(f"components = {dim} must be at least 1.")
    ridges = [ridge] * len(sizes) if isinstance(ridge, int | float) else list(ridge)
    if len(sizes) < 2 or len(ridges) != len(sizes) or covariance.shape != (sum(sizes), sum(sizes)):
        raise BatchError(
            f"covariance {tuple(covariance.shape)} and {len(ridges)} ridges do not fit views {tuple(sizes)}."
        )
    if min(ridges) < 0:
        raise ConfigError(f"ridge = {min(ridges)} must not be negative.")
    if not bool(torch.isfinite(covariance).all()):
        raise BatchError("the covariance has non-finite values.")
    blocks = [list(row.split(list(sizes), 1)) for row in covariance.to(torch.float64).split(list(sizes), 0)]
    roots = [_inverse_root(blocks[i][i], r) for i, r in enumerate(ridges)]  # [D_i, rank_i] each
    k = min(dim, *(root.shape[1] for root in roots))
    if len(sizes) == 2:
        left, rho, right = torch.linalg.svd(roots[0].T @ blocks[0][1] @ roots[1], full_matrices=False)
        parts, rho = [left[:, :k], right[:k].T], rho[:k]
    else:
        whitened = [[roots[i].T @ blocks[i][j] @ roots[j] for j in range(len(sizes))] for i in range(len(sizes))]
        for i in range(len(sizes)):
            whitened[i][i] = torch.zeros_like(whitened[i][i])
        values, vectors = torch.linalg.eigh(torch.cat([torch.cat(row, 1) for row in whitened], 0))
        rho = values.flip(0)[:k] / (len(sizes) - 1)
        stacked = vectors.flip(1)[:, :k].split([root.shape[1] for root in roots], 0)
        parts = [part / part.norm(dim=0).clamp(min=1e-12) for part in stacked]
    weights = [root @ part for root, part in zip(roots, parts, strict=True)]
    leading = weights[0].gather(0, weights[0].abs().argmax(0, keepdim=True))
    sign = torch.where(leading < 0, -1.0, 1.0).to(torch.float64)
    return Canonical(tuple(w * sign for w in weights), rho)


def _inverse_root(block: Tensor, ridge: float) -> Tensor:
    """R [D, rank] with Rᵀ (block + ridge·I) R = I on the directions that have variance."""
    values, vectors = torch.linalg.eigh(block)
    values = values.clamp(min=0) + ridge
    floor = values.max() * len(values) * torch.finfo(values.dtype).eps
    keep = values > floor
    return vectors[:, keep] / values[keep].sqrt()
