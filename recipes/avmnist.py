"""Spoken digits and written digits: infonce against cca, on speakers that training never heard.

FSDD (6 speakers, 2,700 recordings) with one MNIST image of the same digit for each recording. The pairing is by class
only: no image belongs to a recording more than another of its digit, so training on pairs too long learns them by
heart. Test: two speakers, training: the other four, rotated so that each speaker is tested once. The settings of each
system are chosen in each rotation by the score of one training speaker after training without that one. Scored by
class (mAP over the whole ranking, both directions). Both systems learn from the same pairs and no label; a further
row lets infonce take every clip of the same digit in the batch as a positive, which uses the labels.

    python recipes/avmnist.py AVMNIST FSDD        the two folders of data
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import main, row, table, write_table

import avcl
from avcl.data.dataset import Data
from avcl.media import write_image

MEDIA = {"size": (32, 32), "sample_rate": 8000, "window": 1.0}
STILL = {**MEDIA, "timing": 0.0}  # an image has no timing to agree with
Candidates = Sequence[Mapping[str, Any]]
SYSTEMS: Mapping[str, tuple[str, Candidates]] = {
    "cca": ("cca", [{**MEDIA, "ridge": r, "components": k} for r in (0.1, 1.0) for k in (5, 10, 20)]),
    "infonce": ("infonce", [{**STILL, "epochs": e, "temperature": 0.2} for e in (4, 6, 9)]),
    "infonce, positives by label": ("infonce", [{**STILL, "epochs": 6, "positives": "label"}]),
}


def read(avmnist: Path, fsdd: Path, out: Path, *, limit: int = 0) -> list[dict[str, Any]]:
    """Rows of a manifest (no split yet), the images as PNG files under ``out``."""
    images = np.load(avmnist / "mnist_images.npz")["images"]
    with open(avmnist / "pairs.csv", newline="") as file:
        pairs = list(csv.DictReader(file))
    rows = []
    for pair in pairs[:: max(1, len(pairs) // limit)] if limit else pairs:
        name, number = pair["fsdd_filename"], int(pair["mnist_index"])
        picture = out / f"{number}.png"
        write_image(picture, np.repeat(images[number][:, :, None], 3, 2))
        sound = (fsdd / "recordings" / name).resolve()
        known = {"label": pair["digit"], "speaker": pair["speaker"]}
        rows.append({"id": Path(name).stem, "audio": sound, "image": picture, **known})
    return rows


def choose(system: str, candidates: Candidates, train: Data, val: Data, seed: int) -> Mapping[str, Any]:
    """The settings with the best mAP by class on ``val``, both directions, after training on ``train``."""
    if len(candidates) == 1:
        return candidates[0]
    scores = []
    for settings in candidates:
        model = avcl.train(system, train, seed=seed, settings=settings)
        scores.append(avcl.evaluate(model, val, relevance="class").scores["mean"]["mAP"])
    return candidates[int(np.argmax(scores))]


def run(
    avmnist: Path,
    fsdd: Path,
    *,
    seed: int = 0,
    limit: int = 0,
    folds: int = 3,
    systems: Mapping[str, tuple[str, Candidates]] = SYSTEMS,
) -> Mapping[str, Any]:
    """infonce against cca on written and spoken digits, held-out speakers."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    with tempfile.TemporaryDirectory() as folder:
        rows = read(avmnist, fsdd, Path(folder), limit=limit)
        data = avcl.load_data(write_table(Path(folder) / "manifest.csv", rows)).all
        speakers = sorted({r["speaker"] for r in rows})

        def part(chosen: Sequence[str], name: str) -> Data:
            return data.subset([i for i, r in enumerate(rows) if r["speaker"] in chosen], split=name)

        for fold in range(folds):
            turned = speakers[2 * fold :] + speakers[: 2 * fold]
            test, val, fit, train = (
                part(turned[:2], "test"),
                part(turned[2:3], "val"),
                part(turned[3:], "train"),
                part(turned[2:], "train"),
            )
            for name, (system, candidates) in systems.items():
                settings = choose(system, candidates, fit, val, seed)
                started = time.monotonic()
                model = avcl.train(system, train, seed=seed, settings=settings, workers=1)
                seconds = round(time.monotonic() - started, 1)
                report = avcl.evaluate(model, test, relevance="class", controls=True, workers=1)
                cell = {"test_speakers": turned[:2], "settings": settings, "train_seconds": seconds}
                found[name].append({**cell, "scores": row(report, "mAP")})
                shown = {d: round(s["mAP"], 4) for d, s in report.scores.items()}
                print(name, turned[:2], shown, settings, f"{seconds:.0f} s", flush=True)
    mean = {
        name: {d: round(float(np.mean([c["scores"][d]["mAP"]["value"] for c in cells])), 4) for d in cells[0]["scores"]}
        for name, cells in found.items()
    }
    lines = [((name, " ".join(c["test_speakers"])), c["scores"]) for name, cells in found.items() for c in cells]
    return {
        "title": "Spoken and written digits: infonce against cca, speakers held out",
        "about": "FSDD sounds (training takes) paired by digit with MNIST images: mAP by class over the full ranking, "
        "each speaker tested once, settings chosen on another speaker. Training uses the own pair only, in cca and "
        "infonce alike; the last system takes all of one digit as positives. "
        f"Seed {seed}; mean of the folds: infonce {mean['infonce']['mean']:.3f}, cca {mean['cca']['mean']:.3f}, "
        f"{mean['infonce']['mean'] / mean['cca']['mean']:.2f} times.",
        "tables": [table("", lines, "system", "speakers held out")],
        "mean_over_folds": mean,
        "infonce_over_cca": round(mean["infonce"]["mean"] / mean["cca"]["mean"], 3),
        "folds": found,
    }


if __name__ == "__main__":
    main(run, "avmnist", "fsdd", result="retrieval/avmnist")
