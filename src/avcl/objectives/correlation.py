"""Correlation objectives in closed form, from covariances accumulated in one pass over the data, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives.covariances import CHUNK, add_scatter_, inverse_root, signed, symmetric


class Moments(NamedTuple):
    """Count n, mean [D] and centered scatter Σ (x - mean)(x - mean)ᵀ [D, D] of the rows seen so far, float64."""

    n: int
    mean: Tensor
    scatter: Tensor


def add_moments(moments: Moments | None, rows: Tensor) -> Moments:
    """The moments of what was seen before and of ``rows`` [n, D] together, without keeping a row.

    ``M = M₁ + M₂ + δδᵀ n₁n₂/(n₁+n₂)`` with δ = mean₂ - mean₁ (Chan, Golub, LeVeque 1983): exact in one pass, and free
    of the cancellation that Σxxᵀ - n·mean·meanᵀ suffers far from the origin. ``moments`` None: nothing was seen.

    Rows of any floating type and length: they are raised to float64 a few thousand at a time, so a memory-mapped array
    costs no copy of itself. Raises: BatchError for another shape. Pitfall: D² numbers per call are copied; hand over
    hundreds of rows at once, not one.
    """
    if rows.ndim != 2 or (moments is not None and rows.shape[1] != len(moments.mean)):
        wanted = "[n, D]" if moments is None else f"[n, {len(moments.mean)}]"
        raise BatchError(f"moments need rows {wanted}, not {tuple(rows.shape)}.")
    if moments is None:
        zero = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        moments = Moments(0, zero, torch.outer(zero, zero))
    if len(rows) == 0:
        return moments
    n, mean, scatter = moments.n, moments.mean, moments.scatter.clone()
    buffer = mean.new_empty(min(len(rows), CHUNK), len(mean))
    for chunk in rows.detach().split(CHUNK):
        x = buffer[: len(chunk)].copy_(chunk)
        center = x.mean(0)
        add_scatter_(scatter, x.sub_(center))
        total, delta = n + len(x), center - mean
        scatter.addr_(delta, delta, alpha=n * len(x) / total)
        n, mean = total, mean + delta * (len(x) / total)
    return Moments(n, mean, symmetric(scatter))


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
    blocks, roots, _ = _checked(covariance, sizes, dim, ridge)
    k = min(dim, *(root.shape[1] for root in roots))
    if len(sizes) == 2:
        left, rho, right = torch.linalg.svd(roots[0].T @ blocks[0][1] @ roots[1], full_matrices=False)
        parts, rho = [left[:, :k], right[:k].T], rho[:k]
    else:
        values, vectors = torch.linalg.eigh(_across(blocks, roots))
        rho = values.flip(0)[:k] / (len(sizes) - 1)
        stacked = vectors.flip(1)[:, :k].split([root.shape[1] for root in roots], 0)
        parts = [part / part.norm(dim=0).clamp(min=1e-12) for part in stacked]
    return Canonical(signed([root @ part for root, part in zip(roots, parts, strict=True)]), rho)


class Generalized(NamedTuple):
    """Directions of each view (columns of ``weights[i]`` [D_i, k]) and the eigenvalues [k] in [0, M], falling."""

    weights: tuple[Tensor, ...]
    eigenvalue: Tensor


def generalized_cca(
    covariance: Tensor, sizes: Sequence[int], *, dim: int, ridge: float | Sequence[float] = 0.0
) -> Generalized:
    r"""Generalized CCA (MAXVAR): the representation G that all M views predict best, from one covariance matrix.

    ``min_{G, U} Σ_m (‖G - X_m U_m‖² + r_m‖U_m‖²) = k M - Σ_{i≤k} λ_i`` with GᵀG = I: G holds the top eigenvectors of
    ``Σ_m P_m``, ``P_m = X_m (X_mᵀX_m + r_m I)^{-1} X_mᵀ``, and ``U_m = (X_mᵀX_m + r_m I)^{-1} X_mᵀ G``

    G has a row for each sample and is never formed: with ``R_m = (Σ_mm + r_m I)^{-½}`` the same λ are those of the
    block matrix ``R_iᵀ Σ_ij R_j`` [D, D], and its eigenvectors E give ``U_m = R_m E_m λ^½``.

    ``covariance`` [D, D] of the views side by side, for instance of ``add_moments`` (then X_m is centered and divided
    by √(n - 1), and G has unit variance) · ``ridge`` r in its units, one for all or one for each view. λ_i / M is the
    share of G_i that a view explains on average; for two views without ridge λ = 1 + ρ, and U spans the subspace of
    ordinary CCA. k = min(dim, rank). Sign: the largest loading of the first view is positive. Raises: ConfigError for
    dim < 1 or a negative ridge, BatchError where sizes or values do not fit. Paper: Kettenring 1971, Carroll 1968;
    the ridge as in Rastogi et al. 2015. Pitfall: λ = 1 means that G is the private matter of one view, not something
    shared: count only λ well above 1.
    """
    blocks, roots, ridges = _checked(covariance, sizes, dim, ridge)
    own = [torch.eye(root.shape[1]).to(root) - r * root.T @ root for root, r in zip(roots, ridges, strict=True)]
    values, vectors = torch.linalg.eigh(_across(blocks, roots) + torch.block_diag(*own))
    k = min(dim, int((values > 1e-12 * len(sizes)).sum()))
    top = values.flip(0)[:k]
    parts = (vectors.flip(1)[:, :k] * top.sqrt()).split([root.shape[1] for root in roots], 0)
    return Generalized(signed([root @ part for root, part in zip(roots, parts, strict=True)]), top)


def _checked(
    covariance: Tensor, sizes: Sequence[int], dim: int, ridge: float | Sequence[float]
) -> tuple[list[list[Tensor]], list[Tensor], list[float]]:
    """The blocks Σ_ij, the inverse root of each Σ_ii + r_i I, and the ridges."""
    if dim < 1:
        raise ConfigError(f"components = {dim} must be at least 1.")
    ridges = [ridge] * len(sizes) if isinstance(ridge, int | float) else list(ridge)
    if len(sizes) < 2 or len(ridges) != len(sizes) or covariance.shape != (sum(sizes), sum(sizes)):
        raise BatchError(
            f"covariance {tuple(covariance.shape)} and {len(ridges)} ridges do not fit views {tuple(sizes)}."
        )
    if not min(ridges) >= 0:
        raise ConfigError(f"ridge = {min(ridges)} must not be negative.")
    if not bool(torch.isfinite(covariance).all()):
        raise BatchError("the covariance has non-finite values.")
    blocks = [list(row.split(list(sizes), 1)) for row in covariance.to(torch.float64).split(list(sizes), 0)]
    return blocks, [inverse_root(blocks[i][i], r) for i, r in enumerate(ridges)], ridges


def _across(blocks: list[list[Tensor]], roots: list[Tensor]) -> Tensor:
    """The matrix of all blocks R_iᵀ Σ_ij R_j with i ≠ j, zero on its diagonal blocks."""
    views = range(len(roots))
    rows = [
        [
            roots[i].T @ blocks[i][j] @ roots[j]
            if i < j
            else blocks[i][j].new_zeros(roots[i].shape[1], roots[j].shape[1])
            for j in views
        ]
        for i in views
    ]
    upper = torch.cat([torch.cat(row, 1) for row in rows], 0)
    return upper + upper.T
