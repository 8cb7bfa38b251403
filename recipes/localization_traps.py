"""The traps of localization: the same trained model with one object, with a silent second one, and with its twin.

One object: everything that finds objects looks right, so the other two are what tells. A twin has the class and size of
the source and differs in timing alone, which a model of single frames cannot use.

    python recipes/localization_traps.py MODEL        MODEL: chen2021_lvs trained on the world
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import main
from families import cells

import avcl
from avcl.data.world import PRESETS, World

SCENES = {
    "one object": replace(PRESETS["localization"], distractor=0.0),
    "and a silent one of another class": PRESETS["localization"],
    "and its silent twin": PRESETS["localization-same"],
}


def run(model: Path, *, seed: int = 0, clips: int = 200) -> Mapping[str, Any]:
    """One localizer, three scenes: what does the score say?"""
    localizer, rows, reports = avcl.load(model), [], {}
    controls = ("chance", "untrained", "wrong partner", "whole image", "center box", "motion")
    for name, preset in SCENES.items():
        test = World(preset, clips=clips, split="test", seed=seed)
        report = avcl.evaluate(localizer, test, task="localization", controls=True, workers=1)
        print(name, report, sep="\n", flush=True)
        reports[name] = list(report.not_beaten())
        for _, condition, metric, value, span, beside in cells(report):
            if condition == "pointing":
                rows.append([name, metric, value, span, *(beside.get(control) for control in controls)])
    return {
        "title": "Localization with one object, two, and twins",
        "about": f"{localizer.name} trained on the preset `localization`, {clips} held-out clips of each scene: where "
        "the peak of its map lies. With one object the deaf map of motion scores too; only the wrong partner and "
        f"the second object tell. Not beaten, by scene: {reports}.",
        "not_beaten": reports,
        "tables": [{"columns": ["scene", "metric", "value", "interval", *controls], "rows": rows}],
    }


if __name__ == "__main__":
    main(run, "model", result="localization/traps")
