"""Sounds of ESC-10 with pictures of ImageHear: the two classes that both have, and how little they tell.

Dogs and rain: 64 sounds in the official folds 1-4, seven pictures. A row is a sound with a picture of its class; in
every fold the sounds are those of the official fold, and the pictures are held out too (one or two of each class).
Fixed statistics of both (``encoders.statistics``). With seven pictures no difference of systems can be shown: queries
of one picture stand or fall together, and the table says so.

    python recipes/compare_esc10.py ESC10 IMAGEHEAR [--systems a,b] [--work FOLDER]
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import compared, comparison_parser, workplace, write_result, write_table
from folded import compare_folds

import avcl
from avcl.data import Loader
from avcl.encoders.statistics import summarize
from avcl.types import Inputs

CLASSES = ("dog", "rain")
FOLDS = 3  # of the official four the first three are tested, for there are three pictures of a dog
SYSTEMS = "cca,c_cca,semantic_matching,infonce,triplet,zhen2019_dscmr"
SHOWN = Inputs(fps=1.0, size=(64, 64), sample_rate=16_000, window=5.0)


def read(esc10: Path, imagehear: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The sounds and the pictures of the classes that both sets have, with their folds."""
    with open(esc10 / "meta.csv", newline="") as file:
        meta = [m for m in csv.DictReader(file) if m["category"] in CLASSES]
    sounds = [
        {"id": m["filename"], "audio": (esc10 / "audio" / m["filename"]).resolve(), "label": m["category"],
         "group": m["src_file"], "fold": (int(m["fold"]) - 1) % (FOLDS + 1)}
        for m in meta
    ]  # fmt: skip
    with open(imagehear / "images.csv", newline="") as file:
        images = [m for m in csv.DictReader(file) if m["class"] in CLASSES]
    seen = dict.fromkeys(CLASSES, 0)
    pictures = []
    for m in images:
        path = (imagehear / "images" / m["filename"]).resolve()
        pictures.append({"id": m["filename"], "image": path, "label": m["class"], "fold": seen[m["class"]] % FOLDS})
        seen[m["class"]] += 1
    return sounds, pictures


def vectors(rows: Sequence[dict[str, Any]], stream: str, table: Path) -> np.ndarray:
    """The fixed statistics of one stream of these files [N, D]."""
    shown = avcl.load_data(write_table(table, [{**row, "split": "train"} for row in rows])).all.configure(SHOWN)
    with Loader(shown, batch_size=16) as loader:
        found = [
            summarize(batch.to("cpu").streams[stream], shown.spec.streams[stream], seconds=SHOWN.window or 0.0).numpy()
            for batch in loader.batches(0)
        ]
    return np.concatenate(found)


def main(argv: Sequence[str] | None = None) -> None:
    parser = comparison_parser(__doc__, systems=SYSTEMS, seeds=1)
    parser.add_argument("esc10", type=Path)
    parser.add_argument("imagehear", type=Path)
    given = parser.parse_args(argv)
    with workplace(given.work) as work:
        sounds, pictures = read(given.esc10, given.imagehear)
        heard, seen = vectors(sounds, "audio", work / "sounds.csv"), vectors(pictures, "video", work / "pictures.csv")

        def write(fold: int) -> Path:
            rows: list[tuple[int, int, str]] = []
            for i, sound in enumerate(sounds):
                split = "test" if sound["fold"] == fold else "val" if sound["fold"] == FOLDS else "train"
                # to stop by are sounds of the fourth fold with pictures of training: seven cannot be cut in three
                kept = [j for j, p in enumerate(pictures)
                        if p["label"] == sound["label"] and (p["fold"] == fold) == (split == "test")]  # fmt: skip
                rows.append((i, kept[i % len(kept)], split))
            path = work / f"fold {fold}.npz"
            np.savez(
                path,
                audio=heard[[i for i, _, _ in rows]],
                video=seen[[j for _, j, _ in rows]],
                id=np.array([sounds[i]["id"] for i, _, _ in rows]),
                label=np.array([sounds[i]["label"] for i, _, _ in rows]),
                group=np.array([f"{pictures[j]['id']} {split}" for _, j, split in rows]),
                split=np.array([split for _, _, split in rows]),
            )
            return path

        made = compare_folds(write, FOLDS, work, systems=given.systems, seeds=given.seeds, relevance="class")
    print(made)
    about = (
        f"ESC-10 and ImageHear: {len(sounds)} sounds and {len(pictures)} pictures of {' and '.join(CLASSES)}, all that "
        f"both sets have; {FOLDS} folds, sounds by the official ones, pictures of the test new; a recording may stand "
        "beside its picture in training only. Queries of one picture are drawn together: seven pictures, so nothing "
        f"but a large difference could be told. {given.seeds} seed(s), default settings."
    )
    write_result(
        given.results,
        "retrieval/compare_esc10",
        compared(made, "Dogs and rain, heard and seen (ESC-10, ImageHear)", about),
    )


if __name__ == "__main__":
    main()
