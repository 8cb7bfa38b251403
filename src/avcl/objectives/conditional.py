"""Conditional discriminators: does the sample fit its class, or the latent of the other modality?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from avcl.errors import BatchError
from avcl.objectives.inputs import class_logits, full_precision, raised, some_logits


def projection_logits(features: Tensor, weight: Tensor, bias: Tensor | float, embedding: Tensor) -> Tensor:
    r"""The projection discriminator: ``l_i = w · φ_i + b + e_i · φ_i``, logits [B] for any of the GAN losses.

    Shapes: ``features`` φ [B, D], ``weight`` [D], ``bias`` a scalar, ``embedding`` [B, D]: row i the embedding of i's
    class, or the projected latent of its other modality. Sign: higher is more real and more fitting.

    Raises: BatchError where shapes do not fit. Paper: Miyato & Koyama 2018. Pitfall: the condition may be ignored as
    long as fakes are recognizable without it: show mismatched pairs too (`matching_discriminator`).
    """
    if features.ndim != 2 or features.shape != embedding.shape or weight.shape != features.shape[1:]:
        shapes = f"{tuple(features.shape)}, {tuple(weight.shape)}, {tuple(embedding.shape)}"
        raise BatchError(f"projection_logits needs features, embedding [B, D] and weight [D], not {shapes}.")
    offset = torch.as_tensor(bias, device=features.device)
    if offset.numel() != 1:
        raise BatchError(f"projection_logits needs one bias, not {tuple(offset.shape)}.")
    features, weight, embedding, offset = raised(features, weight, embedding, offset.reshape(()))
    with full_precision(features):
        return features @ weight + offset + (features * embedding).sum(1)


def auxiliary_classifier(real: Tensor, fake: Tensor, label: Tensor, fake_label: Tensor | None = None) -> Tensor:
    r"""The class head of a conditional discriminator, on real and on generated samples:

    ``L_C = -(1/B) Σ_i log softmax(c(x_i))[y_i] - (1/B') Σ_i log softmax(c(x̃_i))[y'_i]``

    Shapes: class logits ``real`` [B, C], ``fake`` [B', C]; ``label`` [B] integers in [0, C), ``fake_label`` [B'] those
    that the fakes were made for (default: ``label``) · result: a scalar ≥ 0. Sign: lower is better, for BOTH players:
    the generator adds the same term (through its fakes) to its loss. Reduction: two means, added.

    Raises: BatchError where shapes, type or values do not fit. Paper: Odena et al. 2017 (AC-GAN). Pitfall: generators
    drop what lies near a class boundary, since easy samples please the head: watch diversity within a class.
    """
    real, label = class_logits("auxiliary_classifier", real, label)
    fake, fake_label = class_logits("auxiliary_classifier", fake, label if fake_label is None else fake_label)
    if real.shape[1] != fake.shape[1]:
        raise BatchError(
            f"auxiliary_classifier needs the same classes for both, not {real.shape[1]} and {fake.shape[1]}."
        )
    return cross_entropy(real, label) + cross_entropy(fake, fake_label)


def matching_discriminator(real: Tensor, fake: Tensor, mismatched: Tensor) -> Tensor:
    r"""A discriminator that must use its condition: real samples beside the wrong condition count as fakes.

    ``L_D = mean softplus(-D(x, c)) + ½ [ mean softplus(D(x̃, c)) + mean softplus(D(x, c')) ]``

    Shapes: logits of any three shapes · result: a scalar > 0, 2 log 2 for one that knows nothing. Sign: lower is better
    for the discriminator; the generator's side is `gan_generator`. Reduction: means; the two kinds of fakes share one
    weight.

    Raises: BatchError where one part is empty. Paper: Reed et al. 2016. Pitfall: draw c' from another *class*: rolling
    a batch by one marks true pairs of one class as mismatched.
    """
    real, fake, mismatched = some_logits("matching_discriminator", real, fake, mismatched)
    return softplus(-real).mean() + 0.5 * (softplus(fake).mean() + softplus(mismatched).mean())


def semi_supervised_discriminator(labeled: Tensor, label: Tensor, unlabeled: Tensor, fake: Tensor) -> Tensor:
    r"""One softmax over C classes of real samples and, last, the class "generated":

    ``L_D = -mean log p(y | x, y ≤ C) - mean log (1 - p(C+1 | x_u)) - mean log p(C+1 | x̃)``

    Shapes: logits [·, C+1] with C ≥ 2; ``label`` [len(labeled)] integers in [0, C); ``unlabeled`` may repeat the
    labeled samples · result: a scalar ≥ 0. Sign: lower is better for the discriminator. Reduction: three means, added.

    Raises: BatchError where shapes, type or values do not fit, or one part is empty. Paper: Salimans et al. 2016; the
    classifier's view of generated samples as in Athanasiadis et al. 2020. Pitfall: only the difference of logits
    counts, so they may drift together: weight decay on the last layer.
    """
    labeled, unlabeled, fake = some_logits("semi_supervised_discriminator", labeled, unlabeled, fake)
    if len({x.shape[-1] for x in (labeled, unlabeled, fake)}) > 1 or {labeled.ndim, unlabeled.ndim, fake.ndim} != {2}:
        shapes = f"{tuple(labeled.shape)}, {tuple(unlabeled.shape)}, {tuple(fake.shape)}"
        raise BatchError(f"semi_supervised_discriminator needs logits [N, C+1] of one C, not {shapes}.")
    known, label = class_logits("semi_supervised_discriminator", labeled[:, :-1], label)
    odds = [x[:, -1] - x[:, :-1].logsumexp(1) for x in (unlabeled, fake)]  # of "generated" against "real"
    return cross_entropy(known, label) + softplus(odds[0]).mean() + softplus(-odds[1]).mean()


def semi_supervised_generator(fake: Tensor, label: Tensor) -> Tensor:
    r"""The generator against `semi_supervised_discriminator`: its sample must pass as real *and* as its class.

    ``L_G = -mean log p(y | x̃)`` over the softmax of all C+1

    Shapes: logits ``fake`` [N, C+1], ``label`` [N] integers in [0, C) · result: a scalar ≥ 0. Sign: lower is better for
    the generator. Reduction: mean.

    Raises: BatchError where shapes, type or values do not fit. Paper: Salimans et al. 2016; Athanasiadis et al. 2020.
    Pitfall: the discriminator's parameters must not move in this step, or it learns to call fakes real.
    """
    fake, label = class_logits("semi_supervised_generator", fake, label)
    if bool((label == fake.shape[1] - 1).any()):
        raise BatchError(
            f"semi_supervised_generator needs labels in [0, {fake.shape[1] - 1}): the last is 'generated'."
        )
    return cross_entropy(fake, label)
