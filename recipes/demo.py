"""The demo as a measurement: two seeds, 200 held-out clips of the `retrieval` preset as video files, with controls.

python recipes/demo.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import main

import avcl
from avcl.environment import cores


def run(
    *, seed: int = 0, seeds: Sequence[int] | None = None, steps: int | None = None, clips: int = 200
) -> Mapping[str, Any]:
    """`make demo` under two seeds: R@k by pair and class mAP on held-out clips, and the seconds it took."""
    rows = []
    for s in seeds or (seed, seed + 1):
        with tempfile.TemporaryDirectory() as folder:
            found = avcl.demo(Path(folder) / "demo", seed=s, steps=steps, clips=clips, progress=True)
        rows += [
            {
                "seed": s,
                "metric": f"{name} by {'class' if name == 'mAP' else 'pair'}",
                "value": found["mean"][name],
                "interval": found["interval"][name],
                "chance": found["chance"][name],
                "times chance": found["mean"][name] / found["chance"][name],
                "untrained": found["untrained"][name],
                "wrong partner": found["wrong_partner"][name],
                "job seconds": found["seconds"],
            }
            for name in found["mean"]
        ]
    return {
        "title": "The demo: infonce on the built-in world",
        "about": f"Mean of both directions over {clips} held-out clips of the `retrieval` preset, scored from exported "
        f"webm files (VP9 + Opus); trained on fresh clips, one training thread and one render worker; {cores()} cores.",
        "seeds": rows,
    }


if __name__ == "__main__":
    main(run, result="retrieval/demo")
