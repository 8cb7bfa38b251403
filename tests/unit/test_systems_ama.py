"""wang2018_associative_multichannel_autoencoder: channels, gates, stages, associations, missing channels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import avcl
from avcl.data.features import FeatureData
from avcl.errors import BatchError, ConfigError
from avcl.nn.shared_latent import Gate
from avcl.seeds import seeded
from avcl.system import Step
from avcl.systems.wang2018_associative_multichannel_autoencoder import AMA, AMAConfig, mates, squeezed
from avcl.types import Batch, DataSpec, StreamSpec

CLASSES = ("a", "b", "c", "d", "e")
QUICK = {
    "epochs": 12,
    "batch_size": 30,
    "tuning": 1.0,
    "channel": (24, 16),
    "channel_text": (24, 16),
    "dim": 24,
    "hidden": 32,
}
NAME = "wang2018_associative_multichannel_autoencoder"
WIDTHS = {"audio": 12, "video": 16, "text": 8}


def features(
    n: int = 240, *, seed: int = 0, names: tuple[str, ...] = ("audio", "video"), own: float = 1.0
) -> FeatureData:
    """Class centers of 5 classes and four numbers that the channels of a clip share, seen by every channel in noise."""
    mix, rng, label = np.random.default_rng(7), np.random.default_rng(seed), np.arange(n) % len(CLASSES)
    hidden = np.concatenate([1.5 * np.eye(5)[label], own * rng.normal(size=(n, 4))], 1)
    arrays = {}
    for name, width in WIDTHS.items():
        seen, noise = hidden @ mix.normal(size=(9, width)), rng.normal(size=(n, width))
        if name in names:
            arrays[name] = (seen + 0.3 * noise).astype(np.float32)
    words, ids = [CLASSES[i] for i in label], [f"{seed}-{i}" for i in range(n)]
    return FeatureData.from_arrays({**arrays, "label": words, "id": ids})


def whole(data: FeatureData) -> Batch:
    return avcl.data.collate([data.clip(i) for i in range(len(data))]).to("cpu")


def at(turn: str = "", seed: int = 0) -> Step:
    return Step(0, 10, 0, 0.0, torch.Generator().manual_seed(seed), turn)


def made(data: FeatureData, **settings: object) -> AMA:
    """Its scales and predictor are those of ``data``."""
    with seeded(0, "init"):
        system = AMA(AMAConfig.from_json({**QUICK, **settings}), data.spec).eval()
    system.begin_epoch([whole(data)], 0)
    return system


def trained(**settings: object) -> avcl.Model:
    return avcl.train(NAME, features(), seed=0, settings={**QUICK, **settings}, workers=0)


def scores(model: avcl.Model) -> tuple[float, float]:
    """mAP by class (chance .2), and MRR of the own partner among 100 (chance .05)."""
    test = features(100, seed=1)
    by_class, by_pair = (avcl.evaluate(model, test, relevance=r, workers=0).scores["mean"] for r in ("class", "pair"))
    return by_class["mAP"], by_pair["MRR"]


@pytest.mark.parametrize(
    ("settings", "class_map", "mrr"),
    [
        ({"association": "label"}, 0.9, 0.6),
        ({"association": "clip", "missing": "zero", "gate": "scalar"}, 0.6, 0.4),
        ({"association": "none", "gate": "none"}, 0.6, 0.8),
    ],
)
def test_one_channel_finds_the_other(settings: dict[str, str], class_map: float, mrr: float) -> None:
    by_class, by_pair = scores(trained(**settings))
    assert by_class > class_map
    assert by_pair > mrr


def test_association_by_class_brings_classes_together() -> None:
    by_class = {kind: scores(trained(association=kind))[0] for kind in ("none", "label")}
    assert by_class["label"] > by_class["none"] + 0.1, by_class


def test_sizes_are_those_of_the_released_code() -> None:
    streams = {n: StreamSpec("features", (w,), 1.0) for n, w in (("text", 300), ("video", 128), ("audio", 128))}
    system = AMA(AMAConfig(association="label", gate="none"), DataSpec(streams, tuple(map(str, range(556)))))
    found = [tuple(m.weight.shape)[::-1] for m in system.modules() if isinstance(m, torch.nn.Linear)]
    channels = [(300, 250), (250, 150), (128, 90), (90, 60), (128, 90), (90, 60)]
    assert found == [
        *channels,
        *((150, 250), (250, 300), (60, 90), (90, 128), (60, 90), (90, 128)),
        *((300, 350), (350, 556)),
        *((270, 300), (300, 270)),
    ]


def test_a_channel_is_predicted_by_ridge_regression() -> None:
    data = features()
    system, batch = made(data, ridge=1e-6), whole(data)
    encoded = system.encode(batch)
    x = {n: (v - v.mean(0)) / v.std(0, correction=0) for n in ("audio", "video") for v in [batch.streams[n].data[:, 0]]}
    for name, value in x.items():
        torch.testing.assert_close(encoded[f"{name}!"], squeezed(value), atol=1e-4, rtol=1e-3)
    best = torch.linalg.lstsq(x["audio"].double(), x["video"].double()).solution
    torch.testing.assert_close(system.audio_to_video.double(), best, atol=2e-3, rtol=1e-2)
    given = {"audio": squeezed(x["audio"]), "video": squeezed(x["audio"] @ best.float())}
    expected = system.ae.encode(given)["shared"]
    torch.testing.assert_close(encoded["audio"], expected, atol=2e-3, rtol=1e-2)
    assert not hasattr(made(data, missing="zero"), "audio_to_video")


def test_codes_of_what_is_there() -> None:
    data = features(20)
    batch = whole(data)
    for missing in ("predict", "zero"):
        system = made(data, missing=missing)
        encoded = system.encode(batch)
        torch.testing.assert_close(system.features(batch.without("video"), "audio"), encoded["audio"])
        torch.testing.assert_close(system.features(batch, "audio+video"), encoded["all"])
        mask = batch.video.mask.clone()
        mask[:7] = False
        gap = batch.video._replace(mask=mask, data=batch.video.data * mask[:, :, None])
        half = system.features(dataclasses.replace(batch, streams={**batch.streams, "video": gap}), "audio+video")
        torch.testing.assert_close(half[:7], encoded["audio"][:7], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(half[7:], encoded["all"][7:], atol=1e-5, rtol=1e-4)


def test_three_channels_and_a_mean_of_two_predictions() -> None:
    data = features(names=("audio", "video", "text"))
    system, batch = made(data), whole(data)
    x, there = system._channels(batch, ("audio", "video"))
    says = [x[n] @ system.get_buffer(f"{n}_to_text") for n in ("audio", "video")]
    torch.testing.assert_close(system._filled("text", x, there), (says[0] + says[1]) / 2)
    there["video"] = torch.zeros_like(there["video"])
    torch.testing.assert_close(system._filled("text", x | {"video": x["video"] * 0}, there), says[0])
    terms = system(batch, at())[0]
    assert all(bool(torch.isfinite(t)) for t in terms.values())
    assert system.embed(batch, "text").shape == (240, 24)


def test_stages_move_what_they_should() -> None:
    phases = {phase.name: phase for phase in made(features(20)).phases()}
    assert [(p.start, p.end) for p in phases.values()] == [(0.0, 0.15), (0.15, 0.2), (0.2, 1.0)]
    assert phases["tune"].optimizer == {"learning_rate": 5e-3}
    ours = {id(p) for p in phases["associate"].parameters}
    assert ours.isdisjoint(id(p) for p in phases["reconstruct"].parameters)
    assert len(phases["tune"].parameters) == len(ours) + len(phases["reconstruct"].parameters)
    slow = AMA(AMAConfig(), features(20).spec).phases()[-1]
    assert slow.optimizer == {"learning_rate": pytest.approx(5e-4)}
    alone = made(features(20), association="none").phases()
    assert [p.name for p in alone] == ["reconstruct"]
    system, batch = made(features(20), reconstruct=0.5, associate=3.0), whole(features(20))
    every, first, second, last = (system(batch, at(turn))[0] for turn in ("", "reconstruct", "associate", "tune"))
    assert set(first) == {"reconstruct"}
    assert set(second) == {"associate"}
    torch.testing.assert_close(every, last)
    torch.testing.assert_close(last["reconstruct"], 0.5 * first["reconstruct"])
    with pytest.raises(ConfigError, match="stages"):
        made(features(20), stages=(0.5, 0.2))


def test_the_losses_are_means_over_the_codes() -> None:
    data = features(20)
    system, batch = made(data, association="label"), whole(data)
    with torch.no_grad():
        e, found = system.encode(batch), system(batch, at())[0]
        y = torch.nn.functional.one_hot(batch.label, 5).float()
        own, named = 0.0, 0.0
        for code in ("all", "audio", "video"):
            for m in ("audio", "video"):
                own += float((system.ae.decode(e[code], m) - e[f"{m}!"]).square().mean()) / 3
            named += float((system.ae.decode(e[code], "association") - y).square().mean()) / 3
    assert float(found["reconstruct"]) == pytest.approx(own, rel=1e-5)
    assert float(found["associate"]) == pytest.approx(named, rel=1e-5)


def test_mates_are_others_of_the_class() -> None:
    label = torch.tensor([0, 0, 0, 1, 2, 2, -1, -1])
    able = torch.tensor([True, True, False, True, True, False, True, True])
    seen = {i: set() for i in range(8)}
    for seed in range(30):
        mate, known = mates(label, able, torch.Generator().manual_seed(seed))
        assert known.tolist() == [True] * 6 + [False] * 2
        for i, j in enumerate(mate.tolist()):
            seen[i].add(j)
    assert [seen[i] for i in range(6)] == [{1}, {0}, {0, 1}, {3}, {4}, {4}]  # 3 and 4 have no other


def test_gates_weigh_a_channel() -> None:
    kinds = {"none": torch.nn.Identity, "scalar": Gate, "vector": Gate}
    for kind, cls in kinds.items():
        assert isinstance(made(features(20), gate=kind).ae.encoders["audio"][0], cls)


def test_without_labels_it_is_an_auto_encoder() -> None:
    data = features(60)
    plain = FeatureData.from_arrays(
        {"audio": whole(data).audio.data[:, 0].numpy(), "video": whole(data).video.data[:, 0].numpy()}
        | {"id": [str(i) for i in range(60)]}
    )
    model = avcl.train(NAME, plain, seed=0, settings={**QUICK, "epochs": 2, "association": "none"}, workers=0)
    assert avcl.evaluate(model, plain, relevance="pair", workers=0).scores["mean"]["MRR"] > 0.1
    with pytest.raises(ConfigError, match="the data have 0") as caught:
        made(plain)
    assert "association=none" in caught.value.hint


def test_says_what_is_wrong() -> None:
    data = features(20)
    for key in ("gate", "association", "missing"):
        with pytest.raises(ConfigError, match=f'{key} = "x"'):
            made(data, **{key: "x"})
    with pytest.raises(ConfigError, match="audoi"):
        made(data).embed(whole(data), "audoi")
    batch = whole(data)
    with pytest.raises(BatchError, match="no clip of the batch has one"):
        made(data)(dataclasses.replace(batch, label=torch.full_like(batch.label, -1)), at())
    mask = torch.zeros_like(batch.video.mask)
    blank = dataclasses.replace(batch, streams={**batch.streams, "video": batch.video._replace(mask=mask)})
    with pytest.raises(BatchError, match="audio and video"):
        made(data).begin_epoch([blank], 0)
