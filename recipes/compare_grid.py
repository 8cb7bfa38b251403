"""A talking face and its voice, pair by pair: which systems hear and see the order of things, and which an average?

GRID speaker s1, the windows of ``real_clips.py``: one man, one camera, so nothing but the motion of his face over time
tells one sentence from another. Systems that average a clip have little to go by, and that is what this shows.

    python recipes/compare_grid.py GRID_S1 [--systems a,b] [--seeds 1] [--budget 3] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import compared, write_table
from real_clips import MEDIA, SYSTEMS, WINDOW, grid_rows

import avcl
from avcl.files import finite, write_json
from avcl.types import jsonable

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
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--systems", default=",".join([name for name in SETTINGS if name != "all"]))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--budget", type=float, default=3.0, help="minutes of training of a system and seed")
    parser.add_argument("--limit", type=int, default=0, help="so many sentences only")
    parser.add_argument("--test", type=int, default=200, help="sentences that are held out")
    parser.add_argument("--work", type=Path, help="keep runs here, and go on from what is there")
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = grid_rows(given.folder, limit=given.limit, test=given.test)
    names = given.systems.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
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
    path = given.results / "retrieval" / "compare_grid.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, finite(jsonable(compared(made, "A talking face and its voice, pair by pair (GRID)", about))))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
