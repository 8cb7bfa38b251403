"""Deep, cluster and generalized CCA as losses, and their relatives that need no inverse."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives.correlation import canonical_directions, generalized_cca
from avcl.objectives.decorrelation import barlow_twins, batch_correlation, pearson, soft_cca
from avcl.objectives.deep_correlation import cluster_cca, deep_cca, deep_generalized_cca

X = torch.tensor([[1, 2], [2, 1], [3, 5], [4, 3], [5, 6], [6, 8]], dtype=torch.float64)
Y = torch.tensor([[2, 0], [1, 1], [4, 2], [3, 1], [7, 2], [6, 4]], dtype=torch.float64)
LABEL = torch.tensor([0, 0, 0, 1, 1, 1])
ESTIMATES = ("ledoit-wolf", "oracle-approximating")


def views(n: int, *sizes: int, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 2, generator=g, dtype=torch.float64)
    return [
        shared @ torch.randn(2, d, generator=g, dtype=torch.float64)
        + torch.randn(n, d, generator=g, dtype=torch.float64)
        + 3
        for d in sizes
    ]


def inverse_half(m: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(m)
    return vectors @ np.diag(values**-0.5) @ vectors.T


def singular(x: Tensor, y: Tensor, ridge: float, weight: np.ndarray | None = None) -> np.ndarray:
    """Singular values of T, every covariance a loop over the rows; ``weight``: share of each row, sum one."""
    a, b = x.numpy(), y.numpy()
    share = np.full(len(a), 1 / len(a)) if weight is None else weight
    over = 1 / (len(a) - 1) if weight is None else 1.0
    a, b = a - sum(s * r for s, r in zip(share, a, strict=True)), b - sum(s * r for s, r in zip(share, b, strict=True))
    each = np.full(len(a), over) if weight is None else share
    s11 = sum(w * np.outer(p, p) for w, p in zip(each, a, strict=True)) + ridge * np.eye(a.shape[1])
    s22 = sum(w * np.outer(q, q) for w, q in zip(each, b, strict=True)) + ridge * np.eye(b.shape[1])
    s12 = sum(w * np.outer(p, q) for w, p, q in zip(each, a, b, strict=True))
    return np.linalg.svd(inverse_half(s11) @ s12 @ inverse_half(s22))[1]


def listed(x: Tensor, y: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Every pair of one class as a row of two long views."""
    i, j = torch.nonzero(label[:, None] == label, as_tuple=True)
    return x[i], y[j]


def difference(loss: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-6) -> Tensor:
    """Central finite differences, one entry at a time."""
    result = torch.zeros_like(x)
    for index in np.ndindex(*x.shape):
        for sign in (1, -1):
            moved = x.clone()
            moved[index] += sign * step
            result[index] += sign * float(loss(moved)) / (2 * step)
    return result


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    free = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(free), free)
    return found


# ------------------------------------------------------------------------------------------------------------ deep CCA
def test_worked_values() -> None:
    assert float(deep_cca(X, Y, dim=2, ridge=1e-4)) == pytest.approx(-1.049200, abs=1e-6)
    assert float(deep_cca(X, Y, dim=1, ridge=1e-4)) == pytest.approx(-0.989514, abs=1e-6)
    assert float(deep_cca(X, Y, dim=2, ridge=1e-4, norm="frobenius")) == pytest.approx(-0.991313, abs=1e-6)
    first = gradient(lambda x: deep_cca(x, Y, dim=2, ridge=1e-4), X)[0]
    assert first.tolist() == pytest.approx([0.118623, -0.071442], abs=1e-6)


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 4), st.integers(1, 20), st.sampled_from([1e-4, 0.1, 1]))
def test_equals_the_loop(seed: int, d1: int, d2: int, more: int, ridge: float) -> None:
    x, y = views(max(d1, d2) + more, d1, d2, seed=seed)
    for dim in range(1, min(d1, d2) + 1):
        value = float(deep_cca(x, y, dim=dim, ridge=ridge))
        assert value == pytest.approx(-singular(x, y, ridge)[:dim].sum(), abs=1e-8)
        assert -dim - 1e-9 <= value <= 0


def test_equals_the_closed_form() -> None:
    x, y = views(50, 6, 4)
    found = canonical_directions(torch.cov(torch.cat([x, y], 1).T), (6, 4), dim=3, ridge=0.1)
    assert float(deep_cca(x, y, dim=3, ridge=0.1)) == pytest.approx(-float(found.correlation.sum()), abs=1e-12)


@pytest.mark.parametrize("norm", ["trace", "frobenius"])
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("shrinkage", [None, 0.3])
def test_gradient(norm, dim: int, shrinkage: float | None) -> None:
    x, y = views(9, 4, 3)
    x.requires_grad_(), y.requires_grad_()
    loss = lambda a, v: deep_cca(a, v, dim=dim, ridge=0.01, norm=norm, shrinkage=shrinkage)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (x, y))


def test_gradient_with_repeated_singular_and_eigenvalues() -> None:
    """White views whose canonical correlations are all equal: autograd through eigh divides by zero here."""
    q = torch.linalg.qr(views(12, 6)[0] - views(12, 6)[0].mean(0))[0] * math.sqrt(11)
    x, rest = q[:, :3], q[:, 3:]
    y = 0.6 * x + 0.8 * rest
    assert torch.allclose(torch.cov(x.T), torch.eye(3, dtype=torch.float64))
    value = deep_cca(x, y, dim=3, ridge=0.0)
    assert value.item() == pytest.approx(-1.8)
    for a, v in ((x, y), (y, x)):
        loss = lambda z, v=v: deep_cca(z, v, dim=3, ridge=0.0)  # noqa: E731
        assert torch.allclose(gradient(loss, a), difference(loss, a), atol=1e-7)
    cut = gradient(lambda z: deep_cca(z, y, dim=2, ridge=0.0), x)  # a tie at the cut: one of the subgradients
    assert bool(torch.isfinite(cut).all())


def test_identical_views_and_views_of_deficient_rank() -> None:
    x, y = views(20, 4, 3)
    assert float(deep_cca(x, x, dim=4, ridge=0.0)) == pytest.approx(-4)
    assert float(gradient(lambda a: deep_cca(a, x, dim=4, ridge=0.0), x).abs().max()) < 1e-9  # no better than equal
    flat = torch.cat([x, x[:, :1] - x[:, 1:2], torch.full((20, 1), 0.1, dtype=torch.float64)], 1)
    free = flat.clone().requires_grad_()
    value = deep_cca(free, y, dim=3, ridge=0.0)
    assert value.item() == pytest.approx(float(deep_cca(x, y, dim=3, ridge=0.0)), abs=1e-9)
    value.backward()
    assert bool(torch.isfinite(free.grad).all())


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ridge", [0.0, 1e-4])
def test_rows_that_are_all_the_same(kind: torch.dtype, ridge: float) -> None:
    a = torch.full((8, 3), 0.1, dtype=kind, requires_grad=True)
    v = views(8, 3)[0].to(kind)
    for other in (v, a.detach()):
        value = deep_cca(a, other, dim=2, ridge=ridge)
        assert value.item() == 0
        assert float(torch.autograd.grad(value, a)[0].abs().max()) == 0


def test_without_ridge_only_the_subspace_counts() -> None:
    x, y = views(30, 5, 4)
    m = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = float(deep_cca(x, y, dim=4, ridge=0.0))
    assert float(deep_cca(x @ m - 9, 100 * y, dim=4, ridge=0.0)) == pytest.approx(before, abs=1e-9)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    assert float(deep_cca(x[order], y[order], dim=4, ridge=0.0)) == pytest.approx(before, abs=1e-12)
    values = [float(deep_cca(x, y, dim=4, ridge=r)) for r in (0.0, 1e-3, 0.1, 1.0, 10.0)]
    assert all(after >= before for before, after in pairwise(values))


def test_aligned_costs_less_than_shuffled_and_a_step_lowers_it() -> None:
    x, y = views(60, 5, 4)
    loss = lambda a: deep_cca(a, y, dim=2, ridge=1e-3)  # noqa: E731
    assert loss(x) < loss(x.roll(1, 0))
    assert loss(x - 0.1 * gradient(loss, x)) < loss(x)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_precision_of_the_input_is_raised(kind: torch.dtype) -> None:
    x, y = (z.to(kind) for z in views(40, 5, 4))
    exact = float(deep_cca(x.double(), y.double(), dim=3, ridge=1e-4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = deep_cca(x.requires_grad_(), y, dim=3, ridge=1e-4)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact, abs=1e-6)
    assert torch.autograd.grad(value, x)[0].dtype == kind
    far = 1000 + 1e-2 * views(40, 3)[0]
    assert float(deep_cca(far.float(), y, dim=2, ridge=0.0)) == pytest.approx(
        float(deep_cca(far.float().double() - 1000, y.double(), dim=2, ridge=0.0)), abs=1e-6
    )


def test_gradient_can_be_taken_once() -> None:
    x, y = X.clone().requires_grad_(), Y
    (first,) = torch.autograd.grad(deep_cca(x, y, dim=1, ridge=1e-4), x, create_graph=True)
    with pytest.raises(RuntimeError, match="taken once"):
        first.sum().backward()


# ----------------------------------------------------------------------------------- batches smaller than the dimension
def test_a_batch_no_larger_than_the_dimension_is_refused_with_the_remedy() -> None:
    x, y = views(6, 6, 3)
    for call in (
        lambda: deep_cca(x, y, dim=2, ridge=1e-4),
        lambda: cluster_cca(x, y, LABEL, dim=2, ridge=1e-4),
        lambda: deep_generalized_cca([x, y], dim=2, ridge=1e-4),
    ):
        with pytest.raises(BatchError, match=r"6 rows of width 6.*Raise the batch.*shrinkage") as caught:
            call()
        assert caught.value.code == "E-BATCH"
    assert float(deep_cca(x, x.roll(1, 0), dim=6, ridge=1e-12, shrinkage=0.0)) < -4.99  # what the refusal is about


@pytest.mark.parametrize("shrinkage", [0.2, 0.9, *ESTIMATES])
def test_shrinkage_is_stable_there(shrinkage) -> None:
    x, y = views(10, 40, 30)
    x.requires_grad_()
    value = deep_cca(x, y, dim=5, ridge=0.0, shrinkage=shrinkage)
    assert -5 < value.item() < 0
    (found,) = torch.autograd.grad(value, x)
    assert bool(torch.isfinite(found).all())
    assert deep_cca(x - 0.1 * found, y, dim=5, ridge=0.0, shrinkage=shrinkage) < value
    same = torch.ones(10, 40, requires_grad=True)
    assert deep_cca(same, same.detach(), dim=5, ridge=0.0, shrinkage=shrinkage).item() == 0


def test_shrinkage_is_the_ridge_of_the_mean_variance() -> None:
    """(1-s) Σ and s μ I on the diagonal: the T of the ridge s/(1-s) μ, when both views have the mean variance μ."""
    x, y = views(30, 4, 3)
    x, y = (z / z.var(0).mean().sqrt() for z in (x, y))
    value = float(deep_cca(x, y, dim=3, ridge=0.0, shrinkage=0.2))
    assert value == pytest.approx(float(deep_cca(x, y, dim=3, ridge=0.25)), abs=1e-12)
    assert float(deep_cca(x, y, dim=3, ridge=0.1, shrinkage=0.0)) == float(deep_cca(x, y, dim=3, ridge=0.1))


@pytest.mark.parametrize("estimate", ESTIMATES)
@pytest.mark.parametrize("rows", [8, 200])
def test_estimates_are_those_of_scikit_learn(estimate, rows: int) -> None:
    from sklearn.covariance import ledoit_wolf_shrinkage, oas

    x, y = views(rows, 6, 5)
    x = 100 * x  # the views are brought to one scale before
    joint = torch.cat([(z - z.mean(0)) / (z - z.mean(0)).square().mean().sqrt() for z in (x, y)], 1).numpy()
    s = ledoit_wolf_shrinkage(joint) if estimate == "ledoit-wolf" else oas(joint)[1]
    assert 0 < s < 0.95
    value = deep_cca(x, y, dim=4, ridge=0.0, shrinkage=estimate)
    assert value.item() == pytest.approx(float(deep_cca(x, y, dim=4, ridge=0.0, shrinkage=float(s))), abs=1e-9)
    both = [gradient(lambda a, s=s: deep_cca(a, y, dim=4, ridge=0.0, shrinkage=s), x) for s in (estimate, float(s))]
    assert torch.allclose(both[0], both[1], atol=1e-10)  # the estimate is a constant of the step


# --------------------------------------------------------------------------------------------------------- cluster CCA
def test_cluster_worked_values() -> None:
    assert float(cluster_cca(X, Y, LABEL, dim=1, ridge=1e-4)) == pytest.approx(-0.656098, abs=1e-6)
    assert float(cluster_cca(X, Y, LABEL, dim=1, ridge=1e-4, pair_weight=0.0)) == pytest.approx(-0.546753, abs=1e-6)
    assert float(cluster_cca(X, Y, LABEL, dim=1, ridge=1e-4, pair_weight=0.2)) == pytest.approx(-0.594573, abs=1e-6)
    assert float(cluster_cca(X, Y, LABEL, dim=2, ridge=1e-4, pair_weight=0.2)) == pytest.approx(-0.614785, abs=1e-6)


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(6, 25))
def test_cluster_equals_all_pairs_written_out(seed: int, classes: int, n: int) -> None:
    x, y = views(n, 4, 3, seed=seed)
    label = torch.randint(-2, classes - 2, (n,), generator=torch.Generator().manual_seed(seed))
    p, q = listed(x, y, label)
    expected = singular(p, q, 0.01, np.full(len(p), 1 / len(p)))
    for dim in (1, 2, 3):
        assert float(cluster_cca(x, y, label, dim=dim, ridge=0.01)) == pytest.approx(-expected[:dim].sum(), abs=1e-8)


def test_cluster_limits() -> None:
    x, y = views(12, 4, 3)
    alone = torch.arange(12)  # each its own class: the pairs are the rows themselves
    expected = -singular(x, y, 0.1, np.full(12, 1 / 12)).sum()
    assert float(cluster_cca(x, y, alone, dim=3, ridge=0.1)) == pytest.approx(expected, abs=1e-10)
    given = float(cluster_cca(x, y, alone // 2, dim=3, ridge=0.1, pair_weight=1.0))
    assert given == pytest.approx(float(deep_cca(x, y, dim=3, ridge=0.1)), abs=1e-10)
    a = x.clone().requires_grad_()
    one = cluster_cca(a, y, torch.full((12,), 7), dim=3, ridge=0.0)
    assert one.item() == pytest.approx(0, abs=1e-9)
    assert float(torch.autograd.grad(one, a)[0].abs().max()) == 0


@pytest.mark.parametrize("share", [None, 0.0, 0.2])
@pytest.mark.parametrize("dim", [1, 3])
def test_cluster_gradient_also_beyond_the_number_of_classes(share: float | None, dim: int) -> None:
    """Three classes: two correlations and a third that is zero for every batch."""
    x, y = views(9, 4, 3)
    label = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    x.requires_grad_(), y.requires_grad_()
    loss = lambda a, v: cluster_cca(a, v, label, dim=dim, ridge=0.05, pair_weight=share)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (x, y))


def test_classes_that_agree_cost_less_than_classes_at_random() -> None:
    g = torch.Generator().manual_seed(0)
    label = torch.arange(40) % 4
    centers = torch.randn(4, 5, generator=g, dtype=torch.float64)
    x, y = (centers[label] + 0.5 * torch.randn(40, 5, generator=g, dtype=torch.float64) for _ in range(2))
    wrong = label[torch.randperm(40, generator=g)]
    for share in (None, 0.2):
        right = cluster_cca(x, y, label, dim=3, ridge=1e-3, pair_weight=share)
        assert right < cluster_cca(x, y, wrong, dim=3, ridge=1e-3, pair_weight=share)
    partner = y[torch.argsort(torch.argsort(label * 100 + torch.arange(40).flip(0)))]
    assert cluster_cca(x, partner, label, dim=3, ridge=1e-3) < -0.5  # which member of the class does not matter much


# ----------------------------------------------------------------------------------------------------- generalized CCA
def test_generalized_equals_the_closed_form_and_two_views_equal_cca() -> None:
    x, y, z = views(40, 5, 4, 3)
    found = generalized_cca(torch.cov(torch.cat([x, y, z], 1).T), (5, 4, 3), dim=2, ridge=0.1)
    assert float(deep_generalized_cca([x, y, z], dim=2, ridge=0.1)) == pytest.approx(
        6 - float(found.eigenvalue.sum()), abs=1e-10
    )
    two = float(deep_generalized_cca([x, y], dim=3, ridge=0.0))
    assert two == pytest.approx(3 + float(deep_cca(x, y, dim=3, ridge=0.0)), abs=1e-10)


def test_generalized_is_what_the_shared_representation_leaves_unexplained() -> None:
    given, ridge = views(15, 4, 3, 2), 0.2
    scaled = [(z - z.mean(0)) / 14**0.5 for z in given]
    inverse = [torch.linalg.inv(z.T @ z + ridge * torch.eye(z.shape[1], dtype=torch.float64)) for z in scaled]
    total = sum(z @ i @ z.T for z, i in zip(scaled, inverse, strict=True))
    g = torch.linalg.eigh(total)[1].flip(1)[:, :2]
    left = 0.0
    for z, i in zip(scaled, inverse, strict=True):
        u = i @ z.T @ g
        left += float((g - z @ u).square().sum() + ridge * u.square().sum())
    assert float(deep_generalized_cca(given, dim=2, ridge=ridge)) == pytest.approx(left, abs=1e-10)


@pytest.mark.parametrize("shrinkage", [None, 0.3])
def test_generalized_gradient(shrinkage: float | None) -> None:
    given = views(9, 4, 3, 2)
    for view in given:
        view.requires_grad_()
    loss = lambda *z: deep_generalized_cca(z, dim=2, ridge=0.05, shrinkage=shrinkage)  # noqa: E731
    assert torch.autograd.gradcheck(loss, given)
    same = torch.ones(6, 3, requires_grad=True)
    value = deep_generalized_cca([same, same, same], dim=2, ridge=0.0)
    assert value.item() == 6  # nothing is explained
    assert float(torch.autograd.grad(value, same)[0].abs().max()) == 0
    tied = given[0].detach().clone().requires_grad_()
    value = deep_generalized_cca([tied, tied.detach(), tied.detach()], dim=4, ridge=0.0)
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert float(torch.autograd.grad(value, tied)[0].abs().max()) < 1e-9
    small = views(4, 10, 9, 8)
    assert 0 < float(deep_generalized_cca(small, dim=2, ridge=0.0, shrinkage="ledoit-wolf")) < 6


# ---------------------------------------------------------------------------------------------------- without inverses
def slow_standardized(z: Tensor) -> list[list[float]]:
    columns = []
    for column in z.T.tolist():
        mean = sum(column) / len(column)
        deviation = math.sqrt(sum((c - mean) ** 2 for c in column) / len(column))
        columns.append([(c - mean) / deviation for c in column])
    return columns


def slow_correlation(p: list[list[float]], q: list[list[float]]) -> list[list[float]]:
    return [[sum(x * y for x, y in zip(a, b, strict=True)) / len(a) for b in q] for a in p]


def test_soft_cca_equals_the_loop() -> None:
    x, y = views(7, 3, 3)
    p, q = slow_standardized(x), slow_standardized(y)
    matching = sum((a - b) ** 2 for c, d in zip(p, q, strict=True) for a, b in zip(c, d, strict=True)) / 14
    off = sum(
        abs(m[i][j]) for m in (slow_correlation(p, p), slow_correlation(q, q)) for i in range(3) for j in range(3)
    )
    expected = matching + 0.5 * 0.3 * (off - 6)
    assert float(soft_cca(x, y, weight=0.3)) == pytest.approx(expected, abs=1e-10)
    paired = slow_correlation(p, q)
    assert float(soft_cca(x, y, weight=0.0)) == pytest.approx(sum(1 - paired[i][i] for i in range(3)), abs=1e-10)
    past = (torch.full((3, 3), 0.5, dtype=torch.float64), torch.full((3, 3), -0.5, dtype=torch.float64))
    blended = [0.75 * batch_correlation(z) + 0.25 * c for z, c in zip((x, y), past, strict=True)]
    off = sum(float(b.abs().sum() - b.diagonal().abs().sum()) for b in blended)
    value = soft_cca(x, y, weight=0.3, covariance=past, momentum=0.25)
    assert value.item() == pytest.approx(matching + 0.15 * off, abs=1e-10)


def test_barlow_twins_equals_the_loop() -> None:
    x, y = views(7, 3, 3)
    c = slow_correlation(slow_standardized(x), slow_standardized(y))
    expected = sum((1 - c[i][i]) ** 2 for i in range(3))
    expected += 0.1 * sum(c[i][j] ** 2 for i in range(3) for j in range(3) if i != j)
    assert float(barlow_twins(x, y, weight=0.1)) == pytest.approx(expected, abs=1e-10)


def test_pearson_is_the_correlation_of_each_sample() -> None:
    x, y = views(7, 5, 5)
    expected = np.mean([1 - np.corrcoef(a, v)[0, 1] for a, v in zip(x.numpy(), y.numpy(), strict=True)])
    assert float(pearson(x, y)) == pytest.approx(expected, abs=1e-12)
    assert float(pearson(x, 3 * x - 2)) == pytest.approx(0, abs=1e-12)
    assert float(pearson(torch.ones(2, 4), x[:2, :4])) == 1


WITHOUT_INVERSE = {
    "soft_cca": lambda a, v: soft_cca(a, v, weight=0.1),
    "barlow_twins": lambda a, v: barlow_twins(a, v, weight=0.1),
    "pearson": pearson,
}


@pytest.mark.parametrize("name", WITHOUT_INVERSE)
def test_without_inverse_small_batches_do(name: str) -> None:
    loss = WITHOUT_INVERSE[name]
    a, v = (z.requires_grad_() for z in views(4, 6, 6))
    assert torch.autograd.gradcheck(loss, (a, v))
    shared = views(64, 6)[0]
    near = shared + 0.1 * views(64, 6, seed=1)[0]
    assert loss(shared, near) < loss(shared, near.roll(1, 0))
    for value in (0.0, 0.1, 1e4, 1e30):
        same = torch.full((4, 6), value, requires_grad=True)
        for other in (same.detach(), views(4, 6)[0].float()):
            found = loss(same, other)
            assert bool(torch.isfinite(found))
            assert float(torch.autograd.grad(found, same)[0].abs().max()) == 0
    huge = (1e30 * views(4, 6)[0].float()).requires_grad_()
    found = loss(huge, v.detach().float())
    assert found.item() == pytest.approx(loss(huge.double() * 1e-30, v).item(), rel=1e-4)
    assert bool(torch.isfinite(torch.autograd.grad(found, huge)[0]).all())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss(a.detach().bfloat16(), v.detach().bfloat16())
    assert half.dtype == torch.float32
    exact = loss(a.detach().bfloat16().double(), v.detach().bfloat16().double())
    assert float(half) == pytest.approx(float(exact), rel=1e-4)


# -------------------------------------------------------------------------------------------------------------- errors
def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(BatchError, match="as many rows"):
        deep_cca(X, Y[:5], dim=1, ridge=1e-4)
    with pytest.raises(BatchError, match="as many rows"):
        deep_cca(X[:, 0], Y, dim=1, ridge=1e-4)
    with pytest.raises(BatchError, match="two rows"):
        deep_cca(X[:1], Y[:1], dim=1, ridge=1e-4)
    with pytest.raises(BatchError, match="as many rows"):
        deep_generalized_cca([X], dim=1, ridge=1e-4)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(BatchError, match="non-finite"):
            deep_cca(X * bad, Y, dim=1, ridge=1e-4)
        with pytest.raises(BatchError, match="non-finite"):
            deep_generalized_cca([X * bad, Y], dim=1, ridge=1e-4)
    for dim in (0, 3):
        with pytest.raises(ConfigError, match="from 1 to 2"):
            deep_cca(X, Y, dim=dim, ridge=1e-4)
    with pytest.raises(ConfigError, match="ridge"):
        deep_cca(X, Y, dim=1, ridge=-1e-4)
    with pytest.raises(ConfigError, match="norm"):
        deep_cca(X, Y, dim=1, ridge=1e-4, norm="nuclear")
    for shrinkage in (-0.1, 1.0, float("nan"), "lw"):
        with pytest.raises(ConfigError, match="shrinkage"):
            deep_cca(X, Y, dim=1, ridge=1e-4, shrinkage=shrinkage)
    with pytest.raises(ConfigError, match="pair_weight"):
        cluster_cca(X, Y, LABEL, dim=1, ridge=1e-4, pair_weight=1.2)
    with pytest.raises(BatchError, match="integer labels"):
        cluster_cca(X, Y, LABEL[:4], dim=1, ridge=1e-4)
    with pytest.raises(ConfigError, match="weight"):
        soft_cca(X, Y, weight=-1.0)
    with pytest.raises(ConfigError, match="momentum"):
        soft_cca(X, Y, weight=1.0, momentum=0.5)
    with pytest.raises(BatchError, match="covariance"):
        soft_cca(X, Y, weight=1.0, momentum=0.5, covariance=(torch.eye(3), torch.eye(2)))
    for loss in (soft_cca, barlow_twins):
        with pytest.raises(BatchError, match="two rows"):
            loss(X[:1], Y[:1], weight=1.0)
        with pytest.raises(BatchError, match="one shape"):
            loss(X, Y[:, :1], weight=1.0)
    with pytest.raises(BatchError, match="B > 1"):
        batch_correlation(X[:1])
