"""Attention against hand-unrolled loops and worked numbers: scores, masks, the two paths, several heads."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.nn.attention import (
    SCORES,
    FeedForward,
    MultiHeadAttention,
    Score,
    ScoreName,
    add_sequences,
    all_of,
    attend,
    attend_scores,
    blank_rows,
    block_pairs,
    causal_pairs,
    check_lengths,
    padding_pairs,
    window_pairs,
)
from avcl.types import Stream

Q = torch.tensor([[1.0, 0.0]])
K = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
V = torch.tensor([[1.0], [2.0], [4.0]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clock(steps: int, rate: float) -> Stream:
    return Stream(torch.zeros(1, steps, 1), torch.ones(1, steps, dtype=torch.bool), rate)


# ------------------------------------------------------------------------------------------------------- worked values
@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize(
    ("scale", "keys", "weights", "out"),
    [
        (1.0, 3, (0.4223, 0.1554, 0.4223), 2.4223),
        (None, 3, (0.4011, 0.1978, 0.4011), 2.4011),
        (1.0, 2, (0.7311, 0.2689, 0.0), 1.2689),
        (None, 2, (0.6698, 0.3302, 0.0), 1.3302),
    ],
)
def test_worked_dot_products(
    scale: float | None, keys: int, weights: tuple[float, ...], out: float, shown: bool
) -> None:
    mask = torch.arange(3) < keys
    q, k, v = (x[None, None] for x in (Q, K, V))
    result, found = attend(q, k, v, mask=mask[None, None, None], scale=scale, return_attention=shown)
    assert float(result) == pytest.approx(out, abs=1e-4)
    if shown:
        assert found[0, 0, 0].tolist() == pytest.approx(weights, abs=1e-4)
    else:
        assert found is None


@torch.no_grad()
def test_worked_additive_score() -> None:
    score = Score("additive", 2, hidden=2)
    score.weight.fill_(1)
    score.query.copy_(torch.eye(2)[None])
    score.key.copy_(torch.eye(2)[None])
    scores = score(Q[None], K[None])
    assert scores[0, 0].tolist() == pytest.approx((0.9640, 1.5232, 1.7256), abs=1e-4)
    assert torch.allclose(Score("plain_additive", 2)(Q[None], K[None]), scores)
    out, weights = attend_scores(scores, V[None])
    assert weights[0, 0].tolist() == pytest.approx((0.2045, 0.3576, 0.4379), abs=1e-4)
    assert float(out) == pytest.approx(2.6713, abs=1e-4)


def test_worked_causal_attention() -> None:
    x, at = K[None, None], clock(3, 4.0)
    out, weights = attend(x, x, x, mask=causal_pairs(at, at)[:, None], return_attention=True)
    expected = torch.tensor([[1, 0], [0.3302, 0.6698], [0.7517, 0.7517]])
    assert torch.allclose(out[0, 0], expected, atol=1e-4)
    assert torch.equal(weights[0, 0], weights[0, 0].tril())


# ------------------------------------------------------------------------------------------------------------- scores
def by_hand(score: Score, q: Tensor, k: Tensor) -> Tensor:
    """The score of every pair by the formula of its name, one pair at a time; parameters of the first head."""
    result = torch.zeros(len(q), len(k))
    for i, j in itertools.product(range(len(q)), range(len(k))):
        a, b = q[i], k[j]
        if score.name == "additive" and score.hidden is not None:
            a, b = a @ score.query[0] + score.bias[0, 0], b @ score.key[0]
        if score.name == "additive":
            value = sum(float(w) * math.tanh(x + y) for w, x, y in zip(score.weight[0, 0, 0], a, b, strict=True))
        else:
            value = {
                "scaled_dot": lambda a=a, b=b: float(a @ b) / math.sqrt(len(a)),
                "dot": lambda a=a, b=b: float(a @ b),
                "cosine": lambda a=a, b=b: float(a @ b / a.norm() / b.norm() * score.log_scale.exp()),
                "bilinear": lambda a=a, b=b: float(a @ score.weight[0] @ b),
                "plain_additive": lambda a=a, b=b: sum(math.tanh(x + y) for x, y in zip(a, b, strict=True)),
            }[score.name]()
        result[i, j] = value
    return result


@torch.no_grad()
@pytest.mark.parametrize("name", [*SCORES, "additive-hidden"])
def test_scores_are_their_formulas(name: str) -> None:
    torch.manual_seed(0)
    free = name in ("bilinear", "additive-hidden")
    wide = 5 if free else 3
    score = Score("additive", 3, 5, hidden=4) if name == "additive-hidden" else Score(name, 3, wide if free else None)
    q, k = random(4, 3), random(6, wide, seed=1)
    assert torch.allclose(score(q[None], k[None])[0], by_hand(score, q, k), atol=1e-5)
    if not free:
        with pytest.raises(BatchError, match=r"queries have width 3, keys 5|not 3 and 5"):
            score(q, random(6, 5))
    if score.is_product:
        a, b, scale = score.sides(q[None], k[None])
        assert torch.allclose((a @ b.transpose(1, 2)) * scale, score(q[None], k[None]), atol=1e-6)


@torch.no_grad()
def test_dot_grows_with_the_width_and_scaled_dot_does_not() -> None:
    for dim in (16, 256):
        q, k = random(200, dim), random(200, dim, seed=1)
        assert float(Score("dot", dim)(q[None], k[None]).var()) == pytest.approx(dim, rel=0.1)
        assert float(Score("scaled_dot", dim)(q[None], k[None]).var()) == pytest.approx(1, rel=0.1)


def test_lengths_are_checked_by_name() -> None:
    q, k = torch.zeros(2, 4, 3), torch.zeros(2, 6, 3)
    for name in SCORES:
        check_lengths(q, k, name)  # mixed lengths: every score takes them
    for name in ("bilinear", "additive"):
        check_lengths(q, torch.zeros(2, 6, 5), name)
    for name in ("scaled_dot", "dot", "cosine", "plain_additive", "sum"):
        with pytest.raises(BatchError, match="feature axis"):
            check_lengths(q, torch.zeros(2, 4, 5), name)
    with pytest.raises(BatchError, match="time axis differs: 4 and 6 steps"):
        add_sequences(q, k)
    assert add_sequences(q + 1, torch.ones(2, 1, 3)).sum() == 48
    with pytest.raises(BatchError, match="axis 0"):
        check_lengths(q, torch.zeros(3, 4, 3), "dot")
    with pytest.raises(BatchError, match=r"\[..., T, D\]"):
        check_lengths(torch.zeros(3), k, "dot")
    with pytest.raises(BatchError, match="made for widths"):
        Score("dot", 5)(q, k)
    with pytest.raises(BatchError, match="6 keys but 5 values"):
        attend(q[None], k[None], k[None, :, :5])
    for wrong in (lambda: Score("location", 3), lambda: Score("dot", 3, 5), lambda: Score("dot", 3, hidden=2)):
        with pytest.raises(ConfigError):
            wrong()


# --------------------------------------------------------------------------------------------------- who looks at whom
def test_windows_are_seconds_on_two_clocks() -> None:
    video, sound = clock(3, 2.0), clock(12, 8.0)  # 0, 0.5, 1.0 s; every 0.125 s
    near = window_pairs(video, sound, past=0.25, future=0.25)[0]
    for i, j in itertools.product(range(3), range(12)):
        assert bool(near[i, j]) == (abs(i / 2 - j / 8) <= 0.25)
    assert near.sum(1).tolist() == [3, 5, 5]
    assert causal_pairs(video, sound)[0].sum(1).tolist() == [1, 5, 9]
    assert causal_pairs(sound, video)[0].sum(1).tolist() == [1] * 4 + [2] * 4 + [3] * 4
    assert window_pairs(video, sound, past=0.0, future=math.inf)[0].sum(1).tolist() == [12, 8, 4]
    # 3 / 30 and 1 / 10 differ in their last bit; the same moment is neither past nor future.
    assert causal_pairs(clock(10, 30.0), clock(4, 10.0))[0, 3, 1]
    assert causal_pairs(clock(4, 10.0), clock(10, 30.0))[0, 1, 3]
    with pytest.raises(ConfigError, match="seconds"):
        window_pairs(video, sound, past=-1.0, future=0.0)


@given(st.integers(1, 12), st.sampled_from([4.0, 12.5, 25.0, 29.97, 44.1]))
def test_causal_on_one_clock_is_the_lower_triangle(steps: int, rate: float) -> None:
    at = clock(steps, rate)
    assert torch.equal(causal_pairs(at, at)[0], torch.ones(steps, steps).tril().bool())


def test_masks_are_combined_by_and() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    both = all_of(padding_pairs(mask, 3), None, causal_pairs(clock(3, 1.0), clock(3, 1.0)))
    assert both.int().tolist() == [[[1, 0, 0], [1, 1, 0], [1, 1, 0]], [[1, 0, 0], [1, 0, 0], [1, 0, 0]]]
    assert all_of(None, None) is None
    cpu = torch.device("cpu")
    blocks = {name: block_pairs(1, 2, device=cpu, **{name: False})[0].int().tolist() for name in ("intra", "inter")}
    assert blocks == {"intra": [[0, 1, 1], [1, 0, 0], [1, 0, 0]], "inter": [[1, 0, 0], [0, 1, 1], [0, 1, 1]]}
    assert blank_rows(torch.ones(2, 4, 3, 5), mask)[:, 0].sum(2).tolist() == [[5, 5, 0], [5, 0, 0]]


# ------------------------------------------------------------------------------------------------------------ attend
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 7), st.booleans(), st.booleans(), st.integers(0, 99))
def test_both_paths_agree_with_a_loop(
    heads: int, queries: int, keys: int, biased: bool, pairs: bool, seed: int
) -> None:
    q, k, v = (
        random(2, heads, queries, 4, seed=seed),
        random(2, heads, keys, 4, seed=1),
        random(2, heads, keys, 3, seed=2),
    )
    mask = random(2, 1, queries if pairs else 1, keys, seed=seed + 3) > 0
    bias = random(1, heads, queries, keys, seed=4) if biased else None
    explicit, weights = attend(q, k, v, mask=mask, bias=bias, return_attention=True)
    fused, none = attend(q, k, v, mask=mask, bias=bias)
    assert none is None
    assert torch.allclose(fused, explicit, atol=1e-6)
    everywhere = mask.expand(2, heads, queries, keys)
    for b, h, i in itertools.product(range(2), range(heads), range(queries)):
        seen = [j for j in range(keys) if everywhere[b, h, i, j]]
        e = [math.exp(float(q[b, h, i] @ k[b, h, j]) / 2 + (float(bias[0, h, i, j]) if biased else 0)) for j in seen]
        expected = sum((x / sum(e) * v[b, h, j] for x, j in zip(e, seen, strict=True)), torch.zeros(3))
        assert torch.allclose(explicit[b, h, i], expected, atol=1e-5)
        assert float(weights[b, h, i].sum()) == pytest.approx(1.0 if seen else 0.0, abs=1e-6)


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_without_keys_gives_zero_and_finite_gradients(shown: bool, dtype: torch.dtype) -> None:
    q, k, v = (random(2, 2, 3, 4, seed=s).to(dtype).requires_grad_() for s in range(3))
    bias = random(1, 2, 3, 3).requires_grad_()
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    mask[0] = False  # a whole item
    mask[1, :, 1] = False  # one query of the other
    out, weights = attend(q, k, v, mask=mask, bias=bias, return_attention=shown)
    assert not out[0].any()
    assert not out[1, :, 1].any()
    assert out[1, :, 0].all()
    assert torch.isfinite(out).all()
    if shown:
        assert weights.dtype == torch.float32  # the softmax, whatever the inputs
        assert torch.allclose(weights.sum(3)[1, :, [0, 2]], torch.ones(2, 2), atol=1e-6)
        assert not weights[0].any()
    out.float().square().sum().backward()
    for x in (q, k, v, bias):
        assert torch.isfinite(x.grad).all()
    assert not q.grad[0].any()
    assert not v.grad[0].any()
    assert q.grad[1, :, 0].any()


def test_gradients_are_right_on_both_paths() -> None:
    q, k, v = (random(1, 2, 3, 2, seed=s).double().requires_grad_() for s in range(3))
    mask = torch.tensor([[True, True, False], [False, False, False], [True, False, True]])[None, None]
    for shown in (False, True):
        assert torch.autograd.gradcheck(lambda *x, s=shown: attend(*x, mask=mask, return_attention=s)[0], (q, k, v))


def test_large_scores_stay_finite_in_half_precision() -> None:
    q = (random(1, 1, 4, 8) * 100).bfloat16()
    for shown in (False, True):
        assert torch.isfinite(attend(q, q, q, scale=1.0, return_attention=shown)[0]).all()


def test_dropout_keeps_the_mean_and_leaves_the_map_alone() -> None:
    torch.manual_seed(0)
    q, k, v = random(1, 1, 1, 4), random(1, 1, 50, 4, seed=1), torch.ones(1, 1, 50, 400)
    out, weights = attend(q, k, v, dropout=0.5, return_attention=True)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    assert float(out.std()) < 1e-5  # one draw for all values of a key
    draws = torch.stack([attend(q, k, v[..., :1], dropout=0.5, return_attention=True)[0] for _ in range(400)])
    assert float(draws.mean()) == pytest.approx(1, abs=0.1)
    assert float(draws.std()) > 0.1


# ------------------------------------------------------------------------------------------------------- several heads
def heads_by_hand(part: MultiHeadAttention, x: Tensor, c: Tensor, allowed: Tensor) -> Tensor:
    """[B, Tq, dim] by loops over clips, heads and queries."""
    if part.context_dim == part.dim:
        wq, wk, wv = part.inputs.weight.chunk(3)
        bq, bk, bv = part.inputs.bias.chunk(3)
    else:
        (wq, bq), (wk, wv) = (part.query.weight, part.query.bias), part.key_value.weight.chunk(2)
        bk, bv = part.key_value.bias.chunk(2)
    size = part.dim // part.heads
    out = torch.zeros(len(x), x.shape[1], part.dim)
    for b, h in itertools.product(range(len(x)), range(part.heads)):
        at = slice(h * size, (h + 1) * size)
        q, k, v = x[b] @ wq[at].T + bq[at], c[b] @ wk[at].T + bk[at], c[b] @ wv[at].T + bv[at]
        scores = part.score(q[None, None].expand(1, part.heads, -1, -1), k[None, None].expand(1, part.heads, -1, -1))
        scores = scores[0, h if len(scores[0]) > 1 else 0]
        for i in range(len(q)):
            seen = torch.nonzero(allowed[b, i])[:, 0]
            if len(seen):
                out[b, i, at] = scores[i, seen].softmax(0) @ v[seen]
    return out @ part.output.weight.T


@torch.no_grad()
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("context_dim", [None, 5])
def test_heads_against_loops(name: ScoreName, context_dim: int | None) -> None:
    torch.manual_seed(0)
    part = MultiHeadAttention(8, heads=2, context_dim=context_dim, score=name).eval()
    x, c = random(3, 4, 8), random(3, 6, context_dim or 8, seed=1)
    mask = random(3, 6, seed=2) > -0.5
    mask[2] = False
    pairs = random(1, 4, 6, seed=3) > -0.5
    out, weights = part(x, c, mask=mask, pairs=pairs, return_attention=True)
    allowed = mask[:, None] & pairs
    assert torch.allclose(out, heads_by_hand(part, x, c, allowed), atol=1e-5)
    assert torch.allclose(part(x, c, mask=mask, pairs=pairs)[0], out, atol=1e-6)
    assert weights.shape == (3, 2, 4, 6)
    assert torch.allclose(weights.sum(3), allowed.any(2)[:, None].float().expand(3, 2, 4), atol=1e-6)
    assert not out[2].any()  # a missing modality adds exactly nothing
    if context_dim is None:
        same, other = part(x, x)[0], part(x, x.clone())[0]
        assert torch.allclose(same, other, atol=1e-6)
        assert torch.allclose(same, heads_by_hand(part, x, x, torch.ones(3, 4, 4)), atol=1e-5)


def test_heads_are_those_of_torch() -> None:
    torch.manual_seed(0)
    part, peer = MultiHeadAttention(12, heads=3), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    peer.load_state_dict(
        {
            "in_proj_weight": part.inputs.weight,
            "in_proj_bias": part.inputs.bias,
            "out_proj.weight": part.output.weight,
            "out_proj.bias": torch.zeros(12),
        }
    )
    x, c, mask = random(2, 5, 12), random(2, 7, 12, seed=1), random(2, 7, seed=2) > -0.5
    out, weights = part(x, c, mask=mask, return_attention=True)
    expected, expected_weights = peer(x, c, c, key_padding_mask=~mask, average_attn_weights=False)
    assert torch.allclose(out, expected, atol=1e-6)
    assert torch.allclose(weights, expected_weights, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("garbage", [1e30, -3e38, math.inf, math.nan])
def test_what_lies_behind_the_mask_is_never_read(name: ScoreName, garbage: float) -> None:
    torch.manual_seed(0)
    part = MultiHeadAttention(8, heads=2, score=name).eval()
    x = random(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True, False, True, False, False]])
    dirty = x.masked_fill(~mask[:, :, None], garbage)
    for shown in (False, True):
        clean = part(x, x, mask=mask, return_attention=shown)[0]
        assert torch.allclose(part(dirty, dirty, mask=mask, return_attention=shown)[0][mask], clean[mask], atol=1e-6)
        other = part(x, x.clone(), mask=mask, return_attention=shown)[0]
        assert torch.allclose(part(x, dirty, mask=mask, return_attention=shown)[0], other, atol=1e-6)


@pytest.mark.parametrize("name", SCORES)
def test_gradients_reach_every_parameter_and_both_sides(name: ScoreName) -> None:
    torch.manual_seed(0)
    part = MultiHeadAttention(8, heads=2, context_dim=6, score=name)
    x, c = random(2, 4, 8).requires_grad_(), random(2, 5, 6).requires_grad_()
    mask = torch.tensor([[True] * 3 + [False] * 2, [False] * 5])
    part(x, c, mask=mask)[0].square().sum().backward()
    for name, value in [*part.named_parameters(), ("x", x), ("c", c)]:
        assert torch.isfinite(value.grad).all(), name
        assert value.grad.any(), name
    assert not c.grad[~mask].any()


@torch.no_grad()
def test_order_of_keys_does_not_matter_and_order_of_queries_is_kept() -> None:
    torch.manual_seed(0)
    part = MultiHeadAttention(8, heads=2).eval()
    x, c, turn = random(2, 4, 8), random(2, 6, 8, seed=1), torch.tensor([3, 0, 5, 1, 4, 2])
    out = part(x, c)[0]
    assert torch.allclose(part(x, c[:, turn])[0], out, atol=1e-6)
    assert torch.allclose(part(x[:, turn[:4] % 4], c)[0], out[:, turn[:4] % 4], atol=1e-6)


def test_settings_and_shapes_are_checked() -> None:
    for wrong in ({"heads": 3}, {"heads": 0}, {"dropout": 1.0}, {"score": "best"}):
        with pytest.raises(ConfigError):
            MultiHeadAttention(8, **wrong)
    with pytest.raises(ConfigError):
        FeedForward(8, activation="tanh")
    part, x = MultiHeadAttention(8), torch.zeros(2, 4, 8)
    with pytest.raises(BatchError, match=r"queries \[B, T, 8\]"):
        part(x[0], x)
    with pytest.raises(BatchError, match=r"context \[2, T, 8\]"):
        part(x, torch.zeros(2, 4, 5))
    with pytest.raises(BatchError, match="mask of the keys"):
        part(x, x, mask=torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(BatchError, match="pairs"):
        part(x, x, pairs=torch.ones(2, 4, 5, dtype=torch.bool))


@torch.no_grad()
def test_dropout_only_in_training() -> None:
    torch.manual_seed(0)
    part, x = MultiHeadAttention(8, dropout=0.5), random(2, 4, 8)
    assert not torch.allclose(part(x, x)[0], part(x, x)[0])
    part.eval()
    assert torch.equal(part(x, x)[0], part(x, x)[0])
