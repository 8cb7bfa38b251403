"""Variational objectives: the evidence bound of one Gaussian posterior, its likelihoods and its divergences.

Every posterior is a diagonal Gaussian given as mean μ and log-variance log σ². The log-variance is clamped to [-10, 10]
wherever it is read; outside that range its gradient is zero, so a head that starts there stays there.
Products and mixtures of such posteriors are in `experts`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from avcl.errors import BatchError, ConfigError
from avcl.objectives.inputs import above, at_least, raised

LOG_VARIANCE = (-10.0, 10.0)


def bounded(log_variance: Tensor) -> Tensor:
    """The log-variance clamped to [-10, 10]: σ between .0067 and 148, the gradient outside is zero."""
    return log_variance.clamp(*LOG_VARIANCE)


def alike(name: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors raised to one floating type; BatchError where they are empty or not of one shape [B, ...]."""
    if any(x.shape != tensors[0].shape or x.ndim == 0 or x.numel() == 0 for x in tensors):
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
        raise BatchError(f"{name} needs non-empty tensors [B, ...] of one shape, not {shapes}.")
    return raised(*tensors)


def gaussian_kl(mean: Tensor, log_variance: Tensor, *, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    r"""Divergence of a diagonal Gaussian from the standard normal:

    ``KL = ½ Σ_d (μ_d² + σ_d² - 1 - log σ_d²)``

    Shapes: ``mean``, ``log_variance`` [B, ...] of one shape · result: a scalar ≥ 0, 0 only at μ = 0, σ = 1. Sign: lower
    is nearer to the prior. Reduction: sum over d, then the mean over the batch, or with ``reduction="sum"`` the sum.

    Raises: BatchError where the shapes differ or are empty; ConfigError for another reduction.
    Paper: Kingma & Welling 2014, appendix B. Pitfall: a *mean* squared error beside the *sum* of the divergence makes
    the latter B · D times heavier than in the bound; published weights such as 1e-4 hold only for that very mix.
    """
    mean, log_variance = alike("gaussian_kl", mean, log_variance)
    return _reduced(_by_dimension(mean, bounded(log_variance)), reduction)


def gaussian_kl_between(
    mean1: Tensor,
    log_variance1: Tensor,
    mean2: Tensor,
    log_variance2: Tensor,
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    r"""Divergence of one diagonal Gaussian from another, KL(q₁ ‖ q₂):

    ``KL = ½ Σ_d ((μ₁ - μ₂)² / σ₂² + σ₁² / σ₂² - 1 - log σ₁² / σ₂²)``

    Shapes: all four [B, ...] of one shape · result: a scalar ≥ 0. Sign: lower is nearer; not symmetric, it is large
    where q₂ is narrow and q₁ lies outside of it. Reduction: sum over d, then mean (or ``"sum"``) over the batch.

    Raises: BatchError where the shapes differ or are empty; ConfigError for another reduction.
    Paper: Kullback & Leibler 1951; between a joint and a unimodal posterior: Suzuki et al. 2016 (JMVAE). Pitfall: both
    sides receive a gradient; detach the one that should only be followed.
    """
    m1, lv1, m2, lv2 = alike("gaussian_kl_between", mean1, log_variance1, mean2, log_variance2)
    lv1, lv2 = bounded(lv1), bounded(lv2)
    return _reduced(_by_dimension((m1 - m2) * (-0.5 * lv2).exp(), lv1 - lv2), reduction)


def elbo(
    log_likelihood: Tensor, mean: Tensor, log_variance: Tensor, *, beta: float = 1.0, free_bits: float = 0.0
) -> Tensor:
    r"""The NEGATIVE evidence lower bound, to be minimized:

    ``-ELBO = -(1/B) Σ_i log p(x_i | z_i) + β (1/B) Σ_i KL(q(z | x_i) ‖ N(0, I))``

    With ``free_bits`` λ > 0 the second term is ``β Σ_d max(λ, (1/B) Σ_i KL_id)``: a dimension whose mean divergence is
    below λ nats is not pressed further towards the prior.

    Shapes: ``log_likelihood`` [B] at a sample z_i ~ q (from `gaussian_log_likelihood` and its relatives; of several
    modalities: their weighted sum), ``mean``, ``log_variance`` [B, ...] of q, which may itself be a product of experts
    · result: a scalar. Sign: lower is better (minus the bound). Reduction: sum over dimensions, mean over the batch.

    Raises: BatchError where shapes do not fit; ConfigError for a negative ``beta`` or ``free_bits``.
    Paper: Kingma & Welling 2014; β: Higgins et al. 2017; free bits: Kingma et al. 2016. Pitfall: with β = 1 from the
    first step a strong decoder ignores z (posterior collapse): warm β up or give free bits.
    """
    at_least("beta", beta)
    at_least("free_bits", free_bits)
    mean, log_variance = alike("elbo", mean, log_variance)
    if log_likelihood.shape != mean.shape[:1]:
        raise BatchError(f"elbo needs log_likelihood [{len(mean)}], not {tuple(log_likelihood.shape)}.")
    (log_likelihood,) = raised(log_likelihood)
    divergence = _by_dimension(mean, bounded(log_variance)).mean(0)
    if free_bits > 0:
        divergence = divergence.clamp(min=free_bits)
    return beta * divergence.sum() - log_likelihood.mean()


def importance_bound(log_weights: Tensor) -> Tensor:
    r"""The NEGATIVE importance weighted bound (IWAE) of K samples, to be minimized:

    ``-L_K = -(1/B) Σ_i log (1/K) Σ_k exp w_ki``,  ``w_ki = log p(x_i | z_ki) + log p(z_ki) - log q(z_ki | x_i)``

    Shapes: ``log_weights`` [K, B] (further axes such as experts [K, M, B] are averaged like the batch) · result: a
    scalar, at K = 1 the one-sample negative ELBO, and never above the mean of -w. Sign: lower is better. Reduction: log
    of the mean over K, then the mean over the rest.

    Raises: BatchError where ``log_weights`` is empty or has no axis K.
    Paper: Burda et al. 2016. Pitfall: with growing K the gradient of the *encoder* drowns in noise (Rainforth et al.
    2018); large K is for measuring, small K for training.
    """
    if log_weights.ndim == 0 or log_weights.numel() == 0:
        raise BatchError(f"importance_bound needs log weights [K, B], not {tuple(log_weights.shape)}.")
    (w,) = raised(log_weights)
    return (math.log(len(w)) - w.logsumexp(0)).mean()


def sample_gaussian(mean: Tensor, log_variance: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""A sample with gradient to both parameters: ``z = μ + exp(½ log σ²) ε``, ε ~ N(0, I).

    Shapes: all [B, ...] of one shape; for K samples give expanded parameters [K, B, D]. The noise is drawn on the
    generator's device (without one: on that of ``mean``). Raises: BatchError where the shapes differ.
    Paper: Kingma & Welling 2014. Pitfall: at test time use μ, or scores change from run to run.
    """
    mean, log_variance = alike("sample_gaussian", mean, log_variance)
    device = mean.device if generator is None else generator.device
    noise = torch.randn(mean.shape, generator=generator, device=device, dtype=mean.dtype).to(mean.device)
    return mean + (0.5 * bounded(log_variance)).exp() * noise


def gaussian_log_likelihood(
    x: Tensor, reconstruction: Tensor, *, log_variance: Tensor | float = 0.0, constant: bool = True
) -> Tensor:
    r"""``log p(x | z) = -½ Σ_d ((x_d - x̂_d)² / s_d² + log s_d² + log 2π)``, [B].

    Shapes: ``x``, ``reconstruction`` [B, ...] of one shape; ``log_variance`` log s² a number or a tensor that
    broadcasts to them, clamped to [-10, 10]; the default is unit variance, half the squared error. Sign: higher is
    better. Reduction: sum over everything but the batch. ``constant`` False leaves log 2π out. Raises: BatchError where
    shapes do not fit. Pitfall: a learned s² is narrowed to the clamp by data the decoder can memorize, and then
    outweighs every other term.
    """
    x, reconstruction = alike("gaussian_log_likelihood", x, reconstruction)
    spread = bounded(torch.as_tensor(log_variance, dtype=x.dtype, device=x.device))
    try:
        spread = spread.expand_as(x)
    except RuntimeError as error:
        raise BatchError(f"log_variance {tuple(spread.shape)} does not broadcast to {tuple(x.shape)}.") from error
    cost = (x - reconstruction).square() * (-spread).exp() + spread
    return -0.5 * _by_item(cost + math.log(2 * math.pi) if constant else cost)


def laplace_log_likelihood(x: Tensor, reconstruction: Tensor, *, scale: float = 1.0, constant: bool = True) -> Tensor:
    r"""``log p(x | z) = -Σ_d (|x_d - x̂_d| / b + log 2b)``, [B], with scale b.

    Shapes: ``x``, ``reconstruction`` [B, ...] of one shape. Sign: higher is better. Reduction: sum over everything but
    the batch. ``constant`` False leaves log 2b out. Raises: BatchError where the shapes differ, ConfigError for b ≤ 0.
    Pitfall: the gradient has one size however small the error: lower the learning rate towards the end.
    """
    above("scale", scale)
    x, reconstruction = alike("laplace_log_likelihood", x, reconstruction)
    cost = (x - reconstruction).abs() / scale
    return -_by_item(cost + math.log(2 * scale) if constant else cost)


def bernoulli_log_likelihood(x: Tensor, logits: Tensor) -> Tensor:
    r"""``log p(x | z) = Σ_d (x_d l_d - log(1 + exp l_d))``, [B], with logits l.

    Shapes: ``x`` (0, 1 or between), ``logits`` [B, ...] of one shape. Sign: higher is better. Reduction: sum over
    everything but the batch. Raises: BatchError where the shapes differ. Pitfall: with x strictly between 0 and 1 this
    is no normalized density (Loaiza-Ganem & Cunningham 2019), and outside [0, 1] it has no maximum.
    """
    x, logits = alike("bernoulli_log_likelihood", x, logits)
    return _by_item(x * logits - softplus(logits))


def categorical_log_likelihood(x: Tensor, logits: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""``log p(x | z) = Σ_t (l_{t, x_t} - log Σ_c exp l_tc)``, [B], with logits l.

    Shapes: ``x`` [B, ...] integers in [0, C), ``logits`` [B, ..., C], ``mask`` [B, ...] bool, True where a token
    counts. Sign: higher is better. Reduction: sum over everything but the batch. Raises: BatchError where shapes, type
    or values do not fit. Pitfall: a sum over t makes long sequences weigh more than short ones.
    """
    if logits.ndim < 2 or logits.numel() == 0 or x.shape != logits.shape[:-1]:
        shapes = f"{tuple(x.shape)} and {tuple(logits.shape)}"
        raise BatchError(f"categorical_log_likelihood needs x [B, ...] and logits [B, ..., C], not {shapes}.")
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise BatchError(f"categorical_log_likelihood needs integer x, not {x.dtype}.")
    if mask is None:
        mask = torch.ones_like(x, dtype=torch.bool)
    if mask.shape != x.shape or mask.dtype != torch.bool:
        raise BatchError(f"mask must be bool {tuple(x.shape)}, not {mask.dtype} {tuple(mask.shape)}.")
    x = torch.where(mask, x, 0).long()
    if not bool(((x >= 0) & (x < logits.shape[-1])).all()):
        raise BatchError(f"x must lie in [0, {logits.shape[-1]}), not in [{int(x.min())}, {int(x.max())}].")
    (logits,) = raised(logits)
    chosen = logits.log_softmax(-1).gather(-1, x.unsqueeze(-1)).squeeze(-1)
    return _by_item(torch.where(mask, chosen, 0))


def _by_dimension(mean: Tensor, log_variance: Tensor) -> Tensor:
    # expm1(x) - x is exact near x = 0, where exp(x) - 1 - x has lost all digits
    return 0.5 * (mean.square() + log_variance.expm1() - log_variance)


def _by_item(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).sum(1)


def _reduced(x: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum"):
        raise ConfigError(f"reduction = {reduction!r} must be 'mean' or 'sum'.")
    return x.sum() / len(x) if reduction == "mean" else x.sum()
