"""Distances between clouds against the worked values, loops in Python floats, SciPy and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives import blocked
from avcl.objectives.discrepancies import mmd, sliced_wasserstein, wasserstein2

A = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)
V = torch.tensor([[0.8, 0.6], [0, 1], [0.6, -0.8]], dtype=torch.float64)
MEAN = torch.tensor([[0.5, -1], [0, 0.2]], dtype=torch.float64)
LOG_VARIANCE = torch.tensor([[0, -0.5], [0.3, 0]], dtype=torch.float64)
MEAN2 = torch.tensor([[0, 0], [1, -0.2]], dtype=torch.float64)
LOG_VARIANCE2 = torch.tensor([[0.2, 0], [0, -1]], dtype=torch.float64)
LINE = torch.ones(1, 1, dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_mmd(a: Tensor, v: Tensor, gammas: list[float], unbiased: bool) -> float:
    def mean(x: Tensor, y: Tensor, same: bool) -> float:
        total, count = 0.0, 0
        for i, p in enumerate(x.tolist()):
            for j, q in enumerate(y.tolist()):
                if not (same and unbiased and i == j):
                    d = sum((s - t) ** 2 for s, t in zip(p, q, strict=True))
                    total += sum(math.exp(-g * d) for g in gammas) / len(gammas)
                    count += 1
        return total / count

    return mean(a, a, True) + mean(v, v, True) - 2 * mean(a, v, False)


def slow_sliced(a: Tensor, v: Tensor, directions: Tensor) -> float:
    """Both clouds repeated up to a common size, so that quantiles pair off one by one."""
    total = 0.0
    for u in directions.tolist():
        p, q = (sorted(sum(s * t for s, t in zip(row, u, strict=True)) for row in x.tolist()) for x in (a, v))
        n, m = len(p), len(q)
        pairs = zip([x for x in p for _ in range(m)], [x for x in q for _ in range(n)], strict=True)
        total += sum((x - y) ** 2 for x, y in pairs) / (n * m)
    return total / len(directions)


# ----------------------------------------------------------------------------------------------- Wasserstein, Gaussians
def test_worked_values_between_gaussians() -> None:
    whole = (MEAN, LOG_VARIANCE, MEAN2, LOG_VARIANCE2)
    assert float(wasserstein2(*whole)) == pytest.approx(1.325499, abs=1e-6)
    assert float(wasserstein2(*whole, squared=False)) == pytest.approx(1.151284, abs=1e-6)
    for i, value in enumerate((1.309990, 1.341008)):
        assert float(wasserstein2(*(x[i : i + 1] for x in whole))) == pytest.approx(value, abs=1e-6)
    means = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]])
    spreads = [2 * torch.tensor([s]).log() for s in ([1.0, 2.0], [2.0, 2.0])]
    assert float(wasserstein2(means[0], spreads[0], means[1], spreads[1])) == pytest.approx(2.0, abs=1e-6)


def test_gaussian_distance_is_the_one_of_many_samples() -> None:
    # one dimension: the optimal plan pairs sorted samples
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + 2.0 * torch.randn(100_000, 1, generator=generator, dtype=torch.float64)
    y = -1.0 + 0.5 * torch.randn(100_000, 1, generator=generator, dtype=torch.float64)
    parameters = [torch.tensor([[p]], dtype=torch.float64) for p in (0.5, math.log(4.0), -1.0, math.log(0.25))]
    assert float(wasserstein2(*parameters)) == pytest.approx(1.5**2 + 1.5**2)
    assert float(sliced_wasserstein(x, y, directions=LINE)) == pytest.approx(4.5, abs=0.1)


def test_gaussian_distance_is_symmetric_with_gradients_also_at_zero() -> None:
    m1, s1, m2, s2 = (x.requires_grad_() for x in drawn(4, 3, 2).unbind())
    assert torch.equal(wasserstein2(m1, s1, m2, s2), wasserstein2(m2, s2, m1, s1))
    for squared in (True, False):
        assert torch.autograd.gradcheck(lambda *x, s=squared: wasserstein2(*x, squared=s), (m1, s1, m2, s2))
        same = wasserstein2(m1, s1, m1.detach(), s1.detach(), squared=squared)
        assert same.item() == 0.0
        assert all((g == 0).all() for g in torch.autograd.grad(same, (m1, s1)))
    assert torch.autograd.gradgradcheck(lambda *x: wasserstein2(*x, squared=False), (m1, s1, m2, s2))


def test_gaussian_log_variance_is_clamped() -> None:
    zero, far = torch.zeros(1, 1), torch.full((1, 1), 500.0, requires_grad=True)
    value = wasserstein2(zero, far, zero, zero)
    assert value.item() == pytest.approx((math.exp(5) - 1) ** 2, rel=1e-6)
    assert float(torch.autograd.grad(value, far)[0]) == 0.0


# --------------------------------------------------------------------------------------------------------------- sliced
def test_worked_value_of_the_two_axes() -> None:
    axes = torch.eye(2, dtype=torch.float64)
    assert float(sliced_wasserstein(A, V, directions=axes)) == pytest.approx(0.12, abs=1e-9)


def test_worked_value_on_a_line() -> None:
    x, y = torch.tensor([[0.1], [0.4], [0.9]]), torch.tensor([[0.3], [0.2], [1.2]])
    assert float(sliced_wasserstein(x, y, directions=torch.ones(1, 1), order=1)) == pytest.approx(0.166667, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.integers(0, 1000))
def test_sliced_equals_the_loop_for_any_two_sizes(n: int, m: int, dim: int, seed: int) -> None:
    a, v, directions = drawn(n, dim, seed=seed), drawn(m, dim, seed=seed + 1), drawn(3, dim, seed=seed + 2)
    value = float(sliced_wasserstein(a, v, directions=directions))
    assert value == pytest.approx(slow_sliced(a, v, directions), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (6, 9), (7, 5), (1, 4)])
def test_one_direction_is_the_distance_of_scipy(n: int, m: int) -> None:
    a, v = drawn(n, 3), drawn(m, 3, seed=1) + 0.5
    direction = torch.nn.functional.normalize(drawn(1, 3, seed=2), dim=1)
    left, right = ((x @ direction[0]).numpy() for x in (a, v))
    value = float(sliced_wasserstein(a, v, directions=direction, order=1))
    assert value == pytest.approx(wasserstein_distance(left, right), rel=1e-10)
    if n == m:
        cost = np.square(left[:, None] - right)
        plan = cost[linear_sum_assignment(cost)].mean()
        assert float(sliced_wasserstein(a, v, directions=direction)) == pytest.approx(plan, rel=1e-10)


def test_a_cloud_repeated_is_the_same_cloud() -> None:
    a = drawn(5, 3)
    value = sliced_wasserstein(a, a.repeat(3, 1), n_directions=8, generator=torch.Generator().manual_seed(0))
    assert float(value) == pytest.approx(0.0, abs=1e-20)


def test_random_directions_are_unit_seeded_and_see_a_mean_shift() -> None:
    a, shift = drawn(20, 4), torch.tensor([3.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    first, again = (
        sliced_wasserstein(a, a + shift, n_directions=4000, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(first, again)
    assert float(first) == pytest.approx(9 / 4, rel=0.05)  # E (u · shift)² = |shift|² / D on the unit sphere
    assert not torch.equal(sliced_wasserstein(a, -a, n_directions=3), sliced_wasserstein(a, -a, n_directions=3))


def test_sliced_gradients_of_equal_and_unequal_sizes() -> None:
    a, directions = drawn(4, 3).requires_grad_(), drawn(3, 3, seed=2)
    for size in (4, 6):
        v = drawn(size, 3, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, y: sliced_wasserstein(x, y, directions=directions), (a, v))
    same = sliced_wasserstein(a, a.detach(), directions=directions)
    assert (torch.autograd.grad(same, a)[0] == 0).all()


# ------------------------------------------------------------------------------------------------------------------ mmd
def test_worked_value_of_mmd() -> None:
    assert float(mmd(A, V, gamma=1.0)) == pytest.approx(0.103243, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 6),
    st.integers(2, 6),
    st.lists(st.floats(0.01, 3), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 99),
)
def test_mmd_equals_the_loop(n: int, m: int, gammas: list[float], unbiased: bool, seed: int) -> None:
    a, v = drawn(n, 3, seed=seed), drawn(m, 3, seed=seed + 1)
    value = float(mmd(a, v, gamma=gammas, unbiased=unbiased))
    assert value == pytest.approx(slow_mmd(a, v, gammas, unbiased), rel=1e-8, abs=1e-12)
    if len(gammas) == 1:
        x, y = a.numpy(), v.numpy()
        inside = [rbf_kernel(z, gamma=gammas[0]) for z in (x, y)]
        if unbiased:
            means = [(k.sum() - len(k)) / (len(k) * (len(k) - 1)) for k in inside]
        else:
            means = [k.mean() for k in inside]
        peer = sum(means) - 2 * rbf_kernel(x, y, gamma=gammas[0]).mean()
        assert value == pytest.approx(peer, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("unbiased", [False, True])
def test_row_blocks_change_neither_value_nor_gradient(unbiased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    a, v = drawn(11, 3).requires_grad_(), drawn(7, 3, seed=1).requires_grad_()
    whole = mmd(a, v, gamma=(0.1, 1.0), unbiased=unbiased)
    gradients = torch.autograd.grad(whole, (a, v))
    monkeypatch.setattr(blocked, "CELLS", 20)  # one or two rows at a time
    parts = mmd(a, v, gamma=(0.1, 1.0), unbiased=unbiased)
    assert torch.allclose(parts, whole, rtol=1e-12)
    for got, wanted in zip(torch.autograd.grad(parts, (a, v)), gradients, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-10, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x, y: mmd(x, y, gamma=(0.1, 1.0), unbiased=unbiased), (a, v))


def test_mmd_keeps_no_matrix_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    size, dim = 512, 4
    monkeypatch.setattr(blocked, "CELLS", 8 * size)
    kept: list[int] = []
    a, v = drawn(size, dim).requires_grad_(), drawn(size, dim, seed=1)

    def count(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        value = mmd(a, v, gamma=(0.1, 1.0))
    assert max(kept) <= 2 * size * dim
    assert sum(kept) <= size * size / 4
    assert torch.isfinite(torch.autograd.grad(value, a)[0]).all()


@pytest.mark.slow
def test_mmd_of_twenty_thousand_rows() -> None:
    a, v = drawn(20_000, 64).float().requires_grad_(), drawn(20_000, 64, seed=1).float() + 0.1
    value = mmd(a, v, gamma=1 / 128)
    assert torch.isfinite(value)
    assert 0 < value.item() < 0.1
    assert torch.isfinite(torch.autograd.grad(value, a)[0]).all()


def test_mmd_far_from_the_origin_keeps_its_digits() -> None:
    a, v = drawn(6, 3), drawn(6, 3, seed=1) + 0.3
    near = float(mmd(a, v, gamma=0.5))
    assert float(mmd((a + 1024).float(), (v + 1024).float(), gamma=0.5)) == pytest.approx(near, rel=1e-3)


def test_mmd_tells_clouds_apart_and_pulls_them_together() -> None:
    a, v = drawn(50, 3), drawn(50, 3, seed=1)
    assert float(mmd(a, v, gamma=0.5)) < float(mmd(a, v + 1, gamma=0.5))
    assert float(mmd(a, a, gamma=0.5)) == pytest.approx(0, abs=1e-12)
    free = (v + 1).requires_grad_()
    before = mmd(a, free, gamma=0.5)
    (gradient,) = torch.autograd.grad(before, free)
    assert float(mmd(a, (free - 5 * gradient).detach(), gamma=0.5)) < before.item()
    # the mean of the unbiased form over draws from one distribution is 0, that of the biased form is not
    draws = [(drawn(8, 2, seed=2 * s), drawn(8, 2, seed=2 * s + 1)) for s in range(300)]
    assert abs(np.mean([float(mmd(x, y, gamma=0.5, unbiased=True)) for x, y in draws])) < 0.01
    assert np.mean([float(mmd(x, y, gamma=0.5)) for x, y in draws]) > 0.1


# --------------------------------------------------------------------------------------------------------------- common
def test_clouds_have_no_order() -> None:
    a, v, directions = drawn(9, 3), drawn(6, 3, seed=1), drawn(4, 3, seed=2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    for function in (
        lambda x, y: mmd(x, y, gamma=1.0),
        lambda x, y: mmd(x, y, gamma=1.0, unbiased=True),
        lambda x, y: sliced_wasserstein(x, y, directions=directions),
    ):
        assert torch.allclose(function(a[order], v), function(a, v), rtol=1e-12)
        assert torch.allclose(function(v, a), function(a, v), rtol=1e-12)


def test_edges_stay_finite() -> None:
    one = drawn(1, 3)
    flat = one.expand(5, 3)
    functions = (
        lambda x, y: mmd(x, y, gamma=1.0),
        lambda x, y: sliced_wasserstein(x, y, n_directions=4),
        lambda x, y: sliced_wasserstein(x, y, n_directions=4, order=1),
        lambda x, y: wasserstein2(x, x, y, y),
        lambda x, y: wasserstein2(x, x, y, y, squared=False),
    )
    for function in functions:
        for x, y in (
            (one, one),
            (flat, flat),
            (one, -one),
            (1e4 * flat, -1e4 * flat),
            (1e4 * drawn(4, 3), drawn(4, 3)),
        ):
            for kind in (torch.float32, torch.bfloat16):
                left = x.to(kind).clone().requires_grad_()
                with torch.autocast("cpu", torch.bfloat16):
                    value = function(left, y.to(kind))
                assert value.dtype == torch.float32
                assert torch.isfinite(value)
                assert torch.isfinite(torch.autograd.grad(value, left)[0]).all()


def test_autocast_does_not_round() -> None:
    a, v = drawn(6, 8).float(), drawn(5, 8, seed=1).float()
    for function in (lambda: mmd(a, v, gamma=0.1), lambda: sliced_wasserstein(a, v, directions=drawn(4, 8).float())):
        with torch.autocast("cpu", torch.bfloat16):
            inside = function()
        torch.testing.assert_close(inside, function(), rtol=1e-6, atol=1e-7)  # bfloat16 would be off by 1e-3


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(BatchError, match="one shape"):
        wasserstein2(MEAN, LOG_VARIANCE, MEAN2, LOG_VARIANCE2[:1])
    with pytest.raises(BatchError, match="N, D"):
        sliced_wasserstein(A, V[:, :1], n_directions=2)
    with pytest.raises(BatchError, match="N, D"):
        mmd(A[:0], V, gamma=1.0)
    with pytest.raises(BatchError, match="directions must be"):
        sliced_wasserstein(A, V, directions=torch.ones(2, 3))
    with pytest.raises(ConfigError, match="either directions"):
        sliced_wasserstein(A, V)
    with pytest.raises(ConfigError, match="either directions"):
        sliced_wasserstein(A, V, directions=torch.eye(2), n_directions=2)
    with pytest.raises(ConfigError, match="at least 1"):
        sliced_wasserstein(A, V, n_directions=0)
    with pytest.raises(ConfigError, match="order"):
        sliced_wasserstein(A, V, n_directions=2, order=3)
    with pytest.raises(ConfigError, match="gamma"):
        mmd(A, V, gamma=0.0)
    with pytest.raises(ConfigError, match="at least one gamma"):
        mmd(A, V, gamma=())
    with pytest.raises(BatchError, match="unbiased"):
        mmd(A[:1], V, gamma=1.0, unbiased=True)
