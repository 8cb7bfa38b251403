"""Synchronization: from scores of many lags to one offset, its interval and how sure it is; and blind guessing.

A lag is counted in seconds; above zero the sound is late.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from avcl.errors import ConfigError, FeatureError
from avcl.metrics.inputs import Bools, Floats, floats


@dataclass(frozen=True)
class Offsets:
    """What N rows of scores say, all [N] and in seconds: ``offset`` the most likely lag, between the points of the grid
    · ``low``, ``high`` the central interval of the posterior · ``confidence`` posterior mass within the ``tolerance``
    of the offset · ``at_edge`` the best lag is the first or the last of the grid, so that the true one may lie beyond.
    """

    offset: Floats
    low: Floats
    high: Floats
    confidence: Floats
    at_edge: Bools
    tolerance: float


def estimate_offsets(
    log_scores: ArrayLike, grid: ArrayLike, *, tolerance: float = 0.04, level: float = 0.95
) -> Offsets:
    r"""The offset of each row of ``log_scores`` [N, K] over the evenly spaced lags ``grid`` [K], K >= 3.

    .. math:: p_k = softmax(s)_k, \quad δ = g_k + \frac{h}{2} \frac{s_{k-1} - s_{k+1}}{s_{k-1} - 2 s_k + s_{k+1}}

    with k the best lag and h the step: the top of the parabola through three scores, exact where the posterior is a
    normal density. Interval and confidence read p as a density that is constant within h / 2 of each lag. Equal best
    scores count as the one nearest to their middle, so a flat row answers the middle of the grid with the confidence of
    a guess. FeatureError where the shapes do not fit or the grid is not even.
    """
    scores, lags = floats(log_scores, "the scores", ndim=2), floats(grid, "the grid")
    if scores.shape[1] != len(lags) or len(lags) < 3:
        raise FeatureError(f"{scores.shape[1]} scores a row do not fit {len(lags)} lags (three or more are needed).")
    step = float(lags[-1] - lags[0]) / (len(lags) - 1)
    if step <= 0 or np.abs(np.diff(lags) - step).max() > 1e-3 * step:
        raise FeatureError("the lags of the grid must rise in equal steps.")
    if not (tolerance > 0 and 0 < level < 1):
        raise ConfigError(f"tolerance = {tolerance} must be above 0, level = {level} between 0 and 1.")
    rows = np.arange(len(scores))
    best = _middle_best(scores)
    offset = lags[best] + step * _vertex(scores, best)
    p = np.exp(scores - scores.max(1, keepdims=True))
    mass = np.concatenate([np.zeros((len(p), 1)), np.cumsum(p, 1) / p.sum(1, keepdims=True)], 1)  # [N, K + 1]
    edges = lags[0] + step * (np.arange(len(lags) + 1) - 0.5)
    tail = (1 - level) / 2
    low, high = (np.array([np.interp(q, mass[i], edges) for i in rows]) for q in (tail, 1 - tail))
    ends = [np.array([np.interp(x, edges, mass[i]) for i, x in enumerate(offset + s)]) for s in (-tolerance, tolerance)]
    confidence = np.clip(ends[1] - ends[0], 0.0, 1.0)
    return Offsets(offset, low, high, confidence, (best == 0) | (best == len(lags) - 1), tolerance)


def _middle_best(scores: Floats) -> np.ndarray:
    """[N] the best column; of several equal ones that which is nearest to their middle."""
    tied = scores == scores.max(1, keepdims=True)
    place = np.arange(scores.shape[1])
    middle = (tied * place).sum(1) / tied.sum(1)
    return np.where(tied, np.abs(place - middle[:, None]), np.inf).argmin(1)


def _vertex(scores: Floats, best: np.ndarray) -> Floats:
    """[N] in [-1/2, 1/2]: the top of the parabola through the best score and its neighbors, in steps from the best; 0
    at an edge or where the three are equal."""
    inner = np.clip(best, 1, scores.shape[1] - 2)
    rows = np.arange(len(scores))
    left, middle, right = (scores[rows, inner + i] for i in (-1, 0, 1))
    bend = left - 2 * middle + right
    top = np.where(bend < 0, 0.5 * (left - right) / np.where(bend < 0, bend, -1.0), 0.0)
    return np.where(inner == best, np.clip(top, -0.5, 0.5), 0.0)


def blind_within(truth: ArrayLike, search: float, tolerance: float) -> float:
    """P(|guess - truth| <= tolerance), the guess uniform in ±``search``: the mean over ``truth`` [N] of the share of
    the range that counts as right."""
    return float(_guess(floats(truth, "the truth"), search, tolerance).mean())


def blind_median(truth: ArrayLike, search: float) -> float:
    """The median of |guess - truth| over guesses uniform in ±``search`` and the items ``truth`` [N], by bisection."""
    t = floats(truth, "the truth")
    low, high = 0.0, float(np.abs(t).max()) + search
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _guess(t, search, middle).mean() < 0.5 else (low, middle)
    return (low + high) / 2


def _guess(truth: Floats, search: float, error: float) -> Floats:
    if not search > 0:
        raise ConfigError(f"search = {search} must be above 0.")
    inside = np.minimum(truth + error, search) - np.maximum(truth - error, -search)
    return np.clip(inside, 0.0, None) / (2 * search)


# --------------------------------------------------------------------------------------------- many windows of one file
DOUBT = 0.02  # share of the posterior of each window that is spread over all lags: no window alone can veto the others
SURER = math.log(100)  # by how much a more complicated course must be more likely, beside the price of its parameters


@dataclass(frozen=True)
class Course:
    """The lag of a file over its windows, in seconds.

    ``kind``: "constant", "drift" (a line) or "sections" · ``log_scores`` [K] of the lags of the grid, of the whole file
    (of a line: at the middle of the windows) · ``slope`` seconds of lag a second of the file, None where there are too
    few windows to tell · ``parts``: (first window, end, its log_scores [K]) of each section, one where there is no
    edit.
    """

    kind: Literal["constant", "drift", "sections"]
    log_scores: Floats
    slope: float | None
    parts: tuple[tuple[int, int, Floats], ...]


def fit_course(log_scores: ArrayLike, grid: ArrayLike, times: ArrayLike, weights: ArrayLike) -> Course:
    r"""The most likely course of the lag: windows [n] in order of their ``times`` [n], each with scores of K lags.

    .. math:: L(δ) = \sum_w ω_w \log((1 - ε) p_w(δ(t_w)) + ε / K)

    for δ(t) constant, a line, or constant in sections, with p the softmax of the scores, smoothed by (1, 2, 1) / 4 for
    nothing is known between two lags of the grid; ω = ``weights`` (below 1 where windows overlap), ε = 0.02. The line
    must be K times as likely as the constant for its slope, a section K · n times for its lag and its edge, and both
    100 times besides. Lines are searched in steps that change the lag by one step of the grid from the first window to
    the last; from eight windows on.
    """
    scores, lags = floats(log_scores, "the scores", ndim=2), floats(grid, "the grid")
    t, weight = floats(times, "the times"), floats(weights, "the weights")
    if len(t) != len(scores) or len(weight) != len(scores) or scores.shape[1] != len(lags):
        raise FeatureError(
            f"{list(scores.shape)} scores do not fit {len(t)} times, {len(weight)} weights, {len(lags)} lags."
        )
    p = np.exp(scores - scores.max(1, keepdims=True))
    p = np.pad(p / p.sum(1, keepdims=True), ((0, 0), (1, 1)), mode="edge")
    p = (p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]) / 4
    votes = weight[:, None] * np.log((1 - DOUBT) * p + DOUBT / len(lags))
    total = votes.sum(0)
    price = math.log(len(lags)) + SURER
    slope, line = _line(votes, lags, t)
    parts = _sections(votes, 0, len(votes), price + math.log(len(votes)))
    pieces = sum(part.max() for _, _, part in parts)
    gains = {
        "constant": float(total.max()),
        "drift": -math.inf if line is None else float(line.max()) - price,
        "sections": float(pieces) - (len(parts) - 1) * (price + math.log(len(votes))) if len(parts) > 1 else -math.inf,
    }
    kind = max(gains, key=lambda name: gains[name])
    if kind == "drift" and line is not None:
        return Course("drift", line, slope, ((0, len(votes), line),))
    if kind == "sections":
        return Course("sections", total, None, tuple(parts))
    return Course("constant", total, slope, ((0, len(votes), total),))


def _line(votes: Floats, lags: Floats, times: Floats) -> tuple[float | None, Floats | None]:
    """(slope, log-scores of the lag at the middle time) of the most likely line; None from fewer than eight windows."""
    span = float(times.max() - times.min())
    if len(votes) < 8 or span <= 0:
        return None, None
    step = (lags[-1] - lags[0]) / (len(lags) - 1)
    middle = (times.max() + times.min()) / 2
    best: tuple[float, float, Floats] | None = None
    columns = np.arange(len(lags))
    for k in sorted(range(-len(lags), len(lags) + 1), key=abs):  # of equally likely lines the flattest
        moved = columns + (k * (times - middle) / span)[:, None]
        place = np.clip(moved, 0, len(lags) - 1.000001)
        below = place.astype(np.int64)
        share = place - below
        rows = np.arange(len(votes))[:, None]
        sums = (votes[rows, below] * (1 - share) + votes[rows, below + 1] * share).sum(0)
        if best is None or sums.max() > best[0] + 1e-9:
            best = (float(sums.max()), k * step / span, sums)
    assert best is not None
    return float(best[1]), best[2]


def _sections(votes: Floats, first: int, end: int, price: float) -> list[tuple[int, int, Floats]]:
    """The windows first..end cut in two where that is more likely by more than ``price``, and so on in each half."""
    part = votes[first:end]
    whole = part.sum(0)
    if end - first < 2:
        return [(first, end, whole)]
    head = np.cumsum(part, 0)
    both = head[:-1].max(1) + (whole - head[:-1]).max(1)
    cut = int(both.argmax())
    if both[cut] - whole.max() <= price:
        return [(first, end, whole)]
    middle = first + cut + 1
    return _sections(votes, first, middle, price) + _sections(votes, middle, end, price)
