"""Build and update: make the index hold what the media folder holds, file by file, so that a kill costs at most one
batch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avcl.errors import AvclError, ConfigError, DataError, ExistsError, FeatureError, MissingFile, ModelError, NotMedia
from avcl.index import meta, rows
from avcl.index.columns import read_columns
from avcl.index.decode import Chunk, chunks
from avcl.index.folder import Index, prepare
from avcl.index.meta import Embedder, Meta
from avcl.index.rows import FileFacts
from avcl.index.writer import Part, Segment, Writer
from avcl.media import MEDIA_SUFFIXES
from avcl.types import Clip

log = logging.getLogger("avcl.index")

BATCH = 32  # clips that are embedded, and files that are committed, together


@dataclass(frozen=True)
class Progress:
    """How far a job is: ``done`` of ``files``; ``remaining`` seconds are estimated from the bytes still to be read
    (None at first).
    """

    file: str
    done: int
    files: int
    segments: int
    skipped: int
    seconds: float
    remaining: float | None


class Work(NamedTuple):
    """A file to be embedded, from segment number ``first`` on."""

    facts: FileFacts
    first: int


class Found(NamedTuple):
    path: str
    size: int
    mtime: int


def build(
    media: str | Path,
    out: str | Path,
    embedder: Embedder,
    *,
    segment: float | None = None,
    hop: float | None = None,
    factory: str = "Flat",
    modalities: tuple[str, ...] | None = None,
    columns: str | Path | None = None,
    model_path: str | Path | None = None,
    jobs: int = 1,
    quick: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Index every media file below the folder ``media`` into the folder ``out``; the same call goes on after a kill.

    A file becomes the segments [k·``hop``, k·``hop`` + ``segment``] (default: the embedder's window and a third of
    it), each with a vector for every modality in which it holds something; a silent sound gets none. Hidden files are
    left out; a file that cannot be used goes into ``skipped.csv``. ``factory``: a FAISS factory string of the IVF or
    HNSW family, or "Flat" (exact). ``columns``: CSV with a path column and further columns for ``where``.
    ``model_path`` is noted, for those who search later. ``jobs``: files decoded at a time. ``quick``: a file of the
    same size and time of change is taken for unchanged.

    Returns counts: {"files", "segments", "silent", "skipped", "new", "changed", "renamed", "copied", "removed",
    "unchanged", "media_seconds", "seconds", "folder"}. Raises ModelError for an index of another model, ExistsError
    for one with other settings or a folder with other things, LockedError while another process writes, DataError for
    a folder without media.
    """
    root, folder = _media(media), Path(out)
    if folder.exists() and not folder.is_dir():
        raise ExistsError("this is a file, not a folder.", file=folder, hint="Choose another --out.")
    length = float(segment if segment is not None else embedder.window)
    stride = float(hop if hop is not None else length / 3)
    chosen = modalities or tuple(m for m in rows.MODALITIES if m in embedder.modalities)
    wanted = Meta(
        model=embedder.fingerprint,
        inputs=embedder.inputs,
        similarity=embedder.similarity_name,
        dim=int(embedder.dim),
        modalities=chosen,
        factory=factory,
        segment=length,
        hop=stride,
        media=str(root),
        model_path="" if model_path is None else str(Path(model_path).absolute()),
    )
    if set(chosen) - set(embedder.modalities):
        raise ConfigError(f"the model embeds {', '.join(embedder.modalities)}, not {', '.join(chosen)}.")
    if (folder / meta.NAME).exists():
        known = meta.read(folder)
        known.require(folder, wanted.model, wanted.inputs)
        different = known.same_settings(wanted)
        if known.media and known.media != wanted.media:
            different.append("media")
        if different:
            name = different[0]
            raise ExistsError(
                f"this is an index with {name} = {getattr(known, name)}, not {getattr(wanted, name)}."[:180],
                file=folder,
                hint="Choose another --out, or give the settings of the index.",
            )
    else:
        if not _listing(root):
            raise _no_media(root)
        prepare(folder, wanted)
    return update(
        folder, embedder, media=root, columns=columns, model_path=model_path, jobs=jobs, quick=quick, progress=progress
    )


def update(
    folder: str | Path,
    embedder: Embedder,
    *,
    media: str | Path | None = None,
    columns: str | Path | None = None,
    model_path: str | Path | None = None,
    jobs: int = 1,
    quick: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Make the index hold what its media folder holds now; arguments, result and errors as ``build``.

    Files are told apart by the hash of their bytes: new and changed ones are embedded, one that stands at another
    path (or at several) is not embedded again, one that is gone is dropped at once. ``media``: where the folder is
    now, if it has moved.
    """
    folder = Path(folder)
    built = meta.read(folder)
    built.require(folder, embedder.fingerprint, embedder.inputs)
    if embedder.dim != built.dim:
        raise ModelError(f"the model gives {embedder.dim} dimensions, the index has {built.dim}.", file=folder)
    root = _media(media if media is not None else built.media or ".")
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, not {jobs}.")
    table = None if columns is None else read_columns(columns, root)
    moved = built.moved(media=str(root), model_path=None if model_path is None else str(Path(model_path).absolute()))
    with Writer(folder, moved) as writer:
        if moved != built:
            moved.write(folder)
        job = _Job(writer, root, embedder, jobs, quick, progress)
        try:
            if table is not None:
                with rows.typed(folder), rows.transaction(writer.connection):
                    rows.set_columns(writer.connection, *table)
                    rows.bump(writer.connection)
            job.run()
        finally:
            writer.write_skipped()
        writer.tidy()
    with Index.open(folder) as index:
        said = index.info()
    return {
        "files": said["files"],
        "segments": said["segments"],
        "silent": said["silent"],
        "skipped": sum(said["skipped"].values()),
        **job.tally,
        "media_seconds": said["media_seconds"],
        "seconds": round(time.monotonic() - job.began, 3),
        "folder": str(folder),
    }


class _Job:
    """One run over the media folder."""

    def __init__(
        self,
        writer: Writer,
        root: Path,
        embedder: Embedder,
        jobs: int,
        quick: bool,
        progress: Callable[[Progress], None] | None,
    ):
        self.writer, self.root, self.embedder, self.jobs, self.quick = writer, root, embedder, jobs, quick
        self.progress = progress
        self.began = time.monotonic()
        self.tally = dict.fromkeys(("new", "changed", "renamed", "copied", "removed", "unchanged"), 0)
        self.pending: list[tuple[Work, Chunk]] = []
        self.in_flight: set[str] = set()  # hashes of files that are being decoded
        self.failed: set[str] = set()  # paths of files whose further parts are of no use
        self.again: list[FileFacts] = []  # copies of files in flight
        self.done = self.bytes_done = self.bytes_worked = self.segments = self.skipped = 0

    def run(self) -> None:
        found = _listing(self.root)
        query = "SELECT path, id, hash, size, mtime, done, reached FROM files WHERE crawled"
        with rows.typed(self.writer.folder):
            known = {row[0]: row[1:] for row in self.writer.connection.execute(query)}
            given_up = {row[0]: row[1:] for row in self.writer.connection.execute("SELECT path, hash FROM skipped")}
        if not found:
            raise _no_media(self.root, len(known))
        self.files, self.bytes = len(found), sum(f.size for f in found)
        hashes = self._settle_gone(found, known, given_up)
        # Renamed files have rows at their new paths by now.
        with rows.typed(self.writer.folder):
            known = {row[0]: row[1:] for row in self.writer.connection.execute(query)}
        with ThreadPoolExecutor(self.jobs, thread_name_prefix="avcl-decode") as pool:
            try:
                self._work(self._plan(found, known, given_up, hashes), pool)
                again, self.again = self.again, []
                self._work(self._plan_copies(again), pool)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    # --------------------------------------------------------------------------------------------------------- deciding
    def _settle_gone(self, found: list[Found], known: dict[str, Any], given_up: dict[str, Any]) -> dict[str, str]:
        """Files that moved get their new path, files that are gone are dropped, before anything slow begins."""
        here = {f.path for f in found}
        gone = {path: row for path, row in known.items() if path not in here}
        sizes = {row[2] for row in gone.values()}
        hashes: dict[str, str] = {}
        by_hash: dict[str, list[str]] = {}
        for path in sorted(gone):
            if gone[path][4]:
                by_hash.setdefault(gone[path][1], []).append(path)
        for file in found:
            if file.path not in known and file.size in sizes:
                with suppress(AvclError):
                    hashes[file.path] = _hash(self.root / file.path)
                    if by_hash.get(hashes[file.path]):
                        old = by_hash[hashes[file.path]].pop(0)
                        facts = FileFacts(file.path, hashes[file.path], file.size, file.mtime)
                        self.writer.rename(gone.pop(old)[0], facts)
                        self.tally["renamed"] += 1
        if gone:
            self.writer.remove_files([row[0] for row in gone.values()])
            self.tally["removed"] = len(gone)
        if forgotten := [(path,) for path in given_up if path not in here]:
            with rows.typed(self.writer.folder), rows.transaction(self.writer.connection):
                self.writer.connection.executemany("DELETE FROM skipped WHERE path = ?", forgotten)
        return hashes

    def _plan(
        self, found: list[Found], known: dict[str, Any], given_up: dict[str, Any], hashes: dict[str, str]
    ) -> Iterator[Work]:
        """The files to be embedded; what needs no embedding is settled on the way."""
        for file in found:
            row = known.get(file.path)
            if self.quick and row is not None and row[4] and (row[2], row[3]) == (file.size, file.mtime):
                self._settled("unchanged", file)
                continue
            try:
                file.path.encode()
                digest = hashes.get(file.path) or _hash(self.root / file.path)
            except UnicodeEncodeError:
                self._skip(
                    file._replace(path=_printable(file.path)),
                    None,
                    MissingFile("its name is not UTF-8.", hint="Rename it."),
                )
                continue
            except AvclError as error:
                self._skip(file, None, error)
                continue
            facts = FileFacts(file.path, digest, file.size, file.mtime)
            if row is not None and row[1] == digest and row[4]:
                if (row[2], row[3]) != (file.size, file.mtime):
                    self.writer.touch(facts)
                # A renamed file was counted as such when it got its path.
                self._settled("unchanged" if file.path not in hashes else None, file)
            elif given_up.get(file.path) == (digest,):
                self._settled("unchanged", file)
            elif digest in self.in_flight:
                self.again.append(facts)
            elif not self._copied(facts, row):
                yield self._embed(facts, row)

    def _plan_copies(self, again: list[FileFacts]) -> Iterator[Work]:
        for facts in again:
            if not self._copied(facts, None):
                yield self._embed(facts, None)

    def _copied(self, facts: FileFacts, row: Any) -> bool:
        with rows.typed(self.writer.folder):
            same = self.writer.connection.execute(
                "SELECT id FROM files WHERE hash = ? AND done AND crawled AND path <> ? LIMIT 1",
                (facts.hash, facts.path),
            ).fetchone()
        if same is None:
            return False
        self.segments += self.writer.copy(facts, same[0])
        self._settled("copied", Found(facts.path, facts.size, facts.mtime))
        return True

    def _embed(self, facts: FileFacts, row: Any) -> Work:
        self.in_flight.add(facts.hash)
        goes_on = row is not None and row[1] == facts.hash and not row[4]
        self.tally["changed" if row is not None and not goes_on else "new"] += 1
        return Work(facts, row[5] if goes_on else 0)

    # ---------------------------------------------------------------------------------------------------------- working
    def _work(self, plan: Iterator[Work], pool: ThreadPoolExecutor) -> None:
        for work, outcome in self._decoded(plan, pool):
            if isinstance(outcome, AvclError):
                self._flush()
                self._give_up(work, outcome)
                continue
            if work.facts.path in self.failed:
                continue
            self.pending.append((work, outcome))
            if not outcome.done or sum(len(chunk.pieces) for _, chunk in self.pending) >= BATCH:
                self._flush()
        self._flush()

    def _decoded(self, plan: Iterator[Work], pool: ThreadPoolExecutor) -> Iterator[tuple[Work, Chunk | AvclError]]:
        """Chunks in the order of the plan, decoded ahead by at most ``jobs`` files."""
        built = self.writer.meta
        waiting: deque[tuple[Work, Iterator[Chunk], Future[Chunk | None]]] = deque()
        more = True
        while more or waiting:
            while more and len(waiting) <= self.jobs:
                work = next(plan, None)
                if work is None:
                    more = False
                    break
                path = self.root / work.facts.path
                source = chunks(path, built.inputs, built.modalities, built.segment, built.hop, first=work.first)
                waiting.append((work, source, pool.submit(next, source, None)))
            if not waiting:
                continue
            work, source, future = waiting.popleft()
            try:
                chunk = future.result()
            except AvclError as error:
                yield work, error
                continue
            except Exception as error:
                # One file among thousands must not end the job; the log keeps the trace for a report.
                log.warning("%s: unexpected error while decoding", work.facts.path, exc_info=error)
                yield work, NotMedia(f"cannot be decoded ({type(error).__name__}).", file=work.facts.path)
                continue
            if chunk is None:
                continue
            if not chunk.done and work.facts.path not in self.failed:
                waiting.appendleft((work, source, pool.submit(next, source, None)))
            yield work, chunk

    def _flush(self) -> None:
        """Embed what is pending and commit it; a file whose embedding fails is skipped, the others are not."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        try:
            parts = self._parts(pending)
        except AvclError as error:
            if len(pending) > 1:
                for one in pending:
                    self.pending = [one]
                    self._flush()
                return
            self._give_up(pending[0][0], error)
            return
        self.writer.commit(parts)
        for work, chunk in pending:
            self.segments += len(chunk.pieces)
            if chunk.done:
                self.in_flight.discard(work.facts.hash)
                self.bytes_worked += work.facts.size
                self._settled(None, Found(work.facts.path, work.facts.size, work.facts.mtime))

    def _parts(self, pending: list[tuple[Work, Chunk]]) -> list[Part]:
        pieces = [piece for _, chunk in pending for piece in chunk.pieces]
        vectors: dict[str, dict[int, np.ndarray]] = {}
        for modality in self.writer.meta.modalities:
            having = [i for i, piece in enumerate(pieces) if modality in piece.clip.streams]
            vectors[modality] = {}
            for at in range(0, len(having), BATCH):
                some = having[at : at + BATCH]
                result = self._embedded([pieces[i].clip for i in some], modality)
                vectors[modality] |= dict(zip(some, result, strict=True))
        parts, at = [], 0
        for work, chunk in pending:
            mine = []
            for i, piece in enumerate(chunk.pieces, at):
                own = {modality: found.get(i) for modality, found in vectors.items()}
                mine.append(Segment(piece.start, piece.end, piece.silent, own))
            at += len(chunk.pieces)
            parts.append(Part(work.facts, mine, chunk.duration, chunk.done, chunk.reached))
        return parts

    def _embedded(self, clips: list[Clip], modality: str) -> np.ndarray:
        result = np.asarray(self.embedder.embed_clips(clips, modality))
        if result.shape != (len(clips), self.writer.meta.dim):
            raise FeatureError(
                f"the model gave {list(result.shape)} for {len(clips)} clips of {self.writer.meta.dim} dimensions."
            )
        bad = np.flatnonzero(~np.isfinite(result).all(1))
        if len(bad):
            source = clips[bad[0]].source
            at = None if source is None else source.start
            raise FeatureError(f"the model gave {modality} vectors that are not finite.", time=at)
        return result

    def _give_up(self, work: Work, error: AvclError) -> None:
        self.failed.add(work.facts.path)
        self.in_flight.discard(work.facts.hash)
        self._skip(Found(work.facts.path, work.facts.size, work.facts.mtime), work.facts, error)

    def _skip(self, file: Found, facts: FileFacts | None, error: AvclError) -> None:
        self.writer.skip(file.path, facts, error)
        self.skipped += 1
        self._settled(None, file)

    def _settled(self, how: str | None, file: Found) -> None:
        """One more file is done with."""
        if how is not None:
            self.tally[how] += 1
        self.done += 1
        self.bytes_done += file.size
        if self.progress is None:
            return
        seconds = time.monotonic() - self.began
        left = self.bytes - self.bytes_done
        # Files that need no work pass in no time; the estimate counts only bytes that were embedded.
        remaining = seconds / self.bytes_worked * left if self.bytes_worked else None
        self.progress(Progress(file.path, self.done, self.files, self.segments, self.skipped, seconds, remaining))


# -------------------------------------------------------------------------------------------------------------- on disk
def _media(media: str | Path) -> Path:
    root = Path(media).absolute()
    if not root.exists():
        raise MissingFile(
            "there is no such folder.", file=media, hint="Check the path; if the media moved, say where to."
        )
    if not root.is_dir():
        raise MissingFile("this is a file; an index is made of a folder.", file=media, hint="Name the folder it is in.")
    return root


def _listing(root: Path) -> list[Found]:
    """Every file below ``root`` with the suffix of a media file, sorted by path; hidden files and folders are left
    out.
    """
    found = []
    for base, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in MEDIA_SUFFIXES:
                path = Path(base, name)
                try:
                    stat = path.stat()
                    size, mtime = stat.st_size, stat.st_mtime_ns
                except OSError:  # a link to nothing: it is reported when it is read
                    size, mtime = 0, 0
                found.append(Found(path.relative_to(root).as_posix(), size, mtime))
    return sorted(found)


def _hash(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise MissingFile(f"cannot be read ({error.strerror}).", hint="Check its permissions.") from None


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def _no_media(root: Path, known: int = 0) -> DataError:
    suffixes = " ".join(sorted(MEDIA_SUFFIXES))
    if known:
        what = f"there is no media file here, but the index knows {known}; nothing was removed."
        return DataError(what, file=root, hint="Is the disk mounted? To empty the index, use avcl index remove.")
    return DataError("there is no media file below this folder.", file=root, hint=f"Looked for {suffixes}.")
