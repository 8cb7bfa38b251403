"""Matching across modalities, spans in time and detections: worked values, brute force, the traps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl.errors import ConfigError, FeatureError
from avcl.metrics import (
    Objects,
    detection_precision,
    event_scores,
    match_segments,
    segment_spans,
    span_iou,
    window_costs,
)

ROWS = np.array([[0.9, 0.8], [0.2, 0.7], [0.6, 0.1], [0.8, 0.9], [0.7, 0.6]])


# ---------------------------------------------------------------------------------------------------- across modalities
def test_worked_windows():
    assert window_costs(ROWS) == pytest.approx([1.6, 0.3, 1.5, 1.4])
    found = match_segments([ROWS], [1])
    assert (found.accuracy, found.found.tolist(), found.skipped) == (1, [1], 0)
    assert found.chance == 0.25


def test_videos_that_are_all_event_are_skipped_and_counted():
    full = np.ones((5, 5))
    found = match_segments([ROWS, full, ROWS], [1, 0, 0])
    assert found.found.tolist() == [1, -1, 1]
    assert (found.accuracy, found.skipped) == (0.5, 1)
    with pytest.raises(FeatureError, match="nothing to localize"):
        match_segments([full], [0])


def test_ties_are_the_first_or_their_expected_value():
    flat = np.full((10, 3), 0.1)
    starts = np.arange(8)
    assert match_segments([flat] * 8, starts).accuracy == pytest.approx(1 / 8)  # always answers 0
    expected = match_segments([flat] * 2, [0, 5], ties="expected")
    assert expected.accuracy == pytest.approx(1 / 8)
    assert expected.chance == pytest.approx(1 / 8)
    assert match_segments([-flat], [0]).accuracy == 1


def test_matching_does_not_see_shift_or_scale_of_distances():
    rng = np.random.default_rng(0)
    tables, starts = [rng.normal(size=(10, n)) for n in (1, 4, 9)], [3, 2, 1]
    plain = match_segments(tables, starts).found
    assert (match_segments([5 * t - 3 for t in tables], starts).found == plain).all()


# ------------------------------------------------------------------------------------------------------------- in time
def test_spans_of_segments():
    spans, classes = segment_spans([9, 3, 3, 5, 9, 9, 3], background=9)
    assert spans.tolist() == [[1, 3], [3, 4], [6, 7]]
    assert classes.tolist() == [3, 5, 3]
    spans, classes = segment_spans([9, 9], background=9)
    assert spans.shape == (0, 2)
    assert classes.shape == (0,)


def test_span_overlap():
    found = span_iou([[0, 2], [5, 5]], [[1, 3], [2, 4], [5, 5]])
    assert found == pytest.approx(np.array([[1 / 3, 0, 0], [0, 0, 0]]))
    assert span_iou([], [[0, 1]]).shape == (0, 1)


def test_event_scores_by_hand():
    truth = [([[0, 4], [6, 8]], [1, 2]), ([], [])]
    predicted = [([[0, 3], [0, 4], [6, 8]], [1, 1, 1]), ([[0, 1]], [1])]
    found = event_scores(truth, predicted)
    assert found[:3] == (1, 3, 1)
    assert (found.precision, found.recall, found.f1) == (0.25, 0.5, pytest.approx(1 / 3))
    nothing = event_scores([([], [])], [([], [])])
    assert (nothing.f1, nothing.precision) == (1, 0)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.5]))
def test_the_assignment_has_the_most_hits(seed, iou):
    rng = np.random.default_rng(seed)

    def draw(n):
        start = rng.integers(0, 6, n)
        return np.stack([start, start + rng.integers(1, 5, n)], 1), rng.integers(0, 2, n)

    (s, y), (f, p) = draw(4), draw(4)
    fits = (span_iou(s, f) >= iou) & (span_iou(s, f) > 0) & (y[:, None] == p)
    best = max(sum(fits[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(4)))
    assert event_scores([(s, y)], [(f, p)], iou=iou).hits == best


# ---------------------------------------------------------------------------------------------------------- detections
def test_detection_precision_by_hand():
    truth = Objects([0, 0, 1], [1, 1, 1], [[0, 0, 2, 2], [4, 4, 6, 6], [0, 0, 2, 2]])
    # Right, a duplicate, right, and a miss in picture 1.
    predicted = Objects(
        [0, 0, 0, 1], [1, 1, 1, 1], [[0, 0, 2, 2], [0, 0, 2, 1.9], [4, 4, 6, 6], [5, 5, 6, 6]], [0.9, 0.8, 0.7, 0.6]
    )
    found = detection_precision(truth, predicted)
    # Precisions 1, 1/2, 2/3, 1/2 at recalls 1/3, 1/3, 2/3, 2/3; envelope 1 to 1/3, then 2/3 to 2/3.
    assert found.value == pytest.approx(1 / 3 + 2 / 9)
    eleven = detection_precision(truth, predicted, rule="11 points")
    assert eleven.value == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    assert (found.iou, found.rule, eleven.rule) == (0.5, "all points", "11 points")
    shifted = predicted._replace(score=np.asarray(predicted.score) * 3 - 100)
    assert detection_precision(truth, shifted).value == found.value


def test_detections_of_absent_classes_are_counted_not_scored():
    truth = Objects([0, 0], [1, 2], [[0.0, 2], [4, 6]])
    predicted = Objects([0, 0, 5], [1, 7, 1], [[0.0, 2], [0, 2], [0, 2]], [-1.0, -2, -3])
    found = detection_precision(truth, predicted)
    assert found.classes.tolist() == [1, 2]
    assert found.per_class.tolist() == [1, 0]  # class 2 was never detected; the alarm in item 5 comes after the hit
    assert found.unknown == 1
    nothing = Objects([], [], [], [])
    assert detection_precision(truth, nothing).value == 0


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_order_of_detections_does_not_matter_even_for_equal_scores(seed):
    rng = np.random.default_rng(seed)

    def draw(n):
        start = rng.integers(0, 6, n)
        return rng.integers(0, 2, n), rng.integers(0, 2, n), np.stack([start, start + rng.integers(1, 4, n)], 1)

    truth, found = draw(6), draw(9)
    score, order = rng.integers(0, 3, 9), rng.permutation(9)
    plain = detection_precision(Objects(*truth), Objects(*found, score))
    mixed = detection_precision(Objects(*truth), Objects(*(x[order] for x in found), score[order]))
    assert mixed.value == pytest.approx(plain.value)
    assert 0 <= plain.value <= 1


def test_all_points_is_the_average_precision_where_the_envelope_is_flat():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    # One object an item, found or not: without an envelope AP is that of the ranked list times recall.
    n = 30
    score, right = -np.arange(n) / n, np.sort(rng.random(n) > 0.4)[::-1]
    places = np.where(right[:, None], [0.0, 1.0], [5.0, 6.0])
    truth = Objects(np.arange(n), np.zeros(n, int), np.tile([0.0, 1.0], (n, 1)))
    found = detection_precision(truth, Objects(np.arange(n), np.zeros(n, int), places, score))
    assert found.value == pytest.approx(average_precision_score(right, score) * right.mean())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: window_costs(ROWS.T[:, :3]), FeatureError, "does not fit"),
        (lambda: match_segments([ROWS], [4]), FeatureError, r"0\.\.3"),
        (lambda: match_segments([ROWS], [1, 2]), FeatureError, "do not fit"),
        (lambda: match_segments([ROWS], [1], ties="last"), ConfigError, "last"),
        (lambda: match_segments([ROWS * np.nan], [1]), FeatureError, "not finite"),
        (lambda: span_iou([[2, 1]], [[0, 1]]), FeatureError, "turned round"),
        (lambda: event_scores([], [([], [])]), FeatureError, "do not fit"),
        (lambda: event_scores([([[0, 1]], [1, 2])], [([], [])]), FeatureError, "do not fit"),
        (lambda: event_scores([([], [])], [([], [])], iou=2), ConfigError, "iou"),
        (lambda: detection_precision(Objects([], [], []), Objects([], [], [], [])), FeatureError, "no object"),
        (
            lambda: detection_precision(Objects([0], [0], [[0, 1]]), Objects([0], [0], [[0, 0, 1, 1]], [1.0])),
            FeatureError,
            "both be boxes",
        ),
        (
            lambda: detection_precision(Objects([0], [0], [[0, 1]]), Objects([0], [0], [[0, 1]], [1.0, 2.0])),
            FeatureError,
            "as many",
        ),
        (
            lambda: detection_precision(Objects([0], [0], [[0, 1]]), Objects([0], [0], [[0, 1]], [1.0]), rule="coco"),
            ConfigError,
            "coco",
        ),
    ],
)
def test_errors_name_what_came(call, error, words):
    with pytest.raises(error, match=words):
        call()
