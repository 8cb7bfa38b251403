"""Index: one folder that answers "which segments are nearest to this vector?"."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from avcl.errors import ConfigError, ExistsError, FeatureError, StoreError, did_you_mean
from avcl.files import Lock
from avcl.index import ann, meta, rows, snapshot, vectors
from avcl.index.meta import Meta
from avcl.index.rows import FileFacts
from avcl.index.where import rows_where
from avcl.index.writer import Part, Segment, Writer
from avcl.types import Hit, Hits, Inputs

OWN_FILES = ("rows.sqlite", "rows.sqlite-wal", "rows.sqlite-shm", ".lock", "skipped.csv")
MAX_FILTERS = 8


class Index:
    """The segments of an index folder, opened for reading; ``add`` and ``remove`` take the writer's lock while they
    run.

    Every search sees the state of the last commit before it, also while another process is writing. An Index may be
    used by several threads. ``threads``: how many FAISS may use (None: all).
    """

    def __init__(self, folder: Path, built: Meta, connection: sqlite3.Connection, threads: int | None):
        self.folder, self.meta, self.threads = folder, built, threads
        self._connection = connection
        self._guard = threading.RLock()
        self._generation: int | None = None
        self._snapshots: dict[str, snapshot.Snapshot] = {}
        self._filters: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, folder: str | Path, *, threads: int | None = None) -> Self:
        """The index in ``folder``. StoreError where there is none or it is damaged."""
        folder = Path(folder)
        built = meta.read(folder)
        return cls(folder, built, rows.connect(folder), threads)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        model: str,
        dim: int,
        modalities: tuple[str, ...] = rows.MODALITIES,
        similarity: str = "cosine",
        factory: str = "Flat",
        inputs: Inputs | None = None,
        segment: float = 3.0,
        hop: float = 1.0,
        threads: int | None = None,
    ) -> Self:
        """An empty index for vectors of the model with the fingerprint ``model``. ExistsError where ``folder`` is in
        use.
        """
        built = Meta(model, inputs or Inputs(), similarity, dim, tuple(modalities), factory, segment, hop)
        prepare(Path(folder), built)
        return cls.open(folder, threads=threads)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """The number of segments."""
        with self._guard, rows.typed(self.folder):
            return self._connection.execute("SELECT count(*) FROM info").fetchone()[0]

    def require(self, fingerprint: str, inputs: Inputs | None = None) -> None:
        """ModelError unless vectors of this model and preprocessing can be compared with those of the index."""
        self.meta.require(self.folder, fingerprint, inputs)

    # -------------------------------------------------------------------------------------------------------- searching
    def search(
        self,
        vector: np.ndarray,
        want: str,
        *,
        k: int = 10,
        where: str | None = None,
        per_file: int | None = None,
    ) -> Hits:
        """The ``k`` segments whose ``want`` vector ("audio" or "video") is nearest to ``vector`` [dim], best first.

        ``where``: an SQLite expression over the columns that ``info`` shows. ``per_file``: at most so many hits of
        one file. Fewer than ``k`` are returned only where there are no more. Equal scores are ordered by path and
        start. FeatureError for a vector that is not finite, or zero; ConfigError for an expression that is none.
        """
        query = np.asarray(vector)
        if query.ndim != 1:
            raise FeatureError(
                f"a query is one vector [{self.meta.dim}], not {list(query.shape)}.", hint="See search_many."
            )
        return self.search_many(query[None], want, k=k, where=where, per_file=per_file)[0]

    def search_many(
        self,
        queries: np.ndarray,
        want: str,
        *,
        k: int = 10,
        where: str | None = None,
        per_file: int | None = None,
    ) -> list[Hits]:
        """``search`` for each row of ``queries`` [Q, dim]; the same hits, in one pass over the vectors."""
        if want not in self.meta.modalities:
            raise ConfigError(f'the index has no "{want}" vectors.', hint=did_you_mean(want, self.meta.modalities))
        if k < 1 or (per_file is not None and per_file < 1):
            raise ConfigError(f"k and per_file must be at least 1, not {k if k < 1 else per_file}.")
        given = vectors.checked(queries, self.meta.dim, "query vectors")
        if len(given) == 0:
            return []
        ready = vectors.normalized(given, cosine=self.meta.cosine)
        empty = np.flatnonzero(~ready.any(1))
        if len(empty):
            raise FeatureError(
                f"query vector {empty[0]} is zero; it is near to nothing.", hint="Is the query silent or black?"
            )
        for attempt in range(5):
            try:
                with self._guard, rows.typed(self.folder), rows.transaction(self._connection, write=False):
                    seen = self._snapshot(want)
                    ids = None if where is None else self._allowed(where)
                    with vectors.openmp_threads(self.threads):
                        best = seen.search(ready, k, ids, per_file or 0)
                    return self._hits(best, want)
            except FileNotFoundError as error:
                # A writer replaced the vector file between our reading the state and opening the file: look again.
                if attempt == 4:
                    raise StoreError("a vector file is missing.", file=error.filename, hint="Build it again.") from None
        raise AssertionError("unreachable")

    def _snapshot(self, modality: str) -> snapshot.Snapshot:
        generation = rows.get_state(self._connection, "generation", 0)
        if generation != self._generation:
            self._snapshots.clear()
            self._filters.clear()
            self._generation = generation
        if modality not in self._snapshots:
            self._snapshots[modality] = snapshot.load(
                self._connection, self.folder, modality, self.meta.dim, self.meta.cosine
            )
        return self._snapshots[modality]

    def _allowed(self, where: str) -> np.ndarray:
        """Sorted ids of the rows for which ``where`` holds; the last few filters are kept until the next commit."""
        if where not in self._filters:
            found = rows_where(self._connection, where, rows.columns(self._connection))
            if len(self._filters) >= MAX_FILTERS:
                self._filters.pop(next(iter(self._filters)))
            self._filters[where] = np.sort(np.array(found, dtype=np.int64))
        return self._filters[where]

    def _hits(self, best: list[list[tuple[int, float]]], modality: str) -> list[Hits]:
        extra = rows.columns(self._connection)[len(rows.OWN_COLUMNS) :]
        further = "".join(f', "{name}"' for name in extra)
        ids = sorted({row for one in best for row, _ in one})
        known: dict[int, tuple[Any, ...]] = {}
        for at in range(0, len(ids), 500):
            some = ids[at : at + 500]
            marks = ",".join("?" * len(some))
            query = f'SELECT id, path, start, "end", silent, duration{further} FROM info WHERE id IN ({marks})'
            known |= {row[0]: row[1:] for row in self._connection.execute(query, some)}
        hits = []
        for one in best:
            ranked = []
            for rank, (row, score) in enumerate(one, 1):
                path, start, end, silent, duration, *values = known[row]
                # Rounding may leave the cosine of two equal vectors a hair above 1.
                shown = min(1.0, max(-1.0, score)) if self.meta.cosine else score
                info = {"silent": bool(silent), "duration": duration, **dict(zip(extra, values, strict=True))}
                ranked.append(Hit(rank, path, start, end, shown, modality, info))
            hits.append(Hits(ranked))
        return hits

    # ---------------------------------------------------------------------------------------------------------- writing
    def add(self, segments: Sequence[tuple[str, float, float]], given: Mapping[str, np.ndarray]) -> None:
        """Add segments (path, start, end) with their vectors ``{"audio": [n, dim], "video": [n, dim]}`` (one may be
        absent).

        All or none are added. FeatureError for values that are not finite; ExistsError for a segment that is there
        already.
        """
        checked = {}
        for modality, array in given.items():
            if modality not in self.meta.modalities:
                raise ConfigError(
                    f'the index has no "{modality}" vectors.', hint=did_you_mean(modality, self.meta.modalities)
                )
            checked[modality] = vectors.checked(array, self.meta.dim, f"{modality} vectors")
            if len(array) != len(segments):
                raise FeatureError(f"{len(segments)} segments, but {len(array)} {modality} vectors.")
        files: dict[str, list[Segment]] = {}
        for i, (path, start, end) in enumerate(segments):
            own = {m: array[i] for m, array in checked.items()}
            files.setdefault(str(path), []).append(Segment(float(start), float(end), False, own))
        parts = [
            Part(FileFacts(path, "", 0, 0), parts, max(s.end for s in parts), crawled=False)
            for path, parts in files.items()
        ]
        with Writer(self.folder, self.meta) as writer:
            if parts:
                writer.commit(parts)
            writer.tidy()

    def remove(self, paths: Sequence[str | Path] = (), *, where: str | None = None) -> dict[str, int]:
        """Remove files (a path of the index, or a folder of such), or the segments for which ``where`` holds; both:
        both.

        Gone for every search that begins afterwards. Returns {"removed_files", "removed_segments", "files",
        "segments"}. ConfigError for a path that the index does not have. The media stay, and what is still below the
        media folder comes back with the next ``update``.
        """
        if not paths and where is None:
            raise ConfigError("nothing to remove was named.", hint="Give paths, or a where expression.")
        with Writer(self.folder, self.meta) as writer, self._guard, rows.typed(self.folder):
            before = self._counts()
            known = dict(self._connection.execute("SELECT path, id FROM files"))
            files: set[int] = set()
            for path in paths:
                wanted = self._relative(path)
                found = [i for name, i in known.items() if name == wanted or name.startswith(f"{wanted}/")]
                if not found:
                    raise ConfigError(
                        f'the index has no "{wanted}".', file=self.folder, hint=did_you_mean(wanted, set(known))
                    )
                files.update(found)
            ids = [] if where is None else rows_where(self._connection, where, rows.columns(self._connection))
            if ids:
                writer.remove_segments(ids)
            if files:
                writer.remove_files(sorted(files))
            writer.tidy()
            after = self._counts()
        return {
            "removed_files": before[0] - after[0],
            "removed_segments": before[1] - after[1],
            "files": after[0],
            "segments": after[1],
        }

    def _relative(self, path: str | Path) -> str:
        path = Path(path)
        if path.is_absolute() and self.meta.media:
            try:
                return path.relative_to(self.meta.media).as_posix()
            except ValueError:
                pass
        return path.as_posix()

    def _counts(self) -> tuple[int, int]:
        files = self._connection.execute("SELECT count(*) FROM files WHERE done").fetchone()[0]
        return files, self._connection.execute("SELECT count(*) FROM info").fetchone()[0]

    # ----------------------------------------------------------------------------------------------------------- saying
    def info(self) -> dict[str, Any]:
        """What the index holds: model, settings, counts, the columns that ``where`` may use, skipped files by code."""
        with self._guard, rows.typed(self.folder), rows.transaction(self._connection, write=False):
            files, count = self._counts()
            states = {m: rows.get_state(self._connection, m, {"count": 0, "near": None}) for m in self.meta.modalities}
            alive = {m: self._connection.execute(f"SELECT count(*) FROM info WHERE {m}").fetchone()[0] for m in states}
            seconds = self._connection.execute("SELECT total(duration) FROM files WHERE done").fetchone()[0]
            skipped = self._connection.execute(
                "SELECT code, count(*) FROM skipped GROUP BY code ORDER BY code"
            ).fetchall()
            silent = self._connection.execute("SELECT count(*) FROM info WHERE silent").fetchone()[0]
            unfinished = self._connection.execute("SELECT count(*) FROM files WHERE NOT done").fetchone()[0]
            names = list(rows.columns(self._connection))
        exact = ann.is_exact(self.meta.factory)
        return {
            "folder": str(self.folder),
            "format": self.meta.format,
            "model": self.meta.model,
            "model_path": self.meta.model_path,
            "media": self.meta.media,
            "similarity": self.meta.similarity,
            "dim": self.meta.dim,
            "modalities": list(self.meta.modalities),
            "factory": self.meta.factory,
            "exact": exact or all(state["near"] is None for state in states.values()),
            "segment": self.meta.segment,
            "hop": self.meta.hop,
            "files": files,
            "unfinished": unfinished,
            "segments": count,
            "vectors": alive,
            "removed_vectors": {m: state["count"] - alive[m] for m, state in states.items()},
            "silent": silent,
            "media_seconds": round(seconds, 3),
            "skipped": dict(skipped),
            "columns": names,
            "bytes": sum(p.stat().st_size for p in self.folder.iterdir() if p.is_file()),
        }


def prepare(folder: Path, built: Meta) -> None:
    """Make an empty index; ExistsError where ``folder`` holds anything but the beginnings of one."""
    with rows.typed(folder), Lock(folder):
        names = [p for p in folder.iterdir() if p.name not in OWN_FILES and not p.name.startswith(".part-")]
        if names:
            raise ExistsError(f"the folder is not empty ({names[0].name}).", file=folder, hint="Choose another --out.")
        # A process killed while it made the index left them; without meta.json they hold nothing.
        for name in OWN_FILES:
            if name != ".lock":
                (folder / name).unlink(missing_ok=True)
        rows.create(folder)
        built.write(folder)
