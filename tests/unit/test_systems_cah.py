"""cao2016_cah: every term as its equation says, what the weights do, and that binary codes find the class."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hashing_toys import at, class_map, classed, whole

import avcl
from avcl.errors import BatchError, ConfigError
from avcl.metrics.ranking import rank
from avcl.seeds import seeded
from avcl.system import Embeds, Represents
from avcl.systems.cao2016_cah import CAH, CAHConfig, code_likelihood
from avcl.types import Batch, Stream

SMALL = {"bits": 16, "hidden": (32,), "batch_size": 30, "learning_rate": 5e-3}


def made(**settings: object) -> CAH:
    with seeded(0, "init"):
        return CAH(replace(CAHConfig.tiny(), **settings), classed(10).spec)


def trained(epochs: int = 15, **settings: object) -> avcl.Model:
    return avcl.train("cao2016_cah", classed(), settings={**SMALL, "epochs": epochs, **settings}, workers=0)


def test_the_terms_are_what_the_equations_say() -> None:
    system, batch = made(reconstruction=0.5, pair=2.0, semantic_weight=3.0, quantization=0.7).eval(), whole(classed(10))
    encoded = system.encode(batch)
    terms = system.losses(encoded, batch, at())
    h, b = {name: encoded[name] for name in ("audio", "video")}, 12
    for name in h:
        x = encoded[f"{name} x"]
        error = (system.autoencoder.decode(h[name], name) - x).square().mean()
        torch.testing.assert_close(terms[f"{name}_from_{name}"], 0.5 * error)
        torch.testing.assert_close(terms[f"quantization_{name}"], 0.7 * (h[name].abs() - 1).square().mean())
    torch.testing.assert_close(terms["l2_audio_video"], 2 * (h["audio"] - h["video"]).square().mean())
    same = 2.0 * (batch.label[:, None] == batch.label) - 1
    fit = (same - h["audio"] @ h["video"].T / b).square().mean()
    torch.testing.assert_close(terms["pairwise_audio_video"], 3 * fit)
    assert len(terms) == 6
    other = made(semantic="likelihood", semantic_weight=2.0).eval()
    found = other.losses(encoded, batch, at())
    likely = 2 * code_likelihood(h["audio"], h["video"], batch.label)
    torch.testing.assert_close(found["likelihood_audio_video"], likely)
    assert "pairwise_audio_video" not in found


def test_likelihood_of_codes() -> None:
    a, v = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])  # Θ = [[1, 0], [0, -1]]
    value = code_likelihood(a, v, torch.tensor([0, 1]))
    softplus = torch.nn.functional.softplus
    torch.testing.assert_close(value, (softplus(torch.tensor([1.0, 0.0, 0.0, -1.0])).sum() - 1 + 1) / 4)


def test_codes_are_signs_and_zero_counts_as_plus() -> None:
    system, batch = made().eval(), whole(classed(10))
    assert isinstance(system, Embeds)
    assert isinstance(system, Represents)
    code, real = (call(batch, "video") for call in (system.embed, system.features))
    assert set(code.unique().tolist()) <= {-1.0, 1.0}
    torch.testing.assert_close(code, torch.where(real >= 0, 1.0, -1.0))
    torch.testing.assert_close(real, system.encode(batch)["video"])
    blank = Stream(torch.zeros_like(batch.video.data), torch.zeros_like(batch.video.mask), 1.0)
    nothing = replace(batch, streams={"video": blank})
    assert bool((system.embed(nothing, "video") == 1).all())
    both = system.features(batch, "audio+video")
    torch.testing.assert_close(both, (system.features(batch, "audio") + real) / 2)


def test_hamming_order_is_that_of_the_inner_product_and_of_the_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    # Sixteen bits have the exact length 4; a length like √12 would break ties of the cosine by rounding.
    q, g = (2.0 * torch.randint(0, 2, (n, 16), generator=generator) - 1 for n in (20, 30))
    hamming = (q[:, None] != g).sum(2)
    torch.testing.assert_close(made().similarity(q, g), (16 - 2 * hamming).float())
    keys = [torch.randint(0, 3, (n,), generator=generator).numpy() for n in (20, 30)]
    by_dot, by_cosine = (rank(q.numpy(), g.numpy(), *keys, similarity=name) for name in ("dot", "cosine"))
    assert by_dot.summary((1,))["mAP"] == pytest.approx(by_cosine.summary((1,))["mAP"])


def test_phases_begin_with_reconstruction_alone() -> None:
    first, second = made(pretraining=0.3).phases()
    assert (first.losses, first.end, second.start) == (("audio_from_audio", "video_from_video"), 0.3, 0.3)
    assert len(made(pretraining=0.0).phases()) == len(made(reconstruction=0.0).phases()) == 1


def test_what_each_weight_does() -> None:
    """Auto-encoders alone reconstruct; a heavy pair term gives pairs one code; quantization drives |h| to 1."""
    alone = {"pair": 0.0, "semantic_weight": 0.0, "quantization": 0.0, "pretraining": 0.0, "reconstruction": 1.0}
    test, model = whole(classed(100, seed=1)), trained(10, **alone)
    history = [entry["losses"]["audio_from_audio"] for entry in model.meta["history"]]
    assert history[-1] < 0.6 * history[0]
    paired = trained(10, **{**alone, "pair": 20.0})

    def agreement(of: avcl.Model) -> float:
        h = [of.system.features(test, name) for name in ("audio", "video")]
        return float((h[0] - h[1]).square().mean())

    assert agreement(paired) < 0.3 * agreement(model)
    sharp = trained(10, **{**alone, "quantization": 10.0}).system.features(test, "audio").abs()
    assert float(sharp.mean()) > 0.15 + float(model.system.features(test, "audio").abs().mean())


@pytest.mark.parametrize("semantic", ["squares", "likelihood"])
def test_binary_codes_find_the_class(semantic: str) -> None:
    assert class_map(trained(semantic=semantic), classed(100, seed=1)) > 0.7  # chance .2


def test_what_it_cannot_learn_from() -> None:
    batch: Batch = whole(classed(10))
    with pytest.raises(BatchError, match="needs a label"):
        made()(replace(batch, label=torch.full((10,), -1)), at())
    with pytest.raises(ConfigError, match="semantic"):
        made(semantic="cosine")
    with pytest.raises(ConfigError, match="audoi"):
        made().embed(batch, "audoi")
    with pytest.raises(ConfigError, match="pretraining"):
        made(pretraining=1.0)
