"""Two ears: a source at azimuth theta arrives earlier and louder at the nearer ear.

ITD = (a / c)(theta + sin theta) (Woodworth's sphere, a = 8.75 cm, c = 343 m/s); ILD = 8 sin(theta) dB, half of it on
each ear. theta > 0 is to the right; both ears are shifted by half the ITD, so that the mean arrival stays on the clock.
"""

from __future__ import annotations

import numpy as np

_RADIUS, _SOUND, _ILD_DB = 0.0875, 343.0, 8.0
FIELD = np.deg2rad(60.0)  # half the field of view: the picture's edges stand at -60 and +60 degrees


def azimuth(x: np.ndarray, width: float) -> np.ndarray:
    """Radians of the direction of picture column ``x`` of ``width``: -60 degrees at the left edge, +60 at the right."""
    return (2.0 * x / width - 1.0) * FIELD


def itd(theta: np.ndarray) -> np.ndarray:
    """Seconds by which the left ear hears later than the right (positive: the source is on the right)."""
    return _RADIUS / _SOUND * (theta + np.sin(theta))


def ild_db(theta: np.ndarray) -> np.ndarray:
    """Decibels by which the right ear is louder than the left."""
    return _ILD_DB * np.sin(theta)


def binaural(mono: np.ndarray, theta: np.ndarray | float, rate: int) -> np.ndarray:
    """float32 [L, 2] of a mono source [L] whose azimuth is ``theta`` [L] or a scalar."""
    n = np.arange(len(mono), dtype=np.float64)
    angle = np.broadcast_to(theta, mono.shape)
    half_delay = 0.5 * rate * itd(angle)
    gain = 10.0 ** (0.5 * ild_db(angle) / 20.0)
    left = _delayed(mono, n - half_delay) / gain
    right = _delayed(mono, n + half_delay) * gain
    return np.stack([left, right], axis=1).astype(np.float32)


def _delayed(mono: np.ndarray, at: np.ndarray) -> np.ndarray:
    """``mono`` at fractional positions, by cubic (Catmull-Rom) interpolation; zeros outside."""
    padded = np.concatenate([np.zeros(32, np.float32), mono, np.zeros(32, np.float32)])
    whole = np.floor(at).astype(np.intp)
    f = (at - whole).astype(np.float32)
    p0, p1, p2, p3 = (padded[whole + 32 + k] for k in (-1, 0, 1, 2))
    return p1 + 0.5 * f * (p2 - p0 + f * (2 * p0 - 5 * p1 + 4 * p2 - p3 + f * (3 * (p1 - p2) + p3 - p0)))
