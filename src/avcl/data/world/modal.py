"""The sound of a struck or bowed solid: modal synthesis, s(t) = sum_k a_k exp(-d_k t) sin(2 pi f_k t).

f_k = f0(size) * register(material) * ratio_k(shape): the ratios are those of the ideal body, f0 ~ 1/R^2 as for a plate
whose thickness is fixed; d_k and the tilt of a_k belong to the material. A strike adds its force to the modes, so that
one state per mode carries the sound through all strikes, and onsets fall between samples where they should.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_BLOCK = 256

# Ideal bodies, relative to their lowest mode. disk: round membrane (zeros of the Bessel functions) · triangle: simply
# supported equilateral plate (m^2 + mn + n^2) · ring: extensional modes (sqrt(1 + n^2)) · bar: free ends (roots of cos
# x cosh x = 1).
RATIOS: dict[str, tuple[float, ...]] = {
    "disk": (1.0, 1.593, 2.136, 2.296, 2.653, 2.918),
    "triangle": (1.0, 2.333, 4.0, 4.333, 6.333, 7.0),
    "ring": (1.0, 1.414, 2.236, 3.162, 4.123, 5.099),
    "bar": (1.0, 2.757, 5.404, 8.933),
}
SHAPES = tuple(RATIOS)


@dataclass(frozen=True)
class Material:
    """``register``: factor on the pitch (stiffness over density) · ``t60``: seconds until the lowest mode lost 60 dB ·
    ``damping``: how much faster the high modes die · ``tilt``: amplitude ~ ratio^-tilt · ``level``: radiated
    amplitude."""

    register: float
    t60: float
    damping: float
    tilt: float
    level: float


MATERIALS: dict[str, Material] = {
    "wood": Material(0.5, 0.16, 0.9, 1.1, 1.3),
    "metal": Material(1.1, 1.6, 0.35, 0.35, 0.75),
    "glass": Material(2.3, 0.55, 0.6, 0.7, 0.9),
}


class Modes(NamedTuple):
    """Frequencies in Hz, amplitudes (unit energy times the material's level), and decay rates in 1/s, each [K]."""

    frequency: np.ndarray
    amplitude: np.ndarray
    decay: np.ndarray


def modes(shape: str, material: str, radius: float, strike: np.ndarray | None = None) -> Modes:
    """The modes of a body of ``radius`` (units of 1/64 picture height); ``strike`` [6]: factors on the amplitudes,
    i.e. where it is hit."""
    kind = MATERIALS[material]
    ratio = np.array(RATIOS[shape])
    frequency = 420.0 * (7.0 / radius) ** 2 * kind.register * ratio
    amplitude = ratio**-kind.tilt
    if strike is not None:
        amplitude = amplitude * strike[: len(ratio)]
    amplitude = kind.level * amplitude / np.sqrt(np.sum(amplitude**2))
    decay = 6.908 / kind.t60 * ratio**kind.damping
    return Modes(frequency, amplitude, decay)


def _audible(body: Modes, rate: int) -> Modes:
    keep = body.frequency < 0.46 * rate
    return Modes(body.frequency[keep], body.amplitude[keep], body.decay[keep])


def _ring_out(state: np.ndarray, z: np.ndarray, powers: np.ndarray, n: int) -> np.ndarray:
    """Im sum_k state_k z_k^i for i < n: z^(256 a + b) = z^(256 a) z^b, one real matrix product."""
    rows = -(-n // _BLOCK)
    lead = state * (z**_BLOCK) ** np.arange(rows)[:, None]
    left = np.concatenate([lead.real, lead.imag], axis=1).astype(np.float32)
    return (left @ powers).ravel()[:n]


def struck(
    body: Modes, times: Sequence[float] | np.ndarray, forces: Sequence[float] | np.ndarray, samples: int, rate: int
) -> np.ndarray:
    """float32 [samples]: the sound of strikes at ``times`` (seconds, ascending, before 0 allowed: what still rings is
    heard)."""
    body = _audible(body, rate)
    out = np.zeros(samples, dtype=np.float32)
    if len(body.frequency) == 0 or len(times) == 0:
        return out
    pole = (-body.decay + 2j * np.pi * body.frequency) / rate  # per sample
    z = np.exp(pole)
    table = z[:, None] ** np.arange(_BLOCK)
    powers = np.concatenate([table.imag, table.real], axis=0).astype(np.float32)
    at = np.asarray(times, dtype=np.float64) * rate
    state = np.zeros(len(z), dtype=np.complex128)
    now = float(at[0])
    for i, (instant, force) in enumerate(zip(at, forces, strict=True)):
        if instant >= samples - 1:
            break
        state = state * np.exp(pole * (instant - now)) + body.amplitude * force
        now = float(instant)
        first = max(int(np.ceil(now)), 0)
        last = min(max(int(np.ceil(at[i + 1])), 0) if i + 1 < len(at) else samples, samples)
        if last > first:
            out[first:last] = _ring_out(state * np.exp(pole * (first - now)), z, powers, last - first)
    return out


def bowed(body: Modes, envelope: np.ndarray, grain: np.ndarray, rate: int) -> np.ndarray:
    """float32 [L]: the modes kept ringing, times ``envelope`` [L] (the speed of the bow) roughened by ``grain`` [L]."""
    body = _audible(body, rate)
    n = len(envelope)
    if len(body.frequency) == 0:
        return np.zeros(n, dtype=np.float32)
    z = np.exp(2j * np.pi * body.frequency / rate)
    table = z[:, None] ** np.arange(_BLOCK)
    powers = np.concatenate([table.imag, table.real], axis=0).astype(np.float32)
    tone = _ring_out(body.amplitude.astype(np.complex128), z, powers, n)
    return (tone * envelope * (1.0 + 0.15 * grain)).astype(np.float32)
