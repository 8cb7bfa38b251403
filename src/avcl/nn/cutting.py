"""Parts of a stream in time: the same seconds out of every modality, and time run backward."""

from __future__ import annotations

import torch
from torch import Tensor

from avcl.errors import ConfigError
from avcl.types import Stream


def recorded_seconds(stream: Stream) -> Tensor:
    """[B] float64: seconds from t = 0 to the end of the last recorded step of each row; 0 where nothing was."""
    steps = torch.arange(1, stream.mask.shape[1] + 1, device=stream.mask.device)
    return (steps * stream.mask).amax(1).to(torch.float64) / stream.rate


def cut(stream: Stream, start: Tensor, seconds: float) -> Stream:
    """``seconds`` of every row from its own ``start`` [B] (seconds): [B, T, ...] to [B, round(seconds · rate), ...].

    Starts are rounded to the steps of the stream: for sound and picture of the same moment take starts on the grid of
    the slower one. What the stream does not reach is zeros with mask False.
    """
    steps = max(1, round(seconds * stream.rate))
    first = (start * stream.rate).round().long()
    at = first[:, None] + torch.arange(steps, device=stream.data.device)  # [B, steps]
    inside = (at >= 0) & (at < stream.data.shape[1])
    at = at.clamp(0, stream.data.shape[1] - 1)
    rows = torch.arange(len(at), device=at.device)[:, None]
    mask = stream.mask[rows, at] & inside
    keep = mask.reshape(*mask.shape, *[1] * (stream.data.ndim - 2))
    return Stream(stream.data[rows, at].masked_fill(~keep, 0), mask, stream.rate)


def backward(stream: Stream) -> Stream:
    """The stream played backward, as frames or spectrogram columns can be: [B, T, ...], the mask turned with it."""
    return stream._replace(data=stream.data.flip(1), mask=stream.mask.flip(1))


def spread_starts(room: Tensor, count: int, *, rate: float) -> Tensor:
    """[B, count]: starts from 0 to ``room`` [B] seconds, evenly spread, down to whole steps of ``rate``."""
    if count < 1:
        raise ConfigError(f"count = {count} starts must be at least 1.")
    share = torch.linspace(0, 1, count, dtype=torch.float64, device=room.device)
    return on_steps(room[:, None] * (share if count > 1 else share + 0.5), rate)


def two_starts(room: Tensor, *, apart: float, rate: float, generator: torch.Generator | None = None) -> Tensor:
    """[B, 2]: two random starts in 0 to ``room`` [B] seconds, at least ``apart`` seconds from each other where that
    fits (else as far as it does), down to whole steps of ``rate``.
    """
    draws = torch.rand(len(room), 2, generator=generator, dtype=torch.float64, device=room.device)
    apart_here = torch.minimum(torch.full_like(room, apart), room / 2)
    first = draws[:, 0] * room
    second = first + apart_here + draws[:, 1] * (room - 2 * apart_here)  # on a circle as long as the room
    second = torch.where(room > 0, second.remainder(room.clamp(min=1e-9)), 0)
    return on_steps(torch.stack([first, second], 1), rate)


def on_steps(seconds: Tensor, rate: float) -> Tensor:
    """Moments brought down to the steps of a stream of that ``rate``."""
    return (seconds * rate + 1e-6).floor() / rate
