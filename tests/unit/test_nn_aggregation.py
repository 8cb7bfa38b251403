"""Learned pooling: worked values, the formulas as loops, masks, maps as sets of cells, empty rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.aggregation import AttentionPool, GeneralizedMeanPool, MILPool, NetVLAD
from avcl.nn.pooling import masked_max, masked_mean


def sets(batch: int = 3, steps: int = 7, dim: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random items; the rows differ in length, the second has a gap, and garbage stands behind the mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(steps) < (steps - torch.arange(batch))[:, None]
    mask[1, 2] = False
    return torch.where(mask[:, :, None], torch.randn(batch, steps, dim, generator=generator), 1e4), mask


ONE = torch.ones(1, 3, dtype=torch.bool)
POOLS: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: AttentionPool(4, heads=2, hidden=5),
    "gated": lambda: AttentionPool(4, gated=True, sharpness=2.0),
    "netvlad": lambda: NetVLAD(4, 3),
    "netvlad-tied": lambda: NetVLAD(4, 3, tied=True, alpha=2.0),
    "netvlad-reduced": lambda: NetVLAD(4, 3, reduce=5),
    "generalized-mean": lambda: GeneralizedMeanPool(4, per_channel=True),
    **{
        f"mil-{kind}": lambda kind=kind: MILPool(4, kind)
        for kind in ("max", "mean", "attention", "noisy-or", "linear-softmax", "top-k")
    },
    "mil-mean-logits": lambda: MILPool(4, "mean", on="logits"),
}


@pytest.fixture(params=list(POOLS))
def pool(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return POOLS[request.param]()


@torch.no_grad()
def test_only_what_was_recorded_counts_and_order_does_not(pool: nn.Module) -> None:
    data, mask = sets()
    out = pool(data, mask)
    assert out.shape == (3, pool.dim)
    for row in range(3):  # what is masked might as well not be there
        steps = mask[row].nonzero()[:, 0]
        alone = pool(data[row : row + 1, steps.flip(0)], mask[row : row + 1, steps])
        assert torch.allclose(out[row], alone[0], atol=1e-5)


@torch.no_grad()
def test_cells_of_a_map_are_items(pool: nn.Module) -> None:
    data = torch.randn(2, 3, 2, 2, 4)
    data[0, 0, 0, 1] = 5.0
    mask = torch.tensor([[True, True, False], [True, False, False]])
    flat = pool(data.flatten(1, 3), mask.repeat_interleave(4, 1))
    assert torch.allclose(pool(data, mask), flat, atol=1e-6)
    cells = mask[:, :, None, None].expand(-1, -1, 2, 2).clone()
    assert torch.allclose(pool(data, cells), flat, atol=1e-6)
    cells[0, 0, 0, 1] = False
    assert not torch.allclose(pool(data, cells), flat, atol=1e-6)


def test_nothing_recorded_gives_zeros_and_finite_gradients(pool: nn.Module) -> None:
    data, mask = sets()
    mask[0] = False
    data = data.requires_grad_()
    out = pool(data, mask)
    assert not out[0].any()
    out.square().sum().backward()
    assert data.grad is not None
    assert torch.isfinite(data.grad).all()
    assert not data.grad[~mask].any()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in pool.parameters())


def test_wrong_shapes_are_named(pool: nn.Module) -> None:
    data, mask = sets()
    for wrong in ((data[:, :, :3], mask), (data[0], mask[0]), (data, mask[:, :2]), (data, mask[:, :, None])):
        with pytest.raises(BatchError):
            pool(*wrong)


# ----------------------------------------------------------------------------------------------------------- attention
@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_attention_pool_by_hand(gated: bool) -> None:
    torch.manual_seed(0)
    pool = AttentionPool(4, heads=2, hidden=5, sharpness=3.0, gated=gated)
    data, mask = sets()
    out, weights = pool(data, mask, return_attention=True)
    for row in range(3):
        steps = mask[row].nonzero()[:, 0].tolist()
        for head in range(2):
            scores = []
            for t in steps:
                seen = torch.tanh(pool.inner.weight @ data[row, t] + pool.inner.bias)
                if pool.gate is not None:
                    seen = seen * torch.sigmoid(pool.gate.weight @ data[row, t] + pool.gate.bias)
                scores.append(math.exp(3.0 * float(pool.score.weight[head] @ seen)))
            expected = sum(s / sum(scores) * data[row, t] for s, t in zip(scores, steps, strict=True))
            assert torch.allclose(out[row, 4 * head : 4 * head + 4], torch.as_tensor(expected), atol=1e-5)
            assert torch.allclose(weights[row, head, steps], torch.tensor(scores) / sum(scores), atol=1e-5)
    assert not weights.transpose(1, 2)[~mask].any()
    assert pool.dim == 8


@torch.no_grad()
def test_a_flat_attention_is_the_mean_and_maps_keep_their_shape() -> None:
    pool = AttentionPool(4)
    pool.score.weight.zero_()
    data, mask = sets()
    assert torch.allclose(pool(data, mask), masked_mean(data, mask), atol=1e-5)
    weights = pool(torch.randn(2, 3, 5, 6, 4), torch.ones(2, 3, dtype=torch.bool), return_attention=True)[1]
    assert weights.shape == (2, 1, 3, 5, 6)
    assert torch.allclose(weights, torch.tensor(1 / 90))


# ------------------------------------------------------------------------------------------------------------- NetVLAD
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_netvlad_worked_value(tied: bool) -> None:
    items = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]])
    pool = NetVLAD(2, 2, centers=torch.eye(2), tied=tied)
    expected = torch.tensor([[-0.37921, 0.596824, 0.632597, -0.315945]])
    assert torch.allclose(pool(items, ONE), expected, atol=1e-5)
    assert pool.dim == 4
    weights = pool(items, ONE, return_attention=True)[1]
    assert torch.allclose(weights.sum(1), torch.ones(1, 3))
    assert float(weights[0, 0, 0]) == pytest.approx(1 / (1 + math.exp(-2)))  # distances 0 and 2


@torch.no_grad()
def test_netvlad_counts_directions_not_items() -> None:
    pool, (data, mask) = NetVLAD(4, 3, reduce=6), sets()
    twice = pool(torch.cat([data, data], 1), torch.cat([mask, mask], 1))
    assert torch.allclose(twice, pool(data, mask), atol=1e-5)
    assert torch.allclose(twice.norm(dim=1), torch.ones(3))
    with pytest.raises(ConfigError, match="centers"):
        NetVLAD(4, 3, centers=torch.eye(4))


# ----------------------------------------------------------------------------------------------------------------- MIL
def bag(kind: str, p: list[float]) -> float:
    """The formulas in probabilities."""
    if kind == "max":
        return max(p)
    if kind == "mean":
        return sum(p) / len(p)
    if kind == "top-k":
        best = sorted(p)[-3:]
        return sum(best) / len(best)
    if kind == "linear-softmax":
        return sum(x * x for x in p) / sum(p)
    return 1 - math.prod(1 - x for x in p)


@pytest.mark.parametrize("kind", ["max", "mean", "noisy-or", "linear-softmax", "top-k"])
@torch.no_grad()
def test_mil_in_probabilities(kind: str) -> None:
    data, mask = sets(seed=1)
    pool = MILPool(4, kind)  # type: ignore[arg-type]
    out, weights = pool(data, mask, return_attention=True)
    for row in range(3):
        for c in range(4):
            p = torch.sigmoid(data[row, mask[row], c].double())
            assert float(out[row, c].sigmoid()) == pytest.approx(bag(kind, p.tolist()), abs=1e-5)
            if kind != "noisy-or":
                assert float(weights[row, c, mask[row]].double() @ p) == pytest.approx(bag(kind, p.tolist()), abs=1e-5)
    assert torch.allclose(weights.sum(2), torch.ones(3, 4), atol=1e-5)
    assert not weights.transpose(1, 2)[~mask].any()


def test_mil_stays_exact_and_trainable_at_the_ends() -> None:
    z = torch.tensor([-60.0, -61.0, -62.0], dtype=torch.float64)
    p = z.exp()
    expected = {
        "max": z[0],
        "mean": p.mean().log(),
        "top-k": p.mean().log(),
        "linear-softmax": (p.square().sum() / p.sum()).log(),
        "noisy-or": p.sum().log(),
    }
    for kind, value in expected.items():
        for sign in (1.0, -1.0) if kind == "max" else (1.0,):
            logits = (sign * z.float())[None, :, None].requires_grad_()
            out = MILPool(1, kind)(logits, ONE)  # type: ignore[arg-type]
            near = float(value) if sign > 0 else 62.0
            assert float(out.detach()) == pytest.approx(near, abs=1e-3)
            out.sum().backward()
            assert logits.grad is not None
            assert float(logits.grad.sum()) == pytest.approx(1.0, abs=1e-3)
    sure = MILPool(1, "noisy-or")(torch.full((1, 3, 1), 60.0), ONE)
    assert float(sure) == pytest.approx(180.0)  # log odds of 1 - e^-180


@torch.no_grad()
def test_mil_attention_looks_at_features() -> None:
    torch.manual_seed(0)
    (data, mask), (x, _) = sets(), sets(dim=5, seed=2)
    pool = MILPool(4, "attention", features=5)
    out = pool(data, mask, x=x)
    for row in range(3):
        scores = (x[row, mask[row]] @ pool.score.weight.T + pool.score.bias).softmax(0)
        expected = (scores * data[row, mask[row]].sigmoid()).sum(0)
        assert torch.allclose(out[row].sigmoid(), expected, atol=1e-5)
    with pytest.raises(BatchError, match="features"):
        pool(data, mask)
    with pytest.raises(BatchError, match="does not fit"):
        pool(data[:, :, None], mask, x=x[:, :, None].expand(-1, -1, 2, -1))


@torch.no_grad()
def test_mil_on_logits_mixes_logits() -> None:
    data, mask = sets()
    assert torch.allclose(MILPool(4, "mean", on="logits")(data, mask), masked_mean(data, mask), atol=1e-5)
    assert torch.allclose(MILPool(4, "max", on="logits")(data, mask), masked_max(data, mask), atol=1e-5)
    for kind in ("noisy-or", "linear-softmax"):
        with pytest.raises(ConfigError, match="probabilities"):
            MILPool(4, kind, on="logits")  # type: ignore[arg-type]
    for wrong in ({"kind": "median"}, {"k": 0}, {"features": 3}, {"on": "odds"}):
        with pytest.raises(ConfigError):
            MILPool(4, **wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- generalized mean
@torch.no_grad()
def test_generalized_mean_lies_between_mean_and_maximum() -> None:
    data, mask = sets()
    data = data.abs()
    mean, top = masked_mean(data, mask), masked_max(data, mask)
    assert torch.allclose(GeneralizedMeanPool(4, p=1.0)(data, mask), mean, atol=1e-5)
    assert torch.allclose(GeneralizedMeanPool(4, p=400.0)(data, mask), top, rtol=0.01)
    cubic = GeneralizedMeanPool(4)(data, mask)
    assert ((cubic > mean) & (cubic < top)).all()
    assert torch.allclose(cubic, masked_mean(data**3, mask) ** (1 / 3), rtol=1e-4)
    assert not any(p.requires_grad for p in GeneralizedMeanPool(4, learned=False).parameters())
    with pytest.raises(ConfigError):
        GeneralizedMeanPool(4, p=0.0)
