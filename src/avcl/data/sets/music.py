"""MUSIC (Zhao et al. 2018) and MUSIC-21 (Zhao et al. 2019): videos of people who play an instrument, or two together.

Files read: ``MUSIC_solo_videos.json``, ``MUSIC_duet_videos.json`` and ``MUSIC21_solo_videos.json``:
``{"videos": {"instrument" or "instrument instrument": [YouTube ids]}}``. Media are ``<YouTube id>`` at any depth, whole
videos. There is no official split. MUSIC-21 holds all solos of MUSIC: a manifest has each video once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from avcl.data.official import Entry, Part
from avcl.data.official_lists import json_file, member, pick
from avcl.data.official_media import MediaSet
from avcl.errors import DataError

LISTS = {"solo": "MUSIC_solo_videos.json", "duet": "MUSIC_duet_videos.json", "solo21": "MUSIC21_solo_videos.json"}


def read(folder: Path) -> Iterator[Entry]:
    """The rows of the lists that are there. DataError: a list that is not of this form."""
    for part, name in LISTS.items():
        path = pick(folder, name)
        if path is None:
            continue
        videos = member(json_file(path), "videos", dict, "the file", path)
        for label in videos:
            for i, video in enumerate(member(videos, label, list, "videos", path)):
                if not isinstance(video, str) or not video:
                    raise DataError(f'"{label}"[{i}] is not a YouTube id.', file=path)
                yield Entry(id=video, part=part, label=label, media=(Part("video", (video,)),))


SET = MediaSet(
    name="music",
    title="MUSIC: Multimodal Sources of Instrument Combinations",
    about="videos of solos and duets of 11 instruments, and solos of 21",
    license="none stated; the videos are their owners'",
    source="https://github.com/roudimit/MUSIC_dataset",
    citation=(
        "H. Zhao, C. Gan, A. Rouditchenko, C. Vondrick, J. McDermott, A. Torralba. The sound of pixels. ECCV 2018."
    ),
    counts={"solo": 536, "duet": 149, "solo21": 1164},
    lists=tuple(LISTS.values()),
    read=read,
)
