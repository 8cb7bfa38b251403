"""Rows of media from a table: CSV, JSONL or Parquet.

Columns: ``id``, at least one of ``video`` ``audio`` ``image``, and where wanted ``text start end label split group``.
Further columns are kept as ``info``. Relative paths start at the table's folder. ``labels.txt`` beside the table, one
name a line, fixes the classes and their order; without it the classes are the sorted labels of the table.
"""

from __future__ import annotations

import csv
import difflib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avcl.data.labels import cell, check_ids, check_label, check_split, labels_file
from avcl.errors import DataError, ExtraError, MissingFile, did_you_mean

log = logging.getLogger("avcl.data")

FILES = ("video", "audio", "image")
COLUMNS = ("id", *FILES, "text", "start", "end", "label", "split", "group")
MANIFESTS = ("manifest.csv", "manifest.jsonl", "manifest.parquet")
MANIFEST_SUFFIXES = frozenset({".csv", ".jsonl", ".parquet"})


@dataclass(frozen=True, slots=True)
class Row:
    """One data item before it is decoded: files (absolute), seconds of the file's clock, and what is known about it.

    ``video``: a file with pictures and, where no ``audio`` file is given, the sound · ``image``: a still, which counts
    as video with one step · ``group`` (default: the id): what may not be split between train and test.
    """

    id: str
    video: str | None = None
    audio: str | None = None
    image: str | None = None
    text: str | None = None
    start: float | None = None
    end: float | None = None
    label: str | None = None
    split: str | None = None
    group: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.id)

    @property
    def file(self) -> str:
        """The file that stands for this row in messages."""
        return self.video or self.audio or self.image or self.id


@dataclass(frozen=True)
class Table:
    """Rows in the order of the source; ``labels`` from labels.txt, or None; ``where``: the file or folder they came
    from.
    """

    rows: tuple[Row, ...]
    labels: tuple[str, ...] | None
    where: str


def read_manifest(path: str | Path) -> Table:
    """The rows of a CSV, JSONL or Parquet table.

    MissingFile: there is no such file. DataError, LabelError: a missing column, no rows, and with the line: a cell that
    is no number, an end before its start, an unknown split, a label that labels.txt does not know, an id that stands
    twice. ExtraError: Parquet without pyarrow.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile("there is no such file.", file=path)
    if not os.access(path, os.R_OK):
        raise MissingFile("may not be read.", file=path, hint="Check its permissions.")
    readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f'"{path.suffix}" is not a manifest.', file=path, hint=f"Known: {', '.join(readers)}.")
    classes = labels_file(path.parent)
    rows: list[Row] = []
    lines: list[int] = []
    for line, values in reader(path):
        if not rows:
            _check_columns(values, path)
        rows.append(_row(values, path, line, classes))
        lines.append(line)
    if not rows:
        raise DataError("has no rows.", file=path)
    check_ids([row.id for row in rows], [f"line {n}" for n in lines], path)
    _check_splits_complete(rows, lines, path)
    return Table(tuple(rows), classes, str(path))


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            twice = [name for i, name in enumerate(header) if name in header[:i]]
            if twice:
                raise DataError(f'the column "{twice[0]}" stands twice.', file=f"{path}:1")
            for values in reader:
                if not any(value.strip() for value in values):
                    continue
                if len(values) > len(header):
                    raise DataError(
                        f"{len(values)} cells, but {len(header)} columns.",
                        file=f"{path}:{reader.line_num}",
                        hint="Put cells that hold a comma into double quotes.",
                    )
                yield reader.line_num, dict(zip(header, values, strict=False))
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text.", file=path, hint="Save it as UTF-8.") from error
    except csv.Error as error:
        raise DataError(f"is not CSV: {error}.", file=f"{path}:{reader.line_num}") from error


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    values = json.loads(line)
                except ValueError as error:
                    raise DataError("is not JSON.", file=f"{path}:{number}", hint="One object a line.") from error
                if not isinstance(values, dict):
                    raise DataError("is not a JSON object.", file=f"{path}:{number}", hint="One object a line.")
                yield number, values
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text.", file=path, hint="Save it as UTF-8.") from error


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ExtraError("Parquet needs pyarrow.", file=path, hint='Run: pip install "avcl[parquet]"') from error
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError("is not a Parquet file, or is damaged.", file=path) from error
    yield from enumerate(table.to_pylist(), 1)


def _check_columns(values: Mapping[str, Any], path: Path) -> None:
    """The columns of the first row: what must be there, and a warning for a column that is nearly one of ours."""
    names = list(values)
    has = f"It has: {', '.join(names) or 'nothing'}."
    if "id" not in values:
        raise DataError('there is no column "id".', file=path, hint=f"{_nearly('id', names)}{has}")
    if not any(name in values for name in FILES):
        guess = "".join(_nearly(name, names) for name in FILES)
        raise DataError("there is no column with files: video, audio or image.", file=path, hint=f"{guess}{has}")
    for name in names:
        near = difflib.get_close_matches(name.lower(), COLUMNS, n=1, cutoff=0.75) if name not in COLUMNS else []
        if near and near[0] not in values:
            log.warning('%s: the column "%s" is kept as info. Did you mean "%s"?', path, name, near[0])


def _nearly(wanted: str, names: list[str]) -> str:
    near = difflib.get_close_matches(wanted, [name.lower() for name in names], n=1, cutoff=0.6)
    original = next((name for name in names if near and name.lower() == near[0]), None)
    return "" if original is None else f'Is it "{original}"? '


def _row(values: Mapping[str, Any], path: Path, line: int, classes: tuple[str, ...] | None) -> Row:
    where = f"{path}:{line}"
    for name in COLUMNS:
        if isinstance(values.get(name), list | dict):
            raise DataError(f"{name} is a list or an object, not one value.", file=where)
    given = {name: cell(values.get(name)) for name in COLUMNS}
    id = given["id"]
    if id is None:
        raise DataError("the id is empty.", file=where)
    files = {name: _file(given[name], path.parent) for name in FILES}
    if not any(files.values()):
        raise DataError("the row names no file (video, audio or image).", file=where)
    start, end = (_seconds(given[name], name, where) for name in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise DataError(f"end {end:g} is not after start {start or 0.0:g}.", file=where)
    check_label(given["label"], classes, where)
    check_split(given["split"], where)
    return Row(
        id=id,
        **files,
        text=given["text"],
        start=start,
        end=end,
        label=given["label"],
        split=given["split"],
        group=given["group"] or "",
        info={str(k): v for k, v in values.items() if k not in COLUMNS},
    )


def _file(value: str | None, folder: Path) -> str | None:
    return None if value is None else str((folder / value).absolute())


def _seconds(value: str | None, name: str, where: str) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise DataError(f'{name} "{value}" is not a number of seconds.', file=where, hint="Write it as 12.5.")
    return seconds


def _check_splits_complete(rows: list[Row], lines: list[int], path: Path) -> None:
    """A split for some rows only would drop the others in silence."""
    without = [line for row, line in zip(rows, lines, strict=True) if row.split is None]
    if without and len(without) < len(rows):
        raise DataError(
            f"{len(without)} of {len(rows)} rows have no split.",
            file=f"{path}:{without[0]}",
            hint="Give every row train, val or test, or leave the column out.",
        )


def unknown_column(name: str, rows: tuple[Row, ...], where: str) -> DataError:
    """The error of ``split_by`` for a column that the rows do not have."""
    known = {key for row in rows for key in row.info} | {"group", "label", "id"}
    return DataError(f'there is no column "{name}" to split by.', file=where, hint=did_you_mean(name, known))
