"""CCA in closed form against the worked value, a generalized eigenproblem and its own definition."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl.errors import BatchError, ConfigError
from avcl.objectives import add_moments, canonical_directions

X = torch.tensor([[1, 2], [2, 1], [3, 5], [4, 3], [5, 6], [6, 8]], dtype=torch.float64)
Y = torch.tensor([[2, 0], [1, 1], [4, 2], [3, 1], [7, 2], [6, 4]], dtype=torch.float64)


def covariance(*views: torch.Tensor) -> torch.Tensor:
    return torch.cov(torch.cat(views, 1).T)


def views(seed: int, n: int = 400, sizes: tuple[int, ...] = (6, 4)) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 2, generator=g, dtype=torch.float64)
    return [
        shared @ torch.randn(2, d, generator=g, dtype=torch.float64)
        + torch.randn(n, d, generator=g, dtype=torch.float64)
        + 3
        for d in sizes
    ]


def test_worked_value() -> None:
    found = canonical_directions(covariance(X, Y), (2, 2), dim=2, ridge=1e-4)
    assert found.correlation.tolist() == pytest.approx([0.989514, 0.059686], abs=1e-6)
    assert float(found.correlation.sum()) == pytest.approx(1.049200, abs=1e-6)


def test_projections_are_white_and_correlate_as_stated() -> None:
    x, y = views(0)
    found = canonical_directions(covariance(x, y), (6, 4), dim=4)
    p, q = (x - x.mean(0)) @ found.weights[0], (y - y.mean(0)) @ found.weights[1]
    n = len(x) - 1
    eye = torch.eye(4, dtype=torch.float64)
    assert torch.allclose(p.T @ p / n, eye, atol=1e-9)
    assert torch.allclose(q.T @ q / n, eye, atol=1e-9)
    assert torch.allclose(p.T @ q / n, torch.diag(found.correlation), atol=1e-9)


def test_equals_the_generalized_eigenproblem() -> None:
    """Σ₁₂ (Σ₂₂+rI)⁻¹ Σ₂₁ w = ρ² (Σ₁₁+rI) w, solved by SciPy."""
    import scipy.linalg

    x, y = views(1)
    c, r = covariance(x, y).numpy(), 0.3
    a, b, ab = c[:6, :6] + r * np.eye(6), c[6:, 6:] + r * np.eye(4), c[:6, 6:]
    squares, vectors = scipy.linalg.eigh(ab @ np.linalg.solve(b, ab.T), a)
    found = canonical_directions(torch.from_numpy(c), (6, 4), dim=3, ridge=r)
    assert found.correlation.numpy() == pytest.approx(np.sqrt(squares[::-1][:3]), abs=1e-10)
    for i in range(3):
        w, ours = vectors[:, ::-1][:, i], found.weights[0][:, i].numpy()
        assert np.abs(ours) == pytest.approx(np.abs(w), abs=1e-8)
        assert ours[np.abs(ours).argmax()] > 0


def test_three_views_of_one_signal_find_it_and_two_equal_views_reduce_to_cca() -> None:
    a, b, c = views(2, sizes=(5, 4, 3))
    found = canonical_directions(covariance(a, b, c), (5, 4, 3), dim=2, ridge=0.01)
    parts = [(v - v.mean(0)) @ w for v, w in zip((a, b, c), found.weights, strict=True)]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert float(torch.corrcoef(torch.stack([parts[i][:, 0], parts[j][:, 0]]))[0, 1]) > 0.6
    # The block form with M = 2 is CCA itself: eigenvalues of [[0, T], [Tᵀ, 0]] are ± ρ.
    two = canonical_directions(covariance(a, b), (5, 4), dim=2, ridge=0.01)
    silent = torch.block_diag(covariance(a, b), torch.eye(1, dtype=torch.float64))
    three = canonical_directions(silent, (5, 4, 1), dim=1, ridge=[0.01, 0.01, 0.0])
    assert 2 * float(three.correlation[0]) == pytest.approx(float(two.correlation[0]), abs=1e-9)


def test_rows_that_sum_to_one_need_no_ridge() -> None:
    x, y = views(3)
    x, y = x.softmax(1), y.softmax(1)
    found = canonical_directions(covariance(x, y), (6, 4), dim=10)
    assert len(found.correlation) == 3  # rank of the second view
    assert all(bool(torch.isfinite(w).all()) for w in found.weights)
    reduced = canonical_directions(covariance(x[:, :5], y[:, :3]), (5, 3), dim=10)
    assert found.correlation.tolist() == pytest.approx(reduced.correlation.tolist(), abs=1e-8)


def test_ridge_lowers_every_correlation_and_a_constant_view_is_harmless() -> None:
    x, y = views(4)
    rho = [canonical_directions(covariance(x, y), (6, 4), dim=4, ridge=r).correlation for r in (0.0, 0.1, 1.0, 10.0)]
    assert all(bool((after <= before + 1e-12).all()) for before, after in pairwise(rho))
    found = canonical_directions(covariance(x, torch.zeros_like(y)), (6, 4), dim=2, ridge=0.1)
    assert found.correlation.abs().max() < 1e-12


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.floats(-1e6, 1e6))
def test_moments_in_pieces_equal_the_whole(pieces: list[int], shift: float) -> None:
    total = sum(pieces)
    rows = torch.randn(total, 3, generator=torch.Generator().manual_seed(total), dtype=torch.float64) + shift
    moments = None
    for part in rows.split(pieces):
        moments = add_moments(moments, part)
    assert moments is not None
    assert moments.n == total
    if total:
        centered = rows - rows.mean(0)
        assert torch.allclose(moments.mean, rows.mean(0), rtol=1e-12)
        assert torch.allclose(moments.scatter, centered.T @ centered, atol=1e-7 + abs(shift) * 1e-9)


def test_float32_rows_far_from_the_origin_keep_their_variance() -> None:
    rows = (torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) + 1000).float()
    moments = add_moments(add_moments(None, rows[:500]), rows[500:])
    assert (moments.scatter.diagonal() / 999).tolist() == pytest.approx(
        np.var(rows.double().numpy(), 0, ddof=1).tolist()
    )


def test_what_does_not_fit_is_named() -> None:
    c = covariance(X, Y)
    with pytest.raises(ConfigError, match="at least 1"):
        canonical_directions(c, (2, 2), dim=0)
    with pytest.raises(ConfigError, match="negative"):
        canonical_directions(c, (2, 2), dim=1, ridge=-1.0)
    with pytest.raises(BatchError, match="fit"):
        canonical_directions(c, (2, 3), dim=1)
    with pytest.raises(BatchError, match="non-finite"):
        canonical_directions(c * float("nan"), (2, 2), dim=1)
    with pytest.raises(BatchError, match="rows"):
        add_moments(None, torch.zeros(3))
