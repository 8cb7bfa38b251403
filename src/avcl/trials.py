"""Trials: does a system really learn its task? Train it on the generated world and measure it beside every control.

A system works when, for each of two seeds or more, the 95 % interval of the deciding metric lies beyond chance and
beyond the interval of every control (``Report.not_beaten`` is empty).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from avcl import api, discover
from avcl.data.dataset import Data
from avcl.data.derived import Kept, WrongPartner
from avcl.data.loader import Loader
from avcl.data.world import World
from avcl.data.world.presets import preset_of
from avcl.errors import ConfigError
from avcl.model import Model
from avcl.seeds import seed_everything, seed_for
from avcl.system import Step, System, Trial
from avcl.types import Report


@dataclass(frozen=True)
class Trained:
    """What a trial made: the model, the report with all controls, and the seconds of training."""

    model: Model
    report: Report
    seconds: float


def world_of(trial: Trial, *, clips: int, split: str, seed: int = 0, fresh: bool = False, retime: float = 0.0) -> World:
    """The world of a trial: its preset with its knobs, its streams."""
    preset = replace(preset_of(trial.preset), **trial.knobs)
    how: dict[str, Any] = {"truth": trial.truth, "streams": trial.streams or None}
    return World(preset, clips=clips, split=split, seed=seed, fresh=fresh, retime=retime, **how)


def trial_of(system: str | type[System]) -> tuple[type[System], Trial]:
    """The class and its trial; ConfigError where it declares none."""
    cls = discover.system_class(system) if isinstance(system, str) else system
    if cls.trial is None:
        raise ConfigError(f"{cls.__name__} declares no trial.", hint="Set the class attribute `trial`.")
    return cls, cls.trial


def training_data(system: str | type[System], *, seed: int = 0, progress: bool = False) -> Data:
    """The clips that a trial trains on; where every epoch sees the same ones, they are rendered once."""
    cls, trial = trial_of(system)
    world = world_of(trial, clips=trial.clips, split="train", seed=seed, fresh=trial.fresh, retime=trial.retime)
    if trial.fresh:
        return world
    return Kept(world.configure(cls.inputs(cls.Config.from_json(trial.settings))), progress=progress)


def train(
    system: str | type[System],
    data: Data | None = None,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> Model:
    """The system trained as its trial says (on ``data``: what ``training_data`` made before)."""
    cls, trial = trial_of(system)
    data = training_data(cls, seed=seed, progress=progress) if data is None else data
    workers = workers if trial.fresh else 0
    return api.train(cls, data, seed=seed, settings=trial.settings, workers=workers, progress=progress)


def measure(model: Model, *, fit: Data | None = None, seed: int = 0, workers: int = 1) -> Report:
    """The trial's task on held-out clips, beside chance and all controls. ``fit``: rows for a probe or judge (default:
    the training clips of the trial)."""
    _, trial = trial_of(type(model.system))
    test = world_of(trial, clips=trial.test, split="test", seed=seed).configure(model.inputs)
    square = model.inputs.size[0] == model.inputs.size[1]  # of other pictures the truth is not known
    kept = Kept(test.with_truth() if square else test)  # every control is scored on the same clips
    if fit is None:
        fit = world_of(trial, clips=trial.clips, split="train", seed=seed)
    if isinstance(fit, Kept):
        workers = 0  # everything is in memory: a process beside this one would only copy it
    return api.evaluate(model, kept, task=trial.task, protocol=trial.protocol, fit=fit, controls=True, workers=workers)


def run(system: str | type[System], *, seed: int = 0, workers: int = 1, progress: bool = False) -> Trained:
    """Train and measure."""
    started = time.monotonic()
    data = training_data(system, seed=seed, progress=progress)
    model = train(system, data, seed=seed, workers=workers, progress=progress)
    seconds = time.monotonic() - started
    fit = data if isinstance(data, Kept) else None
    return Trained(model, measure(model, fit=fit, seed=seed, workers=workers), round(seconds, 1))


# --------------------------------------------------------------------------------------------------------- short form
@dataclass(frozen=True)
class Short:
    """The short form: the watched loss of the first and the last epoch, and of the clips it learned, as they are and
    with another clip's stream put in. No score: it shows that learning works and that the partner matters.
    """

    first: float
    last: float
    right: float
    wrong: float


def run_short(system: str | type[System], *, seed: int = 0) -> Short:
    """A few seconds of training on a handful of fixed clips."""
    cls, trial = trial_of(system)
    data = world_of(trial, clips=trial.short_clips, split="train", seed=seed)
    settings = {**trial.settings, **trial.short}
    kept = Kept(data.configure(cls.inputs(cls.Config.from_json(settings))))
    model = api.train(cls, kept, seed=seed, settings=settings, workers=0)
    history = model.meta["history"]
    first, last = (_watched(history[i]["losses"], trial) for i in (0, -1))
    right = _loss(model.system, kept, trial, seed)
    wrong = _loss(model.system, WrongPartner(kept, trial.partner), trial, seed)
    return Short(first, last, right, wrong)


def _watched(losses: Mapping[str, float], trial: Trial) -> float:
    return losses[trial.watch] if trial.watch else sum(losses.values())


@torch.no_grad()
def _loss(system: System, data: Data, trial: Trial, seed: int) -> float:
    """The watched loss over ``data`` in evaluation mode, the same random draws at every call."""
    seed_everything(seed_for(seed, "trial"))
    generator = torch.Generator().manual_seed(seed_for(seed, "trial"))
    at, total, rows = Step(0, 1, 0, 1.0, generator), 0.0, 0
    for batch in Loader(data, batch_size=min(system.config.batch_size, len(data))):
        terms, _ = system(batch.to("cpu"), at)
        value = _watched({name: float(term) for name, term in terms.items()}, trial)
        total, rows = total + value * len(batch), rows + len(batch)
    return total / rows
