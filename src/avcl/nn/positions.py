"""Where a step stands: codes of its second, so that streams of different rates share one clock."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.types import Stream


def sinusoidal(positions: Tensor, dim: int, *, base: float = 10_000.0) -> Tensor:
    """``PE(p, 2i) = sin(p / base^(2i/dim))``, ``PE(p, 2i+1) = cos(·)``: positions [...] to [..., dim].

    Vaswani et al. 2017, where p counts steps; here p may be any number. Angles are taken in float64, so that an hour
    is as sharp as a second. ``dim`` is even.
    """
    if dim < 2 or dim % 2:
        raise ConfigError(f"a sinusoidal code has an even width, not {dim}.")
    kind = positions.dtype if positions.is_floating_point() else torch.float32
    power = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float64) / dim
    angle = positions.to(torch.float64)[..., None] * base**-power
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2).to(kind)


def interpolated(table: Tensor, positions: Tensor) -> Tensor:
    """Rows of a table [K, D] at fractional positions [...], linear in between, the ends held: [..., D]."""
    at = positions.clamp(0, len(table) - 1)
    low = at.floor().long().clamp(max=max(len(table) - 2, 0))
    high = (low + 1).clamp(max=len(table) - 1)
    part = (at - low).to(table.dtype)[..., None]
    return table[low] * (1 - part) + table[high] * part


def seconds_of(stream: Stream) -> Tensor:
    """The second of each step, i / rate: [T] float64."""
    return torch.arange(stream.data.shape[1], device=stream.data.device, dtype=torch.float64) / stream.rate


class SecondsEncoding(nn.Module):
    """Adds the code of second t = i / rate to step i: features [B, T, dim] (or a map [B, T, H, W, dim]) to the same.

    ``sinusoidal``: sine and cosine at dim / 2 wavelengths ``shortest · (longest / shortest)^(2i/dim)`` seconds.
    ``learned``: a table of one row every ``grid`` seconds up to ``longest``, linear in between; later steps take the
    last row. Steps of the same second get the same code whatever the rates (encoders that count steps do not have
    this). Unrecorded steps become zeros. Pitfall: the code has entries of size 1 (learned: 0.02 at first); scale
    features to match.
    """

    def __init__(
        self,
        dim: int,
        *,
        longest: float = 100.0,
        shortest: float = 0.1,
        grid: float = 0.5,
        kind: Literal["sinusoidal", "learned"] = "sinusoidal",
    ):
        super().__init__()
        if kind not in ("sinusoidal", "learned"):
            raise ConfigError(f'the code of seconds is "sinusoidal" or "learned", not "{kind}".')
        if kind == "sinusoidal" and (dim < 2 or dim % 2):
            raise ConfigError(f"a sinusoidal code has an even width, not {dim}.")
        if not 0 < shortest < longest or not 0 < grid <= longest:
            raise ConfigError(f"0 < shortest ({shortest}) < longest ({longest}), 0 < grid ({grid}) ≤ longest.")
        self.dim, self.kind, self.longest, self.shortest, self.grid = dim, kind, longest, shortest, grid
        if kind == "learned":
            self.table = nn.Parameter(torch.randn(math.ceil(longest / grid) + 1, dim) * 0.02)

    def code(self, seconds: Tensor) -> Tensor:
        """The code of any moments: [...] seconds to [..., dim]."""
        if self.kind == "learned":
            return interpolated(self.table, seconds / self.grid)
        turns = seconds.to(torch.float64) * (2 * math.pi / self.shortest)
        return sinusoidal(turns, self.dim, base=self.longest / self.shortest).to(seconds.dtype)

    def forward(self, stream: Stream) -> Stream:
        data, mask, _ = stream
        if data.ndim not in (3, 5) or data.shape[-1] != self.dim:
            raise BatchError(f"positions of width {self.dim} go onto [B, T, {self.dim}], not {tuple(data.shape)}.")
        code = self.code(seconds_of(stream)).to(data.dtype)  # [T, dim]
        inner = [1] * (data.ndim - 3)
        keep = mask.reshape(*mask.shape, *inner, 1)
        return stream._replace(data=(data + code.reshape(code.shape[0], *inner, self.dim)).masked_fill(~keep, 0))


class MapPositions(nn.Module):
    """Adds ``t + y + x``, three learned tables, to the cells of a map [B, T, H, W, dim] (VATT, Akbari et al. 2021).

    Time on a grid of seconds as in ``SecondsEncoding``; ``height`` and ``width`` are the sizes of the other tables,
    stretched linearly over maps of another size (row i of H stands at (i + ½) / H). Unrecorded steps become zeros.
    """

    def __init__(self, dim: int, *, height: int, width: int, longest: float = 100.0, grid: float = 0.5):
        super().__init__()
        if min(dim, height, width) < 1:
            raise ConfigError(f"dim ({dim}), height ({height}) and width ({width}) are at least 1.")
        self.dim = dim
        self.time = SecondsEncoding(dim, longest=longest, grid=grid, kind="learned")
        self.rows = nn.Parameter(torch.randn(height, dim) * 0.02)
        self.columns = nn.Parameter(torch.randn(width, dim) * 0.02)

    def forward(self, stream: Stream) -> Stream:
        if stream.data.ndim != 5 or stream.data.shape[-1] != self.dim:
            raise BatchError(f"map positions go onto [B, T, H, W, {self.dim}], not {tuple(stream.data.shape)}.")
        height, width = stream.data.shape[2:4]
        cells = _stretched(self.rows, height)[:, None] + _stretched(self.columns, width)[None]  # [H, W, dim]
        return self.time(stream._replace(data=stream.data + cells.to(stream.data.dtype)))


def _stretched(table: Tensor, size: int) -> Tensor:
    middle = (torch.arange(size, device=table.device, dtype=torch.float64) + 0.5) * (len(table) / size) - 0.5
    return interpolated(table, middle)


def relative_buckets(distance: Tensor, *, buckets: int = 32, longest: int = 64, causal: bool = False) -> Tensor:
    """The bucket of each distance (key minus query, whole steps), int64 of the same shape (T5, Raffel et al. 2020).

    Half of the buckets for keys ahead, half for keys at or behind the query (all of them behind if ``causal``); in
    each, the first half one bucket per step, the rest logarithmic up to ``longest``, beyond which all share the last.
    """
    if buckets < 4 or buckets % 4 or longest <= buckets // 4 * (2 if causal else 1):
        raise ConfigError(f"buckets ({buckets}) is a multiple of 4, and longest ({longest}) exceeds the exact ones.")
    count = buckets if causal else buckets // 2
    ahead = torch.zeros_like(distance, dtype=torch.int64) if causal else (distance > 0).long() * count
    size = (-distance).clamp(min=0) if causal else distance.abs()
    exact = count // 2
    far = torch.log(size.clamp(min=1).to(torch.float64) / exact) / math.log(longest / exact) * (count - exact)
    far = (exact + far.clamp(min=0).floor().long()).clamp(max=count - 1)
    return ahead + torch.where(size < exact, size.long(), far)


class RelativeBias(nn.Module):
    """A learned number per head and bucket of time difference, to be added to attention scores: [1, heads, Tq, Tk].

    The difference of seconds between key and query is counted in units of ``unit`` seconds, rounded, and put into a
    bucket by ``relative_buckets``: streams of different rates share the table. For tokens at rate 1, ``unit=1`` is T5.
    """

    def __init__(self, heads: int, *, buckets: int = 32, longest: int = 64, unit: float = 0.125, causal: bool = False):
        super().__init__()
        if heads < 1 or not unit > 0:
            raise ConfigError(f"heads ({heads}) and unit ({unit} s) are above 0.")
        relative_buckets(torch.zeros(1, dtype=torch.int64), buckets=buckets, longest=longest, causal=causal)
        self.buckets, self.longest, self.unit, self.causal = buckets, longest, unit, causal
        self.table = nn.Parameter(torch.randn(buckets, heads) * 0.02)

    def forward(self, queries: Stream, keys: Stream) -> Tensor:
        ahead = seconds_of(keys)[None] - seconds_of(queries)[:, None]  # [Tq, Tk]
        steps = (ahead / self.unit).round().long()
        bucket = relative_buckets(steps, buckets=self.buckets, longest=self.longest, causal=self.causal)
        return self.table[bucket].permute(2, 0, 1)[None]


class ModalityEmbedding(nn.Module):
    """Adds one learned vector per modality to every recorded step, so that one network can tell its inputs apart.

    [B, T, dim] to the same; ``which`` is the number of the modality, 0 ≤ which < ``modalities``.
    """

    def __init__(self, dim: int, *, modalities: int = 2):
        super().__init__()
        if dim < 1 or modalities < 1:
            raise ConfigError(f"dim ({dim}) and modalities ({modalities}) are at least 1.")
        self.dim = dim
        self.table = nn.Parameter(torch.randn(modalities, dim) * 0.02)

    def forward(self, stream: Stream, which: int) -> Stream:
        if not 0 <= which < len(self.table):
            raise BatchError(f"modality {which} is not one of 0..{len(self.table) - 1}.")
        if stream.data.ndim != 3 or stream.data.shape[-1] != self.dim:
            raise BatchError(f"a modality embedding goes onto [B, T, {self.dim}], not {tuple(stream.data.shape)}.")
        data = stream.data + self.table[which].to(stream.data.dtype)
        return stream._replace(data=data.masked_fill(~stream.mask[:, :, None], 0))


class DropToken(nn.Module):
    """In training, a random part ``keep`` of the recorded steps of each clip, in order; the identity in evaluation.

    [B, T, ...] to [B, ⌈keep · T⌉, ...]: a clip with n recorded steps keeps ⌈keep · n⌉ of them, moved to the front
    (VATT, Akbari et al. 2021, which drops one random half for all clips alike). Attention then costs keep² as much.
    Pitfall: add positions first. Afterwards step i no longer stands at i / rate; the rate is only the mean one.
    """

    def __init__(self, keep: float = 0.5):
        super().__init__()
        if not 0 < keep <= 1:
            raise ConfigError(f"the part of the steps that is kept lies in (0, 1], not {keep}.")
        self.keep = keep

    def forward(self, stream: Stream) -> Stream:
        data, mask, rate = stream
        if not self.training or self.keep == 1:
            return stream
        steps = mask.shape[1]
        noise = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, 2.0)
        rank = noise.argsort(1).argsort(1)  # recorded steps come first, in random order
        share = mask.sum(1, keepdim=True).to(torch.float64) * self.keep
        chosen = mask & (rank < (share - 1e-9).ceil())  # 0.3 of 10 steps are 3, rounding or not
        count = math.ceil(steps * self.keep - 1e-9)
        where = (~chosen).long().argsort(dim=1, stable=True)[:, :count]
        rows = torch.arange(where.shape[0], device=where.device)[:, None]
        kept = chosen[rows, where]
        picked = data[rows, where].masked_fill(~kept.reshape(*kept.shape, *[1] * (data.ndim - 2)), 0)
        return Stream(picked, kept, rate * count / steps)
