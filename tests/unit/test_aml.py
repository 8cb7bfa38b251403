"""AML: who moves at whose turn, how strangers are drawn, and that people never met are matched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import avcl
from avcl.data import FeatureData, collate
from avcl.errors import BatchError, ConfigError
from avcl.objectives.lifted import lifted_pairs
from avcl.seeds import seeded
from avcl.system import Step
from avcl.systems.zheng2021a_aml import AML, AMLConfig, strangers
from avcl.testing.systems import FEATURES, clips_of
from avcl.types import Batch, DataSpec, Stream, StreamSpec


def made(spec: DataSpec = FEATURES, **settings: object) -> AML:
    with seeded(0, "init"):
        return AML(replace(AMLConfig.tiny(), **settings), spec)


def batch_of(n: int = 8) -> Batch:
    return collate(clips_of(FEATURES, n=n)).to("cpu")


def at(turn: str = "") -> Step:
    return Step(0, 10, 0, 0.0, torch.Generator().manual_seed(0), turn)


def test_strangers_are_other_people() -> None:
    label = torch.tensor([0, 0, 1, 2, 2, 2])
    drawn = strangers(label, 50, torch.Generator().manual_seed(0))
    assert drawn.shape == (6, 50)
    assert bool((label[drawn] != label[:, None]).all())
    assert all(len(set(row)) == int((label != own).sum()) for row, own in zip(drawn.tolist(), label, strict=True))
    for lonely in (torch.zeros(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)):
        with pytest.raises(BatchError, match="two people"):
            strangers(lonely, 3, torch.Generator())


def test_each_player_moves_its_own_parameters() -> None:
    system = made()
    networks, discriminator = system.phases()
    assert (networks.every, discriminator.every) == (1, 2)
    assert {id(p) for p in (*networks.parameters, *discriminator.parameters)} == {id(p) for p in system.parameters()}
    for phase, other in ((networks, discriminator), (discriminator, networks)):
        system.zero_grad()
        terms, _ = system.train()(batch_of(), at(phase.name))
        torch.stack([terms[name] for name in phase.losses]).sum().backward()
        assert any(p.grad is not None and bool(p.grad.any()) for p in phase.parameters)
        assert not any(p.grad is not None and bool(p.grad.any()) for p in other.parameters)
    assert "metric" not in system(batch_of(), at("discriminator"))[0]


def test_the_terms_are_what_the_equations_say() -> None:
    system, batch = made(metric=3.0, adversarial=2.0).eval(), batch_of()
    encoded = system.encode(batch)
    terms = system.losses(encoded, batch, at())
    generator = torch.Generator().manual_seed(0)
    metric = []
    for q, c in (("audio", "video"), ("video", "audio")):
        wrong = encoded[c][strangers(batch.label, 2, generator)]
        metric.append(lifted_pairs(encoded[q], encoded[c], wrong, margin=1.0))
    torch.testing.assert_close(terms["metric"], 3 * torch.stack(metric).mean())
    said = [system.adversary.logits(encoded[name]).log_softmax(1) for name in ("audio", "video")]
    swapped = -torch.stack([p[:, 1 - i].mean() for i, p in enumerate(said)]).mean()
    torch.testing.assert_close(terms["mislead"], 2 * swapped)
    blind = made(adversarial=0.0, metric=0.0)(batch, at())[0]
    assert float(blind["mislead"].detach()) == float(blind["metric"].detach()) == 0.0


def test_codes_and_their_distance() -> None:
    system, batch = made().eval(), batch_of()
    heard, seen = (system.embed(batch.without(other), name) for name, other in (("audio", "video"), ("video", "audio")))
    assert float(heard.abs().max()) < 1
    torch.testing.assert_close(system.similarity(heard, seen), -torch.cdist(heard, seen).square(), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="vidio"):
        system.embed(batch, "vidio")


def test_what_it_cannot_learn_from() -> None:
    with pytest.raises(BatchError, match="a clip of the batch has none"):
        made()(replace(batch_of(), label=torch.full((8,), -1)), at())
    with pytest.raises(BatchError, match="two people"):
        made()(replace(batch_of(), label=torch.zeros(8, dtype=torch.int64)), at())
    with pytest.raises(ConfigError, match="two modalities"):
        made(DataSpec({**FEATURES.streams, "text": StreamSpec("features", (3,), 1.0)}))
    blank = batch_of()
    none = torch.zeros_like(blank.video.mask)
    none[0] = True
    single = replace(blank, streams={**blank.streams, "video": Stream(blank.video.data, none, 1.0)})
    with pytest.raises(BatchError, match="two or more"):
        made().train()(single, at())


def people(n: int, first: int) -> FeatureData:
    """Two clips of each of ``n`` people: three traits are seen and heard, the rest is noise of the clip."""
    rng = np.random.default_rng(first)
    person = np.repeat(np.arange(n), 2)
    trait = rng.normal(size=(n, 3))[person]
    mixed = np.random.default_rng(0)
    audio = trait @ mixed.normal(size=(3, 8)) + 0.3 * rng.normal(size=(2 * n, 8))
    video = trait @ mixed.normal(size=(3, 10)) + 0.3 * rng.normal(size=(2 * n, 10))
    names = [f"person {first + p}" for p in person]
    return FeatureData.from_arrays({"audio": audio, "video": video, "label": names, "group": names})


def test_people_never_met_are_matched_and_the_modality_is_hidden() -> None:
    settings = {"epochs": 12, "batch_size": 50, "dim": 16, "width": 32, "dropout": 0.0, "candidates": 6}
    model = avcl.train("zheng2021a_aml", people(200, 0), settings=settings, workers=0)
    losses = [entry["losses"] for entry in model.meta["history"]]
    assert losses[-1]["task"] < 0.6 * losses[0]["task"]
    assert losses[-1]["discriminate"] > 0.6  # log 2 = .693 is a guess
    test = people(60, 1000)
    report = avcl.evaluate(model, test, task="matching", protocol={"bootstrap": 200}, controls=True, workers=0)
    assert report.scores["both directions"]["1:2"] > 0.85
    assert not report.not_beaten()
