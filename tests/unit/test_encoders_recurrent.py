"""Recurrent encoders equal torch's where all is recorded and packed sequences where not; TCNs see what they say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from avcl.encoders.recurrent import TCN, Cell, Recurrent, recorded_first
from avcl.errors import BatchError, ConfigError
from avcl.types import Stream


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(data: torch.Tensor, rate: float = 4.0) -> Stream:
    return Stream(data, torch.ones(data.shape[:2], dtype=torch.bool), rate)


def torch_twin(net: Recurrent, cell: Cell) -> nn.GRU | nn.LSTM:
    """torch's own module with the weights of ``net``."""
    build = nn.GRU if cell == "gru" else nn.LSTM
    both = net.directions == 2
    twin = build(net.features, net.hidden, num_layers=net.depth, bidirectional=both, batch_first=True)
    with torch.no_grad():
        for i, one in enumerate(net.cells):
            layer, reverse = divmod(i, net.directions)
            for name, value in one.named_parameters():
                twin.get_parameter(name.replace("l0", f"l{layer}") + ("_reverse" if reverse else "")).copy_(value)
    return twin


CASES = [("gru", 1, False), ("gru", 2, True), ("lstm", 1, True), ("lstm", 3, False)]


@pytest.mark.parametrize(("cell", "depth", "both"), CASES)
def test_full_sequences_equal_torch(cell: Cell, depth: int, both: bool) -> None:
    torch.manual_seed(0)
    net = Recurrent(6, hidden=5, depth=depth, cell=cell, bidirectional=both)
    twin, x = torch_twin(net, cell), random(3, 9, 6)
    expected, state = twin(x)
    out = net(whole(x))
    assert torch.allclose(out.data, expected, atol=1e-6)
    assert net.dim == expected.shape[2]
    hidden = state[0] if cell == "lstm" else state  # [layers · directions, B, hidden]
    last = hidden[-net.directions :].transpose(0, 1).flatten(1)
    assert torch.allclose(net.last(out), last, atol=1e-6)


@pytest.mark.parametrize(("cell", "depth", "both"), CASES)
def test_lengths_equal_packed_sequences(cell: Cell, depth: int, both: bool) -> None:
    torch.manual_seed(0)
    net = Recurrent(4, hidden=5, depth=depth, cell=cell, bidirectional=both)
    lengths = torch.tensor([3, 7, 1, 5])
    mask = torch.arange(8)[None] < lengths[:, None]
    x = random(4, 8, 4)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    ran, state = torch_twin(net, cell)(packed)
    expected, _ = nn.utils.rnn.pad_packed_sequence(ran, batch_first=True, total_length=8)
    out = net(Stream(torch.where(mask[:, :, None], x, 1e6), mask, 4.0))
    assert torch.allclose(out.data, expected, atol=1e-6)
    hidden = state[0] if cell == "lstm" else state
    assert torch.allclose(net.last(out), hidden[-net.directions :].transpose(0, 1).flatten(1), atol=1e-6)


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.booleans())
def test_a_gap_is_as_if_it_had_been_cut_out(there: list[bool], lstm: bool) -> None:
    torch.manual_seed(0)
    net = Recurrent(3, hidden=4, depth=2, cell="lstm" if lstm else "gru", learned_start=True)
    with torch.no_grad():
        net.start.normal_()
    mask = torch.tensor([there])
    x = random(1, len(there), 3)
    out = net(Stream(torch.where(mask[:, :, None], x, -7e4), mask, 4.0))
    assert float(out.data.detach()[~mask].abs().sum()) == 0
    if any(there):
        short = net(whole(x[:, mask[0]]))
        assert torch.allclose(out.data[:, mask[0]], short.data, atol=1e-6)
        assert torch.allclose(net.last(out), net.last(short), atol=1e-6)
    else:
        assert float(net.last(out).detach().abs().sum()) == 0


def test_the_start_is_learned_and_one_direction_is_causal() -> None:
    torch.manual_seed(0)
    net = Recurrent(3, hidden=4, bidirectional=False, learned_start=True)
    x = random(2, 6, 3)
    before = net(whole(x)).data
    before.sum().backward()
    assert net.start.grad is not None
    assert float(net.start.grad.abs().min()) > 0
    changed = x.clone()
    changed[:, 4] += 1
    after = net(whole(changed)).data
    assert torch.equal(after[:, :4], before[:, :4])
    assert not torch.equal(after[:, 4:], before[:, 4:])


def test_recorded_first_by_hand() -> None:
    mask = torch.tensor([[False, True, True, False, True], [True] * 5, [False] * 5])
    order, back = recorded_first(mask)
    assert order.tolist() == [[1, 2, 4, 0, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert torch.equal(order.gather(1, back), torch.arange(5).expand(3, 5))


# ----------------------------------------------------------------------------------------------------------------- TCN
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("depth", "width"), [(1, 3), (3, 3), (2, 5)])
def test_a_tcn_sees_its_receptive_field_and_no_more(causal: bool, depth: int, width: int) -> None:
    torch.manual_seed(0)
    net = TCN(3, dim=8, depth=depth, width=width, causal=causal)
    assert net.receptive_field == 1 + 2 * (width - 1) * (2**depth - 1)
    steps = 2 * net.receptive_field + 3
    middle = steps // 2
    x = random(1, steps, 3).requires_grad_()
    net(whole(x)).data[0, middle].square().sum().backward()
    seen = torch.nonzero(x.grad[0].abs().sum(1))[:, 0]
    reach = net.receptive_field - 1
    first, last = (middle - reach, middle) if causal else (middle - reach // 2, middle + reach // 2)
    assert (int(seen[0]), int(seen[-1])) == (first, last)
    assert len(seen) == net.receptive_field


def test_a_tcn_keeps_gaps_silent_and_of_their_length() -> None:
    torch.manual_seed(0)
    net = TCN(3, dim=8, depth=2)
    x, mask = random(2, 12, 3), torch.ones(2, 12, dtype=torch.bool)
    mask[0, 4:6], mask[1, 9:] = False, False
    out = net(Stream(x, mask, 4.0))
    noisy = net(Stream(torch.where(mask[:, :, None], x, 1e6), mask, 4.0))
    assert torch.equal(noisy.data, out.data)
    assert float(out.data.detach()[~mask].abs().sum()) == 0
    short = net(Stream(x[1:, :9], mask[1:, :9], 4.0))
    assert torch.allclose(short.data, out.data[1:, :9], atol=1e-6)


def test_settings_and_shapes_are_checked() -> None:
    for build in (
        lambda: Recurrent(0),
        lambda: Recurrent(3, depth=0),
        lambda: Recurrent(3, dropout=1.0),
        lambda: Recurrent(3, cell="rnn"),  # type: ignore[arg-type]
        lambda: TCN(3, width=4),
        lambda: TCN(3, dim=0),
    ):
        with pytest.raises(ConfigError):
            build()
    assert TCN(3, width=4, causal=True).receptive_field == 1 + 2 * 3 * 15
    for net in (Recurrent(3), TCN(3)):
        with pytest.raises(BatchError, match=r"\[B, T, 3\]"):
            net(whole(random(2, 5, 4)))
        with pytest.raises(BatchError, match="mask"):
            net(Stream(random(2, 5, 3), torch.ones(2, 4, dtype=torch.bool), 1.0))
