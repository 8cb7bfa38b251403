"""AVE (Tian et al. 2018): 4143 videos of ten seconds, 28 events that are both seen and heard, a label for every second.

The files of the authors' repository, read as they are: ``Annotations.txt`` has a line for each video,
``Category&VideoID&Quality&StartTime&EndTime`` (the event is on in [start, end) whole seconds), with or without a
heading; ``train_order.h5``, ``val_order.h5`` and ``test_order.h5`` have under "order" the numbers of the lines of each
split, from 0; ``*_order_match.h5`` are the splits of cross-modality localization, whose events never fill the video.
The videos are not part of it: ``manifest`` names those of a folder, and ``labeled`` puts the annotation on data.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch

from avcl.data.dataset import Data
from avcl.data.derived import Derived
from avcl.data.feature_files import read_arrays
from avcl.data.official import Entry, Part
from avcl.data.official_media import MediaSet
from avcl.errors import DataError, LabelError, MissingFile, did_you_mean
from avcl.files import write_atomic
from avcl.media import VIDEO_SUFFIXES
from avcl.types import Clip, DataSpec, fingerprint

# The names in the order of the authors' label files (28 columns and background).
LABELS = (
    "Church bell",
    "Male speech, man speaking",
    "Bark",
    "Fixed-wing aircraft, airplane",
    "Race car, auto racing",
    "Female speech, woman speaking",
    "Helicopter",
    "Violin, fiddle",
    "Flute",
    "Ukulele",
    "Frying (food)",
    "Truck",
    "Shofar",
    "Motorcycle",
    "Acoustic guitar",
    "Train horn",
    "Clock",
    "Banjo",
    "Goat",
    "Baby cry, infant cry",
    "Bus",
    "Chainsaw",
    "Cat",
    "Horse",
    "Toilet flush",
    "Rodents, rats, mice",
    "Accordion",
    "Mandolin",
)
BACKGROUND = len(LABELS)
SECONDS = 10
SPLITS = ("train", "val", "test")
OFFICIAL = {"train": 3339, "val": 402, "test": 402}


@dataclass(frozen=True)
class Row:
    """One line: ``number`` from 0, the video, its event and when it is on, and its split ("": in none)."""

    number: int
    video: str
    label: int
    start: int
    end: int
    split: str = ""

    @property
    def id(self) -> str:
        """Unlike ``video``, which stands in several lines where a video has several events."""
        return f"{self.number:04d}-{self.video}"

    @property
    def segments(self) -> tuple[int, ...]:
        """The class of each second, 28 where there is no event."""
        return tuple(self.label if self.start <= t < self.end else BACKGROUND for t in range(SECONDS))


@dataclass(frozen=True)
class Table:
    """The annotation: all lines in their order, and where it was read."""

    rows: tuple[Row, ...]
    where: str

    def part(self, split: str) -> tuple[Row, ...]:
        """The lines of a split."""
        return tuple(row for row in self.rows if row.split == split)

    def segments(self, split: str) -> np.ndarray:
        """int64 [N, 10] of the lines of a split, in their order."""
        return np.array([row.segments for row in self.part(split)], np.int64).reshape(-1, SECONDS)

    @property
    def shared(self) -> dict[str, tuple[str, ...]]:
        """{video: splits} of videos with lines in more than one split: what a score on them tells is inflated."""
        found: dict[str, set[str]] = {}
        for row in self.rows:
            if row.split:
                found.setdefault(row.video, set()).add(row.split)
        return {video: tuple(s for s in SPLITS if s in splits) for video, splits in found.items() if len(splits) > 1}


def read(folder: str | Path, *, splits: Literal["order", "order_match"] = "order") -> Table:
    """The annotation in ``folder``; ``splits``: which files say what is trained on and what is tested.

    MissingFile: a file is not there. DataError: a line or an order that is none, a line in two splits. LabelError: a
    category that is not one of the 28.
    """
    folder = Path(folder)
    path = folder / "Annotations.txt"
    if not path.is_file():
        raise MissingFile("there is no such file.", file=path, hint="Give the folder `data` of the AVE repository.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text.", file=path) from error
    if lines and lines[0].split("&")[0] == "Category":
        lines[0] = ""
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            rows.append(_row(line, len(rows), f"{path}:{number}"))
    if not rows:
        raise DataError("has no lines.", file=path)
    belongs = _splits(folder, splits, len(rows))
    return Table(tuple(replace(row, split=belongs.get(row.number, "")) for row in rows), str(path))


def _row(line: str, number: int, where: str) -> Row:
    cells = [cell.strip() for cell in line.split("&")]
    if len(cells) != 5 or not cells[1]:
        raise DataError("is not Category&VideoID&Quality&StartTime&EndTime.", file=where)
    if cells[0] not in LABELS:
        raise LabelError(f'"{cells[0]}" is not an event of AVE.', file=where, hint=did_you_mean(cells[0], LABELS))
    times = cells[3:]
    if not all(time.isdecimal() for time in times) or not int(times[0]) <= int(times[1]) <= SECONDS:
        raise DataError(f"{times[0]} to {times[1]} is no span of whole seconds within 0 to {SECONDS}.", file=where)
    return Row(number, cells[1], LABELS.index(cells[0]), int(times[0]), int(times[1]))


def _splits(folder: Path, name: str, count: int) -> dict[int, str]:
    """{line: split}."""
    found: dict[int, str] = {}
    for split in SPLITS:
        path = folder / f"{split}_{name}.h5"
        order = read_arrays(path).get("order")
        if order is None or order.ndim != 1 or order.dtype.kind not in "iu":
            raise DataError('has no numbers of lines under "order".', file=path)
        for number in order.tolist():
            if not 0 <= number < count:
                raise DataError(f"names line {number}, but there are {count}.", file=path)
            if found.get(number, split) != split:
                raise DataError(f"line {number} is in {found[number]} and in {split}.", file=path)
            found[number] = split
    return found


def describe(table: Table | None = None) -> dict[str, Any]:
    """Facts about AVE; of ``table`` also the counts, what is missing of the official ones, and reference values.

    Reference values of a split: ``background`` is the share of seconds without an event, which is the accuracy of a
    predictor that knows nothing else, ``class everywhere`` that of one that knows the class and no time.
    """
    about: dict[str, Any] = {
        "name": "ave",
        "about": "10 s videos, one of 28 events a video, a label for every second",
        "source": "https://github.com/YapengTian/AVE-ECCV18",
        "license": "none stated",
        "labels": list(LABELS),
        "official": dict(OFFICIAL),
    }
    if table is None:
        return about
    counts = Counter(row.split for row in table.rows)
    about["found"] = {split: counts[split] for split in SPLITS}
    about["missing"] = {split: max(0, OFFICIAL[split] - counts[split]) for split in SPLITS}
    about["in no split"] = counts[""]
    about["videos in more than one split"] = len(table.shared)
    parts = {split: table.segments(split) == BACKGROUND for split in SPLITS if counts[split]}
    about["background"] = {split: float(part.mean()) for split, part in parts.items()}
    about["class everywhere"] = {split: 1 - share for split, share in about["background"].items()}
    about["event fills the video"] = {split: int((~part).all(1).sum()) for split, part in parts.items()}
    return about


# ---------------------------------------------------------------------------------------------------- videos and labels
def manifest(table: Table, media: str | Path, out: str | Path) -> dict[str, int]:
    """Write a manifest of the annotated videos in ``media`` (``<VideoID>.mp4`` or another suffix, at any depth) for
    ``load_data``; {"rows", "missing"}: how many lines have their video, and how many do not.

    The group of a row is its video. Videos stand in two of the official splits (``Table.shared``), so reading the
    manifest needs ``allow_leak``, which stamps the result. DataError: not one video is there.
    """
    media = Path(media)
    files = {path.stem: path for path in sorted(media.rglob("*")) if path.suffix.lower() in VIDEO_SUFFIXES}
    rows = [row for row in table.rows if row.split and row.video in files]
    if not rows:
        raise DataError("holds not one video of AVE.", file=media, hint="Name the files by their video ids.")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "video", "label", "split", "group"])
    for row in rows:
        writer.writerow([row.id, files[row.video].resolve(), LABELS[row.label], row.split, row.video])
    write_atomic(out, text.getvalue())
    return {"rows": len(rows), "missing": sum(bool(row.split) for row in table.rows) - len(rows)}


def labeled(data: Data, table: Table) -> Labeled:
    """``data`` with the events of ``table`` by id (``Row.id``): labels, and the extra ``segments`` of each clip.

    Rows of the same split that ``data`` lacks are counted in ``n_official``. DataError: a row that is not annotated.
    """
    known = {row.id: row for row in table.rows}
    unknown = [id for id in data.ids if id not in known]
    if unknown:
        raise DataError(
            f'"{unknown[0]}" is not annotated ({len(unknown)} of {len(data)} rows are not).',
            file=table.where,
            hint="Ids are those of avcl.data.sets.ave.manifest: <line>-<video>.",
        )
    return Labeled(data, {id: known[id] for id in data.ids}, max(data.n_official, len(table.part(data.split))))


class Labeled(Derived):
    """The clips of ``source`` with the labels of AVE and ``extras["segments"]`` int64 [10]."""

    def __init__(self, source: Data, rows: Mapping[str, Row], n_official: int):
        super().__init__(source)
        self.rows, self.labels, self.n_official = dict(rows), LABELS, n_official

    def remade(self, source: Data) -> Self:
        return type(self)(source, {id: self.rows[id] for id in source.ids}, self.n_official)

    def subset(self, indices: Sequence[int], *, split: str | None = None) -> Self:
        source = self.source.subset(indices, split=split)
        return type(self)(source, {id: self.rows[id] for id in source.ids}, len(indices))

    def _each(self) -> Iterator[Row]:
        return (self.rows[id] for id in self.ids)

    @property
    def targets(self) -> tuple[int, ...]:
        return tuple(row.label for row in self._each())

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(row.video for row in self._each())

    @property
    def spec(self) -> DataSpec:
        return replace(self.source.spec, labels=LABELS)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint({"source": self.source.fingerprint, "ave": [row.segments for row in self._each()]})

    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        clip = self.source.clip(index, epoch=epoch, view=view)
        row = self.rows[clip.id]
        extras = {**clip.extras, "segments": torch.tensor(row.segments)}
        return replace(clip, label=row.label, group=row.video, extras=extras)


# ------------------------------------------------------------------------------------------------------- as other sets
def _entries(folder: Path) -> Iterator[Entry]:
    if not (folder / "Annotations.txt").is_file():
        return
    for row in read(folder).rows:
        yield Entry(
            id=row.id,
            part=row.split or "in no split",
            split=row.split,
            label=LABELS[row.label],
            group=row.video,
            media=(Part("video", (row.video,)),),
            info={"event_start": str(row.start), "event_end": str(row.end)},
        )


SET = MediaSet(
    name="ave",
    title="AVE: audio-visual events",
    about="10 s videos, one of 28 events a video, a label for every second",
    license="none stated; the videos are their owners'",
    source="https://github.com/YapengTian/AVE-ECCV18",
    citation=(
        "Y. Tian, J. Shi, B. Li, Z. Duan, C. Xu. Audio-visual event localization in unconstrained videos. ECCV 2018."
    ),
    counts=OFFICIAL,
    lists=("Annotations.txt", "train_order.h5", "val_order.h5", "test_order.h5"),
    labels=LABELS,
    read=_entries,
)
