"""Attention over sequences of any length at linear cost: segments, and a small memory that is carried between them.

The stream is cut into segments s = 1, 2, … of ``segment`` steps. With m_s the recorded steps of segment X_s, memory
Z_s [M, D] of M slots (Z_0 = 0), slot addresses E, and C the code of seconds since the segment's start::

    read    Y_s = X_s + MHA( LN X_s + C  →  [ Z_{s-1} + E ; LN X_s + C ] ),   out = Y_s + FFN(LN Y_s)
    write   U   = MHA( Z_{s-1} + E  →  LN X_s + C ),                          g = σ( W [Z_{s-1} + E ; U] + b )
            Z_s = (1 - g) ⊙ Z_{s-1} + g ⊙ (U - mean U) / std U                (Z_s = Z_{s-1} where m_s is empty)

A step costs O(segment + M) whatever the length, and an hour needs no more memory than a minute where it is read by
``step``. What is written has mean 0 and variance 1, so that no number of Z ever exceeds √D; b starts so that slot j
keeps what it holds for τ_j segments, τ from 2 to ``retain`` in equal ratios: some slots are quick and some slow (Tallec
& Ollivier 2018). Positions count from the start of a segment: nothing in an hour is new to what was trained on a
minute. To tell the moments of a whole clip apart, add ``SecondsEncoding`` before.

Lineage: segments with a carried state (Transformer-XL, Dai et al. 2019), a memory of fixed size for what is old
(Compressive Transformer, Rae et al. 2020; unlike Memorizing Transformers, Wu et al. 2022, whose memory grows), slots
that read a sequence by attention (Set Transformer, Lee et al. 2019; Perceiver, Jaegle et al. 2021), recurrence between
segments (Recurrent Memory Transformer, Bulatov et al. 2022; gated: Block-Recurrent Transformer, Hutchins et al. 2022).
Unlike those two, the write looks at the segment as it came in, so that reading is one attention over many segments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avcl.errors import BatchError, ConfigError
from avcl.nn.attention import FeedForward, MultiHeadAttention
from avcl.nn.positions import SecondsEncoding
from avcl.types import Stream

BLOCK = 1024  # steps that are read in one go: what they need for a moment stays in the processor's cache


class MemoryState(NamedTuple):
    """What is carried on: ``slots`` [B, M, D] in float32 or better, and how many steps were read.

    ``steps`` of the stream that is remembered, ``queries`` of the one that asks: the same where a stream reads itself.
    """

    slots: Tensor
    steps: int = 0
    queries: int = 0

    def detach(self) -> MemoryState:
        """The same state without its past: between two steps of truncated backpropagation."""
        return self._replace(slots=self.slots.detach())


class SlotMemory(nn.Module):
    """The write of the equation above: (slots [B, M, D], segment [B, S, D], mask [B, S]) to the slots after it."""

    def __init__(self, dim: int, *, slots: int = 16, heads: int = 4, retain: float = 64.0):
        super().__init__()
        if slots < 1 or not retain >= 2:
            raise ConfigError(f"a memory needs slots ≥ 1 and retain ≥ 2 segments, not {slots} and {retain:g}.")
        self.dim, self.slots = dim, slots
        self.address = nn.Parameter(torch.randn(slots, dim))
        self.attention = MultiHeadAttention(dim, heads=heads)
        self.gate = nn.Linear(2 * dim, dim, bias=False)
        keep = 2.0 * (retain / 2) ** torch.linspace(0, 1, slots)[:, None]
        self.pace = nn.Parameter(-(keep - 1).log().expand(-1, dim).clone())  # σ(pace) = 1 / keep

    def empty(self, batch: int) -> Tensor:
        """Z_0 [B, M, D]: float32 or better, for what a slow slot adds would be lost in bfloat16."""
        kind = torch.promote_types(self.address.dtype, torch.float32)
        return torch.zeros(batch, self.slots, self.dim, dtype=kind, device=self.address.device)

    def addressed(self, slots: Tensor, like: Tensor) -> Tensor:
        """Z + E, as attention reads it: [..., M, D]."""
        return slots.to(like.dtype) + self.address.to(like.dtype)

    def forward(self, slots: Tensor, segment: Tensor, mask: Tensor) -> Tensor:
        held = self.addressed(slots, segment)
        update, _ = self.attention(held, segment, mask=mask)
        gate = torch.sigmoid(self.gate(torch.cat([held, update.to(held.dtype)], 2)) + self.pace)
        fresh = nn.functional.layer_norm(update.to(slots.dtype), (self.dim,))
        changed = torch.lerp(slots, fresh, gate.to(slots.dtype))
        return torch.where(mask.any(1)[:, None, None], changed, slots)


class _Piece(NamedTuple):
    """The segments ``at`` … ``at + n - 1`` of a stream that is remembered, and the queries whose moment lies in them.

    x [B, t, D] and y [B, ≤ n · S, D'] with masks; ``spot`` [t]: the place of a query among n · ``width``, width for
    each segment; ``moment`` [t]: its second since the start of its segment.
    """

    at: int
    n: int
    x: Tensor
    x_mask: Tensor
    y: Tensor
    y_mask: Tensor
    width: int
    spot: Tensor
    moment: Tensor


def _pieces(x: Stream, y: Stream, segment: int, state: MemoryState) -> list[_Piece]:
    """Both streams cut at whole segments of y, about ``BLOCK`` steps of y a piece."""
    past, device = state.steps // segment, x.data.device
    index = torch.arange(x.data.shape[1], device=device)
    second = (index + state.queries).double() / x.rate
    place = torch.floor((second * y.rate + 1e-6) / segment).long() - past  # a millionth of a step is rounding
    if len(place) and int(place[0]) < 0:
        raise BatchError(
            f"the queries go on at {state.queries / x.rate:g} s, but the memory has read up to "
            f"{state.steps / y.rate:g} s: hand over the same seconds of both streams."
        )
    count = max(1, -(-y.data.shape[1] // segment), int(place[-1]) + 1 if len(place) else 0)
    start = torch.searchsorted(place, torch.arange(count + 1, device=device))
    width = segment if x is y else max(1, int(start.diff().max()))
    spot = place * width + index - start[place]
    moment = (second - (place + past).double() * (segment / y.rate)).clamp(min=0)
    firsts, block, pieces = start.tolist(), max(1, BLOCK // segment), []
    for a in range(0, count, block):
        b = min(a + block, count)
        asked, read = slice(firsts[a], firsts[b]), slice(a * segment, b * segment)
        ends = (x.data[:, asked], x.mask[:, asked], y.data[:, read], y.mask[:, read])
        pieces.append(_Piece(past + a, b - a, *ends, width, spot[asked] - a * width, moment[asked]))
    return pieces


class MemoryAttention(nn.Module):
    """A stream that reads itself through a memory, or with ``context`` another one; the equations stand above.

    x [B, T, dim] gives [B, T, dim] with the clock and mask of x, at any T. ``segment`` steps are attended to at once,
    which are segment / rate seconds (128 steps at 25 a second: 5.1 s); ``slots`` M vectors carry the rest. A step sees
    its whole segment, hence up to segment / rate seconds ahead; ``causal``: nothing ahead. ``bidirectional``: a second
    memory, written from the end on, is read beside the first. ``return_attention``: also the map [B, heads, T,
    M + segment], the slots (forward, then backward ones) before the steps of the own segment.

    With ``context_dim`` the memory runs over a second stream y [B, T', context_dim] (W LN Y_s in place of LN X_s), and
    x asks at its own moments: i / x.rate lies in one segment of y. Rates are free; y may end before x (what is left is
    its memory). ``segment`` counts steps of y.

    Training: ``truncate`` ends the gradient of the memory every so many segments; ``recompute`` forgets what is inside
    each block of about 1,000 steps and computes it again for the gradient (inputs and outputs alone are held). For
    memory that does not grow with the length at all, train by ``step`` and ``state.detach()``.
    Pitfall: what the memory keeps is learned; with ``truncate`` nothing further back is ever learned. Padding in front
    moves the borders of the segments: put clips at the start of their row.
    """

    def __init__(
        self,
        dim: int,
        *,
        context_dim: int | None = None,
        heads: int = 4,
        slots: int = 16,
        segment: int = 128,
        retain: float = 64.0,
        causal: bool = False,
        bidirectional: bool = False,
        truncate: int | None = None,
        recompute: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if segment < 1 or (truncate is not None and truncate < 1):
            raise ConfigError(f"segment and truncate are at least 1, not {segment} and {truncate}.")
        if causal and bidirectional:
            raise ConfigError("a causal memory cannot read backward too: choose causal or bidirectional.")
        self.dim, self.context_dim, self.segment = dim, context_dim, segment
        self.causal, self.truncate, self.recompute = causal, truncate, recompute
        self.norm = nn.LayerNorm(dim)
        self.enter = None
        if context_dim is not None:
            self.enter = nn.Sequential(nn.LayerNorm(context_dim), nn.Linear(context_dim, dim))
        self.clock = SecondsEncoding(dim)
        self.memory = SlotMemory(dim, slots=slots, heads=heads, retain=retain)
        self.ahead = SlotMemory(dim, slots=slots, heads=heads, retain=retain) if bidirectional else None
        self.read = MultiHeadAttention(dim, heads=heads, dropout=dropout)
        self.feed_norm = nn.LayerNorm(dim)
        self.feed = FeedForward(dim, dropout=dropout)

    def forward(
        self, x: Stream, context: Stream | None = None, *, return_attention: bool = False
    ) -> Stream | tuple[Stream, Tensor]:
        out, _, shown = self._run(x, context, None, return_attention)
        return (out, shown) if shown is not None else out

    def start(self, batch: int) -> MemoryState:
        """The state of ``batch`` streams before anything was read."""
        return MemoryState(self.memory.empty(batch))

    def step(self, x: Stream, state: MemoryState, context: Stream | None = None) -> tuple[Stream, MemoryState]:
        """The next segment, or several whole ones (only the last may be shorter): what ``forward`` gives there.

        With a context: its next whole segments, and the steps of x whose moments lie in them.
        """
        if self.ahead is not None:
            raise ConfigError("a bidirectional memory reads the end first: it has no step, only forward.")
        if state.steps % self.segment:
            raise BatchError(
                f"the stream ended at step {state.steps}, within a segment of {self.segment}: nothing can follow.",
                hint="Hand over whole segments; only the last one may be shorter.",
            )
        out, state, _ = self._run(x, context, state, False)
        return out, state

    def _run(
        self, x: Stream, context: Stream | None, state: MemoryState | None, show: bool
    ) -> tuple[Stream, MemoryState, Tensor | None]:
        state = self.start(len(x.data)) if state is None else state
        y = self._check(x, context, state)
        pieces = _pieces(x, y, self.segment, state)
        seconds = torch.arange(self.segment, device=y.data.device, dtype=torch.float64) / y.rate
        later = self._backward(pieces, seconds)
        slots, outputs, maps = state.slots, [], []
        for piece, ahead in zip(pieces, later, strict=True):
            if self.recompute and torch.is_grad_enabled():
                result = checkpoint(self._block, piece, slots, ahead, seconds, show, use_reentrant=False)
            else:
                result = self._block(piece, slots, ahead, seconds, show)
            out, slots, shown = result
            outputs.append(out)
            maps.append(shown)
        data = torch.cat(outputs, 1)
        done = MemoryState(slots, state.steps + y.data.shape[1], state.queries + x.data.shape[1])
        return Stream(data, x.mask, x.rate), done, torch.cat(maps, 2) if show else None

    def _backward(self, pieces: list[_Piece], seconds: Tensor) -> list[Tensor | None]:
        """For each piece the slots [B, n, M, D] that have read, from the end on, what lies behind each segment."""
        if self.ahead is None:
            return [None] * len(pieces)
        slots = self.ahead.empty(len(pieces[0].y))
        found: list[Tensor | None] = []
        for piece in reversed(pieces):
            keys, mask = self._keys(piece, seconds)
            here = []
            for i in reversed(range(piece.n)):
                here.append(slots)
                slots = self.ahead(self._cut_off(slots, piece.at + i + 1), keys[:, i], mask[:, i])
            found.append(torch.stack(here[::-1], 1))
        return found[::-1]

    def _block(
        self, piece: _Piece, slots: Tensor, later: Tensor | None, seconds: Tensor, show: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The output [B, t, D] at the queries of a piece, the slots behind it, and the map [B, h, t, M + S]."""
        (keys, mask), size = self._keys(piece, seconds), (len(piece.x), piece.n)
        before = []
        for i in range(piece.n):
            slots = self._cut_off(slots, piece.at + i)
            before.append(slots)
            slots = self.memory(slots, keys[:, i], mask[:, i])
        held = self.memory.addressed(torch.stack(before, 1), keys)  # [B, n, M, D]
        if self.ahead is not None and later is not None:
            held = torch.cat([held, self.ahead.addressed(later, keys)], 2)
        slots_count = held.shape[2]

        x, places = piece.x.masked_fill(~piece.x_mask[:, :, None], 0), piece.n * piece.width
        if self.enter is None:
            queries = keys
        else:
            coded = self.norm(x) + self.clock.code(piece.moment).to(x.dtype)
            queries = _placed(coded, piece.spot, places).unflatten(1, (piece.n, piece.width))
        pairs = None
        if self.causal:
            moment = _placed(piece.moment[None, :, None], piece.spot, places).view(piece.n, piece.width, 1)
            # A tenth of a microsecond is rounding.
            seen = seconds <= moment + 1e-7
            pairs = _with_slots(seen, slots_count).expand(len(x), -1, -1, -1).flatten(0, 1)
        found, shown = self.read(
            queries.flatten(0, 1),
            torch.cat([held, keys], 2).flatten(0, 1),
            mask=_with_slots(mask, slots_count).flatten(0, 1),
            pairs=pairs,
            return_attention=show,
        )
        x = x + _taken(found.unflatten(0, size).flatten(1, 2), piece.spot)
        out = (x + self.feed(self.feed_norm(x))).masked_fill(~piece.x_mask[:, :, None], 0)
        if shown is None:
            return out, slots, None
        shown = shown.unflatten(0, size).transpose(1, 2).flatten(2, 3)  # [B, h, places, M + S]
        return out, slots, shown[:, :, piece.spot] * piece.x_mask[:, None, :, None]

    def _keys(self, piece: _Piece, seconds: Tensor) -> tuple[Tensor, Tensor]:
        """Segments [B, n, S, D], normalized and with their seconds, and their mask [B, n, S]."""
        data = piece.y.masked_fill(~piece.y_mask[:, :, None], 0)
        missing, shape = piece.n * self.segment - data.shape[1], (piece.n, self.segment)
        keys = nn.functional.pad((self.norm if self.enter is None else self.enter)(data), (0, 0, 0, missing))
        mask = nn.functional.pad(piece.y_mask, (0, missing))
        return keys.unflatten(1, shape) + self.clock.code(seconds).to(keys.dtype), mask.unflatten(1, shape)

    def _cut_off(self, slots: Tensor, segment: int) -> Tensor:
        return slots.detach() if self.truncate is not None and segment % self.truncate == 0 else slots

    def _check(self, x: Stream, y: Stream | None, state: MemoryState) -> Stream:
        """The stream that is remembered."""
        if (y is None) != (self.context_dim is None):
            raise BatchError("memory attention takes a context where it was built with context_dim, and only there.")
        y = x if y is None else y
        for stream, dim in ((x, self.dim), (y, self.context_dim or self.dim)):
            if stream.data.ndim != 3 or stream.data.shape[2] != dim or len(stream.data) != len(x.data):
                raise BatchError(f"memory attention needs [{len(x.data)}, T, {dim}], not {tuple(stream.data.shape)}.")
        if state.slots.shape != (len(x.data), self.memory.slots, self.dim):
            raise BatchError(f"the slots {tuple(state.slots.shape)} are not those of this layer and batch.")
        return y


def _placed(data: Tensor, spot: Tensor, places: int) -> Tensor:
    """[B, t, D] at the places ``spot`` of ``places``, zeros elsewhere."""
    if data.shape[1] == places:
        return data
    return data.new_zeros(data.shape[0], places, data.shape[2]).index_copy(1, spot, data)


def _taken(data: Tensor, spot: Tensor) -> Tensor:
    """The inverse of ``_placed``."""
    return data if data.shape[1] == len(spot) else data.index_select(1, spot)


def _with_slots(mask: Tensor, slots: int) -> Tensor:
    """[..., S] and ``slots`` keys before it that everybody sees."""
    return nn.functional.pad(mask, (slots, 0), value=True)


class MemoryStack(nn.Module):
    """Layers of ``MemoryAttention`` one after the other: what a layer remembers has itself read the memory below.

    [B, T, dim] to the same; ``step`` takes and gives one state for each layer, so that a stack streams too.
    """

    def __init__(self, layers: Sequence[MemoryAttention]):
        super().__init__()
        if not layers or len({layer.dim for layer in layers}) > 1 or any(layer.context_dim for layer in layers):
            raise ConfigError("a stack needs layers of one width that read themselves.")
        self.layers, self.dim = nn.ModuleList(layers), layers[0].dim

    def forward(self, stream: Stream) -> Stream:
        for layer in self.layers:
            stream = layer(stream)
        return stream

    def start(self, batch: int) -> tuple[MemoryState, ...]:
        """The states of ``batch`` streams before anything was read."""
        return tuple(layer.start(batch) for layer in self._each())

    def step(self, segment: Stream, states: Sequence[MemoryState]) -> tuple[Stream, tuple[MemoryState, ...]]:
        """The next whole segments through all layers; segments of all layers are of one length, or multiples."""
        after = []
        for layer, state in zip(self._each(), states, strict=True):
            segment, state = layer.step(segment, state)
            after.append(state)
        return segment, tuple(after)

    def _each(self) -> Iterator[MemoryAttention]:
        for layer in self.layers:
            assert isinstance(layer, MemoryAttention)
            yield layer
