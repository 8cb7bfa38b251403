"""Every system that fits, on one data set under one budget: spoken and written digits as features.

The pairs of ``avmnist.py``: FSDD recordings with MNIST images of the same digit. Pictures are their 784 pixels, sounds
the fixed statistics of ``encoders.statistics``. Two speakers are held out for the test, one more to stop by.

    python recipes/compare_digits.py AVMNIST FSDD [--systems all] [--seeds 1] [--budget 1] [--work FOLDER]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from avmnist import read
from common import compared, comparison_parser, workplace, write_result, write_table

import avcl
from avcl.data import Loader
from avcl.encoders.statistics import summarize
from avcl.types import Inputs

TEST, VAL = 2, 1  # speakers


def made_of_digits(avmnist: Path, fsdd: Path, path: Path, *, limit: int = 0) -> Path:
    """The feature file ``path``; made once."""
    if path.exists():
        return path
    with tempfile.TemporaryDirectory() as folder:
        rows = [{**r, "split": "train"} for r in read(avmnist, fsdd, Path(folder), limit=limit)]
        data = avcl.load_data(write_table(Path(folder) / "manifest.csv", rows)).all
        shown = data.configure(Inputs(fps=1.0, size=(28, 28), sample_rate=8000, window=1.0))
        sounds, pictures = [], []
        with Loader(shown, batch_size=64) as loader:
            for batch in loader.batches(0):
                sounds.append(summarize(batch.audio, shown.spec.streams["audio"], seconds=1.0, vocabulary=0).numpy())
                pictures.append(batch.to("cpu").video.data[:, 0].mean(1).flatten(1).numpy())
    speakers = sorted({r["speaker"] for r in rows})
    part = {s: "test" if i < TEST else "val" if i < TEST + VAL else "train" for i, s in enumerate(speakers)}
    np.savez(
        path,
        audio=np.concatenate(sounds),
        video=np.concatenate(pictures),
        id=np.array([r["id"] for r in rows]),
        label=np.array([r["label"] for r in rows]),
        group=np.array([r["speaker"] for r in rows]),
        split=np.array([part[r["speaker"]] for r in rows]),
    )
    return path


def main(argv: Sequence[str] | None = None) -> None:
    parser = comparison_parser(__doc__, systems="all", seeds=1, budget=1.0)
    parser.add_argument("avmnist", type=Path)
    parser.add_argument("fsdd", type=Path)
    parser.add_argument("--memory", type=float, default=6.0, help="GiB that all processes share")
    parser.add_argument("--limit", type=int, default=0, help="so many pairs only")
    given = parser.parse_args(argv)
    started = time.monotonic()
    with workplace(given.work) as work:
        data = made_of_digits(given.avmnist, given.fsdd, work / "features.npz", limit=given.limit)
        made = avcl.compare(
            data,
            out=work / "runs",
            systems=given.systems,
            seeds=given.seeds,
            budget=given.budget,
            memory=given.memory,
            progress=True,
        )
    minutes = (time.monotonic() - started) / 60
    about = (
        f"FSDD sounds paired by digit with MNIST images, as features; mAP by class, two of six speakers held out, one "
        f"to stop by; {given.seeds} seed, at most {given.budget:g} minutes each, default settings, "
        f"{given.memory:g} GiB for all, {minutes:.0f} minutes in all."
    )
    print(made)
    write_result(
        given.results,
        "retrieval/compare_digits",
        compared(made, "Every system that fits, on spoken and written digits", about),
    )


if __name__ == "__main__":
    main()
