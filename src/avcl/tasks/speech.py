"""Speech from a silent picture: what a recognizer, trained on true speech, understands of the generated sound.

The system sees the picture alone. `word_recognizer` is trained on the *true* sound and the transcripts of the training
rows; it reads every generated sound, and its word errors are counted by the standard edit distance. The recognizer is
part of the metric: its own errors on the true speech of the same items stand beside it ("true speech"). STOI and ESTOI
compare with the true sound directly.

STOI decides: it grades what a recognizer of clean speech calls all or nothing. Lower is better for WER. An item's WER
is its edits over its words; the mean weighs items alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from avcl.data.dataset import Data
from avcl.data.tokens import bytes_of, said_in, strings_of
from avcl.metrics.speech import errors_of_items, fixed_sentence, stoi
from avcl.system import Generates
from avcl.task import Outputs, Task, bare
from avcl.types import Batch, Stream


@dataclass(frozen=True)
class Speech(Task):
    """Video to speech: WER by a recognizer of true speech, STOI, ESTOI."""

    name: ClassVar[str] = "speech"
    words: ClassVar[str] = (
        "The sound is made from the picture alone and read by a word_recognizer that was trained on the true speech of "
        "the training rows."
    )
    needs: ClassVar[type] = Generates
    headline: ClassVar[tuple[str, str]] = ("generated", "STOI")
    lower: ClassVar[frozenset[str]] = frozenset({"WER"})
    partner: ClassVar[str] = "video"
    fits: ClassVar[bool] = True
    judge: ClassVar[str] = "word_recognizer"

    judge_epochs: int = 30

    def items(self, data: Data) -> Data:
        return data

    def shown(self, batch: Batch) -> Batch:
        return bare(batch, "audio", "transcript", "text")

    def answer(self, system: Any, shown: Batch) -> Mapping[str, Tensor]:
        made = system.generate(shown, torch.Generator().manual_seed(self.seed))
        return {"made": (made.data * made.mask[:, :, None]).mean(2)}

    def truth(self, batch: Batch) -> Mapping[str, Tensor]:
        sound = batch.audio
        return {
            "true": (sound.data * sound.mask[:, :, None]).mean(2),
            "said": torch.from_numpy(bytes_of(said_in(batch))),
        }

    def notes(self, data: Data) -> Mapping[str, Any]:
        return {"labels": list(data.labels), "rate": data.spec.streams["audio"].rate}

    # ------------------------------------------------------------------------------------------------------- the judge
    def judge_settings(self, fit: Data) -> Mapping[str, Any]:
        return {"epochs": self.judge_epochs}

    def judged_by(self, judge: Any, outputs: Outputs, data: Data) -> Outputs:
        """``heard`` and ``heard_true``: what the recognizer reads, as bytes of text."""
        rate = float(outputs.notes["rate"])
        length = outputs["true"].shape[1]
        made = np.zeros_like(outputs["true"])
        shared = min(length, outputs["made"].shape[1])
        made[:, :shared] = outputs["made"][:, :shared]
        heard = _read(judge, made, rate, outputs.ids)
        heard_true = _read(judge, outputs["true"], rate, outputs.ids)
        named = {"recognizer": f"{judge.name}, {judge.fingerprint}", "trained on": judge.meta["training"]["data"]}
        found = outputs.with_arrays(made=made, heard=heard, heard_true=heard_true)
        return Outputs(found.ids, found.groups, found.arrays, {**outputs.notes, **named}, found.n_official)

    # ----------------------------------------------------------------------------------------------------------- score
    def measures(self, outputs: Outputs):
        rate = round(float(outputs.notes["rate"]))
        plain = stoi(outputs["true"], outputs["made"], rate=rate)
        extended = stoi(outputs["true"], outputs["made"], rate=rate, extended=True)
        return {
            "generated": {
                "WER": errors_of_items(strings_of(outputs["said"]), strings_of(outputs["heard"])),
                "STOI": np.where(plain.scored, plain.value, np.nan),
                "ESTOI": np.where(extended.scored, extended.value, np.nan),
            },
            "true speech": {"WER": errors_of_items(strings_of(outputs["said"]), strings_of(outputs["heard_true"]))},
        }

    def baselines(self, outputs: Outputs) -> Mapping[str, Outputs]:
        """The one sentence that fits most of the test rows, always: no blind answer does much better."""
        always = bytes_of([fixed_sentence(strings_of(outputs["said"]))] * len(outputs))
        return {"best fixed sentence": outputs.with_arrays(heard=always, made=np.zeros_like(outputs["made"]))}


@torch.no_grad()
def _read(judge: Any, waves: np.ndarray, rate: float, ids: tuple[str, ...]) -> np.ndarray:
    """What the recognizer reads from sounds [N, L]: bytes [N, 160]."""
    read: list[str] = []
    for at in range(0, len(waves), 64):
        part = torch.from_numpy(waves[at : at + 64])[:, :, None]
        stream = Stream(part, torch.ones(part.shape[:2], dtype=torch.bool), rate)
        rows = torch.arange(len(part))
        names = ids[at : at + 64]
        batch = Batch(names, {"audio": stream}, rows, torch.zeros_like(rows), torch.full_like(rows, -1), names)
        read += judge.system.spelled(judge.system.words(batch.to(judge.device)))
    return bytes_of(read)
