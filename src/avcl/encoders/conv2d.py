"""Convolutions on pictures: what is in a frame, and where it changes from one frame to the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avcl.encoders.norm import ChannelNorm
from avcl.errors import BatchError
from avcl.nn.pooling import evenly
from avcl.types import Stream


def glimpses(stream: Stream, count: int) -> Stream:
    """At most ``count`` frames of each clip, evenly spread over what was recorded; all frames where there are fewer."""
    count = min(count, stream.data.shape[1])
    where = evenly(stream.mask, count)  # [B, count]
    rows = torch.arange(where.shape[0], device=where.device)[:, None]  # len() would fix the batch of an export
    rate = stream.rate * count / stream.data.shape[1]
    return Stream(stream.data[rows, where], stream.mask[rows, where], rate)


def centered(stream: Stream) -> Tensor:
    """``x - 1/2`` of a video [B, T, 3, H, W], zeros in every frame that was not recorded, whatever lies there.

    Raises BatchError for anything but colored frames as floating-point numbers.
    """
    data = stream.data
    if data.ndim != 5 or data.shape[2] != 3 or not data.is_floating_point():
        raise BatchError(
            f"frames are float [B, T, 3, H, W] in [0, 1], not {data.dtype} {list(data.shape)}.",
            hint="Batch.to(device) turns uint8 into float.",
        )
    return (data - 0.5).masked_fill(~stream.mask[:, :, None, None, None], 0.0)


class FrameConv(nn.Module):
    """Every frame for itself, at full size: video [B, T, 3, H, W] to [B, T, dim]; any H and W of at least 16 pixels.

    A stem that reads patches of 4 × 4 (the cheapest way down), two strided 3 × 3 convolutions, then mean and maximum
    over the cells side by side: dim = 2 · last width. Rate and mask stay as they are. Channels last in memory.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 96)):
        super().__init__()
        first, second, third = widths
        self.stem = nn.Conv2d(3, first, 7, stride=4, padding=3)
        self.down = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.last = nn.Conv2d(second, third, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(ChannelNorm(w) for w in widths)
        self.dim = 2 * third

    def forward(self, stream: Stream) -> Stream:
        batch, steps = stream.mask.shape
        x = centered(stream).flatten(0, 1).to(memory_format=torch.channels_last)
        for conv, norm in zip((self.stem, self.down, self.last), self.norms, strict=True):
            x = nn.functional.gelu(norm(conv(x)))
        x = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1).reshape(batch, steps, -1)
        return stream._replace(data=x * stream.mask[:, :, None])


class ChangeConv(nn.Module):
    """Motion at low resolution: video [B, T, 3, H, W] to [B, T, dim] at the rate of the frames.

    Frames become gray and are averaged to ``side`` × ``side`` first: averaging before the difference is what keeps
    one pixel of camera jitter from drowning the change. Channels: gray, change since the frame before, its magnitude
    (0 at the start and across a gap). Two strided 3 × 3 convolutions per frame, all cells to one vector, then
    convolutions over time.
    """

    def __init__(self, *, dim: int = 64, side: int = 16, widths: tuple[int, int] = (16, 32), reach: int = 5):
        super().__init__()
        self.side = side
        self.first = nn.Conv2d(3, widths[0], 3, stride=2, padding=1)
        self.second = nn.Conv2d(widths[0], widths[1], 3, stride=2, padding=1)
        self.norms = nn.ModuleList(ChannelNorm(w) for w in widths)
        self.cells = nn.Linear(widths[1] * (side // 4) ** 2, dim)
        self.time_norms = nn.ModuleList(ChannelNorm(dim) for _ in range(2))
        self.times = nn.ModuleList(nn.Conv1d(dim, dim, reach, padding=reach // 2) for _ in range(2))
        self.dim = dim

    def forward(self, stream: Stream) -> Stream:
        batch, steps = stream.mask.shape
        x = change_channels(stream, self.side).flatten(0, 1).to(memory_format=torch.channels_last)
        for conv, norm in zip((self.first, self.second), self.norms, strict=True):
            x = nn.functional.gelu(norm(conv(x)))
        x = self.cells(x.flatten(1)).reshape(batch, steps, -1).transpose(1, 2)  # [B, dim, T]
        mask = stream.mask[:, None]
        x = x * mask
        for norm, smooth in zip(self.time_norms, self.times, strict=True):
            x = (x + smooth(nn.functional.gelu(norm(x)) * mask)) * mask
        return stream._replace(data=x.transpose(1, 2))


def change_channels(stream: Stream, side: int) -> Tensor:
    """Gray, change and |change| [B, T, 3, side, side] of a video, averaged to ``side`` first; 0 where unknown."""
    # Cells first, colors second: half the time of the other order on frames that lie in memory as they were decoded.
    small = nn.functional.adaptive_avg_pool2d(stream.data.flatten(0, 1), side)
    gray = small.mean(1).reshape(*stream.mask.shape, side, side)
    both = stream.mask[:, 1:] & stream.mask[:, :-1]
    change = torch.zeros_like(gray)
    change[:, 1:] = (gray[:, 1:] - gray[:, :-1]) * both[:, :, None, None]
    return torch.stack([gray - 0.5, change * 4, change.abs() * 8], 2) * stream.mask[:, :, None, None, None]
