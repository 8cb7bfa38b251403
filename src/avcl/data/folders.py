"""Rows of media from a folder without a manifest: four layouts, told apart by these rules and no others.

``layout="auto"`` takes the first that fits; name one to be sure. The choice is logged.

* ``paired``  sub-folders of these names hold media (at least one of them): ``video/`` ``audio/`` ``images/``, and
              ``text/`` with ``.txt`` files beside them. Files of the same stem (sub-folders included) are one row.
* ``plain``   media files stand in the folder itself: every video below it is a row. Where there are no videos, the
              sounds are the rows, or the pictures; sounds *and* pictures without videos are an error: nothing says
              what belongs together.
* ``splits``  every sub-folder with media is named ``train``, ``val`` or ``test``; each is read as paired, plain or
              classes.
* ``classes`` otherwise: the name of each sub-folder with media is the label of everything below it.

The id is the path below the folder without suffix (with it where two files differ in nothing else: they are one group).
Names that begin with a dot are passed over.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from avcl.data.labels import SPLITS, check_ids, check_label, labels_file
from avcl.data.manifest import Row, Table
from avcl.errors import DataError, did_you_mean
from avcl.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES

log = logging.getLogger("avcl.data")

Layout = Literal["auto", "manifest", "features", "plain", "classes", "splits", "paired"]
PAIRED = ("video", "audio", "images", "text")
_COLUMN = {"video": "video", "audio": "audio", "images": "image"}


def read_folder(folder: str | Path, layout: Layout = "auto") -> Table:
    """The rows of a folder of media files; DataError where nothing can be made of it, LabelError for a class not in
    labels.txt.
    """
    folder = Path(folder).absolute()
    files = media_files(folder)
    if not files:
        raise DataError("there is not one media file below this folder.", file=folder)
    chosen = recognize(folder, files) if layout == "auto" else layout
    log.info("%s: read as layout %s", folder, chosen)
    rows = _splits(folder, files) if chosen == "splits" else _rows(folder, files, chosen)
    rows = _told_apart(rows)
    classes = labels_file(folder)
    for row in rows:
        check_label(row.label, classes, row.file)
    check_ids([row.id for row in rows], [row.file for row in rows], folder)
    return Table(tuple(rows), classes, str(folder))


def media_files(folder: Path) -> list[Path]:
    """Every media file below ``folder``, relative to it, in a fixed order."""
    known = VIDEO_SUFFIXES | AUDIO_SUFFIXES | IMAGE_SUFFIXES
    found = []
    for root, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in known:
                found.append((Path(root) / name).relative_to(folder))
    return sorted(found)


def recognize(folder: Path, files: list[Path]) -> Layout:
    """The layout of a folder by the rules above; DataError where split names and other names stand side by side."""
    tops = {file.parts[0] for file in files if len(file.parts) > 1}
    if tops & set(_COLUMN):
        return "paired"
    if any(len(file.parts) == 1 for file in files):
        return "plain"
    if tops <= set(SPLITS):
        return "splits"
    if len(tops & set(SPLITS)) > 1:
        other = sorted(tops - set(SPLITS))[0]
        raise DataError(
            f'"{other}" stands beside the split folders {", ".join(sorted(tops & set(SPLITS)))}.',
            file=folder,
            hint=f'Is it a split? {did_you_mean(other, SPLITS)} Else give layout="classes".',
        )
    return "classes"


def _rows(folder: Path, files: list[Path], layout: str, prefix: str = "", split: str | None = None) -> list[Row]:
    if layout == "paired":
        return _paired(folder, files, prefix, split)
    if layout == "plain":
        chosen = _one_kind(folder, files)
        return [_row(folder, file, prefix, split=split) for file in chosen]
    if layout == "classes":
        loose = [file for file in files if len(file.parts) == 1]
        if loose:
            raise DataError(f'"{loose[0]}" stands in no class folder.', file=folder, hint='Or give layout="plain".')
        chosen = _one_kind(folder, files)
        return [_row(folder, file, prefix, split=split, label=file.parts[0]) for file in chosen]
    known = ("auto", "paired", "plain", "classes", "splits", "manifest", "features")
    raise DataError(f'"{layout}" is not a layout.', file=folder, hint=did_you_mean(layout, known))


def _splits(folder: Path, files: list[Path]) -> list[Row]:
    rows = []
    for split in sorted({file.parts[0] for file in files if len(file.parts) > 1}):
        if split not in SPLITS:
            raise DataError(f'"{split}" is not a split.', file=folder, hint=did_you_mean(split, SPLITS))
        part = folder / split
        below = [Path(*file.parts[1:]) for file in files if file.parts[0] == split]
        inner = recognize(part, below)
        rows += _rows(part, below, "classes" if inner == "splits" else inner, f"{split}/", split)
    return rows


def _one_kind(folder: Path, files: list[Path]) -> list[Path]:
    """The videos, or where there are none the sounds, or the pictures; what is passed over is logged."""
    kinds = [[f for f in files if f.suffix.lower() in s] for s in (VIDEO_SUFFIXES, AUDIO_SUFFIXES, IMAGE_SUFFIXES)]
    videos, sounds, pictures = kinds
    if not videos and sounds and pictures:
        raise DataError(
            f"{len(sounds)} sounds and {len(pictures)} pictures, but nothing says which belong together.",
            file=folder,
            hint="Put them into audio/ and images/ under equal names, or write a manifest.csv.",
        )
    chosen = videos or sounds or pictures
    if len(chosen) < len(files):
        log.warning("%s: %d files beside the %d videos were passed over", folder, len(files) - len(chosen), len(chosen))
    return chosen


def _row(folder: Path, file: Path, prefix: str, *, split: str | None = None, label: str | None = None) -> Row:
    suffix = file.suffix.lower()
    column = "video" if suffix in VIDEO_SUFFIXES else "audio" if suffix in AUDIO_SUFFIXES else "image"
    given: dict[str, Any] = {column: str(folder / file)}
    return Row(id=prefix + _stem(file), **given, split=split, label=label)


def _told_apart(rows: list[Row]) -> list[Row]:
    """Files that differ in their suffix alone (a.mov, a.mp4) keep it in their ids and are one group, for they are most
    likely the same."""
    stems = Counter(row.id for row in rows)
    return [replace(row, id=row.id + Path(row.file).suffix) if stems[row.id] > 1 else row for row in rows]


def _stem(file: Path) -> str:
    return file.with_suffix("").as_posix()


def _paired(folder: Path, files: list[Path], prefix: str, split: str | None) -> list[Row]:
    """Rows joined by stem. A file without its partner stays a row that names the missing file: reading it counts it."""
    columns: dict[str, dict[str, str]] = {}
    for top in PAIRED:
        below = [f for f in files if f.parts[0] == top and len(f.parts) > 1]
        if top == "text":
            below = sorted(p.relative_to(folder) for p in (folder / top).rglob("*.txt"))
        for file in below:
            stem = _stem(Path(*file.parts[1:]))
            if columns.setdefault(top, {}).setdefault(stem, str(folder / file)) != str(folder / file):
                raise DataError(f'two files are named "{stem}".', file=folder / top)
    if not set(columns) & set(_COLUMN):
        raise DataError("no media in video/, audio/ or images/.", file=folder)
    names = ", ".join(f"{top}/" for top in columns)
    if not set.intersection(*(set(column) for column in columns.values())):
        raise DataError(f"no file name is in all of {names}.", file=folder, hint="Partners have the same name.")
    beside = sum(file.parts[0] not in PAIRED or len(file.parts) == 1 for file in files)
    if beside:
        log.warning("%s: %d media files outside %s were passed over", folder, beside, names)
    every = sorted(set().union(*columns.values()))
    alone = [stem for stem in every if any(stem not in column for column in columns.values())]
    if alone:
        log.warning('%s: %d of %d rows lack a partner (first: "%s")', folder, len(alone), len(every), alone[0])
    deep = all("/" in stem for stem in every)
    texts = columns.pop("text", {})
    rows = []
    for stem in every:
        files_of: dict[str, Any] = {
            _COLUMN[top]: found.get(stem, str(folder / top / stem)) for top, found in columns.items()
        }
        label = stem.split("/")[0] if deep else None
        rows.append(Row(id=prefix + stem, **files_of, text=_text(texts.get(stem)), label=label, split=split))
    return rows


def _text(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text("utf-8-sig").strip() or None
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text.", file=path, hint="Save it as UTF-8.") from error
