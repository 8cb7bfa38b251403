"""ilharco2019_mms and monfort2021_spoken_moments_amm: their losses by worked values, variants, and that they learn."""

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
from avcl.systems.ilharco2019_mms import MMS, MMSConfig
from avcl.systems.monfort2021_spoken_moments_amm import AMM, AMMConfig, some_steps
from avcl.types import Batch, DataSpec, Stream, StreamSpec

A = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
V = torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.6, -0.8]])
SPEC = DataSpec({"video": StreamSpec("features", (5,), 1.0), "speech": StreamSpec("features", (4,), 1.0)})
ROWS = {"speech": A, "video": V, "both": torch.ones(3, dtype=torch.bool)}


def at(step: int = 0) -> Step:
    return Step(step, 10**6, 0, 0.0, torch.Generator().manual_seed(0))


def bare(*group: str) -> Batch:
    i = torch.arange(len(group))
    return Batch(tuple(map(str, i.tolist())), {}, i, i * 0, i * 0 - 1, group)


def mms(**settings) -> MMS:
    with seeded(0, "init"):
        return MMS(dataclasses.replace(MMSConfig.tiny(), **settings), SPEC).eval()


def amm(**settings) -> AMM:
    with seeded(0, "init"):
        return AMM(dataclasses.replace(AMMConfig.tiny(), **settings), SPEC).eval()


# ------------------------------------------------------------------------------------------------------------------ MMS
def test_masked_margin_softmax_with_and_without_mask() -> None:
    apart, pair = bare("a", "b", "c"), bare("a", "a", "c")
    plain = mms()
    assert plain.similarity_name == "dot"
    assert mms(normalize=True).similarity_name == "cosine"
    assert float(plain.losses(ROWS, apart, at())["mms"]) == pytest.approx(2.712688, abs=1e-5)
    assert float(plain.losses(ROWS, pair, at())["mms"]) == pytest.approx(2.201760, abs=1e-5)
    assert float(mms(mask=False).losses(ROWS, pair, at())["mms"]) == pytest.approx(2.712688, abs=1e-5)
    none = mms(margin=0.0)
    assert float(none.losses(ROWS, apart, at())["mms"]) == pytest.approx(2.711283, abs=1e-5)
    # Two captions of one picture alone: nothing to tell apart.
    two = {name: value[:2] for name, value in ROWS.items()}
    assert float(plain.losses(two, bare("a", "a"), at())["mms"]) == 0.0
    info = mms(margin=0.0, normalize=True, temperature=0.5)  # δ = 0: InfoNCE, the sum of its two directions
    assert float(info.losses(ROWS, apart, at())["mms"]) == pytest.approx(1.843389 + 1.704854, abs=1e-5)


def test_the_margin_grows_with_the_steps() -> None:
    growing = mms().margin
    assert growing(0) == growing(999) == 0.001
    assert growing(1000) == pytest.approx(0.001002)
    assert growing(100_000) == pytest.approx(0.001221159, abs=1e-9)
    assert mms(growth=1.0).margin(100_000) == 0.001
    big = mms(margin=0.1)
    assert big.losses(ROWS, bare("a", "b", "c"), at(10**5))["mms"] > big.losses(ROWS, bare("a", "b", "c"), at())["mms"]


def test_the_triplets_that_it_is_compared_with() -> None:
    found = mms(objective="triplet", margin=0.1).losses(ROWS, bare("a", "b", "c"), at())
    assert float(found["triplet"]) == pytest.approx(1.413333, abs=1e-5)  # .1 on the cosine is .2 on the square
    with pytest.raises(ConfigError, match="mms"):
        mms(objective="hinge")


# ------------------------------------------------------------------------------------------------------------------ AMM
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 2.480410),
        ({"row_margins": True}, 2.473633),
        ({"objective": "mms"}, 2.712688),
        ({"objective": "nce"}, 1.971389),
        ({"objective": "shn", "margin": 0.1}, 1.413333),
        ({"normalize": True, "temperature": 1.0}, 2.480410),
    ],
)
def test_what_the_paper_compares(settings: dict, expected: float) -> None:
    rows = {**ROWS, "video": A, "speech": V}  # rows of S are videos
    (value,) = amm(**settings).losses(rows, bare("a", "b", "c"), at()).values()
    assert float(value) == pytest.approx(expected, abs=1e-5)


def test_nothing_pulls_a_pair_together_at_alpha_one() -> None:
    v = A.clone().requires_grad_()
    a = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])  # only the third caption says anything
    pull = {}
    for alpha in (0.0, 1.0):
        loss = amm(alpha=alpha).losses({**ROWS, "video": v, "speech": a}, bare("a", "b", "c"), at())["amm"]
        (g,) = torch.autograd.grad(loss, v)
        pull[alpha] = float(g[2, 0])
    assert pull[0.0] < -0.1 < pull[1.0]


def test_of_a_written_caption_some_words_are_drawn_in_training() -> None:
    mask = torch.tensor([[True] * 5, [True, False, True, False, False], [False] * 5])
    stream = Stream(torch.arange(15.0).reshape(3, 5, 1), mask, 1.0)
    drawn = some_steps(stream, 4)
    assert drawn.data.shape == (3, 4, 1)
    assert len(set(drawn.data[0, :, 0].tolist())) == 4  # none twice where there are enough
    assert set(drawn.data[1, :, 0].tolist()) == {5.0, 7.0}  # recorded ones alone, repeated
    assert drawn.mask.tolist() == [[True] * 4, [True] * 4, [False] * 4]
    text = DataSpec({"video": SPEC.streams["video"], "text": StreamSpec("tokens", (), 1.0)})
    with seeded(0, "init"):
        system = AMM(AMMConfig.tiny(), text)
    tokens = Stream(torch.randint(97, 122, (2, 90)), torch.ones(2, 90, dtype=torch.bool), 1.0)
    side = system.sides["text"].train()
    with torch.no_grad():
        assert float((side(tokens) - side(tokens)).abs().max()) > 1e-6
        side.eval()
        torch.testing.assert_close(side(tokens), side(tokens))


# ----------------------------------------------------------------------------------------------------------------- both
def pairs(n: int, seed: int) -> FeatureData:
    """Both modalities show the same six numbers, each in its own way."""
    mix = np.random.default_rng(7)
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 6))
    arrays = {
        name: (np.tanh(z @ mix.normal(size=(6, width)) / 2) + 0.1 * rng.normal(size=(n, width))).astype(np.float32)
        for name, width in (("audio", 12), ("video", 16))
    }
    return FeatureData.from_arrays({**arrays, "id": [str(i) for i in range(n)]})


LEARNS = [
    ("ilharco2019_mms", {"dim": 16}),
    ("ilharco2019_mms", {"dim": 16, "normalize": True}),
    ("ilharco2019_mms", {"dim": 16, "objective": "triplet", "margin": 0.2}),
    ("monfort2021_spoken_moments_amm", {"dim": 16, "hidden": 32}),
    ("monfort2021_spoken_moments_amm", {"dim": 16, "hidden": 32, "normalize": True}),
]


@pytest.mark.parametrize(("name", "settings"), LEARNS)
def test_learns_pairs(name: str, settings: dict) -> None:
    more = {"epochs": 15, "batch_size": 50, "learning_rate": 1e-2}
    model = avcl.train(name, pairs(200, 0), settings={**settings, **more}, seed=0, workers=0)
    score = avcl.evaluate(model, pairs(100, 1), workers=0).scores["mean"]["R@10"]
    assert score > 0.5, score  # chance .1


@pytest.mark.parametrize(("cls", "config"), [(MMS, MMSConfig.tiny()), (AMM, AMMConfig.tiny())])
def test_says_what_it_cannot_read(cls, config) -> None:
    sound, picture = StreamSpec("audio", (1,), 8000.0), StreamSpec("video", (3, 32, 32), 4.0)
    for name in ("audio", "speech"):
        assert cls(config, DataSpec({"video": picture, name: sound})).caption == name
    with pytest.raises(ConfigError, match="one picture and one caption"):
        cls(config, DataSpec({"video": picture, "audio": sound, "speech": sound}))
    with pytest.raises(ConfigError, match='kind "spectrum"'):
        cls(config, DataSpec({"video": picture, "audio": StreamSpec("spectrum", (4, 1), 1.0)}))
    system = cls(config, SPEC)
    nobody = {**ROWS, "both": torch.zeros(3, dtype=torch.bool)}
    with pytest.raises(BatchError, match="no clip of the batch has both"):
        system.losses(nobody, bare("a", "b", "c"), at())
    with pytest.raises(ConfigError, match='no "speach"'):
        system.embed(bare("a"), "speach")
