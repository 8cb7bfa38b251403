"""Correlation as a training loss: deep, cluster and generalized CCA, in float64 with their analytic gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives.covariances import inverse_root, view_of_column
from avcl.objectives.inputs import at_least, full_precision, labels, raised

Shrinkage = float | Literal["ledoit-wolf", "oracle-approximating"] | None

FLAT = 1e-8  # a correlation this small is rounding: the subgradient zero is taken there
MOST = 0.95  # an estimated shrinkage stays below: at 1 nothing of the correlation, and of its gradient, is left


def deep_cca(
    a: Tensor,
    v: Tensor,
    *,
    dim: int,
    ridge: float,
    norm: Literal["trace", "frobenius"] = "trace",
    shrinkage: Shrinkage = None,
) -> Tensor:
    r"""Deep CCA: minus the sum of the top canonical correlations of the batch.

    ``L = -Σ_{i≤dim} σ_i(T)``, ``T = Σ₁₁^{-½} Σ₁₂ Σ₂₂^{-½}``, ``Σ₁₁ = āᵀā/(B-1) + rI``, ``Σ₂₂ = v̄ᵀv̄/(B-1) + rI``,
    ``Σ₁₂ = āᵀv̄/(B-1)``; ``norm="frobenius"``: ``L = -(Σ_{i≤dim} σ_i²)^½``

    Shapes: ``a`` [B, D₁], ``v`` [B, D₂], row i of both from one clip; 1 ≤ ``dim`` ≤ min(D₁, D₂) · result: a scalar in
    [-dim, 0], float32 at least. Sign: lower is better. Reduction: none, the batch is one sample of the correlation.
    ``ridge`` r ≥ 0 is absolute, in units of the variance of the embeddings.

    ``shrinkage`` s in [0, 1) keeps the loss meaningful where the batch is not larger than the dimension: every Σ is
    multiplied by 1 - s, and s tr(Σ_mm)/D_m I is added to Σ_mm, so that σ ≤ 1 stays true and s → 1 leads to partial
    least squares. "ledoit-wolf" and "oracle-approximating" estimate s (up to .95) from both views side by side, each
    brought to a mean variance of one; the estimate is a constant of the step, no gradient flows through it.

    Everything is float64 inside. The gradient is the analytic one of the top-k sum, ``∂L/∂Σ₁₂ = -W₁W₂ᵀ``, ``∂L/∂Σ₁₁ =
    ½ W₁ diag(σ) W₁ᵀ`` with W = Σ^{-½}U_k: it has no 1/(λ_i - λ_j), so repeated eigenvalues, views of deficient rank
    and identical rows leave it finite. It can be taken once, not differentiated again.

    Raises: BatchError where shapes disagree, values are not finite or B ≤ max(D₁, D₂) without shrinkage (every
    correlation is then 1 whatever the embeddings are); ConfigError for a bad setting. Paper: Andrew et al. 2013; the
    estimates Ledoit & Wolf 2004, Chen et al. 2010. Pitfall: with B ≤ D₁ + D₂ some correlations are still trivially 1;
    take B ≥ 5 max(D). The Frobenius norm is not the sum of correlations, though some published code says so.
    """
    rows = _views("deep_cca", (a, v), dim, ridge, shrinkage)
    if norm not in ("trace", "frobenius"):
        raise ConfigError(f'norm = "{norm}" must be "trace" or "frobenius".')
    with full_precision(a):
        x, sizes = _centered(rows)
        covariance = _shrunk(x.T @ x / (len(x) - 1), x, sizes, shrinkage)
        return -_Correlation.apply(covariance, sizes, ridge, dim, norm).to(rows[0].dtype)


def cluster_cca(
    a: Tensor,
    v: Tensor,
    label: Tensor,
    *,
    dim: int,
    ridge: float,
    pair_weight: float | None = None,
    shrinkage: Shrinkage = None,
) -> Tensor:
    r"""Deep cluster-CCA: minus the sum of the top canonical correlations over all pairs (a_i, v_j) of one class.

    ``L = -Σ_{i≤dim} σ_i(T)`` as ``deep_cca``, with ``M = Σ_c n_c²``, ``Σ₁₁ = 1/M Σ_c n_c Σ_{i∈c} āāᵀ + rI``, ``Σ₁₂ =
    1/M Σ_c (Σ_{i∈c} ā_i)(Σ_{j∈c} v̄_j)ᵀ`` and means weighted by n_c; with ``pair_weight`` β: ordinary means, Σ₁₁ and
    Σ₂₂, and ``Σ₁₂ = β Σ₁₂_pair + (1-β) Σ₁₂_class``

    Shapes: ``a`` [B, D₁], ``v`` [B, D₂], ``label`` [B] integer; 1 ≤ ``dim`` ≤ min(D₁, D₂) · result: a scalar, float32
    at least. Sign: lower is better. Reduction: none. The M pairs are never listed: class sums do. ``ridge``,
    ``shrinkage`` (estimated from the B rows), float64 and the gradient as in ``deep_cca``.

    Raises: as ``deep_cca``; BatchError for labels that are not B integers, ConfigError for β outside [0, 1]. Paper:
    Rasiwasia et al. 2014 (β None); Zeng et al. 2018 (β = .2). Pitfall: between C classes at most C - 1 correlations
    are above zero, so a larger ``dim`` adds nothing unless β > 0; a batch of one class alone costs 0 and teaches
    nothing. With β the blocks belong to different samples, and σ is no longer bounded by 1.
    """
    rows = _views("cluster_cca", (a, v), dim, ridge, shrinkage)
    label = labels("cluster_cca", label, len(a))
    if pair_weight is not None and not 0 <= pair_weight <= 1:
        raise ConfigError(f"pair_weight = {pair_weight} must be from 0 to 1.")
    classes, of = torch.unique(label, return_inverse=True)
    count = torch.bincount(of, minlength=len(classes)).to(torch.float64)
    pairs = count.square().sum()
    with full_precision(a):
        weight = count[of] / pairs if pair_weight is None else count.new_full((len(a),), 1 / len(a))
        x, sizes = _centered(rows, weight)
        sums = x.new_zeros(len(classes), x.shape[1]).index_add(0, of, x)
        across = sums.T @ sums / pairs
        if pair_weight is None:
            own = (x * weight[:, None]).T @ x
        else:
            own = x.T @ x / (len(x) - 1)
            across = pair_weight * own + (1 - pair_weight) * across
        view = view_of_column(sizes, x.device)
        covariance = _shrunk(torch.where(view[:, None] == view, own, across), x, sizes, shrinkage)
        return -_Correlation.apply(covariance, sizes, ridge, dim, "trace").to(rows[0].dtype)


def deep_generalized_cca(views: Sequence[Tensor], *, dim: int, ridge: float, shrinkage: Shrinkage = None) -> Tensor:
    r"""Deep generalized CCA: what the best shared representation G of the batch leaves unexplained in M views.

    ``L = min_{G, U} Σ_m (‖G - X_m U_m‖² + r‖U_m‖²) = dim·M - Σ_{i≤dim} λ_i``, GᵀG = I, λ the top eigenvalues of ``Σ_m
    X_m (X_mᵀX_m + rI)^{-1} X_mᵀ``, X_m the centered view over √(B-1)

    Shapes: ``views`` M ≥ 2 tensors [B, D_m], row i of all from one clip; 1 ≤ ``dim`` ≤ min D_m · result: a scalar in
    [0, dim·M], float32 at least. Sign: lower is better. Reduction: none. Without ridge two views cost Σ (1 - ρ_i).
    ``ridge``, ``shrinkage``, float64 and the analytic gradient as in ``deep_cca``; G [B, dim] is never formed.

    Raises: as ``deep_cca``. Paper: Benton et al. 2017. Pitfall: G may follow one view alone at a price of dim·(M - 1):
    look at the correlation of every pair on held-out rows.
    """
    rows = _views("deep_generalized_cca", views, dim, ridge, shrinkage)
    with full_precision(rows[0]):
        x, sizes = _centered(rows)
        covariance = _shrunk(x.T @ x / (len(x) - 1), x, sizes, shrinkage)
        return (dim * len(rows) - _Explained.apply(covariance, sizes, ridge, dim)).to(rows[0].dtype)


def _views(name: str, views: Sequence[Tensor], dim: int, ridge: float, shrinkage: Shrinkage) -> tuple[Tensor, ...]:
    shapes = [tuple(view.shape) for view in views]
    if len(views) < 2 or any(len(s) != 2 or s[0] != shapes[0][0] or s[1] == 0 for s in shapes):
        raise BatchError(f"{name} needs views [B, D] with as many rows, not {' and '.join(map(str, shapes))}.")
    rows, widest, narrowest = shapes[0][0], max(s[1] for s in shapes), min(s[1] for s in shapes)
    if not 1 <= dim <= narrowest:
        raise ConfigError(f"dim = {dim} must be from 1 to {narrowest}, the width of the narrowest view.")
    at_least("ridge", ridge)
    known = shrinkage in ("ledoit-wolf", "oracle-approximating") if isinstance(shrinkage, str) else True
    if not known or (isinstance(shrinkage, int | float) and not 0 <= shrinkage < 1):
        wanted = 'in [0, 1), "ledoit-wolf" or "oracle-approximating"'
        raise ConfigError(f"shrinkage = {shrinkage!r} must be {wanted}.")
    if rows < 2:
        raise BatchError(f"{name} needs at least two rows, not {rows}.")
    if shrinkage is None and rows <= widest:
        raise BatchError(
            f"{name}: {rows} rows of width {widest} correlate perfectly whatever they hold.",
            hint=f"Raise the batch above {widest} (better {5 * widest}), lower the width of the embeddings, or set "
            'shrinkage="ledoit-wolf"; soft_cca has no such bound.',
        )
    return raised(*views)


def _centered(views: Sequence[Tensor], weight: Tensor | None = None) -> tuple[Tensor, tuple[int, ...]]:
    """The views side by side in float64 [B, D] minus their mean (under weights that sum to one), and their widths.

    The first row is taken off beforehand: identical rows are then zero and not rounding, which whitening would blow up.
    """
    x = torch.cat([view.to(torch.float64) for view in views], 1)
    x = x - x[:1].detach()
    return x - (x.mean(0) if weight is None else weight @ x), tuple(view.shape[1] for view in views)


def _shrunk(covariance: Tensor, x: Tensor, sizes: tuple[int, ...], shrinkage: Shrinkage) -> Tensor:
    if shrinkage is None:
        return covariance
    mean = torch.stack([part.mean() for part in covariance.diagonal().split(list(sizes))])
    mean = mean[view_of_column(sizes, x.device)]
    s = _intensity(x.detach(), sizes, shrinkage) if isinstance(shrinkage, str) else shrinkage
    return (1 - s) * covariance + torch.diag(s * mean)


def _intensity(x: Tensor, sizes: tuple[int, ...], estimate: str) -> Tensor:
    """How far the covariance of the centered rows [B, D] is from being known, in [0, .95]."""
    n, d = x.shape
    scale = torch.stack([part.square().mean() for part in x.split(list(sizes), 1)])
    x = x * torch.where(scale > 0, scale, 1).rsqrt()[view_of_column(sizes, x.device)]
    covariance = x.T @ x / n
    square, trace = covariance.square().sum(), covariance.trace()
    if estimate == "ledoit-wolf":
        spread = square - trace.square() / d
        noise = (x.square().sum(1).square().sum() / n - square) / n
    else:
        spread = (n + 1) * (square - trace.square() / d)
        noise = square + trace.square()
    return torch.where(spread > 0, noise / spread, 1).clamp(0, MOST)


class _Correlation(torch.autograd.Function):
    """Σ_{i≤dim} σ_i of R₁ᵀ S₁₂ R₂, or the root of the sum of squares, as a function of the joint covariance S."""

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, sizes: tuple[int, int], ridge: float, dim: int, norm: str) -> Tensor:
        first, second = _roots(covariance, sizes, ridge)
        k = min(dim, first.shape[1], second.shape[1])
        t = first.T @ covariance[: sizes[0], sizes[0] :] @ second
        left, sigma, right = torch.linalg.svd(t, full_matrices=False)
        sigma = sigma[:k]
        value = sigma.sum() if norm == "trace" else sigma.norm()
        slope = torch.where(sigma > FLAT, 1.0 if norm == "trace" else sigma / value.clamp(min=FLAT), 0)
        ctx.save_for_backward(covariance, first @ left[:, :k], second @ right[:k].T, sigma, slope)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        covariance, left, right, sigma, slope = ctx.saved_tensors
        own = torch.block_diag(*(-0.5 * (w * (slope * sigma)) @ w.T for w in (left, right)))
        own[: len(left), len(left) :] = (left * slope) @ right.T
        return _Once.apply(grad * own, covariance), None, None, None, None


class _Explained(torch.autograd.Function):
    """Σ_{i≤dim} λ_i of the pencil (S, blockdiag(S_mm) + ridge·I) as a function of S."""

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, sizes: tuple[int, ...], ridge: float, dim: int) -> Tensor:
        root = torch.block_diag(*_roots(covariance, sizes, ridge))
        values, vectors = torch.linalg.eigh(root.T @ covariance @ root)
        top = values.flip(0)[:dim].clamp(min=0)
        ctx.sizes = sizes
        ctx.save_for_backward(covariance, root @ vectors.flip(1)[:, :dim], top)
        return top.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        covariance, weights, top = ctx.saved_tensors
        own = torch.block_diag(*((w * top) @ w.T for w in weights.split(list(ctx.sizes), 0)))
        return _Once.apply(grad * (weights @ weights.T - own), covariance), None, None, None


class _Once(torch.autograd.Function):
    """A gradient that depends on ``covariance`` in a way that is not written down: differentiating it is an error.

    ``once_differentiable`` would pass it as a constant wherever the loss itself has a constant weight.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, covariance: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError("the gradient of a correlation loss can be taken once, not differentiated again.")


def _roots(covariance: Tensor, sizes: tuple[int, ...], ridge: float) -> list[Tensor]:
    if not bool(torch.isfinite(covariance).all()):
        raise BatchError("the covariance of the batch has non-finite values.")
    rows = covariance.split(list(sizes), 0)
    return [inverse_root(row.split(list(sizes), 1)[i], ridge) for i, row in enumerate(rows)]
