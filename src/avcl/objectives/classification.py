"""Objectives with labels: classify, come near the label, be as alike as the labels are, gather around a center."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives.blocked import score_sum
from avcl.objectives.inputs import classes, labels, pairs, raised
from avcl.objectives.regularizers import TINY
from avcl.objectives.weights import recorded_pair, weighted_mean

Form = Literal["rows", "frobenius"]
Norm = Literal["l2", "l1"]


def cross_entropy(logits: Tensor, label: Tensor, *, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    r"""Softmax cross-entropy; with z_i the logits of row i, y_i its class, w the class weights, ε the smoothing:

    ``L = -Σ_i [ (1-ε) w_{y_i} log p_i(y_i) + ε/C Σ_c w_c log p_i(c) ] / Σ_i w_{y_i}``, ``p_i = softmax(z_i)``

    Shapes: ``logits`` [N, C]; ``label`` [N] integers in 0..C-1; ``weight`` [C] ≥ 0 (default 1) · result: a scalar
    ≥ 0, float32 at least. Sign: lower is better. Reduction: mean over rows, weighted where there are weights. Steps of
    a sequence are rows: pass ``logits[mask]``, ``label[mask]``.

    Raises: BatchError where shapes disagree, the batch is empty, a label is not one of the C, or the weights are
    negative or 0 for all labels; ConfigError for a smoothing outside 0..1. Paper: smoothing Szegedy et al. 2016.
    Pitfall: no softmax before; several classes at once need ``binary_cross_entropy``.
    """
    if not 0 <= smoothing <= 1:
        raise ConfigError(f"smoothing = {smoothing} must lie in [0, 1].")
    if logits.ndim != 2 or logits.numel() == 0:
        raise BatchError(f"cross_entropy needs logits [N, C] with values, not {tuple(logits.shape)}.")
    (logits,) = raised(logits)
    label = classes("cross_entropy", label, *logits.shape)
    if weight is not None:
        if weight.shape != logits.shape[1:]:
            raise BatchError(f"weight {tuple(weight.shape)} must have one value for each of {logits.shape[1]} classes.")
        weight = weight.to(logits.dtype)
        if not bool(((weight >= 0) & weight.isfinite()).all()) or not bool((weight[label] > 0).any()):
            raise BatchError("class weights must be finite, not negative, and above 0 for a label of the batch.")
    return F.cross_entropy(logits, label, weight=weight, label_smoothing=smoothing)


def binary_cross_entropy(logits: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
    r"""Cross-entropy of independent yes-or-no classes: ``L = Σ_c w_c [ softplus(z_c) - t_c z_c ] / Σ_c w_c``

    over all cells c of all rows, w = 1 without ``weight``.

    Shapes: ``logits`` z and ``target`` t of one shape, as [B, C] or [B, T, C], t bool or in [0, 1]; ``weight`` of the
    same rank, every size 1 or that of z, bool or ≥ 0 (False: not annotated) · result: a scalar ≥ 0, float32 at least.
    Sign: lower is better. Reduction: weighted mean over cells.

    Raises: BatchError where shapes disagree, a target lies outside [0, 1], or the weight is negative or zero
    everywhere. Paper: section 3.2; as multi-label soft margin Tian et al. 2018. Pitfall: no sigmoid before; with many
    classes and few positives "no" to everything is already cheap (log 2 at the start, near 0 soon after).
    """
    z, t, weight = recorded_pair("binary_cross_entropy", logits, target, weight)
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise BatchError("targets of binary_cross_entropy must lie in [0, 1].")
    return weighted_mean(F.binary_cross_entropy_with_logits(z, t, reduction="none"), weight)


def label_distance(prediction: Tensor, label: Tensor, *, form: Form = "rows") -> Tensor:
    r"""Distance to the label in label space (first term of DSCMR, one view); p_i the prediction, y_i the one-hot row:

    "rows": ``L = 1/B Σ_i ‖p_i - y_i‖`` (its code, which gives its numbers) · "frobenius": ``L = 1/B ‖P - Y‖_F``
    (its paper)

    Shapes: ``prediction`` [B, C], the output of a linear layer without softmax; ``label`` [B] integers in 0..C-1, or a
    target [B, C] · result: a scalar ≥ 0, float32 at least. Sign: lower is better. Reduction: as the form says; the
    views are added by the caller. At p = y the slope is taken as 0.

    Raises: BatchError where shapes disagree, the batch is empty or a label is not one of the C; ConfigError for an
    unknown form. Paper: Zhen et al. 2019. Pitfall: the forms differ by more than a constant ("frobenius" shrinks as
    1/√B), so the weights of the other terms hold for one of them only.
    """
    if form not in get_args(Form):
        raise ConfigError(f'form = "{form}" is unknown.', hint='Use "rows" or "frobenius".')
    if prediction.ndim != 2 or prediction.numel() == 0:
        raise BatchError(f"label_distance needs a prediction [B, C] with values, not {tuple(prediction.shape)}.")
    if label.ndim == 2:
        prediction, target = pairs("label_distance", prediction, label)
    else:
        (prediction,) = raised(prediction)
        index = classes("label_distance", label, *prediction.shape)
        target = F.one_hot(index, prediction.shape[1]).to(prediction.dtype)
    if form == "frobenius":
        return torch.linalg.vector_norm(prediction - target) / len(target)
    return torch.linalg.vector_norm(prediction - target, dim=1).mean()


def label_likelihood(a: Tensor, v: Tensor, label: Tensor) -> Tensor:
    r"""Pairs are as alike as their labels (second term of DSCMR); for rows x, y and ``Θ_ij = ½ cos(x_i, y_j)``:

    ``J(x, y) = mean_ij [ softplus(Θ_ij) - 1[label_i = label_j] Θ_ij ]``, ``L = J(a, v) + J(a, a) + J(v, v)``

    the negative log-likelihood of "same label" under a sigmoid of Θ. Computed in row blocks: no B × B matrix exists.

    Shapes: ``a``, ``v`` [B, D], ``label`` [B] integers · result: a scalar in [1.42, 2.93] (Θ lies in [-½, ½], so no
    pair costs less than 0.474), float32 at least. Sign: lower is better. Reduction: mean over the B² pairs of a
    block, sum over the three blocks. The cosine of a row shorter than 1e-6 fades to 0.

    Raises: BatchError where shapes disagree or the batch is empty. Paper: Zhen et al. 2019; the Pearson form of Zhang
    et al. 2021 is this one of rows from which their own mean over dimensions was taken. Pitfall: the narrow range
    makes gradients small beside the other terms; B² - B pairs of different labels outweigh the others when there are
    many classes.
    """
    a, v = pairs("label_likelihood", a, v)
    label = labels("label_likelihood", label, len(a))
    a, v = (F.normalize(x, dim=1, eps=TINY) for x in (a, v))

    def likelihood(scores: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        theta = scores.mul_(0.5)
        same = label[rows, None] == label
        value = F.softplus(theta).sum(dtype=torch.float64) - theta.masked_fill(~same, 0).sum(dtype=torch.float64)
        return value, 0.5 * (theta.sigmoid() - same.to(theta.dtype))

    return (score_sum(a, v, likelihood) + score_sum(a, a, likelihood) + score_sum(v, v, likelihood)) / len(a) ** 2


def center(x: Tensor, centers: Tensor, label: Tensor, *, norm: Norm = "l2") -> Tensor:
    r"""Distance to the center of one's own class; c_j the centers, y_i the label of row i:

    "l2": ``L = ½ · 1/B Σ_i ‖x_i - c_{y_i}‖²`` · "l1": ``L = 1/B Σ_i ‖x_i - c_{y_i}‖₁``

    Differentiable in ``x`` and in ``centers``: either the centers are a Parameter, or they are kept and moved by
    ``objectives.memory.Centers``.

    Shapes: ``x`` [B, D]; ``centers`` [C, D]; ``label`` [B] integers in 0..C-1 · result: a scalar ≥ 0, float32 at
    least. Sign: lower is better. Reduction: sum over dimensions, mean over rows.

    Raises: BatchError where shapes disagree, the batch is empty or a label has no center; ConfigError for an unknown
    norm. Paper: Wen et al. 2016 ("l2"); He et al. 2019 uses it without the ½ (multiply by 2). Pitfall: centers must
    be kept between steps, drawn anew they only punish the norm; as a Parameter they move with the weight of this term
    (1e-3, say) times the learning rate, so give them their own rate; alone it collapses everything to one point.
    """
    if norm not in get_args(Norm):
        raise ConfigError(f'norm = "{norm}" is unknown.', hint='Use "l2" or "l1".')
    if x.ndim != 2 or len(x) == 0 or centers.ndim != 2 or x.shape[1] != centers.shape[1]:
        raise BatchError(
            f"center needs x [B, D] with B > 0 and centers [C, D], not {tuple(x.shape)} and {tuple(centers.shape)}."
        )
    x, centers = raised(x, centers)
    gap = x - centers[classes("center", label, len(x), len(centers))]
    return 0.5 * gap.square().sum(1).mean() if norm == "l2" else gap.abs().sum(1).mean()
