"""Tokens to features: garbage in padding is never read, whatever number it is; what a segment of characters is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from avcl.data.tokens import text_stream
from avcl.encoders.text import CharConv, SentenceEmbedding, TextRecurrent, TextTransformer, TokenTable
from avcl.errors import BatchError, ConfigError
from avcl.types import Stream

BUILD = {
    "transformer": lambda: TextTransformer(256, dim=16, depth=2, heads=2),
    "relative": lambda: TextTransformer(256, dim=16, depth=1, heads=2, positions="relative"),
    "gru": lambda: TextRecurrent(256, width=8, hidden=6),
    "lstm": lambda: TextRecurrent(256, width=8, hidden=6, cell="lstm", bidirectional=False),
    "char": lambda: CharConv(dim=12, width=8, stride=3),
}


def captions(*texts: str, fill: int = 0) -> Stream:
    """Texts side by side; behind the end stands ``fill``."""
    streams = [text_stream(t) for t in texts]
    longest = max(s.data.shape[1] for s in streams)
    data, mask = torch.full((len(texts), longest), fill), torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, s in enumerate(streams):
        data[row, : s.data.shape[1]], mask[row, : s.data.shape[1]] = s.data[0], s.mask[0]
    return Stream(torch.where(mask, data, fill), mask, 1.0)


@pytest.mark.parametrize("name", list(BUILD))
@pytest.mark.parametrize("fill", [-1, 7, 10**9])
@torch.no_grad()
def test_numbers_behind_the_end_are_never_looked_up(name: str, fill: int) -> None:
    torch.manual_seed(0)
    net = BUILD[name]().eval()
    texts = ("a dog barks", "rain", "")
    out, noisy = net(captions(*texts)), net(captions(*texts, fill=fill))
    assert torch.equal(out.data, noisy.data)
    for row, text in enumerate(texts):
        alone = net(captions(text))
        steps = min(alone.data.shape[1], out.data.shape[1])
        assert torch.allclose(out.data[row, :steps], alone.data[0, :steps], atol=1e-5)
    assert out.data.shape[2] == net.dim
    assert float(out.data[~out.mask].abs().sum()) == 0


@pytest.mark.parametrize("name", list(BUILD))
@torch.no_grad()
def test_the_order_of_tokens_matters(name: str) -> None:
    torch.manual_seed(0)
    net = BUILD[name]().eval()
    out = net(captions("dog bites man", "man bites dog"))
    sentences = out.data.sum(1)
    assert float((sentences[0] - sentences[1]).norm() / sentences[0].norm()) > 1e-3


@torch.no_grad()
def test_segments_of_characters_by_hand() -> None:
    net = CharConv(256, dim=3, width=2, widths=(1,), stride=2, highways=0)
    table = torch.zeros(256, 2)
    table[1], table[2], table[3] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([-5.0, 1.0])
    net.table.table.weight.copy_(table)
    net.convs[0].weight.copy_(torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]], [[1.0], [1.0]]]))
    net.convs[0].bias.zero_()
    net.mix.weight.copy_(torch.eye(3))
    net.mix.bias.zero_()
    out = net(Stream(torch.tensor([[1, 2, 3, 9, 2]]), torch.tensor([[True, True, True, False, True]]), 10.0))
    assert out.rate == 5.0
    assert out.mask.tolist() == [[True, True, True]]
    assert out.data[0].tolist() == [[1, 2, 2], [0, 1, 0], [0, 2, 2]]


@torch.no_grad()
def test_a_segment_keeps_its_neighbors_words_apart() -> None:
    """A character more than half a filter outside a segment cannot be seen in it."""
    torch.manual_seed(0)
    net = CharConv(dim=8, widths=(1, 3, 5), stride=4).eval()
    a, b = captions("abcdefghijkl"), captions("abcdefghijkX")
    moved = (net(a).data - net(b).data).abs().sum(2)[0]
    assert moved[0] == 0
    assert moved[1] == 0  # characters 4 to 7, and two beyond
    assert moved[2] > 0


@pytest.mark.parametrize("pool", ["mean", "max", "last", "attention"])
def test_a_sentence_is_one_vector_and_learns(pool: str) -> None:
    torch.manual_seed(0)
    net = SentenceEmbedding(TextRecurrent(256, width=8, hidden=6), 5, pool=pool)  # type: ignore[arg-type]
    long = net(captions("a dog barks", "rain on a roof, all night", ""))
    assert long.shape == (3, 5)
    assert torch.allclose(net(captions("a dog barks")), long[:1], atol=1e-6)
    assert float(long[2].detach().abs().sum()) == 0
    long.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_a_toy_of_words_is_learned() -> None:
    """Which of two words stands first, by a Transformer in a hundred steps."""
    torch.manual_seed(0)
    texts = [f"{a} {b}" for a in ("dog", "cat") for b in ("dog", "cat", "hen", "cow")]
    target = torch.tensor([t.startswith("dog") for t in texts]).float()
    net = SentenceEmbedding(TextTransformer(256, dim=16, depth=1, heads=2), 1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(100):
        loss = nn.functional.binary_cross_entropy_with_logits(net(captions(*texts))[:, 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1


def test_settings_and_tokens_are_checked() -> None:
    with pytest.raises(BatchError, match=r"outside 0\.\.9"):
        TokenTable(10, 4)(Stream(torch.tensor([[3, 10]]), torch.ones(1, 2, dtype=torch.bool), 1.0))
    with pytest.raises(BatchError, match="whole numbers"):
        TextRecurrent(10)(Stream(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), 1.0))
    with pytest.raises(BatchError, match="mask"):
        TextRecurrent(10)(Stream(torch.tensor([[1, 2]]), torch.ones(1, 3, dtype=torch.bool), 1.0))
    for build in (
        lambda: TokenTable(0, 4),
        lambda: CharConv(widths=(2,)),
        lambda: CharConv(stride=0),
        lambda: TextTransformer(10, positions="seconds"),  # type: ignore[arg-type]
        lambda: SentenceEmbedding(CharConv(), 4, pool="last"),
        lambda: SentenceEmbedding(CharConv(), 4, pool="sum"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError):
            build()
