"""Mixtures: clips of other data added up in fixed pairs, each with the pictures of its sources as guides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from avcl.data.dataset import Data
from avcl.data.derived import Derived
from avcl.errors import DataError
from avcl.types import Batch, Clip, DataSpec, Stream, fingerprint

MIXTURE = "audio"
LEVEL = 0.1  # root mean square of every stem


class Drawn(NamedTuple):
    """Which two rows make each mixture [M, 2], how often a partner was drawn again because it was all but silent, and
    the rows that are too quiet to be heard at all.
    """

    pairs: np.ndarray
    redrawn: int
    quiet: tuple[int, ...]


class Mixtures(Derived):
    """Row m is the sum of two clips of ``source`` at equal level; there are half as many rows as clips.

    Streams: ``audio``, the mixture [1, T, C], and for source k = 0, 1 everything else of its clip as
    ``guide<k>:<name>`` (``guides_of`` makes batches of them again). Extras, which no system may see: ``stems``
    [2, T, C], ``classes`` [2] (-1: none).

    Pairs are drawn once from ``seed``: clips of different classes where there are labels. Every audible clip is in one
    mixture; where its class leaves nobody over, or a stem is quieter than ``silence`` dB (full scale), the partner is
    drawn again, from all audible clips, and counted: no mixture is left out. Mixtures that share a clip, or clips of
    one group, are one group. ``swapped``: each source has the other's guides, the wrong-partner control.
    """

    def __init__(self, source: Data, *, seed: int = 0, silence: float = -45.0, swapped: bool = False):
        super().__init__(source)
        if MIXTURE not in self.source.modalities or len(self.source.modalities) < 2:
            raise DataError(f"mixtures need sound and a picture; the data have {', '.join(self.source.modalities)}.")
        self.seed, self.silence, self.swapped = seed, silence, swapped
        self.others = tuple(name for name in self.source.modalities if name != MIXTURE)
        self.modalities = (MIXTURE, *(guide(k, name) for k in (0, 1) for name in self.others))
        self.n_official = len(self.source) // 2

    def remade(self, source: Data) -> Self:
        return type(self)(source, seed=self.seed, silence=self.silence, swapped=self.swapped)

    # ------------------------------------------------------------------------------------------------------------ pairs
    @cached_property
    def drawn(self) -> Drawn:
        loud = [self._level(self.source.clip(i).streams[MIXTURE]) > self.silence for i in range(len(self.source))]
        return draw_pairs(self.source.targets, loud, seed=self.seed)

    @staticmethod
    def _level(sound: Stream) -> float:
        kept = sound.data[sound.mask]
        power = float(kept.double().square().mean()) if len(kept) else 0.0
        return 10 * float(np.log10(max(power, 1e-20)))

    @property
    def redrawn(self) -> int:
        return self.drawn.redrawn

    @property
    def ids(self) -> tuple[str, ...]:
        names = self.source.ids
        return tuple(f"{names[a]}+{names[b]}" for a, b in self.drawn.pairs)

    @property
    def targets(self) -> tuple[int, ...]:
        return (-1,) * len(self.drawn.pairs)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """What shares a clip, or a group of clips, directly or through others, is one."""
        of = self.source.groups
        root: dict[str, str] = {}

        def found(name: str) -> str:
            while root.setdefault(name, name) != name:
                name = root[name]
            return name

        for a, b in self.drawn.pairs:
            root[found(of[a])] = found(of[b])
        return tuple(found(of[a]) for a, _ in self.drawn.pairs)

    @property
    def spec(self) -> DataSpec:
        known = self.source.spec
        streams = {guide(k, name): known.streams[name] for k in (0, 1) for name in self.others}
        return replace(known, streams={MIXTURE: known.streams[MIXTURE], **streams}, n_items=len(self))

    @property
    def fingerprint(self) -> str:
        what = {"mixtures": self.source.fingerprint, "seed": self.seed, "silence": self.silence}
        return fingerprint({**what, "swapped": self.swapped})

    def subset(self, indices: Sequence[int], *, split: str | None = None) -> Self:
        raise DataError("mixtures are made of a whole data set.", hint="Take the subset of the clips first.")

    # ------------------------------------------------------------------------------------------------------------- clip
    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        rows = [int(row) for row in self.drawn.pairs[index]]
        clips = [self.source.clip(row, epoch=epoch, view=view) for row in rows]
        sounds = [clip.streams[MIXTURE] for clip in clips]
        steps = min(sound.data.shape[1] for sound in sounds)
        stems = torch.stack([_leveled(sound, steps) for sound in sounds])  # [2, T, C]
        mask = torch.stack([sound.mask[0, :steps] for sound in sounds]).any(0)
        mixture = Stream(stems.sum(0)[None], mask[None], sounds[0].rate)
        guides = clips[::-1] if self.swapped else clips
        streams = {guide(k, name): guides[k].streams[name] for k in (0, 1) for name in self.others}
        classes = torch.tensor([self.source.targets[row] for row in rows])
        extras = {"stems": stems, "classes": classes}
        return Clip(
            self.ids[index],
            {MIXTURE: mixture, **streams},
            index=index,
            view=view,
            group=self.groups[index],
            extras=extras,
        )


def draw_pairs(targets: Sequence[int], loud: Sequence[bool], *, seed: int) -> Drawn:
    """⌊n / 2⌋ pairs of different rows, of different classes where all audible rows have one; none is silent.

    DataError where fewer than two rows are audible, or all of them are of one class.
    """
    rng = np.random.default_rng(seed)
    target, audible = np.asarray(targets), np.flatnonzero(loud)
    labeled = bool((target[audible] >= 0).all()) if len(audible) else False
    if len(audible) < 2 or (labeled and len(np.unique(target[audible])) < 2):
        kinds = "sounds" if len(audible) < 2 else "classes"
        raise DataError(f"mixtures need two audible {kinds} or more, and there are {len(audible)} audible clips.")

    def fits(a: int, others: np.ndarray) -> np.ndarray:
        return others[(others != a) & ((target[others] != target[a]) | (not labeled))]

    free = list(rng.permutation(len(target)))
    pairs: list[tuple[int, int]] = []
    redrawn = 0
    quiet = set(np.flatnonzero(~np.asarray(loud)).tolist())
    while len(pairs) < len(target) // 2:
        ends: list[int] = []
        for _ in range(2):
            near = np.array(free, int) if not ends else fits(ends[0], np.array(free, int))
            taken = _most_common(near, target, rng) if labeled and len(near) else int(near[0]) if len(near) else -1
            if taken >= 0:
                free.remove(taken)
            if taken < 0 or taken in quiet:  # nobody is left, or nothing would be heard: draw again from all
                redrawn += taken in quiet
                taken = int(rng.choice(audible if not ends else fits(ends[0], audible)))
            ends.append(taken)
        pairs.append((ends[0], ends[1]))
    order = rng.permutation(len(pairs))
    return Drawn(np.array(pairs)[order].reshape(-1, 2), redrawn, tuple(sorted(quiet)))


def _most_common(rows: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> int:
    """A row of the class that has most left, so that the classes run out together; ties at random."""
    counts = np.bincount(target[rows])
    fullest = np.flatnonzero(counts == counts.max())
    return int(rows[target[rows] == rng.choice(fullest)][0])


def _leveled(sound: Stream, steps: int) -> Tensor:
    """The sound [T, C] of one clip with the root mean square ``LEVEL`` over what was recorded."""
    kept = sound.data[0, :steps].float() * sound.mask[0, :steps, None]
    power = kept.square().sum() / (sound.mask[0, :steps].sum() * kept.shape[1]).clamp(min=1)
    return kept * (LEVEL / power.sqrt().clamp(min=1e-8))


def guide(source: int, name: str) -> str:
    """The name of a guide's stream in a mixture."""
    return f"guide{source}:{name}"


def guides_of(batch: Batch) -> list[Batch]:
    """The guides of the mixtures in a batch, one Batch a source, with their streams under their own names."""
    found: list[Batch] = []
    while True:
        mark = guide(len(found), "")
        streams = {name.removeprefix(mark): stream for name, stream in batch.streams.items() if name.startswith(mark)}
        if not streams:
            return found
        found.append(replace(batch, streams=streams))
