"""What is in a picture: a pretrained tower against pixels and picture statistics, on 358 Tux Paint stamps.

Photos and drawings in categories (animals, town, food, ...; those with at least 10 pictures). Every picture is
described by (1) its 16 × 16 pixels, (2) the 214 numbers that ``encoders.statistics`` takes from it, (3) the 1,280
features of EfficientNet-Lite0 with random and (4) with ImageNet weights, written by ``archive.write_features``.
Scored by category: the nearest neighbor among pictures of another name (cosine of standardized features), and a
ridge classifier in five folds that keep pictures of one name together, its ridge chosen inside the training folds.
Nothing is tuned on the test pictures. Chance: always the largest category.

    python recipes/pretrained_stamps.py TUXPAINT_STAMPS        the folder of data
"""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main, write_table
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from avcl.archive import write_features
from avcl.data import Loader, load_data
from avcl.encoders.pretrained import Tower, efficientnet_lite0
from avcl.seeds import seeded
from avcl.types import Inputs

INPUTS = Inputs(size=(128, 128))


def read(stamps: Path, out: Path, *, least: int) -> tuple[Path, list[str]]:
    """A manifest of the pictures of the categories with ``least`` pictures or more, and the name on each."""
    with open(stamps / "stamps.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    size = Counter(row["category"] for row in rows)
    kept = [row for row in rows if size[row["category"]] >= least]
    table = [
        {
            "id": row["id"],
            "image": (stamps / "images" / f"{row['id']}.jpg").resolve(),
            "text": row["text_en"],
            "label": row["category"],
            "group": row["text_en"],
        }
        for row in kept
    ]
    return write_table(out / "manifest.csv", table), [row["text_en"] for row in kept]


def untrained(tower: Tower, seed: int) -> Tower:
    """The same network with the weights it would start from."""
    with seeded(seed, "untrained"):
        for module in tower.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return tower


def described(manifest: Path, towers: Mapping[str, Tower], out: Path) -> np.ndarray:
    write_features(manifest, out, towers=towers, inputs=INPUTS)
    with np.load(out, allow_pickle=False) as arrays:
        return arrays["video"].astype(np.float64)


def pixels(manifest: Path) -> np.ndarray:
    data = load_data(manifest).all.configure(Inputs(size=(16, 16)))
    with Loader(data, batch_size=64) as loader:
        frames = torch.cat([batch.video.data[:, 0] for batch in loader.batches(0)])
    return frames.flatten(1).double().numpy() / 255


def nearest(x: np.ndarray, y: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Whether the nearest picture of another name is of the same category."""
    z = StandardScaler().fit_transform(x)
    z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    cosine = z @ z.T
    cosine[names[:, None] == names] = -np.inf
    return y[cosine.argmax(1)] == y


def probed(x: np.ndarray, y: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Whether a ridge classifier that never saw this name says the category."""
    right = np.zeros(len(y), dtype=bool)
    for train, test in GroupKFold(5).split(x, y, names):
        model = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(-1, 6, 15)))
        right[test] = model.fit(x[train], y[train]).predict(x[test]) == y[test]
    return right


def share(right: np.ndarray, y: np.ndarray, seed: int) -> dict[str, Any]:
    """The share that is right with a 95 % bootstrap interval over pictures, and its mean over categories."""
    rng = np.random.default_rng(seed)
    drawn = right[rng.integers(0, len(right), (2000, len(right)))].mean(1)
    balanced = np.mean([right[y == c].mean() for c in np.unique(y)])
    interval = [round(float(q), 4) for q in np.quantile(drawn, (0.025, 0.975))]
    return {"value": round(float(right.mean()), 4), "interval": interval, "balanced": round(float(balanced), 4)}


def run(stamps: Path, *, seed: int = 0, least: int = 10) -> dict[str, Any]:
    """Categories of Tux Paint stamps: a pretrained tower against pixels and statistics."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        manifest, texts = read(stamps, out, least=least)
        data = load_data(manifest).all
        y, names = np.array(data.targets), np.unique(texts, return_inverse=True)[1]
        ways = {
            "pixels 16 x 16": pixels(manifest),
            "picture statistics": described(manifest, {}, out / "a.npz"),
            "EfficientNet-Lite0, random": described(
                manifest, {"video": untrained(efficientnet_lite0(), seed)}, out / "b.npz"
            ),
            "EfficientNet-Lite0, ImageNet": described(manifest, {"video": efficientnet_lite0()}, out / "c.npz"),
        }
    chance = round(float(np.bincount(y).max() / len(y)), 4)
    scores = {
        name: {
            "nearest neighbor": share(nearest(x, y, names), y, seed),
            "linear probe": share(probed(x, y, names), y, seed),
        }
        for name, x in ways.items()
    }
    columns = ["features", "width", "score", "right", "interval", "mean over categories", "chance"]
    rows = [
        [name, ways[name].shape[1], score, cell["value"], cell["interval"], cell["balanced"], chance]
        for name, cells in scores.items()
        for score, cell in cells.items()
    ]
    return {
        "title": "Pretrained pictures: categories of Tux Paint stamps",
        "about": f"{len(y)} pictures of {len(data.labels)} categories under {len(set(names))} names.",
        "tables": [{"title": "Right category", "columns": columns, "rows": rows}],
        "pictures": len(y),
        "categories": list(data.labels),
        "chance": chance,
        "scores": scores,
    }


if __name__ == "__main__":
    main(run, "tuxpaint_stamps", result="recognition/pretrained_stamps")
