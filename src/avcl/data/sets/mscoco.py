"""MS-COCO captions (Chen et al. 2015): 123,287 pictures with five sentences each.

Files read: ``dataset_coco.json``, the split of Karpathy and Fei-Fei that retrieval is measured on (``images``: split,
filename, cocoid, sentences; "restval" counts as train); or the official ``captions_train2014.json`` and
``captions_val2014.json`` (also of 2017; ``images``: id, file_name; ``annotations``: id, image_id, caption). Media are
the pictures under their own names. A row is a sentence; its group is the picture. The counts are those of the former.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avcl.data.official import Entry, Part
from avcl.data.official_lists import json_file, member, members, pick
from avcl.data.official_media import MediaSet
from avcl.errors import DataError

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def read(folder: Path) -> Iterator[Entry]:
    """The sentences of ``dataset_coco.json``, or of the official files. DataError: a file that is not of this form."""
    path = pick(folder, "dataset_coco.json")
    if path is not None:
        value = json_file(path)
        for where, image in members(value, "images", path):
            split = member(image, "split", str, where, path)
            if split not in SPLITS:
                raise DataError(f'{where} has the split "{split}".', file=path)
            name = member(image, "filename", str, where, path)
            for i, sentence in enumerate(member(image, "sentences", list, where, path)):
                text = member(sentence, "raw", str, f"{where}.sentences[{i}]", path)
                yield _entry(name, SPLITS[split], i, text)
        return
    for split in ("train", "val"):
        path = pick(folder, f"captions_{split}2014.json", f"captions_{split}2017.json")
        if path is not None:
            yield from _captions(json_file(path), split, path)


def _captions(value: Any, split: str, path: Path) -> Iterator[Entry]:
    names: dict[int, str] = {}
    for where, image in members(value, "images", path):
        names[member(image, "id", int, where, path)] = member(image, "file_name", str, where, path)
    seen: dict[int, int] = {}
    for where, annotation in members(value, "annotations", path):
        image = member(annotation, "image_id", int, where, path)
        if image not in names:
            raise DataError(f"{where} is about the image {image}, which is not listed.", file=path)
        seen[image] = seen.get(image, -1) + 1
        yield _entry(names[image], split, seen[image], member(annotation, "caption", str, where, path))


def _entry(name: str, split: str, i: int, text: str) -> Entry:
    stem = Path(name).stem
    return Entry(
        id=f"{stem}#{i}", part=split, split=split, text=text.strip(), item=stem, media=(Part("image", (stem,)),)
    )


SET = MediaSet(
    name="mscoco",
    title="Microsoft COCO captions",
    about="123,287 pictures with five sentences each; the split of Karpathy and Fei-Fei",
    license="CC BY 4.0 (the captions); the pictures are their owners'",
    source="https://cocodataset.org/#download",
    citation=(
        "X. Chen, H. Fang, T.-Y. Lin, R. Vedantam, S. Gupta, P. Dollar, C. L. Zitnick. Microsoft COCO captions: data "
        "collection and evaluation server. arXiv 1504.00325, 2015. Split: A. Karpathy, L. Fei-Fei. CVPR 2015."
    ),
    counts={"train": 113_287, "val": 5000, "test": 5000},
    lists=("dataset_coco.json", "captions_train2014.json", "captions_val2014.json"),
    read=read,
)
