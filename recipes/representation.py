"""What self-supervised systems know of what they saw and heard: linear probes and retrieval on the generated world.

Each system is trained as its trial says, and once more on wrong pairs (every picture with the sound of another clip):
what a probe finds there beyond the untrained copy does not come from sound and picture belonging together. Two probes:
the class of the object (12), and the action, what the object is seen to do (4). Beside them the raw statistics of the
stream, the majority, the untrained copy, and the streams of other clips. Retrieval by pair and by class; LLA has no
embedding and judges every pair of test clips instead.

    python recipes/representation.py [--seed 0] [--runs FOLDER]     FOLDER/<system>/<seed>: models that are there
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import row, table

import avcl
from avcl import trials
from avcl.data import Loader
from avcl.data.dataset import Data
from avcl.data.derived import Kept, WrongPartner
from avcl.data.predictions import Predictions
from avcl.files import finite, write_json
from avcl.model import Model
from avcl.seeds import seeded
from avcl.system import Embeds
from avcl.systems.cheng2020_lla import LLA
from avcl.tasks.retrieval import Retrieval, Scores
from avcl.types import Report, jsonable

SYSTEMS = ("patrick2020_gdt", "cheng2020_lla")
TARGETS = {"label": "class", "motion": "action"}
METRICS = {"pair": ("R@1", "R@10"), "class": ("mAP",)}
BESIDE = ("raw statistics", "majority", "untrained", "wrong pairs", "wrong partner")


def probes(model: Model, wrong: Model, test: Data, fit: Data, protocol: Mapping[str, Any]) -> list[list[Any]]:
    """Lines of the table of probes: target, condition, accuracy, interval, chance, and what stands beside."""
    lines = []
    for target, word in TARGETS.items():
        how: dict[str, Any] = {"task": "probe", "protocol": {**protocol, "target": target}, "fit": fit, "workers": 0}
        report = avcl.evaluate(model, test, controls=True, **how)
        blind = avcl.evaluate(wrong, test, **how)
        controls = {**report.controls, "wrong pairs": blind.scores}
        for condition, scores in report.scores.items():
            beside = [round(controls[name][condition]["accuracy"], 4) for name in BESIDE]
            span = [round(x, 4) for x in report.interval[condition]["accuracy"]]
            chance = round(report.chance[condition]["accuracy"], 4)
            lines.append([word, condition, round(scores["accuracy"], 4), span, chance, *beside])
    return lines


def embedded(model: Model, test: Data) -> dict[str, Mapping[str, Any]]:
    """Scores by pair and by class of a system that embeds."""
    found: dict[str, Mapping[str, Any]] = {}
    for relevance, metrics in METRICS.items():
        report: Report = avcl.evaluate(model, test, relevance=relevance, controls=True, workers=0)  # type: ignore[arg-type]
        found[relevance] = row(report, *metrics)
    return found


@torch.no_grad()
def judgments(system: LLA, test: Data) -> torch.Tensor:
    """[N, N]: how much the sound of column j is in step with the picture of row i, log-odds."""
    encoded: dict[str, list[torch.Tensor]] = {}
    for batch in Loader(test, batch_size=32):
        for name, value in system.encode(batch.to("cpu")).items():
            encoded.setdefault(name, []).append(value)
    tokens = system.tokens({name: torch.cat(parts) for name, parts in encoded.items()})
    video, audio = tokens["video"], tokens["audio"]
    rows = []
    for i in range(len(video.data)):
        seen = video._replace(data=video.data[i].expand_as(video.data), mask=video.mask[i].expand_as(video.mask))
        rows.append(system.in_step(seen, audio).diff(dim=1)[:, 0])
    return torch.stack(rows)


def judged(model: Model, test: Data) -> dict[str, Mapping[str, Any]]:
    """The same of LLA, whose similarity is a judgment of each pair and not a function of two embeddings."""
    system = model.system
    assert isinstance(system, LLA)
    with seeded(int(model.meta.get("training", {}).get("seed", 0)), "untrained"):
        untrained = LLA(system.config, model.spec).eval()
    number, n = np.arange(len(test), dtype=np.float32)[:, None], len(test)
    places = {"audio": number, "video": number + n}  # a number says which clip and which modality
    where = Predictions(test.ids, np.array(test.targets), test.groups, places)
    found: dict[str, Mapping[str, Any]] = {}
    matrices = {"own": judgments(system, test), "untrained": judgments(untrained, test)}
    for relevance, metrics in METRICS.items():
        task = Retrieval(relevance=relevance)  # type: ignore[arg-type]

        def scored(matrix: torch.Tensor, predictions: Predictions, task: Retrieval = task) -> Scores:
            def looked_up(q: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
                q, g = q[:, 0].long(), g[:, 0].long()
                return matrix[q - n][:, g] if int(q[0]) >= n else matrix.T[q][:, g - n]

            return task.score(predictions, similarity=looked_up)

        own = scored(matrices["own"], where)
        beside = {"untrained": scored(matrices["untrained"], where)}
        beside["wrong_partner"] = scored(matrices["own"], where.with_wrong_partners())
        report = Report(
            system="cheng2020_lla",
            data=test.fingerprint,
            **own.parts(),
            **{name: scores.scores for name, scores in beside.items()},  # type: ignore[arg-type]
        )
        found[relevance] = row(report, *metrics)
    return found


def run(
    *, seed: int = 0, runs: Path | None = None, systems: Sequence[str] = SYSTEMS, queries: int = 200
) -> dict[str, Mapping[str, Any]]:
    """{where: what} of the results of probes and of retrieval."""
    told, lines, ranked = [], [], []
    for name in systems:
        cls, trial = trials.trial_of(name)
        folder = None if runs is None else runs / name / str(seed)
        started = time.monotonic()
        model = trials.train(cls, seed=seed) if folder is None or not folder.exists() else avcl.load(folder)
        misled = trials.train(cls, WrongPartner(trials.training_data(cls, seed=seed), "audio", seed=seed), seed=seed)
        test = Kept(
            trials.world_of(trial, clips=trial.test, split="test", seed=seed).with_truth().configure(model.inputs)
        )
        rows = trial.protocol.get("labeled", 0) or trial.clips
        fit = Kept(trials.world_of(trial, clips=rows, split="train", seed=seed).with_truth().configure(model.inputs))
        probed = probes(model, misled, test, fit, trial.protocol)
        lines += [[name, *line] for line in probed]
        few = test.subset(range(min(queries, len(test))))
        scores = embedded(model, few) if isinstance(model.system, Embeds) else judged(model, few)
        ranked += [((name, relevance), cell) for relevance, cell in scores.items()]
        settings = {"settings": trial.settings, "knobs": trial.knobs, "clips": trial.clips, "retime": trial.retime}
        told.append({"system": name, **settings, "labeled": rows, "seconds": round(time.monotonic() - started, 1)})
        print(name, *probed, scores, sep="\n", flush=True)
    heads = ["system", "told", "from", "accuracy", "interval", "chance", *BESIDE]
    return {
        "probe/representation": {
            "title": "Frozen features of self-supervised systems: linear probes of class and action",
            "about": f"Held-out clips of the world, seed {seed}; a linear SVM on {told[0]['labeled']} labeled training "
            "clips. Action: what the object is seen to do (bounce, shake, pluck, bow). Untrained: a copy that has seen "
            "nothing. Wrong pairs: trained as long on pictures with the sounds of other clips. Wrong partner: the "
            "scored streams are those of other clips.",
            "tables": [{"columns": heads, "rows": lines}],
            "trained": told,
        },
        "retrieval/representation": {
            "title": "Self-supervised systems: the sound of a picture and the picture of a sound",
            "about": f"The same models, {queries} held-out clips of the world; by pair, and by class. LLA judges each "
            "of the pairs, GDT compares embeddings.",
            "tables": [table("", ranked, "system", "relevant")],
            "trained": told,
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="models that recipes/families.py kept")
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    for where, found in run(seed=given.seed, runs=given.runs).items():
        path = given.results / f"{where}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, finite(jsonable(found)))
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
