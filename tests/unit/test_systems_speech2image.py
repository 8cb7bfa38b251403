"""merkx2019_speech2image: the loss over the whole matrix, attention by dimension, padding, and that it learns."""

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
from avcl.systems.merkx2019_speech2image import Speech2Image, Speech2ImageConfig, VectorialAttention
from avcl.types import Batch, DataSpec, Stream, StreamSpec

A = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
V = torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.6, -0.8]])
TINY = Speech2ImageConfig.tiny()
SPEC = DataSpec({"video": StreamSpec("video", (3, 32, 32), 4.0), "speech": StreamSpec("audio", (1,), 8000.0)})
AT = Step(0, 10, 0, 0.0, torch.Generator().manual_seed(0))


def made(config: Speech2ImageConfig = TINY, spec: DataSpec = SPEC) -> Speech2Image:
    with seeded(0, "init"):
        return Speech2Image(config, spec).eval()


def clips(n: int = 3, *, name: str = "speech", padding: int = 0) -> Batch:
    g = torch.Generator().manual_seed(1)
    wave = torch.randn(n, 4000, 1, generator=g)
    mask = torch.ones(n, 4000 + padding, dtype=torch.bool)
    mask[:, 4000:] = False
    wave = torch.nn.functional.pad(wave, (0, 0, 0, padding), value=3.0)
    frames = torch.rand(n, 3, 3, 32, 32, generator=g)
    streams = {"video": Stream(frames, mask[:, :3], 4.0), name: Stream(wave, mask, 8000.0)}
    at = torch.arange(n)
    return Batch(tuple(map(str, range(n))), streams, at, at * 0, at * 0 - 1, tuple(map(str, range(n))))


def test_the_loss_is_the_mean_over_the_whole_matrix() -> None:
    encoded = {"speech": A, "video": V, "both": torch.ones(3, dtype=torch.bool)}
    system, batch = made(), clips()
    assert float(system.losses(encoded, batch, AT)["hinge"]) == pytest.approx(7.04 / 9, abs=1e-6)
    hardest = made(dataclasses.replace(TINY, negatives="hardest"))
    assert float(hardest.losses(encoded, batch, AT)["hinge"]) == pytest.approx(4.72 / 3, abs=1e-6)
    encoded["both"] = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(BatchError, match="both speech and video"):
        system.losses(encoded, batch, AT)


def test_attention_sums_to_one_for_every_dimension_and_not_over_padding() -> None:
    attention = VectorialAttention(6, 4)
    x, mask = torch.randn(2, 5, 6), torch.ones(2, 5, dtype=torch.bool)
    mask[0, 3:] = False
    weights = attention.weights(x, mask).detach()
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 6))
    assert not weights[0, 3:].any()
    assert float((weights[1, :, 0] - weights[1, :, 1]).abs().max()) > 1e-4
    inner = attention.inner.weight.detach()
    torch.testing.assert_close(inner @ inner.T, torch.eye(4), atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing_and_a_short_caption_has_a_step() -> None:
    system = made(dataclasses.replace(TINY, depth=2))
    torch.testing.assert_close(
        system.embed(clips(padding=1333), "speech"), system.embed(clips(), "speech"), atol=1e-5, rtol=1e-4
    )
    reader = system.sides["speech"].reader
    for steps in (1, 2, 5, 6, 7):  # ⌈T / 2⌉ steps
        frames = Stream(torch.randn(1, steps, 39), torch.ones(1, steps, dtype=torch.bool), 100.0)
        assert reader.states(frames).data.shape[1] == (steps + 1) // 2


def test_the_sound_may_be_called_audio_or_speech() -> None:
    audio = DataSpec({"audio": SPEC.streams["speech"], "video": SPEC.streams["video"]})
    assert (made(spec=audio).caption, made(spec=audio).picture) == ("audio", "video")
    three = DataSpec({**SPEC.streams, "audio": SPEC.streams["speech"]})
    assert made(dataclasses.replace(TINY, modalities=("video", "speech")), three).caption == "speech"
    with pytest.raises(ConfigError, match="one picture and one caption"):
        made(spec=three)
    with pytest.raises(ConfigError, match='caption of kind "tokens"'):
        made(spec=DataSpec({"video": SPEC.streams["video"], "text": StreamSpec("tokens", (), 1.0)}))
    with pytest.raises(ConfigError, match="hardest"):
        dataclasses.replace(TINY, negatives="some")
    with pytest.raises(ConfigError, match='no "speach"'):
        made().embed(clips(), "speach")


def spoken(n: int, seed: int) -> FeatureData:
    """A caption of 8 frames, each holding a part of what the picture shows at once; the order matters."""
    mix = np.random.default_rng(7).normal(size=(4, 12))
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 4))
    frames = np.zeros((n, 8, 6))
    frames[:, :4, :4], frames[:, 4:, 4] = z[:, :, None] * np.eye(4), 1.0
    frames[:, np.arange(4), 5] = np.arange(4) - 1.5
    arrays = {"audio": frames + 0.05 * rng.normal(size=frames.shape), "video": z @ mix + 0.1 * rng.normal(size=(n, 12))}
    return FeatureData.from_arrays(
        {**{k: x.astype(np.float32) for k, x in arrays.items()}, "id": list(map(str, range(n)))}
    )


@pytest.mark.parametrize("reader", ["recurrent", "mean"])
def test_learns_which_caption_belongs_to_which_picture(reader: str) -> None:
    settings = {"reader": reader, "hidden": 16, "depth": 1, "channels": 16, "epochs": 15, "learning_rate": 1e-2}
    model = avcl.train("merkx2019_speech2image", spoken(200, 0), settings=settings, seed=0, workers=0)
    score = avcl.evaluate(model, spoken(100, 1), workers=0).scores["mean"]["R@10"]
    assert score > 0.5, score  # chance .1
