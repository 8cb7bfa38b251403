"""The evidence bounds against the worked values, loops in Python floats, torch.distributions and sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Laplace, Normal, kl_divergence

from avcl.errors import BatchError, ConfigError
from avcl.objectives.experts import (
    gaussian_log_density,
    mixture_elbo,
    mixture_log_density,
    product_of_experts,
    subset_posteriors,
)
from avcl.objectives.variational import (
    bernoulli_log_likelihood,
    categorical_log_likelihood,
    elbo,
    gaussian_kl,
    gaussian_kl_between,
    gaussian_log_likelihood,
    importance_bound,
    laplace_log_likelihood,
    sample_gaussian,
)

MEAN = torch.tensor([[0.5, -1], [0, 0.2]], dtype=torch.float64)
LOG_VARIANCE = torch.tensor([[0, -0.5], [0.3, 0]], dtype=torch.float64)
X = torch.tensor([[1, 2], [0, 1]], dtype=torch.float64)
GUESS = torch.tensor([[0.5, 2.5], [0.2, 0.7]], dtype=torch.float64)
ABSENT = torch.tensor([[True, False, True, True], [False, True, True, False], [True, True, False, True]])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_normal(z: float, mean: float, log_variance: float) -> float:
    return -0.5 * (math.log(2 * math.pi) + log_variance + (z - mean) ** 2 / math.exp(log_variance))


def slow_kl(mean: Tensor, log_variance: Tensor) -> list[float]:
    return [
        sum(0.5 * (m * m + math.exp(s) - 1 - s) for m, s in zip(row, spread, strict=True))
        for row, spread in zip(mean.tolist(), log_variance.tolist(), strict=True)
    ]


def slow_product(means: Tensor, spreads: Tensor, present: Tensor, prior: bool) -> tuple[list[float], list[float]]:
    """Mean and variance of every item and dimension, one factor at a time."""
    out: tuple[list[float], list[float]] = ([], [])
    for b in range(means.shape[1]):
        for d in range(means.shape[2]):
            precision, weighted = (1.0, 0.0) if prior else (0.0, 0.0)
            for m in range(len(means)):
                if present[m, b]:
                    precision += math.exp(-float(spreads[m, b, d]))
                    weighted += float(means[m, b, d]) * math.exp(-float(spreads[m, b, d]))
            out[0].append(weighted / precision)
            out[1].append(1 / precision)
    return out


def slow_mixture(z: Tensor, means: Tensor, spreads: Tensor, present: Tensor) -> list[float]:
    out = []
    for b in range(len(z)):
        shares = [
            math.exp(
                sum(
                    log_normal(float(z[b, d]), float(means[m, b, d]), float(spreads[m, b, d]))
                    for d in range(z.shape[1])
                )
            )
            for m in range(len(means))
            if present[m, b]
        ]
        out.append(math.log(sum(shares) / len(shares)))
    return out


# -------------------------------------------------------------------------------------------------------- worked values
def test_worked_values() -> None:
    assert float(gaussian_kl(MEAN, LOG_VARIANCE)) == pytest.approx(0.361597, abs=1e-6)
    assert float(gaussian_kl(MEAN, LOG_VARIANCE, reduction="sum")) == pytest.approx(0.723195, abs=1e-6)
    for constant, value in ((False, 0.519097), (True, 2.356974)):
        likelihood = gaussian_log_likelihood(X, GUESS, constant=constant)
        assert float(elbo(likelihood, MEAN, LOG_VARIANCE)) == pytest.approx(value, abs=1e-6)


def test_worked_product() -> None:
    means = torch.tensor([[[1.0]], [[3.0]]])
    mean, log_variance = product_of_experts(means, torch.tensor([[[1.0]], [[4.0]]]).log())
    assert float(mean) == pytest.approx(0.7778, abs=1e-4)
    assert float((-log_variance).exp()) == pytest.approx(2.25, abs=1e-6)
    assert float(log_variance.exp()) == pytest.approx(0.4444, abs=1e-4)


# ---------------------------------------------------------------------------------------------------------- divergences
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 1000))
def test_divergence_equals_the_loop_and_torch(size: int, dim: int, seed: int) -> None:
    m1, s1, m2, s2 = 2 * drawn(4, size, dim, seed=seed)
    slow = slow_kl(m1, s1)
    assert float(gaussian_kl(m1, s1)) == pytest.approx(sum(slow) / size, rel=1e-10)
    assert float(gaussian_kl(m1, s1, reduction="sum")) == pytest.approx(sum(slow), rel=1e-10)
    peer = kl_divergence(Normal(m1, (0.5 * s1).exp()), Normal(m2, (0.5 * s2).exp())).sum(1)
    assert float(gaussian_kl_between(m1, s1, m2, s2)) == pytest.approx(float(peer.mean()), rel=1e-9)
    assert float(gaussian_kl_between(m1, s1, m2, s2, reduction="sum")) == pytest.approx(float(peer.sum()), rel=1e-9)
    assert float(gaussian_kl(m1, s1)) >= 0


def test_divergence_from_the_prior_is_the_special_case_and_zero_only_there() -> None:
    m, s = drawn(2, 5, 3)
    zero = torch.zeros_like(m)
    assert torch.allclose(gaussian_kl_between(m, s, zero, zero), gaussian_kl(m, s))
    assert float(gaussian_kl_between(m, s, m, s)) == 0.0
    assert float(gaussian_kl(zero, zero)) == 0.0
    tiny = torch.full((1, 1), 1e-4)  # exp(s) - 1 - s in float32 would be off by its own size
    assert float(gaussian_kl(torch.zeros(1, 1), tiny)) == pytest.approx(0.25e-8, rel=0.02)


def test_divergence_of_sequences_sums_over_everything_but_the_batch() -> None:
    m, s = drawn(2, 3, 4, 5)
    assert torch.allclose(gaussian_kl(m, s), gaussian_kl(m.flatten(1), s.flatten(1)))


def test_log_variance_is_clamped_with_zero_gradient_outside() -> None:
    s = torch.tensor([[-50.0, -10.0, 3.0, 10.0, 50.0]], requires_grad=True)
    mean = torch.zeros(1, 5)
    value = gaussian_kl(mean, s)
    assert torch.allclose(value, gaussian_kl(mean, s.clamp(-10, 10)))
    (gradient,) = torch.autograd.grad(value, s)
    assert (gradient[0, [0, 4]] == 0).all()
    assert (gradient[0, 1:4] != 0).all()
    assert torch.isfinite(gradient).all()


# ----------------------------------------------------------------------------------------------------------- likelihood
def test_likelihoods_are_those_of_torch() -> None:
    x, guess, spread = drawn(3, 4, 2, 3)
    normal = Normal(guess, (0.5 * spread).exp()).log_prob(x).flatten(1).sum(1)
    assert torch.allclose(gaussian_log_likelihood(x, guess, log_variance=spread), normal)
    shared = gaussian_log_likelihood(x, guess, log_variance=spread[:1, :1])
    assert torch.allclose(shared, Normal(guess, (0.5 * spread[:1, :1]).exp()).log_prob(x).flatten(1).sum(1))
    laplace = Laplace(guess, torch.tensor(0.7, dtype=torch.float64)).log_prob(x).flatten(1).sum(1)
    assert torch.allclose(laplace_log_likelihood(x, guess, scale=0.7), laplace)
    assert torch.allclose(laplace_log_likelihood(x, guess, constant=False), -(x - guess).abs().flatten(1).sum(1))
    bits = (x > 0).double()
    assert torch.allclose(
        bernoulli_log_likelihood(bits, guess), Bernoulli(logits=guess).log_prob(bits).flatten(1).sum(1)
    )
    tokens = torch.tensor([[0, 2], [1, 1], [2, 0], [0, 0]])
    assert torch.allclose(categorical_log_likelihood(tokens, guess), Categorical(logits=guess).log_prob(tokens).sum(1))


def test_masked_tokens_do_not_count() -> None:
    logits = drawn(2, 3, 4).requires_grad_()
    tokens = torch.tensor([[0, 3, -100], [1, -100, -100]])
    value = categorical_log_likelihood(tokens, logits, mask=tokens >= 0)
    slow = logits.log_softmax(-1)
    assert torch.allclose(value, torch.stack([slow[0, 0, 0] + slow[0, 1, 3], slow[1, 0, 1]]))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert (gradient[tokens < 0] == 0).all()


def test_huge_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4]], dtype=torch.bfloat16, requires_grad=True)
    for value in (
        bernoulli_log_likelihood(torch.tensor([[0.0, 1.0]]), logits),
        categorical_log_likelihood(torch.tensor([1]), logits),
        gaussian_log_likelihood(torch.zeros(1, 2), logits),
        laplace_log_likelihood(torch.zeros(1, 2), logits),
    ):
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
        assert torch.isfinite(torch.autograd.grad(value.sum(), logits)[0]).all()


# --------------------------------------------------------------------------------------------------------------- bounds
def test_bound_is_divergence_less_likelihood_with_weight() -> None:
    m, s = drawn(2, 6, 4)
    likelihood = drawn(6, seed=1)
    slow = slow_kl(m, s)
    for beta in (0.0, 0.3, 4.0):
        expected = sum(beta * k - float(x) for k, x in zip(slow, likelihood, strict=True)) / 6
        assert float(elbo(likelihood, m, s, beta=beta)) == pytest.approx(expected, rel=1e-10)


def test_free_bits_leave_small_dimensions_alone() -> None:
    m = torch.tensor([[0.01, 2.0], [0.02, -1.0]], dtype=torch.float64, requires_grad=True)
    s = torch.zeros(2, 2, dtype=torch.float64)
    value = elbo(torch.zeros(2, dtype=torch.float64), m, s, free_bits=0.5)
    assert value.item() == pytest.approx(0.5 + (2.0 + 0.5) / 2)
    (gradient,) = torch.autograd.grad(value, m)
    assert (gradient[:, 0] == 0).all()
    assert torch.allclose(gradient[:, 1], m[:, 1] / 2)


def test_importance_bound_is_the_loop_and_never_above_the_plain_bound() -> None:
    w = 3 * drawn(7, 5)
    slow = [math.log(sum(math.exp(float(w[k, i])) for k in range(7)) / 7) for i in range(5)]
    assert float(importance_bound(w)) == pytest.approx(-sum(slow) / 5, rel=1e-10)
    assert float(importance_bound(w)) <= float(-w.mean())
    assert torch.allclose(importance_bound(w[:1]), -w[0].mean())
    assert float(importance_bound(torch.full((4, 2), -1e4))) == pytest.approx(1e4)
    assert torch.allclose(importance_bound(w.view(7, 1, 5).expand(7, 3, 5)), importance_bound(w))


def test_bounds_hold_and_tighten_on_a_model_whose_evidence_is_known() -> None:
    # z ~ N(0, 1), x | z ~ N(z, 1): log p(x) = log N(x; 0, 2) exactly; the posterior used is a bad one on purpose
    x = torch.tensor([[0.8], [-1.5]], dtype=torch.float64)
    evidence = sum(log_normal(float(v), 0.0, math.log(2.0)) for v in x[:, 0]) / 2
    mean, spread = torch.zeros(20000, 2, 1, dtype=torch.float64), torch.zeros(20000, 2, 1, dtype=torch.float64)
    z = sample_gaussian(mean, spread, generator=torch.Generator().manual_seed(0))
    w = gaussian_log_density(x, z) + gaussian_log_density(z) - gaussian_log_density(z, mean, spread)
    plain = -float(w.mean())
    closed = float(elbo(gaussian_log_density(x, z).mean(0), mean[0], spread[0]))
    few, many = (-float(importance_bound(w.view(k, -1))) for k in (5, 2000))
    assert closed == pytest.approx(plain, abs=0.03)  # the divergence in closed form and by sampling
    assert -plain < few < many < evidence + 0.01
    assert many == pytest.approx(evidence, abs=0.01)


def test_samples_have_the_moments_the_gradient_and_the_seed() -> None:
    mean, spread = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 2.0]])
    parameters = [mean.clone().requires_grad_(), spread.clone().requires_grad_()]
    z = sample_gaussian(*(p.expand(20000, 2) for p in parameters), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(z.mean(0), mean[0], atol=0.06)
    assert torch.allclose(z.var(0), spread[0].exp(), rtol=0.05)
    gradients = torch.autograd.grad(z.mean(0).sum(), parameters)
    assert torch.allclose(gradients[0], torch.ones(1, 2))
    again = sample_gaussian(*(p.expand(20000, 2) for p in parameters), generator=torch.Generator().manual_seed(0))
    assert torch.equal(z, again)
    assert not torch.equal(sample_gaussian(mean, spread), sample_gaussian(mean, spread))


# -------------------------------------------------------------------------------------------------------------- experts
@pytest.mark.parametrize("prior", [True, False])
def test_product_equals_the_loop_with_experts_missing(prior: bool) -> None:
    means, spreads = drawn(2, 3, 4, 2)
    mean, log_variance = product_of_experts(means, spreads, present=ABSENT, prior=prior)
    slow = slow_product(means, spreads, ABSENT, prior)
    assert mean.flatten().tolist() == pytest.approx(slow[0], rel=1e-10)
    assert log_variance.exp().flatten().tolist() == pytest.approx(slow[1], rel=1e-10)


def test_product_of_one_expert_without_prior_is_that_expert_and_of_none_the_prior() -> None:
    means, spreads = drawn(2, 1, 4, 3)
    mean, log_variance = product_of_experts(means, spreads, prior=False)
    assert torch.allclose(mean, means[0])
    assert torch.allclose(log_variance, spreads[0])
    mean, log_variance = product_of_experts(means, spreads, present=torch.zeros(1, 4, dtype=torch.bool))
    assert (mean == 0).all()
    assert (log_variance == 0).all()


def test_order_of_modalities_does_not_matter() -> None:
    means, spreads = drawn(2, 3, 4, 2)
    order = torch.tensor([2, 0, 1])
    whole = product_of_experts(means, spreads, present=ABSENT)
    turned = product_of_experts(means[order], spreads[order], present=ABSENT[order])
    assert all(torch.allclose(a, b) for a, b in zip(whole, turned, strict=True))
    z = drawn(4, 2, seed=3)
    assert torch.allclose(
        mixture_log_density(z, means, spreads, present=ABSENT),
        mixture_log_density(z, means[order], spreads[order], present=ABSENT[order]),
    )


def test_mixture_density_equals_the_loop() -> None:
    means, spreads = drawn(2, 3, 4, 2)
    z = drawn(4, 2, seed=3)
    value = mixture_log_density(z, means, spreads, present=ABSENT)
    assert value.tolist() == pytest.approx(slow_mixture(z, means, spreads, ABSENT), rel=1e-9)
    several = mixture_log_density(torch.stack([z, -z]), means, spreads, present=ABSENT)
    assert several.shape == (2, 4)
    assert torch.allclose(several[0], value)


def test_mixture_density_integrates_to_one_by_sampling() -> None:
    # E_{z ~ N(0, 3²)} [ q(z) / N(z; 0, 3²) ] = 1, and E_{z ~ q} [ z ] is the mean of the means
    means, spreads = drawn(2, 3, 1, 1)
    generator = torch.Generator().manual_seed(1)
    wide = torch.full((200_000, 1, 1), 2 * math.log(3.0), dtype=torch.float64)
    z = sample_gaussian(torch.zeros_like(wide), wide, generator=generator)
    ratio = (mixture_log_density(z, means, spreads) - gaussian_log_density(z, None, wide)).exp()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.02)
    assert float((ratio * z[..., 0]).mean()) == pytest.approx(float(means.mean()), abs=0.03)


def test_far_from_every_expert_the_density_is_finite() -> None:
    means = torch.zeros(2, 1, 3, requires_grad=True)
    value = mixture_log_density(torch.full((1, 3), 1e4), means, torch.zeros(2, 1, 3))
    assert torch.isfinite(value).all()
    assert torch.isfinite(torch.autograd.grad(value.sum(), means)[0]).all()


def test_what_stands_in_absent_rows_reaches_neither_value_nor_gradient() -> None:
    means, spreads = drawn(2, 3, 4, 2)
    z = drawn(3, 4, 2, seed=5)
    likelihood = drawn(3, 4, seed=6)
    hole = ~ABSENT

    def values(m: Tensor, s: Tensor, x: Tensor, w: Tensor) -> list[Tensor]:
        subsets = subset_posteriors(m, s, present=ABSENT)
        return [
            *product_of_experts(m, s, present=ABSENT),
            subsets.mean,
            subsets.log_variance,
            mixture_log_density(drawn(4, 2, seed=7), m, s, present=ABSENT),
            mixture_elbo(w, x, m, s, present=ABSENT),
        ]

    clean = values(means, spreads, z, likelihood)
    holed = [
        x.masked_fill(hole if x.ndim == 2 else hole[..., None], torch.nan).requires_grad_()
        for x in (means, spreads, z, likelihood)
    ]
    dirty = values(*holed)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
    for gradient in torch.autograd.grad(sum(x.sum() for x in dirty), holed):
        assert torch.isfinite(gradient).all()
        assert (gradient[hole] == 0).all()


@pytest.mark.parametrize("prior", [True, False])
def test_subsets_are_the_products_of_their_members(prior: bool) -> None:
    means, spreads = drawn(2, 3, 4, 2)
    subsets = subset_posteriors(means, spreads, present=ABSENT, prior=prior)
    wanted = {frozenset(c) for n in (1, 2, 3) for c in combinations(range(3), n)}
    assert {frozenset(row.nonzero().flatten().tolist()) for row in subsets.members} == wanted
    assert len(subsets.mean) == 2**3 - 1
    for s, members in enumerate(subsets.members):
        there = ABSENT[members].all(0)
        assert torch.equal(subsets.present[s], there)
        mean, log_variance = product_of_experts(means[members], spreads[members], prior=prior)
        assert torch.allclose(subsets.mean[s][there], mean[there])
        assert torch.allclose(subsets.log_variance[s][there], log_variance[there])
        assert (subsets.mean[s][~there] == 0).all()
        assert (subsets.log_variance[s][~there] == 0).all()


def test_mixture_bound_equals_the_loop() -> None:
    means, spreads = drawn(2, 3, 4, 2)
    z, likelihood = drawn(3, 4, 2, seed=5), drawn(3, 4, seed=6)
    for beta in (1.0, 0.25):
        total = 0.0
        for b in range(4):
            terms = []
            for m in range(3):
                if ABSENT[m, b]:
                    (density,) = slow_mixture(
                        z[m, b : b + 1], means[:, b : b + 1], spreads[:, b : b + 1], ABSENT[:, b : b + 1]
                    )
                    prior = sum(log_normal(float(x), 0.0, 0.0) for x in z[m, b])
                    terms.append(float(likelihood[m, b]) - beta * (density - prior))
            total -= sum(terms) / len(terms) / 4
        value = mixture_elbo(likelihood, z, means, spreads, present=ABSENT, beta=beta)
        assert float(value) == pytest.approx(total, rel=1e-9)


def test_mixture_bound_of_one_expert_is_the_plain_bound_in_the_mean() -> None:
    mean, spread = drawn(2, 1, 3, seed=4)
    many = 50_000
    means, spreads = (x.expand(many, 3).unsqueeze(0) for x in (mean, spread))
    z = sample_gaussian(means, spreads, generator=torch.Generator().manual_seed(2))
    likelihood = torch.zeros(1, many, dtype=torch.float64)
    assert float(mixture_elbo(likelihood, z, means, spreads)) == pytest.approx(
        float(gaussian_kl(mean, spread)), abs=0.03
    )


# ------------------------------------------------------------------------------------------------- gradients, precision
def test_gradients() -> None:
    m, s, z, r = (x.requires_grad_() for x in drawn(4, 3, 4, 2).unbind())
    likelihood = drawn(3, 4, seed=1).requires_grad_()
    tests: list[tuple[Callable[..., Tensor | tuple[Tensor, ...]], tuple[Tensor, ...]]] = [
        (gaussian_kl, (m, s)),
        (gaussian_kl_between, (m, s, z, r)),
        (lambda m, s: product_of_experts(m, s, present=ABSENT), (m, s)),
        (lambda m, s: subset_posteriors(m, s, present=ABSENT, prior=False)[:2], (m, s)),
        (lambda z, m, s: mixture_log_density(z, m, s, present=ABSENT), (z, m, s)),
        (lambda w, z, m, s: mixture_elbo(w, z, m, s, present=ABSENT), (likelihood, z, m, s)),
        (lambda w, m, s: elbo(w, m, s, beta=0.5), (likelihood[:, 0], m, s)),
        (importance_bound, (likelihood,)),
        (lambda x, y, s: gaussian_log_likelihood(x, y, log_variance=s), (z, m, s)),
        (laplace_log_likelihood, (z, m)),
        (bernoulli_log_likelihood, (z, m)),
    ]
    for function, inputs in tests:
        assert torch.autograd.gradcheck(function, inputs)


def test_half_precision_is_raised() -> None:
    m, s = (x.to(torch.bfloat16) for x in drawn(2, 3, 4, 2).unbind())
    with torch.autocast("cpu", torch.bfloat16):
        values = [gaussian_kl(m, s), *product_of_experts(m, s), mixture_log_density(m[0], m, s), sample_gaussian(m, s)]
    assert all(x.dtype == torch.float32 for x in values)
    assert float(values[0]) == pytest.approx(float(gaussian_kl(m.double(), s.double())), rel=1e-5)


# --------------------------------------------------------------------------------------------------------------- errors
def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(BatchError, match="one shape"):
        gaussian_kl(MEAN, LOG_VARIANCE[:1])
    with pytest.raises(BatchError, match="non-empty"):
        gaussian_kl(MEAN[:0], LOG_VARIANCE[:0])
    with pytest.raises(ConfigError, match="reduction"):
        gaussian_kl(MEAN, LOG_VARIANCE, reduction="none")  # type: ignore[arg-type]
    with pytest.raises(BatchError, match="log_likelihood"):
        elbo(torch.zeros(3), MEAN, LOG_VARIANCE)
    with pytest.raises(ConfigError, match="beta"):
        elbo(torch.zeros(2), MEAN, LOG_VARIANCE, beta=-1)
    with pytest.raises(ConfigError, match="free_bits"):
        elbo(torch.zeros(2), MEAN, LOG_VARIANCE, free_bits=-1)
    with pytest.raises(BatchError, match="K, B"):
        importance_bound(torch.zeros(0, 3))
    with pytest.raises(BatchError, match="broadcast"):
        gaussian_log_likelihood(X, GUESS, log_variance=torch.zeros(3))
    with pytest.raises(BatchError, match="broadcast"):
        gaussian_log_density(X, torch.zeros(3))
    with pytest.raises(ConfigError, match="scale"):
        laplace_log_likelihood(X, GUESS, scale=0)
    with pytest.raises(BatchError, match="logits"):
        categorical_log_likelihood(torch.tensor([1]), X)
    with pytest.raises(BatchError, match="integer"):
        categorical_log_likelihood(torch.zeros(2), X)
    with pytest.raises(BatchError, match=r"\[0, 2\)"):
        categorical_log_likelihood(torch.tensor([0, 2]), X)
    with pytest.raises(BatchError, match="mask"):
        categorical_log_likelihood(torch.tensor([0, 1]), X, mask=torch.ones(2))


def test_experts_that_do_not_fit_are_named() -> None:
    means, spreads = drawn(2, 2, 3, 4)
    nobody = torch.tensor([[True, False, True], [True, False, False]])
    with pytest.raises(BatchError, match="M, B, D"):
        product_of_experts(means, spreads[:1])
    with pytest.raises(BatchError, match="M, B, D"):
        product_of_experts(means[:0], spreads[:0])
    with pytest.raises(BatchError, match="present must be bool"):
        product_of_experts(means, spreads, present=torch.ones(2, 3))
    with pytest.raises(BatchError, match="expert present for every item"):
        product_of_experts(means, spreads, present=nobody, prior=False)
    with pytest.raises(BatchError, match="expert present for every item"):
        mixture_log_density(means[0], means, spreads, present=nobody)
    with pytest.raises(BatchError, match="expert present for every item"):
        mixture_elbo(torch.zeros(2, 3), means, means, spreads, present=nobody)
    with pytest.raises(BatchError, match="needs z"):
        mixture_log_density(means[0, :, :2], means, spreads)
    with pytest.raises(BatchError, match="log_likelihood"):
        mixture_elbo(torch.zeros(3), means, means, spreads)
    with pytest.raises(ConfigError, match="beta"):
        mixture_elbo(torch.zeros(2, 3), means, means, spreads, beta=-0.1)
