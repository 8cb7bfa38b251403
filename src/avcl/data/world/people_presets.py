"""Presets with people: ``speech``, ``face_voice``, ``emotion``, ``music``; and the identities that speak."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np

from avcl.data.world import face, music
from avcl.data.world.prosody import EMOTIONS, Voice
from avcl.data.world.values import Preset

_PEOPLE_SEED = 7_301
TRACT_CM, TRACT_SPREAD = 15.5, 0.085  # median, and deviation of the logarithm
PITCH_HZ, PITCH_SPREAD = 165.0, 0.30

KEYWORDS = ("mama", "papa", "baba", "fish", "moon", "shoe", "tree", "boat", "wheel", "toy")
CARRIER = (("now", "today", "please", "yes"), ("find", "see", "keep", "follow"), ("the", "a", "this", "that"))
TAIL = ("again", "here", "soon", "today")


def _identities(persons: int) -> tuple[str, ...]:
    return tuple(f"person-{i:03d}" for i in range(persons))


@dataclass(frozen=True)
class PeoplePreset(Preset):
    """``noise``: pixel noise · ``floor_db``: range of the level of the room's noise. Two people at most are in the
    picture, side by side: ``sources`` 1 or 2, or 1 and a ``distractor`` who talks or plays in silence."""

    noise: float = 4.0
    floor_db: tuple[float, float] = (-62.0, -48.0)


@dataclass(frozen=True)
class FacePreset(PeoplePreset):
    """``persons``: how many identities there are (where they are the classes, the labels follow) · ``link``:
    correlation between what is heard of a person (tract length, pitch) and what is seen of it (width of the head, size
    of the eyes) · ``lead``: range of the silent, closed-mouth start in seconds · ``motion``: head motion."""

    persons: int = 120
    link: float = 0.6
    lead: tuple[float, float] = (0.12, 0.4)
    motion: float = 1.0

    def __post_init__(self) -> None:
        if self.task == "face_voice" and len(self.labels) != self.persons:
            object.__setattr__(self, "labels", _identities(self.persons))


@dataclass(frozen=True)
class PlayerPreset(PeoplePreset):
    """Players of ``labels``, see ``music.INSTRUMENTS``."""


_PRESETS: tuple[Preset, ...] = (
    FacePreset(
        name="speech",
        scene="face",
        task="speech",
        labels=KEYWORDS,
        fps=25.0,
        difficulty="Five-word sentences from a closed vocabulary, any of 120 voices and faces, every emotion at half "
        "strength; the class is the fourth word. mama, papa and baba have equal lips, so lips alone name "
        ".8 to .87 of the words (what remains is timing); sound names all.",
    ),
    FacePreset(
        name="face_voice",
        scene="face",
        task="face_voice",
        labels=_identities(120),
        fps=25.0,
        lead=(0.32, 0.5),
        disjoint=True,
        difficulty="Who speaks? 120 identities, others in train, val and test; colors, hair, light and pose are drawn "
        "anew for every clip. Tract length and pitch correlate .6 with head width and eye size: choosing between two "
        "strangers is possible in about .73 of the cases at best.",
    ),
    FacePreset(
        name="emotion",
        scene="face",
        task="emotion",
        labels=EMOTIONS,
        fps=25.0,
        difficulty="Six emotions in face and prosody. A third of the clips shows both clearly, a third mostly the "
        "face, a third mostly the voice (truth: emotion_face, emotion_voice), so that both modalities "
        "together beat either.",
    ),
    PlayerPreset(
        name="music",
        scene="player",
        task="music",
        labels=tuple(music.INSTRUMENTS),
        fps=25.0,
        difficulty="A tune of 2 to 13 notes on one of four instruments in one register; hands are where the pitch is "
        "and move when it sounds. The instrument is easy; which notes are played, and when, finds the "
        "pair.",
    ),
)
PRESETS = MappingProxyType({p.name: p for p in _PRESETS})


@dataclass(frozen=True)
class Person:
    """An identity: what is heard and what is seen of it."""

    number: int
    voice: Voice
    look: face.Look


@cache
def person(number: int, link: float) -> Person:
    """Identity ``number``, the same in every preset, split and process with this ``link``.

    z_width = link * z_tract + sqrt(1 - link^2) * e, the same for eyes and pitch; all z are standard normals, cut at
    2.2; pitch and tract correlate by -.5 (long tracts speak low). Brows, nose, lips, spacing and jaw belong to the
    face alone.
    """
    rng = np.random.default_rng([_PEOPLE_SEED, number])
    z = np.clip(rng.standard_normal(12), -2.2, 2.2)
    blur = float(np.sqrt(1 - link**2))
    tract = z[0]
    pitch = -0.5 * z[0] + np.sqrt(0.75) * z[1]
    width = link * tract + blur * z[2]
    eye = link * pitch + blur * z[3]
    voice = Voice(
        tract_cm=float(TRACT_CM * np.exp(TRACT_SPREAD * tract)),
        pitch_hz=float(PITCH_HZ * np.exp(PITCH_SPREAD * pitch)),
        breath=float(0.03 * np.exp(0.5 * z[4])),
        tilt_hz=float(2600 * np.exp(0.25 * z[5])),
        rate=float(np.exp(0.08 * z[6])),
    )
    look = face.Look(
        width=float(0.74 + 0.055 * width),
        eye=float(0.19 + 0.022 * eye),
        spacing=float(0.37 + 0.02 * z[7] + 0.2 * (0.055 * width)),
        brow=float(0.048 + 0.009 * z[8]),
        nose=float(0.26 + 0.03 * z[9]),
        lips=float(0.065 + 0.011 * z[10]),
        jaw=float(0.18 + 0.04 * z[11]),
    )
    return Person(number, voice, look)
