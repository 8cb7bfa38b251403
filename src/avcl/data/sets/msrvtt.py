"""MSR-VTT (Xu et al. 2016): 10,000 clips of the web with 20 sentences each, 20 categories.

Files read: ``train_val_videodatainfo.json`` and ``test_videodatainfo.json``, or one ``MSRVTT_data.json`` (``videos``:
video_id, category, split, "start time", "end time"; ``sentences``: sen_id, video_id, caption); "validate" is val.
``MSRVTT_JSFUSION_test.csv`` (key,vid_key,video_id,sentence), where it is there, marks the 1,000 pairs that retrieval is
often measured on, in the column ``jsfusion``. Media are the clips ``video<n>``. A row is a sentence; its group is the
clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avcl.data.official import Entry, Part
from avcl.data.official_lists import cells, json_file, member, members, pick
from avcl.data.official_media import MediaSet
from avcl.errors import DataError, LabelError

CATEGORIES = (
    "music",
    "people",
    "gaming",
    "sports/actions",
    "news/events/politics",
    "education",
    "tv shows",
    "movie/comedy",
    "animation",
    "vehicles/autos",
    "howto",
    "travel",
    "science/technology",
    "animals/pets",
    "kids/family",
    "documentary",
    "food/drink",
    "cooking",
    "beauty/fashion",
    "advertisement",
)
SPLITS = {"train": "train", "validate": "val", "test": "test"}
LISTS = ("MSRVTT_data.json", "train_val_videodatainfo.json", "test_videodatainfo.json")


def read(folder: Path) -> Iterator[Entry]:
    """The sentences. DataError: a file that is not of this form. LabelError: a category that is none of the 20."""
    whole = pick(folder, LISTS[0])
    paths = [whole] if whole is not None else [path for name in LISTS[1:] if (path := pick(folder, name)) is not None]
    pairs = _jsfusion(folder)
    for path in paths:
        yield from _entries(json_file(path), path, pairs)


def _entries(value: Any, path: Path, pairs: set[tuple[str, str]]) -> Iterator[Entry]:
    videos: dict[str, tuple[str, str]] = {}
    for where, video in members(value, "videos", path):
        split = member(video, "split", str, where, path)
        if split not in SPLITS:
            raise DataError(f'{where} has the split "{split}".', file=path)
        category = member(video, "category", int, where, path)
        if not 0 <= category < len(CATEGORIES):
            raise LabelError(f"{where} has the category {category}, but there are {len(CATEGORIES)} from 0.", file=path)
        videos[member(video, "video_id", str, where, path)] = (SPLITS[split], CATEGORIES[category])
    seen: dict[str, int] = {}
    for where, sentence in members(value, "sentences", path):
        name = member(sentence, "video_id", str, where, path)
        if name not in videos:
            raise DataError(f"{where} is about {name}, which is not listed.", file=path)
        text = member(sentence, "caption", str, where, path)
        split, label = videos[name]
        seen[name] = seen.get(name, -1) + 1
        yield Entry(
            id=f"{name}#{seen[name]}",
            part=split,
            split=split,
            label=label,
            text=text,
            item=name,
            media=(Part("video", (name,)),),
            info={"jsfusion": "yes" if (name, text) in pairs else "no"} if pairs else {},
        )


def _jsfusion(folder: Path) -> set[tuple[str, str]]:
    path = pick(folder, "MSRVTT_JSFUSION_test.csv")
    if path is None:
        return set()
    return {(video, text) for _, (_, _, video, text) in cells(path, 4, "key,vid_key,video_id,sentence")}


SET = MediaSet(
    name="msrvtt",
    title="MSR-VTT: a large video description dataset for bridging video and language",
    about="10,000 clips with 20 sentences each, 20 categories",
    license="research (the terms of the source; not verified); the videos are their owners'",
    source="https://www.microsoft.com/en-us/research/publication/msr-vtt-a-large-video-description-dataset-for-bridging-video-and-language/",
    citation=(
        "J. Xu, T. Mei, T. Yao, Y. Rui. MSR-VTT: a large video description dataset for bridging video and language. "
        "CVPR 2016."
    ),
    counts={"train": 6513, "val": 497, "test": 2990},
    lists=(*LISTS, "MSRVTT_JSFUSION_test.csv"),
    labels=CATEGORIES,
    read=read,
)
