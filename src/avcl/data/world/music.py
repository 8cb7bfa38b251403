"""A tune for two hands: a note list, the hands that play it and the sound, all three from the same continuous onsets.

Struck and plucked notes are sums of decaying partials, sum_k g_k exp(-d_k t) sin(2 pi f_k t); a bowed note is a sum
of harmonics of a pitch with vibrato. An onset is not rounded, neither to a frame nor to a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from avcl.data.world.noise import white

LOWEST, HIGHEST = 57, 81  # MIDI: A3 (220 Hz) to A5 (880 Hz), the same for every instrument

Excitation = Literal["struck", "plucked", "bowed"]


class Note(NamedTuple):
    """``onset`` and ``duration`` in seconds, ``pitch`` in MIDI (69 = 440 Hz), ``velocity`` in (0, 1], ``hand``: side
    of the picture, "left" or "right", of the hand that makes it sound (of guitar and cello: the one that plucks or
    bows)."""

    onset: float
    duration: float
    pitch: int
    velocity: float
    hand: str

    @property
    def hz(self) -> float:
        """440 * 2^((pitch - 69) / 12)."""
        return 440.0 * 2 ** ((self.pitch - 69) / 12)


@dataclass(frozen=True)
class Instrument:
    """A timbre: partial k sounds at ``ratios[k]`` times the pitch (stretched by ``stiffness``), with ``gains[k]``,
    for ``t60[k]`` seconds; after the note's end within ``release`` seconds. ``two_handed``: each hand plays notes of
    its own."""

    name: str
    excitation: Excitation
    ratios: tuple[float, ...]
    gains: tuple[float, ...]
    t60: tuple[float, ...]
    release: float
    two_handed: bool
    stiffness: float = 0.0
    knock: float = 0.0

    def frequencies(self, hz: float) -> np.ndarray:
        """Hz of the partials: f_k = ratio_k * f * sqrt(1 + stiffness * ratio_k^2)."""
        ratios = np.asarray(self.ratios)
        return ratios * hz * np.sqrt(1 + self.stiffness * ratios**2)


def _harmonics(count: int) -> tuple[float, ...]:
    return tuple(float(k) for k in range(1, count + 1))


def _instruments() -> dict[str, Instrument]:
    k = np.arange(1, 13)
    piano = Instrument(
        "piano",
        "struck",
        _harmonics(12),
        tuple(1 / k**1.25),
        tuple(1.8 / k**0.55),
        0.09,
        True,
        stiffness=3e-4,
        knock=0.25,
    )
    marimba = Instrument(
        "marimba", "struck", (1.0, 3.93, 9.24), (1.0, 0.30, 0.12), (0.55, 0.16, 0.05), 0.5, True, knock=0.45
    )
    comb = np.abs(np.sin(0.22 * np.pi * k)) / k**0.9
    guitar = Instrument("guitar", "plucked", _harmonics(12), tuple(comb), tuple(1.1 / k**0.7), 0.12, False, knock=0.10)
    bowed = 1 / k**0.9 * np.where(k % 2 == 0, 0.8, 1.0)
    cello = Instrument("cello", "bowed", _harmonics(12), tuple(bowed), (9.0,) * 12, 0.08, False)
    return {i.name: i for i in (piano, marimba, guitar, cello)}


INSTRUMENTS = MappingProxyType(_instruments())

_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), (0, 3, 5, 7, 10))
_MIN_GAP = 0.17  # seconds between two onsets of one hand


def compose(instrument: Instrument, rng: np.random.Generator, seconds: float) -> tuple[Note, ...]:
    """A random walk on a random scale at a random tempo, played with slight freedom of time; sorted by onset.

    Pitch, tempo and loudness are drawn the same way for every instrument, so none of them predicts it. Two-handed
    instruments divide the notes: low ones left, high ones right, at times both at once. There is at least one note.
    """
    scale = _SCALES[rng.integers(len(_SCALES))]
    root = int(rng.integers(12))
    steps = [p for p in range(LOWEST, HIGHEST + 1) if (p - root) % 12 in scale]
    place = int(rng.integers(len(steps) // 4, 3 * len(steps) // 4))
    beat = 60.0 / rng.uniform(75, 150)
    clock = float(rng.uniform(0.15, 0.5))
    loudness = rng.uniform(0.45, 0.85)
    notes: list[Note] = []
    busy = {"left": -1.0, "right": -1.0}
    while clock < seconds - 0.2 or not notes:
        length = beat * float(rng.choice([0.5, 0.5, 1.0, 1.0, 1.5]))
        length = max(length, _MIN_GAP + 0.03)
        place = int(np.clip(place + rng.integers(-3, 4), 0, len(steps) - 1))
        velocity = float(np.clip(loudness + rng.normal(0, 0.14), 0.25, 1.0))
        held = min(length * float(rng.uniform(0.7, 0.95)), max(seconds - clock - 0.02, 0.05))
        pitch = steps[place]
        hand = "right" if pitch >= 69 and instrument.two_handed else "left"
        if clock - busy[hand] >= _MIN_GAP:
            notes.append(Note(clock, held, pitch, velocity, hand))
            busy[hand] = clock
        other = "left" if hand == "right" else "right"
        if instrument.two_handed and rng.random() < 0.3 and clock - busy[other] >= _MIN_GAP:
            partners = [p for p in steps if (p < 69) == (other == "left") and abs(p - pitch) >= 4]
            if partners:
                notes.append(Note(clock, held, int(rng.choice(partners)), velocity * 0.85, other))
                busy[other] = clock
        if rng.random() < 0.12:
            clock += beat * 0.5  # a rest
        clock += length + float(rng.normal(0, 0.012))
    return tuple(sorted(notes))


def _decaying(
    instrument: Instrument, note: Note, sample_rate: int, samples: int, late: float, rng: np.random.Generator
) -> np.ndarray:
    """``samples`` samples of a struck or plucked note, the first ``late`` seconds after its onset.

    z^(64 a + b) = z^(64 a) z^b: all partials by one matrix product.
    """
    frequency = instrument.frequencies(note.hz)
    keep = frequency < 0.47 * sample_rate
    frequency = frequency[keep]
    order = np.asarray(instrument.ratios)[keep]
    gains = np.asarray(instrument.gains)[keep] * np.exp(-0.22 * (1 - note.velocity) * (order - 1))
    decay = np.log(1000) / np.asarray(instrument.t60)[keep]
    pole = (-decay + 2j * np.pi * frequency) / sample_rate
    rows, columns = -(-samples // 64), 64
    start = gains * np.exp(pole * late * sample_rate)
    coarse = np.exp(pole[:, None] * (64.0 * np.arange(rows))[None]) * start[:, None]
    fine = np.exp(pole[:, None] * np.arange(columns)[None])
    wave = (coarse.real.T @ fine.imag + coarse.imag.T @ fine.real).reshape(-1)[:samples]
    times = np.arange(samples) / sample_rate + late
    knock = min(samples, round(0.02 * sample_rate))
    wave[:knock] += instrument.knock * white(rng, knock) * np.exp(-times[:knock] / 0.003)
    return wave * np.minimum(times / 0.0015, 1.0)


def _bowed(
    instrument: Instrument, note: Note, sample_rate: int, samples: int, late: float, rng: np.random.Generator
) -> np.ndarray:
    """``samples`` samples of a bowed note: attack of 35 ms, vibrato that sets in after it, hiss of the bow."""
    times = np.arange(samples) / sample_rate + late
    rate, phase = rng.uniform(4.8, 6.2), rng.uniform(0, 2 * np.pi)
    depth = 0.006 * np.clip((times - 0.1) / 0.2, 0, 1)
    angle = 2 * np.pi * note.hz * (times + depth / (2 * np.pi * rate) * np.sin(2 * np.pi * rate * times + phase))
    keep = instrument.frequencies(note.hz) * 1.02 < 0.48 * sample_rate
    gains = np.asarray(instrument.gains)[keep]
    order = np.arange(1, len(gains) + 1)
    gains = gains * np.exp(-0.22 * (1 - note.velocity) * (order - 1))
    turn, power = np.exp(1j * angle), np.ones(samples, complex)
    wave = np.zeros(samples)
    for gain in gains:
        power = power * turn
        wave += gain * power.imag
    wave += 0.03 * white(rng, samples)
    return 0.6 * wave * np.clip(times / 0.035, 0, 1)


def sound(
    instrument: Instrument, notes: Sequence[Note], rng: np.random.Generator, *, sample_rate: int, samples: int
) -> dict[str, np.ndarray]:
    """{"left", "right"}: float32 [samples], what each hand makes sound; their sum has a deviation of 0.1."""
    stems = {"left": np.zeros(samples), "right": np.zeros(samples)}
    make = _bowed if instrument.excitation == "bowed" else _decaying
    for i, note in enumerate(notes):
        first = int(np.ceil(note.onset * sample_rate))
        end = note.onset + note.duration
        if instrument.excitation == "plucked":  # one string: it rings until it is plucked again
            end = max(end, min((n.onset for n in notes[i + 1 :]), default=note.onset + 2.0) - 0.5 * instrument.release)
        last = min(samples, round((end + instrument.release) * sample_rate))
        if last <= first:
            continue
        late = first / sample_rate - note.onset
        wave = make(instrument, note, sample_rate, last - first, late, rng)
        since_end = np.arange(first, last) / sample_rate - end
        wave *= 0.5 + 0.5 * np.cos(np.pi * np.clip(since_end / instrument.release, 0, 1))
        stems[note.hand][first:last] += note.velocity**1.3 * wave
    deviation = float(np.sqrt(np.mean((stems["left"] + stems["right"]) ** 2)))
    return {hand: (0.1 / max(deviation, 1e-9) * wave).astype(np.float32) for hand, wave in stems.items()}


@dataclass(frozen=True)
class HandPath:
    """One hand at the asked instants [T]: ``along`` in [0, 1], the place of the pitch (low to high) it is at or
    moving to · ``height`` in [0, 1], 0 exactly while (piano), or exactly when (marimba, guitar) it touches ·
    ``stroke`` in [-1, 1]: how far the bow or the plucking hand has moved, through 0 at an onset of a plucked and
    turning at an onset of a bowed note."""

    along: np.ndarray
    height: np.ndarray
    stroke: np.ndarray


def place_of(pitch: int | float) -> float:
    """Where a pitch lies between the lowest (0) and the highest (1)."""
    return (pitch - LOWEST) / (HIGHEST - LOWEST)


def hand_path(instrument: Instrument, notes: Sequence[Note], times: np.ndarray, rest: float) -> HandPath:
    """The path of the hand that plays ``notes`` (one hand's, by onset), continuous in time; without notes it stays at
    ``rest``.

    It is at a note's place from 30 ms before the onset to its end (a struck bar is left 50 ms after), then moves on.
    """
    if not notes:
        return HandPath(np.full(len(times), rest), np.full(len(times), 0.8), np.zeros(len(times)))
    onsets = np.array([n.onset for n in notes])
    holds = np.array([0.05 if instrument.name == "marimba" else n.duration for n in notes])
    places = np.array([place_of(n.pitch) for n in notes])
    leave = np.minimum(onsets + holds, np.append(onsets[1:] - 0.07, np.inf))
    arrive = np.maximum(onsets - 0.03, np.append(-np.inf, leave[:-1] + 0.01))
    keys = np.stack([arrive, np.maximum(leave, arrive)], axis=1).reshape(-1)
    along = _eased(times, keys, np.repeat(places, 2))

    near = np.min(np.abs(times[:, None] - onsets[None]), axis=1)
    lift = np.clip(near / 0.14, 0, 1)
    if instrument.name == "marimba":
        height = lift
    else:
        touching = (times[:, None] >= onsets[None]) & (times[:, None] <= (onsets + holds)[None])
        after = times[:, None] - (onsets + holds)[None]
        rise = np.min(np.where(after < 0, np.inf, after), axis=1)
        height = np.where(touching.any(axis=1), 0.0, np.minimum(lift, np.clip(rise / 0.12, 0, 1)))
    return HandPath(along, height, _stroke(instrument, notes, times))


def _eased(times: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values held at key times, with a smooth move between two of them."""
    right = np.clip(np.searchsorted(keys, times, side="right"), 1, len(keys) - 1)
    gap = keys[right] - keys[right - 1]
    u = np.clip((times - keys[right - 1]) / np.where(gap > 0, gap, 1.0), 0, 1)
    return values[right - 1] + (values[right] - values[right - 1]) * (u * u * (3 - 2 * u))


def _stroke(instrument: Instrument, notes: Sequence[Note], times: np.ndarray) -> np.ndarray:
    """Alternating strokes, larger for louder notes."""
    onsets = np.array([n.onset for n in notes])
    sizes = np.array([0.45 + 0.55 * n.velocity for n in notes])
    signs = np.where(np.arange(len(notes)) % 2 == 0, 1.0, -1.0)
    if instrument.excitation == "bowed":
        ends = onsets + np.array([n.duration for n in notes])
        keys = np.stack([onsets, ends], axis=1).reshape(-1)
        values = np.stack([-0.5 * signs * sizes, 0.5 * signs * sizes], axis=1).reshape(-1)
        return np.interp(times, keys, values)  # between two notes the bow is carried to where the next begins
    if instrument.excitation == "struck":
        return np.zeros(len(times))
    middles = 0.5 * (onsets[1:] + onsets[:-1])
    nearest = np.searchsorted(middles, times)
    return signs[nearest] * sizes[nearest] * np.tanh((times - onsets[nearest]) / 0.03)
