"""Attention over the places of a picture: which region does the sound point at?

A map is a Stream [B, T, H, W, D] of cells, patches or boxes (boxes: H boxes, W = 1). ``places`` [B, T, H, W] bool says
which of them are there (pictures of another size, missing detections); without it all are. Sound may have any rate: a
frame hears the mean of the sound during its span, from i / rate to (i + 1) / rate seconds (``context.clock_of``), which
is the sound step at its time where the sound is not faster. Attention maps come back as [B, T, H, W], a recorded
frame's summing to 1, to be laid over the picture.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.attention import MultiHeadAttention, Score, ScoreName, attend_scores
from avcl.nn.coattention import ResidualGate
from avcl.nn.context import check_window, clock_of, one_batch, recorded, span_pairs
from avcl.nn.pooling import masked_mean
from avcl.objectives.regularizers import invariance
from avcl.types import Stream

Spread = Literal["l2", "cosine", "kl"]
Read = Literal["alone", "guided", "both"]


def cells_of(part: str, regions: Stream, width: int, places: Tensor | None) -> tuple[Tensor, Tensor]:
    """The cells [B, T, N, width] of a map, N = H · W, with zeros where nothing is, and which are there [B, T, N]."""
    data, mask = regions.data, regions.mask
    if data.ndim != 5 or data.shape[4] != width or mask.shape != data.shape[:2]:
        shapes = f"{tuple(data.shape)} with mask {tuple(mask.shape)}"
        raise BatchError(f"{part} needs a map [B, T, H, W, {width}] with mask [B, T], not {shapes}.")
    there = mask[:, :, None].expand(-1, -1, data.shape[2] * data.shape[3])
    if places is not None:
        if places.shape != data.shape[:4] or places.dtype != torch.bool:
            raise BatchError(f"{part} needs places bool {tuple(data.shape[:4])}, not {tuple(places.shape)}.")
        there = there & places.flatten(2)
    return data.flatten(2, 3).masked_fill(~there[..., None], 0), there


def _read(scores: Tensor, cells: Tensor, regions: Stream, there: Tensor, want: bool) -> Stream | tuple[Stream, Tensor]:
    """``v_t = Σ_p softmax_p(s_tp) R_tp`` [B, T, D], recorded where a region is, and the map [B, T, H, W] if wanted."""
    out, weights = attend_scores(scores, cells, mask=there[:, :, None])  # [B, T, 1, N] over [B, T, N, D]
    result = Stream(out[:, :, 0], there.any(2), regions.rate)
    return (result, weights.view(regions.data.shape[:4])) if want else result


class RegionAttention(nn.Module):
    """Sound looks for its place: ``α_tp = softmax_p s(a_t, R_tp)``, ``v_t = Σ_p α_tp R_tp``.

    ``score``: one of ``attention.Score``, after both sides are mapped to ``hidden``. sound [B, T_a, sound_dim], regions
    [B, T, H, W, region_dim] · result [B, T, region_dim] at the frames' rate, recorded where a region is ·
    ``return_attention``: α [B, T, H, W]. Where nothing is heard during a frame its query is zero: products and cosine
    then weigh all regions alike.

    Source: the region form of the survey's section 3.1. Pitfall: the values are the raw regions, so scale and
    normalization of the features below go through.
    """

    def __init__(self, sound_dim: int, region_dim: int, *, hidden: int = 128, score: ScoreName = "scaled_dot"):
        super().__init__()
        self.sound_dim, self.region_dim, self.dim = sound_dim, region_dim, region_dim
        self.query, self.key = nn.Linear(sound_dim, hidden, bias=False), nn.Linear(region_dim, hidden, bias=False)
        self.score = Score(score, hidden)

    def forward(
        self, sound: Stream, regions: Stream, *, places: Tensor | None = None, return_attention: bool = False
    ) -> Stream | tuple[Stream, Tensor]:
        sound = recorded("RegionAttention", sound, self.sound_dim)
        cells, there = cells_of("RegionAttention", regions, self.region_dim, places)
        one_batch("RegionAttention", sound, regions)
        scores = self.score(self.query(clock_of(sound, regions).data)[:, :, None], self.key(cells))
        return _read(scores, cells, regions, there, return_attention)


class AudioGuidedAttention(nn.Module):
    """Audio-guided visual attention: ``s_tp = wᵀ tanh(W_r relu(U_r R_tp) + W_a relu(U_a a_t))``, softmax over p,
    ``v_t = Σ_p α_tp R_tp`` of the raw regions.

    Shapes as ``RegionAttention``. ``units``: width of the tanh layer; the paper has as many as regions (49), which
    binds nothing: any grid fits. ``paper()``: 128-wide sound, 512-wide regions, 512 hidden, 49 units.

    Source: Tian et al. 2018 (AVEL). Pitfall: sound moves the scores only through the tanh; with small weights they are
    additive in a and R, and the attention hardly depends on the sound.
    """

    def __init__(self, sound_dim: int, region_dim: int, *, hidden: int = 128, units: int = 49):
        super().__init__()
        self.sound_dim, self.region_dim, self.dim = sound_dim, region_dim, region_dim
        self.sound, self.region = nn.Linear(sound_dim, hidden), nn.Linear(region_dim, hidden)
        self.of_sound, self.of_region = (nn.Linear(hidden, units, bias=False) for _ in range(2))
        self.weigh = nn.Linear(units, 1, bias=False)

    @classmethod
    def paper(cls) -> AudioGuidedAttention:
        return cls(128, 512, hidden=512, units=49)

    def forward(
        self, sound: Stream, regions: Stream, *, places: Tensor | None = None, return_attention: bool = False
    ) -> Stream | tuple[Stream, Tensor]:
        sound = recorded("AudioGuidedAttention", sound, self.sound_dim)
        cells, there = cells_of("AudioGuidedAttention", regions, self.region_dim, places)
        one_batch("AudioGuidedAttention", sound, regions)
        heard = clock_of(sound, regions)
        guide = self.of_sound(torch.relu(self.sound(heard.data))).masked_fill(~heard.mask[:, :, None], 0)
        scores = self.weigh(torch.tanh(self.of_region(torch.relu(self.region(cells))) + guide[:, :, None])).mT
        return _read(scores, cells, regions, there, return_attention)


class RegionSelfAttention(nn.Module):
    """The regions of a frame look at each other: ``R_t' = LN(R_t + MHA(R_t → R_t))``, every frame for itself.

    [B, T, H, W, dim] to the same shape, zeros where no region is. It knows no places: exchanging regions exchanges the
    results. Source: self-attention over objects (Vaswani et al. 2017), the "instance attention" of the survey.
    Pitfall: the attention inside is [B · T, heads, N, N]; pool a fine grid first.
    """

    def __init__(self, dim: int, *, heads: int = 4, dropout: float = 0.0):
        super().__init__()
        self.dim = dim
        self.attention = MultiHeadAttention(dim, heads=heads, dropout=dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, regions: Stream, *, places: Tensor | None = None) -> Stream:
        cells, there = cells_of("RegionSelfAttention", regions, self.dim, places)
        rows, mask = cells.flatten(0, 1), there.flatten(0, 1)  # [B * T, N, D]
        out, _ = self.attention(rows, rows, mask=mask)
        after = self.norm(rows + out).masked_fill(~mask[:, :, None], 0)
        return regions._replace(data=after.view(regions.data.shape))


class InstanceAttention(nn.Module):
    """Objects first, then sound: ``R' = RegionSelfAttention(R)``, ``v_t = RegionAttention(a_t, R_t')``.

    Arguments, shapes and map as ``RegionAttention``. Source: instance attention, the survey's section 3.1.
    """

    def __init__(
        self,
        sound_dim: int,
        region_dim: int,
        *,
        heads: int = 4,
        hidden: int = 128,
        score: ScoreName = "scaled_dot",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.dim = region_dim
        self.instances = RegionSelfAttention(region_dim, heads=heads, dropout=dropout)
        self.guided = RegionAttention(sound_dim, region_dim, hidden=hidden, score=score)

    def forward(
        self, sound: Stream, regions: Stream, *, places: Tensor | None = None, return_attention: bool = False
    ) -> Stream | tuple[Stream, Tensor]:
        related = self.instances(regions, places=places)
        return self.guided(sound, related, places=places, return_attention=return_attention)


class RegionCoAttention(nn.Module):
    """Sound and regions read each other: ``A_t' = LN(A_t + MHA(A_t → {R_tp}_p))``,
    ``R_tp' = LN(R_tp + MHA(R_tp → A))``.

    Space and time are apart: a sound step reads the regions of the frames at its time, a region reads the sound from
    ``past`` seconds before its frame to ``future`` after it (all of it by default). sound [B, T_a, dim], regions
    [B, T, H, W, dim] · result (A', R') on their own clocks · ``return_attention``: where the sound of each frame
    looks [B, T, H, W], the mean of the heads. ``gate`` as ``coattention.ResidualGate``. Without sound R' = LN(R),
    without regions A' = LN(A). Where the sound is faster than the picture, several sound steps read as one (their mean
    in the frame); slower, a sound step takes the mean of what was read in its frames.

    Source: region co-attention of the survey's section 3.1. Pitfall: regions reading all of the sound cost
    O(T · H · W · T_a).
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        dropout: float = 0.0,
        gate: bool = False,
        past: float = math.inf,
        future: float = math.inf,
    ):
        super().__init__()
        check_window(past, future)
        self.dim, self.past, self.future = dim, past, future
        self.looks, self.hears = (MultiHeadAttention(dim, heads=heads, dropout=dropout) for _ in range(2))
        self.gates = nn.ModuleList(ResidualGate(dim) for _ in range(2 if gate else 0))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))

    def forward(
        self, sound: Stream, regions: Stream, *, places: Tensor | None = None, return_attention: bool = False
    ) -> tuple[Stream, Stream] | tuple[tuple[Stream, Stream], Tensor | None]:
        sound = recorded("RegionCoAttention", sound, self.dim)
        cells, there = cells_of("RegionCoAttention", regions, self.dim, places)
        one_batch("RegionCoAttention", sound, regions)
        seen, attended = self._look(sound, regions, cells, there, return_attention)
        heard = self._hear(sound, regions, cells)
        if self.gates:
            seen, heard = self.gates[0](sound.data, seen), self.gates[1](cells, heard)
        told = self.norms[0](sound.data + seen).masked_fill(~sound.mask[:, :, None], 0)
        shown = self.norms[1](cells + heard).masked_fill(~there[..., None], 0)
        pair = sound._replace(data=told), regions._replace(data=shown.view(regions.data.shape))
        return (pair, attended) if return_attention else pair

    def _look(
        self, sound: Stream, regions: Stream, cells: Tensor, there: Tensor, want: bool
    ) -> tuple[Tensor, Tensor | None]:
        """What the sound reads among the regions [B, T_a, dim], and where it looks in each frame."""
        now = clock_of(sound, regions)
        query, mask = now.data.flatten(0, 1)[:, None], there.flatten(0, 1)
        out, maps = self.looks(query, cells.flatten(0, 1), mask=mask, return_attention=want)
        both = now.mask & there.any(2)
        read = Stream(out.view(*both.shape, self.dim), both, regions.rate)
        if maps is None:
            return clock_of(read, sound).data, None
        where = maps.mean(1)[:, 0].view(there.shape).masked_fill(~both[:, :, None], 0)
        return clock_of(read, sound).data, where.view(regions.data.shape[:4])

    def _hear(self, sound: Stream, regions: Stream, cells: Tensor) -> Tensor:
        """What every region reads in the sound [B, T, N, dim]."""
        near = span_pairs(regions, sound, past=self.past, future=self.future)  # [1, T, Ta]
        pairs = near.repeat_interleave(cells.shape[2], 1)
        out, _ = self.hears(cells.flatten(1, 2), sound.data, mask=sound.mask, pairs=pairs)
        return out.view(cells.shape)


class SlowFastAttention(nn.Module):
    """The slow path says where, the fast path when: ``w = softmax_p(ā · S̄_p)``, ``f_t = Σ_p w_p F_tp``.

    ā is the mean over time of the projected sound, S̄_p that of the projected slow map, F the projected fast map: one
    place for the clip, read at every fast step. sound [B, T_a, sound_dim], slow [B, T_s, H, W, slow_dim], fast
    [B, T_f, H, W, fast_dim] on the SAME grid, else BatchError · result [B, T_f, dim] at the fast rate ·
    ``return_attention``: w [B, H, W]. ``scaled`` divides the score by √hidden; the authors' code does not. Without
    sound or slow path the weights are even.

    Source: Ma et al. 2020 (global-local). Pitfall: unscaled dot products of wide features saturate the softmax at
    once; normalize the features or keep ``scaled``.
    """

    def __init__(
        self, sound_dim: int, slow_dim: int, fast_dim: int, *, dim: int, hidden: int = 128, scaled: bool = True
    ):
        super().__init__()
        self.sound_dim, self.slow_dim, self.fast_dim, self.dim, self.scaled = sound_dim, slow_dim, fast_dim, dim, scaled
        self.sound = nn.Linear(sound_dim, hidden, bias=False)
        self.slow = nn.Linear(slow_dim, hidden, bias=False)
        self.fast = nn.Linear(fast_dim, dim)

    def forward(
        self, sound: Stream, slow: Stream, fast: Stream, *, return_attention: bool = False
    ) -> Stream | tuple[Stream, Tensor]:
        sound = recorded("SlowFastAttention", sound, self.sound_dim)
        slow_cells, _ = cells_of("SlowFastAttention", slow, self.slow_dim, None)
        fast_cells, _ = cells_of("SlowFastAttention", fast, self.fast_dim, None)
        one_batch("SlowFastAttention", sound, slow, fast)
        if slow.data.shape[2:4] != fast.data.shape[2:4]:
            grids = f"{tuple(slow.data.shape[2:4])} and {tuple(fast.data.shape[2:4])}"
            raise BatchError(f"slow and fast maps need one grid, not {grids}.", hint="Pool the finer one.")
        query = masked_mean(self.sound(sound.data), sound.mask)
        key = masked_mean(self.slow(slow_cells), slow.mask)  # [B, N, hidden]
        scores = (query[:, None] @ key.mT)[:, None] / (math.sqrt(key.shape[2]) if self.scaled else 1)  # [B, 1, 1, N]
        read, weights = attend_scores(scores, fast_cells)
        data = self.fast(read[:, :, 0]).masked_fill(~fast.mask[:, :, None], 0)
        result = fast._replace(data=data)
        return (result, weights.view(-1, *fast.data.shape[2:4])) if return_attention else result


class ProjectorCoAttention(nn.Module):
    """Two maps of the same places and the term that ties their projectors: alone ``α = softmax_p(uᵀ tanh(W R_p))``,
    guided ``β = softmax_p(φ(ḡ) · ψ(R_p) / √hidden)``, term ``D(α, sg(β))`` (``attention_consistency``).

    R_p is the mean over time of the map, ḡ that of the guide. regions [B, T, H, W, region_dim] (of a spectrum: H
    frequencies, W = 1), guide [B, T_g, guide_dim] of any rate · result (the pooled vector v [B, region_dim], the term,
    a scalar) · ``return_attention``: ((v, term), (α, β) [B, H, W]). v reads the regions by ``read``: "alone"
    ``Σ_p α_p R_p`` · "guided" by β · "both" by ½ (α + β). Clips without regions or without guide do not count in the
    term; without regions v = 0.

    Source: Min et al. 2021 (CMAC), reconstructed: abstract and survey only, and ``read`` is ours. Pitfall: with
    ``read="alone"`` and ``stop_gradient`` nothing trains φ and ψ, and α follows a random target.
    """

    def __init__(
        self,
        region_dim: int,
        guide_dim: int,
        *,
        hidden: int = 128,
        read: Read = "both",
        distance: Spread = "l2",
        stop_gradient: bool = True,
    ):
        super().__init__()
        if read not in get_args(Read):
            raise ConfigError(f'read = "{read}" is unknown.', hint='Use "alone", "guided" or "both".')
        _check_distance(distance)
        self.region_dim, self.guide_dim, self.dim = region_dim, guide_dim, region_dim
        self.read, self.distance, self.stop_gradient = read, distance, stop_gradient
        self.alone = nn.Linear(region_dim, hidden)
        self.weigh = nn.Linear(hidden, 1, bias=False)
        self.guide, self.place = nn.Linear(guide_dim, hidden, bias=False), nn.Linear(region_dim, hidden, bias=False)

    def forward(
        self, regions: Stream, guide: Stream, *, places: Tensor | None = None, return_attention: bool = False
    ) -> tuple[Tensor, Tensor] | tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        guide = recorded("ProjectorCoAttention", guide, self.guide_dim)
        cells, there = cells_of("ProjectorCoAttention", regions, self.region_dim, places)
        one_batch("ProjectorCoAttention", regions, guide)
        weight = there.to(cells.dtype)[..., None]
        mean = (cells * weight).sum(1) / weight.sum(1).clamp(min=1)  # [B, N, D]: each place while it is there
        some = there.any(1)
        query, key = masked_mean(self.guide(guide.data), guide.mask), self.place(mean)
        own, alpha = attend_scores(self.weigh(torch.tanh(self.alone(mean))).mT, mean, mask=some[:, None])
        scores = query[:, None] @ key.mT / math.sqrt(key.shape[2])
        led, beta = attend_scores(scores, mean, mask=some[:, None])  # [B, 1, D] and [B, 1, N]
        read = {"alone": own, "guided": led, "both": (own + led) / 2}[self.read]
        term = attention_consistency(
            alpha[:, 0],
            beta[:, 0],
            some.any(1) & guide.mask.any(1),
            distance=self.distance,
            stop_gradient=self.stop_gradient,
        )
        if not return_attention:
            return read[:, 0], term
        grid = (-1, *regions.data.shape[2:4])
        return (read[:, 0], term), (alpha.view(grid), beta.view(grid))


def attention_consistency(
    alone: Tensor, guided: Tensor, mask: Tensor, *, distance: Spread = "l2", stop_gradient: bool = True
) -> Tensor:
    """How far a modality's own attention is from the one the other modality guides: mean over rows of ``D(α, sg(β))``.

    D: "l2" ``‖α/‖α‖ - β/‖β‖‖`` · "cosine" ``1 - cos(α, β)`` · "kl" ``Σ_p β_p log(β_p / α_p)``. ``alone``, ``guided``
    [B, N], rows that sum to 1 · ``mask`` [B]: which rows count; 0 where none does. ``stop_gradient``: the guided map is
    a target and gets no gradient. Source: Min et al. 2021, the distance reconstructed.
    """
    if alone.ndim != 2 or alone.shape != guided.shape or mask.shape != alone.shape[:1]:
        shapes = f"{tuple(alone.shape)}, {tuple(guided.shape)} and mask {tuple(mask.shape)}"
        raise BatchError(f"attention_consistency needs two [B, N] and a mask [B], not {shapes}.")
    _check_distance(distance)
    alone, guided = alone[mask], (guided.detach() if stop_gradient else guided)[mask]
    if len(alone) == 0:
        return alone.sum()
    if distance == "kl":
        tiny = torch.finfo(alone.dtype).tiny
        return (guided * (guided.clamp(min=tiny).log() - alone.clamp(min=tiny).log())).sum(1).mean()
    if distance == "cosine":
        return invariance(alone, guided)
    unit = nn.functional.normalize
    return invariance(unit(alone, dim=1), unit(guided, dim=1), distance="l2")


def _check_distance(distance: str) -> None:
    if distance not in get_args(Spread):
        raise ConfigError(f'distance = "{distance}" is unknown.', hint='Use "l2", "cosine" or "kl".')
