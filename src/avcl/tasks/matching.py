"""Matching: whose face belongs to this voice? One of two, one of N, the same person or not, and search by person.

The label of a clip is who it shows; the people scored must be strangers to the system (the data's ``group`` keeps them
in one split). A query is the sound, or the picture, of a clip; its match is that of *another* clip of the same person,
so that nothing which only one recording shares (its level, its light, its timing) can help; strangers are clips of
other people. All trials are drawn once from ``seed``, the same for every system and control.

Where the data know a trivial cue (the sex of the speaker, as extra "stratum" of every clip), a second set of
conditions draws strangers from the query's own stratum alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avcl.data.dataset import Data
from avcl.errors import ConfigError, LabelError
from avcl.metrics.classification import average_precision, equal_error_rate, roc_auc
from avcl.metrics.ranking import random_ranking
from avcl.system import Embeds
from avcl.task import Floats, Measure, Outputs, Table, Task, bare, evaluating, labels_of
from avcl.types import Batch

Ints = NDArray[np.int64]
DIRECTIONS = ("audio to video", "video to audio")
POOLED, VERIFIED, WITHIN = "both directions", "verification", ", same stratum"


class Trials(NamedTuple):
    """Of every query its matches [N, R] and for each match strangers of N - 1 different people [N, R, N - 1]; rows of
    the outputs. -1: there is none (no other clip of the person, or too few other people)."""

    match: Ints
    strangers: Ints


@dataclass(frozen=True)
class Matching(Task):
    """Similarities of every sound to every picture [N, N], and who it is [N].

    In both directions: ``1:2``, share of ``trials`` a query in which its match is nearer than one stranger, ``1:N``,
    nearer than ``candidates`` - 1 strangers, all different people (equal similarities share the answer), ``mAP``, all
    other clips ranked, those of the person relevant. ``verification``: one threshold for ``pairs`` matches and as many
    strangers of each query, both directions; ``AUC`` and ``EER``. A person with one clip, or too few people, leaves a
    query out, counted. ``own``: the query's own clip may be its match.
    """

    name: ClassVar[str] = "matching"
    words: ClassVar[str] = (
        "the match is another clip of the same person, the strangers are clips of other people; "
        "the share of trials in which the match is the nearest"
    )
    needs: ClassVar[type] = Embeds
    headline: ClassVar[tuple[str, str]] = (POOLED, "1:2")
    lower: ClassVar[frozenset[str]] = frozenset({"EER"})

    candidates: int = 10
    trials: int = 20
    pairs: int = 4
    own: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates < 2 or self.trials < 1 or not 1 <= self.pairs <= self.trials:
            raise ConfigError("matching needs 2 candidates or more, a trial or more, and no more pairs than trials.")

    @property
    def many(self) -> str:
        return f"1:{self.candidates}"

    # ------------------------------------------------------------------------------------------------------- answering
    def items(self, data: Data) -> Data:
        """Who it is stands in the label; no further truth is asked for."""
        return data

    def shown(self, batch: Batch) -> Batch:
        return bare(batch)

    def answer(self, system: Any, shown: Batch) -> Mapping[str, Tensor]:
        """Each modality is embedded from a batch that holds nothing else."""
        shown.require("audio", "video")
        said = {}
        for name, other in (("audio", "video"), ("video", "audio")):
            alone = shown.without(*(stream for stream in shown.streams if stream != name))
            said[name] = system.embed(alone, name, toward=other)
        return said

    def truth(self, batch: Batch) -> Mapping[str, Tensor]:
        known = {"stratum": batch.extras["stratum"].long()} if "stratum" in batch.extras else {}
        return {"person": labels_of(batch, self.name), **known}

    def judged(self, outputs: Outputs, system: Any, data: Data, fit: Data | None, *, workers: int) -> Outputs:
        """With the system's own similarity of every sound to every picture: 4 bytes for each of N²."""
        audio, video = (torch.from_numpy(outputs[name]) for name in ("audio", "video"))
        with evaluating(system) as device, torch.no_grad():
            gallery = video.to(device)
            rows = [system.similarity(part.to(device), gallery).float().cpu() for part in audio.split(1024)]
        return outputs.with_arrays(similarity=torch.cat(rows).numpy())

    # --------------------------------------------------------------------------------------------------------- scoring
    def measures(self, outputs: Outputs) -> Mapping[str, Mapping[str, Measure]]:
        similarity = outputs["similarity"].astype(np.float64)
        turned = dict(zip(DIRECTIONS, (similarity, similarity.T), strict=True))
        found: dict[str, dict[str, Measure]] = {}
        for suffix, trials in self._drawn(outputs).items():
            both = {d + suffix: self._matched(s, trials) for d, s in turned.items()}
            if not suffix:
                precision = {d: _precision(s, outputs["person"], own=self.own) for d, s in turned.items()}
                both = {d: {**row, "mAP": precision[d]} for d, row in both.items()}
            rows = list(both.values())
            found |= {d: dict(row) for d, row in both.items()}
            found[POOLED + suffix] = {metric: (rows[0][metric] + rows[1][metric]) / 2 for metric in rows[0]}
            found[VERIFIED + suffix] = self._verified(turned.values(), trials)
        return found

    def _matched(self, similarity: Floats, trials: Trials) -> dict[str, Floats]:
        query = np.arange(len(similarity))
        match = similarity[query[:, None], trials.match]
        others = similarity[query[:, None, None], trials.strangers]
        known = (trials.match >= 0)[:, :1]
        found = {}
        for metric, some in (("1:2", 1), (self.many, self.candidates - 1)):
            there = known & (trials.strangers[:, :, some - 1] >= 0)
            found[metric] = np.where(there, _nearest(match, others[:, :, :some]), np.nan).mean(1)
        return found

    def _verified(self, directions: Any, trials: Trials) -> dict[str, Measure]:
        """``pairs`` true and false pairs of each query that has both, in both directions [N, 2 · pairs]."""
        known = (trials.match[:, 0] >= 0) & (trials.strangers[:, 0, 0] >= 0)
        query = np.arange(len(known))[:, None]
        ends = trials.match[:, : self.pairs], trials.strangers[:, : self.pairs, 0]
        true, false = (np.concatenate([s[query, end] for s in directions], 1) for end in ends)
        same = np.concatenate([np.ones_like(true), np.zeros_like(false)], 1).astype(bool)
        scores = np.concatenate([true, false], 1)

        def of(metric: Any) -> Any:
            def value(rows: Ints) -> float:
                kept = rows[known[rows]]
                return float(metric(scores[kept].ravel(), same[kept].ravel())) if len(kept) else float("nan")

            return value

        return {"AUC": of(roc_auc), "EER": of(lambda s, y: equal_error_rate(s, y).value)}

    def _drawn(self, outputs: Outputs) -> dict[str, Trials]:
        """The trials, by the suffix of their conditions."""
        person = outputs["person"].astype(np.int64)
        if len(np.unique(person)) < 2:
            raise LabelError("matching needs clips of two people or more.")
        found = {"": draw(person, np.zeros_like(person), self)}
        if "stratum" in outputs.arrays:
            found[WITHIN] = draw(person, outputs["stratum"].astype(np.int64), self)
        return found

    def chance(self, outputs: Outputs) -> Table:
        person = outputs["person"]
        relevant = (person[:, None] == person).sum(1) - (not self.own)
        gallery = len(person) - (not self.own)
        blind = random_ranking(relevant[relevant > 0], gallery).summary(ks=(1,))["mAP"] if relevant.any() else np.nan
        guess = {"1:2": 0.5, self.many: 1 / self.candidates}
        found: dict[str, dict[str, float]] = {}
        for suffix in ("", WITHIN) if "stratum" in outputs.arrays else ("",):
            ranked = {} if suffix else {"mAP": float(blind)}
            found |= {condition + suffix: {**guess, **ranked} for condition in (*DIRECTIONS, POOLED)}
            found[VERIFIED + suffix] = {"AUC": 0.5, "EER": 0.5}
        return found


def draw(person: Ints, stratum: Ints, task: Matching) -> Trials:
    """The trials of every query, a function of who stands in which row, of ``seed`` and of the numbers of the task."""
    rng = np.random.default_rng([task.seed, 21_021])
    count, others = task.trials, task.candidates - 1
    match = np.full((len(person), count), -1)
    strangers = np.full((len(person), count, others), -1)
    _, index = np.unique(person, return_inverse=True)
    order, size = np.argsort(index, kind="stable"), np.bincount(index)  # the clips of a person stand side by side
    first = np.cumsum(size) - size
    inside = {s: np.unique(index[stratum == s]) for s in np.unique(stratum).tolist()}
    for i, (p, s) in enumerate(zip(index.tolist(), stratum.tolist(), strict=True)):
        mine = order[first[p] : first[p] + size[p]]
        mine = mine if task.own else mine[mine != i]
        if len(mine):
            match[i] = rng.choice(mine, count)
        people = inside[s][inside[s] != p]
        some = min(others, len(people))
        if some:
            chosen = people[np.argsort(rng.random((count, len(people))), 1)[:, :some]]
            clip = (rng.random((count, some)) * size[chosen]).astype(np.int64)
            strangers[i, :, :some] = order[first[chosen] + clip]
    return Trials(match, strangers)


def _nearest(match: Floats, others: Floats) -> Floats:
    """Probability that the match [N, R] is picked among it and the others [N, R, K], equals being drawn by lot."""
    beaten = (others > match[:, :, None]).any(2)
    return np.where(beaten, 0.0, 1 / (1 + (others == match[:, :, None]).sum(2)))


def _precision(similarity: Floats, person: Ints, *, own: bool) -> Floats:
    """Average precision of each query over all clips but its own; NaN where nobody is relevant."""
    found = np.full(len(person), np.nan)
    for i, row in enumerate(similarity):
        kept = np.ones(len(row), bool)
        kept[i] = own
        relevant = (person == person[i])[kept]
        if relevant.any():
            found[i] = average_precision(row[kept], relevant)
    return found
