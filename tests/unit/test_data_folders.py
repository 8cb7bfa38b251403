"""Folders: each layout by its rule; what cannot be told is an error."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from avcl.data import load_data, read_folder
from avcl.errors import ConfigError, DataError, LabelError, MissingFile


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")  # nothing here is opened
    return root


def rows(root: Path, layout: str = "auto") -> list[tuple]:
    return [(row.id, row.label, row.split) for row in read_folder(root, layout).rows]


def test_plain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "b.mp4", "a.MOV", "sub/c.webm", "cover.jpg", "notes.txt", ".hidden.mp4", ".git/d.mp4")
    with caplog.at_level(logging.INFO, "avcl.data"):
        assert rows(tmp_path) == [("a", None, None), ("b", None, None), ("sub/c", None, None)]
    assert "read as layout plain" in caplog.text
    assert "1 files beside the 3 videos were passed over" in caplog.text
    assert read_folder(tmp_path).rows[0].video == str(tmp_path / "a.MOV")


def test_files_that_differ_in_the_suffix_alone_are_two_rows_of_one_group(tmp_path: Path) -> None:
    found = read_folder(make(tmp_path, "a.mp4", "a.mov", "b.mp4")).rows
    assert [(row.id, row.group) for row in found] == [("a.mov", "a"), ("a.mp4", "a"), ("b", "b")]


def test_plain_of_sounds_and_of_pictures(tmp_path: Path) -> None:
    (row,) = read_folder(make(tmp_path / "s", "a.wav")).rows
    assert (row.audio, row.video) == (str(tmp_path / "s" / "a.wav"), None)
    (row,) = read_folder(make(tmp_path / "p", "a.png")).rows
    assert row.image == str(tmp_path / "p" / "a.png")
    with pytest.raises(DataError, match="nothing says which belong together"):
        read_folder(make(tmp_path / "both", "dog_audio.wav", "dog_image.jpg"))


def test_classes(tmp_path: Path) -> None:
    make(tmp_path, "dog/1.mp4", "dog/deep/2.mp4", "cat/1.mp4")
    assert rows(tmp_path) == [("cat/1", "cat", None), ("dog/1", "dog", None), ("dog/deep/2", "dog", None)]
    (tmp_path / "labels.txt").write_text("dog\ncow\n")
    with pytest.raises(LabelError, match='"cat" is not in labels'):
        read_folder(tmp_path)


def test_splits_of_classes(tmp_path: Path) -> None:
    make(tmp_path, "train/dog/1.mp4", "train/cat/1.mp4", "test/dog/9.mp4")
    expected = [("test/dog/9", "dog", "test"), ("train/cat/1", "cat", "train"), ("train/dog/1", "dog", "train")]
    assert rows(tmp_path) == expected


def test_splits_of_files_and_of_pairs(tmp_path: Path) -> None:
    make(tmp_path, "train/1.mp4", "val/2.mp4", "test/audio/3.wav", "test/images/3.png")
    assert rows(tmp_path) == [("test/3", None, "test"), ("train/1", None, "train"), ("val/2", None, "val")]


def test_a_name_beside_split_names_is_asked_about(tmp_path: Path) -> None:
    make(tmp_path, "train/1.mp4", "test/2.mp4", "valid/3.mp4")
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path)
    assert '"valid" stands beside the split folders test, train' in str(caught.value)
    assert 'Did you mean "val"?' in str(caught.value)
    assert {label for _, label, _ in rows(tmp_path, "classes")} == {"train", "test", "valid"}


def test_a_class_may_be_named_train(tmp_path: Path) -> None:
    make(tmp_path, "train/1.mp4", "bus/2.mp4")
    assert rows(tmp_path) == [("bus/2", "bus", None), ("train/1", "train", None)]


def test_paired_by_stem(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(
        tmp_path,
        "audio/a.wav",
        "audio/b.flac",
        "video/a.mp4",
        "video/b.mp4",
        "video/c.mp4",
        "text/a.txt",
        "extra/z.mp4",
    )
    with caplog.at_level(logging.WARNING, "avcl.data"):
        a, b, c = read_folder(tmp_path).rows
    assert (a.id, a.audio, a.video, a.text) == ("a", str(tmp_path / "audio/a.wav"), str(tmp_path / "video/a.mp4"), "x")
    assert (b.audio, b.text) == (str(tmp_path / "audio/b.flac"), None)
    assert not Path(str(c.audio)).exists()
    assert '2 of 3 rows lack a partner (first: "b")' in caplog.text
    assert "1 media files outside" in caplog.text


def test_paired_with_classes_and_images(tmp_path: Path) -> None:
    make(tmp_path, "audio/dog/1.wav", "images/dog/1.jpg", "audio/cat/1.wav", "images/cat/1.jpg")
    cat, dog = read_folder(tmp_path).rows
    assert (cat.label, dog.id, dog.label) == ("cat", "dog/1", "dog")
    assert str(dog.image).endswith("images/dog/1.jpg")


def test_paired_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file name is in all of video/, audio/"):
        read_folder(make(tmp_path / "none", "audio/a.wav", "video/b.mp4"))
    with pytest.raises(DataError, match='two files are named "a"'):
        read_folder(make(tmp_path / "two", "audio/a.wav", "audio/a.mp3", "video/a.mp4"))


def test_mistakes_of_the_whole(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not one media file"):
        read_folder(make(tmp_path / "empty", "readme.txt"))
    with pytest.raises(DataError, match=r'the id "a\.mp4" stands twice'):
        read_folder(make(tmp_path / "twice", "a.mp4", "a.webm", "a.mp4.mov"))
    with pytest.raises(DataError, match="stands in no class folder"):
        read_folder(make(tmp_path / "loose", "dog/a.mp4", "b.mp4"), "classes")
    with pytest.raises(DataError, match='"dog" is not a split'):
        read_folder(tmp_path / "loose", "splits")


def test_load_data_finds_the_kind_of_a_path(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match='Did you mean "clips"'):
        load_data(make(tmp_path, "clips/a.mp4") / "clip")
    with pytest.raises(MissingFile):
        load_data("nowhere/at/all")
    with pytest.raises(ConfigError, match='Did you mean "classes"'):
        load_data(tmp_path, layout="class")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"is not a set of data\. Known: \.csv"):
        load_data(make(tmp_path, "x.doc") / "x.doc")
    with pytest.raises(DataError, match="Give its folder"):
        load_data(tmp_path / "clips" / "a.mp4")
    with pytest.raises(ConfigError, match='Did you mean "retrieval"'):
        load_data("world:retrival")
    with pytest.raises(DataError, match="holds no manifest"):
        load_data(tmp_path, layout="manifest")
    make(tmp_path, "m/manifest.csv", "m/manifest.jsonl")
    with pytest.raises(DataError, match=r"manifest\.csv and manifest\.jsonl"):
        load_data(tmp_path / "m")
    with pytest.raises(DataError, match="one array; two or more"):
        load_data(make(tmp_path, "audio.npy") / "audio.npy")
