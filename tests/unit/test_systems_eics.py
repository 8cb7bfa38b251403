"""zeng2021_eics: what each of the three terms does alone, the forms of the label distance, and both spaces at once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import avcl
from avcl.data.features import FeatureData
from avcl.errors import BatchError, ConfigError
from avcl.objectives.deep_correlation import cluster_cca
from avcl.seeds import seeded
from avcl.system import Step
from avcl.systems.zeng2021_eics import EICS, EICSConfig
from avcl.types import Batch, DataSpec, StreamSpec

CLASSES = ("a", "b", "c", "d", "e")
QUICK = {"epochs": 12, "batch_size": 60, "learning_rate": 3e-3, "hidden": 32, "dropout": 0.0}


def features(n: int = 300, *, seed: int = 0) -> FeatureData:
    """Class centers of 5 classes and two numbers that a pair shares, bent differently in each modality, in noise."""
    mix, rng, label = np.random.default_rng(7), np.random.default_rng(seed), np.arange(n) % len(CLASSES)
    hidden = np.concatenate([np.eye(5)[label] * 1.5, 0.7 * rng.normal(size=(n, 2))], 1)
    arrays = {}
    for name, width in (("audio", 12), ("video", 16)):
        seen = np.tanh(hidden @ mix.normal(size=(7, width)))
        arrays[name] = (seen + 0.6 * rng.normal(size=(n, width))).astype(np.float32)
    words, ids = [CLASSES[i] for i in label], [f"{seed}-{i}" for i in range(n)]
    return FeatureData.from_arrays({**arrays, "label": words, "id": ids})


def whole(data: FeatureData) -> Batch:
    return avcl.data.collate([data.clip(i) for i in range(len(data))]).to("cpu")


def at() -> Step:
    return Step(0, 10, 0, 0.0, torch.Generator().manual_seed(0))


def made(spec: DataSpec, **settings: object) -> EICS:
    with seeded(0, "init"):
        return EICS(EICSConfig.from_json({**QUICK, **settings}), spec).eval()


def trained(**settings: object) -> avcl.Model:
    return avcl.train("zeng2021_eics", features(), seed=0, settings={**QUICK, **settings}, workers=0)


def class_map(model: avcl.Model, space: str, test: FeatureData) -> float:
    system = model.system
    assert isinstance(system, EICS)
    system.config = dataclasses.replace(system.config, space=space)
    return avcl.evaluate(model, test, relevance="class", workers=0).scores["mean"]["mAP"]


def test_learns_classes_and_both_spaces_are_no_worse_than_either() -> None:
    model, test = trained(), features(200, seed=1)
    alone = [class_map(model, space, test) for space in ("explicit", "implicit")]
    both = class_map(model, "both", test)
    assert min(alone) > 0.5  # chance .2
    assert both > 0.75
    assert both > max(alone) - 0.01, (alone, both)
    joint = model.system.embed(whole(test), "audio+video")
    torch.testing.assert_close(joint.norm(dim=1), torch.ones(200))
    with pytest.raises(ConfigError, match="audoi"):
        model.system.embed(whole(test), "audoi")


def test_the_label_term_alone_leads_to_one_hot_rows() -> None:
    model, batch = trained(correlation=0.0, pair=0.0, epochs=25, batch_size=20), whole(features())
    with torch.no_grad():
        found = model.system.encode(batch)
    target = torch.nn.functional.one_hot(batch.label, 5).float()
    for name in ("audio", "video"):
        assert float((found[f"{name} implicit"] - target).square().mean()) < 0.05  # of zeros .2
        assert float((found[f"{name} implicit"].argmax(1) == batch.label).float().mean()) > 0.9


def test_the_other_terms_alone_bring_pairs_together() -> None:
    batch, system = whole(features()), made(features().spec)
    system.begin_epoch([batch], 0)
    apart = []
    for s in (system, trained(label=0.0, pair=1.0, epochs=20).system):
        with torch.no_grad():
            encoded = s.encode(batch)
        e = [normalize(encoded[f"{name} explicit"], dim=1) for name in ("audio", "video")]
        own, strange = (float((e[0] - other).norm(dim=1).mean()) for other in (e[1], e[1].roll(1, 0)))
        apart.append(own / strange)
    assert apart[0] > 0.95  # untrained: a pair is as far apart as two strangers
    assert apart[1] < 0.5


def test_the_terms_are_those_of_the_sheet() -> None:
    said = torch.tensor([[0.9, 0.2], [0.7, 0.1], [0.3, 0.6]]), torch.tensor([[0.8, 0.1], [0.4, 0.5], [0.2, 0.9]])
    spec = dataclasses.replace(features(10).spec, labels=("a", "b"))
    for norm, value in (("plain", 1.475071), ("squared", 0.370000)):
        assert float(made(spec, label_norm=norm)._label(said, torch.tensor([0, 0, 1]))) == pytest.approx(
            value, abs=1e-6
        )
    x = torch.tensor([[1.0, 2], [2, 1], [3, 5], [4, 3], [5, 6], [6, 8]])
    y = torch.tensor([[2.0, 0], [1, 1], [4, 2], [3, 1], [7, 2], [6, 4]])
    blank, label, index = torch.zeros(6, 2), torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(6)
    encoded = {"audio explicit": x, "video explicit": y, "audio implicit": blank, "video implicit": blank}
    batch = Batch(tuple("abcdef"), {}, index, index, label, ("",) * 6)
    terms = made(spec).losses(encoded | {"both": torch.ones(6, dtype=torch.bool)}, batch, at())
    assert float(terms["correlation"]) == pytest.approx(-0.614785, abs=1e-6)
    assert float(terms["pair"]) == pytest.approx(0.1 * float((x - y).square().sum(1).mean()), abs=1e-6)
    assert float(terms["label"]) == pytest.approx(2.0)


def test_the_explicit_space_is_as_wide_as_there_are_classes_and_in_a_basis_of_both() -> None:
    data = features(60)
    system, batch = made(data.spec), whole(data)
    system.begin_epoch([batch], 0)
    system.finish([batch])
    assert system.components == 5
    assert made(data.spec, components=3).components == 3
    assert system.embed(batch, "audio").shape == (60, 10)
    e = [system.encode(batch)[f"{name} explicit"] for name in ("audio", "video")]
    turned = [system.cca(x, name).T.cov() for x, name in zip(e, ("audio", "video"), strict=True)]
    for covariance in turned:  # whitened, apart from the ridge
        torch.testing.assert_close(covariance, torch.eye(5, dtype=torch.float64), atol=0.05, rtol=0)
    expected = cluster_cca(*e, batch.label, dim=5, ridge=1e-4, pair_weight=0.2)
    torch.testing.assert_close(system(batch, at())[0]["correlation"], expected)


def test_a_clip_without_one_modality_takes_no_part() -> None:
    data = features(40)
    batch, rest = whole(data), whole(data.subset([i for i in range(40) if not 5 <= i < 9]))
    mask = batch.video.mask.clone()
    mask[5:9] = False
    missing = dataclasses.replace(batch, streams={**batch.streams, "video": batch.video._replace(mask=mask)})
    found = []
    for given in (missing, rest):
        system = made(data.spec)
        found.append(system(given, at())[0])
        system.finish([given])
        found.append(system.embed(rest, "video"))
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[3])


def test_a_batch_that_is_not_larger_than_the_space_is_refused() -> None:
    with pytest.raises(BatchError, match="correlate perfectly"):
        avcl.train("zeng2021_eics", features(20), settings={**QUICK, "batch_size": 5}, workers=0)
    data = features(5)
    assert float(made(data.spec)(whole(data), at())[0]["correlation"].detach()) == 0  # in evaluation nothing is learned


def test_says_what_the_data_lack() -> None:
    data = features(20)
    with pytest.raises(ConfigError, match="the data have 0"):
        made(dataclasses.replace(data.spec, labels=()))
    text = {"text": StreamSpec("features", (5,), 1.0)}
    with pytest.raises(ConfigError, match="two modalities, not audio, video, text"):
        made(DataSpec({**data.spec.streams, **text}, CLASSES))
    for key in ("space", "label_norm"):
        with pytest.raises(ConfigError, match=f'{key} = "x"'):
            made(data.spec, **{key: "x"})
    batch = whole(data)
    with pytest.raises(BatchError, match="label for every clip"):
        made(data.spec)(dataclasses.replace(batch, label=torch.full_like(batch.label, -1)), at())
