"""Streams with garbage behind their mask, and multi-head attention as a loop, for the tests of attention parts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from avcl.nn.attention import MultiHeadAttention
from avcl.types import Stream

D = 8


def features(*lengths: int, steps: int = 0, rate: float = 4.0, dim: int = D, seed: int = 0) -> Stream:
    """Clips of these lengths, padded with garbage to the longest (or ``steps``)."""
    steps = max(steps, *lengths)
    data = torch.randn(len(lengths), steps, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(steps)[None] < torch.tensor(lengths)[:, None]
    return Stream(torch.where(mask[:, :, None], data, 1e3), mask, rate)


def clip(stream: Stream, i: int) -> Tensor:
    return stream.data[i, stream.mask[i]]


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    powers = [math.exp(s - top) for s in scores]
    return [p / sum(powers) for p in powers]


def looked_up(block: MultiHeadAttention, x: Tensor, context: Tensor, seen: Tensor | None = None) -> Tensor:
    """Multi-head attention of one clip, head by head, query by query."""
    weight, shift = block.inputs.weight, block.inputs.bias
    q, k, v = (
        y @ weight[i * D : (i + 1) * D].T + shift[i * D : (i + 1) * D] for i, y in enumerate((x, context, context))
    )
    rows = []
    for t in range(len(x)):
        heads = []
        for h in range(block.heads):
            part = slice(h * D // block.heads, (h + 1) * D // block.heads)
            keys = [j for j in range(len(context)) if seen is None or seen[t, j]]
            if not keys:
                heads.append(torch.zeros(D // block.heads, dtype=torch.float64))
                continue
            shares = softmax([float(q[t, part] @ k[j, part]) / math.sqrt(D / block.heads) for j in keys])
            heads.append(sum(p * v[j, part] for p, j in zip(shares, keys, strict=True)))
        rows.append(torch.cat(heads) @ block.output.weight.T)
    return torch.stack(rows)


def build(part: nn.Module) -> nn.Module:
    return part.double().eval()
