"""Lifted structure and quadruplet losses against the worked values, their loops, and pytorch-metric-learning."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives import blocked
from avcl.objectives.lifted import lifted_pairs, lifted_structured, quadruplet

A = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)
V = torch.tensor([[0.8, 0.6], [0, 1], [0.6, -0.8]], dtype=torch.float64)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_labels(size: int, classes: int, seed: int) -> Tensor:
    return torch.randint(0, classes, (size,), generator=torch.Generator().manual_seed(seed))


def slow_lifted(z: Tensor, label: Tensor, margin: float) -> Tensor:
    """Pair by pair, each distance by itself; autograd gives the gradient."""
    size, terms = len(z), []
    for i in range(size):
        for j in range(i + 1, size):
            if label[i] == label[j]:
                far = [margin - (z[x] - z[k]).norm() for x in (i, j) for k in range(size) if label[k] != label[x]]
                cost = torch.stack(far).logsumexp(0) + (z[i] - z[j]).norm()
                terms.append(cost.clamp(min=0) ** 2)
    return torch.stack(terms).sum() / (2 * len(terms))


def slow_quadruplet(z: Tensor, label: Tensor, margins: tuple[float, float], clip: str, squared: bool) -> Tensor:
    size, y = len(z), label.tolist()
    d = [[((z[i] - z[j]) ** 2).sum() if squared else (z[i] - z[j]).norm() for j in range(size)] for i in range(size)]
    terms = []
    for i in range(size):
        for p in range(size):
            if p == i or y[p] != y[i]:
                continue
            for n in range(size):
                for m in range(size):
                    if len({y[i], y[n], y[m]}) < 3:
                        continue
                    first, second = d[i][p] - d[i][n] + margins[0], d[i][p] - d[n][m] + margins[1]
                    terms.append((first + second).relu() if clip == "one" else first.relu() + second.relu())
    value = torch.stack(terms)
    return value.sum() / max(1, int((value > 0).sum())) if clip == "one" else value.mean()


def both(f, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The value of ``f`` and its gradient by each input."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    value = f(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs)


def agree(got: tuple[Tensor, ...], want: tuple[Tensor, ...], tolerance: float) -> None:
    for x, y in zip(got, want, strict=True):
        scale = max(1.0, float(y.abs().max()))
        assert torch.isfinite(x).all()
        assert float((x.double() - y.double()).abs().max()) <= tolerance * scale


# ---------------------------------------------------------------------------------------------------- lifted structure
def test_lifted_worked_value() -> None:
    z, label = torch.tensor([[0, 0], [0.5, 0], [1, 0], [1, 1]]), torch.tensor([0, 0, 1, 1])
    assert float(lifted_structured(z, label, margin=1)) == pytest.approx(2.417635, abs=1e-6)
    assert float(lifted_structured(z.double(), label, margin=1)) == pytest.approx(2.417635, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 9), st.integers(1, 4), st.integers(0, 1000), st.floats(0, 5), st.integers(2, 4))
def test_lifted_equals_the_loop(size: int, dim: int, seed: int, margin: float, classes: int) -> None:
    z, label = random(size, dim, seed=seed), some_labels(size, classes, seed)
    sizes = label.unique(return_counts=True)[1]
    if len(sizes) < 2 or int(sizes.max()) < 2:
        with pytest.raises(BatchError, match="two rows of one label"):
            lifted_structured(z, label, margin=margin)
        return
    want = both(lambda x: slow_lifted(x, label, margin), z)
    agree(both(lambda x: lifted_structured(x, label, margin=margin), z), want, 1e-10)
    agree(both(lambda x: lifted_structured(x, label, margin=margin), z.float()), want, 1e-4)


@pytest.mark.parametrize("cells", [1, 333, 1 << 22])
@pytest.mark.parametrize("classes", [2, 10])
def test_lifted_in_row_blocks_is_exact(cells: int, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "CELLS", cells)
    z, label = random(40, 16, seed=0), some_labels(40, classes, 1)
    want = both(lambda x: slow_lifted(x, label, 1.0), z)
    agree(both(lambda x: lifted_structured(x, label, margin=1.0), z), want, 1e-12)
    agree(both(lambda x: lifted_structured(x, label, margin=1.0), z.float()), want, 1e-5)


def test_lifted_gradcheck_and_symmetries() -> None:
    z, label = random(9, 3, seed=2), some_labels(9, 3, 3)
    assert torch.autograd.gradcheck(lambda x: lifted_structured(x, label, margin=1.0), z.clone().requires_grad_())
    value = lifted_structured(z, label, margin=1.0)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(lifted_structured(z[order], label[order], margin=1.0), value)
    torch.testing.assert_close(lifted_structured(z + 3, 5 - 2 * label, margin=1.0), value)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_lifted_edges_stay_finite(kind: torch.dtype) -> None:
    label = torch.tensor([0, 0, 1, 1, 2])
    same = torch.full((5, 3), 0.7, dtype=kind)
    value, gradient = both(lambda x: lifted_structured(x, label, margin=1.0), same)
    assert float(value) == pytest.approx((1 + math.log(6)) ** 2 / 2)  # 3 + 3 negatives at distance 0
    assert float(gradient.abs().max()) == 0
    for z in (1e4 * random(5, 3, seed=0).to(kind), torch.zeros(5, 3, dtype=kind)):
        assert all(torch.isfinite(r).all() for r in both(lambda x: lifted_structured(x, label, margin=1.0), z))
    twins = random(5, 3, seed=1).to(kind)
    twins[3], twins[4] = twins[0], twins[0]
    assert all(torch.isfinite(r).all() for r in both(lambda x: lifted_structured(x, label, margin=1.0), twins))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = lifted_structured(twins, label, margin=1.0)
    assert rounded.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    assert float(rounded) == pytest.approx(float(slow_lifted(twins.double(), label, 1.0)), rel=1e-4)


@pytest.mark.parametrize("name", ["plain", "outlier", "lonely", "duplicates"])
@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_lifted_against_pytorch_metric_learning(name: str, margin: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_metric_learning.distances import LpDistance
        from pytorch_metric_learning.losses import LiftedStructureLoss
    peer = LiftedStructureLoss(neg_margin=margin, pos_margin=0, distance=LpDistance(normalize_embeddings=False))
    z, label = random(14, 4, seed=0), some_labels(14, 3, 1)
    if name == "outlier":
        z[3] *= 1e3
    elif name == "lonely":
        label = torch.arange(14).clamp(min=8)
    elif name == "duplicates":
        z[1], z[4] = z[0], z[0]
    ours = both(lambda x: lifted_structured(x, label, margin=margin), z)
    agree(ours, both(lambda x: peer(x, label), z), 1e-7)


def test_lifted_what_does_not_fit_is_named() -> None:
    z, label = random(4, 2, seed=0), torch.tensor([0, 0, 1, 1])
    for y in (torch.zeros(4, dtype=torch.int64), torch.arange(4)):
        with pytest.raises(BatchError, match="two rows of one label and one of another"):
            lifted_structured(z, y, margin=1.0)
    with pytest.raises(BatchError, match="two rows"):
        lifted_structured(z[:1], label[:1], margin=1.0)
    with pytest.raises(BatchError, match=r"\[B, D\]"):
        lifted_structured(z[:0], label[:0], margin=1.0)
    with pytest.raises(BatchError, match=r"\[B, D\]"):
        lifted_structured(z[0], label, margin=1.0)
    with pytest.raises(BatchError, match="4 integer labels"):
        lifted_structured(z, label[:3], margin=1.0)
    with pytest.raises(ConfigError, match="margin"):
        lifted_structured(z, label, margin=-1.0)


# -------------------------------------------------------------------------------------------------------- lifted_pairs
def test_lifted_pairs_worked_value() -> None:
    # the candidate beside each match is that of the clip before
    assert float(lifted_pairs(A, V, V.roll(1, 0)[:, None], margin=1)) == pytest.approx(1.004131, abs=1e-6)


def test_lifted_pairs_equals_the_loop() -> None:
    a, v, n = random(5, 3, seed=0), random(5, 3, seed=1), random(5, 4, 3, seed=2)
    for margin in (0.0, 1.0):
        total = 0.0
        for i in range(5):
            far = sum(math.exp(margin - math.dist(x[i].tolist(), n[i, k].tolist())) for x in (a, v) for k in range(4))
            total += max(0.0, math.log(far) + math.dist(a[i].tolist(), v[i].tolist()))
        assert float(lifted_pairs(a, v, n, margin=margin)) == pytest.approx(total / 10)
    assert torch.autograd.gradcheck(
        lambda x, y, m: lifted_pairs(x, y, m, margin=1.0), tuple(x.requires_grad_() for x in (a, v, n))
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_lifted_pairs_edges_stay_finite(kind: torch.dtype) -> None:
    same = torch.ones(1, 3, dtype=kind)
    value, *gradients = both(lambda a, v, n: lifted_pairs(a, v, n, margin=1.0), same, same, same[:, None])
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx((1 + math.log(2)) / 2)
    assert all(float(g.abs().max()) == 0 for g in gradients)
    huge = 1e4 * random(4, 3, seed=0).to(kind)
    results = both(lambda a, v, n: lifted_pairs(a, v, n, margin=1.0), huge, -huge, huge.roll(1, 0)[:, None])
    assert all(torch.isfinite(r).all() for r in results)


def test_lifted_pairs_what_does_not_fit_is_named() -> None:
    for bad in (V, V[:2, None], V[:, None, :1], V[:, None][:, :0]):
        with pytest.raises(BatchError, match="negatives must be"):
            lifted_pairs(A, V, bad, margin=1.0)
    with pytest.raises(BatchError, match="one shape"):
        lifted_pairs(A, V[:2], V[:, None], margin=1.0)
    with pytest.raises(ConfigError, match="margin"):
        lifted_pairs(A, V, V[:, None], margin=-1.0)


# ---------------------------------------------------------------------------------------------------------- quadruplet
@pytest.mark.parametrize(
    ("clip", "squared", "value"), [("two", False, 0.595492), ("one", False, 0.252453), ("two", True, 0.375)]
)
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_quadruplet_worked_values(clip: str, squared: bool, value: float, kind: torch.dtype) -> None:
    z, label = torch.tensor([[0, 0], [0.5, 0], [1, 0], [0, 1]], dtype=kind), torch.tensor([0, 0, 1, 2])
    assert float(quadruplet(z, label, clip=clip, squared=squared)) == pytest.approx(value, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(4, 8),
    st.integers(0, 1000),
    st.sampled_from(["two", "one"]),
    st.booleans(),
    st.sampled_from([(1.0, 0.5), (0.0, 0.0), (0.2, 3.0)]),
    st.integers(3, 4),
)
def test_quadruplet_equals_the_loop(
    size: int, seed: int, clip: str, squared: bool, margins: tuple[float, float], classes: int
) -> None:
    z, label = random(size, 3, seed=seed), some_labels(size, classes, seed)
    sizes = label.unique(return_counts=True)[1]
    keywords = {"margins": margins, "clip": clip, "squared": squared}
    if len(sizes) < 3 or int(sizes.max()) < 2:
        with pytest.raises(BatchError, match="three labels"):
            quadruplet(z, label, **keywords)
        return
    want = both(lambda x: slow_quadruplet(x, label, **keywords), z)
    agree(both(lambda x: quadruplet(x, label, **keywords), z), want, 1e-10)
    agree(both(lambda x: quadruplet(x, label, **keywords), z.float()), want, 1e-4)


@pytest.mark.parametrize("clip", ["two", "one"])
@pytest.mark.parametrize("squared", [False, True])
def test_quadruplet_in_blocks_gradcheck_and_symmetries(
    clip: str, squared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, label = random(12, 3, seed=2), some_labels(12, 4, 3)
    keywords = {"clip": clip, "squared": squared}
    assert torch.autograd.gradcheck(lambda x: quadruplet(x, label, **keywords), z.clone().requires_grad_())
    whole = both(lambda x: quadruplet(x, label, **keywords), z)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(quadruplet(z[order], label[order], **keywords), whole[0])
    monkeypatch.setattr(blocked, "CELLS", 1)
    agree(both(lambda x: quadruplet(x, label, **keywords), z), whole, 1e-12)


@pytest.mark.parametrize("clip", ["two", "one"])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_quadruplet_edges_stay_finite(clip: str, squared: bool, kind: torch.dtype) -> None:
    label = torch.tensor([0, 0, 1, 1, 2])
    keywords = {"clip": clip, "squared": squared}
    value, gradient = both(lambda x: quadruplet(x, label, **keywords), torch.ones(5, 3, dtype=kind))
    assert float(value) == pytest.approx(1.5)  # collapsed: the margins
    assert float(gradient.abs().max()) == 0
    results = both(lambda x: quadruplet(x, label, **keywords), 1e4 * random(5, 3, seed=0).to(kind))
    assert all(torch.isfinite(r).all() for r in results)
    apart = torch.tensor([[0, 0], [0, 0], [90, 0], [90, 0], [0, 90]], dtype=kind)
    value, gradient = both(lambda x: quadruplet(x, label, **keywords), apart)
    assert float(value) == 0
    assert float(gradient.abs().max()) == 0


def test_quadruplet_what_does_not_fit_is_named() -> None:
    z = random(4, 2, seed=0)
    for y in ([0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 3]):
        with pytest.raises(BatchError, match="three labels"):
            quadruplet(z, torch.tensor(y))
    label = torch.tensor([0, 0, 1, 2])
    with pytest.raises(BatchError, match=r"\[B, D\]"):
        quadruplet(z[:0], label[:0])
    with pytest.raises(BatchError, match="4 integer labels"):
        quadruplet(z, label[:2])
    with pytest.raises(ConfigError, match="margin"):
        quadruplet(z, label, margins=(1.0, -0.5))
    with pytest.raises(ConfigError, match='clip = "three"'):
        quadruplet(z, label, clip="three")  # type: ignore[arg-type]
