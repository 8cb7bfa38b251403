"""Who speaks and how: the constants of a voice, and what an emotion does to prosody."""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import MappingProxyType

EMOTIONS = ("neutral", "happy", "sad", "angry", "fearful", "surprised")


@dataclass(frozen=True)
class Voice:
    """Who speaks: ``tract_cm`` scales all formants by 17 / tract_cm, ``pitch_hz`` is the mean pitch, ``breath`` the
    share of noise in the folds' sound, ``tilt_hz`` the corner of the source's low-pass, ``rate`` phonemes per second
    relative to normal."""

    tract_cm: float = 15.5
    pitch_hz: float = 150.0
    breath: float = 0.03
    tilt_hz: float = 2500.0
    rate: float = 1.0


@dataclass(frozen=True)
class Prosody:
    """How it is said: factors of the voice's ``pitch``, ``rate`` and ``tilt``, factor of the pitch ``range``,
    loudness ``gain_db``, ``tremor`` (semitones, 6.5 Hz), ``slope`` and ``final`` (semitones over the utterance and at
    its end)."""

    pitch: float = 1.0
    range: float = 1.0
    rate: float = 1.0
    tilt: float = 1.0
    gain_db: float = 0.0
    tremor: float = 0.0
    slope: float = -3.0
    final: float = -3.0

    def toward(self, other: Prosody, weight: float) -> Prosody:
        """The prosody a share ``weight`` of the way to ``other``: geometric for factors, linear for the rest."""
        factors = ("pitch", "range", "rate", "tilt")
        values = {}
        for name in (f.name for f in fields(self)):
            a, b = getattr(self, name), getattr(other, name)
            values[name] = a ** (1 - weight) * b**weight if name in factors else a + weight * (b - a)
        return Prosody(**values)


PROSODY = MappingProxyType(
    {
        "neutral": Prosody(),
        "happy": Prosody(pitch=1.25, range=1.8, rate=1.08, tilt=1.4, gain_db=3.0, slope=-1.0, final=-1.0),
        "sad": Prosody(pitch=0.90, range=0.40, rate=0.78, tilt=0.45, gain_db=-5.0, slope=-4.0, final=-2.0),
        "angry": Prosody(pitch=1.08, range=1.5, rate=1.15, tilt=2.4, gain_db=6.0, slope=-2.0, final=-5.0),
        "fearful": Prosody(pitch=1.40, range=0.7, rate=1.25, tilt=0.8, gain_db=-1.0, tremor=0.8, slope=1.0, final=0.0),
        "surprised": Prosody(pitch=1.35, range=2.0, rate=0.95, tilt=1.2, gain_db=2.0, slope=3.0, final=7.0),
    }
)
