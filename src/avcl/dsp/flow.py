"""Motion of pictures: dense optical flow by Lucas and Kanade on a pyramid, and the paths of points along it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from avcl.errors import BatchError

REACH = 5  # pixels of the window over which motion is taken as constant
STIFF = 1e-3  # added to the structure tensor of gray values in [0, 1]: where nothing is to be seen, nothing moves


def lucas_kanade(first: Tensor, second: Tensor, *, levels: int = 3, steps: int = 2) -> Tensor:
    """w with ``second(x + w(x)) ≈ first(x)``: gray pictures [N, H, W] in [0, 1] to flow [N, H, W, 2] (x, y) in pixels.

    On every level of a pyramid, coarse to fine, ``steps`` times: ``w ← w + (Σ g gᵀ + λ)⁻¹ Σ g (first - second(· + w))``
    over windows of five pixels, g the gradient of ``first`` (Lucas and Kanade 1981, Bouguet 2001), an update of at most
    one pixel. Finds motions of up to about 2^levels pixels; of something smaller than its motion it finds part.
    Differentiable; no parameters. BatchError for pictures of other shapes.
    """
    if first.ndim != 3 or first.shape != second.shape or not first.is_floating_point():
        raise BatchError(f"flow needs two gray pictures [N, H, W], not {list(first.shape)} and {list(second.shape)}.")
    pyramid = [(first[:, None], second[:, None])]
    while len(pyramid) < levels and min(pyramid[-1][0].shape[2:]) >= 2 * REACH:
        pyramid.append((F.avg_pool2d(pyramid[-1][0], 2), F.avg_pool2d(pyramid[-1][1], 2)))
    flow = torch.zeros(len(first), 2, *pyramid[-1][0].shape[2:], dtype=first.dtype, device=first.device)
    for a, b in reversed(pyramid):
        if flow.shape[2:] != a.shape[2:]:
            flow = 2 * F.interpolate(flow, a.shape[2:], mode="bilinear", align_corners=False)
        gx, gy = _gradient(a)
        xx, xy, yy = (_window(p) for p in (gx * gx, gx * gy, gy * gy))
        for _ in range(steps):
            gap = a - sample(b, flow.permute(0, 2, 3, 1))
            bx, by = _window(gx * gap), _window(gy * gap)
            determinant = (xx + STIFF) * (yy + STIFF) - xy * xy
            dx = ((yy + STIFF) * bx - xy * by) / determinant
            dy = ((xx + STIFF) * by - xy * bx) / determinant
            flow = flow + torch.cat([dx, dy], 1).clamp(-1, 1)
    return flow.permute(0, 2, 3, 1)


def sample(values: Tensor, flow: Tensor) -> Tensor:
    """``y(x) = values(x + flow(x))``, bilinear, the border repeated: [N, C, H, W] and [N, H, W, 2] to [N, C, H, W]."""
    return at_points(values, grid_of(values) + flow)


def grid_of(values: Tensor) -> Tensor:
    """The pixel positions (x, y) [H, W, 2] of values [N, C, H, W]."""
    height, width = values.shape[2:]
    y, x = (torch.arange(n, device=values.device, dtype=values.dtype) for n in (height, width))
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], 2)


def at_points(values: Tensor, points: Tensor) -> Tensor:
    """Values [N, C, H, W] at pixel positions [N, h, w, 2] (x, y): [N, C, h, w]; bilinear, the border repeated."""
    size = points.new_tensor([values.shape[3], values.shape[2]])
    where = 2 * points / (size - 1).clamp(min=1) - 1
    return F.grid_sample(values, where, mode="bilinear", padding_mode="border", align_corners=True)


def trajectories(flow: Tensor) -> Tensor:
    """Dense trajectories: flows w_t [B, T, H, W, 2] in pixels to the displacements [B, T, H, W, 2] of a point that
    started at each pixel of the first frame.

    ``dP_t = w_t(G_t)``, ``G_{t+1} = G_t + dP_t``, G_0 the grid of pixels; bilinear between them (Zhao et al. 2019).
    """
    points = grid_of(flow[:, 0].permute(0, 3, 1, 2)).expand(len(flow), -1, -1, -1)
    moved = []
    for t in range(flow.shape[1]):
        step = at_points(flow[:, t].permute(0, 3, 1, 2), points).permute(0, 2, 3, 1)
        points = points + step
        moved.append(step)
    return torch.stack(moved, 1)


def _gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return (wide[:, :, 1:-1, 2:] - wide[:, :, 1:-1, :-2]) / 2, (wide[:, :, 2:, 1:-1] - wide[:, :, :-2, 1:-1]) / 2


def _window(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, REACH, stride=1, padding=REACH // 2, count_include_pad=False) * REACH**2
