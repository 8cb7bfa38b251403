"""rouditchenko2020_avlnet: three branches, what is compared with what, and that it learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import avcl
from avcl.data.features import FeatureData
from avcl.errors import BatchError, ConfigError
from avcl.seeds import seeded
from avcl.system import Step
from avcl.systems.rouditchenko2020_avlnet import AVLnet, AVLnetConfig
from avcl.types import Batch, DataSpec, StreamSpec

A = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
V = torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.6, -0.8]])
THREE = DataSpec({name: StreamSpec("features", (w,), 1.0) for name, w in (("audio", 12), ("video", 16), ("text", 8))})
TINY = AVLnetConfig.tiny()
AT = Step(0, 10, 0, 0.0, torch.Generator().manual_seed(0))


def made(spec: DataSpec = THREE, **settings) -> AVLnet:
    with seeded(0, "init"):
        return AVLnet(dataclasses.replace(TINY, **settings), spec).eval()


def triples(n: int, seed: int) -> FeatureData:
    """Sound and text each show a half of what the picture shows, and a little of the other half."""
    mix = np.random.default_rng(7)
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 6))
    share = {"audio": [1, 1, 1, 0.4, 0.4, 0.4], "video": [1] * 6, "text": [0.4, 0.4, 0.4, 1, 1, 1]}
    arrays = {}
    for name, width in (("audio", 12), ("video", 16), ("text", 8)):
        x = (z * np.array(share[name])) @ mix.normal(size=(6, width))
        arrays[name] = (x + 0.3 * rng.normal(size=x.shape)).astype(np.float32)
    return FeatureData.from_arrays({**arrays, "id": [str(i) for i in range(n)]})


def whole(data: FeatureData) -> Batch:
    return avcl.data.collate([data.clip(i) for i in range(len(data))]).to("cpu")


def test_every_two_branches_are_compared_by_the_margin_softmax() -> None:
    there = torch.ones(3, dtype=torch.bool)
    encoded = {"audio": A, "video": V, "text": A, "audio?": there, "video?": there, "text?": there}
    batch = whole(triples(3, 0))
    terms = made().losses(encoded, batch, AT)
    assert list(terms) == ["audio_video", "audio_text", "video_text"]
    assert float(terms["audio_video"]) == pytest.approx(2.712688, abs=1e-5)
    assert float(terms["video_text"]) == pytest.approx(2.712688, abs=1e-5)
    joint = made(joint=True).losses(encoded, batch, AT)
    assert list(joint) == ["text_audio_video"]
    scores = A @ (A + V).T - 0.001 * torch.eye(3)
    expected = -(scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal()).mean()
    assert float(joint["text_audio_video"]) == pytest.approx(float(expected), abs=1e-5)
    encoded["text?"] = torch.tensor([True, False, False])
    assert float(made().losses(encoded, batch, AT)["audio_video"]) == pytest.approx(2.712688, abs=1e-5)
    encoded["text?"] = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(BatchError, match="all of audio, text"):
        made().losses(encoded, batch, AT)


def test_fused_sound_and_text_find_the_picture_together() -> None:
    system, batch = made(text="fused"), whole(triples(5, 0))
    encoded = system.encode(batch)
    terms = system.losses(encoded, batch, AT)
    assert list(terms) == ["audio_text_video"]
    both = system.context(encoded["audio"] + encoded["text"])
    torch.testing.assert_close(system.embed(batch, "audio+text"), both.detach())
    torch.testing.assert_close(system.embed(batch, "audio"), system.context(encoded["audio"]).detach())
    scores = both @ encoded["video"].T - 0.001 * torch.eye(5)
    expected = -(scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal()).mean()
    torch.testing.assert_close(terms["audio_text_video"], expected)
    alone = made(spec=DataSpec({k: THREE.streams[k] for k in ("audio", "video")}), text="fused")
    assert list(alone(batch, AT)[0]) == ["audio_video"]


def test_several_modalities_are_summed() -> None:
    system, batch = made(), whole(triples(5, 0))
    total = system.embed(batch, "audio") + system.embed(batch, "video")
    torch.testing.assert_close(system.embed(batch, "audio+video"), total)
    assert system.similarity_name == "dot"
    unit = made(normalize=True)
    assert unit.similarity_name == "cosine"
    torch.testing.assert_close(unit.embed(batch, "audio+text").norm(dim=1), torch.ones(5))
    found = unit.similarity(unit.embed(batch, "audio"), unit.embed(batch, "text"))
    assert float(found.abs().max()) <= 1 + 1e-5


def test_streams_are_known_by_kind_and_features_by_name() -> None:
    sound, picture = StreamSpec("audio", (1,), 8000.0), StreamSpec("video", (3, 32, 32), 4.0)
    text = StreamSpec("tokens", (), 1.0)
    spec = DataSpec({"video": picture, "speech": sound, "text": text})
    assert made(spec).roles == {"picture": "video", "sound": "speech", "text": "text"}
    both = DataSpec({**spec.streams, "audio": sound})
    with pytest.raises(ConfigError, match="one branch for a sound"):
        made(both)
    assert made(both, modalities=("audio", "video", "text")).roles["sound"] == "audio"
    with pytest.raises(ConfigError, match="a sound and a picture"):
        made(spec, modalities=("video", "text"))
    with pytest.raises(ConfigError, match="joint compares"):
        made(spec, modalities=("speech", "video"), joint=True)
    with pytest.raises(ConfigError, match="joint belongs"):
        made(text="fused", joint=True)
    with pytest.raises(ConfigError, match='"tri" or "fused"'):
        made(text="none")
    with pytest.raises(ConfigError, match='no "audoi"'):
        made().embed(whole(triples(2, 0)), "audio+audoi")
    assert AVLnetConfig().dim == 4096


@pytest.mark.parametrize("text", ["tri", "fused"])
def test_learns_and_two_modalities_find_more_than_one(text: str) -> None:
    settings = {"text": text, "dim": 32, "epochs": 15, "batch_size": 50, "learning_rate": 5e-3}
    model = avcl.train("rouditchenko2020_avlnet", triples(300, 0), settings=settings, seed=0, workers=0)
    batch, system = whole(triples(100, 1)), model.system
    picture = system.embed(batch, "video")

    def right(name: str) -> float:
        scores = system.similarity(system.embed(batch, name), picture)
        return float(((scores > scores.diagonal()[:, None]).sum(1) < 10).float().mean())

    assert right("audio+text") > 0.6  # R@10, chance .1
    assert right("audio+text") > max(right("audio"), right("text"))
