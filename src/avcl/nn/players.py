"""Between two players of one game: freezing the other, balancing the gradients, judging through a fixed classifier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from avcl.errors import ConfigError
from avcl.objectives.adversarial import adversarial_weight
from avcl.objectives.inputs import above, at_least, full_precision

Norm = Literal["none", "spectral", "weight"]


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """``with frozen(D): judged = D(fake)``: a graph through D to its input, without gradient to D's parameters.

    What is computed inside may be differentiated later, outside. Parameters that were frozen before stay so, and
    buffers (spectral norm's vectors) move as ever. Within `avcl.loop` a player's turn gives gradients to its own
    parameters anyway; the context is for one phase that holds both players, and for training by hand.

    Pitfall: not `torch.no_grad`, not ``D(fake).detach()``: either would cut the generator's gradient too.
    """
    open_ones = {p for module in modules for p in module.parameters() if p.requires_grad}
    for p in open_ones:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in open_ones:
            p.requires_grad_(True)


def normalized(layer: nn.Module, norm: Norm) -> nn.Module:
    """A linear or convolution layer (or embedding) whose ``weight`` is bounded or reparametrized.

    ``spectral``: ``W / σ(W)``, σ the greatest singular value of [out, the rest] by one power iteration a training
    forward (Miyato et al. 2018): the discriminator becomes Lipschitz. ``weight``: ``g v / ‖v‖`` per output (Salimans &
    Kingma 2016), no bound. ``none``: as it is. State (``parametrizations.weight...``) is saved with the module.

    Pitfall: spectral norm moves its vectors u, v at every forward in training mode, also inside ``encode``; gradient
    caching (``micro_batch``) puts them back between its two passes, so that both see one W. In evaluation mode they
    stand still, so σ is as good as the last training steps made it. A convolution's true norm may exceed σ, by at most
    the square root of the number of taps of its kernel. Weights that are all zero have no direction: NaN.
    """
    if norm not in get_args(Norm):
        raise ConfigError(f"norm = {norm!r} must be one of {', '.join(get_args(Norm))}.")
    if norm == "spectral":
        layer = spectral_norm(layer)
        steps = cast(nn.ModuleList, cast(nn.ModuleDict, layer.parametrizations)["weight"])
        steps[0] = _FullPrecision(steps[0])
    return weight_norm(layer) if norm == "weight" else layer


class _FullPrecision(nn.Module):
    """A parametrization outside of autocast, which would round the power iteration, and mix types in it on a GPU."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, weight: Tensor) -> Tensor:
        with full_precision(weight):
            return self.inner(weight)

    def right_inverse(self, value: Tensor) -> Tensor:
        return self.inner.right_inverse(value)  # type: ignore[operator]


class GradientBalance(nn.Module):
    """The adversarial loss as strong as the reconstruction: ``scale · λ · L_adv``, λ of `adversarial_weight`.

    ``λ_t = decay λ_{t-1} + (1 - decay) min(‖∇_w L_rec‖ / (‖∇_w L_adv‖ + eps), limit)``, w the generator's last layer

    Shapes: two scalars with a graph and a parameter · result: a scalar. λ is a buffer: saved, and what is used where no
    gradient is taken (evaluation). It starts at 0, so with ``decay`` > 0 the adversary comes in slowly.

    Paper: Esser et al. 2021. Pitfall: it needs the graph from the loss to the last layer, which gradient caching does
    not keep: a system that uses it declares ``Card.limits = {"cache": reason}``. λ at ``limit`` means D has won.
    """

    value: Tensor

    def __init__(self, *, scale: float = 1.0, decay: float = 0.0, eps: float = 1e-6, limit: float = 1e4):
        super().__init__()
        at_least("scale", scale)
        above("eps", eps)
        above("limit", limit)
        if not 0 <= decay < 1:
            raise ConfigError(f"decay = {decay} must lie in [0, 1).")
        self.scale, self.decay, self.eps, self.limit = scale, decay, eps, limit
        self.register_buffer("value", torch.zeros(()))

    def forward(self, reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            now = adversarial_weight(reconstruction, adversarial, last_layer, eps=self.eps, limit=self.limit)
            self.value.lerp_(now.to(self.value), 1 - self.decay)
        return self.scale * self.value.clone() * adversarial  # a clone: the next call moves the value in its place


class FrozenClassifier(nn.Module):
    """A trained task classifier that stands still: ``p(y | x) = softmax(C(x) / temperature)``, [B, classes].

    Its parameters never learn and it stays in evaluation mode, but gradients pass through to x. The result is a
    ``Condition("vector", classes)`` of a discriminator (its prediction on real and on generated samples); ``logits``
    serve the generator's own term, cross-entropy of ``logits(x̃)`` with the class wanted.

    Paper: Athanasiadis et al. 2020 (classifier's prediction on generated samples). Pitfall: a classifier that has never
    seen generated samples can be fooled by ones that look like nothing; score them with another one.
    """

    def __init__(self, classifier: nn.Module, *, temperature: float = 1.0):
        super().__init__()
        above("temperature", temperature)
        self.classifier, self.temperature = classifier.eval().requires_grad_(False), temperature

    def train(self, mode: bool = True) -> FrozenClassifier:
        super().train(mode)
        self.classifier.eval()
        return self

    def logits(self, x: Tensor) -> Tensor:
        return self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        return (self.logits(x).float() / self.temperature).softmax(-1)
