"""Separation of sounds: ratios in decibels, and distances of binaural sound.

The same audio is several dB apart under two definitions with the same name, so each is a function or a named variant:
BSS Eval "sources" (v3: any 512-tap filter of the target is forgiven), BSS Eval "images" (the target itself), the
scale-invariant ratio, and the plain ratio. The reference always comes first.

Silence. A reference or an estimate whose absolute samples sum to less than ``silence`` has no ratio. Its row is 0, is
False in ``scored``, is part of no mean, and never makes the other sources of the mixture unscorable. Ratios are limited
to +-156.5 dB, what float64 resolves: a perfect estimate is at the limit, not at infinity.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from avcl.errors import FeatureError
from avcl.metrics.inputs import Bools, Floats, Ints, floats, known, same_shape

LIMIT_DB = float(-10 * np.log10(np.finfo(np.float64).eps))
SILENCE = 1e-5  # sum of absolute samples, the bound of the published evaluation of MUSIC
# Short-time Fourier transform of the binaural distance at 16 kHz: 25 ms Hann windows every 10 ms.
BINAURAL_FFT, BINAURAL_WINDOW, BINAURAL_HOP = 512, 400, 160


# ------------------------------------------------------------------------------------------------------------ BSS Eval
@dataclass(frozen=True)
class Separation:
    """BSS Eval of S sources, in dB; rows that are not ``scored`` are 0.

    ``sdr``, ``sir``, ``sar`` [S] · ``isr`` [S] for "images", else None · ``silent_reference``, ``silent_estimate`` [S]
    (the latter of the paired estimate) · ``estimate_of`` [S] which estimate stands for each source · ``variant``.
    """

    sdr: Floats
    sir: Floats
    sar: Floats
    isr: Floats | None
    silent_reference: Bools
    silent_estimate: Bools
    estimate_of: Ints
    variant: str

    @property
    def scored(self) -> Bools:
        return ~(self.silent_reference | self.silent_estimate)

    def means(self) -> dict[str, float]:
        """{"sdr", "sir", "sar"(, "isr")}: means over the scored sources; FeatureError where all are silent."""
        if not self.scored.any():
            raise FeatureError(f"all {len(self.sdr)} sources are silent: there is nothing to score.")
        values = {"sdr": self.sdr, "sir": self.sir, "sar": self.sar, "isr": self.isr}
        return {name: float(v[self.scored].mean()) for name, v in values.items() if v is not None}


def bss_eval(
    reference: ArrayLike,
    estimate: ArrayLike,
    *,
    variant: str = "sources",
    permute: bool = False,
    silence: float = SILENCE,
) -> Separation:
    """SDR, SIR and SAR (Vincent 2006) of ``estimate`` [S, L] or, for "images", also [S, L, channels].

    ``variant``: "sources": P_s projects on 512 delayed copies of the target, P on those of all sources; SDR =
    |P_s e|² / |e - P_s e|², SIR = |P_s e|² / |P e - P_s e|², SAR = |P e|² / |e - P e|² · "images": SDR = |s|² /
    |e - s|², ISR = |s|² / |P_s e - s|². One source alone has no interference: SIR at the limit.
    FeatureError where the references depend on each other linearly to the last digit.
    ``permute``: pair estimates and references by the largest sum of SIR; wrong where the estimate is conditioned on its
    source, hence off.
    """
    known(variant, ("sources", "images"), "variant of BSS Eval")
    dims: tuple[int, ...] = (1, 2) if variant == "sources" else (1, 2, 3)
    s, e = floats(reference, "the reference", ndim=dims), floats(estimate, "the estimate", ndim=dims)
    same_shape(s, e, "reference and estimate")
    s, e = (np.atleast_2d(x) for x in (s, e))
    count = len(s)
    quiet_s, quiet_e = _silent(s, silence), _silent(e, silence)
    heard = np.flatnonzero(~quiet_s)  # a silent reference spans nothing: the projections are the same without it
    paired = np.arange(count)
    values = np.zeros((4, count))
    if permute and len(heard) and not quiet_e.all():
        paired, values = _best_pairs(s, e, heard, np.flatnonzero(~quiet_e), variant)
    scored = ~quiet_s & ~quiet_e[paired]
    if scored.any() and not permute:
        # The library refuses silence anywhere; sources do not depend on each other's estimates, so a stand-in will do.
        stand_in = np.where(scored.reshape(-1, *[1] * (s.ndim - 1)), e, s)
        values[:, heard] = _bss(s[heard], stand_in[heard], variant)
    values[:, ~scored] = 0.0
    sdr, isr, sir, sar = values
    return Separation(sdr, sir, sar, isr if variant == "images" else None, quiet_s, quiet_e[paired], paired, variant)


class Improvement(NamedTuple):
    """``value`` [S] dB gained over the unprocessed mixture (NSDR), 0 where not ``scored`` [S] · both evaluations."""

    value: Floats
    scored: Bools
    estimate: Separation
    mixture: Separation

    def mean(self) -> float:
        if not self.scored.any():
            raise FeatureError("all sources are silent: there is nothing to score.")
        return float(self.value[self.scored].mean())


def sdr_improvement(
    reference: ArrayLike,
    estimate: ArrayLike,
    mixture: ArrayLike,
    *,
    variant: str = "sources",
    silence: float = SILENCE,
) -> Improvement:
    """NSDR = SDR(estimate) - SDR(mixture), pairs fixed; ``mixture`` [L] (or [L, channels]) is each source's rival."""
    s = np.atleast_2d(floats(reference, "the reference", ndim=(1, 2, 3)))
    x = floats(mixture, "the mixture", ndim=(1, 2))
    same_shape(s[0], x, "a source and the mixture")
    own = bss_eval(s, np.atleast_2d(estimate), variant=variant, silence=silence)
    rival = bss_eval(s, np.broadcast_to(x, s.shape), variant=variant, silence=silence)
    scored = own.scored & rival.scored
    return Improvement(np.where(scored, own.sdr - rival.sdr, 0.0), scored, own, rival)


def _bss(s: Floats, e: Floats, variant: str) -> Floats:
    """[4, S] SDR, ISR (0 for sources), SIR, SAR by mir_eval, limited; nothing is silent here."""
    from mir_eval import separation

    peak = max(np.abs(s).max(), np.abs(e).max())  # one scale for all changes no ratio, and its squares stay in range
    s, e = s / peak, e / peak
    with warnings.catch_warnings():
        # mir_eval announces that this module leaves it in 0.9, below which it is pinned.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            if variant == "images":
                sdr, isr, sir, sar, _ = separation.bss_eval_images(s, e, compute_permutation=False)
            else:
                sdr, sir, sar, _ = separation.bss_eval_sources(s, e, compute_permutation=False)
                isr = np.zeros(len(s))
        except AttributeError as error:  # its way out of a singular system ends at a name that NumPy 2 has not got
            raise FeatureError(
                "the references are copies of each other: what belongs to which is undefined.",
                hint="Leave such mixtures out.",
            ) from error
    return _limited(np.stack([sdr, isr, sir, sar]))


def _best_pairs(s: Floats, e: Floats, heard: Ints, given: Ints, variant: str) -> tuple[Ints, Floats]:
    """([S] the estimate of each source, [4, S] its values); silent ones get what is left over."""
    from scipy.optimize import linear_sum_assignment

    table = np.stack([_bss(s[heard], np.broadcast_to(e[j], s[heard].shape), variant) for j in given], axis=2)
    rows, columns = linear_sum_assignment(-table[2])  # by SIR
    paired, values = np.full(len(s), -1), np.zeros((4, len(s)))
    paired[heard[rows]] = given[columns]
    values[:, heard[rows]] = table[:, rows, columns]
    paired[paired < 0] = np.setdiff1d(np.arange(len(s)), paired)
    return paired, values


# --------------------------------------------------------------------------------------------------------- plain ratios
class Decibels(NamedTuple):
    """``value`` [S] dB, 0 where not ``scored`` [S] (a silent reference or estimate)."""

    value: Floats
    scored: Bools

    def mean(self) -> float:
        if not self.scored.any():
            raise FeatureError("all sources are silent: there is nothing to score.")
        return float(self.value[self.scored].mean())


def si_sdr(reference: ArrayLike, estimate: ArrayLike, *, zero_mean: bool = False, silence: float = SILENCE) -> Decibels:
    """10 log |a s|² / |e - a s|², a = <e, s> / <s, s>, of each source [S, L] (or one [L]) (Le Roux 2019).

    ``zero_mean``: subtract the means first; the value differs, so say which. No scale of the estimate changes it.
    """
    s, e, scored = _pairs(reference, estimate, silence)
    if zero_mean:
        s, e = s - s.mean(1, keepdims=True), e - e.mean(1, keepdims=True)
        # What is constant is silent after its mean is gone, but for rounding.
        scored &= (np.ptp(s, axis=1) > 0) & (np.ptp(e, axis=1) > 0)
    peaks = (np.abs(x).max(1, keepdims=True) for x in (s, e))
    s, e = (x / np.where(peak > 0, peak, 1.0) for x, peak in zip((s, e), peaks, strict=True))
    power = (s * s).sum(1, keepdims=True)
    target = np.divide((e * s).sum(1, keepdims=True), power, out=np.zeros_like(power), where=power > 0) * s
    return Decibels(_ratio(target, e - target, scored), scored)


def snr(reference: ArrayLike, estimate: ArrayLike, *, silence: float = SILENCE) -> Decibels:
    """10 log |s|² / |e - s|² of each source [S, L] (or one [L]); equal to the SDR of BSS Eval "images"."""
    s, e, scored = _pairs(reference, estimate, silence)
    peak = np.maximum(np.abs(s).max(1, keepdims=True), np.abs(e).max(1, keepdims=True))
    s, e = (x / np.where(peak > 0, peak, 1.0) for x in (s, e))  # squares neither overflow nor vanish
    return Decibels(_ratio(s, e - s, scored), scored)


def _pairs(reference: ArrayLike, estimate: ArrayLike, silence: float) -> tuple[Floats, Floats, Bools]:
    s = floats(reference, "the reference", ndim=(1, 2))
    e = floats(estimate, "the estimate", ndim=(1, 2))
    same_shape(s, e, "reference and estimate")
    s, e = np.atleast_2d(s), np.atleast_2d(e)
    return s, e, ~(_silent(s, silence) | _silent(e, silence))


def _silent(x: Floats, silence: float) -> Bools:
    total = np.abs(x).reshape(len(x), -1).sum(1)
    return (total < silence) | (total == 0)


def _ratio(signal: Floats, noise: Floats, scored: Bools) -> Floats:
    above, below = (np.maximum((x * x).sum(1), np.finfo(np.float64).tiny) for x in (signal, noise))
    return np.where(scored, _limited(10 * (np.log10(above) - np.log10(below))), 0.0)


def _limited(decibels: Floats) -> Floats:
    return np.clip(decibels, -LIMIT_DB, LIMIT_DB)


# ------------------------------------------------------------------------------------------------------ binaural sound
def binaural_stft_distance(
    reference: ArrayLike,
    estimate: ArrayLike,
    *,
    form: str = "mean square",
    peak_normalized: bool = False,
    padding: str = "zeros",
) -> float:
    """Distance of the complex spectra of left and right, ``reference`` and ``estimate`` [2, L] at 16 kHz, summed.

    ``form``: "mean square": mean over 2 x 257 x T of the squared differences of real and imaginary parts (the released
    code of 2.5D visual sound) · "norm": Frobenius norm (as papers write it). ``peak_normalized``: both signals are
    first divided by their own peak over both ears (a silent one stays silent). ``padding`` at the borders: "zeros" or
    "reflect". All three change the value: a table names them.
    """
    import torch

    known(form, ("mean square", "norm"), "form of the distance")
    known(padding, ("zeros", "reflect"), "padding")
    truth, guess = _ears(reference, estimate, peak_normalized)
    if truth.shape[1] <= BINAURAL_FFT // 2:
        raise FeatureError(f"{truth.shape[1]} samples are too short for windows of {BINAURAL_FFT}.")
    spectrum = torch.stft(
        torch.from_numpy(guess - truth),  # the transform is linear
        BINAURAL_FFT,
        BINAURAL_HOP,
        BINAURAL_WINDOW,
        torch.hann_window(BINAURAL_WINDOW, dtype=torch.float64),
        center=True,
        pad_mode="constant" if padding == "zeros" else "reflect",
        return_complex=True,
    )
    power = torch.view_as_real(spectrum).square()  # [2, 257, T, 2]
    each = power.mean((1, 2, 3)) if form == "mean square" else power.sum((1, 2, 3)).sqrt()
    return float(each.sum())


def envelope_distance(reference: ArrayLike, estimate: ArrayLike, *, peak_normalized: bool = False) -> float:
    """Sum over both ears of the root mean square difference of the Hilbert envelopes of [2, L]."""
    from scipy.signal import hilbert

    truth, guess = _ears(reference, estimate, peak_normalized)
    gap = np.abs(hilbert(guess, axis=1)) - np.abs(hilbert(truth, axis=1))
    return float(np.sqrt((gap**2).mean(1)).sum())


def _ears(reference: ArrayLike, estimate: ArrayLike, peak_normalized: bool) -> tuple[Floats, Floats]:
    s, e = floats(reference, "the reference", ndim=2), floats(estimate, "the estimate", ndim=2)
    same_shape(s, e, "reference and estimate")
    if len(s) != 2:
        raise FeatureError(f"binaural sound is [2, samples], not {list(s.shape)}.")
    if peak_normalized:
        s, e = (x / np.abs(x).max() if x.any() else x for x in (s, e))
    return s, e
