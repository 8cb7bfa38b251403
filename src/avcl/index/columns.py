"""The user's columns: a CSV with one row per file, whose columns can be used in ``where`` and come back with every
hit.
"""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

from avcl.errors import ConfigError, DataError, MissingFile, did_you_mean
from avcl.index.rows import OWN_COLUMNS

Table = list[tuple[Any, ...]]


def read_columns(path: str | Path, media: Path) -> tuple[list[str], Table]:
    """Names of the columns beside ``path``, and one row (path, value, …) per file; empty cells are NULL.

    A column whose every cell is a number holds numbers. Paths may be absolute or relative to the media folder.
    ``path`` (or ``file``) is required: DataError. ConfigError for names that SQLite cannot use plainly or that are
    taken.
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = [row for row in csv.reader(file) if row]
    except FileNotFoundError:
        raise MissingFile("there is no such file.", file=path) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"this is not a readable CSV file ({type(error).__name__}).", file=path) from None
    if not table:
        raise DataError("the file is empty.", file=path, hint="Its first line names the columns; one of them is path.")
    names = [name.strip() for name in table[0]]
    key = next((i for i, name in enumerate(names) if name.lower() in ("path", "file")), None)
    if key is None:
        raise DataError('there is no column "path".', file=path, hint=did_you_mean("path", set(names)))
    own = [name for i, name in enumerate(names) if i != key]
    taken = {name.lower() for name in OWN_COLUMNS} | {"id"}
    for name in own:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(f'"{name}" cannot be a column.', file=path, hint="Use letters, digits and underscores.")
        if name.lower() in taken:
            raise ConfigError(f'a column "{name}" exists already.', file=path, hint="Give it another name.")
        taken.add(name.lower())
    for number, row in enumerate(table[1:], 2):
        if len(row) != len(names):
            raise DataError(f"line {number} has {len(row)} cells, not {len(names)}.", file=path)
    cells = [[row[i].strip() for row in table[1:]] for i in range(len(names)) if i != key]
    values = [_typed(column) for column in cells]
    paths = [_relative(row[key].strip(), media) for row in table[1:]]
    return own, list(zip(paths, *values, strict=True))


def _typed(column: list[str]) -> list[Any]:
    for kind in (int, float):
        try:
            numbers = [None if cell == "" else kind(cell) for cell in column]
        except ValueError:
            continue
        if all(n is None or (math.isfinite(n) and abs(n) < 2**63) for n in numbers):
            return numbers
    return [None if cell == "" else cell for cell in column]


def _relative(path: str, media: Path) -> str:
    if Path(path).is_absolute() and Path(path).is_relative_to(media):
        return Path(path).relative_to(media).as_posix()
    return Path(path).as_posix()
