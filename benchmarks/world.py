"""How many clips of the generated world one core renders in a second, preset by preset.

``python benchmarks/world.py [--clips 60] [--json FILE]``. Process time of one thread, best of three
rounds after a warm-up (first use pays for page faults and tables). ``needed``: what training on fresh clips asks for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from avcl.data.world import PRESETS, World, render

ROUNDS = 3
NEEDED = {8.0: 50, 25.0: 15}  # clips a second and core, by frame rate


def rate(name: str, clips: int, truth: bool) -> float:
    """Clips per second of process time, the best of the rounds."""
    best = 0.0
    for turn in range(ROUNDS + 1):
        began = time.process_time()
        for i in range(clips):
            render(name, 0, turn * clips + i, truth=truth)
        spent = time.process_time() - began
        if turn:
            best = max(best, clips / spent)
    return best


def data_rate(name: str, clips: int) -> float:
    """The same through ``World.clip``, tensors included."""
    world = World(name, clips=clips, fresh=True)
    began = time.process_time()
    for i in range(clips):
        world.clip(i, epoch=9)
    return clips / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--json", type=Path, default=Path("results/benchmarks/world.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = ["preset", "frames/s", "seconds", "clips/s", "with truth", "World.clip", "needed"]
    rows: list[list[str | int]] = []
    print("".join(f"{column:>18}" for column in columns))
    for name, preset in PRESETS.items():
        measured = (rate(name, options.clips, False), rate(name, options.clips, True), data_rate(name, options.clips))
        rows.append([name, round(preset.fps), round(preset.seconds), *map(round, measured), NEEDED[preset.fps]])
        print("".join(f"{cell:>18}" for cell in rows[-1]), flush=True)
    result = {
        "title": "Clips of the generated world per second and core",
        "about": "benchmarks/world.py: clips per second of process time, one thread, best of three rounds after a "
        f"warm-up, {options.clips} clips a round; Python {platform.python_version()}, NumPy {np.__version__}, "
        f"{platform.machine()}.",
        "tables": [{"title": "", "columns": columns, "rows": rows}],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
