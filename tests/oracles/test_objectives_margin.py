"""Margin objectives against worked values, slow loops written from the formulas, and their plain matrix forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives import blocked
from avcl.objectives.contrastive import n_pair
from avcl.objectives.margin import adaptive_mean_margin, hinge, masked_margin_softmax

A = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)
V = torch.tensor([[0.8, 0.6], [0, 1], [0.6, -0.8]], dtype=torch.float64)
APART = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)  # 0 and 1 are known to match

shapes = {"size": st.integers(1, 7), "dim": st.integers(1, 5), "seed": st.integers(0, 999)}
blocks = st.sampled_from([1, 9, 1 << 20])


def draw(n: int, dim: int, seed: int) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(a: Tensor, v: Tensor) -> list[list[float]]:
    return [[sum(float(x) * float(y) for x, y in zip(p, q, strict=True)) for q in v] for p in a]


def turned(s: list[Any]) -> list[Any]:
    return [list(column) for column in zip(*s, strict=True)]


def test_worked_values() -> None:
    values = {
        2.346667: hinge(A, V, margin=0.2),
        1.573333: hinge(A, V, margin=0.2, negatives="hardest"),
        2.711283: masked_margin_softmax(A, V, margin=0.0),
        2.712688: masked_margin_softmax(A, V, margin=0.001),
        3.458809: masked_margin_softmax(A, V, margin=0.5),
        2.201760: masked_margin_softmax(A, V, margin=0.001, mask=APART),
        2.480410: adaptive_mean_margin(A, V, alpha=0.5),
    }
    for value, ours in values.items():
        assert float(ours) == pytest.approx(value, abs=1e-6)
    assert float(hinge(A, V, margin=0.2)) * 3 == pytest.approx(7.04)  # rows 3.96 and columns 3.08, as sums


@given(**shapes, margin=st.floats(-0.5, 2), cells=blocks)
def test_hinge_equals_the_loop(size: int, dim: int, seed: int, margin: float, cells: int) -> None:
    a, v = draw(size, dim, seed), draw(size, dim, seed + 1)
    s = matrix(a, v)

    def one(s: list[list[float]], fold: Any) -> float:
        over = [[max(0.0, s[i][j] - s[i][i] + margin) for j in range(size) if j != i] for i in range(size)]
        return sum(fold(row) for row in over) / size

    def most(row: list[float]) -> float:
        return max(row, default=0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "CELLS", cells)
        value, hardest = hinge(a, v, margin=margin), hinge(a, v, margin=margin, negatives="hardest")
    assert float(value) == pytest.approx(one(s, sum) + one(turned(s), sum), rel=1e-9, abs=1e-12)
    assert float(hardest) == pytest.approx(one(s, most) + one(turned(s), most), rel=1e-9, abs=1e-12)


@given(**shapes, margin=st.floats(0, 1), scale=st.floats(0.1, 10), masked=st.booleans(), cells=blocks)
def test_masked_margin_softmax_equals_the_loop(
    size: int, dim: int, seed: int, margin: float, scale: float, masked: bool, cells: int
) -> None:
    a, v = draw(size, dim, seed), draw(size, dim, seed + 1)
    mask = torch.rand(size, size, generator=torch.Generator().manual_seed(seed)) < 0.6 if masked else None
    s, m = matrix(a, v), [[True] * size] * size if mask is None else mask.tolist()

    def one(s: list[list[float]], m: list[list[bool]]) -> float:
        total = 0.0
        for i in range(size):
            own = math.exp(scale * (s[i][i] - margin))
            rest = sum(math.exp(scale * s[i][j]) for j in range(size) if j != i and m[i][j])
            total -= math.log(own / (own + rest))
        return total / size

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "CELLS", cells)
        value = masked_margin_softmax(a, v, margin=margin, mask=mask, scale=scale)
    assert float(value) == pytest.approx(one(s, m) + one(turned(s), turned(m)), rel=1e-8, abs=1e-12)


@given(**shapes, alpha=st.floats(0, 1), scale=st.floats(0.1, 10), cells=blocks)
def test_adaptive_mean_margin_equals_the_loop(
    size: int, dim: int, seed: int, alpha: float, scale: float, cells: int
) -> None:
    a, v = draw(size + 1, dim, seed), draw(size + 1, dim, seed + 1)
    n = size + 1

    def one(s: list[list[float]]) -> float:
        total = 0.0
        for i in range(n):
            margin = alpha * (s[i][i] - sum(s[i][j] for j in range(n) if j != i) / (n - 1))
            own = math.exp(scale * (s[i][i] - margin))
            total -= math.log(own / (own + sum(math.exp(scale * s[i][j]) for j in range(n) if j != i)))
        return total / n

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "CELLS", cells)
        value = adaptive_mean_margin(a, v, alpha=alpha, scale=scale)
    s = matrix(a, v)
    assert float(value) == pytest.approx(one(s) + one(turned(s)), rel=1e-8, abs=1e-12)


def test_what_reduces_to_what() -> None:
    a, v = draw(6, 4, 0), draw(6, 4, 1)
    assert torch.allclose(masked_margin_softmax(a, v, margin=0.0), n_pair(a, v))
    assert torch.allclose(adaptive_mean_margin(a, v, alpha=0.0), n_pair(a, v))
    own = torch.eye(6, dtype=torch.bool)
    whole = masked_margin_softmax(a, v, margin=0.1)
    assert torch.allclose(masked_margin_softmax(a, v, margin=0.1, mask=torch.ones(6, 6).bool()), whole)
    assert torch.allclose(masked_margin_softmax(a, v, margin=0.1, mask=~own), whole)  # the diagonal never counts
    assert float(masked_margin_softmax(a, v, margin=0.1, mask=own)) == 0  # nothing is a negative


def test_the_adaptive_margin_is_part_of_the_graph() -> None:
    """The pull on S_ii alone is 1 - α: at α = 1 a change of an own similarity leaves its direction's loss alone."""
    eye = torch.eye(4, dtype=torch.float64)
    scores = draw(4, 4, 3).requires_grad_()  # a = scores, v = I: S is the input itself
    for alpha, share in ((0.0, 1.0), (0.4, 0.6), (1.0, 0.0)):
        (slope,) = torch.autograd.grad(adaptive_mean_margin(scores, eye, alpha=alpha), scores)
        free = scores.detach()
        margin = [alpha * (s.diagonal() - (s.sum(1) - s.diagonal()) / 3) for s in (free, free.T)]
        plain = [s - torch.diag(m) for s, m in zip((free, free.T), margin, strict=True)]
        pull = sum((s.softmax(1).diagonal() - 1) / 4 for s in plain)
        assert torch.allclose(slope.diagonal(), share * pull, atol=1e-9)


def test_gradients() -> None:
    a, v = draw(5, 3, 0).requires_grad_(), draw(5, 3, 1).requires_grad_()
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(5, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    check = torch.autograd.gradcheck
    for cells in (1, 10, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blocked, "CELLS", cells)
            assert check(lambda x, y: hinge(x, y, margin=0.5), (a, v))
            assert check(lambda x, y: hinge(x, y, margin=0.5, negatives="hardest"), (a, v))
            assert check(lambda x, y, s: masked_margin_softmax(x, y, margin=0.1, scale=s), (a, v, scale))
            assert check(lambda x, y, s: masked_margin_softmax(x, y, margin=0.1, mask=mask, scale=s), (a, v, scale))
            assert check(lambda x, y, s: adaptive_mean_margin(x, y, alpha=0.5, scale=s), (a, v, scale))


def test_a_hinge_that_every_pair_meets_pulls_no_more() -> None:
    a = torch.eye(4, dtype=torch.float64).requires_grad_()
    value = hinge(a, a.detach(), margin=0.2)
    assert float(value.detach()) == 0
    assert torch.autograd.grad(value, a)[0].abs().max() == 0


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match="negatives"):
        hinge(A, V, margin=0.2, negatives="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="finite"):
        hinge(A, V, margin=math.nan)
    with pytest.raises(BatchError, match="mask must be bool"):
        masked_margin_softmax(A, V, margin=0.1, mask=torch.ones(3, 3))
    with pytest.raises(ConfigError, match="scale"):
        masked_margin_softmax(A, V, margin=0.1, scale=0.0)
    with pytest.raises(ConfigError, match="alpha"):
        adaptive_mean_margin(A, V, alpha=1.5)
    with pytest.raises(BatchError, match="one shape"):
        hinge(A, V[:2], margin=0.2)
