"""Losses over more than three items at once: lifted structure, and quadruplets."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from avcl.errors import BatchError, ConfigError
from avcl.objectives import blocked
from avcl.objectives.distances import settled, slope_of_root, squared_factors
from avcl.objectives.inputs import at_least, full_precision, labels, pairs, raised


def lifted_structured(z: Tensor, label: Tensor, *, margin: float) -> Tensor:
    r"""Lifted structured loss of one space; with D_ij = ‖z_i - z_j‖, P the pairs i < j of one label and N(i) the rows
    of another label than i:

    ``J_ij = log( Σ_{k∈N(i)} exp(margin - D_ik) + Σ_{l∈N(j)} exp(margin - D_jl) ) + D_ij``
    ``L = 1/(2|P|) Σ_{(i,j)∈P} max(0, J_ij)²``

    Shapes: ``z`` [B, D], ``label`` [B] integers; for two modalities stack their rows and labels · result: a scalar
    ≥ 0, float32 at least. Sign: lower is better. Reduction: half the mean over positive pairs. D is the plain
    Euclidean distance; equal rows pass no gradient to each other. Differentiable once.

    Cost: O(B² D) time, the distances computed twice; memory O(B·D + block).
    Raises: BatchError where shapes disagree, no two rows share a label, or all do; ConfigError for a margin below 0.
    Paper: Song et al. 2016. Pitfall: the term grows with log B, so the margin that just separates is not that of a
    triplet; sums of exp(-D) lose every digit unless their logarithm is taken as a whole.
    """
    if z.ndim != 2 or len(z) == 0:
        raise BatchError(f"lifted_structured needs [B, D] with B > 0, not {tuple(z.shape)}.")
    at_least("margin", margin)
    (z,) = raised(z)
    label = labels("lifted_structured", label, len(z)).to(z.device)
    sizes = label.unique(return_counts=True)[1]
    positives = int((sizes * (sizes - 1)).sum())  # ordered: each pair twice
    if len(sizes) < 2 or positives == 0:
        raise BatchError("lifted_structured needs two rows of one label and one of another.")
    left, right = squared_factors(z, z)

    def block(scores: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """The distances of a block of rows, and their logits as negatives."""
        root = settled(scores, left[rows], right).sqrt_()
        return root, (margin - root).masked_fill_(label[rows, None] == label, -torch.inf)

    near = left.new_empty(len(z))  # log Σ_{k∈N(i)} exp(margin - D_ik)
    with torch.no_grad(), full_precision(z):
        for rows in blocked.row_blocks(len(z), len(z)):
            near[rows] = block(left[rows] @ right.T, rows)[1].logsumexp(1)

    def kernel(scores: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        root, logits = block(scores, rows)
        positive = label[rows, None] == label
        positive.diagonal(rows.start).fill_(False)
        i, j = positive.nonzero(as_tuple=True)
        own, other = near[rows][i], near[j]
        cost = (torch.logaddexp(own, other) + root[i, j]).clamp_(min=0)
        # Both orders of a pair are met, so each counts half of 1/(2|P|) max(0, J)², and near_i moves both.
        pull = cost / positives
        push = torch.zeros_like(near[rows]).index_add_(0, i, 2 * pull * torch.sigmoid(own - other))
        slope = logits.sub_(near[rows, None]).exp_().mul_(-push[:, None])
        slope[i, j] = pull
        return cost.square().sum(dtype=torch.float64) / (2 * positives), slope_of_root(slope, root)

    return blocked.score_sum(left, right, kernel)


def lifted_pairs(a: Tensor, v: Tensor, negatives: Tensor, *, margin: float) -> Tensor:
    r"""Lifted structure with given negatives: a query, its match, and K candidates that do not match:

    ``J_i = log Σ_k ( exp(margin - ‖a_i - n_ik‖) + exp(margin - ‖v_i - n_ik‖) ) + ‖a_i - v_i‖``
    ``L = 1/(2B) Σ_i max(0, J_i)``

    Shapes: ``a``, ``v`` [B, D], ``negatives`` [B, K, D] with K > 0 · result: a scalar ≥ 0, float32 at least. Sign:
    lower is better. Reduction: half the mean over pairs, not squared. Equal rows pass no gradient to each other.
    Raises: BatchError where shapes disagree; ConfigError for a margin below 0.
    Paper: Zheng et al. 2021 (AML), after Song et al. 2016. Pitfall: one direction only: a is the query; call it again
    with the roles and the negatives of the other modality.
    """
    a, v = pairs("lifted_pairs", a, v)
    at_least("margin", margin)
    if negatives.ndim != 3 or len(negatives) != len(a) or negatives.shape[2] != a.shape[1] or not negatives.shape[1]:
        raise BatchError(f"negatives must be [{len(a)}, K, {a.shape[1]}] with K > 0, not {tuple(negatives.shape)}.")
    a, v, negatives = raised(a, v, negatives)
    far = torch.cat([_length(a[:, None] - negatives), _length(v[:, None] - negatives)], 1)  # [B, 2K]
    return 0.5 * ((margin - far).logsumexp(1) + _length(a - v)).clamp(min=0).mean()


def _length(x: Tensor) -> Tensor:
    """Euclidean norm over the last dimension with gradient 0 at 0."""
    square = x.square().sum(-1)
    return torch.where(square > 0, square, 1).sqrt() * (square > 0)


def quadruplet(
    z: Tensor,
    label: Tensor,
    *,
    margins: tuple[float, float] = (1.0, 0.5),
    clip: Literal["two", "one"] = "two",
    squared: bool = False,
) -> Tensor:
    r"""Quadruplet loss of one space over all (a, p, n, m) with y_a = y_p, a ≠ p, and y_a, y_n, y_m all different:

    ``two: L = 1/|Q| Σ_Q max(0, D_ap - D_an + α₁) + max(0, D_ap - D_nm + α₂)``
    ``one: L = 1/|Q⁺| Σ_Q max(0, 2 D_ap - D_an - D_nm + α₁ + α₂)``, Q⁺ the quadruplets whose term is above 0

    Shapes: ``z`` [B, D], ``label`` [B] integers; ``margins`` (α₁, α₂); D = ‖z_i - z_j‖, or its square with
    ``squared`` · result: a scalar ≥ 0, float32 at least. Sign: lower is better. Reduction: the mean over all
    quadruplets of Q (two clips) or over the active ones (one clip). Equal rows pass no gradient to each other where D
    is not squared. Differentiable once.

    Cost: the O(B⁴) quadruplets are counted, not listed: with C classes O(B³/C log B) time for one clip, O(B³/C + C B²
    log B) for two; memory O(B² + block).
    Raises: BatchError where shapes disagree or there is no quadruplet (it takes three labels, one of them twice);
    ConfigError for a margin below 0 or an unknown clip.
    Paper: two clips Chen et al. 2017 (squared); one clip He et al. 2019. Pitfall: the margins are in units of D: the
    same numbers for plain and squared distances are two different losses.
    """
    if z.ndim != 2 or len(z) == 0:
        raise BatchError(f"quadruplet needs [B, D] with B > 0, not {tuple(z.shape)}.")
    for margin in margins:
        at_least("margin", margin)
    if clip not in ("two", "one"):
        raise ConfigError(f'clip = "{clip}" must be two or one.')
    (z,) = raised(z)
    label = labels("quadruplet", label, len(z)).to(z.device)
    with full_precision(z):
        left, right = squared_factors(z, z)
        distance = (left @ right.T).clamp(min=0)
    if not squared:
        known = settled(distance.detach().clone(), left.detach(), right.detach()) > 0
        distance = torch.where(known, distance, 1).sqrt() * known
    return _Quadruplets.apply(distance, label, margins, clip)


class _Quadruplets(torch.autograd.Function):
    """The loss from the matrix of distances; its derivative is summed class by class on the way."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor, label: Tensor, margins: tuple[float, float], clip: str) -> Tensor:
        d = distance.to(torch.float64)  # differences of large sums: in float32 they would cost digits
        slope, total = torch.zeros_like(d), d.new_zeros(())
        count = active = 0
        for value in label.unique():
            inside, outside = (label == value).nonzero()[:, 0], (label != value).nonzero()[:, 0]
            differ = label[outside, None] != label[outside]
            here = len(inside) * (len(inside) - 1) * int(differ.sum())
            count += here
            if here == 0:
                continue
            far = d[outside[:, None], outside].masked_fill(~differ, torch.inf)  # D_nm; equal labels are out of reach
            step = max(1, blocked.CELLS // (len(inside) * len(outside)))
            for anchors in inside.split(step):
                near = d[anchors[:, None], inside]  # [n, |inside|]
                proper = anchors[:, None] != inside
                reach = d[anchors[:, None], outside]  # D_an
                if clip == "one":
                    bar = (2 * near + sum(margins))[:, :, None] - reach[:, None]
                    bars = bar.masked_fill(~proper[:, :, None], -torch.inf).flatten(0, 1).T  # [|outside|, n |inside|]
                    gap, above, below = _hinges(bars, far)
                    hits = above.T.unflatten(0, near.shape)  # [n, |inside|, |outside|]
                    active += int(above.sum())
                    slope[anchors[:, None], inside] += 2 * hits.sum(2)
                    slope[anchors[:, None], outside] -= hits.sum(1)
                else:
                    first = (near + margins[0])[:, :, None] - reach[:, None]
                    first = first.clamp_(min=0) * proper[:, :, None] * differ.sum(1)  # once for every m
                    hits = (first > 0) * differ.sum(1)
                    bars = (near + margins[1]).masked_fill(~proper, -torch.inf).view(1, -1)
                    gap, above, below = _hinges(bars, far.view(1, -1))
                    gap, below = gap + first.sum(), below.view_as(far)
                    slope[anchors[:, None], inside] += hits.sum(2) + above.view_as(near)
                    slope[anchors[:, None], outside] -= hits.sum(1)
                slope[outside[:, None], outside] -= below
                total += gap
        if count == 0:
            raise BatchError("quadruplet needs three labels in the batch, one of them on two rows.")
        terms = max(active, 1) if clip == "one" else count
        ctx.save_for_backward((slope / terms).to(distance.dtype))
        return (total / terms).to(distance.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient * ctx.saved_tensors[0], None, None, None


def _hinges(bars: Tensor, rivals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_rpq max(0, bars_rp - rivals_rq) of [R, P] and [R, Q], and how often each bar and each rival takes part."""
    rising, order = rivals.sort(1)
    below = torch.searchsorted(rising, bars.contiguous())  # rivals below each bar
    ends = torch.zeros(len(rivals), rivals.shape[1] + 1, dtype=torch.int64, device=rivals.device)
    ends.scatter_add_(1, below, torch.ones_like(below))
    above = bars.shape[1] - ends.cumsum(1)[:, :-1]  # bars above each rival
    value = torch.where(below > 0, below * bars, 0).sum() - torch.where(above > 0, above * rising, 0).sum()
    return value, below, torch.zeros_like(above).scatter_(1, order, above)
