"""Co-attention of sound and picture: each modality reads in the other what it lacks.

Every part takes Streams with their own rate and mask. What a clip does not have gives nothing: with the other modality
missing, a stream leaves as it came (normalized where the part normalizes), without a NaN. The layers of
self-attention and co-attention together are in ``avcl.nn.transformer``; regions of pictures in ``avcl.nn.regions``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.attention import MultiHeadAttention, ScoreName, attend_scores
from avcl.nn.context import check_window, one_batch, recorded, span_pairs
from avcl.nn.positions import SecondsEncoding
from avcl.types import Stream

Order = Literal["parallel", "alternating"]
Keys = Literal["identity", "conv", "linear"]
Mixing = Literal["sum", "softmax"]
Pair = tuple[Stream, Stream]


class ResidualGate(nn.Module):
    """How much of what was read enters the residual: ``O ← σ(X W_g + O W_h + b) ⊙ O``.

    x, read [B, T, dim] to [B, T, dim]. Where nothing was read, O = 0 and the gate lets nothing through.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.own, self.other = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, read: Tensor) -> Tensor:
        return torch.sigmoid(self.own(x) + self.other(read)) * read


class CrossAttention(nn.Module):
    """One direction of co-attention: ``X' = LN(X + MHA(X → Y))``, with ``gate`` ``X' = LN(X + σ(XW_g + OW_h) ⊙ O)``.

    x [B, T, dim], context [B, T_y, context_dim], any two rates and lengths · result [B, T, dim] at the rate and mask of
    x · ``return_attention``: the map [B, heads, T, T_y], whose rows sum to 1, or to 0 where the query was not recorded
    or has no key. O = 0 where no key is recorded: X' = LN(X).

    ``past``, ``future``: seconds before and after a step that it may see of the context (``context.span_pairs``):
    co-attention over other timesteps; infinite by default. ``positions``: queries and keys (not the residual) also see
    the code of their second, so that streams of different rates share one clock; without it the order of the context
    does not matter.

    Source: the residual form of the survey's section 3.1, multi-head attention of Vaswani et al. 2017. Pitfall: a
    window narrower than the lag between sight and sound hides the very step that should be read.
    """

    def __init__(
        self,
        dim: int,
        *,
        context_dim: int | None = None,
        heads: int = 4,
        score: ScoreName = "scaled_dot",
        dropout: float = 0.0,
        gate: bool = False,
        positions: bool = False,
        past: float = math.inf,
        future: float = math.inf,
    ):
        super().__init__()
        check_window(past, future)
        self.dim, self.context_dim = dim, dim if context_dim is None else context_dim
        self.past, self.future = past, future
        self.attention = MultiHeadAttention(
            dim, heads=heads, context_dim=self.context_dim, score=score, dropout=dropout
        )
        self.gate = ResidualGate(dim) if gate else None
        self.query_code = SecondsEncoding(dim) if positions else None
        self.key_code = SecondsEncoding(self.context_dim) if positions else None
        self.norm = nn.LayerNorm(dim)

    def update(self, x: Stream, context: Stream, *, return_attention: bool = False) -> tuple[Stream, Tensor | None]:
        """X' and the map (None unless asked for)."""
        x, context = recorded("CrossAttention", x, self.dim), recorded("CrossAttention", context, self.context_dim)
        one_batch("CrossAttention", x, context)
        pairs = None
        if not (math.isinf(self.past) and math.isinf(self.future)):
            pairs = span_pairs(x, context, past=self.past, future=self.future)
        out, attended = self.attention(
            x.data if self.query_code is None else self.query_code(x).data,
            context.data if self.key_code is None else self.key_code(context).data,
            mask=context.mask,
            pairs=pairs,
            return_attention=return_attention,
        )
        if self.gate is not None:
            out = self.gate(x.data, out)
        unseen = ~x.mask[:, :, None]
        result = x._replace(data=self.norm(x.data + out).masked_fill(unseen, 0))
        return result, None if attended is None else attended.masked_fill(unseen[:, None], 0)

    def forward(
        self, x: Stream, context: Stream, *, return_attention: bool = False
    ) -> Stream | tuple[Stream, Tensor | None]:
        result, attended = self.update(x, context, return_attention=return_attention)
        return (result, attended) if return_attention else result


class PairCoAttention(nn.Module):
    """Pairwise co-attention, both directions: ``V' = LN(V + MHA(V → A))``, ``A' = LN(A + MHA(A → V))``.

    ``order`` "parallel": each reads the other as it came · "alternating": the picture reads first, and the sound then
    reads V'. audio [B, T_a, dim], video [B, T_v, dim] · result (A', V') at their own rates and masks ·
    ``return_attention``: (map [B, h, T_a, T_v], map [B, h, T_v, T_a]). ``gate``, ``positions``, ``past`` and ``future``
    (seconds) as in ``CrossAttention``.

    Source: pairwise co-attention of the survey's section 3.1; parallel and alternating as in Lu et al. 2016. Pitfall:
    "alternating" is not symmetric, so swapping the arguments is another model.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        order: Order = "parallel",
        score: ScoreName = "scaled_dot",
        dropout: float = 0.0,
        gate: bool = False,
        positions: bool = False,
        past: float = math.inf,
        future: float = math.inf,
    ):
        super().__init__()
        if order not in get_args(Order):
            raise ConfigError(f'order = "{order}" is unknown.', hint='Use "parallel" or "alternating".')
        self.dim, self.order = dim, order
        self.audio, self.video = (
            CrossAttention(
                dim,
                heads=heads,
                score=score,
                dropout=dropout,
                gate=gate,
                positions=positions,
                past=past,
                future=future,
            )
            for _ in range(2)
        )

    def forward(
        self, audio: Stream, video: Stream, *, return_attention: bool = False
    ) -> Pair | tuple[Pair, tuple[Tensor | None, Tensor | None]]:
        seen, video_map = self.video.update(video, audio, return_attention=return_attention)
        context = seen if self.order == "alternating" else video
        heard, audio_map = self.audio.update(audio, context, return_attention=return_attention)
        return ((heard, seen), (audio_map, video_map)) if return_attention else (heard, seen)


class AffinityCoAttention(nn.Module):
    """Co-attention by one shared affinity: ``C = tanh(A W_c Vᵀ)``, ``A' = A + softmax_v(C) V W_1``,
    ``V' = V + softmax_a(Cᵀ) A W_2``.

    audio [B, T_a, dim], video [B, T_v, dim], any lengths · result (A', V') · ``return_attention``: (softmax_v(C)
    [B, 1, T_a, T_v], softmax_a(Cᵀ) [B, 1, T_v, T_a]), rows summing to 1, or 0 where nothing was recorded.

    Source: Lu et al. 2016 (the affinity). Pitfall: tanh holds the scores in [-1, 1], so no weight is more than e² times
    another: over many steps the attention stays near the mean.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.affinity, self.into_audio, self.into_video = (nn.Linear(dim, dim, bias=False) for _ in range(3))

    def forward(
        self, audio: Stream, video: Stream, *, return_attention: bool = False
    ) -> Pair | tuple[Pair, tuple[Tensor, Tensor]]:
        audio, video = (recorded("AffinityCoAttention", s, self.dim) for s in (audio, video))
        one_batch("AffinityCoAttention", audio, video)
        affinity = torch.tanh(self.affinity(audio.data) @ video.data.mT)  # [B, Ta, Tv]
        both = audio.mask[:, :, None] & video.mask[:, None]
        heard, over_video = attend_scores(affinity, video.data, mask=both)
        seen, over_audio = attend_scores(affinity.mT, audio.data, mask=both.mT)
        pair = (
            audio._replace(data=audio.data + self.into_audio(heard)),
            video._replace(data=video.data + self.into_video(seen)),
        )
        return (pair, (over_video[:, None], over_audio[:, None])) if return_attention else pair


class _JointUnit(nn.Module):
    """One unit of ``JointCoAttention``: both streams read the joint representation; [B, T, dim] each."""

    def __init__(self, dim: int, *, keys: Keys, steps: int | None, reach: int, dropout: float):
        super().__init__()
        self.joint = nn.Linear(2 * dim, 2 * dim)
        self.key: nn.ModuleList = nn.ModuleList()
        for _ in range(2):
            if keys == "linear":
                self.key.append(nn.Linear(steps or 0, steps or 0))
            elif keys == "conv":
                self.key.append(nn.Conv1d(1, 1, reach, padding=reach // 2))
        self.lift = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))
        self.lower = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(2))
        self.of_affinity, self.of_result = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, pair: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        audio, video = pair
        joint = self.joint(torch.cat([video, audio], 2))
        after, affinities = [], []
        for i, (x, mask) in enumerate(zip(pair, masks, strict=True)):
            keep = mask[:, :, None]
            rows = x.mT  # [B, D, T]
            if self.key:
                key = self.key[i]
                rows = key(rows) if isinstance(key, nn.Linear) else key(rows.reshape(-1, 1, x.shape[1])).view_as(rows)
            rows = rows.masked_fill(~keep.mT, 0)
            affinity = torch.tanh(rows @ joint / math.sqrt(joint.shape[2]))  # [B, D, 2D]
            read = torch.relu(torch.tanh(self.lift[i](x) @ self.of_affinity(affinity)))  # [B, T, 2D]
            result = x + self.of_result(torch.relu(self.lower[i](read)))
            after.append(result.masked_fill(~keep, 0))
            affinities.append(affinity)
        return after, affinities


class JointCoAttention(nn.Module):
    """Joint co-attention with recursion: ``J = [V ; A] W_J``, ``C_x = tanh(K(x)ᵀ J / √(2d))``,
    ``x ← x + relu(relu(tanh(x W C_x)) W_o)`` for x = A and x = V, ``units`` times.

    The affinity [d, 2d] is between CHANNELS of one modality and of both together, summed over time; there is no
    softmax. audio, video [B, T, dim] of EQUAL rate and length, else BatchError: bring them to one clock first
    (``context.clock_of(audio, video)``, that is ``pooling.on_clock``) · result (A', V') · ``return_attention``: the
    affinities of the last unit (C_a, C_v) [B, dim, 2 dim], in (-1, 1).

    ``shared``: the units are one unit applied again and again. ``keys``, how K acts on time: "identity" · "conv", a
    kernel of ``reach`` steps, the same for every channel · "linear", a T × T matrix as in the authors' code, for
    sequences of exactly ``steps`` steps. Unrecorded steps are zeroed before K and after it: they never enter the sum.

    Source: Duan et al. 2021 (``paper()``: 512 wide, 4 units of their own weights, 10 steps). Pitfall: the sum over time
    is not divided by T, so long clips drive the tanh into saturation; scale the input down or shorten the clip.
    """

    def __init__(
        self,
        dim: int,
        *,
        units: int = 2,
        shared: bool = False,
        keys: Keys = "identity",
        steps: int | None = None,
        reach: int = 3,
        dropout: float = 0.0,
    ):
        super().__init__()
        if keys not in get_args(Keys):
            raise ConfigError(f'keys = "{keys}" is unknown.', hint='Use "identity", "conv" or "linear".')
        if (keys == "linear") != (steps is not None):
            raise ConfigError('steps belongs to keys = "linear", which needs it: the number of steps of every clip.')
        if units < 1 or reach < 1 or reach % 2 == 0 or (steps is not None and steps < 1):
            raise ConfigError(f"units = {units} and steps = {steps} must be at least 1, reach = {reach} odd.")
        self.dim, self.count, self.steps = dim, units, steps
        self.units = nn.ModuleList(
            _JointUnit(dim, keys=keys, steps=steps, reach=reach, dropout=dropout) for _ in range(1 if shared else units)
        )

    @classmethod
    def paper(cls) -> JointCoAttention:
        return cls(512, units=4, keys="linear", steps=10, dropout=0.3)

    def forward(
        self, audio: Stream, video: Stream, *, return_attention: bool = False
    ) -> Pair | tuple[Pair, tuple[Tensor, Tensor]]:
        audio, video = (recorded("JointCoAttention", s, self.dim) for s in (audio, video))
        if audio.mask.shape != video.mask.shape or not math.isclose(audio.rate, video.rate, rel_tol=1e-6):
            shapes = f"{tuple(audio.mask.shape)} at {audio.rate:g}/s and {tuple(video.mask.shape)} at {video.rate:g}/s"
            raise BatchError(
                f"joint co-attention needs two streams of one rate and length, not {shapes}.",
                hint="Bring one to the clock of the other: avcl.nn.context.clock_of(audio, video).",
            )
        if self.steps is not None and audio.mask.shape[1] != self.steps:
            raise BatchError(f'keys = "linear" was built for {self.steps} steps, not {audio.mask.shape[1]}.')
        pair, masks = [audio.data, video.data], (audio.mask, video.mask)
        affinities: list[Tensor] = []
        for i in range(self.count):
            pair, affinities = self.units[i % len(self.units)](pair, masks)
        result = audio._replace(data=pair[0]), video._replace(data=pair[1])
        return (result, (affinities[0], affinities[1])) if return_attention else result


class MultiPairCoAttention(nn.Module):
    """Co-attention of M streams, every one with every other: ``X_i' = LN(X_i + Σ_{j≠i} g_ij O_ij)``,
    ``O_ij = MHA_ij(X_i → X_j)``.

    ``mixing`` "sum": g = 1 · "softmax": ``g_ij,t = softmax_{j≠i}(u_ijᵀ O_ij,t)`` over the streams that are there, for
    three streams or more. ``shared``: one block for all ordered pairs instead of M (M - 1). streams: M Streams
    [B, T_i, dim] of any rates · result a tuple of M Streams · ``return_attention``: {(i, j): map [B, h, T_i, T_j]},
    without the gates. A missing stream gives nothing and takes no share of the gates.

    Source: the survey's section 3.1, co-attention over several pairs. Pitfall: parameters grow with M².
    """

    def __init__(
        self,
        dim: int,
        streams: int,
        *,
        heads: int = 4,
        mixing: Mixing = "sum",
        shared: bool = False,
        score: ScoreName = "scaled_dot",
        dropout: float = 0.0,
        positions: bool = False,
    ):
        super().__init__()
        if mixing not in get_args(Mixing):
            raise ConfigError(f'mixing = "{mixing}" is unknown.', hint='Use "sum" or "softmax".')
        if streams < 2:
            raise ConfigError(f"streams = {streams} must be at least 2.")
        if mixing == "softmax" and streams < 3:
            raise ConfigError(
                'mixing = "softmax" weighs two other streams at least.', hint="Use three streams or more."
            )
        self.dim, self.count = dim, streams
        self.pairs = [(i, j) for i in range(streams) for j in range(streams) if i != j]
        blocks = 1 if shared else len(self.pairs)
        self.blocks = nn.ModuleList(
            MultiHeadAttention(dim, heads=heads, score=score, dropout=dropout) for _ in range(blocks)
        )
        self.weigh = nn.ModuleList(nn.Linear(dim, 1, bias=False) for _ in range(blocks if mixing == "softmax" else 0))
        self.code = SecondsEncoding(dim) if positions else None
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(streams))

    def forward(
        self, streams: Sequence[Stream], *, return_attention: bool = False
    ) -> tuple[Stream, ...] | tuple[tuple[Stream, ...], dict[tuple[int, int], Tensor]]:
        if len(streams) != self.count:
            raise BatchError(f"MultiPairCoAttention was built for {self.count} streams, not {len(streams)}.")
        streams = [recorded("MultiPairCoAttention", s, self.dim) for s in streams]
        one_batch("MultiPairCoAttention", *streams)
        coded = [s.data if self.code is None else self.code(s).data for s in streams]
        maps: dict[tuple[int, int], Tensor] = {}
        read: list[list[Tensor]] = [[] for _ in streams]
        scores: list[list[Tensor]] = [[] for _ in streams]
        for number, (i, j) in enumerate(self.pairs):
            block = number % len(self.blocks)
            mask = streams[j].mask
            out, attended = self.blocks[block](coded[i], coded[j], mask=mask, return_attention=return_attention)
            read[i].append(out)
            if self.weigh:
                scores[i].append(self.weigh[block](out))
            if return_attention:
                maps[i, j] = attended.masked_fill(~streams[i].mask[:, None, :, None], 0)
        result = tuple(
            s._replace(data=self.norms[i](s.data + self._sum(i, streams, read[i], scores[i])))
            for i, s in enumerate(streams)
        )
        result = tuple(s._replace(data=s.data.masked_fill(~s.mask[:, :, None], 0)) for s in result)
        return (result, maps) if return_attention else result

    def _sum(self, i: int, streams: Sequence[Stream], read: list[Tensor], scores: list[Tensor]) -> Tensor:
        outs = torch.stack(read, 2)  # [B, T, M-1, D]
        if not scores:
            return outs.sum(2)
        there = torch.stack([s.mask.any(1) for j, s in enumerate(streams) if j != i], 1)[:, None, None]
        return attend_scores(torch.stack(scores, 3), outs, mask=there)[0][:, :, 0]
