"""Cluster-CCA in closed form: all pairs within a class, from class sums, over data that does not fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives.covariances import CHUNK, add_scatter_, symmetric, view_of_column
from avcl.objectives.inputs import labels


class ClusterMoments(NamedTuple):
    """``weight``, rows ``seen`` [C], class ``mean`` [C, D] and weighted scatter within the classes [D, D], float64.

    ``scatter`` = Σ_c weight_c Σ_{i∈c} (x_i - mean_c)(x_i - mean_c)ᵀ of the views side by side.
    """

    weight: Tensor
    seen: Tensor
    mean: Tensor
    scatter: Tensor


def add_cluster_moments(
    moments: ClusterMoments | None, rows: Tensor, label: Tensor, *, weight: Tensor
) -> ClusterMoments:
    """The class moments of what was seen before and of ``rows`` together, without keeping a row.

    ``rows`` [n, D]: the views of each sample side by side · ``label`` [n] integer in 0 … C - 1 · ``weight`` [C]: how
    much a row of each class counts, the same at every call. For Rasiwasia's cluster-CCA a row stands in as many pairs
    as its class has members: hand over the counts of the whole data set, ``torch.bincount(all_labels)``, for labels
    fit in memory where the rows do not. For Zeng's variant, ordinary moments: ``torch.ones(C)``.

    Memory: C·D + D² numbers. Raises: BatchError where shapes, labels or weights do not fit.
    """
    label = labels("add_cluster_moments", label, len(rows))
    if (
        rows.ndim != 2
        or weight.ndim != 1
        or (moments is not None and moments.mean.shape != (len(weight), *rows.shape[1:]))
    ):
        raise BatchError(
            f"class moments need rows [n, D], weights [C], as before, not {tuple(rows.shape)}, {tuple(weight.shape)}."
        )
    weight = weight.to(rows.device, torch.float64)
    if moments is not None and not torch.equal(moments.weight, weight):
        raise BatchError("class moments were begun with other class weights.")
    if len(label) and not 0 <= int(label.min()) <= int(label.max()) < len(weight):
        raise BatchError(f"labels {int(label.min())} to {int(label.max())} do not fit {len(weight)} class weights.")
    if moments is None:
        mean = torch.zeros(len(weight), rows.shape[1], dtype=torch.float64, device=rows.device)
        moments = ClusterMoments(weight, torch.zeros_like(weight), mean, mean.T @ mean)
    count, mean, scatter = moments.seen, moments.mean, moments.scatter.clone()
    buffer = mean.new_empty(min(len(rows), CHUNK), mean.shape[1])
    for chunk, of in zip(rows.detach().split(CHUNK), label.split(CHUNK), strict=True):
        x = buffer[: len(chunk)].copy_(chunk)
        new = torch.bincount(of, minlength=len(weight)).to(torch.float64)
        total = (count + new).clamp(min=1)
        center = torch.zeros_like(mean).index_add_(0, of, x) / new.clamp(min=1)[:, None]
        x -= center[of]
        add_scatter_(scatter, x.mul_(weight.sqrt()[of, None]))
        delta = torch.where(new[:, None] > 0, center - mean, 0)
        add_scatter_(scatter, delta * (weight * count * new / total).sqrt()[:, None])
        count, mean = count + new, mean + delta * (new / total)[:, None]
    return ClusterMoments(weight, count, mean, symmetric(scatter))


def cluster_covariance(moments: ClusterMoments, sizes: Sequence[int], *, pair_weight: float | None = None) -> Tensor:
    r"""The covariance [D, D] with which ``canonical_directions`` solves cluster-CCA.

    ``Σ₁₁ = 1/M Σ_c n_c Σ_{i∈c} x̄x̄ᵀ``, ``Σ₁₂ = 1/M Σ_c (Σ_{i∈c} x̄_i)(Σ_{j∈c} ȳ_j)ᵀ``, M = Σ_c n_c², means weighted by
    n_c

    is the covariance of all M pairs (x_i, y_j) of one class, without listing them. With ``pair_weight`` β (Zeng's
    variant): ordinary means, Σ₁₁ and Σ₂₂, and ``Σ₁₂ = β Σ₁₂_pair + (1 - β) Σ₁₂_class``.

    ``sizes``: widths of the two or more views. Raises: BatchError where the class weights of ``moments`` are not what
    the variant asks for (the counts of all rows; ones), ConfigError for β outside [0, 1]. Paper: Rasiwasia et al. 2014;
    Zeng et al. 2018 (β = .2). Pitfall: at most C - 1 correlations are above zero.
    """
    n, square = moments.seen, moments.seen.square()
    pairs, rows = float(square.sum()), float(n.sum())
    if sum(sizes) != moments.mean.shape[1] or rows < 2:
        raise BatchError(f"{int(rows)} rows of width {moments.mean.shape[1]} do not make views of {tuple(sizes)}.")
    wanted = n if pair_weight is None else torch.ones_like(n)
    if not torch.equal(moments.weight[n > 0], wanted[n > 0]):
        what = "the count of its rows" if pair_weight is None else "one"
        raise BatchError(f"the weight of each class must be {what}, not {moments.weight.tolist()}.")
    if pair_weight is not None and not 0 <= pair_weight <= 1:
        raise ConfigError(f"pair_weight = {pair_weight} must be from 0 to 1.")
    if pair_weight is None:
        between = moments.mean - (square[:, None] * moments.mean).sum(0) / pairs
        across = (between * square[:, None]).T @ between / pairs
        own = moments.scatter / pairs + across
    else:
        between = moments.mean - (n[:, None] * moments.mean).sum(0) / rows
        own = (moments.scatter + (between * n[:, None]).T @ between) / (rows - 1)
        across = pair_weight * own + (1 - pair_weight) * (between * square[:, None]).T @ between / pairs
    view = view_of_column(sizes, own.device)
    return torch.where(view[:, None] == view, own, across)
