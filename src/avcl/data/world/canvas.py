"""A block of frames on which shapes are painted by signed distance, in coordinates that move with a body.

Coordinates (u, v) = (right, down) in units of the body; pixel (column, row) has its center at (column + 1/2, row +
1/2). Coverage is ``clip(distance in pixels + 1/2, 0, 1)``, which gives anti-aliasing and sub-pixel motion for
nothing.
"""

from __future__ import annotations

import numpy as np

BLOCK = 8  # frames: small enough that all arrays of a block stay in the processor's cache
EVERYWHERE = (slice(None), slice(None))


def per_frame(values: np.ndarray) -> np.ndarray:
    """[T] as float32 [T,1,1]."""
    return np.asarray(values, np.float32)[:, None, None]


class Canvas:
    """``pixels`` float32 [T,3,H,W] over ``background`` ([3,H,W] or [T,3,H,W]), and ``u``, ``v`` [T,H,W] of every pixel.

    ``center_x``, ``center_y`` [T]: pixel of the origin · ``scale``: pixels per unit · ``roll`` [T]: radians, clockwise.
    """

    def __init__(
        self, background: np.ndarray, center_x: np.ndarray, center_y: np.ndarray, scale: float, roll: np.ndarray
    ) -> None:
        height, width = background.shape[-2:]
        shape = (len(center_x), 3, height, width)
        self.pixels = np.array(np.broadcast_to(background, shape), dtype=np.float32, order="C")
        self.scale = float(scale)
        self.cx, self.cy = np.asarray(center_x, np.float32), np.asarray(center_y, np.float32)
        self.cos, self.sin = np.cos(roll).astype(np.float32), np.sin(roll).astype(np.float32)
        x = (np.arange(width, dtype=np.float32)[None] + 0.5 - self.cx[:, None]) / np.float32(scale)
        y = (np.arange(height, dtype=np.float32)[None] + 0.5 - self.cy[:, None]) / np.float32(scale)
        cos, sin = self.cos[:, None], self.sin[:, None]
        self.u = (cos * x)[:, None] + (sin * y)[:, :, None]
        self.v = (cos * y)[:, :, None] - (sin * x)[:, None]

    def place(self, u: np.ndarray | float, v: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (x, y) of body coordinates [T]."""
        x = self.cx + self.scale * (self.cos * u - self.sin * v)
        y = self.cy + self.scale * (self.sin * u + self.cos * v)
        return x, y

    def patch(self, u: np.ndarray | float, v: np.ndarray | float, half_u: float, half_v: float) -> tuple[slice, slice]:
        """The rows and columns that hold everything within (half_u, half_v) of (u, v) in any frame."""
        x, y = self.place(u, v)
        turned = float(np.abs(self.sin).max())
        reach_x = (half_u + turned * half_v) * self.scale + 1.5
        reach_y = (half_v + turned * half_u) * self.scale + 1.5
        height, width = self.pixels.shape[2:]
        top, bottom = int(np.clip(y.min() - reach_y, 0, height - 1)), int(np.clip(y.max() + reach_y, 1, height))
        left, right = int(np.clip(x.min() - reach_x, 0, width - 1)), int(np.clip(x.max() + reach_x, 1, width))
        return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))

    def at(self, where: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        """(u, v) of a patch."""
        return self.u[:, where[0], where[1]], self.v[:, where[0], where[1]]

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """Coverage of pixels by a shape: ``distance`` is in units, positive inside."""
        return np.clip(distance * self.scale + 0.5, 0, 1)

    def paint(self, alpha: np.ndarray, color: np.ndarray, where: tuple[slice, slice] = EVERYWHERE) -> None:
        """Blend a color [3], or one per pixel [T,3,h,w], over a patch with weights [T,h,w]."""
        view = self.pixels[:, :, where[0], where[1]]
        change = (color.reshape(1, 3, 1, 1) if color.ndim == 1 else color) - view
        change *= alpha[:, None]
        view += change

    def whole(self, alpha: np.ndarray, where: tuple[slice, slice]) -> np.ndarray:
        """Weights of a patch as weights of the whole picture [T,H,W]."""
        out = np.zeros(self.u.shape, np.float32)
        out[:, where[0], where[1]] = alpha
        return out

    def box(
        self, u: np.ndarray | float, v: np.ndarray | float, half_u: np.ndarray | float, half_v: np.ndarray | float
    ) -> np.ndarray:
        """float32 [T,4] (x0, y0, x1, y1) around an ellipse of body coordinates, cut at the picture's edge."""
        x, y = self.place(u, v)
        reach_x = self.scale * np.hypot(half_u * self.cos, half_v * self.sin)
        reach_y = self.scale * np.hypot(half_u * self.sin, half_v * self.cos)
        height, width = self.pixels.shape[2:]
        edges = [np.clip(x - reach_x, 0, width), np.clip(y - reach_y, 0, height)]
        edges += [np.clip(x + reach_x, 0, width), np.clip(y + reach_y, 0, height)]
        return np.stack(edges, axis=1).astype(np.float32)

    def finished(self, grain: np.ndarray | None) -> np.ndarray:
        """uint8 [T,H,W,3], with the camera's noise ``grain`` [T,1,H,W] added."""
        if grain is not None:
            self.pixels += grain
        return np.clip(self.pixels, 0, 255, out=self.pixels).astype(np.uint8).transpose(0, 2, 3, 1)


def capsule(
    u: np.ndarray,
    v: np.ndarray,
    start: tuple[np.ndarray, np.ndarray],
    end: tuple[np.ndarray, np.ndarray],
    radius: float,
) -> np.ndarray:
    """Distance [T,h,w] (positive inside) to a line of half thickness ``radius`` from ``start`` to ``end``, each (u
    [T], v [T])."""
    au, av = per_frame(start[0]), per_frame(start[1])
    du, dv = per_frame(end[0]) - au, per_frame(end[1]) - av
    along = ((u - au) * du + (v - av) * dv) / (du * du + dv * dv + 1e-9)
    along = np.clip(along, 0, 1)
    return radius - np.hypot(u - au - along * du, v - av - along * dv)
