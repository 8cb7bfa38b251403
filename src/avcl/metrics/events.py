"""What happens when: matching a segment across modalities, spans with a start and an end.

Labels of segments are scored by ``accuracy`` and ``class_scores`` of avcl.metrics.classification.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from avcl.errors import FeatureError
from avcl.metrics.inputs import Bools, Floats, Ints, floats, inside, integers, known

# Slack of "as good as the best" when costs are sums taken in different orders, relative to the largest cost.
COST_SLACK = 1e-12


# --------------------------------------------------------------------------------------- localization across modalities
def window_costs(distances: ArrayLike) -> Floats:
    """[T - l + 1] cost(t) = sum_i D[t + i, i] of putting l query segments at t; ``distances`` D [T, l]."""
    d = floats(distances, "the distances", ndim=2)
    steps, length = d.shape
    if length > steps:
        raise FeatureError(f"a query of {length} segments does not fit into {steps}.")
    return np.array([np.trace(d[t : t + length]) for t in range(steps - length + 1)])


class Matching(NamedTuple):
    """``accuracy`` over the ``scored`` [V] videos · ``found`` [V] start of the best window, -1 where not scored ·
    ``chance`` accuracy of a uniformly random start · ``skipped`` videos whose event fills them."""

    accuracy: float
    found: Ints
    scored: Bools
    chance: float

    @property
    def skipped(self) -> int:
        return int((~self.scored).sum())


def match_segments(distances: Sequence[ArrayLike], starts: ArrayLike, *, ties: str = "first") -> Matching:
    """Cross-modality localization: is the cheapest window of each video exactly where the event starts?

    ``distances``: for each video [T, l], of T segments of one modality to the l event segments of the other ·
    ``starts`` [V] · ``ties``: "first" (the published protocol: a constant model answers 0 everywhere) or "expected"
    (a constant model scores chance). A video whose event fills it (l = T) is right by construction: it is left out.
    """
    known(ties, ("first", "expected"), "rule of ties")
    start = integers(starts, "the starts")
    if len(distances) != len(start):
        raise FeatureError(f"{len(distances)} videos do not fit {len(start)} starts.")
    found, hit, chance = np.full(len(start), -1), np.zeros(len(start)), np.zeros(len(start))
    for v, table in enumerate(distances):
        costs = window_costs(table)
        if not 0 <= start[v] < len(costs):
            raise FeatureError(
                f"the event of video {v} cannot start at {start[v]}: its windows are 0..{len(costs) - 1}."
            )
        if len(costs) == 1:
            continue
        best = costs <= costs.min() + COST_SLACK * np.abs(costs).max()
        found[v] = int(np.argmax(best))
        hit[v] = best[start[v]] / best.sum() if ties == "expected" else found[v] == start[v]
        chance[v] = 1 / len(costs)
    scored = found >= 0
    if not scored.any():
        raise FeatureError("every event fills its video: there is nothing to localize.")
    return Matching(float(hit[scored].mean()), found, scored, float(chance[scored].mean()))


# ---------------------------------------------------------------------------------------------------------------- spans
def segment_spans(labels: ArrayLike, *, background: int) -> tuple[Floats, Ints]:
    """(spans [n, 2] as first segment and end, classes [n]) of the runs of equal labels [T] that are not background."""
    y = integers(labels, "the labels")
    cut = np.flatnonzero(np.diff(y)) + 1
    begin, end = np.concatenate([[0], cut]), np.concatenate([cut, [len(y)]])
    kept = y[begin] != background
    return np.stack([begin, end], axis=1)[kept].astype(np.float64), y[begin][kept]


def span_iou(a: ArrayLike, b: ArrayLike) -> Floats:
    """[n, m] temporal intersection over union of spans (start, end) [n, 2] and [m, 2]; 0 where both are empty."""
    left, right = _spans(a), _spans(b)
    both = np.minimum(left[:, None, 1], right[None, :, 1]) - np.maximum(left[:, None, 0], right[None, :, 0])
    both = np.maximum(both, 0)
    either = np.diff(left, axis=1) + np.diff(right, axis=1).T - both
    return np.divide(both, either, out=np.zeros(both.shape), where=either > 0)


class EventScores(NamedTuple):
    """Counts over all videos at one ``iou``: events found, false alarms, events missed."""

    hits: int
    false: int
    missed: int
    iou: float

    @property
    def precision(self) -> float:
        """0 where nothing was predicted."""
        return self.hits / max(1, self.hits + self.false)

    @property
    def recall(self) -> float:
        return self.hits / max(1, self.hits + self.missed)

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + false + missed); 1 where there was nothing to find and nothing was predicted."""
        total = 2 * self.hits + self.false + self.missed
        return 2 * self.hits / total if total else 1.0


def event_scores(
    truth: Sequence[tuple[ArrayLike, ArrayLike]], predicted: Sequence[tuple[ArrayLike, ArrayLike]], *, iou: float = 0.5
) -> EventScores:
    """Event F1: for each video (spans [n, 2], classes [n]); an event is found by one span of its class with IoU >= iou.

    The assignment is the one with the most hits, so the order of the spans does not matter.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    inside(iou, 0, 1, "iou")
    if len(truth) != len(predicted):
        raise FeatureError(f"{len(truth)} videos of truth do not fit {len(predicted)} of prediction.")
    hits = n_true = n_predicted = 0
    for (spans, classes), (found, guesses) in zip(truth, predicted, strict=True):
        y, p = (integers(c, "the classes", empty=True) for c in (classes, guesses))
        overlap = span_iou(spans, found)
        if overlap.shape != (len(y), len(p)):
            raise FeatureError(f"spans {list(overlap.shape)} do not fit {len(y)} and {len(p)} classes.")
        fits = (overlap >= iou) & (overlap > 0) & (y[:, None] == p)
        if fits.any():
            hits += int((maximum_bipartite_matching(csr_array(fits), perm_type="column") >= 0).sum())
        n_true, n_predicted = n_true + len(y), n_predicted + len(p)
    return EventScores(hits, n_predicted - hits, n_true - hits, iou)


def _spans(spans: ArrayLike) -> Floats:
    array = floats(spans, "the spans", ndim=(1, 2), empty=True)
    if array.size == 0:
        return array.reshape(0, 2)
    if array.ndim != 2 or array.shape[1] != 2 or (array[:, 1] < array[:, 0]).any():
        raise FeatureError(f"spans must be rows of start <= end, not {list(array.shape)} or turned round.")
    return array
