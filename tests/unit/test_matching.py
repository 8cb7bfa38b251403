"""Matching voices and faces: how trials are drawn, what chance is, and which cues must not help."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from avcl.data import FeatureData
from avcl.data.world import PRESETS, World
from avcl.errors import ConfigError, LabelError
from avcl.task import Outputs
from avcl.tasks.matching import Matching, draw
from avcl.types import Batch

TASK = Matching(bootstrap=50, candidates=4, trials=10)


def outputs_of(codes: np.ndarray, other: np.ndarray, person: np.ndarray, **more: np.ndarray) -> Outputs:
    """Similarity: negative squared distance of sounds and pictures."""
    ids = tuple(map(str, range(len(person))))
    near = -((codes[:, None] - other[None]) ** 2).sum(2)
    groups = tuple(f"person {p}" for p in person)
    return Outputs(ids, groups, {"person": person, "similarity": near, **more})


PERSON = np.repeat(np.arange(8), 5)


def test_perfect_codes_and_codes_that_say_nothing() -> None:
    eye = np.eye(8)[PERSON]
    best = TASK.score(outputs_of(eye, eye, PERSON)).scores
    for condition in ("audio to video", "video to audio", "both directions"):
        assert best[condition] == {"1:2": 1.0, "1:4": 1.0, "mAP": 1.0}
    assert best["verification"] == {"AUC": 1.0, "EER": 0.0}
    flat = TASK.score(outputs_of(0 * eye, 0 * eye, PERSON))
    blind = flat.chance["both directions"]["mAP"]
    assert flat.scores["both directions"] == pytest.approx({"1:2": 0.5, "1:4": 0.25, "mAP": blind})
    assert flat.scores["verification"] == {"AUC": 0.5, "EER": 0.5}
    for condition, row in flat.chance.items():
        assert row == pytest.approx(flat.scores[condition])


def test_random_codes_are_at_chance() -> None:
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(40), 6)
    scores = TASK.score(outputs_of(rng.normal(size=(240, 8)), rng.normal(size=(240, 8)), person))
    assert scores.scores["both directions"]["1:2"] == pytest.approx(0.5, abs=0.04)
    assert scores.scores["both directions"]["1:4"] == pytest.approx(0.25, abs=0.04)


def test_how_trials_are_drawn() -> None:
    person = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, 4])
    trials = draw(person, np.zeros_like(person), TASK)
    query = np.arange(10)
    known = trials.match[:, 0] >= 0
    assert known.tolist() == [True] * 9 + [False]  # one clip of person 4 has no other
    assert (person[trials.match[known]] == person[known, None]).all()
    assert (trials.match != query[:, None]).all()
    assert (trials.strangers >= 0).all()
    others = person[trials.strangers]
    assert (others != person[:, None, None]).all()
    assert all(len(set(row)) == 3 for row in others.reshape(-1, 3).tolist())  # different people
    assert set(others.ravel()) == {0, 1, 2, 3, 4}
    again = draw(person, np.zeros_like(person), TASK)
    assert np.array_equal(trials.strangers, again.strangers)
    other = draw(person, np.zeros_like(person), Matching(candidates=4, trials=10, seed=1))
    assert not np.array_equal(trials.strangers, other.strangers)
    own = draw(person, np.zeros_like(person), Matching(candidates=4, trials=10, own=True))
    assert (own.match >= 0).all()


def test_what_only_one_recording_shares_does_not_help() -> None:
    """A code of the clip and not of the person finds the own clip, which is no match here."""
    clip = np.eye(len(PERSON))
    scores = TASK.score(outputs_of(clip, clip, PERSON)).scores["both directions"]
    assert scores["1:2"] == pytest.approx(0.5)
    own = Matching(bootstrap=0, candidates=4, trials=10, own=True)
    assert own.score(outputs_of(clip, clip, PERSON)).scores["both directions"]["1:2"] > 0.55


def test_a_code_of_the_sex_alone_is_at_chance_within_one_sex() -> None:
    sex = PERSON % 2
    code = np.eye(2)[sex]
    scores = TASK.score(outputs_of(code, code, PERSON, stratum=sex))
    assert scores.scores["both directions"]["1:2"] > 0.7
    within = scores.scores["both directions, same stratum"]
    assert within == pytest.approx({"1:2": 0.5, "1:4": 0.25})
    assert scores.scores["verification, same stratum"]["AUC"] == 0.5
    assert scores.chance["both directions, same stratum"] == {"1:2": 0.5, "1:4": 0.25}
    trials = draw(PERSON, sex, TASK)
    assert (sex[trials.strangers] == sex[:, None, None]).all()


def test_too_few_people_leave_one_of_n_open() -> None:
    person = np.repeat(np.arange(3), 4)
    eye = np.eye(3)[person]
    scores = TASK.score(outputs_of(eye, eye, person))
    assert scores.scores["both directions"]["1:2"] == 1.0
    assert np.isnan(scores.scores["both directions"]["1:4"])
    with pytest.raises(LabelError, match="two people"):
        TASK.score(outputs_of(eye[:4], eye[:4], person[:4]))
    lonely = np.array([0, 0, 1, 2])
    scores = TASK.score(outputs_of(np.eye(3)[lonely], np.eye(3)[lonely], lonely))
    assert (scores.n_scored, scores.n_official) == (2, 4)


@pytest.mark.parametrize("wrong", [{"candidates": 1}, {"trials": 0}, {"trials": 3, "pairs": 4}])
def test_settings_that_make_no_trials(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="candidates"):
        Matching(**wrong)


class Embedder:
    """Codes as they come; remembers what it was shown."""

    similarity_name = "dot"

    def __init__(self) -> None:
        self.seen: list[Batch] = []

    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        self.seen.append(batch)
        return batch.streams[modality].data[:, 0]

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return q @ g.T


def test_a_system_sees_one_modality_at_a_time_and_another_voice_spoils_it() -> None:
    person = np.repeat(np.arange(10), 4)
    code = np.eye(10, dtype=np.float32)[person]
    data = FeatureData.from_arrays({"audio": code, "video": code, "label": person, "group": person})
    system = Embedder()
    outputs = TASK.predict(system, data)
    assert {tuple(batch.streams) for batch in system.seen} == {("audio",), ("video",)}
    assert all(not batch.extras and int(batch.label.max()) == -1 for batch in system.seen)
    assert TASK.score(outputs).scores["both directions"]["1:2"] == 1.0
    assert torch.equal(torch.from_numpy(outputs["similarity"]), torch.from_numpy(code @ code.T))
    wrong = TASK.score(TASK.predict(system, data, wrong_partner=True)).scores
    assert wrong["both directions"]["1:2"] < 0.7


def test_people_of_the_test_are_strangers_however_many_there_are() -> None:
    from dataclasses import replace

    many = replace(PRESETS["face_voice"], persons=300)
    assert len(many.labels) == 300
    assert many.labels[:120] == PRESETS["face_voice"].labels
    assert replace(PRESETS["speech"], persons=300).labels == PRESETS["speech"].labels
    train, test = (World(many, clips=400, split=split) for split in ("train", "test"))
    assert set(train.targets) <= set(range(240))
    assert set(test.targets) <= set(range(270, 300))
    assert not set(train.groups) & set(test.groups)
