"""Generated pictures and sounds: distances of feature sets, class scores, bins, and what a judge recognizes.

Distances live in the features of some network, and without its name a value means nothing: ``features`` (or
``classifier``) is required and comes back in the result. The caller computes the features; nothing is downloaded here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from avcl.errors import ConfigError, FeatureError
from avcl.metrics.inputs import Bools, Floats, Ints, floats, inside, integers, same_shape

ROWS = 1024  # rows of a distance or kernel table that are in memory at once


# --------------------------------------------------------------------------------------------------- Gaussian distance
class Frechet(NamedTuple):
    """``value`` in squared units of the ``features`` · ``n_real``, ``n_generated`` rows: the value falls as they grow,
    compare at equal numbers only."""

    value: float
    features: str
    n_real: int
    n_generated: int


def frechet_distance(real: ArrayLike, generated: ArrayLike, *, features: str) -> Frechet:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½) of Gaussian fits to [n, D] and [m, D] (FID, FAD; Heusel 2017).

    Never below zero. Biased upwards by about 1 / n: two sets of one distribution at D = 64 are 42 apart at n = 50 and
    2 at n = 1000 (``frechet_infinity`` takes the limit). No covariance is formed, nor its root: tr (C1 C2)^½ is the
    nuclear norm of A Bᵀ, A and B centered and divided by sqrt(n - 1), and that of their triangular factors.
    """
    x, y = _feature_sets(real, generated)
    return Frechet(_frechet(x, y), features, len(x), len(y))


def frechet_of_moments(mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike) -> float:
    """The same from means [D] and covariances [D, D], such as published statistics of a real set."""
    m = [floats(x, "the mean") for x in (mean_a, mean_b)]
    c = [floats(x, "the covariance", ndim=2) for x in (cov_a, cov_b)]
    same_shape(m[0], m[1], "the means")
    for cov in c:
        if cov.shape != (len(m[0]), len(m[0])) or not np.allclose(cov, cov.T, rtol=1e-5, atol=1e-8 * np.abs(cov).max()):
            raise FeatureError(f"a covariance must be symmetric and {len(m[0])} x {len(m[0])}, not {list(cov.shape)}.")
    # The nuclear norm of C1^½ C2^½ equals tr (C1 C2)^½ and squares nothing, so that equal sets are exactly 0 apart.
    overlap = np.linalg.svd(_root(c[0]) @ _root(c[1]), compute_uv=False).sum()
    return _joined(m[0], m[1], float(np.trace(c[0])), float(np.trace(c[1])), float(overlap))


class FrechetLimit(NamedTuple):
    """``value`` intercept of the line through (1 / n, distance) · ``sizes``, ``distances`` [k] the points of it."""

    value: float
    features: str
    sizes: Ints
    distances: Floats


def frechet_infinity(
    real: ArrayLike,
    generated: ArrayLike,
    *,
    features: str,
    points: int = 15,
    smallest: int | None = None,
    seed: int = 0,
) -> FrechetLimit:
    """The Frechet distance for n to infinity (Chong 2020): random subsets of n rows of both sets, a line in 1 / n.

    ``smallest``: rows of the smallest subset (default: a tenth of the smaller set, at least twice the dimensions). Not
    limited to zero: noise around it must not be biased.
    """
    x, y = _feature_sets(real, generated)
    largest = min(len(x), len(y))
    low = max(largest // 10, 2 * x.shape[1]) if smallest is None else smallest
    if points < 2 or not 2 <= low < largest:
        raise ConfigError(f"no line through {points} sizes from {low} to {largest} rows.", hint="Give more rows.")
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.linspace(low, largest, points).astype(np.int64))
    found = [_frechet(x[rng.permutation(len(x))[:n]], y[rng.permutation(len(y))[:n]]) for n in sizes]
    _, intercept = np.polyfit(1 / sizes, found, 1)
    return FrechetLimit(float(intercept), features, sizes, np.array(found))


def _frechet(x: Floats, y: Floats) -> float:
    mx, my = x.mean(0), y.mean(0)
    a, b = (x - mx) / math.sqrt(len(x) - 1), (y - my) / math.sqrt(len(y) - 1)
    triangles = [np.asarray(np.linalg.qr(z, mode="r")) for z in (a, b)]
    overlap = np.linalg.svd(triangles[0] @ triangles[1].T, compute_uv=False).sum()
    return _joined(mx, my, float((a * a).sum()), float((b * b).sum()), float(overlap))


def _joined(mx: Floats, my: Floats, trace_x: float, trace_y: float, overlap: float) -> float:
    return max(0.0, float(((mx - my) ** 2).sum()) + trace_x + trace_y - 2 * overlap)


def _root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    values[values < len(values) * np.finfo(np.float64).eps * values[-1]] = 0.0  # rounding, whose root would be large
    return (vectors * np.sqrt(values)) @ vectors.T


# ----------------------------------------------------------------------------------------------------- other distances
class KernelDistance(NamedTuple):
    """``value`` mean and ``std`` over ``subsets`` of ``size`` rows; unbiased, so it may be below zero."""

    value: float
    std: float
    features: str
    subsets: int
    size: int


def kernel_distance(
    real: ArrayLike, generated: ArrayLike, *, features: str, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Unbiased squared MMD under the kernel (xᵀy / D + 1)³ (KID; Binkowski 2018), the mean over random subsets."""
    x, y = _feature_sets(real, generated)
    if subsets < 1 or not 2 <= size <= min(len(x), len(y)):
        raise ConfigError(f"no {subsets} subsets of {size} rows from {len(x)} and {len(y)}.")
    rng = np.random.default_rng(seed)
    found = np.empty(subsets)
    for i in range(subsets):
        a, b = (z[rng.permutation(len(z))[:size]] for z in (x, y))
        same = sum(_kernel(z, z).sum() - _kernel_diagonal(z).sum() for z in (a, b)) / (size * (size - 1))
        found[i] = same - 2 * _kernel(a, b).mean()
    return KernelDistance(float(found.mean()), float(found.std()), features, subsets, size)


def _kernel(a: Floats, b: Floats) -> Floats:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _kernel_diagonal(a: Floats) -> Floats:
    return ((a * a).sum(1) / a.shape[1] + 1) ** 3


class Support(NamedTuple):
    """``precision``, ``density``: fidelity of what is generated · ``recall``, ``coverage``: how much of what is real is
    reached · by balls around each item that reach its ``k``-th neighbor."""

    precision: float
    recall: float
    density: float
    coverage: float
    features: str
    k: int


def support_scores(real: ArrayLike, generated: ArrayLike, *, features: str, k: int = 5) -> Support:
    """Improved precision and recall (Kynkaanniemi 2019), density and coverage (Naeem 2020).

    Density is not limited to 1. Memory is rows x n, never n x m.
    """
    from scipy.spatial.distance import cdist

    x, y = _feature_sets(real, generated)
    if not 1 <= k < min(len(x), len(y)):
        raise ConfigError(f"k = {k} must lie in 1..{min(len(x), len(y)) - 1}.")
    radius = [
        np.concatenate([np.partition(cdist(z[i : i + ROWS], z), k, axis=1)[:, k] for i in range(0, len(z), ROWS)])
        for z in (x, y)
    ]
    inside_real, covered = np.zeros(len(y)), np.zeros(len(x), bool)
    reached = np.zeros(len(x), bool)
    for i in range(0, len(x), ROWS):
        gap = cdist(x[i : i + ROWS], y)
        near = gap <= radius[0][i : i + ROWS, None]
        inside_real += near.sum(0)
        covered[i : i + ROWS] = near.any(1)
        reached[i : i + ROWS] = (gap <= radius[1]).any(1)
    return Support(
        float((inside_real > 0).mean()),
        float(reached.mean()),
        float(inside_real.mean() / k),
        float(covered.mean()),
        features,
        k,
    )


# -------------------------------------------------------------------------------------------------------- class scores
class InceptionScore(NamedTuple):
    """``value`` mean and ``std`` over the ``splits`` · ``classifier``: another one is another metric."""

    value: float
    std: float
    classifier: str
    splits: int


def inception_score(probabilities: ArrayLike, *, classifier: str, splits: int = 10) -> InceptionScore:
    """exp(mean KL(p(y | x) || p(y))) of class probabilities [N, C], from 1 to C (Salimans 2016).

    The mean over ``splits`` of consecutive items: their order and their number change the value.
    """
    from scipy.special import rel_entr

    p = floats(probabilities, "the probabilities", ndim=2)
    if p.min() < 0 or np.abs(p.sum(1) - 1).max() > 1e-4:
        raise FeatureError("each row of probabilities must be at least 0 and sum to one.")
    if not 1 <= splits <= len(p):
        raise ConfigError(f"splits = {splits} must lie in 1..{len(p)}, the number of items.")
    parts = np.array_split(p, splits)
    found = np.array([np.exp(rel_entr(part, part.mean(0)).sum(1).mean()) for part in parts])
    return InceptionScore(float(found.mean()), float(found.std()), classifier, splits)


# ---------------------------------------------------------------------------------------------------------------- bins
class Bins(NamedTuple):
    """``ndb`` number of statistically different bins of K · ``z``, ``p_value`` [K] two-proportion test of each ·
    ``jsd`` Jensen-Shannon divergence in nats · ``empty`` bins that neither set falls into (never different)."""

    ndb: int
    z: Floats
    p_value: Floats
    jsd: float
    empty: int

    @property
    def share(self) -> float:
        """NDB / K; a perfect model is at the level of the test, 0.05."""
        return self.ndb / len(self.z)


def different_bins(real: ArrayLike, generated: ArrayLike, *, level: float = 0.05) -> Bins:
    """NDB and JSD (Richardson and Weiss 2018) from the counts [K] of both sets in the same bins.

    z = (p - q) / sqrt(P (1 - P) (1 / n_p + 1 / n_q)), P the pooled share. z grows with n: compare at equal numbers.
    """
    from scipy.special import erfc, rel_entr

    inside(level, 0, 1, "level")
    a, b = integers(real, "the real counts"), integers(generated, "the generated counts")
    same_shape(a, b, "the counts")
    if min(a.min(), b.min()) < 0 or not a.any() or not b.any():
        raise FeatureError("counts must be at least 0, and both sets must hold something.")
    n, m = a.sum(), b.sum()
    p, q, pooled = a / n, b / m, (a + b) / (n + m)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    z = np.divide(p - q, spread, out=np.zeros(len(p)), where=spread > 0)
    p_value = erfc(np.abs(z) / math.sqrt(2))
    middle = (p + q) / 2
    jsd = float((rel_entr(p, middle).sum() + rel_entr(q, middle).sum()) / 2)
    return Bins(int((p_value < level).sum()), z, p_value, max(0.0, jsd), int((a + b == 0).sum()))


def binned_difference(
    real: ArrayLike, generated: ArrayLike, *, bins: int = 100, whiten: bool = False, level: float = 0.05, seed: int = 0
) -> Bins:
    """``different_bins`` of features [n, D] and [m, D] in the cells of a k-means of the real ones.

    ``whiten``: divide by the standard deviation of the real set in each dimension first.
    """
    from sklearn.cluster import KMeans

    x, y = _feature_sets(real, generated)
    if not 1 <= bins <= len(np.unique(x, axis=0)):
        raise ConfigError(f"{bins} bins need as many different real items.")
    if whiten:
        scale = x.std(0)
        scale[scale == 0] = 1.0
        x, y = x / scale, y / scale
    cells = KMeans(n_clusters=bins, n_init=1, random_state=seed).fit(x)
    counts = [np.bincount(cells.predict(z), minlength=bins) for z in (x, y)]
    return different_bins(counts[0], counts[1], level=level)


# ------------------------------------------------------------------------------------------------------- informativity
class Informativity(NamedTuple):
    """``value`` mean over the classes that were tested · ``pooled`` accepted over all · ``per_class`` [C], 0 where not
    ``tested`` [C]."""

    value: float
    pooled: float
    per_class: Floats
    tested: Bools


def informativity(accepted: ArrayLike, total: ArrayLike) -> Informativity:
    """I (Fanzeres and Nadeu): share of the items of class c that the judge of class c finds interpretable.

    ``accepted``, ``total`` [C] counts. It depends on the judges: report their rate on real items and on items generated
    from other classes beside it.
    """
    hit, n = integers(accepted, "the accepted counts"), integers(total, "the totals")
    same_shape(hit, n, "the counts")
    tested = n > 0
    if (hit < 0).any() or (hit > n).any() or not tested.any():
        raise FeatureError("accepted counts must lie between 0 and the totals, of which one must be above 0.")
    each = np.divide(hit, n, out=np.zeros(len(n)), where=tested)
    return Informativity(float(each[tested].mean()), float(hit.sum() / n.sum()), each, tested)


def _feature_sets(real: ArrayLike, generated: ArrayLike) -> tuple[Floats, Floats]:
    x, y = floats(real, "the real features", ndim=2), floats(generated, "the generated features", ndim=2)
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise FeatureError(
            f"two sets of at least two rows of equal width are needed, not {list(x.shape)}, {list(y.shape)}."
        )
    return x, y
