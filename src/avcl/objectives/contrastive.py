"""Contrastive objectives: pull what belongs together near, push the rest of the batch away."""

from __future__ import annotations

import torch
from torch import Tensor

from avcl.errors import BatchError, ConfigError


def info_nce(a: Tensor, v: Tensor, *, temperature: float | Tensor, positives: Tensor | None = None) -> Tensor:
    r"""InfoNCE, mean of the two directions; with S = a vᵀ / τ and P(i) the positives of row i:

    ``L_av = -1/|I| Σ_{i∈I} 1/|P(i)| Σ_{p∈P(i)} [ S_ip - log Σ_j exp S_ij ]``, ``L = ½ (L_av(S) + L_av(Sᵀ))``

    The positive stands in the denominator, so an uninformed batch costs log B. I holds the anchors that have a
    positive; the others only serve as negatives.

    Shapes: ``a``, ``v`` [B, D], row i of both from one clip; ``positives`` [B, B] bool, True where column j is a
    match of row i (default: the diagonal) · result: a scalar ≥ 0, float32 at least (half precision is raised to it).
    Sign: lower is better. Reduction: mean over positives, then over anchors, then over directions. The similarity is
    the dot product of the rows as given: normalize them first for the cosine. ``temperature`` τ > 0 may be a
    learnable scalar tensor.

    Raises: BatchError where shapes disagree, the batch is empty or no row has a positive; ConfigError where τ ≤ 0.
    Paper: van den Oord et al. 2018; symmetric form Radford et al. 2021; several positives as L_out of Khosla et al.
    2020. Pitfall: unmarked matches in the batch (two clips of one class) are pushed apart as negatives; bound a
    learnable τ from below (1/τ ≤ 100), or it runs away.
    """
    if a.ndim != 2 or a.shape != v.shape or len(a) == 0:
        raise BatchError(
            f"info_nce needs two [B, D] of one shape with B > 0, not {tuple(a.shape)} and {tuple(v.shape)}."
        )
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ConfigError(f"temperature = {temperature} must be above 0.")
    kind = torch.promote_types(torch.promote_types(a.dtype, v.dtype), torch.float32)
    with torch.autocast(
        a.device.type, enabled=False
    ):  # an outer autocast would round the logits to half precision again
        logits = a.to(kind) @ v.to(kind).T / temperature  # [B, B]
    if positives is None:
        matched = logits.diagonal()
        return 0.5 * ((logits.logsumexp(1) - matched).mean() + (logits.logsumexp(0) - matched).mean())
    if positives.shape != logits.shape or positives.dtype != torch.bool:
        raise BatchError(
            f"positives must be bool [{len(a)}, {len(a)}], not {positives.dtype} {tuple(positives.shape)}."
        )
    if not bool(positives.any()):
        raise BatchError("no row of the batch has a positive.")
    return 0.5 * (_mean_over_anchors(logits, positives) + _mean_over_anchors(logits.T, positives.T))


def _mean_over_anchors(logits: Tensor, positives: Tensor) -> Tensor:
    count = positives.sum(1)
    matched = torch.where(positives, logits, 0).sum(1) / count.clamp(min=1)
    return (logits.logsumexp(1) - matched)[count > 0].mean()
