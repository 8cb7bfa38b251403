"""Speech and transcription: what is hidden, who judges, and the word recognizer that judges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from avcl.data import collate
from avcl.data.tokens import bytes_of, said_in, strings_of, text_stream
from avcl.data.world import World
from avcl.errors import BatchError, ConfigError, DataError
from avcl.metrics import errors_of_items, fixed_sentence
from avcl.system import Step
from avcl.systems.word_recognizer import WordRecognizer, WordRecognizerConfig
from avcl.task import Outputs
from avcl.tasks.speech import Speech
from avcl.tasks.transcription import Transcription
from avcl.types import Clip, DataSpec, Inputs, Stream, StreamSpec

SPEC = DataSpec({"audio": StreamSpec("audio", (1,), 8000.0), "video": StreamSpec("video", (3, 16, 16), 5.0)})
SENTENCES = ("now see this toy", "now keep the toy", "yes see this boat")


def clip_of(i: int, text: str) -> Clip:
    wave = torch.randn(1, 4000, 1, generator=torch.Generator().manual_seed(i))
    sound = Stream(wave, torch.ones(1, 4000, dtype=torch.bool), 8000.0)
    return Clip(str(i), {"audio": sound, "transcript": text_stream(text)}, index=i)


def test_sentences_as_rows_of_bytes() -> None:
    words = ["", "now see", "été"]
    assert strings_of(bytes_of(words)) == words
    with pytest.raises(DataError, match="longer than 160 bytes"):
        bytes_of(["x" * 161])


def test_errors_of_items_and_the_best_fixed_sentence() -> None:
    found = errors_of_items(["a b c d", "a b", ""], ["a x c", "a b", "c"])
    assert found[:2].tolist() == [0.5, 0.0]
    assert np.isnan(found[2])
    assert fixed_sentence(SENTENCES) == "now see this toy"


def test_the_recognizer_learns_its_vocabulary_and_reads_back() -> None:
    torch.manual_seed(0)
    system = WordRecognizer(replace(WordRecognizerConfig.tiny(), sample_rate=8000), SPEC)
    batch = collate([clip_of(i, text) for i, text in enumerate(SENTENCES)])
    system.begin_epoch([batch], 0)
    assert system.vocabulary == ("", "boat", "keep", "now", "see", "the", "this", "toy", "yes")
    numbers = system.numbers(said_in(batch))
    assert system.spelled(numbers) == list(SENTENCES)
    assert system.numbers(["now fly"])[0, :2].tolist() == [3, -1]
    assert numbers.shape == (3, 5)
    terms = system.losses(system.encode(batch), batch, Step(0, 1, 0, 0.0, torch.Generator()))
    assert float(terms["words"].detach()) > 0
    with pytest.raises(BatchError, match="6 words; there are 5 places"):
        system.numbers(["a b c d e f"])


def test_a_vocabulary_too_large_says_what_to_set() -> None:
    system = WordRecognizer(replace(WordRecognizerConfig.tiny(), vocabulary=4), SPEC)
    with pytest.raises(ConfigError, match="hold 8 words") as caught:
        system.begin_epoch([collate([clip_of(i, t) for i, t in enumerate(SENTENCES)])], 0)
    assert "vocabulary=9" in caught.value.hint


def test_the_systems_see_neither_sound_nor_words() -> None:
    world = World("speech", clips=2, streams=("audio", "video", "transcript"))
    batch = collate([world.configure(Inputs(fps=5.0, size=(16, 16), sample_rate=8000)).clip(i) for i in range(2)])
    assert set(Speech().shown(batch).streams) == {"video"}
    assert set(Transcription().shown(batch).streams) == {"audio", "video"}
    truth = Speech().truth(batch)
    assert strings_of(truth["said"].numpy()) == list(said_in(batch))


def test_speech_is_scored_beside_true_speech_and_the_best_blind_sentence() -> None:
    rng = np.random.default_rng(0)
    true = rng.standard_normal((4, 12_000)).astype(np.float32)
    said = ["now see this toy", "now keep the toy", "yes see this boat", "now see this toy"]
    heard = ["now see this toy", "now see the toy", "yes see", "now see this boat"]
    arrays = {"true": true, "made": true[:, ::-1].copy(), "said": bytes_of(said)}
    arrays |= {"heard": bytes_of(heard), "heard_true": bytes_of(said)}
    outputs = Outputs(tuple("abcd"), tuple("abcd"), arrays, {"rate": 8000.0})
    scores = Speech(bootstrap=50).score(outputs)
    assert scores.scores["generated"]["WER"] == pytest.approx((0 + 0.25 + 0.5 + 0.25) / 4)
    assert scores.scores["true speech"]["WER"] == 0.0
    assert scores.scores["generated"]["STOI"] < 0.5
    blind = Speech(bootstrap=50).score(Speech().baselines(outputs)["best fixed sentence"])
    assert blind.scores["generated"]["WER"] == pytest.approx((0 + 0.5 + 0.5 + 0) / 4)


def test_speech_needs_training_rows_and_a_recognizer() -> None:
    class Says:
        def generate(self, batch, generator):
            raise AssertionError

    world = World("speech", clips=2, streams=("audio", "video", "transcript"))
    with pytest.raises(ConfigError, match="training rows"):
        Speech().predict(Says(), world)
    with pytest.raises(ConfigError, match="word_recognizer"):
        Speech().predict(Says(), world, fit=world)
    with pytest.raises(DataError, match="no transcripts"):
        said_in(collate([Clip("0", {"audio": clip_of(0, "x").streams["audio"]})]))
