"""Small streams for the tests of the Transformers."""

from __future__ import annotations

import torch
from torch import Tensor

from avcl.types import Stream

DIM = 8
PUSH = torch.tensor([3.0, -2.0, 1.0, 0.0, -4.0, 2.0, 5.0, -3.0])  # no constant: layer norm would not see it


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stream(steps: int, rate: float, *, dim: int = DIM, batch: int = 3, seed: int = 0) -> Stream:
    return Stream(random(batch, steps, dim, seed=seed), torch.ones(batch, steps, dtype=torch.bool), rate)


def padded(given: Stream, extra: int, garbage: float = 1e20) -> Stream:
    tail = torch.full((len(given.data), extra, given.data.shape[2]), garbage)
    mask = torch.zeros(len(given.mask), extra, dtype=torch.bool)
    return Stream(torch.cat([given.data, tail], 1), torch.cat([given.mask, mask], 1), given.rate)


def missing(given: Stream, item: int = 1) -> Stream:
    mask = given.mask.clone()
    mask[item] = False
    return given._replace(mask=mask)


def turned(given: Stream, order: Tensor) -> Stream:
    return given._replace(data=given.data[:, order], mask=given.mask[:, order])
