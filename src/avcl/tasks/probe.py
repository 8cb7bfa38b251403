"""Linear probe: what a frozen system knows, told by a linear classifier on its features.

    ŷ = argmax_c  w_c · s(f(x)) + b_c,   f frozen,   s the mean and deviation, and w, b, of training rows alone

Conditions: the sound alone, the picture alone, and both side by side (their features laid end to end). What stands
beside the score:

- *untrained*: the same network that has seen nothing. Random convolutions already tell some classes.
- *raw statistics*: no network at all, the fixed summaries of ``avcl.encoders.statistics`` under the same probe.
- *majority*: the most frequent class of the training rows.
- *wrong partner*: a probe of the picture never reads the sound, so to exchange the sound would change nothing. Here
  every stream that is classified is another clip's, and the label stays: the very same features on the wrong rows.
  What is left above chance is no knowledge of the clip: labels that leak into the features by order, id or batch, or
  a probe that has seen the rows it is scored on. It says nothing of whether learning from pairs helped; that is the
  untrained copy's business, and of training on wrong pairs (recipes/representation.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avcl.data.dataset import Data
from avcl.data.derived import WrongPartner
from avcl.data.loader import Loader
from avcl.encoders.statistics import summarize
from avcl.errors import ConfigError, LeakError
from avcl.system import Represents
from avcl.task import Measure, Outputs, Table, Task, bare, checked, evaluating, labels_of, truth_of
from avcl.types import Batch

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
CLASSIFIERS = ("svm", "logistic")
CONDITIONS = ("video", "audio", "audio+video")
RAW = "raw statistics"


@dataclass(frozen=True)
class Probe(Task):
    """Share of clips that a linear classifier on frozen features gets right.

    ``target``: "label", or the name of a whole number that is known of each clip ("motion") · ``conditions`` what is
    classified from; the first one decides · ``classifier``: "svm" (linear, squared hinge, one against the rest) or
    "logistic" · ``c``: its C; of several the best in ``folds`` groups of the training rows · ``labeled``: how many of
    the training rows, the first ones (0: all).
    """

    name: ClassVar[str] = "probe"
    words: ClassVar[str] = (
        "a linear classifier on frozen features, standardized and fitted on training rows alone, C chosen among them "
        "by cross-validation; accuracy, and the mean recall of the classes (UAR)"
    )
    needs: ClassVar[type] = Represents
    headline: ClassVar[tuple[str, str]] = ("video", "accuracy")
    fits: ClassVar[bool] = True

    target: str = "label"
    conditions: tuple[str, ...] = CONDITIONS
    classifier: str = "svm"
    c: tuple[float, ...] = (0.003, 0.03, 0.3)
    folds: int = 3
    labeled: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classifier not in CLASSIFIERS:
            raise ConfigError(f'the classifier is {" or ".join(CLASSIFIERS)}, not "{self.classifier}".')
        if not self.conditions or not all(self.conditions):
            raise ConfigError("a probe has one condition at least, such as audio.")
        if not self.c or not all(0 < c < float("inf") for c in self.c):
            raise ConfigError(f"c = {self.c} must be positive numbers.")
        if self.folds < 2 or self.labeled < 0:
            raise ConfigError(f"folds = {self.folds} must be at least 2, labeled = {self.labeled} at least 0.")
        object.__setattr__(self, "headline", (self.conditions[0], "accuracy"))

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that any condition reads."""
        return tuple(dict.fromkeys(name for condition in self.conditions for name in condition.split("+")))

    # ------------------------------------------------------------------------------------------------- what is asked
    def items(self, data: Data) -> Data:
        return data if self.target == "label" else data.with_truth()

    def shown(self, batch: Batch) -> Batch:
        return bare(batch, *(name for name in batch.streams if name not in self.streams))

    def answer(self, system: Any, shown: Batch) -> Mapping[str, Tensor]:
        """The system's features of each stream, which it sees alone, and the raw statistics of the stream."""
        found: dict[str, Tensor] = {}
        for name, stream in zip(self.streams, shown.require(*self.streams), strict=True):
            alone = shown.without(*(other for other in shown.streams if other != name))
            found[f"features/{name}"] = system.features(alone, name).flatten(1)
            seconds = stream.data.shape[1] / stream.rate
            found[f"{RAW}/{name}"] = summarize(stream, system.spec.streams[name], seconds=seconds)
        return found

    def truth(self, batch: Batch) -> Mapping[str, Tensor]:
        if self.target == "label":
            return {"label": labels_of(batch, self.name)}
        return {"label": truth_of(batch, self.name, self.target)[0].long()}

    def notes(self, data: Data) -> Mapping[str, Any]:
        return {"labels": list(data.labels) if self.target == "label" else []}

    def wrong_partners(self, data: Data) -> Data:
        """Every stream that is classified comes from another clip, each from one of its own."""
        for number, name in enumerate(self.streams):
            data = WrongPartner(data, name, seed=self.seed + number)
        return self.items(data)

    # ------------------------------------------------------------------------------------------------------ the probe
    def judged(self, outputs: Outputs, system: Any, data: Data, fit: Data | None, *, workers: int) -> Outputs:
        """Class numbers, by the system ("video") and by raw statistics ("raw statistics/video"), and the majority."""
        assert fit is not None
        rows = self.items(fit if not self.labeled else fit.subset(range(min(self.labeled, len(fit)))))
        apart(data, rows)
        known, groups = self._training(system, rows, workers)
        label = known.pop("label").astype(np.int64)
        arrays: dict[str, NDArray[Any]] = {"label": outputs["label"]}
        chosen = {}
        for condition in self.conditions:
            for kind in ("features", RAW):
                parts = [f"{kind}/{name}" for name in condition.split("+")]
                train, test = (np.concatenate([found[p] for p in parts], 1) for found in (known, outputs.arrays))
                c = self._chosen(train, label, groups)
                probe = fitted(self.classifier, c, train, label)
                name = condition if kind == "features" else f"{RAW}/{condition}"
                arrays[name], chosen[name] = probe.predict(test.astype(np.float64)).astype(np.int64), c
        most = np.bincount(label).argmax()
        arrays["majority"] = np.full(len(outputs), most)
        notes = {**outputs.notes, "c": chosen, "labeled": len(label), "classes": len(np.unique(label))}
        return replace(outputs, arrays=arrays, notes=notes)

    def _training(self, system: Any, rows: Data, workers: int) -> tuple[dict[str, NDArray[Any]], Rows]:
        """What is known of the training rows, and the number of the group of each."""
        found: dict[str, list[Tensor]] = {}
        groups: list[str] = []
        with evaluating(system) as device, Loader(rows, batch_size=32, workers=workers) as loader:
            for batch in loader:
                with torch.no_grad():
                    answer = self.answer(system, self.shown(batch).to(device))
                groups += batch.group
                for name, value in {**self.truth(batch), **answer}.items():
                    found.setdefault(name, []).append(checked(name, value, batch))
        arrays = {name: torch.cat(parts).numpy() for name, parts in found.items()}
        return arrays, np.unique(groups, return_inverse=True)[1]

    def _chosen(self, train: NDArray[Any], label: Rows, groups: Rows) -> float:
        """The C of most right answers on held-out groups of the training rows; of equal ones the smallest."""
        if len(self.c) == 1:
            return self.c[0]
        from sklearn.model_selection import GroupKFold

        if groups.max() + 1 < self.folds:
            raise ConfigError(
                f"C is chosen in {self.folds} groups of training rows, and there are {groups.max() + 1}.",
                hint="Give one C, fewer folds, or more training rows.",
            )
        right = dict.fromkeys(sorted(self.c), 0)
        for inside, outside in GroupKFold(self.folds).split(train, label, groups):
            for c in right:
                probe = fitted(self.classifier, c, train[inside], label[inside])
                right[c] += int((probe.predict(train[outside].astype(np.float64)) == label[outside]).sum())
        return max(right, key=lambda c: right[c])

    # ---------------------------------------------------------------------------------------------------------- score
    def measures(self, outputs: Outputs) -> Mapping[str, Mapping[str, Measure]]:
        label = outputs["label"].astype(np.int64)
        table: dict[str, Mapping[str, Measure]] = {}
        for condition in self.conditions:
            right = (outputs[condition] == label).astype(np.float64)
            table[condition] = {"accuracy": right, "UAR": mean_recall(right, label)}
        return table

    def chance(self, outputs: Outputs) -> Table:
        blind = 1 / outputs.notes["classes"]
        return {condition: {"accuracy": blind, "UAR": blind} for condition in self.conditions}

    def baselines(self, outputs: Outputs) -> Mapping[str, Outputs]:
        raw = outputs.with_arrays(**{c: outputs[f"{RAW}/{c}"] for c in self.conditions})
        majority = outputs.with_arrays(**dict.fromkeys(self.conditions, outputs["majority"]))
        return {RAW: raw, "majority": majority}

    def per_class(self, outputs: Outputs) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
        label, names = outputs["label"], outputs.notes["labels"]
        table: dict[str, dict[str, dict[str, float]]] = {}
        for condition in self.conditions:
            for number in np.unique(label).tolist():
                mine = label == number
                name = names[number] if number < len(names) else str(number)
                recall = float((outputs[condition][mine] == number).mean())
                table.setdefault(condition, {})[name] = {"clips": float(mine.sum()), "recall": recall}
        return table


def apart(scored: Data, training: Data) -> None:
    """LeakError where a row, or a source, stands among both the scored and the training rows of a probe."""
    for what, one, other in (("clip", scored.ids, training.ids), ("group", scored.groups, training.groups)):
        shared = sorted(set(one) & set(other))
        if shared:
            raise LeakError(
                f"the probe would be fitted on what it is scored on: {what} "
                f"{', '.join(shared[:3])}{', ...' if len(shared) > 3 else ''} stands on both sides.",
                hint="Give training rows of other sources (fit=, or data with a split by group).",
            )


def fitted(classifier: str, c: float, features: NDArray[Any], label: Rows) -> Any:
    """Scaler and classifier, fitted on these rows alone; ConfigError where they show a single class."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    if len(np.unique(label)) < 2:
        raise ConfigError("a probe needs training rows of two classes or more.")
    made = (
        LinearSVC(C=c, dual=False, tol=1e-2, max_iter=20_000)
        if classifier == "svm"
        else LogisticRegression(C=c, max_iter=2000)
    )
    return make_pipeline(StandardScaler(), made).fit(features.astype(np.float64), label)


def mean_recall(right: Floats, label: Rows) -> Callable[[Rows], float]:
    """Of drawn rows: the mean over the classes among them of the share that is right."""

    def of(rows: Rows) -> float:
        count = np.bincount(label[rows])
        return float((np.bincount(label[rows], right[rows])[count > 0] / count[count > 0]).mean())

    return of
