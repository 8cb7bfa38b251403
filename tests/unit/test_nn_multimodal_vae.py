"""VAEs of one modality, several, or one under the condition of another: identities, bounds, absence, small runs."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from autoencoder_toys import SIZES, heads, mrr, net, pairs, total, towers, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.conditional_vae import VAE, ConditionalVAE
from avcl.nn.conditioning import Beside
from avcl.nn.constrained import LatentClassification
from avcl.nn.multimodal_vae import MultimodalVAE, Posterior
from avcl.objectives import elbo, gaussian_kl, gaussian_log_likelihood, mixture_elbo, wasserstein2
from avcl.types import Stream

JOINTS = ("poe", "moe", "mopoe", "joint", "tied")
SHARP = partial(gaussian_log_likelihood, log_variance=-2.0)


def make(joint: str, **settings) -> MultimodalVAE:
    torch.manual_seed(1)
    extra = {"joint_encoder": Beside(net(192, 8))} if joint == "joint" else {}
    return MultimodalVAE(towers(8), heads(4), dim=4, joint=joint, **extra, **settings)  # type: ignore[arg-type]


def batch(n: int = 5, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, size, generator=g) for name, size in SIZES.items()}


def g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------------------ contract
@pytest.mark.parametrize("joint", JOINTS)
def test_every_joint_learns_saves_and_runs_in_half_precision(joint: str, tmp_path: Path) -> None:
    model, x = make(joint), batch()
    latents = model.encode(x)
    assert tuple(latents) == model.latents
    terms = model.terms(latents, x, generator=g())
    assert all(t.ndim == 0 and bool(t.isfinite()) for t in terms.values())
    total(terms).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    again = model.terms(latents, x, generator=g())
    assert {k: t.item() for k, t in again.items()} == {k: t.item() for k, t in terms.items()}
    assert total(model.terms(latents, x, generator=g(1))).item() != total(terms).item()

    save_file(model.state_dict(), tmp_path / "w.safetensors")
    other = make(joint)
    nn.init.zeros_(next(other.parameters()))
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    made = model.generate({"audio": x["audio"]}, "video")
    assert made.shape == (5, 128)
    assert torch.equal(other.generate({"audio": x["audio"]}, "video"), made)
    assert not torch.equal(model.generate({"audio": x["audio"]}, "video", generator=g()), made)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.terms(model.encode(x), x, generator=g())
    for key in terms:
        assert half[key].item() == pytest.approx(terms[key].item(), abs=0.3, rel=0.05), key
    whole = make(joint).bfloat16()
    small = {m: v.bfloat16() for m, v in x.items()}
    assert whole.generate(small, "video").dtype == torch.bfloat16
    assert total(whole.terms(whole.encode(small), small, generator=g())).dtype == torch.float32


@pytest.mark.parametrize("joint", JOINTS)
def test_absent_rows_reach_neither_value_nor_gradient(joint: str) -> None:
    model, x = make(joint), batch()
    there = torch.tensor([True, False, True, True, False])

    def run(junk: float) -> tuple[float, list[Tensor]]:
        model.zero_grad()
        values, present = {**x, "audio": torch.where(there[:, None], x["audio"], junk)}, {"audio": there}
        terms = model.terms(model.encode(values, present=present), values, present=present, generator=g())
        total(terms).backward()
        return total(terms).item(), [p.grad.clone() for p in model.parameters()]

    (one, slopes), (two, others) = run(7.0), run(float("nan"))
    assert one == two
    assert all(torch.equal(a, b) for a, b in zip(slopes, others, strict=True))


@pytest.mark.parametrize("joint", JOINTS)
def test_an_absent_modality_is_an_omitted_expert(joint: str) -> None:
    model, x = make(joint), batch()
    alone = model.posterior(model.encode({"video": x["video"]})).center
    latents = model.encode(x)
    torch.testing.assert_close(model.posterior(latents, subset=("video",)).center, alone)
    torch.testing.assert_close(model.codes(latents)["video"], alone)
    nobody = {"audio": torch.zeros(5, dtype=torch.bool)}
    torch.testing.assert_close(model.posterior(latents, present=nobody).center, alone)
    everything_gone = {**nobody, "video": torch.zeros(5, dtype=torch.bool)}
    assert bool((model.posterior(latents, present=everything_gone).center == 0).all())
    with pytest.raises(BatchError):
        model.terms(latents, x, present=everything_gone)


@pytest.mark.parametrize("joint", ["poe", "moe", "mopoe", "tied"])
def test_the_order_of_modalities_does_not_matter(joint: str) -> None:
    model, x = make(joint), batch()
    turned = MultimodalVAE(
        dict(reversed(model.encoders.items())),
        dict(reversed(model.decoders.items())),
        dim=4,
        joint=joint,  # type: ignore[arg-type]
    )
    one, two = model.posterior(model.encode(x)), turned.posterior(turned.encode(x))
    torch.testing.assert_close(one.center, two.center)
    mass = [q.log_variance.exp().sum((0, 2)) for q in (one, two)]
    torch.testing.assert_close(*mass)


# ---------------------------------------------------------------------------------------------------------- posteriors
class Fixed(nn.Module):
    """The same parameters for every row."""

    def __init__(self, mean: float, variance: float):
        super().__init__()
        self.register_buffer("parameters_", torch.tensor([[mean, math.log(variance)]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.parameters_.expand(len(x), -1)


def test_product_of_the_prior_and_two_experts_by_hand() -> None:
    """Prior N(0,1), experts N(1,1) and N(3,4): precision 2.25, mean .7778, variance .4444."""
    model = MultimodalVAE({"a": Fixed(1, 1), "b": Fixed(3, 4)}, {"a": nn.Linear(1, 1)}, dim=1)
    q = model.posterior(model.encode({"a": torch.zeros(2, 1), "b": torch.zeros(2, 1)}))
    torch.testing.assert_close(q.mean, torch.full((1, 2, 1), 1.75 / 2.25))
    torch.testing.assert_close(q.log_variance.exp(), torch.full((1, 2, 1), 1 / 2.25))
    flat = MultimodalVAE({"a": Fixed(3, 4)}, {"a": nn.Linear(1, 1)}, dim=1, joint="moe")
    alone = flat.posterior(flat.encode({"a": torch.zeros(2, 1)}))  # no prior in the mixture: the expert itself
    torch.testing.assert_close(alone.mean, torch.full((1, 2, 1), 3.0))
    torch.testing.assert_close(alone.log_variance.exp(), torch.full((1, 2, 1), 4.0))


def test_mopoe_is_the_mixture_of_all_products() -> None:
    x = batch()
    mopoe, poe = make("mopoe"), make("poe")
    q, latents = mopoe.posterior(mopoe.encode(x)), poe.encode(x)
    assert q.mean.shape == (3, 5, 4)
    for i, subset in enumerate((("audio",), ("video",), ("audio", "video"))):
        one = poe.posterior(latents, subset=subset)
        torch.testing.assert_close(q.mean[i], one.mean[0])
        torch.testing.assert_close(q.log_variance[i], one.log_variance[0])
    there = {"audio": torch.tensor([True, True, True, True, False])}
    assert mopoe.posterior(mopoe.encode(x), present=there).present[:, 4].tolist() == [False, True, False]


def test_joint_posterior_falls_back_row_by_row() -> None:
    model, x = make("joint"), batch()
    latents = model.encode(x)
    there = {"audio": torch.tensor([True, False, True, True, True])}
    q = model.posterior(latents, present=there).center
    torch.testing.assert_close(q[0], latents["joint"][0, :4])
    torch.testing.assert_close(q[1], latents["video"][1, :4])
    assert "joint" not in model.encode({"video": x["video"]})
    with pytest.raises(BatchError, match="every modality"):
        model.terms(model.encode({"video": x["video"]}), x)


def test_draws_come_from_the_components_that_are_there() -> None:
    mean = torch.tensor([[-10.0], [10.0], [99.0]])[:, None].expand(3, 4000, 1)
    there = torch.tensor([[True], [True], [False]]).expand(3, 4000)
    q = Posterior(mean, torch.zeros_like(mean), there)
    z = q.draw(g())
    assert z.abs().max() < 20
    assert (z > 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert bool((q.center == 0).all())
    assert torch.equal(q.draw(g()), z)


# --------------------------------------------------------------------------------------------------------------- bounds
def test_the_bound_of_one_gaussian_by_hand() -> None:
    model, x = VAE(net(64, 8), net(4, 64), dim=4, modality="audio", beta=2.0, free_bits=0.1), batch()
    h = model.encode({"audio": x["audio"]})
    mean, log_variance = h["audio"].chunk(2, 1)
    noise = torch.randn(1, 5, 4, generator=g())[0]
    z = mean + (0.5 * log_variance).exp() * noise
    found = gaussian_log_likelihood(x["audio"], model.decode(z, "audio"))
    terms = model.terms(h, x, generator=g())
    expected = elbo(found, mean, log_variance, beta=2.0, free_bits=0.1)
    assert total(terms).item() == pytest.approx(expected.item(), rel=1e-5)
    plain = VAE(net(64, 8), net(4, 64), dim=4, modality="audio")
    assert plain.terms(h, x)["kl_audio"].item() == pytest.approx(gaussian_kl(mean, log_variance).item(), rel=1e-5)


def test_the_bound_of_a_mixture_by_hand() -> None:
    model, x = make("moe", beta=0.5, lambdas={"audio": 3.0}), batch()
    there = torch.tensor([True, False, True, True, False])
    h = model.encode(x)
    q = model.posterior(h, present={"audio": there})
    z = q.mean + (0.5 * q.log_variance).exp() * torch.randn(q.mean.shape, generator=g())
    found = torch.zeros(2, 5)
    for m in range(2):
        found[m] += 3.0 * torch.where(there, gaussian_log_likelihood(x["audio"], model.decode(z[m], "audio")), 0)
        found[m] += gaussian_log_likelihood(x["video"], model.decode(z[m], "video"))
    expected = mixture_elbo(found, z, q.mean, q.log_variance, present=q.present, beta=0.5)
    terms = model.terms(h, x, present={"audio": there}, generator=g())
    assert total(terms).item() == pytest.approx(expected.item(), rel=1e-5)
    bound = model.elbo(h, x, present={"audio": there}, generator=g())
    assert set(bound) == {"audio", "video", "kl"}
    assert total(bound).item() == pytest.approx(expected.item(), rel=1e-5)


def test_terms_of_each_joint() -> None:
    x = batch()
    names = {j: set(make(j).terms(make(j).encode(x), x)) for j in JOINTS}
    both = {"audio_from_audio+video", "video_from_audio+video", "kl_audio+video"}
    own = {"audio_from_audio", "kl_audio", "video_from_video", "kl_video"}
    assert names["poe"] == both | own
    assert names["moe"] == names["mopoe"] == both
    assert names["tied"] == own | {"audio_from_video", "video_from_audio", "tie_audio_video"}
    assert names["joint"] == {"audio_from_joint", "video_from_joint", "kl_joint", "match_audio", "match_video"}


def test_random_subsets_of_three() -> None:
    encoders, decoders = ({m: nn.Linear(*size) for m in "abc"} for size in ((3, 4), (2, 3)))
    model = MultimodalVAE(encoders, decoders, dim=2, subsets=2)
    x = {m: torch.randn(4, 3) for m in "abc"}
    seen = {
        tuple(k[3:].split("+"))
        for i in range(12)
        for k in model.terms(model.encode(x), x, generator=g(i))
        if "kl_" in k
    }
    assert seen == {("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")}
    terms = model.terms(model.encode(x), x, generator=g(0))
    assert all(k.split("_from_")[0] in k.split("_from_")[1].split("+") for k in terms if "_from_" in k)


def test_ties_by_hand() -> None:
    """Means apart by (1, -2), deviations (1, 2) and (3, 1): W2² = 5 + 4 + 1."""
    rows = [torch.tensor([[1.0, -2.0, 0.0, math.log(4)]]), torch.tensor([[0.0, 0.0, math.log(9), 0.0]])]
    latents = dict(zip(SIZES, rows, strict=True))
    encoders, decoders = (
        {m: nn.Linear(s, 4) for m, s in SIZES.items()},
        {m: nn.Linear(2, s) for m, s in SIZES.items()},
    )
    x = batch(1)
    model = MultimodalVAE(encoders, decoders, dim=2, joint="tied", tie=0.5)
    assert model.terms(latents, x)["tie_audio_video"].item() == pytest.approx(5.0)
    assert wasserstein2(*rows[0].chunk(2, 1), *rows[1].chunk(2, 1)).item() == pytest.approx(10.0)
    sampled = MultimodalVAE(encoders, decoders, dim=2, joint="tied", tied_by="sample")
    still = {m: torch.cat([row[:, :2], torch.full((1, 2), -10.0)], 1) for m, row in latents.items()}
    assert sampled.terms(still, x)["tie_audio_video"].item() == pytest.approx(5**0.5, abs=0.05)


@settings(max_examples=15)
@given(st.sampled_from(JOINTS), st.integers(1, 6), st.integers(0, 10_000))
def test_divergences_are_never_negative(joint: str, n: int, seed: int) -> None:
    model, x = make(joint), batch(n, seed)
    with torch.no_grad():
        latents = {m: 3 * h for m, h in model.encode(x).items()}
        mean = [
            model.terms(latents, x, generator=g(seed + i)) for i in range(1 if joint not in ("moe", "mopoe") else 200)
        ]
    for key in (k for k in mean[0] if not k.partition("_from_")[1]):
        assert sum(t[key].item() for t in mean) / len(mean) >= -0.05, key


def test_more_samples_bring_the_bound_nearer() -> None:
    """-L_K falls with K, and at K = 1 its mean is the negative ELBO: the bound of a mixture too."""
    for joint in ("moe", "poe"):
        model, x = make(joint), batch(64)
        with torch.no_grad():
            h = model.encode(x)
            bound = sum(total(model.elbo(h, x, generator=g(i))).item() for i in range(20)) / 20
            one, five, fifty = (model.importance(h, x, samples=k, generator=g(9)).item() for k in (1, 5, 50))
        assert bound == pytest.approx(one, rel=0.01)
        assert bound > five > fifty


def test_likelihoods_by_modality_and_step_by_step() -> None:
    encoders = {"picture": nn.Linear(6, 4), "words": nn.Linear(6, 4)}
    decoders = {"picture": nn.Linear(2, 9), "words": nn.Sequential(nn.Linear(2, 20), nn.Unflatten(1, (4, 5)))}
    likelihoods = {"picture": "bernoulli", "words": "categorical"}
    model = MultimodalVAE(encoders, decoders, dim=2, joint="moe", likelihoods=likelihoods)  # type: ignore[arg-type]
    x = {"picture": torch.randn(3, 6), "words": torch.randn(3, 6)}
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    words = torch.randint(5, (3, 4)).masked_fill(~mask, 77)
    targets = {"picture": torch.rand(3, 9), "words": Stream(words, mask, 1.0)}
    h = model.encode(x)
    terms = model.terms(h, targets, generator=g())
    q = model.posterior(h, present={"words": mask.any(1)})
    assert all(bool(t.isfinite()) for t in terms.values())
    z = q.mean + (0.5 * q.log_variance).exp() * torch.randn(q.mean.shape, generator=g())
    cost = 0.0
    for s in range(2):
        log_p = model.decode(z[s], "words").detach().log_softmax(-1)
        cost -= sum(float(log_p[i, t, words[i, t]]) for i in range(3) for t in range(4) if mask[i, t]) / 6
    assert terms["words_from_picture+words"].item() == pytest.approx(cost, rel=1e-4)
    blank = {"words": Stream(words, torch.zeros_like(mask), 1.0)}  # nobody said anything: no expert, no target
    only = model.terms(h, {**blank, "picture": targets["picture"]}, generator=g())
    assert only["words_from_picture+words"].item() == 0
    alone = model.terms({"picture": h["picture"]}, {"picture": targets["picture"]}, generator=g())
    assert only["picture_from_picture+words"].item() == pytest.approx(alone["picture_from_picture"].item(), rel=1e-5)
    with pytest.raises(BatchError, match="decoder"):
        model.terms(h, {"words": Stream(words[:, :3], mask[:, :3], 1.0)})


def test_settings_have_names() -> None:
    for bad in ({"joint": "all"}, {"joint": "joint"}, {"joint": "moe", "free_bits": 0.1}, {"beta": -1.0}, {"dim": 0}):
        with pytest.raises(ConfigError):
            MultimodalVAE(towers(8), heads(4), **{"dim": 4, **bad})
    with pytest.raises(ConfigError, match="likelihoods"):
        MultimodalVAE(towers(8), heads(4), dim=4, likelihoods="normal")  # type: ignore[arg-type]
    with pytest.raises(BatchError, match="must give"):
        MultimodalVAE(towers(7), heads(4), dim=4).encode(batch())
    with pytest.raises(BatchError, match="no posterior"):
        make("poe").posterior({})


# ---------------------------------------------------------------------------------------------------------- conditional
def conditional(prior: bool, width: int = 16) -> ConditionalVAE:
    torch.manual_seed(0)
    return ConditionalVAE(
        Beside(net(128 + width, 8)),
        Beside(net(4 + width, 128)),
        net(64, width),
        dim=4,
        target="video",
        given="audio",
        prior=net(width, 8) if prior else None,
        likelihood=SHARP,
    )


@pytest.mark.parametrize("prior", [False, True])
def test_conditional_vae(prior: bool, tmp_path: Path) -> None:
    model, x = conditional(prior), batch()
    latents = model.encode(x)
    assert set(latents) == set(model.latents)
    terms = model.terms(latents, x, generator=g())
    assert terms["kl"].item() >= 0
    total(terms).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    made = model.generate({"audio": x["audio"]}, "video")
    assert torch.equal(made, model.generate({"audio": x["audio"]}, "video"))
    assert not torch.equal(made, model.generate({"audio": x["audio"]}, "video", generator=g()))
    there = {"audio": torch.tensor([True, True, True, True, False])}
    free = model.generate({"audio": x["audio"] * 3}, "video", present=there)
    assert torch.equal(free[4], model.generate({"audio": x["audio"]}, "video", present=there)[4])
    absent = {"video": torch.tensor([True, True, True, True, False])}
    broken = {**x, "video": torch.where(absent["video"][:, None], x["video"], torch.nan)}
    kept = model.terms(model.encode(broken, present=absent), broken, present=absent, generator=g())
    assert all(bool(t.isfinite()) for t in kept.values())
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="under a condition"):
        model.decode(torch.zeros(5, 4), "video")
    with pytest.raises(BatchError, match="missing"):
        model.encode({"video": x["video"]})


# ----------------------------------------------------------------------------------------------------------- small runs
@pytest.mark.parametrize("joint", ["moe", "poe", "tied"])
def test_held_out_pairs_find_each_other(joint: str) -> None:
    data, label = pairs()
    torch.manual_seed(1)
    model = MultimodalVAE(towers(32), heads(16), dim=16, joint=joint, likelihoods=SHARP)  # type: ignore[arg-type]
    trained(model, data, label)
    test = {m: x[1800:] for m, x in data.items()}
    with torch.no_grad():
        codes = model.codes(model.encode(test))
        made = model.generate({"audio": test["audio"]}, "video")
    assert mrr(codes["audio"], codes["video"]) > 0.5
    assert mrr(made, test["video"]) > 0.5


def test_classes_of_a_variational_code() -> None:
    data, label = pairs()
    torch.manual_seed(1)
    inner = MultimodalVAE(towers(32), heads(16), dim=16, joint="moe", likelihoods=SHARP)
    model = LatentClassification(inner, nn.Linear(16, 4), weight=10.0)
    trained(model, data, label, steps=100)
    found = model.classify(model.encode({"video": data["video"][1800:]}))
    assert set(found) == {"video", "all"}
    assert (found["video"].argmax(1) == label[1800:]).float().mean() > 0.9


def test_a_conditional_vae_generates_the_partner() -> None:
    data, label = pairs()
    model = conditional(prior=True)
    trained(model, data, label, steps=200)
    test = {m: x[1800:] for m, x in data.items()}
    with torch.no_grad():
        assert mrr(model.generate({"audio": test["audio"]}, "video"), test["video"]) > 0.3
