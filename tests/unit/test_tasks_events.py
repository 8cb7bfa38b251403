"""Event localization: the worked example, the background share that is computed, and what one modality alone gets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from avcl.data import collate
from avcl.data.world import World
from avcl.errors import CapabilityError, ConfigError, DataError, FeatureError, LabelError
from avcl.task import Outputs
from avcl.tasks.events import BACKGROUND, ORACLE, Events
from avcl.types import Batch, Clip, DataSpec, Report, Stream

LABELS = ["a", "b", "c", BACKGROUND]
BG = 3


def outputs_of(truth, said=None, **arrays: np.ndarray) -> Outputs:
    truth = np.asarray(truth)
    ids = tuple(f"c{i}" for i in range(len(truth)))
    logits = np.eye(4)[truth if said is None else np.asarray(said)]
    return Outputs(ids, ids, {"segments": truth, "logits": logits, **arrays}, {"labels": LABELS})


# ---------------------------------------------------------------------------------------------------- worked by hand
def test_the_worked_example() -> None:
    truth = [[BG, BG, 0, 0, 0, 0, 0, BG, BG, BG]]
    said = [[BG, 0, 0, 0, 0, 2, 0, 0, BG, BG]]
    scores = Events(bootstrap=0).score(outputs_of(truth, said)).scores["both"]
    assert scores["segment accuracy"] == pytest.approx(0.7)
    assert scores["event recall"] == pytest.approx(4 / 5)
    assert scores["background recall"] == pytest.approx(3 / 5)
    # Spans [1, 5) a, [5, 6) c, [6, 8) a against [2, 7) a: the first overlaps by 3 of 6, the one hit.
    assert scores["event F1"] == pytest.approx(2 / (2 + 2 + 0))
    assert Events(bootstrap=0, iou=0.6).score(outputs_of(truth, said)).scores["both"]["event F1"] == 0


def test_the_background_share_is_that_of_the_rows_that_are_scored() -> None:
    """A model that says "background" everywhere gets exactly the share of background segments, of these rows."""
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1, 2, BG, BG, BG], size=(40, 10))
    task = Events(bootstrap=100)
    silent = outputs_of(truth, np.full_like(truth, BG))
    score = task.score(silent)
    assert score.scores["both"]["segment accuracy"] == pytest.approx((truth == BG).mean(), abs=1e-12)
    assert score.scores[ORACLE]["segment accuracy"] == pytest.approx(1 - (truth == BG).mean())
    baselines = {name: task.score(o).scores["both"] for name, o in task.baselines(silent).items()}
    assert baselines["background only"]["segment accuracy"] == pytest.approx((truth == BG).mean(), abs=1e-12)
    assert baselines["background only"]["event recall"] == 0
    assert baselines["background only"]["background recall"] == 1
    best = np.bincount(truth[truth != BG]).argmax()
    assert baselines["most frequent event"]["segment accuracy"] == pytest.approx((truth == best).mean())
    half = outputs_of(truth[:20], np.full_like(truth[:20], BG))
    share = (truth[:20] == BG).mean()
    assert share != (truth == BG).mean()
    assert task.score(half).scores["both"]["segment accuracy"] == pytest.approx(share, abs=1e-12)
    # It beats chance (1 of 4) by far, and must not count as a model that works.
    report = report_of(task, silent)
    assert "chance" not in report.not_beaten()
    assert "background only" in report.not_beaten()


def report_of(task: Events, outputs: Outputs) -> Report:
    score, beside = task.score(outputs), {k: task.score(o) for k, o in task.baselines(outputs).items()}
    return Report(
        system="toy",
        data="",
        **score.parts(),
        baselines={name: s.scores for name, s in beside.items()},
        control_interval={name: s.interval for name, s in beside.items()},
    )


def test_every_class_has_its_row_and_background_is_one() -> None:
    found = Events(bootstrap=0).score(outputs_of([[0, 0, 1, BG]], [[0, 1, 1, BG]])).per_class["both"]
    assert found["a"] == {"recall": 0.5, "precision": 1.0, "F1": pytest.approx(2 / 3), "segments": 2.0}
    assert found["b"]["precision"] == 0.5
    assert found[BACKGROUND]["recall"] == 1.0
    assert found["c"]["segments"] == 0


# ------------------------------------------------------------------------------------------------------- cross-modality
def test_starts_across_modalities() -> None:
    truth = np.array(
        [[BG, 1, 1, BG, BG], [0, 0, 0, 0, 0], [BG, BG, BG, BG, BG], [0, BG, 0, BG, BG], [BG, BG, BG, 2, 2]]
    )
    near = np.array([np.where(t[:, None] == t[None], 0.0, 1.0) for t in truth])
    task = Events(bootstrap=0)
    score = task.score(outputs_of(truth, distance=near))
    # Not scored: the event that fills its clip, none at all, one that is torn. Of the others windows of two of five.
    assert (
        task.measures(outputs_of(truth, distance=near))["audio to video"]["start accuracy"].tolist()[1:4]
        == [pytest.approx(np.nan, nan_ok=True)] * 3
    )
    assert score.scores["audio to video"]["start accuracy"] == 1
    assert score.chance["video to audio"]["start accuracy"] == pytest.approx(1 / 4)


def test_each_direction_lays_its_own_query() -> None:
    truth = np.array([[BG, 1, 1, BG]])
    table = np.ones((1, 4, 4))  # distance of picture i (rows) to sound j
    table[0, 1, 1] = table[0, 2, 2] = 0.0
    table[0, 0, 1], table[0, 1, 2] = -1.0, -0.5  # the sounds of the event lie nearer to the pictures before it
    scores = Events(bootstrap=0).score(outputs_of(truth, distance=table)).scores
    assert scores["audio to video"]["start accuracy"] == 0
    assert scores["video to audio"]["start accuracy"] == 1


def test_a_constant_distance_gets_chance_or_the_published_first() -> None:
    truth = np.array([[0, 0, BG, BG, BG], [BG, BG, BG, 0, 0]])
    flat = np.ones((2, 5, 5))
    expected = Events(bootstrap=0).score(outputs_of(truth, distance=flat)).scores
    first = Events(bootstrap=0, ties="first").score(outputs_of(truth, distance=flat)).scores
    assert expected["audio to video"]["start accuracy"] == pytest.approx(1 / 4)
    assert first["audio to video"]["start accuracy"] == pytest.approx(1 / 2)


def test_fields_and_shapes_that_do_not_fit() -> None:
    for wrong in ({"iou": 0.0}, {"iou": 1.5}, {"ties": "last"}):
        with pytest.raises(ConfigError):
            Events(**wrong)
    with pytest.raises(FeatureError, match="from 0 to 3"):
        Events().score(outputs_of([[0, 4]], [[0, 1]]))
    with pytest.raises(FeatureError, match="Set window and segment"):
        Events().score(outputs_of([[0, 1]]).with_arrays(logits=np.zeros((1, 3, 4))))


# ------------------------------------------------------------------------------------------------- what a system sees
class Reads:
    """Says the class that its streams hold: of the sound, of the picture, or where both agree."""

    def __init__(self, rule: str, *, matches: bool = False):
        self.rule, self.seen = rule, []
        if matches:
            self.match = lambda batch, modality: batch.streams[modality].data.float()

    def events(self, batch: Batch) -> Tensor:
        self.seen.append(batch)
        heard, seen = (batch.streams[name].data[..., 0].long() for name in ("audio", "video"))
        heard, seen = (torch.where(batch.streams[n].mask, x, BG) for n, x in (("audio", heard), ("video", seen)))
        said = {"audio": heard, "video": seen, "both": torch.where(heard == seen, heard, BG)}[self.rule]
        return torch.nn.functional.one_hot(said, 4).float()


class Heard:
    """Clips of which sound and picture hold a class for each segment; an event is where both hold the same."""

    def __init__(self, n: int = 60, labels: tuple[str, ...] = ("a", "b", "c")):
        rng = np.random.default_rng(0)
        clips = []
        for i in range(n):
            event = int(rng.integers(3))
            heard, seen = (np.where(rng.random(10) < 0.8, event, BG) for _ in range(2))
            truth = np.where((heard == seen), heard, BG)
            streams = {
                name: Stream(torch.tensor(x)[None, :, None].float(), torch.ones(1, 10, dtype=torch.bool), 1.0)
                for name, x in (("audio", heard), ("video", seen))
            }
            clips.append(Clip(f"c{i}", streams, index=i, label=event, extras={"segments": torch.tensor(truth)}))
        self.clips, self.labels = clips, labels


def data_of(source: Heard):
    from avcl.data.dataset import Data

    class Kept(Data):
        kind, modalities, skipped = "features", ("audio", "video"), {}
        labels, n_official = source.labels, len(source.clips)
        ids = tuple(c.id for c in source.clips)
        groups, targets, spec, fingerprint = ids, (0,) * len(ids), None, "kept"

        def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
            return source.clips[index]

        def subset(self, indices, *, split=None):
            raise NotImplementedError

    return Kept()


def test_both_modalities_are_checked_against_each_alone() -> None:
    """A rule that uses both scores high only with both; one that listens alone is given away by "audio only"."""
    data, task = data_of(Heard()), Events(bootstrap=100)
    scores: Mapping[str, Mapping[str, float]] = task.score(task.predict(Reads("both"), data)).scores
    assert scores["both"]["segment accuracy"] == 1
    share = np.mean([(c.extras["segments"] == BG).float().mean() for c in Heard().clips])
    assert scores["audio only"]["segment accuracy"] == pytest.approx(share)
    assert scores["video only"]["segment accuracy"] == pytest.approx(share)
    deaf = task.score(task.predict(Reads("audio"), data)).scores
    assert deaf["both"] == {**deaf["audio only"], "event F1": deaf["both"]["event F1"]}
    assert deaf["both"]["segment accuracy"] < 1
    wrong = task.score(task.predict(Reads("both"), data, wrong_partner=True)).scores
    assert wrong["both"]["segment accuracy"] < 0.7


def test_the_target_is_hidden_and_one_stream_at_a_time_for_matching() -> None:
    data, system = data_of(Heard(6)), Reads("both", matches=True)
    told = []
    match = system.match
    system.match = lambda batch, modality: told.append((batch, modality)) or match(batch, modality)
    outputs = Events().predict(system, data)
    assert all(not b.extras and bool((b.label == -1).all()) for b in system.seen)
    for batch, modality in told:
        for name, stream in batch.streams.items():
            assert bool(stream.mask.any()) == (name == modality)
    assert outputs["distance"].shape == (6, 10, 10)
    seen, heard = data.clip(2).streams["video"].data[0, 3], data.clip(2).streams["audio"].data[0, 7]
    assert outputs["distance"][2, 3, 7] == pytest.approx(float((seen - heard).abs()))


def test_what_has_no_segments_or_other_classes_is_refused() -> None:
    with pytest.raises(DataError, match='needs the truth "segments"'):
        Events().truth(collate([World("retrieval", clips=2).clip(0)]))
    with pytest.raises(CapabilityError, match="cannot"):
        Events().predict(object(), data_of(Heard(3)))
    system = Reads("both")
    system.spec = DataSpec({}, ("b", "a", "c"))
    with pytest.raises(LabelError, match="other classes"):
        Events().predict(system, data_of(Heard(3)))


def test_the_world_labels_what_is_both_seen_and_heard() -> None:
    world = World("events", clips=12, truth=True, split="test")
    batch = collate([world.clip(i) for i in range(12)])
    segments = Events().truth(batch)["segments"]
    assert segments.shape == (12, 10)
    assert set(segments.unique().tolist()) <= set(range(13))
    assert all(len(set(row.tolist()) - {12}) <= 1 for row in segments)
