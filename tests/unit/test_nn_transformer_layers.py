"""Layers and blocks by hand: one Transformer layer, the orders of self- and co-attention, cross-translation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from transformer_toys import DIM, PUSH, padded, random, stream, turned

from avcl.errors import BatchError, ConfigError
from avcl.nn.attention import FeedForward
from avcl.nn.self_and_co import ORDERS, Order, SelfCoBlock
from avcl.nn.transformer import TransformerEncoder, TransformerLayer
from avcl.nn.translation import SetTranslator


def attention_by_hand(part: nn.Module, x: Tensor, c: Tensor, allowed: Tensor) -> Tensor:
    """One clip: [Tq, D] looks at [Tk, D]; loops over heads and queries."""
    wq, wk, wv = part.inputs.weight.chunk(3)
    bq, bk, bv = part.inputs.bias.chunk(3)
    q, k, v = x @ wq.T + bq, c @ wk.T + bk, c @ wv.T + bv
    size, out = part.dim // part.heads, torch.zeros_like(x)
    for head in range(part.heads):
        at = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            seen = torch.nonzero(allowed[i])[:, 0]
            if len(seen):
                out[i, at] = (k[seen, at] @ q[i, at] / math.sqrt(size)).softmax(0) @ v[seen, at]
    return out @ part.output.weight.T


def feed_by_hand(part: nn.Module, x: Tensor) -> Tensor:
    inner = x @ part.first.weight.T + part.first.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    return inner @ part.second.weight.T + part.second.bias


def normal_by_hand(part: nn.Module, x: Tensor) -> Tensor:
    scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    return scaled * part.weight + part.bias


def shaken(net: nn.Module) -> nn.Module:
    """Gains and shifts away from 1 and 0, so that a forgotten one shows."""
    with torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_one_layer_by_hand(norm: str) -> None:
    torch.manual_seed(0)
    layer = shaken(TransformerLayer(DIM, heads=2, cross=True, norm=norm))
    x, c, mask, context_mask = random(1, 4, DIM), random(1, 6, DIM, seed=1), random(1, 4) > -1, random(1, 6) > 0
    found, _, _ = layer(x, c, mask=mask, context_mask=context_mask)
    a, b, last = layer.norms
    own, other = mask[0].expand(4, 4), context_mask[0].expand(4, 6)
    h = x[0]
    if norm == "pre":
        n = normal_by_hand(a, h)
        h = h + attention_by_hand(layer.own, n, n, own)
        h = h + attention_by_hand(layer.cross, normal_by_hand(b, h), normal_by_hand(layer.context_norm, c[0]), other)
        h = h + feed_by_hand(layer.feed, normal_by_hand(last, h))
    else:
        h = normal_by_hand(a, h + attention_by_hand(layer.own, h, h, own))
        h = normal_by_hand(b, h + attention_by_hand(layer.cross, h, c[0], other))
        h = normal_by_hand(last, h + feed_by_hand(layer.feed, h))
    assert torch.allclose(found[0][mask[0]], h[mask[0]], atol=1e-5)


@torch.no_grad()
def test_a_post_norm_encoder_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours = shaken(TransformerEncoder(DIM, depth=1, heads=2, norm="post", positions="none"))
    theirs = nn.TransformerEncoderLayer(DIM, 2, 4 * DIM, 0.0, activation="gelu", batch_first=True).eval()
    layer = ours.layers[0]
    values = {
        "self_attn.in_proj_weight": layer.own.inputs.weight,
        "self_attn.in_proj_bias": layer.own.inputs.bias,
        "self_attn.out_proj.weight": layer.own.output.weight,
        "self_attn.out_proj.bias": torch.zeros(DIM),
    }
    for to, part in (("linear1", layer.feed.first), ("linear2", layer.feed.second)):
        values |= {f"{to}.weight": part.weight, f"{to}.bias": part.bias}
    for to, part in (("norm1", layer.norms[0]), ("norm2", layer.norms[1])):
        values |= {f"{to}.weight": part.weight, f"{to}.bias": part.bias}
    theirs.load_state_dict(values)
    x = padded(stream(5, 2.0), 2, garbage=7.0)
    expected = theirs(x.data, src_key_padding_mask=~x.mask)
    assert torch.allclose(ours(x).data[x.mask], expected[x.mask], atol=1e-5)


@torch.no_grad()
def test_feed_forward_by_hand() -> None:
    torch.manual_seed(0)
    part, x = FeedForward(3, activation="relu"), random(2, 4, 3)
    assert part.first.out_features == 12
    hidden = (x @ part.first.weight.T + part.first.bias).clamp(min=0)
    assert torch.allclose(part(x), hidden @ part.second.weight.T + part.second.bias, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- self and co
@torch.no_grad()
@pytest.mark.parametrize("order", ORDERS)
def test_orders_by_hand(order: Order) -> None:
    torch.manual_seed(0)
    net = shaken(SelfCoBlock(DIM, order=order, heads=2, positions="none"))
    x, y = stream(3, 2.0, batch=1), stream(5, 4.0, batch=1, seed=1)
    a, b, see = x.data[0], y.data[0], net.attention
    norms = iter(net.norms)

    def look(part: str, q: Tensor, c: Tensor) -> Tensor:
        return attention_by_hand(see[part], q, c, torch.ones(len(q), len(c)))

    if order == "joint":
        both = torch.cat([a + net.which.table[0], b + net.which.table[1]])
        saw = look("joint", both, both)
        a, b = (normal_by_hand(next(norms), part) for part in (both + saw).split([3, 5]))
    elif order == "parallel_sum":
        a, b = (
            normal_by_hand(next(norms), a + look("x-intra", a, a) + look("x-inter", a, b)),
            normal_by_hand(next(norms), b + look("y-intra", b, b) + look("y-inter", b, a)),
        )
    else:
        for kind in ("intra", "inter") if order == "self_then_co" else ("inter", "intra"):
            to_a, to_b = (a, b) if kind == "intra" else (b, a)
            a, b = (
                normal_by_hand(next(norms), a + look(f"x-{kind}", a, to_a)),
                normal_by_hand(next(norms), b + look(f"y-{kind}", b, to_b)),
            )
    expected = [normal_by_hand(n, s + feed_by_hand(f, s)) for n, f, s in zip(net.last, net.feeds, (a, b), strict=True)]
    for out, by_hand in zip(net(x, y), expected, strict=True):
        assert torch.allclose(out.data[0], by_hand, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kept", ["intra", "inter"])
def test_intra_and_inter_can_be_turned_off(order: Order, kept: str) -> None:
    torch.manual_seed(0)
    net = SelfCoBlock(DIM, order=order, heads=2, intra=kept == "intra", inter=kept == "inter").eval()
    x, y = stream(3, 2.0), stream(5, 4.0, seed=1)
    outs, maps = net(x, y, return_attention=True)
    assert set(maps) == ({"xx", "yy"} if kept == "intra" else {"xy", "yx"})
    for found in maps.values():
        assert torch.allclose(found.sum(3), torch.ones(()), atol=1e-5)
    moved = net(x, y._replace(data=y.data + random(3, 5, DIM, seed=4)))[0].data
    assert torch.allclose(moved, outs[0].data, atol=1e-5) == (kept == "intra")  # does x hear of y?
    data = x.data.clone()
    data[:, 2] += PUSH
    moved = net(x._replace(data=data), y)[0].data[:, :2]
    assert torch.allclose(moved, outs[0].data[:, :2], atol=1e-5) == (kept == "inter")  # does x hear of x?


def test_a_block_of_nothing_is_refused() -> None:
    for wrong in ({"intra": False, "inter": False}, {"order": "co"}, {"positions": "relative"}):
        with pytest.raises(ConfigError):
            SelfCoBlock(DIM, **wrong)


# ---------------------------------------------------------------------------------------------------- cross-translation
@torch.no_grad()
def test_a_translator_maps_sets_to_sets() -> None:
    torch.manual_seed(0)
    x = stream(4, 1.0)
    net, single = SetTranslator(DIM).eval(), SetTranslator(DIM, context=False).eval()
    assert float(net(x).data.min()) == 0  # the last ReLU
    data = x.data.clone()
    data[:, 3] += random(DIM, seed=9)
    assert not torch.allclose(net(x._replace(data=data)).data[:, :3], net(x).data[:, :3], atol=1e-4)
    assert torch.allclose(single(x._replace(data=data)).data[:, :3], single(x).data[:, :3], atol=1e-5)
    code, order = random(1, 4, DIM, seed=2), torch.tensor([1, 0, 3, 2])
    with_code = net(x, positions=code).data
    assert not torch.allclose(net(turned(x, order), positions=code).data, with_code[:, order], atol=1e-4)
    assert torch.allclose(net(turned(x, order), positions=code[:, order]).data, with_code[:, order], atol=1e-5)
    with pytest.raises(BatchError, match="positions"):
        net(x, positions=code[:, :3])
    with pytest.raises(ConfigError, match="map"):
        single(x, return_attention=True)
    with pytest.raises(ConfigError):
        SetTranslator(DIM, depth=0)


def test_the_translator_of_the_paper() -> None:
    net = SetTranslator.paper()
    assert len(net.layers) == 2
    # Per layer: q, k, v with biases, the output without; 512-2048-512 with biases; two layer norms.
    layer = 3 * (512 * 512 + 512) + 512 * 512 + 512 * 2048 + 2048 + 2048 * 512 + 512 + 4 * 512
    assert sum(p.numel() for p in net.parameters()) == 2 * layer
