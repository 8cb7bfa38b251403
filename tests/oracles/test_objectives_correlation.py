"""CCA in closed form against the worked value, a generalized eigenproblem and its own definition."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl.errors import BatchError, ConfigError
from avcl.objectives.cluster_correlation import ClusterMoments, add_cluster_moments, cluster_covariance
from avcl.objectives.correlation import add_moments, canonical_directions, generalized_cca

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


def test_moments_of_long_and_wide_rows_are_cut_but_equal() -> None:
    """More rows than one chunk, more columns than one panel of the scatter, and float32 as it comes."""
    rows = torch.randn(9000, 300, generator=torch.Generator().manual_seed(0)) * 3 + 100
    moments = add_moments(add_moments(None, rows[:5000]), rows[5000:])
    centered = rows.double() - rows.double().mean(0)
    assert moments.n == 9000
    assert torch.equal(moments.scatter, moments.scatter.T)
    assert torch.allclose(moments.scatter, centered.T @ centered, rtol=1e-10, atol=1e-6)
    kept = add_moments(None, rows[:10])
    before = kept.scatter.clone()
    add_moments(kept, rows)
    assert torch.equal(kept.scatter, before)  # what was handed over is not written to
    with pytest.raises(BatchError, match=r"\[n, 300\]"):
        add_moments(kept, rows[:, :5])


def test_same_correlations_and_projections_as_cca_zoo() -> None:
    from cca_zoo.linear import CCA

    x, y = views(5, n=500, sizes=(20, 8))
    peer = CCA(n_components=4).fit([x.numpy(), y.numpy()])
    p, q = peer.transform([x.numpy(), y.numpy()])
    moments = add_moments(None, torch.cat([x, y], 1))
    found = canonical_directions(moments.scatter / (moments.n - 1), (20, 8), dim=4)
    for i in range(4):
        assert float(found.correlation[i]) == pytest.approx(np.corrcoef(p[:, i], q[:, i])[0, 1], abs=1e-10)
        ours = (x - x.mean(0)) @ found.weights[0][:, i]
        assert abs(np.corrcoef(ours.numpy(), p[:, i])[0, 1]) == pytest.approx(1, abs=1e-10)


def test_an_ill_conditioned_view_loses_nothing_by_the_cheap_root() -> None:
    """Scales over six decades: correlations do not depend on them, whichever root was taken."""
    x, y = views(6)
    plain = canonical_directions(covariance(x, y), (6, 4), dim=4).correlation
    for decades in (2, 4, 6):
        scaled = x * torch.logspace(0, decades, 6, dtype=torch.float64)
        found = canonical_directions(covariance(scaled, y), (6, 4), dim=4)
        assert found.correlation.tolist() == pytest.approx(plain.tolist(), abs=1e-6)


def test_without_ridge_an_invertible_map_of_a_view_changes_nothing() -> None:
    x, y = views(7)
    m = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = canonical_directions(covariance(x, y), (6, 4), dim=4).correlation
    after = canonical_directions(covariance(x @ m + 7, y), (6, 4), dim=4).correlation
    assert after.tolist() == pytest.approx(before.tolist(), abs=1e-9)


# ---------------------------------------------------------------------------------------------------- generalized CCA
def explicit_maxvar(given: list[torch.Tensor], dim: int, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues and G of Σ X (XᵀX + rI)⁻¹ Xᵀ as it is written: a matrix with a row and a column for each sample."""
    total = torch.zeros(len(given[0]), len(given[0]), dtype=torch.float64)
    for view in given:
        x = (view - view.mean(0)) / (len(view) - 1) ** 0.5
        total += x @ torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=torch.float64), x.T)
    values, vectors = torch.linalg.eigh(total)
    return values.flip(0)[:dim], vectors.flip(1)[:, :dim]


def angle(p: torch.Tensor, q: torch.Tensor) -> float:
    """The sine of the largest angle between the column spaces."""
    p, q = torch.linalg.qr(p).Q, torch.linalg.qr(q).Q
    return float(torch.linalg.matrix_norm(p - q @ (q.T @ p), 2))


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_generalized_equals_the_matrix_over_samples(ridge: float) -> None:
    given = views(8, n=60, sizes=(5, 4, 3))
    values, g = explicit_maxvar(given, 3, ridge)
    found = generalized_cca(covariance(*given), (5, 4, 3), dim=3, ridge=ridge)
    assert found.eigenvalue.tolist() == pytest.approx(values.tolist(), abs=1e-10)
    for view, weight in zip(given, found.weights, strict=True):
        x = (view - view.mean(0)) / (len(view) - 1) ** 0.5
        expected = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=torch.float64), x.T @ g)
        for i in range(3):
            assert torch.allclose(weight[:, i].abs(), expected[:, i].abs(), atol=1e-9)
            assert float((weight[:, i] @ expected[:, i]).abs()) == pytest.approx(
                float(expected[:, i].square().sum()), rel=1e-7
            )


def test_generalized_of_two_views_spans_the_subspace_of_cca() -> None:
    x, y = views(9)
    two = canonical_directions(covariance(x, y), (6, 4), dim=2)
    found = generalized_cca(covariance(x, y), (6, 4), dim=2)
    assert (found.eigenvalue - 1).tolist() == pytest.approx(two.correlation.tolist(), abs=1e-10)
    for ours, theirs in zip(found.weights, two.weights, strict=True):
        assert angle(ours, theirs) < 1e-7


def test_generalized_at_the_edges() -> None:
    x, y, z = views(10, sizes=(5, 4, 3))
    same = generalized_cca(covariance(x, x, x), (5, 5, 5), dim=5)
    assert same.eigenvalue.tolist() == pytest.approx([3.0] * 5, abs=1e-8)
    deficient = torch.cat([y, y[:, :1] + y[:, 1:2]], 1)
    found = generalized_cca(covariance(x, deficient, z), (5, 5, 3), dim=20)
    assert len(found.eigenvalue) <= 12
    assert all(bool(torch.isfinite(w).all()) for w in found.weights)
    silent = generalized_cca(torch.zeros(9, 9), (5, 4), dim=3)
    assert len(silent.eigenvalue) == 0
    lower = [generalized_cca(covariance(x, y, z), (5, 4, 3), dim=3, ridge=r).eigenvalue for r in (0.0, 0.1, 1.0)]
    assert all(bool((after <= before + 1e-12).all()) for before, after in pairwise(lower))
    with pytest.raises(ConfigError, match="negative"):
        generalized_cca(covariance(x, y), (5, 4), dim=1, ridge=float("nan"))


# -------------------------------------------------------------------------------------------------------- cluster-CCA
def listed_pairs(x: torch.Tensor, y: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Covariance (1/M) of every pair (x_i, y_j) of one class, written out one pair after the other."""
    pairs = [torch.cat([x[i], y[j]]) for i in range(len(x)) for j in range(len(y)) if int(label[i]) == int(label[j])]
    rows = torch.stack(pairs)
    centered = rows - rows.mean(0)
    return centered.T @ centered / len(rows)


def clustered(x: torch.Tensor, y: torch.Tensor, label: torch.Tensor, weight: torch.Tensor, cut: int) -> ClusterMoments:
    moments, rows = None, torch.cat([x, y], 1)
    for start in range(0, len(rows), cut):
        moments = add_cluster_moments(moments, rows[start : start + cut], label[start : start + cut], weight=weight)
    assert moments is not None
    return moments


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_cluster_covariance_equals_all_pairs_written_out(cut: int) -> None:
    x, y = views(11, n=40)
    label = torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(0))
    label[label == 3] = 4  # a class without rows
    moments = clustered(x, y, label, torch.bincount(label, minlength=6), cut)
    found = cluster_covariance(moments, (6, 4))
    assert torch.allclose(found, listed_pairs(x, y, label), atol=1e-12)


def test_cluster_worked_values() -> None:
    label = torch.tensor([0, 0, 0, 1, 1, 1])
    counted = clustered(X, Y, label, torch.bincount(label), 2)
    found = canonical_directions(cluster_covariance(counted, (2, 2)), (2, 2), dim=2, ridge=1e-4)
    assert found.correlation.tolist() == pytest.approx([0.656098, 0], abs=1e-6)
    plain = clustered(X, Y, label, torch.ones(2), 4)
    for share, expected in ((0.0, [0.546753, 0.0]), (0.2, [0.594573, 0.020212]), (1.0, [0.989514, 0.059686])):
        mixed = cluster_covariance(plain, (2, 2), pair_weight=share)
        found = canonical_directions(mixed, (2, 2), dim=2, ridge=1e-4)
        assert found.correlation.tolist() == pytest.approx(expected, abs=1e-6)


def test_one_class_has_no_cluster_correlation_and_what_does_not_fit_is_named() -> None:
    label = torch.zeros(6, dtype=torch.long)
    found = cluster_covariance(clustered(X, Y, label, torch.tensor([6]), 6), (2, 2))
    assert canonical_directions(found, (2, 2), dim=2, ridge=1e-4).correlation.abs().max() < 1e-12
    rows = torch.cat([X, Y], 1)
    begun = add_cluster_moments(None, rows[:3], label[:3], weight=torch.tensor([6]))
    with pytest.raises(BatchError, match="count of its rows"):
        cluster_covariance(begun, (2, 2))  # half of the data is still missing
    with pytest.raises(BatchError, match="must be one"):
        cluster_covariance(begun, (2, 2), pair_weight=0.2)
    with pytest.raises(BatchError, match="begun"):
        add_cluster_moments(begun, rows, label, weight=torch.tensor([5]))
    with pytest.raises(BatchError, match="do not fit 1 class"):
        add_cluster_moments(begun, rows, label + 1, weight=torch.tensor([6]))
    with pytest.raises(BatchError, match="integer labels"):
        add_cluster_moments(begun, rows, label.double(), weight=torch.tensor([6]))
    with pytest.raises(BatchError, match="rows"):
        add_cluster_moments(begun, rows[:, :3], label, weight=torch.tensor([6]))
    whole = add_cluster_moments(begun, rows[3:], label[3:], weight=torch.tensor([6]))
    with pytest.raises(BatchError, match="views"):
        cluster_covariance(whole, (2, 1))
    plain = add_cluster_moments(None, rows, label, weight=torch.ones(1))
    with pytest.raises(ConfigError, match="pair_weight"):
        cluster_covariance(plain, (2, 2), pair_weight=1.5)
