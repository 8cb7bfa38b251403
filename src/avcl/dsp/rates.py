"""Sample-rate conversion: SciPy's polyphase filter, the same answer in every process and on every machine."""

from __future__ import annotations

from fractions import Fraction

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


def resample(wave: Tensor, from_rate: float, to_rate: float, *, dim: int = 1) -> Tensor:
    """y[k] = sum_j x[j] h(k * down - j * up): ``wave`` at ``to_rate`` samples a second.

    ``wave`` [B,T] or [B,T,C] (any shape with ``dim`` as the time axis), floating point. Output sample k stands at k / to_rate
    seconds of the same clock (zero phase); its length is ceil(T * to_rate / from_rate). Outside of the wave is silence.
    Not differentiable. Raises ConfigError for a rate that is not positive.
    """
    factor = ratio(from_rate, to_rate)
    if factor == 1 or wave.shape[dim] == 0:
        return wave
    from scipy.signal import resample_poly

    source = wave.detach().cpu().numpy()
    out = resample_poly(source, factor.numerator, factor.denominator, axis=dim, window=("kaiser", 5.0))
    return torch.from_numpy(out).to(wave.device, wave.dtype)
