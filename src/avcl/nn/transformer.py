"""Transformers on Streams: encoder, decoder, and the cross-modal one whose queries and keys are two modalities.

Positions are seconds, so that streams of different rates share one clock. Every result is zero at unrecorded steps.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.attention import FeedForward, MultiHeadAttention, all_of, blank_rows, causal_pairs
from avcl.nn.positions import RelativeBias, SecondsEncoding
from avcl.types import Stream

Norm = Literal["pre", "post"]
Positions = Literal["sinusoidal", "learned", "relative", "none"]


class TransformerLayer(nn.Module):
    """Up to three steps, each with residual and layer norm: attention to itself, to a context, feed-forward.

    ``post``: x = LN(x + Drop(f(x))) (Vaswani et al. 2017); ``pre``: x = x + Drop(f(LN x)), which trains without
    warm-up, also normalizes the context, and wants one more LN behind the last layer. x [B, T, dim], context [B, Tk,
    context_dim]. Returns (x, map to itself, map to the context); the maps [B, h, T, ·] are None unless asked for.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        hidden: int | None = None,
        own: bool = True,
        cross: bool = False,
        context_dim: int | None = None,
        norm: Norm = "pre",
        dropout: float = 0.0,
        activation: Literal["gelu", "relu"] = "gelu",
    ):
        super().__init__()
        if context_dim is not None and not cross:
            raise ConfigError("the width of a context was given to a layer without cross-attention.")
        if norm not in ("pre", "post"):
            raise ConfigError(f'layer norm stands "pre" or "post", not "{norm}".')
        self.dim, self.norm = dim, norm
        self.own = MultiHeadAttention(dim, heads=heads, dropout=dropout) if own else None
        self.cross = MultiHeadAttention(dim, heads=heads, context_dim=context_dim, dropout=dropout) if cross else None
        self.feed = FeedForward(dim, hidden=hidden, dropout=dropout, activation=activation)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(own + cross + 1))
        width = dim if context_dim is None else context_dim
        self.context_norm = nn.LayerNorm(width) if cross and norm == "pre" else None
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        pairs: Tensor | None = None,
        bias: Tensor | None = None,
        context_mask: Tensor | None = None,
        context_pairs: Tensor | None = None,
        context_bias: Tensor | None = None,
        return_attention: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if x.ndim != 3 or x.shape[2] != self.dim:
            raise BatchError(f"this layer needs [B, T, {self.dim}], not {tuple(x.shape)}.")
        norms, own_map, cross_map = iter(self.norms), None, None
        if self.own is not None:
            norm = next(norms)
            y = norm(x) if self.norm == "pre" else x
            y, own_map = self.own(y, y, mask=mask, pairs=pairs, bias=bias, return_attention=return_attention)
            x = self._add(x, y, norm)
        if self.cross is not None:
            if context is None or context.ndim != 3 or context.shape[2] != self.cross.context_dim:
                found = "none" if context is None else str(tuple(context.shape))
                raise BatchError(f"this layer needs a context [B, T, {self.cross.context_dim}], not {found}.")
            norm = next(norms)
            y = norm(x) if self.norm == "pre" else x
            context = context if self.context_norm is None else self.context_norm(context)
            y, cross_map = self.cross(
                y, context, mask=context_mask, pairs=context_pairs, bias=context_bias, return_attention=return_attention
            )
            x = self._add(x, y, norm)
        norm = next(norms)
        x = self._add(x, self.feed(norm(x) if self.norm == "pre" else x), norm)
        return x, own_map, cross_map

    def _add(self, x: Tensor, y: Tensor, norm: nn.Module) -> Tensor:
        x = x + self.drop(y)
        return x if self.norm == "pre" else norm(x)


class Entrance(nn.Module):
    """What every Transformer does with a Stream first: check it, blank what was not recorded, map it to ``dim``, add
    the code of its seconds. Features [B, T, features] to [B, T, dim]; without ``features`` the width is ``dim``.
    """

    def __init__(self, dim: int, *, features: int | None, positions: Positions, longest: float):
        super().__init__()
        if positions not in ("sinusoidal", "learned", "relative", "none"):
            raise ConfigError(f'positions are "sinusoidal", "learned", "relative" or "none", not "{positions}".')
        self.features = dim if features is None else features
        self.map = None if features is None else nn.Linear(features, dim)
        self.code: SecondsEncoding | None = None
        if positions == "sinusoidal" or positions == "learned":
            self.code = SecondsEncoding(dim, longest=longest, kind=positions)

    def forward(self, stream: Stream) -> Stream:
        data, mask, _ = stream
        if data.ndim != 3 or data.shape[2] != self.features or mask.shape != data.shape[:2]:
            raise BatchError(
                f"a Transformer needs features [B, T, {self.features}] with a mask [B, T], "
                f"not {tuple(data.shape)} and {tuple(mask.shape)}."
            )
        stream = stream._replace(data=data.masked_fill(~mask[:, :, None], 0))
        stream = stream if self.map is None else stream._replace(data=self.map(stream.data))
        return stream if self.code is None else self.code(stream)


class TransformerEncoder(nn.Module):
    """``depth`` layers of self-attention and feed-forward: features [B, T, features] to [B, T, dim], same clock.

    ``norm``: "pre" (with a last LN) or "post". ``positions``: codes of seconds added at the entrance ("sinusoidal",
    "learned" up to ``longest`` s), a "relative" bias per head on every score (T5: buckets of seconds, shared by all
    layers; counted in ``unit`` s, 1 for tokens at rate 1), or "none" (then the output is permuted as the input is).
    ``agg``: a learned token, always recorded and without position, stands in front; ``read`` returns its last state.
    ``causal``: no step looks at later ones.

    Map (``return_attention``): [B, depth, h, T, T] (T + 1 with ``agg``, the token first); rows of unrecorded steps are
    zeros. Vaswani et al. 2017; AGG: VATT, Akbari et al. 2021. Pitfall: cost grows with T².
    """

    def __init__(
        self,
        dim: int,
        *,
        features: int | None = None,
        depth: int = 2,
        heads: int = 4,
        hidden: int | None = None,
        norm: Norm = "pre",
        positions: Positions = "sinusoidal",
        longest: float = 100.0,
        unit: float = 0.125,
        agg: bool = False,
        causal: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if agg and causal:
            raise ConfigError("a causal encoder has no AGG token: standing first, it would see nothing but itself.")
        self.dim, self.causal = dim, causal
        self.entrance = Entrance(dim, features=features, positions=positions, longest=longest)
        self.bias = RelativeBias(heads, unit=unit, causal=causal) if positions == "relative" else None
        self.agg = nn.Parameter(torch.randn(dim) * 0.02) if agg else None
        self.layers = _layers(depth, dim, heads, hidden, norm, dropout)
        self.last = nn.LayerNorm(dim) if norm == "pre" else None

    @overload
    def forward(
        self, stream: Stream, *, pairs: Tensor | None = ..., return_attention: Literal[False] = ...
    ) -> Stream: ...
    @overload
    def forward(
        self, stream: Stream, *, pairs: Tensor | None = ..., return_attention: Literal[True]
    ) -> tuple[Stream, Tensor]: ...
    def forward(
        self, stream: Stream, *, pairs: Tensor | None = None, return_attention: bool = False
    ) -> Stream | tuple[Stream, Tensor]:
        """``pairs`` [B | 1, T, T]: who may look at whom, besides what mask and ``causal`` say."""
        x, mask, maps = self._run(stream, pairs, return_attention)
        x = x if self.agg is None else x[:, 1:]
        out = stream._replace(data=x.masked_fill(~stream.mask[:, :, None], 0))
        return (out, blank_rows(torch.stack(maps, 1), mask)) if return_attention else out

    def read(self, stream: Stream, *, pairs: Tensor | None = None) -> tuple[Stream, Tensor]:
        """(the encoded stream, the AGG token's last state [B, dim]); zeros for a clip without a recorded step."""
        if self.agg is None:
            raise ConfigError("this encoder has no AGG token.", hint="Make it with agg=True, or pool its stream.")
        x, _, _ = self._run(stream, pairs, False)
        token = x[:, 0].masked_fill(~stream.mask.any(1, keepdim=True), 0)
        return stream._replace(data=x[:, 1:].masked_fill(~stream.mask[:, :, None], 0)), token

    def _run(self, stream: Stream, pairs: Tensor | None, return_attention: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        x, mask, _ = self.entrance(stream)
        pairs = all_of(pairs, causal_pairs(stream, stream) if self.causal else None)
        bias = None if self.bias is None else self.bias(stream, stream)
        if self.agg is not None:
            x = torch.cat([self.agg.to(x.dtype).expand(x.shape[0], 1, -1), x], 1)
            mask = nn.functional.pad(mask, (1, 0), value=True)
            pairs = None if pairs is None else nn.functional.pad(pairs, (1, 0, 1, 0), value=True)
            bias = None if bias is None else nn.functional.pad(bias, (1, 0, 1, 0))
        maps = []
        for layer in self.layers:
            x, shown, _ = layer(x, mask=mask, pairs=pairs, bias=bias, return_attention=return_attention)
            maps.append(shown)
        return x if self.last is None else self.last(x), mask, maps


class TransformerDecoder(nn.Module):
    """Queries that look at themselves, then at a memory: [B, T, features] and [B, Tm, memory_features] to [B, T, dim].

    ``causal`` (the default): no query looks at later ones, in order of seconds; the memory is seen whole unless
    ``pairs`` says less. Output i depends on queries up to i: hand in targets moved by ``shift_right`` and it predicts
    target i from the targets before it. Both clocks are coded in seconds. Without any memory a clip is decoded from
    its queries alone.

    Map: of the cross-attention, [B, depth, h, T, Tm]; rows of unrecorded queries are zeros. Vaswani et al. 2017.
    """

    def __init__(
        self,
        dim: int,
        *,
        features: int | None = None,
        memory_features: int | None = None,
        depth: int = 2,
        heads: int = 4,
        hidden: int | None = None,
        norm: Norm = "pre",
        positions: Positions = "sinusoidal",
        longest: float = 100.0,
        unit: float = 0.125,
        causal: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.dim, self.causal = dim, causal
        self.entrance = Entrance(dim, features=features, positions=positions, longest=longest)
        self.memory = Entrance(dim, features=memory_features, positions=positions, longest=longest)
        relative = positions == "relative"
        self.bias = RelativeBias(heads, unit=unit, causal=causal) if relative else None
        self.memory_bias = RelativeBias(heads, unit=unit) if relative else None
        self.layers = _layers(depth, dim, heads, hidden, norm, dropout, cross=True)
        self.last = nn.LayerNorm(dim) if norm == "pre" else None

    @overload
    def forward(
        self, queries: Stream, memory: Stream, *, pairs: Tensor | None = ..., return_attention: Literal[False] = ...
    ) -> Stream: ...
    @overload
    def forward(
        self, queries: Stream, memory: Stream, *, pairs: Tensor | None = ..., return_attention: Literal[True]
    ) -> tuple[Stream, Tensor]: ...
    def forward(
        self, queries: Stream, memory: Stream, *, pairs: Tensor | None = None, return_attention: bool = False
    ) -> Stream | tuple[Stream, Tensor]:
        """``pairs`` [B | 1, T, Tm]: which part of the memory a query may look at (``window_pairs``)."""
        x, mask, _ = self.entrance(queries)
        context = self.memory(memory)
        own = causal_pairs(queries, queries) if self.causal else None
        bias = None if self.bias is None else self.bias(queries, queries)
        memory_bias = None if self.memory_bias is None else self.memory_bias(queries, memory)
        maps = []
        for layer in self.layers:
            x, _, shown = layer(
                x,
                context.data,
                mask=mask,
                pairs=own,
                bias=bias,
                context_mask=memory.mask,
                context_pairs=pairs,
                context_bias=memory_bias,
                return_attention=return_attention,
            )
            maps.append(shown)
        x = x if self.last is None else self.last(x)
        out = queries._replace(data=x.masked_fill(~mask[:, :, None], 0))
        return (out, blank_rows(torch.stack(maps, 1), mask)) if return_attention else out


class CrossModalTransformer(nn.Module):
    """Modality x asks, modality y answers: ``x ← FFN(LN(x + MHA(x → y)))``, ``depth`` times; the result on x's clock.

    x [B, Tx, features] and y [B, Ty, context_features] to [B, Tx, dim], any two rates and lengths; no causal mask.
    ``update_keys=False``: every layer reads y as it came in, low-level features included (MulT, Tsai et al. 2019);
    True: y passes a self-attention layer of its own before each layer reads it. ``pairs`` [B | 1, Tx, Ty] restricts
    who looks at whom (``window_pairs``). A clip without y keeps x, passed on by residual and feed-forward.

    Map: [B, depth, h, Tx, Ty]; rows of unrecorded queries are zeros. With ``positions="none"`` the output is permuted
    as x is, and does not depend on the order of y.
    """

    def __init__(
        self,
        dim: int,
        *,
        features: int | None = None,
        context_features: int | None = None,
        depth: int = 2,
        heads: int = 4,
        hidden: int | None = None,
        norm: Norm = "pre",
        positions: Positions = "sinusoidal",
        longest: float = 100.0,
        unit: float = 0.125,
        update_keys: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.dim = dim
        self.entrance = Entrance(dim, features=features, positions=positions, longest=longest)
        self.context = Entrance(dim, features=context_features, positions=positions, longest=longest)
        self.bias = RelativeBias(heads, unit=unit) if positions == "relative" else None
        self.updates = _layers(depth, dim, heads, hidden, norm, dropout) if update_keys else None
        self.layers = _layers(depth, dim, heads, hidden, norm, dropout, own=False, cross=True)
        self.last = nn.LayerNorm(dim) if norm == "pre" else None

    @overload
    def forward(
        self, x: Stream, y: Stream, *, pairs: Tensor | None = ..., return_attention: Literal[False] = ...
    ) -> Stream: ...
    @overload
    def forward(
        self, x: Stream, y: Stream, *, pairs: Tensor | None = ..., return_attention: Literal[True]
    ) -> tuple[Stream, Tensor]: ...
    def forward(
        self, x: Stream, y: Stream, *, pairs: Tensor | None = None, return_attention: bool = False
    ) -> Stream | tuple[Stream, Tensor]:
        data, mask, _ = self.entrance(x)
        keys = self.context(y).data
        bias = None if self.bias is None else self.bias(x, y)
        maps = []
        for at, layer in enumerate(self.layers):
            if self.updates is not None:
                keys, _, _ = self.updates[at](keys, mask=y.mask)
            data, _, shown = layer(
                data,
                keys,
                context_mask=y.mask,
                context_pairs=pairs,
                context_bias=bias,
                return_attention=return_attention,
            )
            maps.append(shown)
        data = data if self.last is None else self.last(data)
        out = x._replace(data=data.masked_fill(~mask[:, :, None], 0))
        return (out, blank_rows(torch.stack(maps, 1), mask)) if return_attention else out


def shift_right(stream: Stream) -> Stream:
    """Step i holds what step i - 1 held, step 0 zeros: what a causal decoder may know of the targets [B, T, ...].

    The mask stays that of the targets. An unrecorded step hands on zeros.
    """
    keep = stream.mask.reshape(*stream.mask.shape, *[1] * (stream.data.ndim - 2))
    known = stream.data.masked_fill(~keep, 0)
    return stream._replace(data=torch.cat([torch.zeros_like(known[:, :1]), known[:, :-1]], 1))


def _layers(
    depth: int,
    dim: int,
    heads: int,
    hidden: int | None,
    norm: Norm,
    dropout: float,
    *,
    own: bool = True,
    cross: bool = False,
) -> nn.ModuleList:
    if depth < 1:
        raise ConfigError(f"a Transformer has at least one layer, not {depth}.")
    return nn.ModuleList(
        TransformerLayer(dim, heads=heads, hidden=hidden, own=own, cross=cross, norm=norm, dropout=dropout)
        for _ in range(depth)
    )
