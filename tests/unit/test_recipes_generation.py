"""The recipes of generation run from end to end on small made-up data of the same form."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from avcl.media import write_audio
from avcl.types import jsonable


def test_avmnist_generation(recipe, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "recordings").mkdir()
    digits = rng.integers(0, 255, (2, 28, 28))
    images = np.stack([np.clip(digits[i % 2] + rng.integers(-30, 30, (28, 28)), 0, 255) for i in range(48)])
    np.savez(tmp_path / "mnist_images.npz", images=images.astype(np.uint8))
    rows = []
    for i in range(48):
        name = f"{i % 2}_s{(i // 2) % 6}_{i}.flac"
        tone = 0.3 * np.sin(np.arange(3000) * 0.2 * (1 + i % 2)).astype(np.float32)
        write_audio(tmp_path / "recordings" / name, tone[:, None], 8000)
        rows.append({"fsdd_filename": name, "mnist_index": i, "digit": i % 2, "speaker": f"s{(i // 2) % 6}"})
    with open(tmp_path / "pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    module = recipe("avmnist_generation")
    tiny = {**module.SETTINGS, "epochs": 1, "batch_size": 8, "hidden": 16, "dim": 4, "bands": 8}
    short = {**module.PROTOCOL, "bootstrap": 20, "components": 4, "bands": 8}
    found = json.loads(json.dumps(jsonable(module.run(tmp_path, tmp_path, folds=1, settings=tiny, protocol=short))))
    [fold] = found["folds"]
    assert fold["test_speakers"] == ["s0", "s1"]
    assert set(fold["scores"]) == {"audio_to_video", "video_to_audio", "both"}
    assert found["image_from_sound"]["judge_on_real"] == 1.0
    [table] = found["tables"]
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert {"untrained", "wrong partner", "training mean"} <= set(table["columns"])
