"""The three sums over pairs against their plain matrix forms: values, gradients, empty sums, wide ranges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from avcl.objectives import blocked
from avcl.objectives.blocked import agreement, log_sums, row_blocks, score_sum, without_diagonal

Pair = tuple[Tensor, Tensor]


@pytest.fixture(params=[1, 7, 1 << 20], ids=["a row", "a few rows", "all at once"])
def cells(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(blocked, "CELLS", request.param)
    return request.param


def rows_of(n: int, m: int, dim: int, seed: int, *, size: float = 1.0, kind: torch.dtype = torch.float64) -> Pair:
    g = torch.Generator().manual_seed(seed)
    a = size * torch.randn(n, dim, generator=g, dtype=torch.float64)
    v = size * torch.randn(m, dim, generator=g, dtype=torch.float64)
    return a.to(kind).requires_grad_(), v.to(kind).requires_grad_()


def gradients(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, inputs, retain_graph=True))


@given(st.integers(0, 50), st.integers(1, 50), st.integers(1, 400))
def test_blocks_cover_every_row_once(rows: int, columns: int, cells: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "CELLS", cells)
        parts = list(row_blocks(rows, columns))
    assert [i for part in parts for i in range(rows)[part]] == list(range(rows))
    assert all((part.stop - part.start) * columns <= max(cells, columns) for part in parts)


@pytest.mark.parametrize("size", [0.3, 3.0, 60.0])  # within the narrow range, beside it, and far outside
def test_log_sums_equal_the_matrix_form(cells: int, size: float) -> None:
    a, v = rows_of(9, 6, 4, 0, size=size)
    weight = torch.rand(15, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    row, column = log_sums(a, v)
    plain = a @ v.T
    assert torch.allclose(row, plain.logsumexp(1), rtol=1e-12)
    assert torch.allclose(column, plain.logsumexp(0), rtol=1e-12)
    ours = gradients((torch.cat([row, column]) * weight).sum(), a, v)
    theirs = gradients((torch.cat([plain.logsumexp(1), plain.logsumexp(0)]) * weight).sum(), a, v)
    for x, y in zip(ours, theirs, strict=True):
        assert torch.allclose(x, y, rtol=1e-10, atol=1e-12)


def test_float32_keeps_a_column_whose_scores_lie_far_below_all_others(cells: int) -> None:
    a = torch.tensor([[100.0, 0.0], [90.0, 1.0], [95.0, -1.0]], requires_grad=True)
    v = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    row, column = log_sums(a, v)
    assert column[1].item() == pytest.approx(-90 + torch.tensor([0, -5.0, -10]).exp().sum().log().item(), abs=1e-5)
    (grad,) = torch.autograd.grad(column[1], a)
    assert grad[1, 0].item() == pytest.approx(-torch.tensor([0, -5.0, -10]).softmax(0)[0].item(), abs=1e-5)
    assert torch.isfinite(row).all()


@pytest.mark.parametrize("size", [0.3, 30.0])
def test_empty_rows_and_columns_are_minus_infinity_without_gradient(cells: int, size: float) -> None:
    a, v = rows_of(5, 5, 3, 2, size=size)
    keep = torch.tensor([[0, 0, 0, 0, 0], [1, 0, 1, 0, 1], [0, 0, 1, 1, 0], [1, 0, 0, 0, 1], [1, 0, 1, 1, 1]]).bool()

    def edit(scores: Tensor, rows: slice) -> None:
        scores.masked_fill_(~keep[rows], -torch.inf)

    row, column = log_sums(a, v, edit)
    assert row[0] == -torch.inf
    assert column[1] == -torch.inf
    plain = (a @ v.T).masked_fill(~keep, -torch.inf)
    some_row, some_column = keep.any(1), keep.any(0)
    assert torch.allclose(row[some_row], plain[some_row].logsumexp(1))
    assert torch.allclose(column[some_column], plain[:, some_column].logsumexp(0))
    ours = gradients(row[some_row].sum() + column[some_column].square().sum(), a, v)
    theirs = gradients(plain[some_row].logsumexp(1).sum() + plain[:, some_column].logsumexp(0).square().sum(), a, v)
    for x, y in zip(ours, theirs, strict=True):
        assert torch.allclose(x, y, rtol=1e-9, atol=1e-12)
    # a loss that reads the empty sums through a function flat there, as softplus is, gets no NaN either
    bent = torch.nn.functional.softplus(row).sum() + torch.nn.functional.softplus(column).sum()
    assert all(torch.isfinite(g).all() for g in gradients(bent, a, v))


def test_log_sums_pass_gradcheck_with_and_without_the_diagonal(cells: int) -> None:
    a, v = rows_of(4, 4, 3, 3)
    assert torch.autograd.gradcheck(lambda x, y: log_sums(x, y), (a, v))
    assert torch.autograd.gradcheck(lambda x, y: log_sums(x, y, without_diagonal), (a, v))


def test_score_sum_and_its_extra_tensor(cells: int) -> None:
    """Σ max(0, S_ij - t_j)² by hand, with the derivative by t as the third."""
    a, v = rows_of(6, 5, 3, 4)
    bar = torch.randn(5, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)

    def kernel(scores: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        over = (scores - bar.detach()).clamp(min=0)
        return over.square().sum(), 2 * over, -2 * over.sum(0)

    ours = score_sum(a, v, kernel, bar)
    plain = (a @ v.T - bar).clamp(min=0).square().sum()
    assert torch.allclose(ours, plain)
    for x, y in zip(gradients(3 * ours, a, v, bar), gradients(3 * plain, a, v, bar), strict=True):
        assert torch.allclose(x, y)


def test_score_sum_without_gradient_keeps_nothing() -> None:
    a, v = (x.detach() for x in rows_of(6, 5, 3, 4))
    value = score_sum(a, v, lambda scores, rows: (scores.sum(), torch.ones_like(scores)))
    assert torch.allclose(value, (a @ v.T).sum())
    assert not value.requires_grad


def test_agreement_is_the_weighted_sum_of_scores(cells: int) -> None:
    a, v = rows_of(6, 5, 3, 6)
    weights = torch.rand(6, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    ours, plain = agreement(a, v, lambda rows: weights[rows]), (weights * (a @ v.T)).sum()
    assert torch.allclose(ours, plain)
    for x, y in zip(gradients(ours, a, v), gradients(plain, a, v), strict=True):
        assert torch.allclose(x, y)


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.floats(0.01, 40), st.integers(1, 300))
def test_any_shape_range_and_block(n: int, m: int, dim: int, size: float, cells: int) -> None:
    a, v = rows_of(n, m, dim, n * m, size=size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "CELLS", cells)
        row, column = log_sums(a, v)
        ours = gradients(row.sum() + 2 * column.sum(), a, v)
    plain = a @ v.T
    assert torch.allclose(row, plain.logsumexp(1), rtol=1e-10, atol=1e-10)
    assert torch.allclose(column, plain.logsumexp(0), rtol=1e-10, atol=1e-10)
    theirs = gradients(plain.logsumexp(1).sum() + 2 * plain.logsumexp(0).sum(), a, v)
    for x, y in zip(ours, theirs, strict=True):
        assert torch.allclose(x, y, rtol=1e-8, atol=1e-9)
