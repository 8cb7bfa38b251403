"""Is the difference between two systems luck? Paired permutation tests over queries, and Holm's correction for many.

Two systems answer the same queries. If neither were better, the sign of each difference would be a coin toss, so the
observed mean difference is held against those of all sign patterns (Fisher 1935). Queries of one group (clips of one
recording, captions of one picture) are not independent: their signs are tossed together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avcl.errors import ConfigError, FeatureError
from avcl.metrics.intervals import BLOCK_CELLS, cluster_numbers

Floats = NDArray[np.float64]


def sign_flip_test(
    differences: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    repeats: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p of the paired permutation test that the weighted mean of ``differences`` [Q] is zero.

    p = share of the sign patterns s with |Σ_g s_g c_g| ≥ |Σ_g c_g|, c_g = Σ of w_i d_i in group g

    over all 2^G patterns where they are no more than ``repeats``; else over ``repeats`` random ones and the observed
    one, p = (1 + hits) / (1 + repeats), which is never 0. ``groups`` [Q]: what is tossed together (default: every
    query alone) · ``weights`` [Q] (default: equal). FeatureError for values that are not finite or do not fit.
    """
    d = np.asarray(differences, np.float64)
    w = np.ones(len(d)) if weights is None else np.asarray(weights, np.float64)
    if d.ndim != 1 or len(d) == 0 or w.shape != d.shape or not np.isfinite(d * w).all():
        raise FeatureError(f"one row of finite differences and weights is needed, not {d.shape} and {w.shape}.")
    if repeats < 1:
        raise ConfigError(f"repeats = {repeats} must be at least 1.")
    cluster, count = cluster_numbers(np.arange(len(d)) if groups is None else groups)
    if len(cluster) != len(d):
        raise FeatureError(f"{len(cluster)} groups for {len(d)} differences.")
    sums = np.bincount(cluster, w * d, count)
    sums = sums[sums != 0]  # the sign of nothing changes nothing
    # Sums that are equal on paper differ in the last bits.
    reached = abs(sums.sum()) - 1e-12 * np.abs(sums).sum()
    if len(sums) < 63 and 2 ** len(sums) <= repeats:
        patterns = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
        return float((np.abs((1 - 2 * patterns) @ sums) >= reached).mean())
    rng, hits = np.random.default_rng(seed), 0
    rows = max(1, BLOCK_CELLS // len(sums))
    for start in range(0, repeats, rows):
        signs = rng.integers(0, 2, (min(rows, repeats - start), len(sums)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ sums) >= reached).sum())
    return (1 + hits) / (1 + repeats)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's (1979) step-down correction of m p-values, in their order; it bounds the chance of any false alarm.

    With the p sorted upward, p'_(i) = min(1, max_{j ≤ i} (m - j + 1) p_(j)). ConfigError for a value outside [0, 1].
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():  # NaN is outside
        raise ConfigError("p-values must be one row of numbers from 0 to 1.")
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return tuple(corrected.tolist())


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation ρ of two rows [n]: Pearson's of the ranks, ties at their mean rank; NaN where one is constant.

    FeatureError unless both have the same length of at least 2 and are finite.
    """
    from scipy.stats import rankdata

    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2 or not np.isfinite(x + y).all():
        raise FeatureError(f"two rows of finite values of equal length >= 2 are needed, not {x.shape} and {y.shape}.")
    u, v = (r - r.mean() for r in (rankdata(x), rankdata(y)))
    scale = float(np.sqrt((u @ u) * (v @ v)))
    return float(np.clip((u @ v) / scale, -1.0, 1.0)) if scale > 0 else float("nan")
