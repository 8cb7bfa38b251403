"""Two sentences of one speaker at once, each guided by its face: only the motion of the mouth can tell them apart.

GRID speaker s1. Sentences are split at random: of those set aside fixed pairs are mixed at equal level, the middle two
seconds of each; training mixes windows of the others. One voice with itself is the hardest case there is, and a few
minutes of training are little: the figures are reported beside all controls, and there is no bar.

    python recipes/grid_separation.py GRID_S1        the folder that holds video/
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
from avcl.types import Report

WINDOW, START, SENTENCE = 2.0, 0.5, 2.95
MEDIA = {"window": WINDOW, "fps": 12.5, "size": (64, 64), "sample_rate": 8000}
# Finer in time than on the world, for syllables: 62 frames a second, three levels, so that FiLM has 8 steps a second.
MOTION = {**MEDIA, "hop": 128, "widths": (16, 32, 64), "rounds": 2, "precision": "bf16"}
SYSTEMS: Mapping[str, Mapping[str, Any]] = {"zhao2019_sound_of_motions": {**MOTION, "epochs": 4}}
METRICS = ("SI-SDR gain", "SI-SDR", "SDR", "SIR", "SAR")


def rows_of(folder: Path, *, seed: int, limit: int, test: int) -> list[dict[str, Any]]:
    """A row a window: of ``test`` sentences the middle, of the others the first and the last two seconds."""
    videos = sorted((folder / "video").glob("*.mp4"))
    random.Random(seed).shuffle(videos)
    rows = []
    for i, video in enumerate(videos[: limit or None]):
        split = "test" if i < test else "train"
        for start in (START,) if split == "test" else (0.0, round(SENTENCE - WINDOW, 3)):
            known = {"group": video.stem, "split": split, "start": start, "end": round(start + WINDOW, 3)}
            rows.append({"id": f"{video.stem}@{start:g}", "video": video.resolve(), **known})
    return rows


def cells(report: Report) -> dict[str, dict[str, Any]]:
    """Every metric with its interval, and of each control the value and its interval."""
    found = {}
    for metric in METRICS:
        span = [round(x, 3) for x in report.interval["guided"][metric]]
        controls = {name: round(scores["guided"][metric], 3) for name, scores in report.controls.items()}
        found[metric] = {"value": round(report.scores["guided"][metric], 3), "interval": span, **controls}
    return found


def run(
    folder: Path, *, seed: int = 0, limit: int = 0, test: int = 120, systems: Mapping[str, Mapping[str, Any]] = SYSTEMS
) -> Mapping[str, Any]:
    """Two sentences of one speaker, separated by their faces."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        rows = rows_of(folder, seed=seed, limit=limit, test=test)
        splits = avcl.load_data(write_table(Path(temporary) / "manifest.csv", rows))
        for name, settings in systems.items():
            started = time.monotonic()
            model = avcl.train(name, splits.train, seed=seed, settings=settings, workers=1)
            seconds = round(time.monotonic() - started, 1)
            report = avcl.evaluate(model, splits.test, task="separation", controls=True, workers=1)
            ideal = {m: round(report.scores[f"ideal {m} mask"]["SI-SDR gain"], 2) for m in ("ratio", "binary")}
            steps = model.meta["training"]["steps"]
            lost = list(report.not_beaten())
            found[name] = {
                "mixtures": report.n_scored,
                "train_windows": len(splits.train),
                "train_seconds": seconds,
                "steps": steps,
                "settings": settings,
                "ideal_masks_gain": ideal,
                "not_beaten": lost,
                "scores": cells(report),
            }
            print(report, f"\n{name}: {steps} steps, {seconds:.0f} s; not beaten: {lost}", flush=True)
    heads = list(next(iter(next(iter(found.values()))["scores"].values())))
    lines = [[name, m, *(c[h] for h in heads)] for name, cell in found.items() for m, c in cell["scores"].items()]
    about = "; ".join(_said(name, cell) for name, cell in found.items())
    return {
        "title": "One voice with itself: two sentences separated by their faces",
        "about": f"GRID speaker s1, unseen sentences mixed at equal level, the middle 2 s, dB. {about}. Seed {seed}. "
        "No bar: reported as it is.",
        "tables": [{"columns": ["system", "metric", *heads], "rows": lines}],
        "systems": found,
    }


def _said(name: str, cell: Mapping[str, Any]) -> str:
    ideal, lost = cell["ideal_masks_gain"], cell["not_beaten"]
    return (
        f"{name}: {cell['mixtures']} mixtures, {cell['train_windows']} training windows of other sentences, "
        f"{cell['steps']} steps, ideal ratio and binary mask gain {ideal['ratio']} and {ideal['binary']} dB, "
        + (f"not above {', '.join(lost)}" if lost else "above every control")
    )


if __name__ == "__main__":
    main(run, "grid_s1", result="separation/grid_s1")
