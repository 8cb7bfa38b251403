"""How an object moves, and at which instants it sounds. One law gives both: a picture and its sound cannot disagree.

Lengths are units of 1/64 of the picture height, times seconds of the clip's clock; y points down. A motion is drawn for
[-LEAD, horizon + LEAD], so that sounds may be delayed or advanced without running dry.

- bounce: free flight under gravity between impacts on the floor, y = floor - r - g (t - a)(b - t) / 2 for an impact at
  a and the next at b; the speed of the impact, g (b - a) / 2, is its force. The floor gives back another speed each
  time.
- shake: thrown from one stop to the other (eased strokes); it strikes at each stop, the faster the harder.
- rattle: a shake twice as fast, so that no half second of it is without a strike.
- pluck: pulled aside slowly, let go (there it sounds), swings out: exp(-t / tau) cos(2 pi f t).
- bow: slides to and fro; it sounds as long as it slides, as loud as it is fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LEAD = 1.0
GRAVITY = 430.0
MOTIONS = ("bounce", "shake", "pluck", "bow")  # rattle is for the presets that need steady sounds
KINDS = (*MOTIONS, "rattle")


class Pose(NamedTuple):
    """At each instant: center x, y, turn in radians, and stretch (1: round; < 1: flattened by an impact), each [T]."""

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    stretch: np.ndarray


@dataclass(frozen=True)
class Motion:
    """A drawn motion. ``times``: knots [E] (impacts, stops, releases, or bounds of strokes) · ``forces``: [E] in (0,
    1.5], that of the sound which starts there (0: none; for bow the mean speed of the stroke) · ``center`` x, y ·
    ``reach``: how far it goes from the center · ``tilt``: direction of the path (radians) · ``angle``, ``spin``: turn
    at t = 0 and its rate · ``sway``: amplitude, period, phase of a slow drift."""

    kind: str
    times: np.ndarray
    forces: np.ndarray
    center: tuple[float, float]
    reach: np.ndarray
    tilt: float
    angle: float
    spin: float
    sway: tuple[float, float, float]

    def at(self, t: np.ndarray) -> Pose:
        """The pose at the instants ``t`` [T]."""
        k = np.clip(np.searchsorted(self.times, t, side="right") - 1, 0, len(self.times) - 2)
        begin, end = self.times[k], self.times[k + 1]
        x = np.full(len(t), self.center[0])
        y = np.full(len(t), self.center[1])
        angle = self.angle + self.spin * t
        stretch = np.ones(len(t))
        if self.kind == "bounce":
            x += self.sway[0] * np.sin(2 * np.pi * (t / self.sway[1] + self.sway[2]))
            y -= 0.5 * GRAVITY * np.maximum((t - begin) * (end - t), 0.0)
            near = np.minimum(np.abs(t - begin), np.abs(end - t))
            stretch -= 0.25 * np.exp(-near / 0.03)
            return Pose(x, y, angle, stretch)
        if self.kind == "pluck":
            along = self._swing(t, k)
        else:
            side = np.where(k % 2 == 0, -1.0, 1.0)
            u = np.clip((t - begin) / (end - begin), 0.0, 1.0)
            along = side * self.reach[k] * np.cos(np.pi * u)
        angle = angle + 0.03 * along
        return Pose(x + along * np.cos(self.tilt), y + along * np.sin(self.tilt), angle, stretch)

    def _swing(self, t: np.ndarray, k: np.ndarray) -> np.ndarray:
        since, until = t - self.times[k], self.times[k + 1] - t
        swing = self.reach[k] * np.exp(-since / 0.22) * np.cos(2 * np.pi * 3.2 * since)
        pull = np.clip(1.0 - until / 0.3, 0.0, 1.0)
        return np.where(since < 0, 0.0, swing) * (1.0 - pull) + self.reach[k + 1] * pull

    def impacts(self) -> tuple[np.ndarray, np.ndarray]:
        """Instants and forces of the strikes (none for bow)."""
        return (self.times[:0], self.forces[:0]) if self.kind == "bow" else (self.times, self.forces)

    def speed(self, t: np.ndarray) -> np.ndarray:
        """Loudness of the sliding sound at ``t``: the speed relative to 40 units/s (bow only)."""
        k = np.clip(np.searchsorted(self.times, t, side="right") - 1, 0, len(self.times) - 2)
        u = np.clip((t - self.times[k]) / (self.times[k + 1] - self.times[k]), 0.0, 1.0)
        return self.forces[k] * np.sin(np.pi * u)

    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds [E] of the strokes of bow; for the others the instants of the strikes, twice."""
        return (self.times[:-1], self.times[1:]) if self.kind == "bow" else (self.times, self.times)


def _knots(rng: np.random.Generator, shortest: float, longest: float, horizon: float) -> np.ndarray:
    """Instants from before -LEAD to after horizon + LEAD with gaps uniform in [shortest, longest]."""
    span = horizon + 2 * LEAD
    n = int(span / shortest) + 3
    return -LEAD - longest * rng.random() + np.concatenate([[0.0], np.cumsum(rng.uniform(shortest, longest, n))])


def draw_motion(
    rng: np.random.Generator, kind: str, radius: float, lane: tuple[float, float], floor: float, horizon: float
) -> Motion:
    """A motion of an object of ``radius`` that stays between ``lane`` (x bounds) and above ``floor``; drawn without
    regard to shape, material or color."""
    left, right = lane[0] + radius, lane[1] - radius
    room = max(0.5 * (right - left), 0.0)
    angle, spin = rng.uniform(0, 2 * np.pi), rng.uniform(-0.6, 0.6)
    phase = rng.random()
    if kind == "bounce":
        times = _knots(rng, 0.32, 0.75, horizon)
        forces = np.concatenate([[0.6], np.diff(times)]) / 0.6
        sway = (room * rng.uniform(0.2, 0.9), rng.uniform(4.0, 8.0), phase)
        slack = room - sway[0]
        center = (0.5 * (left + right) + rng.uniform(-slack, slack), floor - 0.9 * radius)
        return Motion(kind, times, forces, center, np.zeros(len(times)), 0.0, angle, spin, sway)
    if kind == "pluck":
        times = _knots(rng, 0.55, 1.3, horizon)
        reach = rng.uniform(4.0, 9.0, len(times))
        forces = reach / 8.0
        tilt = rng.uniform(-0.3, 0.3) + 0.5 * np.pi
    elif kind in ("shake", "rattle"):
        slow = rng.uniform(0.24, 0.5) * (1.0 if kind == "shake" else 0.5)
        times = _knots(rng, 0.75 * slow, 1.25 * slow, horizon)
        most = min(max(room, 2.5), 9.0)
        reach = np.full(len(times), rng.uniform(0.6, 1.0) * most)
        forces = np.concatenate([[1.0], np.minimum(0.3 / np.diff(times), 1.5)])
        tilt = rng.uniform(-0.5, 0.5)
    else:
        times = _knots(rng, 0.45, 1.1, horizon)
        most = min(max(room, 3.0), 14.0)
        reach = np.full(len(times), rng.uniform(0.6, 1.0) * most)
        forces = np.concatenate([np.minimum(0.7 / np.diff(times), 1.5), [0.0]])
        tilt = rng.uniform(-0.5, 0.5)
    far = float(np.max(reach))
    span_x, span_y = far * abs(np.cos(tilt)), far * abs(np.sin(tilt))
    slack = max(room - span_x, 0.0)
    top, bottom = radius + span_y + 1.0, floor - radius - span_y
    center = (0.5 * (left + right) + rng.uniform(-slack, slack), rng.uniform(min(top, bottom), max(top, bottom)))
    return Motion(kind, times, forces, center, reach, tilt, angle, 0.3 * spin, (0.0, 1.0, 0.0))
