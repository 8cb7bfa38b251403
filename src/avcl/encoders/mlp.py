"""Multi-layer perceptron on feature streams: every step for itself."""

from __future__ import annotations

from torch import Tensor, nn

from avcl.types import Stream


class MLP(nn.Module):
    """``depth`` hidden layers of ``hidden`` units, GELU, layer norm and dropout between: [B, T, D] to [B, T, dim].

    A feature map [B, T, H, W, D] is averaged over its cells first. Rate and mask stay as they are;
    steps that were not recorded are zeros.
    """

    def __init__(self, features: int, *, hidden: int, dim: int, depth: int = 1, dropout: float = 0.0):
        super().__init__()
        layers: list[nn.Module] = [nn.LayerNorm(features)]
        width = features
        for _ in range(depth):
            layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout)]
            width = hidden
        self.net = nn.Sequential(*layers, nn.Linear(width, dim))
        self.dim = dim

    def forward(self, stream: Stream) -> Stream:
        return stream._replace(data=self.net(_flat(stream.data)) * stream.mask[:, :, None])


def _flat(data: Tensor) -> Tensor:
    return data.mean((2, 3)) if data.ndim == 5 else data
