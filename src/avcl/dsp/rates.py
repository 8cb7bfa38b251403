"""Sample-rate conversion: SciPy's polyphase filter, the same answer in every process and on every machine."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from avcl.errors import ConfigError

# Half of the filter of scipy.signal.resample_poly: this many samples of the slower of the two rates.
HALF_FILTER = 10


def ratio(from_rate: float, to_rate: float) -> Fraction:
    """``to_rate / from_rate`` in lowest terms; ConfigError unless both are positive and finite."""
    if not (0 < from_rate < 1e7 and 0 < to_rate < 1e7):
        raise ConfigError(f"cannot resample from {from_rate} to {to_rate} samples a second: both must be positive.")
    exact = Fraction(to_rate).limit_denominator(1001) / Fraction(from_rate).limit_denominator(1001)
    if max(exact.numerator, exact.denominator) > 1_000_000:
        raise ConfigError(f"cannot resample from {from_rate} to {to_rate}: use whole numbers of samples a second.")
    return exact


def reach(up: int, down: int) -> int:
    """How many input samples on each side of an output sample the filter of ``resample`` reads."""
    return HALF_FILTER * max(up, down) // up + 1


@lru_cache(maxsize=16)
def _filter(up: int, down: int) -> np.ndarray:
    """The low-pass that ``resample_poly`` designs by default; it takes longer than filtering a short clip, so it is
    kept."""
    from scipy.signal import firwin

    slower = max(up, down)
    return firwin(2 * HALF_FILTER * slower + 1, 1.0 / slower, window=("kaiser", 5.0))


def resample(wave: Tensor, from_rate: float, to_rate: float, *, dim: int = 1) -> Tensor:
    """y[k] = sum_j x[j] h(k * down - j * up): ``wave`` at ``to_rate`` samples a second.

    ``wave`` [B,T] or [B,T,C] (any shape with ``dim`` as the time axis), floating point. Output sample k stands at k /
    to_rate seconds of the same clock (zero phase); its length is ceil(T * to_rate / from_rate). Outside of the wave
    is silence. Not differentiable. Raises ConfigError for a rate that is not positive.
    """
    factor = ratio(from_rate, to_rate)
    if factor == 1 or wave.shape[dim] == 0:
        return wave
    from scipy.signal import resample_poly

    up, down = factor.numerator, factor.denominator
    source = wave.detach().cpu().numpy()
    out = resample_poly(source, up, down, axis=dim, window=_filter(up, down).astype(source.dtype))
    return torch.from_numpy(out).to(wave.device, wave.dtype)
