"""One run over the media folder, file by file, so that a kill costs at most one batch."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avcl.errors import AvclError, FeatureError, MissingFile, NotMedia
from avcl.index import rows
from avcl.index.decode import Chunk, chunks
from avcl.index.listing import Found, digest, listing, no_media, printable
from avcl.index.meta import Embedder
from avcl.index.rows import FileFacts
from avcl.index.writer import Part, Segment, Writer
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


class Job:
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
        found = listing(self.root)
        query = "SELECT path, id, hash, size, mtime, done, reached FROM files WHERE crawled"
        with rows.typed(self.writer.folder):
            known = {row[0]: row[1:] for row in self.writer.connection.execute(query)}
            given_up = {row[0]: row[1:] for row in self.writer.connection.execute("SELECT path, hash FROM skipped")}
        if not found:
            raise no_media(self.root, len(known))
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
                    hashes[file.path] = digest(self.root / file.path)
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
                content = hashes.get(file.path) or digest(self.root / file.path)
            except UnicodeEncodeError:
                self._skip(
                    file._replace(path=printable(file.path)),
                    None,
                    MissingFile("its name is not UTF-8.", hint="Rename it."),
                )
                continue
            except AvclError as error:
                self._skip(file, None, error)
                continue
            facts = FileFacts(file.path, content, file.size, file.mtime)
            if row is not None and row[1] == content and row[4]:
                if (row[2], row[3]) != (file.size, file.mtime):
                    self.writer.touch(facts)
                # A renamed file was counted as such when it got its path.
                self._settled("unchanged" if file.path not in hashes else None, file)
            elif given_up.get(file.path) == (content,):
                self._settled("unchanged", file)
            elif content in self.in_flight:
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
