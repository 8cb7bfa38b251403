"""Transcription: which words are said, by word error rate.

The answer is a sentence for every clip, compared word by word with the transcript by minimal edits. An item's WER is
its edits over its words; the mean weighs items alike. Lower is better; a WER can exceed 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from avcl.data.dataset import Data
from avcl.data.tokens import bytes_of, said_in, strings_of
from avcl.metrics.speech import errors_of_items, fixed_sentence
from avcl.system import Transcribes
from avcl.task import Measure, Outputs, Task, bare
from avcl.types import Batch


@dataclass(frozen=True)
class Transcription(Task):
    """Word error rate of what is read from a clip."""

    name: ClassVar[str] = "transcription"
    words: ClassVar[str] = "The words read from a clip are compared with its transcript by minimal edits."
    needs: ClassVar[type] = Transcribes
    headline: ClassVar[tuple[str, str]] = ("sound", "WER")
    lower: ClassVar[frozenset[str]] = frozenset({"WER"})

    def items(self, data: Data) -> Data:
        return data

    def shown(self, batch: Batch) -> Batch:
        return bare(batch, "transcript", "text")

    def answer(self, system: Any, shown: Batch) -> Mapping[str, Tensor]:
        return {"heard": torch.from_numpy(bytes_of(system.spelled(system.words(shown))))}

    def truth(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"said": torch.from_numpy(bytes_of(said_in(batch)))}

    def measures(self, outputs: Outputs) -> Mapping[str, Mapping[str, Measure]]:
        return {"sound": {"WER": errors_of_items(strings_of(outputs["said"]), strings_of(outputs["heard"]))}}

    def baselines(self, outputs: Outputs) -> Mapping[str, Outputs]:
        """The one sentence that fits most of the test rows, always: no blind answer does much better."""
        always = bytes_of([fixed_sentence(strings_of(outputs["said"]))] * len(outputs))
        return {"best fixed sentence": outputs.with_arrays(heard=always)}
