"""Stacks of dense layers as the older papers built them: Glorot's start, one activation, dropout behind each layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from avcl.errors import ConfigError, did_you_mean

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}


def dense(sizes: Sequence[int], *, activation: str, dropout: float = 0.0) -> list[nn.Module]:
    """``x ← drop(σ(x W + b))`` for each step of ``sizes`` = (D₀, D₁, ..., D_n): the layers, for ``nn.Sequential``.

    W uniform in ±√(6 / (D_{i-1} + D_i)) and b = 0 (Glorot and Bengio 2010): with sigmoids the three times smaller
    weights that torch draws leave hardly any of the input behind three layers. ConfigError for an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise ConfigError(f'activation = "{activation}" is not known.', hint=did_you_mean(activation, set(ACTIVATIONS)))
    layers: list[nn.Module] = []
    for width, size in pairwise(sizes):
        layers += [glorot(width, size), ACTIVATIONS[activation](), nn.Dropout(dropout)]
    return layers


def glorot(width: int, size: int) -> nn.Linear:
    """A linear map with Glorot's uniform weights and no offset at the start."""
    linear = nn.Linear(width, size)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
