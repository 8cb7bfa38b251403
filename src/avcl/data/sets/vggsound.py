"""VGGSound (Chen et al. 2020): 199,176 clips of ten seconds, 309 classes of sounds whose source is seen.

Files read: ``vggsound.csv``, lines ``YouTube id,start second,label,split`` without a heading; or, of the repository,
``train.csv`` and ``test.csv``, lines ``<YouTube id>_<start, six digits>.mp4,label``. Media are the clips
``<YouTube id>_<start>.mp4``, or whole videos ``<YouTube id>.mp4``, of which the row is start to start + 10 s. Several
clips are of one video, which is their group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from avcl.data.official import Entry, Part
from avcl.data.official_lists import cells, number, pick
from avcl.data.official_media import MediaSet
from avcl.errors import DataError, did_you_mean

SECONDS = 10
SPLITS = ("train", "test")
_CLIP = re.compile(r"(?P<video>.{11})_(?P<start>\d{6})(\.mp4)?")


def read(folder: Path) -> Iterator[Entry]:
    """The rows of ``vggsound.csv``, or of ``train.csv`` and ``test.csv``. DataError: a line that is none."""
    whole = pick(folder, "vggsound.csv")
    if whole is not None:
        for where, (video, start, label, split) in cells(whole, 4, "id,start,label,split"):
            if split not in SPLITS:
                raise DataError(f'"{split}" is not a split.', file=where, hint=did_you_mean(split, SPLITS))
            yield _entry(video, number(start, "the start", where), label, split)
        return
    for split in SPLITS:
        path = pick(folder, f"{split}.csv")
        for where, (name, label) in () if path is None else cells(path, 2, "id_start.mp4,label"):
            clip = _CLIP.fullmatch(name)
            if clip is None:
                raise DataError(f'"{name}" is not <11 characters>_<6 digits>.mp4.', file=where)
            yield _entry(clip["video"], int(clip["start"]), label, split)


def _entry(video: str, start: int, label: str, split: str) -> Entry:
    id = f"{video}_{start:06d}"
    return Entry(
        id=id,
        part=split,
        split=split,
        label=label,
        start=start,
        end=start + SECONDS,
        group=video,
        media=(Part("video", (id,), recording=(video,)),),
    )


SET = MediaSet(
    name="vggsound",
    title="VGGSound: a large-scale audio-visual dataset",
    about="10 s clips of 309 sounds whose source is seen",
    license="CC BY 4.0 (the list); the videos are their owners'",
    source="https://github.com/hche11/VGGSound",
    citation="H. Chen, W. Xie, A. Vedaldi, A. Zisserman. VGGSound: a large-scale audio-visual dataset. ICASSP 2020.",
    counts={"train": 183_730, "test": 15_446},
    lists=("vggsound.csv", "train.csv", "test.csv"),
    read=read,
)
