"""Sums over all pairs of a batch without the B × B matrix: the scores S = a vᵀ exist one block of rows at a time.

Three forms serve every pairwise objective; memory is O(B·D + block), the result that of the plain form to rounding:

``log_sums``    R_i = log Σ_j exp S_ij and C_j = log Σ_i exp S_ij. The backward pass computes S again, since the weight
                exp(S_ij - C_j) of a cell is known only once all rows were seen: four matrix products instead of the
                three of the plain form, and none of its passes through memory. One block alone is kept: three.
``score_sum``   Σ f(S_ij) where a block of rows knows its own derivative: the gradient is summed in the forward pass.
``agreement``   Σ W_ij S_ij for weights that are no function of S: two products, S itself never exists.

They are differentiable once. ``CELLS`` bounds the cells of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from avcl.objectives.inputs import full_precision

CELLS = 1 << 20
# Up to so many cells the matrix is of no account, and the dense form has fewer steps.
SMALL = 1 << 17
# Where |S| stays below this, exp S and its sums keep all their digits in float32 as they are: one exponential serves
# rows and columns, and no maximum is needed. Unit rows at τ ≥ 1/60 are within.
NARROW = 60.0

Edit = Callable[[Tensor, slice], None]
Kernel = Callable[[Tensor, slice], tuple[Tensor, ...]]


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices that cover ``rows``, each of about ``CELLS`` cells, but no thinner than 128 rows (unless CELLS is small).

    A thinner product would read all of v for too few rows.
    """
    step = max(1, CELLS // max(1, columns), min(128, CELLS // 4096))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def without_diagonal(scores: Tensor, rows: slice) -> None:
    """The edit of ``log_sums`` that leaves out the own pairs."""
    scores.diagonal(rows.start)[: len(scores)].fill_(-torch.inf)


def is_small(a: Tensor, v: Tensor) -> bool:
    """Whether the dense form of all pairs is the quicker one."""
    return len(a) * len(v) <= min(SMALL, CELLS)


def own_costs(a: Tensor, v: Tensor) -> Tensor:
    """[B] ``log Σ_j exp S_ij + log Σ_j exp S_ji - 2 S_ii``: the softmax costs of the own pair in both directions."""
    if is_small(a, v):
        scores = a @ v.T
        return -(scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal())
    row, column = log_sums(a, v)
    return row + column - 2 * (a * v).sum(1)


# ------------------------------------------------------------------------------------------------------------ log_sums
def log_sums(a: Tensor, v: Tensor, edit: Edit | None = None) -> tuple[Tensor, Tensor]:
    """R [B] and C [M] for ``a`` [B, D] and ``v`` [M, D]: the log of the sum of exp over each row and column of a vᵀ.

    ``edit(scores, rows)`` may set cells of a block to -inf in place: they are left out. Of an empty sum the log is
    -inf, with zero gradient.
    """
    return _LogSums.apply(a, v, edit)


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, v: Tensor, edit: Edit | None) -> tuple[Tensor, Tensor]:
        kept: tuple[Tensor, ...] = ()
        with full_precision(a):
            narrow = float(a.norm(dim=1).amax() * v.norm(dim=1).amax()) <= NARROW
            row, column = a.new_empty(len(a)), a.new_zeros(len(v)) if narrow else a.new_full((len(v),), -torch.inf)
            for rows in row_blocks(len(a), len(v)):
                scores = _scores(a, v, rows, edit)
                if narrow:
                    exps = scores.exp_()
                    row[rows] = exps.sum(1)
                    column += exps.sum(0)
                    kept = (exps,) if len(exps) == len(a) else ()
                else:
                    row[rows] = scores.logsumexp(1)
                    column = torch.logaddexp(column, scores.logsumexp(0))
            if narrow:
                row, column = row.log_(), column.log_()
        ctx.save_for_backward(a, v, row, column, *kept)
        ctx.edit, ctx.narrow = edit, narrow
        return row, column

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_row: Tensor, to_column: Tensor) -> tuple[Tensor | None, ...]:
        a, v, row, column, *kept = ctx.saved_tensors
        with full_precision(a):
            if ctx.edit is not None:  # +inf in place of -inf: no cell has a share in an empty sum
                row, column = (x.masked_fill(x == -torch.inf, torch.inf) for x in (row, column))
            if ctx.narrow:
                to_row, to_column = to_row * (-row).exp_(), to_column * (-column).exp_()
            if kept:
                share = (to_row[:, None] + to_column).mul_(kept[0])
                return share @ v, share.T @ a, None
            for_a, for_v = torch.empty_like(a), torch.zeros_like(v)
            for rows in row_blocks(len(a), len(v)):
                # share_ij = r_i exp(S_ij - R_i) + c_j exp(S_ij - C_j), of one exponential where the range allows it
                if ctx.narrow:
                    share = (to_row[rows, None] + to_column).mul_(_scores(a, v, rows, ctx.edit).exp_())
                else:
                    scores = _scores(a, v, rows, ctx.edit)
                    share = (scores - column).exp_().mul_(to_column)
                    share.addcmul_(scores.sub_(row[rows, None]).exp_(), to_row[rows, None])
                torch.mm(share, v, out=for_a[rows])
                for_v.addmm_(share.T, a[rows])
        return for_a, for_v, None


def _scores(a: Tensor, v: Tensor, rows: slice, edit: Edit | None) -> Tensor:
    scores = a[rows] @ v.T
    if edit is not None:
        edit(scores, rows)
    return scores


# ----------------------------------------------------------------------------------------------------------- score_sum
def score_sum(a: Tensor, v: Tensor, kernel: Kernel, extra: Tensor | None = None) -> Tensor:
    """Σ over blocks of rows of ``kernel(S[rows], rows)`` for ``a`` [B, D] and ``v`` [M, D]: a scalar.

    ``kernel`` returns (value, weight): the block's share of the sum (a scalar) and its derivative by each score [b,
    M]; it may overwrite the scores. With ``extra``, a tensor that the kernel also reads, the derivative by ``extra``
    (of its shape) is the third. It runs without autograd.
    """
    return _ScoreSum.apply(a, v, kernel, extra)


class _ScoreSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, v: Tensor, kernel: Kernel, extra: Tensor | None) -> Tensor:
        for_a, for_v, for_extra = (None, None, None)
        if any(ctx.needs_input_grad):
            for_a, for_v = torch.zeros_like(a), torch.zeros_like(v)
            for_extra = None if extra is None else torch.zeros_like(extra)
        total = a.new_zeros((), dtype=torch.float64)
        with full_precision(a):
            for rows in row_blocks(len(a), len(v)):
                value, weight, *rest = kernel(a[rows] @ v.T, rows)
                total += value
                if for_a is not None and for_v is not None:
                    for_a[rows] = weight @ v
                    for_v.addmm_(weight.T, a[rows])
                    if for_extra is not None:
                        for_extra += rest[0]
        _keep(ctx, for_a, for_v, for_extra)
        return total.to(a.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for_a, for_v, for_extra = _kept(ctx)
        return _times(for_a, gradient), _times(for_v, gradient), None, _times(for_extra, gradient)


# ----------------------------------------------------------------------------------------------------------- agreement
def agreement(a: Tensor, v: Tensor, weights: Callable[[slice], Tensor]) -> Tensor:
    """Σ_ij W_ij (a_i · v_j) for ``a`` [B, D], ``v`` [M, D] and ``weights(rows)`` [b, M], which get no gradient."""
    return _Agreement.apply(a, v, weights)


class _Agreement(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, v: Tensor, weights: Callable[[slice], Tensor]) -> Tensor:
        for_a, for_v = torch.empty_like(a), torch.zeros_like(v)
        with full_precision(a):
            for rows in row_blocks(len(a), len(v)):
                block = weights(rows).to(a.dtype)
                for_a[rows] = block @ v
                for_v.addmm_(block.T, a[rows])
        _keep(ctx, for_a, for_v)
        return (a * for_a).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for_a, for_v = _kept(ctx)
        return _times(for_a, gradient), _times(for_v, gradient), None


def _keep(ctx: Any, *gradients: Tensor | None) -> None:
    ctx.present = [g is not None for g in gradients]
    ctx.save_for_backward(*(g for g in gradients if g is not None))


def _kept(ctx: Any) -> list[Tensor | None]:
    saved = iter(ctx.saved_tensors)
    return [next(saved) if present else None for present in ctx.present]


def _times(x: Tensor | None, factor: Tensor) -> Tensor | None:
    return None if x is None else x * factor
