"""Back from spectra to waves: the inverse transform, a phase for magnitudes that have none, powers from mel bands."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from avcl.dsp.spectrum import MelScale, mel_filters, stft
from avcl.errors import ConfigError


def istft(spectrum: Tensor, *, n_fft: int, hop: int, length: int) -> Tensor:
    """The wave [B, length] whose ``stft`` is nearest to ``spectrum`` complex [B, N, n_fft // 2 + 1], in least squares.

    ``x[t] = Σ_n w[t - n hop] y_n[t - n hop] / Σ_n w²[t - n hop]``, y_n the inverse transform of frame n and w the Hann
    window: exact for the spectrum of a wave where ``hop`` ≤ n_fft / 2. ConfigError for a hop that leaves gaps.
    """
    if spectrum.ndim != 3 or spectrum.shape[2] != n_fft // 2 + 1 or not 1 <= hop <= n_fft // 2:
        needs = f"[B, N, {n_fft // 2 + 1}] and 1 <= hop <= n_fft / 2"
        raise ConfigError(f"istft needs {needs}, not {list(spectrum.shape)}, {hop}.")
    window = torch.hann_window(n_fft, periodic=True, dtype=torch.float64).to(spectrum.device, spectrum.real.dtype)
    frames = torch.fft.irfft(spectrum, n_fft, dim=2) * window
    count = spectrum.shape[1]
    whole = (count - 1) * hop + n_fft
    fold = {"output_size": (1, whole), "kernel_size": (1, n_fft), "stride": (1, hop)}
    total = F.fold(frames.transpose(1, 2), **fold)[:, 0, 0]
    weight = F.fold(window.square()[None, :, None].expand(1, n_fft, count), **fold)[0, 0, 0]
    wave = total / weight.clamp(min=1e-3)  # the window is all but zero at the two ends only
    begin = n_fft // 2
    return F.pad(wave[:, begin : begin + length], (0, max(0, length - (whole - begin))))


def griffin_lim(
    magnitude: Tensor, *, n_fft: int, hop: int, length: int, steps: int = 32, generator: torch.Generator | None = None
) -> Tensor:
    """A wave [B, length] whose ``|stft|`` comes near ``magnitude`` [B, N, n_fft // 2 + 1] (Griffin & Lim 1984).

    ``X ← magnitude · X̂ / |X̂|``, X̂ the transform of the inverse of X, with momentum .99 (Perraudin et al. 2013), from
    a random phase that is the same for every row: an answer does not depend on who else is in the batch. Without a
    ``generator`` the phase starts at zero. Pitfall: short hops (n_fft / 4) sound better than those of n_fft / 2.
    """
    device = torch.device("cpu") if generator is None else generator.device
    shape = magnitude.shape[1:]
    draws = torch.zeros(shape) if generator is None else torch.rand(shape, generator=generator, device=device)
    phase = torch.polar(torch.ones_like(draws), 2 * math.pi * draws).to(magnitude.device)
    before = torch.zeros_like(phase)
    wave = istft(magnitude * phase, n_fft=n_fft, hop=hop, length=length)
    for _ in range(steps):
        found = stft(wave, n_fft=n_fft, hop=hop)
        ahead = found + 0.99 * (found - before)
        before = found
        phase = ahead / ahead.abs().clamp(min=1e-12)
        wave = istft(magnitude * phase, n_fft=n_fft, hop=hop, length=length)
    return wave


def power_of_mel(
    power: Tensor, *, sample_rate: float, n_fft: int, fmin: float = 0.0, scale: MelScale = "slaney"
) -> Tensor:
    """Powers ≥ 0 of the frequencies [..., n_fft // 2 + 1] whose mel bands come near ``power`` [..., n_mels].

    The least squares solution of smallest norm, cut at zero: what the bands do not say is spread smoothly.
    """
    inverse = _inverse(float(sample_rate), n_fft, power.shape[-1], float(fmin), scale)
    return (power @ inverse.to(power.device, power.dtype)).clamp(min=0)


@lru_cache(maxsize=16)
def _inverse(sample_rate: float, n_fft: int, n_mels: int, fmin: float, scale: MelScale) -> Tensor:
    return torch.linalg.pinv(mel_filters(sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, scale=scale))
