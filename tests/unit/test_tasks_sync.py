"""The sync task: what is hidden, the sign, undecidable and at the limit, chance, data that are in time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from avcl.data import collate, load_data
from avcl.data.shifted import Shifted
from avcl.data.world import PRESETS, World, export
from avcl.errors import CapabilityError, ConfigError, DataError
from avcl.task import Outputs
from avcl.tasks.sync import Sync
from avcl.types import Batch, Inputs

INPUTS = Inputs(fps=25.0, size=(16, 16), sample_rate=8000, window=1.6)
TASK = Sync(bootstrap=100)
GRID = TASK.grid.double().numpy()


def world(clips: int = 6, **knobs: object) -> World:
    return World(replace(PRESETS["sync"], **knobs), clips=clips, split="test").configure(INPUTS)


def outputs(truth: np.ndarray, lag: np.ndarray, deviation: float = 0.02) -> Outputs:
    scores = -0.5 * ((GRID - lag[:, None]) / deviation) ** 2
    ids = tuple(map(str, range(len(truth))))
    return Outputs(ids, ids, {"offset": truth.astype(np.float32), "log_scores": scores.astype(np.float32)})


class Told:
    """Answers what it was told, and remembers what it was shown."""

    def __init__(self, *lags: Tensor):
        self.lags, self.shown = list(lags), []

    def offsets(self, batch: Batch, grid: Tensor) -> Tensor:
        self.shown.append(batch)
        return -0.5 * ((grid - self.lags.pop(0)[:, None]) / 0.02) ** 2


def test_the_lag_is_hidden() -> None:
    data = world(4)
    truth = torch.stack([data.clip(i).extras["offset"] for i in range(4)])
    system = Told(truth)
    made = TASK.predict(system, data)
    [shown] = system.shown
    assert not shown.extras
    assert bool((shown.label == -1).all())
    assert set(shown.streams) == {"audio", "video"}
    np.testing.assert_allclose(made["offset"], truth)
    scores = TASK.score(made)
    assert scores.scores["all"]["within_40ms"] == 1
    assert scores.scores["all"]["median_ms"] < 1
    assert scores.scores["decided"]["within_40ms"] == 1
    assert scores.n_scored == 4


def test_positive_is_late() -> None:
    """A film in time, its sound moved: what is seen at one time is heard the offset later."""
    data = TASK.items(world(offset=0.0))
    assert isinstance(data, Shifted)
    source = world(offset=0.0).configure(replace(INPUTS, window=2.4))  # of which the items begin at 0.4 s
    lags = []
    for i in range(4):
        clip, own = data.clip(i), source.clip(i).streams["audio"].data[0, :, 0]
        lags.append(round(float(clip.extras["offset"]) * 8000))
        instant = int(own[7000:9000].abs().argmax()) + 7000
        torch.testing.assert_close(clip.streams["audio"].data[0, instant - 3200 + lags[-1], 0], own[instant])
    assert min(lags) < 0 < max(lags)


def test_data_that_know_their_lag_are_scored_as_they_are() -> None:
    data = world()
    assert TASK.items(data) is data
    wrong = TASK.wrong_partners(data)
    for i in range(6):
        assert torch.equal(wrong.clip(i).extras["offset"], data.clip(i).extras["offset"])
        assert torch.equal(wrong.clip(i).streams["audio"].data, data.clip(i).streams["audio"].data)
        assert not torch.equal(wrong.clip(i).streams["video"].data, data.clip(i).streams["video"].data)


def test_a_folder_of_the_world_knows_its_lags(tmp_path: Path) -> None:
    export("sync", tmp_path, clips=10, split="test", workers=0)
    splits = load_data(tmp_path)
    items = TASK.items(splits.all.configure(INPUTS))
    assert not isinstance(items, Shifted)
    truth = [float(line["offset"]) for line in map(json.loads, (tmp_path / "truth.jsonl").read_text().splitlines())]
    assert [float(items.clip(i).extras["offset"]) for i in range(10)] == pytest.approx(truth)


def test_undecidable_and_at_the_limit_are_no_measurements() -> None:
    truth = np.array([0.1, 0.1, 0.6, -0.44, 0.3])
    made = outputs(truth, np.array([0.1, 0.1, 0.6, -0.44, -0.2]))
    scores = made["log_scores"].copy()
    scores[1] = 0  # flat
    made = made.with_arrays(log_scores=scores)
    found = TASK.estimate(made)
    assert TASK.decided(found).tolist() == [True, False, False, False, True]
    assert TASK.beyond(found).tolist() == [False, False, True, True, False]
    table = TASK.score(made).scores
    assert table["all"]["undecidable"] == pytest.approx(1 / 5)
    assert table["all"]["at_limit"] == pytest.approx(2 / 5)
    assert table["decided"]["within_40ms"] == pytest.approx(1 / 2)
    assert table["decided"]["within_125ms"] == pytest.approx(1 / 2)
    assert table["decided"]["median_ms"] == pytest.approx(250, abs=1)


def test_a_system_that_knows_nothing() -> None:
    truth = np.random.default_rng(0).uniform(-0.4, 0.4, 50)
    made = outputs(truth, truth).with_arrays(log_scores=np.zeros((50, len(GRID)), np.float32))
    scores = TASK.score(made)
    assert scores.scores["all"]["undecidable"] == 1
    assert np.isnan(scores.scores["decided"]["within_40ms"])
    assert np.isnan(scores.scores["decided"]["median_ms"])
    assert scores.scores["all"]["interval_holds"] > 0.9
    assert scores.scores["all"]["calibration_error"] < 0.1


def test_an_interval_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(-0.35, 0.35, 2000)
    honest, sure = (outputs(truth, truth + rng.normal(0, 0.04, 2000), d) for d in (0.04, 0.015))
    told = [TASK.score(made).scores["all"] for made in (honest, sure)]
    assert told[0]["interval_holds"] == pytest.approx(0.95, abs=0.02)
    assert told[1]["interval_holds"] < 0.7
    assert told[0]["calibration_error"] < 0.05 < told[1]["calibration_error"]


def test_chance_and_always_zero() -> None:
    truth = np.random.default_rng(0).uniform(-0.4, 0.4, 400)
    made = outputs(truth, truth)
    chance = TASK.score(made).chance["all"]
    assert chance["within_40ms"] == pytest.approx(0.0975, abs=0.004)  # 80 of 800 ms, less at the ends of the range
    assert chance["within_125ms"] == pytest.approx(0.288, abs=0.01)
    assert chance["median_ms"] == pytest.approx(234, abs=8)
    zero = TASK.score(TASK.baselines(made)["always 0"]).scores["all"]
    assert zero["within_40ms"] == pytest.approx((np.abs(truth) <= 0.04).mean())
    assert zero["median_ms"] == pytest.approx(1000 * np.median(np.abs(truth)), abs=0.1)
    assert zero["undecidable"] == 0


def test_protocol() -> None:
    assert TASK.protocol["headline"] == {"condition": "all", "metric": "within_40ms", "better": "higher"}
    assert len(GRID) == 49
    assert GRID[24] == 0
    for bad in ({"search": 0.0}, {"step": 0.0}, {"margin": 0.01}, {"threshold": 2.0}):
        with pytest.raises(ConfigError):
            Sync(**bad)
    with pytest.raises(CapabilityError):
        TASK.predict(object(), world())
    with pytest.raises(DataError):
        TASK.truth(collate([replace(world().clip(0), extras={})]))
