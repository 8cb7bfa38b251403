"""Heat maps as pictures and boxes: what is laid over a frame, and what is drawn around."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
LINE = (64, 255, 96)  # RGB of a box
STANDS_OUT = 0.1  # by how much a region must be above the ground of its map


class Box(NamedTuple):
    """``box`` (x0, y0, x1, y1) in pixels, the right and lower edge excluded; ``score``: the largest value inside."""

    box: tuple[int, int, int, int]
    score: float


def boxes_of(heat: Floats, *, least: float) -> list[Box]:
    """A box around each connected region of a map [H, W] that stands out, best first; none where nothing reaches
    ``least``, or is a tenth above the median of the map (its ground).

    A region is what lies above half of the way from the ground to its own peak; of two that touch, the higher counts.
    """
    from scipy.ndimage import label

    found: list[Box] = []
    ground = float(np.median(heat))
    left = np.array(heat, dtype=np.float32)
    while True:
        peak = float(left.max())
        if peak < least or peak < ground + STANDS_OUT:
            return found
        edge = (ground + peak) / 2
        marks, _ = label(heat >= edge)
        where = np.unravel_index(int(left.argmax()), left.shape)
        region = marks == marks[where]
        if (left[region] > -1).all():  # it does not touch one that was taken
            rows, columns = np.nonzero(region)
            corners = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
            found.append(Box(corners, round(peak, 4)))
        left[region] = -1


def overlaid(picture: Pixels, heat: Floats, boxes: list[Box]) -> Pixels:
    """``picture`` [H, W, 3] under ``heat`` [H, W] in [0, 1] (yellow to red, the surer the more opaque), with boxes."""
    h = heat[..., None]
    color = np.concatenate([np.full_like(h, 255.0), 220.0 * (1 - h), np.zeros_like(h)], 2)
    cover = 0.65 * h
    out = np.clip(picture * (1 - cover) + color * cover, 0, 255).astype(np.uint8)
    thick = max(1, round(min(picture.shape[:2]) / 120))
    for (x0, y0, x1, y1), _ in boxes:
        for a, b in ((x0, x0 + thick), (x1 - thick, x1)):
            out[y0:y1, max(0, a) : max(0, b)] = LINE
        for a, b in ((y0, y0 + thick), (y1 - thick, y1)):
            out[max(0, a) : max(0, b), x0:x1] = LINE
    return out


def as_json(boxes: list[Box]) -> list[dict[str, Any]]:
    return [{"box": list(box.box), "score": box.score} for box in boxes]
