"""Key points of a body: convolutions along the graph of its joints and along time (ST-GCN, Yan et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from avcl.encoders.checks import at_least_one, recorded
from avcl.encoders.norm import ChannelNorm
from avcl.errors import ConfigError
from avcl.nn.pooling import strided_mask
from avcl.types import Stream

Edges = Sequence[tuple[int, int]]


class SkeletonConv(nn.Module):
    """Key points [B, T, points · channels] to [B, T', dim]: a joint is seen with its neighbors, and over time.

    Each block: ``Σ_k (A_k ⊙ M_k) X W_k`` over three parts k of the neighbors (as far from ``center`` as the joint
    itself, nearer, farther), A_k with columns that sum to 1 and M_k learned, then a convolution of ``reach`` steps with
    its stride, each with norm and GELU, plus the input. At the end all joints side by side to one vector.

    ``edges`` pairs of joints (empty: a star around ``center``) · ``widths`` of the blocks · ``strides`` over time. A
    step is recorded where any of its frames is. Foley Music (Gan et al. 2020) takes the mean over joints: which hand
    it was is lost there. Pitfall: coordinates want one scale for all clips; relative to the center they forget where
    the body stands.
    """

    def __init__(
        self,
        points: int,
        *,
        channels: int = 2,
        edges: Edges = (),
        center: int = 0,
        widths: Sequence[int] = (32, 64, 64),
        strides: Sequence[int] = (1, 1, 1),
        dim: int = 64,
        reach: int = 9,
        dropout: float = 0.0,
    ):
        super().__init__()
        at_least_one({"points": points, "channels": channels, "dim": dim, "reach": reach}, "SkeletonConv")
        if not widths or len(widths) != len(strides) or reach % 2 == 0:
            raise ConfigError(f"SkeletonConv needs a stride for each width and an odd reach, not {strides}, {reach}.")
        self.points, self.channels, self.dim, self.strides = points, channels, dim, tuple(strides)
        star = [(center, i) for i in range(points) if i != center]
        self.register_buffer("parts", partition(points, edges or star, center), persistent=False)
        sizes = list(zip((channels, *widths[:-1]), widths, strict=True))
        self.importance = nn.ParameterList(nn.Parameter(torch.ones(3, points, points)) for _ in sizes)
        self.spatial = nn.ModuleList(nn.Conv2d(a, 3 * b, 1) for a, b in sizes)
        over = [((reach, 1), (s, 1), (reach // 2, 0)) for s in strides]
        self.temporal = nn.ModuleList(nn.Conv2d(b, b, *how) for (_, b), how in zip(sizes, over, strict=True))
        self.residual = nn.ModuleList(nn.Conv2d(a, b, 1, (s, 1)) for (a, b), s in zip(sizes, strides, strict=True))
        self.norms = nn.ModuleList(ChannelNorm(b) for _, b in sizes for _ in range(2))
        self.drop = nn.Dropout(dropout)
        self.last = nn.Linear(widths[-1] * points, dim)

    parts: Tensor

    def forward(self, stream: Stream) -> Stream:
        x = recorded(stream, self.points * self.channels, "SkeletonConv")
        x = x.unflatten(2, (self.points, self.channels)).permute(0, 3, 1, 2)  # [B, C, T, joints]
        mask = stream.mask
        layers = zip(self.importance, self.spatial, self.temporal, self.residual, self.strides, strict=True)
        for i, (importance, spatial, temporal, residual, stride) in enumerate(layers):
            seen = spatial(x).unflatten(1, (3, -1))  # [B, 3, C, T, joints]
            y = torch.einsum("bkctj,kji->bcti", seen, self.parts * importance)
            y = gelu(self.norms[2 * i](y)) * mask[:, None, :, None]
            y = self.drop(self.norms[2 * i + 1](temporal(y)))
            mask = strided_mask(mask, stride)
            x = gelu(y + residual(x)) * mask[:, None, :, None]
        out = self.last(x.permute(0, 2, 3, 1).flatten(2)) * mask[:, :, None]
        rate = stream.rate
        for stride in self.strides:
            rate /= stride
        return Stream(out, mask, rate)


def partition(points: int, edges: Edges, center: int) -> Tensor:
    """[3, points, points]: entry [k, j, i] is the weight of neighbor j for joint i, 1 / (neighbors of i, itself one),
    in part 0 where j is as far from the center as i, 1 where it is nearer, 2 where it is farther.

    ConfigError for an edge of no joint, or a joint that no path leads to.
    """
    if any(not 0 <= joint < points for edge in edges for joint in edge) or not 0 <= center < points:
        raise ConfigError(f"the joints are 0 to {points - 1}, not those of {list(edges)} around {center}.")
    near = torch.eye(points, dtype=torch.bool)
    for a, b in edges:
        near[a, b] = near[b, a] = True
    hops = torch.full((points,), -1)
    front = torch.zeros(points, dtype=torch.bool)
    front[center] = True
    for step in range(points):
        hops[front & (hops < 0)] = step
        front = near[front].any(0)
    if bool((hops < 0).any()):
        lost = int((hops < 0).nonzero()[0])
        raise ConfigError(f"no edge leads to joint {lost}.", hint="Name the edges of all joints.")
    weight = near.float() / near.sum(0)
    difference = hops[:, None] - hops[None]  # of j to i
    return torch.stack([weight * (difference == 0), weight * (difference < 0), weight * (difference > 0)])
