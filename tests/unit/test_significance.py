"""Permutation tests, Holm, Spearman and precision-recall curves against enumeration and other libraries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from avcl.errors import ConfigError, FeatureError
from avcl.metrics import holm, precision_recall, rank, sign_flip_test, spearman


def enumerated(sums: list[float]) -> float:
    patterns = list(itertools.product((1, -1), repeat=len(sums)))
    reached = [abs(sum(s * c for s, c in zip(p, sums, strict=True))) >= abs(sum(sums)) - 1e-12 for p in patterns]
    return sum(reached) / len(patterns)


@pytest.mark.parametrize("seed", range(5))
def test_exact_test_is_the_enumeration_and_scipys(seed: int) -> None:
    d = np.random.default_rng(seed).normal(0.4, 1, 9)
    p = sign_flip_test(d)
    assert p == pytest.approx(enumerated(d.tolist()))
    other = scipy.stats.permutation_test(
        (d,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=512
    )
    assert p == pytest.approx(other.pvalue)


def test_worked_values() -> None:
    assert sign_flip_test([1, 1, 1, 1]) == 2 / 16  # all plus, all minus
    assert sign_flip_test([1, -1]) == 1.0
    assert sign_flip_test([0, 0, 0]) == 1.0
    assert sign_flip_test([1, 1, 1, 1], groups=["a", "a", "b", "b"]) == 2 / 4
    assert sign_flip_test([3, 1, 0], weights=[1, 0, 1]) == 1.0  # one sign remains: both patterns are as far off


def test_groups_and_weights_are_the_enumeration_of_their_sums() -> None:
    rng = np.random.default_rng(0)
    d, w, groups = rng.normal(0.2, 1, 24), rng.uniform(0.5, 2, 24), np.repeat(np.arange(8), 3)
    sums = [(w * d)[groups == g].sum() for g in range(8)]
    assert sign_flip_test(d, groups=groups, weights=w) == pytest.approx(enumerated(sums))


def test_random_patterns_agree_with_all_of_them_and_are_never_zero() -> None:
    d = np.random.default_rng(1).normal(0.35, 1, 12)
    assert sign_flip_test(d, repeats=4095, seed=3) == pytest.approx(sign_flip_test(d, repeats=4096), abs=0.03)
    assert sign_flip_test(np.ones(200), repeats=999) == 1 / 1000
    assert sign_flip_test(d, repeats=100, seed=1) == sign_flip_test(d, repeats=100, seed=1)


def test_under_the_null_p_is_uniform() -> None:
    rng = np.random.default_rng(0)
    p = [sign_flip_test(rng.normal(size=40), repeats=199, seed=i) for i in range(300)]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.045)


def test_refusals_of_the_test() -> None:
    for bad in ([], [np.nan], [[1.0]]):
        with pytest.raises(FeatureError):
            sign_flip_test(bad)
    with pytest.raises(FeatureError):
        sign_flip_test([1, 2], groups=["a"])
    with pytest.raises(ConfigError):
        sign_flip_test([1, 2], repeats=0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.6, 0.7]) == (1.0, 1.0)
    assert holm([0.02]) == (0.02,)
    assert holm([]) == ()
    for bad in ([1.2], [-0.1], [float("nan")]):
        with pytest.raises(ConfigError):
            holm(bad)


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(0, 0.1, 6)
        rejected = np.zeros(6, bool)
        for place, i in enumerate(np.argsort(p)):
            if p[i] > 0.05 / (6 - place):
                break
            rejected[i] = True
        assert (np.array(holm(p.tolist())) <= 0.05).tolist() == rejected.tolist()


def test_spearman_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, 8), rng.integers(0, 5, 8)
        assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert np.isnan(spearman([1, 1], [1, 2]))
    with pytest.raises(FeatureError):
        spearman([1], [1])


def test_precision_and_recall_by_hand() -> None:
    # One query along the axis; scores 3, 2, 1, 0 with relevance 1, 0, 1, 0.
    gallery = np.array([[3.0], [2.0], [1.0], [0.0]])
    made = precision_recall([[1.0]], gallery, [1], [1, 2, 1, 2], ks=[1, 2, 3, 4], similarity="dot")
    np.testing.assert_allclose(made.precision, [1, 1 / 2, 2 / 3, 1 / 2])
    np.testing.assert_allclose(made.recall, [1 / 2, 1 / 2, 1, 1])


def test_ties_count_with_their_expected_value_and_queries_without_answers_not_at_all() -> None:
    made = precision_recall(np.ones((2, 1)), np.ones((6, 1)), [1, 9], [1, 1, 2, 2, 2, 2], ks=[1, 3, 6])
    np.testing.assert_allclose(made.precision, 1 / 3)
    np.testing.assert_allclose(made.recall, [1 / 6, 1 / 2, 1])
    with pytest.raises(FeatureError):
        precision_recall([[1.0]], [[1.0]], [1], [2])
    with pytest.raises(ConfigError):
        precision_recall([[1.0]], [[1.0]], [1], [1], ks=[2])


def test_the_curve_belongs_to_the_ranking() -> None:
    """Without ties, precision at the rank of each relevant item, averaged, is average precision."""
    rng = np.random.default_rng(0)
    q, g, labels = rng.normal(size=(1, 4)), rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    made = precision_recall(q, g, [1], labels, ks=range(1, 31))
    gained = np.diff(np.append(0, made.recall))
    assert float(gained @ made.precision) == pytest.approx(float(rank(q, g, [1], labels).ap[0]))
