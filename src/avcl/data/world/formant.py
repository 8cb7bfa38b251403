"""Formant synthesis: sound = (folds + breath) through a tract of moving resonances + frication through the front
cavity.

The source is exact in time (every sample has its own phase and loudness); the tract moves on a 5 ms grid. Each 10 ms
of the source is multiplied by the tract's complex response in the frequency domain and overlap-added, so filtering is
causal and needs no loop over samples:

    y = sum_k  IFFT( FFT(w_k x) * S(f) * prod_i F_i(t_k)^2 / (F_i(t_k)^2 - f^2 + j f B_i(t_k)) )

with S the glottal pulse and the radiation at the lips. The periodic source is a band-limited pulse train in closed
form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HOP_SECONDS = 0.005
_RING_SECONDS = 0.03  # longer than the ringing of the narrowest resonance
_GLOTTAL_HZ = 150.0
_HIGHER_FORMANTS = np.arange(4.5, 11.0)  # of a uniform tube, in units of its spacing: F5 ... F11


@dataclass(frozen=True)
class Controls:
    """What the tract and its sources do.

    On the grid t_k = k * ``HOP_SECONDS``, k = 0 ... K-1 with K >= seconds / HOP_SECONDS + 2: ``formants`` Hz [K, 3] ·
    ``nasal`` [K] in [0, 1] · ``noise_center``, ``noise_width`` Hz [K]. At every sample: ``pitch`` Hz [L] ·
    ``voicing``, ``breath``, ``friction`` [L], amplitudes of the three sources. Per clip: ``tract_scale`` (reference
    length / length) · ``tilt_hz``: corner of the source's low-pass (small: soft voice, large: pressed).
    """

    formants: np.ndarray
    nasal: np.ndarray
    noise_center: np.ndarray
    noise_width: np.ndarray
    pitch: np.ndarray
    voicing: np.ndarray
    breath: np.ndarray
    friction: np.ndarray
    tract_scale: float = 1.0
    tilt_hz: float = 3000.0


def grid_size(samples: int, sample_rate: int) -> int:
    """K of ``Controls``: how many grid times ``samples`` samples need."""
    return -(-samples // _hop(sample_rate)) + 2


def grid_times(samples: int, sample_rate: int) -> np.ndarray:
    """Seconds [K] of the grid."""
    return np.arange(grid_size(samples, sample_rate)) * (_hop(sample_rate) / sample_rate)


def _hop(sample_rate: int) -> int:
    return max(1, round(HOP_SECONDS * sample_rate))


def pulses(pitch: np.ndarray, sample_rate: int, start: float = 0.0) -> np.ndarray:
    """Pulse train [L] with all harmonics below 0.48 of the sample rate, power one at any pitch.

    sum_{n=1..N} cos(n p) = (sin((N + 1/2) p) / sin(p / 2) - 1) / 2, divided by sqrt(N / 2); p is the phase, N =
    N(pitch).
    """
    phase = (2 * np.pi / sample_rate) * np.cumsum(pitch, dtype=np.float64) + start
    phase = np.mod(phase, 2 * np.pi)
    harmonics = np.floor(0.48 * sample_rate / pitch)
    half = np.sin(0.5 * phase)
    near = np.abs(half) < 1e-5
    safe = np.where(near, 1.0, half)
    ratio = np.where(near, 2 * harmonics + 1, np.sin((harmonics + 0.5) * phase) / safe)
    return (0.5 * (ratio - 1) / np.sqrt(0.5 * harmonics)).astype(np.float32)


def _resonances(frequency: np.ndarray, formants: np.ndarray) -> np.ndarray:
    """Product of second-order resonances [K, bins]; bandwidth 45 Hz + 4.5 % of the formant's frequency."""
    out = np.ones((len(formants), len(frequency)), np.complex64)
    for i in range(formants.shape[1]):
        center = formants[:, i : i + 1].astype(np.float32)
        width = 45 + 0.045 * center
        term = np.empty_like(out)
        term.real = 1 - (frequency[None] / center) ** 2
        term.imag = frequency[None] * (width / center**2)
        out *= term
    return np.reciprocal(out, out=out)


def _source_shape(frequency: np.ndarray, tilt_hz: float) -> np.ndarray:
    """Glottal pulse (-12 dB an octave) times lip radiation (+6 dB an octave) times the tilt; at most 1."""
    ratio = 1j * frequency / _GLOTTAL_HZ
    return (2 * ratio / (1 + ratio) ** 2 / (1 + 1j * frequency / tilt_hz)).astype(np.complex64)


def _filtered(source: np.ndarray, response: np.ndarray, hop: int, n_fft: int) -> np.ndarray:
    """Overlap-add of windowed pieces of ``source`` [L], piece k filtered by ``response`` [K, bins]; zero pieces are
    skipped."""
    pieces = len(response)
    padded = np.zeros((pieces + 1) * hop, np.float32)
    padded[hop : hop + len(source)] = source  # piece k is centered on sample k * hop
    window = np.hanning(2 * hop + 1)[:-1].astype(np.float32)
    blocks = padded.reshape(-1, hop)
    framed = np.concatenate([blocks[:-1], blocks[1:]], axis=1) * window
    active = np.flatnonzero(np.abs(framed).max(axis=1) > 0)
    wet = np.zeros((pieces, n_fft), np.float32)
    if len(active):
        wet[active] = np.fft.irfft(np.fft.rfft(framed[active], n_fft) * response[active], n_fft)
    spans = -(-n_fft // hop)
    out = np.zeros((pieces + spans, hop), np.float32)
    for j in range(n_fft // hop):
        out[j : j + pieces] += wet[:, j * hop : (j + 1) * hop]
    return out.reshape(-1)[hop : hop + len(source)]


def synthesize(controls: Controls, noise: np.ndarray, *, sample_rate: int, phase: float = 0.0) -> np.ndarray:
    """Wave float32 [L] of ``controls``; ``noise`` [L] is white with deviation one, ``phase`` that of the first pulse.

    Loudness is relative: a vowel with ``voicing`` 1 has a deviation of some tenths. Scale the result as wanted.
    """
    hop = _hop(sample_rate)
    n_fft = hop * -(-(2 * hop + round(_RING_SECONDS * sample_rate)) // hop)
    frequency = np.fft.rfftfreq(n_fft, 1 / sample_rate).astype(np.float32)
    scale = controls.tract_scale

    moving = np.concatenate([controls.formants, np.full((len(controls.formants), 1), 3500.0 * scale)], axis=1)
    response = _resonances(frequency, moving)
    response *= _resonances(frequency, (_HIGHER_FORMANTS * 1000 * scale)[None])
    response *= _source_shape(frequency, controls.tilt_hz)[None]
    nasal = np.flatnonzero(controls.nasal > 0.01)
    if len(nasal):  # the nose adds a zero near 900 Hz and swallows the upper formants
        zero = 900.0 * scale
        notch = 1 - (frequency / zero) ** 2 + 1j * frequency * 120 / zero**2
        loss = notch / (1 + 1j * frequency / 350.0) ** 2
        amount = controls.nasal[nasal, None].astype(np.float32)
        response[nasal] *= 1 - amount + amount * loss.astype(np.complex64)[None]

    source = controls.voicing * pulses(controls.pitch, sample_rate, phase)
    source += controls.breath * noise
    wave = _filtered(source.astype(np.float32), response, hop, n_fft)

    hiss = (controls.friction * noise).astype(np.float32)
    if np.any(hiss):
        center = np.minimum(controls.noise_center * scale, 0.46 * sample_rate)[:, None].astype(np.float32)
        width = controls.noise_width[:, None].astype(np.float32) * np.float32(scale)
        band = np.empty((len(center), len(frequency)), np.complex64)
        band.real = center**2 - frequency[None] ** 2
        band.imag = frequency[None] * width
        skirt = 1j * frequency[None] / center
        band = (skirt / (1 + skirt) * center * np.sqrt(width * center) * 1.4j).astype(np.complex64) / band
        wave += 0.25 * _filtered(hiss, band, hop, n_fft)
    return wave
