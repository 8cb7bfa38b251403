"""Offsets between the lags of a grid, what blind guessing scores, and the course of the lag over a file."""

from __future__ import annotations

import math

import numpy as np
import pytest

from avcl.errors import ConfigError, FeatureError
from avcl.metrics.alignment import blind_median, blind_within, estimate_offsets, fit_course

GRID = np.arange(-24, 25) * 0.02


def normal(mean: float, deviation: float, grid: np.ndarray = GRID) -> np.ndarray:
    return -0.5 * ((grid - mean) / deviation) ** 2


@pytest.mark.parametrize("mean", [0.0, 0.0031, -0.2199, 0.3955])
def test_a_normal_posterior_is_read_exactly(mean: float) -> None:
    found = estimate_offsets(normal(mean, 0.03)[None], GRID)
    assert found.offset[0] == pytest.approx(mean, abs=1e-9)
    assert found.low[0] == pytest.approx(mean - 1.96 * 0.03, abs=0.006)
    assert found.high[0] == pytest.approx(mean + 1.96 * 0.03, abs=0.006)
    assert found.confidence[0] == pytest.approx(math.erf(0.04 / 0.03 / math.sqrt(2)), abs=0.02)
    assert not found.at_edge[0]


def test_a_flat_posterior_knows_nothing() -> None:
    found = estimate_offsets(np.zeros((1, 49)), GRID)
    assert found.offset[0] == 0
    assert found.confidence[0] == pytest.approx(0.08 / (49 * 0.02))
    assert found.low[0] == pytest.approx(-found.high[0])
    assert found.high[0] - found.low[0] == pytest.approx(0.95 * 49 * 0.02)


def test_a_best_lag_at_the_edge_is_no_measurement() -> None:
    found = estimate_offsets(np.stack([normal(0.7, 0.03), normal(-0.7, 0.03), normal(0.1, 0.03)]), GRID)
    assert found.at_edge.tolist() == [True, True, False]
    assert found.offset[:2].tolist() == pytest.approx([0.48, -0.48])


def test_equal_best_scores_count_as_their_middle() -> None:
    scores = np.zeros((1, 49))
    scores[0, [10, 20, 30]] = 5
    assert estimate_offsets(scores, GRID).offset[0] == pytest.approx(GRID[20])


def test_what_does_not_fit_is_refused() -> None:
    for scores, grid in (
        (np.zeros((1, 4)), np.arange(5.0)),
        (np.zeros((1, 2)), np.arange(2.0)),
        (np.zeros((1, 3)), np.array([0.0, 1.0, 3.0])),
        (np.zeros((1, 3)), np.array([2.0, 1.0, 0.0])),
        (np.full((1, 3), np.nan), np.arange(3.0)),
    ):
        with pytest.raises(FeatureError):
            estimate_offsets(scores, grid)
    with pytest.raises(ConfigError):
        estimate_offsets(np.zeros((1, 3)), np.arange(3.0), tolerance=0)


def test_blind_guessing_is_exact() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(-0.4, 0.4, 500)
    error = np.abs(rng.uniform(-0.4, 0.4, (4000, 1)) - truth)
    assert blind_within(truth, 0.4, 0.04) == pytest.approx((error <= 0.04).mean(), abs=1e-3)
    assert blind_within(truth, 0.4, 0.125) == pytest.approx((error <= 0.125).mean(), abs=2e-3)
    assert blind_median(truth, 0.4) == pytest.approx(np.median(error), abs=1e-3)
    assert blind_within([0.0], 0.4, 0.04) == pytest.approx(0.1)
    assert blind_within([0.4], 0.4, 0.04) == pytest.approx(0.05)
    assert blind_median([0.0], 0.4) == pytest.approx(0.2)


# ------------------------------------------------------------------------------------------------------------- courses
def windows(lags: np.ndarray, deviation: float = 0.03, seed: int = 0) -> np.ndarray:
    """Log-scores of windows with these lags, each measured with some error."""
    rng = np.random.default_rng(seed)
    return np.stack([normal(lag + rng.normal(0, 0.01), deviation) for lag in lags])


def best(scores: np.ndarray) -> float:
    return float(estimate_offsets(scores[None], GRID).offset[0])


def test_one_lag() -> None:
    times = np.arange(20.0)
    course = fit_course(windows(np.full(20, 0.123)), GRID, times, np.ones(20))
    assert course.kind == "constant"
    assert best(course.log_scores) == pytest.approx(0.123, abs=0.01)
    assert course.slope == pytest.approx(0, abs=0.002)
    assert [part[:2] for part in course.parts] == [(0, 20)]


def test_windows_that_are_wrong_and_sure_do_not_veto() -> None:
    lags = np.full(20, -0.2)
    lags[[3, 11]] = 0.3
    course = fit_course(windows(lags), GRID, np.arange(20.0), np.ones(20))
    assert course.kind == "constant"
    assert best(course.log_scores) == pytest.approx(-0.2, abs=0.01)


def test_a_drift_is_a_line() -> None:
    times = np.arange(0, 60, 1.0)
    course = fit_course(windows(0.1 + 0.004 * (times - 29.5)), GRID, times, np.ones(60))
    assert course.kind == "drift"
    assert course.slope == pytest.approx(0.004, abs=3e-4)
    assert best(course.log_scores) == pytest.approx(0.1, abs=0.01)


def test_an_edit_is_found_where_it_is() -> None:
    lags = np.concatenate([np.full(12, 0.05), np.full(9, 0.31), np.full(10, -0.1)])
    course = fit_course(windows(lags), GRID, np.arange(31.0), np.ones(31))
    assert course.kind == "sections"
    assert [part[:2] for part in course.parts] == [(0, 12), (12, 21), (21, 31)]
    assert [best(part[2]) for part in course.parts] == pytest.approx([0.05, 0.31, -0.1], abs=0.01)


def test_nothing_to_see_stays_nothing() -> None:
    course = fit_course(np.zeros((30, 49)), GRID, np.arange(30.0), np.ones(30))
    assert course.kind == "constant"
    assert estimate_offsets(course.log_scores[None], GRID).confidence[0] < 0.1


def test_overlapping_windows_count_as_their_share() -> None:
    half = fit_course(windows(np.full(4, 0.1)), GRID, np.arange(4.0), np.full(4, 0.5))
    whole = fit_course(windows(np.full(4, 0.1)), GRID, np.arange(4.0), np.ones(4))
    np.testing.assert_allclose(2 * half.log_scores, whole.log_scores)


def test_course_refuses_what_does_not_fit() -> None:
    with pytest.raises(FeatureError):
        fit_course(np.zeros((3, 49)), GRID, np.arange(2.0), np.ones(3))
    with pytest.raises(FeatureError):
        fit_course(np.zeros((3, 48)), GRID, np.arange(3.0), np.ones(3))
