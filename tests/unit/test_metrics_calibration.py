"""Calibration and intervals: worked values, scikit-learn, torchmetrics and SciPy as oracles, edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl.errors import ConfigError, FeatureError
from avcl.metrics import brier, fit_temperature, negative_log_likelihood, over_runs, reliability, wilson

CONFIDENCE, CORRECT = [0.95, 0.85, 0.65, 0.55, 0.3], [1, 1, 0, 1, 0]


def test_worked_calibration_error():
    table = reliability(CONFIDENCE, CORRECT, bins=5)
    assert table.ece == pytest.approx(0.32)
    assert table.count.tolist() == [1, 1, 1, 2]
    assert table.low == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert table.high == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert table.gap == pytest.approx([0.3, -0.45, 0.65, -0.1])
    assert table.worst == pytest.approx(0.65)
    assert (table.binning, table.bins) == ("width", 5)


def test_bounds_belong_to_the_lower_bin_on_the_float_grid():
    for bins in (5, 10, 15, 20, 30):
        grid = np.arange(bins + 1) / bins
        table = reliability(grid, np.ones(bins + 1), bins=bins)
        assert table.count.tolist() == [2] + [1] * (bins - 1)  # 0 is in the first bin
    assert reliability([0.55], [1], bins=20).high == pytest.approx([0.55])  # .55 * 20 is above 11 in floating point


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 20))
def test_calibration_error_is_that_of_torchmetrics(seed, bins):
    from torchmetrics.functional.classification import binary_calibration_error

    rng = np.random.default_rng(seed)
    c, y = rng.random(40), rng.integers(0, 2, 40)
    for norm in ("l1", "max"):
        # torchmetrics bins the probability of class 1, which is a confidence in "correct" here.
        peer = binary_calibration_error(torch.tensor(c), torch.tensor(y), n_bins=bins, norm=norm)
        table = reliability(c, y, bins=bins)
        assert (table.ece if norm == "l1" else table.worst) == pytest.approx(float(peer), abs=1e-5)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=30))
def test_equal_mass_never_splits_equal_confidences(items):
    c, y = (np.array(x) for x in zip(*items, strict=True))
    table = reliability(c, y, bins=4, binning="mass")
    turned = reliability(c[::-1], y[::-1], bins=4, binning="mass")
    assert table.ece == pytest.approx(turned.ece)
    assert table.count.sum() == len(c)
    assert (table.count > 0).all()
    assert np.isfinite([table.low, table.high, table.confidence, table.accuracy]).all()


def test_equal_mass_bins_hold_equally_many():
    rng = np.random.default_rng(0)
    table = reliability(rng.random(1000) ** 4, rng.integers(0, 2, 1000), bins=8, binning="mass")
    assert table.count.tolist() == [125] * 8
    assert table.low[1:] == pytest.approx(table.high[:-1])


def test_brier_by_hand_and_by_scikit_learn():
    from sklearn.metrics import brier_score_loss

    assert brier([0.9, 0.2], [1, 0]) == pytest.approx((0.01 + 0.04) / 2)
    assert brier([[0.7, 0.2, 0.1]], [0]) == pytest.approx(0.09 + 0.04 + 0.01)
    assert brier(np.eye(3), [1, 2, 0]) == 2
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(3), 50), rng.integers(0, 3, 50)
    assert brier(p, y) == pytest.approx(brier_score_loss(y, p, labels=range(3), scale_by_half=False))
    assert brier(p[:, 0], y == 0) == pytest.approx(brier_score_loss(y == 0, p[:, 0]))


def test_likelihood_is_that_of_torch_and_finite_for_huge_logits():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(30, 4)) * 5, rng.integers(0, 4, 30)
    peer = torch.nn.functional.cross_entropy(torch.tensor(z), torch.tensor(y))
    assert negative_log_likelihood(z, y) == pytest.approx(float(peer))
    assert negative_log_likelihood(z, y, temperature=2) == pytest.approx(negative_log_likelihood(z / 2, y))
    assert negative_log_likelihood(z + 1e6, y) == pytest.approx(negative_log_likelihood(z, y), abs=1e-8)
    assert negative_log_likelihood([[0.0, 1e5]], [0]) == 1e5


def test_temperature_finds_the_one_that_was_put_in():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20_000, 5)) * 2
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    y = (p.cumsum(1) < rng.random(20_000)[:, None]).sum(1)
    for true in (0.3, 1.0, 4.0):
        found = fit_temperature(true * z, y)
        assert found.value == pytest.approx(true, rel=0.05)
        assert found.after <= found.before + 1e-12
        assert not found.at_bound
        around = [negative_log_likelihood(true * z, y, temperature=found.value * f) for f in (0.98, 1.02)]
        assert min(around) > found.after


def test_temperature_at_its_bounds():
    separated = fit_temperature([[3.0, 0], [0, 2]], [0, 1])
    assert separated.at_bound
    assert separated.value < 0.011
    wrong = fit_temperature([[3.0, 0], [0, 2]], [1, 0])
    assert wrong.at_bound
    assert wrong.value > 99
    assert np.isfinite([*separated[:3], *wrong[:3]]).all()


# ----------------------------------------------------------------------------------------------------------- intervals
@settings(max_examples=30)
@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95]))
def test_wilson_is_that_of_scipy(case, level):
    from scipy.stats import binomtest

    k, n = case
    peer = binomtest(k, n).proportion_ci(level, method="wilson")
    found = wilson(k, n, level=level)
    assert found == (pytest.approx(k / n), pytest.approx(peer.low, abs=1e-12), pytest.approx(peer.high, abs=1e-12))
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_runs_by_student():
    from scipy.stats import t

    runs = [0.70, 0.74, 0.72, 0.71, 0.73]
    found = over_runs(runs)
    assert (found.mean, found.n) == (pytest.approx(0.72), 5)
    assert found.std == pytest.approx(np.sqrt(0.001 / 4))
    low, high = t.interval(0.95, 4, loc=0.72, scale=found.std / np.sqrt(5))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert over_runs([0.5, 0.5])[1:4] == (0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: reliability([0.5, 1.2], [0, 1]), FeatureError, r"\[0, 1\]"),
        (lambda: reliability([0.5], [0, 1]), FeatureError, "do not fit together"),
        (lambda: reliability([0.5], [1], bins=0), ConfigError, "bins"),
        (lambda: reliability([0.5], [1], binning="size"), ConfigError, "size"),
        (lambda: reliability([np.nan], [1]), FeatureError, "not finite"),
        (lambda: brier([[0.5, 0.4]], [0]), FeatureError, "sum to one"),
        (lambda: brier([1.5], [1]), FeatureError, r"\[0, 1\]"),
        (lambda: negative_log_likelihood([[0.0, 1]], [2]), FeatureError, "labels"),
        (lambda: negative_log_likelihood([[0.0, 1]], [0], temperature=0), ConfigError, "temperature"),
        (lambda: fit_temperature([[0.0, 1]], [0, 1]), FeatureError, "do not fit"),
        (lambda: wilson(3, 2), ConfigError, "3 of 2"),
        (lambda: wilson(0, 0), ConfigError, "0 of 0"),
        (lambda: over_runs([0.5]), FeatureError, "at least two"),
        (lambda: over_runs([0.5, np.nan]), FeatureError, "finite"),
        (lambda: over_runs([0.5, 0.6], level=1.0), ConfigError, "level"),
    ],
)
def test_errors_name_what_came(call, error, words):
    with pytest.raises(error, match=words):
        call()
