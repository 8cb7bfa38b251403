"""The linear probe: what it hides, whom it is fitted on, its controls, and what an untrained network already tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avcl import discover
from avcl.data import FeatureData
from avcl.data.derived import Kept
from avcl.data.world import World
from avcl.errors import CapabilityError, ConfigError, DataError, LeakError
from avcl.task import Outputs
from avcl.tasks.probe import RAW, Probe, fitted, mean_recall
from avcl.types import Batch


def data_of(part: str, n: int = 90, *, labels: int = 3, noise: float = 0.2, groups: int = 0) -> FeatureData:
    """Sound tells the class by its place, the picture by its first number as well; ids and groups bear ``part``."""
    rng = np.random.default_rng(len(part))
    label = np.arange(n) % labels
    sound = np.eye(labels, dtype=np.float32)[label] + noise * rng.normal(size=(n, labels)).astype(np.float32)
    picture = np.stack([label + noise * rng.normal(size=n), rng.normal(size=n)], 1).astype(np.float32)
    ids = np.array([f"{part}{i}" for i in range(n)])
    group = np.array([f"{part}{i % groups}" for i in range(n)]) if groups else ids
    return FeatureData.from_arrays({"audio": sound, "video": picture, "label": label, "id": ids, "group": group})


class Same:
    """Features are what comes in; remembers what it was shown."""

    def __init__(self, data: FeatureData) -> None:
        self.spec, self.seen = data.spec, []

    def features(self, batch: Batch, modality: str) -> Tensor:
        self.seen.append((modality, batch))
        return batch.require(modality)[0].data.mean(1)


@pytest.fixture
def parts() -> tuple[FeatureData, FeatureData]:
    return data_of("train"), data_of("te")


def test_a_class_that_features_tell_is_found(parts) -> None:
    train, test = parts
    task = Probe(bootstrap=100)
    outputs = task.predict(Same(test), test, fit=train)
    scores = task.score(outputs)
    assert set(scores.scores) == {"video", "audio", "audio+video"}
    assert all(row["accuracy"] > 0.9 and row["UAR"] > 0.9 for row in scores.scores.values())
    assert scores.chance["video"] == {"accuracy": pytest.approx(1 / 3), "UAR": pytest.approx(1 / 3)}
    assert scores.per_class["audio"]["0"]["clips"] == 30
    majority = task.score(task.baselines(outputs)["majority"]).scores["audio"]
    assert majority["accuracy"] == pytest.approx(1 / 3)
    # features that are the raw numbers themselves do as well as the raw statistics, which are their means
    assert task.score(task.baselines(outputs)[RAW]).scores["audio"] == scores.scores["audio"]


def test_every_stream_is_seen_alone_and_no_label_is_seen(parts) -> None:
    train, test = parts
    system = Same(test)
    Probe(bootstrap=0).predict(system, test, fit=train)
    assert {name for name, _ in system.seen} == {"audio", "video"}
    for name, batch in system.seen:
        assert tuple(batch.streams) == (name,)
        assert int(batch.label.max()) == -1
        assert not batch.extras


def test_a_probe_cannot_be_fitted_on_what_it_is_scored_on(parts) -> None:
    _, test = parts
    both = data_of("te", groups=6)
    system, task = Same(test), Probe(bootstrap=0)
    with pytest.raises(LeakError, match="clip te0"):
        task.predict(system, test, fit=test)
    with pytest.raises(LeakError, match="clip te5"):
        task.predict(system, test.subset(range(5, 50)), fit=test.subset(range(6)))
    with pytest.raises(LeakError, match="group te0"):  # other rows of the same source are no better
        task.predict(system, both.subset(range(45)), fit=both.subset(range(45, 90)))
    with pytest.raises(ConfigError, match="training rows"):
        task.predict(system, test)


def test_scaler_and_classifier_see_training_rows_alone(parts) -> None:
    train, test = parts
    features = train.clip(0).streams["audio"].data.shape[-1]
    x = np.random.default_rng(0).normal(3.0, 2.0, (60, features))
    probe = fitted("svm", 0.1, x, np.arange(60) % 3)
    np.testing.assert_allclose(probe[0].mean_, x.mean(0))
    np.testing.assert_allclose(probe[0].scale_, x.std(0))
    # so the answer for a row does not depend on which other rows are scored with it
    task, system = Probe(bootstrap=0), Same(test)
    whole = task.predict(system, test, fit=train)
    some = task.predict(system, test.subset(range(7)), fit=train)
    for condition in task.conditions:
        np.testing.assert_array_equal(whole[condition][:7], some[condition])
    assert whole.notes["c"] == some.notes["c"]


def test_streams_of_other_clips_leave_chance(parts) -> None:
    train, test = parts
    task = Probe(bootstrap=0)
    wrong = task.wrong_partners(test)
    for i in range(len(test)):
        own, other = test.clip(i), wrong.clip(i)
        assert (own.id, own.label) == (other.id, other.label)
        for name in ("audio", "video"):
            assert not torch.equal(own.streams[name].data, other.streams[name].data)
    scores = task.score(task.predict(Same(test), test, fit=train, wrong_partner=True)).scores
    assert all(abs(row["accuracy"] - 1 / 3) < 0.17 for row in scores.values())


def test_c_is_chosen_by_groups_of_training_rows(parts) -> None:
    _, test = parts
    with pytest.raises(ConfigError, match="3 groups"):
        Probe(bootstrap=0).predict(Same(test), test, fit=data_of("train", groups=2))
    outputs = Probe(bootstrap=0, c=(0.1,)).predict(Same(test), test, fit=data_of("train", groups=2))
    assert set(outputs.notes["c"].values()) == {0.1}
    outputs = Probe(bootstrap=0, labeled=30, classifier="logistic").predict(Same(test), test, fit=data_of("train"))
    assert outputs.notes["labeled"] == 30
    with pytest.raises(ConfigError, match="two classes"):
        Probe(bootstrap=0, c=(0.1,)).predict(Same(test), test, fit=data_of("train", labels=1))


def test_outputs_can_be_kept_and_scored_again(parts, tmp_path: Path) -> None:
    train, test = parts
    task = Probe(bootstrap=20)
    outputs = task.predict(Same(test), test, fit=train)
    outputs.save(tmp_path / "probe.npz")
    assert task.score(Outputs.load(tmp_path / "probe.npz")).scores == task.score(outputs).scores


def test_one_stream_is_enough_and_decides(parts) -> None:
    train, test = parts
    task = Probe(bootstrap=0, conditions=("audio",))
    assert task.headline == ("audio", "accuracy")
    assert task.protocol["headline"]["condition"] == "audio"
    system = Same(test)
    task.predict(system, test, fit=train)
    assert {name for name, _ in system.seen} == {"audio"}


def test_what_cannot_be_is_said(parts) -> None:
    train, test = parts
    for wrong in ({"classifier": "forest"}, {"conditions": ()}, {"c": (0.0,)}, {"folds": 1}, {"labeled": -1}):
        with pytest.raises(ConfigError):
            Probe(**wrong)
    with pytest.raises(CapabilityError, match="probe"):
        Probe().predict(object(), test, fit=train)
    with pytest.raises(DataError, match="motion"):
        Probe(target="motion", bootstrap=0).predict(Same(test), test, fit=train)


def test_mean_recall_counts_classes_alike() -> None:
    label = np.array([0, 0, 0, 1])
    recall = mean_recall(np.array([1.0, 1.0, 1.0, 0.0]), label)
    assert recall(np.arange(4)) == pytest.approx(0.5)
    assert recall(np.array([0, 1, 1])) == 1.0


def test_clips_that_are_kept_can_be_split() -> None:
    kept = Kept(World("retrieval", clips=6, split="train"))
    some = kept.subset([4, 1], split="val")
    assert some.ids == (kept.ids[4], kept.ids[1])
    assert (len(some), some.split, some.clip(0).index) == (2, "val", 0)
    assert torch.equal(some.clip(1).streams["audio"].data, kept.clip(1).streams["audio"].data)


def test_an_untrained_network_tells_some_classes_already() -> None:
    """Random convolutions and a linear classifier: above chance. So the untrained copy stands beside every probe."""
    cls = discover.system_class("infonce")
    config = cls.Config.tiny()
    train, test = (
        World("retrieval", clips=n, split=s).configure(cls.inputs(config)) for s, n in (("train", 180), ("test", 90))
    )
    torch.manual_seed(0)
    system: Any = cls(config, train.spec).eval()
    task = Probe(bootstrap=0, conditions=("audio",), c=(0.03,))
    scores = task.score(task.predict(system, test, fit=train))
    assert scores.scores["audio"]["accuracy"] > 2 * scores.chance["audio"]["accuracy"]


def test_the_action_is_what_the_object_does() -> None:
    world = World("retrieval", clips=12, split="train")
    task = Probe(target="motion", bootstrap=0)
    rows = task.items(world)
    found = [int(rows.clip(i).extras["motion"]) for i in range(6)]
    assert set(found) <= {0, 1, 2, 3}
    assert len(set(found)) > 1
    assert "motion" not in world.clip(0).extras
    assert replace(task, target="label").items(world) is world
