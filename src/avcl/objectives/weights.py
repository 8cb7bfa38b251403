"""What objectives over cells share: a weight, or mask of what was recorded, and the mean over the cells it leaves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from avcl.errors import BatchError
from avcl.objectives.inputs import raised


def of_rank(name: str, weight: Tensor, x: Tensor) -> Tensor:
    """``weight``, real and of the rank of ``x``, every size 1 or that of x; BatchError otherwise.

    The same rank is asked for because [B, T] would otherwise meet the last two dimensions of [B, T, D].
    """
    fits = weight.ndim == x.ndim and all(w in (1, n) for w, n in zip(weight.shape, x.shape, strict=True))
    if not fits or weight.is_complex():
        raise BatchError(
            f"{name} {tuple(weight.shape)} must be real, of the rank of {tuple(x.shape)}, sizes 1 or equal."
        )
    return weight


def recorded_pair(name: str, x: Tensor, y: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both raised and zero in the cells of weight 0, so that a NaN there reaches neither value nor gradient."""
    if x.shape != y.shape or x.numel() == 0 or x.is_complex() or y.is_complex():
        raise BatchError(
            f"{name} needs two real tensors of one shape with values, not {x.dtype} {tuple(x.shape)}"
            f" and {y.dtype} {tuple(y.shape)}."
        )
    x, y = raised(x, y)
    if weight is None:
        return x, y, None
    weight = of_rank("weight", weight, x).to(x.dtype)
    if not bool(((weight >= 0) & (weight < math.inf)).all()):
        raise BatchError("a weight must be finite and not negative.")
    if not bool((weight > 0).any()):
        raise BatchError("the weight is zero everywhere: nothing was recorded.")
    live = weight > 0
    return torch.where(live, x, 0), torch.where(live, y, 0), weight


def weighted_mean(cost: Tensor, weight: Tensor | None) -> Tensor:
    """``Σ w·cost / Σ w`` over the cells of ``cost``, to which ``weight`` is broadcast."""
    if weight is None:
        return cost.mean()
    return (cost * weight).sum() / (weight.sum() * (cost.numel() / weight.numel()))
