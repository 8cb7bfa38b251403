"""zhen2019_dscmr: shared heads, the loss of the sheet, its variants, and that it learns classes."""

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
from avcl.systems.zhen2019_dscmr import DSCMR, DSCMRConfig
from avcl.types import Batch, DataSpec, StreamSpec

CLASSES = ("a", "b", "c", "d", "e")
QUICK = {"epochs": 12, "batch_size": 30, "learning_rate": 3e-3, "hidden": 48, "dim": 24}
# The shared toy batch: rows of unit length, and what the classifier says of them.
A = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]])
V = torch.tensor([[0.8, 0.6], [0, 1], [0.6, -0.8]])
Y = torch.tensor([0, 0, 1])
SAID_A = torch.tensor([[0.9, 0.2], [0.7, 0.1], [0.3, 0.6]])
SAID_V = torch.tensor([[0.8, 0.1], [0.4, 0.5], [0.2, 0.9]])


def features(n: int = 300, *, seed: int = 0) -> FeatureData:
    """Class centers of 5 classes, bent differently in each modality, in noise; nothing is shared beyond the class."""
    mix, rng, label = np.random.default_rng(7), np.random.default_rng(seed), np.arange(n) % len(CLASSES)
    arrays = {}
    for name, width in (("audio", 12), ("video", 16)):
        center = np.tanh(2 * mix.normal(size=(len(CLASSES), width)))
        arrays[name] = (center[label] + 0.5 * rng.normal(size=(n, width))).astype(np.float32)
    return FeatureData.from_arrays(
        {**arrays, "label": [CLASSES[i] for i in label], "id": [f"{seed}-{i}" for i in range(n)]}
    )


def whole(data: FeatureData) -> Batch:
    return avcl.data.collate([data.clip(i) for i in range(len(data))]).to("cpu")


def at() -> Step:
    return Step(0, 10, 0, 0.0, torch.Generator().manual_seed(0))


def made(spec: DataSpec, **settings: object) -> DSCMR:
    with seeded(0, "init"):
        return DSCMR(DSCMRConfig.from_json({**QUICK, **settings}), spec).eval()


def test_the_heads_are_shared_and_of_the_papers_size() -> None:
    streams = {"video": StreamSpec("features", (4096,), 1.0), "text": StreamSpec("features", (300,), 1.0)}
    system = DSCMR(DSCMRConfig(), DataSpec(streams, tuple(map(str, range(20)))))
    linear = [m for m in system.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 4
    assert sum(p.numel() for p in system.parameters()) == 11_125_780


def toy(system: DSCMR, rows: list[int]) -> float:
    encoded = {"audio": A, "video": V, "audio label": SAID_A, "video label": SAID_V}
    encoded |= {"audio?": torch.ones(3, dtype=torch.bool), "video?": torch.ones(3, dtype=torch.bool)}
    index = torch.arange(3)
    batch = Batch(("0", "1", "2"), {}, index, index, Y[rows], ("", "", ""))
    terms = system.losses({name: x[rows] for name, x in encoded.items()}, batch, at())
    assert set(terms) == {"label", "likelihood", "invariance"}
    return float(torch.stack(list(terms.values())).sum())


def test_the_loss_is_that_of_the_sheet_whatever_the_order_of_the_rows() -> None:
    spec = dataclasses.replace(features(10).spec, labels=("a", "b"))
    for rows in ([0, 1, 2], [2, 0, 1]):
        assert toy(made(spec), rows) == pytest.approx(0.863335, abs=1e-6)
        paper = 0.491690 + 1e-3 * 1.900976 + 0.1 * 0.699206
        assert toy(made(spec, form="frobenius"), rows) == pytest.approx(paper, abs=1e-6)


def test_learns_classes_from_features() -> None:
    model, test = avcl.train("zhen2019_dscmr", features(), seed=0, settings=QUICK, workers=0), features(100, seed=1)
    score = avcl.evaluate(model, test, relevance="class", workers=0).scores["mean"]["mAP"]
    assert score > 0.8  # chance .2
    with pytest.raises(ConfigError, match="audoi"):
        model.system.embed(whole(test), "audoi")
    both = model.system.embed(whole(test), "audio+video")
    torch.testing.assert_close(both.norm(dim=1), torch.ones(100))


def test_features_of_any_scale_are_the_same_features() -> None:
    data = features(60)
    large = FeatureData.from_arrays(
        {"audio": 1e3 * whole(data).audio.data[:, 0].numpy() + 5, "video": whole(data).video.data[:, 0].numpy()}
        | {"label": [CLASSES[i % 5] for i in range(60)], "id": [str(i) for i in range(60)]}
    )
    found = []
    for given in (data, large):
        system, batch = made(data.spec), whole(given)
        system.begin_epoch([batch], 0)
        found.append(system.embed(batch, "audio"))
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)
    system, batch = made(data.spec, standardize=False), whole(large)
    before = system.embed(batch, "audio")
    system.begin_epoch([batch], 0)
    assert torch.equal(system.embed(batch, "audio"), before)


def test_a_clip_without_one_modality_takes_no_part() -> None:
    data, system = features(20), made(features(20).spec)
    batch, rest = whole(data), whole(data.subset([i for i in range(20) if not 5 <= i < 9]))
    mask = batch.video.mask.clone()
    mask[5:9] = False
    label = batch.label.clone()
    label[6] = -1  # nothing is asked of it
    missing = dataclasses.replace(
        batch, streams={**batch.streams, "video": batch.video._replace(mask=mask)}, label=label
    )
    torch.testing.assert_close(system(missing, at())[0], system(rest, at())[0])


def test_says_what_the_data_lack() -> None:
    data = features(20)
    with pytest.raises(ConfigError, match="the data have 0"):
        made(dataclasses.replace(data.spec, labels=()))
    text = {"text": StreamSpec("features", (5,), 1.0)}
    with pytest.raises(ConfigError, match="two modalities, not audio, video, text"):
        made(DataSpec({**data.spec.streams, **text}, CLASSES))
    with pytest.raises(ConfigError, match="frobenius"):
        made(data.spec, form="l2")
    batch = whole(data)
    label = batch.label.clone()
    label[3] = -1
    with pytest.raises(BatchError, match="label for every clip"):
        made(data.spec)(dataclasses.replace(batch, label=label), at())


def test_on_wikipedia_it_is_above_cca(shared_data) -> None:
    """The official split (Rasiwasia et al. 2010), the image as video; settings are chosen in a recipe, not here."""
    with np.load(shared_data("wikipedia_features") / "wikipedia_sift128_lda10.npz") as z:
        train, test = (
            FeatureData.from_arrays(
                {"video": z[f"I_{part}"], "text": z[f"T_{part}"], "label": [f"{y:02d}" for y in z[f"L_{part}"].ravel()]}
                | {"id": [f"{part}{i}" for i in range(len(z[f"I_{part}"]))]}
            )
            for part in ("tr", "te")
        )
    few = {"epochs": 12, "learning_rate": 1e-3, "hidden": 256, "dim": 256}
    scores = {}
    for name, settings in (("zhen2019_dscmr", few), ("cca", {"components": 5})):
        model = avcl.train(name, train, seed=0, settings=settings, workers=0)
        scores[name] = avcl.evaluate(model, test, relevance="class", workers=0).scores["mean"]["mAP"]
    assert scores["zhen2019_dscmr"] > scores["cca"], scores
