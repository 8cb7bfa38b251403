"""Cross-reconstruction, coupled latents, latent prediction and classification: identities, absence, small runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from autoencoder_toys import SIZES, heads, mrr, net, pairs, total, towers, trained
from safetensors.torch import load_file, save_file
from torch import nn

from avcl.encoders.audio import LogMelConv
from avcl.errors import BatchError, ConfigError
from avcl.nn.autoencoders import Autoencoder, CrossReconstruction, LatentPrediction
from avcl.nn.constrained import ConstrainedAE, LatentClassification, pairwise_similarity
from avcl.nn.pooling import masked_mean
from avcl.objectives import l1, l2
from avcl.types import Stream

SELF = {(m, m): 1.0 for m in SIZES}


def batch(n: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, size, generator=g) for name, size in SIZES.items()}


def seeded(make) -> Autoencoder:
    torch.manual_seed(1)
    return make()


MODELS = {
    "cross": lambda: CrossReconstruction(towers(), heads()),
    "shared": lambda: CrossReconstruction(
        towers(20), heads(24), shared_encoder=nn.Linear(20, 8), shared_decoder=nn.Linear(8, 24)
    ),
    "l2": lambda: ConstrainedAE(towers(), heads(), couplings={"l2": 1.0}),
    "cosine": lambda: ConstrainedAE(towers(), heads(), couplings={"cosine": 1.0}),
    "correlation": lambda: ConstrainedAE(towers(), heads(), couplings={"correlation": 1.0}),
    "cca": lambda: ConstrainedAE(
        towers(), heads(), couplings={"cca": 1.0}, projectors={m: nn.Linear(16, 3) for m in SIZES}
    ),
    "hash": lambda: ConstrainedAE(
        towers(), heads(), couplings={"l2": 1.0, "pairwise": 1.0, "mmd": 0.5}, quantization=0.01
    ),
    "classes": lambda: LatentClassification(CrossReconstruction(towers(), heads()), nn.Linear(16, 4), weight=0.5),
}


# ------------------------------------------------------------------------------------------------------- one contract
@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_saves_and_runs_in_half_precision(name: str, tmp_path: Path) -> None:
    model, x, label = seeded(MODELS[name]), batch(), torch.tensor([0, 1, 2, 0, 1, 2])
    latents = model.encode(x)
    assert set(latents) <= set(model.latents)
    terms = model.terms(latents, x, label=label)
    assert all(t.ndim == 0 and bool(t.isfinite()) for t in terms.values())
    total(terms).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key

    save_file(model.state_dict(), tmp_path / "w.safetensors")  # no two names share one tensor
    other = MODELS[name]()
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert all(torch.equal(a, latents[m]) for m, a in other.encode(x).items())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.terms(model.encode(x), x, label=label)
    assert half.keys() == terms.keys()
    for key in terms:
        assert half[key].dtype == torch.float32, key
        assert half[key].item() == pytest.approx(terms[key].item(), abs=0.08, rel=0.08), key


@pytest.mark.parametrize("name", [n for n in MODELS if n != "cca"])
def test_absent_rows_reach_neither_value_nor_gradient(name: str) -> None:
    model, x, label = seeded(MODELS[name]), batch(), torch.tensor([0, 1, 2, 0, 1, 2])
    there = torch.tensor([True, False, True, True, False, True])

    def run(junk: float) -> tuple[dict[str, float], list[torch.Tensor]]:
        model.zero_grad()
        audio = torch.where(there[:, None], x["audio"], junk)
        values, present = {"audio": audio, "video": x["video"]}, {"audio": there}
        terms = model.terms(model.encode(values, present=present), values, label=label, present=present)
        total(terms).backward()
        return {k: t.item() for k, t in terms.items()}, [p.grad.clone() for p in model.parameters()]

    (one, slopes), (two, others) = run(7.0), run(float("nan"))
    assert one == two
    assert all(torch.equal(a, b) for a, b in zip(slopes, others, strict=True))


@pytest.mark.parametrize("name", ["cross", "shared", "hash", "classes"])
def test_one_modality_alone_and_in_any_order(name: str) -> None:
    model, x, label = seeded(MODELS[name]).eval(), batch(), torch.tensor([0, 1, 2, 0, 1, 2])
    alone = model.encode({"video": x["video"]})
    assert tuple(alone) == ("video",)
    assert torch.equal(alone["video"], model.encode(x)["video"])
    assert model.decode(alone["video"], "audio").shape == (6, 64)
    assert "audio_from_video" not in model.terms(alone, {"video": x["video"]}, label=label)
    turned = model.encode(dict(reversed(x.items())))
    assert tuple(turned) == ("audio", "video")
    mine, theirs = model.terms(model.encode(x), x, label=label), model.terms(turned, x, label=label)
    assert {k: v.item() for k, v in mine.items()} == {k: v.item() for k, v in theirs.items()}


def test_bad_settings_and_batches_have_names() -> None:
    model = CrossReconstruction(towers(), heads())
    with pytest.raises(ConfigError, match="at least one"):
        CrossReconstruction({}, heads())
    with pytest.raises(ConfigError, match="no pair"):
        CrossReconstruction(towers(), heads(), weights={("audio", "text"): 1.0})
    with pytest.raises(ConfigError, match="at least 0"):
        CrossReconstruction(towers(), heads(), weights={("audio", "video"): -1.0})
    with pytest.raises(BatchError, match="no encoder"):
        model.encode({"vidoe": torch.zeros(2, 128)})
    with pytest.raises(BatchError, match="nothing to encode"):
        model.encode({})
    with pytest.raises(ConfigError, match="no decoder"):
        model.decode(torch.zeros(2, 16), "text")
    with pytest.raises(BatchError, match="nothing to learn"):
        model.terms({"audio": torch.zeros(2, 16)}, {})
    with pytest.raises(BatchError, match="present must be bool"):
        model.encode(batch(), present={"audio": torch.ones(6)})
    with pytest.raises(ConfigError, match="couplings"):
        ConstrainedAE(towers(), heads(), couplings={"cosin": 1.0})  # type: ignore[dict-item]
    with pytest.raises(BatchError, match="labels"):
        ConstrainedAE(towers(), heads(), couplings={"pairwise": 1.0}).terms(model.encode(batch()), batch())


# ------------------------------------------------------------------------------------------------------ reconstruction
def test_terms_are_the_weighted_errors() -> None:
    x = batch()
    model = CrossReconstruction(towers(), heads(), weights={("audio", "video"): 2.0, ("video", "video"): 0.5}, error=l1)
    h = model.encode(x)
    terms = model.terms(h, x)
    assert set(terms) == {"video_from_audio", "video_from_video"}
    assert torch.equal(terms["video_from_audio"], 2.0 * l1(model.decode(h["audio"], "video"), x["video"]))
    assert torch.equal(terms["video_from_video"], 0.5 * l1(model.decode(h["video"], "video"), x["video"]))


def test_linear_cross_reconstruction_is_least_squares() -> None:
    g = torch.Generator().manual_seed(0)
    video = torch.randn(60, 5, generator=g, dtype=torch.float64)
    audio = video @ torch.randn(5, 4, generator=g, dtype=torch.float64) + torch.randn(60, 4, generator=g).double()
    weights = {("video", "audio"): 1.0}
    torch.manual_seed(0)
    model = CrossReconstruction(
        {"audio": nn.Linear(4, 5), "video": nn.Linear(5, 5)}, {"audio": nn.Linear(5, 4)}, weights=weights
    ).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=800, line_search_fn="strong_wolfe", tolerance_change=1e-14
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = total(model.terms(model.encode({"video": video}), {"audio": audio}))
        loss.backward()
        return loss

    optimizer.step(closure)
    design = torch.cat([video, torch.ones(60, 1, dtype=torch.float64)], 1)
    best = design @ torch.linalg.lstsq(design, audio).solution
    made = model.decode(model.encode({"video": video})["video"], "audio")
    torch.testing.assert_close(made, best, atol=1e-4, rtol=0)


def test_streams_count_where_they_are_recorded() -> None:
    """From a sound to a vector to the features of every step; the mask of the targets weighs the error."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = LogMelConv()
            self.out = nn.Linear(self.conv.dim, 8)

        def forward(self, stream: Stream) -> torch.Tensor:
            heard = self.conv(stream)
            return self.out(masked_mean(heard.data, heard.mask))

    torch.manual_seed(0)
    model = CrossReconstruction(
        {"audio": Pooled()}, {"video": nn.Sequential(nn.Linear(8, 15), nn.Unflatten(1, (5, 3)))}
    ).eval()
    sound = Stream(torch.randn(2, 8000, 1), torch.ones(2, 8000, dtype=torch.bool), 16_000.0)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    frames = torch.randn(2, 5, 3)
    h = model.encode({"audio": sound})
    junk = frames.masked_fill(~mask[..., None], torch.nan)
    cost = model.terms(h, {"video": Stream(junk, mask, 5.0)})["video_from_audio"]
    assert cost.item() == pytest.approx(l2(model.decode(h["audio"], "video")[0, :3], frames[0, :3]).item(), rel=1e-6)
    silent = {"video": Stream(frames, torch.zeros_like(mask), 5.0)}
    assert model.terms(h, silent)["video_from_audio"].item() == 0


# ------------------------------------------------------------------------------------------------------------ couplings
def test_pairwise_similarity_by_hand() -> None:
    a, v = torch.randn(4, 3), torch.randn(4, 3)
    label = torch.tensor([0, 1, 0, 2])
    by_hand = sum(
        ((1.0 if label[i] == label[j] else -1.0) - float(a[i] @ v[j]) / 3) ** 2 for i in range(4) for j in range(4)
    )
    assert pairwise_similarity(a, v, label).item() == pytest.approx(by_hand / 16, rel=1e-5)
    several = torch.nn.functional.one_hot(label, 3)
    assert torch.equal(pairwise_similarity(a, v, several), pairwise_similarity(a, v, label))
    codes = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0]])
    assert pairwise_similarity(codes, codes, torch.tensor([0, 1, 0])).item() == 0
    with pytest.raises(BatchError, match="two"):
        pairwise_similarity(a, v[:, :2], label)


def test_unlabeled_rows_do_not_count() -> None:
    x, label = batch(), torch.tensor([0, 1, 0, 1, -1, -1])
    model = ConstrainedAE(towers(), heads(), couplings={"pairwise": 1.0})
    h = model.encode(x)
    expected = pairwise_similarity(h["audio"][:4], h["video"][:4], label[:4])
    assert torch.equal(model.terms(h, x, label=label)["pairwise_audio_video"], expected)
    assert "pairwise_audio_video" not in model.terms(h, x, label=torch.full((6,), -1))
    wrapped = LatentClassification(model, nn.Linear(16, 2))
    expected = nn.functional.cross_entropy(wrapped.classifier(h["audio"][:4]), label[:4])
    assert wrapped.terms(h, x, label=label)["class_audio"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_regression_of_the_latent() -> None:
    x, values = batch(), torch.randn(6, 2)
    model = LatentClassification(CrossReconstruction(towers(), heads()), nn.Linear(16, 2), objective=l2)
    h = model.encode(x)
    terms = model.terms(h, x, label=values)
    assert terms["class_video"].item() == pytest.approx(l2(model.classify(h)["video"], values).item())


def test_bits_and_their_penalty() -> None:
    data, label = pairs()
    weights = {"l2": 0.1, "pairwise": 1.0}
    encoders = {m: nn.Sequential(net(size, 16), nn.Tanh()) for m, size in SIZES.items()}
    model = seeded(lambda: ConstrainedAE(encoders, heads(), couplings=weights, quantization=0.01))
    trained(model, data, label, steps=200)
    test = {m: x[1800:] for m, x in data.items()}
    h = model.encode(test)
    assert h["audio"].abs().mean() > 0.8
    bits = model.bits(h)
    assert bits["audio"].dtype == torch.int8
    assert set(bits["audio"].unique().tolist()) == {-1, 1}
    assert set(model.bits({"audio": torch.zeros(1, 3)})["audio"].flatten().tolist()) == {1}
    a, v = bits["audio"].float(), bits["video"].float()
    hamming = (16 - a @ v.T) / 2
    same = label[1800:, None] == label[None, 1800:]
    assert hamming[same].mean() + 4 < hamming[~same].mean()
    penalty = model.terms({"audio": a}, {"audio": test["audio"]}, label=label[1800:])
    assert penalty["quantization_audio"].item() == 0


# ------------------------------------------------------------------------------------------------- latent prediction
def test_latent_prediction_by_hand() -> None:
    x = batch()
    model = LatentPrediction(towers(), {m: nn.Linear(16, 16) for m in SIZES}, weights={("audio", "video"): 2.0})
    h = model.encode(x)
    made = nn.functional.normalize(model.decode(h["audio"], "video"), dim=1)
    expected = 2.0 * (made - nn.functional.normalize(h["video"], dim=1)).square().sum(1).mean()
    terms = model.terms(h)
    assert set(terms) == {"video_from_audio"}
    assert terms["video_from_audio"].item() == pytest.approx(expected.item(), rel=1e-5)
    terms["video_from_audio"].backward()
    assert all(p.grad is None for p in model.encoders["video"].parameters())  # the target is not drawn
    assert all(p.grad is not None for p in model.encoders["audio"].parameters())
    with pytest.raises(BatchError, match="latents"):
        model.terms(h, {"video": Stream(torch.zeros(6, 2, 16), torch.ones(6, 2, dtype=torch.bool), 1.0)})


# ----------------------------------------------------------------------------------------------------------- small runs
RUNS = {
    "separate": (lambda: CrossReconstruction(towers(), heads(), weights=SELF), 0.0, 0.1),
    "coupled by l2": (lambda: ConstrainedAE(towers(), heads(), couplings={"l2": 0.1}), 0.5, 1.0),
    "cross-reconstruction": (lambda: CrossReconstruction(towers(), heads()), 0.5, 1.0),
}


@pytest.mark.parametrize("name", RUNS)
def test_held_out_pairs_find_each_other_only_where_latents_are_coupled(name: str) -> None:
    make, low, high = RUNS[name]
    model, (data, label) = seeded(make), pairs()
    trained(model, data, label)
    with torch.no_grad():
        codes = model.codes(model.encode({m: x[1800:] for m, x in data.items()}))
    assert low <= mrr(codes["audio"], codes["video"]) <= high


def test_translation_with_alignment_and_classes_predicts_from_the_weaker_side() -> None:
    """Rajan et al. 2021: the losses fall, the correlation rises, and one modality is enough at test time."""
    data, label = pairs()
    encoders, decoders = towers(), {"video": net(16, 128)}
    weights = {("audio", "video"): 1.0, ("video", "video"): 1.0}
    torch.manual_seed(1)
    inner = ConstrainedAE(
        encoders, decoders, couplings={"cca": 0.1}, weights=weights, projectors={m: nn.Linear(16, 8) for m in SIZES}
    )
    model = LatentClassification(inner, nn.Linear(8, 4))
    before, after = trained(model, data, label, steps=1), trained(model, data, label, steps=150)
    assert after["video_from_audio"] < 0.5 * before["video_from_audio"]
    assert after["cca_audio_video"] < -0.1 * 7  # of 8 correlations
    logits = model.classify(model.encode({"audio": data["audio"][1800:]}))["audio"]
    assert (logits.argmax(1) == label[1800:]).float().mean() > 0.9


def test_latent_prediction_with_batch_norm_finds_the_partner() -> None:
    """Without it the latents collapse in this short run, as the docstring warns."""
    data, label = pairs()
    projected = {m: nn.Sequential(net(size, 16), nn.BatchNorm1d(16)) for m, size in SIZES.items()}
    model = seeded(lambda: LatentPrediction(projected, {m: net(16, 16) for m in SIZES}))
    trained(model, data, label)
    h = model.eval().encode({m: x[1800:] for m, x in data.items()})
    assert mrr(model.decode(h["audio"], "video"), h["video"]) > 0.5
