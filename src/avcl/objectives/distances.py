"""Distances as scores: the pairwise engine of ``blocked`` sums over products, and a squared distance is one."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_factors(a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [B, D+2] and [M, D+2] whose products are the squared distances of ``a`` [B, D] and ``v`` [M, D].

    ``|a_i - v_j|² = [a_i, |a_i|², 1] · [-2 v_j, 1, |v_j|²]``; by rounding it may come out slightly negative. Distances
    do not change under a shift, so what all rows have in common, of which only rounding would be left, is taken away
    first. The products the other way round are the distances of ``v`` and ``a``.
    """
    center = _center(torch.cat([a.detach(), v.detach()]))
    a, v = a - center, v - center
    left = torch.cat([a, a.square().sum(1, keepdim=True), a.new_ones(len(a), 1)], 1)
    right = torch.cat([-2 * v, v.new_ones(len(v), 1), v.square().sum(1, keepdim=True)], 1)
    return left, right


def _center(rows: Tensor) -> Tensor:
    """Their mean, long rows weighing less: one far outlier must not carry the origin away from all others."""
    square = rows.square().sum(1)
    weight = 1 / (square + square.mean()).clamp(min=torch.finfo(rows.dtype).tiny)
    return (weight @ rows) / weight.sum()


def settled(squares: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``squares`` [B, M] of ``squared_factors`` in place, where what rounding cannot tell from a duplicate is 0.

    The root of what rounding leaves of a zero would be large against it, and its slope larger still.
    """
    noise = 8 * torch.finfo(squares.dtype).eps
    return squares.masked_fill_(squares <= noise * (left[:, -2, None] + right[:, -1]), 0)


def slope_of_root(slope: Tensor, root: Tensor) -> Tensor:
    """The derivative by d² from the derivative ``slope`` by d = ``root``; 0 at d = 0, where the slope is infinite."""
    return torch.where(root > 0, slope / (2 * root), 0)
