"""Recognition scored by hand-made answers; missing modalities; the model that knows the actor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import avcl
from avcl.data import FeatureData
from avcl.errors import BatchError, CapabilityError, ConfigError, DataError, FeatureError, LeakError
from avcl.task import Outputs
from avcl.tasks.recognition import Recognition
from avcl.types import Batch

TASK = Recognition(bootstrap=100)
VALUES = Recognition(target="value", bootstrap=200)


def outputs_of(said: list[int], truth: list[int], **more: np.ndarray) -> Outputs:
    n = len(truth)
    ids = tuple(map(str, range(n)))
    return Outputs(ids, ids, {"label": np.array(truth), "both": np.eye(3)[said], **more}, {"labels": ["a", "b", "c"]})


def test_worked_values_of_accuracy_recall_and_f1() -> None:
    outputs = outputs_of([0, 0, 0, 0, 0, 1, 1, 1, 0, 0], [0] * 6 + [1] * 3 + [2])
    scores = TASK.score(outputs)
    assert scores.scores["both"] == pytest.approx({"accuracy": 0.7, "UAR": 0.5, "macro F1": 0.4786}, abs=1e-4)
    assert scores.chance["both"] == pytest.approx({"accuracy": 1 / 3, "UAR": 1 / 3})
    share = {"recall": 2 / 3, "precision": 2 / 3, "F1": 2 / 3}
    assert scores.per_class["both"]["b"] == pytest.approx({"items": 3, **share})
    low, high = scores.interval["both"]["UAR"]
    assert low <= 0.5 <= high


def test_equal_logits_share_the_answer() -> None:
    outputs = outputs_of([0], [2]).with_arrays(both=np.zeros((1, 3)))
    assert TASK.score(outputs).scores["both"]["accuracy"] == pytest.approx(1 / 3)


def test_the_majority_is_scored_beside_it() -> None:
    outputs = outputs_of([0, 1, 2, 2], [0, 1, 1, 1])
    majority = TASK.baselines(outputs)["majority"]
    assert TASK.score(majority).scores["both"] == pytest.approx({"accuracy": 0.75, "UAR": 0.5, "macro F1": 3 / 7})


def test_logits_that_do_not_fit_are_refused() -> None:
    with pytest.raises(FeatureError, match="above every label"):
        TASK.score(outputs_of([0], [2]).with_arrays(both=np.zeros((1, 2))))
    with pytest.raises(ConfigError, match="target"):
        Recognition(target="classes")


# ------------------------------------------------------------------------------------------------------------- values
X = np.array([0.1, 0.2, 0.4, 0.3, 0.0])
Y = np.array([0.2, 0.25, 0.35, 0.4, 0.1])


def values_of(truth: list[np.ndarray], said: list[np.ndarray]) -> Outputs:
    groups = tuple(f"recording {i}" for i in range(len(truth)))
    return Outputs(groups, groups, {"value": np.stack(truth), "both": np.stack(said)})


def test_worked_values_of_the_concordance() -> None:
    row = VALUES.score(values_of([Y], [X])).scores["both"]
    assert row["CCC"] == pytest.approx(0.8, abs=1e-4)
    assert row["Pearson"] == pytest.approx(0.9272, abs=1e-4)
    assert row["MAE"] == pytest.approx(np.abs(X - Y).mean())
    two = VALUES.score(values_of([Y, np.array([1.0, 1.1, 1.2, 1.3, 0.9])], [X, X + 1])).scores["both"]
    assert two["CCC"] == pytest.approx(0.9773, abs=1e-4)  # what differs between recordings counts as agreement
    assert two["CCC within"] == pytest.approx(0.76, abs=1e-4)
    assert VALUES.headline == ("both", "CCC")
    assert VALUES.protocol["headline"]["metric"] == "CCC"
    assert replace(VALUES, seed=1).headline == ("both", "CCC")
    assert Recognition.headline == ("both", "accuracy")


def test_concordance_has_intervals_over_recordings_and_the_mean_as_baseline() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(40, 25))
    outputs = values_of(list(truth), list(truth + 0.3 * rng.normal(size=truth.shape)))
    scores = VALUES.score(outputs)
    low, high = scores.interval["both"]["CCC"]
    assert 0.9 < low < scores.scores["both"]["CCC"] < high
    base = VALUES.baselines(outputs)["the mean"]
    assert VALUES.score(base).scores["both"]["CCC"] == pytest.approx(0, abs=1e-9)
    single = VALUES.score(Outputs(outputs.ids, outputs.groups, {"value": truth[:, 0], "both": truth[:, 0]}))
    assert single.scores["both"]["CCC"] == pytest.approx(1)
    with pytest.raises(FeatureError, match="shape of the truth"):
        VALUES.score(outputs.with_arrays(both=truth[:, :5]))


def test_values_are_asked_of_systems_that_have_them() -> None:
    with pytest.raises(CapabilityError, match="value"):
        VALUES.require(Reads())

    class Regressor:
        def values(self, batch: Batch) -> Tensor:
            return batch.audio.data[:, 0, 0]

    with pytest.raises(DataError, match="needs the truth"):
        VALUES.predict(Regressor(), data_of())


# --------------------------------------------------------------------------------------------------- what is shown, how
def data_of(n: int = 60) -> FeatureData:
    label = np.arange(n) % 3
    picture = np.eye(3)[label * (label != 1)]  # takes class 1 for class 0
    return FeatureData.from_arrays({"audio": np.eye(3)[label], "video": picture, "label": label})


@dataclass
class Reads:
    """Adds what the streams say; ``needs``: a stream it cannot do without."""

    needs: str = ""
    seen: ClassVar[list[Batch]] = []

    def logits(self, batch: Batch) -> Tensor:
        Reads.seen.append(batch)
        if self.needs:
            batch.require(self.needs)
        return torch.stack([stream.data[:, 0] for stream in batch.streams.values()]).sum(0)


def test_a_row_for_each_modality_that_is_left_alone() -> None:
    Reads.seen.clear()
    scores = TASK.score(TASK.predict(Reads(), data_of())).scores
    assert {c: round(row["accuracy"], 3) for c, row in scores.items()} == {
        "both": 0.833,  # one half right of the class that the picture takes for another
        "audio only": 1.0,
        "video only": 0.667,
    }
    assert {tuple(batch.streams) for batch in Reads.seen} == {("audio", "video"), ("audio",), ("video",)}
    assert all(not batch.extras and int(batch.label.max()) == -1 for batch in Reads.seen)


def test_a_system_that_needs_a_stream_has_no_row_without_it() -> None:
    assert set(TASK.score(TASK.predict(Reads("video"), data_of())).scores) == {"both", "video only"}

    class Broken:
        def logits(self, batch: Batch) -> Tensor:
            raise BatchError("never")

    with pytest.raises(BatchError, match="never"):
        TASK.predict(Broken(), data_of())


def test_another_sound_spoils_both_but_not_the_picture_alone() -> None:
    wrong = TASK.score(TASK.predict(Reads(), data_of(61), wrong_partner=True)).scores
    right = TASK.score(TASK.predict(Reads(), data_of(61))).scores
    assert wrong["video only"] == right["video only"]
    assert wrong["both"]["accuracy"] < right["both"]["accuracy"] - 0.2


# ------------------------------------------------------------------------------------------------------------ the trap
def actors(path: Path, *, shared: bool) -> Path:
    """Twelve actors who each show four emotions in a manner of their own, and a little in the common one. ``shared``:
    the test has other clips of the same actors; else other actors."""
    rng = np.random.default_rng(0)
    actor, emotion, take = (x.ravel() for x in np.meshgrid(range(12), range(4), range(8), indexing="ij"))
    arrays = {}
    for name in ("audio", "video"):
        own, common = rng.normal(size=(12, 4, 16)), rng.normal(size=(4, 16))
        who = 2 * rng.normal(size=(12, 16))
        noise = 0.5 * rng.normal(size=(len(actor), 16))
        arrays[name] = who[actor] + own[actor, emotion] + 0.6 * common[emotion] + noise
    test = take >= 6 if shared else actor >= 9
    split = np.where(test, "test", "train")
    np.savez(path, **arrays, label=emotion, group=np.array([f"actor {a}" for a in actor]), split=split)
    return path


def test_an_emotion_model_that_knows_the_actor(tmp_path: Path) -> None:
    """Clips of one actor in training and test: refused, and where it is forced, the score is higher than it is."""
    shared, unseen = (actors(tmp_path / f"{name}.npz", shared=name == "shared") for name in ("shared", "unseen"))
    with pytest.raises(LeakError, match="12 groups appear in train and test"):
        avcl.load_data(shared)
    settings = {"epochs": 25, "batch_size": 48, "learning_rate": 3e-3, "components": 4, "hidden": 32}
    found = {}
    for name, path in (("shared", shared), ("unseen", unseen)):
        splits = avcl.load_data(path, allow_leak=name == "shared")
        model = avcl.train("rajan2021_sew", splits.train, settings=settings, workers=0)
        found[name] = avcl.evaluate(model, splits, split="test", task="recognition", workers=0)
    assert (found["shared"].leaking, found["unseen"].leaking) == (12, 0)
    high, low = (found[name].scores["both"]["accuracy"] for name in ("shared", "unseen"))
    assert high > 0.85
    assert low < high - 0.2
    by_group = avcl.load_data(shared, split_by="group")  # the way out that the error names
    assert not set(by_group.train.groups) & set(by_group.test.groups)
