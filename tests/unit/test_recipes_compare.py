"""The recipes that compare systems, from end to end on very little."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from avcl.media import write_audio


def read(path: Path) -> dict:
    value = json.loads(path.read_text())
    [table] = value["tables"]
    assert {row[0] for row in table["rows"]} == {"cca", "c_cca"}
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    return value


def test_vegas_world(recipe, tmp_path: Path) -> None:
    module = recipe("vegas_world")
    module.COUNTS = {"train": 150, "val": 30, "test": 40}
    given = ["--share", "1", "--seeds", "1", "--systems", "cca,c_cca", "--results", str(tmp_path)]
    module.main([*given, "--work", str(tmp_path / "work")])
    value = read(tmp_path / "retrieval" / "vegas_world.json")
    assert "150 train, 30 val, 40 test" in value["about"]
    with np.load(tmp_path / "work" / "features.npz") as made:
        assert made["audio"].shape[1] == module.SOUND
        assert made["video"].shape[1] == module.PICTURE
        assert len(set(made["label"].tolist())) == module.CLASSES


def test_compare_digits(recipe, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "recordings").mkdir()
    np.savez(tmp_path / "mnist_images.npz", images=rng.integers(0, 255, (36, 28, 28)).astype(np.uint8))
    rows = []
    for i in range(36):
        name = f"{i % 2}_s{(i // 2) % 6}_{i}.flac"
        tone = 0.3 * np.sin(np.arange(3000) * 0.2 * (1 + i % 2)).astype(np.float32)
        write_audio(tmp_path / "recordings" / name, tone[:, None], 8000)
        rows.append({"fsdd_filename": name, "mnist_index": i, "digit": i % 2, "speaker": f"s{(i // 2) % 6}"})
    with open(tmp_path / "pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    module = recipe("compare_digits")
    module.main([str(tmp_path), str(tmp_path), "--systems", "cca,c_cca", "--results", str(tmp_path)])
    assert "1 seed" in read(tmp_path / "retrieval" / "compare_digits.json")["about"]
