"""Sets of media files: which rows of the official lists have their files in a folder, and a manifest of those."""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avcl.data.official import Check, Column, Entry, OfficialSet, Part, checked, existing
from avcl.data.official_lists import text_file
from avcl.errors import ConfigError, DataError
from avcl.files import write_atomic
from avcl.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES

SUFFIXES: Mapping[Column, frozenset[str]] = {
    "video": VIDEO_SUFFIXES,
    "audio": AUDIO_SUFFIXES,
    "image": IMAGE_SUFFIXES,
    "text": frozenset({".txt"}),
}
COLUMNS = ("video", "audio", "image", "text", "start", "end", "label", "split", "group")


@dataclass(frozen=True, kw_only=True)
class MediaSet(OfficialSet):
    """A set of files. ``read(folder)`` yields the entries, none where no list is there. ``by_class``: its lists name
    files of one kind each, which are joined by their label: the n-th picture of a class with its n-th sound.
    """

    read: Callable[[Path], Iterable[Entry]]
    by_class: bool = False

    def entries(self, folder: str | Path) -> Iterator[Entry]:
        rows = iter(self.read(existing(folder)))
        first = next(rows, None)
        if first is None:
            raise self.no_list(Path(folder))
        yield first
        yield from rows

    def verify(self, folder: str | Path, lists: str | Path | None = None) -> Iterator[Check]:
        files = Files(existing(folder))
        listed: dict[str, dict[str, bool]] = {part: {} for part in self.counts}
        for entry in self.read(existing(folder if lists is None else lists)):
            items = listed.setdefault(entry.part, {})
            items[entry.item] = items.get(entry.item, False) or files.of(entry) is not None
        for part, items in listed.items():
            found = sum(items.values())
            gone = (item for item, there in items.items() if not there)
            yield checked(part, self.counts.get(part), len(items), found, gone)

    def manifest(
        self, folder: str | Path, media: str | Path, out: str | Path, *, only: Sequence[str] = ()
    ) -> dict[str, int]:
        self.check_only(only)
        if Path(out).suffix.lower() != ".csv":
            raise ConfigError("a manifest is written as .csv.", file=out)
        files = Files(existing(media))
        rows: dict[str, dict[str, str]] = {}
        missing = no_split = 0
        for entry in self.entries(folder):
            if entry.id in rows or (only and entry.part not in only):
                continue
            found = files.of(entry)
            if found is None:
                missing += 1
            else:
                rows |= dict(_rows(entry, found))
        if any(row.get("split") for row in rows.values()):
            no_split = sum(not row.get("split") for row in rows.values())
            rows = {id: row for id, row in rows.items() if row.get("split")}
        alone = 0
        if self.by_class:
            rows, alone = _joined(rows)
        if not rows:
            raise DataError(f"holds not one file of {self.name}.", file=media, hint=f"See: avcl verify {self.name}.")
        _write(rows, Path(out))
        extra = {"in no split": no_split, "without a partner": alone}
        return {"rows": len(rows), "missing": missing} | {key: n for key, n in extra.items() if n}


class Files:
    """The media files below a folder, found by the end of their path without suffix."""

    def __init__(self, folder: Path):
        self._stems: dict[Column, dict[str, list[tuple[tuple[str, ...], Path]]]]
        self._stems = {column: defaultdict(list) for column in SUFFIXES}
        self._folders: dict[Column, dict[str, list[tuple[tuple[str, ...], Path]]]]
        self._folders = {column: defaultdict(list) for column in SUFFIXES}
        for top, folders, names in os.walk(folder.absolute()):
            folders.sort()
            for name in sorted(names):
                stem, suffix = os.path.splitext(name)
                for column, suffixes in SUFFIXES.items():
                    if suffix.lower() in suffixes:
                        path = Path(top, name)
                        self._stems[column][stem].append((path.parts[:-1], path))
                        for depth, above in enumerate(path.parts[:-1]):
                            if depth + 1 >= len(folder.absolute().parts):
                                self._folders[column][above].append((path.parts[:depth], path))

    def one(self, column: Column, name: str) -> Path | None:
        """The first file whose path ends in ``name``."""
        *above, stem = name.split("/")
        return next((path for parts, path in self._stems[column].get(stem, ()) if _ends(parts, above)), None)

    def below(self, column: Column, name: str) -> list[Path]:
        """All files at any depth in the folder ``name``."""
        *above, last = name.rstrip("/").split("/")
        return [path for parts, path in self._folders[column].get(last, ()) if _ends(parts, above)]

    def of(self, entry: Entry) -> list[tuple[Column, list[Path], bool]] | None:
        """For each part of ``entry``: its column, its files, and whether they are a longer recording; None where one is
        missing. A row of text alone is there."""
        found: list[tuple[Column, list[Path], bool]] = []
        for part in entry.media:
            columns: tuple[Column, ...] = (part.column, "audio") if part.sound else (part.column,)
            hit = next((hit for column in columns if (hit := self._part(part, column)) is not None), None)
            if hit is None:
                return None
            found.append(hit)
        return found

    def _part(self, part: Part, column: Column) -> tuple[Column, list[Path], bool] | None:
        for long, names in ((False, part.names), (True, part.recording)):
            for name in names:
                one = None if name.endswith("/") else self.one(column, name)
                paths = self.below(column, name) if name.endswith("/") else [one] if one is not None else []
                if paths:
                    return column, paths, long
        return None


def _ends(parts: Sequence[str], above: Sequence[str]) -> bool:
    return not above or list(parts[-len(above) :]) == list(above)


def _rows(entry: Entry, found: list[tuple[Column, list[Path], bool]]) -> Iterator[tuple[str, dict[str, str]]]:
    """(id, row) of an entry; several where it stands for a folder."""
    row = {"text": entry.text, "label": entry.label, "split": entry.split, "group": entry.group, **entry.info}
    if any(long for _, _, long in found):
        row |= {"start": _seconds(entry.start), "end": _seconds(entry.end)}
    many = max((len(paths) for _, paths, _ in found), default=1)
    for i in range(many):
        files = {
            str(column): text_file(path) if column == "text" else str(path.resolve())
            for column, path in ((column, paths[i % len(paths)]) for column, paths, _ in found)
        }
        yield (entry.id if many == 1 else f"{entry.id}/{i:05d}"), {**row, **files}


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _joined(rows: Mapping[str, dict[str, str]]) -> tuple[dict[str, dict[str, str]], int]:
    """Rows of one kind each, joined within split and label: the longest list decides, shorter ones repeat. Also how
    many rows of a class lack a kind that the set has."""
    kinds: tuple[str, ...] = ("video", "audio", "image", "text")
    places: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for id, row in rows.items():
        for kind in kinds:
            if row.get(kind):
                places[row.get("split", ""), row.get("label", "")][kind].append(id)
    used = {kind for lists in places.values() for kind in lists}
    joined: dict[str, dict[str, str]] = {}
    alone = 0
    for lists in places.values():
        if set(lists) != used:
            alone += sum(map(len, lists.values()))
            continue
        longest = max(lists, key=lambda kind: len(lists[kind]))
        for i, id in enumerate(lists[longest]):
            joined[id] = dict(rows[id])
            for kind, ids in lists.items():
                joined[id][kind] = rows[ids[i % len(ids)]][kind]
    return joined, alone


def _write(rows: Mapping[str, Mapping[str, str]], out: Path) -> None:
    """A manifest with the columns that some row fills."""
    filled = {key for row in rows.values() for key, value in row.items() if value}
    columns = ["id", *(c for c in COLUMNS if c in filled), *sorted(filled - set(COLUMNS))]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for id, row in rows.items():
        writer.writerow({**row, "id": id})
    write_atomic(out, text.getvalue())
