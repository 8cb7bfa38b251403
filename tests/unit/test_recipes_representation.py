"""The recipes of self-supervised representation, from end to end on small data of the same form."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avcl import discover
from avcl.media import write_audio
from avcl.types import jsonable

TINY: dict[str, dict[str, Any]] = {
    "patrick2020_gdt": {"epochs": 1, "batch_size": 8, "size": (32, 32), "sound": 16, "hidden": 16, "dim": 8},
    "cheng2020_lla": {"epochs": 1, "batch_size": 8, "widths": (8, 12), "dim": 16, "heads": 2},
}


def test_representation(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, settings in TINY.items():
        cls = discover.system_class(name)
        small = replace(cls.trial, clips=24, test=12, settings=settings, protocol={"c": (0.01,), "bootstrap": 20})
        monkeypatch.setattr(cls, "trial", small)
    found = recipe("representation").run(queries=10)
    assert set(found) == {"probe/representation", "retrieval/representation"}
    (table,) = found["probe/representation"]["tables"]
    assert len(table["rows"]) == 2 * 2 * 3  # systems, class and action, conditions
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert {row[1] for row in table["rows"]} == {"class", "action"}
    (ranked,) = found["retrieval/representation"]["tables"]
    assert {tuple(row[:2]) for row in ranked["rows"]} == {(s, r) for s in TINY for r in ("pair", "class")}
    json.dumps(jsonable(found))


def test_esc10(recipe, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    rows = []
    for i in range(24):
        name = f"{i % 4 + 1}-{i}-A.flac"
        tone = 0.3 * np.sin(np.arange(20_000) * (0.1, 0.5)[i // 4 % 2]) + 0.01 * rng.normal(size=20_000)
        write_audio(tmp_path / "audio" / name, tone.astype(np.float32)[:, None], 16_000)
        rows.append({"filename": name, "fold": i % 4 + 1, "category": ("hum", "beep")[i // 4 % 2], "src_file": i})
    with open(tmp_path / "meta.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    module = recipe("esc10")
    settings = {**module.ALONE, "epochs": 1, "batch_size": 6, "sound": 16, "hidden": 16, "dim": 8, "looks": 2}
    found = module.run(tmp_path, alone=settings, world=())
    (table,) = found["tables"]
    told = {row[0]: row for row in table["rows"]}
    assert told["raw statistics"][1] == 1.0  # two tones
    assert len(told["GDT, sounds alone"][3]) == 4
    assert all(row[4] == 0.5 for row in table["rows"])
    json.dumps(jsonable(found))
