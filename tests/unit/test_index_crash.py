"""Killed at any moment, damaged in any file: the index goes on, or says what is wrong with it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from index_helpers import DIM, Bands, sounds, tone

import avcl
import avcl.index
from avcl.errors import AvclError, StoreError
from avcl.index import Index, decode, folder, job, rows, vectors, writer

HELPERS = Path(__file__).with_name("index_helpers.py")


def everything(path):
    with Index.open(path) as index:
        hits = index.search(np.arange(1, DIM + 1), "audio", k=10_000)
        return [(h.path, h.start, h.end, h.score, dict(h.info)) for h in hits]


def build(media, out, embedder=None, **options):
    return avcl.index.build(media, out, embedder or Bands(), segment=2, hop=0.5, **options)


# ---------------------------------------------------------------------------------------------------------------- kills
def test_killed_several_times_then_finished(tmp_path):
    """SIGKILL at random moments; the same command goes on, computes nothing twice, ends with the unbroken result."""
    media = sounds(tmp_path / "media", 16)
    build(media, tmp_path / "unbroken")
    truth = everything(tmp_path / "unbroken")
    source = Path(avcl.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{HELPERS.parent}", "OMP_NUM_THREADS": "1"}
    chance = random.Random(0)
    finished: list[int] = []
    for _ in range(3):
        run = subprocess.Popen(
            [sys.executable, str(HELPERS), str(media), str(tmp_path / "i")],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert run.stdout is not None
        for _ in range(chance.randint(2, 8)):
            if not run.stdout.readline():
                break
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
        if (tmp_path / "i" / "meta.json").exists():
            finished.append(avcl.index.info(tmp_path / "i")["files"])
    assert finished == sorted(finished)
    embedder = Bands()
    counts = build(media, tmp_path / "i", embedder)
    assert counts["unchanged"] >= finished[-1] > 0
    assert len({name for name, _, _ in embedder.clips}) == counts["new"] == 16 - counts["unchanged"]
    assert everything(tmp_path / "i") == truth


class Camera:
    """Copies the folder at every step that touches the disk: what a kill at that moment would leave."""

    def __init__(self, index: Path, shots: Path, patch: pytest.MonkeyPatch):
        self.index, self.shots, self.count = index, shots, 0
        append, transaction, write, fsync = vectors.append, rows.transaction, writer.write_atomic, vectors.os.fsync

        def watched_append(path, count, new):
            self.shoot()
            append(path, count, new)
            self.shoot()
            self.shoot(torn=path)

        @contextmanager
        def watched_transaction(connection, *, write=True):
            self.shoot()
            with transaction(connection, write=write):
                yield
                self.shoot()
            self.shoot()

        def watched_write(path, content):
            self.shoot()
            write(path, content)
            self.shoot()

        patch.setattr(vectors, "append", watched_append)
        patch.setattr(rows, "transaction", watched_transaction)
        patch.setattr(writer, "write_atomic", watched_write)
        patch.setattr(vectors.os, "fsync", lambda handle: (self.shoot(), fsync(handle)))

    def shoot(self, torn: Path | None = None) -> None:
        if not self.index.is_dir():
            return
        shot = self.shots / f"{self.count:03d}"
        self.count += 1
        # The shared memory of the log is not on a disk: a kill of the last process loses nothing with it.
        shutil.copytree(self.index, shot, ignore=shutil.ignore_patterns("*-shm", ".lock"))
        if torn is not None:
            data = (shot / torn.name).read_bytes()
            (shot / torn.name).write_bytes(data[: len(data) - 11])


@pytest.mark.parametrize("kind", ["build", "update", "approximate", "long"])
def test_every_moment_is_a_good_moment_to_die(tmp_path, kind):
    media, out = sounds(tmp_path / "media", 4), tmp_path / "i"
    options = {"factory": "HNSW8"} if kind == "approximate" else {}
    if kind == "update":
        build(media, out)
        (media / "a" / "00.wav").rename(media / "moved.wav")
        (media / "b" / "01.wav").unlink()
        tone(media / "a" / "02.wav", 3, 99)
        shutil.copy(media / "b" / "03.wav", media / "copy.wav")
        (media / "bad.mp4").write_text("bad")
    with pytest.MonkeyPatch.context() as patch:
        if kind == "long":
            tone(media / "long.wav", 14, 3)
            patch.setattr(decode, "CHUNK_BYTES", 200_000)
        patch.setattr(job, "BATCH", 4)
        camera = Camera(out, tmp_path / "shots", patch)
        build(media, out, **options)
    truth, said = everything(out), avcl.index.info(out)
    skipped = (out / "skipped.csv").read_text()
    assert camera.count > 25
    for shot in sorted((tmp_path / "shots").iterdir()):
        if (shot / "meta.json").exists():
            with Index.open(shot) as index:  # a reader gets on with what is there
                assert {h.path for h in index.search(np.ones(DIM), "audio", k=999)} <= {
                    *(r[0] for r in truth),
                    "a/00.wav",
                    "b/01.wav",
                }
        embedder = Bands()
        build(media, shot, embedder, **options)
        assert everything(shot) == truth, shot.name
        now = avcl.index.info(shot)
        same = ("files", "segments", "silent", "skipped", "vectors", "unfinished", "exact")
        assert {k: now[k] for k in same} == {k: said[k] for k in same}, shot.name
        assert (shot / "skipped.csv").read_text() == skipped
        names = {p.name for p in shot.iterdir()} - {"rows.sqlite-wal", "rows.sqlite-shm", ".lock"}
        assert names == {p.name for p in out.iterdir()} - {"rows.sqlite-wal", "rows.sqlite-shm", ".lock"}, shot.name


def test_a_long_file_goes_on_from_its_last_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "CHUNK_BYTES", 200_000)
    tone(tmp_path / "m" / "long.wav", 60, 3)
    build(tmp_path / "m", tmp_path / "whole")

    class Stops(Bands):
        def embed_clips(self, clips, modality):
            if len(self.clips) > 60:
                raise KeyboardInterrupt
            return super().embed_clips(clips, modality)

    first, second = Stops(), Bands()
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "m", tmp_path / "i", first)
    said = avcl.index.info(tmp_path / "i")
    assert (said["files"], said["unfinished"], said["segments"]) == (0, 1, 0)
    build(tmp_path / "m", tmp_path / "i", second)
    assert len(first.clips) + len(second.clips) == 117
    assert everything(tmp_path / "i") == everything(tmp_path / "whole")


def test_killed_while_the_index_is_made(tmp_path):
    """rows.sqlite without meta.json is the beginning of an index, not another thing."""
    media, out = sounds(tmp_path / "media", 2), tmp_path / "i"
    out.mkdir()
    (out / "rows.sqlite").write_bytes(b"half")
    (out / ".part-123-meta.json").touch()
    with pytest.raises(StoreError, match="not an index"):
        Index.open(out)
    assert build(media, out)["files"] == 2
    assert not (out / ".part-123-meta.json").exists()


def test_compaction_under_an_open_reader(tmp_path, monkeypatch):
    """A reader with an open map keeps its answer; one that comes between state and file looks again."""
    with Index.create(tmp_path / "i", model="m", dim=4, modalities=("audio",)) as index:
        table = [(f"{i:04d}.wav", 0.0, 3.0) for i in range(5000)]
        index.add(table, {"audio": np.random.default_rng(0).standard_normal((5000, 4))})
        with Index.open(tmp_path / "i") as reader:
            before = reader.search(np.ones(4), "audio", k=3, where="path > '4000'")
            index.remove(where="path < '4000.wav'")
            assert {p.name for p in (tmp_path / "i").glob("*.f32")} == {"audio-1.f32"}
            assert reader.search(np.ones(4), "audio", k=3) == before
        original, calls = vectors.open_map, []

        def late(path, count, dim):
            calls.append(path)
            if len(calls) == 1:
                raise FileNotFoundError(2, "gone", str(path))
            return original(path, count, dim)

        monkeypatch.setattr(vectors, "open_map", late)
        with Index.open(tmp_path / "i") as reader:
            assert reader.search(np.ones(4), "audio", k=3) == before
        assert len(calls) == 2


# --------------------------------------------------------------------------------------------------------------- damage
@pytest.fixture
def built(tmp_path):
    media = sounds(tmp_path / "media", 4)
    build(media, tmp_path / "i", factory="HNSW8")
    with sqlite3.connect(tmp_path / "i" / "rows.sqlite") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return tmp_path / "i"


def use(path):
    avcl.index.info(path)
    everything(path)


@pytest.mark.parametrize("name", ["meta.json", "rows.sqlite", "audio-0.f32", "*.faiss"])
@pytest.mark.parametrize("how", ["half", "empty", "text", "gone"])
def test_damaged_files(built, name, how):
    path = next(built.glob(name))
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"half": data[: len(data) // 2], "empty": b"", "text": b"this is not it\n" * 99}[how])
    if name == "*.faiss" and how == "gone":
        use(built)  # a copy that can be made again: exact search does without
        return
    with pytest.raises(StoreError) as caught:
        use(built)
    assert caught.value.file is not None
    assert caught.value.hint or "JSON" in caught.value.what


def test_flipped_bytes_give_a_typed_error_or_an_answer(built, tmp_path):
    chance = random.Random(1)
    for name in ("meta.json", "rows.sqlite", next(built.glob("*.faiss")).name):
        for _ in range(12):
            copy = tmp_path / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(built, copy)
            data = bytearray((copy / name).read_bytes())
            for _ in range(chance.choice((1, 3, 40))):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            (copy / name).write_bytes(data)
            try:
                use(copy)
                avcl.index.remove(copy, where="start > 1")
                avcl.index.update(copy, Bands(), media=tmp_path / "media")
            except AvclError:
                pass


def test_not_finite_vectors_on_the_disk(built):
    path = built / "audio-0.f32"
    data = np.fromfile(path, "<f4")
    data[5] = np.nan
    data.tofile(path)
    with pytest.raises(AvclError, match="not finite"):
        use(built)


def test_an_index_on_a_disk_that_cannot_be_written(built, monkeypatch):
    """Without the shared memory of the log (a folder that may not be written to) the rows are read as they are."""
    truth, connect, modes = everything(built), sqlite3.connect, []

    class Shut(sqlite3.Connection):
        def execute(self, *arguments):
            raise sqlite3.OperationalError("unable to open database file")

    def refuse(name, **options):
        modes.append(name.rpartition("?")[2])
        return connect(name, **options, **({} if "immutable" in name else {"factory": Shut}))

    monkeypatch.setattr(rows.sqlite3, "connect", refuse)
    assert everything(built) == truth
    assert modes == ["mode=ro", "mode=ro&immutable=1"]
    with pytest.raises(StoreError):
        avcl.index.remove(built, ["a"])


def test_folders_that_are_no_index(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(StoreError, match="not an index"):
            Index.open(path)
        for call in (avcl.index.info, lambda p: avcl.index.remove(p, ["x"]), lambda p: avcl.index.update(p, Bands())):
            with pytest.raises(StoreError):
                call(path)
    assert not (tmp_path / "none").exists()
    assert folder.OWN_FILES[0] == rows.NAME
