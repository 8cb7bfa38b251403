"""zeng2018_s_dcca and zeng2020_tnn_c_cca: what their papers say, and the traps of a loss that is a correlation."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

import avcl
from avcl.data.features import FeatureData
from avcl.errors import BatchError, ConfigError
from avcl.objectives.deep_correlation import deep_cca
from avcl.seeds import seeded
from avcl.system import Embeds, Represents, Step
from avcl.systems.zeng2018_s_dcca import SDCCA, SDCCAConfig, TopChunks
from avcl.systems.zeng2020_tnn_c_cca import TNNCCCA, TNNCCCAConfig
from avcl.types import Batch, DataSpec, Stream, StreamSpec

CLASSES = ("a", "b", "c", "d", "e")
SMALL = {"hidden": (24, 16), "components": 4, "learning_rate": 5e-3}
QUICK = {
    "zeng2018_s_dcca": {**SMALL, "hidden_video": (24, 16), "epochs": 15, "batch_size": 60, "activation": "gelu"},
    "zeng2020_tnn_c_cca": {**SMALL, "epochs": 20, "batch_size": 30},
}


def features(n: int = 300, *, seed: int = 0, steps: int = 0) -> FeatureData:
    """Class centers of 5 classes, bent differently in each modality, in noise; nothing is shared beyond the class."""
    mix = np.random.default_rng(7)
    rng = np.random.default_rng(seed)
    label = np.arange(n) % len(CLASSES)
    arrays = {}
    for name, width in (("audio", 12), ("video", 16)):
        center = np.tanh(2 * mix.normal(size=(len(CLASSES), width)))
        x = np.repeat(center[label][:, None], steps or 1, 1)
        arrays[name] = (x + 0.5 * rng.normal(size=x.shape)).astype(np.float32)
    words = [CLASSES[i] for i in label]
    return FeatureData.from_arrays({**arrays, "label": words, "id": [f"{seed}-{i}" for i in range(n)]})


def class_map(model: avcl.Model, test: FeatureData) -> float:
    return avcl.evaluate(model, test, relevance="class", workers=0).scores["mean"]["mAP"]


def whole(data: FeatureData) -> Batch:
    return avcl.data.collate([data.clip(i) for i in range(len(data))]).to("cpu")


def at() -> Step:
    return Step(0, 10, 0, 0.0, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained() -> dict[str, avcl.Model]:
    return {name: avcl.train(name, features(), seed=0, settings=s, workers=0) for name, s in QUICK.items()}


@pytest.mark.parametrize("name", QUICK)
def test_learns_classes_from_features(trained: dict[str, avcl.Model], name: str) -> None:
    system, test = trained[name].system, features(100, seed=1)
    assert isinstance(system, Embeds)
    assert isinstance(system, Represents)
    assert class_map(trained[name], test) > {"zeng2018_s_dcca": 0.75, "zeng2020_tnn_c_cca": 0.6}[name]  # chance .2
    both = system.embed(whole(test), "audio+video")
    torch.testing.assert_close(both.norm(dim=1), torch.ones(100))
    with pytest.raises(ConfigError, match="audoi"):
        system.embed(whole(test), "audoi")


# ---------------------------------------------------------------------- trap: the batch below the dimension
@pytest.mark.parametrize("size", [4, 10])
def test_a_batch_that_is_not_larger_than_the_dimension_is_refused(size: int) -> None:
    """Ten clips in ten dimensions correlate perfectly whatever they hold: the loss would be -10 and teach nothing."""
    with pytest.raises(BatchError, match="correlate perfectly") as caught:
        avcl.train("zeng2018_s_dcca", features(50), settings={"batch_size": size, "components": 10}, workers=0)
    assert caught.value.code == "E-BATCH"
    assert "Raise the batch above 10" in caught.value.hint


# ---------------------------------------------------------------------- trap: correlation in two bases is no cosine
def test_outputs_correlate_in_bases_of_their_own_and_their_cosine_says_nothing(trained: dict[str, avcl.Model]) -> None:
    model, test = trained["zeng2018_s_dcca"], whole(features(100, seed=1))
    system = model.system
    assert isinstance(system, SDCCA)

    def found(mix: torch.Tensor | None = None) -> tuple[float, float, float]:
        """Loss, and class mAP by the cosine of the outputs as they are and after the linear cluster-CCA."""
        h = {name: system.features(test, name) for name in ("audio", "video")}
        if mix is not None:
            h["video"] = h["video"] @ mix
        loss = system.losses({**h, "both": torch.ones(100, dtype=torch.bool)}, test, at())["correlation"]
        cca = system.pair.cca if mix is None else SDCCA(system.config, system.spec).pair.cca
        if mix is not None:
            cca.fit([(h, test.label)])
        return float(loss), by_class(h, test.label), by_class({n: cca(x, n) for n, x in h.items()}, test.label)

    loss, own, common = found()
    # Any invertible matrix behind one of the networks leaves the loss as it is, and the cosine anywhere: what one basis
    # gives is luck (.17 to .60 over seeds), what bases give on average is little.
    generator = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q for _ in range(8)]
    assert np.mean([found(mix)[1] for mix in bases]) < 0.45 < 0.75 < common
    turned = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0))).Q
    for mix in (turned, -torch.eye(4)):
        same_loss, other_own, same_common = found(mix)
        assert same_loss == pytest.approx(loss, abs=1e-3)
        assert abs(other_own - own) > 0.02
        assert same_common == pytest.approx(common, abs=0.05)


def by_class(h: dict[str, torch.Tensor], label: torch.Tensor) -> float:
    from avcl.metrics.ranking import rank

    unit = {name: torch.nn.functional.normalize(x.float(), dim=1).numpy() for name, x in h.items()}
    key = label.numpy()
    ranked = [
        rank(unit[q], unit[g], key, key, similarity="cosine", map_at=(), ndcg_at=())
        for q, g in itertools.permutations(unit, 2)
    ]
    return float(np.mean([r.summary((1,))["mAP"] for r in ranked]))


def test_with_the_whole_weight_on_the_pair_it_is_deep_cca() -> None:
    data = features(60)
    with seeded(0, "init"):
        system = SDCCA(SDCCAConfig.from_json({**QUICK["zeng2018_s_dcca"], "pair_weight": 1.0}), data.spec).eval()
    batch = whole(data)
    encoded = system.encode(batch)
    expected = deep_cca(encoded["audio"], encoded["video"], dim=4, ridge=1e-4)
    torch.testing.assert_close(system.losses(encoded, batch, at())["correlation"], expected)


def test_scores_taken_while_it_learns_mean_something() -> None:
    """The common space follows the networks, so the epoch that validation picks is not picked by a random space."""
    for name, more in (("zeng2018_s_dcca", {}), ("zeng2020_tnn_c_cca", {"order": "cca-last"})):
        settings = {**QUICK[name], **more, "epochs": 6}
        model = avcl.train(
            name, features(), val=features(100, seed=2), seed=0, settings=settings, workers=0, select="class"
        )
        scores = [entry["validation"] for entry in model.meta["history"]]
        assert max(scores) > 0.6, (name, scores)
        assert class_map(model, features(100, seed=1)) > 0.6


# ------------------------------------------------------------------------------------------------------------- triplets
def test_the_triplet_loss_is_that_over_all_valid_triplets() -> None:
    data = features(20)
    system = TNNCCCA(TNNCCCAConfig.from_json(QUICK["zeng2020_tnn_c_cca"]), data.spec).eval()
    batch = whole(data)
    system.begin_epoch([batch], 0)
    encoded = {name: value.detach() for name, value in system.encode(batch).items()}
    assert float(encoded["audio"].min()) > 0
    assert float(encoded["audio"].max()) < 1
    d = (encoded["audio"][:, None] - encoded["video"][None]).square().sum(2)
    terms = [
        max(0.0, float(d[a, p] - d[a, n] + system.config.margin))
        for a, p, n in itertools.product(range(20), repeat=3)
        if a != p and batch.label[a] == batch.label[p] != batch.label[n]
    ]
    assert float(system.losses(encoded, batch, at())["triplet"]) == pytest.approx(np.mean(terms), rel=1e-5)
    both = dataclasses.replace(system.config, symmetric=True)
    system.config = both
    assert float(system.losses(encoded, batch, at())["triplet"]) > np.mean(terms)


def test_cluster_cca_comes_first_and_is_fitted_once() -> None:
    data = features(100)
    system = TNNCCCA(TNNCCCAConfig.from_json(QUICK["zeng2020_tnn_c_cca"]), data.spec).eval()
    assert len(system.branches) == 1  # one network reads the canonical components of both modalities
    system.begin_epoch([whole(data)], 0)
    before = {name: value.clone() for name, value in system.named_buffers()}
    assert float(system.cca.correlation[0]) > 0.3
    for later in (system.begin_epoch, lambda batches, epoch: system.finish(batches)):
        later([whole(features(100, seed=3))], 1)
        assert all(torch.equal(value, before[name]) for name, value in system.named_buffers())
    two = TNNCCCA(dataclasses.replace(system.config, shared=False), data.spec)
    last = TNNCCCA(dataclasses.replace(system.config, order="cca-last"), data.spec)
    assert len(two.branches) == len(last.branches) == 2
    with pytest.raises(ConfigError, match="cca-last"):
        TNNCCCA(dataclasses.replace(system.config, order="cca"), data.spec)


# --------------------------------------------------------------------------------------------------------------- clips
@pytest.mark.parametrize(("cls", "config"), [(SDCCA, SDCCAConfig), (TNNCCCA, TNNCCCAConfig)])
def test_says_what_the_data_lack(cls, config) -> None:
    data = features(20)
    name = cls.__module__.rpartition(".")[2]
    with pytest.raises(ConfigError, match="the data have 0"):
        cls(config(), dataclasses.replace(data.spec, labels=()))
    text = {"text": StreamSpec("features", (5,), 1.0)}
    with pytest.raises(ConfigError, match="two modalities, not 3"):
        cls(config(), DataSpec({**data.spec.streams, **text}, CLASSES))
    system = cls(config.from_json(QUICK[name]), data.spec)
    batch = whole(data)
    label = batch.label.clone()
    label[3] = -1
    with pytest.raises(BatchError, match="label for every clip"):
        system(dataclasses.replace(batch, label=label), at())


@pytest.mark.parametrize(("cls", "config"), [(SDCCA, SDCCAConfig), (TNNCCCA, TNNCCCAConfig)])
def test_a_clip_without_one_modality_takes_no_part(cls, config) -> None:
    name = cls.__module__.rpartition(".")[2]
    data = features(40)
    batch = whole(data)
    without = batch.video.mask.clone()
    without[5:9] = False
    missing = dataclasses.replace(batch, streams={**batch.streams, "video": batch.video._replace(mask=without)})
    rest = [i for i in range(40) if not 5 <= i < 9]
    whole_rest = avcl.data.collate([data.clip(i) for i in rest]).to("cpu")
    found = []
    for given in (missing, whole_rest):
        with seeded(0, "init"):
            system = cls(config.from_json({**QUICK[name], "dropout": 0.0}), data.spec).eval()
        system.begin_epoch([given], 0)
        system.finish([given])
        found.append(system.embed(whole_rest, "video"))
    torch.testing.assert_close(*found)


def test_top_chunks_keep_the_steps_with_the_largest_scores_and_learn_them() -> None:
    with seeded(0, "init"):
        part = TopChunks(6, 2, 8).eval()
    x = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 1:], mask[2] = False, False
    stream = Stream(x * mask[:, :, None], mask, 1.0)
    score = part.score(part.lstm(stream).data)[0, :, 0]
    top = score.topk(2).indices
    expected = torch.softmax(score[top], 0) @ x[0, top]
    found = part(stream)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], x[1, 0])  # one step was recorded: it is the summary
    assert not bool(found[2].any())
    found.square().sum().backward()
    assert all(bool(p.grad.any()) for n, p in part.named_parameters() if p.grad is not None and "weight" in n)
    assert bool(torch.isfinite(part.score[2].weight.grad).all())


def test_a_long_sound_can_be_summarized_by_its_chunks() -> None:
    data = features(200, steps=6)
    settings = {**QUICK["zeng2018_s_dcca"], "chunks": 3, "lstm": 16, "epochs": 8}
    model = avcl.train("zeng2018_s_dcca", data, seed=0, settings=settings, workers=0)
    assert class_map(model, features(100, seed=1, steps=6)) > 0.75
