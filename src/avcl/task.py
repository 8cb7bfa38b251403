"""Task: a frozen protocol. What it asks of a system, what it hides, what is scored, and what stands beside the score.

    items (Data) → shown (Batch without the target) → answer (what the system says) + truth → Outputs → score → Scores

``predict`` makes ``Outputs``: savable arrays with ids, answers and truth side by side. ``score`` is pure, so answers of
another program can be scored too. Every score stands beside chance, the trivial baselines of the task, an untrained
copy of the system, and the wrong-partner control: the same system on the same items with another clip's sound or
picture. Two scores are comparable where the fingerprints of their tasks are equal.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from avcl import discover
from avcl.data.dataset import Data
from avcl.data.derived import WrongPartner
from avcl.data.loader import Loader
from avcl.errors import BatchError, ConfigError, DataError, FeatureError, MissingFile
from avcl.files import write_atomic
from avcl.metrics.intervals import bootstrap, cluster_numbers, mean_statistic, resamples
from avcl.types import Batch, fingerprint, jsonable

Floats = NDArray[np.float64]
# A measure of N items: a value an item, whose mean counts (NaN: cannot be scored, left out and counted), or a function
# of the rows that were drawn, with repetition, where the measure is no mean (AUC, CCC, a distance of distributions).
Measure = Floats | Callable[[NDArray[np.int64]], float]
Table = Mapping[str, Mapping[str, float]]
Spans = Mapping[str, Mapping[str, tuple[float, float]]]


# -------------------------------------------------------------------------------------------------------------- Outputs
@dataclass(frozen=True)
class Outputs:
    """Answers and truth of N items: ``arrays`` {name: [N, ...]}, their ``ids`` and ``groups`` (what is drawn together),
    and ``notes``: what a reader must know of them (class names, the encoder of a distance, a rate); JSON-able.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    arrays: Mapping[str, NDArray[Any]]
    notes: Mapping[str, Any] = field(default_factory=dict)
    n_official: int = 0

    def __post_init__(self) -> None:
        wrong = [name for name, array in self.arrays.items() if len(array) != len(self.ids)]
        if wrong or len(self.groups) != len(self.ids):
            raise DataError(f"{', '.join(wrong) or 'groups'} must have one entry for each of the {len(self.ids)} ids.")
        object.__setattr__(self, "n_official", self.n_official or len(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.arrays:
            raise DataError(f'the outputs have no "{name}" (they have {", ".join(self.arrays)}).')
        return self.arrays[name]

    def with_arrays(self, **arrays: NDArray[Any]) -> Outputs:
        """The same items with these answers in place of, or beside, the old ones."""
        return replace(self, arrays={**self.arrays, **arrays})

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` without pickle, whole or not at all."""
        about = json.dumps({"notes": jsonable(self.notes), "n_official": self.n_official})
        columns = {"id": np.array(self.ids, np.str_), "group": np.array(self.groups, np.str_), "about": np.array(about)}
        arrays: dict[str, Any] = {f"array_{name}": array for name, array in self.arrays.items()} | columns
        write_atomic(Path(path), lambda part: np.savez(part, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> Outputs:
        """Read what ``save`` wrote. Raises MissingFile, DataError; never unpickles."""
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            about = json.loads(str(found["about"]))
            arrays = {k.removeprefix("array_"): v for k, v in found.items() if k.startswith("array_")}
            ids, groups = (tuple(str(x) for x in found[name]) for name in ("id", "group"))
            return cls(ids, groups, arrays, about["notes"], int(about["n_official"]))
        except FileNotFoundError as error:
            raise MissingFile("there is no such file.", file=path) from error
        except DataError:
            raise
        except Exception as error:  # zipfile, NumPy, JSON and OS errors of a damaged file share no base class
            raise DataError("these are not the saved outputs of a task.", file=path) from error


@dataclass(frozen=True)
class Scores:
    """What ``score`` returns: the ``parts`` of a Report that a task knows. Rows are conditions, columns metrics."""

    task: str
    protocol: Mapping[str, Any]
    scores: Table
    chance: Table
    interval: Spans
    n_scored: int
    n_official: int
    per_class: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    def parts(self) -> dict[str, Any]:
        """Keyword arguments of ``avcl.types.Report``; system, data and what else is known come beside them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


# ----------------------------------------------------------------------------------------------------------------- Task
@dataclass(frozen=True)
class Task(ABC):
    """The protocol is the object: its fields hash to ``fingerprint``. Subclasses are frozen dataclasses too.

    ``needs`` the capability asked of a system · ``headline`` (condition, metric) that decides whether a system works ·
    ``lower`` metrics of which less is better · ``partner`` the stream that comes from another clip in the wrong-partner
    control · ``fits`` whether ``predict`` needs training rows (a probe, a judge) · ``words`` the rule in one sentence ·
    ``bootstrap`` resamples of the intervals and ``seed`` of every draw of the protocol.
    """

    name: ClassVar[str]
    words: ClassVar[str]
    needs: ClassVar[type]
    headline: ClassVar[tuple[str, str]]
    lower: ClassVar[frozenset[str]] = frozenset()
    partner: ClassVar[str] = "audio"
    fits: ClassVar[bool] = False
    judge: ClassVar[str] = ""

    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bootstrap < 0:
            raise ConfigError(f"bootstrap = {self.bootstrap} must be at least 0.")

    @property
    def protocol(self) -> dict[str, Any]:
        """The fields, the name of the task, what decides, and the rule in words."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        condition, metric = self.headline
        better = "lower" if metric in self.lower else "higher"
        decides = {"condition": condition, "metric": metric, "better": better}
        said: dict[str, Any] = {"lower": sorted(self.lower), "partner": self.partner, "words": self.words}
        said |= {"judge": self.judge} if self.judge else {}
        return {"name": self.name, **named, "headline": decides, **said}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.protocol)

    # ---------------------------------------------------------------------------------------- what a task must say
    def items(self, data: Data) -> Data:
        """The rows of ``data`` as this task scores them: with their truth, mixed, shifted, cut."""
        return data.with_truth()

    @abstractmethod
    def shown(self, batch: Batch) -> Batch:
        """What a system may see: the batch without target, label and truth (``bare`` removes the last two)."""

    @abstractmethod
    def answer(self, system: Any, shown: Batch) -> Mapping[str, Tensor]:
        """What the system says: tensors of one row per item, on any device."""

    @abstractmethod
    def truth(self, batch: Batch) -> Mapping[str, Tensor]:
        """What is right: tensors of one row per item. DataError where the data do not know (``truth_of``)."""

    @abstractmethod
    def measures(self, outputs: Outputs) -> Mapping[str, Mapping[str, Measure]]:
        """{condition: {metric: measure}}, see ``Measure``."""

    def chance(self, outputs: Outputs) -> Table:
        """{condition: {metric: expected value of blind guessing}}, of the metrics that have one."""
        return {}

    def baselines(self, outputs: Outputs) -> Mapping[str, Outputs]:
        """Answers that need no learning, by name ("majority", "whole image", "the mixture"), to be scored alike."""
        return {}

    def per_class(self, outputs: Outputs) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
        """{condition: {class name: {metric: value}}}, where there are classes."""
        return {}

    def notes(self, data: Data) -> Mapping[str, Any]:
        """What ``measures`` must know beside the arrays."""
        return {"labels": list(data.labels)}

    def judged(self, outputs: Outputs, system: Any, data: Data, fit: Data | None, *, workers: int) -> Outputs:
        """The outputs with what needs learning from the training rows ``fit`` (``fits``): a probe, a judge."""
        return outputs

    def judge_settings(self, fit: Data) -> Mapping[str, Any]:
        """Settings of the judge's Config, for these training rows."""
        return {}

    def judged_by(self, judge: Any, outputs: Outputs, data: Data) -> Outputs:
        """The outputs with what the trained ``judge`` (a Model) makes of the answers; its name goes into the notes."""
        return outputs

    def wrong_partners(self, data: Data) -> Data:
        """``items`` in which ``partner`` comes from another clip; truth stays where it was."""
        return self.items(WrongPartner(data, self.partner, seed=self.seed))

    # ------------------------------------------------------------------------------------------------------- predict
    def predict(
        self,
        system: Any,
        data: Data,
        *,
        fit: Data | None = None,
        judge: Any = None,
        wrong_partner: bool = False,
        batch_size: int = 32,
        workers: int = 0,
    ) -> Outputs:
        """Answers of ``system`` (in evaluation mode for the time) and truth for every row of ``data``, in order.

        Raises CapabilityError (it names systems that can), ConfigError (training rows are needed), FeatureError (an
        answer is not finite or not of one row per item), and what reading the data raises.
        """
        self.require(system)
        if self.fits and fit is None:
            raise ConfigError(
                f"{self.name} learns a judge or probe from training rows, and there are none.",
                hint="Give data with a train split, or fit=.",
            )
        if self.judge and judge is None:
            raise ConfigError(f"{self.name} needs a trained {self.judge} to judge with.", hint="Use avcl.evaluate.")
        if len(data) == 0:
            raise DataError("there is nothing to score: the data set has no rows.")
        rows = self.wrong_partners(data) if wrong_partner else self.items(data)
        ids: list[str] = []
        groups: list[str] = []
        found: dict[str, list[Tensor]] = {}
        with evaluating(system) as device, Loader(rows, batch_size=batch_size, workers=workers) as loader:
            for batch in loader:
                ids += batch.id
                groups += batch.group
                with torch.no_grad():
                    answer = self.answer(system, self.shown(batch).to(device))
                for name, value in {**self.truth(batch), **answer}.items():
                    found.setdefault(name, []).append(checked(name, value, batch))
        arrays = {name: torch.cat(parts).numpy() for name, parts in found.items()}
        n_official = len(rows) + data.n_official - len(data)  # what could not be read is missing from the items too
        made = Outputs(tuple(ids), tuple(groups), arrays, self.notes(rows), n_official)
        made = self.judged(made, system, rows, fit, workers=workers)
        return self.judged_by(judge, made, rows) if self.judge else made

    def require(self, system: Any) -> None:
        """CapabilityError, with the systems that can, unless ``system`` has the capability ``needs``."""
        discover.require(system, self.needs, f"be scored at {self.name}")

    # --------------------------------------------------------------------------------------------------------- score
    def score(self, outputs: Outputs) -> Scores:
        """Every measure with its interval (bootstrap over groups, the same draws for all) and chance; pure."""
        measures = self.measures(outputs)
        rows = np.arange(len(outputs))
        scores = {c: {m: _value(measure, rows) for m, measure in row.items()} for c, row in measures.items()}
        condition, metric = self.headline
        deciding = measures[condition][metric]
        scored = len(outputs) if callable(deciding) else int(np.isfinite(deciding).sum())
        return Scores(
            task=self.fingerprint,
            protocol=self.protocol,
            scores=scores,
            chance=self.chance(outputs),
            interval=self._intervals(outputs, measures) if self.bootstrap else {},
            n_scored=scored,
            n_official=outputs.n_official,
            per_class=self.per_class(outputs),
        )

    def _intervals(self, outputs: Outputs, measures: Mapping[str, Mapping[str, Measure]]) -> Spans:
        cluster, count = cluster_numbers(np.asarray(outputs.groups))
        flat = {(c, m): measure for c, row in measures.items() for m, measure in row.items()}
        found: dict[tuple[str, str], tuple[float, float]] = {}
        for key, measure in flat.items():
            if callable(measure):
                found[key] = self._interval_of(measure, cluster, count)
                continue
            there = np.isfinite(measure)
            if not there.any():
                found[key] = (float("nan"), float("nan"))
                continue
            mine, clusters = cluster_numbers(cluster[there])
            statistic = mean_statistic({key: measure[there]}, mine, clusters)
            found |= bootstrap(statistic, clusters, repeats=self.bootstrap, seed=self.seed)
        return {c: {m: found[c, m] for m in row} for c, row in measures.items()}

    def _interval_of(
        self, measure: Callable[[NDArray[np.int64]], float], cluster: NDArray[np.int64], count: int
    ) -> tuple[float, float]:
        members = [np.flatnonzero(cluster == c) for c in range(count)]
        values = []
        for block in resamples(count, repeats=self.bootstrap, seed=self.seed):
            for times in block.astype(int):
                drawn = np.concatenate([np.tile(members[c], times[c]) for c in np.flatnonzero(times)])
                values.append(measure(drawn))
        low, high = np.nanquantile(values, [0.025, 0.975])
        return float(low), float(high)


def _value(measure: Measure, rows: NDArray[np.int64]) -> float:
    if callable(measure):
        return float(measure(rows))
    there = np.isfinite(measure)
    return float(measure[there].mean()) if there.any() else float("nan")


@contextmanager
def evaluating(system: Any) -> Iterator[torch.device]:
    """``system`` in evaluation mode for the time; the device it is on."""
    if not isinstance(system, nn.Module):
        yield torch.device("cpu")
        return
    training = system.training
    first = next((t for t in (*system.parameters(), *system.buffers())), None)
    system.eval()
    try:
        yield torch.device("cpu") if first is None else first.device
    finally:
        system.train(training)


def checked(name: str, value: Any, batch: Batch) -> Tensor:
    """The answer on the CPU; FeatureError unless it has one row per item and is finite."""
    if not isinstance(value, Tensor) or value.ndim < 1 or len(value) != len(batch):
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise FeatureError(f"{name} must be of the shape [{len(batch)}, ...], not {shape}.")
    value = value.detach().cpu()
    value = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if value.is_floating_point():
        bad = [
            batch.id[i] for i in (~torch.isfinite(value.reshape(len(value), -1))).any(1).nonzero().flatten().tolist()
        ]
        if bad:
            raise FeatureError(f"{name} has values that are not finite in {len(bad)} items ({', '.join(bad[:3])}).")
    return value


def bare(batch: Batch, *hidden: str) -> Batch:
    """The batch without label, extras and the streams ``hidden``: a system is told nothing that it is to find."""
    kept = batch.without(*hidden)
    return Batch(kept.id, kept.streams, kept.index, kept.view, torch.full_like(kept.label, -1), kept.group)


def truth_of(batch: Batch, task: str, *names: str) -> tuple[Tensor, ...]:
    """Extras of the batch that the task scores against; DataError, naming the first clip, where one is missing."""
    for name in names:
        if name not in batch.extras:
            raise DataError(
                f'{task} needs the truth "{name}", which "{batch.id[0]}" does not have.',
                hint="Use world:PRESET, a folder that avcl world wrote, or add truth/<id>.npz with that array.",
            )
    return tuple(batch.extras[name] for name in names)


def labels_of(batch: Batch, task: str) -> Tensor:
    """The class of every row [B]; BatchError where one has none."""
    without = (batch.label < 0).nonzero().flatten().tolist()
    if without:
        raise BatchError(f'{task} needs a label for every clip; "{batch.id[without[0]]}" has none.')
    return batch.label
