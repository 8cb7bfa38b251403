"""Pictures of moving solids: signed distances in a small patch around each object, all frames at once.

alpha = clip(1/2 - distance) in pixels gives anti-aliased edges and sub-pixel motion; only the patch is composited.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avcl.data.world.motion import Pose
from avcl.data.world.noise import texture, white

_REACH = 1.3  # no shape extends farther than this many radii, stretch included


@dataclass(frozen=True)
class Body:
    """What an object looks like: shape, material, radius (units of 1/64 picture height) and color (RGB, 0..255)."""

    shape: str
    material: str
    radius: float
    color: tuple[float, float, float]


def draw_color(rng: np.random.Generator, value: tuple[float, float], saturation: tuple[float, float]) -> np.ndarray:
    """float32 [3] in 0..255: uniform hue, HSV value and saturation uniform in the given ranges."""
    hue, v, s = rng.random(), rng.uniform(*value), rng.uniform(*saturation)
    ramp = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return (255 * v * (1 - s + s * ramp)).astype(np.float32)


def backdrop(rng: np.random.Generator, size: int, margin: int, floor: float) -> np.ndarray:
    """float32 [size + 2 margin, same, 3]: a colored, textured wall and a floor whose edge is at ``floor`` (units of
    1/64)."""
    full, unit = size + 2 * margin, size / 64
    wall, ground = draw_color(rng, (0.15, 0.45), (0.1, 0.6)), draw_color(rng, (0.1, 0.35), (0.0, 0.5))
    rows = ((np.arange(full) - margin) / unit).astype(np.float32)[:, None, None]
    shade = 1.0 + 0.25 * float(rng.uniform(-1, 1)) * (rows / 32 - 1)
    picture = np.where(rows < floor, wall * shade, ground)
    grain = texture(rng, full, full, unit)[..., None] * float(rng.uniform(2.0, 9.0))
    return (picture + grain).astype(np.float32)


def draw_jitter(rng: np.random.Generator, frames: int, most: int) -> np.ndarray:
    """int [T, 2] camera offsets (y, x), each uniform in [-most, most]."""
    return rng.integers(-most, most + 1, size=(frames, 2))


def stage(background: np.ndarray, size: int, margin: int, jitter: np.ndarray) -> np.ndarray:
    """float32 [T, size, size, 3]: the backdrop as the shaking camera sees it (``jitter`` in pixels, at most
    ``margin``)."""
    canvas = np.empty((len(jitter), size, size, 3), dtype=np.float32)
    for frame, (dy, dx) in zip(canvas, jitter, strict=True):
        frame[:] = background[margin - dy : margin - dy + size, margin - dx : margin - dx + size]
    return canvas


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the outline, in radii, negative inside."""
    if shape == "disk":
        return np.sqrt(u * u + v * v) - 0.9
    if shape == "ring":
        return np.abs(np.sqrt(u * u + v * v) - 0.72) - 0.25
    if shape == "triangle":  # three half planes (exact inside; a mitered corner outside)
        side = 0.8660254 * np.abs(u)
        return np.maximum(side - 0.5 * v, v) - 0.6
    return np.maximum(np.abs(u) - 1.15, np.abs(v) - 0.34)


def _surface(body: Body, u: np.ndarray, v: np.ndarray, sdf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RGB [T,P,P,3] and opacity [T,P,P] (before the outline) of the material at local coordinates."""
    color = np.array(body.color, dtype=np.float32)
    if body.material == "wood":
        band = np.clip(1.5 * np.sin(9.0 * u + 1.2 * np.sin(3.0 * v)), -1, 1)
        return color * (0.72 + 0.28 * band)[..., None], np.ones_like(u)
    if body.material == "metal":
        across = 0.8 * u - 0.6 * v
        shine = np.exp(-((across / 0.28) ** 2))
        return color * (0.6 + 0.1 * across)[..., None] + (190 * shine)[..., None], np.ones_like(u)
    rim = np.clip((sdf + 0.24) * 8.0, 0, 1)
    return color * (0.75 + 0.25 * rim)[..., None] + (70 * rim)[..., None], 0.25 + 0.75 * rim


def paint(
    canvas: np.ndarray,
    body: Body,
    pose: Pose,
    radius: np.ndarray,
    shown: np.ndarray,
    jitter: np.ndarray,
    *,
    masks: bool,
) -> np.ndarray | None:
    """Composite the object onto ``canvas`` [T,S,S,3] in place. ``pose`` in pixels (camera at rest), ``radius`` [T] in
    pixels, ``shown`` [T] bool. Returns the covered pixels bool [T,S,S] where ``masks``."""
    frames, size = canvas.shape[0], canvas.shape[1]
    x, y = pose.x + jitter[:, 1], pose.y + jitter[:, 0]
    patch = int(np.ceil(2 * _REACH * float(radius.max()))) + 2
    left, top = np.floor(x - patch / 2).astype(int), np.floor(y - patch / 2).astype(int)
    grid = np.arange(patch, dtype=np.float32) + 0.5
    scale = 1.0 / radius
    column = ((grid + (left - x)[:, None]) * scale[:, None]).astype(np.float32)[:, None, :]
    row = ((grid + (top - y)[:, None]) * scale[:, None]).astype(np.float32)[:, :, None]
    column = column * pose.stretch.astype(np.float32)[:, None, None]
    row = row / pose.stretch.astype(np.float32)[:, None, None]
    c, s = np.cos(pose.angle).astype(np.float32)[:, None, None], np.sin(pose.angle).astype(np.float32)[:, None, None]
    u, v = c * column + s * row, c * row - s * column
    sdf = _distance(body.shape, u, v)
    color, opacity = _surface(body, u, v, sdf)
    cover = np.clip(0.5 - sdf * radius.astype(np.float32)[:, None, None], 0, 1)
    alpha = (cover * opacity)[..., None]
    color *= alpha
    covered = np.zeros((frames, size, size), dtype=bool) if masks else None
    for t in np.flatnonzero(shown):
        x0, y0 = left[t], top[t]
        a, b = max(-x0, 0), min(size - x0, patch)
        e, f = max(-y0, 0), min(size - y0, patch)
        if a >= b or e >= f:
            continue
        view = canvas[t, y0 + e : y0 + f, x0 + a : x0 + b]
        view *= 1.0 - alpha[t, e:f, a:b]
        view += color[t, e:f, a:b]
        if covered is not None:
            covered[t, y0 + e : y0 + f, x0 + a : x0 + b] = cover[t, e:f, a:b] > 0.5
    return covered


def develop(canvas: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    """uint8 of a canvas in 0..255 after sensor noise of deviation ``noise``; the canvas is used up."""
    if noise > 0:
        canvas += noise * white(rng, canvas.size).reshape(canvas.shape)
    np.clip(canvas, 0, 255, out=canvas)
    return canvas.astype(np.uint8)


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """float32 [T,O,4] (x0, y0, x1, y1; right and bottom exclusive) of masks [T,O,H,W]; zeros where nothing is seen."""
    columns, rows = np.asarray(masks.any(axis=2)), np.asarray(masks.any(axis=3))
    seen = np.asarray(columns.any(axis=-1))
    width, height = columns.shape[-1], rows.shape[-1]
    x0, x1 = columns.argmax(-1), width - columns[..., ::-1].argmax(-1)
    y0, y1 = rows.argmax(-1), height - rows[..., ::-1].argmax(-1)
    return (np.stack([x0, y0, x1, y1], axis=-1) * seen[..., None]).astype(np.float32)
