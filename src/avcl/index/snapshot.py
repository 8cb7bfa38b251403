"""What a reader sees of one modality: the mapped vectors of one commit, and which row stands behind each slot."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avcl.errors import StoreError
from avcl.index import ann, rows, vectors

SPARE = 16  # candidates beyond k: what float32 may have put in the wrong order at the border
NEAR = 4e-6  # scores closer than this (times the largest) are not told apart by float32
FEW = 4096  # so few slots are simply all scored


@dataclass(frozen=True)
class Snapshot:
    """``vectors`` [N, dim] · per slot: ``row`` and ``file`` (ids; -1: removed) and ``order`` (by path and start:
    breaks ties).

    ``mask`` [N] bool of slots that are alive, None if all are · ``near``: the FAISS index of the first slots, or None.
    """

    vectors: np.ndarray
    row: np.ndarray
    file: np.ndarray
    order: np.ndarray
    mask: np.ndarray | None
    near: Any
    cosine: bool
    folder: Path

    @property
    def alive(self) -> int:
        return len(self.row) if self.mask is None else int(self.mask.sum())

    def search(
        self, queries: np.ndarray, k: int, ids: np.ndarray | None, per_file: int
    ) -> list[list[tuple[int, float]]]:
        """For each query [Q, dim] the ids of the best ``k`` rows and their exact scores, best first; ties by path and
        start.

        ``ids``: sorted row ids that may be found (None: all). ``per_file``: at most so many of one file (0: any
        number). As many as ``k`` are returned whenever that many exist, however the search was approximated.
        """
        mask = self.mask
        if ids is not None:
            at = np.searchsorted(ids, self.row).clip(max=max(len(ids) - 1, 0))
            mask = (ids[at] == self.row) if len(ids) else np.zeros(len(self.row), bool)
        allowed = len(self.row) if mask is None else int(mask.sum())
        if allowed == 0 or k < 1:
            return [[] for _ in queries]
        if allowed <= max(FEW, 2 * k) and len(queries) < vectors.BATCH:
            return [self._cut(q, self._slots(mask), k, per_file) for q in queries]
        found: list[list[tuple[int, float]] | None] = [None] * len(queries)
        fetch = k + SPARE if not per_file else 8 * k + SPARE
        open_ = np.arange(len(queries))
        while len(open_) and fetch * 4 <= allowed:
            candidates, floors = self._candidates(queries[open_], fetch, mask)
            for i, slots, floor in zip(open_, candidates, floors, strict=True):
                best = self._cut(queries[i], slots, k, per_file)
                if len(best) == k and best[-1][1] > floor:
                    found[i] = best
            open_ = np.array([i for i in open_ if found[i] is None], dtype=int)
            if not per_file:
                break  # a tie at the border, or a graph that did not reach enough: score them all
            fetch *= 16
        return [
            f if f is not None else self._cut(q, self._slots(mask), k, per_file)
            for f, q in zip(found, queries, strict=True)
        ]

    def _slots(self, mask: np.ndarray | None) -> np.ndarray:
        return np.arange(len(self.row)) if mask is None else np.flatnonzero(mask)

    def _candidates(
        self, queries: np.ndarray, fetch: int, mask: np.ndarray | None
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Slots that are likely the best, and for each query the score that one not among them may have at most."""
        count = 0 if self.near is None else self.near.ntotal
        if count == 0:
            scores, slots = vectors.nearest(self.vectors, queries, fetch, mask)
            return list(slots), scores[:, -1] + NEAR * np.abs(scores).max(1)
        near = ann.search(self.near, queries, fetch, mask)
        tail_mask = None if mask is None else mask[count:]
        tail = self.vectors[count:]
        if len(tail) and (tail_mask is None or tail_mask.any()):
            near = np.concatenate([near, _shift(vectors.nearest(tail, queries, fetch, tail_mask)[1], count)], 1)
        return [slots[slots >= 0] for slots in near], np.full(len(queries), -np.inf)

    def _cut(self, query: np.ndarray, slots: np.ndarray, k: int, per_file: int) -> list[tuple[int, float]]:
        slots = slots[slots >= 0]
        scores = vectors.products(self.vectors, query, slots)
        if not np.isfinite(scores).all():
            raise self._damaged("not finite")
        best: list[tuple[int, float]] = []
        chosen: list[int] = []
        taken: dict[int, int] = {}
        for at in np.lexsort((self.order[slots], -scores)):
            file = int(self.file[slots[at]])
            if per_file and taken.get(file, 0) >= per_file:
                continue
            taken[file] = taken.get(file, 0) + 1
            chosen.append(int(slots[at]))
            best.append((int(self.row[slots[at]]), float(scores[at])))
            if len(best) == k:
                break
        if self.cosine:
            lengths = np.square(self.vectors[chosen].astype(np.float64)).sum(1)
            if not (np.abs(lengths - 1)[lengths > 0] < 1e-4).all():
                raise self._damaged("not of length 1")
        return best

    def _damaged(self, how: str) -> StoreError:
        return StoreError(f"the index holds vectors that are {how}.", file=self.folder, hint="Build the index again.")


def _shift(slots: np.ndarray, by: int) -> np.ndarray:
    return np.where(slots < 0, -1, slots + by)


def load(connection: sqlite3.Connection, folder: Path, modality: str, dim: int, cosine: bool) -> Snapshot:
    """The snapshot of the commit that ``connection`` is reading."""
    state = rows.get_state(connection, modality, {"log": "", "count": 0, "near": None})
    count = state["count"]
    table = connection.execute(
        f"""SELECT s.{modality}, s.id, s.file FROM files f CROSS JOIN segments s ON s.file = f.id
        WHERE f.done AND s.{modality} IS NOT NULL ORDER BY f.path, s.start"""
    ).fetchall()
    held = np.array(table, dtype=np.int64).reshape(-1, 3)
    if len(held) and (held[:, 0].min() < 0 or held[:, 0].max() >= count):
        raise StoreError(f"a row points behind the {count:,} {modality} vectors.", file=folder, hint="Build it again.")
    row, file, order = (np.full(count, -1, dtype=np.int64) for _ in range(3))
    row[held[:, 0]], file[held[:, 0]], order[held[:, 0]] = held[:, 1], held[:, 2], np.arange(len(held))
    near = None
    if state["near"] is not None:
        path = folder / state["near"]["file"]
        if path.exists():  # a missing one is no loss: search is exact then
            near = ann.read(path, state["near"]["crc"])
    mapped = vectors.open_map(folder / state["log"], count, dim) if count else np.zeros((0, dim), np.float32)
    return Snapshot(mapped, row, file, order, None if len(held) == count else row >= 0, near, cosine, folder)
