"""YouCook2 (Zhou et al. 2018): 2,000 cooking videos of 89 recipes, cut into steps with a sentence each.

Files read: ``youcookii_annotations_trainval.json`` and ``youcookii_annotations_test_segments_only.json``
(``database``: {video: subset, recipe_type, annotations: [{id, segment [start, end], sentence}]}; test steps have no
sentence); ``label_foodtype.csv`` (number,recipe), where it is there, names the recipes. Media are the whole videos
``<YouTube id>``; a row is a step, start to end, and its group the video.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avcl.data.official import Entry, Part
from avcl.data.official_lists import cells, json_file, member, pick
from avcl.data.official_media import MediaSet
from avcl.errors import DataError

SPLITS = {"training": "train", "validation": "val", "testing": "test"}
LISTS = ("youcookii_annotations_trainval.json", "youcookii_annotations_test_segments_only.json")


def read(folder: Path) -> Iterator[Entry]:
    """The steps of the files that are there. DataError: a file that is not of this form."""
    names = pick(folder, "label_foodtype.csv")
    recipes = {} if names is None else {key: name for _, (key, name) in cells(names, 2, "number,recipe")}
    for name in LISTS:
        path = pick(folder, name)
        if path is None:
            continue
        database = member(json_file(path), "database", dict, "the file", path)
        for id, video in database.items():
            yield from _steps(id, video, recipes, path)


def _steps(id: str, video: Any, recipes: dict[str, str], path: Path) -> Iterator[Entry]:
    subset = member(video, "subset", str, f'"{id}"', path)
    if subset not in SPLITS:
        raise DataError(f'"{id}" has the subset "{subset}".', file=path)
    recipe = member(video, "recipe_type", str, f'"{id}"', path)
    for i, step in enumerate(member(video, "annotations", list, f'"{id}"', path)):
        where = f'"{id}".annotations[{i}]'
        span = member(step, "segment", list, where, path)
        if len(span) != 2 or not all(isinstance(t, int | float) for t in span) or not 0 <= span[0] < span[1]:
            raise DataError(f"{where} has the segment {span}.", file=path)
        yield Entry(
            id=f"{id}#{i}",
            part=SPLITS[subset],
            split=SPLITS[subset],
            label=recipes.get(recipe, recipe),
            text=str(step.get("sentence", "")).strip(),
            start=float(span[0]),
            end=float(span[1]),
            item=id,
            media=(Part("video", (), recording=(id,)),),
        )


SET = MediaSet(
    name="youcook2",
    title="YouCook2",
    about="2,000 cooking videos of 89 recipes, cut into steps with a sentence each",
    license="MIT (the annotations; not verified); the videos are their owners'",
    source="http://youcook2.eecs.umich.edu/download",
    citation=(
        "L. Zhou, C. Xu, J. J. Corso. Towards automatic learning of procedures from web instructional videos. "
        "AAAI 2018."
    ),
    counts={"train": 1333, "val": 457, "test": 210},
    lists=(*LISTS, "label_foodtype.csv"),
    read=read,
)
