"""From a sequence to a vector or to another clock, counting only what was recorded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avcl.types import Stream


def masked_mean(data: Tensor, mask: Tensor) -> Tensor:
    """``Σ_t m_t x_t / Σ_t m_t``: [B, T, ...] and [B, T] to [B, ...]; zeros where nothing was recorded."""
    weight = mask.reshape(*mask.shape, *[1] * (data.ndim - 2)).to(data.dtype)
    return (data * weight).sum(1) / weight.sum(1).clamp(min=1)


def masked_std(data: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation over the recorded steps (divisor n): [B, T, ...] to [B, ...]."""
    return masked_mean((data - masked_mean(data, mask).unsqueeze(1)).square(), mask).sqrt()


def masked_max(data: Tensor, mask: Tensor) -> Tensor:
    """Largest value over the recorded steps: [B, T, ...] to [B, ...]; zeros where nothing was recorded."""
    keep = mask.reshape(*mask.shape, *[1] * (data.ndim - 2))
    top = data.masked_fill(~keep, torch.finfo(data.dtype).min).amax(1)
    return torch.where(mask.any(1).reshape(-1, *[1] * (data.ndim - 2)), top, 0)


def on_clock(stream: Stream, *, steps: int, seconds: float) -> Tensor:
    """The stream averaged into ``steps`` equal slots of its first ``seconds``: [B, T, D] to [B, steps, D].

    ``y_j = Σ_i m_i o_ij x_i / Σ_i m_i o_ij`` with o_ij the overlap of step i, which lasts from i/rate to (i+1)/rate,
    with slot j: the identity where both rates agree, and right for any other. A slot without anything recorded is
    zero.
    """
    data, mask, rate = stream
    start = torch.arange(data.shape[1], device=data.device, dtype=torch.float64)[:, None] / rate
    slot = torch.arange(steps, device=data.device, dtype=torch.float64)[None] * (seconds / steps)
    overlap = torch.minimum(start + 1 / rate, slot + seconds / steps) - torch.maximum(start, slot)  # [T, steps]
    # Overlaps of a millionth of a step are rounding, not time.
    overlap = torch.where(overlap * rate > 1e-6, overlap * rate, 0).to(data.dtype)
    weight = mask.to(data.dtype)[:, :, None] * overlap  # [B, T, steps]
    total = weight.sum(1)[:, :, None]  # [B, steps, 1]
    return torch.where(total > 0, weight.transpose(1, 2) @ data / total.clamp(min=1e-12), 0)


def evenly(mask: Tensor, count: int) -> Tensor:
    """Positions [B, count] of ``count`` recorded steps: the middles of ``count`` equal parts of what is there.

    Depends on the recorded steps alone, not on padding; repeats steps where there are fewer than ``count``; 0 where
    none is.
    """
    rank = mask.cumsum(1)  # [B, T]: how many are recorded up to and with this step
    recorded = rank[:, -1:]
    middle = (torch.arange(count, device=mask.device) + 0.5) / count
    wanted = (middle * recorded).floor().long() + 1  # [B, count], from 1
    found = (rank[:, None] < wanted[:, :, None]).sum(2)  # the first with that rank (ONNX has no searchsorted)
    return torch.where(recorded > 0, found, 0).clamp(max=mask.shape[1] - 1)


def lacking(size: int, part: int) -> int:
    """What ``size`` lacks to the next multiple of ``part``; without a negative modulo, whose sign exporters change."""
    return (part - size % part) % part


def strided_mask(mask: Tensor, stride: int) -> Tensor:
    """The mask after a stride: a step is recorded where any of its ``stride`` steps is; ceil(T / stride) steps."""
    if stride == 1:
        return mask
    return nn.functional.pad(mask, (0, lacking(mask.shape[1], stride))).unflatten(1, (-1, stride)).any(2)
