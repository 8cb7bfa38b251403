"""Margin objectives: a match must be more similar than every mismatch, by a margin.

All are written with S = a vᵀ, the similarities of every row of ``a`` with every row of ``v`` as given (normalize the
rows first for the cosine). None of them holds the B × B matrix (see ``blocked``), unless the caller's ``mask`` is one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from avcl.errors import BatchError, ConfigError
from avcl.objectives.blocked import Edit, is_small, log_sums, row_blocks, score_sum, without_diagonal
from avcl.objectives.inputs import above, finite, full_precision, pairs


def hinge(a: Tensor, v: Tensor, *, margin: float, negatives: Literal["sum", "hardest"] = "sum") -> Tensor:
    r"""Fixed-margin hinge ranking loss, sum of the two directions; with S = a vᵀ:

    ``L = 1/B Σ_i Σ_{j≠i} [ max(0, S_ij - S_ii + α) + max(0, S_ji - S_ii + α) ]``

    ``negatives`` "hardest": the largest S_ij and the largest S_ji alone instead of the sums over j.

    Shapes: ``a``, ``v`` [B, D], row i of both from one clip; ``margin`` α, .2 for cosines · result: a scalar ≥ 0,
    float32 at least, 0 for B = 1. Sign: lower is better. Reduction: sum (or maximum) over negatives, mean over anchors,
    summed over directions. Memory: O(B·D).

    Raises: BatchError where shapes disagree; ConfigError for an unknown option or a margin that is not finite.
    Paper: Harwath et al. 2016, Merkx et al. 2019 (the survey's eq. 1 prints one term twice, with the matched similarity
    missing); hardest: Faghri et al. 2018. Pitfall: no gradient once every margin holds; hardest from scratch may
    collapse, so start with the sum.
    """
    a, v = pairs("hinge", a, v)
    finite("margin", margin)
    if negatives not in ("sum", "hardest"):
        raise ConfigError(f'negatives = "{negatives}" must be "sum" or "hardest".')
    with full_precision(a):
        if negatives == "hardest":
            own = (a * v).sum(1)
            if len(a) == 1:
                return 0.0 * own.sum()
            column, row = _hardest(a.detach(), v.detach())
            return (
                ((a * v[column]).sum(1) - own + margin).clamp(min=0) + ((a[row] * v).sum(1) - own + margin).clamp(min=0)
            ).mean()
        if is_small(a, v):
            scores = a @ v.T
            bar = scores.diagonal() - margin
            over = (scores - bar[:, None]).clamp(min=0) + (scores - bar).clamp(min=0)
            return over.fill_diagonal_(0).sum() / len(a)
        own = (a * v).sum(1)
        matched = own.detach() - margin

        def kernel(scores: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
            over_row = (scores - matched[rows, None]).clamp_(min=0)
            over_column = scores.sub_(matched).clamp_(min=0)
            value = scores.new_zeros((), dtype=torch.float64)
            for over in (over_row, over_column):
                over.diagonal(rows.start)[: len(over)].zero_()
                value = value + over.sum(1).sum(dtype=torch.float64)
            in_row, in_column = over_row.sign_(), over_column.sign_()  # 1 where the hinge is open
            to_own = -in_column.sum(0)
            to_own[rows] -= in_row.sum(1)
            return value, in_row.add_(in_column), to_own

        return score_sum(a, v, kernel, own) / len(a)


def masked_margin_softmax(
    a: Tensor, v: Tensor, *, margin: float, mask: Tensor | None = None, scale: float | Tensor = 1.0
) -> Tensor:
    r"""Masked margin softmax (MMS), sum of the two directions; with S = a vᵀ, margin δ and scale s:

    ``L_av = -1/B Σ_i log [ e^{s(S_ii - δ)} / ( e^{s(S_ii - δ)} + Σ_{j≠i} M_ij e^{s S_ij} ) ]``, ``L = L_av(S, M) +
    L_av(Sᵀ, Mᵀ)``

    Shapes: ``a``, ``v`` [B, D]; ``mask`` M [B, B] bool, True where v_j is a negative of a_i (and a_i one of v_j), False
    where they are known to match (two captions of one picture); the diagonal is never a negative; default: all others
    · ``scale`` s > 0 may be learnable · result: a scalar ≥ 0, float32 at least. Sign: lower is better. Reduction: mean
    over anchors, summed over directions. Memory: O(B·D) beside the caller's ``mask``.

    Raises: BatchError where shapes disagree; ConfigError for s ≤ 0 or a margin that is not finite.
    Paper: Ilharco et al. 2019; AVLnet (Rouditchenko et al. 2021) keeps δ = .001, else ``schedules.Exponential``. The
    survey's eq. 2 confuses two indices. Pitfall: the papers use the plain dot product; with cosines and s = 1 the loss
    stays near 2 log B, so give s = 1/τ.
    """
    a, v = pairs("masked_margin_softmax", a, v)
    above("scale", scale)
    finite("margin", margin)
    edit: Edit = without_diagonal
    if mask is not None:
        if mask.shape != (len(a), len(a)) or mask.dtype != torch.bool:
            raise BatchError(f"mask must be bool [{len(a)}, {len(a)}], not {mask.dtype} {tuple(mask.shape)}.")
        edit = _masked(mask)
    with full_precision(a):
        a = _scaled(a, scale)
        if is_small(a, v):
            scores = a @ v.T
            if mask is not None:
                scores = scores.masked_fill(~(mask | _diagonal(scores)), -torch.inf)
            scores.diagonal().sub_(margin * scale)
            return _both_ways(scores, scores)
        own = (a * v).sum(1) - margin * scale
        return 2 * softplus(torch.stack(log_sums(a, v, edit)) - own).mean()


def adaptive_mean_margin(a: Tensor, v: Tensor, *, alpha: float, scale: float | Tensor = 1.0) -> Tensor:
    r"""Margin softmax whose margin follows the batch, sum of the two directions; with S = a vᵀ and scale s:

    ``δ_i = α ( S_ii - 1/(B-1) Σ_{j≠i} S_ij )``, ``L_av = -1/B Σ_i log [ e^{s(S_ii - δ_i)} / ( e^{s(S_ii - δ_i)} +
    Σ_{j≠i} e^{s S_ij} ) ]``, ``L = L_av(S) + L_av(Sᵀ)``

    The margin of a direction is computed from its own rows and is part of the graph: the pull on S_ii is 1 - α.

    Shapes: ``a``, ``v`` [B, D]; ``alpha`` α in [0, 1], .5 in the paper; ``scale`` s > 0 · result: a scalar ≥ 0, float32
    at least, 0 for B = 1. Sign: lower is better. Reduction: mean over anchors, summed over directions. Memory: O(B·D).

    Raises: BatchError where shapes disagree; ConfigError for s ≤ 0 or an α outside [0, 1].
    Paper: Monfort et al. 2021. Pitfall: early in training the margin may be negative, which eases the task; at α = 1
    nothing pulls a pair together any more.
    """
    a, v = pairs("adaptive_mean_margin", a, v)
    above("scale", scale)
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha = {alpha} must be from 0 to 1.")
    with full_precision(a):
        own = (a * v).sum(1)
        others = max(1, len(a) - 1)
        row_margin = alpha * (own - (a @ v.sum(0) - own) / others)
        column_margin = alpha * (own - (v @ a.sum(0) - own) / others)
        if is_small(a, v):
            scores = _scaled(a, scale) @ v.T
            return _both_ways(scores - torch.diag(scale * row_margin), scores - torch.diag(scale * column_margin))
        others_sum = torch.stack(log_sums(_scaled(a, scale), v, without_diagonal))
        return 2 * softplus(others_sum - scale * (own - torch.stack([row_margin, column_margin]))).mean()


def _both_ways(rows: Tensor, columns: Tensor) -> Tensor:
    """Softmax costs of the diagonal, along the rows of one matrix and the columns of the other."""
    return -(rows.log_softmax(1).diagonal() + columns.log_softmax(0).diagonal()).mean()


def _diagonal(scores: Tensor) -> Tensor:
    return torch.eye(len(scores), dtype=torch.bool, device=scores.device)


def _scaled(a: Tensor, scale: float | Tensor) -> Tensor:
    return a if not isinstance(scale, Tensor) and scale == 1 else a * scale


def _masked(mask: Tensor) -> Edit:
    def edit(scores: Tensor, rows: slice) -> None:
        scores.masked_fill_(~mask[rows], -torch.inf)
        without_diagonal(scores, rows)

    return edit


def _hardest(a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """For each row its best wrong column, and for each column its best wrong row."""
    column = torch.empty(len(a), dtype=torch.long, device=a.device)
    row, best = torch.zeros_like(column), a.new_full((len(v),), -torch.inf)
    for rows in row_blocks(len(a), len(v)):
        scores = a[rows] @ v.T
        without_diagonal(scores, rows)
        column[rows] = scores.argmax(1)
        value, at = scores.max(0)
        better = value > best
        row, best = torch.where(better, at + rows.start, row), torch.where(better, value, best)
    return column, row
