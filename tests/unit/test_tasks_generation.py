"""The protocol of generation: the target is hidden, the encoder has a name, and what is right beats what is not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avcl.data.features import FeatureData
from avcl.data.world import World
from avcl.errors import BatchError, CapabilityError, ConfigError, DataError
from avcl.metrics import chance
from avcl.task import Outputs
from avcl.tasks.generation import Generation
from avcl.types import Batch, Stream

N = 40


def features(n: int = N, *, seed: int = 0, labels: bool = True) -> FeatureData:
    """Sound and picture of a clip are linear maps of one code; every clip has a code of its own around its class."""
    rng = np.random.default_rng(seed)
    maps = np.random.default_rng(9)
    label = np.arange(n) % 4
    code = 2 * np.eye(6)[label] + rng.normal(size=(n, 6))
    arrays = {m: (code @ maps.normal(size=(6, d))).astype(np.float32) for m, d in (("audio", 12), ("video", 16))}
    known = {"label": [f"c{k}" for k in label]} if labels else {}
    return FeatureData.from_arrays({**arrays, **known})


class Linear:
    """A generator by least squares, that notes what it is shown."""

    def __init__(self, data: FeatureData, *, shift: float = 0.0):
        self.spec, self.shift, self.seen = data.spec, shift, []
        rows = {m: torch.stack([data.clip(i).streams[m].data[0, 0] for i in range(len(data))]) for m in data.modalities}
        self.maps = {(a, b): torch.linalg.lstsq(rows[a], rows[b]).solution for a in rows for b in rows if a != b}

    def generate(self, batch: Batch, generator: torch.Generator) -> Stream:
        self.seen.append((set(batch.streams), bool((batch.label == -1).all()), dict(batch.extras)))
        [source] = batch.streams
        target = "video" if source == "audio" else "audio"
        stream = batch.streams[source]
        return stream._replace(data=stream.data @ self.maps[source, target] + self.shift)


def test_the_right_generator_wins_and_chance_is_exact() -> None:
    data, train = features(), features(80, seed=1)
    task = Generation(bootstrap=50)
    made = task.predict(Linear(train), data, fit=train)
    scores = task.score(made)
    assert scores.scores["both"]["MRR"] > 0.9
    assert set(scores.scores) == {"audio_to_video", "video_to_audio", "both"}
    assert scores.chance["both"]["MRR"] == pytest.approx(chance([1] * N, N)["MRR"])
    wrong = task.score(task.predict(Linear(train), data, fit=train, wrong_partner=True))
    assert wrong.scores["both"]["MRR"] < 0.3
    for name, outputs in task.baselines(made).items():
        assert task.score(outputs).scores["both"]["MRR"] < 0.3, name
    mean = task.score(task.baselines(made)["training mean"])
    assert mean.scores["both"]["MRR"] == pytest.approx(scores.chance["both"]["MRR"])  # all tied: exactly chance
    [judged] = [m for m in scores.scores["both"] if m.startswith("class@")]
    assert scores.scores["both"][judged] > 0.6  # a quarter by chance, and no judge is perfect


def test_the_system_never_sees_its_target() -> None:
    data, train = features(), features(80, seed=1)
    system = Linear(train)
    Generation(bootstrap=0).predict(system, data, fit=train)
    assert {tuple(streams) for streams, _, _ in system.seen} == {("audio",), ("video",)}
    assert all(hidden and not extras for _, hidden, extras in system.seen)


def test_by_class_every_item_of_the_class_is_right() -> None:
    data, train = features(), features(80, seed=1)
    pair, by_class = Generation(bootstrap=0), Generation(bootstrap=0, relevance="class")
    made = pair.predict(Linear(train), data, fit=train)
    assert by_class.score(made).scores["both"]["MRR"] >= pair.score(made).scores["both"]["MRR"]
    assert by_class.score(made).chance["both"]["MRR"] == pytest.approx(chance([N // 4] * N, N)["MRR"])
    assert by_class.fingerprint != pair.fingerprint


def test_a_distance_of_distributions_sees_a_shift_that_ranks_do_not() -> None:
    data, train = features(), features(80, seed=1)
    task = Generation(bootstrap=0, components=4)
    right, shifted = (task.score(task.predict(Linear(train, shift=s), data, fit=train)) for s in (0.0, 3.0))
    [name] = [m for m in right.scores["both"] if m.startswith("Frechet@")]
    assert shifted.scores["both"][name] > 5 * right.scores["both"][name]


def test_no_value_without_the_name_of_its_encoder() -> None:
    """The trap: a distance, a rank or a share of right classes in the features of nobody knows what."""
    data, train = features(), features(80, seed=1)
    task = Generation(bootstrap=0)
    made = task.predict(Linear(train), data, fit=train)
    encoder = made.notes["encoder"]
    assert "mean feature of 12" in encoder["audio"]
    assert "mean feature of 16" in encoder["video"]
    for metric in task.score(made).scores["both"]:
        named = metric in ("MRR", "R@10") or metric.split("@")[1] in (encoder["tag"], made.notes["judge"]["tag"])
        assert named, metric
    bare = {k: v for k, v in made.notes.items() if k != "encoder"}
    half = {**made.notes, "encoder": {"audio": encoder["audio"], "tag": encoder["tag"]}}
    nameless = {**made.notes, "encoder": {**encoder, "tag": ""}}
    unjudged = {k: v for k, v in made.notes.items() if k != "judge"}
    for notes in (bare, half, nameless, unjudged):
        with pytest.raises(DataError, match="do not name"):
            task.score(Outputs(made.ids, made.groups, made.arrays, notes))
    # Another set of training rows is another encoder.
    other = task.predict(Linear(train), data, fit=features(80, seed=2))
    assert other.notes["encoder"]["tag"] != encoder["tag"]


def test_without_labels_there_is_no_judge() -> None:
    data, train = features(labels=False), features(80, seed=1, labels=False)
    made = Generation(bootstrap=0).predict(Linear(train), data, fit=train)
    assert "judge" not in made.notes
    assert not [m for m in Generation(bootstrap=0).score(made).scores["both"] if m.startswith("class")]


def test_what_cannot_be_scored_is_refused() -> None:
    data = features(8)
    with pytest.raises(CapabilityError, match="cannot be scored at generation"):
        Generation().predict(SimpleNamespace(), data, fit=data)
    with pytest.raises(ConfigError, match="training rows"):
        Generation().predict(Linear(data), data)
    system = Linear(data)
    system.targets = ("smell",)
    with pytest.raises(BatchError, match="nothing to generate"):
        Generation().predict(system, data, fit=data)
    with pytest.raises(ConfigError):
        Generation(relevance="group")
    with pytest.raises(ConfigError):
        Generation(side=0)


def test_one_direction_and_another_form() -> None:
    data = features(12)
    system = Linear(data)
    system.targets = ("video",)
    made = Generation(bootstrap=0).predict(system, data, fit=data)
    assert set(Generation(bootstrap=0).score(made).scores) == {"audio_to_video", "both"}
    world = World("retrieval", clips=4, split="val")

    class Features:
        spec = world.spec

        def generate(self, batch: Batch, generator: torch.Generator) -> Stream:
            return Stream(torch.zeros(len(batch), 1, 3), torch.ones(len(batch), 1, dtype=torch.bool), 1.0)

    with pytest.raises(CapabilityError, match="generates features where the data have"):
        Generation(bootstrap=0).predict(Features(), world, fit=world)
