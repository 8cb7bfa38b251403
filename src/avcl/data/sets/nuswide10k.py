"""NUS-WIDE-10k (Feng et al. 2014): 1,000 pictures with tags for each of ten concepts of NUS-WIDE (Chua et al. 2009).

Files read, those of NUS-WIDE: ``Imagelist.txt``, a line ``<folder>\\<number>_<photo>.jpg`` for each of 269,648
pictures; ``Labels_<concept>.txt``, 0 or 1 a line in the same order, of the ten concepts; ``All_Tags.txt``, a line
``photo tag tag ...`` in the same order. Media are the pictures under that name, or under the photo's number. The text
is the tags.

Which 10,000 pictures the publication drew is not published in a list. These are ours, and not its: of the pictures with
exactly one of the ten concepts, the 1,000 of each whose photo number has the smallest BLAKE2b hash, cut into 800 to
train, 100 to validate and 100 to test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from avcl.data.official import Entry, Part
from avcl.data.official_lists import lines, pick
from avcl.data.official_media import MediaSet
from avcl.errors import DataError

LABELS = ("animal", "clouds", "flowers", "food", "grass", "person", "sky", "toy", "water", "window")
SPLITS = {"train": 800, "val": 100, "test": 100}


def read(folder: Path) -> Iterator[Entry]:
    """The draw. DataError: a line that is none, files of other lengths, a file that is missing."""
    path = pick(folder, "Imagelist.txt", "ImageList.txt")
    if path is None:
        return
    images = [(where, line.strip().replace("\\", "/")) for where, line in lines(path)]
    ones: dict[int, list[str]] = {}
    for label in LABELS:
        labels = pick(folder, f"Labels_{label}.txt")
        if labels is None:
            raise DataError("has no labels.", file=folder, hint=f"Labels_{label}.txt is missing.")
        count = -1
        for count, (where, line) in enumerate(lines(labels)):
            if line.strip() not in ("0", "1"):
                raise DataError("is not 0 or 1.", file=where)
            if line.strip() == "1":
                ones.setdefault(count, []).append(label)
        if count + 1 != len(images):
            raise DataError(f"{count + 1} lines, but {len(images)} pictures are listed.", file=labels)
    tags = _tags(folder, len(images))
    drawn: dict[str, list[tuple[str, int]]] = {label: [] for label in LABELS}
    for i, concepts in ones.items():
        if len(concepts) == 1:
            drawn[concepts[0]].append((hashlib.blake2b(_photo(*images[i]).encode()).hexdigest(), i))
    for label, rows in drawn.items():
        order = [i for _, i in sorted(rows)]
        for split, n in SPLITS.items():
            for i in order[:n]:
                name, photo = images[i][1].rsplit(".", 1)[0], _photo(*images[i])
                text = tags[i] if tags else ""
                yield Entry(
                    id=photo,
                    part=split,
                    split=split,
                    label=label,
                    text=text,
                    media=(Part("image", (name, photo)),),
                )
            order = order[n:]


def _photo(where: str, name: str) -> str:
    """The photo's number in "actor/0001_2124494179.jpg"."""
    number, _, photo = name.rsplit("/", 1)[-1].rsplit(".", 1)[0].partition("_")
    if not (number.isdecimal() and photo.isdecimal()):
        raise DataError(f'"{name}" is not <folder>/<number>_<photo>.jpg.', file=where)
    return photo


def _tags(folder: Path, count: int) -> list[str]:
    path = pick(folder, "All_Tags.txt")
    if path is None:
        return []
    tags = [" ".join(line.split()[1:]) for _, line in lines(path)]
    if len(tags) != count:
        raise DataError(f"{len(tags)} lines, but {count} pictures are listed.", file=path)
    return tags


SET = MediaSet(
    name="nuswide10k",
    title="NUS-WIDE-10k",
    about="10,000 pictures with tags, ten concepts of NUS-WIDE; our draw of them",
    license="research, not commercial (the terms of NUS-WIDE; not verified); the pictures are their owners'",
    source="https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html",
    citation=(
        "T.-S. Chua, J. Tang, R. Hong, H. Li, Z. Luo, Y. Zheng. NUS-WIDE: a real-world web image database from "
        "National University of Singapore. CIVR 2009. Ten concepts: F. Feng, X. Wang, R. Li. ACM Multimedia 2014."
    ),
    counts={split: 10 * n for split, n in SPLITS.items()},
    lists=("Imagelist.txt", *(f"Labels_{label}.txt" for label in LABELS), "All_Tags.txt"),
    labels=LABELS,
    read=read,
)
