"""The recipe of synchronization on faces, from end to end on a few made-up films."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import avcl
from avcl.data.world import World
from avcl.media import write_video


def test_grid_sync(recipe, tmp_path: Path) -> None:
    module = recipe("grid_sync")
    rng = np.random.default_rng(0)
    (tmp_path / "video").mkdir()
    for i in range(10):
        sound = 0.1 * rng.normal(size=(24_000, 1)).astype(np.float32)
        picture = rng.integers(0, 255, (75, 32, 32, 3), dtype=np.uint8)
        write_video(tmp_path / "video" / f"s{i}.mp4", picture, sound, fps=25, sample_rate=8000)
    settings = {"size": (16, 16), "side": 16, "channels": 4, "epochs": 1, "batch_size": 2, "sample_rate": 8000}
    world = World("sync", clips=4, split="train")
    model = avcl.train("sync_correlation", world, settings={**settings, "size": (16, 16)}, workers=0)
    model.save(tmp_path / "model")
    found = module.grid_sync(tmp_path, tmp_path / "model", test=4, settings=settings)
    [table] = found["tables"]
    assert {row[0] for row in table["rows"]} == {"faces, known lags", "faces, moved inside", "the world"}
    assert len(table["rows"]) == 3 * len(module.METRICS)
    for row in table["rows"]:
        assert len(row) == len(table["columns"])
    assert set(found["not_beaten"]) == set(found["train_seconds"]) | {"the world"}
