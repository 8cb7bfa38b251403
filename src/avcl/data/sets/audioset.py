"""AudioSet (Gemmeke et al. 2017): two million segments of ten seconds of YouTube videos, 527 classes, several a
segment.

Files read: ``eval_segments.csv``, ``balanced_train_segments.csv``, ``unbalanced_train_segments.csv``: comments behind
"#", then lines ``YouTube id, start, end, "class,class"`` (also where a spread-sheet has quoted the classes once more);
``class_labels_indices.csv`` or ``ontology.json`` name the classes, which otherwise keep their ids (/m/09x0r). Media are
the segments, ``<id>_<start ms>_<end ms>``, ``<id>_<start s>`` (plain or six digits) or ``Y<id>``, or whole videos
``<id>``, of which the row is start to end. Sound alone will do. ``label`` is the class of a segment that has one only;
all of them stand in the column ``labels``, with ";" between.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from avcl.data.official import Entry, Part
from avcl.data.official_lists import cells, json_file, lines, member, pick
from avcl.data.official_media import MediaSet
from avcl.errors import DataError, LabelError

LISTS = {"eval": "test", "balanced_train": "train", "unbalanced_train": "train"}


def names(folder: Path) -> dict[str, str]:
    """{class id: name} by the files in ``folder``; {} where there are none."""
    path = pick(folder, "class_labels_indices.csv")
    if path is not None:
        rows = cells(path, 3, "index,mid,display_name")
        return {mid: name for _, (index, mid, name) in rows if index != "index"}
    path = pick(folder, "ontology.json")
    if path is None:
        return {}
    classes = json_file(path)
    if not isinstance(classes, list):
        raise DataError("is not a list of classes.", file=path)
    kind = enumerate(classes)
    return {member(c, "id", str, f"class {i}", path): member(c, "name", str, f"class {i}", path) for i, c in kind}


def read(folder: Path) -> Iterator[Entry]:
    """The rows of the lists that are there. DataError: a line that is none. LabelError: a class without a name."""
    known = names(folder)
    for part, split in LISTS.items():
        path = pick(folder, f"{part}_segments.csv")
        for where, line in () if path is None else lines(path):
            if not line.startswith("#"):
                yield _entry(line, part, split, known, where)


def _entry(line: str, part: str, split: str, known: dict[str, str], where: str) -> Entry:
    values = next(csv.reader([line], skipinitialspace=True))
    mids = [mid for cell in values[3:] for mid in cell.replace('"', "").split(",") if mid]
    if len(values) < 4 or not mids:
        raise DataError('is not YTID, start, end, "classes".', file=where)
    video, start, end = values[0], _seconds(values[1], where), _seconds(values[2], where)
    if end <= start:
        raise DataError(f"end {end:g} is not after start {start:g}.", file=where)
    unknown = next((mid for mid in mids if known and mid not in known), None)
    if unknown is not None:
        raise LabelError(f'"{unknown}" is not a class of the list of classes.', file=where)
    classes = [known.get(mid, mid) for mid in mids]
    ms, second = (round(start * 1000), round(end * 1000)), int(start)
    cut = (f"{video}_{ms[0]}_{ms[1]}", f"{video}_{second:06d}", f"{video}_{second}", f"Y{video}")
    return Entry(
        id=f"{video}_{ms[0]}",
        part=part,
        split=split,
        label=classes[0] if len(classes) == 1 else "",
        start=start,
        end=end,
        group=video,
        media=(Part("video", cut, recording=(video,), sound=True),),
        info={"labels": ";".join(classes)},
    )


def _seconds(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f'"{text}" is not a number of seconds.', file=where) from error


SET = MediaSet(
    name="audioset",
    title="AudioSet: an ontology and human-labeled dataset for audio events",
    about="10 s segments of YouTube videos, 527 classes, several a segment",
    license="CC BY 4.0 (the lists), CC BY-SA 4.0 (the ontology); the videos are their owners'",
    source="https://research.google.com/audioset/download.html",
    citation=(
        "J. F. Gemmeke, D. P. W. Ellis, D. Freedman, A. Jansen, W. Lawrence, R. C. Moore, M. Plakal, M. Ritter. "
        "Audio Set: an ontology and human-labeled dataset for audio events. ICASSP 2017."
    ),
    counts={"eval": 20_371, "balanced_train": 22_160, "unbalanced_train": 2_041_789},
    lists=(*(f"{part}_segments.csv" for part in LISTS), "class_labels_indices.csv", "ontology.json"),
    read=read,
)
