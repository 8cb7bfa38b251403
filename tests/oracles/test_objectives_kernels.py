"""Kernel CCA against the worked values, its eigenproblem, and CCA itself under a linear kernel."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives.correlation import canonical_directions
from avcl.objectives.kernels import kernel_cca, rbf_kernel

X = torch.tensor([[1, 2], [2, 1], [3, 5], [4, 3], [5, 6], [6, 8]], dtype=torch.float64)
Y = torch.tensor([[2, 0], [1, 1], [4, 2], [3, 1], [7, 2], [6, 4]], dtype=torch.float64)


def radial(x: Tensor, y: Tensor | None = None) -> Tensor:
    """With the mean squared distance of the training rows ``x`` as the scale."""
    return rbf_kernel(x if y is None else y, x, scale=float(torch.cdist(x, x).square().mean()))


def views(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 2, generator=g, dtype=torch.float64)
    x, y = (
        torch.cat([shared, torch.randn(n, 1, generator=g, dtype=torch.float64)], 1)
        @ torch.randn(3, d, generator=g, dtype=torch.float64)
        + 0.3 * torch.randn(n, d, generator=g, dtype=torch.float64)
        + 5
        for d in (4, 3)
    )
    return x, y


def test_worked_value() -> None:
    found = kernel_cca(radial(X), radial(Y), dim=3, ridge=0.1)
    assert found.correlation.tolist() == pytest.approx([0.929589, 0.709047, 0.328606], abs=1e-6)


def test_the_radial_kernel_one_entry_at_a_time() -> None:
    import math

    for i in range(6):
        for j in range(6):
            d2 = sum((float(p) - float(q)) ** 2 for p, q in zip(X[i], Y[j], strict=True))
            assert float(rbf_kernel(X, Y, scale=3.0)[i, j]) == pytest.approx(math.exp(-d2 / 6))
    far = rbf_kernel(X.float() + 1000, X.float() + 1000, scale=3.0)
    assert torch.allclose(far, rbf_kernel(X, X, scale=3.0), atol=1e-12)
    assert torch.equal(far.diagonal(), torch.ones(6, dtype=torch.float64))


def test_solves_the_eigenproblem_as_it_is_written() -> None:
    x, y = views(12)
    k = 0.2
    h = np.eye(12) - 1 / 12
    a, b = (h @ radial(z).numpy() @ h for z in (x, y))
    product = np.linalg.solve(a + k * np.eye(12), b) @ np.linalg.solve(b + k * np.eye(12), a)
    found = kernel_cca(radial(x), radial(y), dim=4, ridge=k)
    squares = np.sort(np.linalg.eigvals(product).real)[::-1][:4]
    assert found.correlation.numpy() == pytest.approx(np.sqrt(squares), abs=1e-9)
    alpha = found.weights[0].numpy()
    assert product @ alpha == pytest.approx(alpha * squares, abs=1e-8)


@pytest.mark.parametrize("ridge", [0.0, 0.4])
def test_a_linear_kernel_is_cca(ridge: float) -> None:
    x, y = views(50)
    covariance = torch.cov(torch.cat([x, y], 1).T)
    linear = canonical_directions(covariance, (4, 3), dim=3, ridge=ridge)
    found = kernel_cca(x @ x.T, y @ y.T, dim=10, ridge=ridge * 49)
    assert found.correlation.tolist() == pytest.approx(linear.correlation.tolist(), abs=1e-8)
    new = views(7, seed=3)
    for i, (seen, some) in enumerate(zip((x, y), new, strict=True)):
        ours = found.project(i, some @ seen.T)
        theirs = (some - seen.mean(0)) @ linear.weights[i]
        for c in range(3):
            assert float(torch.corrcoef(torch.stack([ours[:, c], theirs[:, c]]))[0, 1].abs()) == pytest.approx(1)
            assert float((ours[:, c] * 7).norm()) == pytest.approx(float(theirs[:, c].norm()), rel=1e-6)  # √(n - 1)


def test_projections_of_the_training_samples_are_white_and_correlate_as_stated() -> None:
    x, y = views(40)
    found = kernel_cca(x @ x.T, y @ y.T, dim=3, ridge=0.0)
    p, q = found.project(0, x @ x.T), found.project(1, y @ y.T)
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(p.T @ p, eye, atol=1e-8)
    assert torch.allclose(p.T @ q, torch.diag(found.correlation), atol=1e-8)
    assert float(p.mean(0).abs().max()) < 1e-9


def test_centering_of_new_samples_is_the_full_formula() -> None:
    x, y = views(20)
    new = views(5, seed=8)[0]
    found = kernel_cca(radial(x), radial(y), dim=2, ridge=0.1)
    k, seen = radial(x, new), radial(x)
    centered = k - k.mean(1, keepdim=True) - seen.mean(0) + seen.mean()
    assert torch.allclose(found.project(0, k), centered @ found.weights[0], atol=1e-10)


def test_a_curve_that_cca_cannot_see() -> None:
    g = torch.Generator().manual_seed(0)
    t = torch.rand(120, 1, generator=g, dtype=torch.float64) * 2 - 1
    x, y = t, t.square() + 0.02 * torch.randn(120, 1, generator=g, dtype=torch.float64)
    linear = canonical_directions(torch.cov(torch.cat([x, y], 1).T), (1, 1), dim=1).correlation
    assert float(linear) < 0.3
    assert float(kernel_cca(radial(x), radial(y), dim=1, ridge=0.5).correlation) > 0.9


def test_edges_and_ridge() -> None:
    x, y = views(15)
    rho = [kernel_cca(radial(x), radial(y), dim=3, ridge=r).correlation for r in (0.01, 0.1, 1.0, 10.0)]
    assert all(bool((after <= before + 1e-12).all()) for before, after in pairwise(rho))
    assert kernel_cca(radial(x), radial(y), dim=3, ridge=0.0).correlation.tolist() == pytest.approx([1, 1, 1])
    silent = kernel_cca(torch.ones(15, 15), radial(y), dim=3, ridge=0.1)  # identical samples: no direction at all
    assert silent.correlation.shape == (0,)
    assert silent.project(0, torch.ones(2, 15)).shape == (2, 0)
    same = kernel_cca(radial(x), radial(x), dim=2, ridge=1e-9)
    assert same.correlation.tolist() == pytest.approx([1, 1], abs=1e-6)


def test_what_does_not_fit_is_named() -> None:
    k = radial(X)
    with pytest.raises(ConfigError, match="at least 1"):
        kernel_cca(k, k, dim=0, ridge=0.1)
    with pytest.raises(ConfigError, match="ridge"):
        kernel_cca(k, k, dim=1, ridge=-1.0)
    with pytest.raises(BatchError, match="two"):
        kernel_cca(k, k[:5, :5], dim=1, ridge=0.1)
    with pytest.raises(BatchError, match="two"):
        kernel_cca(k[:1, :1], k[:1, :1], dim=1, ridge=0.1)
    with pytest.raises(BatchError, match="symmetric"):
        kernel_cca(k, k.triu(), dim=1, ridge=0.1)
    with pytest.raises(BatchError, match="finite"):
        kernel_cca(k, k * float("nan"), dim=1, ridge=0.1)
    with pytest.raises(BatchError, match="kernel must be"):
        kernel_cca(k, k, dim=1, ridge=0.1).project(0, k[:, :4])
    with pytest.raises(ConfigError, match="scale"):
        rbf_kernel(X, X, scale=0.0)
    with pytest.raises(BatchError, match="rbf_kernel"):
        rbf_kernel(X, X[:, :1], scale=1.0)
