"""Pictures and their names, spoken and written, in two languages, on stamps that no system ever saw (Tux Paint).

358 pictures, each with its name said and written in French and in Spanish: a row for every picture and language, so a
picture has two captions, and all rows of one name are right answers for each other (relevance by group). Folds over the
names: pictures and words of the test are new. Nothing is pretrained here, and a few hundred pairs are very few.

``picture_speech``  which picture is meant by what is said · ``picture_text``  by what is written · ``speech_text``
what is said against what is written · ``three``  all three at once, every direction

    python recipes/compare_stamps.py picture_speech STAMPS [--systems a,b] [--seeds 1] [--budget 1] [--work FOLDER]
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import compared, comparison_parser, workplace, write_result, write_table
from folded import compare_folds, parts

from avcl import discover

FOLDS = 3
LANGUAGES = ("fr", "es")
# What every system is shown: a picture of 64 pixels, and 3 s of sound, which nearly all names fit into.
SHOWN: Mapping[str, Any] = {"fps": 1.0, "size": (64, 64), "sample_rate": 8000, "window": 3.0, "frames": 1, "epochs": 60}
STILL: Mapping[str, Any] = {"timing": 0.0}  # a picture has no timing to agree with
CAPTIONS = ("merkx2019_speech2image", "ilharco2019_mms", "monfort2021_spoken_moments_amm", "rouditchenko2020_avlnet")
BY_CATEGORY = ("semantic_matching", "zhen2019_dscmr", "triplet")
SETS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "picture_speech": (("image", "audio"), ("cca", "infonce", *CAPTIONS, *BY_CATEGORY), "Pictures and spoken names"),
    "picture_text": (
        ("image", "text"),
        ("cca", "infonce", "monfort2021_spoken_moments_amm", "wu2019_univse", *BY_CATEGORY),
        "Pictures and written names",
    ),
    "speech_text": (("audio", "text"), ("cca", "kcca", "infonce", "dcca", "triplet"), "Spoken and written names"),
    "three": (("image", "audio", "text"), ("cca", "infonce", "rouditchenko2020_avlnet"), "Pictures, spoken, written"),
}


def read(stamps: Path) -> list[dict[str, Any]]:
    """A row for each picture and language."""
    with open(stamps / "stamps.csv", newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    return [
        {
            "id": f"{row['id']} {language}",
            "image": (stamps / "images" / f"{row['id']}.jpg").resolve(),
            "audio": (stamps / f"speech_{language}" / f"{row['id']}.ogg").resolve(),
            "text": row[f"text_{language}"],
            "label": row["category"],
            "group": row["text_en"].lower(),
        }
        for row in found
        for language in LANGUAGES
    ]


def settings_of(systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The small sizes of each system's own trial, for hours are not spent here; the epochs are those of ``SHOWN``."""
    found: dict[str, dict[str, Any]] = {"all": dict(SHOWN)}
    for name in systems:
        trial = discover.system_class(name).trial
        if name in (*CAPTIONS, "wu2019_univse") and trial is not None:
            found[name] = {**trial.settings, **{k: v for k, v in SHOWN.items() if k in trial.settings or k == "epochs"}}
    if "infonce" in systems:
        found["infonce"] = dict(STILL)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = comparison_parser(__doc__, systems="", seeds=1, budget=1.0)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("stamps", type=Path)
    parser.add_argument("--limit", type=int, default=0, help="so many stamps only")
    given = parser.parse_args(argv)
    streams, systems, title = SETS[given.set]
    systems = tuple(given.systems.split(",")) if given.systems else systems
    rows = read(given.stamps)[: 2 * given.limit or None]
    split = parts([row["group"] for row in rows], FOLDS)
    with workplace(given.work) as work:

        def write(fold: int) -> Path:
            kept = [
                {k: v for k, v in row.items() if k in (*streams, "id", "label", "group")} | {"split": str(side)}
                for row, side in zip(rows, split[fold], strict=True)
            ]
            return write_table(work / f"fold {fold}.csv", kept)

        made = compare_folds(
            write, FOLDS, work, systems=systems, seeds=given.seeds, budget=given.budget, relevance="group",
            baseline=systems[0], settings=settings_of(systems), patience=15,
        )  # fmt: skip
    print(made)
    names = len({row["group"] for row in rows})
    about = (
        f"Tux Paint: {len(rows) // 2} pictures of {names} names in French and Spanish, {FOLDS} folds over the names, "
        f"so both are new; about {len(rows) // 2 // FOLDS} pictures and twice as many captions to choose from; "
        f"relevance by name, queries of one name are drawn together. {given.seeds} seed(s), at most {given.budget:g} "
        f"minutes each, the best epoch by the validation fold. Classes (of {', '.join(BY_CATEGORY)}): categories."
    )
    write_result(
        given.results, f"retrieval/stamps_{given.set}", compared(made, f"{title} of unseen stamps (Tux Paint)", about)
    )


if __name__ == "__main__":
    main()
