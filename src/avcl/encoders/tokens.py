"""Token sequences: text as bytes, phonemes, notes."""

from __future__ import annotations

from torch import nn

from avcl.encoders.norm import ChannelNorm
from avcl.types import Stream


class TokenConv(nn.Module):
    """Embedding table, then ``depth`` residual convolutions over time: tokens [B, T] to [B, T, dim].

    ``vocabulary``: number of different tokens (256 for bytes). Rate and mask stay as they are.
    """

    def __init__(self, vocabulary: int, *, dim: int, depth: int = 2, width: int = 5):
        super().__init__()
        self.table = nn.Embedding(vocabulary, dim)
        self.norms = nn.ModuleList(ChannelNorm(dim) for _ in range(depth))
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, width, padding=width // 2) for _ in range(depth))
        self.dim = dim

    def forward(self, stream: Stream) -> Stream:
        mask = stream.mask[:, None]  # [B, 1, T]
        x = self.table(stream.data).transpose(1, 2) * mask
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = (x + conv(nn.functional.gelu(norm(x)) * mask)) * mask
        return stream._replace(data=x.transpose(1, 2))
