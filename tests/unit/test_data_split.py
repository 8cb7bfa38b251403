"""Splits: seeded, group-aware, balanced, the same in any order of the rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl.data import FeatureData, assign_splits, make_splits
from avcl.data.split import find_leak
from avcl.errors import DataError, LeakError

GROUPS = st.lists(st.sampled_from([f"g{i}" for i in range(30)]), min_size=1, max_size=80)


@given(GROUPS, st.integers(0, 5), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_groups_stay_whole_whatever_the_order(groups: list[str], seed: int, shuffler) -> None:
    targets = [int(g[1:]) % 4 - 1 for g in groups]
    splits = assign_splits(groups, targets, seed=seed)
    where = dict(zip(groups, splits, strict=True))
    assert all(where[g] == s for g, s in zip(groups, splits, strict=True))
    assert find_leak(groups, splits) is None
    if len(where) >= 3:
        assert set(splits) == {"train", "val", "test"}
    order = list(range(len(groups)))
    shuffler.shuffle(order)
    again = assign_splits([groups[i] for i in order], [targets[i] for i in order], seed=seed)
    assert again == tuple(splits[i] for i in order)


@given(st.integers(10, 400), st.integers(1, 12), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_single_rows_come_out_at_80_10_10(n: int, classes: int, seed: int) -> None:
    targets = [i % classes for i in range(n)]
    splits = assign_splits([str(i) for i in range(n)], targets, seed=seed)
    counts = Counter(splits)
    for split, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert abs(counts[split] - share * n) <= 2
    for c in range(classes):
        size = targets.count(c)
        train = sum(s == "train" for s, t in zip(splits, targets, strict=True) if t == c)
        assert abs(train - 0.8 * size) <= 2


def test_classes_are_balanced_and_seeds_differ() -> None:
    targets = [0] * 500 + [1] * 100 + [2] * 50
    groups = [str(i) for i in range(650)]
    splits = assign_splits(groups, targets, seed=0)
    for c, size in ((0, 500), (1, 100), (2, 50)):
        of_class = Counter(s for s, t in zip(splits, targets, strict=True) if t == c)
        assert of_class == {"train": 0.8 * size, "val": 0.1 * size, "test": 0.1 * size}
    assert splits != assign_splits(groups, targets, seed=1)
    assert splits == assign_splits(groups, targets, seed=0)


def test_large_groups_go_where_there_is_room() -> None:
    groups = ["big"] * 80 + [f"small{i}" for i in range(20)]
    counts = Counter(assign_splits(groups, seed=3))
    assert counts == {"train": 80, "val": 10, "test": 10}
    assert Counter(assign_splits(["only"] * 9)) == {"train": 9}
    assert set(assign_splits(["a", "b"])) == {"train", "test"}


def data(splits: list[str], groups: list[str] | None = None) -> FeatureData:
    n = len(splits)
    arrays = {"audio": np.ones((n, 2)), "video": np.ones((n, 2)), "split": np.array(splits)}
    return FeatureData.from_arrays(
        arrays if groups is None else {**arrays, "group": np.array(groups)}, where="meta.csv"
    )


def test_without_val_a_tenth_of_train_by_groups() -> None:
    rows = data(["train"] * 100 + ["test"] * 20, [f"g{i // 5}" for i in range(120)])
    splits = make_splits(rows, rows.official, seed=1)
    assert splits.official
    assert [len(splits.part(name)) for name in ("train", "val", "test")] == [90, 10, 20]
    assert not set(splits.train.groups) & set(splits.val.groups)
    assert splits.train.split == "train"
    assert set(splits.test.ids) == set(rows.ids[100:])
    assert make_splits(rows, rows.official, seed=1).val.ids == splits.val.ids


def test_two_rows_to_train_on_stay_two() -> None:
    rows = {"audio": np.zeros((4, 1)), "video": np.zeros((4, 1))}
    splits = make_splits(FeatureData.from_arrays(rows), ["train", "train", "test", "test"])
    assert [len(splits.part(name)) for name in ("train", "val", "test")] == [2, 0, 2]


def test_official_splits_are_kept_even_where_one_is_missing() -> None:
    rows = data(["val"] * 3 + ["test"] * 4)
    splits = make_splits(rows, rows.official)
    assert [len(splits.part(name)) for name in ("all", "train", "val", "test")] == [7, 0, 3, 4]


def test_the_leak_is_described() -> None:
    rows = data(["train"] * 3 + ["test"] * 3 + ["val"] * 2, ["x", "y", "z", "q", "z", "y", "z", "w"])
    with pytest.raises(LeakError) as caught:
        make_splits(rows, rows.official, where="meta.csv")
    assert str(caught.value) == (
        'E-LEAK meta.csv: 2 groups appear in train and test (first: "y"). Scores would be inflated. '
        'Split by group with split_by="group" (--split-by group), '
        "or pass allow_leak=True (--allow-leak) to proceed (stamped on the result)."
    )
    assert make_splits(rows, rows.official, allow_leak=True).leaking == 2
    rows = data(["train", "val"], ["x", "x"])
    with pytest.raises(LeakError, match="1 group appears in train and val"):
        make_splits(rows, rows.official)
    with pytest.raises(DataError, match="1 splits for 2 rows"):
        make_splits(rows, ["train"])
