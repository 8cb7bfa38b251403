"""A written digit from a spoken one, and the reverse: MS-VAE on speakers that training never heard.

The pairs of ``recipes/avmnist.py``: FSDD recordings (6 speakers) with MNIST images of the same digit, by class only. In
each of three rotations two speakers are held out. Of the training pairs every recording meets four more images of its
digit: with one alone the network learns by heart which image belongs to which recording. A generated image is judged by
a digit classifier that was trained on the real images of the training pairs (an SVM; what it is worth on real images
stands beside), a generated sound by one that was trained on the sounds of the training speakers. MRR is by class: any
item of the digit is right.

    python recipes/avmnist_generation.py AVMNIST FSDD        the two folders of data
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from avmnist import MEDIA, read
from common import main, write_table
from families import cells

import avcl
from avcl import discover
from avcl.data.dataset import Data
from avcl.data.derived import Kept

SYSTEM = "zhu2021b_msvae_crossmodal_generation"
# Four speakers train: what a tower hears in single moments (``channels``) it learns by heart.
SETTINGS: Mapping[str, Any] = {
    **MEDIA,
    "still": True,
    "side": 28,
    "frames": 1,
    "towers": True,
    "channels": 1,
    "dropout": 0.3,
    "epochs": 8,
}
MEETINGS = 5  # images of its digit that a training recording meets
PROTOCOL: Mapping[str, Any] = {"relevance": "class", "seconds": 1.0, "side": 28, "fit_rows": 1800}


def meetings(rows: Sequence[Mapping[str, Any]], *, seed: int) -> list[dict[str, Any]]:
    """Every recording with its own image, and with ``MEETINGS`` - 1 others of its digit among these rows."""
    rng = random.Random(seed)
    found: list[dict[str, Any]] = []
    for digit in sorted({row["label"] for row in rows}):
        alike = [row for row in rows if row["label"] == digit]
        for k in range(MEETINGS):
            images = [row["image"] for row in alike]
            if k:
                rng.shuffle(images)
            pairs = zip(alike, images, strict=True)
            found += [{**row, "id": f"{row['id']}-{k}", "image": image, "split": "train"} for row, image in pairs]
    return found


def run(
    avmnist: Path,
    fsdd: Path,
    *,
    seed: int = 0,
    limit: int = 0,
    folds: int = 3,
    settings: Mapping[str, Any] = SETTINGS,
    protocol: Mapping[str, Any] = PROTOCOL,
    runs: Path | None = None,
) -> Mapping[str, Any]:
    """MS-VAE from spoken to written digits and back, held-out speakers."""
    found: list[dict[str, Any]] = []
    rows_of: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        rows = read(avmnist, fsdd, Path(folder), limit=limit)
        data = avcl.load_data(write_table(Path(folder) / "manifest.csv", rows)).all
        speakers = sorted({r["speaker"] for r in rows})

        system = discover.system_class(SYSTEM)
        inputs = system.inputs(system.Config.from_json(settings))

        def part(chosen: Sequence[str], name: str) -> Data:
            return data.subset([i for i, r in enumerate(rows) if r["speaker"] in chosen], split=name)

        for fold in range(folds):
            turned = speakers[2 * fold :] + speakers[: 2 * fold]
            test, train = part(turned[:2], "test"), part(turned[2:], "train")
            met = meetings([r for r in rows if r["speaker"] in turned[2:]], seed=seed)
            pairs = avcl.load_data(write_table(Path(folder) / f"met{fold}.csv", met)).all
            pairs = Kept(pairs.configure(inputs))
            started = time.monotonic()
            model = avcl.train(SYSTEM, pairs, seed=seed, settings=settings, workers=0)
            seconds = round(time.monotonic() - started, 1)
            if runs is not None:
                model.save(runs / str(fold))
            report = avcl.evaluate(
                model, test, task="generation", protocol=protocol, fit=train, controls=True, workers=1
            )
            print(f"{' '.join(turned[:2])}: trained in {seconds:.0f} s\n{report}", flush=True)
            held = " ".join(turned[:2])
            controls = ("chance", *report.controls)
            for _, condition, metric, value, span, others in cells(report):
                rows_of.append(
                    [held, condition.replace("_", " "), metric, value, span, *(others.get(c) for c in controls)]
                )
            found.append({"test_speakers": turned[:2], "train_seconds": seconds, "scores": report.scores})
            found[-1]["not_beaten"] = list(report.not_beaten())
    digits = [_judged(cell["scores"]["audio_to_video"]) for cell in found]
    share, worth = (float(np.mean([pair[i] for pair in digits])) for i in (0, 1))
    return {
        "title": "A written digit from a spoken one: MS-VAE, speakers held out",
        "about": "FSDD sounds paired by digit with MNIST images; two of six speakers held out, each tested once; a "
        f"training recording meets {MEETINGS} images of its digit. Of the images generated from sounds of unseen "
        f"speakers a judge trained on real images reads {share:.3f} as the digit that was said (chance .1; it reads "
        f"{worth:.3f} of the real ones right). Seed {seed}. MRR by class.",
        "tables": [
            {
                "columns": ["speakers held out", "direction", "metric", "value", "interval", *controls],
                "rows": rows_of,
            }
        ],
        "image_from_sound": {"read_as_said": round(share, 4), "judge_on_real": round(worth, 4)},
        "settings": settings,
        "protocol": protocol,
        "folds": found,
    }


def _judged(row: Mapping[str, float]) -> tuple[float, float]:
    """(share of generated items that the judge gives the right class, the same of the true ones)."""
    made = next((v for k, v in row.items() if k.startswith("class@")), float("nan"))
    true = next((v for k, v in row.items() if k.startswith("class of true@")), float("nan"))
    return made, true


if __name__ == "__main__":
    main(run, "avmnist", "fsdd", result="generation/avmnist")
