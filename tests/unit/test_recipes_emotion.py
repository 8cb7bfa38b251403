"""The recipe on RAVDESS features from end to end, on small made-up data of the same form."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def ravdess(recipe) -> ModuleType:
    return recipe("ravdess")


def made_up(folder: Path) -> Path:
    """Eight actors, three emotions, four takes; the action units know the actor, and the sex."""
    rng = np.random.default_rng(0)
    take, emotion, actor = (x.ravel() for x in np.meshgrid(range(4), range(3), range(1, 9), indexing="ij"))
    who, what = rng.normal(size=(9, 6)), rng.normal(size=(3, 6))
    n = len(actor)
    np.savez(
        folder / "ravdess_actors01-20.npz",
        au=(2 * who[actor] + what[emotion] + 0.3 * rng.normal(size=(n, 6))).astype(np.float32),
        mfcc=(who[actor] + 0.5 * what[emotion] + rng.normal(size=(n, 6))).astype(np.float32),
        emotion=emotion,
        actor=actor,
        name=np.array([f"{t}-{e}-{a}" for t, e, a in zip(take, emotion, actor, strict=True)]),
    )
    return folder


def test_emotion(ravdess: ModuleType, tmp_path: Path) -> None:
    small = {"epochs": 3, "batch_size": 24, "components": 2, "hidden": 8}
    found = ravdess.emotion(made_up(tmp_path), folds=2, settings=small)
    whole, by_fold = found["tables"]
    assert {row[0] for row in whole["rows"]} == {"sew", "the task alone", "sew, actors shared (the trap)"}
    assert {row[1] for row in whole["rows"]} == {"both", "audio only", "video only"}
    for row in whole["rows"]:
        assert len(row) == len(whole["columns"])
        assert row[4][0] <= row[3] <= row[4][1]
    assert [row[1] for row in by_fold["rows"]] == ["01 02 03 04", "05 06 07 08"]
    assert by_fold["columns"][2:] == ["both", "audio only", "video only"]


def test_folds_hold_actors_apart_or_mix_them(ravdess: ModuleType, tmp_path: Path) -> None:
    data = ravdess.read(made_up(tmp_path), "emotion")
    for rows, held in ravdess.unseen(data, 4):
        assert not {data.groups[i] for i in rows} & {data.groups[i] for i in held}
    for rows, held in ravdess.mixed(data, 4, 0):
        assert {data.groups[i] for i in held} <= {data.groups[i] for i in rows}
        assert not set(rows) & set(held)


def test_matching(ravdess: ModuleType, tmp_path: Path) -> None:
    small = {"epochs": 3, "batch_size": 24, "dim": 8, "width": 8, "candidates": 3}
    found = ravdess.matching(made_up(tmp_path), folds=2, settings=small)
    whole, by_fold = found["tables"]
    measured = {(row[0], row[1]) for row in whole["rows"]}
    assert ("both directions", "1:4") in measured  # four unseen actors
    assert ("both directions, same stratum", "1:4") not in measured  # but two of each sex
    assert ("both directions, same stratum", "1:2") in measured
    assert ("verification", "EER") in measured
    assert all(len(row) == len(whole["columns"]) for row in whole["rows"])
    assert len(by_fold["rows"]) == 2


def test_the_real_file_reads(ravdess: ModuleType, shared_data) -> None:
    data = ravdess.read(shared_data("ravdess_au_mfcc"), "emotion")
    assert (len(data), len(set(data.groups)), len(data.labels)) == (1200, 20, 8)
    assert all(len(held) == 240 for _, held in ravdess.unseen(data, 5))
