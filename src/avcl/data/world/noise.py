"""White and smooth noise by slicing seeded pools: drawing 295k normals a clip would cost more than its picture.

A slice is chosen by the clip's own generator, so it stays a function of (preset, seed, index).
"""

from __future__ import annotations

from functools import cache

import numpy as np

_POOL = 1 << 20
_SEED = 20_240_917


@cache
def white_pool() -> np.ndarray:
    """float32 [2^20] of standard normals, the same in every process."""
    return np.random.Generator(np.random.PCG64(_SEED)).standard_normal(_POOL, dtype=np.float32)


def white(rng: np.random.Generator, n: int) -> np.ndarray:
    """float32 [n] of standard normals, a read-only view where the pool is long enough."""
    pool = white_pool()
    start = int(rng.integers(_POOL))
    if start + n <= _POOL:
        return pool[start : start + n]
    repeats = -(-(start + n) // _POOL)
    return np.concatenate([pool[start:], *([pool] * (repeats - 1))])[:n]


@cache
def _texture_pool() -> np.ndarray:
    """float32 [256, 256]: periodic noise with spectrum 1/f^1.5, zero mean, unit deviation."""
    rng = np.random.Generator(np.random.PCG64(_SEED + 1))
    spectrum = np.fft.rfft2(rng.standard_normal((256, 256)))
    radius = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None])
    radius[0, 0] = 1.0
    spectrum *= radius**-1.5
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum)
    return np.ascontiguousarray(field / field.std(), dtype=np.float32)


def texture(rng: np.random.Generator, height: int, width: int, scale: float = 1.0) -> np.ndarray:
    """float32 [height, width]: a smooth random surface of about unit deviation, its grain ``scale`` pixels wide."""
    pool = _texture_pool()
    top, left = rng.integers(256, size=2)
    rows = (top + np.arange(height) / scale).astype(np.intp) % 256
    columns = (left + np.arange(width) / scale).astype(np.intp) % 256
    return pool[rows[:, None], columns[None]]
