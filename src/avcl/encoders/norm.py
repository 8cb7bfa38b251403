"""Normalization that padding and other rows of the batch cannot reach."""

from __future__ import annotations

from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer norm over the channels of every single position: [B, C, ...], any number of position axes.

    Unlike batch norm it needs no statistics of the batch (so chunks, processes and B = 1 agree), and unlike group
    norm none of other positions (so padding changes nothing).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)
