"""Objectives with labels against worked values, loops written from the formulas, torch's own, and their contract."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives import blocked
from avcl.objectives.classification import binary_cross_entropy, center, cross_entropy, label_distance, label_likelihood
from avcl.objectives.regularizers import invariance

A = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)
V = torch.tensor([[0.8, 0.6], [0, 1], [0.6, -0.8]], dtype=torch.float64)
Y = torch.tensor([0, 0, 1])
OF_A = torch.tensor([[0.9, 0.2], [0.7, 0.1], [0.3, 0.6]], dtype=torch.float64)
OF_V = torch.tensor([[0.8, 0.1], [0.4, 0.5], [0.2, 0.9]], dtype=torch.float64)
CENTERS = torch.tensor([[0.5, 0.5], [0, -1]], dtype=torch.float64)
LOGITS = torch.tensor([[2, 1, 0], [0, 3, 1], [1, 0, 0.5]], dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(rows: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(count, (rows,), generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------- cross-entropy
def slow_cross_entropy(logits: Tensor, label: Tensor, weight: list[float], smoothing: float) -> float:
    cost = total = 0.0
    for row, own in zip(logits.tolist(), label.tolist(), strict=True):
        top = max(row)
        log_sum = top + math.log(sum(math.exp(z - top) for z in row))
        cost += (1 - smoothing) * weight[own] * (log_sum - row[own])
        cost += smoothing / len(row) * sum(w * (log_sum - z) for w, z in zip(weight, row, strict=True))
        total += weight[own]
    return cost / total


def test_cross_entropy_of_the_worked_logits() -> None:
    assert float(cross_entropy(LOGITS, torch.arange(3))) == pytest.approx(0.585907, abs=1e-6)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000), st.booleans(), st.sampled_from([0.0, 0.1, 1.0]))
def test_cross_entropy_equals_the_loop(rows: int, count: int, seed: int, weighted: bool, smoothing: float) -> None:
    logits, label = 3 * normal(rows, count, seed=seed), classes(rows, count, seed)
    weight = normal(count, seed=seed + 1).abs() if weighted else torch.ones(count, dtype=torch.float64)
    value = cross_entropy(logits, label, weight=weight if weighted else None, smoothing=smoothing)
    assert float(value) == pytest.approx(slow_cross_entropy(logits, label, weight.tolist(), smoothing), abs=1e-9)


def test_binary_cross_entropy_equals_the_loop_and_skips_what_is_not_annotated() -> None:
    z, t = normal(4, 3), torch.rand(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    known = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)
    cells = [
        max(x, 0) + math.log1p(math.exp(-abs(x))) - y * x
        for x, y, k in zip(z.flatten().tolist(), t.flatten().tolist(), known.flatten().tolist(), strict=True)
        if k
    ]
    assert float(binary_cross_entropy(z, t, weight=known)) == pytest.approx(sum(cells) / len(cells), abs=1e-12)
    spoiled = torch.where(known, z, math.nan).requires_grad_()
    value = binary_cross_entropy(spoiled, t, weight=known)
    (gradient,) = torch.autograd.grad(value, spoiled)
    assert float(value.detach()) == pytest.approx(sum(cells) / len(cells), abs=1e-12)
    assert bool((gradient[~known] == 0).all())
    assert bool(gradient.isfinite().all())
    assert torch.allclose(binary_cross_entropy(z, t > 0.5), F.binary_cross_entropy_with_logits(z, (t > 0.5).double()))


def test_two_classes_are_one_yes_or_no() -> None:
    z, label = normal(9), classes(9, 2)
    both = cross_entropy(torch.stack([torch.zeros_like(z), z], 1), label)
    assert torch.allclose(both, binary_cross_entropy(z[:, None], label[:, None]))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits_are_finite(size: float) -> None:
    z = torch.full((2, 3), size).index_fill(1, torch.tensor([1]), 0.0).requires_grad_()
    for value in (cross_entropy(z, torch.tensor([0, 1])), binary_cross_entropy(z, torch.ones(2, 3))):
        assert value.isfinite()
        assert torch.autograd.grad(value, z)[0].isfinite().all()


# ----------------------------------------------------------------------------------------------------- label distance
def test_label_distance_of_the_worked_predictions() -> None:
    def both(form: str) -> float:
        return sum(float(label_distance(p, Y, form=form)) for p in (OF_A, OF_V))

    assert both("rows") == pytest.approx(0.756024, abs=1e-6)
    assert both("frobenius") == pytest.approx(0.491690, abs=1e-6)


def test_label_distance_equals_the_loop_and_takes_targets() -> None:
    p, label = normal(5, 3), classes(5, 3)
    squares = [
        sum((x - (c == own)) ** 2 for c, x in enumerate(row))
        for row, own in zip(p.tolist(), label.tolist(), strict=True)
    ]
    for form, value in (("rows", sum(s**0.5 for s in squares) / 5), ("frobenius", sum(squares) ** 0.5 / 5)):
        assert float(label_distance(p, label, form=form)) == pytest.approx(value, abs=1e-12)
        assert float(label_distance(p, F.one_hot(label, 3), form=form)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("form", ["rows", "frobenius"])
def test_a_perfect_prediction_has_no_slope(form: str) -> None:
    exact = F.one_hot(Y).double().requires_grad_()
    value = label_distance(exact, Y, form=form)
    assert float(value.detach()) == 0
    assert bool((torch.autograd.grad(value, exact)[0] == 0).all())


# --------------------------------------------------------------------------------------------------- label likelihood
def slow_label_likelihood(a: Tensor, v: Tensor, label: Tensor) -> float:
    def cosine(x: list[float], y: list[float]) -> float:
        return sum(p * q for p, q in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))

    y, total = label.tolist(), 0.0
    for one, other in ((a, v), (a, a), (v, v)):
        for i, x in enumerate(one.tolist()):
            for j, z in enumerate(other.tolist()):
                theta = 0.5 * cosine(x, z)
                total += math.log1p(math.exp(theta)) - (theta if y[i] == y[j] else 0.0)
    return total / len(y) ** 2


def test_label_likelihood_of_the_worked_batch_and_the_whole_of_dscmr() -> None:
    value = label_likelihood(A, V, Y)
    assert float(value) == pytest.approx(1.900976, abs=1e-6)
    whole = label_distance(OF_A, Y) + label_distance(OF_V, Y) + 1e-3 * value + 0.1 * invariance(A, V, distance="l2")
    assert float(whole) == pytest.approx(0.863335, abs=1e-6)


@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 1000))
def test_label_likelihood_equals_the_loop_whatever_the_blocks(size: int, dim: int, seed: int) -> None:
    a, v, label = normal(size, dim, seed=seed), normal(size, dim, seed=seed + 1), classes(size, 3, seed)
    slow = slow_label_likelihood(a, v, label)
    assert float(label_likelihood(a, v, label)) == pytest.approx(slow, abs=1e-9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "CELLS", 2 * size)  # two rows at a time
        assert float(label_likelihood(a, v, label)) == pytest.approx(slow, abs=1e-9)


def test_gradients_of_blocks_and_of_a_row_without_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    a, v, label = normal(5, 3).requires_grad_(), normal(5, 3, seed=1).requires_grad_(), classes(5, 2)
    assert torch.autograd.gradcheck(lambda x, y: label_likelihood(x, y, label), (a, v))
    plain = torch.autograd.grad(label_likelihood(a, v, label), (a, v))
    monkeypatch.setattr(blocked, "CELLS", 10)
    for one, other in zip(plain, torch.autograd.grad(label_likelihood(a, v, label), (a, v)), strict=True):
        assert torch.allclose(one, other)
    zero = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(label_likelihood(zero, v, label), zero)[0].isfinite().all()


def test_a_pair_costs_no_less_than_its_bound() -> None:
    same = normal(1, 4).expand(6, 4)
    best, worst = 3 * math.log1p(math.exp(-0.5)), 3 * math.log1p(math.exp(0.5))
    assert float(label_likelihood(same, same, torch.zeros(6, dtype=torch.long))) == pytest.approx(best)
    value = float(label_likelihood(same, -same, torch.arange(6)))
    assert best < value < worst


# ------------------------------------------------------------------------------------------------------------- center
def test_center_of_the_worked_batch() -> None:
    assert float(center(A, CENTERS, Y)) == pytest.approx(0.766667, abs=1e-6)
    assert 2 * float(center(A, CENTERS, Y)) == pytest.approx(1.533333, abs=1e-6)
    assert float(center(A, CENTERS, Y, norm="l1")) == pytest.approx(1.133333, abs=1e-6)


def test_center_equals_the_loop_and_pulls_on_rows_and_centers() -> None:
    x, c, label = normal(6, 3).requires_grad_(), normal(4, 3, seed=1).requires_grad_(), torch.tensor([0, 2, 2, 0, 3, 0])
    gaps = [
        [p - q for p, q in zip(row, c[own].tolist(), strict=True)]
        for row, own in zip(x.tolist(), label.tolist(), strict=True)
    ]
    assert center(x, c, label).item() == pytest.approx(sum(0.5 * g * g for row in gaps for g in row) / 6, abs=1e-12)
    assert center(x, c, label, norm="l1").item() == pytest.approx(sum(abs(g) for r in gaps for g in r) / 6, abs=1e-12)
    for norm in ("l2", "l1"):
        assert torch.autograd.gradcheck(lambda p, q, norm=norm: center(p, q, label, norm=norm), (x, c))
    of_x, of_c = torch.autograd.grad(center(x, c, label), (x, c))
    assert torch.allclose(of_x, torch.tensor(gaps, dtype=torch.float64) / 6)
    assert bool((of_c[1] == 0).all())  # class 1 is not in the batch
    assert torch.allclose(of_c[2], -of_x[1] - of_x[2])


# ---------------------------------------------------------------------------------------------------------- contract
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_even_under_autocast(kind: torch.dtype) -> None:
    a, v = normal(8, 4).to(kind), normal(8, 4, seed=1).to(kind)
    label = classes(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        values = (
            cross_entropy(a, label),
            binary_cross_entropy(a, v > 0),
            label_distance(a, label),
            label_likelihood(a, v, label),
            center(a, v, label),
        )
    exact = (
        cross_entropy(a.double(), label),
        binary_cross_entropy(a.double(), v > 0),
        label_distance(a.double(), label),
        label_likelihood(a.double(), v.double(), label),
        center(a.double(), v.double(), label),
    )
    for value, truth in zip(values, exact, strict=True):
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(truth), rel=1e-5)


def test_what_does_not_fit_is_named() -> None:
    one = torch.zeros(1, dtype=torch.long)
    with pytest.raises(BatchError, match=r"logits \[N, C\]"):
        cross_entropy(LOGITS[:0], one[:0])
    with pytest.raises(BatchError, match="3 integer labels"):
        cross_entropy(LOGITS, torch.zeros(3))
    with pytest.raises(BatchError, match=r"labels in 0\.\.3, not in 0\.\.2"):
        cross_entropy(LOGITS, torch.tensor([0, 1, 3]))
    with pytest.raises(BatchError, match="each of 3 classes"):
        cross_entropy(LOGITS, torch.arange(3), weight=torch.ones(2))
    for weight in (torch.zeros(3), torch.tensor([1.0, -1, 1]), torch.tensor([1.0, math.nan, 1])):
        with pytest.raises(BatchError, match="class weights"):
            cross_entropy(LOGITS, torch.arange(3), weight=weight)
    with pytest.raises(ConfigError, match="smoothing"):
        cross_entropy(LOGITS, torch.arange(3), smoothing=1.5)
    with pytest.raises(BatchError, match="one shape"):
        binary_cross_entropy(LOGITS, LOGITS[:2])
    with pytest.raises(BatchError, match=r"\[0, 1\]"):
        binary_cross_entropy(LOGITS, LOGITS)
    with pytest.raises(BatchError, match=r"prediction \[B, C\]"):
        label_distance(OF_A[0], Y)
    with pytest.raises(BatchError, match="one shape"):
        label_distance(OF_A, OF_A[:2])
    with pytest.raises(BatchError, match="labels in"):
        label_distance(OF_A, torch.tensor([0, 1, -1]))
    with pytest.raises(ConfigError, match="form"):
        label_distance(OF_A, Y, form="both")  # type: ignore[arg-type]
    with pytest.raises(BatchError, match="one shape"):
        label_likelihood(A, V[:2], Y)
    with pytest.raises(BatchError, match="3 integer labels"):
        label_likelihood(A, V, Y[:2])
    with pytest.raises(BatchError, match=r"centers \[C, D\]"):
        center(A, CENTERS[:, :1], Y)
    with pytest.raises(BatchError, match="labels in"):
        center(A, CENTERS, Y + 1)
    with pytest.raises(ConfigError, match="norm"):
        center(A, CENTERS, Y, norm="l3")  # type: ignore[arg-type]
