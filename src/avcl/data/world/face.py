"""A small talking face: head, jaw, hair, eyes with blinks, brows, nose and lips, drawn by signed distance, all frames
at once.

Head coordinates: (u, v) = (right, down), the origin between eyes and nose, 1 = half the height of the head. ``Look``
is the shape (who it is), ``Scene`` the nuisances (colors, light, hair, pose, background: independent of who speaks
and how), ``Motion`` what moves. The picture of frame i shows the instant i / fps: lips are read from the articulation
at exactly that time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import MappingProxyType

import numpy as np

from avcl.data.world.canvas import BLOCK, Canvas, per_frame
from avcl.data.world.noise import texture, white

HEAD_SHARE = 0.40  # half the head's height as a share of the picture's shorter side


@dataclass(frozen=True)
class Look:
    """The shape of a face: half ``width`` of the head, half width of an ``eye``, its distance from the middle
    (``spacing``), thickness of the ``brow``, length of the ``nose``, fullness of the ``lips``, taper of the ``jaw``;
    all in head units."""

    width: float = 0.74
    eye: float = 0.19
    spacing: float = 0.37
    brow: float = 0.05
    nose: float = 0.26
    lips: float = 0.065
    jaw: float = 0.18


@dataclass(frozen=True)
class Expression:
    """What a feeling does to a face: ``smile`` (corners up; down below 0), ``stretch`` of the lips, ``brow``
    (raised), ``frown`` (inner ends of the brows down; up below 0), ``eye`` (factor of the opening), ``jaw`` (factor
    of the opening of the mouth), ``nod``."""

    smile: float = 0.0
    stretch: float = 0.0
    brow: float = 0.0
    frown: float = 0.0
    eye: float = 1.0
    jaw: float = 1.0
    nod: float = 0.0

    def toward(self, other: Expression, weight: float) -> Expression:
        """The expression a share ``weight`` of the way to ``other``."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Expression(*(a + weight * (b - a) for a, b in pairs))

    def varied(self, rng: np.random.Generator, deviation: float = 0.12) -> Expression:
        """The same as another person, or the same person on another day, shows it."""
        return Expression(*(getattr(self, f.name) + deviation * rng.standard_normal() for f in fields(self)))


EXPRESSION = MappingProxyType(
    {
        "neutral": Expression(),
        "happy": Expression(smile=1.0, stretch=0.45, brow=0.25, frown=-0.1, eye=0.85, jaw=1.1, nod=-0.1),
        "sad": Expression(smile=-0.8, stretch=-0.15, brow=-0.1, frown=-1.0, eye=0.70, jaw=0.75, nod=0.5),
        "angry": Expression(smile=-0.5, stretch=0.2, brow=-0.6, frown=1.0, eye=0.80, jaw=1.15, nod=0.15),
        "fearful": Expression(smile=-0.35, stretch=0.5, brow=0.6, frown=-0.7, eye=1.40, jaw=0.9, nod=-0.2),
        "surprised": Expression(smile=0.0, stretch=-0.45, brow=1.0, frown=0.0, eye=1.50, jaw=1.3, nod=-0.3),
    }
)

_SKIN = np.array(
    [[247, 214, 188], [231, 186, 148], [204, 150, 110], [160, 108, 74], [110, 70, 48], [83, 52, 38]], np.float32
)
_HAIR = np.array(
    [[30, 24, 22], [70, 44, 28], [120, 78, 40], [200, 160, 90], [150, 60, 30], [140, 140, 145]], np.float32
)
_IRIS = np.array([[70, 45, 25], [60, 110, 160], [70, 120, 70], [110, 90, 50]], np.float32)


@dataclass(frozen=True)
class Scene:
    """What carries no information about the class: colors (RGB, 0 to 255), ``light`` (from the right, from below),
    ``hairline`` (v), ``hair_length`` (v), ``glasses``, ``background`` [3, H, W], offset of the head and amplitudes of
    its motion."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    shirt: np.ndarray
    background: np.ndarray
    light: tuple[float, float]
    hairline: float
    hair_curve: float
    hair_length: float
    hair_volume: float
    glasses: bool
    offset: tuple[float, float]
    zoom: float
    motion: float
    noise: float


def draw_scene(rng: np.random.Generator, height: int, width: int, *, motion: float = 1.0, noise: float = 4.0) -> Scene:
    """Nuisances, drawn the same way for every class, person and feeling."""
    skin = _mixed(rng, _SKIN)
    hair = _mixed(rng, _HAIR)
    low, high = rng.uniform(30, 215, (2, 3)).astype(np.float32)
    ramp = np.linspace(0, 1, height, dtype=np.float32)[None, :, None]
    surface = texture(rng, height, width, min(height, width) / 64) * np.float32(rng.uniform(4, 22))
    background = low[:, None, None] * (1 - ramp) + high[:, None, None] * ramp + surface
    return Scene(
        skin=skin,
        hair=hair,
        iris=_IRIS[rng.integers(len(_IRIS))],
        shirt=rng.uniform(20, 235, 3).astype(np.float32),
        background=background,
        light=(float(rng.uniform(-0.28, 0.28)), float(rng.uniform(-0.16, 0.06))),
        hairline=float(rng.uniform(-0.72, -0.52)),
        hair_curve=float(rng.uniform(-0.25, 0.45)),
        hair_length=float(rng.choice([-0.2, 0.1, 0.85]) + rng.uniform(-0.1, 0.1)),
        hair_volume=float(rng.uniform(1.03, 1.16)),
        glasses=bool(rng.random() < 0.18),
        offset=(float(rng.uniform(-0.05, 0.05)), float(rng.uniform(-0.02, 0.04))),
        zoom=float(rng.uniform(0.92, 1.04)),
        motion=motion,
        noise=noise,
    )


def _mixed(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    """A color between two neighbors of a palette."""
    place = rng.uniform(0, len(palette) - 1)
    i = min(int(place), len(palette) - 2)
    return palette[i] + np.float32(place - i) * (palette[i + 1] - palette[i])


@dataclass(frozen=True)
class Motion:
    """What moves, one value a frame [T]: lips ``opening``, ``width``, ``tuck`` · ``blink`` (1: eyes shut) · head
    ``x``, ``y`` (picture heights), ``roll`` (radians), ``yaw``, ``nod`` (head units) · ``gaze`` [T, 2]."""

    opening: np.ndarray
    width: np.ndarray
    tuck: np.ndarray
    blink: np.ndarray
    x: np.ndarray
    y: np.ndarray
    roll: np.ndarray
    yaw: np.ndarray
    nod: np.ndarray
    gaze: np.ndarray


def draw_motion(
    rng: np.random.Generator,
    times: np.ndarray,
    lips: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    seconds: float,
    amount: float = 1.0,
) -> Motion:
    """Head motion, blinks and gaze of a clip of ``seconds``, at ``times``: independent of what is said, and the same
    motion at whatever times it is looked at."""
    waves = rng.uniform([0.15, -np.pi], [0.9, np.pi], (5, 2, 2))
    sways = (np.sin(2 * np.pi * waves[:, :, 0, None] * times + waves[:, :, 1, None])).mean(axis=1) * amount
    sways += rng.uniform(-0.6, 0.6, (5, 1)) * amount  # a pose held for the whole clip
    blink = np.zeros(len(times))
    clock = float(rng.uniform(0.2, 2.5))
    while clock < seconds + 0.2:
        blink = np.maximum(blink, np.clip(1.6 - np.abs(times - clock) / 0.075, 0, 1))
        clock += float(rng.uniform(1.2, 3.5))
    jumps = np.sort(rng.uniform(0, seconds, 3))
    gaze = rng.uniform(-1, 1, (4, 2))[np.searchsorted(jumps, times)] * [0.35, 0.2]
    x, y, roll, yaw, nod = sways * np.array([0.022, 0.016, 0.09, 0.14, 0.09])[:, None]
    return Motion(*lips, blink, x, y, roll, yaw, nod, gaze)


@dataclass(frozen=True)
class Picture:
    """``video`` uint8 [T,H,W,3]; ``boxes`` float32 [T,2,4] of face and mouth (x0, y0, x1, y1 in pixels), ``centers``
    float32 [T,2,2] (x, y); ``masks`` bool [T,2,H,W] (None unless asked); ``gap`` [T]: height of the open mouth in
    pixels."""

    video: np.ndarray
    boxes: np.ndarray
    centers: np.ndarray
    masks: np.ndarray | None
    gap: np.ndarray


def render_face(
    look: Look, expression: Expression, motion: Motion, scene: Scene, rng: np.random.Generator, *, masks: bool = False
) -> Picture:
    """Draw T frames of a face; ``rng`` gives the camera's noise. Drawn in blocks of frames that stay in the
    processor's cache."""
    frames = len(motion.x)
    _, height, width = scene.background.shape
    grain = white(rng, frames * height * width).reshape(frames, 1, height, width) if scene.noise else None
    blocks = []
    for start in range(0, frames, BLOCK):
        rows = slice(start, start + BLOCK)
        part = Motion(*(getattr(motion, f.name)[rows] for f in fields(Motion)))
        blocks.append(_render_block(look, expression, part, scene, None if grain is None else grain[rows], masks))
    video, boxes, centers, gap = (
        np.concatenate([getattr(b, name) for b in blocks]) for name in ("video", "boxes", "centers", "gap")
    )
    covered = np.concatenate([b.masks for b in blocks if b.masks is not None]) if masks else None
    return Picture(video, boxes, centers, covered, gap)


def _render_block(
    look: Look, expression: Expression, motion: Motion, scene: Scene, grain: np.ndarray | None, masks: bool
) -> Picture:
    height, width = scene.background.shape[-2:]
    unit = min(height, width)
    center_x = head_column(scene, motion, height, width)
    center_y = 0.5 * height + (scene.offset[1] + motion.y - 0.01) * unit
    canvas = Canvas(scene.background, center_x, center_y, HEAD_SHARE * unit * scene.zoom, motion.roll)
    jaw = np.clip(motion.opening * expression.jaw, 0, 1.25).astype(np.float32)
    shift_u = motion.yaw.astype(np.float32)
    shift_v = (motion.nod + 0.06 * expression.nod).astype(np.float32)
    head = _paint_head(canvas, look, scene, jaw, shift_u)
    _paint_eyes(canvas, look, expression, motion, scene, shift_u, shift_v)
    _paint_nose(canvas, look, scene, shift_u, shift_v)
    mouth, gap, mouth_box = _paint_mouth(canvas, look, expression, motion, scene, jaw, shift_u, shift_v)
    video = canvas.finished(None if grain is None else scene.noise * grain)
    boxes = np.stack([canvas.box(0.0, 0.06 * jaw, look.width, 1.0 + 0.06 * jaw), mouth_box], axis=1)
    places = (canvas.place(0.0, 0.0), canvas.place(1.15 * shift_u, 0.54 + shift_v))
    centers = np.stack([np.stack(place, axis=1) for place in places], axis=1).astype(np.float32)
    return Picture(video, boxes, centers, np.stack([head > 0.5, mouth > 0.5], axis=1) if masks else None, gap)


def head_column(scene: Scene, motion: Motion, height: int, width: int) -> np.ndarray:
    """Pixel column [T] of the middle of the head."""
    return 0.5 * width + (scene.offset[0] + motion.x) * min(height, width)


def _paint_head(canvas: Canvas, look: Look, scene: Scene, jaw: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Hair behind, neck and shoulders, head with jaw and light, ears, hair in front; returns the head's coverage
    [T,H,W]."""
    u, v = canvas.u, canvas.v
    side = np.abs(u)
    down = np.maximum(v, 0)
    big = look.width * scene.hair_volume + 0.05
    if scene.hair_length > 0.3:
        behind = np.minimum(big + 0.06 - side, scene.hair_length - v)
        canvas.paint(canvas.cover(np.where(v < 0, -1, behind)), scene.hair * 0.8)
    neck = np.minimum(0.6 * look.width - side, v - 0.3)
    canvas.paint(canvas.cover(neck), scene.skin * 0.72)
    shoulders = v - 1.02 - 0.32 * side**2
    canvas.paint(canvas.cover(shoulders), scene.shirt)
    volume = 1 - np.sqrt((u / big) ** 2 + (v / (1.0 * scene.hair_volume + 0.02)) ** 2)
    canvas.paint(canvas.cover(np.minimum(volume * big, max(scene.hair_length, -0.1) - v)), scene.hair * 0.85)

    ear = 0.15 - np.sqrt((side - look.width * 0.98) ** 2 * 2.2 + v**2)
    canvas.paint(canvas.cover(ear), scene.skin * 0.86)

    wide = look.width * (1 - look.jaw * down * down)
    tall = np.where(v < 0, np.float32(0.97), per_frame(1.0 + 0.12 * jaw))
    radius = np.sqrt((u / wide) ** 2 + (v / tall) ** 2)
    head = canvas.cover((1 - radius) * look.width)
    shade = (
        1.02 + (scene.light[0] / look.width) * (u - per_frame(yaw) * 0.5) + scene.light[1] * v - 0.16 * radius * radius
    )
    canvas.paint(head, shade[:, None] * scene.skin.reshape(1, 3, 1, 1))
    front = np.minimum(scene.hairline + scene.hair_curve * (u - per_frame(yaw)) ** 2 - v, (1.03 - radius) * look.width)
    canvas.paint(canvas.cover(front), scene.hair)
    return head


def _paint_eyes(
    canvas: Canvas, look: Look, expression: Expression, motion: Motion, scene: Scene, yaw: np.ndarray, nod: np.ndarray
) -> None:
    """White, iris, pupil, upper lid, brow; blinks close the eye from above."""
    eye_white, dark = np.array([244, 244, 240], np.float32), np.array([26, 20, 20], np.float32)
    opened = np.clip(expression.eye * (1 - motion.blink), 0.0, 1.6)
    half = 0.62 * look.eye * opened
    gaze_u, gaze_v = (motion.gaze * look.eye).astype(np.float32).T
    brow_color = 0.75 * scene.hair
    for sign in (-1.0, 1.0):
        cu, cv = sign * look.spacing + yaw, -0.10 + nod
        where = canvas.patch(cu, cv, look.eye + 0.12, look.eye + 0.08)
        u, v = canvas.at(where)
        x, y = u - per_frame(cu), v - per_frame(cv)
        bow = np.maximum(1 - (x / look.eye) ** 2, 0)
        inside = per_frame(half) * bow - np.abs(y)
        inside = np.where(np.abs(x) < look.eye, inside, -1)
        hole = canvas.cover(inside)
        canvas.paint(hole, eye_white, where)
        far = np.sqrt((x - per_frame(gaze_u)) ** 2 + (y - per_frame(gaze_v)) ** 2)
        canvas.paint(hole * canvas.cover(0.56 * look.eye - far), scene.iris, where)
        canvas.paint(hole * canvas.cover(0.26 * look.eye - far), dark, where)
        lid = 0.028 - np.abs(y + per_frame(half) * bow)
        canvas.paint(canvas.cover(np.where(np.abs(x) < look.eye, lid, -1)), 0.4 * scene.skin, where)
        if scene.glasses:
            rim = 0.02 - np.abs(np.sqrt(x**2 + (1.15 * y) ** 2) - look.eye - 0.06)
            canvas.paint(canvas.cover(rim), dark, where)

        brow_v = cv - 0.28 - 0.11 * expression.brow
        where = canvas.patch(cu, brow_v, 0.30, 0.22)
        u, v = canvas.at(where)
        x, y = sign * (u - per_frame(cu)) / 0.24, v - per_frame(brow_v)  # x: -1 at the nose, +1 at the temple
        line = -0.095 * expression.frown * x + 0.045 * x * x
        thick = look.brow * (1 - 0.25 * x) - np.abs(y - line)
        canvas.paint(canvas.cover(np.minimum(thick, (1 - np.abs(x)) * 0.24)), brow_color, where)


def _paint_nose(canvas: Canvas, look: Look, scene: Scene, yaw: np.ndarray, nod: np.ndarray) -> None:
    """A ridge in the shade of the light, and the shadow below the tip."""
    tip = look.nose + nod
    where = canvas.patch(1.4 * yaw, 0.5 * tip, 0.2, 0.5 * look.nose + 0.12)
    u, v = canvas.at(where)
    x, y = u - per_frame(1.4 * yaw), v - per_frame(nod)
    ridge_side = -0.06 if scene.light[0] > 0 else 0.06
    ridge = np.minimum(0.03 - np.abs(x - ridge_side * (y / look.nose)), np.minimum(y + 0.02, look.nose - y))
    canvas.paint(0.35 * canvas.cover(ridge), 0.62 * scene.skin, where)
    base = 0.10 - np.sqrt(x**2 + (3.2 * (y - look.nose)) ** 2)
    canvas.paint(0.75 * canvas.cover(base), 0.66 * scene.skin, where)


def _paint_mouth(
    canvas: Canvas,
    look: Look,
    expression: Expression,
    motion: Motion,
    scene: Scene,
    jaw: np.ndarray,
    yaw: np.ndarray,
    nod: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lips around a dark gap with teeth and tongue; returns their coverage [T,H,W], the gap in pixels [T] and the box
    [T,4]."""
    half = 0.27 * np.clip(1 + 0.30 * motion.width * (1 - 0.3 * jaw) + 0.32 * expression.stretch, 0.4, 1.8)
    upper = 0.075 * jaw
    lower = 0.30 * jaw
    bend = 0.13 * expression.smile  # how far the corners stand above the middle
    cu, cv = 1.15 * yaw, 0.54 + nod
    where = canvas.patch(cu, cv, float(half.max()) + 0.05, 0.45)
    u, v = canvas.at(where)
    x = (u - per_frame(cu)) / per_frame(half)
    y = v - per_frame(cv) + bend * (x * x - 0.4)
    bow = np.maximum(1 - x * x, 0)
    inside_x = np.where(np.abs(x) < 1, np.float32(0), np.float32(-1))
    top, bottom = -per_frame(upper) * bow, per_frame(lower) * bow
    rim = np.sqrt(bow)
    tuck = per_frame(motion.tuck)
    lip = np.minimum(y - top + look.lips * rim, bottom + look.lips * 1.25 * (1 - 0.45 * tuck) * rim - y) + inside_x
    lips = canvas.cover(lip)
    rose = 0.72 * scene.skin * np.array([1.0, 0.66, 0.66], np.float32) + np.array([34, 0, 6], np.float32)
    canvas.paint(lips, rose, where)
    inner = np.minimum(y - top, bottom - y) + inside_x
    gap = canvas.cover(inner)
    canvas.paint(np.where(np.abs(x) < 0.94, gap, 0), np.array([48, 12, 16], np.float32), where)
    opened = np.minimum(per_frame(jaw) * 5, 1)
    teeth = np.minimum(inner, 0.075 + top - y)
    canvas.paint(0.95 * canvas.cover(teeth) * opened, np.array([240, 236, 226], np.float32), where)
    tongue = np.minimum(inner, y - bottom + 0.085 * bow)
    canvas.paint(0.8 * canvas.cover(tongue) * opened, np.array([176, 70, 76], np.float32), where)
    bite = np.minimum(0.035 - np.abs(y - top - 0.03), 0.6 - np.abs(x))
    canvas.paint(0.9 * canvas.cover(bite) * tuck, np.array([240, 236, 226], np.float32), where)

    reach_up, reach_down = upper + look.lips, lower + 1.25 * look.lips
    middle, extent = cv + 0.5 * (reach_down - reach_up), 0.5 * (reach_down + reach_up) + 0.5 * abs(bend)
    return canvas.whole(lips, where), (upper + lower) * canvas.scale, canvas.box(cu, middle, half, extent)
