"""InfoNCE against the worked values, a slow loop written from the formula, and its contract."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives import info_nce

A = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)
V = torch.tensor([[0.8, 0.6], [0, 1], [0.6, -0.8]], dtype=torch.float64)
Y = torch.tensor([0, 0, 1])


def slow_info_nce(a: Tensor, v: Tensor, temperature: float, positives: Tensor | None = None) -> float:
    """The two sums of the equation, one exponential at a time, in Python floats."""
    size = len(a)
    match = [[i == j if positives is None else bool(positives[i, j]) for j in range(size)] for i in range(size)]
    score = [
        [sum(float(x) * float(y) for x, y in zip(a[i], v[j], strict=True)) / temperature for j in range(size)]
        for i in range(size)
    ]
    directions = []
    for turned in (False, True):
        costs = []
        for i in range(size):
            row = [score[j][i] if turned else score[i][j] for j in range(size)]
            own = [row[j] for j in range(size) if (match[j][i] if turned else match[i][j])]
            if own:
                top = max(row)
                total = top + math.log(sum(math.exp(s - top) for s in row))
                costs.append(sum(total - s for s in own) / len(own))
        directions.append(sum(costs) / len(costs))
    return sum(directions) / 2


def unit(size: int, dim: int, seed: int) -> Tensor:
    x = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=1)


@pytest.mark.parametrize(("temperature", "value"), [(0.5, 1.774121), (0.07, 8.909475)])
def test_worked_values(temperature: float, value: float) -> None:
    assert float(info_nce(A, V, temperature=temperature)) == pytest.approx(value, abs=1e-6)


def test_several_positives_are_half_of_the_cross_modal_supervised_form() -> None:
    value = info_nce(A, V, temperature=0.5, positives=Y[:, None] == Y)
    assert 2 * float(value) == pytest.approx(3.974910, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 1000), st.floats(0.05, 2.0), st.booleans())
def test_equals_the_loop(size: int, dim: int, seed: int, temperature: float, several: bool) -> None:
    a, v = unit(size, dim, seed), unit(size, dim, seed + 1)
    positives = torch.rand(size, size, generator=torch.Generator().manual_seed(seed)) < 0.4 if several else None
    if positives is not None:
        positives[0, 0] = True
    value = info_nce(a, v, temperature=temperature, positives=positives)
    assert float(value) == pytest.approx(slow_info_nce(a, v, temperature, positives), rel=1e-9, abs=1e-9)
    assert float(value) >= -1e-12


def test_a_two_sided_denominator_counts_the_positive_twice() -> None:
    """A perfectly separated batch tends to log 2, one-sided to 0; worked rows of protocols.md, section 7."""
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.8, 0], [0.1, 0.4, 0.7]], dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    rows = float(torch.nn.functional.cross_entropy(scores / 0.07, torch.arange(3)))
    columns = float(torch.nn.functional.cross_entropy(scores.T / 0.07, torch.arange(3)))
    assert sorted([rows, columns]) == pytest.approx([0.00146, 0.00490], abs=1e-5)
    assert float(info_nce(scores, eye, temperature=0.07)) == pytest.approx((rows + columns) / 2)
    far = 20 * torch.eye(2, dtype=torch.float64)
    assert float(info_nce(far, far, temperature=1.0, two_sided=True)) == pytest.approx(math.log(2), abs=1e-9)
    assert float(info_nce(far, far, temperature=1.0)) == pytest.approx(0, abs=1e-9)
    both = [
        math.log(sum(math.exp(scores[i, j]) + math.exp(scores[j, i]) for j in range(3))) - float(scores[i, i])
        for i in range(3)
    ]
    assert float(info_nce(scores, eye, temperature=1.0, two_sided=True)) == pytest.approx(sum(both) / 3)


def test_the_diagonal_is_the_default_positive() -> None:
    a, v = unit(6, 4, 0), unit(6, 4, 1)
    same = info_nce(a, v, temperature=0.1, positives=torch.eye(6, dtype=torch.bool))
    assert torch.allclose(same, info_nce(a, v, temperature=0.1))


def test_gradient_also_through_the_temperature() -> None:
    a, v = unit(4, 3, 0).requires_grad_(), unit(4, 3, 1).requires_grad_()
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    positives = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda x, y, t: info_nce(x, y, temperature=t), (a, v, tau))
    assert torch.autograd.gradcheck(lambda x, y, t: info_nce(x, y, temperature=t, positives=positives), (a, v, tau))


def test_order_of_the_batch_and_of_the_modalities_does_not_matter() -> None:
    a, v = unit(8, 5, 0), unit(8, 5, 1)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    value = info_nce(a, v, temperature=0.2)
    assert torch.allclose(info_nce(a[order], v[order], temperature=0.2), value)
    assert torch.allclose(info_nce(v, a, temperature=0.2), value)


def test_aligned_costs_less_than_shuffled_and_a_step_lowers_it() -> None:
    a = unit(16, 8, 0)
    v = torch.nn.functional.normalize(a + 0.3 * unit(16, 8, 1), dim=1)
    assert info_nce(a, v, temperature=0.1) < info_nce(a, v.roll(1, 0), temperature=0.1)
    free = v.roll(1, 0).clone().requires_grad_()
    before = info_nce(a, free, temperature=0.1)
    (gradient,) = torch.autograd.grad(before, free)
    assert info_nce(a, free - 0.1 * gradient, temperature=0.1) < before


def test_edges_stay_finite() -> None:
    one = unit(1, 4, 0)
    assert float(info_nce(one, -one, temperature=0.1)) == pytest.approx(
        0, abs=1e-12
    )  # alone: nothing to confuse it with
    same = unit(1, 4, 0).expand(5, 4)
    assert float(info_nce(same, same, temperature=0.1)) == pytest.approx(math.log(5))  # identical rows: chance
    assert float(info_nce(same, -same, temperature=0.1)) == pytest.approx(math.log(5))  # all similarities negative
    a, v = 1e3 * unit(4, 3, 0), 1e3 * unit(4, 3, 1)
    huge = info_nce(a.float().requires_grad_(), v.float(), temperature=0.01)
    assert torch.isfinite(huge)
    assert torch.isfinite(torch.autograd.grad(info_nce(w := a.requires_grad_(), v, temperature=0.01), w)[0]).all()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_even_under_autocast(kind: torch.dtype) -> None:
    a, v = unit(8, 16, 0).to(kind), unit(8, 16, 1).to(kind)
    exact = slow_info_nce(a, v, 0.01)
    assert info_nce(a, v, temperature=0.01).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        value = info_nce(a, v, temperature=0.01)
    assert float(value) == pytest.approx(exact, rel=1e-5)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(BatchError, match="one shape"):
        info_nce(A, V[:2], temperature=1.0)
    with pytest.raises(BatchError, match="B > 0"):
        info_nce(A[:0], V[:0], temperature=1.0)
    with pytest.raises(BatchError, match="bool"):
        info_nce(A, V, temperature=1.0, positives=torch.eye(3))
    with pytest.raises(BatchError, match="no row"):
        info_nce(A, V, temperature=1.0, positives=torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(ConfigError, match="above 0"):
        info_nce(A, V, temperature=0.0)
