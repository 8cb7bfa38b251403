"""How far two distributions of codes are apart: closed form for Gaussians, from samples otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives.blocked import score_sum
from avcl.objectives.distances import squared_factors
from avcl.objectives.inputs import above, full_precision, raised
from avcl.objectives.variational import alike, bounded


def wasserstein2(
    mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor, *, squared: bool = True
) -> Tensor:
    r"""Squared 2-Wasserstein distance between diagonal Gaussians:

    ``W₂² = ‖μ₁ - μ₂‖² + ‖σ₁ - σ₂‖²``,  σ = exp(½ log σ²) the standard deviations, not the variances

    Shapes: all four [B, ...] of one shape; the spread is given as log-variance, clamped to [-10, 10] (zero gradient
    outside) · result: a scalar ≥ 0. Sign: lower is nearer; symmetric. Reduction: sum over dimensions, mean over the
    batch. ``squared`` False takes the mean of W₂ instead, with the gradient 0 where the two are equal.

    Raises: BatchError where the shapes differ or are empty.
    Paper: Givens & Shortt 1984; between unimodal posteriors: Zhu et al. 2021. Pitfall: the root has an unbounded second
    derivative at 0 and pulls near pairs as hard as far ones: prefer the squared form.
    """
    m1, lv1, m2, lv2 = alike("wasserstein2", mean1, log_variance1, mean2, log_variance2)
    spread = (0.5 * bounded(lv1)).exp() - (0.5 * bounded(lv2)).exp()
    distance = ((m1 - m2).square() + spread.square()).reshape(len(m1), -1).sum(1)
    if not squared:
        # the derivative of sqrt at 0 is infinite: replace the argument, not only the value
        apart = distance > 0
        distance = torch.where(apart, torch.where(apart, distance, 1).sqrt(), 0)
    return distance.mean()


def sliced_wasserstein(
    a: Tensor,
    v: Tensor,
    *,
    directions: Tensor | None = None,
    n_directions: int | None = None,
    generator: torch.Generator | None = None,
    order: int = 2,
) -> Tensor:
    r"""Sliced Wasserstein distance between two clouds, to the power p = ``order``:

    ``SW_p^p = (1/K) Σ_k ∫₀¹ |F⁻¹_{A u_k}(q) - F⁻¹_{V u_k}(q)|^p dq``;
    of equal sizes ``(1/K) Σ_k mean_i |sort(A u_k)_i - sort(V u_k)_i|^p``

    Shapes: ``a`` [N, D], ``v`` [N', D], which need no pairing and no equal sizes: the quantile functions of the samples
    are steps, and their difference is integrated exactly. ``directions`` [K, D] are used as given (unit rows for the
    usual scale); or ``n_directions`` K of them are drawn on the unit sphere from ``generator``. Result: a scalar ≥ 0.
    Sign: lower is nearer. Reduction: mean over quantiles, then over directions. ``order`` 2 (squared distance) or 1.

    Raises: BatchError where shapes do not fit; ConfigError unless exactly one of ``directions``, ``n_directions`` is
    given, or for another order.
    Paper: Rabin et al. 2011; Bonneel et al. 2015. Pitfall: it aligns the two marginals, not the pairs; in D dimensions
    one direction sees about 1/D of a mean shift, so take K of the order of D.
    """
    if order not in (1, 2):
        raise ConfigError(f"order = {order} must be 1 or 2.")
    if (directions is None) == (n_directions is None):
        raise ConfigError("sliced_wasserstein needs either directions [K, D] or n_directions.")
    a, v = _clouds("sliced_wasserstein", a, v)
    if directions is None:
        directions = _sphere(n_directions or 0, a, generator)
    if directions.ndim != 2 or directions.shape[1] != a.shape[1] or len(directions) == 0:
        raise BatchError(f"directions must be [K, {a.shape[1]}] with K > 0, not {tuple(directions.shape)}.")
    with full_precision(a):
        turned = directions.to(a).T
        left, right = (a @ turned).sort(0).values, (v @ turned).sort(0).values
    n, m = len(a), len(v)
    if n == m:
        gap = (left - right).abs()
        return (gap if order == 1 else gap.square()).mean()
    # both step functions are constant between neighbors of this union, counted in units of 1/(nm) to stay exact
    steps = torch.cat([torch.arange(n, device=a.device) * m, torch.arange(m, device=a.device) * n]).unique()
    width = torch.diff(steps, append=steps.new_tensor([n * m])).to(a.dtype) / (n * m)
    gap = (left[steps // m] - right[steps // n]).abs()
    return (width.unsqueeze(1) * (gap if order == 1 else gap.square())).sum(0).mean()


def mmd(a: Tensor, v: Tensor, *, gamma: float | Sequence[float], unbiased: bool = False) -> Tensor:
    r"""Squared maximum mean discrepancy of two clouds, with k(x, y) = mean over γ of exp(-γ ‖x - y‖²):

    ``MMD² = mean_ij k(a_i, a_j) + mean_ij k(v_i, v_j) - 2 mean_ij k(a_i, v_j)``

    Shapes: ``a`` [N, D], ``v`` [N', D], no pairing, no equal sizes; ``gamma`` γ = 1/(2 bandwidth²), one or several ·
    result: a scalar ≥ 0 (to rounding); with ``unbiased`` i = j is left out of the first two means, and the value may be
    slightly negative. Sign: lower is nearer. Reduction: means over pairs. The kernel matrix exists one block of rows at
    a time, in the backward pass too; differentiable once.

    Raises: BatchError where shapes do not fit or an unbiased cloud has one row; ConfigError where a γ ≤ 0 or none.
    Paper: Gretton et al. 2012. Pitfall: with γ far above 1/‖x - y‖² every pair is at distance "infinite" and the
    gradient vanishes: spread several γ around 1/(median squared distance). It aligns marginals, not pairs.
    """
    gammas = [float(g) for g in gamma] if isinstance(gamma, Sequence) else [float(gamma)]
    if not gammas:
        raise ConfigError("mmd needs at least one gamma.")
    for g in gammas:
        above("gamma", g)
    a, v = _clouds("mmd", a, v)
    n, m = len(a), len(v)
    if unbiased and min(n, m) < 2:
        raise BatchError(f"the unbiased mmd needs two rows of each side, not {n} and {m}.")
    within = a.new_zeros(())
    for x in (a, v):
        apart = _kernel_sum(x, x, gammas, skip_own=True)  # k(x, x) = 1 is known: exact, and without a gradient
        within = within + (apart / (len(x) * (len(x) - 1)) if unbiased else (apart + len(x)) / len(x) ** 2)
    return within - 2 * _kernel_sum(a, v, gammas) / (n * m)


def _kernel_sum(a: Tensor, v: Tensor, gammas: list[float], *, skip_own: bool = False) -> Tensor:
    """Σ_ij k(a_i, v_j), with ``skip_own`` without i = j."""

    def kernel(squared: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        squared.clamp_(min=0)
        total, slope = squared.new_zeros(()), torch.zeros_like(squared)
        for g in gammas:
            values = torch.exp(squared * -g)
            if skip_own:
                values.diagonal(rows.start).zero_()
            total = total + values.sum()
            slope.sub_(values, alpha=g)
        return total / len(gammas), slope / len(gammas)

    return score_sum(*squared_factors(a, v), kernel)


def _sphere(count: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    if count < 1:
        raise ConfigError(f"n_directions = {count} must be at least 1.")
    device = like.device if generator is None else generator.device
    drawn = torch.randn(count, like.shape[1], generator=generator, device=device, dtype=like.dtype).to(like.device)
    return drawn / drawn.norm(dim=1, keepdim=True).clamp(min=math.sqrt(torch.finfo(like.dtype).tiny))


def _clouds(name: str, a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or v.ndim != 2 or a.shape[1] != v.shape[1] or a.numel() == 0 or v.numel() == 0:
        raise BatchError(f"{name} needs non-empty [N, D] and [N', D], not {tuple(a.shape)} and {tuple(v.shape)}.")
    a, v = raised(a, v)
    return a, v
