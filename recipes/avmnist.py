"""Spoken digits and written digits: infonce against cca, on speakers that training never heard.

FSDD (6 speakers, 2,700 recordings) with one MNIST image of the same digit for each recording. The pairing is by class
only: no image belongs to a recording more than another of its digit. Test: two speakers; training: the other four;
rotated so that each speaker is tested once. A fixed number of epochs and no validation, for the rank of the own pair
says nothing where the pairing is by class. Scored by class (mAP over the whole ranking, both directions). Both systems
see the same pairs and no label; a further row lets infonce take every clip of the same digit in the batch as a
positive, which uses the labels.

    python recipes/avmnist.py AVMNIST FSDD        the two folders of data
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import main, row, write_table

import avcl
from avcl.media import write_image

MEDIA = {"size": (32, 32), "sample_rate": 8000, "window": 1.0}
SYSTEMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "cca": ("cca", MEDIA),
    "infonce": ("infonce", {**MEDIA, "epochs": 12}),
    "infonce, positives by label": ("infonce", {**MEDIA, "epochs": 12, "positives": "label"}),
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


def run(
    avmnist: Path,
    fsdd: Path,
    *,
    seed: int = 0,
    limit: int = 0,
    folds: int = 3,
    systems: Mapping[str, tuple[str, Mapping[str, Any]]] = SYSTEMS,
) -> Mapping[str, Any]:
    """infonce against cca on written and spoken digits, held-out speakers."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    with tempfile.TemporaryDirectory() as folder:
        rows = read(avmnist, fsdd, Path(folder), limit=limit)
        speakers = sorted({r["speaker"] for r in rows})
        for fold in range(folds):
            test = set(speakers[2 * fold : 2 * fold + 2])
            split = [{**r, "split": "test" if r["speaker"] in test else "train"} for r in rows]
            table = write_table(Path(folder) / f"fold{fold}.csv", split)
            data = avcl.load_data(table).all
            train, held_out = (
                data.subset([i for i, r in enumerate(split) if r["split"] == side], split=side)
                for side in ("train", "test")
            )
            for name, (system, settings) in systems.items():
                started = time.monotonic()
                model = avcl.train(system, train, seed=seed, settings=settings, workers=1)
                seconds = time.monotonic() - started
                report = avcl.evaluate(model, held_out, relevance="class", workers=1)
                cell = {"test_speakers": sorted(test), "scores": row(report, "mAP"), "train_seconds": round(seconds, 1)}
                found[name].append(cell)
                print(name, sorted(test), {d: round(s["mAP"], 4) for d, s in report.scores.items()}, f"{seconds:.0f} s")
    mean = {
        name: {d: round(float(np.mean([c["scores"][d]["mAP"]["value"] for c in cells])), 4) for d in cells[0]["scores"]}
        for name, cells in found.items()
    }
    return {
        "what": "mAP by class, full ranking, held-out speakers; video is the image",
        "positives": "the own pair only, in cca and infonce alike; the last row takes all of one digit as positives",
        "mean_over_folds": mean,
        "infonce_over_cca": round(mean["infonce"]["mean"] / mean["cca"]["mean"], 3),
        "settings": {name: settings for name, (_, settings) in systems.items()},
        "folds": found,
    }


if __name__ == "__main__":
    main(run, "avmnist", "fsdd", result="retrieval/avmnist")
