"""A talking face and its voice, pair by pair: which systems hear and see the order of things, and which an average?

GRID speaker s1, the windows of ``real_clips.py``: one man, one camera, so nothing but the motion of his face over time
tells one sentence from another. Systems that average a clip have little to go by, and that is what this shows.

    python recipes/compare_grid.py GRID_S1 [--systems a,b] [--seeds 1] [--budget 3] [--work FOLDER]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import compared, comparison_parser, workplace, write_result, write_table
from real_clips import MEDIA, SYSTEMS, WINDOW, grid_rows

import avcl

# Sizes of a trial of minutes, not those of the papers; what is shown is the same for all.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "all": {**MEDIA, "epochs": 12},
    "cca": {"ridge": 1.0},
    "infonce": {k: v for k, v in SYSTEMS["infonce"].items() if k not in MEDIA},
    "dcca": {"activation": "gelu", "learning_rate": 2e-3},
    "merkx2019_speech2image": {"hidden": 96, "depth": 1, "learning_rate": 2e-3, "clip_norm": 1.0, "frames": 8},
    "ilharco2019_mms": {"dim": 128, "frames": 8, "batch_size": 32},
    "monfort2021_spoken_moments_amm": {
        "dim": 128, "hidden": 128, "reader": "davenet", "widths": (32, 64, 96, 128), "batch_size": 32, "frames": 8,
    },
    "rouditchenko2020_avlnet": {
        "dim": 128, "normalize": True, "widths": (32, 48, 64, 96), "depths": (1, 1, 1, 1), "batch_size": 64,
        "learning_rate": 2e-3, "frames": 8,
    },
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = comparison_parser(
        __doc__, systems=",".join([name for name in SETTINGS if name != "all"]), seeds=1, budget=3.0
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=0, help="so many sentences only")
    parser.add_argument("--test", type=int, default=200, help="sentences that are held out")
    given = parser.parse_args(argv)
    rows = grid_rows(given.folder, limit=given.limit, test=given.test)
    names = given.systems.split(",")
    with workplace(given.work) as work:
        made = avcl.compare(
            write_table(work / "windows.csv", rows), out=work / "runs", systems=names, seeds=given.seeds,
            budget=given.budget, relevance="pair", progress=True,
            settings={name: dict(own) for name, own in SETTINGS.items() if name in ("all", *names)},
        )  # fmt: skip
    print(made)
    about = (
        f"GRID speaker s1, {given.test} unseen sentences, their middle {WINDOW:g} s; "
        f"{sum(row['split'] == 'train' for row in rows):,} training windows of other sentences; relevance by pair. "
        f"{given.seeds} seed(s), at most {given.budget:g} minutes each, sizes of minutes and not of the papers."
    )
    write_result(
        given.results,
        "retrieval/compare_grid",
        compared(made, "A talking face and its voice, pair by pair (GRID)", about),
    )


if __name__ == "__main__":
    main()
