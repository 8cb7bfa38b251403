"""Joint posteriors of several modalities: products, mixtures, and mixtures of the products of all subsets.

Expert m is a diagonal Gaussian over the shared code; an absent modality is an omitted expert, whatever stands in its
rows (also NaN) reaches neither value nor gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from avcl.errors import BatchError
from avcl.objectives.inputs import at_least, raised
from avcl.objectives.variational import bounded


def product_of_experts(
    means: Tensor, log_variances: Tensor, *, present: Tensor | None = None, prior: bool = True
) -> tuple[Tensor, Tensor]:
    r"""The normalized product of Gaussians, with the standard normal as a further factor where ``prior``:

    ``1/σ² = 1 + Σ_m 1/σ_m²``,  ``μ = σ² Σ_m μ_m / σ_m²``

    Shapes: ``means``, ``log_variances`` [M, B, D], ``present`` [M, B] bool (default: all) · result: mean and
    log-variance [B, D]. An item without any expert has the posterior N(0, I), the prior. The log-variances are clamped
    to [-10, 10] (zero gradient outside).

    Raises: BatchError where shapes do not fit, or where without the prior an item has no expert.
    Paper: Wu & Goodman 2018 (MVAE), after Hinton 2002. Pitfall: trained on the product alone single experts are never
    asked for and stay uncalibrated: add the bounds of single modalities (or random subsets).
    """
    means, log_variances, present = _experts("product_of_experts", means, log_variances, present)
    if not prior and not bool(present.any(0).all()):
        raise BatchError("product_of_experts without the prior needs an expert present for every item.")
    precisions = torch.where(present.unsqueeze(-1), (-log_variances).exp(), 0)
    precision = precisions.sum(0) + (1.0 if prior else 0.0)
    return (precisions * means).sum(0) / precision, -precision.log()


class Subsets(NamedTuple):
    """The products of all non-empty subsets: ``mean``, ``log_variance`` [S, B, D], ``members`` [S, M] bool (row s - 1
    holds the bits of s), ``present`` [S, B] bool: True where every member of the subset is there."""

    mean: Tensor
    log_variance: Tensor
    members: Tensor
    present: Tensor


def subset_posteriors(
    means: Tensor, log_variances: Tensor, *, present: Tensor | None = None, prior: bool = True
) -> Subsets:
    r"""The product posterior of each of the S = 2^M - 1 non-empty subsets (the mixture components of MoPoE).

    ``1/σ_s² = 1 + Σ_{m∈s} 1/σ_m²``,  ``μ_s = σ_s² Σ_{m∈s} μ_m / σ_m²``  (without ``prior`` no 1)

    Shapes as in `product_of_experts`; a subset with an absent member is marked by ``present`` False and filled with
    N(0, I). Give ``mean``, ``log_variance``, ``present`` to `mixture_log_density` or `mixture_elbo`: singletons alone
    are then the mixture of experts, the full set alone is the product.

    Raises: BatchError where shapes do not fit. Paper: Sutter et al. 2021. Pitfall: memory grows as 2^M.
    """
    means, log_variances, present = _experts("subset_posteriors", means, log_variances, present)
    size = len(means)
    codes = torch.arange(1, 2**size, device=means.device)
    members = (codes.unsqueeze(1) >> torch.arange(size, device=means.device)) & 1 == 1
    there = (present | ~members.unsqueeze(-1)).all(1)  # [S, B]
    precisions = (-log_variances).exp()
    precision, weighted = means.new_zeros(2, len(members), *means.shape[1:])
    for m in range(size):  # M terms of [S, B, D] instead of one [S, M, B, D]
        chosen = members[:, m].view(-1, 1, 1)
        precision = precision + torch.where(chosen, precisions[m], 0)
        weighted = weighted + torch.where(chosen, precisions[m] * means[m], 0)
    precision = torch.where(there.unsqueeze(-1), precision + (1.0 if prior else 0.0), 1)
    weighted = torch.where(there.unsqueeze(-1), weighted, 0)
    return Subsets(weighted / precision, -precision.log(), members, there)


def gaussian_log_density(z: Tensor, mean: Tensor | None = None, log_variance: Tensor | None = None) -> Tensor:
    r"""``log N(z; μ, σ²) = -½ Σ_d ((z_d - μ_d)² / σ_d² + log σ_d² + log 2π)``; without parameters the prior N(0, I).

    Shapes: ``z`` [..., D], parameters that broadcast with it · result: [...]. Sign: higher is likelier. The
    log-variance is clamped to [-10, 10]. Raises: BatchError where the shapes do not broadcast.
    """
    zero = z.new_zeros(())
    z, mean, log_variance = raised(z, zero if mean is None else mean, zero if log_variance is None else log_variance)
    log_variance = bounded(log_variance)
    try:
        cost = (z - mean).square() * (-log_variance).exp() + log_variance
    except RuntimeError as error:
        shapes = f"{tuple(z.shape)}, {tuple(mean.shape)}, {tuple(log_variance.shape)}"
        raise BatchError(f"gaussian_log_density needs shapes that broadcast, not {shapes}.") from error
    return -0.5 * (cost + math.log(2 * math.pi)).sum(-1)


def mixture_log_density(z: Tensor, means: Tensor, log_variances: Tensor, *, present: Tensor | None = None) -> Tensor:
    r"""Log-density of an equal mixture of the Gaussians that are present:

    ``log q(z) = log (1/|P|) Σ_{m∈P} N(z; μ_m, σ_m²)``

    Shapes: ``z`` [..., B, D], ``means``, ``log_variances`` [M, B, D], ``present`` [M, B] bool (default: all) · result:
    [..., B], by log-sum-exp. Sign: higher is likelier. The log-variances are clamped to [-10, 10].

    Raises: BatchError where shapes do not fit or an item has no expert.
    Paper: Shi et al. 2019 (MMVAE). Pitfall: far from every expert only the nearest one receives a gradient.
    """
    means, log_variances, present = _experts("mixture_log_density", means, log_variances, present)
    if z.ndim < 2 or z.shape[-2:] != means.shape[1:]:
        raise BatchError(
            f"mixture_log_density needs z [..., {means.shape[1]}, {means.shape[2]}], not {tuple(z.shape)}."
        )
    if not bool(present.any(0).all()):
        raise BatchError("mixture_log_density needs an expert present for every item.")
    each = gaussian_log_density(z.unsqueeze(-3), means, log_variances)  # [..., M, B]
    return each.masked_fill(~present, -math.inf).logsumexp(-2) - present.sum(0).to(each.dtype).log()


def mixture_elbo(
    log_likelihood: Tensor,
    z: Tensor,
    means: Tensor,
    log_variances: Tensor,
    *,
    present: Tensor | None = None,
    beta: float = 1.0,
) -> Tensor:
    r"""The NEGATIVE bound of a mixture posterior with one sample from every expert (stratified), to be minimized:

    ``-L = -(1/B) Σ_i (1/|P_i|) Σ_{m∈P_i} [ log p(X_i | z_mi) - β (log q(z_mi | X_i) - log N(z_mi; 0, I)) ]``

    with z_m ~ q_m and q the mixture of `mixture_log_density`.

    Shapes: ``z``, ``means``, ``log_variances`` [M, B, D]; ``log_likelihood`` [M, B], row m summed over all modalities
    decoded from z_m: that every decoder answers to every encoder is what trains generation across modalities;
    ``present`` [M, B] bool · result: a scalar. Sign: lower is better (minus the bound). Reduction: mean over the
    experts present, then over the batch.

    Raises: BatchError where shapes do not fit or an item has no expert; ConfigError for a negative ``beta``.
    Paper: Shi et al. 2019; over subsets: Sutter et al. 2021. Pitfall: it is no more than a one-sample estimate; for the
    K-sample form hand [K, M, B] weights to `importance_bound`.
    """
    at_least("beta", beta)
    if z.shape != means.shape or log_likelihood.shape != means.shape[:2]:
        shapes = f"{tuple(log_likelihood.shape)}, {tuple(z.shape)}, {tuple(means.shape)}"
        raise BatchError(f"mixture_elbo needs log_likelihood [M, B] and z, means [M, B, D], not {shapes}.")
    means, log_variances, present = _experts("mixture_elbo", means, log_variances, present)
    z = z.masked_fill(~present.unsqueeze(-1), 0)
    divergence = mixture_log_density(z, means, log_variances, present=present) - gaussian_log_density(z)
    log_likelihood, divergence = raised(log_likelihood, divergence)
    cost = torch.where(present, beta * divergence - log_likelihood, 0)
    return (cost.sum(0) / present.sum(0)).mean()


def _experts(name: str, means: Tensor, log_variances: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Raised, clamped, and zero where an expert is absent."""
    if means.ndim != 3 or means.shape != log_variances.shape or means.numel() == 0:
        shapes = f"{tuple(means.shape)} and {tuple(log_variances.shape)}"
        raise BatchError(f"{name} needs non-empty means and log-variances [M, B, D] of one shape, not {shapes}.")
    means, log_variances = raised(means, log_variances)
    log_variances = bounded(log_variances)
    if present is None:
        return means, log_variances, means.new_ones(means.shape[:2], dtype=torch.bool)
    if present.shape != means.shape[:2] or present.dtype != torch.bool:
        raise BatchError(f"present must be bool {tuple(means.shape[:2])}, not {present.dtype} {tuple(present.shape)}.")
    absent = ~present.unsqueeze(-1)
    return means.masked_fill(absent, 0), log_variances.masked_fill(absent, 0), present
