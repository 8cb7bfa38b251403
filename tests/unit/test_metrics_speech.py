"""Speech metrics: worked values, silence, what is too short, and missing extras."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from avcl.errors import ConfigError, ExtraError, FeatureError
from avcl.metrics import pesq, speech_errors, stoi

needs_pesq = pytest.mark.skipif(importlib.util.find_spec("pesq") is None, reason="the extra pesq needs a compiler")
RATE = 16000


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Three seconds of harmonics that come and go in syllables."""
    t = np.arange(3 * RATE) / RATE
    voice = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 20))
    return 0.1 * voice * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * t))


@pytest.fixture(scope="module")
def noisy(speech) -> np.ndarray:
    return speech + 0.05 * np.random.default_rng(0).normal(size=len(speech))


# ---------------------------------------------------------------------------------------------------------- word errors
def test_worked_words_and_characters():
    said, heard = ["place blue at f two now"], ["place blue in f too two now"]
    words = speech_errors(said, heard)
    assert (words.substitutions[0], words.deletions[0], words.insertions[0], words.length[0]) == (1, 0, 1, 6)
    assert words.rate == pytest.approx(0.3333, abs=5e-5)
    characters = speech_errors(said, heard, unit="character")
    assert characters.rate == pytest.approx(0.2609, abs=5e-5)
    assert (words.unit, characters.unit) == ("word", "character")


def test_corpus_and_mean_of_utterances_differ():
    found = speech_errors(["a b c d", "e"], ["a b c d", "f"])
    assert found.rate == pytest.approx(0.2)
    assert found.mean_of_utterances == 0.5
    assert speech_errors(["a"], ["b c d"]).rate == 3  # more edits than words


def test_words_are_those_of_a_plain_edit_distance():
    rng = np.random.default_rng(0)

    def distance(a, b):
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            last, row[0] = row[0], i
            for j, y in enumerate(b, 1):
                last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
        return row[-1]

    said, heard = ([" ".join(rng.choice(list("abc"), n)) for n in rng.integers(1, 8, 30)] for _ in range(2))
    found = speech_errors(said, heard)
    assert found.edits.tolist() == [distance(a.split(), b.split()) for a, b in zip(said, heard, strict=True)]
    assert (found.length + found.insertions - found.deletions).tolist() == [len(b.split()) for b in heard]


def test_empty_references_are_counted():
    found = speech_errors(["", "a  b", " "], ["x y", " a b ", ""])
    assert found.empty == 2
    assert found.insertions.tolist() == [2, 0, 0]
    assert found.rate == 1
    assert found.mean_of_utterances == 0
    assert speech_errors(["a b"], [""]).deletions.tolist() == [2]
    with pytest.raises(FeatureError, match="every reference is empty"):
        speech_errors([""], ["a"])


# ------------------------------------------------------------------------------------------------------ intelligibility
def test_intelligibility_falls_with_noise(speech, noisy):
    worse = speech + 0.3 * np.random.default_rng(1).normal(size=len(speech))
    plain = stoi(np.stack([speech] * 3), np.stack([speech, noisy, worse]), rate=RATE)
    assert plain.measure == "STOI"
    assert plain.value[0] == pytest.approx(1, abs=1e-4)
    assert (np.diff(plain.value) < 0).all()
    extended = stoi(speech, noisy, rate=RATE, extended=True)
    assert extended.measure == "ESTOI"
    assert extended.value[0] < plain.value[1]
    assert stoi(speech, 7 * noisy, rate=RATE).value == pytest.approx(plain.value[1:2])


def test_intelligibility_counts_silence_and_what_is_too_short(speech, noisy):
    quiet = np.zeros_like(speech)
    found = stoi(np.stack([speech, quiet, speech]), np.stack([noisy, noisy, quiet]), rate=RATE)
    assert found.scored.tolist() == [True, False, True]
    assert found.value[1:].tolist() == [0, 0]  # a silent estimate of speech is scored: it says nothing
    assert found.mean() == pytest.approx(found.value[0] / 2)
    for length in (1, 50, 300, 2000):
        short = stoi(speech[:length], noisy[:length], rate=RATE)
        assert not short.scored.any()
    with pytest.raises(FeatureError, match="enough speech"):
        short.mean()


@needs_pesq
def test_quality(speech, noisy):
    quiet = np.zeros_like(speech)
    wide = pesq(np.stack([speech, speech, quiet, speech]), np.stack([speech, noisy, noisy, quiet]), rate=RATE)
    assert wide.value[0] == pytest.approx(4.644, abs=1e-3)
    assert wide.value[1] < 2
    assert wide.scored.tolist() == [True, True, False, False]
    narrow = pesq(speech, speech, rate=RATE, band="narrow")
    assert narrow.value[0] == pytest.approx(4.549, abs=1e-3)
    assert (wide.measure, narrow.measure) == ("PESQ, wide band", "PESQ, narrow band")
    assert not pesq(speech[:200], noisy[:200], rate=RATE).scored.any()


# --------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("jiwer", "speech", lambda: speech_errors(["a"], ["a"])),
        ("pystoi", "speech", lambda: stoi(np.ones(9), np.ones(9), rate=RATE)),
        ("pesq", "pesq", lambda: pesq(np.ones(9), np.ones(9), rate=RATE)),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, package, extra, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExtraError, match=package) as caught:
        call()
    assert caught.value.exit == 3
    assert f"avcl[{extra}]" in caught.value.hint


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: speech_errors(["a"], []), FeatureError, "equal length"),
        (lambda: speech_errors("a", "a"), FeatureError, "two lists"),
        (lambda: speech_errors(["a"], ["a"], unit="phone"), ConfigError, "phone"),
        (lambda: stoi(np.ones(9), np.ones(8), rate=RATE), FeatureError, "do not fit together"),
        (lambda: stoi(np.ones(9), np.full(9, np.nan), rate=RATE), FeatureError, "not finite"),
        (lambda: stoi(np.ones(9), np.ones(9), rate=0), ConfigError, "rate"),
        (lambda: pesq(np.ones(9), np.ones(9), rate=44100), ConfigError, "44100"),
        (lambda: pesq(np.ones(9), np.ones(9), rate=8000), ConfigError, "8000"),
        (lambda: pesq(np.ones(9), np.ones(9), rate=RATE, band="full"), ConfigError, "full"),
    ],
)
def test_errors_name_what_came(call, error, words):
    with pytest.raises(error, match=words):
        call()
