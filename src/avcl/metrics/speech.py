"""Speech: word and character errors, intelligibility, perceived quality.

Each is computed by the library that the field uses; these come with the extras ``speech`` (jiwer, pystoi) and ``pesq``
(a C extension that needs a compiler). ExtraError says so where one is missing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avcl.errors import ConfigError, FeatureError
from avcl.metrics.inputs import Bools, Floats, floats, known, missing, same_shape
from avcl.metrics.separation import SILENCE


# --------------------------------------------------------------------------------------------------------- word errors
class SpeechErrors(NamedTuple):
    """Edits over a corpus of U utterances, by ``unit`` "word" or "character".

    ``substitutions``, ``deletions``, ``insertions``, ``length`` (units of the reference) [U].
    """

    substitutions: NDArray[np.int64]
    deletions: NDArray[np.int64]
    insertions: NDArray[np.int64]
    length: NDArray[np.int64]
    unit: str

    @property
    def edits(self) -> NDArray[np.int64]:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """WER or CER of the corpus: all edits over all units of the reference; can exceed 1."""
        return float(self.edits.sum() / self.length.sum())

    @property
    def mean_of_utterances(self) -> float:
        """Mean of the utterances' own rates, without those of empty reference: another number than ``rate``."""
        some = self.length > 0
        return float((self.edits[some] / self.length[some]).mean())

    @property
    def empty(self) -> int:
        """Utterances of empty reference: all they can do is insert."""
        return int((self.length == 0).sum())


def speech_errors(reference: Sequence[str], hypothesis: Sequence[str], *, unit: str = "word") -> SpeechErrors:
    """Minimal edits from each reference to its hypothesis.

    Texts are compared as they are, but for spaces around and between words: case and punctuation are the caller's to
    normalize. The recognizer that made the hypothesis is part of the metric. FeatureError where no reference holds
    anything.
    """
    known(unit, ("word", "character"), "unit")
    if isinstance(reference, str) or isinstance(hypothesis, str) or len(reference) != len(hypothesis):
        raise FeatureError("references and hypotheses must be two lists of texts of equal length.")
    try:
        import jiwer
    except ImportError as error:
        raise missing("jiwer", "speech", "The word error rate") from error
    said, heard = ([" ".join(text.split()) for text in texts] for texts in (reference, hypothesis))
    counts = np.zeros((4, len(said)), np.int64)
    full = [i for i, text in enumerate(said) if text]
    if not full:
        raise FeatureError("every reference is empty: there is no rate of errors.")
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    found = process([said[i] for i in full], [heard[i] for i in full])
    rows = {"substitute": 0, "delete": 1, "insert": 2}
    for i, pieces, units in zip(full, found.alignments, found.references, strict=True):
        counts[3, i] = len(units)
        for piece in pieces:
            if piece.type in rows:
                size = max(piece.ref_end_idx - piece.ref_start_idx, piece.hyp_end_idx - piece.hyp_start_idx)
                counts[rows[piece.type], i] += size
    for i in set(range(len(said))).difference(full):  # what was made up where nothing was said
        counts[2, i] = len(heard[i].split() if unit == "word" else heard[i])
    return SpeechErrors(counts[0], counts[1], counts[2], counts[3], unit)


def errors_of_items(reference: Sequence[str], hypothesis: Sequence[str], *, unit: str = "word") -> Floats:
    """Edits over units of each reference, float64 [U]; NaN where the reference is empty. See ``speech_errors``."""
    found = speech_errors(reference, hypothesis, unit=unit)
    return np.where(found.length > 0, found.edits / np.maximum(found.length, 1), np.nan)


def fixed_sentence(sentences: Sequence[str]) -> str:
    """The most frequent word at every place of ``sentences``: what to say where nothing was heard."""
    spoken = [text.split() for text in sentences]
    best = []
    for place in range(max((len(words) for words in spoken), default=0)):
        there = [words[place] for words in spoken if place < len(words)]
        best.append(max(sorted(set(there)), key=there.count))
    return " ".join(best)


# ----------------------------------------------------------------------------------------------------- intelligibility
class SpeechScores(NamedTuple):
    """``value`` [S], 0 where not ``scored`` [S] (nothing is said in the reference, or too little) · ``measure``."""

    value: Floats
    scored: Bools
    measure: str

    def mean(self) -> float:
        if not self.scored.any():
            raise FeatureError("no item holds enough speech to be scored.")
        return float(self.value[self.scored].mean())


def stoi(reference: ArrayLike, estimate: ArrayLike, *, rate: int, extended: bool = False) -> SpeechScores:
    """Short-time objective intelligibility (Taal 2011; ``extended``: Jensen 2016) of [S, L] (or one [L]), about 0 to 1.

    The library resamples to 10 kHz and drops silent frames; fewer than 30 frames of speech (0.4 s) cannot be scored. A
    silent estimate scores 0: it says nothing. Not for music.
    """
    s, e = _speech(reference, estimate, rate)
    try:
        import pystoi
    except ImportError as error:
        raise missing("pystoi", "speech", "STOI") from error
    value, scored = np.zeros(len(s)), np.zeros(len(s), bool)
    for i in range(len(s)):
        if np.abs(s[i]).sum() < SILENCE:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            try:
                found = pystoi.stoi(s[i], e[i], rate, extended=extended)
            except (RuntimeWarning, ValueError):  # too few frames, or not even one
                continue
        scored[i], value[i] = True, found if np.abs(e[i]).sum() >= SILENCE else 0.0
    return SpeechScores(value, scored, "ESTOI" if extended else "STOI")


def pesq(reference: ArrayLike, estimate: ArrayLike, *, rate: int, band: str = "wide") -> SpeechScores:
    """Perceived quality (ITU P.862: "narrow", 8 or 16 kHz; P.862.2: "wide", 16 kHz) as MOS-LQO, about 1 to 4.6.

    Other rates must be resampled before: ConfigError. Items in which no utterance is found are not scored; a silent
    estimate of audible speech is refused by the measure and is not scored either.
    """
    known(band, ("wide", "narrow"), "band")
    if rate not in ((16000,) if band == "wide" else (8000, 16000)):
        raise ConfigError(f"PESQ of the {band} band is not defined at {rate} Hz.", hint="Resample to 16000 Hz.")
    s, e = _speech(reference, estimate, rate)
    try:
        import pesq as library
    except ImportError as error:
        raise missing("pesq", "pesq", "PESQ") from error
    value, scored = np.zeros(len(s)), np.zeros(len(s), bool)
    for i in range(len(s)):
        if min(np.abs(s[i]).sum(), np.abs(e[i]).sum()) < SILENCE:
            continue
        try:
            found = library.pesq(rate, s[i], e[i], "wb" if band == "wide" else "nb")
        except (library.NoUtterancesError, library.BufferTooShortError):
            continue
        scored[i], value[i] = True, found
    return SpeechScores(value, scored, f"PESQ, {band} band")


def _speech(reference: ArrayLike, estimate: ArrayLike, rate: int) -> tuple[Floats, Floats]:
    if not isinstance(rate, int) or rate < 1:
        raise ConfigError(f"rate = {rate} must be a whole number of samples a second.")
    s = floats(reference, "the reference", ndim=(1, 2))
    e = floats(estimate, "the estimate", ndim=(1, 2))
    same_shape(s, e, "reference and estimate")
    return np.atleast_2d(s), np.atleast_2d(e)
