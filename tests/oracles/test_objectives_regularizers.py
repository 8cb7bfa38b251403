"""Invariance, Frobenius and orthogonality terms against worked values, loops, torch's own, and their contract."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives.regularizers import frobenius, invariance, orthogonality

A = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)
V = torch.tensor([[0.8, 0.6], [0, 1], [0.6, -0.8]], dtype=torch.float64)
DISTANCES = ("cosine", "l2", "squared")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_invariance(a: Tensor, v: Tensor, distance: str) -> float:
    total = 0.0
    for x, y in zip(a.tolist(), v.tolist(), strict=True):
        if distance == "cosine":
            total += 1 - sum(p * q for p, q in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))
        else:
            square = sum((p - q) ** 2 for p, q in zip(x, y, strict=True))
            total += square if distance == "squared" else square**0.5
    return total / len(a)


def test_worked_values() -> None:
    assert float(invariance(A, V)) == pytest.approx(0.733333, abs=1e-6)
    assert float(invariance(A, V, distance="l2")) == pytest.approx(1.054093, abs=1e-6)
    assert float(invariance(A, V, distance="squared")) == pytest.approx(1.466667, abs=1e-6)
    assert float(frobenius(A, V)) == pytest.approx(2.097618, abs=1e-6)
    assert float(frobenius(A, V)) / 3 == pytest.approx(0.699206, abs=1e-6)  # DSCMR, as the paper writes it
    assert float(frobenius(A, V, squared=True)) == pytest.approx(4.4, abs=1e-6)
    assert float(orthogonality(A)) == pytest.approx(1.0, abs=1e-6)


def test_label_distance_of_eics_is_two_frobenius_terms() -> None:
    f = torch.tensor([[0.9, 0.2], [0.7, 0.1], [0.3, 0.6]], dtype=torch.float64)
    g = torch.tensor([[0.8, 0.1], [0.4, 0.5], [0.2, 0.9]], dtype=torch.float64)
    y = F.one_hot(torch.tensor([0, 0, 1])).double()
    assert float(frobenius(f, y) + frobenius(g, y)) == pytest.approx(1.475071, abs=1e-6)
    assert float(frobenius(f, y, squared=True) + frobenius(g, y, squared=True)) / 3 == pytest.approx(0.37, abs=1e-6)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000), st.sampled_from(DISTANCES))
def test_invariance_equals_the_loop(size: int, dim: int, seed: int, distance: str) -> None:
    a, v = normal(size, dim, seed=seed), normal(size, dim, seed=seed + 1)
    assert float(invariance(a, v, distance=distance)) == pytest.approx(slow_invariance(a, v, distance), abs=1e-9)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_matrix_terms_equal_the_loop(rows: int, columns: int, seed: int) -> None:
    a, v = normal(rows, columns, seed=seed), normal(rows, columns, seed=seed + 1)
    square = sum((x - y) ** 2 for x, y in zip(a.flatten().tolist(), v.flatten().tolist(), strict=True))
    assert float(frobenius(a, v)) == pytest.approx(square**0.5, abs=1e-9)
    assert float(frobenius(a, v, squared=True)) == pytest.approx(square, abs=1e-9)
    gram = [[sum(row[p] * row[q] for row in a.tolist()) for q in range(columns)] for p in range(columns)]
    slow = sum((gram[p][q] - (p == q)) ** 2 for p in range(columns) for q in range(columns))
    assert float(orthogonality(a)) == pytest.approx(slow, rel=1e-9, abs=1e-9)


def test_torch_says_the_same() -> None:
    a, v = normal(7, 5), normal(7, 5, seed=1)
    assert torch.allclose(invariance(a, v), (1 - F.cosine_similarity(a, v)).mean())
    assert torch.allclose(invariance(a, v), F.cosine_embedding_loss(a, v, torch.ones(7)))
    assert torch.allclose(invariance(a, v, distance="l2"), F.pairwise_distance(a, v, eps=0).mean())
    assert torch.allclose(invariance(a, v, distance="squared"), 5 * F.mse_loss(a, v))
    assert torch.allclose(frobenius(a, v), torch.linalg.matrix_norm(a - v))


def test_identities() -> None:
    a, v = (F.normalize(normal(6, 4, seed=s), dim=1) for s in (0, 1))
    assert torch.allclose(invariance(a, v, distance="squared"), 2 * invariance(a, v))
    assert torch.allclose(frobenius(a, v, squared=True), 6 * invariance(a, v, distance="squared"))
    assert torch.allclose(frobenius(a, v).square(), frobenius(a, v, squared=True))
    basis = torch.linalg.qr(normal(6, 4))[0]
    assert float(orthogonality(basis)) == pytest.approx(0, abs=1e-12)
    assert float(orthogonality(basis.T)) == pytest.approx(2, abs=1e-12)  # four rows cannot make six columns orthogonal


def test_gradients() -> None:
    a, v = normal(4, 3).requires_grad_(), normal(4, 3, seed=1).requires_grad_()
    for distance in DISTANCES:
        assert torch.autograd.gradcheck(lambda x, y, d=distance: invariance(x, y, distance=d), (a, v))
    for squared in (False, True):
        assert torch.autograd.gradcheck(lambda x, y, s=squared: frobenius(x, y, squared=s), (a, v))
    for z in (a, normal(3, 5).requires_grad_()):
        assert torch.autograd.gradcheck(orthogonality, (z,))


def test_equal_views_and_rows_without_direction_are_finite() -> None:
    x = normal(4, 3).requires_grad_()
    same = x.detach().clone()
    for distance in DISTANCES:
        value = invariance(x, same, distance=distance)
        assert float(value.detach()) == pytest.approx(0, abs=1e-12)
        assert torch.autograd.grad(value, x)[0].abs().max() < 1e-12
    assert bool((torch.autograd.grad(frobenius(x, same), x)[0] == 0).all())
    zero = torch.zeros(4, 3, requires_grad=True)
    value = invariance(zero, same.float())
    assert float(value.detach()) == 1
    assert torch.autograd.grad(value, zero)[0].isfinite().all()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_even_under_autocast(kind: torch.dtype) -> None:
    a, v = normal(64, 8).to(kind), normal(64, 8, seed=1).to(kind)
    with torch.autocast("cpu", torch.bfloat16):
        values = (invariance(a, v), frobenius(a, v), orthogonality(a))
    exact = (invariance(a.double(), v.double()), frobenius(a.double(), v.double()), orthogonality(a.double()))
    for value, truth in zip(values, exact, strict=True):
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(truth), rel=1e-5)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(BatchError, match="one shape"):
        invariance(A, V[:2])
    with pytest.raises(BatchError, match="B > 0"):
        frobenius(A[:0], V[:0])
    with pytest.raises(ConfigError, match="distance"):
        invariance(A, V, distance="l1")  # type: ignore[arg-type]
    for bad in (A[0], A[:0], A[:, :0]):
        with pytest.raises(BatchError, match="matrix"):
            orthogonality(bad)
