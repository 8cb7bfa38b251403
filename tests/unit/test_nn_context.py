"""Windows in seconds, strides, one stream on the clock of another, and attention to several temporal scales."""

from __future__ import annotations

import math

import pytest
import torch
from attention_toys import D, build, clip, features, looked_up
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl.errors import BatchError, ConfigError
from avcl.nn.context import MultiScaleAttention, clock_of, span_pairs, strided
from avcl.types import Stream


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# --------------------------------------------------------------------------------------------------- clocks and windows
def test_a_window_in_seconds_by_hand() -> None:
    fast, slow = features(8, rate=4.0), features(2, rate=1.0)
    assert span_pairs(fast, fast, past=0, future=0)[0].equal(torch.eye(8, dtype=torch.bool))
    assert span_pairs(fast, fast, past=0.5, future=0.25)[0, 3].tolist() == [False, True, True, True, True] + [False] * 3
    assert span_pairs(fast, slow, past=0, future=0)[0].tolist() == [[True, False]] * 4 + [[False, True]] * 4
    assert span_pairs(fast, slow, past=0.3, future=0)[0, :, 0].tolist() == [True] * 6 + [False] * 2  # 1.5 - 0.3 > 1
    assert span_pairs(slow, fast, past=0, future=math.inf)[0].tolist() == [[True] * 8, [False] * 4 + [True] * 4]
    third = features(9, rate=3.0)
    assert span_pairs(third, third, past=1 / 3, future=0)[0].sum(1).tolist() == [1] + [2] * 8  # no step by rounding
    with pytest.raises(ConfigError, match="seconds of past and future"):
        span_pairs(fast, slow, past=-1, future=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.floats(0.5, 30), st.integers(1, 12), st.floats(0.5, 30))
def test_no_query_on_the_common_clock_is_left_without_a_key(tq: int, rq: float, tk: int, rk: float) -> None:
    queries, keys = features(tq, rate=rq), features(tk, rate=rk)
    inside = torch.arange(tq) / rq < tk / rk - 1e-5 / min(rq, rk)
    assert span_pairs(queries, keys, past=0, future=0)[0].any(1)[inside].all()


def test_strides_average_what_was_recorded() -> None:
    given = Stream(torch.tensor([[[1.0], [3.0], [9.0], [7.0], [5.0]]]), torch.tensor([[1, 1, 0, 1, 1]]).bool(), 4.0)
    half = strided(given, 2)
    assert half.data[0, :, 0].tolist() == [2, 7, 5]
    assert half.mask.all()
    assert half.rate == 2
    gone = strided(given._replace(mask=torch.tensor([[1, 1, 0, 0, 1]]).bool()), 2)
    assert gone.data[0, :, 0].tolist() == [2, 0, 5]
    assert gone.mask.tolist() == [[True, False, True]]
    assert strided(given, 1).data.equal(given.data.masked_fill(~given.mask[..., None], 0))
    with pytest.raises(ConfigError, match="stride"):
        strided(given, 0)


def test_one_stream_on_the_clock_of_another() -> None:
    sound, frames = features(8, 5, rate=8.0), features(5, 5, rate=4.0)
    at = clock_of(sound, frames)
    assert at.rate == 4
    assert at.mask.tolist() == [[True] * 4 + [False], [True] * 3 + [False] * 2]
    assert torch.allclose(at.data[0, 1], sound.data[0, 2:4].mean(0))
    assert torch.allclose(at.data[1, 2], sound.data[1, 4])  # half of this frame's sound was recorded
    same = clock_of(sound, sound)
    assert torch.allclose(same.data[0], sound.data[0])


@torch.no_grad()
@pytest.mark.parametrize("positions", [False, True])
def test_scales_share_one_softmax_or_are_mixed(positions: bool) -> None:
    x, context = features(5, 3), features(7, 4, rate=8.0, seed=1)
    part = build(MultiScaleAttention(D, heads=2, strides=(1, 3), positions=positions))
    out, maps = part(x, context, return_attention=True)
    assert [m.shape for m in maps] == [(2, 2, 5, 7), (2, 2, 5, 3)]
    assert torch.allclose(torch.cat(maps, 3).sum(3)[0], torch.ones(1, dtype=torch.float64))
    mixed = build(MultiScaleAttention(D, heads=2, strides=(1, 3), merge="mix", positions=positions))
    blend, each = mixed(x, context, return_attention=True)
    assert torch.allclose(torch.cat(each, 3).sum(3)[0], torch.ones(1, dtype=torch.float64))
    assert torch.allclose(mixed(x, context).data, blend.data)
    for i in range(2):
        own, full = clip(x, i), clip(context, i)
        coarse = torch.stack([full[s : s + 3].mean(0) for s in range(0, len(full), 3)])
        query = own
        if positions:
            query = own + part.query_code.code(torch.arange(len(own), dtype=torch.float64) / 4)
            full = full + part.key_code.code(torch.arange(len(full), dtype=torch.float64) / 8)
            coarse = coarse + part.key_code.code(torch.arange(len(coarse), dtype=torch.float64) * 3 / 8)
        read = looked_up(part.attention[0], query, torch.cat([full + part.scale[0], coarse + part.scale[1]]))
        assert torch.allclose(clip(out, i), part.norm(own + read), atol=1e-12)
        reads = [looked_up(block, query, keys) for block, keys in zip(mixed.attention, (full, coarse), strict=True)]
        shares = torch.cat([mixed.weigh(r) for r in reads], 1).softmax(1)
        assert torch.allclose(
            clip(blend, i), mixed.norm(own + shares[:, :1] * reads[0] + shares[:, 1:] * reads[1]), atol=1e-12
        )


@torch.no_grad()
@pytest.mark.parametrize("merge", ["concatenate", "mix"])
def test_slow_and_fast_encoders_are_scales_of_their_own(merge: str) -> None:
    part = build(MultiScaleAttention(D, heads=2, strides=(1, 4), merge=merge))
    x, fast = features(5, 5), features(8, 8, rate=8.0, seed=1)
    assert torch.allclose(part(x, [fast, strided(fast, 4)]).data, part(x, fast).data)
    slow = features(2, 0, rate=2.0, seed=2)
    slow = slow._replace(data=torch.where(slow.mask[..., None], slow.data, 0))
    empty = part(x, [fast, slow], return_attention=True)[1]
    assert torch.allclose(
        empty[0][1].sum(2), torch.ones(1, dtype=torch.float64)
    )  # the scale without a step has no share
    with pytest.raises(BatchError, match="2 contexts"):
        part(x, [fast])
