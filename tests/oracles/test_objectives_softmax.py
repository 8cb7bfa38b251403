"""The other contrastive objectives against worked values, slow loops written from the formulas, and each other."""

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
from avcl.objectives.contrastive import (
    decoupled_info_nce,
    distilled_info_nce,
    info_nce,
    mil_nce,
    n_pair,
    nce,
    pair_contrastive,
    soft_info_nce,
    supervised_contrastive,
)

A = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)
V = torch.tensor([[0.8, 0.6], [0, 1], [0.6, -0.8]], dtype=torch.float64)
Y = torch.tensor([0, 0, 1])


def draw(n: int, dim: int, seed: int) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(a: Tensor, v: Tensor, tau: float = 1.0) -> list[list[float]]:
    return [[sum(float(x) * float(y) for x, y in zip(p, q, strict=True)) / tau for q in v] for p in a]


def lse(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(x - top) for x in values))


def turned(s: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*s, strict=True)]


# ------------------------------------------------------------------------------------------------------ worked values
def test_worked_values() -> None:
    values = {
        3.974910: supervised_contrastive(A, V, Y, temperature=0.5),
        2.350931: supervised_contrastive(A, V, Y, temperature=0.5, views="all"),
        2.271753: supervised_contrastive(A, V, Y, temperature=0.5, views="all", form="in"),
        1.971389: decoupled_info_nce(A, V, temperature=1.0),
        2.711284: n_pair(A, V),
        2.711284 + 0.04: n_pair(A, V, weight=0.02),
        0.689181: pair_contrastive(A, V, torch.tensor([1, 0, 1]), margin=1.0),
        1.123333 / 2: pair_contrastive(A, V, torch.tensor([1, 0, 1]), margin=0.5, distance="cosine"),
    }
    for value, ours in values.items():
        assert float(ours) == pytest.approx(value, abs=1.1e-6)


def test_worked_values_of_one_direction() -> None:
    scores = A @ V.T / 0.5
    others = torch.stack([scores[i][torch.arange(3) != i] for i in range(3)])
    assert float(nce(scores.diagonal(), others, log_noise=math.log(1 / 3))) == pytest.approx(3.911419, abs=1e-6)
    v = torch.tensor([[1, 0], [0.6, 0.8]], dtype=torch.float64)
    t = torch.tensor([[0.8, 0.6], [0, 1], [0.6, -0.8], [0.28, 0.96]], dtype=torch.float64)
    two_each = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    assert float(mil_nce(v, t, positives=two_each)) == pytest.approx(1.236836, abs=1e-6)
    assert float(mil_nce(v, t, positives=two_each, twice=True)) == pytest.approx(1.491718, abs=1e-6)
    ring = torch.eye(3).bool() | torch.eye(3).roll(1, 1).bool()
    assert float(mil_nce(A, V, positives=ring, temperature=1.0, directions="rows")) == pytest.approx(0.621313, abs=1e-6)


# -------------------------------------------------------------------------------------------------------- slow loops
def slow_soft(s: list[list[float]], t: list[list[float]]) -> float:
    costs = []
    for row, target in zip(s, t, strict=True):
        if sum(target) > 0:
            costs.append(sum(w / sum(target) * (lse(row) - x) for x, w in zip(row, target, strict=True)))
    return sum(costs) / len(costs)


def slow_supervised(a: Tensor, v: Tensor, y: list[int], tau: float, views: str, form: str) -> float:
    def one(s: list[list[float]], mine: list[int], theirs: list[int], skip: bool) -> float:
        costs = []
        for i, row in enumerate(s):
            others = [j for j in range(len(row)) if not (skip and i == j)]
            own = [j for j in others if theirs[j] == mine[i]]
            whole = lse([row[j] for j in others])
            if form == "out":
                costs.append(sum(whole - row[j] for j in own) / len(own))
            else:
                costs.append(whole - lse([row[j] for j in own]) + math.log(len(own)))
        return sum(costs) / len(costs)

    if views == "all":
        z = torch.cat([a, v])
        return one(matrix(z, z, tau), y + y, y + y, True)
    s = matrix(a, v, tau)
    return one(s, y, y, False) + one(turned(s), y, y, False)


def slow_mil(v: Tensor, t: Tensor, positives: Tensor, tau: float, directions: str, twice: bool) -> float:
    s, costs = matrix(v, t, tau), []
    for i in range(len(v)):
        own = [p for p in range(len(t)) if positives[i, p]]
        if not own:
            continue
        below = [s[i][p] for p in own] * (2 if twice else 1)
        below += [s[i][j] for j in range(len(t)) if not positives[i, j]]
        if directions == "both":
            below += [s[k][p] for p in own for k in range(len(v)) if not positives[k, p]]
        costs.append(lse(below) - lse([s[i][p] for p in own]))
    return sum(costs) / len(costs)


shapes = {"size": st.integers(1, 7), "dim": st.integers(1, 5), "seed": st.integers(0, 999), "tau": st.floats(0.05, 2)}
blocks = st.sampled_from([1, 9, 1 << 20])


@given(**shapes, cells=blocks)
def test_soft_targets_equal_the_loop(size: int, dim: int, seed: int, tau: float, cells: int) -> None:
    a, v = draw(size, dim, seed), draw(size, dim, seed + 1)
    target = draw(size, size, seed + 2).clamp(min=0)
    target[0, 0] = 0.7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "CELLS", cells)
        value = soft_info_nce(a, v, target=target, temperature=tau)
    s = matrix(a, v, tau)
    slow = 0.5 * (slow_soft(s, target.tolist()) + slow_soft(turned(s), turned(target.tolist())))
    assert float(value) == pytest.approx(slow, rel=1e-9)


@given(**shapes, cells=blocks)
def test_a_teacher_gives_the_soft_targets_of_its_softmax(
    size: int, dim: int, seed: int, tau: float, cells: int
) -> None:
    a, v, ta, tv = (draw(size, dim, seed + i) for i in range(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "CELLS", cells)
        value = distilled_info_nce(a, v, ta, tv, temperature=tau, teacher_temperature=0.5)
    logits = ta @ tv.T / 0.5
    s = matrix(a, v, tau)
    slow = 0.5 * (slow_soft(s, logits.softmax(1).tolist()) + slow_soft(turned(s), logits.T.softmax(1).tolist()))
    assert float(value) == pytest.approx(slow, rel=1e-9)


@given(**shapes, cells=blocks, views=st.sampled_from(["other", "all"]), form=st.sampled_from(["out", "in"]))
def test_supervised_contrastive_equals_the_loop(
    size: int, dim: int, seed: int, tau: float, cells: int, views: Any, form: Any
) -> None:
    a, v = draw(size, dim, seed), draw(size, dim, seed + 1)
    y = torch.randint(-1, 3, (size,), generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "CELLS", cells)
        value = supervised_contrastive(a, v, y, temperature=tau, views=views, form=form)
    assert float(value) == pytest.approx(slow_supervised(a, v, y.tolist(), tau, views, form), rel=1e-9, abs=1e-9)


@given(**shapes, cells=blocks, directions=st.sampled_from(["both", "rows"]), twice=st.booleans())
def test_mil_nce_equals_the_loop(
    size: int, dim: int, seed: int, tau: float, cells: int, directions: Any, twice: bool
) -> None:
    v, t = draw(size, dim, seed), draw(2 * size, dim, seed + 1)
    positives = torch.rand(size, 2 * size, generator=torch.Generator().manual_seed(seed)) < 0.4
    positives[0, 0] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "CELLS", cells)
        value = mil_nce(v, t, positives=positives, temperature=tau, directions=directions, twice=twice)
    assert float(value) == pytest.approx(slow_mil(v, t, positives, tau, directions, twice), rel=1e-9, abs=1e-9)


@given(**shapes)
def test_decoupled_n_pair_and_nce_equal_the_loop(size: int, dim: int, seed: int, tau: float) -> None:
    a, v = draw(size + 1, dim, seed), draw(size + 1, dim, seed + 1)
    n = size + 1

    def rows(s: list[list[float]]) -> float:
        return sum(lse([s[i][j] for j in range(n) if j != i]) - s[i][i] for i in range(n)) / n

    s = matrix(a, v, tau)
    assert float(decoupled_info_nce(a, v, temperature=tau)) == pytest.approx(rows(s) + rows(turned(s)), rel=1e-9)

    def softened(s: list[list[float]]) -> float:
        return sum(math.log1p(sum(math.exp(s[i][j] - s[i][i]) for j in range(n) if j != i)) for i in range(n)) / n

    s = matrix(a, v)
    norms = sum(float(x) ** 2 for row in torch.cat([a, v]) for x in row) / n
    slow = softened(s) + softened(turned(s)) + 0.3 * norms
    assert float(n_pair(a, v, weight=0.3)) == pytest.approx(slow, rel=1e-9)

    log_q = -draw(n, 1 + dim, seed + 3).abs()
    positive, noise = draw(n, 1, seed + 4)[:, 0], draw(n, dim, seed + 5)
    costs = [
        math.log1p(math.exp(-(float(positive[i]) - math.log(dim) - float(log_q[i, 0]))))
        + sum(math.log1p(math.exp(float(noise[i, j]) - math.log(dim) - float(log_q[i, j + 1]))) for j in range(dim))
        for i in range(n)
    ]
    assert float(nce(positive, noise, log_noise=log_q)) == pytest.approx(sum(costs) / n, rel=1e-9)


@given(**shapes)
def test_pair_contrastive_equals_the_loop(size: int, dim: int, seed: int, tau: float) -> None:
    a, v = draw(size, dim, seed), draw(size, dim, seed + 1)
    same = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(seed))
    far = [math.dist(p, q) for p, q in zip(a.tolist(), v.tolist(), strict=True)]
    costs = [0.5 * (d * d if s else max(0, tau - d) ** 2) for d, s in zip(far, same.tolist(), strict=True)]
    assert float(pair_contrastive(a, v, same, margin=tau)) == pytest.approx(sum(costs) / size, rel=1e-9)


# -------------------------------------------------------------------------------------------------------- identities
def test_what_reduces_to_what() -> None:
    a, v = draw(6, 4, 0), draw(6, 4, 1)
    y = torch.tensor([0, 1, 0, 2, 1, 0])
    same = y[:, None] == y
    nce_value = info_nce(a, v, temperature=0.3)
    assert torch.allclose(soft_info_nce(a, v, target=torch.eye(6), temperature=0.3), nce_value)
    assert torch.allclose(
        soft_info_nce(a, v, target=same.double(), temperature=0.3), info_nce(a, v, temperature=0.3, positives=same)
    )
    assert torch.allclose(
        supervised_contrastive(a, v, y, temperature=0.3), 2 * info_nce(a, v, temperature=0.3, positives=same)
    )
    assert torch.allclose(supervised_contrastive(a, v, torch.arange(6), temperature=0.3), 2 * nce_value)
    assert torch.allclose(n_pair(a, v), 2 * info_nce(a, v, temperature=1.0))
    one_each = mil_nce(a, v, positives=torch.eye(6).bool(), temperature=0.3, twice=True)
    assert torch.allclose(one_each, info_nce(a, v, temperature=0.3, two_sided=True))
    sharp = distilled_info_nce(a, v, 100 * torch.eye(6), torch.eye(6), temperature=0.3, teacher_temperature=0.1)
    assert torch.allclose(sharp, nce_value)


def test_gradients_of_every_form() -> None:
    a, v, ta, tv = (draw(4, 3, i).requires_grad_() for i in range(4))
    tau = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 0, 1])
    target = torch.rand(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    some = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]).bool()
    check = torch.autograd.gradcheck
    assert check(lambda x, z, t: info_nce(x, z, temperature=t, two_sided=True), (a, v, tau))
    assert check(lambda x, z, t: soft_info_nce(x, z, target=target, temperature=t), (a, v, tau))
    assert check(lambda x, z, t: distilled_info_nce(x, z, ta, tv, temperature=t, teacher_temperature=0.3), (a, v, tau))
    for views in ("other", "all"):
        for form in ("out", "in"):
            options: Any = {"views": views, "form": form}
            assert check(lambda x, z, t, o=options: supervised_contrastive(x, z, y, temperature=t, **o), (a, v, tau))
    assert check(lambda x, z, t: decoupled_info_nce(x, z, temperature=t), (a, v, tau))
    assert check(lambda x, z: n_pair(x, z, weight=0.1), (a, v))
    for twice in (False, True):
        assert check(lambda x, z, t, w=twice: mil_nce(x, z, positives=some, temperature=t, twice=w), (a, v, tau))


def test_supervised_contrastive_equals_pytorch_metric_learning_on_awkward_batches() -> None:
    """Its loss of anchors z and references z' is one direction of ours; duplicates, outliers, one class, equal rows."""
    from pytorch_metric_learning.distances import DotProductSimilarity
    from pytorch_metric_learning.losses import NPairsLoss, NTXentLoss, SupConLoss

    batches = {
        "random": (draw(12, 5, 0), draw(12, 5, 1)),
        "duplicates": (draw(3, 5, 0).repeat(4, 1), draw(3, 5, 1).repeat(4, 1)),
        "outlier": (torch.cat([draw(11, 5, 0), 50 * draw(1, 5, 2)]), draw(12, 5, 1)),
        "equal rows": (draw(1, 5, 0).expand(12, 5), draw(1, 5, 0).expand(12, 5)),
    }
    dot: Any = {"distance": DotProductSimilarity(normalize_embeddings=False)}
    for a, v in batches.values():
        for y in (torch.arange(12) % 3, torch.arange(12) // 11):  # of one class alone it makes 0
            peer = SupConLoss(temperature=0.5, **dot)
            # Labels that are one object with those of the references would make it leave out the own pairs.
            theirs = peer(a, y, ref_emb=v, ref_labels=y.clone()) + peer(v, y, ref_emb=a, ref_labels=y.clone())
            assert float(supervised_contrastive(a, v, y, temperature=0.5)) == pytest.approx(float(theirs), rel=1e-6)
            both = peer(torch.cat([a, v]), torch.cat([y, y]))
            ours = supervised_contrastive(a, v, y, temperature=0.5, views="all")
            assert float(ours) == pytest.approx(float(both), rel=1e-6)
        single = torch.arange(12)
        peer = NTXentLoss(temperature=0.5, **dot)
        other = single.clone()
        theirs = peer(a, single, ref_emb=v, ref_labels=other) + peer(v, single, ref_emb=a, ref_labels=other)
        assert 2 * float(info_nce(a, v, temperature=0.5)) == pytest.approx(float(theirs), rel=1e-6)
        stacked = NPairsLoss(**dot)(torch.stack([a, v], 1).flatten(0, 1), single.repeat_interleave(2))
        row = torch.nn.functional.cross_entropy(a @ v.T, single)  # its N-pair loss is the direction a → v alone
        assert float(stacked) == pytest.approx(float(row), rel=1e-6)


# ------------------------------------------------------------------------------------------------------------- edges
def test_anchors_without_a_candidate_are_left_out() -> None:
    positives = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 1]]).bool()
    a = A.clone().requires_grad_()
    value = mil_nce(a, V, positives=positives)
    assert float(value.detach()) == pytest.approx(slow_mil(A, V, positives, 1.0, "both", False))
    assert torch.isfinite(torch.autograd.grad(value, a)[0]).all()
    everything = torch.ones(3, 3, dtype=torch.bool)
    assert float(mil_nce(A, V, positives=everything)) == pytest.approx(0, abs=1e-12)  # nothing can be wrong


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(BatchError, match="3, 3"):
        soft_info_nce(A, V, target=torch.ones(3, 2), temperature=1.0)
    for bad in (-torch.eye(3), torch.zeros(3, 3), torch.full((3, 3), math.nan), torch.full((3, 3), math.inf)):
        with pytest.raises(BatchError, match="target"):
            soft_info_nce(A, V, target=bad, temperature=1.0)
    with pytest.raises(BatchError, match="teacher"):
        distilled_info_nce(A, V, A[:2], V[:2], temperature=1.0, teacher_temperature=1.0)
    with pytest.raises(ConfigError, match="teacher_temperature"):
        distilled_info_nce(A, V, A, V, temperature=1.0, teacher_temperature=0.0)
    with pytest.raises(BatchError, match="integer"):
        supervised_contrastive(A, V, Y.float(), temperature=1.0)
    with pytest.raises(ConfigError, match="views"):
        supervised_contrastive(A, V, Y, temperature=1.0, views="some")  # type: ignore[arg-type]
    with pytest.raises(BatchError, match="B > 1"):
        decoupled_info_nce(A[:1], V[:1], temperature=1.0)
    with pytest.raises(ConfigError, match="weight"):
        n_pair(A, V, weight=-1.0)
    with pytest.raises(BatchError, match="M, D"):
        mil_nce(A, V[:, :1], positives=torch.eye(3).bool())
    with pytest.raises(BatchError, match="no row"):
        mil_nce(A, V, positives=torch.zeros(3, 3).bool())
    with pytest.raises(ConfigError, match="directions"):
        mil_nce(A, V, positives=torch.eye(3).bool(), directions="columns")  # type: ignore[arg-type]
    with pytest.raises(BatchError, match="B, k"):
        nce(A[:, 0], V[:2], log_noise=0.0)
    with pytest.raises(BatchError, match="log_noise"):
        nce(A[:, 0], V, log_noise=torch.zeros(3))
    with pytest.raises(BatchError, match="0 or 1"):
        pair_contrastive(A, V, torch.tensor([0, 1, 2]), margin=1.0)
    with pytest.raises(ConfigError, match="distance"):
        pair_contrastive(A, V, torch.ones(3), margin=1.0, distance="dot")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="margin"):
        pair_contrastive(A, V, torch.ones(3), margin=-1.0)
