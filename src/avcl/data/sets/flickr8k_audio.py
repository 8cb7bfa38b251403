"""Flickr8k audio captions (Harwath and Glass 2015; FACC): 8,000 pictures with five spoken captions each.

Files read: ``wav2capt.txt``, lines ``wav picture #n``; ``wav2spk.txt``, lines ``wav speaker``;
``Flickr8k.token.txt``, lines ``picture#n<TAB>sentence``; and ``Flickr_8k.trainImages.txt``, ``Flickr_8k.devImages.txt``
and ``Flickr_8k.testImages.txt``, a picture a line. The last four may be absent: then there is no speaker, no text, no
split. Media are the wav files and the pictures under their own names. A row is a spoken caption with its picture, which
is its group.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from avcl.data.official import Entry, Part
from avcl.data.official_lists import lines, pick
from avcl.data.official_media import MediaSet
from avcl.errors import DataError

SPLITS = {"train": "train", "dev": "val", "test": "test"}


def read(folder: Path) -> Iterator[Entry]:
    """The captions of ``wav2capt.txt``. DataError: a line that is none, a picture in two splits."""
    path = pick(folder, "wav2capt.txt")
    if path is None:
        return
    splits, speakers, texts = _splits(folder), _speakers(folder), _texts(folder)
    for where, line in lines(path):
        words = line.split()
        if len(words) != 3 or not words[2].startswith("#") or not words[2][1:].isdecimal():
            raise DataError("is not: wav picture #n", file=where)
        wav, picture, n = words
        split = splits.get(picture, "")
        yield Entry(
            id=Path(wav).stem,
            part=split or "in no split",
            split=split,
            text=texts.get(f"{picture}{n}", ""),
            group=picture,
            media=(Part("audio", (Path(wav).stem,)), Part("image", (Path(picture).stem,))),
            info={"speaker": speakers[wav]} if wav in speakers else {},
        )


def _splits(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, split in SPLITS.items():
        path = pick(folder, f"Flickr_8k.{name}Images.txt")
        for where, picture in () if path is None else lines(path):
            if found.setdefault(picture.strip(), split) != split:
                raise DataError(f'"{picture}" is in {found[picture]} and in {split}.', file=where)
    return found


def _speakers(folder: Path) -> dict[str, str]:
    path = pick(folder, "wav2spk.txt")
    found: dict[str, str] = {}
    for where, line in () if path is None else lines(path):
        words = line.split()
        if len(words) != 2:
            raise DataError("is not: wav speaker", file=where)
        found[words[0]] = words[1]
    return found


def _texts(folder: Path) -> dict[str, str]:
    path = pick(folder, "Flickr8k.token.txt")
    found: dict[str, str] = {}
    for where, line in () if path is None else lines(path):
        key, tab, text = line.partition("\t")
        if not tab or "#" not in key:
            raise DataError("is not: picture#n<TAB>sentence", file=where)
        found[key.strip()] = text.strip()
    return found


SET = MediaSet(
    name="flickr8k_audio",
    title="Flickr8k Audio Caption Corpus (FACC)",
    about="8,000 pictures with five spoken and written captions each",
    license="CC BY-SA 4.0 (the speech; not verified); the pictures: research only",
    source="https://groups.csail.mit.edu/sls/downloads/flickraudio/",
    citation=(
        "D. Harwath, J. Glass. Deep multimodal semantic embeddings for speech and images. ASRU 2015. Pictures: "
        "M. Hodosh, P. Young, J. Hockenmaier. JAIR 47, 2013."
    ),
    counts={"train": 30_000, "val": 5000, "test": 5000},
    lists=(
        "wav2capt.txt",
        "wav2spk.txt",
        "Flickr8k.token.txt",
        *(f"Flickr_8k.{name}Images.txt" for name in SPLITS),
    ),
    read=read,
)
