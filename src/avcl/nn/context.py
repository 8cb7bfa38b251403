"""What attention may look at: streams of other rates on one clock, windows in seconds, several temporal scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.attention import MultiHeadAttention, ScoreName, attend_scores
from avcl.nn.pooling import on_clock
from avcl.nn.positions import SecondsEncoding
from avcl.types import Stream

Merge = Literal["concatenate", "mix"]


def recorded(part: str, stream: Stream, width: int) -> Stream:
    """The stream [B, T, width] with zeros where nothing was recorded; BatchError for any other shape."""
    if stream.data.ndim != 3 or stream.data.shape[2] != width or stream.mask.shape != stream.data.shape[:2]:
        shapes = f"{tuple(stream.data.shape)} with mask {tuple(stream.mask.shape)}"
        raise BatchError(f"{part} needs features [B, T, {width}] with mask [B, T], not {shapes}.")
    return stream._replace(data=stream.data.masked_fill(~stream.mask[:, :, None], 0))


def one_batch(part: str, *streams: Stream) -> None:
    """BatchError where the streams do not hold the same number of clips."""
    if len({len(s.mask) for s in streams}) != 1:
        raise BatchError(f"{part} needs streams of the same clips, not of {[len(s.mask) for s in streams]}.")


def clock_of(stream: Stream, clock: Stream) -> Stream:
    """``stream`` [B, T, D] on the steps of ``clock``: each step is the mean of what overlaps it, in seconds.

    The identity where both rates and lengths agree; a step is recorded where anything recorded overlaps it
    (``pooling.on_clock``), whether or not ``clock`` itself is recorded there. The joint forms of co-attention need
    their two streams brought to one clock by this.
    """
    steps, seconds = clock.mask.shape[1], clock.mask.shape[1] / clock.rate
    heard = on_clock(stream._replace(data=stream.mask[:, :, None].to(stream.data.dtype)), steps=steps, seconds=seconds)
    return Stream(on_clock(stream, steps=steps, seconds=seconds), heard[:, :, 0] > 0, clock.rate)


def strided(stream: Stream, stride: int) -> Stream:
    """Means of ``stride`` steps: ``y_j = Σ_i m_i x_i / Σ_i m_i`` over i in [j·s, (j+1)·s), recorded where any is.

    [B, T, D] to [B, ceil(T / s), D] at rate / s; the last step may have fewer members. A step without a recorded
    member is zero.
    """
    if stride < 1:
        raise ConfigError(f"stride = {stride} must be at least 1.")
    missing = -stream.mask.shape[1] % stride
    mask = nn.functional.pad(stream.mask, (0, missing)).unflatten(1, (-1, stride))  # [B, T', s]
    data = nn.functional.pad(stream.data, (0, 0, 0, missing)).unflatten(1, (-1, stride))
    total = data.masked_fill(~mask[..., None], 0).sum(2)
    return Stream(total / mask.sum(2, keepdim=True).clamp(min=1).to(total.dtype), mask.any(2), stream.rate / stride)


def span_pairs(queries: Stream, keys: Stream, *, past: float, future: float) -> Tensor:
    """Which key steps a query step may see, bool [1, Tq, Tk]: those that touch its own span and the window around it.

    Query i lasts from i/r_q to (i+1)/r_q, key j from j/r_k to (j+1)/r_k; j is seen where its span meets
    [i/r_q - past, (i+1)/r_q + future). So at equal rates, ``past = future = 0`` is the step itself and k steps on
    either side are k / rate seconds, as in ``attention.window_pairs``, which compares the instants i / r; there slow
    keys can all fall between a fast query and the end of its window, here one of them always lasts through it. Infinite
    seconds: no limit on that side. Spans that meet by less than a millionth of a step only round.
    """
    check_window(past, future)
    device = queries.mask.device
    begin = torch.arange(queries.mask.shape[1], dtype=torch.float64, device=device)[:, None] / queries.rate
    start = torch.arange(keys.mask.shape[1], dtype=torch.float64, device=device)[None] / keys.rate
    slack = 1e-6 / max(queries.rate, keys.rate)
    early = start + 1 / keys.rate > begin - past + slack
    late = start < begin + 1 / queries.rate + future - slack
    return (early & late)[None]


def check_window(past: float, future: float) -> None:
    """ConfigError for a window that is not two numbers of seconds from 0 up (infinity allowed)."""
    if not (past >= 0 and future >= 0):
        raise ConfigError(f"a window has seconds of past and future from 0 up, not {past} and {future}.")


class MultiScaleAttention(nn.Module):
    """A stream attends to a context at several temporal scales: ``X' = LN(X + O)``.

    The scales Y^(s) are the context averaged over ``strides`` steps (``strided``), or the streams of several encoders
    (slow and fast paths) handed over as a sequence. ``merge``:
    "concatenate" ``O = MHA(X → [Y^(1) + e_1 ; Y^(2) + e_2 ; ...])``, one softmax over all Σ_s T_s keys, e_s learned ·
    "mix" ``O = Σ_s w_s MHA_s(X → Y^(s))``, ``w = softmax_s(uᵀ O_s)`` over the scales where anything was recorded.

    x [B, T, dim], context [B, T_y, context_dim] or one such stream a scale · result [B, T, dim] at the rate and mask of
    x, LN(X) where the context has nothing · ``return_attention``: a tuple with a map [B, h, T, T_s] for each scale;
    a row over ALL scales sums to 1. ``positions``: queries and keys also see the code of their second.

    Source: multi-scale context as in the survey's section 3.1, slow and fast paths of Feichtenhofer et al. 2019.
    Pitfall: the longest stride averages what it spans; an event shorter than it is only in the finer scales.
    """

    def __init__(
        self,
        dim: int,
        *,
        strides: tuple[int, ...] = (1, 2, 4),
        merge: Merge = "concatenate",
        heads: int = 4,
        context_dim: int | None = None,
        score: ScoreName = "scaled_dot",
        dropout: float = 0.0,
        positions: bool = False,
    ):
        super().__init__()
        if merge not in get_args(Merge):
            raise ConfigError(f'merge = "{merge}" is unknown.', hint='Use "concatenate" or "mix".')
        if not strides or min(strides) < 1:
            raise ConfigError(f"strides = {strides} needs whole numbers from 1 up.")
        if merge == "mix" and len(strides) < 2:
            raise ConfigError('merge = "mix" needs two scales at least.', hint='Use merge="concatenate".')
        width = dim if context_dim is None else context_dim
        self.dim, self.context_dim, self.strides, self.merge = dim, width, tuple(strides), merge
        blocks = len(strides) if merge == "mix" else 1
        self.attention = nn.ModuleList(
            MultiHeadAttention(dim, heads=heads, context_dim=width, score=score, dropout=dropout) for _ in range(blocks)
        )
        self.scale = nn.Parameter(torch.randn(len(strides), width) * 0.02) if merge == "concatenate" else None
        self.weigh = nn.Linear(dim, 1, bias=False) if merge == "mix" else None
        self.query_code = SecondsEncoding(dim) if positions else None
        self.key_code = SecondsEncoding(width) if positions else None
        self.norm = nn.LayerNorm(dim)

    def scales(self, context: Stream | Sequence[Stream]) -> list[Stream]:
        """The context at every scale, checked, with zeros where nothing was recorded."""
        if isinstance(context, Stream):
            whole = recorded("MultiScaleAttention", context, self.context_dim)
            return [strided(whole, s) for s in self.strides]
        if len(context) != len(self.strides):
            raise BatchError(f"MultiScaleAttention needs {len(self.strides)} contexts, not {len(context)}.")
        return [recorded("MultiScaleAttention", c, self.context_dim) for c in context]

    def forward(
        self, x: Stream, context: Stream | Sequence[Stream], *, return_attention: bool = False
    ) -> Stream | tuple[Stream, tuple[Tensor, ...]]:
        x = recorded("MultiScaleAttention", x, self.dim)
        scales = self.scales(context)
        one_batch("MultiScaleAttention", x, *scales)
        query = x.data if self.query_code is None else self.query_code(x).data
        keys = [s.data if self.key_code is None else self.key_code(s).data for s in scales]
        seen = x.mask[:, :, None]
        if self.weigh is None:
            out, maps = self._concatenated(query, keys, scales, return_attention)
        else:
            out, maps = self._mixed(query, keys, scales, return_attention)
        result = x._replace(data=self.norm(x.data + out).masked_fill(~seen, 0))
        if not return_attention:
            return result
        return result, tuple(m.masked_fill(~seen[:, None], 0) for m in maps)

    def _concatenated(
        self, query: Tensor, keys: list[Tensor], scales: list[Stream], want: bool
    ) -> tuple[Tensor, Sequence[Tensor]]:
        assert self.scale is not None
        told = torch.cat([k + e for k, e in zip(keys, self.scale, strict=True)], 1)
        mask = torch.cat([s.mask for s in scales], 1)
        out, attended = self.attention[0](query, told, mask=mask, return_attention=want)
        return out, attended.split([k.shape[1] for k in keys], -1) if want else ()

    def _mixed(
        self, query: Tensor, keys: list[Tensor], scales: list[Stream], want: bool
    ) -> tuple[Tensor, Sequence[Tensor]]:
        assert self.weigh is not None
        blocks = zip(self.attention, keys, scales, strict=True)
        pairs = [block(query, k, mask=s.mask, return_attention=want) for block, k, s in blocks]
        outs = torch.stack([out for out, _ in pairs], 2)  # [B, T, S, D]
        there = torch.stack([s.mask.any(1) for s in scales], 1)[:, None, None]  # [B, 1, 1, S]
        out, weights = attend_scores(self.weigh(outs).mT, outs, mask=there)
        if not want:
            return out[:, :, 0], ()
        return out[:, :, 0], [m * weights[:, None, :, 0, i, None] for i, (_, m) in enumerate(pairs)]
