"""SEW: what each term moves, what answers without the other modality, features brought to one scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import avcl
from avcl.data import FeatureData, collate
from avcl.errors import BatchError, ConfigError
from avcl.objectives.deep_correlation import deep_cca
from avcl.seeds import seeded
from avcl.system import Step
from avcl.systems.rajan2021_sew import SEW, SEWConfig
from avcl.testing.systems import clips_of, media_spec
from avcl.types import Batch, DataSpec, Stream, StreamSpec

SPEC = DataSpec(
    {"audio": StreamSpec("features", (12,), 1.0), "video": StreamSpec("features", (16,), 1.0)}, labels=("a", "b", "c")
)
AT = Step(0, 10, 0, 0.0, torch.Generator())


def made(spec: DataSpec = SPEC, **settings: object) -> SEW:
    with seeded(0, "init"):
        return SEW(replace(SEWConfig.tiny(), **settings), spec)


def batch_of(spec: DataSpec = SPEC, n: int = 8) -> Batch:
    return collate(clips_of(spec, n=n)).to("cpu")


def gradients(system: SEW, batch: Batch, term: str) -> set[str]:
    """Names of the parts that a term moves."""
    system.zero_grad()
    system.train()(batch, AT)[0][term].backward()
    moved = [name for name, p in system.named_parameters() if p.grad is not None and bool(p.grad.any())]
    parts = [name.split(".") for name in moved]
    return {".".join(part[:2]) if part[0] in ("encoders", "fronts") else part[0] for part in parts}


def test_what_each_term_moves() -> None:
    system, batch = made(), batch_of()
    assert gradients(system, batch, "translation") == {"encoders.audio", "translate"}  # the strong is only aimed at
    assert gradients(system, batch, "reconstruction") == {"encoders.video", "rebuild"}
    assert gradients(system, batch, "correlation") == {"encoders.audio", "encoders.video", "project"}
    assert gradients(system, batch, "task") == {"encoders.audio", "encoders.video", "classify"}
    turned = made(strong="audio")
    assert gradients(turned, batch, "translation") == {"encoders.video", "translate"}


def test_of_media_the_target_gets_no_gradient() -> None:
    spec = media_spec(SEW.inputs(SEWConfig.tiny()))
    system, batch = made(spec), collate(clips_of(spec, n=6, seconds=3.0)).to("cpu")
    assert gradients(system, batch, "translation") == {"fronts.audio", "encoders.audio", "translate"}
    target = system.encode(batch)["target"]
    assert not target.requires_grad
    there = system.encode(batch)["video?"]
    torch.testing.assert_close(target.var(2, correction=0), there.float(), atol=0.05, rtol=0.05)


def test_one_modality_answers_alone_and_two_are_added() -> None:
    system, batch = made().eval(), batch_of()
    both, heard, seen = (system.logits(batch.without(*hidden)) for hidden in ((), ("video",), ("audio",)))
    torch.testing.assert_close(both, heard + seen)
    torch.testing.assert_close(heard.exp().sum(1), torch.ones(8))
    with torch.no_grad():  # nothing of the strong modality is asked
        for part in (system.encoders["video"], system.classify["video"], system.fronts["video"]):
            for p in part.parameters():
                p.fill_(torch.nan)
    torch.testing.assert_close(system.logits(batch.without("video")), heard)
    with pytest.raises(BatchError, match="no audio, video"):
        system.logits(batch.without("audio", "video"))


def test_a_row_without_a_recorded_step_is_answered_from_the_other() -> None:
    system, batch = made().eval(), batch_of()
    mask = batch.video.mask.clone()
    mask[3] = False
    blank = Stream(batch.video.data.masked_fill(~mask[:, :, None], 0), mask, 1.0)
    partly = replace(batch, streams={**batch.streams, "video": blank})
    said, heard = system.logits(partly), system.logits(batch.without("video"))
    torch.testing.assert_close(said[3], heard[3])
    torch.testing.assert_close(said[:3], system.logits(batch)[:3])
    terms, _ = made()(partly, AT)
    assert all(bool(torch.isfinite(value)) for value in terms.values())


def test_weights_are_weights_and_the_correlation_is_that_of_the_codes() -> None:
    batch = batch_of()
    plain = made()(batch, AT)[0]
    twice = made(translation=2.0, reconstruction=3.0, correlation=0.2, task=0.5)(batch, AT)[0]
    for name, factor in {"translation": 2, "reconstruction": 3, "correlation": 2, "task": 0.5}.items():
        torch.testing.assert_close(twice[name], factor * plain[name])
    system = made()
    encoded = system.encode(batch)
    codes = (encoded[name].flatten(0, 1) for name in ("audio", "video"))
    expected = 0.1 * deep_cca(*codes, dim=2, ridge=1e-3)
    torch.testing.assert_close(system.losses(encoded, batch, AT)["correlation"], expected)


def pairs(n: int = 240) -> FeatureData:
    """One of three classes, clear in the picture, weak in the sound, on scales of their own."""
    rng = np.random.default_rng(0)
    label = np.arange(n) % 3
    base = rng.normal(size=(3, 10))
    video = 100 + 20 * (base[label] + 0.3 * rng.normal(size=(n, 10)))
    audio = 0.01 * (base[label][:, :6] + 1.5 * rng.normal(size=(n, 6)))
    return FeatureData.from_arrays({"audio": audio, "video": np.c_[video, np.full(n, 5.0)], "label": label})


def test_losses_fall_codes_correlate_and_features_are_standardized() -> None:
    settings = {"epochs": 12, "batch_size": 40, "components": 3, "hidden": 16, "learning_rate": 3e-3}
    model = avcl.train("rajan2021_sew", pairs(), settings=settings, workers=0)
    first, last = (model.meta["history"][i]["losses"] for i in (0, -1))
    assert all(last[name] < first[name] for name in first)
    assert last["correlation"] < -0.1 * 0.9  # of at most three, and the sound is mostly noise
    system = model.system
    assert isinstance(system, SEW)
    scale = system._front("video").scale
    assert scale is not None
    assert float(scale.mean[0]) == pytest.approx(float(np.mean(pairs()._arrays["video"][:, 0])), rel=1e-4)
    assert float(scale.deviation[-1]) == 1.0  # a constant column is not blown up
    data = pairs()
    report = avcl.evaluate(model, data, task="recognition", protocol={"bootstrap": 0}, workers=0)
    assert report.scores["both"]["accuracy"] > 0.9
    assert report.scores["audio only"]["accuracy"] > 0.6


def test_few_validation_clips_do_not_stop_training() -> None:
    data = pairs(60)
    val = data.subset(range(3), split="val")
    model = avcl.train("rajan2021_sew", data, val=val, settings={"epochs": 1, "batch_size": 20, "components": 4})
    assert model.meta["history"][0]["validation"] is not None


def test_what_it_cannot_be_built_for() -> None:
    three = DataSpec({**SPEC.streams, "text": StreamSpec("features", (4,), 1.0)}, labels=("a", "b"))
    with pytest.raises(ConfigError, match="weak and a strong"):
        made(three)
    assert set(made(three, modalities=("audio", "video")).modalities) == {"audio", "video"}
    with pytest.raises(ConfigError, match="no modality here"):
        made(strong="vidio")
    with pytest.raises(ConfigError, match="labels of two classes"):
        made(DataSpec(SPEC.streams))
    unlabeled = replace(batch_of(), label=torch.full((8,), -1))
    with pytest.raises(BatchError, match="and a label"):
        made()(unlabeled, AT)
