"""Along time: gated recurrent networks in one or both directions, and dilated convolutions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from avcl.encoders.checks import a_share, at_least_one, one_of, recorded
from avcl.encoders.norm import ChannelNorm
from avcl.errors import ConfigError
from avcl.types import Stream

Cell = Literal["gru", "lstm"]


class Recurrent(nn.Module):
    """``h_t = cell(x_t, h_{t-1})`` over the recorded steps, GRU or LSTM: features [B, T, D] to [B, T, dim].

    Padding and gaps inside are skipped: the state waits, as if the steps before and behind a gap were neighbors, so
    the outputs equal those of packed sequences (and of ``torch.nn.GRU`` / ``nn.LSTM`` where all is recorded). Outputs
    at unrecorded steps are zeros. Rate and mask stay as they are. ``dim`` = hidden, or 2 · hidden with both
    directions, forward first. ``depth``: layers, ``dropout`` between them. ``learned_start``: the first state is
    trained instead of zero. ``last``: the final state of a clip. No packing takes place: the backward direction reads
    every row turned around at its own end, which needs no lengths on the CPU.

    Papers: Cho et al. 2014 (GRU), Hochreiter and Schmidhuber 1997 (LSTM). Sizes in use: 128 per direction (events),
    4 layers of 1024 (speech to image). Pitfall: with both directions every step knows the future; for what must be
    causal take ``bidirectional=False``.
    """

    def __init__(
        self,
        features: int,
        *,
        hidden: int = 64,
        depth: int = 1,
        cell: Cell = "gru",
        bidirectional: bool = True,
        dropout: float = 0.0,
        learned_start: bool = False,
    ):
        super().__init__()
        at_least_one({"features": features, "hidden": hidden, "depth": depth}, "Recurrent")
        a_share(dropout, "dropout", "Recurrent")
        one_of(cell, ("gru", "lstm"), "cell", "Recurrent")
        self.features, self.hidden, self.directions = features, hidden, 2 if bidirectional else 1
        self.dim = self.directions * hidden
        build = nn.GRU if cell == "gru" else nn.LSTM
        self.depth = depth
        widths = [features] + [self.dim] * (depth - 1)
        # Layer by layer, both directions of a layer side by side.
        self.cells = nn.ModuleList(build(w, hidden, batch_first=True) for w in widths for _ in range(self.directions))
        self.dropout = nn.Dropout(dropout)
        states = 1 if cell == "gru" else 2
        self.start = nn.Parameter(torch.zeros(depth, self.directions, states, hidden)) if learned_start else None

    def forward(self, stream: Stream) -> Stream:
        order, back = recorded_first(stream.mask)
        x = _take(recorded(stream, self.features, "Recurrent"), order)
        count = stream.mask.sum(1, keepdim=True)  # [B, 1]
        at = torch.arange(stream.mask.shape[1], device=count.device)[None]
        turned = torch.where(at < count, count - 1 - at, at)  # its own inverse
        for layer in range(self.depth):
            x = self.dropout(x) if layer else x
            parts = []
            for direction in range(self.directions):
                cell = self.cells[layer * self.directions + direction]
                y = cell(_take(x, turned) if direction else x, self._first(layer, direction, x))[0]
                parts.append(_take(y, turned) if direction else y)
            x = torch.cat(parts, 2)
        return stream._replace(data=_take(x, back).masked_fill(~stream.mask[:, :, None], 0))

    def last(self, sequence: Stream) -> Tensor:
        """The final states in what ``forward`` returned: [B, T, dim] to [B, dim]; zeros where nothing was recorded.

        Forward: the state behind the last recorded step; backward: the state behind the first.
        """
        order, _ = recorded_first(sequence.mask)
        end = order.gather(1, (sequence.mask.sum(1, keepdim=True) - 1).clamp(min=0))
        forward = _take(sequence.data[:, :, : self.hidden], end)
        backward = _take(sequence.data[:, :, self.hidden :], order[:, :1])
        return torch.cat([forward, backward], 2)[:, 0]

    def _first(self, layer: int, direction: int, x: Tensor) -> Tensor | tuple[Tensor, ...] | None:
        if self.start is None:
            return None
        states = tuple(s[None, None].expand(1, x.shape[0], -1).contiguous() for s in self.start[layer, direction])
        return states[0] if len(states) == 1 else states


class TCN(nn.Module):
    """Residual blocks of two convolutions with dilation 1, 2, 4, ...: features [B, T, D] to [B, T, dim].

    ``x ← x + conv(σ(N conv(σ(N x))))`` per block, N the layer norm of a step, σ = GELU. ``causal``: a step sees itself
    and the past only; else both sides alike. What was not recorded is zero at every layer. Rate and mask stay as they
    are. A step reaches ``receptive_field`` = 1 + 2 (width - 1)(2^depth - 1) steps.

    Paper: Bai et al. 2018 (which has weight norm and ReLU where this has layer norm and GELU). Pitfall: unlike
    ``Recurrent``, steps on both sides of a gap stay as far apart as they are.
    """

    def __init__(
        self,
        features: int,
        *,
        dim: int = 64,
        depth: int = 4,
        width: int = 3,
        causal: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        at_least_one({"features": features, "dim": dim, "depth": depth, "width": width}, "TCN")
        a_share(dropout, "dropout", "TCN")
        if not causal and width % 2 == 0:
            raise ConfigError(f"TCN: width = {width} must be odd to reach both sides alike; or make it causal.")
        self.features, self.dim, self.width, self.causal = features, dim, width, causal
        self.inward = nn.Linear(features, dim)
        self.norms = nn.ModuleList(ChannelNorm(dim) for _ in range(2 * depth))
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, width, dilation=2 ** (i // 2)) for i in range(2 * depth))
        self.dropout = nn.Dropout(dropout)

    @property
    def receptive_field(self) -> int:
        """How many steps, itself included, an output step can see."""
        return 1 + sum((self.width - 1) * 2 ** (i // 2) for i in range(len(self.convs)))

    def forward(self, stream: Stream) -> Stream:
        mask = stream.mask[:, None]  # [B, 1, T]
        x = self.inward(recorded(stream, self.features, "TCN")).transpose(1, 2) * mask
        layers = list(zip(self.norms, self.convs, strict=True))
        for i in range(0, len(layers), 2):
            y = x
            for j, (norm, conv) in enumerate(layers[i : i + 2]):
                reach = (self.width - 1) * 2 ** (i // 2)
                sides = (reach, 0) if self.causal else (reach // 2, reach // 2)
                active = self.dropout(nn.functional.gelu(norm(y))) if j else nn.functional.gelu(norm(y))
                y = conv(nn.functional.pad(active * mask, sides))
            x = (x + y) * mask
        return stream._replace(data=x.transpose(1, 2))


def recorded_first(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Two orders [B, T]: one that takes the recorded steps of each row to the front, and the one that takes it back.

    ``x.gather(1, order)`` has the recorded steps first, in their order, then the others; ``.gather(1, back)`` undoes
    it.
    """
    rank, other = mask.long().cumsum(1) - 1, (~mask).long().cumsum(1) - 1
    back = torch.where(mask, rank, other + mask.sum(1, keepdim=True))
    at = torch.arange(mask.shape[1], device=mask.device).expand_as(back)
    return torch.empty_like(back).scatter(1, back, at), back


def _take(x: Tensor, order: Tensor) -> Tensor:
    """Steps of x [B, T, D] in the order [B, N]."""
    return x.gather(1, order[:, :, None].expand(-1, -1, x.shape[2]))
