"""Retrieval systems on real features: the emotion of unseen actors, and handwritten digits by two descriptions.

``ravdess``: 1,200 clips of 20 actors, 35 action units of the face and 259 numbers of the voice, eight emotions; five
folds, so that every actor is tested once and never by a system that saw him. ``uci_mfeat``: 2,000 digits, 76 Fourier
coefficients of their shape ("video" here) and 64 Karhunen-Loève coefficients ("text" here); the official 1,500 and
500, a fifth of the former to stop by.

    python recipes/compare_features.py ravdess|uci_mfeat FOLDER [--systems a,b] [--seeds 1] [--budget 0.5]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import compared, comparison_parser, workplace, write_result
from folded import compare_folds, parts
from ravdess import read

import avcl
from avcl.comparison.study import Comparison

FOLDS = 5


def ravdess(folder: Path, work: Path, **how: Any) -> tuple[Comparison, str]:
    """Class by emotion, folds over the actors."""
    data = read(folder, "emotion")
    arrays = {
        name: np.stack([data.clip(i).streams[name].data[0].numpy() for i in range(len(data))])
        for name in data.modalities
    }
    names = np.array([data.labels[t] for t in data.targets])
    split = parts(data.groups, FOLDS)

    def write(fold: int) -> Path:
        path = work / f"fold {fold}.npz"
        np.savez(path, **arrays, label=names, group=np.array(data.groups), id=np.array(data.ids), split=split[fold])
        return path

    made = compare_folds(write, FOLDS, work, relevance="class", **how)
    actors = len(set(data.groups))
    return made, (
        f"RAVDESS: {len(data):,} clips of {actors} actors, action units and MFCC, {len(data.labels)} emotions; {FOLDS} "
        f"folds over the actors, every query among the clips of the {actors // FOLDS} unseen actors of its fold; "
        "queries of one actor are drawn together."
    )


def uci_mfeat(folder: Path, work: Path, **how: Any) -> tuple[Comparison, str]:
    """Class by digit, the official test part."""
    with np.load(folder / "uci_mfeat.npz") as z:
        arrays = {
            name: np.concatenate([z[f"{v}_tr"], z[f"{v}_te"]]).astype(np.float32)
            for name, v in (("video", "I"), ("text", "T"))
        }
        digits = [z["L_tr"].ravel().astype(int) % 10, z["L_te"].ravel().astype(int) % 10]
    train, test = map(len, digits)
    order = np.random.default_rng(0).permutation(train)
    split = np.array(["train"] * train + ["test"] * test, dtype="<U5")
    split[order[: train // 5]] = "val"
    path = work / "uci_mfeat.npz"
    np.savez(path, **arrays, label=np.concatenate(digits).astype(str), split=split)
    made = avcl.compare(path, out=work / "uci_mfeat", progress=True, relevance="class", **how)
    return made, (
        f"UCI multiple features: {train:,} digits to train (a fifth of them to stop by), the official {test} to test; "
        "video: Fourier coefficients, text: Karhunen-Loève coefficients."
    )


SETS: dict[str, tuple[Callable[..., tuple[Comparison, str]], str]] = {
    "ravdess": (ravdess, "Retrieval by emotion, unseen actors (RAVDESS features)"),
    "uci_mfeat": (uci_mfeat, "Retrieval by digit, two descriptions of handwriting (UCI multiple features)"),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = comparison_parser(__doc__, systems="all", seeds=1, budget=0.5)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args(argv)
    run, title = SETS[given.set]
    with workplace(given.work) as work:
        how = {"systems": given.systems, "seeds": given.seeds, "budget": given.budget}
        made, about = run(given.folder, work, **how)
    print(made)
    about += f" {given.seeds} seed(s), at most {given.budget:g} minutes each, default settings."
    write_result(given.results, f"retrieval/compare_{given.set}", compared(made, title, about))


if __name__ == "__main__":
    main()
