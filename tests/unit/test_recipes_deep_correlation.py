"""The recipe of deep correlation runs from end to end on small made-up data of the same form."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from avcl import discover
from avcl.media import write_audio


def made_up(folder: Path) -> Path:
    """Articles and digits: what ``wikipedia_cca.read`` and ``avmnist.read`` expect."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("tr", 60), ("te", 30)):
        label = np.arange(n) % 3 + 1
        shared = np.eye(3)[label - 1] + 0.3 * rng.normal(size=(n, 3))
        arrays |= {f"I_{part}": shared @ rng.normal(size=(3, 8)), f"T_{part}": shared @ np.eye(3, 4)}
        arrays[f"L_{part}"] = label
    np.savez(folder / "wikipedia_sift128_lda10.npz", **arrays)
    (folder / "recordings").mkdir()
    np.savez(folder / "mnist_images.npz", images=rng.integers(0, 255, (48, 28, 28), dtype=np.uint8))
    with open(folder / "pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["fsdd_filename", "mnist_index", "digit", "speaker"])
        writer.writeheader()
        for i in range(48):
            name = f"{i % 2}_s{i % 6}_{i}.flac"
            tone = 0.3 * np.sin(np.arange(3000) * 0.2 * (1 + i % 2)).astype(np.float32)
            write_audio(folder / "recordings" / name, tone[:, None], 8000)
            writer.writerow({"fsdd_filename": name, "mnist_index": i, "digit": i % 2, "speaker": f"s{i % 6}"})
    return folder


@pytest.fixture
def module(recipe) -> ModuleType:
    return recipe("deep_correlation")


def test_deep_correlation(module: ModuleType, tmp_path: Path) -> None:
    small = {"epochs": 2, "batch_size": 16, "components": 2}
    features = {
        "cca": ("cca", [{"components": k} for k in (2, 3)]),
        "zeng2018_s_dcca": ("zeng2018_s_dcca", [small, {**small, "pair_weight": 1.0}]),
        "zeng2020_tnn_c_cca": ("zeng2020_tnn_c_cca", [small]),
    }
    media = {
        "cca": ("cca", [module.avmnist.MEDIA]),
        "infonce": ("infonce", [{**module.avmnist.STILL, "epochs": 1, "batch_size": 8}]),
        "zeng2018_s_dcca": ("zeng2018_s_dcca", [{**module.STILL, **small}]),
    }
    folder = made_up(tmp_path)
    found = module.run(folder, folder, folder, features=features, media=media, folds=1)
    assert set(found["wikipedia"]) == set(features)
    assert found["wikipedia"]["cca"]["settings"] in features["cca"][1]
    cell = found["wikipedia"]["zeng2018_s_dcca"]["scores"]["mean"]["mAP"]
    assert {"value", "interval", "chance", "untrained", "wrong_partner"} == set(cell)
    assert set(found["digits"]["mean_over_folds"]) == set(media)
    assert [t["title"] for t in found["tables"]] == ["Wikipedia features, test part", "Digits"]
    assert all(len(row) == len(t["columns"]) for t in found["tables"] for row in t["rows"])

    # Every system and setting of the real run exists.
    for system, candidates in (*module.FEATURES.values(), *module.DIGITS.values()):
        for settings in candidates:
            discover.system_class(system).Config.from_json(settings)


def test_wikipedia_systems(module: ModuleType, tmp_path: Path) -> None:
    recipe = importlib.import_module("wikipedia_systems")
    dscmr = {"epochs": 1, "batch_size": 16, "hidden": 16, "dim": 8}
    systems = {"cca": ("cca", [{"components": 2}]), "zhen2019_dscmr": ("zhen2019_dscmr", [dscmr])}
    found = recipe.run(made_up(tmp_path), systems=systems)
    [made] = found["tables"]
    assert {row[0] for row in made["rows"]} == set(systems)
    assert set(found["above_semantic_correlation_matching"]) <= {"zhen2019_dscmr"}
    for name, candidates in recipe.SYSTEMS.values():
        for settings in candidates:
            discover.system_class(name).Config.from_json(settings)  # every setting is one that the system has
