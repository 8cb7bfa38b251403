"""Adversarial objectives: the two players of a GAN, and the adversary that tells modalities apart.

Every objective is a function of logits (or critic scores) of any shape, one value per item, patch or scale; each side
of the game has its own function. Detach the generated data in the discriminator's step; in the generator's step keep
the graph and leave the discriminator's parameters out of the optimizer. Conditions are in `conditional`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot, softplus

from avcl.errors import BatchError, ConfigError
from avcl.objectives.inputs import above, at_least, class_logits, raised, some_logits


def gan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    r"""The discriminator of the original game:

    ``L_D = mean softplus(-D(x)) + mean softplus(D(x̃))``, that is -log σ(D(x)) - log(1 - σ(D(x̃)))

    Shapes: logits ``real``, ``fake`` of any two shapes · result: a scalar > 0, 2 log 2 for one that knows nothing.
    Sign: lower is better for the discriminator. Reduction: the two means are added, not averaged.

    Raises: BatchError where one side is empty. Paper: Goodfellow et al. 2014. Pitfall: near 0 the discriminator is
    perfect and the generator learns slowly: watch D(x) and D(x̃), not the loss alone.
    """
    real, fake = some_logits("gan_discriminator", real, fake)
    return softplus(-real).mean() + softplus(fake).mean()


def gan_generator(fake: Tensor, *, saturating: bool = False) -> Tensor:
    r"""The generator of the original game:

    ``L_G = mean softplus(-D(x̃))``, or with ``saturating`` ``L_G = mean log(1 - σ(D(x̃))) = -mean softplus(D(x̃))``

    Shapes: logits ``fake`` of any shape · result: a scalar; log 2 (saturating: -log 2) at D = 0. Sign: lower is better
    for the generator; the saturating form is negative. Reduction: mean.

    Raises: BatchError where ``fake`` is empty. Paper: Goodfellow et al. 2014. Pitfall: the saturating form, the one of
    the min-max theorem, has a vanishing gradient where the discriminator wins, at the start of training.
    """
    (fake,) = some_logits("gan_generator", fake)
    return -softplus(fake).mean() if saturating else softplus(-fake).mean()


def lsgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    r"""The discriminator of the least-squares game, with the factor ½ of the paper on both terms:

    ``L_D = ½ mean (D(x) - 1)² + ½ mean D(x̃)²``

    Shapes: outputs ``real``, ``fake`` of any two shapes, no sigmoid before · result: a scalar ≥ 0. Sign: lower is
    better for the discriminator. Reduction: the two halved means are added.

    Raises: BatchError where one side is empty. Paper: Mao et al. 2017. Pitfall: many implementations leave the ½ out:
    halve the weight of theirs, or double ours, before comparing.
    """
    real, fake = some_logits("lsgan_discriminator", real, fake)
    return 0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean()


def lsgan_generator(fake: Tensor) -> Tensor:
    r"""The generator of the least-squares game, with the factor ½ of the paper: ``L_G = ½ mean (D(x̃) - 1)²``

    Shapes: outputs ``fake`` of any shape · result: a scalar ≥ 0. Sign: lower is better for the generator. Reduction:
    mean.

    Raises: BatchError where ``fake`` is empty. Paper: Mao et al. 2017. Pitfall: it also pulls down outputs above 1.
    """
    (fake,) = some_logits("lsgan_generator", fake)
    return 0.5 * (fake - 1).square().mean()


def hinge_gan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    r"""The discriminator of the hinge game: ``L_D = mean max(0, 1 - D(x)) + mean max(0, 1 + D(x̃))``

    Shapes: outputs ``real``, ``fake`` of any two shapes · result: a scalar ≥ 0; 2 at D = 0. Sign: lower is better for
    the discriminator. Reduction: the two means are added.

    Raises: BatchError where one side is empty. Paper: Lim & Ye 2017; Miyato et al. 2018. Pitfall: no gradient once both
    margins hold; bound the discriminator (spectral norm), or the generator's side drifts.
    """
    real, fake = some_logits("hinge_gan_discriminator", real, fake)
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def hinge_gan_generator(fake: Tensor) -> Tensor:
    r"""The generator of the hinge game: ``L_G = -mean D(x̃)``

    Shapes: outputs ``fake`` of any shape · result: a scalar of either sign. Sign: lower is better for the generator.
    Reduction: mean.

    Raises: BatchError where ``fake`` is empty. Paper: Lim & Ye 2017. Pitfall: not bounded below; its value says nothing
    about quality.
    """
    (fake,) = some_logits("hinge_gan_generator", fake)
    return -fake.mean()


def wgan_critic(real: Tensor, fake: Tensor) -> Tensor:
    r"""The critic of the Wasserstein game: ``L_D = mean D(x̃) - mean D(x)``

    Shapes: scores ``real``, ``fake`` of any two shapes, no sigmoid · result: a scalar; minus it estimates the distance
    W₁ times the critic's Lipschitz constant. Sign: lower is better for the critic. Reduction: means, then their
    difference.

    Raises: BatchError where one side is empty. Paper: Arjovsky et al. 2017. Pitfall: without a bound on the critic
    (`gradient_penalty`) it runs to minus infinity.
    """
    real, fake = some_logits("wgan_critic", real, fake)
    return fake.mean() - real.mean()


def wgan_generator(fake: Tensor) -> Tensor:
    r"""The generator of the Wasserstein game: ``L_G = -mean D(x̃)``

    Shapes: scores ``fake`` of any shape · result: a scalar of either sign. Sign: lower is better for the generator.
    Reduction: mean.

    Raises: BatchError where ``fake`` is empty. Paper: Arjovsky et al. 2017. Pitfall: useful only against a critic that
    had several steps for each of the generator's.
    """
    (fake,) = some_logits("wgan_generator", fake)
    return -fake.mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    *,
    generator: torch.Generator | None = None,
    target: float = 1.0,
) -> Tensor:
    r"""How far the critic's slope is from ``target`` between real and generated data, WITHOUT its weight λ (10):

    ``P = mean_i (‖∇_x̂ Σ D(x̂_i)‖₂ - target)²``,  ``x̂_i = ε_i x_i + (1 - ε_i) x̃_i``,  ε_i ~ U[0, 1]

    Shapes: ``real``, ``fake`` [B, ...] of one shape; ``critic`` maps it to scores of any shape with the batch first
    (close it over its condition, if any) · result: a scalar ≥ 0, with gradient to the critic's parameters, none to the
    data. ε is drawn on the generator's device. Sign: lower is smoother. Reduction: norm over an item, mean over items.

    Raises: BatchError where shapes differ or the critic's scores do not depend on its input; ConfigError for a negative
    target. Paper: Gulrajani et al. 2017. Pitfall: the norm is one item's own, so the critic must not mix items: no
    batch normalization in it. Where the slope is exactly 0 the penalty is target² and its gradient 0.
    """
    at_least("target", target)
    if real.shape != fake.shape or real.ndim < 2 or real.numel() == 0:
        raise BatchError(
            f"gradient_penalty needs two [B, ...] of one shape, not {tuple(real.shape)}, {tuple(fake.shape)}."
        )
    x, y = raised(real.detach(), fake.detach())
    device = x.device if generator is None else generator.device
    share = torch.rand(len(x), generator=generator, device=device, dtype=x.dtype).to(x.device)
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():  # so that the penalty can also be measured where no gradient is wanted
        between = torch.lerp(y, x, share.view(-1, *[1] * (x.ndim - 1))).to(real.dtype).requires_grad_()
        scores = critic(between)
        slope = None
        if scores.requires_grad:
            (slope,) = torch.autograd.grad(scores.sum(), between, create_graph=differentiable, allow_unused=True)
        if slope is None:
            raise BatchError("gradient_penalty needs a critic whose scores depend on its input.")
        (slope,) = raised(slope)
        square = slope.reshape(len(x), -1).square().sum(1)
        # the derivative of sqrt at 0 is infinite: replace the argument, not only the value
        steep = square > 0
        norm = torch.where(steep, torch.where(steep, square, 1).sqrt(), 0)
        return (norm - target).square().mean()


def score_gan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    r"""The discriminator that scores reality from -1 to 1: ``L_D = mean |1 - D(x)| + mean |-1 - D(x̃)|``

    Shapes: scores ``real``, ``fake`` of any two shapes, in [-1, 1] (a tanh at the end) · result: a scalar, 0 … 4; 2 at
    D = 0. Sign: lower is better for the discriminator. Reduction: the two means are added.

    Raises: BatchError where one side is empty. Paper: Fanzeres & Nadeu 2021 (there real *and* coherent with the sound).
    Pitfall: the slope is the same however right a score is; behind a tanh it saturates at both ends.
    """
    real, fake = some_logits("score_gan_discriminator", real, fake)
    return (1 - real).abs().mean() + (1 + fake).abs().mean()


def score_gan_generator(fake: Tensor) -> Tensor:
    r"""The generator against a score from -1 to 1: ``L_G = mean |1 - D(x̃)|``

    Shapes: scores ``fake`` of any shape, in [-1, 1] · result: a scalar, 0 … 2. Sign: lower is better for the generator.
    Reduction: mean.

    Raises: BatchError where ``fake`` is empty. Paper: Fanzeres & Nadeu 2021. Pitfall: weigh it well below the pixel
    loss (.01 to .1), or texture replaces content.
    """
    (fake,) = some_logits("score_gan_generator", fake)
    return (1 - fake).abs().mean()


def adversarial_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, *, eps: float = 1e-6, limit: float = 1e4
) -> Tensor:
    r"""The weight that gives an adversarial loss as much gradient as a reconstruction loss has:

    ``λ = min(‖∇_w L_rec‖ / (‖∇_w L_adv‖ + eps), limit)``, w the generator's last layer

    Shapes: the two losses are scalars with a graph, ``last_layer`` a parameter of any shape · result: a detached scalar
    ≥ 0: use it as ``L_rec + λ L_adv``. The graph is kept for the backward pass to come.

    Raises: BatchError where a loss is not a scalar or does not depend on ``last_layer``; ConfigError for ``eps`` or
    ``limit`` ≤ 0. Paper: Esser et al. 2021. Pitfall: a discriminator that has won leaves no gradient and λ runs to
    ``limit``: start the adversary late, and log λ.
    """
    above("eps", eps)
    above("limit", limit)
    norms = []
    for name, loss in (("reconstruction", reconstruction), ("adversarial", adversarial)):
        if loss.numel() != 1:
            raise BatchError(f"the {name} loss must be a scalar, not {tuple(loss.shape)}.")
        slope = None
        if loss.requires_grad and last_layer.requires_grad:
            (slope,) = torch.autograd.grad(loss, last_layer, retain_graph=True, allow_unused=True)
        if slope is None:
            raise BatchError(f"the {name} loss does not depend on last_layer.")
        norms.append(raised(slope)[0].norm())
    return (norms[0] / (norms[1] + eps)).clamp(max=limit).detach()


def reverse_gradient(x: Tensor, strength: float = 1.0) -> Tensor:
    r"""Gradient reversal: ``R(x) = x``, ``∂R/∂x = -strength · I``

    Shapes: ``x`` of any shape · result: the same values. In front of a discriminator one loss trains both players: the
    discriminator downhill, what lies before it uphill. ``strength`` ≥ 0 usually rises with progress from 0 to 1.

    Raises: ConfigError for a negative strength. Paper: Ganin & Lempitsky 2015. Pitfall: the reversed loss has no lower
    bound for the encoder, and it aligns marginals, not pairs; read the modality with a fresh probe, not with the
    adversary, before calling the gap closed.
    """
    at_least("strength", strength)
    return _Reversed.apply(x, float(strength))


def modality_discriminator(logits: Tensor, modality: Tensor) -> Tensor:
    r"""The adversary that names the modality of a code:

    ``L_D = -(1/N) Σ_i log softmax(l_i)[m_i]``

    Shapes: ``logits`` [N, M] for M ≥ 2 modalities, ``modality`` [N] integers in [0, M) · result: a scalar ≥ 0, log M
    for one that knows nothing. Sign: lower is better for the discriminator. Reduction: mean.

    Raises: BatchError where shapes, type or values do not fit. Paper: Wang et al. 2017 (ACMR). Pitfall: detach the
    codes in this step, or put `reverse_gradient` before it and give it no step of its own.
    """
    logits, modality = class_logits("modality_discriminator", logits, modality)
    return cross_entropy(logits, modality)


def modality_confusion(
    logits: Tensor, modality: Tensor | None = None, *, target: Literal["uniform", "swapped"] = "uniform"
) -> Tensor:
    r"""The encoder's side against the modality adversary: it wants every code to look like

    ``uniform``: all modalities alike, ``L_E = -(1/N) Σ_i (1/M) Σ_m log softmax(l_i)[m]``;
    ``swapped``: the others, ``L_E = -(1/N) Σ_i 1/(M-1) Σ_{m≠m_i} log softmax(l_i)[m]``

    Shapes: ``logits`` [N, M], M ≥ 2; ``modality`` [N] integers in [0, M), needed for ``swapped`` only · result: a
    scalar, at least log M for uniform, reached where the adversary is confused; ≥ 0 for swapped. Sign: lower is better
    for the encoder. Reduction: mean.

    Raises: BatchError where shapes, type or values do not fit; ConfigError for another target. Paper: uniform: Tzeng et
    al. 2015; swapped: Goodfellow et al. 2014, inverted labels. Pitfall: swapped has its optimum at the modalities
    exchanged, not mixed; uniform is the stable choice. Add it to a pair or class loss: alone it aligns only marginals.
    """
    if target not in ("uniform", "swapped"):
        raise ConfigError(f"target = {target!r} must be 'uniform' or 'swapped'.")
    if modality is None:
        if target == "swapped":
            raise BatchError("modality_confusion needs the modality of each row for the swapped target.")
        modality = torch.zeros(logits.shape[:1], dtype=torch.long, device=logits.device)
    logits, modality = class_logits("modality_confusion", logits, modality)
    scores = logits.log_softmax(1)
    if target == "uniform":
        return -scores.mean()
    own = one_hot(modality, scores.shape[1]).bool()
    return -torch.where(own, 0, scores).sum() / (len(scores) * (scores.shape[1] - 1))


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient[0], None
