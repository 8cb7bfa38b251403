"""What localizes events in segments: the terms of full and of weak supervision, and matching across modalities.

Letters: B clips, S segments, C event classes; class C is background: nothing is both seen and heard.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.aggregation import MILKind, MILPool
from avcl.nn.context import recorded, strided
from avcl.nn.pooling import masked_mean
from avcl.nn.regions import AudioGuidedAttention
from avcl.objectives.classification import binary_cross_entropy, cross_entropy
from avcl.objectives.contrastive import pair_contrastive
from avcl.types import Batch, Stream

Name = Callable[[Stream, Stream], Tensor]  # (sound, regions) -> logits [B, S, C + 1]


class EventTerms(nn.Module):
    """What an event localizer minimizes, from its logits z [B, S, C + 1] and what the clips say of themselves.

    Full supervision: ``L = mean_{b,s} CE(z_bs, y_bs)`` over the recorded segments, y the extra "segments" of the
    batch [B, S], background = C. ``weak`` supervision, by the label y_b of the clip alone:
    ``L = mean_b CE(pool_s z_bs, y_b)``.

    Either with, weighted by ``swapped``, ``mean CE(z'_bs, C)`` where z' are the logits of the picture with the sound of
    the next clip of the batch, if that has another label: such a clip has no event in any segment. Weak supervision
    learns background from them alone, for every clip of the data has a label.

    Weighted by ``sides``, each modality is also classified by itself, with the same cost: sound by a linear map of its
    segments, pictures by one of mean and maximum over their cells. Sound tells most of an event sooner than pictures
    do, and a model that has found it may leave the picture unread, which only the condition "audio only" of the task
    shows.

    ``legacy``: ``-mean_c [y_c log σ(p_c) + (1 - y_c) log(1 - σ(p_c))]`` of the softmax outputs p in place of the
    cross-entropy, as the authors' code of AVEL has it (near 0.69 whatever is learned).

    Source: Tian et al. 2018 (supervised, weak with ``pool`` "max"), whose background-only videos the swapped clips
    replace. Pitfall: with "max" one segment of a clip learns; where the first best segment is wrong it stays so.
    """

    def __init__(
        self,
        classes: int,
        *,
        sound_dim: int,
        region_dim: int,
        weak: bool = False,
        pool: MILKind = "max",
        swapped: float = 1.0,
        sides: float = 0.0,
        legacy: bool = False,
    ):
        super().__init__()
        if classes < 1:
            raise ConfigError("events need at least one class.", hint="Give data whose clips have labels.")
        if pool not in ("max", "mean", "top-k", "attention"):
            raise ConfigError(f'pool = "{pool}" is unknown.', hint='Use "max", "mean", "top-k" or "attention".')
        self.classes, self.weak, self.legacy = classes, weak, legacy
        self.swapped, self.sides = swapped, sides
        self.pool = MILPool(classes + 1, pool, on="logits") if weak else None
        self.of_sound = nn.Linear(sound_dim, classes + 1) if sides else None
        self.of_picture = nn.Linear(2 * region_dim, classes + 1) if sides else None

    def forward(self, name: Name, sound: Stream, regions: Stream, batch: Batch) -> dict[str, Tensor]:
        """The terms; ``name`` are the logits of a sound and a picture. BatchError without what is to be learned."""
        if self.weak and bool(((batch.label < 0) | (batch.label >= self.classes)).any()):
            raise BatchError(f"weak supervision needs a label from 0 to {self.classes - 1} for every clip.")
        terms = {"events": self._known(name(sound, regions), segments_there(sound, regions), batch)}
        if self.swapped > 0:
            terms["swapped"] = self.swapped * self._swapped(name, sound, regions, batch.label)
        if self.of_sound is not None and self.of_picture is not None:
            cells = torch.cat([regions.data.mean((2, 3)), regions.data.amax((2, 3))], 2)
            seen = strided(regions._replace(data=cells), cells.shape[1] // sound.mask.shape[1])
            alone = [(self.of_sound(sound.data), sound.mask), (self.of_picture(seen.data), seen.mask)]
            costs = [self._known(logits, there, batch) for logits, there in alone]
            terms["sides"] = self.sides * torch.stack(costs).sum()
        return terms

    def _known(self, logits: Tensor, there: Tensor, batch: Batch) -> Tensor:
        """The cost of logits [B, S, C + 1] by what the clips say of themselves, over the recorded segments."""
        if not bool(there.any()):
            return logits.sum() * 0.0
        if self.pool is None:
            return self._cost(logits[there], segments_of(batch, logits)[there])
        return self._cost(self.pool(logits, there), batch.label)

    def _swapped(self, name: Name, sound: Stream, regions: Stream, label: Tensor) -> Tensor:
        other = label != label.roll(1)
        if not bool(other.any()):
            return sound.data.sum() * 0.0
        heard = sound._replace(data=sound.data.roll(1, 0)[other], mask=sound.mask.roll(1, 0)[other])
        seen = regions._replace(data=regions.data[other], mask=regions.mask[other])
        logits = name(heard, seen)[segments_there(heard, seen)]
        return self._cost(logits, torch.full((len(logits),), self.classes, device=logits.device))

    def _cost(self, logits: Tensor, label: Tensor) -> Tensor:
        if not self.legacy:
            return cross_entropy(logits, label)
        target = nn.functional.one_hot(label, self.classes + 1).to(logits.dtype)
        return binary_cross_entropy(logits.softmax(1), target)


def looked(look: AudioGuidedAttention | None, sound: Stream, regions: Stream) -> Stream:
    """What the sound of each segment sees in its frames [B, S, D]; without ``look`` the mean of the places."""
    steps = sound.mask.shape[1]
    frames = regions._replace(data=regions.data.mean((2, 3))) if look is None else look(sound, regions)
    return strided(frames, frames.mask.shape[1] // steps)._replace(rate=sound.rate)


def blank(stream: Stream) -> Stream:
    """The stream as if nothing had been recorded."""
    return stream._replace(data=torch.zeros_like(stream.data), mask=torch.zeros_like(stream.mask))


def segments_there(sound: Stream, regions: Stream) -> Tensor:
    """bool [B, S]: the segments of which sound or picture was recorded."""
    return sound.mask | regions.mask.unflatten(1, (sound.mask.shape[1], -1)).any(2)


def segments_of(batch: Batch, logits: Tensor) -> Tensor:
    """The labels of the segments [B, S]; BatchError where there are none, or others than the logits are of."""
    if "segments" not in batch.extras:
        raise BatchError(
            "full supervision needs a label for every segment, and the clips have none.",
            hint="Use the events of the world, data with the extra `segments`, or weak=true (labels of clips alone).",
        )
    segments = batch.extras["segments"]
    if segments.shape != logits.shape[:2]:
        raise BatchError(
            f"the clips have {segments.shape[1]} segments, the model {logits.shape[1]}.",
            hint="Set window and segment (seconds) as the data have them.",
        )
    return segments


class SegmentMatch(nn.Module):
    """Which segment of the picture belongs to which of the sound: two networks into one space, near = belongs.

    ``f(x) = W_2 lrelu(W_1 x)`` for each modality, D_s = ‖f_a(a_s) - f_v(v_s)‖ of the same segment,
    ``L = mean ½ [ y D² + (1 - y) max(0, margin - D)² ]`` with y = 1 where the segment is an event, 0 where it is
    background. ``every_pair``: of every two segments of a clip, y = 1 where both are events.

    sound [B, S, sound_dim], regions [B, S · n, H, W, region_dim], averaged over places and frames; each modality by
    itself, so that nothing of the other enters. ``embed`` gives [B, S, dim].

    Source: Tian et al. 2018 (AVDLN: 128 hidden, 64 wide, slope 0.3, margin 2; without the ½). It learns from features
    that are fixed: no gradient reaches the towers. Pitfall: with pairs of one time only, an event's picture is never
    pushed away from the sound beside it, only background pictures from background sounds.
    """

    def __init__(
        self,
        sound_dim: int,
        region_dim: int,
        *,
        hidden: int = 128,
        dim: int = 64,
        margin: float = 2.0,
        every_pair: bool = False,
    ):
        super().__init__()
        self.sound_dim, self.region_dim, self.dim = sound_dim, region_dim, dim
        self.margin, self.every_pair = margin, every_pair
        self.sound, self.picture = (
            nn.Sequential(nn.Linear(width, hidden), nn.LeakyReLU(0.3), nn.Linear(hidden, dim))
            for width in (sound_dim, region_dim)
        )

    def of_sound(self, sound: Stream) -> Tensor:
        return self.sound(recorded("SegmentMatch", sound, self.sound_dim).data)

    def of_picture(self, regions: Stream, *, steps: int) -> Tensor:
        """[B, steps, dim] of regions [B, steps · n, H, W, D]."""
        cells = regions.data.mean((2, 3)).unflatten(1, (steps, -1)).flatten(0, 1)
        mask = regions.mask.unflatten(1, (steps, -1)).flatten(0, 1)
        return self.picture(masked_mean(cells, mask)).unflatten(0, (-1, steps))

    def forward(self, sound: Stream, regions: Stream, event: Tensor) -> Tensor:
        """The loss; ``event`` [B, S] bool."""
        steps = sound.mask.shape[1]
        both = sound.mask & regions.mask.unflatten(1, (steps, -1)).any(2)
        a = self.of_sound(sound._replace(data=sound.data.detach()))
        v = self.of_picture(regions._replace(data=regions.data.detach()), steps=steps)
        if not bool(both.any()):
            return (a.sum() + v.sum()) * 0.0
        if not self.every_pair:
            return pair_contrastive(a[both], v[both], event[both], margin=self.margin)
        pairs = both[:, :, None] & both[:, None]
        shape = (*pairs.shape, self.dim)
        a, v = a[:, :, None].expand(shape), v[:, None].expand(shape)
        same = event[:, :, None] & event[:, None]
        return pair_contrastive(a[pairs], v[pairs], same[pairs], margin=self.margin)
