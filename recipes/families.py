"""Every system's trial on the generated world, two seeds each: trained, then measured beside chance and all controls.

python recipes/families.py [SYSTEM ...] [--seeds 2] [--runs FOLDER] [--results results]
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from avcl import discover, trials
from avcl.environment import cores
from avcl.files import finite, write_json
from avcl.types import Report, jsonable


def cells(report: Report) -> list[list[Any]]:
    """A row for each condition and metric: score, interval, chance and every control."""
    rows = []
    for condition, metrics in report.scores.items():
        for metric, value in metrics.items():
            beside = {"chance": report.chance, **report.controls}
            others = {name: scores.get(condition, {}).get(metric) for name, scores in beside.items()}
            span = report.interval.get(condition, {}).get(metric)
            rows.append([report.seed, condition, metric, value, span, others])
    return rows


def document(name: str, done: Sequence[trials.Trained]) -> Mapping[str, Any]:
    """What ``results/<task>/<system>.json`` says of one system's trial."""
    _, trial = trials.trial_of(name)
    first = done[0].report
    controls = ["chance", *first.controls]
    rows = [[*row[:5], *(row[5].get(c) for c in controls)] for one in done for row in cells(one.report)]
    decides = first.protocol["headline"]
    lost = {one.report.seed: list(one.report.not_beaten()) for one in done}
    seconds = ", ".join(f"{one.seconds:.0f} s" for one in done)
    return {
        "title": f"{name} on the world ({trial.task})",
        "about": f"Preset `{trial.preset}`, {trial.test} held-out clips, trained for {seconds} (seeds "
        f"{', '.join(str(one.report.seed) for one in done)}; {cores()} cores, one thread and one render worker). "
        f"Decides: {decides['condition']} {decides['metric']} ({decides['better']} is better). "
        + (f"Not beaten, by seed: {lost}." if any(lost.values()) else "Above chance and every control.")
        + ("" if len(done) > 1 else " One seed only: not enough to say that it works."),
        "works": not any(lost.values()) and len(done) > 1,
        "not_beaten": lost,
        "train_seconds": [one.seconds for one in done],
        "trial": jsonable(trial),
        "tables": [{"columns": ["seed", "condition", "metric", "value", "interval", *controls], "rows": rows}],
        "reports": [dataclasses.asdict(one.report) for one in done],
    }


def run(name: str, *, seeds: Sequence[int], runs: Path | None = None) -> Iterator[Mapping[str, Any]]:
    """What there is to say after each seed."""
    done = []
    for seed in seeds:
        one = trials.run(name, seed=seed, progress=True)
        print(f"{name} seed {seed}: trained in {one.seconds:.0f} s\n{one.report}", flush=True)
        if runs is not None:
            one.model.save(runs / name / str(seed))
        done.append(one)
        yield document(name, done)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("systems", nargs="*", help="default: every system with a trial")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--runs", type=Path, help="keep the trained models here: FOLDER/<system>/<seed>")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)  # one thread to train, the other core for the worker that renders
    every = [name for name in discover.system_names() if discover.system_class(name).trial is not None]
    for name in given.systems or every:
        _, trial = trials.trial_of(name)
        path = given.results / trial.task / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        for found in run(name, seeds=range(given.seeds), runs=given.runs):
            write_json(path, finite(jsonable(found)))
            print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    main()
