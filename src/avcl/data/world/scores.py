"""What the first player of a clip does, without its picture: the tune as a list of notes, and the body as key points;
and any list of notes as sound.

The first two are what ``render`` plays and paints, from the first draws of the same clip, and cost next to nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from avcl.data.world import music, player
from avcl.data.world.people_presets import PlayerPreset
from avcl.data.world.values import Preset, draw_label
from avcl.errors import ConfigError

COLUMNS = ("onset", "duration", "pitch", "velocity")  # seconds, seconds, MIDI number, in (0, 1]
POINTS = ("neck", "left hand", "right hand")
_NECK = (0.0, -0.28)


class Score(NamedTuple):
    """``label``: class of the instrument · ``notes`` float32 [K, 4], see ``COLUMNS``, by onset · ``pose`` float32
    [T, 6]: (u, v) of neck, left and right hand, u right and v down from the middle, 1 = half the picture; the body
    does not sway."""

    label: int
    notes: np.ndarray
    pose: np.ndarray


def score_of(preset: Preset, rng: np.random.Generator) -> Score:
    """The tune and the key points of a clip, from a fresh generator of that clip. ConfigError where nobody plays."""
    if not isinstance(preset, PlayerPreset):
        raise ConfigError(f"nobody plays in {preset.name}: it has no notes.", hint="Use the preset music.")
    label = draw_label(preset, rng)
    instrument = music.INSTRUMENTS[preset.labels[label]]
    notes = music.compose(instrument, rng, preset.drawn)
    heard = [note for note in notes if note.onset < preset.seconds]  # a shorter view shows the beginning
    rows = np.array([note[:4] for note in heard], np.float32).reshape(-1, 4)
    times = np.arange(preset.frames) / preset.fps
    hands = player.hands_at(instrument, notes, times)
    neck = [np.full(len(times), value) for value in _NECK]
    pose = np.stack([*neck, *hands["left"], *hands["right"]], axis=1).astype(np.float32)
    return Score(label, rows, pose)


def played(
    notes: np.ndarray, *, seconds: float, sample_rate: int = 16_000, instrument: str = "piano", seed: int = 0
) -> np.ndarray:
    """float32 [L]: ``notes`` [K, 4], see ``COLUMNS``, on an instrument of the world, at 0.1 RMS; silence for none.

    ConfigError for an instrument that it does not have.
    """
    if instrument not in music.INSTRUMENTS:
        raise ConfigError(f'there is no instrument "{instrument}".', hint=f"Known: {', '.join(music.INSTRUMENTS)}.")
    samples = max(1, round(seconds * sample_rate))
    rows = sorted((onset, held, round(pitch), min(1.0, max(0.05, loud))) for onset, held, pitch, loud in notes.tolist())
    tune = [music.Note(onset, held, pitch, loud, "left") for onset, held, pitch, loud in rows if onset < seconds]
    if not tune:
        return np.zeros(samples, np.float32)
    rng = np.random.default_rng(seed)
    stems = music.sound(music.INSTRUMENTS[instrument], tune, rng, sample_rate=sample_rate, samples=samples)
    return np.clip(stems["left"], -1.0, 1.0)
