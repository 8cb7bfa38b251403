"""Intervals by the percentile bootstrap: queries (or whole groups of queries) are drawn again with replacement.

The draw is over *clusters*: all queries of one group (clips cut from one recording, captions of one picture) come and
go together, because they are not independent. Every metric sees the same draws, so differences and means of metrics
are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avcl.errors import ConfigError, FeatureError

Floats = NDArray[np.float64]
K = TypeVar("K", bound=Hashable)
# Cells of the resampling table (resamples x clusters) that are in memory at once.
BLOCK_CELLS = 1 << 21


class Difference(NamedTuple):
    """Mean of a - b over the queries, with its interval; ``low > 0`` or ``high < 0``: the interval leaves out zero."""

    value: float
    low: float
    high: float


def resamples(n_clusters: int, *, repeats: int, seed: int) -> Iterator[Floats]:
    """Blocks [b, n_clusters] of how often each cluster was drawn; ``repeats`` rows, the same for any block size."""
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK_CELLS // max(1, n_clusters))
    for start in range(0, repeats, rows):
        b = min(rows, repeats - start)
        drawn = rng.integers(0, n_clusters, size=(b, n_clusters)) + np.arange(b)[:, None] * n_clusters
        yield np.bincount(drawn.reshape(-1), minlength=b * n_clusters).reshape(b, n_clusters).astype(np.float64)


def bootstrap(
    statistic: Callable[[Floats], Mapping[K, Floats]],
    n_clusters: int,
    *,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[K, tuple[float, float]]:
    """{name: (low, high)}: percentiles of each statistic over ``repeats`` resamples of the clusters.

    ``statistic`` takes weights [b, n_clusters] (how often each cluster counts) and returns {name: [b]}.
    """
    if n_clusters < 1 or repeats < 1 or not 0 < level < 1:
        raise ConfigError(f"no bootstrap with {n_clusters} clusters, {repeats} resamples, level {level}.")
    parts = [statistic(weights) for weights in resamples(n_clusters, repeats=repeats, seed=seed)]
    tail = (1 - level) / 2
    result = {}
    for name in parts[0]:
        low, high = np.quantile(np.concatenate([p[name] for p in parts]), [tail, 1 - tail])
        result[name] = (float(low), float(high))
    return result


def cluster_numbers(groups: ArrayLike) -> tuple[NDArray[np.int64], int]:
    """([Q] cluster number of each query, how many clusters there are) from group names or numbers."""
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    return numbers.reshape(-1).astype(np.int64), len(names)


def mean_statistic(
    values: Mapping[K, Floats], cluster: NDArray[np.int64], n_clusters: int
) -> Callable[[Floats], dict[K, Floats]]:
    """The statistic "mean over the queries" of several per-query values [Q] at once, for ``bootstrap``."""
    names = list(values)
    sums = np.stack([np.bincount(cluster, values[name], n_clusters) for name in names], axis=1)
    sizes = np.bincount(cluster, minlength=n_clusters).astype(np.float64)

    def statistic(weights: Floats) -> dict[K, Floats]:
        means = (weights @ sums) / (weights @ sizes)[:, None]
        return dict(zip(names, means.T, strict=True))

    return statistic


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """mean(a - b) with its bootstrap interval, for two systems scored on the same queries in the same order.

    ``a``, ``b`` [Q] one value a query (average precision, recall@k, ...); ``groups`` [Q] what is drawn together.
    """
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if left.shape != right.shape or left.ndim != 1 or len(left) == 0 or not np.isfinite(left - right).all():
        raise FeatureError(f"two rows of finite values of equal length are needed, not {left.shape} and {right.shape}.")
    cluster, count = cluster_numbers(np.arange(len(left)) if groups is None else groups)
    statistic = mean_statistic({"difference": left - right}, cluster, count)
    low, high = bootstrap(statistic, count, repeats=repeats, seed=seed, level=level)["difference"]
    return Difference(float((left - right).mean()), low, high)


class Interval(NamedTuple):
    """A value and its interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """A share of independent items with its Wilson score interval, which stays in [0, 1] at shares of 0 and 1."""
    from scipy.special import ndtri

    if not 0 <= successes <= n or n < 1 or not 0 < level < 1:
        raise ConfigError(f"no interval for {successes} of {n} at level {level}.")
    z, share = float(ndtri((1 + level) / 2)), successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # The exact ends, where rounding would leave them a little off the value.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return Interval(share, float(low), float(high))


class Spread(NamedTuple):
    """``mean`` of n runs · ``std`` between them (over n - 1) · ``low``, ``high`` of the mean by Student's t."""

    mean: float
    std: float
    low: float
    high: float
    n: int


def over_runs(values: ArrayLike, *, level: float = 0.95) -> Spread:
    """What several seeds or folds [n >= 2] amount to; folds share training data, so their interval is optimistic."""
    from scipy.special import stdtrit

    runs = np.asarray(values, np.float64)
    if runs.ndim != 1 or len(runs) < 2 or not np.isfinite(runs).all():
        raise FeatureError(f"at least two runs of finite values are needed, not {list(runs.shape)}.")
    if not 0 < level < 1:
        raise ConfigError(f"level = {level} must lie between 0 and 1.")
    n, mean, std = len(runs), float(runs.mean()), float(runs.std(ddof=1))
    half = float(stdtrit(n - 1, (1 + level) / 2)) * std / np.sqrt(n)
    return Spread(mean, std, mean - float(half), mean + float(half), n)
