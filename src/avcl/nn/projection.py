"""Into the common space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avcl.nn.pooling import on_clock
from avcl.types import Stream


class WhatWhen(nn.Module):
    """What is there and when it happens, as one vector: ``[ √(1-w) x̂ ; √w ŝ ]`` with ‖x̂‖ = ‖ŝ‖ = 1.

    x: a linear map of the pooled feature [B, D]. s: a linear map of every step to ``channels``, averaged into
    ``steps`` slots of the first ``seconds`` (mean over the recorded slots removed, so a constant carries no timing),
    flattened. The cosine of two such vectors is (1-w) of agreement in kind and w of agreement in time. ``dim`` =
    pooled width + channels · steps.
    """

    def __init__(
        self, pooled: int, sequence: int, width: int, *, channels: int, steps: int, seconds: float, weight: float
    ):
        super().__init__()
        self.what = nn.Linear(pooled, width)
        self.when = nn.Linear(sequence, channels)
        self.steps, self.seconds, self.weight = steps, seconds, weight
        self.dim = width + channels * steps

    def forward(self, pooled: Tensor, sequence: Stream) -> Tensor:
        what = nn.functional.normalize(self.what(pooled), dim=1)
        ones = sequence._replace(data=torch.ones_like(sequence.data[:, :, :1]))
        present = on_clock(
            ones, steps=self.steps, seconds=self.seconds
        )  # [B, steps, 1]: 1, or 0 where nothing was recorded
        track = on_clock(sequence._replace(data=self.when(sequence.data)), steps=self.steps, seconds=self.seconds)
        mean = track.sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
        # The floor keeps the rounding of a constant track (one picture, one tone) from being blown up to unit length.
        when = nn.functional.normalize(((track - mean) * present).flatten(1), dim=1, eps=1e-3)
        return torch.cat([(1 - self.weight) ** 0.5 * what, self.weight**0.5 * when], 1)
