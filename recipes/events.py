"""Event localization on the world: full and weak supervision of both systems, and models of one modality.

Full supervision learns from the class of every half second, weak supervision from the class of the clip. A model of one
modality learns and answers with the other as if it had not been recorded: "both modalities" must beat it.

    python recipes/events.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from common import main

from avcl import api, trials
from avcl.data.world import PRESETS, render
from avcl.types import Report

SYSTEMS = ("duan2021_jca", "tian2018_avel")
LEARNING: Mapping[str, Mapping[str, Any]] = {"segments": {}, "clip labels": {"weak": True}}
ALONE: Mapping[str, Mapping[str, Any]] = {f"segments, {name} alone": {"use": name} for name in ("audio", "video")}
CONDITIONS = ("both", "audio only", "video only", "audio to video", "video to audio")


def measured(system: str, settings: Mapping[str, Any], seed: int, clips: int, test: int) -> tuple[Report, float]:
    """The system of its trial under other settings: its report with all controls, and the seconds of training."""
    _, trial = trials.trial_of(system)
    train = trials.world_of(trial, clips=clips or trial.clips, split="train", seed=seed, fresh=trial.fresh)
    model = api.train(system, train, seed=seed, settings={**trial.settings, **settings}, workers=1)
    held_out = trials.world_of(trial, clips=test or trial.test, split="test", seed=seed)
    report = api.evaluate(model, held_out, task="events", controls=True, workers=1)
    return report, float(model.meta["training"]["seconds"])


def lines(report: Report) -> list[list[Any]]:
    """Condition, metric, value, interval, chance and the deciding controls of every row of a report."""
    found = []
    for condition in CONDITIONS:
        for metric, value in report.scores.get(condition, {}).items():
            if metric not in ("segment accuracy", "event F1", "start accuracy"):
                continue
            others = (report.chance, report.untrained, report.wrong_partner, report.baselines["background only"])
            beside = [scores.get(condition, {}).get(metric) for scores in others]
            found.append([condition, metric, value, report.interval[condition][metric], *beside])
    return found


def bounds(preset: str, test: int, seed: int) -> list[list[Any]]:
    """Segment accuracy of those who know everything of one modality and nothing of the other, from the truth."""
    found: dict[str, list[float]] = {"sound": [], "picture": [], "nothing": [], "class of the clip, no times": []}
    for i in range(test):
        truth = render(preset, seed, i, stream="test", truth=True).truth
        segments, background = np.array(truth["segments"]), len(PRESETS[preset].labels)
        for name, key in (("sound", "audible"), ("picture", "visible")):
            there = [o for o in truth["objects"] if o[key] is not None]
            guesses = [np.where(_covered(o[key], len(segments)), o["label"], background) for o in there]
            found[name].append(float(np.mean([guess == segments for guess in guesses])))  # one of them, at random
        found["nothing"].append(float((segments == background).mean()))
        found["class of the clip, no times"].append(float((segments != background).mean()))
    return [[known, float(np.mean(values))] for known, values in found.items()]


def _covered(span: Sequence[float], steps: int, length: float = 0.5) -> np.ndarray:
    begin = np.arange(steps) * length
    return np.minimum(begin + length, span[1]) - np.maximum(begin, span[0]) > length / 2


def run(
    *,
    seed: int = 0,
    seeds: int = 2,
    systems: Sequence[str] = SYSTEMS,
    learning: Mapping[str, Mapping[str, Any]] = LEARNING,
    alone: Mapping[str, Mapping[str, Any]] = ALONE,
    clips: int = 0,
    test: int = 0,
) -> Mapping[str, Any]:
    """Full and weak supervision of both event localizers on the world, beside all controls."""
    rows, reports = [], []
    for system in systems:
        for words, settings in {**learning, **(alone if system == systems[0] else {})}.items():
            for one in range(seed, seed + (seeds if words in learning else 1)):
                report, seconds = measured(system, settings, one, clips, test)
                lost = ", ".join(report.not_beaten()) or "none"
                rows += [[system, words, one, *line, lost, seconds] for line in lines(report)]
                reports.append({"system": system, "learning": words, "report": report})
                score = report.scores["both"]["segment accuracy"]
                print(system, words, one, f"{score:.3f} in {seconds:.0f} s, not beaten: {lost}", flush=True)
    _, trial = trials.trial_of(systems[0])
    columns = ["system", "learned from", "seed", "condition", "metric", "value", "interval", "chance", "untrained"]
    columns += ["wrong partner", "background only", "not beaten", "seconds"]
    return {
        "title": "Event localization on the world: full and weak supervision",
        "about": "Preset `events`, held-out clips of five seconds in ten segments; learned from the class of every "
        "half second, or of the clip alone. The conditions `audio only` and `video only` show the model one stream, "
        "the other as if it had not been recorded; the rows `alone` are models that learned from one. `wrong partner`: "
        "another clip's sound.",
        "tables": [
            {"columns": columns, "rows": rows},
            {
                "title": "Going by one modality alone, with all of it known",
                "columns": ["knows", "segment accuracy"],
                "rows": bounds(trial.preset, test or trial.test, seed),
            },
        ],
        "reports": reports,
    }


if __name__ == "__main__":
    main(run, result="events/world_weak")
