"""Lip reading aloud: the voice of GRID speaker s1, made from his silent mouth in sentences that were not trained on.

The sentences are split at random; a recognizer of the 51 words, trained on the true sound of the training sentences,
reads what is made of the others. Its own errors on their true sound stand beside it. One speaker, his own voice: the
easiest case of video to speech, and few minutes of training.

    python recipes/grid_speech.py GRID_S1        the folder that holds video/ and utterances.csv
"""

from __future__ import annotations

import csv
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import main, write_table

import avcl
from avcl.types import Report

SYSTEM = "mira2021_video_to_speech_gan"
PARTS = ("command", "colour", "preposition", "letter", "digit", "adverb")
SETTINGS: Mapping[str, Any] = {
    "size": (96, 96),
    "mouth": (0.72, 0.97, 0.32, 0.64),
    "hidden": 96,
    "width": 16,
    "learning_rate": 3e-3,
    "warmup": 0.25,
    "clip": 0.32,
    "epochs": 20,
    "adversary_from": 0.9,
}
JUDGE_EPOCHS = 40
CONTROLS = ("untrained", "wrong partner", "best fixed sentence")


def rows_of(folder: Path, *, seed: int, limit: int, test: int) -> list[dict[str, Any]]:
    """A row a sentence with what is said; the first ``test`` in random order are held out."""
    with open(folder / "utterances.csv", newline="") as file:
        said = {Path(line["filename"]).stem: " ".join(line[part] for part in PARTS) for line in csv.DictReader(file)}
    videos = [video for video in sorted((folder / "video").glob("*.mp4")) if video.stem in said]
    random.Random(seed).shuffle(videos)
    return [
        {"id": v.stem, "video": v.resolve(), "text": said[v.stem], "split": "test" if i < test else "train"}
        for i, v in enumerate(videos[: limit or None])
    ]


def lines(report: Report) -> list[list[Any]]:
    found = []
    for condition, metrics in report.scores.items():
        for metric, value in metrics.items():
            span = [round(x, 4) for x in report.interval[condition][metric]]
            others = (report.controls[name].get(condition, {}).get(metric) for name in CONTROLS)
            cells = (None if x is None else round(x, 4) for x in (value, *others))
            first, *rest = cells
            found.append([condition, metric, first, span, *rest])
    return found


def grid_speech(
    folder: Path,
    *,
    seed: int = 0,
    test: int = 160,
    limit: int = 0,
    settings: Mapping[str, Any] = SETTINGS,
    judge_epochs: int = JUDGE_EPOCHS,
) -> Mapping[str, Any]:
    """Speech from a silent mouth, read by a recognizer of the true speech."""
    with tempfile.TemporaryDirectory() as temporary:
        rows = rows_of(folder, seed=seed, limit=limit, test=test)
        splits = avcl.load_data(write_table(Path(temporary) / "manifest.csv", rows))
        started = time.monotonic()
        model = avcl.train(SYSTEM, splits.train, seed=seed, settings=settings, workers=1)
        seconds = round(time.monotonic() - started, 1)
        protocol = {"judge_epochs": judge_epochs}
        report = avcl.evaluate(
            model, splits.test, task="speech", protocol=protocol, fit=splits.train, controls=True, workers=1
        )
        print(report, flush=True)
        lost = list(report.not_beaten())
        return {
            "title": "A silent mouth speaks: GRID speaker s1",
            "about": f"GRID speaker s1, {len(splits.test)} sentences that were not trained on, {len(splits.train)} "
            f"that were; trained for {seconds:.0f} s (2 cores). A recognizer trained on the true sound of the training "
            "sentences reads the made sound (WER, lower is better). Decides: STOI. "
            + (f"Not beaten: {', '.join(lost)}." if lost else "Above every control.")
            + f" Seed {seed}.",
            "not_beaten": lost,
            "train_seconds": seconds,
            "settings": dict(settings),
            "tables": [{"columns": ["condition", "metric", "value", "interval", *CONTROLS], "rows": lines(report)}],
        }


if __name__ == "__main__":
    main(grid_speech, "grid_s1", result="speech/grid_s1")
