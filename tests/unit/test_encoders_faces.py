"""Small convolutions that keep the place: light and color cancel, moves happen in training only."""

from __future__ import annotations

import pytest
import torch

from avcl.encoders.faces import PlacedConv
from avcl.errors import BatchError, ConfigError
from avcl.types import Stream


def video(batch: int = 3, steps: int = 2, size: tuple[int, int] = (20, 24)) -> Stream:
    data = torch.rand(batch, steps, 3, *size, generator=torch.Generator().manual_seed(0))
    return Stream(data, torch.ones(batch, steps, dtype=torch.bool), 2.0)


def test_light_and_color_cancel_and_place_does_not() -> None:
    net = PlacedConv((20, 24), dim=8).eval()
    seen = video()
    darker = seen._replace(data=seen.data * 0.8 + 0.1)
    torch.testing.assert_close(net(seen).data, net(darker).data, atol=0.1, rtol=0.1)
    colored = seen._replace(data=seen.data + torch.tensor([0.2, -0.1, -0.1])[:, None, None])
    torch.testing.assert_close(net(seen).data, net(colored).data, atol=1e-5, rtol=1e-4)
    moved = seen._replace(data=seen.data.roll(5, 4))
    assert (net(seen).data - net(moved).data).abs().mean().item() > 0.05


def test_moves_are_one_draw_a_clip_in_training_only() -> None:
    net = PlacedConv((20, 24), dim=8)
    seen = video(batch=6)
    still = seen._replace(data=seen.data[:, :1].expand(-1, 2, -1, -1, -1))
    torch.manual_seed(0)
    first = net(still).data
    torch.testing.assert_close(first[:, 0], first[:, 1])  # all frames of a clip alike
    assert not torch.equal(first, net(still).data)
    net.eval()
    assert torch.equal(net(still).data, net(still).data)
    edge = torch.zeros(1, 1, 20, 24)
    edge[..., 0] = 1.0
    moves = {tuple(net._moved(edge.clone())[0, 0, 0].tolist()) for _ in range(60)}
    assert len(moves) > 5


def test_one_size_only() -> None:
    net = PlacedConv((20, 24), dim=8)
    with pytest.raises(BatchError, match=r"\(20, 24\)"):
        net(video(size=(24, 20)))
    for wrong in ({"widths": ()}, {"jitter": -1}, {"dim": 0}):
        with pytest.raises(ConfigError):
            PlacedConv((20, 24), **wrong)
