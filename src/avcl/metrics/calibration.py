"""Do confidences mean what they say? Reliability, expected calibration error, Brier, likelihood, temperature.

A confidence is the probability that the answer it comes with is right: the largest softmax value of a classifier, or
the score of a verified pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from avcl.errors import ConfigError, FeatureError
from avcl.metrics.inputs import GRID_SLACK, Floats, Ints, floats, integers, known, same_shape, truths

# Bounds of a fitted temperature: data that are perfectly separable would drive it to 0, useless ones to infinity.
COLDEST, HOTTEST = 1e-2, 1e2


@dataclass(frozen=True)
class Reliability:
    """The reliability table: a row for each bin that holds something.

    ``low``, ``high`` [b] bounds (low excluded, high included) · ``count`` [b] · ``confidence`` [b] mean confidence ·
    ``accuracy`` [b] share that is right · ``binning``, ``bins`` how the table was asked for.
    """

    low: Floats
    high: Floats
    count: Ints
    confidence: Floats
    accuracy: Floats
    binning: str
    bins: int

    @property
    def gap(self) -> Floats:
        """[b] mean confidence - accuracy: above zero is overconfident."""
        return self.confidence - self.accuracy

    @property
    def ece(self) -> float:
        """Expected calibration error: sum over bins of n_b / N |confidence - accuracy|."""
        return float(self.count @ np.abs(self.gap) / self.count.sum())

    @property
    def worst(self) -> float:
        """Largest gap of any bin (maximum calibration error)."""
        return float(np.abs(self.gap).max())


def reliability(confidence: ArrayLike, correct: ArrayLike, *, bins: int = 15, binning: str = "width") -> Reliability:
    """Reliability of ``confidence`` [N] in [0, 1] against ``correct`` [N] of 0 and 1.

    ``binning``: "width": bins (i/bins, (i+1)/bins], 0 in the first · "mass": about equally many items in each; equal
    confidences always share a bin, so the order of the items cannot matter. ECE depends on bins and binning: both are
    in the result.
    """
    c, y = floats(confidence, "the confidence"), truths(correct, "correct")
    same_shape(c, y, "confidence and correct")
    known(binning, ("width", "mass"), "binning")
    if bins < 1:
        raise ConfigError(f"bins = {bins} must be at least 1.")
    if c.min() < 0 or c.max() > 1:
        raise FeatureError(f"confidences must lie in [0, 1], not {c.min():g}..{c.max():g}.")
    if binning == "width":
        place = np.clip(np.ceil(c * bins - GRID_SLACK).astype(np.int64) - 1, 0, bins - 1)
        edges = np.arange(bins + 1) / bins
    else:
        last = np.ceil(len(c) * np.arange(1, bins + 1) / bins - GRID_SLACK).astype(np.int64) - 1
        highs = np.unique(np.sort(c)[np.maximum(last, 0)])
        place, edges = np.searchsorted(highs, c), np.concatenate([[0.0], highs])
    count = np.bincount(place, minlength=len(edges) - 1)
    used = np.flatnonzero(count)
    sizes = count[used]
    means = [np.bincount(place, values, len(edges) - 1)[used] / sizes for values in (c, y.astype(np.float64))]
    return Reliability(edges[used], edges[used + 1], sizes.astype(np.int64), means[0], means[1], binning, bins)


def brier(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Mean squared error of probabilities.

    [N, C] against labels: sum over the classes of (p - [true])², 0 to 2 · [N] of one event against 0 and 1: 0 to 1.
    """
    p = floats(probabilities, "the probabilities", ndim=(1, 2))
    if p.min() < 0 or p.max() > 1:
        raise FeatureError(f"probabilities must lie in [0, 1], not {p.min():g}..{p.max():g}.")
    if p.ndim == 1:
        event = truths(truth, "the truth")
        same_shape(p, event, "probabilities and truth")
        return float(((p - event) ** 2).mean())
    if np.abs(p.sum(1) - 1).max() > 1e-4:
        raise FeatureError("each row of probabilities must sum to one.")
    y = _classes(truth, p)
    return float(((p - np.eye(p.shape[1])[y]) ** 2).sum(1).mean())


def negative_log_likelihood(logits: ArrayLike, truth: ArrayLike, *, temperature: float = 1.0) -> float:
    """Mean of -log softmax(logits / temperature)[truth], in nats; ``logits`` [N, C] (log-probabilities are logits).

    Finite for all finite logits, which -log of a probability that was rounded to zero is not.
    """
    z = floats(logits, "the logits", ndim=2)
    if not 0 < temperature < np.inf:
        raise ConfigError(f"temperature = {temperature} must be above 0 and finite.")
    return _likelihood(_gaps(z, _classes(truth, z)), 1 / temperature)


class Temperature(NamedTuple):
    """``value`` to divide logits by · likelihood loss ``before`` and ``after``, in nats · ``at_bound``: no optimum
    inside [0.01, 100] (the items are perfectly separated, or the logits say nothing)."""

    value: float
    before: float
    after: float
    at_bound: bool


def fit_temperature(logits: ArrayLike, truth: ArrayLike) -> Temperature:
    """The temperature that minimizes the likelihood loss (Guo 2017), on data that are not the test data.

    The loss is convex in 1 / temperature, so its slope has at most one root in [0.01, 100]; accuracy does not change.
    """
    from scipy.optimize import brentq

    z = floats(logits, "the logits", ndim=2)
    gaps = _gaps(z, _classes(truth, z))
    before = _likelihood(gaps, 1.0)
    if not gaps.any():  # all logits alike: no temperature changes anything
        return Temperature(1.0, before, before, True)
    for bound, beyond in ((COLDEST, _slope(gaps, 1 / COLDEST) <= 0), (HOTTEST, _slope(gaps, 1 / HOTTEST) >= 0)):
        if beyond:
            return Temperature(bound, before, _likelihood(gaps, 1 / bound), True)
    inverse = float(np.exp(brentq(lambda log: _slope(gaps, np.exp(log)), -np.log(HOTTEST), -np.log(COLDEST))))
    return Temperature(1 / inverse, before, _likelihood(gaps, inverse), False)


def _classes(truth: ArrayLike, table: Floats) -> Ints:
    y = integers(truth, "the truth")
    if len(y) != len(table) or y.min() < 0 or y.max() >= table.shape[1]:
        raise FeatureError(f"{table.shape} values do not fit {len(y)} labels in {y.min()}..{y.max()}.")
    return y


def _gaps(logits: Floats, y: Ints) -> Floats:
    return logits - logits[np.arange(len(y)), y][:, None]


def _likelihood(gaps: Floats, inverse: float) -> float:
    scaled = gaps * inverse
    top = scaled.max(1, keepdims=True)  # at least 0: the gap of the true class
    return float((top[:, 0] + np.log(np.exp(scaled - top).sum(1))).mean())


def _slope(gaps: Floats, inverse: float) -> float:
    """Derivative of ``_likelihood`` by the inverse temperature: the mean gap that the softmax expects."""
    weights = np.exp(inverse * (gaps - gaps.max(1, keepdims=True)))
    return float(((weights * gaps).sum(1) / weights.sum(1)).mean())
