"""Music from a silent player: which notes, and when, against the tune that was played.

- ``note F1``: harmonic mean of precision and recall of the notes of a clip, matched one to one where the onset is
  within ``tolerance`` seconds and the pitch is right (mir_eval's transcription metric without offsets); the mean over
  clips. ``onset F1`` asks for the moment alone. A clip for which nothing is generated has 0.
- ``NDB of K@…``: number of K bins in which generated and training tunes differ (two-proportion test at 5 %; Richardson
  & Weiss 2018); a perfect model is at .05 K. Bins are k-means cells of the training tunes in the log-mel of the tune as
  an instrument of the world plays it, so it says how tunes sound, not whether they are right. Behind the @ stands the
  fingerprint of that encoder; the notes say it in words, and outputs that do not name it are not scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from mir_eval import transcription
from numpy.typing import NDArray
from torch import Tensor

from avcl.data.dataset import Data
from avcl.data.loader import Loader
from avcl.data.world.scores import played
from avcl.encoders.notes import DURATION, ONSET, PITCH
from avcl.encoders.views import SoundView
from avcl.errors import BatchError, ConfigError, DataError
from avcl.metrics import different_bins
from avcl.seeds import seed_for
from avcl.system import Generates
from avcl.task import Measure, Outputs, Task, bare
from avcl.types import Batch, Stream, fingerprint

Rows = NDArray[np.float64]
RATE = 8000  # of the sound in which tunes are compared


@dataclass(frozen=True)
class Music(Task):
    """The protocol of music generation. ``tolerance`` seconds of an onset · ``seconds`` of a tune that are heard ·
    ``bins`` of NDB · ``most`` notes of a clip that are kept · ``fit_rows``: training tunes at most that make the bins
    and the baselines · ``instrument`` on which all tunes are compared.
    """

    name: ClassVar[str] = "music"
    words: ClassVar[str] = "the notes of a silent player, matched one to one by onset and pitch"
    needs: ClassVar[type] = Generates
    headline: ClassVar[tuple[str, str]] = ("tune", "note F1")
    lower: ClassVar[frozenset[str]] = frozenset({"NDB"})
    partner: ClassVar[str] = "pose"
    fits: ClassVar[bool] = True

    tolerance: float = 0.1
    seconds: float = 3.0
    bins: int = 20
    most: int = 64
    fit_rows: int = 400
    instrument: str = "piano"

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = (self.tolerance, self.seconds, self.bins, self.most, self.fit_rows)
        if min(numbers) <= 0:
            raise ConfigError(f"tolerance, seconds, bins, most and fit_rows must be above 0, not {numbers}.")

    def items(self, data: Data) -> Data:
        """The rows as they are: the truth is a stream of its own."""
        return data

    def shown(self, batch: Batch) -> Batch:
        """Everything but the tune and its sound."""
        return bare(batch, "notes", "audio")

    def answer(self, system: Any, shown: Batch) -> Mapping[str, Tensor]:
        made = system.generate(shown, torch.Generator().manual_seed(seed_for(self.seed, "generate", "notes")))
        if made.data.ndim != 3 or made.data.shape[2] != 4:
            raise BatchError(f"notes are [B, K, 4], not {list(made.data.shape)}.")
        return self._padded("made", made)

    def truth(self, batch: Batch) -> Mapping[str, Tensor]:
        if "notes" not in batch.streams:
            raise DataError(f'{self.name} needs the tune "notes", which "{batch.id[0]}" does not have.')
        return self._padded("true", batch.streams["notes"])

    def _padded(self, who: str, notes: Stream) -> dict[str, Tensor]:
        """The first ``most`` notes, [B, most, 4], and which there are."""
        data = notes.data.new_zeros(len(notes.data), self.most, 4)
        mask = torch.zeros(len(notes.data), self.most, dtype=torch.bool, device=notes.data.device)
        steps = min(self.most, notes.data.shape[1])
        data[:, :steps], mask[:, :steps] = notes.data[:, :steps], notes.mask[:, :steps]
        return {who: data, f"{who}?": mask}

    # -------------------------------------------------------------------------------------------------- training tunes
    def judged(self, outputs: Outputs, system: Any, data: Data, fit: Data | None, *, workers: int) -> Outputs:
        """The bins of the training tunes, in which the generated ones fall; and the tunes of the baselines."""
        from sklearn.cluster import KMeans

        assert fit is not None
        tunes, there = self._training(fit)
        if len(tunes) < self.bins:
            raise DataError(f"{self.bins} bins need as many training tunes, not {len(tunes)}.")
        heard = self._heard(tunes, there)
        cells = KMeans(n_clusters=self.bins, n_init=1, random_state=self.seed).fit(heard)
        draws = np.random.default_rng(seed_for(self.seed, "training tune")).integers(len(tunes), size=len(outputs))
        center = np.full(len(outputs), _medoid(tunes, there, self.tolerance))
        arrays: dict[str, NDArray[Any]] = dict(outputs.arrays)
        for who, rows in {"common": center, "other": draws}.items():
            arrays |= {who: tunes[rows], f"{who}?": there[rows]}
        for who in ("made", "true", "common", "other"):
            arrays[f"{who} bin"] = cells.predict(self._heard(arrays[who], arrays[f"{who}?"]))
        encoder = f"{self._view.name} of the tune on the {self.instrument} of the world, k-means of {len(tunes)} tunes"
        counts = np.bincount(cells.labels_, minlength=self.bins).tolist()
        digest = hashlib.sha256(np.ascontiguousarray(np.round(cells.cluster_centers_, 4)).tobytes()).hexdigest()
        notes = {**outputs.notes, "counts": counts, "encoder": {"tune": encoder}}
        notes["encoder"]["tag"] = fingerprint({"encoder": encoder, "centers": digest})[:8]
        return Outputs(outputs.ids, outputs.groups, arrays, notes, outputs.n_official)

    @property
    def _view(self) -> SoundView:
        return SoundView(RATE, self.seconds)

    def _training(self, fit: Data) -> tuple[Rows, NDArray[np.bool_]]:
        chosen = np.unique(np.linspace(0, len(fit) - 1, min(self.fit_rows, len(fit))).astype(int)).tolist()
        with Loader(fit.subset(chosen), batch_size=64) as loader:
            parts = [self.truth(batch) for batch in loader]
        tunes, there = (torch.cat([part[name] for part in parts]).numpy() for name in ("true", "true?"))
        return tunes, there

    def _heard(self, tunes: NDArray[Any], there: NDArray[np.bool_]) -> Rows:
        """The view of every tune as it sounds: [N, D]."""
        waves = [
            played(tune[known], seconds=self.seconds, sample_rate=RATE, instrument=self.instrument)
            for tune, known in zip(tunes, there, strict=True)
        ]
        wave = torch.from_numpy(np.stack(waves))[:, :, None]
        return self._view.of(Stream(wave, torch.ones(wave.shape[:2], dtype=torch.bool), RATE)).double().numpy()

    # --------------------------------------------------------------------------------------------------------- scoring
    def measures(self, outputs: Outputs) -> Mapping[str, Mapping[str, Measure]]:
        encoder = outputs.notes.get("encoder")
        if not isinstance(encoder, Mapping) or not encoder.get("tag") or not encoder.get("tune"):
            raise DataError("the outputs do not name the encoder of the bins.", hint='Set notes["encoder"].')
        tunes = [
            _match(m[k], t[j], self.tolerance)
            for m, k, t, j in zip(*(outputs[n] for n in ("made", "made?", "true", "true?")), strict=True)
        ]
        found = np.array(tunes, np.float64)
        row: dict[str, Any] = {
            name: found[:, i] for i, name in enumerate(("note F1", "precision", "recall", "onset F1"))
        }
        row["notes made"] = outputs["made?"].sum(1).astype(np.float64)
        row["notes true"] = outputs["true?"].sum(1).astype(np.float64)
        counts = np.array(outputs.notes["counts"], np.int64)
        row[f"NDB of {self.bins}@{encoder['tag']}"] = _Bins(counts, outputs["made bin"].astype(np.int64))
        return {"tune": row}

    def baselines(self, outputs: Outputs) -> Mapping[str, Outputs]:
        """The training tune that is most like the others, and a random one, for every clip."""
        found = {}
        for name, who in {"most common tune": "common", "training tune": "other"}.items():
            parts = {f"made{mark}": outputs[f"{who}{mark}"] for mark in ("", "?", " bin")}
            found[name] = outputs.with_arrays(**parts)
        return found


class _Bins:
    """NDB over the rows that were drawn."""

    def __init__(self, training: NDArray[np.int64], made: NDArray[np.int64]):
        self.training, self.made = training, made

    def __call__(self, rows: NDArray[np.int64]) -> float:
        counts = np.bincount(self.made[rows], minlength=len(self.training))
        return float(different_bins(self.training, counts).ndb)


def _match(made: NDArray[Any], true: NDArray[Any], tolerance: float) -> tuple[float, float, float, float]:
    """(F1, precision, recall, F1 of onsets alone) of the notes [K, 4] of one clip; 0 where one list is empty."""
    if not len(made) or not len(true):
        return (0.0, 0.0, 0.0, 0.0)
    spans, hertz = zip(*(_parts(notes) for notes in (true, made)), strict=True)
    how = {"onset_tolerance": tolerance}
    precision, recall, f1, _ = transcription.precision_recall_f1_overlap(
        spans[0], hertz[0], spans[1], hertz[1], offset_ratio=None, **how
    )
    onset = transcription.onset_precision_recall_f1(spans[0], spans[1], **how)[2]
    return (float(f1), float(precision), float(recall), float(onset))


def _parts(notes: NDArray[Any]) -> tuple[Rows, Rows]:
    """Intervals [K, 2] in seconds, and Hz [K]."""
    rows = notes.astype(np.float64)
    onset = np.maximum(rows[:, ONSET], 0)
    spans = np.stack([onset, onset + np.maximum(rows[:, DURATION], 1e-3)], 1)
    return spans, 440.0 * 2 ** ((rows[:, PITCH] - 69) / 12)


def _medoid(tunes: Rows, there: NDArray[np.bool_], tolerance: float, *, among: int = 60) -> int:
    """The number of the tune with the highest mean F1 to the others, of the first ``among``."""
    some = [tune[known] for tune, known in zip(tunes[:among], there[:among], strict=True)]
    return int(np.argmax([np.mean([_match(one, other, tolerance)[0] for other in some]) for one in some]))
