"""The talking side of the world: words, formants, pitch, closures, prosody; each measured in the wave, not read from
the code."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import solve_toeplitz

from avcl.data.world import formant
from avcl.data.world.phonemes import LEXICON, PHONES, letters_to_phones, pronounce, words_of
from avcl.data.world.prosody import EMOTIONS, PROSODY, Prosody, Voice
from avcl.data.world.speech import Articulation, plan, sound, speak

RATE = 16_000
MAN, CHILD = Voice(tract_cm=17.0, pitch_hz=110.0), Voice(tract_cm=13.0, pitch_hz=250.0)


def steady(symbol: str, voice: Voice, pitch: float, seconds: float = 0.5) -> np.ndarray:
    """A vowel held for half a second."""
    samples = round(seconds * RATE)
    grid = formant.grid_size(samples, RATE)
    scale = 17.0 / voice.tract_cm
    controls = formant.Controls(
        formants=np.tile(np.array(PHONES[symbol].formants) * scale, (grid, 1)),
        nasal=np.zeros(grid),
        noise_center=np.full(grid, 4000.0),
        noise_width=np.full(grid, 2000.0),
        pitch=np.full(samples, pitch),
        voicing=np.ones(samples),
        breath=np.zeros(samples),
        friction=np.zeros(samples),
        tract_scale=scale,
    )
    return formant.synthesize(controls, np.zeros(samples, np.float32), sample_rate=RATE)


def lpc_formants(wave: np.ndarray, order: int = 18) -> np.ndarray:
    """Resonances (Hz) of a linear prediction of ``wave``, sharp ones only, ascending."""
    emphasized = np.append(wave[0], wave[1:] - 0.97 * wave[:-1]) * np.hamming(len(wave))
    correlation = np.correlate(emphasized, emphasized, "full")[len(wave) - 1 : len(wave) + order]
    correlation[0] *= 1 + 1e-9
    coefficients = solve_toeplitz(correlation[:order], correlation[1 : order + 1])
    roots = np.roots(np.concatenate([[1.0], -coefficients]))
    roots = roots[roots.imag > 0]
    width = -np.log(np.abs(roots)) * RATE / np.pi
    return np.sort(np.angle(roots[width < 500]) * RATE / (2 * np.pi))


def measured_pitch(wave: np.ndarray, low: float = 60.0, high: float = 600.0) -> float:
    """Hz of the highest peak of the autocorrelation, corrected for the shrinking overlap and interpolated."""
    wave = wave - wave.mean()
    n = len(wave)
    spectrum = np.abs(np.fft.rfft(wave, 4 * n)) ** 2
    full = np.fft.irfft(spectrum)[: n // 2] / (n - np.arange(n // 2))
    first, last = int(RATE / high), min(int(RATE / low), n // 2 - 2)
    best = first + int(np.argmax(full[first:last]))
    for divisor in (4, 3, 2):  # a multiple of the period is no period
        shorter = round(best / divisor)
        near = slice(max(shorter - 2, first), shorter + 3)
        if shorter > first and full[near].max() > 0.9 * full[best]:
            best = near.start + int(np.argmax(full[near]))
            break
    a, b, c = full[best - 1], full[best], full[best + 1]
    return RATE / (best + 0.5 * (a - c) / (a - 2 * b + c))


def db(wave: np.ndarray) -> float:
    return 10 * np.log10(np.mean(wave.astype(np.float64) ** 2) + 1e-12)


# ---------------------------------------------------------------------------------------------------------------- words
def test_every_word_of_the_lexicon_is_made_of_known_phones():
    for word, phones in LEXICON.items():
        assert all(p.rstrip("1") in PHONES for p in phones), word
        assert any(PHONES[p.rstrip("1")].is_vowel for p in phones), word


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("mama", "m aa1 m ax"),
        ("rings", "r ih1 ng z"),
        ("disks", "d ih1 s k s"),
        ("boxes", "b aa1 k s ih z"),
        ("light", "l ay1 t"),
        ("make", "m ey1 k"),
        ("thing", "th ih1 ng"),
        ("cheese", "ch iy1 z"),
        ("knight", "n ay1 t"),
    ],
)
def test_pronunciation(word, phones):
    assert " ".join(pronounce(word)) == phones


def test_any_letters_can_be_spoken():
    rng = np.random.default_rng(0)
    for _ in range(300):
        word = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), int(rng.integers(1, 12))))
        phones = letters_to_phones(word)
        assert phones
        assert all(p.rstrip("1") in PHONES for p in phones)
    assert words_of("2 Red disks, it's here.") == ("two", "red", "disks", "its", "here")


@pytest.mark.parametrize("text", ["", "...", "naïve", "qqq zzz 3.5"])
def test_odd_texts_give_a_finite_wave(text):
    wave, timing = speak(text, MAN, np.random.default_rng(0), sample_rate=RATE)
    assert wave.dtype == np.float32
    assert len(wave) > 0
    assert np.isfinite(wave).all()
    assert len(timing.words) == len(words_of(text))


# ------------------------------------------------------------------------------------------------------ the synthesizer
def test_pulses_are_the_sum_of_all_harmonics():
    pitch = np.full(2000, 137.0)
    phase = 2 * np.pi / RATE * np.cumsum(pitch) + 0.3
    count = int(0.48 * RATE / 137.0)
    expected = sum(np.cos(k * phase) for k in range(1, count + 1)) / np.sqrt(0.5 * count)
    np.testing.assert_allclose(formant.pulses(pitch, RATE, 0.3), expected, atol=2e-3)


@pytest.mark.parametrize("symbol", ["iy", "eh", "ae", "aa", "ah", "uw"])
@pytest.mark.parametrize("voice", [MAN, Voice(tract_cm=14.5)], ids=["long", "short"])
def test_formants_lie_where_the_phoneme_says(symbol, voice):
    wave = steady(symbol, voice, pitch=85.0)
    found = lpc_formants(wave[2000:6000])
    target = np.array(PHONES[symbol].formants) * 17.0 / voice.tract_cm
    errors = [np.abs(found - f).min() / f for f in target]
    assert max(errors) < 0.09, (target, found)


@pytest.mark.parametrize(
    ("word", "centroid"),
    [("see", 5800), ("she", 3300), ("key", 1900), ("tea", 4600), ("pea", 1300)],
)
def test_hiss_and_bursts_lie_where_the_phoneme_says(word, centroid):
    """Center of gravity of the frication of s, sh and of the first 10 ms of the bursts of k, t, p."""
    wave, timing = speak(word, MAN, np.random.default_rng(0), sample_rate=RATE)
    first = timing.segments[1]
    end = min(first.end, first.release + (0.010 if first.phone in "ktp" else 1.0))
    piece = wave[round(first.release * RATE) : round(end * RATE)]
    power = np.abs(np.fft.rfft(piece * np.hanning(len(piece)), 2048)) ** 2
    frequency = np.fft.rfftfreq(2048, 1 / RATE)
    assert np.sum(power * frequency) / power.sum() == pytest.approx(centroid, rel=0.2)


def test_formants_of_connected_speech_follow_the_tract():
    """First formants measured inside the stressed vowels of sentences: the two tracts differ by their ratio."""
    ratios = []
    for text in ("papa", "that cat", "bed red ten", "dog ball small"):
        values = []
        for tract in (17.0, 14.0):
            voice = Voice(tract_cm=tract, pitch_hz=90.0)
            rng = np.random.default_rng(3)
            wave, timing = speak(text, voice, rng, sample_rate=RATE, prosody=Prosody(slope=0, final=0, range=0.2))
            vowel = next(s for s in timing.segments if s.stressed)
            piece = wave[round((vowel.start + 0.02) * RATE) : round((vowel.end - 0.02) * RATE)]
            values.append(lpc_formants(piece)[0])
        ratios.append(values[1] / values[0])
    assert np.median(ratios) == pytest.approx(17.0 / 14.0, rel=0.08)


def test_no_sound_leaves_a_silent_source_and_filtering_is_causal():
    samples = 4000
    wave = steady("aa", MAN, 100.0, samples / RATE)
    grid = formant.grid_size(samples, RATE)
    late = np.zeros(samples)
    late[2000:] = 1.0
    controls = formant.Controls(
        np.tile(np.array(PHONES["aa"].formants), (grid, 1)), np.zeros(grid), np.full(grid, 4e3), np.full(grid, 2e3),
        np.full(samples, 100.0), late, np.zeros(samples), np.zeros(samples),
    )  # fmt: skip
    delayed = formant.synthesize(controls, np.zeros(samples, np.float32), sample_rate=RATE)
    assert db(delayed[:1995]) < db(wave) - 45
    assert db(delayed[2000:]) == pytest.approx(db(wave[2000:]), abs=1.5)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_sample_rates_give_the_same_speech(rate):
    wave, timing = speak("the big boat", MAN, np.random.default_rng(1), sample_rate=rate)
    other, other_timing = speak("the big boat", MAN, np.random.default_rng(1), sample_rate=RATE)
    assert timing == other_timing
    assert len(wave) == round(timing.seconds * rate)
    envelope = [np.add.reduceat(w.astype(float) ** 2, (np.arange(20) * len(w)) // 20) / len(w) for w in (wave, other)]
    assert np.corrcoef(*np.sqrt(envelope))[0, 1] > 0.95


# ------------------------------------------------------------------------------------------------------- time and pitch
def performance(text: str, voice: Voice, emotion: str = "neutral", seed: int = 0) -> tuple[np.ndarray, Articulation]:
    rng = np.random.default_rng(seed)
    timing = plan(text, rng, rate=voice.rate * PROSODY[emotion].rate, lead=0.2)
    articulation = Articulation(timing, voice, PROSODY[emotion], rng)
    return sound(articulation, rng, sample_rate=RATE, samples=round(timing.seconds * RATE)), articulation


def test_segments_tile_the_time_and_words_lie_on_them():
    for seed in range(20):
        timing = plan("please find the papa again", np.random.default_rng(seed), lead=0.3, seconds=1.4)
        ends = [0.0] + [s.end for s in timing.segments]
        starts = [s.start for s in timing.segments]
        np.testing.assert_allclose(starts, ends[:-1])
        assert timing.segments[-1].end == pytest.approx(1.4)
        assert timing.words[-1].end <= 1.3 + 1e-9
        assert all(s.start <= s.release <= s.end for s in timing.segments)
        assert [w.text for w in timing.words] == ["please", "find", "the", "papa", "again"]


@pytest.mark.parametrize("voice", [MAN, CHILD], ids=["man", "child"])
@pytest.mark.parametrize("emotion", EMOTIONS)
def test_measured_pitch_is_the_true_one(voice, emotion):
    wave, articulation = performance("yes mama see the moon here", voice, emotion)
    errors = []
    for s in articulation.utterance.segments:
        if PHONES[s.phone].is_vowel and s.end - s.start > 0.055:
            middle, half = 0.5 * (s.start + s.end), 0.024
            piece = wave[round((middle - half) * RATE) : round((middle + half) * RATE)]
            truth = float(articulation.pitch(np.linspace(middle - half, middle + half, 9)).mean())
            errors.append(abs(measured_pitch(piece) / truth - 1))
    assert len(errors) >= 4
    assert np.median(errors) < 0.02, errors


@pytest.mark.parametrize("word", ["papa", "baba", "mama"])
@pytest.mark.parametrize("seed", range(3))
def test_lips_close_exactly_while_the_sound_is_shut(word, seed):
    wave, articulation = performance(f"a {word}", MAN, seed=seed)
    closures = [s for s in articulation.utterance.segments if s.phone == word[0]]
    assert len(closures) == 2
    for s in closures:
        closed = np.linspace(s.start, s.release if s.phone != "m" else s.end, 50)
        np.testing.assert_allclose(articulation.lips(closed)[0], 0.0, atol=1e-9)
        after = s.end + 0.06
        assert articulation.lips(np.array([after]))[0][0] > 0.15
        if s.phone == "p":
            shut = wave[round((s.start + 0.03) * RATE) : round((s.release - 0.002) * RATE)]
            vowel = wave[round((s.end + 0.02) * RATE) : round((s.end + 0.06) * RATE)]
            burst = wave[round(s.release * RATE) : round((s.release + 0.008) * RATE)]
            assert db(shut) < db(vowel) - 30
            assert db(burst) > db(shut) + 15


def test_words_of_equal_lips_differ_in_sound_only():
    """mama, papa and baba: the same lips at the same phase of every phoneme, other sounds."""
    tracks = {}
    for word in ("mama", "papa", "baba"):
        _, articulation = performance(word, MAN)
        spots = [s.start + q * (s.release - s.start if s.phone in "pb" else s.end - s.start)
                 for s in articulation.utterance.segments if s.word >= 0 for q in (0.25, 0.5, 0.75)]  # fmt: skip
        tracks[word] = np.array(articulation.lips(np.array(spots)))
    for word in ("papa", "baba"):
        assert np.abs(tracks[word] - tracks["mama"]).max() < 0.12


def test_mouth_opening_follows_the_envelope_at_the_exact_time():
    lags, zero = np.arange(-6, 7), []
    curves = []
    for seed, text in enumerate(("now find the papa here", "please see a boat today", "yes keep that mama soon") * 3):
        wave, articulation = performance(text, MAN, seed=seed)
        step = 0.02
        at = np.arange(0.02, articulation.utterance.seconds - 0.02, step)
        power = np.array([db(wave[round((t - 0.01) * RATE) : round((t + 0.01) * RATE)]) for t in at])
        envelope = 10 ** (np.maximum(power, -60) / 40)
        curves.append([np.corrcoef(articulation.lips(at + lag * step)[0], envelope)[0, 1] for lag in lags])
        zero.append(curves[-1][6])
    assert np.mean(zero) > 0.6
    assert abs(lags[np.argmax(np.mean(curves, axis=0))]) <= 1  # 20 ms


# ------------------------------------------------------------------------------------------------------------- emotions
def prosody_of(emotion: str, seed: int) -> dict[str, float]:
    """Measured in the wave: mean and range of the pitch, level, tilt, rate."""
    wave, articulation = performance("today see the moon again", Voice(pitch_hz=150.0), emotion, seed)
    words = articulation.utterance.words
    spoken = wave[round(words[0].start * RATE) : round(words[-1].end * RATE)]
    pitches = []
    for s in articulation.utterance.segments:
        if PHONES[s.phone].is_vowel:
            for q in (0.35, 0.65):
                middle = s.start + q * (s.end - s.start)
                pitches.append(
                    measured_pitch(wave[round((middle - 0.018) * RATE) : round((middle + 0.018) * RATE)], 80, 450)
                )
    vowel = max((s for s in articulation.utterance.segments if PHONES[s.phone].is_vowel), key=lambda s: s.end - s.start)
    spectrum = np.abs(np.fft.rfft(wave[round(vowel.start * RATE) : round(vowel.end * RATE)], 4096)) ** 2
    frequency = np.fft.rfftfreq(4096, 1 / RATE)
    tilt = 10 * np.log10(spectrum[frequency > 1500].sum() / spectrum[frequency < 1500].sum())
    semitones = 12 * np.log2(np.array(pitches))
    low, high = np.percentile(semitones, [15, 85])
    return {"mean": float(np.median(semitones)), "range": high - low, "level": db(spoken), "tilt": tilt,
            "seconds": len(spoken) / RATE}  # fmt: skip


def test_emotions_are_measurable_in_the_voice():
    found = {}
    for emotion in EMOTIONS:
        takes = [prosody_of(emotion, seed) for seed in range(5)]
        found[emotion] = {key: np.mean([take[key] for take in takes]) for key in takes[0]}
    assert found["happy"]["range"] > 1.5 * found["sad"]["range"]
    assert found["surprised"]["range"] > 1.3 * found["neutral"]["range"]
    assert found["fearful"]["mean"] > found["neutral"]["mean"] + 3
    assert found["sad"]["mean"] < found["happy"]["mean"] - 3
    assert found["angry"]["level"] > found["sad"]["level"] + 7
    assert found["angry"]["tilt"] > found["sad"]["tilt"] + 4
    assert found["sad"]["seconds"] > 1.2 * found["angry"]["seconds"]


def test_prosody_mixes_geometrically():
    half = PROSODY["neutral"].toward(PROSODY["sad"], 0.5)
    assert half.rate == pytest.approx(0.78**0.5)
    assert half.gain_db == pytest.approx(-2.5)
    assert PROSODY["neutral"].toward(PROSODY["angry"], 1.0) == PROSODY["angry"]


def test_speech_is_a_function_of_the_generator():
    first, again, other = (speak("hello world", CHILD, np.random.default_rng(s), sample_rate=RATE) for s in (5, 5, 6))
    np.testing.assert_array_equal(first.wave, again.wave)
    assert first.timing == again.timing
    assert first.timing != other.timing
