"""Spectra on the clock: short-time Fourier transform and log-mel, in torch, differentiable.

Frame n is centered on sample n * hop; there are ceil(T / hop) frames, one for every hop that begins inside the wave,
so the mask of a spectrum is ``mask[:, ::hop]`` of the wave and its rate is ``sample_rate / hop``. Outside of the wave
is silence.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avcl.errors import ConfigError

MelScale = Literal["slaney", "htk"]


@lru_cache(maxsize=32)
def _hann(n_fft: int, device: str, dtype: torch.dtype) -> Tensor:
    return torch.hann_window(n_fft, periodic=True, dtype=torch.float64).to(device, dtype)


def stft(wave: Tensor, *, n_fft: int, hop: int) -> Tensor:
    """X[n, f] = sum_t x[n * hop + t - n_fft / 2] w[t] exp(-2 pi i f t / n_fft), w the periodic Hann window.

    ``wave`` [B,T] -> complex [B,N,F]; [B,T,C] -> [B,N,F,C]; N = ceil(T / hop), F = n_fft // 2 + 1. Raises ConfigError
    for a wave of another rank or for a hop that is not in 1..n_fft.
    """
    if wave.ndim == 3:
        batch, _, channels = wave.shape
        each = stft(wave.transpose(1, 2).reshape(batch * channels, -1), n_fft=n_fft, hop=hop)
        return each.reshape(batch, channels, *each.shape[1:]).permute(0, 2, 3, 1)
    if wave.ndim != 2 or not 1 <= hop <= n_fft:
        raise ConfigError(
            f"stft needs a wave [B,T] or [B,T,C] and 1 <= hop <= n_fft, not {list(wave.shape)}, {hop}, {n_fft}."
        )
    length = wave.shape[1]
    steps = (length + hop - 1) // hop  # not -(-length // hop), which ONNX rounds the other way
    # The last frame starts at (steps - 1) * hop - n_fft // 2: pad just far enough for it to be whole.
    padded = F.pad(wave, (n_fft // 2, max(0, (steps - 1) * hop + n_fft - n_fft // 2 - length)))
    if steps == 0:
        return torch.zeros(wave.shape[0], 0, n_fft // 2 + 1, dtype=torch.complex64, device=wave.device)
    window = _hann(n_fft, str(wave.device), wave.dtype)
    out = torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True)
    return out[:, :, :steps].transpose(1, 2)


def _hertz_to_mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hertz / 700.0)
    above = 15.0 + 27.0 * np.log(np.maximum(hertz, 1000.0) / 1000.0) / np.log(6.4)
    return np.where(hertz < 1000.0, hertz * 3.0 / 200.0, above)


def _mel_to_hertz(mel: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    above = 1000.0 * np.exp((np.maximum(mel, 15.0) - 15.0) * np.log(6.4) / 27.0)
    return np.where(mel < 15.0, mel * 200.0 / 3.0, above)


@lru_cache(maxsize=32)
def _filterbank(sample_rate: float, n_fft: int, n_mels: int, fmin: float, fmax: float, scale: str) -> Tensor:
    if scale not in ("slaney", "htk"):
        raise ConfigError(f'mel scale "{scale}" is unknown.', hint="Use slaney or htk.")
    if not 0 <= fmin < fmax <= sample_rate / 2 or n_mels < 1:
        raise ConfigError(f"{n_mels} mel bands between {fmin} and {fmax} Hz do not fit a rate of {sample_rate}.")
    limits = _hertz_to_mel(np.array([fmin, fmax]), scale)
    edges = _mel_to_hertz(np.linspace(limits[0], limits[1], n_mels + 2), scale)
    bins = np.fft.rfftfreq(n_fft, 1.0 / sample_rate)
    rising = (bins[:, None] - edges[None, :-2]) / np.diff(edges)[None, :-1]
    falling = (edges[None, 2:] - bins[:, None]) / np.diff(edges)[None, 1:]
    bank = np.clip(np.minimum(rising, falling), 0.0, None) * (2.0 / (edges[2:] - edges[:-2]))
    return torch.from_numpy(bank)


@lru_cache(maxsize=32)
def _bank_on(
    sample_rate: float, n_fft: int, n_mels: int, fmin: float, fmax: float, scale: str, device: str, dtype: torch.dtype
) -> Tensor:
    return _filterbank(sample_rate, n_fft, n_mels, fmin, fmax, scale).to(device, dtype)


def mel_filters(
    sample_rate: float,
    *,
    n_fft: int,
    n_mels: int,
    fmin: float = 0.0,
    fmax: float | None = None,
    scale: MelScale = "slaney",
) -> Tensor:
    """Triangles of equal area on the mel scale, float64 [n_fft // 2 + 1, n_mels] (librosa's ``filters.mel``,
    transposed).

    ``scale`` "slaney": linear below 1 kHz and logarithmic above (the default of librosa) · "htk": 2595 log10(1 + f /
    700).
    """
    return _filterbank(sample_rate, n_fft, n_mels, fmin, sample_rate / 2 if fmax is None else fmax, scale).clone()


def log_mel(
    wave: Tensor,
    *,
    sample_rate: float,
    n_fft: int = 400,
    hop: int = 160,
    n_mels: int = 64,
    fmin: float = 0.0,
    fmax: float | None = None,
    scale: MelScale = "slaney",
    floor: float = 1e-6,
) -> Tensor:
    """S[n, m] = ln(max(floor, sum_f M[f, m] |X[n, f]|^2)), X the STFT and M equal-area triangles on the mel scale.

    ``wave`` [B,T] -> [B,N,n_mels]; [B,T,C] -> [B,N,n_mels,C] (the shape of a spectrum Stream); N = ceil(T / hop); the
    rate of the result is ``sample_rate / hop``. ``fmax`` defaults to half of the sample rate. Raises ConfigError
    where the bands do not fit.
    """
    top = sample_rate / 2 if fmax is None else fmax
    bank = _bank_on(float(sample_rate), n_fft, n_mels, float(fmin), float(top), scale, str(wave.device), wave.dtype)
    spectrum = stft(wave, n_fft=n_fft, hop=hop)
    power = spectrum.real.square() + spectrum.imag.square()
    bands = torch.einsum("bnfc,fm->bnmc", power, bank) if wave.ndim == 3 else power @ bank
    return bands.clamp_min(floor).log()
