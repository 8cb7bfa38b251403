"""The triplet loss against the worked values, an enumeration of the triplets, and pytorch-metric-learning."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives import blocked
from avcl.objectives.triplets import triplet

A = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)
V = torch.tensor([[0.8, 0.6], [0, 1], [0.6, -0.8]], dtype=torch.float64)
Y = torch.tensor([0, 0, 1])
MININGS = ("all", "hard", "semi-hard")


def random(size: int, dim: int, seed: int) -> Tensor:
    return torch.randn(size, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_labels(size: int, classes: int, seed: int) -> Tensor:
    return torch.randint(0, classes, (size,), generator=torch.Generator().manual_seed(seed))


def listed(distance: list[list[float]], label: list[int], mining: str, own_pair: bool) -> list[tuple[int, int, int]]:
    """The triplets (anchor, positive, negative) of one direction, one after the other, from the definition."""
    size, chosen = len(label), []
    for i, d in enumerate(distance):
        positives = [j for j in range(size) if label[j] == label[i] and (own_pair or j != i)]
        negatives = [j for j in range(size) if label[j] != label[i]]
        if not positives or not negatives:
            continue
        if mining == "all":
            chosen += [(i, p, n) for p in positives for n in negatives]
        elif mining == "hard":
            chosen.append((i, max(positives, key=d.__getitem__), min(negatives, key=d.__getitem__)))
        else:
            for p in positives:
                above = [n for n in negatives if d[n] > d[p]]
                pick = min(above, key=d.__getitem__) if above else max(negatives, key=d.__getitem__)
                chosen.append((i, p, pick))
    return chosen


def slow_triplet(
    a: Tensor,
    v: Tensor,
    margin: float,
    label: Tensor | None = None,
    mining: str = "all",
    own_pair: bool = True,
    reduction: str = "valid",
    weights: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Every triplet by itself; autograd gives the gradient."""
    names = list(range(len(a))) if label is None else label.tolist()
    total = a.new_zeros(())
    for weight, x, y in ((weights[0], a, v), (weights[1], v, a)):
        distance = [[float(((p - q) ** 2).sum()) for q in y.detach()] for p in x.detach()]
        terms = []
        for i, p, n in listed(distance, names, mining, own_pair):
            term = ((x[i] - y[p]) ** 2).sum() - ((x[i] - y[n]) ** 2).sum() + margin
            if float(term.detach()) > 0:
                terms.append(term)
            elif reduction == "valid":
                terms.append(term.detach() * 0)
        if terms:
            total = total + weight * torch.stack(terms).mean()
    return total


def both(f, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The value of ``f`` and its gradient by each input."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    value = f(*inputs)
    if not value.requires_grad:
        return value, *(torch.zeros_like(x) for x in inputs)
    gradients = torch.autograd.grad(value, inputs, allow_unused=True)
    return value.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True))


def agree(got: tuple[Tensor, ...], want: tuple[Tensor, ...], tolerance: float) -> None:
    for x, y in zip(got, want, strict=True):
        scale = max(1.0, float(y.abs().max()))
        assert torch.isfinite(x).all()
        assert float((x.double() - y.double()).abs().max()) <= tolerance * scale


# ------------------------------------------------------------------------------------------------------- worked values
@pytest.mark.parametrize(("mining", "value"), [("all", 2.113333), ("hard", 2.813333), ("semi-hard", 1.413333)])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_worked_values(mining: str, value: float, kind: torch.dtype) -> None:
    a, v = A.to(kind), V.to(kind)
    assert float(triplet(a, v, margin=0.2, mining=mining)) == pytest.approx(value, abs=1e-6)
    assert float(triplet(a, v, margin=0.2, mining=mining, label=torch.arange(3))) == pytest.approx(value, abs=1e-6)


def test_worked_values_of_one_direction() -> None:
    audio, vision = (float(triplet(A, V, margin=0.2, weights=w)) for w in ((1, 0), (0, 1)))
    assert (6 * audio, 6 * vision) == (pytest.approx(7.32), pytest.approx(5.36))
    active = [float(triplet(A, V, margin=0.2, weights=w, reduction="active")) for w in ((1, 0), (0, 1))]
    assert (3 * active[0] + 4 * active[1]) / 7 == pytest.approx(1.811429, abs=1e-6)  # 3 and 4 active triplets
    assert float(triplet(A, V, margin=0.2, weights=(3, 1))) == pytest.approx(3 * audio + vision)


def test_worked_values_with_classes() -> None:
    assert float(triplet(A, V, margin=0.2, label=Y, weights=(1, 0))) == pytest.approx(1.366667, abs=1e-6)
    without = triplet(A, V, margin=0.2, label=Y, weights=(1, 0), own_pair=False)
    assert float(without) == pytest.approx(0.7, abs=1e-6)


# ----------------------------------------------------------------------------------------------------- the enumeration
@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 8),
    st.integers(1, 4),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.2, 1.0, 5.0]),
    st.sampled_from(MININGS),
    st.sampled_from([0, 2, 3]),
    st.booleans(),
    st.sampled_from(["valid", "active"]),
)
def test_equals_the_enumeration(
    size: int, dim: int, seed: int, margin: float, mining: str, classes: int, own_pair: bool, reduction: str
) -> None:
    a, v = random(size, dim, seed), random(size, dim, seed + 1)
    label = some_labels(size, classes, seed) if classes else None
    own_pair = own_pair or label is None
    names = list(range(size)) if label is None else label.tolist()
    keywords = {"margin": margin, "label": label, "mining": mining, "own_pair": own_pair, "reduction": reduction}
    if not listed([[0.0] * size] * size, names, "hard", own_pair):
        with pytest.raises(BatchError, match="a positive and a negative"):
            triplet(a, v, **keywords)
        return
    want = both(lambda x, y: slow_triplet(x, y, **keywords), a, v)
    agree(both(lambda x, y: triplet(x, y, **keywords), a, v), want, 1e-10)
    agree(both(lambda x, y: triplet(x, y, **keywords), a.float(), v.float()), want, 1e-4)


def dense(a: Tensor, v: Tensor, margin: float, label: Tensor, own_pair: bool = True) -> Tensor:
    """All triplets at once in a B × B × B array."""
    total = a.new_zeros(())
    positive, negative = label[:, None] == label, label[:, None] != label
    if not own_pair:
        positive = positive & ~torch.eye(len(a), dtype=torch.bool)
    valid = positive[:, :, None] & negative[:, None, :]
    for x, y in ((a, v), (v, a)):
        d = ((x[:, None] - y) ** 2).sum(-1)
        total = total + (d[:, :, None] - d[:, None, :] + margin).clamp(min=0)[valid].mean()
    return total


@pytest.mark.parametrize("classes", [2, 12, 1000])
@pytest.mark.parametrize("own_pair", [True, False])
@pytest.mark.parametrize("cells", [1, 700, 1 << 22])
def test_row_blocks_are_exact(classes: int, own_pair: bool, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "CELLS", cells)
    a, v, label = random(96, 16, 0), random(96, 16, 1), some_labels(96, classes, 2)
    a, v = (torch.nn.functional.normalize(x + 0.5 * random(1000, 16, 3)[label], dim=1) for x in (a, v))
    want = both(lambda x, y: dense(x, y, 0.2, label, own_pair), a, v)
    got = both(lambda x, y: triplet(x, y, margin=0.2, label=label, own_pair=own_pair), a, v)
    agree(got, want, 1e-12)
    single = both(lambda x, y: triplet(x, y, margin=0.2, label=label, own_pair=own_pair), a.float(), v.float())
    agree(single, want, 1e-5)
    if classes == 1000:
        own = both(lambda x, y: dense(x, y, 0.2, torch.arange(96)), a, v)
        agree(both(lambda x, y: triplet(x, y, margin=0.2), a.float(), v.float()), own, 1e-5)


@pytest.mark.parametrize("mining", ["hard", "semi-hard"])
@pytest.mark.parametrize("classes", [None, 2, 9])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_mining_in_row_blocks_is_that_of_one_block(
    mining: str, classes: int | None, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, v = random(40, 8, 0).to(kind), random(40, 8, 1).to(kind)
    label = None if classes is None else some_labels(40, classes, 2)
    whole = both(lambda x, y: triplet(x, y, margin=0.5, label=label, mining=mining), a, v)
    agree(whole, both(lambda x, y: slow_triplet(x, y, 0.5, label, mining), a.double(), v.double()), 1e-5)
    monkeypatch.setattr(blocked, "CELLS", 120)
    agree(both(lambda x, y: triplet(x, y, margin=0.5, label=label, mining=mining), a, v), whole, 1e-5)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("classes", [None, 3])
def test_gradcheck(mining: str, classes: int | None) -> None:
    a, v = random(7, 3, 4).requires_grad_(), random(7, 3, 5).requires_grad_()
    label = None if classes is None else some_labels(7, classes, 6)
    assert torch.autograd.gradcheck(lambda x, y: triplet(x, y, margin=1.0, label=label, mining=mining), (a, v))


# ---------------------------------------------------------------------------------------------------------- identities
@pytest.mark.parametrize("mining", MININGS)
def test_the_batch_may_be_permuted_shifted_and_turned(mining: str) -> None:
    a, v, label = random(20, 6, 0), random(20, 6, 1), some_labels(20, 4, 2)
    value = triplet(a, v, margin=0.3, label=label, mining=mining)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    turn = torch.linalg.qr(random(6, 6, 4))[0]
    torch.testing.assert_close(triplet(a[order], v[order], margin=0.3, label=label[order], mining=mining), value)
    torch.testing.assert_close(triplet(v, a, margin=0.3, label=label, mining=mining), value)
    torch.testing.assert_close(triplet(a @ turn + 5, v @ turn + 5, margin=0.3, label=label, mining=mining), value)
    torch.testing.assert_close(triplet(a, v, margin=0.3, label=label * -7 + 100, mining=mining), value)


def test_a_common_offset_costs_no_digits() -> None:
    a, v = random(30, 8, 0), random(30, 8, 1)
    far = triplet((a + 1000).float(), (v + 1000).float(), margin=1.0)
    assert float(far) == pytest.approx(float(triplet(a, v, margin=1.0)), rel=1e-4)


def test_the_margin_of_unit_rows_is_twice_that_of_the_cosine() -> None:
    a, v = (torch.nn.functional.normalize(random(12, 5, seed), dim=1) for seed in (0, 1))
    s = a @ v.T
    off = ~torch.eye(12, dtype=torch.bool)
    hinge = sum((t - t.diagonal()[:, None] + 0.1).clamp(min=0)[off].mean() for t in (s, s.T))
    assert float(triplet(a, v, margin=0.2)) == pytest.approx(2 * float(hinge))


def test_skipped_anchors_do_not_count() -> None:
    a, v = random(6, 4, 0), random(6, 4, 1)
    label = torch.tensor([0, 0, 1, 1, 2, 3])
    for mining in MININGS:  # without own pairs the rows of classes 2 and 3 are negatives only
        want = slow_triplet(a, v, 0.5, label, mining, own_pair=False)
        got = triplet(a, v, margin=0.5, label=label, mining=mining, own_pair=False)
        torch.testing.assert_close(got, want)


def test_a_step_lowers_it() -> None:
    a, v = random(16, 8, 0), random(16, 8, 1)
    for mining in MININGS:
        value, to_a, to_v = both(lambda x, y, m=mining: triplet(x, y, margin=0.5, mining=m), a, v)
        assert triplet(a - 0.01 * to_a, v - 0.01 * to_v, margin=0.5, mining=mining) < value


# --------------------------------------------------------------------------------------------------------------- edges
@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("classes", [None, 2])
def test_edges_stay_finite(mining: str, kind: torch.dtype, classes: int | None) -> None:
    label = None if classes is None else torch.tensor([0, 0, 1, 1, 1])
    same = torch.ones(5, 3, dtype=kind)
    value, *gradients = both(lambda x, y: triplet(x, y, margin=0.25, label=label, mining=mining), same, same)
    assert float(value) == pytest.approx(0.5)  # collapsed: the margin, twice
    assert all(float(g.abs().max()) == 0 for g in gradients)
    huge = 1e4 * random(5, 3, 0).to(kind)
    for x, y in ((huge, huge), (huge, -huge), (huge, torch.zeros_like(huge)), (0 * huge, 0 * huge)):
        results = both(lambda p, q: triplet(p, q, margin=0.25, label=label, mining=mining), x, y)
        assert all(torch.isfinite(r).all() for r in results)
        assert float(results[0]) >= 0
    value, *gradients = both(lambda x, y: triplet(x, y, margin=0, label=label, mining=mining), same, same)
    assert float(value) == 0


def test_an_easy_batch_costs_nothing_under_every_reduction() -> None:
    a = 10 * torch.eye(4)
    for mining in MININGS:
        for reduction in ("valid", "active"):
            value, gradient, _ = both(
                lambda x, y, m=mining, r=reduction: triplet(x, y, margin=0.1, mining=m, reduction=r), a, a
            )
            assert float(value) == 0
            assert float(gradient.abs().max()) == 0


def test_one_far_outlier_leaves_the_others_their_digits() -> None:
    a, v, label = random(64, 8, 0), random(64, 8, 1), some_labels(64, 4, 2)
    v[0] += 1e4
    label[0] = 9  # nobody's positive
    keywords = {"margin": 1.0, "label": label, "own_pair": False, "weights": (1, 0)}
    for mining in MININGS:
        want = both(lambda x, y, m=mining: triplet(x, y, mining=m, **keywords), a, v)
        got = both(lambda x, y, m=mining: triplet(x, y, mining=m, **keywords), a.float(), v.float())
        agree(got, want, 1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_even_under_autocast(kind: torch.dtype) -> None:
    a, v, label = random(12, 16, 0).to(kind), random(12, 16, 1).to(kind), some_labels(12, 3, 2)
    for mining in MININGS:
        exact = slow_triplet(a.double(), v.double(), 0.5, label, mining)
        with torch.autocast("cpu", torch.bfloat16):
            value = triplet(a, v, margin=0.5, label=label, mining=mining)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(exact), rel=1e-5)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(BatchError, match="one shape"):
        triplet(A, V[:2], margin=0.2)
    with pytest.raises(BatchError, match="B > 0"):
        triplet(A[:0], V[:0], margin=0.2)
    with pytest.raises(BatchError, match="the batch of 1 has none"):
        triplet(A[:1], V[:1], margin=0.2)
    with pytest.raises(BatchError, match="has none"):
        triplet(A, V, margin=0.2, label=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(BatchError, match="has none"):
        triplet(A, V, margin=0.2, label=torch.arange(3), own_pair=False)
    with pytest.raises(BatchError, match="3 integer labels"):
        triplet(A, V, margin=0.2, label=Y[:2])
    with pytest.raises(BatchError, match="integer"):
        triplet(A, V, margin=0.2, label=Y.double())
    with pytest.raises(ConfigError, match="margin"):
        triplet(A, V, margin=-0.1)
    with pytest.raises(ConfigError, match="margin"):
        triplet(A, V, margin=float("nan"))
    with pytest.raises(ConfigError, match='mining = "easy"'):
        triplet(A, V, margin=0.2, mining="easy")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='reduction = "sum"'):
        triplet(A, V, margin=0.2, reduction="sum")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="weights"):
        triplet(A, V, margin=0.2, weights=(1.0, -1.0))
    with pytest.raises(ConfigError, match="without labels"):
        triplet(A, V, margin=0.2, own_pair=False)


# ----------------------------------------------------------------------------------- against pytorch-metric-learning
def hostile(name: str) -> tuple[Tensor, Tensor, Tensor]:
    a, v, label = random(18, 4, 0), random(18, 4, 1), some_labels(18, 3, 2)
    if name == "duplicates":
        a[5:9], v[2:7] = a[5], v[2]
        v[0] = a[0]
    elif name == "outlier":
        a[3] *= 1e4
    elif name == "lonely":  # one class has all positives
        label = torch.arange(18).clamp(min=10)
    elif name == "equal":
        a, v = torch.ones(18, 4, dtype=torch.float64), torch.ones(18, 4, dtype=torch.float64)
    return a, v, label


@pytest.mark.parametrize("name", ["plain", "duplicates", "outlier", "lonely", "equal"])
@pytest.mark.parametrize("mining", ["all", "hard"])
@pytest.mark.parametrize("active", [False, True])
def test_against_pytorch_metric_learning(name: str, mining: str, active: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_metric_learning.distances import LpDistance
        from pytorch_metric_learning.losses import TripletMarginLoss
        from pytorch_metric_learning.miners import BatchHardMiner
        from pytorch_metric_learning.reducers import AvgNonZeroReducer, MeanReducer
    distance = LpDistance(power=2, normalize_embeddings=False)
    peer = TripletMarginLoss(0.3, distance=distance, reducer=AvgNonZeroReducer() if active else MeanReducer())
    miner = BatchHardMiner(distance=distance)
    a, v, label = hostile(name)

    def theirs(x: Tensor, y: Tensor) -> Tensor:
        total = x.new_zeros(())
        for p, q in ((x, y), (y, x)):
            chosen = miner(p, label, q, label.clone()) if mining == "hard" else None
            total = total + peer(p, label, chosen, q, label.clone())
        return total

    reduction = "active" if active else "valid"
    ours = both(lambda x, y: triplet(x, y, margin=0.3, label=label, mining=mining, reduction=reduction), a, v)
    if name == "duplicates" and mining == "hard":  # equal distances: any of them may be chosen
        assert float(ours[0]) == pytest.approx(float(both(theirs, a, v)[0]))
    else:
        agree(ours, both(theirs, a, v), 1e-7)


def test_semi_hard_against_pytorch_metric_learning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_metric_learning.distances import LpDistance
        from pytorch_metric_learning.losses import TripletMarginLoss
        from pytorch_metric_learning.miners import BatchEasyHardMiner
        from pytorch_metric_learning.reducers import MeanReducer
    distance = LpDistance(power=2, normalize_embeddings=False)
    peer = TripletMarginLoss(30.0, distance=distance, reducer=MeanReducer())
    miner = BatchEasyHardMiner("hard", "semihard", distance=distance)
    a = random(18, 4, 0)
    v = a + 0.2 * random(18, 4, 1)  # every anchor has a negative beyond its partner: the peer drops those without
    own = torch.arange(18)

    def theirs(x: Tensor, y: Tensor) -> Tensor:
        return sum(peer(p, own, miner(p, own, q, own.clone()), q, own.clone()) for p, q in ((x, y), (y, x)))

    ours = both(lambda x, y: triplet(x, y, margin=30.0, mining="semi-hard"), a, v)
    agree(ours, both(theirs, a, v), 1e-7)
