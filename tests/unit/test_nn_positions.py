"""Codes of seconds: worked values, one clock for all rates, buckets, tables, dropped steps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.nn.positions import (
    DropToken,
    MapPositions,
    ModalityEmbedding,
    RelativeBias,
    SecondsEncoding,
    interpolated,
    relative_buckets,
    seconds_of,
    sinusoidal,
)
from avcl.types import Stream


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def zeros(steps: int, rate: float, *shape: int, batch: int = 1) -> Stream:
    return Stream(torch.zeros(batch, steps, *shape), torch.ones(batch, steps, dtype=torch.bool), rate)


def test_worked_sinusoidal_values() -> None:
    code = sinusoidal(torch.arange(3), 4)
    assert code[0].tolist() == [0, 1, 0, 1]
    assert code[1].tolist() == pytest.approx((0.8415, 0.5403, 0.0100, 1.0000), abs=1e-4)
    assert code[2].tolist() == pytest.approx((0.9093, -0.4161, 0.0200, 0.9998), abs=1e-4)
    assert sinusoidal(torch.zeros(2, 5), 6).shape == (2, 5, 6)
    for dim in (0, 3):
        with pytest.raises(ConfigError, match="even"):
            sinusoidal(torch.arange(3), dim)


def test_an_hour_is_as_sharp_as_a_second() -> None:
    late = SecondsEncoding(8, longest=100.0)
    exact = [math.sin(2 * math.pi * (3600.1 / (0.1 * 1000 ** (2 * i / 8)))) for i in range(4)]
    assert late.code(torch.tensor([3600.1], dtype=torch.float64))[0, ::2].tolist() == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_one_clock_for_all_rates(kind: str) -> None:
    torch.manual_seed(0)
    part = SecondsEncoding(6, kind=kind, longest=3.0)
    slow, fast = part(zeros(4, 2.0, 6)).data[0], part(zeros(25, 12.5, 6)).data[0]
    odd = part(zeros(60, 29.97, 6)).data[0]
    assert torch.allclose(slow[2], part.code(torch.tensor(1.0)), atol=1e-6)
    assert torch.allclose(slow[[0, 2]], part(zeros(2, 1.0, 6)).data[0], atol=1e-6)  # 0 and 1 s
    assert not torch.allclose(fast[2], slow[2], atol=1e-3)  # the same index is another second
    # step 25 of 29.97 a second stands at 0.8342 s, between steps 10 and 11 of 12.5 a second
    if kind == "learned":
        assert torch.allclose(odd[25], torch.lerp(fast[10], fast[11], 25 / 29.97 * 12.5 - 10), atol=1e-5)
        assert part.table.shape == (7, 6)
        assert torch.allclose(
            part.code(torch.tensor([0.5, 0.75, 9.0])),
            part.table[[1, 1, 6]].lerp(part.table[[1, 2, 6]], torch.tensor([0.0, 0.5, 0.0])[:, None]),
            atol=1e-6,
        )


def test_the_code_is_added_to_steps_and_cells_and_blanked_where_nothing_was_recorded() -> None:
    part = SecondsEncoding(4)
    given = Stream(random(2, 5, 4), torch.tensor([[True] * 5, [True, False, True, False, False]]), 8.0)
    out = part(given)
    assert torch.allclose(out.data[0], given.data[0] + part.code(seconds_of(given)).float())
    assert not out.data[1][~given.mask[1]].any()
    cells = part(given._replace(data=given.data[:, :, None, None].expand(-1, -1, 2, 3, -1)))
    assert torch.allclose(cells.data[:, :, 1, 2], out.data)
    assert part(given._replace(data=given.data.bfloat16())).data.dtype == torch.bfloat16
    with pytest.raises(BatchError, match="width 4"):
        part(given._replace(data=given.data[..., :3]))
    for wrong in ({"kind": "rotary"}, {"shortest": 0.0}, {"longest": 0.05}, {"grid": 0.0}, {"dim": 3}):
        with pytest.raises(ConfigError):
            SecondsEncoding(**{"dim": 4, **wrong})


@given(st.floats(-2, 12), st.integers(1, 6))
def test_interpolation_by_hand(at: float, rows: int) -> None:
    table = random(rows, 2)
    held = min(max(at, 0.0), rows - 1.0)
    low = min(int(held), max(rows - 2, 0))
    expected = table[low] + (held - low) * (table[min(low + 1, rows - 1)] - table[low])
    assert torch.allclose(interpolated(table, torch.tensor(at, dtype=torch.float64)), expected, atol=1e-6)


def test_separable_tables_of_maps() -> None:
    torch.manual_seed(0)
    part = MapPositions(4, height=2, width=3, grid=0.5)
    out = part(zeros(3, 2.0, 2, 3, 4)).data[0]
    expected = part.time.table[:3, None, None] + part.rows[:, None] + part.columns
    assert torch.allclose(out, expected, atol=1e-6)
    tall = part(zeros(3, 2.0, 4, 3, 4)).data[0]  # rows at 1/8, 3/8, ... of the height meet a table at 1/4, 3/4
    assert torch.allclose(tall[0, 0, 0], out[0, 0, 0], atol=1e-6)
    assert torch.allclose(tall[0, 1, 0], out[0, 0, 0].lerp(out[0, 1, 0], 0.25), atol=1e-6)
    out.square().sum().backward()
    assert all(p.grad.any() for p in part.parameters())
    with pytest.raises(BatchError, match="map positions"):
        part(zeros(3, 2.0, 4))
    with pytest.raises(ConfigError):
        MapPositions(4, height=0, width=3)


# --------------------------------------------------------------------------------------------------- relative positions
def bucket_by_hand(distance: int, buckets: int, longest: int, causal: bool) -> int:
    count = buckets if causal else buckets // 2
    size = max(-distance, 0) if causal else abs(distance)
    start = count if distance > 0 and not causal else 0
    exact = count // 2
    if size < exact:
        return start + size
    return start + min(exact + int(math.log(size / exact) / math.log(longest / exact) * (count - exact)), count - 1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "longest"), [(32, 64), (32, 128), (8, 20)])
def test_buckets_by_hand(buckets: int, longest: int, causal: bool) -> None:
    distance = torch.arange(-200, 201)
    found = relative_buckets(distance, buckets=buckets, longest=longest, causal=causal)
    assert found.tolist() == [bucket_by_hand(d, buckets, longest, causal) for d in distance.tolist()]
    assert 0 <= int(found.min()) <= int(found.max()) == buckets - 1
    assert len(found.unique()) == buckets - (not causal)  # ahead by nothing does not occur


def test_buckets_of_t5() -> None:
    """Near distances one by one, then wider and wider; ahead is the second half."""
    distance = torch.tensor([0, -1, -7, -8, -9, -16, -63, -64, -999, 1, 7, 8, 64])
    assert relative_buckets(distance).tolist() == [0, 1, 7, 8, 8, 10, 15, 15, 15, 17, 23, 24, 31]
    for wrong in ({"buckets": 6}, {"longest": 8}, {"longest": 16, "causal": True}):
        with pytest.raises(ConfigError):
            relative_buckets(distance, **wrong)


def test_relative_bias_is_a_bias_of_seconds() -> None:
    torch.manual_seed(0)
    part = RelativeBias(3, unit=0.125)
    video, sound = zeros(5, 4.0, 2), zeros(20, 16.0, 2)
    bias = part(video, sound)
    assert bias.shape == (1, 3, 5, 20)
    same = part(video, video)
    assert torch.equal(bias[..., ::4], same)  # the same seconds, whatever the rate
    assert torch.equal(same[0, :, 1, 3], part.table[relative_buckets(torch.tensor(4))])  # 0.5 s are 4 units
    assert torch.equal(same[0, :, :-1, :-1], same[0, :, 1:, 1:])  # only the difference counts
    for wrong in ({"heads": 0}, {"unit": 0.0}, {"buckets": 5}):
        with pytest.raises(ConfigError):
            RelativeBias(**{"heads": 2, **wrong})


# ------------------------------------------------------------------------------------------------- modalities, dropping
def test_modality_embedding() -> None:
    torch.manual_seed(0)
    part, given = ModalityEmbedding(4), Stream(random(1, 3, 4), torch.tensor([[True, True, False]]), 2.0)
    out = part(given, 1)
    assert torch.allclose(out.data[0, :2] - given.data[0, :2], part.table[1].expand(2, 4), atol=1e-6)
    assert not out.data[0, 2].any()
    with pytest.raises(BatchError, match="modality 2"):
        part(given, 2)
    with pytest.raises(BatchError, match="goes onto"):
        part(zeros(3, 1.0, 5), 0)
    with pytest.raises(ConfigError):
        ModalityEmbedding(0)


@given(st.integers(1, 20), st.sampled_from([0.1, 0.3, 0.5, 0.75, 1.0]), st.integers(0, 9))
def test_dropped_tokens(steps: int, keep: float, seed: int) -> None:
    torch.manual_seed(seed)
    mask = random(3, steps, seed=seed) > -0.5
    mask[0], mask[1] = True, False
    index = torch.arange(1.0, steps + 1).expand(3, steps)
    stream = Stream(torch.stack([index, -index], 2), mask, 4.0)
    part = DropToken(keep)
    out = part(stream)
    count = math.ceil(round(steps * keep, 6))
    assert out.data.shape == (3, count, 2)
    assert out.rate == pytest.approx(4.0 * count / steps)
    if keep == 1:
        assert out is stream
        return
    for row in range(3):
        n = math.ceil(round(int(mask[row].sum()) * keep, 6))
        assert out.mask[row].tolist() == [True] * n + [False] * (count - n)
        kept = out.data[row, :n, 0].long()
        assert (kept.diff() > 0).all()  # in order, none twice
        assert mask[row, kept - 1].all()  # recorded ones only
        assert torch.equal(out.data[row, :n, 1], -out.data[row, :n, 0])
        assert not out.data[row, n:].any()
    assert part.eval()(stream) is stream


def test_dropping_is_even_and_differs_from_clip_to_clip() -> None:
    torch.manual_seed(0)
    index = torch.arange(10.0).expand(2000, 10)[..., None]
    out = DropToken(0.3)(Stream(index, torch.ones(2000, 10, dtype=torch.bool), 1.0))
    share = torch.bincount(out.data.flatten().long(), minlength=10) / 2000
    assert torch.allclose(share, torch.full((10,), 0.3), atol=0.05)
    assert len(out.data.unique(dim=0)) == 120  # all of 3 of 10
    with pytest.raises(ConfigError):
        DropToken(0.0)
