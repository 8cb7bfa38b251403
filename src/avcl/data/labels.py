"""Class names: how cells become names, names become numbers, and how a name that is not known is reported."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from avcl.errors import DataError, LabelError, did_you_mean

SPLITS = ("train", "val", "test")


def cell(value: Any) -> str | None:
    """A cell as text: None, NaN, "" and blanks are None; 3 and 3.0 are "3"; bytes are UTF-8; text is stripped."""
    if value is None:
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, Real) and not isinstance(value, bool):
        if isinstance(value, Integral):
            return str(value)
        number = float(value)
        if math.isnan(number):
            return None
        return str(int(number)) if number.is_integer() else str(number)
    return str(value).strip() or None


def label_names(values: Iterable[str | None]) -> tuple[str, ...]:
    """The different names, sorted: as numbers where all are whole numbers ("2" before "10"), else as text."""
    names = {v for v in values if v is not None}
    if all(name.removeprefix("-").isdecimal() and name.isascii() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def label_numbers(values: Sequence[str | None], names: Sequence[str]) -> tuple[int, ...]:
    """The position of each value in ``names``; -1 for None."""
    number = {name: i for i, name in enumerate(names)}
    return tuple(-1 if value is None else number[value] for value in values)


def labels_file(folder: Path) -> tuple[str, ...] | None:
    """The classes of ``folder/labels.txt`` (one name a line, in this order), or None where there is no such file."""
    path = folder / "labels.txt"
    if not path.is_file():
        return None
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise LabelError("is not UTF-8 text.", file=path, hint="Save it as UTF-8.") from error
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise LabelError(f'"{twice[0]}" stands there twice.', file=path)
    return names


def check_label(label: str | None, names: Sequence[str] | None, where: str | Path) -> None:
    """LabelError with the nearest name where a labels file exists and does not hold ``label``."""
    if label is not None and names is not None and label not in names:
        raise LabelError(f'"{label}" is not in labels.txt.', file=where, hint=did_you_mean(label, set(names)))


def check_split(split: str | None, where: str | Path) -> None:
    """DataError with the nearest name where ``split`` is given and is not train, val or test."""
    if split is not None and split not in SPLITS:
        raise DataError(f'"{split}" is not a split.', file=where, hint=did_you_mean(split, SPLITS))


def check_ids(ids: Sequence[str], where: Sequence[str], file: str | Path) -> None:
    """DataError that names the first id that stands twice, and where (``where``: a word per row, such as "line 7")."""
    if len(set(ids)) == len(ids):
        return
    first: dict[str, int] = {}
    for row, id in enumerate(ids):
        if id in first:
            raise DataError(
                f'the id "{id}" stands twice ({where[first[id]]} and {where[row]}).',
                file=file,
                hint="Give every row its own id; what belongs together goes into `group`.",
            )
        first[id] = row
