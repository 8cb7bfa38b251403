"""Separation: two sounds are added up, and the picture of each source is the only help to take them apart.

Items are fixed pairs of held-out clips (``avcl.data.mixtures``), mixed at equal level; the value of a mixture is the
mean of its two sources. All metrics in dB, higher is better:

- ``SI-SDR``: scale-invariant ratio (Le Roux et al. 2019); ``SI-SDR gain``: above that of the unprocessed mixture, the
XX
Every source of every mixture counts. An answer that is silence, or worse than ``floor`` dB, counts as ``floor``: a
separator cannot gain by falling silent where it fails. Rows without a separator stand beside the guided one: the ideal
ratio mask and the ideal binary mask of the true sources, as a scale of what masks can reach; they are no controls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from avcl.data.dataset import Data
from avcl.data.mixtures import Mixtures, guides_of
from avcl.dsp.phase import istft
from avcl.dsp.spectrum import stft
from avcl.errors import ConfigError, DataError, FeatureError
from avcl.metrics.separation import bss_eval, si_sdr, snr
from avcl.system import Separates
from avcl.task import Floats, Measure, Outputs, Task, bare, truth_of
from avcl.types import Batch

GUIDED = "guided"


@dataclass(frozen=True)
class Separation(Task):
    """``floor`` dB that a source counts at least · ``silence`` dB of full scale below which a clip is no stem ·
    ``fft`` of the ideal masks, in samples.
    """

    name: ClassVar[str] = "separation"
    words: ClassVar[str] = (
        "the sounds of two clips at equal level, each to be brought back with the help of its own picture; SI-SDR "
        "above that of the mixture, mean of the two sources; silence and whatever is worse counts as the floor, "
        "nothing is left out; wrong partner: the two pictures exchanged"
    )
    needs: ClassVar[type] = Separates
    headline: ClassVar[tuple[str, str]] = (GUIDED, "SI-SDR gain")
    partner: ClassVar[str] = "video"

    floor: float = -30.0
    silence: float = -45.0
    fft: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fft < 4 or self.fft % 4:
            raise ConfigError(f"fft = {self.fft} must be a multiple of 4.")

    # ------------------------------------------------------------------------------------------------------------ items
    def items(self, data: Data) -> Data:
        return Mixtures(data, seed=self.seed, silence=self.silence)

    def wrong_partners(self, data: Data) -> Data:
        """The guides of the two sources exchanged: who looks at them pulls out the wrong sound."""
        return Mixtures(data, seed=self.seed, silence=self.silence, swapped=True)

    def shown(self, batch: Batch) -> Batch:
        """The mixture and the guides; stems and classes are extras and gone."""
        return bare(batch)

    def answer(self, system: Any, shown: Batch) -> Mapping[str, Tensor]:
        """``estimates`` [B, S, T, C] in the order of the guides."""
        guides = guides_of(shown)
        made = system.separate(shown.audio, guides)
        mixture = shown.audio.data
        wanted = (len(mixture), len(guides), *mixture.shape[1:])
        if tuple(made.shape) != wanted:
            raise FeatureError(f"separate gave {list(made.shape)} for {list(wanted)}: [B, S, T, C] of the mixture.")
        return {"estimates": made.float()}

    def truth(self, batch: Batch) -> Mapping[str, Tensor]:
        stems, classes = truth_of(batch, self.name, "stems", "classes")
        return {"stems": stems, "classes": classes}

    def notes(self, data: Data) -> Mapping[str, Any]:
        known: dict[str, Any] = {"labels": list(data.labels), "bss_eval": "v3 sources, 512 taps, pairs fixed"}
        return known | ({"redrawn": data.redrawn} if isinstance(data, Mixtures) else {})

    # --------------------------------------------------------------------------------------------------------- measures
    def measures(self, outputs: Outputs) -> Mapping[str, Mapping[str, Measure]]:
        found = self._each(outputs)
        rows: dict[str, dict[str, Measure]] = {GUIDED: {name: v.mean(1) for name, v in found.items()}}
        stems = _mono(outputs["stems"])
        bottom = self._si_sdr(stems, np.broadcast_to(stems.sum(1, keepdims=True), stems.shape))
        for kind in ("ratio", "binary"):
            value = self._si_sdr(stems, self.ideal(stems, kind))
            rows[f"ideal {kind} mask"] = {"SI-SDR": value.mean(1), "SI-SDR gain": (value - bottom).mean(1)}
        return rows

    def _each(self, outputs: Outputs) -> dict[str, Floats]:
        """Every metric of every source [N, S]."""
        stems, made = _mono(outputs["stems"]), _mono(outputs["estimates"])
        if (np.abs(stems).sum(2) == 0).any():
            raise DataError("a stem is silent: there is nothing to bring back, and no ratio.")
        mixture = np.broadcast_to(stems.sum(1, keepdims=True), stems.shape)
        own, rival = self._si_sdr(stems, made), self._si_sdr(stems, mixture)
        sdr, sir, sar = self._bss(stems, made)
        plain = np.stack([self._counted(*snr(s, e)) for s, e in zip(stems, made, strict=True)])
        return {"SI-SDR": own, "SI-SDR gain": own - rival, "SDR": sdr, "SIR": sir, "SAR": sar, "SNR": plain}

    def _si_sdr(self, stems: Floats, made: Floats) -> Floats:
        return np.stack([self._counted(*si_sdr(s, e)) for s, e in zip(stems, made, strict=True)])

    def _bss(self, stems: Floats, made: Floats) -> Floats:
        """[3, N, S]: SDR, SIR, SAR."""
        found = [bss_eval(s, e) for s, e in zip(stems, made, strict=True)]
        return np.stack([np.stack([self._counted(v, f.scored) for v in (f.sdr, f.sir, f.sar)]) for f in found], 1)

    def _counted(self, value: Floats, scored: NDArray[np.bool_]) -> Floats:
        """What could not be scored, for the answer is silence, is as bad as the worst: it is not left out."""
        return np.maximum(np.where(scored, value, self.floor), self.floor)

    def ideal(self, stems: Floats, kind: str) -> Floats:
        """What ideal masks make of the sum of stems [N, S, T]: "ratio" X_s / Σ X, "binary" 1[X_s is the largest]."""
        waves = pad(torch.from_numpy(stems).float(), (0, self.fft))
        spectra = torch.stack([stft(w, n_fft=self.fft, hop=self.fft // 4) for w in waves])  # [N, S, frames, F]
        size = spectra.abs()
        largest = (size >= size.amax(1, keepdim=True)).float()
        masks = largest if kind == "binary" else size / size.sum(1, keepdim=True).clamp(min=1e-12)
        parts = (masks * spectra.sum(1, keepdim=True)).flatten(0, 1)
        back = istft(parts, n_fft=self.fft, hop=self.fft // 4, length=waves.shape[2])
        return back[:, : stems.shape[2]].reshape(stems.shape).double().numpy()

    # --------------------------------------------------------------------------------------------------------- controls
    def baselines(self, outputs: Outputs) -> Mapping[str, Outputs]:
        """The mixture for every source, and an equal share of it: only its level tells them apart."""
        stems = outputs["stems"]
        whole = np.broadcast_to(stems.sum(1, keepdims=True), stems.shape).copy()
        share = whole / stems.shape[1]
        return {
            "the mixture": outputs.with_arrays(estimates=whole),
            "equal share": outputs.with_arrays(estimates=share),
        }

    def per_class(self, outputs: Outputs) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
        """The gain of the sources of each class."""
        labels, classes = outputs.notes.get("labels", []), outputs["classes"]
        stems = _mono(outputs["stems"])
        mixture = np.broadcast_to(stems.sum(1, keepdims=True), stems.shape)
        gain = self._si_sdr(stems, _mono(outputs["estimates"])) - self._si_sdr(stems, mixture)
        rows = {name: gain[classes == k] for k, name in enumerate(labels)}
        return {GUIDED: {name: {"SI-SDR gain": float(v.mean())} for name, v in rows.items() if len(v)}}


def _mono(waves: NDArray[Any]) -> Floats:
    """[N, S, T, C] as [N, S, T], the channels after each other: what is scored is all of them."""
    n, sources, steps, channels = waves.shape
    return np.ascontiguousarray(waves.transpose(0, 1, 3, 2)).reshape(n, sources, channels * steps).astype(np.float64)
