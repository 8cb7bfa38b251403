"""Batches larger than the machine: peak memory and throughput of a chunked step beside the plain loop.

    python benchmarks/gradient_cache.py [--batch 4096] [--micro 64] [--steps 1] [--rounds 3] [--threads 1] [--out FILE]

Clips of the world are rendered once into the decoded cache, from which every run reads them (``--distinct`` of them, in
turn). Each run is a process of its own that trains ``infonce``: ``chunked`` takes the loss over ``--batch`` clips, of
which ``--micro`` at a time are decoded and encoded; ``plain`` takes steps of ``--micro`` clips, for as many clips.
Memory is the peak resident size of the process above what it had before training. Runs alternate; medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from avcl.data.cache import StreamCache
from avcl.data.dataset import Data
from avcl.data.world import World
from avcl.loop import fit
from avcl.seeds import seeded
from avcl.systems.infonce import InfoNCE, InfoNCEConfig
from avcl.types import Clip, DataSpec, Inputs, fingerprint

SIDES = ("chunked", "plain")


class Cached(Data):
    """``rows`` rows that the decoded cache holds, ``distinct`` different ones in turn."""

    kind = "world"
    modalities = ("audio", "video")
    labels: tuple[str, ...] = ()
    skipped: ClassVar[Mapping[str, int]] = {}

    def __init__(self, folder: Path, spec: DataSpec, rows: int, distinct: int):
        self._cache, self._spec = StreamCache(folder), spec
        self.rows, self.distinct, self.n_official = rows, distinct, rows

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.rows)))

    @property
    def targets(self) -> tuple[int, ...]:
        return (-1,) * self.rows

    groups = ids

    @property
    def spec(self) -> DataSpec:
        return self._spec

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.rows, self.distinct])

    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        streams = self._cache.get(key(index % self.distinct))
        assert streams is not None, "the cache was filled before"
        return Clip(str(index), streams, index, view)

    def subset(self, indices: Sequence[int], *, split: str | None = None) -> Self:
        raise NotImplementedError


def key(number: int) -> str:
    return f"{number:08x}"


def config_of(arguments: argparse.Namespace, side: str) -> InfoNCEConfig:
    size = arguments.batch if side == "chunked" else arguments.micro
    config = InfoNCEConfig(batch_size=size, micro_batch=arguments.micro, epochs=1, width=64, frames=2, warmup=0.0)
    return replace(config, size=(arguments.pixels, arguments.pixels), window=arguments.window)


def world(inputs: Inputs, clips: int) -> World:
    return World("retrieval", clips=clips, streams=("audio", "video")).configure(inputs)


def fill(folder: Path, arguments: argparse.Namespace) -> float:
    """Render and keep the distinct clips; bytes of one."""
    data, cache = world(config_of(arguments, "plain").decoding, arguments.distinct), StreamCache(folder)
    size = 0
    for number in range(arguments.distinct):
        streams = data.clip(number).streams
        size += sum(s.data.nbytes + s.mask.nbytes for s in streams.values())
        cache.put(key(number), streams)
    return size / arguments.distinct


def peak() -> float:
    """GiB that this process has had resident at the most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def child(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """One run in this process."""
    torch.set_num_threads(arguments.threads)
    config = config_of(arguments, arguments.child)
    clips = arguments.batch * arguments.steps
    data = Cached(folder, world(config.decoding, 1).spec, clips, arguments.distinct)
    with seeded(0, "init"):
        system = InfoNCE(config, data.spec)
    fit(system, data, workers=0, progress=False, max_steps=0)  # imports and the device
    before, begin = peak(), time.perf_counter()
    steps = fit(system, data, workers=arguments.workers, progress=False).steps
    seconds = time.perf_counter() - begin
    assert steps * config.batch_size == clips
    return {"clips_per_s": clips / seconds, "peak_gib": peak() - before, "before_gib": before, "seconds": seconds}


def measured(folder: Path, side: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--child", side, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ.copy())
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side in SIDES:
            rounds[side].append(measured(folder, side))
    middle = {
        side: {name: float(np.median([one[name] for one in some])) for name in some[0]} for side, some in rounds.items()
    }
    pairs = zip(rounds["chunked"], rounds["plain"], strict=True)
    ratio = float(np.median([one["clips_per_s"] / two["clips_per_s"] for one, two in pairs]))
    return {**middle, "throughput_ratio": ratio}


def about(arguments: argparse.Namespace, result: dict[str, Any]) -> str:
    chunked, ratio = result["chunked"], result["throughput_ratio"]
    reached = "reached" if chunked["peak_gib"] < 4 and ratio >= 0.6 else "not reached"
    return (
        f"benchmarks/gradient_cache.py: one step of infonce on {arguments.batch} raw clips of {arguments.window:g} s "
        f"({arguments.pixels} × {arguments.pixels} at 8 frames/s, sound at 16 kHz; {result['clip_mib']:.2f} MiB each), "
        f"{arguments.micro} at a time, from the decoded cache; threads: {arguments.threads}, workers: "
        f"{arguments.workers}. Aims: less than 4 GiB above the process before it, 0.6 of the throughput of the plain "
        f"loop at batch {arguments.micro}: {reached}. Encoding twice bounds the ratio at 3/4 where a backward pass "
        f"costs two forward passes."
    )


def table(arguments: argparse.Namespace, result: dict[str, Any]) -> dict[str, Any]:
    columns = ["", "batch", "encoded at a time", "peak GiB", "clips/s", "of plain"]
    sizes = {"chunked": arguments.batch, "plain": arguments.micro}
    ratios = {"chunked": result["throughput_ratio"], "plain": 1.0}
    rows = [
        [side, sizes[side], arguments.micro, result[side]["peak_gib"], result[side]["clips_per_s"], ratios[side]]
        for side in SIDES
    ]
    return {"title": "Batches larger than the machine", "columns": columns, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--micro", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1, help="steps of the large batch")
    parser.add_argument("--distinct", type=int, default=256, help="clips that are rendered")
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--window", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="train leaves a core to a worker, too")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a minute at the most, to see that it runs")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/gradient_cache.json"))
    arguments = parser.parse_args()
    if arguments.small:
        arguments.batch, arguments.micro, arguments.distinct, arguments.rounds = 64, 16, 16, 1
        arguments.pixels, arguments.window = 16, 1.0
    if arguments.child:
        print(json.dumps(child(arguments.folder, arguments)))
        return
    names = ("batch", "micro", "steps", "distinct", "pixels", "window", "rounds", "threads", "workers")
    with tempfile.TemporaryDirectory() as folder:
        size = fill(Path(folder), arguments)
        result: dict[str, Any] = {
            "title": "Gradient caching beside the plain loop",
            "settings": {name: getattr(arguments, name) for name in names},
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "clip_mib": size / 2**20,
            **compare(Path(folder), arguments),
        }
    result |= {"about": about(arguments, result), "tables": [table(arguments, result)]}
    print(json.dumps({key: value for key, value in result.items() if key != "tables"}, indent=1, ensure_ascii=False))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
