"""The triplet loss over every triplet of a batch, or over the mined ones, without the triplets and without B × B."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives.blocked import score_sum
from avcl.objectives.distances import squared_factors
from avcl.objectives.inputs import at_least, labels, pairs

Mining = Literal["all", "hard", "semi-hard"]


def triplet(
    a: Tensor,
    v: Tensor,
    *,
    margin: float,
    label: Tensor | None = None,
    mining: Mining = "all",
    own_pair: bool = True,
    reduction: Literal["valid", "active"] = "valid",
    weights: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    r"""Triplet loss across modalities, the sum of both directions; with d_ij = ‖a_i - v_j‖², P(i) the positives and
    N(i) the negatives of anchor i:

    ``all:       L_av = 1/Σ_i|P(i)||N(i)| Σ_i Σ_{p∈P(i)} Σ_{n∈N(i)} max(0, d_ip - d_in + margin)``
    ``hard:      L_av = 1/|I| Σ_{i∈I} max(0, max_{p∈P(i)} d_ip - min_{n∈N(i)} d_in + margin)``
    ``semi-hard: L_av = 1/Σ_i|P(i)| Σ_i Σ_{p∈P(i)} max(0, d_ip - d_in* + margin)``, n* the nearest negative with
    d_in > d_ip, the farthest negative where there is none
    ``L = w₁ L_av(d) + w₂ L_va(dᵀ)``

    Without ``label`` P(i) is the own partner and N(i) every other row; with it P(i) are the rows of the other modality
    with the same label (the own partner among them unless ``own_pair`` is False) and N(i) those with another one. I
    holds the anchors with a positive and a negative; the others are skipped.

    Shapes: ``a``, ``v`` [B, D], row i of both from one clip; ``label`` [B] integers · result: a scalar ≥ 0, float32 at
    least (half precision is raised to it). Sign: lower is better. Reduction: ``valid`` as above; ``active`` divides
    the sum of each direction by the number of its terms above 0 instead, so that the gradient does not vanish while
    most triplets become easy. ``weights`` (w₁, w₂): 1 and 0 for audio anchors alone. The choice of hard and semi-hard
    negatives passes no gradient; a term at exactly 0 has none either. Differentiable once.

    Cost: ``all`` with labels sorts each row, O(B² (D + log B)) time, everything else O(B² D); memory O(B·D + block).
    Raises: BatchError where shapes disagree or no anchor has both a positive and a negative; ConfigError for a margin
    or weight below 0, ``own_pair=False`` without labels, or an unknown word.
    Paper: Weinberger and Saul 2009; semi-hard and FaceNet's form Schroff et al. 2015; batch-hard Hermans et al. 2017;
    class-supervised across modalities Zeng et al. 2020. Pitfall: for unit rows d = 2 - 2 cos, so a margin ζ is ζ/2 in
    cosine; hard mining with a large margin collapses all rows to one point, where the loss sticks at the margin.
    """
    a, v = pairs("triplet", a, v)
    at_least("margin", margin)
    if mining not in _KERNELS:
        raise ConfigError(f'mining = "{mining}" must be one of {", ".join(_KERNELS)}.')
    if reduction not in ("valid", "active"):
        raise ConfigError(f'reduction = "{reduction}" must be valid or active.')
    if len(weights) != 2 or not min(weights) >= 0:
        raise ConfigError(f"weights = {tuple(weights)} must be two numbers of at least 0.")
    if label is None and not own_pair:
        raise ConfigError("own_pair = False leaves no positive without labels.")
    matches = _Matches(None if label is None else labels("triplet", label, len(a)), len(a), own_pair, a.device)
    count = matches.terms(mining)
    if count == 0:
        raise BatchError(f"triplet needs an anchor with a positive and a negative; the batch of {len(a)} has none.")
    left, right = squared_factors(a, v)
    total = a.new_zeros(())
    for weight, anchors, others in ((weights[0], left, right), (weights[1], right, left)):
        if weight:
            total = total + weight * _direction(anchors, others, matches, margin, mining, count, reduction)
    return total


def _direction(
    anchors: Tensor, others: Tensor, matches: _Matches, margin: float, mining: str, count: int, reduction: str
) -> Tensor:
    kernel = _all_own if mining == "all" and matches.label is None else _KERNELS[mining]
    active = anchors.new_zeros((), dtype=torch.int64)

    def block(scores: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        value, weight, hits = kernel(scores.clamp_(min=0), rows, matches, margin)
        active.add_(hits)
        return value, weight

    total = score_sum(anchors, others, block)
    return total / (count if reduction == "valid" else active.clamp(min=1))


class _Matches:
    """Which columns are positives and which negatives of a row; ``label`` None: all labels differ."""

    def __init__(self, label: Tensor | None, size: int, own_pair: bool, device: torch.device):
        if label is None:
            same = torch.ones(size, dtype=torch.int64, device=device)
        else:
            label = label.to(device)
            _, inverse, sizes = label.unique(return_inverse=True, return_counts=True)
            same = sizes[inverse]
            label = None if own_pair and len(sizes) == size else label
        self.label, self.own_pair = label, own_pair
        self.positives, self.negatives = same - int(not own_pair), size - same  # how many of each an anchor has

    def terms(self, mining: str) -> int:
        """How many terms the loss of one direction has."""
        if mining == "all":
            return int((self.positives * self.negatives).sum())
        usable = (self.positives > 0) & (self.negatives > 0)
        return int(usable.sum() if mining == "hard" else self.positives[usable].sum())

    def masks(self, scores: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """``positive``, ``negative`` [b, M] bool of a block of rows."""
        if self.label is None:
            positive = torch.zeros_like(scores, dtype=torch.bool)
            positive.diagonal(rows.start).fill_(True)
            return positive, ~positive
        positive = self.label[rows, None] == self.label
        negative = ~positive
        if not self.own_pair:
            positive.diagonal(rows.start).fill_(False)
        return positive, negative


# A kernel takes a block of squared distances, which it may overwrite, and returns the sum of its terms, the derivative
# by each distance, and how many terms are above 0.
_Kernel = Callable[[Tensor, slice, _Matches, float], tuple[Tensor, Tensor, Tensor]]


def _all_own(scores: Tensor, rows: slice, matches: _Matches, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    bar = scores.diagonal(rows.start) + margin
    gap = scores.neg_().add_(bar[:, None]).clamp_(min=0)
    gap.diagonal(rows.start).zero_()
    value = gap.sum(1).sum(dtype=torch.float64)
    weight = gap.sign_()
    hits = weight.sum(1)
    weight.neg_().diagonal(rows.start).copy_(hits)
    return value, weight, hits.sum(dtype=torch.float64).to(torch.int64)


def _all(scores: Tensor, rows: slice, matches: _Matches, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """By one sort of each row, the positives moved up by the margin: then every triplet whose negative stands before
    its positive is active, and two running counts tell each cell in how many of them it takes part."""
    positive, _ = matches.masks(scores, rows)
    scores.add_(positive, alpha=margin)
    if not matches.own_pair:  # the own partner, neither of both, goes to the end, where nothing counts it
        scores.diagonal(rows.start).fill_(torch.inf)
    order = _rising(scores, first=positive)
    is_positive = positive.gather(1, order)
    seen = is_positive.cumsum(1, dtype=scores.dtype)  # positives up to this place
    before = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype, device=scores.device) - seen  # negatives
    hits = (before * is_positive).sum(1).sum(dtype=torch.float64).to(torch.int64)
    shares = torch.where(is_positive, before, seen.sub_(seen[:, -1:].clone()))
    weight = before.scatter_(1, order, shares)
    # Σ (d⁺ + margin - d⁻) over the active triplets. The weights of a row sum to 0, so its least cell may be taken away,
    # which keeps the digits.
    terms = scores.sub_(scores.amin(1, keepdim=True))
    if not matches.own_pair:
        terms.diagonal(rows.start).zero_()
    terms.mul_(weight)
    return terms.sum(1).sum(dtype=torch.float64), weight, hits


def _hard(scores: Tensor, rows: slice, matches: _Matches, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    positive, negative = matches.masks(scores, rows)
    farthest, near = scores.masked_fill(~positive, -torch.inf).max(1)
    nearest, far = scores.masked_fill(~negative, torch.inf).min(1)
    gap = (farthest - nearest + margin).clamp_(min=0)  # -inf, so 0, for an anchor without one or the other
    hits = (gap > 0).to(scores.dtype)[:, None]
    weight = scores.zero_().scatter_add_(1, near[:, None], hits).scatter_add_(1, far[:, None], -hits)
    return gap.sum(dtype=torch.float64), weight, hits.sum(dtype=torch.float64).to(torch.int64)


def _semi_hard(scores: Tensor, rows: slice, matches: _Matches, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    if matches.label is None:
        row = torch.arange(len(scores), device=scores.device)
        near, near_at = scores.diagonal(rows.start).clone(), row + rows.start
        scores.diagonal(rows.start).fill_(-torch.inf)
        above, above_at = scores.masked_fill(scores <= near[:, None], torch.inf).min(1)
        last, last_at = scores.max(1)
        far, far_at = torch.where(above < torch.inf, above, last), torch.where(above < torch.inf, above_at, last_at)
    else:
        row, near_at, far_at = _semi_hard_pairs(scores, rows, matches)
        near, far = scores[row, near_at], scores[row, far_at]
    gap = (near - far + margin).clamp_(min=0)
    hits = (gap > 0).to(scores.dtype)
    weight, start = scores.zero_(), row * scores.shape[1]
    weight.view(-1).scatter_add_(0, start + near_at, hits).scatter_add_(0, start + far_at, -hits)
    return gap.sum(dtype=torch.float64), weight, hits.sum(dtype=torch.float64).to(torch.int64)


def _semi_hard_pairs(scores: Tensor, rows: slice, matches: _Matches) -> tuple[Tensor, Tensor, Tensor]:
    """Row, positive and chosen negative of every pair of the block, by one sort of each row: the negatives that stand
    before a positive number the first one behind it."""
    positive, negative = matches.masks(scores, rows)
    columns = scores.shape[1]
    order = _rising(scores, first=negative)  # an equal negative is not above its positive: it stands before
    is_negative = negative.gather(1, order)
    before = is_negative.cumsum(1)
    count = before[:, -1]
    negatives = order.new_zeros(len(order), columns + 1)  # the negatives in rising order; what is none goes last
    negatives.scatter_(1, (before - 1).masked_fill_(~is_negative, columns), order)
    row, place = (positive.gather(1, order) & (count > 0)[:, None]).nonzero(as_tuple=True)
    chosen = negatives[row, torch.minimum(before[row, place], count[row] - 1)]
    return row, order[row, place], chosen


def _rising(scores: Tensor, first: Tensor) -> Tensor:
    """Columns [b, M] of each row of ``scores`` ≥ 0 in rising order, among equals those marked ``first`` before."""
    if scores.dtype != torch.float32:
        marked = (~first).to(torch.uint8).argsort(dim=1, stable=True)
        return marked.gather(1, scores.gather(1, marked).argsort(dim=1, stable=True))
    # The bits of a float32 ≥ 0 rise with it: value, mark and column in one integer need no separate index, and the
    # vectorized sort of NumPy takes a tenth of the time of torch on a CPU.
    column = torch.arange(scores.shape[1], device=scores.device)
    keys = scores.view(torch.int32).to(torch.int64).bitwise_left_shift_(32)
    keys.bitwise_or_(torch.where(first, column, column | 1 << 31))
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)
    else:
        keys = keys.sort(1).values
    return keys.bitwise_and_((1 << 31) - 1)


_KERNELS: dict[str, _Kernel] = {"all": _all, "hard": _hard, "semi-hard": _semi_hard}
