"""Settings chosen on the validation split: N trials for every system, from one small declared space.

The first trial has the system's own settings, so that tuning cannot lose what is there; the others are Optuna's (TPE,
seeded). A trial is a whole training under the budget; its score is that of the epoch kept. The test split is not in
reach of this module.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from avcl.errors import AvclError, ConfigError, DivergedError, ExtraError
from avcl.model import Model
from avcl.seeds import seed_for
from avcl.system import System

# How far from the system's own value: factors, drawn on a logarithmic scale.
FACTORS: Mapping[str, tuple[float, float]] = {
    "learning_rate": (0.1, 10.0),
    "weight_decay": (0.1, 10.0),
    "epochs": (0.5, 2.0),
    # What closed forms have instead.
    "ridge": (0.01, 100.0),
    "components": (0.5, 4.0),
}
ABSOLUTE = {"weight_decay": (1e-6, 1e-1)}  # where the system's own value is 0
CLOSED = ("ridge", "components")  # all that moves a closed form


@dataclass(frozen=True)
class Tuned:
    """The best trial: its model, what was changed, its seconds of training, and its score."""

    model: Model
    settings: Mapping[str, Any]
    seconds: float
    score: float


def space(cls: type[System], given: Mapping[str, Any]) -> dict[str, tuple[float, float, bool]]:
    """{setting: (low, high, whole)} of what may be tuned; a setting that was ``given`` stays."""
    config, found = cls.Config.from_json(given), {}
    for name, (low, high) in FACTORS.items():
        if name in given or not hasattr(config, name) or (cls.closed_form and name not in CLOSED):
            continue
        value = getattr(config, name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        least, most = cls.Config.ranges.get(name, (float("-inf"), float("inf")))
        ends = (value * low, value * high) if value > 0 else ABSOLUTE.get(name)
        if ends is None:
            continue
        whole = isinstance(value, int)
        a, b = (min(max(end, least), most) for end in ends)
        a, b = (max(1, round(a)), max(1, round(b))) if whole else (a, b)
        if 0 < a < b:
            found[name] = (a, b, whole)
    return found


def tune(
    cls: type[System],
    train: Callable[[Mapping[str, Any]], tuple[Model, float]],
    *,
    given: Mapping[str, Any],
    trials: int,
    seed: int,
) -> Tuned:
    """The best of ``trials`` trainings. ``train(settings)`` returns the model and its seconds; its score is the best
    validation score of the run. A trial that diverges or whose values are refused counts and is lost; if all are lost,
    the first one's error is raised. ExtraError where Optuna is not installed.
    """
    require()
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    ranges = space(cls, given)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed_for(seed, "tune") % 2**32)
    )
    best: Tuned | None = None
    lost: AvclError | None = None
    for number in range(trials):
        trial, changed = study.ask(), {}
        if number:  # the first one: the system as it is
            changed = {name: _draw(trial, name, *ends) for name, ends in ranges.items()}
        try:
            model, seconds = train({**given, **changed})
        except (DivergedError, ConfigError) as error:
            lost = lost or error
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        score = float(model.meta["training"]["best"]["score"])
        study.tell(trial, score)
        if best is None or score > best.score:
            best = Tuned(model, changed, seconds, score)
        if not ranges:
            break  # nothing to draw: every further trial is this one again
    if best is None:
        raise lost or ConfigError(f"{trials} trials tune nothing.")
    return best


def _draw(trial: Any, name: str, low: float, high: float, whole: bool) -> float | int:
    if whole:
        return int(trial.suggest_int(name, int(low), int(high), log=True))
    return float(trial.suggest_float(name, low, high, log=True))


def require() -> None:
    """ExtraError, with the line that installs it, where Optuna is missing."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ExtraError("--tune needs optuna.", hint='Run: pip install "avcl[tune]"') from error
