"""Reading official lists: lines, CSV and JSON, each fault a DataError with its file and line."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avcl.errors import DataError


def pick(folder: Path, *names: str) -> Path | None:
    """The first of ``names`` that is a file in ``folder``, or in a folder of it up to two deep."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = (path for above in ("*", "*/*") for name in names for path in sorted(folder.glob(f"{above}/{name}")))
    return next(found, None)


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file:line", text) of the lines that are not blank. DataError: not UTF-8."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text.", file=path) from error


def cells(path: Path, count: int, form: str, *, delimiter: str = ",") -> Iterator[tuple[str, list[str]]]:
    """("file:line", cells) of a CSV file of ``count`` columns; ``form`` says in the DataError what a line should be."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            for values in reader:
                where = f"{path}:{reader.line_num}"
                if not any(values):
                    continue
                if len(values) != count:
                    raise DataError(f"is not {form}.", file=where)
                yield where, [value.strip() for value in values]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError("is not CSV in UTF-8.", file=path) from error


def json_file(path: Path) -> Any:
    """The value of a JSON file. DataError, with the line, where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text.", file=path) from error
    except json.JSONDecodeError as error:
        raise DataError(f"is not JSON: {error.msg}.", file=f"{path}:{error.lineno}") from error


def member(value: Any, key: str, kind: type | tuple[type, ...], where: str, path: Path) -> Any:
    """``value[key]`` of a JSON object, checked; ``where``: its place, such as "videos[3]"."""
    if not isinstance(value, dict) or key not in value or not isinstance(value[key], kind):
        wanted = kind[0] if isinstance(kind, tuple) else kind
        words = {str: "text", list: "a list", dict: "an object", int: "a number", float: "a number"}
        raise DataError(f'{where} has no "{key}" that is {words[wanted]}.', file=path)
    return value[key]


def members(value: Any, key: str, path: Path) -> Iterator[tuple[str, Any]]:
    """("key[i]", item) of a list in a JSON object."""
    return ((f"{key}[{i}]", item) for i, item in enumerate(member(value, key, list, "the file", path)))


def number(text: str, what: str, where: str) -> int:
    """A whole number. DataError where it is none."""
    if not (text.isascii() and text.isdecimal()):
        raise DataError(f'{what} "{text}" is not a whole number.', file=where)
    return int(text)


def text_file(path: Path) -> str:
    """All of a text, its blanks as one each. DataError: not UTF-8."""
    return " ".join(itertools.chain.from_iterable(line.split() for _, line in lines(path)))
