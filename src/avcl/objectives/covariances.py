"""What the correlation objectives share: scatter matrices, their inverse roots, and which view a column belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK = 1024  # rows that are raised to float64 at a time: small enough for the caches
PANEL = 192  # columns of the scatter that one matrix product fills
WELL_CONDITIONED = 1e12  # trace · trace of the inverse, a bound of the condition number, up to which Cholesky is used


def add_scatter_(scatter: Tensor, x: Tensor) -> None:
    """Add xᵀx to ``scatter`` on and above the diagonal: little more than half of the full product."""
    for i in range(0, len(scatter), PANEL):
        scatter[i : i + PANEL, i:].addmm_(x[:, i : i + PANEL].T, x[:, i:])


def symmetric(upper: Tensor) -> Tensor:
    """The symmetric matrix of which only the upper triangle is right."""
    return upper.triu() + upper.triu(1).T


def view_of_column(sizes: Sequence[int], device: torch.device) -> Tensor:
    """The number of the view that each column belongs to, [Σ sizes]."""
    return torch.cat([torch.full((size,), i, device=device) for i, size in enumerate(sizes)])


def inverse_root(block: Tensor, ridge: float) -> Tensor:
    """R [D, rank] with Rᵀ (block + ridge·I) R = I on the directions that have variance.

    Any root whitens. The triangular one of Cholesky is cheap; the eigendecomposition, many times its cost, is left for
    blocks of deficient rank or nearly so.
    """
    full = block + ridge * torch.eye(len(block), dtype=block.dtype, device=block.device)
    lower, failed = torch.linalg.cholesky_ex(full)
    if not int(failed) and len(block):
        identity = torch.eye(len(block), dtype=block.dtype, device=block.device)
        root = torch.linalg.solve_triangular(lower, identity, upper=False).T
        if float(full.trace() * root.square().sum()) < WELL_CONDITIONED:
            return root
    values, vectors = torch.linalg.eigh(block)
    values = values.clamp(min=0) + ridge
    keep = values > values.amax() * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, keep] / values[keep].sqrt()


def signed(weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Directions of all views turned so that the largest loading of the first view is positive."""
    leading = weights[0].gather(0, weights[0].abs().argmax(0, keepdim=True))
    sign = torch.where(leading < 0, -1.0, 1.0).to(torch.float64)
    return tuple(w * sign for w in weights)
