"""What the rooms of the world hand to each other: a preset (what may be drawn) and a rendered clip (what was drawn).

A render function has the signature ``render(preset, rng, *, truth) -> Rendered``. It draws everything from ``rng``,
and its first draw is ``draw_label(preset, rng)``, so that the classes of a data set are known without rendering it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Preset:
    """One kind of clip. Scene kinds extend this class with their own knobs (further fields with defaults).

    ``scene``: which renderer, "objects", "face" or "player" · ``task``: what it is made to measure · ``labels``: class
    names (empty: none) · ``difficulty``: in words, what makes it easy or hard and what may be expected of it ·
    ``size``: (height, width) in pixels · ``fps`` · ``seconds`` · ``sample_rate`` in Hz · ``channels``: 1 mono, 2
    stereo (left, right) · ``disjoint``: train, val and test share no class (identities that must be unseen) ·
    ``drawn_labels``: the range of classes that may be drawn (None: all; see ``in_split``).

    Who is there: ``sources``: objects or people that are seen and heard · ``distractor``: chance of one more that moves
    in silence · ``offscreen``: chance of a sound without a picture; both of another class than the first source ·
    ``horizon``: seconds that are drawn (0: ``seconds``), so that a shorter view shows the same clip.
    """

    name: str
    scene: str
    task: str
    labels: tuple[str, ...]
    difficulty: str
    size: tuple[int, int] = (64, 64)
    fps: float = 8.0
    seconds: float = 3.0
    sample_rate: int = 16_000
    channels: int = 1
    disjoint: bool = False
    drawn_labels: tuple[int, int] | None = None
    sources: int = 1
    distractor: float = 0.0
    offscreen: float = 0.0
    horizon: float = 0.0

    @property
    def about(self) -> str:
        """The first sentence of ``difficulty``."""
        return self.difficulty.partition(". ")[0].rstrip(".") + "."

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the bytes of its clips: every field but the prose."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "difficulty"}

    @property
    def frames(self) -> int:
        """Number of frames; frame i shows the instant i / fps."""
        return max(1, round(self.seconds * self.fps))

    @property
    def samples(self) -> int:
        """Number of audio samples; sample n is the instant n / sample_rate of the same clock."""
        return round(self.seconds * self.sample_rate)

    @property
    def drawn(self) -> float:
        """Seconds for which the scene is drawn."""
        return self.horizon or self.seconds

    @property
    def slots(self) -> int:
        """How many actors (objects, people, sounds) a clip can have."""
        return self.sources + (self.distractor > 0) + (self.offscreen > 0)

    @property
    def seen_slots(self) -> int:
        """How many of them can be seen."""
        return self.sources + (self.distractor > 0)


@dataclass(frozen=True)
class Rendered:
    """One clip: ``video`` uint8 [T,H,W,3], ``audio`` float32 [L,C] in [-1, 1], ``label`` (-1: none).

    ``truth``: JSON-able, one line of truth.jsonl · ``arrays``: what is too big for it, e.g. masks bool [T,O,H,W], boxes
    float32 [T,O,4] (x0, y0, x1, y1 in pixels, zeros where unseen), stems float32 [S,L,C] whose sum is ``audio``.
    """

    video: np.ndarray
    audio: np.ndarray
    fps: float
    sample_rate: int
    label: int = -1
    truth: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def draw_label(preset: Preset, rng: np.random.Generator) -> int:
    """The class number, uniform over ``preset.labels``; -1 where there are none. The first draw of every clip."""
    first, end = preset.drawn_labels or (0, len(preset.labels))
    return int(rng.integers(first, end)) if preset.labels else -1


def in_split(preset: Preset, split: str) -> Preset:
    """What may be drawn in ``split``: of a ``disjoint`` preset the first 80 % of the classes in train, 10 % each in val
    and test; everything in "all" and of every other preset."""
    if not preset.disjoint or split == "all":
        return preset
    n = len(preset.labels)
    bounds = {"train": (0, n * 8 // 10), "val": (n * 8 // 10, n * 9 // 10), "test": (n * 9 // 10, n)}
    return replace(preset, drawn_labels=bounds[split])
