"""Building and updating an index of real (small) media files."""

from __future__ import annotations

import csv
import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_helpers import INPUTS, RATE, Bands, film, sounds, tone

import avcl.index
from avcl.errors import (
    ConfigError,
    DataError,
    ExistsError,
    LockedError,
    MissingFile,
    ModelError,
)
from avcl.index import Index, decode
from avcl.media import read_clip, segments, write_audio, write_image


def everything(folder):
    """All rows with their scores for one query per modality: what a search can say of an index."""
    with Index.open(folder) as index:
        return [
            [(h.path, h.start, h.end, h.score, dict(h.info)) for h in index.search(np.arange(1, 13), m, k=10_000)]
            for m in index.meta.modalities
        ]


def spans(folder, path=None):
    rows = everything(folder)
    return sorted({(r[0], r[1], r[2]) for table in rows for r in table if path in (None, r[0])})


@pytest.fixture
def media(tmp_path):
    return sounds(tmp_path / "media", 6)


# ------------------------------------------------------------------------------------------------------------- segments
def test_segments_worked_by_hand():
    assert segments(10, 3, 3) == [(0, 3), (3, 6), (6, 9), (7, 10)]
    assert segments(9, 3, 3) == [(0, 3), (3, 6), (6, 9)]
    assert segments(9.1, 3, 3) == [(0, 3), (3, 6), (6, 9)]  # 0.1 s are less than a twentieth of 3 s
    assert segments(4, 3, 1) == [(0, 3), (1, 4)]
    assert segments(4.5, 3, 1) == [(0, 3), (1, 4), (1.5, 4.5)]
    assert segments(2.2, 3, 1) == [(0, 2.2)]
    assert segments(3.05, 3, 1) == [(0, 3)]
    assert segments(0, 3, 1) == []
    assert segments(10, 2, 4) == [(0, 2), (4, 6), (8, 10)]
    assert segments(11, 2, 4) == [(0, 2), (4, 6), (8, 10), (9, 11)]
    assert segments(10, 3, 3, first=2) == [(6, 9), (7, 10)]
    assert segments(10, 3, 3, first=4) == []
    assert segments(2, 3, 3, first=1) == []
    for bad in ((0, 1), (1, 0), (float("nan"), 1), (1, float("inf"))):
        with pytest.raises(ConfigError):
            segments(10, *bad)


@given(st.floats(0.01, 500), st.floats(0.1, 20), st.floats(0.1, 20), st.integers(0, 30))
def test_segments_cover_the_file(duration, window, hop, first):
    parts = segments(duration, window, hop)
    assert parts[0][0] == 0
    assert max(end for _, end in parts) <= duration + 1e-5
    assert duration - parts[-1][1] <= 0.05 * window + 1e-5
    assert all(abs(end - start - min(window, duration)) < 1e-5 for start, end in parts)
    assert all(b[0] - a[0] <= hop + 1e-5 and b[0] > a[0] for a, b in pairwise(parts))
    assert segments(duration, window, hop, first=first) == parts[first:]


# ---------------------------------------------------------------------------------------------------------------- build
def test_build_and_search_both_ways(tmp_path):
    media = tmp_path / "media"
    for i in range(3):
        film(media / f"v{i}.mkv", 3.0, i)
    film(media / "mute.mkv", 3.0, 9, sound=False)
    tone(media / "sub" / "deep.wav", 5.0, 7)
    tone(media / ".hidden" / "no.wav", 1, 0)
    (media / "notes.txt").write_text("not media")
    write_image(media / "still.png", np.full((20, 30, 3), 90, np.uint8))
    embedder, steps = Bands(), []
    counts = avcl.index.build(media, tmp_path / "i", embedder, segment=2, hop=1, progress=steps.append)
    assert {k: counts[k] for k in ("files", "segments", "silent", "skipped", "new")} == {
        "files": 6,
        "segments": 4 * 2 + 4 + 1,
        "silent": 0,
        "skipped": 0,
        "new": 6,
    }
    assert [s.done for s in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[-1].remaining == 0
    assert spans(tmp_path / "i", "sub/deep.wav") == [("sub/deep.wav", float(s), s + 2.0) for s in range(4)]
    assert spans(tmp_path / "i", "still.png") == [("still.png", 0.0, 0.0)]
    with Index.open(tmp_path / "i") as index:
        clip = read_clip(media / "v1.mkv", 1, 3, fps=8, size=(16, 16), rate=RATE, channels=1)
        for modality in ("audio", "video"):
            query = embedder.vector(clip.streams[modality].data[0].numpy(), modality)
            hits = index.search(query, modality, k=100)
            assert (hits[0].path, hits[0].start, hits[0].end, hits[0].modality) == ("v1.mkv", 1.0, 3.0, modality)
            assert hits[0].score == pytest.approx(1, abs=1e-6)
            assert len(hits) == {"audio": 10, "video": 9}[modality]
            assert ("mute.mkv" in {h.path for h in hits}) == (modality == "video")
        assert len(index.search(query, "video", k=100, per_file=1)) == 5
        assert [h.path for h in index.search(query, "video", where="suffix = '.png'")] == ["still.png"]
        said = index.info()
    assert said["media"] == str(media)
    assert said["vectors"] == {"audio": 10, "video": 9}
    assert said["model"] == "bands-1"
    assert said["media_seconds"] == pytest.approx(17, abs=0.3)


def test_default_segment_and_hop(tmp_path, media):
    avcl.index.build(media, tmp_path / "i", Bands(), model_path=tmp_path / "run")
    said = avcl.index.info(tmp_path / "i")
    assert (said["segment"], said["hop"]) == (2.0, pytest.approx(2 / 3))
    assert said["model_path"] == str(tmp_path / "run")


def test_one_modality_of_the_model(tmp_path):
    film(tmp_path / "m" / "a.mkv", 2, 0)
    film(tmp_path / "m" / "mute.mkv", 2, 0, sound=False)
    counts = avcl.index.build(tmp_path / "m", tmp_path / "i", Bands(), modalities=("audio",))
    assert (counts["files"], counts["skipped"]) == (1, 1)
    assert avcl.index.info(tmp_path / "i")["skipped"] == {"E-NOAUDIO": 1}
    embedder = Bands()
    embedder.modalities = ("video", "text")
    avcl.index.build(tmp_path / "m", tmp_path / "j", embedder)
    assert avcl.index.info(tmp_path / "j")["modalities"] == ["video"]
    with pytest.raises(ConfigError):
        avcl.index.build(tmp_path / "m", tmp_path / "k", embedder, modalities=("audio",))


def test_long_files_in_chunks_give_the_same_segments(tmp_path, monkeypatch):
    """Chunks bound the memory; the vectors are those of a file that is read at once."""
    tone(tmp_path / "m" / "long.wav", 40.3, 3)
    avcl.index.build(tmp_path / "m", tmp_path / "whole", Bands(), segment=2, hop=0.5)
    monkeypatch.setattr(decode, "CHUNK_BYTES", 200_000)
    embedder = Bands()
    avcl.index.build(tmp_path / "m", tmp_path / "parts", embedder, segment=2, hop=0.5)
    assert len(embedder.clips) == len(segments(40.3, 2, 0.5)) == 78
    whole, parts = everything(tmp_path / "whole"), everything(tmp_path / "parts")
    assert [r[:3] for r in sorted(whole[0])] == [r[:3] for r in sorted(parts[0])]
    np.testing.assert_allclose([r[3] for r in sorted(whole[0])], [r[3] for r in sorted(parts[0])], atol=1e-6)


def test_silence_is_flagged_and_not_found(tmp_path):
    wave = np.zeros((6 * RATE, 1), np.float32)
    wave[: 2 * RATE] = 0.1 * np.sin(np.arange(2 * RATE))[:, None]
    (tmp_path / "m").mkdir()
    write_audio(tmp_path / "m" / "half.wav", wave, RATE)
    write_audio(tmp_path / "m" / "none.wav", np.zeros((2 * RATE, 1), np.float32), RATE)
    counts = avcl.index.build(tmp_path / "m", tmp_path / "i", Bands(), segment=2, hop=2)
    assert (counts["files"], counts["segments"], counts["silent"]) == (2, 4, 3)
    assert spans(tmp_path / "i") == [("half.wav", 0.0, 2.0)]
    assert avcl.index.remove(tmp_path / "i", where="silent")["segments"] == 1


# ----------------------------------------------------------------------------------------------------- what goes wrong
def test_files_that_cannot_be_used(tmp_path, media):
    (media / "empty.mp4").touch()
    (media / "text.mp3").write_text("<html>not a sound</html>" * 50)
    (media / "dir.mkv").mkdir()
    (media / "gone.wav").symlink_to(tmp_path / "nowhere")
    write_audio(media / "short.wav", np.ones((50, 1), np.float32) * 0.1, RATE)  # the embedder refuses it
    whole = tone(tmp_path / "whole.flac", 3, 1).read_bytes()
    (media / "cut.flac").write_bytes(whole[: len(whole) // 10])
    counts = avcl.index.build(media, tmp_path / "i", Bands())
    with open(tmp_path / "i" / "skipped.csv", newline="") as file:
        table = list(csv.DictReader(file))
    codes = {row["file"]: row["code"] for row in table}
    assert list(table[0]) == ["file", "code", "message", "time"]
    assert {k: v for k, v in codes.items() if k != "cut.flac"} == {
        "empty.mp4": "E-DECODE",
        "text.mp3": "E-DECODE",
        "gone.wav": "E-NOFILE",
        "short.wav": "E-TOOSHORT",
    }
    assert all(row["message"] for row in table)
    assert counts["skipped"] == len(table)
    assert counts["files"] == 6 + ("cut.flac" not in codes)
    # Nothing has changed: nothing is tried again.
    embedder = Bands()
    again = avcl.index.update(tmp_path / "i", embedder)
    assert embedder.clips == []
    assert again["skipped"] == counts["skipped"]
    # One is mended, one is gone.
    tone(media / "text.mp3".replace("mp3", "wav"), 2, 5)
    shutil.copy(media / "text.wav", media / "short.wav")
    (media / "empty.mp4").unlink()
    counts = avcl.index.update(tmp_path / "i", embedder)
    assert (counts["new"], counts["copied"]) == (1, 1)
    assert avcl.index.info(tmp_path / "i")["skipped"].get("E-TOOSHORT") is None
    assert "empty.mp4" not in (tmp_path / "i" / "skipped.csv").read_text()


def test_a_model_that_fails_on_one_file_spoils_no_other(tmp_path, media):
    class Moody(Bands):
        def embed_clips(self, clips, modality):
            result = super().embed_clips(clips, modality)
            result[[Path(c.source.path).name == "03.wav" for c in clips]] = np.nan
            return result

    counts = avcl.index.build(media, tmp_path / "i", Moody())
    assert (counts["files"], counts["skipped"]) == (5, 1)
    assert "b/03.wav,E-FEATURE,the model gave audio vectors" in (tmp_path / "i" / "skipped.csv").read_text()


def test_refusals(tmp_path, media):
    out = tmp_path / "i"
    with pytest.raises(MissingFile):
        avcl.index.build(tmp_path / "none", out, Bands())
    with pytest.raises(MissingFile):
        avcl.index.build(media / "a" / "00.wav", out, Bands())
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError):
        avcl.index.build(tmp_path / "bare", out, Bands())
    for options in ({"segment": 0}, {"hop": -1}, {"factory": "Florp"}, {"jobs": 0}):
        with pytest.raises(ConfigError):
            avcl.index.build(media, tmp_path / "x", Bands(), **options)
    (tmp_path / "file").touch()
    with pytest.raises(ExistsError):
        avcl.index.build(media, tmp_path / "file", Bands())
    assert not out.exists()
    avcl.index.build(media, out, Bands(), segment=2, hop=1)
    with pytest.raises(ExistsError, match=r"hop = 1\.0, not 0\.5"):
        avcl.index.build(media, out, Bands(), segment=2, hop=0.5)
    with pytest.raises(ExistsError, match="media"):
        avcl.index.build(tmp_path / "media" / "a", out, Bands(), segment=2, hop=1)
    other = Bands()
    other.fingerprint = "bands-2"
    for call in (lambda: avcl.index.build(media, out, other), lambda: avcl.index.update(out, other)):
        with pytest.raises(ModelError, match="built with model bands-1, you loaded bands-2") as caught:
            call()
        assert caught.value.exit == 5
    other = Bands()
    other.inputs = INPUTS.__class__(**{**INPUTS.__dict__, "fps": 25.0})
    with pytest.raises(ModelError, match="fps"):
        avcl.index.update(out, other)
    other = Bands()
    other.similarity_name = "poincare"
    with pytest.raises(ConfigError, match="poincare"):
        avcl.index.build(media, tmp_path / "z", other)


# --------------------------------------------------------------------------------------------------------------- update
def test_update_by_content(tmp_path, media):
    out = tmp_path / "i"
    avcl.index.build(media, out, Bands(), segment=2, hop=1)
    before = everything(out)
    os.utime(media / "a" / "00.wav")
    embedder = Bands()
    counts = avcl.index.update(out, embedder)
    assert embedder.clips == []
    assert counts["unchanged"] == 6
    assert everything(out) == before

    keep = os.stat(media / "b" / "01.wav")
    tone(media / "b" / "01.wav", 1.7, 77)  # changed, with the size and times of before
    os.utime(media / "b" / "01.wav", ns=(keep.st_atime_ns, keep.st_mtime_ns))
    (media / "c").mkdir()
    (media / "a" / "02.wav").rename(media / "c" / "moved.wav")
    shutil.copy(media / "a" / "04.wav", media / "c" / "copy.wav")
    (media / "b" / "03.wav").unlink()
    tone(media / "new.wav", 3.0, 50)
    shutil.copy(media / "new.wav", media / "new2.wav")
    counts = avcl.index.update(out, embedder)
    tally = {k: counts[k] for k in ("new", "changed", "renamed", "copied", "removed", "unchanged")}
    assert tally == {"new": 1, "changed": 1, "renamed": 1, "copied": 2, "removed": 1, "unchanged": 3}
    assert sorted({name for name, _, _ in embedder.clips}) == ["01.wav", "new.wav"]
    avcl.index.build(media, tmp_path / "fresh", Bands(), segment=2, hop=1)
    assert everything(out) == everything(tmp_path / "fresh")
    with Index.open(out) as index:
        folders = {h.info["duration"] for h in index.search(np.ones(12), "audio", k=99, where="folder = 'c'")}
        assert len(folders) == 2


def test_quick_trusts_size_and_time(tmp_path, media):
    out = tmp_path / "i"
    avcl.index.build(media, out, Bands())
    keep = os.stat(media / "b" / "01.wav")
    tone(media / "b" / "01.wav", 1.7, 77)
    os.utime(media / "b" / "01.wav", ns=(keep.st_atime_ns, keep.st_mtime_ns))
    assert avcl.index.update(out, Bands(), quick=True)["unchanged"] == 6
    assert avcl.index.update(out, Bands())["changed"] == 1


def test_a_file_that_breaks_leaves_the_index(tmp_path, media):
    out = tmp_path / "i"
    avcl.index.build(media, out, Bands())
    (media / "a" / "00.wav").write_text("broken now")
    counts = avcl.index.update(out, Bands())
    assert (counts["files"], counts["skipped"], counts["changed"]) == (5, 1, 1)
    assert "a/00.wav" not in {r[0] for r in spans(out)}


def test_an_empty_disk_does_not_empty_the_index(tmp_path, media):
    out = tmp_path / "i"
    avcl.index.build(media, out, Bands())
    media.rename(tmp_path / "elsewhere")
    with pytest.raises(MissingFile):
        avcl.index.update(out, Bands())
    media.mkdir()
    with pytest.raises(DataError, match="nothing was removed"):
        avcl.index.update(out, Bands())
    embedder = Bands()
    counts = avcl.index.update(out, embedder, media=tmp_path / "elsewhere")
    assert (counts["unchanged"], embedder.clips) == (6, [])
    assert avcl.index.info(out)["media"] == str(tmp_path / "elsewhere")


def test_removed_files_come_back_with_update(tmp_path, media):
    out = tmp_path / "i"
    avcl.index.build(media, out, Bands())
    before = everything(out)
    avcl.index.remove(out, [media / "a" / "00.wav", "b"])
    assert avcl.index.info(out)["files"] == 2
    assert avcl.index.update(out, Bands())["new"] == 4
    assert everything(out) == before


def test_vectors_added_by_hand_stay(tmp_path, media):
    out = tmp_path / "i"
    avcl.index.build(media, out, Bands())
    with Index.open(out) as index:
        index.add([("elsewhere/x.wav", 0, 2)], {"audio": np.ones((1, 12))})
    counts = avcl.index.update(out, Bands())
    assert counts["removed"] == 0
    assert ("elsewhere/x.wav", 0.0, 2.0) in spans(out)


def test_approximate_index_of_media(tmp_path, media):
    avcl.index.build(media, tmp_path / "h", Bands(), factory="HNSW8", segment=0.5, hop=0.25)
    avcl.index.build(media, tmp_path / "f", Bands(), segment=0.5, hop=0.25)
    assert avcl.index.info(tmp_path / "h")["exact"] is False
    assert everything(tmp_path / "h") == everything(tmp_path / "f")


# -------------------------------------------------------------------------------------------------------------- columns
def test_columns(tmp_path, media):
    out, table = tmp_path / "i", tmp_path / "tracks.csv"
    table.write_text(
        f'license,file,bpm,"note"\nCC-BY,a/00.wav,112,\nowned,{media}/b/01.wav,84.5,"a, b"\n'
        ",a/02.wav,,x\nCC0,none.wav,1,\n"
    )
    avcl.index.build(media, out, Bands(), columns=table)
    with Index.open(out) as index:
        query = np.ones(12)
        hits = index.search(query, "audio", k=99, where="license IN ('CC-BY', 'owned')")
        assert {h.path for h in hits} == {"a/00.wav", "b/01.wav"}
        assert {h.info["bpm"] for h in hits} == {112, 84.5}
        assert {h.path for h in index.search(query, "audio", k=99, where="license IS NULL AND note = 'x'")} == {
            "a/02.wav"
        }
        assert {h.path for h in index.search(query, "audio", k=99, where="bpm > 100")} == {"a/00.wav"}
        assert index.info()["columns"][-3:] == ["license", "bpm", "note"]
        with pytest.raises(ConfigError, match='Did you mean "license"'):
            index.search(query, "audio", where="licence = 'owned'")
        # Replaced while the index is open; kept by an update without columns.
        table.write_text("path,mood\na/00.wav,calm\n")
        avcl.index.update(out, Bands(), columns=table)
        avcl.index.update(out, Bands())
        assert {h.path for h in index.search(query, "audio", k=99, where="mood = 'calm'")} == {"a/00.wav"}
    for text, error in (
        ("", DataError),
        ("name,license\n", DataError),
        ("path,start\n", ConfigError),
        ("path,a b\n", ConfigError),
        ("path,a,A\n", ConfigError),
        ("path,a\nx\n", DataError),
        ("path,a\nx,1\nx,2\n", ConfigError),
        ("path,a\n\xff".encode("latin-1"), DataError),
    ):
        table.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(error):
            avcl.index.update(out, Bands(), columns=table)
    with pytest.raises(MissingFile):
        avcl.index.update(out, Bands(), columns=tmp_path / "no.csv")
    assert avcl.index.info(out)["columns"][-1] == "mood"


# --------------------------------------------------------------------------------------------- names, several processes
def test_odd_names(tmp_path):
    media = tmp_path / "m"
    for i, name in enumerate(
        ('it\'s "q"; --.wav', "Ünï çødé 日本.wav", "[x] *?.wav", "new\nline.wav", "a" * 200 + ".wav")
    ):
        tone(media / name, 1, i)
    tone(media / "bad.wav", 1, 9).rename(os.fsdecode(os.fsencode(str(media)) + b"/bad\xff.wav"))
    counts = avcl.index.build(media, tmp_path / "i", Bands())
    assert (counts["files"], counts["skipped"]) == (5, 1)
    assert avcl.index.info(tmp_path / "i")["skipped"] == {"E-NOFILE": 1}
    assert avcl.index.remove(tmp_path / "i", ["[x] *?.wav"])["removed_files"] == 1


def test_one_writer_and_readers_that_see_whole_commits(tmp_path, media, monkeypatch):
    """While files come in, a reader sees more and more, never half a file, and a second writer is refused."""
    from avcl.index import job

    monkeypatch.setattr(job, "BATCH", 1)
    out, seen, reader = tmp_path / "i", [], None
    truth = {f"{'ab'[i % 2]}/{i:02d}.wav": len(segments(1 + 0.7 * i, 2, 0.5)) for i in range(6)}

    def look(step):
        nonlocal reader
        reader = reader or Index.open(out)
        hits = reader.search(np.ones(12), "audio", k=1000)
        counted = {p: sum(h.path == p for h in hits) for p in {h.path for h in hits}}
        assert counted == {p: truth[p] for p in counted}
        seen.append(len(counted))
        with pytest.raises(LockedError):
            avcl.index.build(media, out, Bands(), segment=2, hop=0.5)
        with pytest.raises(LockedError):
            reader.remove(["a"])

    avcl.index.build(media, out, Bands(), segment=2, hop=0.5, progress=look)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert reader is not None
    reader.close()


def test_jobs_do_not_change_the_result(tmp_path, media):
    avcl.index.build(media, tmp_path / "1", Bands())
    avcl.index.build(media, tmp_path / "3", Bands(), jobs=3)
    assert everything(tmp_path / "1") == everything(tmp_path / "3")


def test_public_functions_are_not_shadowed_by_submodules():
    import importlib
    import pkgutil

    for module in pkgutil.iter_modules(avcl.index.__path__):
        importlib.import_module(f"avcl.index.{module.name}")
    for name in avcl.index.__all__:
        assert callable(getattr(avcl.index, name)), name
