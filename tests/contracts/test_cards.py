"""Cards say where a system comes from: the survey's row word for word, how faithful the code is."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from avcl import discover

ROOT = Path(__file__).resolve().parents[2]
with (ROOT / "docs" / "table1.csv").open(newline="") as file:
    TABLE = {row.pop("system"): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", discover.system_names())
def test_card(name: str) -> None:
    card = discover.system_class(name).card
    if name not in TABLE:
        assert not card.survey, "only a row of Table 1 has a survey entry"
        return
    assert dict(card.survey) == TABLE[name]
    assert card.fidelity.startswith(("official: ", "paper: ", "reconstruction: "))
    assert card.original_license
    assert card.authors
    assert discover.system_class(name).trial is not None
