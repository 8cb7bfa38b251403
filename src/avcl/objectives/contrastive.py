"""Contrastive objectives: pull what belongs together near, push the rest of the batch away.

All are written with S = a vᵀ / τ, the scores of every row of ``a`` with every row of ``v``; normalize the rows first
for the cosine. None of them holds the B × B matrix (see ``blocked``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives.blocked import Edit, agreement, log_sums, own_costs, without_diagonal
from avcl.objectives.inputs import above, at_least, full_precision, labels, pairs, raised


# ------------------------------------------------------------------------------------------------------------ softmax
def info_nce(
    a: Tensor,
    v: Tensor,
    *,
    temperature: float | Tensor,
    positives: Tensor | None = None,
    two_sided: bool = False,
) -> Tensor:
    r"""InfoNCE, mean of the two directions; with S = a vᵀ / τ and P(i) the positives of row i:

    ``L_av = -1/|I| Σ_{i∈I} 1/|P(i)| Σ_{p∈P(i)} [ S_ip - log Σ_j exp S_ij ]``, ``L = ½ (L_av(S) + L_av(Sᵀ))``

    The positive stands in the denominator, so an uninformed batch costs log B. I holds the anchors that have a
    positive; the others only serve as negatives. ``two_sided``: one denominator for both directions, ``Σ_j exp S_ij +
    Σ_j exp S_ji``, as in the code of MMV, VATT and Global-Local; the positive stands in it twice, so that a perfectly
    separated batch costs log 2.

    Shapes: ``a``, ``v`` [B, D], row i of both from one clip; ``positives`` [B, B] bool, True where column j is a
    match of row i (default: the diagonal) · result: a scalar ≥ 0, float32 at least (half precision is raised to it).
    Sign: lower is better. Reduction: mean over positives, then over anchors, then over directions. The similarity is
    the dot product of the rows as given: normalize them first for the cosine. ``temperature`` τ > 0 may be a
    learnable scalar tensor. Memory: O(B·D); ``positives`` is the caller's matrix.

    Raises: BatchError where shapes disagree, the batch is empty or no row has a positive; ConfigError where τ ≤ 0.
    Paper: van den Oord et al. 2018; symmetric form Radford et al. 2021; several positives as L_out of Khosla et al.
    2020. Pitfall: unmarked matches in the batch (two clips of one class) are pushed apart as negatives; bound a
    learnable τ from below (1/τ ≤ 100), or it runs away.
    """
    a, v = pairs("info_nce", a, v)
    above("temperature", temperature)
    with full_precision(a):
        a = a / temperature
        if positives is None and not two_sided:
            return 0.5 * own_costs(a, v).mean()
        row, column = log_sums(a, v)
        if two_sided:
            row = column = torch.logaddexp(row, column)
        if positives is None:
            return 0.5 * (row + column - 2 * (a * v).sum(1)).mean()
        positives = _marked(positives, len(a), len(v))
        return 0.5 * (_toward_marked(a, v, row, positives) + _toward_marked(v, a, column, positives.T))


def soft_info_nce(a: Tensor, v: Tensor, *, target: Tensor, temperature: float | Tensor) -> Tensor:
    r"""InfoNCE toward soft targets T, mean of the two directions; with S = a vᵀ / τ:

    ``L_av = -1/|I| Σ_{i∈I} Σ_j t_ij [ S_ij - log Σ_k exp S_ik ]``, ``t_ij = T_ij / Σ_k T_ik``, ``L = ½ (L_av(S, T) +
    L_av(Sᵀ, Tᵀ))``

    I holds the rows (columns) of T that do not sum to 0. T = identity is ``info_nce``.

    Shapes: ``a``, ``v`` [B, D]; ``target`` [B, B] ≥ 0, without gradient (label overlap, a teacher's similarities) ·
    result: a scalar, float32 at least, bounded below by the mean entropy of the targets. Sign: lower is better.
    Reduction: mean over anchors, then over directions. Memory: O(B·D) beside the caller's ``target``.

    Raises: BatchError where shapes disagree, a target is negative or not finite, or all are 0; ConfigError for τ ≤ 0.
    Paper: Hinton et al. 2015 (soft targets); between modalities Andonian et al. 2022. Pitfall: with soft targets the
    loss does not go to 0; compare it with their entropy.
    """
    a, v = pairs("soft_info_nce", a, v)
    above("temperature", temperature)
    if target.shape != (len(a), len(a)):
        raise BatchError(f"target must be [{len(a)}, {len(a)}], not {tuple(target.shape)}.")
    target = target.detach()
    low, high = torch.aminmax(target)
    if not (float(low) >= 0 and 0 < float(high) < float("inf")):
        raise BatchError("target must be finite, not negative, and above 0 somewhere.")
    with full_precision(a):
        a = a / temperature
        row, column = log_sums(a, v)
        return 0.5 * (_toward(a, v, row, target) + _toward(v, a, column, target.T))


def distilled_info_nce(
    a: Tensor,
    v: Tensor,
    teacher_a: Tensor,
    teacher_v: Tensor,
    *,
    temperature: float | Tensor,
    teacher_temperature: float,
) -> Tensor:
    r"""``soft_info_nce`` toward a teacher's softmax in both directions, without its B × B targets:

    ``L_av = -1/B Σ_i Σ_j t_ij [ S_ij - log Σ_k exp S_ik ]``, ``t_i· = softmax_j(ā_i · v̄_j / τ̄)``, S = a vᵀ / τ;
    L_va with the softmax over i, ``L = ½ (L_av + L_va)``

    Shapes: ``a``, ``v`` [B, D]; ``teacher_a``, ``teacher_v`` [B, D'] (ā, v̄), which get no gradient · result: a scalar,
    float32 at least. Sign: lower is better; its least value is the mean entropy of the teacher's rows. Reduction: mean
    over anchors, then over directions. Memory: O(B·D).

    Raises: BatchError where shapes disagree; ConfigError where a temperature is not above 0.
    Paper: Hinton et al. 2015; between modalities Andonian et al. 2022. Pitfall: a teacher that is the student itself,
    undelayed, collapses: use a moving average.
    """
    a, v = pairs("distilled_info_nce", a, v)
    ta, tv = pairs("distilled_info_nce (teacher)", teacher_a.detach(), teacher_v.detach())
    if len(ta) != len(a):
        raise BatchError(f"distilled_info_nce has {len(a)} rows and {len(ta)} of the teacher.")
    above("temperature", temperature)
    above("teacher_temperature", teacher_temperature)
    with full_precision(a):
        a = a / temperature
        row, column = log_sums(a, v)
        agreed = agreement(a, v, lambda rows: (ta[rows] @ tv.T / teacher_temperature).softmax(1))
        agreed = agreed + agreement(v, a, lambda rows: (tv[rows] @ ta.T / teacher_temperature).softmax(1))
        return 0.5 * (row + column).mean() - 0.5 * agreed / len(a)


def supervised_contrastive(
    a: Tensor,
    v: Tensor,
    label: Tensor,
    *,
    temperature: float | Tensor,
    views: Literal["other", "all"] = "other",
    form: Literal["out", "in"] = "out",
) -> Tensor:
    r"""Supervised contrastive loss; with z the candidates, P(i) those of the label of anchor i:

    ``L_out = 1/|I| Σ_{i∈I} -1/|P(i)| Σ_{p∈P(i)} log ( exp(z_i·z_p/τ) / Σ_j exp(z_i·z_j/τ) )``
    ``L_in  = 1/|I| Σ_{i∈I} -log ( 1/|P(i)| Σ_{p∈P(i)} exp(z_i·z_p/τ) / Σ_j exp(z_i·z_j/τ) )`` (weaker)

    ``views`` "other": the candidates of a sound are the pictures and the other way round; the SUM of both directions.
    "all": the 2B rows of both are anchors and candidates of each other (never of themselves); ONE mean over anchors.
    I leaves out anchors without a positive ("all": alone in their class never happens, the own partner is one).

    Shapes: ``a``, ``v`` [B, D], ``label`` [B] integers, any value a class of its own · result: a scalar, float32 at
    least. Sign: lower is better. Reduction: as above. Memory: O(B·D), no mask of pairs.

    Raises: BatchError where shapes disagree; ConfigError for τ ≤ 0 or an unknown option.
    Paper: Khosla et al. 2020. Pitfall: with n of B rows in the class the least possible L_out is about log n, not 0.
    """
    a, v = pairs("supervised_contrastive", a, v)
    label = labels("supervised_contrastive", label, len(a)).to(a.device)
    above("temperature", temperature)
    if views not in ("other", "all") or form not in ("out", "in"):
        raise ConfigError(f'views = "{views}" must be "other" or "all", form = "{form}" "out" or "in".')
    with full_precision(a):
        if views == "other":
            a = a / temperature
            row, column = log_sums(a, v)
            if form == "out":
                toward = _toward_class(a, v, label)
                return (row + column).mean() - toward - _toward_class(v, a, label)
            row_own, column_own = log_sums(a, v, _leave_out(lambda rows: label[rows, None] != label))
            return (row + column - row_own - column_own + 2 * _class_sizes(label).to(a.dtype).log()).mean()
        z, label = torch.cat([a, v]), torch.cat([label, label])
        scaled = z / temperature
        row, _ = log_sums(scaled, z, without_diagonal)
        if form == "out":
            return row.mean() - _toward_class(scaled, z, label, itself=False)
        row_own, _ = log_sums(scaled, z, _class_without_itself(label))
        return (row - row_own + (_class_sizes(label) - 1).to(a.dtype).log()).mean()


def decoupled_info_nce(a: Tensor, v: Tensor, *, temperature: float | Tensor) -> Tensor:
    r"""InfoNCE without the positive in the denominator, sum of the two directions; with S = a vᵀ / τ:

    ``L_av = 1/B Σ_i [ log Σ_{j≠i} exp S_ij - S_ii ]``, ``L = L_av(S) + L_av(Sᵀ)``

    Shapes: ``a``, ``v`` [B, D] with B > 1 · result: a scalar, float32 at least. Sign: lower is better; it has no lower
    bound and is negative for a well separated batch. Reduction: mean over anchors, summed over directions. Memory:
    O(B·D).

    Raises: BatchError where shapes disagree or B = 1 (no negative); ConfigError where τ ≤ 0.
    Paper: the baseline called NCE in Monfort et al. 2021; decoupled contrastive learning, Yeh et al. 2022. Pitfall:
    without normalized rows it is driven to -∞ by growing norms.
    """
    a, v = pairs("decoupled_info_nce", a, v)
    above("temperature", temperature)
    if len(a) == 1:
        raise BatchError("decoupled_info_nce needs a negative, so B > 1.")
    with full_precision(a):
        a = a / temperature
        row, column = log_sums(a, v, without_diagonal)
        return (row + column - 2 * (a * v).sum(1)).mean()


def n_pair(a: Tensor, v: Tensor, *, weight: float = 0.0) -> Tensor:
    r"""N-pair loss, sum of the two directions; with S = a vᵀ of rows that are NOT normalized:

    ``L_av = 1/B Σ_i log( 1 + Σ_{j≠i} exp(S_ij - S_ii) )``, ``L = L_av(S) + L_av(Sᵀ) + λ · 1/B Σ_i (‖a_i‖² + ‖v_i‖²)``

    Each direction is InfoNCE with τ = 1.

    Shapes: ``a``, ``v`` [B, D]; ``weight`` λ ≥ 0 · result: a scalar ≥ 0, float32 at least. Sign: lower is better.
    Reduction: mean over anchors, summed over directions; λ enters once. Memory: O(B·D).

    Raises: BatchError where shapes disagree; ConfigError where λ < 0.
    Paper: Sohn 2016; face and voice Horiguchi et al. 2018 (a → v alone). Pitfall: one clip of an identity in a batch,
    else its others are negatives; on unit rows the loss cannot fall much below log B - 1.
    """
    a, v = pairs("n_pair", a, v)
    at_least("weight", weight)
    with full_precision(a):
        loss = own_costs(a, v).mean()
        return loss + weight * (a.square().sum(1) + v.square().sum(1)).mean() if weight else loss


def mil_nce(
    v: Tensor,
    t: Tensor,
    *,
    positives: Tensor,
    temperature: float | Tensor = 1.0,
    directions: Literal["both", "rows"] = "both",
    twice: bool = False,
) -> Tensor:
    r"""MIL-NCE: at least one of several candidate partners is right; with S = v tᵀ / τ:

    ``L = -1/|I| Σ_{i∈I} log ( Σ_{p∈P_i} exp S_ip / ( Σ_{p∈P_i} exp S_ip + Σ_{N_i} exp s ) )``

    P_i are the candidates of clip i. N_i holds the pairs of clip i with the others' candidates and, unless
    ``directions`` is "rows", those of its candidates with clips that they are no candidates of. ``twice``: the
    positives stand in the denominator twice, as in the released code (whole rows and whole columns are joined).

    Shapes: ``v`` [B, D] clips, ``t`` [M, D] candidates, ``positives`` [B, M] bool · result: a scalar ≥ 0, float32 at
    least. Sign: lower is better. Reduction: mean over the clips I that have a candidate; one term, not a sum of
    directions. Dot product, τ = 1 in the paper. Memory: O((B + M + marked pairs) · D) beside ``positives``.

    Raises: BatchError where shapes disagree or no clip has a candidate; ConfigError for τ ≤ 0 or an unknown option.
    Paper: Miech et al. 2020. Pitfall: a candidate that fits several clips must be marked for all of them, or it is a
    negative of the rest.
    """
    if v.ndim != 2 or t.ndim != 2 or v.shape[1] != t.shape[1] or len(v) == 0 or len(t) == 0:
        raise BatchError(f"mil_nce needs [B, D] and [M, D], not {tuple(v.shape)} and {tuple(t.shape)}.")
    v, t = raised(v, t)
    above("temperature", temperature)
    if directions not in ("both", "rows"):
        raise ConfigError(f'directions = "{directions}" must be "both" or "rows".')
    positives = _marked(positives, len(v), len(t))
    with full_precision(v):
        v = v / temperature
        clip, candidate = positives.nonzero(as_tuple=True)
        own = (v[clip] * t[candidate]).sum(1)  # [marked pairs]
        row, column = log_sums(v, t, _leave_out(lambda rows: positives[rows]))
        parts = [row]
        if directions == "both":
            parts.append(_log_sum_each(column[candidate], clip, len(v)))
        matched = _log_sum_each(own, clip, len(v))
        parts += [matched, matched] if twice else [matched]
        return (torch.stack(parts).logsumexp(0) - matched)[positives.any(1)].mean()


# ------------------------------------------------------------------------------------------------------------- binary
def nce(positive: Tensor, noise: Tensor, *, log_noise: Tensor | float) -> Tensor:
    r"""Noise-contrastive estimation: is this the data, or a draw from the noise? With k draws and noise density q:

    ``L = 1/B Σ_i [ -log σ(s⁺_i - log(k q)) - Σ_j log σ(-(s⁻_ij - log(k q))) ]``

    Shapes: ``positive`` s⁺ [B], scores (similarity / τ) of the own pairs; ``noise`` s⁻ [B, k], scores with draws, as
    from ``MemoryBank.sample_each``; ``log_noise`` log q, one number or one for each score, [B, 1 + k] with the
    positive first · result: a scalar ≥ 0, float32 at least. Sign: lower is better. Reduction: sum over the draws, mean
    over anchors, one direction.

    Raises: BatchError where shapes disagree, or B or k is 0.
    Paper: Gutmann & Hyvärinen 2010; with a memory bank Wu et al. 2018, Morgado et al. 2021. Pitfall: uniform draws
    from n items have q = 1/n; the constant log(k q) decides where a score of 0 stands, so it is no detail.
    """
    if positive.ndim != 1 or noise.ndim != 2 or len(noise) != len(positive) or noise.numel() == 0:
        raise BatchError(f"nce needs scores [B] and [B, k], not {tuple(positive.shape)} and {tuple(noise.shape)}.")
    if isinstance(log_noise, Tensor) and log_noise.ndim and log_noise.shape != (len(noise), 1 + noise.shape[1]):
        raise BatchError(f"log_noise must be one number or [B, 1 + k], not {tuple(log_noise.shape)}.")
    scores = torch.cat([x.reshape(len(noise), -1) for x in raised(positive, noise)], 1)
    density = torch.as_tensor(log_noise, dtype=scores.dtype, device=scores.device)
    odds = scores - (density + torch.tensor(noise.shape[1], dtype=scores.dtype, device=scores.device).log())
    data, drawn = odds[:, 0], odds[:, 1:]
    return (torch.nn.functional.softplus(-data) + torch.nn.functional.softplus(drawn).sum(1)).mean()


def pair_contrastive(
    a: Tensor, v: Tensor, same: Tensor, *, margin: float, distance: Literal["l2", "cosine"] = "l2"
) -> Tensor:
    r"""Contrastive loss of single pairs, s = 1 for a match, d the distance of the pair:

    ``L = 1/B Σ_i ½ [ s_i d_i² + (1 - s_i) max(0, ζ - d_i)² ]``, ``d = ‖a - v‖`` or ``d = 1 - cos(a, v)``

    Shapes: ``a``, ``v`` [B, D], row i one pair; ``same`` [B] bool or 0/1; ``margin`` ζ ≥ 0 · result: a scalar ≥ 0,
    float32 at least. Sign: lower is better. Reduction: mean over the pairs, with the factor ½.

    Raises: BatchError where shapes disagree or ``same`` is not 0/1; ConfigError for ζ < 0 or an unknown distance.
    Paper: Hadsell et al. 2006. Pitfall: the survey's eq. 4 has a similarity where the distance belongs, which pushes
    both kinds of pairs the wrong way; two unlike rows at one point get no gradient from the L2 form.
    """
    a, v = pairs("pair_contrastive", a, v)
    at_least("margin", margin)
    if same.shape != (len(a),) or not bool(((same == 0) | (same == 1)).all()):
        raise BatchError(f"same must be {len(a)} values 0 or 1, not {same.dtype} {tuple(same.shape)}.")
    match = same.to(a.dtype)
    with full_precision(a):
        if distance == "cosine":
            d = 1 - torch.nn.functional.cosine_similarity(a, v, dim=1, eps=1e-12)
        elif distance == "l2":
            d = torch.linalg.vector_norm(a - v, dim=1)  # its slope at distance 0 is taken as 0
        else:
            raise ConfigError(f'distance = "{distance}" must be "l2" or "cosine".')
        return 0.5 * (match * d.square() + (1 - match) * (margin - d).clamp(min=0).square()).mean()


# -------------------------------------------------------------------------------------------------------------- parts
def _marked(positives: Tensor, rows: int, columns: int) -> Tensor:
    if positives.shape != (rows, columns) or positives.dtype != torch.bool:
        raise BatchError(f"positives must be bool [{rows}, {columns}], not {positives.dtype} {tuple(positives.shape)}.")
    if not bool(positives.any()):
        raise BatchError("no row of the batch has a positive.")
    return positives


def _toward_marked(a: Tensor, v: Tensor, row: Tensor, positives: Tensor) -> Tensor:
    """Mean over the rows that have positives of (log-sum - mean score of the positives)."""
    count = positives.sum(1)
    return _mean_cost(a, v, row, count, lambda rows: positives[rows].to(a.dtype) / count[rows, None].clamp(min=1))


def _toward(a: Tensor, v: Tensor, row: Tensor, target: Tensor) -> Tensor:
    total = target.sum(1, dtype=torch.float64)
    return _mean_cost(a, v, row, total, lambda rows: target[rows] / total[rows, None].clamp(min=1e-300))


def _mean_cost(a: Tensor, v: Tensor, row: Tensor, mass: Tensor, weights: Callable[[slice], Tensor]) -> Tensor:
    has = mass > 0
    return row[has].mean() - agreement(a, v, weights) / has.sum()


def _toward_class(a: Tensor, v: Tensor, label: Tensor, *, itself: bool = True) -> Tensor:
    """Mean over rows of the mean score with the rows of ``v`` of the same label (``itself``: row i of v included)."""
    _, number = label.unique(return_inverse=True)
    sums = v.new_zeros(int(number.max()) + 1, v.shape[1]).index_add(0, number, v)
    sizes = _class_sizes(label)
    if itself:
        return ((a * sums[number]).sum(1) / sizes).mean()
    return ((a * (sums[number] - v)).sum(1) / (sizes - 1)).mean()


def _class_sizes(label: Tensor) -> Tensor:
    _, number, count = label.unique(return_inverse=True, return_counts=True)
    return count[number]


def _leave_out(where: Callable[[slice], Tensor]) -> Edit:
    """The edit of ``log_sums`` that leaves out the cells where ``where(rows)`` [b, M] is True."""

    def edit(scores: Tensor, rows: slice) -> None:
        scores.masked_fill_(where(rows), -torch.inf)

    return edit


def _class_without_itself(label: Tensor) -> Edit:
    def edit(scores: Tensor, rows: slice) -> None:
        scores.masked_fill_(label[rows, None] != label, -torch.inf)
        without_diagonal(scores, rows)

    return edit


def _log_sum_each(x: Tensor, index: Tensor, n: int) -> Tensor:
    """[n] log Σ exp of the entries of ``x`` [K] with that index; -inf where there is none, and zero gradient there."""
    top = x.detach().new_full((n,), -torch.inf).scatter_reduce(0, index, x.detach(), "amax")
    top = top.masked_fill(top.isinf(), 0.0)
    sums = x.new_zeros(n).index_add(0, index, (x - top[index]).exp())
    some = sums > 0
    return torch.where(some, torch.where(some, sums, 1).log() + top, -torch.inf)
