"""Data: an indexed collection of clips with ids, labels and groups; what loader, loop, tasks and index read.

A ``Data`` is immutable: ``subset``, ``configure`` and ``prepare`` return another one. Kinds: media (a manifest of
files), features (arrays), world (generated). Every row keeps its id through all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from avcl.types import Clip, DataSpec, Inputs


class Data(ABC):
    """A collection of clips.

    ``modalities``: stream names every clip has, e.g. ("audio", "video"); an image counts as video · ``labels``: class
    names (empty: none) · ``split``: "train", "val", "test" or "all" · ``skipped``: {error code: count} of rows that
    were dropped because they could not be read · ``n_official``: rows there should be.
    """

    kind: Literal["media", "features", "world"]
    modalities: tuple[str, ...]
    labels: tuple[str, ...]
    split: str = "all"
    skipped: Mapping[str, int]
    n_official: int

    @property
    @abstractmethod
    def ids(self) -> tuple[str, ...]: ...

    @property
    @abstractmethod
    def targets(self) -> tuple[int, ...]:
        """Class number of each row, -1 where it has none."""

    @property
    @abstractmethod
    def groups(self) -> tuple[str, ...]: ...

    @property
    @abstractmethod
    def spec(self) -> DataSpec:
        """Shapes of the streams; of media only after ``configure``."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of what is scored: ids, contents, labels, groups, segments. The same rows in two places hash alike."""

    @abstractmethod
    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        """Row ``index`` decoded (typed error where it cannot be); ``epoch`` matters to data that are drawn afresh."""

    @abstractmethod
    def subset(self, indices: Sequence[int], *, split: str | None = None) -> Self: ...

    def configure(self, inputs: Inputs) -> Self:
        """The same rows, decoded as ``inputs`` says; arrays stay as they are."""
        return self

    def prepare(self, *, workers: int = 0, on_error: Literal["skip", "raise"] = "skip", progress: bool = False) -> Self:
        """Decode every row once into the cache; rows that fail are dropped, counted in ``skipped`` (or raised)."""
        return self

    def with_truth(self) -> Self:
        """The same rows with everything that is known of them in ``extras`` (masks, boxes, stems, ...), for a task to
        score against; data that know nothing more come back as they are."""
        return self

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Splits:
    """What ``load_data`` returns. ``official``: the data came with a ``split`` column; otherwise the split is ours
    (seeded).

    ``leaking``: groups that stand in more than one split because the caller allowed it; to be stamped on every result.
    """

    all: Data
    train: Data
    val: Data
    test: Data
    official: bool
    leaking: int = 0

    def part(self, name: str) -> Data:
        return {"all": self.all, "train": self.train, "val": self.val, "test": self.test}[name]
