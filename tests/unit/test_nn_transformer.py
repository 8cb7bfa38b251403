"""Transformers against hand-unrolled layers: clocks, masks, causality, missing modalities, maps."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformer_toys import DIM, PUSH, missing, padded, random, stream, turned

from avcl.errors import BatchError, ConfigError
from avcl.nn.attention import window_pairs
from avcl.nn.self_and_co import ORDERS, SelfCoBlock
from avcl.nn.transformer import (
    CrossModalTransformer,
    Positions,
    TransformerDecoder,
    TransformerEncoder,
    TransformerLayer,
    shift_right,
)
from avcl.nn.translation import SetTranslator
from avcl.types import Stream

# Every part here as a function of two Streams that returns a list of results and a list of their maps, beside the
# network itself; a part with one input sees x alone.
Part = Callable[[Stream, Stream], tuple[list[Stream], list[Tensor]]]


def one(net: nn.Module) -> Part:
    def run(x: Stream, y: Stream) -> tuple[list[Stream], list[Tensor]]:
        out, found = net(x, return_attention=True)
        assert torch.allclose(net(x).data, out.data, atol=1e-5)
        return [out], [found]

    return run


def two(net: nn.Module) -> Part:
    def run(x: Stream, y: Stream) -> tuple[list[Stream], list[Tensor]]:
        out, found = net(x, y, return_attention=True)
        assert torch.allclose(net(x, y).data, out.data, atol=1e-5)
        return [out], [found]

    return run


def pair(net: SelfCoBlock) -> Part:
    def run(x: Stream, y: Stream) -> tuple[list[Stream], list[Tensor]]:
        out, maps = net(x, y, return_attention=True)
        for fused, explicit in zip(net(x, y), out, strict=True):
            assert torch.allclose(fused.data, explicit.data, atol=1e-5)
        if net.order == "joint":  # one softmax over both
            return list(out), [torch.cat([maps["xx"], maps["xy"]], 3), torch.cat([maps["yx"], maps["yy"]], 3)]
        return list(out), [maps["xx"], maps["yy"], maps["xy"], maps["yx"]]

    return run


STACKS: dict[str, tuple[Callable[[Positions], nn.Module], Callable[..., Part]]] = {
    "encoder-pre": (lambda kind: TransformerEncoder(DIM, heads=2, positions=kind), one),
    "encoder-post": (lambda kind: TransformerEncoder(DIM, heads=2, norm="post", positions=kind), one),
    "encoder-agg": (lambda kind: TransformerEncoder(DIM, heads=2, agg=True, positions=kind), one),
    "decoder": (lambda kind: TransformerDecoder(DIM, heads=2, causal=False, positions=kind), two),
    "decoder-post": (lambda kind: TransformerDecoder(DIM, heads=2, causal=False, norm="post", positions=kind), two),
    "cross": (lambda kind: CrossModalTransformer(DIM, heads=2, positions=kind), two),
    "cross-updated": (lambda kind: CrossModalTransformer(DIM, heads=2, update_keys=True, positions=kind), two),
    **{
        order: (lambda kind, order=order: SelfCoBlock(DIM, order=order, heads=2, positions=kind), pair)
        for order in ORDERS
    },
    "translator": (lambda kind: SetTranslator(DIM), one),
}
NEVER = {("relative", order) for order in ORDERS} | {(k, "translator") for k in ("sinusoidal", "learned", "relative")}
CASES = [(k, n) for k in ("sinusoidal", "learned", "relative", "none") for n in STACKS if (k, n) not in NEVER]


def build(positions: Positions, name: str) -> tuple[nn.Module, Part]:
    torch.manual_seed(0)
    make, wrap = STACKS[name]
    net = make(positions).eval()
    return net, wrap(net)


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Part]:
    kind, name = request.param
    net, run = build(kind, name)
    return kind, net, run


@torch.no_grad()
def test_a_padding_changes_nothing(case: tuple[str, nn.Module, Part]) -> None:
    _, _, run = case
    x, y = stream(5, 2.0), stream(9, 4.0, seed=1)
    outs, maps = run(x, y)
    for long_x, long_y in ((padded(x, 3), y), (x, padded(y, 2)), (padded(x, 1), padded(y, 4))):
        for out, long in zip(outs, run(long_x, long_y)[0], strict=True):
            steps = out.data.shape[1]
            assert torch.allclose(long.data[:, :steps], out.data, atol=1e-5)
            assert not long.data[:, steps:].any()
            assert torch.equal(long.mask[:, :steps], out.mask)
            assert long.rate == out.rate
    assert all(torch.isfinite(m).all() for m in maps)


@torch.no_grad()
def test_b_rows_of_maps_sum_to_one_or_to_nothing(case: tuple[str, nn.Module, Part]) -> None:
    _, _, run = case
    x, y = padded(stream(5, 2.0), 2), padded(stream(9, 4.0, seed=1), 1)
    outs, maps = run(x, y)
    for found in maps:
        rows = found.sum(-1)
        mask = next(o.mask for o in outs if o.mask.shape[1] in (found.shape[-2], found.shape[-2] - 1))
        if found.shape[-2] > mask.shape[1]:
            mask = nn.functional.pad(mask, (1, 0), value=True)  # the AGG token
        mask = mask.reshape(len(mask), *[1] * (rows.ndim - 2), -1).expand_as(rows)
        assert torch.allclose(rows[mask], torch.ones(()), atol=1e-5)
        assert not rows[~mask].any()


def test_c_a_missing_modality_gives_finite_numbers_and_gradients(case: tuple[str, nn.Module, Part]) -> None:
    _, net, run = case
    x, y = stream(5, 2.0), stream(9, 4.0, seed=1)
    for a, b in ((missing(x), y), (x, missing(y)), (missing(x), missing(y))):
        outs, _ = run(a, b)
        for out in outs:
            assert torch.isfinite(out.data).all()
            assert not out.data[~out.mask].any()
        net.zero_grad()
        sum(out.data.square().sum() for out in outs).backward()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@torch.no_grad()
def test_d_without_positions_order_does_not_matter(case: tuple[str, nn.Module, Part]) -> None:
    kind, _, run = case
    x, y = stream(5, 2.0), stream(9, 4.0, seed=1)
    first, second = torch.tensor([2, 0, 4, 1, 3]), torch.tensor([8, 1, 0, 3, 2, 7, 6, 4, 5])
    outs, others = run(x, y)[0], run(turned(x, first), turned(y, second))[0]
    agrees = [
        torch.allclose(turned(out, first if out.data.shape[1] == 5 else second).data, other.data, atol=1e-5)
        for out, other in zip(outs, others, strict=True)
    ]
    assert all(agrees) == (kind == "none")


def test_e_gradients_reach_both_modalities_and_every_parameter(case: tuple[str, nn.Module, Part]) -> None:
    _, net, run = case
    x, y = (s._replace(data=s.data.requires_grad_()) for s in (stream(5, 2.0), stream(9, 4.0, seed=1)))
    out = run(x, y)[0][0]
    weight = random(*out.data.shape, seed=3)
    (out.data * weight).sum().backward()
    assert x.data.grad.any()
    takes_two = len(inspect.signature(net.forward).parameters) > 2 and "y" in inspect.signature(net.forward).parameters
    if takes_two or isinstance(net, TransformerDecoder):
        assert y.data.grad.any()
    if isinstance(net, SelfCoBlock):  # both results, for the parameters of the other side
        (run(x, y)[0][1].data * random(3, 9, DIM, seed=4)).sum().backward()
    for name, value in net.named_parameters():
        assert value.grad is not None, name
        assert value.grad.any(), name


@torch.no_grad()
def test_f_any_two_lengths_and_rates(case: tuple[str, nn.Module, Part]) -> None:
    _, _, run = case
    for steps, rate in ((1, 0.5), (3, 29.97), (17, 100.0)):
        x, y = stream(steps, rate), stream(4, 3.0, seed=1)
        assert run(x, y)[0][0].data.shape == (3, steps, DIM)
        assert run(y, x)[0][0].data.shape == (3, 4, DIM)


@torch.no_grad()
def test_rows_do_not_meet(case: tuple[str, nn.Module, Part]) -> None:
    _, _, run = case
    x, y = padded(stream(5, 2.0), 1), missing(stream(9, 4.0, seed=1))
    order = torch.tensor([2, 0, 1])
    mixed = [s._replace(data=s.data[order], mask=s.mask[order]) for s in (x, y)]
    single = [s._replace(data=s.data[:1], mask=s.mask[:1]) for s in (x, y)]
    for out, other, alone in zip(run(x, y)[0], run(*mixed)[0], run(*single)[0], strict=True):
        assert torch.allclose(other.data, out.data[order], atol=1e-5)
        assert torch.allclose(alone.data, out.data[:1], atol=1e-5)


# ----------------------------------------------------------------------------------------------------- encoder, decoder
@torch.no_grad()
@pytest.mark.parametrize("positions", ["sinusoidal", "relative"])
def test_causal_stacks_do_not_leak(positions: Positions) -> None:
    torch.manual_seed(0)
    memory = stream(7, 3.0, seed=2)
    encoder = TransformerEncoder(DIM, depth=3, heads=2, causal=True, positions=positions).eval()
    decoder = TransformerDecoder(DIM, depth=3, heads=2, positions=positions).eval()
    for run in (encoder, lambda s: decoder(s, memory)):
        x = stream(6, 2.0)
        before = run(x).data
        for at in range(6):
            data = x.data.clone()
            data[:, at] += PUSH
            after = run(x._replace(data=data)).data
            assert torch.allclose(after[:, :at], before[:, :at], atol=1e-5)
            assert not torch.allclose(after[:, at:], before[:, at:], atol=1e-2)
        shorter = run(Stream(x.data[:, :4], x.mask[:, :4], 2.0)).data
        assert torch.allclose(shorter, before[:, :4], atol=1e-5)  # what is still to come is not needed


@torch.no_grad()
def test_shifted_targets_make_a_predictor() -> None:
    torch.manual_seed(0)
    decoder = TransformerDecoder(DIM, heads=2).eval()
    targets, memory = stream(5, 2.0), stream(3, 1.0, seed=1)
    before = decoder(shift_right(targets), memory).data
    data = targets.data.clone()
    data[:, 2] += PUSH
    after = decoder(shift_right(targets._replace(data=data)), memory).data
    assert torch.allclose(after[:, :3], before[:, :3], atol=1e-5)  # prediction of target 2 included
    assert not torch.allclose(after[:, 3], before[:, 3], atol=1e-2)
    gap = shift_right(Stream(torch.ones(1, 4, 2), torch.tensor([[True, False, True, True]]), 1.0))
    assert gap.data[0, :, 0].tolist() == [0, 1, 0, 1]
    assert gap.mask.tolist() == [[True, False, True, True]]
    assert shift_right(gap._replace(data=torch.tensor([[5, 6, 7, 8]]))).data.tolist() == [[0, 5, 0, 7]]


@torch.no_grad()
def test_streams_of_different_rates_share_a_clock() -> None:
    """The same seconds give the same code: a memory at twice the rate, every second step of it unrecorded, is the
    slower memory; read by index it would be another one.
    """
    x, slow = stream(5, 2.0), stream(6, 4.0, seed=1)
    data, mask = torch.zeros(3, 12, DIM), torch.zeros(3, 12, dtype=torch.bool)
    data[:, ::2], mask[:, ::2] = slow.data, True
    fast = Stream(data, mask, 8.0)
    for kind in ("sinusoidal", "learned", "relative"):
        for name in ("decoder", "cross", "cross-updated"):
            net, _ = build(kind, name)
            expected = net(x, slow).data
            assert torch.allclose(net(x, fast).data, expected, atol=1e-5)
            assert not torch.allclose(net(x, slow._replace(rate=1.0)).data, expected, atol=1e-5)
    for order in ORDERS:
        net, _ = build("sinusoidal", order)
        (out, other), (expected, slower) = net(x, fast), net(x, slow)
        assert torch.allclose(out.data, expected.data, atol=1e-5)
        assert torch.allclose(other.data[:, ::2], slower.data, atol=1e-5)
        assert (other.rate, slower.rate) == (8.0, 4.0)


@torch.no_grad()
def test_the_agg_token_reads_the_clip_and_nothing_else() -> None:
    torch.manual_seed(0)
    net = TransformerEncoder(DIM, features=5, heads=2, agg=True, positions="relative").eval()
    x = missing(stream(4, 2.0, dim=5))
    out, token = net.read(x)
    assert torch.equal(out.data, net(x).data)
    assert token.shape == (3, DIM)
    assert not token[1].any()
    assert torch.allclose(net.read(padded(x, 3))[1], token, atol=1e-5)
    assert not torch.allclose(net.read(x._replace(data=x.data + random(*x.data.shape, seed=5)))[1][0], token[0])
    assert net(x, return_attention=True)[1].shape == (3, 2, 2, 5, 5)
    pairs = torch.eye(4, dtype=torch.bool)[None]
    alone = net(x, pairs=pairs, return_attention=True)[1][0, :, :, 1:, 1:]
    assert not alone[..., ~pairs[0]].any()
    with pytest.raises(ConfigError, match="AGG"):
        TransformerEncoder(DIM).read(stream(4, 2.0))
    with pytest.raises(ConfigError, match="causal"):
        TransformerEncoder(DIM, agg=True, causal=True)


@torch.no_grad()
def test_a_window_of_seconds_bounds_what_a_cross_modal_query_sees() -> None:
    torch.manual_seed(0)
    net = CrossModalTransformer(DIM, depth=3, heads=2).eval()  # keys stay as they came: depth does not widen the window
    x, y = stream(6, 2.0), stream(24, 8.0, seed=1)
    pairs = window_pairs(x, y, past=0.25, future=0.25)
    before, found = net(x, y, pairs=pairs, return_attention=True)
    assert not found[..., ~pairs[0]].any()
    data = y.data.clone()
    data[:, 8] += PUSH  # second 1.0
    moved = (net(x, y._replace(data=data), pairs=pairs).data - before.data).abs().amax((0, 2)) > 1e-4
    assert moved.tolist() == [False, False, True, False, False, False]
    decoder = TransformerDecoder(DIM, depth=1, heads=2, causal=False).eval()
    assert not decoder(x, y, pairs=pairs, return_attention=True)[1][..., ~pairs[0]].any()


@torch.no_grad()
def test_fixed_keys_and_updated_keys() -> None:
    """Fixed: a step of y outside the window has no part. Updated: it has told the others what it knows."""
    torch.manual_seed(0)
    x, y = stream(2, 2.0), stream(4, 4.0, seed=1)
    only_first = torch.tensor([[True, False, False, False]] * 2)[None]
    for update in (False, True):
        net = CrossModalTransformer(DIM, heads=2, update_keys=update).eval()
        data = y.data.clone()
        data[:, 3] += PUSH
        same = torch.allclose(
            net(x, y, pairs=only_first).data, net(x, y._replace(data=data), pairs=only_first).data, atol=1e-5
        )
        assert same != update


@torch.no_grad()
def test_widths_of_inputs_may_differ() -> None:
    torch.manual_seed(0)
    x, y = stream(3, 2.0, dim=5), stream(4, 4.0, dim=7, seed=1)
    assert TransformerDecoder(DIM, features=5, memory_features=7).eval()(x, y).data.shape == (3, 3, DIM)
    assert CrossModalTransformer(DIM, features=5, context_features=7).eval()(x, y).data.shape == (3, 3, DIM)
    for part in (TransformerDecoder(DIM), CrossModalTransformer(DIM), SelfCoBlock(DIM)):
        with pytest.raises(BatchError, match=r"features \[B, T, 8\]"):
            part(x, y)
    with pytest.raises(BatchError):
        CrossModalTransformer(DIM)(stream(3, 2.0), stream(3, 2.0, batch=2))
    with pytest.raises(BatchError, match="one batch"):
        SelfCoBlock(DIM)(stream(3, 2.0), stream(3, 2.0, batch=2))
    layer = TransformerLayer(DIM, cross=True)
    with pytest.raises(BatchError, match=r"layer needs \[B, T, 8\]"):
        layer(x.data, y.data)
    for context in (None, y.data):
        with pytest.raises(BatchError, match=r"context \[B, T, 8\]"):
            layer(stream(3, 2.0).data, context)
    for wrong in ({"norm": "both"}, {"positions": "index"}, {"depth": 0}, {"heads": 3}):
        with pytest.raises(ConfigError):
            TransformerEncoder(DIM, **wrong)
    with pytest.raises(ConfigError, match="context"):
        TransformerLayer(DIM, context_dim=5)


@torch.no_grad()
def test_dropout_in_training_only() -> None:
    torch.manual_seed(0)
    net, x = TransformerEncoder(DIM, dropout=0.3), stream(4, 2.0)
    assert not torch.allclose(net(x).data, net(x).data)
    net.eval()
    assert torch.equal(net(x).data, net(x).data)
