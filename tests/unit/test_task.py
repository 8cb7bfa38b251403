"""The protocol as an object: what is hidden, what is scored, controls and intervals, outputs that can be saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from avcl.data import FeatureData, Loader
from avcl.data.derived import Derived, WrongPartner, one_cycle
from avcl.errors import BatchError, CapabilityError, ConfigError, DataError, FeatureError, MissingFile
from avcl.system import Recognizes
from avcl.task import Outputs, Task, bare, labels_of, truth_of
from avcl.types import Batch, Report


@dataclass(frozen=True)
class Toy(Task):
    """Which class is it? The share of right answers, and a measure that is no mean."""

    name: ClassVar[str] = "toy"
    words: ClassVar[str] = "the class with the largest logit is the label"
    needs: ClassVar[type] = Recognizes
    headline: ClassVar[tuple[str, str]] = ("both", "accuracy")

    def shown(self, batch: Batch) -> Batch:
        return bare(batch)

    def answer(self, system: Any, shown: Batch) -> Mapping[str, Tensor]:
        return {"logits": system.logits(shown)}

    def truth(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"label": labels_of(batch, self.name)}

    def measures(self, outputs: Outputs):
        right = (outputs["logits"].argmax(1) == outputs["label"]).astype(float)
        return {"both": {"accuracy": right, "worst": lambda rows: float(right[rows].min())}}

    def chance(self, outputs: Outputs):
        return {"both": {"accuracy": 1 / 3}}

    def baselines(self, outputs: Outputs):
        return {"first": outputs.with_arrays(logits=np.tile([1.0, 0.0, 0.0], (len(outputs), 1)))}


class Reads:
    """Answers from the sound alone; remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Batch] = []

    def logits(self, batch: Batch) -> Tensor:
        self.seen.append(batch)
        return batch.audio.data[:, 0]


def data_of(n: int = 60) -> FeatureData:
    label = np.arange(n) % 3
    sound = np.eye(3, dtype=np.float32)[label]
    group = np.array([f"g{i // 2}" for i in range(n)])
    return FeatureData.from_arrays({"audio": sound, "video": sound[:, :2], "label": label, "group": group})


def test_the_system_sees_no_label_and_the_score_has_intervals_and_chance() -> None:
    system, task = Reads(), Toy(bootstrap=200)
    outputs = task.predict(system, data_of())
    assert all(int(batch.label.max()) == -1 and not batch.extras for batch in system.seen)
    scores = task.score(outputs)
    assert scores.scores == {"both": {"accuracy": 1.0, "worst": 1.0}}
    assert scores.interval["both"]["accuracy"] == (1.0, 1.0)
    assert scores.chance["both"]["accuracy"] == pytest.approx(1 / 3)
    assert (scores.n_scored, scores.n_official) == (60, 60)
    assert task.score(task.baselines(outputs)["first"]).scores["both"]["accuracy"] == pytest.approx(1 / 3)


def test_wrong_partners_take_the_answer_away() -> None:
    task, data = Toy(bootstrap=100), data_of(61)
    wrong = task.score(task.predict(Reads(), data, wrong_partner=True))
    partner = one_cycle(61, seed=0)
    expected = np.mean(np.arange(61) % 3 == partner % 3)
    assert wrong.scores["both"]["accuracy"] == pytest.approx(expected)
    assert wrong.scores["both"]["accuracy"] < 0.6


def test_groups_are_drawn_together() -> None:
    outputs = Toy(bootstrap=500).predict(Reads(), data_of())
    half = outputs["label"].copy()
    half[:30] = (half[:30] + 1) % 3  # the first fifteen groups are wrong altogether
    together = Toy(bootstrap=500).score(outputs.with_arrays(label=half)).interval["both"]["accuracy"]
    alone = replace(outputs.with_arrays(label=half), groups=outputs.ids)
    apart = Toy(bootstrap=500).score(alone).interval["both"]["accuracy"]
    assert together[1] - together[0] > 1.2 * (apart[1] - apart[0])


def test_what_cannot_be_scored_is_counted() -> None:
    class Some(Toy):
        def measures(self, outputs: Outputs):
            values = np.where(np.arange(len(outputs)) < 10, np.nan, 1.0)
            return {"both": {"accuracy": values}}

    scores = Some(bootstrap=50).score(Toy().predict(Reads(), data_of()))
    assert (scores.n_scored, scores.n_official, scores.scores["both"]["accuracy"]) == (50, 60, 1.0)


def test_outputs_are_saved_without_pickle(tmp_path: Path) -> None:
    outputs = Toy().predict(Reads(), data_of())
    outputs.save(tmp_path / "out.npz")
    again = Outputs.load(tmp_path / "out.npz")
    assert again.ids == outputs.ids
    assert np.array_equal(again["logits"], outputs["logits"])
    assert again.notes == outputs.notes
    assert Toy().score(again) == Toy().score(outputs)
    with pytest.raises(MissingFile):
        Outputs.load(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="saved outputs"):
        Outputs.load(tmp_path / "bad.npz")
    with pytest.raises(DataError, match='no "nothing"'):
        outputs["nothing"]


def test_refusals() -> None:
    with pytest.raises(CapabilityError, match="cannot be scored at toy"):
        Toy().predict(object(), data_of())
    with pytest.raises(ConfigError, match="bootstrap"):
        Toy(bootstrap=-1)
    with pytest.raises(BatchError, match="one clip has no other"):
        one_cycle(1, seed=0)
    with pytest.raises(DataError, match='no "text"'):
        WrongPartner(data_of(), "text")

    class Broken(Reads):
        def logits(self, batch: Batch) -> Tensor:
            return torch.full((len(batch), 3), float("nan"))

    with pytest.raises(FeatureError, match="not finite in 32 items"):
        Toy().predict(Broken(), data_of())
    batch = next(iter(Loader(data_of(), batch_size=4)))
    with pytest.raises(DataError, match='the truth "masks"'):
        truth_of(batch, "toy", "masks")


def test_the_fingerprint_is_that_of_the_fields() -> None:
    assert Toy().fingerprint == Toy().fingerprint
    assert Toy().fingerprint != Toy(seed=1).fingerprint
    json.dumps(Toy().protocol)


def test_one_cycle_leaves_nobody_with_himself() -> None:
    for n in (2, 3, 17):
        partner = one_cycle(n, seed=3)
        assert sorted(partner) == list(range(n))
        assert not (partner == np.arange(n)).any()


def test_derived_data_pass_everything_on() -> None:
    data = data_of()
    plain = Derived(data)
    assert (plain.ids, plain.groups, plain.targets, plain.spec) == (data.ids, data.groups, data.targets, data.spec)
    assert plain.fingerprint != data.fingerprint
    wrong = WrongPartner(data, "audio").subset(range(10))
    assert len(wrong) == 10
    clip, own, other = wrong.clip(3), data.clip(3), data.clip(int(wrong.partner[3]))
    assert clip.id == own.id
    assert torch.equal(clip.streams["audio"].data, other.streams["audio"].data)
    assert torch.equal(clip.streams["video"].data, own.streams["video"].data)


def report_of(better: str = "higher", **more: Any) -> Report:
    headline = {"condition": "both", "metric": "m", "better": better}
    known = {"scores": {"both": {"m": 0.5}}, "chance": {"both": {"m": 0.3}}, "interval": {"both": {"m": (0.4, 0.6)}}}
    return Report("s", "t", "d", **{**known, **more}, n_scored=1, n_official=1, protocol={"headline": headline})


def test_what_is_not_beaten() -> None:
    assert report_of().not_beaten() == ()
    assert report_of(chance={"both": {"m": 0.45}}).not_beaten() == ("chance",)
    spans = {"untrained": {"both": {"m": (0.2, 0.45)}}, "mean": {"both": {"m": (0.1, 0.2)}}}
    beside = {"untrained": {"both": {"m": 0.3}}, "baselines": {"mean": {"both": {"m": 0.15}}}}
    assert report_of(**beside, control_interval=spans).not_beaten() == ("untrained",)
    lower = report_of("lower", chance={"both": {"m": 0.7}}, untrained={"both": {"m": 0.55}})
    assert lower.not_beaten() == ("untrained",)


def test_the_table_of_conditions() -> None:
    text = report_of(untrained={"both": {"m": 0.31}}, baselines={"majority": {"both": {"m": 0.2}}}).table()
    assert "both" in text
    assert "0.5 [0.4, 0.6]" in text
    assert all(word in text for word in ("chance", "untrained", "majority", "0.31"))
