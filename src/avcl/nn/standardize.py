"""Columns of features brought to one scale, by what the training rows are like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from avcl.nn.pooling import masked_mean
from avcl.objectives.correlation import Moments, add_moments
from avcl.types import Batch

LEAST = 1e-6  # a column that varies less is constant


class Standardize(nn.Module):
    """``(x - mean) / deviation`` column by column: [..., dim] to the same; the identity until it ``learns``.

    A column that never varied in training keeps its scale: divided by nothing, its first change elsewhere would drown
    all others. Mean and deviation are buffers, saved with the module.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation

    @torch.no_grad()
    def learn(self, moments: Moments) -> None:
        found = (moments.scatter.diagonal() / moments.n).sqrt()
        self.mean.copy_(moments.mean)
        self.deviation.copy_(torch.where(found > LEAST, found, 1.0))


def learn_scales(scales: Mapping[str, Standardize], batches: Iterable[Batch]) -> None:
    """Each of ``scales`` {stream: module} from the mean over time of every clip that has the stream, in one pass."""
    moments: dict[str, Moments | None] = dict.fromkeys(scales)
    for batch in batches if scales else ():
        for name in scales:
            (stream,) = batch.require(name)
            rows = masked_mean(stream.data.float(), stream.mask)[stream.mask.any(1)]
            moments[name] = add_moments(moments[name], rows) if len(rows) else moments[name]
    for name, found in moments.items():
        if found is not None:
            scales[name].learn(found)
