"""Recognition metrics: worked values, scikit-learn and torchmetrics as oracles, and the traps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl import metrics
from avcl.errors import ConfigError, FeatureError
from avcl.metrics import (
    accuracy,
    average_precision,
    ccc,
    ccc_of_recordings,
    class_scores,
    equal_error_rate,
    match_clusters,
    mean_absolute_error,
    multilabel_precision,
    pearson,
    pool_clips,
    roc_auc,
    sentiment,
    top_k_accuracy,
)

Y = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])
P = np.array([0, 0, 0, 0, 0, 1, 1, 1, 0, 0])


# ---------------------------------------------------------------------------------------------------- one label an item
def test_worked_ten_samples():
    scores = class_scores(Y, P)
    assert scores.confusion.tolist() == [[5, 1, 0], [1, 2, 0], [1, 0, 0]]
    assert scores.accuracy == accuracy(Y, P) == pytest.approx(0.7)
    assert scores.uar == pytest.approx(0.5)
    assert scores.f1 == pytest.approx([0.7692, 0.6667, 0], abs=5e-5)
    assert scores.macro_f1 == pytest.approx(0.4786, abs=5e-5)
    assert scores.weighted_f1 == pytest.approx(0.6615, abs=5e-5)
    assert scores.absent == 0


def test_worked_one_vs_rest():
    scores = class_scores([1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 1, 0])
    assert scores.accuracy == 0.75
    assert scores.one_vs_rest == pytest.approx([0.6667, 0.6667], abs=5e-5)
    assert scores.weighted_accuracy == pytest.approx(0.6667, abs=5e-5)
    assert scores.f1[1] == pytest.approx(0.5)


def test_segments_of_videos():
    truth, predicted = [9, 9, 3, 3, 3, 3, 3, 9, 9, 9], [9, 3, 3, 3, 3, 5, 3, 3, 9, 9]
    assert accuracy(truth, predicted) == pytest.approx(0.7)
    assert accuracy([truth] * 2, [predicted, truth]) == pytest.approx(0.85)


def test_an_absent_class_is_left_out_and_counted():
    scores = class_scores([0, 0, 1, 1], [0, 2, 1, 1], n_classes=5)  # 2 is predicted but never true; 3, 4 never come up
    assert scores.absent == 3
    assert scores.uar == pytest.approx((0.5 + 1) / 2)
    assert scores.macro_f1 == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores.one_vs_rest[2:].tolist() == [0, 0, 0]
    assert scores.separable.tolist() == [True, True, False, False, False]
    assert scores.weighted_accuracy == pytest.approx((0.75 + 1) / 2)
    only = class_scores([1, 1], [1, 0])
    assert (only.uar, only.absent) == (0.5, 1)
    with pytest.raises(FeatureError, match="two classes"):
        _ = only.weighted_accuracy


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_class_scores_are_those_of_scikit_learn(pairs):
    from sklearn.metrics import confusion_matrix, f1_score, recall_score

    y, p = np.array(pairs).T
    scores = class_scores(y, p)
    assert scores.macro_f1 == pytest.approx(f1_score(y, p, average="macro", zero_division=0))
    assert scores.weighted_f1 == pytest.approx(f1_score(y, p, average="weighted", zero_division=0))
    present = np.unique(y)
    assert scores.uar == pytest.approx(recall_score(y, p, labels=present, average="macro", zero_division=0))
    rates = confusion_matrix(y, p, labels=range(len(scores.f1) + 1))  # one class alone makes the peer warn
    assert (scores.confusion == rates[:-1, :-1]).all()
    values = np.concatenate([scores.precision, scores.recall, scores.f1, scores.one_vs_rest])
    assert np.isfinite(values).all()


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_top_k_is_the_mean_over_the_orders_of_ties(seed, k):
    rng = np.random.default_rng(seed)
    scores, y = rng.integers(-2, 2, (6, 5)).astype(float), rng.integers(0, 5, 6)
    expected = []
    for row, label in zip(scores, y, strict=True):
        orders = [o for o in itertools.permutations(range(5)) if all(np.diff(row[list(o)]) <= 0)]
        expected.append(np.mean([label in o[:k] for o in orders]))
    assert top_k_accuracy(scores, y, k=k) == pytest.approx(np.mean(expected))
    assert top_k_accuracy(np.exp(scores) - 100, y, k=k) == top_k_accuracy(scores, y, k=k)


def test_top_k_without_ties_is_that_of_scikit_learn():
    from sklearn.metrics import top_k_accuracy_score

    rng = np.random.default_rng(0)
    scores, y = rng.normal(size=(50, 6)) - 5, rng.integers(0, 6, 50)
    for k in (1, 2, 5):
        assert top_k_accuracy(scores, y, k=k) == pytest.approx(top_k_accuracy_score(y, scores, k=k, labels=range(6)))
    assert top_k_accuracy(np.zeros((50, 6)), y, k=2) == pytest.approx(2 / 6)
    assert top_k_accuracy(torch.zeros(3, 2, dtype=torch.bfloat16, requires_grad=True), [0, 1, 1]) == 0.5


def test_worked_votes_of_three_clips():
    logits, video = np.array([[2, 1, 0], [0, 1.5, 0.2], [0.3, 0.9, 0.1]]), ["a"] * 3
    names, softmax = pool_clips(logits, video, rule="softmax")
    assert names.tolist() == ["a"]
    assert softmax[0] == pytest.approx([0.3630, 0.4713, 0.1657], abs=5e-5)
    assert pool_clips(logits, video, rule="votes")[1][0] == pytest.approx([1 / 3, 2 / 3, 0])
    assert pool_clips(logits, video, rule="values")[1][0] == pytest.approx(logits.mean(0))
    assert accuracy([1, 1, 1], logits.argmax(1)) == pytest.approx(2 / 3)
    assert top_k_accuracy(softmax, [1]) == 1
    names, votes = pool_clips([[1.0, 1, 0], [0, 0, 5], [1e4, 0, -1e4]], [7, 3, 7], rule="votes")
    assert names.tolist() == [3, 7]
    assert votes.tolist() == [[0, 0, 1], [0.75, 0.25, 0]]
    assert np.isfinite(pool_clips([[1e4, -1e4]], [0], rule="softmax")[1]).all()


def test_clusters_are_matched_whatever_their_numbers():
    truth, cluster = np.array([0, 0, 1, 1, 2, 2]), np.array([5, 5, 9, 9, 9, 7])
    found = match_clusters(cluster, truth)
    assert found == {5: 0, 9: 1, 7: 2}
    renamed = match_clusters((cluster * 3) % 11, truth)
    assert sorted(renamed.values()) == sorted(found.values())
    assert match_clusters([0, 1, 2], [4, 4, 4]) == {0: 4}  # two clusters are left over


# ------------------------------------------------------------------------------------------------------ several labels
def test_average_precision_knows_negative_scores_and_ties():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(1)
    scores, y = rng.normal(size=60) - 10, rng.integers(0, 2, 60)
    assert average_precision(scores, y) == pytest.approx(average_precision_score(y, scores))
    # All alike: the mean over all orders of two positives among three.
    orders = [(1 + 1) / 2, (1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2]
    assert average_precision([0.0, 0, 0], [1, 0, 1]) == pytest.approx(np.mean(orders))
    assert average_precision([-1.0, -2, -3], [1, 0, 0]) == 1


def test_multilabel_leaves_out_a_class_without_positives():
    from torchmetrics.functional.classification import multilabel_average_precision

    rng = np.random.default_rng(2)
    scores, y = rng.random((40, 4)), rng.integers(0, 2, (40, 4))
    peer = multilabel_average_precision(torch.tensor(scores), torch.tensor(y), 4, average="macro")
    assert multilabel_precision(scores, y).value == pytest.approx(float(peer), abs=1e-6)
    y[:, 2] = 0
    found = multilabel_precision(scores, y)
    assert (found.absent, found.per_class[2]) == (1, 0)
    assert found.value == pytest.approx(multilabel_precision(scores[:, [0, 1, 3]], y[:, [0, 1, 3]]).value)
    with pytest.raises(FeatureError, match="none of the classes"):
        multilabel_precision(scores, np.zeros((40, 4), int))


# ---------------------------------------------------------------------------------------------- decisions about a pair
def test_auc_and_eer_agree_with_scikit_learn():
    from sklearn.metrics import roc_auc_score, roc_curve

    rng = np.random.default_rng(0)
    for n in (5, 40, 300):
        scores, same = rng.normal(size=n).round(1), np.arange(n) % 3 == 0
        assert roc_auc(scores, same) == pytest.approx(roc_auc_score(same, scores))
        accepted, hit, _ = roc_curve(same, scores, drop_intermediate=False)
        rates = np.linspace(0, 1, 20_001)
        refused = 1 - np.interp(rates, accepted, hit)
        crossing = np.abs(refused - rates).argmin()
        assert equal_error_rate(scores, same).value == pytest.approx(rates[crossing], abs=1e-3)


def test_roc_auc_counts_a_tie_as_half():
    s, y = np.array([-1.0, -1, -2, -3, -1]), np.array([1, 0, 0, 1, 0])
    pairs = [(a > b) + (a == b) / 2 for a in s[y == 1] for b in s[y == 0]]
    assert roc_auc(s, y) == pytest.approx(np.mean(pairs))
    assert roc_auc([0.0, 0], [0, 1]) == 0.5


def test_equal_error_rate_by_hand():
    # One of four true pairs scores below one of four false pairs: at 0.5 a quarter of each is wrong.
    s, y = [0.9, 0.8, 0.7, 0.3, 0.6, 0.2, 0.1, 0.0], [1, 1, 1, 1, 0, 0, 0, 0]
    found = equal_error_rate(s, y)
    assert found.value == pytest.approx(0.25)
    assert found.threshold == pytest.approx(0.6)
    assert equal_error_rate([2.0, 3, 0, 1], [1, 1, 0, 0]) == (0, 2)
    assert equal_error_rate([0.0, 1, 2, 3], [1, 1, 0, 0]).value == pytest.approx(1)
    assert equal_error_rate(np.zeros(9), np.arange(9) % 3 == 0).value == pytest.approx(0.5)


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_equal_error_rate_is_the_crossing_of_both_errors(seed):
    rng = np.random.default_rng(seed)
    y = np.concatenate([[0, 1], rng.integers(0, 2, 20)])
    s = rng.integers(-5, 5, 22) + y
    found = equal_error_rate(s, y)
    # Mix the two neighboring thresholds by brute force: both errors must be equal there.
    steps = [np.inf, *sorted(set(s.tolist()), reverse=True)]
    points = [((s[y == 0] >= t).mean(), (s[y == 1] < t).mean()) for t in steps]
    crossings = [
        a[0] + w * (b[0] - a[0])
        for a, b in itertools.pairwise(points)
        if a[1] > a[0] and b[1] <= b[0]
        for w in [(a[1] - a[0]) / (a[1] - a[0] - b[1] + b[0])]
    ]
    assert [found.value] == pytest.approx(crossings)
    assert equal_error_rate(3.0 * s - 100, y).value == pytest.approx(found.value)
    assert found.value == pytest.approx(equal_error_rate(-s, 1 - y).value)


# ------------------------------------------------------------------------------------------------------------- values
X = np.array([0.1, 0.2, 0.4, 0.3, 0.0])
Z = np.array([0.2, 0.25, 0.35, 0.4, 0.1])


def test_worked_concordance():
    assert ccc(X, Z) == pytest.approx(0.8)
    assert pearson(X, Z) == pytest.approx(0.9272, abs=5e-5)
    assert ccc(X, Z, ddof=1) == pytest.approx(0.8168, abs=5e-5)
    assert ccc(X, X + 0.5) == pytest.approx(0.1379, abs=5e-5)
    assert ccc(X, 2 * X) == pytest.approx(0.5714, abs=5e-5)
    assert pearson(X, X + 0.5) == pytest.approx(1)
    assert pearson(X, 2 * X) == pytest.approx(1)
    assert mean_absolute_error(X, Z) == pytest.approx(0.08)


def test_worked_concatenation():
    second = np.array([1.0, 1.1, 1.2, 1.3, 0.9])
    assert ccc(X + 1, second) == pytest.approx(0.72)
    y, p, recording = np.concatenate([X, X + 1]), np.concatenate([Z, second]), np.repeat(["r1", "r2"], 5)
    whole = ccc_of_recordings(y, p, recording)
    assert (whole.rule, whole.ddof) == ("concatenated", 0)
    assert whole.value == pytest.approx(0.9773, abs=5e-5)
    assert whole.per_recording == pytest.approx([0.8, 0.72])
    assert ccc_of_recordings(y, p, recording, rule="mean").value == pytest.approx(0.76)


def test_constants_are_defined_or_named():
    flat = np.full(5, 0.1)
    assert ccc(X, flat) == 0
    assert ccc(flat, flat + 1) == 0
    assert pearson(X, flat) == 0
    with pytest.raises(FeatureError, match="constant"):
        pearson(flat, X)
    with pytest.raises(FeatureError, match="undefined"):
        ccc(flat, flat)
    y, p, recording = np.concatenate([X, flat]), np.concatenate([Z, flat]), [0] * 5 + [1] * 5
    mean = ccc_of_recordings(y, p, recording, rule="mean")
    assert mean.scored.tolist() == [True, False]
    assert mean.value == pytest.approx(0.8)
    with pytest.raises(FeatureError, match="no recording"):
        ccc_of_recordings(flat, flat, [0] * 5, rule="mean")


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(-9, 9), st.sampled_from([1e-120, 1e-3, 1.0, 1e5, 1e40]))
def test_agreement_and_its_invariances(seed, shift, scale):
    from scipy.stats import pearsonr
    from torchmetrics.functional.regression import concordance_corrcoef

    rng = np.random.default_rng(seed)
    y = rng.normal(size=12)
    p = y + rng.normal(size=12)
    assert pearson(y, p) == pytest.approx(pearsonr(y, p).statistic)
    assert pearson(y * scale, p * scale + shift * scale) == pytest.approx(pearson(y, p), abs=1e-9)
    assert ccc(y * scale, p * scale) == pytest.approx(ccc(y, p), abs=1e-9)
    assert ccc(y, p) == pytest.approx(ccc(p, y))
    assert abs(ccc(y, p + shift)) <= abs(pearson(y, p)) + 1e-12
    peer = concordance_corrcoef(torch.tensor(p), torch.tensor(y))
    assert ccc(y, p, ddof=1) == pytest.approx(float(peer), abs=1e-6)


def test_both_rules_of_binary_sentiment():
    truth, predicted = [2.0, 0.0, -1.2, 0.0, -2.6, 1.4], [1.6, -0.5, 0.3, 0.1, -4.0, -0.2]
    found = sentiment(truth, predicted)
    assert found.accuracy_nonnegative == pytest.approx(3 / 6)  # 2, the second 0 and -2.6
    assert found.accuracy_positive == pytest.approx(2 / 4)
    assert found.n_zero == 2
    assert found.accuracy_seven == pytest.approx(4 / 6)  # 2|2, 0|-0 (half to even), -1|0, 0|0, -3|-3, 1|-0
    assert found.mae == pytest.approx((0.4 + 0.5 + 1.5 + 0.1 + 1.4 + 1.6) / 6)
    # Positives of the second rule: one of two found, one false alarm; F1 0.5 for both classes.
    assert found.f1_positive == pytest.approx(0.5)
    with pytest.raises(FeatureError, match="zero"):
        sentiment([0.0, 0], [1.0, 2])


# ------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: accuracy([0, 1], [0]), FeatureError, "do not fit together"),
        (lambda: accuracy([], []), FeatureError, "not empty"),
        (lambda: accuracy([0.5], [0]), FeatureError, "integers"),
        (lambda: class_scores([0, 3], [0, 1], n_classes=3), FeatureError, r"0\.\.2"),
        (lambda: class_scores([0, -1], [0, 1]), FeatureError, "-1"),
        (lambda: top_k_accuracy([[0.0, 1]], [2]), FeatureError, "do not fit"),
        (lambda: top_k_accuracy([[0.0, 1]], [0], k=3), ConfigError, r"1\.\.2"),
        (lambda: top_k_accuracy([[0.0, np.nan]], [0]), FeatureError, "not finite"),
        (lambda: pool_clips([[0.0, 1]], [0], rule="median"), ConfigError, "median"),
        (lambda: pool_clips([[0.0, 1]], [0, 1], rule="votes"), FeatureError, "as many videos"),
        (lambda: pool_clips([[0.0, 1], [0.0]], [0, 1], rule="votes"), FeatureError, "lengths"),
        (lambda: average_precision([1.0, 2], [0, 0]), FeatureError, "positive"),
        (lambda: average_precision([1.0, 2], [0, 2]), FeatureError, "0 and 1"),
        (lambda: roc_auc([1.0, 2], [1, 1]), FeatureError, "both needed"),
        (lambda: equal_error_rate([1.0, 2], [0, 0]), FeatureError, "both needed"),
        (lambda: ccc([1.0, 2], [1.0, np.inf]), FeatureError, "not finite"),
        (lambda: ccc([1.0, 2], [1.0, 3], ddof=2), ConfigError, "ddof"),
        (lambda: mean_absolute_error([1e308], [-1e308]), FeatureError, "beyond 1e\\+50"),
        (lambda: ccc([1.0], [2.0], ddof=1), ConfigError, "ddof"),
        (lambda: ccc_of_recordings([1.0, 2], [1.0, 3], [0, 0], rule="median"), ConfigError, "rule"),
        (lambda: ccc_of_recordings([1.0, 2], [1.0, 3], [0]), FeatureError, "as many recordings"),
    ],
)
def test_errors_name_what_came(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_the_package_lists_every_public_name_once():
    assert metrics.__all__ == sorted(set(metrics.__all__))
    assert all(callable(getattr(metrics, name)) for name in metrics.__all__)


def test_the_package_imports_no_metric_library():
    import subprocess
    import sys

    heavy = ("sklearn", "mir_eval", "jiwer", "pystoi", "pesq", "scipy.signal", "scipy.stats", "torchmetrics")
    code = f"import sys, avcl.metrics; sys.exit(', '.join(m for m in {heavy} if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd="src", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
