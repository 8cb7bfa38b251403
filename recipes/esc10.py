"""ESC-10, official folds: what frozen features tell of real sounds, by a linear SVM.

There is no picture here, so nothing can be learned from pairs of sound and picture. Three ways all the same: GDT
within one modality (two views of a sound against those of other sounds, its shift invariant; trained anew on the
sounds of the training folds, without labels), and the towers of GDT and of LLA as they learned to hear in the
generated world, frozen. Beside them the untrained copies, the raw statistics of a sound, and chance. Every sound is
scored once, by the fold it is in; the probe is fitted on the other folds, C chosen among them.

    python recipes/esc10.py ESC10 [--runs FOLDER]     FOLDER/<system>/0: models that recipes/families.py kept
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_table

import avcl
from avcl import discover, trials
from avcl.data.dataset import Data
from avcl.data.derived import Kept
from avcl.files import finite, write_json
from avcl.model import Model
from avcl.seeds import seeded
from avcl.system import System
from avcl.task import Outputs
from avcl.tasks.probe import RAW, Probe
from avcl.types import DataSpec, jsonable

WINDOW = 5.0
ALONE: Mapping[str, Any] = {
    "window": WINDOW,
    "hypothesis": 5,
    "seconds": 2.0,
    "apart": 1.0,
    "looks": 5,
    "epochs": 40,
    "batch_size": 60,
}
WORLD = ("patrick2020_gdt", "cheng2020_lla")
TASK = Probe(conditions=("audio",))


def read(folder: Path, out: Path, *, limit: int = 0) -> tuple[Data, np.ndarray]:
    """The sounds, grouped by the recording they were cut from, and the fold of each."""
    with open(folder / "meta.csv", newline="") as file:
        meta = list(csv.DictReader(file))
    meta = meta[:: max(1, len(meta) // limit)] if limit else meta
    rows = [
        {
            "id": Path(m["filename"]).stem,
            "audio": (folder / "audio" / m["filename"]).resolve(),
            "label": m["category"],
            "group": m["src_file"],
        }
        for m in meta
    ]
    return avcl.load_data(write_table(out / "manifest.csv", rows)).all, np.array([int(m["fold"]) for m in meta])


def stretched(model: Model, looks: int) -> System:
    """The same weights, which look at ``looks`` parts of the whole window of a sound."""
    config = replace(model.system.config, window=WINDOW, looks=looks)  # type: ignore[call-arg]
    system = type(model.system)(config, model.spec)
    system.load_state_dict(model.system.state_dict())
    return system.eval()


def untrained(system: System, spec: DataSpec, seed: int) -> System:
    with seeded(seed, "untrained"):
        return type(system)(system.config, spec).eval()


def joined(parts: Sequence[Outputs]) -> Outputs:
    """The outputs of all folds as those of one data set."""
    arrays = {name: np.concatenate([p[name] for p in parts]) for name in parts[0].arrays}
    ids, groups = (tuple(x for p in parts for x in getattr(p, name)) for name in ("ids", "groups"))
    return Outputs(ids, groups, arrays, {**parts[0].notes, "c": [p.notes["c"] for p in parts]})


def line(what: str, outputs: Outputs, fold: np.ndarray) -> list[Any]:
    """What, accuracy, interval, accuracy fold by fold, chance."""
    scores = TASK.score(outputs)
    right = outputs["audio"] == outputs["label"]
    by_fold = [round(float(right[fold == k].mean()), 4) for k in np.unique(fold)]
    span = [round(x, 4) for x in scores.interval["audio"]["accuracy"]]
    return [what, round(scores.scores["audio"]["accuracy"], 4), span, by_fold, scores.chance["audio"]["accuracy"]]


def run(
    folder: Path,
    *,
    seed: int = 0,
    runs: Path | None = None,
    limit: int = 0,
    alone: Mapping[str, Any] = ALONE,
    world: Sequence[str] = WORLD,
) -> Mapping[str, Any]:
    """Sounds of ten classes by frozen features and a linear SVM, official folds."""
    gdt = discover.system_class("patrick2020_gdt")
    kept: dict[str, list[Outputs]] = {}
    seconds = []
    with tempfile.TemporaryDirectory() as out:
        data, folds = read(folder, Path(out), limit=limit)
        kept_data = Kept(data.configure(gdt.inputs(gdt.Config.from_json(alone))))
        from_world: dict[str, System] = {}
        for name in world:
            place = None if runs is None else runs / name / str(seed)
            model = trials.train(name, seed=seed) if place is None or not place.exists() else avcl.load(place)
            from_world[name] = stretched(model, 2 * alone["looks"])

        def score(what: str, system: System, test: Data, fit: Data, **how: Any) -> Outputs:
            outputs = TASK.predict(system, test, fit=fit, **how)
            kept.setdefault(what, []).append(outputs)
            return outputs

        places = []
        for fold in np.unique(folds):
            inside = np.flatnonzero(folds == fold)
            test, train = kept_data.subset(inside.tolist()), kept_data.subset(np.flatnonzero(folds != fold).tolist())
            places.append(inside)
            started = time.monotonic()
            model = avcl.train(gdt, train, seed=seed, settings=alone, workers=0)
            seconds.append(round(time.monotonic() - started, 1))
            made = score("GDT, sounds alone", model.system, test, train)
            score("the same, another sound in its place", model.system, test, train, wrong_partner=True)
            score("the same, untrained", untrained(model.system, model.spec, seed), test, train)
            baselines = TASK.baselines(made)
            kept.setdefault(RAW, []).append(baselines[RAW])
            for name, system in from_world.items():
                score(f"{name}, from the world", system, test, train)
                score(f"{name}, untrained", untrained(system, system.spec, seed), test, train)
            print(fold, {what: round(float((o[-1]["audio"] == o[-1]["label"]).mean()), 3) for what, o in kept.items()})
    order = folds[np.concatenate(places)]
    lines = [line(what, joined(parts), order) for what, parts in kept.items()]
    scored = dict(zip(kept, (x[1] for x in lines), strict=True))
    return {
        "title": "ESC-10: real sounds by frozen features and a linear SVM",
        "about": f"{len(folds)} sounds of 10 classes in folds {', '.join(map(str, np.unique(folds)))}, one held out at "
        "a time; intervals over recordings. There is no picture: GDT is trained on two views of each sound alone, "
        f"{', '.join(f'{s:.0f}' for s in seconds)} s a fold, or taken frozen from the generated world. Seed {seed}.",
        "tables": [{"columns": ["features", "accuracy", "interval", "by fold", "chance"], "rows": lines}],
        "accuracy": scored,
        "settings": dict(alone),
        "train_seconds": seconds,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("esc10", type=Path, help="the folder of esc10")
    parser.add_argument("--runs", type=Path, help="models that recipes/families.py kept")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = run(given.esc10, seed=given.seed, runs=given.runs)
    path = given.results / "probe" / "esc10.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, finite(jsonable(found)))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
