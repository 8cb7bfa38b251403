"""zhang2021_vae_cca: its size, every term by hand, what is drawn at random, variants, and that it learns classes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot, softplus

import avcl
from avcl.data.features import FeatureData
from avcl.errors import BatchError, ConfigError
from avcl.objectives.deep_correlation import deep_cca
from avcl.seeds import seeded
from avcl.system import Step
from avcl.systems.zhang2021_vae_cca import VAECCA, VAECCAConfig, spread
from avcl.types import Batch, DataSpec, StreamSpec

CLASSES = ("a", "b", "c", "d", "e")
QUICK = {"epochs": 12, "batch_size": 30, "learning_rate": 3e-3, "hidden": 48, "dim": 12}
NAMES = ("audio", "video")


def features(n: int = 300, *, seed: int = 0) -> FeatureData:
    """Class centers of 5 classes, bent differently in each modality, in noise; nothing is shared beyond the class."""
    mix, rng, label = np.random.default_rng(7), np.random.default_rng(seed), np.arange(n) % len(CLASSES)
    arrays = {}
    for name, width in (("audio", 12), ("video", 16)):
        center = np.tanh(2 * mix.normal(size=(len(CLASSES), width)))
        arrays[name] = (center[label] + 0.5 * rng.normal(size=(n, width))).astype(np.float32)
    words, ids = [CLASSES[i] for i in label], [f"{seed}-{i}" for i in range(n)]
    return FeatureData.from_arrays({**arrays, "label": words, "id": ids})


def whole(data: FeatureData) -> Batch:
    return avcl.data.collate([data.clip(i) for i in range(len(data))]).to("cpu")


def at(seed: int = 0) -> Step:
    return Step(0, 10, 0, 0.0, torch.Generator().manual_seed(seed))


def made(spec: DataSpec, **settings: object) -> VAECCA:
    with seeded(0, "init"):
        return VAECCA(VAECCAConfig.from_json({**QUICK, **settings}), spec).eval()


def test_it_is_as_large_as_the_released_network() -> None:
    streams = {"audio": StreamSpec("features", (128,), 1.0), "video": StreamSpec("features", (1024,), 1.0)}
    spec = DataSpec(streams, tuple(map(str, range(10))))
    unused, centers = 10 * 64 + 64, 10 * 64
    drawn, learned = (VAECCA(VAECCAConfig(centers=kind), spec) for kind in ("drawn", "learned"))
    assert sum(p.numel() for p in drawn.parameters()) == 1_257_610 - unused
    assert sum(p.numel() for p in learned.parameters()) == 1_257_610 - unused + centers


def test_every_term_by_hand() -> None:
    data = features(20)
    system, batch = made(data.spec), whole(data)
    system.begin_epoch([batch], 0)
    with torch.no_grad():
        e, found = system.encode(batch), system(batch, at())[0]
    y = one_hot(batch.label, 5).float()
    vae, label = 0.0, 0.0
    for m in NAMES:
        mean, log_variance = e[f"{m} mean"], e[f"{m} log variance"]
        vae += float((e[f"{m} made"] - e[f"{m} goal"]).square().mean())  # a mean over all numbers ...
        vae += float(0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum())  # ... beside a sum over the batch
        label += float((e[f"{m} label"] - y).norm(dim=1).mean())
    assert float(found["vae"]) == pytest.approx(1e-4 * vae, rel=1e-5)
    assert float(found["label"]) == pytest.approx(label, rel=1e-5)
    correlation = 0.0
    for p, q in (("audio", "video"), ("audio", "audio"), ("video", "video")):
        theta = 0.5 * torch.from_numpy(np.corrcoef(e[p], e[q])[:20, 20:])  # correlations of rows
        correlation += float((softplus(theta) - (y @ y.T) * theta).mean())
    assert float(found["correlation"]) == pytest.approx(1e-3 * correlation, rel=1e-5)
    assert float(found["pair"]) == pytest.approx(0.1 * float((e["audio"] - e["video"]).norm(dim=1).mean()), rel=1e-5)
    centers = system.centers
    assert centers is not None
    gaps = [(e[m] - centers.detach()[batch.label]).square().sum(1) / 4 for m in NAMES]  # 4 clips of every class
    expected = 0.01 * 0.5 * sum(0.25 * float(gap.mean()) for gap in gaps)
    assert float(found["center"]) == pytest.approx(expected, rel=1e-5)


def test_the_spread_counts_the_class_in_the_batch() -> None:
    z, label = torch.tensor([[1.0, 0], [0, 2], [3, 3]]), torch.tensor([0, 0, 1])
    centers = torch.tensor([[0.0, 0], [3, 1]])
    assert float(spread(z, centers, label)) == pytest.approx(0.25 * (1 / 2 + 4 / 2 + 4) / 3)


def test_mean_and_unit_variance_cost_nothing_and_the_decoder_is_no_part_of_retrieval() -> None:
    data = features(20)
    system, batch = made(data.spec, vae=0.0), whole(data)
    found = dict(system.encode(batch))
    for m in NAMES:
        found |= {f"{m} mean": torch.zeros(20, 12), f"{m} log variance": torch.zeros(20, 12)}
        found[f"{m} made"] = found[f"{m} goal"]
    assert float(made(data.spec).losses(found, batch, at())["vae"]) == 0
    torch.stack(list(system(batch, at())[0].values())).sum().backward()
    for name, p in system.named_parameters():
        decodes = name.startswith(("decode", "last", "log_variance"))
        assert decodes == (p.grad is None or not bool(p.grad.any())), name  # in evaluation z is the mean


def test_samples_in_training_and_not_afterwards() -> None:
    system, batch = made(features(20).spec), whole(features(20))
    assert torch.equal(system.encode(batch)["audio"], system.encode(batch)["audio"])
    system.train()
    one, two = (system.encode(batch) for _ in range(2))
    assert not torch.equal(one["audio"], two["audio"])
    assert torch.equal(one["audio mean"], two["audio mean"])
    torch.testing.assert_close(system.embed(batch, "audio"), torch.nn.functional.normalize(one["audio mean"], dim=1))


def test_centers_are_learned_and_drawn_only_behind_a_flag() -> None:
    data = features(20)
    batch = whole(data)
    for kind, same in (("learned", True), ("drawn", False)):
        system = made(data.spec, centers=kind)
        one, again, other = (float(system(batch, at(seed))[0]["center"].detach()) for seed in (0, 0, 1))
        assert one == again
        assert (one == other) is same
    model = avcl.train("zhang2021_vae_cca", data, seed=0, settings={**QUICK, "epochs": 2}, workers=0)
    assert not torch.equal(model.system.centers, made(data.spec).centers)


def test_the_papers_text_has_a_canonical_correlation() -> None:
    data = features(40)
    system, batch = made(data.spec, correlation_form="cca"), whole(data)
    encoded = system.encode(batch)
    expected = 1e-3 * deep_cca(encoded["audio"], encoded["video"], dim=12, ridge=1e-3)
    torch.testing.assert_close(system.losses(encoded, batch, at())["correlation"], expected)
    few = whole(features(12))
    assert float(system(few, at())[0]["correlation"].detach()) == 0
    with pytest.raises(BatchError, match="correlate perfectly"):
        system.train()(few, at())


@pytest.mark.parametrize("settings", [{}, {"correlation_form": "cca"}, {"centers": "drawn"}])
def test_learns_classes_from_features(settings: dict[str, str]) -> None:
    test, how = features(100, seed=1), {**QUICK, **settings}
    model = avcl.train("zhang2021_vae_cca", features(), seed=0, settings=how, workers=0)
    assert avcl.evaluate(model, test, relevance="class", workers=0).scores["mean"]["mAP"] > 0.75  # chance .2
    both = model.system.embed(whole(test), "audio+video")
    torch.testing.assert_close(both.norm(dim=1), torch.ones(100))
    with pytest.raises(ConfigError, match="audoi"):
        model.system.embed(whole(test), "audoi")


def test_a_clip_without_one_modality_takes_no_part() -> None:
    data, system = features(20), made(features(20).spec)
    batch, rest = whole(data), whole(data.subset([i for i in range(20) if not 5 <= i < 9]))
    mask = batch.video.mask.clone()
    mask[5:9] = False
    missing = dataclasses.replace(batch, streams={**batch.streams, "video": batch.video._replace(mask=mask)})
    torch.testing.assert_close(system(missing, at())[0], system(rest, at())[0])


def test_says_what_the_data_lack() -> None:
    data = features(20)
    with pytest.raises(ConfigError, match="the data have 0"):
        made(dataclasses.replace(data.spec, labels=()))
    text = {"text": StreamSpec("features", (5,), 1.0)}
    with pytest.raises(ConfigError, match="two modalities, not audio, video, text"):
        made(DataSpec({**data.spec.streams, **text}, CLASSES))
    for key in ("correlation_form", "centers"):
        with pytest.raises(ConfigError, match=f'{key} = "x"'):
            made(data.spec, **{key: "x"})
    batch = whole(data)
    with pytest.raises(BatchError, match="label for every clip"):
        made(data.spec)(dataclasses.replace(batch, label=torch.full_like(batch.label, -1)), at())
