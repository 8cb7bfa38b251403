"""Recognition: which class a clip is (an emotion, say), or which value it has, from both modalities or from one alone.

Conditions: ``both``, and a row for each modality that is left alone (``audio only``, ``video only``: the other stream
is not in the batch): what a system is worth where sound or picture is missing. A system that cannot answer without one
of its streams has no such row.

A class that is the same throughout a recording or a person must not stand in two splits: give the data that as their
``group``. What a model knows of the person then cannot help it, and the intervals are over groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from avcl import discover
from avcl.data.dataset import Data
from avcl.errors import BatchError, ConfigError, FeatureError
from avcl.metrics.classification import ccc, class_scores, pearson
from avcl.system import Recognizes, Regresses
from avcl.task import Floats, Measure, Outputs, Table, Task, bare, labels_of, truth_of
from avcl.types import Batch

Ints = NDArray[np.int64]
ALL = "both"
TARGETS = {
    "class": "the class with the largest logit; the share of right clips",
    "value": "a value for each step; its concordance with the truth, moments over all steps of all recordings together",
}


@dataclass(frozen=True)
class Recognition(Task):
    """``target`` "class": logits [N, C] against labels [N] · "value": values [N] or [N, T] against the truth "value".

    Class: ``accuracy`` (equal best logits share the answer) · ``UAR``, mean recall of the classes that occur · ``macro
    F1``. Value: ``CCC``, Lin's concordance with moments over n, all steps of all clips concatenated (AVEC practice) ·
    ``CCC within``, the mean of that of each group alone, which does not reward what differs between recordings ·
    ``Pearson`` · ``MAE``. Baselines: the most frequent class, or the mean value, of the scored rows themselves.
    """

    name: ClassVar[str] = "recognition"
    words: ClassVar[str] = "; ".join(f"{name}: {rule}" for name, rule in TARGETS.items())
    needs: ClassVar[type] = Recognizes
    headline: ClassVar[tuple[str, str]] = (ALL, "accuracy")
    lower: ClassVar[frozenset[str]] = frozenset({"MAE"})

    target: str = "class"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target not in TARGETS:
            raise ConfigError(f'target = "{self.target}" is not "class" or "value".')
        if self.target == "value":  # what decides depends on the target; a field would change every fingerprint
            object.__setattr__(self, "headline", (ALL, "CCC"))

    def require(self, system: Any) -> None:
        asked = Recognizes if self.target == "class" else Regresses
        discover.require(system, asked, f"be scored at {self.name} of a {self.target}")

    # ------------------------------------------------------------------------------------------------------- answering
    def items(self, data: Data) -> Data:
        """Labels are there anyway; only values are truth that must be asked for."""
        return data if self.target == "class" else data.with_truth()

    def shown(self, batch: Batch) -> Batch:
        return bare(batch)

    def truth(self, batch: Batch) -> Mapping[str, Tensor]:
        if self.target == "class":
            return {"label": labels_of(batch, self.name)}
        (value,) = truth_of(batch, self.name, "value")
        return {"value": value}

    def answer(self, system: Any, shown: Batch) -> Mapping[str, Tensor]:
        asked = system.logits if self.target == "class" else system.values
        said = {ALL: asked(shown)}
        for name in shown.streams if len(shown.streams) > 1 else ():
            try:
                said[f"{name} only"] = asked(shown.without(*(other for other in shown.streams if other != name)))
            except BatchError:  # it needs the other stream too
                continue
        return said

    # --------------------------------------------------------------------------------------------------------- scoring
    def measures(self, outputs: Outputs) -> Mapping[str, Mapping[str, Measure]]:
        if self.target == "value":
            return {condition: self._concordance(outputs, condition) for condition in _conditions(outputs)}
        truth, classes = outputs["label"].astype(np.int64), _classes(outputs)
        return {c: _recognized(truth, outputs[c], classes) for c in _conditions(outputs)}

    def _concordance(self, outputs: Outputs, condition: str) -> dict[str, Measure]:
        truth, said = _values(outputs, condition)

        def together(metric: Any) -> Any:
            def of(rows: Ints) -> float:
                try:
                    return float(metric(truth[rows].ravel(), said[rows].ravel()))
                except FeatureError:  # rows were drawn in which nothing varies
                    return float("nan")

            return of

        return {
            "CCC": together(ccc),
            "CCC within": _within(truth, said, outputs.groups),
            "Pearson": together(pearson),
            "MAE": np.abs(truth - said).mean(1),
        }

    def chance(self, outputs: Outputs) -> Table:
        if self.target == "value":
            return {c: {"CCC": 0.0, "CCC within": 0.0, "Pearson": 0.0} for c in _conditions(outputs)}
        blind = 1 / _classes(outputs)
        return {condition: {"accuracy": blind, "UAR": blind} for condition in _conditions(outputs)}

    def baselines(self, outputs: Outputs) -> Mapping[str, Outputs]:
        conditions = _conditions(outputs)
        if self.target == "value":
            mean = np.full_like(outputs["value"], outputs["value"].mean())
            return {"the mean": outputs.with_arrays(**dict.fromkeys(conditions, mean))}
        counts = np.bincount(outputs["label"], minlength=_classes(outputs))
        most = np.broadcast_to(np.eye(len(counts))[counts.argmax()], (len(outputs), len(counts)))
        return {"majority": outputs.with_arrays(**dict.fromkeys(conditions, most))}

    def per_class(self, outputs: Outputs) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
        if self.target == "value":
            return {}
        labels, found = outputs.notes.get("labels", []), {}
        for condition in _conditions(outputs):
            s = class_scores(outputs["label"], outputs[condition].argmax(1), n_classes=_classes(outputs))
            found[condition] = {
                labels[c] if c < len(labels) else str(c): {
                    "items": float(s.support[c]),
                    "recall": float(s.recall[c]),
                    "precision": float(s.precision[c]),
                    "F1": float(s.f1[c]),
                }
                for c in np.flatnonzero(s.seen).tolist()
            }
        return found


def _conditions(outputs: Outputs) -> list[str]:
    return [name for name in outputs.arrays if name == ALL or name.endswith(" only")]


def _classes(outputs: Outputs) -> int:
    """How many classes the logits know; FeatureError where conditions disagree or a label lies beyond."""
    widths = {outputs[condition].shape[1:] for condition in _conditions(outputs)}
    count = next(iter(widths))[0] if len(widths) == 1 and len(next(iter(widths))) == 1 else 0
    if count <= outputs["label"].max(initial=0):
        raise FeatureError(
            f"logits must be [N, C] with the same C above every label, not {sorted(widths)} "
            f"for labels up to {outputs['label'].max(initial=0)}."
        )
    return count


def _recognized(truth: Ints, logits: NDArray[Any], classes: int) -> dict[str, Measure]:
    best = logits == logits.max(1, keepdims=True)
    right: Floats = best[np.arange(len(truth)), truth] / best.sum(1)
    said = logits.argmax(1)

    def uar(rows: Ints) -> float:
        return class_scores(truth[rows], said[rows], n_classes=classes).uar

    def macro_f1(rows: Ints) -> float:
        return class_scores(truth[rows], said[rows], n_classes=classes).macro_f1

    return {"accuracy": right, "UAR": uar, "macro F1": macro_f1}


def _values(outputs: Outputs, condition: str) -> tuple[Floats, Floats]:
    """Truth and answer [N, T]; FeatureError where they do not fit."""
    truth, said = (outputs[name].astype(np.float64).reshape(len(outputs), -1) for name in ("value", condition))
    if truth.shape != said.shape or outputs["value"].ndim > 2:
        raise FeatureError(
            f"values must be of the shape of the truth, [N] or [N, T]: {list(outputs[condition].shape)} "
            f"for {list(outputs['value'].shape)}."
        )
    return truth, said


def _within(truth: Floats, said: Floats, groups: tuple[str, ...]) -> Floats:
    """The concordance of each group, at its first row; NaN elsewhere and where it is undefined. Its mean is the mean
    over groups, and groups are what the bootstrap draws."""
    names, found = np.asarray(groups), np.full(len(truth), np.nan)
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        y, p = truth[rows].ravel(), said[rows].ravel()
        if np.ptp(y) > 0 or np.ptp(p) > 0 or y[0] != p[0]:
            found[rows[0]] = ccc(y, p)
    return found
