"""What happens in a clip of solid objects: who is there, where, how each moves, who sounds and who is seen, and when.

Everything but shape, material and size is drawn without regard to the class: color, backdrop, place, motion, gain,
jitter and noise are nuisances by construction (a test fits a classifier to them all the same).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from avcl.data.world.modal import MATERIALS, SHAPES
from avcl.data.world.motion import MOTIONS, Motion, draw_motion
from avcl.data.world.pixels import Body, draw_color
from avcl.data.world.values import Preset, draw_label

CLASSES = tuple(f"{material} {shape}" for shape in SHAPES for material in MATERIALS)
HORIZON_LINE = 34.0  # where the floor of things infinitely far away would be, units of 1/64


@dataclass(frozen=True)
class ObjectPreset(Preset):
    """Knobs of the scenes of solids; lengths are units of 1/64 of the picture height.

    ``radius``: range of sizes, hence of pitch (~ 1/R^2): the wider, the easier the pair and the harder the class ·
    ``motions`` · ``jitter``: camera shake · ``noise``: sensor noise (0..255) · ``alike``: the distractor has the class
    and size of the first source · ``distance``: range; level and apparent size ~ 1/distance · ``offset``: largest lag
    of the sound, either sign, seconds · ``gain_db``: level of the clip, either sign · ``staged``: objects come and go,
    sounds begin and end, each for itself in part of the clips.
    """

    radius: tuple[float, float] = (7.0, 9.5)
    motions: tuple[str, ...] = MOTIONS
    jitter: int = 1
    noise: float = 6.0
    alike: bool = False
    distance: tuple[float, float] = (1.0, 1.0)
    offset: float = 0.0
    gain_db: float = 6.0
    staged: bool = False


@dataclass(frozen=True)
class Actor:
    """One object or sound. ``role``: "source", "distractor" (silent) or "offscreen" (unseen) · ``label``: its class ·
    ``strike`` [6]: where it is hit (factors on the partials) · ``heard``: the motion that sounds, another than
    ``motion`` where the sound was re-timed · ``visible``, ``audible``: seconds (begin, end) · ``bearing``: azimuth of
    what is off-screen."""

    role: str
    label: int
    body: Body
    motion: Motion
    strike: np.ndarray
    heard: Motion
    visible: tuple[float, float]
    audible: tuple[float, float]
    distance: float = 1.0
    bearing: float = 0.0

    @property
    def sounds(self) -> bool:
        return self.role != "distractor"

    @property
    def seen(self) -> bool:
        return self.role != "offscreen"


@dataclass(frozen=True)
class Scene:
    """A drawn clip before it is rendered. ``offset``: seconds by which the sound lags (negative: leads) · ``gain_db`` ·
    ``floor``: y of the floor at distance 1."""

    label: int
    actors: tuple[Actor, ...]
    offset: float
    gain_db: float
    floor: float
    retimed: bool


def _lanes(count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """``count`` x ranges side by side, in random order, for ``count`` objects that must not hide each other."""
    bounds = np.linspace(0.0, 64.0, count + 1)
    return [(float(bounds[i]), float(bounds[i + 1])) for i in rng.permutation(count)]


def _interval(rng: np.random.Generator, seconds: float) -> tuple[float, float]:
    length = rng.uniform(0.4, 0.9) * seconds
    begin = rng.uniform(0.0, seconds - length)
    return begin, begin + length


def _nearby(rng: np.random.Generator, interval: tuple[float, float], seconds: float) -> tuple[float, float]:
    """Another interval that overlaps this one, shifted and stretched."""
    length = (interval[1] - interval[0]) * rng.uniform(0.6, 1.4)
    begin = interval[0] + rng.uniform(-0.3, 0.3) * seconds
    begin = float(np.clip(begin, 0.0, max(seconds - length, 0.0)))
    return begin, min(begin + length, seconds)


def _other(rng: np.random.Generator, count: int, label: int) -> int:
    return int((label + 1 + rng.integers(count - 1)) % count)


def draw_scene(preset: ObjectPreset, rng: np.random.Generator, *, retime: float = 0.0) -> Scene:
    """A scene of ``preset``. With chance ``retime`` the first source sounds as the same object at another moment."""
    label = draw_label(preset, rng)
    roles = ["source"] * preset.sources
    if rng.random() < preset.distractor:
        roles.append("distractor")
    if rng.random() < preset.offscreen:
        roles.append("offscreen")
    floor = rng.uniform(55.0, 61.0)
    lanes = _lanes(max(sum(role != "offscreen" for role in roles), 1), rng)
    whole = (-np.inf, np.inf)
    actors: list[Actor] = []
    for i, role in enumerate(roles):
        like = actors[0] if role == "distractor" and preset.alike else None
        kind = label if i == 0 or like else _other(rng, len(preset.labels), label)
        material, shape = preset.labels[kind].split()
        radius = rng.uniform(*preset.radius) if like is None else like.body.radius
        color = draw_color(rng, (0.65, 1.0), (0.3, 0.95))
        distance = rng.uniform(*preset.distance)
        strike = rng.uniform(0.6, 1.4, 6)
        lane = lanes[i] if role != "offscreen" else (0.0, 64.0)
        ground = HORIZON_LINE + (floor - HORIZON_LINE) / distance
        style = preset.motions[int(rng.integers(len(preset.motions)))]
        motion = draw_motion(rng, style, radius / distance, lane, ground, preset.drawn)
        visible = audible = whole
        if preset.staged:
            visible = _interval(rng, preset.drawn)
            audible = visible if rng.random() < 0.6 else _nearby(rng, visible, preset.drawn)
        bearing = float(rng.choice([-1.0, 1.0]) * rng.uniform(1.1, 1.5))
        body = Body(shape, material, radius, (float(color[0]), float(color[1]), float(color[2])))
        actors.append(Actor(role, kind, body, motion, strike, motion, visible, audible, distance, bearing))
    offset = rng.uniform(-preset.offset, preset.offset) if preset.offset else 0.0
    gain_db = rng.uniform(-preset.gain_db, preset.gain_db)
    retimed = bool(rng.random() < retime)
    if retimed:
        other = rng.spawn(1)[0]  # leaves ``rng`` where it is: the picture does not change
        first = actors[0]
        style = preset.motions[int(other.integers(len(preset.motions)))]
        ground = HORIZON_LINE + (floor - HORIZON_LINE) / first.distance
        heard = draw_motion(other, style, first.body.radius / first.distance, lanes[0], ground, preset.drawn)
        actors[0] = replace(first, heard=heard)
    return Scene(label, tuple(actors), float(offset), float(gain_db), float(floor), retimed)
