"""Events one after another, each from those before it and from a memory: notes from gestures, words from sounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from avcl.encoders.checks import a_share, at_least_one, looked_up, one_of, recorded, recorded_tokens
from avcl.encoders.recurrent import recorded_first
from avcl.errors import ConfigError
from avcl.nn.attention import FeedForward, attend
from avcl.nn.positions import SecondsEncoding, relative_buckets, sinusoidal
from avcl.types import Stream

Core = Literal["transformer", "gru"]
# Distances between events: one bucket each up to 16, then logarithmic up to 256, then all alike.
BUCKETS, FARTHEST = 32, 256


class EventDecoder(nn.Module):
    """``p(y_i | y_1 … y_{i-1}, memory)``: targets [B, T] and a memory [B, Tm, memory_dim] to logits [B, T, vocabulary].

    The shift is inside: step i of the output predicts target i and has read the targets before it only (a learned
    start token stands in front), so the loss is ``cross_entropy(out.data[targets.mask], targets.data[targets.mask])``:
    padding of the labels takes no part. Unrecorded targets are skipped, inside too; their logits are zeros.

    ``core`` "transformer": ``depth`` layers of causal self-attention, attention to the memory, feed-forward (norm
    first), with the sinusoidal code of i, and with ``relative`` a learned bias per distance (Foley Music, Gan et al.
    2020: ``paper()``) · "gru": a GRU in place of self-attention. The memory is read as it is plus the code of its
    seconds. ``dim`` = vocabulary, the output's width; ``width``: inside. ``durations``: by how many seconds each event
    moves the clock (time shifts); then a step also knows the second that the events before it have led to, in the code
    of the memory, and reads the memory at that second: it need not add up, nor search for where it stands.

    ``generate`` writes events. Pitfall: trained with the right past, it generates from its own; give it the stop token
    in the targets, or it never learns to stop.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        memory_dim: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        hidden: int | None = None,
        core: Core = "transformer",
        relative: bool = False,
        dropout: float = 0.0,
        durations: Sequence[float] | Tensor | None = None,
    ):
        super().__init__()
        at_least_one({"vocabulary": vocabulary, "memory_dim": memory_dim, "depth": depth}, "EventDecoder")
        one_of(core, ("transformer", "gru"), "core", "EventDecoder")
        a_share(dropout, "dropout", "EventDecoder")
        if relative and core == "gru":
            raise ConfigError("EventDecoder: a relative bias is for the Transformer core; a GRU has no distances.")
        seconds = None if durations is None else torch.as_tensor(durations, dtype=torch.float32)
        if seconds is not None and seconds.shape != (vocabulary,):
            raise ConfigError(f"EventDecoder: durations are one for each of {vocabulary} events, not {len(seconds)}.")
        self.register_buffer("durations", seconds, persistent=False)
        self.here = None if seconds is None else nn.Linear(width, width)
        self.dim, self.width, self.memory_dim = vocabulary, width, memory_dim
        self.table = nn.Embedding(vocabulary, width)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.memory = nn.Linear(memory_dim, width)
        self.clock = SecondsEncoding(width)
        self.distances = nn.Parameter(torch.randn(BUCKETS, heads) * 0.02) if relative else None
        self.layers = nn.ModuleList(
            EventLayer(width, core=core, heads=heads, hidden=hidden, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, vocabulary)

    durations: Tensor | None

    @classmethod
    def paper(cls, vocabulary: int = 243, *, memory_dim: int = 512) -> EventDecoder:
        """Foley Music: 6 layers of 512, 8 heads, feed-forward 1,024, dropout 0.1, relative attention."""
        return cls(
            vocabulary, memory_dim=memory_dim, width=512, depth=6, heads=8, hidden=1024, relative=True, dropout=0.1
        )

    def forward(self, targets: Stream, memory: Stream) -> Stream:
        tokens = recorded_tokens(targets, "EventDecoder")
        order, back = recorded_first(targets.mask)
        tokens = tokens.gather(1, order)
        before = looked_up(self.table, tokens, "EventDecoder")[:, :-1]
        x = torch.cat([self.start.expand(len(before), 1, -1).to(before.dtype), before], 1)
        heard = self._heard(memory)
        x = self._coded(x, 0)
        if self.durations is not None:
            passed = self.durations[tokens].cumsum(1)
            x = self._placed(x, torch.cat([torch.zeros_like(passed[:, :1]), passed[:, :-1]], 1), heard, memory.rate)
        bias = self._bias(x, 0)
        pairs = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()[None, None]
        for layer, keys in zip(self.layers, self._keys(heard), strict=True):
            x, _ = layer(x, None, keys, mask=memory.mask, pairs=pairs, bias=bias)
        z = self.logits(self.norm(x))
        z = z.gather(1, back[:, :, None].expand(-1, -1, z.shape[2])).masked_fill(~targets.mask[:, :, None], 0)
        return targets._replace(data=z)

    @torch.no_grad()
    def generate(
        self,
        memory: Stream,
        *,
        max_steps: int,
        stop: int | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        rate: float = 1.0,
    ) -> Stream:
        """Tokens [B, N], N ≤ ``max_steps``, sampled from softmax(z / temperature), or the likeliest at temperature 0.

        A row ends with its ``stop`` token (recorded); behind it mask False and zeros. Each step computes itself only:
        what the layers have seen is kept. The same generator state gives the same tokens; sampling needs one.
        """
        at_least_one({"max_steps": max_steps}, "generate")
        if temperature < 0 or (temperature > 0 and generator is None):
            raise ConfigError(
                f"generate: temperature = {temperature} without a generator or below 0.",
                hint="Pass a torch.Generator to sample, or temperature=0 for the likeliest token.",
            )
        heard = self._heard(memory)
        x = self.start.expand(len(heard), 1, -1).to(heard.dtype)
        going = torch.ones(len(heard), dtype=torch.bool, device=heard.device)
        past: list[Tensor | None] = [None] * len(self.layers)
        keys = self._keys(heard)
        now = torch.zeros(len(heard), 1, device=heard.device)
        tokens, masks = [], []
        for step in range(max_steps):
            y, bias = self._coded(x, step), self._bias(x, step)
            y = y if self.durations is None else self._placed(y, now, heard, memory.rate)
            for i, layer in enumerate(self.layers):
                y, past[i] = layer(y, past[i], keys[i], mask=memory.mask, pairs=None, bias=bias)
            z = self.logits(self.norm(y))[:, 0]
            token = _drawn(z, temperature, generator)
            tokens.append(torch.where(going, token, 0))
            masks.append(going)
            going = going & (token != stop) if stop is not None else going
            if not going.any():
                break
            x = self.table(token)[:, None]
            now = now if self.durations is None else now + self.durations[token][:, None]
        return Stream(torch.stack(tokens, 1), torch.stack(masks, 1), rate)

    def _heard(self, memory: Stream) -> Tensor:
        data = self.memory(recorded(memory, self.memory_dim, "EventDecoder's memory"))
        return self.clock(memory._replace(data=data)).data

    def _keys(self, heard: Tensor) -> list[Tensor]:
        return [cast(EventLayer, layer).cross.keys(heard) for layer in self.layers]

    def _coded(self, x: Tensor, first: int) -> Tensor:
        """x [B, T, width] of the events number ``first`` and on, with the code of their number."""
        at = torch.arange(first, first + x.shape[1], device=x.device)
        return x + sinusoidal(at, self.width).to(x.dtype)

    def _placed(self, x: Tensor, now: Tensor, heard: Tensor, rate: float) -> Tensor:
        """x [B, T, width] with the code of the seconds ``now`` [B, T], and what is in the memory then."""
        assert self.here is not None
        steps = heard.shape[1]
        at = (now * rate).clamp(0, max(steps - 1, 0))
        low = at.floor().long()
        part = (at - low).to(heard.dtype)[:, :, None]
        rows = torch.arange(len(heard), device=heard.device)[:, None]
        there = heard[rows, low] * (1 - part) + heard[rows, (low + 1).clamp(max=steps - 1)] * part
        return x + self.clock.code(now).to(x.dtype) + self.here(there)

    def _bias(self, x: Tensor, first: int) -> Tensor | None:
        """What each head adds to the scores [1, heads, T, first + T] for the distance of two events."""
        if self.distances is None:
            return None
        at = torch.arange(first + x.shape[1], device=x.device)
        bucket = relative_buckets(at[None] - at[first:, None], buckets=BUCKETS, longest=FARTHEST, causal=True)
        return self.distances[bucket].permute(2, 0, 1)[None]


class KeptAttention(nn.Module):
    """``concat_h(attend(x W_q, c W_k, c W_v)) W_o`` in two steps: keys and values of a context once, queries at will.

    ``keys`` [B, T, dim] gives [2, B, heads, T, dim / heads]; later steps are put behind it along T, so that writing N
    events costs N steps and not N passes over all that was written.
    """

    def __init__(self, dim: int, *, heads: int, dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise ConfigError(f"the width ({dim}) is a multiple of the number of heads ({heads}).")
        self.heads, self.dropout = heads, dropout
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim, bias=False)

    def keys(self, context: Tensor) -> Tensor:
        return self.key_value(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, kept: Tensor, *, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x [B, Tq, dim] over ``keys``; ``mask`` broadcastable to [B, heads, Tq, T]."""
        q = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        out, _ = attend(q, kept[0], kept[1], mask=mask, bias=bias, dropout=dropout)
        return self.output(out.transpose(1, 2).flatten(2))


class EventLayer(nn.Module):
    """x + what came before (attention or a GRU), + attention to the memory, + feed-forward; norm first."""

    def __init__(self, dim: int, *, core: Core, heads: int, hidden: int | None, dropout: float):
        super().__init__()
        self.own = KeptAttention(dim, heads=heads, dropout=dropout) if core == "transformer" else None
        self.gru = nn.GRU(dim, dim, batch_first=True) if core == "gru" else None
        self.cross = KeptAttention(dim, heads=heads, dropout=dropout)
        self.feed = FeedForward(dim, hidden=hidden, dropout=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, past: Tensor | None, heard: Tensor, *, mask: Tensor, pairs: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``heard``: ``cross.keys`` of the memory, with its ``mask`` [B, Tm]. Returns (x, what a later step needs)."""
        y = self.norms[0](x)
        if self.own is not None:
            kept = self.own.keys(y)
            kept = kept if past is None else torch.cat([past, kept], 3)
            y = self.own(y, kept, mask=pairs, bias=bias)
        else:
            assert self.gru is not None
            y, kept = self.gru(y, past)
        x = x + self.drop(y)
        x = x + self.drop(self.cross(self.norms[1](x), heard, mask=mask[:, None, None]))
        return x + self.drop(self.feed(self.norms[2](x))), kept


def _drawn(z: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One token per row of logits [B, V]."""
    if temperature == 0:
        return z.argmax(1)
    return torch.multinomial((z.float() / temperature).softmax(1), 1, generator=generator)[:, 0]
