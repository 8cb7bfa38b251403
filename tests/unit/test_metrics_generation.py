"""Metrics of generated sets: worked values, stable forms against each other, peers, the traps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl.errors import ConfigError, FeatureError
from avcl.metrics import (
    binned_difference,
    chance,
    different_bins,
    frechet_distance,
    frechet_infinity,
    frechet_of_moments,
    inception_score,
    informativity,
    kernel_distance,
    rank_scores,
    support_scores,
)


# -------------------------------------------------------------------------------------------------------------- Frechet
def test_worked_moments():
    assert frechet_of_moments([0, 0], np.diag([1.0, 4]), [1, 2], np.diag([9.0, 1])) == pytest.approx(10.0)
    a, b = [[2, 0.5], [0.5, 1]], [[1, 0.2], [0.2, 3]]
    assert frechet_of_moments([0, 0], a, [0.5, -0.5], b) == pytest.approx(1.254386, abs=5e-7)
    assert frechet_of_moments([0, 0], a, [0, 0], a) == pytest.approx(0, abs=1e-14)


def test_worked_few_rows():
    rng = np.random.RandomState(0)
    found = frechet_distance(*rng.randn(2, 20, 64), features="noise")
    assert (found.features, found.n_real, found.n_generated) == ("noise", 20, 20)
    assert found.value == pytest.approx(72.0196, abs=5e-5)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([(3, 9), (9, 3), (40, 60), (6, 60)]))
def test_all_forms_agree(seed, sizes):
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(seed)
    d = 6
    x, y = rng.normal(size=(sizes[0], d)), rng.normal(size=(sizes[1], d)) * 2 + 1
    value = frechet_distance(x, y, features="noise").value
    c = [np.cov(z.T) for z in (x, y)]
    by_moments = frechet_of_moments(x.mean(0), c[0], y.mean(0), c[1])
    assert value == pytest.approx(by_moments, abs=1e-6)
    if min(sizes) > d:  # where the plain root is stable
        plain = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c[0] + c[1] - 2 * sqrtm(c[0] @ c[1]).real)
        assert value == pytest.approx(plain, abs=1e-9)
    assert frechet_distance(y, x, features="noise").value == pytest.approx(value, abs=1e-9)
    turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
    assert frechet_distance(x @ turn + 5, y @ turn + 5, features="noise").value == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize("n", [5, 300])
def test_the_same_set_twice_is_zero_and_never_below(n):
    x = np.random.default_rng(0).normal(size=(n, 64))
    for scale in (1e-3, 1.0, 1e3):
        value = frechet_distance(scale * x, scale * x[::-1], features="noise").value
        assert 0 <= value <= 1e-8 * scale**2
    flat = np.ones((n, 3))
    assert frechet_distance(flat, flat, features="flat").value == 0  # no variance at all
    assert frechet_distance(flat, flat + 1, features="flat").value == pytest.approx(3)


def test_bias_falls_with_n_and_the_limit_takes_it_away():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 2000, 64))
    values = [frechet_distance(x[:n], y[:n], features="noise").value for n in (50, 200, 1000)]
    assert values == pytest.approx([42.2, 10.9, 2.03], rel=0.1)
    limit = frechet_infinity(x, y, features="noise", points=6)
    assert limit.sizes.tolist() == sorted(limit.sizes)
    assert abs(limit.value) < 0.25 * limit.distances[-1]
    shifted = frechet_infinity(x, y + 1, features="noise", points=6)
    assert shifted.value == pytest.approx(64, rel=0.05)
    few = [frechet_infinity(x, y, features="noise", points=2, smallest=100, seed=s).value for s in (0, 0, 1)]
    assert few[0] == few[1] != few[2]


# ------------------------------------------------------------------------------------------------------ other distances
def test_kernel_distance_is_that_of_a_loop_and_of_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4)), rng.normal(size=(7, 4)) + 0.5
    n = len(x)

    def k(a, b):
        return (float(a @ b) / 4 + 1) ** 3

    same = sum(k(z[i], z[j]) for z in (x, y) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    loop = same - 2 * sum(k(a, b) for a in x for b in y) / n**2
    found = kernel_distance(x, y, features="noise", subsets=2, size=n)
    assert found.value == pytest.approx(loop)
    assert found.std == pytest.approx(0, abs=1e-12)
    assert found.value == pytest.approx(float(poly_mmd(torch.tensor(x), torch.tensor(y))), abs=1e-6)
    assert found[2:] == ("noise", 2, n)


def test_kernel_distance_is_unbiased():
    x, y = np.random.default_rng(1).normal(size=(2, 400, 8))
    found = kernel_distance(x, y, features="noise", subsets=60, size=40)
    assert abs(found.value) < 3 * found.std / math.sqrt(60) + 0.05
    assert found.value < kernel_distance(x, y + 1, features="noise", subsets=10, size=40).value


def test_support_by_hand():
    real, generated = np.array([[0.0], [1], [2], [10]]), np.array([[0.5], [1.5], [30], [31]])
    found = support_scores(real, generated, features="line", k=1)
    # Radii of the real: 1, 1, 1, 8; of the generated: 1, 1, 1, 1.
    assert found.precision == 0.5
    assert found.density == pytest.approx((2 + 2) / 4)  # .5 in the balls of 0, 1; 1.5 in those of 1, 2; 10 reaches 2
    assert found.recall == 0.75
    assert found.coverage == 0.75


def test_support_of_equal_and_of_collapsed_sets(monkeypatch):
    x = np.random.default_rng(0).normal(size=(60, 3))
    same = support_scores(x, x, features="noise", k=3)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    collapsed = support_scores(x, np.repeat(x[:1], 60, axis=0), features="noise", k=3)
    assert collapsed.precision == 1
    assert collapsed.recall == pytest.approx(1 / 60)
    y = x[::-1] * 1.1
    plain = support_scores(x, y, features="noise", k=3)
    monkeypatch.setattr("avcl.metrics.generation.ROWS", 7)
    assert support_scores(x, y, features="noise", k=3) == plain


# --------------------------------------------------------------------------------------------------------- class scores
def test_worked_inception_score():
    p = np.array([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]])
    assert inception_score(p, classifier="toy", splits=1).value == pytest.approx(2.0223, abs=5e-5)
    assert inception_score(np.eye(3), classifier="toy", splits=1).value == pytest.approx(3)
    equal = inception_score(np.full((20, 4), 0.25), classifier="toy")
    assert equal == (pytest.approx(1), pytest.approx(0), "toy", 10)
    split = inception_score(np.eye(2)[[0, 0, 1, 1]], classifier="toy", splits=2)
    assert split.value == 1  # each half is one class: the splits matter


# ---------------------------------------------------------------------------------------------------------------- bins
def test_worked_bins():
    found = different_bins([400, 300, 200, 100], [230, 130, 105, 35])
    assert found.z == pytest.approx([-2.219, 1.615, -0.454, 1.914], abs=5e-4)
    assert found.p_value == pytest.approx([0.0265, 0.1063, 0.6501, 0.0556], abs=5e-5)
    assert (found.ndb, found.share, found.empty) == (1, 0.25, 0)
    assert found.jsd == pytest.approx(0.003154, abs=5e-7)
    assert found.jsd / math.log(2) == pytest.approx(0.004550, abs=5e-7)


def test_empty_and_full_bins_are_never_nan():
    found = different_bins([10, 0, 0], [0, 10, 0])
    assert np.isfinite(found.z).all()
    assert (found.ndb, found.empty) == (2, 1)
    assert found.jsd == pytest.approx(math.log(2))
    one = different_bins([10], [7])
    assert (one.ndb, one.jsd, one.p_value.tolist()) == (0, 0, [1])


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8))
def test_jensen_shannon_is_that_of_scipy(counts):
    from scipy.spatial.distance import jensenshannon

    p, q = np.array(counts).T
    if not p.any() or not q.any():
        return
    found = different_bins(p, q)
    assert found.jsd == pytest.approx(jensenshannon(p / p.sum(), q / q.sum()) ** 2, abs=1e-9)
    assert different_bins(q, p).jsd == pytest.approx(found.jsd, abs=1e-12)
    assert found.z == pytest.approx(-different_bins(q, p).z)


def test_bins_of_features():
    rng = np.random.default_rng(0)
    centers = np.array([[0.0, 0], [9, 0], [0, 900], [9, 900]])
    real = centers[rng.integers(0, 4, 800)] + rng.normal(size=(800, 2))
    same = centers[rng.integers(0, 4, 400)] + rng.normal(size=(400, 2))
    assert binned_difference(real, same, bins=4).p_value.min() > 0.01
    dropped = centers[rng.integers(0, 2, 400)] + rng.normal(size=(400, 2))
    found = binned_difference(real, dropped, bins=4, whiten=True, seed=3)
    assert found.ndb == 4
    assert found.jsd > 0.2
    assert (binned_difference(real, dropped, bins=4, whiten=True, seed=3).z == found.z).all()
    flat = np.column_stack([real[:, 0], np.ones(800)])
    assert np.isfinite(binned_difference(flat, flat, bins=2, whiten=True).jsd)  # a dimension without variance


# ------------------------------------------------------------------------------------------------------- informativity
def test_worked_informativity():
    found = informativity([12, 30, 5, 60, 8], [100, 150, 100, 200, 100])
    assert found.per_class == pytest.approx([0.12, 0.20, 0.05, 0.30, 0.08])
    assert found.value == pytest.approx(0.15)
    assert found.pooled == pytest.approx(0.177, abs=5e-4)
    absent = informativity([1, 0], [2, 0])
    assert (absent.value, absent.tested.tolist(), absent.per_class[1]) == (0.5, [True, False], 0)


# ------------------------------------------------------------------------------------ ranks of generated items (reused)
def test_worked_reciprocal_ranks():
    scores = np.tile([4.0, 3, 2, 1], (4, 1))
    ranking = rank_scores(scores, [0, 2, 1, 9], [0, 1, 2, 3])  # ranks 1, 3, 2, none
    assert ranking.reciprocal_rank.mean() == pytest.approx(0.4583, abs=5e-5)
    # Chance by class: 28 classes share 402 items, ten of them with 15 and eighteen with 14.
    balanced = np.repeat([15, 14], [150, 252])
    exact = [sum(math.comb(402 - k, m - 1) / math.comb(402, m) / k for k in range(1, 404 - m)) for m in (15, 14)]
    value = chance(balanced, 402)["MRR"]
    assert value == pytest.approx((150 * exact[0] + 252 * exact[1]) / 402)
    assert value == pytest.approx(0.123, abs=2e-3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: frechet_distance(np.ones((1, 3)), np.ones((5, 3)), features="x"), FeatureError, "two rows"),
        (lambda: frechet_distance(np.ones((5, 3)), np.ones((5, 2)), features="x"), FeatureError, "equal width"),
        (lambda: frechet_distance(np.ones((5, 3)), np.full((5, 3), np.nan), features="x"), FeatureError, "not finite"),
        (lambda: frechet_of_moments([0, 0], np.eye(3), [0, 0], np.eye(2)), FeatureError, "symmetric"),
        (lambda: frechet_of_moments([0, 0], [[1, 2], [0, 1]], [0, 0], np.eye(2)), FeatureError, "symmetric"),
        (lambda: frechet_of_moments([0], np.eye(1), [0, 0], np.eye(2)), FeatureError, "means"),
        (lambda: frechet_infinity(np.eye(9), np.eye(9), features="x"), ConfigError, "no line"),
        (lambda: kernel_distance(np.eye(9), np.eye(9), features="x"), ConfigError, "1000"),
        (lambda: support_scores(np.eye(5), np.eye(5), features="x", k=5), ConfigError, "k = 5"),
        (lambda: inception_score([[0.5, 0.6]], classifier="x", splits=1), FeatureError, "sum to one"),
        (lambda: inception_score([[0.5, 0.5]], classifier="x"), ConfigError, "splits"),
        (lambda: different_bins([0, 0], [1, 1]), FeatureError, "hold something"),
        (lambda: different_bins([1, 2], [1, 1, 1]), FeatureError, "do not fit"),
        (lambda: different_bins([1], [1], level=2), ConfigError, "level"),
        (lambda: binned_difference(np.ones((9, 2)), np.ones((9, 2)), bins=2), ConfigError, "different real items"),
        (lambda: informativity([3], [2]), FeatureError, "between 0"),
        (lambda: informativity([0], [0]), FeatureError, "above 0"),
    ],
)
def test_errors_name_what_came(call, error, words):
    with pytest.raises(error, match=words):
        call()
