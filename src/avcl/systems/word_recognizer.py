"""A recognizer of sentences from a closed vocabulary: which word stands at each place. It judges generated speech.

Claim: where sentences are built from few words in a fixed order (GRID; the world's `speech`), a small network on true
speech learns them, and what it reads from generated speech measures what there is to understand.

    h = BiGRU(conv(log-mel)),  a_k = softmax_t(q_k · tanh(W h_t)),  p(word at place k) = softmax(V_k Σ_t a_kt h_t)

Places k = 1 … ``places``; the first class of each is "no word", for sentences that are shorter. The vocabulary is read
from the transcripts before the first step. Loss: the sum over places of the cross-entropy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from avcl import system
from avcl.data.tokens import said_in
from avcl.encoders.audio import log_mel_stream
from avcl.encoders.norm import ChannelNorm
from avcl.encoders.recurrent import Recurrent
from avcl.errors import BatchError, ConfigError
from avcl.nn.pooling import strided_mask
from avcl.objectives.classification import cross_entropy
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream

LETTERS = 24  # bytes of the longest word

CARD = Card(
    title="Closed-vocabulary word recognizer",
    year=2026,
    venue="avcl",
    fidelity="Our own: no row of Table 1. It is the judge of the task speech, and part of its metric.",
    deviations=("Places instead of a decoder: right for sentences of fixed order only, and quick to train.",),
)


@dataclass(frozen=True)
class WordRecognizerConfig(MediaConfig):
    """Settings of ``word_recognizer``."""

    epochs: int = 25
    batch_size: int = 16
    learning_rate: float = 3e-3
    sample_rate: int = 8000
    fps: float = 25.0
    size: tuple[int, ...] = (64, 64)
    places: int = 8  # words of the longest sentence
    vocabulary: int = 64  # different words, "no word" included
    bands: int = 40
    width: int = 64

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "places": (1, 64),
        "vocabulary": (2, 4096),
        "bands": (8, 512),
        "width": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=1, batch_size=4, width=8, bands=16, places=5, vocabulary=32, size=(16, 16), fps=5.0)


class WordRecognizer(system.System):
    """Sound to the words at their places; ``words`` [B, places] numbers of ``vocabulary``, 0: no word."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = WordRecognizerConfig
    learns_from: ClassVar[tuple[str, ...]] = ("media",)
    trial: ClassVar[Trial | None] = Trial(
        task="transcription",
        preset="speech",
        streams=("audio", "video", "transcript"),
        knobs={"persons": 8},
        clips=1200,
        test=150,
        fresh=False,
        settings={"size": (16, 16), "fps": 5.0, "epochs": 15},
        short={"epochs": 6, "batch_size": 16},
        short_clips=96,
    )
    config: WordRecognizerConfig
    letters: Tensor

    def __init__(self, config: WordRecognizerConfig, spec: DataSpec):
        super().__init__(config, spec)
        if spec.streams.get("audio") is None or spec.streams["audio"].kind != "audio":
            raise ConfigError("word_recognizer needs sound, not features of it.")
        w = config.width
        self.convs = nn.ModuleList(nn.Conv1d(i, w, 5, 2, padding=2) for i in (config.bands, w))  # 100 to 25 a second
        self.norms = nn.ModuleList(ChannelNorm(w) for _ in self.convs)
        self.gru = Recurrent(w, hidden=w)
        self.inward = nn.Linear(self.gru.dim, w)
        self.places = nn.Parameter(torch.randn(config.places, w) / w**0.5)
        self.outward = nn.Parameter(torch.randn(config.places, config.vocabulary, self.gru.dim) / self.gru.dim**0.5)
        self.bias = nn.Parameter(torch.zeros(config.places, config.vocabulary))
        self.dropout = nn.Dropout(0.2)
        # The words themselves, as bytes: part of what is saved.
        self.register_buffer("letters", torch.zeros(config.vocabulary, LETTERS, dtype=torch.uint8))

    # ------------------------------------------------------------------------------------------------------ vocabulary
    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The words by number; the first, empty one is "no word"."""
        rows = self.letters.tolist()
        words = [bytes(v for v in row if v).decode("utf-8", "replace") for row in rows]
        return tuple(words[: 1 + max((i for i, word in enumerate(words) if word), default=0)])

    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Before the first step: every word of the training transcripts gets a number, in alphabetical order."""
        if epoch:
            return
        words = sorted({word for batch in batches for text in said_in(batch) for word in text.split()})
        if len(words) >= self.config.vocabulary:
            raise ConfigError(
                f"the transcripts hold {len(words)} words, the recognizer has room for {self.config.vocabulary - 1}.",
                hint=f"--set vocabulary={len(words) + 1}",
            )
        self.letters.zero_()
        for number, word in enumerate(words, 1):
            code = list(word.encode())
            if len(code) > LETTERS:
                raise ConfigError(f'"{word}" is longer than {LETTERS} bytes.')
            self.letters[number, : len(code)] = torch.tensor(code, dtype=torch.uint8)

    def numbers(self, texts: Sequence[str]) -> Tensor:
        """[B, places] int64: the words of each sentence; -1 for a word that is not in the vocabulary."""
        place = {word: i for i, word in enumerate(self.vocabulary)}
        found = torch.zeros(len(texts), self.config.places, dtype=torch.int64)
        for row, text in enumerate(texts):
            words = text.split()
            if len(words) > self.config.places:
                raise BatchError(f'"{text[:60]}" has {len(words)} words; there are {self.config.places} places.')
            found[row, : len(words)] = torch.tensor([place.get(word, -1) for word in words], dtype=torch.int64)
        return found

    # --------------------------------------------------------------------------------------------------------- network
    def heard(self, sound: Stream) -> Tensor:
        """Logits of every word at every place [B, places, vocabulary]."""
        mel = log_mel_stream(sound, bands=self.config.bands, hop=0.01)
        x, mask = mel.data.transpose(1, 2), mel.mask
        for conv, norm in zip(self.convs, self.norms, strict=True):
            mask = strided_mask(mask, 2)
            x = nn.functional.gelu(norm(conv(x))) * mask[:, None]
        h = self.gru(Stream(self.dropout(x.transpose(1, 2)), mask, mel.rate / 4)).data
        score = torch.tanh(self.inward(h)) @ self.places.T  # [B, T, places]
        attention = score.masked_fill(~mask[:, :, None], -1e4).softmax(1)
        there = torch.einsum("btk,btd->bkd", attention, h)
        return torch.einsum("bkd,kvd->bkv", self.dropout(there), self.outward) + self.bias

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        logits = self.heard(batch.audio)
        return {"logits": logits, "said": self.numbers(said_in(batch)).to(logits.device)}

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        said = encoded["said"]
        known = said >= 0
        if not bool(known.any()):
            raise BatchError("no word of these transcripts is in the vocabulary.")
        return {"words": cross_entropy(encoded["logits"][known], said[known])}

    @torch.no_grad()
    def words(self, batch: Batch) -> Tensor:
        """The most probable word at every place [B, places], numbers of ``vocabulary``."""
        return self.heard(batch.audio).argmax(2)

    def spelled(self, words: Tensor) -> list[str]:
        """Rows of word numbers as sentences."""
        names = (*self.vocabulary, *[""] * self.config.vocabulary)
        return [" ".join(names[i] for i in row if names[i]) for row in words.tolist()]
