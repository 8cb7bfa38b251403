"""Normalization that padding and other rows of the batch cannot reach."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from avcl.errors import ConfigError

NormName = Literal["channel", "batch"]


class ChannelNorm(nn.Module):
    """Layer norm over the channels of every single position: [B, C, ...], any number of position axes.

    Unlike batch norm it needs no statistics of the batch (so chunks, processes and B = 1 agree), and unlike group
    norm none of other positions (so padding changes nothing). Pitfall: behind a convolution without bias it forgets
    how strong its input was; ``eps`` is the variance below which weak input stays weak.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def norm_layer(kind: NormName, channels: int, *, axes: int, eps: float = 1e-5) -> ChannelNorm | nn.Module:
    """``channel``: ChannelNorm. ``batch``: torch's batch norm over ``axes`` (1, 2, 3) position axes, as in the papers.

    Batch norm breaks the contract of encoders: in training an output depends on the other rows and on padding, whose
    zeros are counted. Both have the same number of parameters; ``eps`` is that of ChannelNorm. Raises ConfigError for
    another kind.
    """
    if kind == "channel":
        return ChannelNorm(channels, eps=eps)
    if kind == "batch":
        return (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1](channels)
    raise ConfigError(f'norm="{kind}" is unknown.', hint="Use channel or batch.")
