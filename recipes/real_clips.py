"""Real video, instance retrieval: which sound belongs to this picture? cca and infonce on windows of real clips.

Two sets. ``av_clips``: 45 short videos of sounding things; 2 s windows, one after the other in the test, every half
second in training; three folds over the coarse groups, so that no kind of source is in training and test. ``grid_s1``:
one speaker, 800 sentences; the face alone tells the sentences apart, by its motion; 200 test sentences, one 2 s window
each. Far too little data to learn from in the first set: the figures say how far it carries, with intervals and chance.

    python recipes/real_clips.py av_clips FOLDER        FOLDER holds clips.csv and video/
    python recipes/real_clips.py grid_s1 FOLDER         FOLDER holds video/
"""

from __future__ import annotations

import csv
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import main, row, table, write_table

import avcl

WINDOW = 2.0
MEDIA = {"window": WINDOW, "fps": 12.5, "size": (48, 48), "sample_rate": 16_000}
SYSTEMS: Mapping[str, Mapping[str, Any]] = {
    "cca": {**MEDIA, "ridge": 1.0},
    "infonce": {**MEDIA, "steps": 16, "epochs": 12, "timing": 0.7},
}
METRICS = ("R@1", "R@5", "R@10", "medR", "MRR")


def windows(id: str, video: Path, seconds: float, hop: float, **rest: str) -> Iterable[dict[str, Any]]:
    """Rows for one file: all windows of ``WINDOW`` seconds that fit, ``hop`` apart."""
    for i in range(max(0, int((seconds - WINDOW) / hop + 1e-6) + 1)):
        start = round(i * hop, 3)
        yield {"id": f"{id}@{start:g}", "video": video.resolve(), "start": start, "end": start + WINDOW, **rest}


def compare(
    rows: Sequence[Mapping[str, Any]], *, seed: int, systems: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Train and score every system on rows that carry their split."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        splits = avcl.load_data(write_table(Path(folder) / "manifest.csv", rows))
        for name, settings in systems.items():
            started = time.monotonic()
            model = avcl.train(name, splits, seed=seed, settings=settings, workers=1)
            seconds = round(time.monotonic() - started, 1)
            report = avcl.evaluate(model, splits.test, relevance="pair", controls=True, workers=1)
            found[name] = {
                "queries": report.n_scored,
                "skipped": dict(report.skipped),
                "scores": row(report, *METRICS),
                "train_seconds": seconds,
            }
            mean = report.scores["mean"]
            print(name, f"{seconds:.0f} s", report.n_scored, {m: round(mean[m], 4) for m in METRICS}, flush=True)
    return {"train_windows": len(splits.train), "systems": found, "settings": systems}


def av_clips(
    folder: Path, *, seed: int = 0, folds: int = 3, limit: int = 0, systems: Mapping[str, Mapping[str, Any]] = SYSTEMS
) -> Mapping[str, Any]:
    """Real clips of sounding things: windows, folds over the coarse groups."""
    with open(folder / "clips.csv", newline="") as file:
        clips = [c for c in csv.DictReader(file) if float(c["duration"]) >= WINDOW][: limit or None]
    groups = sorted({c["group"] for c in clips})
    random.Random(seed).shuffle(groups)
    found = []
    for fold in range(folds):
        side = {g: ("train", "test")[i % 3 == fold] for i, g in enumerate(groups)}
        found.append(compare(list(_av_rows(folder, clips, side)), seed=seed, systems=systems))
    lines = [((name, n), s["scores"]) for n, cell in enumerate(found, 1) for name, s in cell["systems"].items()]
    return {
        "title": "Real clips of sounding things: which sound belongs to this picture?",
        "about": "45 short videos, instance retrieval of 2 s windows; three folds over the coarse groups of sources, "
        f"none in training and test. Seed {seed}. Far too little to learn from: the figures say how far it carries.",
        "tables": [table("", lines, "system", "fold")],
        "folds": found,
    }


def _av_rows(folder: Path, clips: Sequence[Mapping[str, str]], side: Mapping[str, str]) -> Iterable[dict[str, Any]]:
    for c in clips:
        split = side[c["group"]]
        hop = WINDOW if split == "test" else 0.5
        video = folder / "video" / f"{c['id']}.mp4"
        yield from windows(c["id"], video, float(c["duration"]), hop, label=c["group"], group=c["group"], split=split)


def grid_rows(folder: Path, *, seed: int = 0, limit: int = 0, test: int = 200) -> list[dict[str, Any]]:
    """Windows of 2 s: many of each training sentence, the middle one of the others."""
    videos = sorted((folder / "video").glob("*.mp4"))
    random.Random(seed).shuffle(videos)
    videos = videos[: limit or None]
    rows: list[dict[str, Any]] = []
    for i, video in enumerate(videos):
        split = "test" if i < test else "val" if i < test + test // 4 else "train"
        if split == "train":
            rows += windows(video.stem, video, 2.95, 0.3, group=video.stem, split=split)
        else:
            times = {"start": 0.5, "end": 0.5 + WINDOW}
            rows.append({"id": video.stem, "video": video.resolve(), **times, "group": video.stem, "split": split})
    return rows


def grid_s1(
    folder: Path, *, seed: int = 0, limit: int = 0, test: int = 200, systems: Mapping[str, Mapping[str, Any]] = SYSTEMS
) -> Mapping[str, Any]:
    """Sentences of one speaker: which voice belongs to this face?"""
    rows = grid_rows(folder, seed=seed, limit=limit, test=test)
    found = compare(rows, seed=seed, systems=systems)
    return {
        "title": "A talking face: which voice belongs to it?",
        "about": f"GRID speaker s1, {test} unseen sentences, instance retrieval of the middle 2 s; "
        f"{found['train_windows']} training windows of other sentences. Seed {seed}.",
        "tables": [table("", [((name,), s["scores"]) for name, s in found["systems"].items()], "system")],
        **found,
    }


if __name__ == "__main__":
    chosen = {"av_clips": av_clips, "grid_s1": grid_s1}[sys.argv.pop(1)]
    main(chosen, chosen.__name__, result=f"retrieval/{chosen.__name__}")
