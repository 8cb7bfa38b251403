"""Manifests: every format, every mistake with file and line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from avcl.data import load_data, read_manifest
from avcl.errors import DataError, LabelError, MissingFile

ROWS = [
    {
        "id": "a",
        "video": "v/a.mp4",
        "start": 0.5,
        "end": 2,
        "label": "dog",
        "split": "train",
        "group": "g1",
        "license": "CC-BY",
    },
    {
        "id": "b",
        "video": "v/b.mp4",
        "start": None,
        "end": None,
        "label": "cat",
        "split": "test",
        "group": None,
        "license": "x",
    },
]


def write(folder: Path, kind: str, rows: list[dict]) -> Path:
    path = folder / f"manifest.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    elif kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        lines = [",".join(rows[0])] + [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_same_rows_from_every_format(tmp_path: Path, kind: str) -> None:
    first, second = read_manifest(write(tmp_path, kind, ROWS)).rows
    assert (first.id, first.video) == ("a", str(tmp_path / "v" / "a.mp4"))
    assert (first.start, first.end, first.label, first.split, first.group) == (0.5, 2.0, "dog", "train", "g1")
    assert first.info == {"license": "CC-BY"}
    assert (second.start, second.end, second.group) == (None, None, "b")
    assert second.audio is second.image is second.text is None


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("id,vidoe\na,a.mp4\n", "", ["no column with files", '"vidoe"']),
        ("name,video\na,a.mp4\n", "", ['no column "id"', "name, video"]),
        ("id,video\na,a.mp4\na,b.mp4\n", "", ['the id "a" stands twice (line 2 and line 3)']),
        ("id,video,split\na,a.mp4,train\nb,b.mp4,tets\n", ":3", ['"tets" is not a split', 'Did you mean "test"?']),
        ("id,video,split\na,a.mp4,train\nb,b.mp4,\n", ":3", ["1 of 2 rows have no split"]),
        ("id,video,start\na,a.mp4,1\nb,b.mp4,1:20\n", ":3", ['start "1:20" is not a number of seconds']),
        ("id,video,start\na,a.mp4,nan\n", ":2", ["is not a number of seconds"]),
        ("id,video,start\na,a.mp4,-1\n", ":2", ["is not a number of seconds"]),
        ("id,video,start,end\na,a.mp4,2,2\n", ":2", ["end 2 is not after start 2"]),
        ("id,video,end\na,a.mp4,0\n", ":2", ["end 0 is not after start 0"]),
        ("id,video\n", "", ["has no rows"]),
        ("", "", ["has no rows"]),
        ("id,video\na,a.mp4,extra\n", ":2", ["3 cells, but 2 columns"]),
        ("id,video,video\na,a.mp4,b.mp4\n", ":1", ['the column "video" stands twice']),
        ("id,video\n,a.mp4\n", ":2", ["the id is empty"]),
        ("id,video\na,\n", ":2", ["names no file"]),
        ('id,video\na,"a.mp4\n', "", ["is not CSV"]),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, text: str, line: str, words: list[str]) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert caught.value.code == "E-DATA"
    assert str(caught.value).startswith(f"E-DATA {path}{line}")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_file_fixes_classes_and_finds_typos(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("owl_call\nfox\n\nbat\n")
    path = tmp_path / "labeled.csv"
    path.write_text("id,video,label\na,a.mp4,bat\nb,b.mp4,owl_call\n")
    assert read_manifest(path).labels == ("owl_call", "fox", "bat")
    path.write_text("id,video,label\na,a.mp4,bat\nb,b.mp4,owl_cal\n")
    with pytest.raises(LabelError) as caught:
        read_manifest(path)
    assert str(caught.value) == f'E-LABEL {path}:3: "owl_cal" is not in labels.txt. Did you mean "owl_call"?'


def test_lines_are_those_of_the_file_with_newlines_in_cells(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text('id,video,text,start\na,a.mp4,"two\nlines",0\n\nb,b.mp4,,x\n')
    with pytest.raises(DataError, match=r"m\.csv:5: start"):
        read_manifest(path)


def test_a_mark_at_the_start_and_blanks_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes("\ufeffid , video,label\n a , ä.mp4 , 3 \n".encode())
    (row,) = read_manifest(path).rows
    assert (row.id, row.video, row.label) == ("a", str(tmp_path / "ä.mp4"), "3")


def test_a_column_that_is_nearly_ours_is_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m.csv"
    path.write_text("id,video,lable\na,a.mp4,dog\n")
    with caplog.at_level(logging.WARNING, "avcl.data"):
        (row,) = read_manifest(path).rows
    assert row.label is None
    assert row.info == {"lable": "dog"}
    assert 'Did you mean "label"?' in caplog.text


def test_whole_numbers_with_gaps_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": 7, "video": "a.mp4", "label": 3.0}\n{"id": 8, "video": "b.mp4", "label": null}\n')
    rows = read_manifest(path).rows
    assert [(row.id, row.label) for row in rows] == [("7", "3"), ("8", None)]


def test_not_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        read_manifest(tmp_path / "none.csv")
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": "a", "video": "a.mp4"}\n{oops\n')
    with pytest.raises(DataError, match=r"m\.jsonl:2: is not JSON"):
        read_manifest(path)
    path.write_text('["a"]\n')
    with pytest.raises(DataError, match=r"m\.jsonl:1: is not a JSON object"):
        read_manifest(path)
    path = tmp_path / "m.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a Parquet file"):
        read_manifest(path)
    path = tmp_path / "m.csv"
    path.write_bytes(b"id,video\na,\xff\xfe.mp4\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_manifest(path)
    with pytest.raises(DataError, match="not a manifest"):
        read_manifest(write(tmp_path, "csv", ROWS).rename(tmp_path / "m.xlsx"))


def test_a_cell_is_one_value(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": 1, "video": ["a.mp4", "b.mp4"]}\n')
    with pytest.raises(DataError, match=r"m\.jsonl:1: video is a list"):
        read_manifest(tmp_path / "m.jsonl")


def test_segments_of_one_file_on_both_sides_are_said_and_can_be_kept_together(tmp_path: Path, caplog) -> None:
    rows = [f"{f}-{s},{f}.mp4,{f}.wav,{s},{s + 1}" for f in range(8) for s in range(3)]
    (tmp_path / "m.csv").write_text("id,video,audio,start,end\n" + "\n".join(rows) + "\n")
    with caplog.at_level(logging.WARNING, logger="avcl.data"):
        load_data(tmp_path / "m.csv")
    assert any("rows in train and in test" in message for message in caplog.messages)
    caplog.clear()
    splits = load_data(tmp_path / "m.csv", split_by="video")
    assert not caplog.messages
    assert not {r.video for r in splits.train.rows} & {r.video for r in splits.test.rows}
    with pytest.raises(DataError, match="image"):
        load_data(tmp_path / "m.csv", split_by="image")
