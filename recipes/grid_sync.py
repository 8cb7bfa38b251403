"""Real faces: by how many milliseconds is the voice late? GRID speaker s1, unseen sentences, known shifts.

The sentences are in time (the folder's notes say how that was checked); the sound of each is moved by a known lag,
uniform in ±400 ms and not rounded to frames (``avcl.data.shifted``). Three models answer the same 200 sentences:
one trained on other sentences moved by known lags, one trained as ``avcl train FOLDER`` does, which moves the sound
inside of the window, and the one of the generated world, which has never seen a face. Beside them stand chance, an
untrained copy, the picture of another sentence, and always 0.

    python recipes/grid_sync.py FOLDER MODEL     FOLDER holds video/; MODEL: trained by recipes/families.py --runs
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import main, write_table

import avcl
from avcl.data import Splits
from avcl.data.shifted import Shifted
from avcl.types import Report

SYSTEM = "sync_correlation"
SETTINGS: Mapping[str, Any] = {"size": (48, 48), "epochs": 12, "batch_size": 32}
METRICS = (
    ("all", "within_40ms"),
    ("all", "within_125ms"),
    ("all", "median_ms"),
    ("all", "undecidable"),
    ("all", "interval_holds"),
    ("all", "calibration_error"),
    ("decided", "within_40ms"),
    ("decided", "median_ms"),
)
CONTROLS = ("untrained", "wrong partner", "always 0")


def splits_of(folder: Path, *, seed: int, test: int, limit: int) -> Splits:
    """The sentences, of which the first ``test`` in random order are to test, a quarter as many to validate."""
    videos = sorted((folder / "video").glob("*.mp4"))
    random.Random(seed).shuffle(videos)
    videos = videos[: limit or None]
    split = ["test" if i < test else "val" if i < test + test // 4 else "train" for i in range(len(videos))]
    rows = [{"id": v.stem, "video": v.resolve(), "split": s} for v, s in zip(videos, split, strict=True)]
    with tempfile.TemporaryDirectory() as place:
        return avcl.load_data(write_table(Path(place) / "manifest.csv", rows))


def lines(name: str, report: Report) -> list[list[Any]]:
    """A row a measure: value, interval, chance and every control."""
    found = []
    for condition, metric in METRICS:
        span = report.interval[condition][metric]
        others = [report.controls[c].get(condition, {}).get(metric) for c in CONTROLS]
        chance = report.chance.get(condition, {}).get(metric)
        cells = [report.scores[condition][metric], *span, chance, *others]
        value, low, high, *rest = (None if x is None or x != x else round(x, 4) for x in cells)
        found.append([name, condition, metric, value, [low, high], *rest])
    return found


def grid_sync(
    folder: Path,
    world: Path,
    *,
    seed: int = 0,
    test: int = 200,
    limit: int = 0,
    settings: Mapping[str, Any] = SETTINGS,
) -> Mapping[str, Any]:
    """Trained on faces twice and on the world once, measured on faces."""
    splits = splits_of(folder, seed=seed, test=test, limit=limit)
    reports: dict[str, Report] = {}
    seconds: dict[str, float] = {}
    ways = {
        "faces, known lags": (Shifted(splits.train, seed=seed, fresh=True), Shifted(splits.val, seed=seed)),
        "faces, moved inside": (splits.train, splits.val),
    }
    for name, (train, val) in ways.items():
        started = time.monotonic()
        model = avcl.train(SYSTEM, train, val=val, seed=seed, settings=settings, workers=1)
        seconds[name] = round(time.monotonic() - started, 1)
        reports[name] = _measured(name, model, splits)
    reports["the world"] = _measured("the world", avcl.load(world), splits)
    lost = {name: list(report.not_beaten()) for name, report in reports.items()}
    return {
        "title": "A talking face: by how much is the voice late?",
        "about": f"GRID speaker s1, {len(splits.test)} unseen sentences, the voice moved by a known lag, uniform in "
        f"±400 ms; trained on {len(splits.train)} other sentences of the same speaker "
        f"({', '.join(f'{n}: {s:.0f} s' for n, s in seconds.items())}), or on the generated world, in which "
        f"nobody speaks. Deciding measure: {METRICS[0][1]}. Not beaten: {lost}. Seed {seed}.",
        "not_beaten": lost,
        "train_seconds": seconds,
        "settings": dict(settings),
        "tables": [
            {
                "columns": ["trained on", "condition", "metric", "value", "interval", "chance", *CONTROLS],
                "rows": [row for name, report in reports.items() for row in lines(name, report)],
            }
        ],
    }


def _measured(name: str, model: avcl.Model, splits: Splits) -> Report:
    report = avcl.evaluate(model, splits.test, task="sync", controls=True, workers=1)
    print(f"{name}\n{report}", flush=True)
    return report


if __name__ == "__main__":
    main(grid_sync, "grid", "world", result="sync/grid_s1")
