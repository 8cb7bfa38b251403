"""The recipes of localization run from end to end on small made-up data of the same form."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

import avcl
from avcl.data.world import World
from avcl.media import write_video
from avcl.model import Model

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TINY = {"epochs": 1, "batch_size": 8, "dim": 16, "widths": (8, 16), "heard": (8, 16), "bands": 32}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Model = avcl.train("chen2021_lvs", World("localization", clips=8), settings=TINY, workers=0)
    return made.save(tmp_path_factory.mktemp("model") / "lvs")


def test_boxes_of_real_clips(recipe, model: Path, tmp_path: Path) -> None:
    module, rng = recipe("av_clips_boxes"), np.random.default_rng(0)
    (tmp_path / "video").mkdir()
    rows = []
    for i in range(6):
        pictures = rng.integers(0, 255, (40, 32, 56, 3), dtype=np.uint8)
        sound = 0.1 * rng.normal(size=(64_000, 1)).astype(np.float32)
        write_video(tmp_path / "video" / f"c{i}.mp4", pictures, sound, fps=10, sample_rate=16_000)
        box = json.dumps([[0.25, 0.0, 0.5, 0.5]]) if i < 3 else ""
        rows.append({"id": f"c{i}", "width": 56, "height": 32, "fps": 10.0, "duration": 4.0, "vggss_bbox": box})
    with open(tmp_path / "clips.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = module.run(tmp_path, model, here={**TINY, "window": 3.0})
    assert found["n"] == 3
    [table] = found["tables"]
    cells = {(row[0], row[1], row[2]): dict(zip(table["columns"][3:], row[3:], strict=True)) for row in table["rows"]}
    assert {name for name, _, _ in cells} == {"trained on the world", "trained on the other clips"}
    # The center square is columns 12 to 44 of 56: of the box, columns 14 to 28 and the upper half.
    whole = cells["trained on the world", "area", "IoU"]["whole image"]
    assert whole == pytest.approx(14 / 32 / 2, abs=0.02)
    assert cells["trained on the world", "pointing", "on source"]["center box"] == pytest.approx(0.375 / 2, abs=0.07)
    assert 0 <= cells["trained on the other clips", "median", "AUC"]["value"] <= 1


def test_traps(recipe, model: Path) -> None:
    found = recipe("localization_traps").run(model, clips=12)
    [table] = found["tables"]
    assert {row[0] for row in table["rows"]} == set(recipe("localization_traps").SCENES)
    on = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"] if row[1] == "on distractor"}
    assert on["one object"]["value"] == 0
    assert on["and its silent twin"]["motion"] > 0
    assert "motion" in found["not_beaten"]["one object"]


def test_picture(recipe, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES / "pictures"))
    module = importlib.import_module("localization")
    monkeypatch.setattr(module, "CLIPS", 24)
    caption = module.draw(model, tmp_path / "p.png")
    assert "24 clips" in caption
    assert 1000 < (tmp_path / "p.png").stat().st_size < 200_000
