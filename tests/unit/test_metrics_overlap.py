"""Localization: annotations, threshold rules, cIoU, its area, boxes; worked values and the traps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl.errors import ConfigError, FeatureError
from avcl.metrics import (
    box_iou,
    ciou,
    consensus_map,
    heat_mask,
    localize,
    mask_iou,
    pointing_game,
    resize_map,
    rule_name,
    success_auc,
    success_rate,
    union_map,
)

HEAT = np.array([[0.9, 0.8, 0.1, 0], [0.7, 0.6, 0.2, 0.1], [0.3, 0.2, 0.1, 0], [0, 0.1, 0, 0.05]])
CORNER = np.zeros((4, 4))
CORNER[:2, :2] = 1


def test_worked_map():
    mask = heat_mask(HEAT)
    assert mask.sum() == 7
    assert ciou(mask, CORNER) == pytest.approx(4 / 7)
    weighted = CORNER.copy()
    weighted[0, 2] = 0.5
    assert ciou(mask, weighted) == pytest.approx(4 / 7.5)


def test_worked_area_on_the_float_grid():
    values = [0.9, 0.72, 0.55, 0.5, 0.33, 0.1, 0, 0.62]
    assert success_rate(values) == 0.625
    assert success_auc(values) == pytest.approx(0.48125)
    assert success_auc([0.15]) == pytest.approx(0.175)  # 3 * 0.05 is above 0.15
    assert success_auc([0.1 + 0.2]) == pytest.approx(success_auc([0.3]))
    assert success_auc([0.7 * 0.1 / 0.1]) == pytest.approx(success_auc([0.7]))
    assert success_auc([1.0]) == 1


@settings(max_examples=50)
@given(st.lists(st.floats(0, 0.999), min_size=1, max_size=20))
def test_area_identity(values):
    area = np.mean([np.floor(v / 0.05 + 1e-9) * 0.05 + 0.025 for v in values])
    near_grid = any(0 < abs(v * 20 - round(v * 20)) < 1e-8 for v in values)
    assert near_grid or success_auc(values) == pytest.approx(area)
    assert abs(success_auc(values) - np.mean(values)) <= 0.025 + 1e-9


def test_consensus_of_annotators():
    # One box on a 256-pixel image: corners times 224/256, cut to whole pixels.
    g = consensus_map([[[10, 20, 101, 200]]])
    assert g.shape == (224, 224)
    rows, columns = np.nonzero(g)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (8, 17, 88, 175)
    assert set(g.ravel()) == {0, 0.5}
    a, b = [[0, 0, 128, 256]], [[64, 0, 256, 256]]
    both = consensus_map([a, b, []])
    assert both[0, [0, 55, 56, 111, 112, 223]].tolist() == [0.5, 0.5, 1, 1, 0.5, 0.5]
    assert consensus_map([a, a, a]).max() == 1
    assert consensus_map([a + a]).max() == 0.5  # twice by one annotator is one annotator


def test_union_of_fractions():
    g = union_map([[-0.1, 0, 0.5, 0.5], [0.25, 0.25, 0.999, 1.0]])
    assert set(g.ravel()) == {0, 1}
    assert g[:112, :112].all()
    assert g[56:, 56:223].all()
    assert g.sum() == 112 * 112 + 168 * 167 - 56 * 56
    assert not union_map([]).any()


def test_rules_are_named_and_strict():
    assert heat_mask(HEAT, rule="fixed").sum() == 4
    assert heat_mask(HEAT, rule="fixed", value=0.9).sum() == 1
    assert heat_mask(HEAT, rule="share", value=0.25).sum() == 4
    assert heat_mask(HEAT, rule="share", value=1.0).all()
    assert heat_mask(HEAT, rule="object", truth=CORNER).tolist() == (CORNER > 0).tolist()
    assert rule_name("fixed") == "min-max > 0.5"
    assert rule_name("share", 0.25) == "top 0.25 of the pixels"
    names = {rule_name("median"), rule_name("fixed"), rule_name("share", 0.5), rule_name("object")}
    assert len(names) == 4


@pytest.mark.parametrize("value", [0.0, -3.0, 0.1])
@pytest.mark.parametrize(("rule", "setting"), [("median", None), ("fixed", None), ("share", 1.0), ("object", None)])
def test_a_constant_map_is_empty_under_every_rule(rule, setting, value):
    flat = np.full((4, 4), value)
    assert not heat_mask(flat, rule=rule, value=setting, truth=np.ones((4, 4))).any()
    found = localize([flat, HEAT], [CORNER, CORNER], rule=rule, value=setting)
    assert found.ciou[0] == 0
    assert found.constant.tolist() == [True, False]
    big = localize([np.full((3, 5), value)], [union_map([[0, 0, 0.3, 0.7]])], rule=rule, value=setting)
    assert (big.ciou[0], big.auc) == (0, pytest.approx(0.025))


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.01, 50), st.floats(-20, 20))
def test_scale_and_shift_of_a_map_change_nothing(seed, scale, shift):
    rng = np.random.default_rng(seed)
    heat = rng.integers(-8, 8, (6, 6)) / 8
    truth = (rng.random((6, 6)) > 0.6).astype(float)
    truth[0, 0] = 1
    scale, shift = 2.0 ** round(np.log2(scale)), float(round(shift))  # exact in floating point: ties stay ties
    for rule, value in (("median", None), ("share", 0.3), ("object", None)):
        plain = localize([heat], [truth], rule=rule, value=value)
        assert localize([scale * heat + shift], [truth], rule=rule, value=value).ciou[0] == plain.ciou[0]
    assert pointing_game([scale * heat + shift], [truth]) == pointing_game([heat], [truth])


def test_ciou_of_binary_weights_is_iou():
    from sklearn.metrics import jaccard_score

    rng = np.random.default_rng(0)
    for _ in range(5):
        m, g = rng.integers(0, 2, (2, 9, 9))
        assert ciou(m, g) == pytest.approx(jaccard_score(g.ravel(), m.ravel()))
        assert mask_iou(m, g) == pytest.approx(ciou(m, g))
    assert mask_iou(np.zeros((2, 2)), np.ones((2, 2))) == 0


def test_half_of_the_image_limits_small_objects():
    truth = np.zeros((10, 10))
    truth[:2, :5] = 1  # a tenth
    heat = np.arange(100.0).reshape(10, 10)[::-1, ::-1]
    found = localize([heat], [truth])
    assert found.ciou[0] == pytest.approx(10 / 49)  # all of it found; 50 pixels are not strictly above the median
    assert found.coverage.tolist() == [0.1]
    counts, edges = found.coverage_histogram()
    assert (counts.sum(), len(edges)) == (1, 11)


def test_localization_of_several_sizes():
    # The bilinear map of a small peak: where the annotation is.
    heat = np.zeros((7, 7))
    heat[1, 5] = 1
    truth = union_map([[5 / 7, 1 / 7, 6 / 7, 2 / 7]])
    found = localize([heat, -heat], [truth, truth], rule="object")
    assert found.rule == "as many pixels as the object has"
    assert found.success(0.5) == 0.5
    assert found.ciou[0] > 0.75
    assert found.ciou[1] < 0.1
    assert found.mean == pytest.approx(found.ciou.mean())
    assert resize_map(heat).shape == (224, 224)
    assert (resize_map(heat, size=7) == heat).all()
    assert pointing_game([heat, -heat], [truth, truth]) == 0.5


def test_bilinear_aligns_pixel_centers():
    assert resize_map([[0.0, 1], [0, 1]], size=4)[0] == pytest.approx([0, 0.25, 0.75, 1])


def test_annotations_without_a_mark_are_counted():
    found = localize([HEAT, HEAT], [CORNER, np.zeros((4, 4))])
    assert found.scored.tolist() == [True, False]
    assert found.mean == pytest.approx(4 / 7)
    assert found.success() == 1
    with pytest.raises(FeatureError, match="no annotation"):
        localize([HEAT], [np.zeros((4, 4))])
    with pytest.raises(FeatureError, match="marks nothing"):
        ciou(heat_mask(HEAT), np.zeros((4, 4)))


def test_pointing_game_shares_equal_maxima():
    assert pointing_game([HEAT], [CORNER]) == 1
    assert pointing_game([1 - HEAT], [CORNER]) == 0
    assert pointing_game([np.zeros((4, 4))], [CORNER]) == 0.25
    tied = np.zeros((4, 4))
    tied[0, 0] = tied[3, 3] = 5
    assert pointing_game([tied, HEAT], [CORNER, CORNER]) == 0.75
    assert pointing_game([np.full((7, 3), 0.1)], [CORNER]) == 0.25


def test_boxes():
    a = [[0, 0, 2, 2], [0, 0, 0, 0], [-2, -2, -1, -1]]
    b = [[1, 1, 3, 3], [0, 0, 2, 2], [0, 0, 0, 0]]
    assert box_iou(a, b) == pytest.approx(np.array([[1 / 7, 1, 0], [0, 0, 0], [0, 0, 0]]))
    assert box_iou(a, np.empty((0, 4))).shape == (3, 0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: box_iou([[2, 0, 1, 1]], [[0, 0, 1, 1]]), FeatureError, "turned round"),
        (lambda: box_iou([[0, 0, 1]], [[0, 0, 1, 1]]), FeatureError, "x1 <= x2"),
        (lambda: heat_mask(HEAT, rule="otsu"), ConfigError, "otsu"),
        (lambda: heat_mask(HEAT, rule="share"), ConfigError, "needs a value"),
        (lambda: heat_mask(HEAT, rule="share", value=2), ConfigError, "share"),
        (lambda: heat_mask(HEAT, rule="median", value=0.5), ConfigError, "takes no value"),
        (lambda: heat_mask(HEAT, rule="object"), ConfigError, "needs the truth"),
        (lambda: heat_mask(HEAT * np.nan), FeatureError, "not finite"),
        (lambda: ciou(np.ones((2, 2)), CORNER), FeatureError, "do not fit together"),
        (lambda: ciou(np.ones((4, 4)), 2 * CORNER), FeatureError, r"\[0, 1\]"),
        (lambda: mask_iou(np.zeros((2, 2)), np.zeros((2, 2))), FeatureError, "both masks are empty"),
        (lambda: success_auc([1.2]), ConfigError, "overlap"),
        (lambda: success_auc([]), FeatureError, "not empty"),
        (lambda: localize([HEAT], []), FeatureError, "do not fit"),
        (lambda: localize([HEAT], [np.ones((4, 5))]), FeatureError, "square"),
        (lambda: pointing_game([], []), FeatureError, "do not fit"),
        (lambda: pointing_game([HEAT], [np.ones((4, 5))]), FeatureError, "square"),
        (lambda: pointing_game([HEAT], [np.zeros((4, 4))]), FeatureError, "nothing to point at"),
        (lambda: union_map([[0, 0, 1, 1]], size=0), ConfigError, "size"),
        (lambda: consensus_map([], source=0), ConfigError, "sizes"),
    ],
)
def test_errors_name_what_came(call, error, words):
    with pytest.raises(error, match=words):
        call()
