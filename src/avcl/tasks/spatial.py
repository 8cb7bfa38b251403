"""Spatial sound: from the sum of both ears and the picture, the sound at each ear.

A system gets one channel, x = left + right, and the pictures; the stereo sound is hidden. It answers with two channels,
left and right. Answer and truth are scored at 16 kHz, the first ``seconds`` of a clip; both are multiplied by one
factor, that which brings the truth to the root mean square ``level`` (over both ears), for a distance of spectra grows
with the level. Condition ``both ears``:

- ``STFT``: distance of the complex spectra, mean square, summed over the ears (zero padding); decides, less is better.
- ``ENV``: root mean square distance of the envelopes, summed over the ears; less is better.
- ``louder ear``: where the truth is louder in one ear by more than 1 dB (windows of a quarter second), how often the
answer is louder there too; equal loudness counts one half. Whoever puts the same sound on both ears has one half.

The same sound on both ears is a strong answer: what it misses is only the difference between the ears, and a network
that ignores the picture cannot know the sign of that. Such a network therefore ends there, and no measure of the sum of
both ears would tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from avcl.data.dataset import Data
from avcl.dsp.rates import resample
from avcl.errors import ConfigError, DataError, FeatureError
from avcl.metrics.separation import binaural_stft_distance, envelope_distance
from avcl.system import Generates
from avcl.task import Floats, Measure, Outputs, Table, Task, bare
from avcl.types import Batch, Stream

RATE = 16_000  # of the windows of ``binaural_stft_distance``
CLOSE = 1.0  # dB between the ears up to which neither is the louder one
BOTH = "both ears"


@dataclass(frozen=True)
class Spatial(Task):
    """``seconds`` of each clip that are scored · ``level`` of the truth, 0: as it is."""

    name: ClassVar[str] = "spatial"
    words: ClassVar[str] = (
        "from the sum of both ears and the picture, the sound at each ear: distance of the complex spectra at 16 kHz, "
        "mean square, summed over the ears, the truth brought to one level; wrong partner: another clip's picture"
    )
    needs: ClassVar[type] = Generates
    headline: ClassVar[tuple[str, str]] = (BOTH, "STFT")
    lower: ClassVar[frozenset[str]] = frozenset({"STFT", "ENV"})
    partner: ClassVar[str] = "video"

    seconds: float = 3.0
    level: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.1 <= self.seconds < 1e4 or not 0 <= self.level < 1e4:
            raise ConfigError(f"seconds = {self.seconds} must be at least 0.1 and level = {self.level} at least 0.")

    # ------------------------------------------------------------------------------------------------ what is asked
    def items(self, data: Data) -> Data:
        return data  # the two ears are the truth, and the clip has them

    def shown(self, batch: Batch) -> Batch:
        """The sum of both ears, one channel, and the pictures; the two ears, stems and places are gone."""
        (audio,) = batch.require("audio")
        kept = bare(batch, *(name for name in batch.streams if name not in ("audio", "video")))
        mono = audio._replace(data=audio.data.sum(2, keepdim=True))
        return Batch(kept.id, {**kept.streams, "audio": mono}, kept.index, kept.view, kept.label, kept.group)

    def answer(self, system: Any, shown: Batch) -> Mapping[str, Tensor]:
        """``ears`` [B, N, 2] at 16 kHz, left and right."""
        mono = shown.audio
        generator = torch.Generator(mono.data.device).manual_seed(self.seed)
        made = system.generate(shown, generator)
        want = (*mono.data.shape[:2], 2)
        if tuple(made.data.shape) != want or made.rate != mono.rate:
            raise FeatureError(
                f"generate gave {list(made.data.shape)} at {made.rate:g} Hz; stereo like the mono sound is "
                f"{list(want)} at {mono.rate:g} Hz."
            )
        return {"ears": self._window(made._replace(mask=mono.mask))}

    def truth(self, batch: Batch) -> Mapping[str, Tensor]:
        """``binaural`` [B, N, 2] at 16 kHz and how many of the N samples were recorded, ``recorded`` [B]."""
        (audio,) = batch.require("audio")
        if audio.data.shape[2] != 2:
            raise DataError(
                f'{self.name} needs stereo sound; that of "{batch.id[0]}" has {audio.data.shape[2]} channel.',
                hint="Decode it with two channels (Inputs.channels = 2), or take world:spatial.",
            )
        count = (audio.mask.sum(1) * (RATE / audio.rate)).round().to(torch.int64)
        return {"binaural": self._window(audio), "recorded": count.clamp(max=round(self.seconds * RATE))}

    def _window(self, audio: Stream) -> Tensor:
        """The first ``seconds`` at 16 kHz, zeros where nothing was recorded."""
        wave = resample((audio.data.float() * audio.mask[:, :, None]).cpu(), audio.rate, RATE)
        length = round(self.seconds * RATE)
        return torch.nn.functional.pad(wave, (0, 0, 0, max(0, length - wave.shape[1])))[:, :length]

    # ----------------------------------------------------------------------------------------------- what is scored
    def measures(self, outputs: Outputs) -> Mapping[str, Mapping[str, Measure]]:
        rows = [self._each(outputs, i) for i in range(len(outputs))]
        return {BOTH: {name: np.array([row[name] for row in rows]) for name in ("STFT", "ENV", "louder ear")}}

    def _each(self, outputs: Outputs, i: int) -> dict[str, float]:
        """Every metric of one clip; NaN for silence, in which there is nothing to place."""
        count = int(outputs["recorded"][i])
        truth, guess = (outputs[name][i, :count].T.astype(np.float64) for name in ("binaural", "ears"))
        size = np.sqrt(np.mean(truth**2)) if count else 0.0
        if count <= RATE // 20 or size == 0:
            return dict.fromkeys(("STFT", "ENV", "louder ear"), float("nan"))
        factor = self.level / size if self.level else 1.0
        truth, guess = factor * truth, factor * guess
        return {
            "STFT": binaural_stft_distance(truth, guess),
            "ENV": envelope_distance(truth, guess),
            "louder ear": _louder(truth, guess),
        }

    def chance(self, outputs: Outputs) -> Table:
        """A distance has no chance level; the louder ear guessed by a coin."""
        return {BOTH: {"louder ear": 0.5}}

    def baselines(self, outputs: Outputs) -> Mapping[str, Outputs]:
        """Half of the sum on each ear, all of it on one ear, and what the system said with the ears exchanged: a
        system that does not know the side is as good that way."""
        mono = outputs["binaural"].sum(2, keepdims=True)
        nothing = np.zeros_like(mono)
        answers = {
            "mono": np.concatenate([mono, mono], 2) / 2,
            "left ear": np.concatenate([mono, nothing], 2),
            "right ear": np.concatenate([nothing, mono], 2),
            "ears exchanged": outputs["ears"][:, :, ::-1],
        }
        return {name: outputs.with_arrays(ears=ears) for name, ears in answers.items()}

    def notes(self, data: Data) -> Mapping[str, Any]:
        rate = data.spec.streams["audio"].rate if "audio" in data.spec.streams else None
        return {**super().notes(data), "rate": RATE, "source_rate": rate, "form": "mean square, zero padding"}


def _louder(truth: Floats, guess: Floats) -> float:
    """The share of quarter seconds in which ``guess`` [2, L] is louder in the ear in which ``truth`` is; NaN where the
    ears are alike throughout."""
    width = RATE // 4
    loud = []
    for wave in (truth, guess):
        parts = np.pad(wave, ((0, 0), (0, -wave.shape[1] % width))).reshape(2, -1, width)
        loud.append((parts**2).mean(2))
    heard = loud[0].sum(0) > 1e-4 * loud[0].sum(0).max()  # 40 dB below the loudest there is nothing to tell
    apart = np.abs(10 * np.log10((loud[0][1] + 1e-20) / (loud[0][0] + 1e-20))) > CLOSE
    rows = heard & apart
    if not rows.any():
        return float("nan")
    side, said = (np.sign(part[1] - part[0])[rows] for part in loud)
    return float(np.mean(np.where(said == 0, 0.5, said == side)))
