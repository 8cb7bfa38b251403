"""Speech on one continuous clock: words -> timed phonemes -> trajectories of lips, tract, folds -> sound.

The same trajectories drive the face and the synthesizer, and both may be read at any instant: a closure of the lips
begins and ends in the picture when it does in the sound, whatever the frame rate. An emotion changes mean and range
of the pitch, the rate, the loudness, the spectral tilt and the final contour (``PROSODY``); who speaks sets tract
length and pitch (``Voice``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from avcl.data.world.formant import Controls, grid_times, synthesize
from avcl.data.world.noise import white
from avcl.data.world.phonemes import PHONES, REFERENCE_TRACT_CM, Phone, pronounce_all
from avcl.data.world.prosody import PROSODY, Prosody, Voice


class Segment(NamedTuple):
    """One timed phoneme: seconds ``start`` to ``end``; ``release`` is where a closure opens (else ``start``);
    ``word`` -1 in pauses."""

    phone: str
    start: float
    end: float
    release: float
    word: int
    stressed: bool


class Word(NamedTuple):
    """One timed word, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """Segments from 0 to ``seconds`` without a gap, pauses included, and the words they make up."""

    segments: tuple[Segment, ...]
    words: tuple[Word, ...]
    seconds: float

    def truth(self) -> dict[str, Any]:
        """JSON-able: words and phonemes (without pauses), each with its seconds; a stop also with the instant of its
        release."""
        phones = [
            {
                "phone": s.phone,
                "start": round(s.start, 5),
                "end": round(s.end, 5),
                "release": round(s.release, 5),
                "word": s.word,
            }
            for s in self.segments
            if s.word >= 0
        ]
        words = [{"word": w.text, "start": round(w.start, 5), "end": round(w.end, 5)} for w in self.words]
        return {"words": words, "phonemes": phones}


_HOLDS = {"stop", "affricate"}


def _aspiration(phone: Phone, before: str, after: Phone | None) -> float:
    """Seconds from the release of a stop to the onset of the voice."""
    if phone.kind != "stop":
        return 0.0
    if phone.voiced or before == "s":
        return 0.012
    return 0.050 if after is not None and after.voiced else 0.030


def plan(
    text: str | Sequence[str],
    rng: np.random.Generator,
    *,
    rate: float = 1.0,
    lead: float = 0.1,
    seconds: float | None = None,
) -> Utterance:
    """Time the phonemes of ``text``: ``lead`` seconds of silence, then speech, then silence to ``seconds``.

    Stressed vowels are longer, the last one longest, every phoneme varies by 8 %; words are joined, now and then with
    a short pause. Speech that does not fit between ``lead`` and 0.1 s before ``seconds`` is said faster.
    """
    spoken = pronounce_all(text)
    items: list[tuple[str, bool, int]] = []
    for number, (_, phones) in enumerate(spoken):
        if number and rng.random() < 0.12:
            items.append(("sil", False, -1))
        items += [(p.rstrip("1"), p.endswith("1"), number) for p in phones]
    vowels = [i for i, (p, _, _) in enumerate(items) if PHONES[p].is_vowel]
    held, extra = [], []
    for i, (symbol, stressed, _) in enumerate(items):
        phone = PHONES[symbol]
        length = 0.07 if symbol == "sil" else phone.seconds
        if phone.is_vowel:
            length *= (1.12 if stressed else 0.85) * (1.3 if i == vowels[-1] else 1.0)
        held.append(length)
        after = PHONES[items[i + 1][0]] if i + 1 < len(items) else None
        extra.append(_aspiration(phone, items[i - 1][0] if i else "sil", after))
    vary = np.exp(0.08 * rng.standard_normal(len(items)))
    lengths = np.asarray(held) * vary / rate
    extras = np.asarray(extra) / rate**0.5
    if seconds is not None and len(items):
        squeeze = min(1.0, (seconds - lead - 0.1) / float((lengths + extras).sum()))
        lengths, extras = lengths * squeeze, extras * squeeze

    segments = [Segment("sil", 0.0, lead, 0.0, -1, False)]
    clock = lead
    for (symbol, stressed, word), hold, more in zip(items, lengths.tolist(), extras.tolist(), strict=True):
        kind = PHONES[symbol].kind
        release = clock + (0.5 * hold if kind == "affricate" else hold) if kind in _HOLDS else clock
        segments.append(Segment(symbol, clock, clock + hold + more, release, word, stressed))
        clock += hold + more
    end = max(clock + 0.1, seconds or 0.0)
    segments.append(Segment("sil", clock, end, clock, -1, False))
    words = []
    for number, (name, _) in enumerate(spoken):
        own = [s for s in segments if s.word == number]
        words.append(Word(name, own[0].start, own[-1].end))
    return Utterance(tuple(segments), tuple(words), end)


class _Track:
    """A value that rests at key points and glides between them on a half cosine."""

    def __init__(self, keys: Sequence[tuple[float, float]], rest: float) -> None:
        kept = [(t, v) for t, v in keys if not np.isnan(v)] or [(0.0, rest)]
        self.times = np.maximum.accumulate(np.array([t for t, _ in kept]))
        self.values = np.array([v for _, v in kept])

    def __call__(self, at: np.ndarray) -> np.ndarray:
        last = len(self.times) - 1
        right = np.clip(np.searchsorted(self.times, at, side="right"), 1, max(last, 1))
        right = np.minimum(right, last)
        left = np.maximum(right - 1, 0)
        gap = self.times[right] - self.times[left]
        u = np.clip((at - self.times[left]) / np.where(gap > 0, gap, 1.0), 0.0, 1.0)
        return self.values[left] + (self.values[right] - self.values[left]) * (u * u * (3 - 2 * u))


def _hold(segment: Segment, phone: Phone) -> tuple[float, float]:
    """When the articulators rest at the phoneme's target. Closed lips rest from the closure's first to its last
    instant."""
    length = segment.end - segment.start
    if phone.kind == "silence":
        return segment.start, segment.end
    if phone.kind == "stop":
        return segment.start, segment.release
    if phone.kind == "nasal" and phone.opening == 0:
        return segment.start, segment.end
    inner = 0.3 if phone.is_vowel else 0.2
    return segment.start + inner * length, segment.end - inner * length


class Articulation:
    """The trajectories of an utterance in one voice and manner; every method takes seconds, in any order and number."""

    def __init__(self, utterance: Utterance, voice: Voice, prosody: Prosody, rng: np.random.Generator) -> None:
        self.utterance, self.voice, self.prosody = utterance, voice, prosody
        lips: tuple[list, list, list] = ([], [], [])
        tract: tuple[list, list, list] = ([], [], [])
        segments = utterance.segments
        for i, segment in enumerate(segments):
            phone = PHONES[segment.phone]
            first, last = _hold(segment, phone)
            if phone.kind == "silence":
                if i == 0:
                    last = max(first, last - 0.11)
                elif i == len(segments) - 1:
                    first = min(last, first + 0.13)
                elif last - first < 0.25:
                    continue  # in a short pause the lips do not rest
            targets = (phone.opening, phone.width, phone.tuck)
            ends = (phone.end_opening, phone.end_width, np.nan)
            for keys, start, end in zip(lips, targets, ends, strict=True):
                keys += [(first, start), (last, start if np.isnan(end) else end)]
            if phone.kind == "silence":
                continue
            formants = self._coarticulated(i)
            for keys, start, end in zip(tract, formants, phone.end_formants or formants, strict=True):
                keys += [(first, start), (last, end)]
        self._lips = tuple(_Track(keys, 0.0) for keys in lips)
        self._tract = tuple(_Track(keys, rest) for keys, rest in zip(tract, PHONES["sil"].formants, strict=True))
        self._melody = self._intonation(rng)
        self._jitter = 0.12 * rng.standard_normal(int(utterance.seconds * 40) + 2)
        self._tremor_phase = float(rng.uniform(0, 2 * np.pi))

    def _coarticulated(self, i: int) -> tuple[float, float, float]:
        """Formants of segment i; the second formant of a consonant leans toward its vowel, that of k, g, ng most."""
        segments = self.utterance.segments
        phone = PHONES[segments[i].phone]
        f1, f2, f3 = phone.formants
        if phone.is_vowel:
            return f1, f2, f3
        for j in (i + 1, i - 1):
            neighbor = PHONES[segments[j].phone]
            if neighbor.is_vowel:
                vowel = (neighbor.end_formants if j < i else None) or neighbor.formants
                share = 0.6 if phone.symbol in ("k", "g", "ng") else 0.25
                return f1, f2 + share * (vowel[1] - f2), f3
        return f1, f2, f3

    def _intonation(self, rng: np.random.Generator) -> _Track:
        """Semitones above the mean: declination, an accent on every stressed vowel, the final fall or rise."""
        prosody = self.prosody
        vowels = [s for s in self.utterance.segments if PHONES[s.phone].is_vowel]
        if not vowels:
            return _Track([], 0.0)
        begin, end = vowels[0].start, vowels[-1].end
        keys = []
        for vowel in vowels:
            middle = vowel.start + 0.45 * (vowel.end - vowel.start)
            share = (middle - begin) / max(end - begin, 1e-3) - 0.5
            accent = rng.normal(2.6, 0.8) if vowel.stressed else rng.normal(-0.9, 0.4)
            keys.append((middle, prosody.slope * share + prosody.range * accent))
        keys.append((end, keys[-1][1] + prosody.final))
        offset = float(np.mean([v for _, v in keys[:-1]]))  # the mean stays the voice's own
        return _Track([(t, v - offset) for t, v in keys], 0.0)

    def lips(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(opening in [0, 1], width in [-1, 1], tuck in [0, 1]) of the lips."""
        opening, width, tuck = (track(at) for track in self._lips)
        return opening, width, tuck

    def formants(self, at: np.ndarray) -> np.ndarray:
        """Hz [..., 3] of the first three resonances, tract length included."""
        scale = REFERENCE_TRACT_CM / self.voice.tract_cm
        return np.stack([track(at) for track in self._tract], axis=-1) * scale

    def pitch(self, at: np.ndarray) -> np.ndarray:
        """Hz of the folds (defined in pauses too, where they rest)."""
        jitter = np.interp(at, np.arange(len(self._jitter)) / 40, self._jitter)
        tremor = self.prosody.tremor * np.sin(2 * np.pi * 6.5 * at + self._tremor_phase)
        semitones = np.clip(self._melody(at) + jitter + tremor, -16, 16)
        return np.clip(self.voice.pitch_hz * self.prosody.pitch * 2 ** (semitones / 12), 50, 700)

    def amplitudes(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(voicing, breath, friction): loudness of the three sources, with ramps of a few ms on the louder side."""
        pieces: list[tuple[float, float, float, float, float]] = []
        for s in self.utterance.segments:
            pieces += _pieces(s, self.voice.breath)
        bounds = [p[0] for p in pieces] + [pieces[-1][1]]
        ramps = (0.012, 0.008, 0.003)
        voicing, breath, friction = (
            np.interp(at, *_ramped(bounds, [p[2 + k] for p in pieces], ramps[k])) for k in range(3)
        )
        return voicing, breath, friction


def _pieces(s: Segment, breath: float) -> list[tuple[float, float, float, float, float]]:
    """(start, end, voicing, breath, friction) of the parts of one segment."""
    phone = PHONES[s.phone]
    level = phone.noise[2] if phone.noise else 0.0
    if phone.kind == "vowel":
        return [(s.start, s.end, 1.0 if s.stressed else 0.75, breath, 0.0)]
    if phone.kind == "nasal":
        return [(s.start, s.end, 0.45, 0.0, 0.0)]
    if phone.kind == "glide":
        return [(s.start, s.end, 0.65, breath, 0.0)]
    if phone.kind == "silence":
        return [(s.start, s.end, 0.0, 0.0, 0.0)]
    if s.phone == "hh":
        return [(s.start, s.end, 0.0, 0.22, 0.0)]
    closed = (s.start, s.release, 0.05 if phone.voiced else 0.0, 0.0, 0.0)
    if phone.kind == "stop":
        burst = min(s.release + 0.009, s.end)
        return [
            closed,
            (s.release, burst, 0.0, 0.0, level),
            (burst, s.end, 0.0, 0.0 if phone.voiced else 0.15, 0.1 * level),
        ]
    hiss = (s.release, s.end, 0.25 if phone.voiced else 0.0, 0.0, level)
    return [closed, hiss] if phone.kind == "affricate" else [hiss]


def _ramped(bounds: list[float], values: list[float], ramp: float) -> tuple[list[float], list[float]]:
    """Break points of a piecewise constant value whose steps are ramps inside the louder neighbor."""
    times, levels = [bounds[0]], [values[0]]
    for i in range(1, len(values)):
        before, after, edge = values[i - 1], values[i], bounds[i]
        if after > before:
            width = min(ramp, 0.4 * (bounds[i + 1] - edge))
            times += [edge, edge + width]
        else:
            width = min(ramp, 0.4 * (edge - bounds[i - 1]))
            times += [edge - width, edge]
        levels += [before, after]
    return [*times, bounds[-1]], [*levels, values[-1]]


def sound(articulation: Articulation, rng: np.random.Generator, *, sample_rate: int, samples: int) -> np.ndarray:
    """Wave float32 [samples] of an articulation; its voiced parts have a deviation of 0.08 times the prosody's gain."""
    at = np.arange(samples) / sample_rate
    grid = grid_times(samples, sample_rate)
    voicing, breath, friction = articulation.amplitudes(at)
    centers, widths, nasal = _noise_and_nose(articulation.utterance, grid)
    coarse = np.arange(0.0, at[-1] + 0.004, 0.002)
    controls = Controls(
        formants=articulation.formants(grid),
        nasal=nasal,
        noise_center=centers,
        noise_width=widths,
        pitch=np.interp(at, coarse, articulation.pitch(coarse)),
        voicing=voicing,
        breath=breath,
        friction=friction,
        tract_scale=REFERENCE_TRACT_CM / articulation.voice.tract_cm,
        tilt_hz=articulation.voice.tilt_hz * articulation.prosody.tilt,
    )
    wave = synthesize(controls, white(rng, samples), sample_rate=sample_rate, phase=float(rng.uniform(0, 2 * np.pi)))
    loud = wave[voicing > 0.3]
    deviation = float(np.sqrt(np.mean(loud**2))) if len(loud) else 1.0
    wave *= 0.08 * 10 ** (articulation.prosody.gain_db / 20) / max(deviation, 1e-6)
    return wave


def _noise_and_nose(utterance: Utterance, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Center and width (Hz) of the frication and opening of the nose, at the grid times."""
    starts = np.array([s.start for s in utterance.segments])
    owner = np.clip(np.searchsorted(starts, grid, side="right") - 1, 0, len(starts) - 1)
    noises = [PHONES[s.phone].noise or (4000.0, 3000.0, 0.0) for s in utterance.segments]
    center, width = np.array([n[0] for n in noises])[owner], np.array([n[1] for n in noises])[owner]
    bounds = [*starts.tolist(), utterance.segments[-1].end]
    nose = [1.0 if PHONES[s.phone].kind == "nasal" else 0.0 for s in utterance.segments]
    return center, width, np.interp(grid, *_ramped(bounds, nose, 0.02))


class Speech(NamedTuple):
    """A spoken text: ``wave`` float32 [L] and its ``timing``."""

    wave: np.ndarray
    timing: Utterance


def speak(
    text: str | Sequence[str],
    voice: Voice,
    rng: np.random.Generator,
    *,
    sample_rate: int,
    prosody: Prosody = PROSODY["neutral"],
    seconds: float | None = None,
    lead: float = 0.1,
) -> Speech:
    """Say ``text`` (or words): wave float32 [L], and words and phonemes with their seconds.

    ``seconds``: length of the wave (the text is said faster where it does not fit); by default as long as it takes.
    Any English word can be spoken: the lexicon first, letter-to-sound rules for the rest. A text without a word is
    silence.
    """
    timing = plan(text, rng, rate=voice.rate * prosody.rate, lead=lead, seconds=seconds)
    samples = round((timing.seconds if seconds is None else seconds) * sample_rate)
    articulation = Articulation(timing, voice, prosody, rng)
    return Speech(sound(articulation, rng, sample_rate=sample_rate, samples=samples), timing)
