"""Average precision of detections: boxes in pictures or spans in time, with a class and a score."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from avcl.errors import FeatureError
from avcl.metrics.events import span_iou
from avcl.metrics.inputs import Bools, Floats, Ints, floats, inside, integers, known
from avcl.metrics.overlap import box_iou


class Objects(NamedTuple):
    """n objects of a data set: ``item`` [n] number of the picture or video · ``label`` [n] class · ``place`` [n, 4]
    box or [n, 2] span · ``score`` [n] for predictions."""

    item: ArrayLike
    label: ArrayLike
    place: ArrayLike
    score: ArrayLike | None = None


class DetectionPrecision(NamedTuple):
    """``value`` mean over the classes that occur in the truth · ``classes`` [K] their numbers · ``per_class`` [K] ·
    ``unknown`` predictions of classes that never occur in the truth: in no mean · ``iou``, ``rule``."""

    value: float
    classes: Ints
    per_class: Floats
    unknown: int
    iou: float
    rule: str


def detection_precision(
    truth: Objects, predicted: Objects, *, iou: float = 0.5, rule: str = "all points"
) -> DetectionPrecision:
    """mAP@iou: predictions of a class, best score first, each take the true object that they overlap most.

    A prediction is right if that overlap is >= ``iou`` and no better prediction took the object; duplicates are false
    alarms. ``rule``: "all points" (area under the precision envelope, VOC 2010) or "11 points" (VOC 2007, mean of the
    envelope at recall 0, .1, ..., 1). Equal scores enter together, the best overlap first: the order of the
    predictions cannot matter.
    """
    inside(iou, 0, 1, "iou")
    known(rule, ("all points", "11 points"), "rule")
    item, label, place, _ = _columns(truth, "the truth", scored=False)
    found_item, found_label, found_place, score = _columns(predicted, "the prediction", scored=True)
    if not len(item):
        raise FeatureError("the truth holds no object.")
    if len(found_place) and place.shape[1] != found_place.shape[1]:
        raise FeatureError("truth and prediction must both be boxes or both be spans.")
    classes = np.unique(label)
    each = []
    for name in classes:
        mine, theirs = label == name, found_label == name
        hit = _hits((item[mine], place[mine]), (found_item[theirs], found_place[theirs]), score[theirs], iou)
        each.append(_area(score[theirs], hit, int(mine.sum()), rule))
    unknown = int((~np.isin(found_label, classes)).sum())
    return DetectionPrecision(float(np.mean(each)), classes, np.array(each), unknown, iou, rule)


def _columns(objects: Objects, what: str, *, scored: bool) -> tuple[Ints, Ints, Floats, Floats]:
    item, label = integers(objects.item, f"{what}: items", empty=True), integers(objects.label, what, empty=True)
    place = floats(objects.place, f"{what}: places", ndim=(1, 2), empty=True)
    place = place.reshape(0, 4) if place.size == 0 else place
    score = floats(objects.score, f"{what}: scores", empty=True) if scored else np.zeros(len(item))
    if not len(item) == len(label) == len(place) == len(score) or place.ndim != 2 or place.shape[1] not in (2, 4):
        raise FeatureError(
            f"{what} needs as many items, labels, places and scores, not {len(item)}, {len(label)}, {place.shape}, "
            f"{len(score)}; a place is a box of 4 or a span of 2 numbers."
        )
    return item, label, place, score


def _hits(truth: tuple[Ints, Floats], found: tuple[Ints, Floats], score: Floats, iou: float) -> Bools:
    """[n] which predictions are right."""
    hit = np.zeros(len(score), bool)
    for item in np.intersect1d(truth[0], found[0]):
        places, at = truth[1][truth[0] == item], np.flatnonzero(found[0] == item)
        overlap = (box_iou if places.shape[1] == 4 else span_iou)(found[1][at], places)
        best, nearest = overlap.max(1), overlap.argmax(1)
        taken = np.zeros(len(places), bool)
        for i in np.lexsort((-best, -score[at])):
            if best[i] >= iou and best[i] > 0 and not taken[nearest[i]]:
                taken[nearest[i]] = hit[at[i]] = True
    return hit


def _area(score: Floats, hit: Bools, n_true: int, rule: str) -> float:
    """Area under the envelope of precision over recall, with one point for each distinct score."""
    if not len(score):
        return 0.0
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    right = np.cumsum(hit[order])[last]
    precision, recall = right / (last + 1), right / n_true
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "all points":
        return float(np.diff(recall, prepend=0.0) @ envelope)
    grid = np.arange(11) / 10
    at = np.searchsorted(recall, grid - 1e-12)
    return float(np.append(envelope, 0.0)[at].mean())
