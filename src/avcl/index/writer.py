"""The one writer of an index: vectors to the disk first, then their rows in one transaction.

A process killed at any moment leaves either the rows before a commit or those after it. Vectors without rows are cut
off by the next commit; rows without vectors cannot be.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

import numpy as np

from avcl.errors import AvclError, ExistsError, StoreError
from avcl.files import Lock, sweep, write_atomic
from avcl.index import ann, rows, vectors
from avcl.index.meta import Meta
from avcl.index.rows import FileFacts


class Segment(NamedTuple):
    """One segment to be written: seconds, whether its sound is silence, and its vectors by modality (None: it has
    none).
    """

    start: float
    end: float
    silent: bool
    vectors: Mapping[str, np.ndarray | None]


class Part(NamedTuple):
    """A file, or the next part of a long one. ``done``: it is complete now; ``reached``: number of the segment to go
    on with.
    """

    facts: FileFacts
    segments: Sequence[Segment]
    duration: float | None
    done: bool = True
    reached: int = 0
    crawled: bool = True


class Writer:
    """``with Writer(folder, meta) as w:`` holds the lock of the index (LockedError if another process does)."""

    def __init__(self, folder: Path, meta: Meta):
        self.folder, self.meta = folder, meta
        self._lock = Lock(folder)

    def __enter__(self) -> Self:
        with rows.typed(self.folder):
            self._lock.__enter__()
        try:
            self.connection: sqlite3.Connection = rows.connect(self.folder, write=True)
            with rows.typed(self.folder):
                self._clean()
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self._lock.__exit__()

    # ----------------------------------------------------------------------------------------------------------- adding
    def commit(self, parts: Sequence[Part]) -> None:
        """Write files (or parts of files). A part of a file of other content than the one known replaces that one."""
        states = {m: self._state(m) for m in self.meta.modalities}
        slots: dict[str, list[list[int | None]]] = {}
        for modality, state in states.items():
            found: list[np.ndarray] = []
            slots[modality] = []
            for part in parts:
                mine: list[int | None] = []
                for segment in part.segments:
                    vector = segment.vectors.get(modality)
                    mine.append(None if vector is None else state["count"] + len(found))
                    if vector is not None:
                        found.append(vector)
                slots[modality].append(mine)
            if found:
                what = f"{modality} vectors of {parts[0].facts.path}"
                new = vectors.normalized(vectors.checked(np.stack(found), self.meta.dim, what), cosine=self.meta.cosine)
                with rows.typed(self.folder):
                    vectors.append(self.folder / state["log"], state["count"], new)
                state["count"] += len(new)
        with rows.typed(self.folder), rows.transaction(self.connection):
            for number, part in enumerate(parts):
                file = self._file(part)
                table = [
                    (
                        file,
                        s.start,
                        s.end,
                        int(s.silent),
                        *(slots[m][number][i] if m in slots else None for m in rows.MODALITIES),
                    )
                    for i, s in enumerate(part.segments)
                ]
                try:
                    self.connection.executemany(
                        'INSERT INTO segments(file, start, "end", silent, audio, video) VALUES (?, ?, ?, ?, ?, ?)',
                        table,
                    )
                except sqlite3.IntegrityError:
                    raise ExistsError(
                        "a segment of this file is in the index already.", file=part.facts.path, hint="Remove it first."
                    ) from None
            for modality, state in states.items():
                rows.set_state(self.connection, modality, state)
            rows.bump(self.connection)

    def _file(self, part: Part) -> int:
        """The id of the file's row, made or brought up to date; segments of other content or a finished file go."""
        f, path = part.facts, PurePosixPath(part.facts.path)
        self.connection.execute("DELETE FROM skipped WHERE path = ?", (f.path,))
        if part.crawled:
            self.connection.execute("DELETE FROM files WHERE path = ? AND (hash <> ? OR done)", (f.path, f.hash))
        return self.connection.execute(
            """INSERT INTO files(path, folder, name, suffix, hash, size, mtime, duration, crawled, done, reached)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(path) DO UPDATE SET
            duration = max(ifnull(duration, 0), ifnull(excluded.duration, 0)), done = excluded.done,
            reached = excluded.reached RETURNING id""",
            (
                f.path,
                _parent(path),
                path.name,
                path.suffix.lower(),
                f.hash,
                f.size,
                f.mtime,
                part.duration,
                int(part.crawled),
                int(part.done),
                part.reached,
            ),
        ).fetchone()[0]

    def copy(self, facts: FileFacts, source: int) -> int:
        """A file of the content of the finished file ``source``: its vectors are copied. Returns the number of
        segments.
        """
        stored = self.connection.execute(
            'SELECT start, "end", silent, audio, video FROM segments WHERE file = ? ORDER BY start', (source,)
        ).fetchall()
        duration = self.connection.execute("SELECT duration FROM files WHERE id = ?", (source,)).fetchone()[0]
        maps = {m: self._map(m) for m in self.meta.modalities}
        copies = []
        for start, end, silent, *slots in stored:
            own = dict(zip(rows.MODALITIES, slots, strict=True))
            found = {m: None if own[m] is None else np.array(maps[m][own[m]]) for m in maps}
            copies.append(Segment(start, end, bool(silent), found))
        self.commit([Part(facts, copies, duration)])
        return len(copies)

    def rename(self, file: int, facts: FileFacts) -> None:
        """The file with this id stands at another path now; nothing is computed."""
        path = PurePosixPath(facts.path)
        with rows.typed(self.folder), rows.transaction(self.connection):
            self.connection.execute("DELETE FROM skipped WHERE path = ?", (facts.path,))
            self.connection.execute("DELETE FROM files WHERE path = ? AND id <> ?", (facts.path, file))
            self.connection.execute(
                "UPDATE files SET path = ?, folder = ?, name = ?, suffix = ?, size = ?, mtime = ? WHERE id = ?",
                (facts.path, _parent(path), path.name, path.suffix.lower(), facts.size, facts.mtime, file),
            )
            rows.bump(self.connection)

    def touch(self, facts: FileFacts) -> None:
        """Same content, another time of change."""
        with rows.typed(self.folder), rows.transaction(self.connection):
            self.connection.execute(
                "UPDATE files SET size = ?, mtime = ? WHERE path = ?", (facts.size, facts.mtime, facts.path)
            )

    def skip(self, path: str, facts: FileFacts | None, error: AvclError) -> None:
        """Note why a file is not in the index; what the index held of it goes."""
        with rows.typed(self.folder), rows.transaction(self.connection):
            self.connection.execute("DELETE FROM files WHERE path = ?", (path,))
            known = (None, None, None) if facts is None else (facts.hash, facts.size, facts.mtime)
            message = f"{error.what} {error.hint}".strip()
            self.connection.execute(
                "INSERT OR REPLACE INTO skipped VALUES (?, ?, ?, ?, ?, ?, ?)",
                (path, *known, error.code, message, error.time),
            )
            rows.bump(self.connection)

    def write_skipped(self) -> None:
        """``skipped.csv``: file, code, message, time; one row for each file that is not in the index."""
        import csv
        import io

        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["file", "code", "message", "time"])
        with rows.typed(self.folder):
            table.writerows(self.connection.execute("SELECT path, code, message, time FROM skipped ORDER BY path"))
        with rows.typed(self.folder):
            write_atomic(self.folder / "skipped.csv", text.getvalue())

    # --------------------------------------------------------------------------------------------------------- removing
    def remove_files(self, ids: Sequence[int]) -> None:
        """Files and their segments are gone for every search that begins after this."""
        with rows.typed(self.folder), rows.transaction(self.connection):
            self.connection.executemany("DELETE FROM files WHERE id = ?", [(i,) for i in ids])
            rows.bump(self.connection)

    def remove_segments(self, ids: Sequence[int]) -> None:
        """Segments, and the files that lose their last one."""
        with rows.typed(self.folder), rows.transaction(self.connection):
            self.connection.execute("CREATE TEMP TABLE IF NOT EXISTS gone(id INTEGER PRIMARY KEY)")
            self.connection.execute("DELETE FROM gone")
            self.connection.executemany("INSERT OR IGNORE INTO gone VALUES (?)", [(i,) for i in ids])
            files = self.connection.execute(
                "SELECT DISTINCT file FROM segments WHERE id IN (SELECT id FROM gone)"
            ).fetchall()
            self.connection.execute("DELETE FROM segments WHERE id IN (SELECT id FROM gone)")
            self.connection.executemany(
                "DELETE FROM files WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM segments WHERE file = ?1)", files
            )
            rows.bump(self.connection)

    # ------------------------------------------------------------------------------------------------- files of vectors
    def tidy(self) -> None:
        """After a job: drop removed vectors where they are the greater part, bring the approximate index up to date."""
        with rows.typed(self.folder):
            for modality in self.meta.modalities:
                count = self._state(modality)["count"]
                alive = self.connection.execute(f"SELECT count({modality}) FROM segments").fetchone()[0]
                if count - alive > max(1024, alive):
                    self._compact(modality)
                if not ann.is_exact(self.meta.factory):
                    self._refresh(modality)
            self._clean()
            self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _compact(self, modality: str) -> None:
        """A new vector file without the removed ones; readers of the old state keep their map of the old file."""
        state = self._state(modality)
        table = self.connection.execute(
            f"SELECT {modality}, id FROM segments WHERE {modality} IS NOT NULL ORDER BY {modality}"
        ).fetchall()
        old = self._map(modality)
        number = int(Path(state["log"]).stem.rpartition("-")[2]) + 1
        new = {"log": f"{modality}-{number}.f32", "count": 0, "near": None}
        for at in range(0, len(table), vectors.BLOCK):
            block = old[[slot for slot, _ in table[at : at + vectors.BLOCK]]]
            vectors.append(self.folder / str(new["log"]), at, block)
        new["count"] = len(table)
        with rows.transaction(self.connection):
            self.connection.executemany(
                f"UPDATE segments SET {modality} = ? WHERE id = ?", [(slot, row) for slot, (_, row) in enumerate(table)]
            )
            rows.set_state(self.connection, modality, new)
            rows.bump(self.connection)

    def _refresh(self, modality: str) -> None:
        """The approximate index holds every vector again; trained anew once there are twice as many as it was trained
        on.
        """
        state = self._state(modality)
        near, count = state["near"], state["count"]
        if count < ann.needed(self.meta.factory, self.meta.dim) or (near and near["count"] == count):
            return
        all_vectors = self._map(modality)
        index, trained = None, count
        if near and 2 * near["trained"] >= count:
            try:
                index, trained = ann.read(self.folder / near["file"], near["crc"]), near["trained"]
                ann.extend(index, all_vectors, near["count"])
            except (StoreError, FileNotFoundError):
                index, trained = None, count
        if index is None:
            index = ann.train(self.meta.factory, all_vectors)
        name = f"{Path(state['log']).stem}-{count}.faiss"
        crc = ann.write(index, self.folder / name)
        with rows.transaction(self.connection):
            state["near"] = {"file": name, "count": count, "trained": trained, "crc": crc}
            rows.set_state(self.connection, modality, state)
            rows.bump(self.connection)

    def _state(self, modality: str) -> dict[str, Any]:
        return rows.get_state(self.connection, modality) or {"log": f"{modality}-0.f32", "count": 0, "near": None}

    def _map(self, modality: str) -> np.ndarray:
        state = self._state(modality)
        try:
            return vectors.open_map(self.folder / state["log"], state["count"], self.meta.dim)
        except FileNotFoundError:
            raise StoreError(
                "a vector file is missing.", file=self.folder / state["log"], hint="Build it again."
            ) from None

    def _clean(self) -> None:
        """Remove what killed writers left: half-written files, and vector files that no state speaks of."""
        sweep(self.folder)
        used = set()
        for modality in rows.MODALITIES:
            state = self._state(modality)
            used |= {state["log"], (state["near"] or {}).get("file")}
        for path in [*self.folder.glob("*.f32"), *self.folder.glob("*.faiss")]:
            if path.name not in used:
                path.unlink(missing_ok=True)


def _parent(path: PurePosixPath) -> str:
    return "" if str(path.parent) == "." else str(path.parent)
