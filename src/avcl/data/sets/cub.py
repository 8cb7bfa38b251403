"""200 bird species in four media: CUB-200-2011 (Wah et al. 2011), YouTube Birds (Zhu et al. 2018), and the sounds and
texts of PKU FG-XMedia (He et al. 2019).

Files read: of CUB ``images.txt`` (id picture), ``image_class_labels.txt`` (id class), ``train_test_split.txt`` (id 0
or 1) and ``classes.txt`` (class name); of FG-XMedia ``<medium>/train.txt`` and ``<medium>/test.txt`` for image,
video, audio and text, lines ``path class`` with classes from 0, which go before CUB's for the pictures. A path's last
two parts name the file; FG-XMedia lists sounds as pictures (.png) of their spectrogram, of which the sound of the
same name is read. The lists pair nothing: a manifest joins the n-th picture of a species with its n-th sound, video
and text, as many times as the longest list has rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from avcl.data.official import Column, Entry, Part
from avcl.data.official_lists import lines, number, pick
from avcl.data.official_media import MediaSet
from avcl.errors import DataError

MEDIA: tuple[Column, ...] = ("image", "video", "audio", "text")
SPECIES = 200
CUB = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
COUNTS = {
    "image train": 5994,
    "image test": 5794,
    "video train": 12_666,
    "video test": 5684,
    "audio train": 6000,
    "audio test": 6000,
    "text train": 4000,
    "text test": 4000,
}


def read(folder: Path) -> Iterator[Entry]:
    """The rows of the lists that are there. DataError: a line that is none, a picture without class or split."""
    for medium in MEDIA:
        listed = False
        for split in ("train", "test"):
            path = pick(folder, f"{medium}/{split}.txt")
            for where, line in () if path is None else lines(path):
                listed = True
                name, _, species = line.strip().rpartition(" ")
                if number(species, "the class", where) >= SPECIES or "/" not in name:
                    raise DataError(f"is not: path class, with classes from 0 to {SPECIES - 1}.", file=where)
                yield _entry(medium, split, name)
        if medium == "image" and not listed:
            yield from _cub(folder)


def _cub(folder: Path) -> Iterator[Entry]:
    paths = {name: pick(folder, name) for name in CUB}
    images = paths["images.txt"]
    if images is None:
        return
    columns: dict[str, dict[str, str]] = {}
    for name, path in paths.items():
        if path is None:
            raise DataError("is a part of CUB-200-2011.", file=images.parent, hint=f"{name} is missing.")
        columns[name] = dict(_pairs(path))
    for id, name in columns["images.txt"].items():
        species, train = columns["image_class_labels.txt"].get(id), columns["train_test_split.txt"].get(id)
        if species not in columns["classes.txt"] or train not in ("0", "1"):
            raise DataError(f'the picture {id} ("{name}") has no class or no split.', file=images)
        yield _entry("image", "train" if train == "1" else "test", name)


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    for where, line in lines(path):
        key, _, value = line.strip().partition(" ")
        if not value:
            raise DataError("is not two words.", file=where)
        yield key, value


def _entry(medium: Column, split: str, name: str) -> Entry:
    species, file = name.split("/")[-2:]
    short = f"{species}/{file.rsplit('.', 1)[0]}"
    label = re.sub(r"^\d+\.", "", species)  # CUB numbers its folders: 001.Black_footed_Albatross
    return Entry(
        id=f"{medium}/{short}", part=f"{medium} {split}", split=split, label=label, media=(Part(medium, (short,)),)
    )


SET = MediaSet(
    name="cub",
    title="PKU FG-XMedia: CUB-200-2011, YouTube Birds, sounds and texts",
    about="200 bird species as pictures, videos, sounds and texts, joined by species",
    license="research and education, not commercial (CUB); none stated (the other lists)",
    source="https://github.com/PKU-ICST-MIPL/FGCrossNet_ACMMM2019",
    citation=(
        "C. Wah, S. Branson, P. Welinder, P. Perona, S. Belongie. The Caltech-UCSD Birds-200-2011 dataset. "
        "CNS-TR-2011-001. Videos: C. Zhu et al. ICLR 2018 workshop. Lists: X. He, Y. Peng, L. Xie. ACM Multimedia 2019."
    ),
    counts=COUNTS,
    lists=(*CUB, *(f"{medium}/{split}.txt" for medium in MEDIA for split in ("train", "test"))),
    read=read,
    by_class=True,
)
