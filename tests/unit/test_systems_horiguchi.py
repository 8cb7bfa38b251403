"""horiguchi2018_face_voice_npair: one face and one voice of each person, N-pair is InfoNCE, strangers are matched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import avcl
from avcl.data import FeatureData, collate
from avcl.errors import BatchError, ConfigError
from avcl.objectives.contrastive import info_nce
from avcl.seeds import seeded
from avcl.system import Step
from avcl.systems.horiguchi2018_face_voice_npair import FaceVoice, FaceVoiceConfig, one_each
from avcl.testing.systems import FEATURES, clips_of
from avcl.types import Batch, DataSpec, StreamSpec


def made(spec: DataSpec = FEATURES, **settings: object) -> FaceVoice:
    with seeded(0, "init"):
        return FaceVoice(replace(FaceVoiceConfig.tiny(), **settings), spec)


def batch_of(n: int = 8, label: list[int] | None = None) -> Batch:
    batch = collate(clips_of(FEATURES, n=n)).to("cpu")
    return batch if label is None else replace(batch, label=torch.tensor(label))


def at(seed: int = 0) -> Step:
    return Step(0, 10, 0, 0.0, torch.Generator().manual_seed(seed))


def test_one_face_and_one_voice_of_each_person() -> None:
    label = torch.tensor([4, 4, 7, -1, 7, -1, 9])
    there = [torch.ones(7, dtype=torch.bool), torch.tensor([1, 1, 1, 1, 1, 1, 0], dtype=torch.bool)]
    generator, met = torch.Generator().manual_seed(0), set()
    for _ in range(60):
        face, voice = one_each(label, there, generator)
        assert len(face) == len(voice) == 4  # 4, 7 and two without a name; person 9 has no voice
        assert label[face].tolist() == label[voice].tolist() == [4, 7, -1, -1]
        unnamed = (face[2:].tolist(), voice[2:].tolist())
        assert unnamed == ([3, 5], [3, 5])
        met.add((int(face[0]), int(voice[0])))
    assert met == {(0, 0), (0, 1), (1, 0), (1, 1)}  # also the voice of another recording


def test_n_pair_is_info_nce_without_temperature_plus_the_length() -> None:
    system, batch = made(norm_weight=0.0).eval(), batch_of(label=list(range(8)))
    encoded = system.encode(batch)
    a, v = encoded["audio"], encoded["video"]
    loss = system.losses(encoded, batch, at())["n_pair"]
    torch.testing.assert_close(loss, 2 * info_nce(a, v, temperature=1.0))
    heavier = made(norm_weight=0.02).eval().losses(encoded, batch, at())["n_pair"]
    torch.testing.assert_close(heavier - loss, 0.02 * (a.square().sum(1) + v.square().sum(1)).mean())


def test_clips_of_one_person_are_no_strangers_to_each_other() -> None:
    system = made(norm_weight=0.0).eval()
    batch = batch_of(label=[0, 0, 0, 0, 1, 1, 1, 1])
    loss, encoded = system(batch, at(3))
    face, voice = one_each(batch.label, [encoded["audio?"], encoded["video?"]], at(3).generator)
    pair = info_nce(encoded["audio"][face], encoded["video"][voice], temperature=1.0)
    torch.testing.assert_close(loss["n_pair"], 2 * pair)


def test_dot_or_cosine() -> None:
    batch = batch_of()
    dot, cosine = made(compare="dot").eval(), made().eval()
    assert (dot.similarity_name, cosine.similarity_name) == ("dot", "cosine")
    a, v = dot.embed(batch, "audio"), dot.embed(batch, "video")
    assert float((a.norm(dim=1) - 1).abs().max()) > 0.01
    torch.testing.assert_close(dot.similarity(a, v), a @ v.T)
    torch.testing.assert_close(cosine.similarity(a, v), dot.similarity(a, v) / a.norm(dim=1)[:, None] / v.norm(dim=1))


def people(n: int, first: int) -> FeatureData:
    """Two clips of each of ``n`` people: three traits are seen and heard, the rest is noise of the clip."""
    rng, mixed = np.random.default_rng(first), np.random.default_rng(0)
    person = np.repeat(np.arange(n), 2)
    trait = rng.normal(size=(n, 3))[person]
    audio = trait @ mixed.normal(size=(3, 8)) + 0.3 * rng.normal(size=(2 * n, 8))
    video = trait @ mixed.normal(size=(3, 10)) + 0.3 * rng.normal(size=(2 * n, 10))
    names = [f"person {first + p}" for p in person]
    return FeatureData.from_arrays({"audio": audio, "video": video, "label": names, "group": names})


def test_people_never_met_are_matched() -> None:
    settings = {"epochs": 10, "batch_size": 50, "dim": 16, "hidden": 32, "dropout": 0.0}
    model = avcl.train("horiguchi2018_face_voice_npair", people(200, 0), settings=settings, workers=0)
    report = avcl.evaluate(
        model, people(60, 1000), task="matching", protocol={"bootstrap": 200}, controls=True, workers=0
    )
    assert report.scores["both directions"]["1:2"] > 0.85
    assert report.scores["both directions"]["mAP"] > 3 * report.chance["both directions"]["mAP"]
    assert not report.not_beaten()


def test_what_it_cannot_learn_from() -> None:
    with pytest.raises(BatchError, match="two people"):
        made()(batch_of(label=[0] * 8), at())
    with pytest.raises(ConfigError, match="two modalities"):
        made(DataSpec({**FEATURES.streams, "text": StreamSpec("features", (3,), 1.0)}))
    with pytest.raises(ConfigError, match="compare"):
        made(compare="euclidean")
    with pytest.raises(ConfigError, match="audoi"):
        made().embed(batch_of(), "audoi")
