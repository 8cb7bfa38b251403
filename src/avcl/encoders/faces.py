"""Convolutions on small pictures of one thing in the middle (a face): what it looks like, where its parts are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avcl.encoders.checks import at_least_one
from avcl.encoders.conv2d import centered
from avcl.encoders.norm import ChannelNorm
from avcl.errors import BatchError, ConfigError
from avcl.types import Stream


class PlacedConv(nn.Module):
    """Every frame for itself, the place of its parts kept: video [B, T, 3, H, W] of one ``size`` to [B, T, dim].

    ``x = (g - mean g) / (std g + .05)`` of the gray picture g: light, exposure and color cancel, and what is left is
    shape. Then 3 × 3 convolutions of stride two, one for each of ``widths``, and all cells to one vector; unlike
    ``FrameConv``, which pools the cells, it tells a mouth from an eye by where it is, and takes one size only. In
    training the picture is moved by up to ``jitter`` pixels either way and half of the clips are mirrored, all frames
    of a clip alike. Rate and mask stay as they are; unrecorded frames are zeros.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        dim: int = 128,
        widths: tuple[int, ...] = (16, 32, 64),
        jitter: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        at_least_one({"dim": dim, "height": size[0], "width": size[1]}, "PlacedConv")
        if not widths or jitter < 0:
            raise ConfigError("PlacedConv needs one width or more, and a jitter of 0 or more.")
        self.size, self.jitter, self.dim = tuple(size), jitter, dim
        channels = (1, *widths)
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in zip(channels, widths, strict=False)
        )
        self.norms = nn.ModuleList(ChannelNorm(w) for w in widths)
        cells = 1
        for side in size:
            for _ in widths:
                side = (side + 1) // 2
            cells *= side
        self.out = nn.Sequential(nn.Dropout(dropout), nn.Linear(cells * widths[-1], dim))

    def forward(self, stream: Stream) -> Stream:
        gray = centered(stream).mean(2)  # [B, T, H, W]
        if gray.shape[2:] != self.size:
            raise BatchError(f"these convolutions read pictures of {self.size}, not {tuple(gray.shape[2:])}.")
        deviation, mean = torch.std_mean(gray, (2, 3), correction=0, keepdim=True)
        x = (gray - mean) / (deviation + 0.05)
        if self.training:
            x = self._moved(x)
        x = x.flatten(0, 1)[:, None].to(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nn.functional.gelu(norm(conv(x)))
        out = self.out(x.flatten(1)).unflatten(0, stream.mask.shape)
        return stream._replace(data=out * stream.mask[:, :, None])

    def _moved(self, x: Tensor) -> Tensor:
        """Shifted and mirrored [B, T, H, W], a draw for each clip; the edge is repeated."""
        batch, _, height, width = x.shape
        mirrored = torch.rand(batch, device=x.device) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        if not self.jitter:
            return x
        j = self.jitter
        x = nn.functional.pad(x, (j, j, j, j), mode="replicate")
        rows, columns = (torch.randint(0, 2 * j + 1, (batch, 1), device=x.device) for _ in range(2))
        rows = rows + torch.arange(height, device=x.device)
        columns = columns + torch.arange(width, device=x.device)
        clip = torch.arange(batch, device=x.device)[:, None, None, None]
        step = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
        return x[clip, step, rows[:, None, :, None], columns[:, None, None, :]]
