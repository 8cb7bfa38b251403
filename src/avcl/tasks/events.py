"""Event localization: what is seen and heard in each segment of a clip, and where one modality fits the other.

Each clip has S segments of equal length, each with a class or background, which is a class like any other: the segments
in which nothing is both seen and heard. Conditions: ``both``, ``audio only`` and ``video only`` (the other stream as if
it had not been recorded: the rule "both modalities" is checked against them), ``audio to video`` and ``video to audio``
(cross-modality localization, of systems that match segments), and a reference that knows the truth: the class of the
clip at every segment, which is right wherever there is an event and says how little of the score is localization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avcl.data.dataset import Data
from avcl.errors import ConfigError, FeatureError, LabelError
from avcl.metrics.classification import class_scores
from avcl.metrics.events import event_scores, match_segments, segment_spans
from avcl.system import Matches, Segments
from avcl.task import Measure, Outputs, Table, Task, bare, truth_of
from avcl.types import Batch

Ints = NDArray[np.int64]
ANSWERS = {"both": "logits", "audio only": "logits_audio", "video only": "logits_video"}
MATCHES = ("audio to video", "video to audio")
ORACLE = "oracle: the clip's class everywhere"
BACKGROUND = "background"


@dataclass(frozen=True)
class Events(Task):
    """Logits [N, S, C + 1] against the classes of the segments [N, S].

    ``segment accuracy``: share of the segments whose largest logit is the truth, background included · ``event recall``
    and ``background recall``: the same of the segments that are (not) an event, a mean over the clips that have such
    segments · ``event F1``: runs of equal labels as spans, found where class and time agree (intersection over union
    at least ``iou``), counted over all clips · ``start accuracy``: the event's segments of one modality are laid over
    those of the other, and the cheapest window must start where the event does; clips whose event fills them, is torn
    or absent are not scored. ``ties``: "expected" (a constant model gets chance) or "first" (the published rule).
    """

    name: ClassVar[str] = "events"
    words: ClassVar[str] = (
        "every segment gets the class with the largest logit, background being the last; the share of right segments"
    )
    needs: ClassVar[type] = Segments
    headline: ClassVar[tuple[str, str]] = ("both", "segment accuracy")

    iou: float = 0.5
    ties: str = "expected"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.iou <= 1:
            raise ConfigError(f"iou = {self.iou} must lie above 0 and not above 1.")
        if self.ties not in ("expected", "first"):
            raise ConfigError(f'ties = "{self.ties}" is not "expected" or "first".')

    # ------------------------------------------------------------------------------------------------------- answering
    def shown(self, batch: Batch) -> Batch:
        return bare(batch)

    def truth(self, batch: Batch) -> Mapping[str, Tensor]:
        (segments,) = truth_of(batch, self.name, "segments")
        return {"segments": segments.long()}

    def answer(self, system: Any, shown: Batch) -> Mapping[str, Tensor]:
        said = {"logits": system.events(shown)}
        said |= {f"logits_{kept}": system.events(_only(shown, kept)) for kept in ("audio", "video")}
        if isinstance(system, Matches):
            both = [system.match(_only(shown, name), name) for name in ("video", "audio")]
            if both[0] is not None and both[1] is not None:
                said["distance"] = torch.cdist(both[0], both[1], compute_mode="donot_use_mm_for_euclid_dist")
        return said

    def notes(self, data: Data) -> Mapping[str, Any]:
        return {"labels": [*data.labels, BACKGROUND]}

    def judged(self, outputs: Outputs, system: Any, data: Data, fit: Data | None, *, workers: int) -> Outputs:
        known = getattr(getattr(system, "spec", None), "labels", data.labels)
        if tuple(known) != tuple(data.labels):
            raise LabelError(
                "the model was trained on other classes than the data have, or in another order.",
                hint=f"It knows {', '.join(known) or 'none'}.",
            )
        return outputs

    # --------------------------------------------------------------------------------------------------------- scoring
    def measures(self, outputs: Outputs) -> Mapping[str, Mapping[str, Measure]]:
        truth, background = _truth(outputs)
        found: dict[str, dict[str, Measure]] = {}
        for condition, name in ANSWERS.items():
            if name in outputs.arrays:
                said = _said(outputs, name, truth)
                found[condition] = self._labels(truth, said, background, spans=condition == "both")
        if "distance" in outputs.arrays:
            tables = outputs["distance"]
            for condition, turned in zip(MATCHES, (tables, tables.transpose(0, 2, 1)), strict=True):
                found[condition] = {"start accuracy": self._starts(truth, turned, background)[0]}
        found[ORACLE] = {"segment accuracy": (truth != background).mean(1)}
        return found

    def _labels(self, truth: Ints, said: Ints, background: int, *, spans: bool) -> dict[str, Measure]:
        right, event = truth == said, truth != background
        row: dict[str, Measure] = {
            "segment accuracy": right.mean(1),
            "event recall": _share(right, event),
            "background recall": _share(right, ~event),
        }
        if spans:
            counts = np.array([self._counted(t, s, background) for t, s in zip(truth, said, strict=True)])

            def f1(rows: Ints) -> float:
                hits, false, missed = counts[rows].sum(0)
                return float(2 * hits / (2 * hits + false + missed)) if hits + false + missed else 1.0

            row["event F1"] = f1
        return row

    def _counted(self, truth: Ints, said: Ints, background: int) -> tuple[int, int, int]:
        pair = [[segment_spans(labels, background=background)] for labels in (truth, said)]
        scores = event_scores(*pair, iou=self.iou)
        return scores.hits, scores.false, scores.missed

    def _starts(
        self, truth: Ints, tables: NDArray[Any], background: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of each clip, is the start found [N] and the chance of it [N]; NaN where there is nothing to be found.

        ``tables`` [N, S, S]: distance of each segment (rows) to those that are laid over it.
        """
        hit, chance = np.full(len(truth), np.nan), np.full(len(truth), np.nan)
        for i, (labels, table) in enumerate(zip(truth, tables, strict=True)):
            spans, _ = segment_spans(labels, background=background)
            if len(spans) != 1 or spans[0, 1] - spans[0, 0] == len(labels):
                continue
            start, end = (int(x) for x in spans[0])
            found = match_segments([table[:, start:end]], [start], ties=self.ties)
            hit[i], chance[i] = found.accuracy, found.chance
        return hit, chance

    def chance(self, outputs: Outputs) -> Table:
        truth, background = _truth(outputs)
        blind = 1 / (background + 1)
        known = ("segment accuracy", "event recall", "background recall")
        found = {c: dict.fromkeys(known, blind) for c, name in ANSWERS.items() if name in outputs.arrays}
        if "distance" in outputs.arrays:
            starts = self._starts(truth, outputs["distance"], background)[1]
            if np.isfinite(starts).any():
                found |= {condition: {"start accuracy": float(np.nanmean(starts))} for condition in MATCHES}
        return found

    def baselines(self, outputs: Outputs) -> Mapping[str, Outputs]:
        truth, background = _truth(outputs)
        events = truth[truth != background]
        answers = {"background only": background}
        if len(events):
            answers["most frequent event"] = int(np.bincount(events).argmax())
        row = np.eye(background + 1, dtype=np.float32)
        logits = {name: np.broadcast_to(row[label], (*truth.shape, background + 1)) for name, label in answers.items()}
        return {name: replace(outputs, arrays={"segments": truth, "logits": array}) for name, array in logits.items()}

    def per_class(self, outputs: Outputs) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
        truth, background = _truth(outputs)
        scores = class_scores(truth.ravel(), _said(outputs, "logits", truth).ravel(), n_classes=background + 1)
        rows = zip(outputs.notes["labels"], scores.recall, scores.precision, scores.f1, scores.support, strict=True)
        names = ("recall", "precision", "F1", "segments")
        return {"both": {label: dict(zip(names, map(float, values), strict=True)) for label, *values in rows}}


def _only(batch: Batch, kept: str) -> Batch:
    """The batch in which nothing but ``kept`` was recorded; the other streams keep their length."""
    streams = {
        name: stream
        if name == kept
        else stream._replace(data=torch.zeros_like(stream.data), mask=torch.zeros_like(stream.mask))
        for name, stream in batch.streams.items()
    }
    return replace(batch, streams=streams)


def _truth(outputs: Outputs) -> tuple[Ints, int]:
    """Classes of the segments [N, S] and the number of background; FeatureError where one is no class."""
    truth, background = outputs["segments"].astype(np.int64), len(outputs.notes["labels"]) - 1
    if truth.min() < 0 or truth.max() > background:
        raise FeatureError(f"segments must be classes from 0 to {background} (background), not {truth.max()}.")
    return truth, background


def _said(outputs: Outputs, name: str, truth: Ints) -> Ints:
    """The class with the largest logit [N, S]; FeatureError unless there are logits for these segments and classes."""
    logits, classes = outputs[name], len(outputs.notes["labels"])
    if logits.shape != (*truth.shape, classes):
        raise FeatureError(
            f"the system gives {list(logits.shape[1:])} segments and classes, the truth has {truth.shape[1]} and "
            f"{classes} with background.",
            hint="Set window and segment (seconds) of the system as the data have them.",
        )
    return logits.argmax(2).astype(np.int64)


def _share(right: NDArray[np.bool_], of: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of right ones among ``of`` in each row, NaN where there are none."""
    count = of.sum(1)
    return np.divide((right & of).sum(1), count, out=np.full(len(right), np.nan), where=count > 0)
