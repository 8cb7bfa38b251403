"""A small musician seen from the front: head, torso, two arms, an instrument, hands that follow the notes.

Picture coordinates: (u, v) = (right, down), the origin in the middle, 1 = half the picture's shorter side. "Left" and
"right" are sides of the picture; low notes are left. What stands still is painted once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from avcl.data.world.canvas import BLOCK, Canvas, capsule, per_frame
from avcl.data.world.face import Scene
from avcl.data.world.music import HIGHEST, LOWEST, Instrument, Note, hand_path
from avcl.data.world.noise import white

_WHITE_KEYS = {0, 2, 4, 5, 7, 9, 11}
_KEY_TOP, _KEY_BOTTOM, _KEY_HALF = 0.36, 0.80, 0.92
_HAND = 0.105


def _key_places() -> dict[int, float]:
    """u of the middle of every piano key."""
    whites = [p for p in range(LOWEST, HIGHEST + 1) if p % 12 in _WHITE_KEYS]
    width = 2 * _KEY_HALF / len(whites)
    places = {p: -_KEY_HALF + (i + 0.5) * width for i, p in enumerate(whites)}
    for p in range(LOWEST, HIGHEST + 1):
        if p not in places:
            places[p] = places[p - 1] + 0.5 * width
    return places


KEY_PLACES = MappingProxyType(_key_places())
_KEY_WIDTH = KEY_PLACES[LOWEST + 2] - KEY_PLACES[LOWEST]


def _piano_u(along: np.ndarray) -> np.ndarray:
    pitches = np.arange(LOWEST, HIGHEST + 1)
    return np.interp(LOWEST + along * (HIGHEST - LOWEST), pitches, [KEY_PLACES[int(p)] for p in pitches])


def _marimba_u(along: np.ndarray) -> np.ndarray:
    return -0.86 + 1.72 * along


_Points = tuple[np.ndarray, np.ndarray]


def hands_at(instrument: Instrument, notes: Sequence[Note], times: np.ndarray) -> dict[str, _Points]:
    """{"left", "right"}: (u [T], v [T]) of the hand at ``times``."""
    if instrument.two_handed:
        out = {}
        reach = _piano_u if instrument.name == "piano" else _marimba_u
        for hand, rest in (("left", 0.25), ("right", 0.75)):
            path = hand_path(instrument, [n for n in notes if n.hand == hand], times, rest)
            floor, lift = (0.56, 0.20) if instrument.name == "piano" else (0.22, 0.26)
            out[hand] = (reach(path.along), floor - lift * path.height)
        return out
    path = hand_path(instrument, notes, times, 0.5)
    place = path.along
    if instrument.name == "guitar":  # the neck rises to the right of the picture; higher notes lie nearer to the body
        neck = (0.84 - 0.62 * place, 0.02 + 0.30 * place)
        return {"left": (-0.38 + 0.03 * path.stroke, 0.45 + 0.17 * path.stroke), "right": neck}
    neck = (np.full(len(place), 0.10), -0.38 + 0.62 * place)
    return {"left": (-0.50 + 0.40 * path.stroke, 0.56 - 0.05 * path.stroke), "right": neck}


@dataclass(frozen=True)
class Picture:
    """``video`` uint8 [T,H,W,3]; ``boxes`` float32 [T,3,4] of head, left and right hand, ``centers`` float32 [T,3,2]
    (x, y in pixels); ``masks`` bool [T,3,H,W] (None unless asked)."""

    video: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray | None
    centers: np.ndarray


@dataclass(frozen=True)
class Stage:
    """Nuisances: colors and light of the person come from ``scene``; ``wood`` and ``sleeve`` are RGB; ``sway`` [T] in
    units."""

    scene: Scene
    wood: np.ndarray
    sleeve: np.ndarray
    sway: np.ndarray


def draw_stage(rng: np.random.Generator, scene: Scene, times: np.ndarray) -> Stage:
    """Colors and a head that sways at its own pace, drawn alike for every instrument."""
    wood = np.array([rng.uniform(90, 200), rng.uniform(50, 120), rng.uniform(20, 70)], np.float32)
    sleeve = np.clip(scene.shirt + rng.uniform(-50, 50), 10, 245).astype(np.float32)
    sway = 0.03 * np.sin(2 * np.pi * rng.uniform(0.3, 1.0) * times + rng.uniform(0, 2 * np.pi))
    return Stage(scene, wood, sleeve, sway.astype(np.float32))


def render_player(
    instrument: Instrument,
    notes: Sequence[Note],
    times: np.ndarray,
    stage: Stage,
    rng: np.random.Generator,
    *,
    masks: bool = False,
) -> Picture:
    """Draw the musician at ``times`` [T]; ``rng`` gives the camera's noise."""
    scene = stage.scene
    _, height, width = scene.background.shape
    hands = hands_at(instrument, notes, times)
    unit = min(height, width)
    center = (_middle(scene, height, width), 0.5 * height + 0.4 * scene.offset[1] * unit)
    scale = _scale(scene, height, width)
    still = Canvas(scene.background, np.full(1, center[0]), np.full(1, center[1]), scale, np.zeros(1))
    _paint_body(still, scene)
    _FURNITURE[instrument.name](still, stage)
    frames = len(times)
    grain = white(rng, frames * height * width).reshape(frames, 1, height, width) if scene.noise else None
    blocks = []
    for start in range(0, frames, BLOCK):
        rows = slice(start, min(start + BLOCK, frames))
        count = rows.stop - rows.start
        canvas = Canvas(still.pixels[0], np.full(count, center[0]), np.full(count, center[1]), scale, np.zeros(count))
        places = {h: (u[rows], v[rows]) for h, (u, v) in hands.items()}
        covers = _paint_moving(canvas, instrument, notes, times[rows], stage, stage.sway[rows], places)
        boxes = [canvas.box(stage.sway[rows], -0.56, 0.21, 0.26)]
        boxes += [canvas.box(*places[h], _HAND, _HAND) for h in ("left", "right")]
        parts = (canvas.place(stage.sway[rows], -0.56), *(canvas.place(*places[h]) for h in ("left", "right")))
        middle = np.stack([np.stack(part, axis=1) for part in parts], axis=1)
        video = canvas.finished(None if grain is None else scene.noise * grain[rows])
        blocks.append(
            Picture(video, np.stack(boxes, axis=1), np.stack(covers, axis=1) > 0.5, middle.astype(np.float32))
        )
    names = ("video", "boxes", "masks", "centers")
    whole = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in names}
    return Picture(**(whole if masks else {**whole, "masks": None}))


def _middle(scene: Scene, height: int, width: int) -> float:
    return 0.5 * width + 0.5 * scene.offset[0] * min(height, width)


def _scale(scene: Scene, height: int, width: int) -> float:
    return 0.5 * min(height, width) * min(scene.zoom, 1.0)


def hand_columns(
    instrument: Instrument, notes: Sequence[Note], times: np.ndarray, scene: Scene, height: int, width: int
) -> dict[str, np.ndarray]:
    """{"left", "right"}: pixel column [T] of the hand at ``times``."""
    hands = hands_at(instrument, notes, times)
    middle, scale = _middle(scene, height, width), _scale(scene, height, width)
    return {side: middle + scale * u for side, (u, _) in hands.items()}


def _paint_body(canvas: Canvas, scene: Scene) -> None:
    u, v = canvas.u, canvas.v
    canvas.paint(canvas.cover(np.minimum(0.09 - np.abs(u), v + 0.5)), 0.75 * scene.skin)
    torso = np.minimum(0.34 + 0.06 * v - np.abs(u), v + 0.28 - 0.35 * u**2)
    canvas.paint(canvas.cover(torso), scene.shirt)


def _paint_piano(canvas: Canvas, stage: Stage) -> None:
    u, v = canvas.u, canvas.v
    case = np.minimum(0.99 - np.abs(u), np.minimum(v - 0.27, 0.95 - v))
    canvas.paint(canvas.cover(case), 0.35 * stage.wood)
    keys = np.minimum(_KEY_HALF - np.abs(u), np.minimum(v - _KEY_TOP, _KEY_BOTTOM - v))
    canvas.paint(canvas.cover(keys), np.array([238, 236, 228], np.float32))
    place = np.mod(u + _KEY_HALF, _KEY_WIDTH)
    line = np.minimum(0.008 - np.minimum(place, _KEY_WIDTH - place), keys)
    canvas.paint(0.7 * canvas.cover(line), np.array([90, 90, 90], np.float32))
    for pitch, middle in KEY_PLACES.items():
        if pitch % 12 not in _WHITE_KEYS:
            black = np.minimum(0.30 * _KEY_WIDTH - np.abs(u - middle), np.minimum(v - _KEY_TOP, 0.60 - v))
            canvas.paint(canvas.cover(black), np.array([20, 20, 24], np.float32))


def _paint_marimba(canvas: Canvas, stage: Stage) -> None:
    u, v = canvas.u, canvas.v
    count = 13
    width = 1.84 / count
    index = np.clip(np.floor((u + 0.92) / width), 0, count - 1)
    half = 0.30 - 0.012 * index
    inside = np.minimum(0.42 * width - np.abs(u + 0.92 - (index + 0.5) * width), half - np.abs(v - 0.62))
    for rail in (0.46, 0.78):
        canvas.paint(
            canvas.cover(np.minimum(0.022 - np.abs(v - rail), 0.96 - np.abs(u))), np.array([70, 70, 74], np.float32)
        )
    canvas.paint(canvas.cover(inside), stage.wood)


def _paint_guitar(canvas: Canvas, stage: Stage) -> None:
    u, v = canvas.u, canvas.v
    one = np.ones(1, np.float32)
    for (cu, cv), radius in (((-0.42, 0.50), 0.34), ((-0.10, 0.38), 0.26)):
        canvas.paint(canvas.cover(radius - np.hypot(u - cu, v - cv)), stage.wood)
    canvas.paint(canvas.cover(0.11 - np.hypot(u + 0.26, v - 0.44)), np.array([30, 18, 14], np.float32))
    neck = capsule(u, v, (-0.2 * one, 0.41 * one), (0.88 * one, 0.02 * one), 0.05)
    canvas.paint(canvas.cover(neck), 0.45 * stage.wood)
    strings = capsule(u, v, (-0.5 * one, 0.52 * one), (0.88 * one, 0.02 * one), 0.008)
    canvas.paint(0.7 * canvas.cover(strings), np.array([225, 225, 215], np.float32))


def _paint_cello(canvas: Canvas, stage: Stage) -> None:
    u, v = canvas.u, canvas.v
    one = np.ones(1, np.float32)
    waist = 0.30 - 0.09 * np.exp(-(((v - 0.55) / 0.09) ** 2)) - 0.05 * np.clip((0.55 - v) / 0.3, 0, 1)
    body = np.minimum(
        waist - np.abs(u - 0.10) - 0.9 * np.maximum(np.abs(v - 0.58) - 0.30, 0) ** 1.0, 0.41 - np.abs(v - 0.58)
    )
    canvas.paint(canvas.cover(body), stage.wood)
    neck = capsule(u, v, (0.10 * one, 0.30 * one), (0.10 * one, -0.48 * one), 0.045)
    canvas.paint(canvas.cover(neck), 0.4 * stage.wood)
    strings = np.minimum(0.02 - np.abs(u - 0.10), np.minimum(v + 0.45, 0.8 - v))
    canvas.paint(0.6 * canvas.cover(strings), np.array([225, 225, 215], np.float32))


_FURNITURE: MappingProxyType[str, Callable[[Canvas, Stage], None]] = MappingProxyType(
    {"piano": _paint_piano, "marimba": _paint_marimba, "guitar": _paint_guitar, "cello": _paint_cello}
)


def _paint_moving(
    canvas: Canvas,
    instrument: Instrument,
    notes: Sequence[Note],
    times: np.ndarray,
    stage: Stage,
    sway: np.ndarray,
    hands: dict[str, _Points],
) -> list[np.ndarray]:
    """Head, pressed keys, arms, tools and hands; returns the coverage of head, left and right hand [T,H,W]."""
    head = _paint_head(canvas, stage.scene, sway)
    if instrument.name == "piano":
        _paint_pressed(canvas, notes, times)
    covers = [head]
    for hand, side in (("left", -1.0), ("right", 1.0)):
        u, v = hands[hand]
        shoulder = (np.full(len(u), 0.30 * side), np.full(len(u), -0.16))
        elbow = (0.5 * (shoulder[0] + u) + 0.16 * side, np.maximum(0.5 * (shoulder[1] + v) + 0.12, 0.05))
        for start, end in ((shoulder, elbow), (elbow, (u, v))):
            middle = (0.5 * (start[0] + end[0]), 0.5 * (start[1] + end[1]))
            extent = (np.abs(end[0] - start[0]).max() / 2 + 0.1, np.abs(end[1] - start[1]).max() / 2 + 0.1)
            where = canvas.patch(*middle, *extent)
            canvas.paint(canvas.cover(capsule(*canvas.at(where), start, end, 0.075)), stage.sleeve, where)
        if instrument.name == "cello" and hand == "left":
            _paint_stick(canvas, (u, v), (u + 0.95, v - 0.06), 0.018, np.array([60, 30, 20], np.float32))
        if instrument.name == "marimba":
            tip = (u - 0.04 * side, v + 0.36)
            _paint_stick(canvas, (u, v), tip, 0.02, np.array([225, 205, 160], np.float32))
            where = canvas.patch(*tip, 0.09, 0.09)
            pu, pv = canvas.at(where)
            ball = 0.07 - np.hypot(pu - per_frame(tip[0]), pv - per_frame(tip[1]))
            canvas.paint(canvas.cover(ball), np.array([200, 40, 50], np.float32), where)
        where = canvas.patch(u, v, _HAND, _HAND)
        pu, pv = canvas.at(where)
        far = np.hypot(pu - per_frame(u), pv - per_frame(v))
        cover = canvas.cover(_HAND - far)
        canvas.paint(cover, 0.45 * stage.scene.skin, where)
        canvas.paint(canvas.cover(_HAND - 0.022 - far), stage.scene.skin, where)
        shown = canvas.whole(cover, where)
        covers = [*(c * (1 - shown) for c in covers), shown]  # what is painted later hides what was there
    return covers


def _paint_stick(canvas: Canvas, start: _Points, end: _Points, radius: float, color: np.ndarray) -> None:
    middle = (0.5 * (start[0] + end[0]), 0.5 * (start[1] + end[1]))
    extent = (np.abs(end[0] - start[0]).max() / 2 + 0.05, np.abs(end[1] - start[1]).max() / 2 + 0.05)
    where = canvas.patch(*middle, *extent)
    canvas.paint(canvas.cover(capsule(*canvas.at(where), start, end, radius)), color, where)


def _paint_pressed(canvas: Canvas, notes: Sequence[Note], times: np.ndarray) -> None:
    """A key that is down lies in shadow."""
    for note in notes:
        down = (times >= note.onset) & (times < note.onset + note.duration)
        if not down.any():
            continue
        half = 0.5 * _KEY_WIDTH if note.pitch % 12 in _WHITE_KEYS else 0.32 * _KEY_WIDTH
        bottom = _KEY_BOTTOM if note.pitch % 12 in _WHITE_KEYS else 0.60
        where = canvas.patch(KEY_PLACES[note.pitch], 0.5 * (_KEY_TOP + bottom), half, 0.5 * (bottom - _KEY_TOP))
        u, v = canvas.at(where)
        key = np.minimum(half - np.abs(u - KEY_PLACES[note.pitch]), np.minimum(v - _KEY_TOP, bottom - v))
        canvas.paint(0.6 * canvas.cover(key) * per_frame(down), np.array([60, 90, 150], np.float32), where)


def _paint_head(canvas: Canvas, scene: Scene, sway: np.ndarray) -> np.ndarray:
    where = canvas.patch(sway, -0.56, 0.27, 0.34)
    u, v = canvas.at(where)
    x, y = u - per_frame(sway), v + 0.56
    hair = np.minimum(0.245 - np.hypot(x, 0.85 * y), 0.10 + 0.2 * scene.hair_length - y)
    canvas.paint(canvas.cover(hair), scene.hair, where)
    radius = np.hypot(x / 0.20, y / 0.25)
    head = canvas.cover((1 - radius) * 0.20)
    shade = 1.0 + scene.light[0] * x / 0.2 - 0.1 * radius
    canvas.paint(head, shade[:, None] * scene.skin.reshape(1, 3, 1, 1), where)
    canvas.paint(canvas.cover(np.minimum(0.2 * scene.hairline - y, (1 - radius) * 0.2)), scene.hair, where)
    dark = np.array([28, 20, 20], np.float32)
    for side in (-0.085, 0.085):
        canvas.paint(canvas.cover(0.033 - np.hypot(x - side, y)), dark, where)
    canvas.paint(0.8 * canvas.cover(np.minimum(0.016 - np.abs(y - 0.13), 0.06 - np.abs(x))), dark, where)
    return canvas.whole(head, where)
