"""Data made from other data: each row is a row of ``source``, changed when it is asked for.

``Derived`` passes everything on; a subclass changes ``clip`` (and ``ids``, where rows are no longer one to one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Self

import numpy as np

from avcl.data.dataset import Data
from avcl.errors import BatchError, DataError
from avcl.progress import tracked
from avcl.types import Clip, DataSpec, Inputs, fingerprint


class Derived(Data):
    """The rows of ``source`` under another light; row i is row i of ``source``."""

    def __init__(self, source: Data):
        self.source = source
        self.kind, self.modalities, self.labels = source.kind, source.modalities, source.labels
        self.split, self.skipped, self.n_official = source.split, source.skipped, source.n_official

    def remade(self, source: Data) -> Self:
        """The same change of another source; a subclass with settings of its own passes them on."""
        return type(self)(source)

    @property
    def ids(self) -> tuple[str, ...]:
        return self.source.ids

    @property
    def targets(self) -> tuple[int, ...]:
        return self.source.targets

    @property
    def groups(self) -> tuple[str, ...]:
        return self.source.groups

    @property
    def spec(self) -> DataSpec:
        return self.source.spec

    @property
    def fingerprint(self) -> str:
        return fingerprint({"source": self.source.fingerprint, "derived": type(self).__qualname__})

    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        return self.source.clip(index, epoch=epoch, view=view)

    def subset(self, indices: Sequence[int], *, split: str | None = None) -> Self:
        return self.remade(self.source.subset(indices, split=split))

    def configure(self, inputs: Inputs) -> Self:
        return self.remade(self.source.configure(inputs))

    def prepare(self, *, workers: int = 0, on_error: Literal["skip", "raise"] = "skip", progress: bool = False) -> Self:
        return self.remade(self.source.prepare(workers=workers, on_error=on_error, progress=progress))

    def with_truth(self) -> Self:
        return self.remade(self.source.with_truth())


def one_cycle(n: int, *, seed: int) -> np.ndarray:
    """int64 [n]: for each row another one, along one random cycle through all of them; nobody is his own partner.

    BatchError where there is nobody else.
    """
    if n < 2:
        raise BatchError("one clip has no other clip for a partner.", hint="Give two clips or more.")
    order = np.random.default_rng(seed).permutation(n)
    partner = np.empty(n, np.int64)
    partner[order] = np.roll(order, 1)
    return partner


class WrongPartner(Derived):
    """Every clip with the stream ``stream`` of another one (along one random cycle); ids, label and truth stay.

    What a system still gets right here it does not get from ``stream``.
    """

    def __init__(self, source: Data, stream: str, *, seed: int = 0):
        super().__init__(source)
        if stream not in source.modalities:
            raise DataError(f'the data have no "{stream}" to exchange (they have {", ".join(source.modalities)}).')
        self.stream, self.seed = stream, seed
        self.partner = one_cycle(len(source), seed=seed)

    def remade(self, source: Data) -> Self:
        return type(self)(source, self.stream, seed=self.seed)

    @property
    def fingerprint(self) -> str:
        return fingerprint({"source": self.source.fingerprint, "wrong": self.stream, "seed": self.seed})

    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        own = self.source.clip(index, epoch=epoch, view=view)
        other = self.source.clip(int(self.partner[index]), epoch=epoch, view=view)
        if self.stream not in other.streams:
            raise DataError(f'"{other.id}" has no {self.stream} to give to "{own.id}".')
        return replace(own, streams={**own.streams, self.stream: other.streams[self.stream]})


class Kept(Derived):
    """The clips of ``source``, as it is configured, made once and kept in memory: for data that are slow to make and
    small enough. What it was made with stays: ``configure`` and ``with_truth`` change nothing.
    """

    def __init__(self, source: Data, *, progress: bool = False):
        super().__init__(source)
        self.clips = list(tracked(map(source.clip, range(len(source))), len(source), "keeping", shown=progress))

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    def configure(self, inputs: Inputs) -> Self:
        return self

    def with_truth(self) -> Self:
        return self

    def prepare(self, *, workers: int = 0, on_error: Literal["skip", "raise"] = "skip", progress: bool = False) -> Self:
        return self

    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        return replace(self.clips[index], view=view)

    def subset(self, indices: Sequence[int], *, split: str | None = None) -> Self:
        other = type(self).__new__(type(self))  # the clips are there already
        Derived.__init__(other, self.source.subset(indices, split=split))
        other.clips = [replace(self.clips[i], index=number) for number, i in enumerate(indices)]
        return other
