"""Text as steps: bytes, subwords or words in, features out; and one vector for a whole sentence.

A token is a number below ``vocabulary``: 256 for bytes (``avcl.data.tokens.text_stream``), or the size of a word or
subword table. Words are never hashed: what is not in a table has no number.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from avcl.encoders.checks import at_least_one, looked_up, one_of, recorded_tokens
from avcl.encoders.recurrent import Cell, Recurrent
from avcl.errors import ConfigError
from avcl.nn.aggregation import AttentionPool
from avcl.nn.pooling import masked_max, masked_mean, strided_mask
from avcl.nn.transformer import TransformerEncoder
from avcl.types import Stream

# The Transformer's positions are seconds. So many tokens make one there, whatever rate the stream bears, which puts
# neighboring tokens one bucket apart and spreads the wavelengths over 1 to 800 tokens.
TOKENS_A_SECOND = 8.0


class TextTransformer(nn.Module):
    """``TransformerEncoder(table[token] + position)``: tokens [B, T] to [B, T, dim]; rate and mask stay.

    Positions count tokens: "sinusoidal" or "relative" (a bias per head and distance, T5). Paper: Vaswani
    et al. 2017. Pitfall: cost grows with T², and bytes are about five times as many as words.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
        positions: Literal["sinusoidal", "relative"] = "sinusoidal",
        dropout: float = 0.0,
    ):
        super().__init__()
        one_of(positions, ("sinusoidal", "relative"), "positions", "TextTransformer")
        self.dim = dim
        self.table = TokenTable(vocabulary, dim)
        self.encoder = TransformerEncoder(dim, depth=depth, heads=heads, positions=positions, dropout=dropout)

    def forward(self, stream: Stream) -> Stream:
        embedded = self.table(stream)._replace(rate=TOKENS_A_SECOND)
        return self.encoder(embedded)._replace(rate=stream.rate)


class TextRecurrent(nn.Module):
    """``Recurrent(table[token])``: tokens [B, T] to [B, T, dim]; ``width`` is that of the table.

    The char-GRU and word-GRU of caption retrieval (256 units and up); ``last`` is the sentence's final state.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int = 64,
        hidden: int = 64,
        depth: int = 1,
        cell: Cell = "gru",
        bidirectional: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.table = TokenTable(vocabulary, width)
        self.encoder = Recurrent(
            width, hidden=hidden, depth=depth, cell=cell, bidirectional=bidirectional, dropout=dropout
        )
        self.dim = self.encoder.dim

    def forward(self, stream: Stream) -> Stream:
        return self.encoder(self.table(stream))

    def last(self, sequence: Stream) -> Tensor:
        """As ``Recurrent.last``: [B, T, dim] to [B, dim]."""
        return self.encoder.last(sequence)


class CharConv(nn.Module):
    """Characters to segments: tokens [B, T] to [B, ⌈T / stride⌉, dim], at rate / stride (Lee et al. 2017).

    Convolutions of every width in ``widths`` read 1, 2, 3, ... neighboring characters; ReLU; the largest value among
    the ``stride`` characters of a segment; then ``highways`` layers ``g σ(W x) + (1 - g) x``. What looks like a
    morpheme or a word becomes one step, without a table of words. A segment is recorded where any of its characters is.
    """

    def __init__(
        self,
        vocabulary: int = 256,
        *,
        dim: int = 64,
        width: int = 32,
        widths: tuple[int, ...] = (1, 3, 5, 7),
        stride: int = 4,
        highways: int = 1,
    ):
        super().__init__()
        at_least_one({"dim": dim, "stride": stride, "widths": len(widths)}, "CharConv")
        if any(w % 2 == 0 for w in widths):
            raise ConfigError(f"CharConv: widths {widths} must be odd to read both sides alike.")
        self.dim, self.stride = dim, stride
        self.table = TokenTable(vocabulary, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, dim, w, padding=w // 2) for w in widths)
        self.mix = nn.Linear(dim * len(widths), dim)
        self.highways = nn.ModuleList(nn.Linear(dim, 2 * dim) for _ in range(highways))

    def forward(self, stream: Stream) -> Stream:
        x = self.table(stream).data.transpose(1, 2)
        # Behind a ReLU 0 is the least: blanking what was not recorded keeps it out of every maximum.
        x = torch.cat([torch.relu(conv(x)) for conv in self.convs], 1) * stream.mask[:, None]
        short = -stream.mask.shape[1] % self.stride
        x = nn.functional.max_pool1d(nn.functional.pad(x, (0, short)), self.stride)
        mask = strided_mask(stream.mask, self.stride)
        x = self.mix(x.transpose(1, 2))
        for highway in self.highways:
            gate, new = highway(x).chunk(2, 2)
            gate = torch.sigmoid(gate)
            x = gate * torch.relu(new) + (1 - gate) * x
        return Stream(x * mask[:, :, None], mask, stream.rate / self.stride)


class SentenceEmbedding(nn.Module):
    """``W pool(encoder(tokens))``: a whole text [B, T] to one vector [B, dim]; zeros where there is no text.

    ``encoder``: any that takes tokens (with attribute ``dim``) · ``pool``: "mean", "max", "last" (the final state of a
    ``TextRecurrent``), or "attention" (``avcl.nn.aggregation.AttentionPool``).
    """

    def __init__(self, encoder: nn.Module, dim: int, *, pool: Literal["mean", "max", "last", "attention"] = "mean"):
        super().__init__()
        one_of(pool, ("mean", "max", "last", "attention"), "pool", "SentenceEmbedding")
        if pool == "last" and not isinstance(encoder, TextRecurrent):
            raise ConfigError(f"SentenceEmbedding: {type(encoder).__name__} has no last state; TextRecurrent has.")
        self.encoder, self.pool, self.dim = encoder, pool, dim
        width = int(encoder.dim)  # type: ignore[arg-type]
        self.attention = AttentionPool(width) if pool == "attention" else None
        self.out = nn.Linear(width, dim, bias=False)

    def forward(self, stream: Stream) -> Tensor:
        steps = self.encoder(stream)
        if self.attention is not None:
            return self.out(self.attention(steps.data, steps.mask))
        if isinstance(self.encoder, TextRecurrent) and self.pool == "last":
            return self.out(self.encoder.last(steps))
        pool = masked_mean if self.pool == "mean" else masked_max
        return self.out(pool(steps.data, steps.mask))


class TokenTable(nn.Module):
    """``table[token]``: tokens [B, T] to [B, T, dim], zeros where nothing was recorded (whatever number stands there).

    BatchError for a recorded token outside 0 .. vocabulary - 1.
    """

    def __init__(self, vocabulary: int, dim: int):
        super().__init__()
        at_least_one({"vocabulary": vocabulary, "dim": dim}, "TokenTable")
        self.table = nn.Embedding(vocabulary, dim)
        self.dim = dim

    def forward(self, stream: Stream) -> Stream:
        tokens = recorded_tokens(stream, "TokenTable")
        x = looked_up(self.table, tokens, "TokenTable")
        return stream._replace(data=x.masked_fill(~stream.mask[:, :, None], 0))
