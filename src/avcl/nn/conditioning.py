"""One modality steers the features of another: laid beside it, by scale and shift, or by attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.attention import MultiHeadAttention


def beside(x: Tensor, c: Tensor) -> Tensor:
    """``y = [x ; c]``, the condition repeated at every position: [B, C, ...] and [B, K] to [B, C + K, ...].

    The tile-and-concatenate of Gao and Grauman 2019. BatchError where the shapes do not fit.
    """
    if x.ndim < 2 or c.ndim != 2 or len(c) != len(x):
        raise BatchError(f"a condition [B, K] is laid beside x [B, C, ...], not {tuple(c.shape)} and {tuple(x.shape)}.")
    tiled = c.reshape(*c.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
    return torch.cat([x, tiled.to(x.dtype)], 1)


class Beside(nn.Module):
    """``y = net([x ; c ; ...])``: several vectors [B, K] beside x [B, C, ...] as the input of ``net``.

    The encoder and decoder of a conditional VAE, or the joint encoder of several modalities.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, *conditions: Tensor) -> Tensor:
        for c in conditions:
            x = beside(x, c)
        return self.net(x)


class FiLM(nn.Module):
    """Feature-wise linear modulation: ``y = (1 + γ(c)) x + β(c)``, γ and β linear in the condition.

    ``x`` [B, C, ...] with any number of position axes, ``c`` [B, K] · result: the shape of ``x``. Every position of a
    channel is scaled and shifted alike, so padding of ``x`` needs no mask here (but β makes its zeros nonzero: mask
    them again behind it). Perez et al. 2018. Pitfall: two of them in a row are one; a nonlinearity belongs between.
    """

    def __init__(self, channels: int, condition_dim: int):
        super().__init__()
        positive(channels=channels, condition_dim=condition_dim)
        self.channels, self.condition_dim = channels, condition_dim
        self.to_both = nn.Linear(condition_dim, 2 * channels)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[1] != self.channels or c.shape != (len(x), self.condition_dim):
            wanted = f"x [B, {self.channels}, ...] and c [B, {self.condition_dim}]"
            raise BatchError(f"FiLM needs {wanted}, not {tuple(x.shape)} and {tuple(c.shape)}.")
        scale, shift = self.to_both(c).reshape(len(x), 2, self.channels, *[1] * (x.ndim - 2)).unbind(1)
        return (1 + scale) * x + shift


class CrossAttentionCondition(nn.Module):
    """Every position looks at the condition: ``y_p = x_p + Σ_n a_pn V c_n``, ``a_p = softmax_n(Q norm(x_p) · K c_n)``.

    ``x`` [B, C, ...] (a map [B, C, H, W] or a sequence [B, C, T]), ``c`` [B, N, K] with ``mask`` [B, N] bool, True
    where there is something to look at · result: the shape of ``x``; with ``return_attention`` also the map
    [B, heads, H, W, N] (its rows sum to 1, or to 0 where nothing is there: then y = x). The sum over n has no order:
    add a position code to c where its order matters. C is a multiple of ``heads``. As in Rombach et al. 2022. Pitfall:
    the map has H·W·N entries a head; put it at the bottleneck, not at the full resolution.
    """

    def __init__(self, channels: int, condition_dim: int, heads: int = 4):
        super().__init__()
        positive(channels=channels, condition_dim=condition_dim)
        self.channels, self.condition_dim = channels, condition_dim
        self.norm = nn.LayerNorm(channels)
        self.attention = MultiHeadAttention(channels, heads=heads, context_dim=condition_dim)

    def forward(
        self, x: Tensor, c: Tensor, mask: Tensor | None = None, *, return_attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        if x.ndim < 3 or x.shape[1] != self.channels:
            raise BatchError(f"CrossAttentionCondition needs x [B, {self.channels}, ...], not {tuple(x.shape)}.")
        rows = x.flatten(2).transpose(1, 2)  # [B, P, C]
        seen, weights = self.attention(self.norm(rows), c, mask=mask, return_attention=return_attention)
        out = x + seen.transpose(1, 2).reshape(x.shape)
        if weights is not None:
            return out, weights.unflatten(2, x.shape[2:])
        return out


def positive(**sizes: int) -> None:
    """ConfigError for a size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name} = {value} must be at least 1.")
