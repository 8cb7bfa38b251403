"""Deep correlation on real features and real media: S-DCCA and TNN-C-CCA beside CCA and InfoNCE, all by class.

1. Wikipedia features (Rasiwasia et al. 2010): the published split and protocol of ``wikipedia_cca.py``; the settings of
each system are chosen on a seeded fifth of the training articles, then it is trained on all of them. Deep CCA (β = 1)
stands beside S-DCCA, so that what the classes add can be read off.

2. Spoken and written digits: the protocol of ``avmnist.py``, two speakers held out in turn, settings chosen on a third.

    python recipes/deep_correlation.py WIKIPEDIA AVMNIST FSDD        the three folders of data
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import avmnist
import numpy as np
import wikipedia_cca
from common import main, row, table

import avcl
from avcl.data.features import FeatureData
from avcl.data.split import assign_splits

Candidates = avmnist.Candidates
Systems = Mapping[str, tuple[str, Candidates]]

FEW = {"epochs": 20, "activation": "gelu"}  # two thousand articles are learned by heart soon after
FEATURES: Systems = {
    "cca": ("cca", [{"ridge": r, "components": k} for r in (1e-4, 0.1, 1.0) for k in (5, 8, 10)]),
    "infonce": ("infonce", [{"epochs": e, "temperature": 0.2} for e in (5, 10)]),
    "infonce, positives by label": (
        "infonce",
        [{"epochs": e, "temperature": 0.2, "positives": "label"} for e in (5, 10)],
    ),
    "deep CCA": ("zeng2018_s_dcca", [{**FEW, "components": k, "pair_weight": 1.0} for k in (5, 9)]),
    "zeng2018_s_dcca": (
        "zeng2018_s_dcca",
        [{**FEW, "components": k} for k in (5, 9)] + [{"epochs": 40, "learning_rate": 3e-3, "components": 5}],
    ),
    "zeng2020_tnn_c_cca": (
        "zeng2020_tnn_c_cca",
        [{"order": o, "components": k} for o in ("cca-first", "cca-last") for k in (5, 9)],
    ),
}
STILL = {**avmnist.MEDIA, "frames": 1}  # an image is one frame
DIGITS: Systems = {
    "cca": ("cca", [{**avmnist.MEDIA, "ridge": r, "components": k} for r in (0.1, 1.0) for k in (10, 20)]),
    "infonce": ("infonce", [{**avmnist.STILL, "epochs": 6, "temperature": 0.2}]),
    "infonce, positives by label": avmnist.SYSTEMS["infonce, positives by label"],
    "zeng2018_s_dcca": (
        "zeng2018_s_dcca",
        [{**STILL, "epochs": 8, "batch_size": 100, "activation": "gelu", "learning_rate": 2e-3}],
    ),
    "zeng2020_tnn_c_cca": (
        "zeng2020_tnn_c_cca",
        [{**avmnist.MEDIA, "epochs": 5, "order": o, "ridge": 0.1} for o in ("cca-first", "cca-last")],
    ),
}


def wikipedia(folder: Path, *, seed: int, systems: Systems) -> dict[str, Any]:
    """Every system on the official test part: {system: settings, candidates, seconds, scores}."""
    train, test = wikipedia_cca.read(folder)
    side = assign_splits(train.groups, train.targets, seed=seed, ratios={"train": 0.8, "val": 0.2})
    fit, val = (train.subset([i for i, s in enumerate(side) if s == name]) for name in ("train", "val"))
    return {name: _scored(*given, fit, val, train, test, seed) for name, given in systems.items()}


def _scored(
    system: str,
    candidates: Candidates,
    fit: FeatureData,
    val: FeatureData,
    train: FeatureData,
    test: FeatureData,
    seed: int,
) -> dict[str, Any]:
    settings = avmnist.choose(system, candidates, fit, val, seed)
    started = time.monotonic()
    model = avcl.train(system, train, seed=seed, settings=settings)
    seconds = round(time.monotonic() - started, 1)
    report = avcl.evaluate(model, test, relevance="class", controls=True)
    shown = {d: round(s["mAP"], 4) for d, s in report.scores.items()}
    print(system, shown, settings, f"{seconds:.0f} s", flush=True)
    return {"settings": settings, "candidates": candidates, "train_seconds": seconds, "scores": row(report, "mAP")}


def run(
    folder: Path,
    digits: Path,
    fsdd: Path,
    *,
    seed: int = 0,
    features: Systems = FEATURES,
    media: Systems = DIGITS,
    **how: Any,
) -> Mapping[str, Any]:
    """S-DCCA and TNN-C-CCA beside CCA and InfoNCE: Wikipedia features, spoken and written digits."""
    articles = wikipedia(folder, seed=seed, systems=features)
    spoken = avmnist.run(digits, fsdd, seed=seed, systems=media, **how)
    lines = [((name,), found["scores"]) for name, found in articles.items()]
    means = {name: found["scores"]["mean"]["mAP"]["value"] for name, found in articles.items()}
    folds = {name: m["mean"] for name, m in spoken["mean_over_folds"].items()}
    return {
        "title": "Deep correlation: S-DCCA and TNN-C-CCA on articles and on digits",
        "about": "mAP by class, full ranking, cosine. Wikipedia features: official split, video is the image query, "
        f"settings chosen on a seeded fifth of the training part; mean of both directions: {_listed(means)}. Digits: "
        "FSDD sounds paired by digit with MNIST images, two speakers held out in turn, settings chosen on a third; "
        f"mean of directions and folds: {_listed(folds)}. Seed {seed}.",
        "tables": [table("Wikipedia features, test part", lines, "system"), {**spoken["tables"][0], "title": "Digits"}],
        "wikipedia": articles,
        "published": wikipedia_cca.PUBLISHED,
        "digits": {key: spoken[key] for key in ("mean_over_folds", "folds")},
    }


def _listed(means: Mapping[str, float]) -> str:
    best = sorted(means, key=lambda name: -float(np.nan_to_num(means[name])))
    return ", ".join(f"{name} {means[name]:.3f}" for name in best)


if __name__ == "__main__":
    main(run, "wikipedia_features", "avmnist", "fsdd", result="retrieval/deep_correlation")
