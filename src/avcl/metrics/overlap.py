"""Where is the source of the sound? Overlap of heat maps, masks and boxes with annotations.

Boxes are (x1, y1, x2, y2), the right and lower edge excluded. A heat map becomes a mask by a *rule*, and numbers under
different rules are not comparable, so the rule stands in the result. A constant map points nowhere: its mask is empty
under every rule, it scores 0 and is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from avcl.errors import ConfigError, FeatureError
from avcl.metrics.inputs import GRID_SLACK, Bools, Floats, floats, inside, known, same_shape, truths

SIZE = 224  # maps and annotations are compared at this size
RULES = ("median", "fixed", "share", "object")


# ---------------------------------------------------------------------------------------------------------- annotations
def consensus_map(annotators: Sequence[ArrayLike], *, source: int = 256, size: int = SIZE) -> Floats:
    """[size, size] min(1, marks / 2): 0.5 where one annotator marked, 1 where two or more did (Flickr-SoundNet).

    ``annotators``: the boxes [n, 4] of each, in pixels of an image of ``source`` pixels; corners are scaled and cut to
    whole pixels. Boxes of one annotator are united before they are summed.
    """
    if source < 1 or size < 1:
        raise ConfigError(f"the sizes {source} and {size} must be at least 1.")
    total = np.zeros((size, size))
    for boxes in annotators:
        corners = _boxes(boxes) * size
        total += _drawn(np.floor_divide(np.maximum(corners, 0), source), size)
    return np.minimum(total / 2, 1.0)


def union_map(boxes: ArrayLike, *, size: int = SIZE) -> Floats:
    """[size, size] of 0 and 1 from boxes [n, 4] in fractions of the image (VGG-SS): clipped at 0, cut to pixels."""
    if size < 1:
        raise ConfigError(f"the size {size} must be at least 1.")
    return _drawn(np.trunc(np.maximum(_boxes(boxes), 0) * size), size).astype(np.float64)


def _boxes(boxes: ArrayLike) -> Floats:
    array = floats(boxes, "the boxes", ndim=(1, 2), empty=True)
    array = array.reshape(0, 4) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != 4 or (array[:, 2:] < array[:, :2]).any():
        raise FeatureError(f"boxes must be rows of x1 <= x2, y1 <= y2, not {list(array.shape)} or turned round.")
    return array


def _drawn(corners: Floats, size: int) -> Bools:
    picture = np.zeros((size, size), bool)
    for x1, y1, x2, y2 in corners.astype(np.int64):
        picture[y1:y2, x1:x2] = True
    return picture


# --------------------------------------------------------------------------------------------------------- map to mask
def resize_map(heat: ArrayLike, *, size: int = SIZE) -> Floats:
    """[size, size] bilinear, pixel centers aligned (not corners), from a heat map [h, w]."""
    import torch
    from torch.nn.functional import interpolate

    values = torch.from_numpy(floats(heat, "the heat map", ndim=2))
    if tuple(values.shape) == (size, size):
        return values.numpy()
    return interpolate(values[None, None], size=(size, size), mode="bilinear", align_corners=False)[0, 0].numpy()


def rule_name(rule: str, value: float | None = None) -> str:
    """The name of a rule as results carry it; ConfigError for a rule or value that does not exist."""
    known(rule, RULES, "threshold rule")
    if rule == "fixed":
        value = 0.5 if value is None else value
        inside(value, 0, 1, "the threshold")
        return f"min-max > {value:g}"
    if rule == "share":
        if value is None:
            raise ConfigError('the rule "share" needs a value: which share of the pixels is foreground.')
        inside(value, 0, 1, "the share")
        return f"top {value:g} of the pixels"
    if value is not None:
        raise ConfigError(f'the rule "{rule}" takes no value, not {value}.')
    return {"median": "above the median", "object": "as many pixels as the object has"}[rule]


def heat_mask(
    heat: ArrayLike, *, rule: str = "median", value: float | None = None, truth: ArrayLike | None = None
) -> Bools:
    """[H, W] True where the map [H, W] is *strictly* above the threshold of the rule.

    "median": the element with sorted index floor(HW / 2), so about half of the image · "fixed": ``value`` (0.5) after
    min-max to [0, 1] · "share": so that the top ``value`` of the pixels is left · "object": as many pixels as ``truth``
    weighs. Strictly: a constant map has no foreground, and ties at the threshold are all background.
    """
    rule_name(rule, value)
    h = floats(heat, "the heat map", ndim=2)
    if rule == "fixed":
        low, high = h.min(), h.max()
        return np.zeros(h.shape, bool) if low == high else (h - low) / (high - low) > (0.5 if value is None else value)
    if rule == "median":
        return h > np.sort(h, axis=None)[h.size // 2]
    if rule == "share":
        count = int(np.floor((value or 0.0) * h.size + GRID_SLACK))
    else:
        if truth is None:
            raise ConfigError('the rule "object" needs the truth, whose size it takes.')
        count = int(floats(truth, "the truth", ndim=2).sum())
    falling = np.sort(h, axis=None)[::-1]
    if count < h.size:
        return h > falling[count]
    return np.full(h.shape, h.min() < h.max())  # everything, unless the map is constant


# ------------------------------------------------------------------------------------------------------------- overlap
def ciou(mask: ArrayLike, truth: ArrayLike) -> float:
    """sum m g / (sum g + sum m [g = 0]) of a mask m and consensus weights g in [0, 1], both [H, W] (Senocak 2018).

    With weights of 0 and 1 it is plain IoU. FeatureError where the annotation is empty.
    """
    m, g = truths(mask, "the mask", ndim=2), _weights(truth)
    same_shape(m, g, "mask and truth")
    if not g.any():
        raise FeatureError("the annotation marks nothing: there is no overlap to measure.")
    return float(g[m].sum() / (g.sum() + (m & (g == 0)).sum()))


def mask_iou(a: ArrayLike, b: ArrayLike) -> float:
    """|a and b| / |a or b| of two masks of 0 and 1; FeatureError where both are empty."""
    left, right = truths(a, "the mask", ndim=2), truths(b, "the mask", ndim=2)
    same_shape(left, right, "the masks")
    if not (left | right).any():
        raise FeatureError("both masks are empty: there is no overlap to measure.")
    return float((left & right).sum() / (left | right).sum())


def box_iou(a: ArrayLike, b: ArrayLike) -> Floats:
    """[n, m] intersection over union of boxes [n, 4] and [m, 4]; 0 where both boxes have no area."""
    left, right = _boxes(a), _boxes(b)
    corner = np.minimum(left[:, None, 2:], right[None, :, 2:]) - np.maximum(left[:, None, :2], right[None, :, :2])
    both = np.maximum(corner, 0).prod(2)
    area = [(x[:, 2:] - x[:, :2]).prod(1) for x in (left, right)]
    either = area[0][:, None] + area[1][None] - both
    return np.divide(both, either, out=np.zeros(both.shape), where=either > 0)


def success_rate(overlaps: ArrayLike, at: float = 0.5) -> float:
    """Share of images with overlap >= ``at``; the comparison has a slack of 1e-12."""
    return float((floats(overlaps, "the overlaps") >= at - GRID_SLACK).mean())


def success_auc(overlaps: ArrayLike) -> float:
    """Trapezoid area under the success rate at the 21 thresholds 0, 0.05, ..., 1 (i * 5 / 100, slack 1e-12).

    Within 0.025 of the mean overlap: an image with overlap c < 1 adds floor(c / 0.05) * 0.05 + 0.025.
    """
    values = floats(overlaps, "the overlaps")
    inside(float(values.min()), 0, 1, "the overlap")
    inside(float(values.max()), 0, 1, "the overlap")
    thresholds = np.arange(21) * 5 / 100
    return float(np.trapezoid((values[:, None] >= thresholds - GRID_SLACK).mean(0), thresholds))


@dataclass(frozen=True)
class Localization:
    """Overlap of N maps with their annotations under one named ``rule``.

    ``ciou`` [N], 0 where not ``scored`` [N] (annotations that mark nothing) · ``coverage`` [N] weight of the annotation
    as a share of the image · ``constant`` [N] maps that were constant, which score 0.
    """

    ciou: Floats
    rule: str
    coverage: Floats
    scored: Bools
    constant: Bools

    def success(self, at: float = 0.5) -> float:
        """cIoU@at: share of the scored images with overlap >= ``at``."""
        return success_rate(self.ciou[self.scored], at)

    @property
    def auc(self) -> float:
        return success_auc(self.ciou[self.scored])

    @property
    def mean(self) -> float:
        return float(self.ciou[self.scored].mean())

    def coverage_histogram(self, bins: int = 10) -> tuple[Any, Floats]:
        """(counts [bins], edges): with half of the image as foreground, an object of share f reaches at most 2 f."""
        counts, edges = np.histogram(self.coverage[self.scored], bins=bins, range=(0, 1))
        return counts, edges


def localize(
    heats: Sequence[ArrayLike], annotations: Sequence[ArrayLike], *, rule: str = "median", value: float | None = None
) -> Localization:
    """cIoU of each heat map [h, w] with its annotation [H, W], at the annotation's (square) size."""
    name = rule_name(rule, value)
    if len(heats) != len(annotations) or not len(heats):
        raise FeatureError(f"{len(heats)} heat maps do not fit {len(annotations)} annotations.")
    overlaps, coverage, constant = np.zeros(len(heats)), np.zeros(len(heats)), np.zeros(len(heats), bool)
    for i, (heat, truth) in enumerate(zip(heats, annotations, strict=True)):
        g = _weights(truth)
        h = floats(heat, "the heat map", ndim=2)
        constant[i], coverage[i] = h.min() == h.max(), g.mean()
        if h.shape != g.shape:
            if g.shape[0] != g.shape[1]:
                raise FeatureError(f"an annotation must be square or as large as its map, not {list(g.shape)}.")
            h = resize_map(h, size=len(g))
        # Interpolation may give a constant map a ripple of rounding, which min-max would blow up.
        if g.any() and not constant[i]:
            overlaps[i] = ciou(heat_mask(h, rule=rule, value=value, truth=g), g)
    if not coverage.any():
        raise FeatureError("no annotation marks anything.")
    return Localization(overlaps, name, coverage, coverage > 0, constant)


def pointing_game(heats: Sequence[ArrayLike], annotations: Sequence[ArrayLike]) -> float:
    """Share of maps whose largest value lies on the annotation (any weight above 0); equal largest values share.

    A constant map scores the share of the image that the annotation covers: chance. Maps are brought to the size of
    their annotation. FeatureError for an annotation that marks nothing.
    """
    if len(heats) != len(annotations) or not len(heats):
        raise FeatureError(f"{len(heats)} heat maps do not fit {len(annotations)} annotations.")
    hits = []
    for heat, truth in zip(heats, annotations, strict=True):
        g, h = _weights(truth), floats(heat, "the heat map", ndim=2)
        if h.shape != g.shape:
            if g.shape[0] != g.shape[1]:
                raise FeatureError(f"an annotation must be square or as large as its map, not {list(g.shape)}.")
            h = resize_map(h, size=len(g)) if np.ptp(h) > 0 else np.zeros(g.shape)
        if not g.any():
            raise FeatureError("the annotation marks nothing: there is nothing to point at.")
        hits.append((g[h == h.max()] > 0).mean())
    return float(np.mean(hits))


def _weights(truth: ArrayLike) -> Floats:
    g = floats(truth, "the annotation", ndim=2)
    if g.min() < 0 or g.max() > 1:
        raise FeatureError(f"weights of an annotation must lie in [0, 1], not {g.min():g}..{g.max():g}.")
    return g
