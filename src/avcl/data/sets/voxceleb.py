"""Voices of VoxCeleb1 (Nagrani et al. 2017) and faces of VGGFace (Parkhi et al. 2015): 1,251 persons who are in both.

Files read: ``vox1_meta.csv`` (tab: VoxCeleb1 ID, VGGFace1 ID, Gender, Nationality, Set); ``iden_split.txt``, lines
``1|2|3 <id>/<video>/<utterance>.wav``, the official identification split (train, val, test of the same persons); and,
where they are there, VGGFace's ``files/<VGGFace1 ID>.txt``, whose lines begin with the number of a picture. Media are
the wav files in folders ``<id>/<video>/`` and pictures in folders ``<VGGFace1 ID>/``. The lists pair nothing: a
manifest joins the n-th face of a person with the n-th voice.

The split of a manifest is by person, as matching of unseen persons needs it: names that begin with C, D, E are
tested, A and B validate, the others train (Nagrani et al. 2018, as later papers give it; not verified). ``verify``
counts by the identification split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from avcl.data.official import Entry, Part
from avcl.data.official_lists import cells, lines, pick
from avcl.data.official_media import MediaSet
from avcl.errors import DataError

META = ["VoxCeleb1 ID", "VGGFace1 ID", "Gender", "Nationality", "Set"]
IDENTIFICATION = {"1": "voices train", "2": "voices val", "3": "voices test"}


def read(folder: Path) -> Iterator[Entry]:
    """The voices and the faces. DataError: a line that is none, a person without a name."""
    path = pick(folder, "vox1_meta.csv")
    if path is None:
        return
    names: dict[str, tuple[str, str, str]] = {}
    for where, row in cells(path, 5, "five columns with tabs between", delimiter="\t"):
        if row == META:
            continue
        if not row[0].startswith("id") or not row[1]:
            raise DataError(f"is not: {', '.join(META)}.", file=where)
        names[row[0]] = (row[1], row[2], row[3])
    faces = next((path for path in (folder / "files", *sorted(folder.glob("*/files"))) if path.is_dir()), None)
    for name, gender, nation in names.values():
        for key in _faces(faces, name):
            yield Entry(
                id=f"face/{key}",
                part="faces",
                split=_split(name),
                label=name,
                item=name,
                media=(Part("image", (key,)),),
                info={"gender": gender, "nationality": nation},
            )
    split = pick(folder, "iden_split.txt")
    for where, line in () if split is None else lines(split):
        part, _, wav = line.strip().partition(" ")
        if part not in IDENTIFICATION or wav.count("/") != 2 or not wav.endswith(".wav"):
            raise DataError("is not: 1|2|3 <id>/<video>/<utterance>.wav", file=where)
        person = wav.split("/")[0]
        if person not in names:
            raise DataError(f"{person} is not in {path.name}.", file=where)
        name, gender, nation = names[person]
        yield Entry(
            id=wav.removesuffix(".wav"),
            part=IDENTIFICATION[part],
            split=_split(name),
            label=name,
            group=name,
            media=(Part("audio", (wav.removesuffix(".wav"),)),),
            info={"gender": gender, "nationality": nation},
        )


def _split(name: str) -> str:
    return {"A": "val", "B": "val", "C": "test", "D": "test", "E": "test"}.get(name[0].upper(), "train")


def _faces(folder: Path | None, name: str) -> list[str]:
    """Names of the pictures of a person: those of VGGFace's list, or whatever is in the person's folder."""
    path = None if folder is None else folder / f"{name}.txt"
    if path is None or not path.is_file():
        return [f"{name}/"]
    found = []
    for where, line in lines(path):
        id = line.split()[0]
        if not id.isdecimal():
            raise DataError("does not begin with the number of a picture.", file=where)
        found.append(f"{name}/{id}")
    return found


SET = MediaSet(
    name="voxceleb",
    title="VoxCeleb1 and VGGFace",
    about="voices and faces of 1,251 persons, joined by person",
    license="CC BY 4.0 (VoxCeleb's lists), CC BY-NC 4.0 (VGGFace; not verified); the media are their owners'",
    source="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/",
    citation=(
        "A. Nagrani, J. S. Chung, A. Zisserman. VoxCeleb: a large-scale speaker identification dataset. Interspeech "
        "2017. Faces: O. M. Parkhi, A. Vedaldi, A. Zisserman. Deep face recognition. BMVC 2015."
    ),
    counts={"voices train": 138_361, "voices val": 6904, "voices test": 8251, "faces": 1251},
    lists=("vox1_meta.csv", "iden_split.txt", "files/<VGGFace1 ID>.txt"),
    read=read,
    by_class=True,
)
