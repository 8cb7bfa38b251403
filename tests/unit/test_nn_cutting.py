"""Parts of streams: the same seconds of sound and picture, backward, and where parts may begin."""

from __future__ import annotations

import pytest
import torch

from avcl.errors import ConfigError
from avcl.nn.cutting import backward, cut, recorded_seconds, spread_starts, two_starts
from avcl.types import Stream


def counting(steps: int, rate: float, *, recorded: tuple[int, ...]) -> Stream:
    """Step i holds i + 1; row b was recorded for ``recorded[b]`` steps."""
    data = torch.arange(1.0, steps + 1).expand(len(recorded), -1)[:, :, None]
    mask = torch.arange(steps) < torch.tensor(recorded)[:, None]
    return Stream(data * mask[:, :, None], mask, rate)


def test_the_same_seconds_come_out_of_every_stream() -> None:
    picture, sound = counting(24, 8.0, recorded=(24, 24)), counting(192, 64.0, recorded=(192, 192))
    start = torch.tensor([0.0, 1.25])
    seen, heard = cut(picture, start, 1.0), cut(sound, start, 1.0)
    assert seen.data[:, :, 0].tolist() == [list(range(1, 9)), list(range(11, 19))]
    assert heard.data[:, 0, 0].tolist() == [1, 81]
    assert heard.data.shape[1] == 64
    assert seen.mask.all()


def test_what_was_not_recorded_is_zeros_with_mask_false() -> None:
    part = cut(counting(16, 8.0, recorded=(10, 16)), torch.tensor([1.0, 1.5]), 1.0)
    assert part.data[:, :, 0].tolist() == [[9, 10, 0, 0, 0, 0, 0, 0], [13, 14, 15, 16, 0, 0, 0, 0]]
    assert part.mask.sum(1).tolist() == [2, 4]


def test_recorded_seconds_and_backward() -> None:
    stream = counting(16, 8.0, recorded=(10, 0))
    assert recorded_seconds(stream).tolist() == [1.25, 0.0]
    turned = backward(stream)
    assert turned.data[0, :, 0].tolist() == [0] * 6 + list(range(10, 0, -1))
    assert turned.mask[0].tolist() == [False] * 6 + [True] * 10
    assert torch.equal(backward(turned).data, stream.data)


def test_starts_are_evenly_spread_on_the_steps() -> None:
    found = spread_starts(torch.tensor([2.0, 0.5, 0.0], dtype=torch.float64), 3, rate=8.0)
    assert found.tolist() == [[0, 1, 2], [0, 0.25, 0.5], [0, 0, 0]]
    assert spread_starts(torch.tensor([2.0]), 1, rate=8.0).tolist() == [[1.0]]
    with pytest.raises(ConfigError):
        spread_starts(torch.tensor([2.0]), 0, rate=8.0)


def test_two_starts_lie_apart_and_inside() -> None:
    generator = torch.Generator().manual_seed(0)
    found = two_starts(torch.full((4000,), 2.0, dtype=torch.float64), apart=0.5, rate=8.0, generator=generator)
    assert float(found.min()) == 0
    assert float(found.max()) <= 2.0
    assert float((found[:, 0] - found[:, 1]).abs().min()) >= 0.5 - 1 / 8
    assert torch.equal(found * 8, (found * 8).round())
    assert abs(float(found.mean()) - 1.0) < 0.1
    short = two_starts(torch.tensor([0.0, 0.5], dtype=torch.float64), apart=0.5, rate=8.0, generator=generator)
    assert short[0].tolist() == [0, 0]
    assert short[1].max() <= 0.5
