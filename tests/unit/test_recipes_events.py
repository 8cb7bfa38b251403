"""The recipe of the event localizers and their picture, from end to end on a handful of clips."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

import avcl
from avcl.data.world import World
from avcl.types import jsonable

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMALL = {"epochs": 1, "batch_size": 4, "dim": 8, "widths": (4, 4, 6), "hidden": 4, "units": 4, "frames": 1}


def test_full_and_weak_supervision_stand_side_by_side(recipe) -> None:
    module = recipe("events")
    ways = {words: {**SMALL, **settings} for words, settings in module.LEARNING.items()}
    alone = {words: {**SMALL, **settings} for words, settings in module.ALONE.items()}
    found = module.run(seeds=1, systems=("tian2018_avel",), learning=ways, alone=alone, clips=8, test=6)
    table, bounds = found["tables"]
    known = dict(bounds["rows"])
    assert known["nothing"] == pytest.approx(1 - known["class of the clip, no times"])
    assert max(known["nothing"], 0.5) < known["sound"] < 1
    assert max(known["nothing"], 0.5) < known["picture"] < 1
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    words = {row[1] for row in table["rows"]}
    assert words == {"segments", "clip labels", "segments, audio alone", "segments, video alone"}
    conditions = {row[3] for row in table["rows"] if row[1] == "clip labels"}
    assert conditions == {"both", "audio only", "video only"}  # learned from clips alone, segments are not matched
    background = {row[10] for row in table["rows"] if row[3] == "both" and row[4] == "segment accuracy"}
    assert len(background) == 1
    json.dumps(jsonable(found))


def test_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES / "pictures"))
    module = importlib.import_module("events")
    try:
        model = avcl.train("tian2018_avel", World("events", clips=8, split="train"), settings=SMALL, workers=0)
        caption = module.draw(model.save(tmp_path / "run"), tmp_path / "events.png")
    finally:
        del sys.modules["events"]
    assert 10_000 < (tmp_path / "events.png").stat().st_size < 200_000
    assert caption.startswith("tian2018_avel on three held-out clips")
