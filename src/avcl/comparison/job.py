"""One system under one seed: does it fit the data, train it by the rules of the plan, measure it on the test split."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from avcl import api, discover
from avcl.comparison.plan import Plan
from avcl.comparison.runs import Run
from avcl.comparison.tuning import tune
from avcl.data import Loader
from avcl.data.dataset import Data
from avcl.data.predictions import Predictions
from avcl.environment import versions
from avcl.errors import (
    AvclError,
    BatchError,
    CapabilityError,
    ConfigError,
    DataError,
    FeatureError,
    LabelError,
)
from avcl.metrics import cluster_numbers, precision_recall
from avcl.model import Model, check_streams
from avcl.system import Config, System
from avcl.tasks.retrieval import Scores, only_modality
from avcl.types import fingerprint, jsonable

TIMED_CLIPS, TIMED_BATCH, TIMED_SECONDS = 128, 64, 0.3
# What a system raises that cannot be built for streams of these kinds and shapes.
UNFIT = (ConfigError, CapabilityError, LabelError, BatchError, FeatureError)


def perform(system: str, seed: int, plan: Plan) -> Run:
    """Train and measure. A Run with the state "n/a" where the data lack what the system needs; any other error is the
    caller's to keep."""
    cls = discover.system_class(system)
    splits = api.load_data(plan.data, **plan.reading)
    given = plan.given(system, (f.name for f in dataclasses.fields(cls.Config)))
    lacking = unfit(cls, splits.train, given)
    if lacking is not None:
        return Run.without_result(system, seed, "n/a", lacking)
    inputs = cls.inputs(cls.Config.from_json(given))
    train, val = (
        part.configure(inputs).prepare(workers=0, on_error=plan.on_error) for part in (splits.train, splits.val)
    )

    def once(settings: Mapping[str, Any]) -> tuple[Model, float]:
        started = clock()
        model = api.train(
            cls, train, val=val, seed=seed, settings=settings, on_error=plan.on_error, workers=0,
            select=plan.relevance, budget=60 * plan.budget or None, clock=clock,
        )  # fmt: skip
        return model, clock() - started

    clock = _clock()
    started, tuned = clock(), dict[str, Any]()
    try:
        if plan.tune:
            best = tune(cls, once, given=given, trials=plan.tune, seed=seed)
            model, seconds, tuned = best.model, best.seconds, dict(best.settings)
        else:
            model, seconds = once(given)
    except (LabelError, BatchError) as error:
        if max(train.targets) < 0:  # it learns from labels, and there are none
            return Run.without_result(system, seed, "n/a", error)
        raise
    spent = clock() - started

    test = splits.test.configure(model.inputs).prepare(workers=0, on_error=plan.on_error)
    check_streams(model.spec, test.spec)
    predictions = api.predict(model.system, test, plan.task, batch_size=TIMED_BATCH, workers=0)
    scores = plan.task.score(predictions)
    training = model.meta["training"]
    return Run(
        system,
        seed,
        "ok",
        scores=scores.scores,
        chance=scores.chance,
        interval=scores.interval,
        params=learned_numbers(model.system),
        train_s=round(seconds, 3),
        tune_s=round(spent, 3) if plan.tune else None,
        embed_ms=round(embed_milliseconds(model.system, test, predictions), 4),
        ended=_ended(cls, training),
        epochs=int(training["epochs"]),
        config=jsonable(model.system.config),
        tuned=tuned,
        per_class={c: {m: row[m] for m in ("queries", "mAP")} for c, row in scores.per_class.get("mean", {}).items()},
        versions=versions(),
        **_queries(predictions, scores),
    )


def unfit(cls: type[System], data: Data, given: Mapping[str, Any]) -> AvclError | None:
    """Why these data are not for this system, None where they are; ConfigError where only the settings are to blame.

    It is asked by building it: first with the settings given, then with its own.
    """
    name, kind = discover.system_name(cls), "features" if data.kind == "features" else "media"
    if not hasattr(cls, "embed"):
        return CapabilityError(f"{name} does not embed, so it cannot be scored at retrieval.")
    if kind not in cls.learns_from:
        return CapabilityError(f"{name} learns from {' and '.join(cls.learns_from)}, and these data are {kind}.")
    try:
        _build(cls, cls.Config.from_json(given), data)
    except UNFIT as error:
        try:
            _build(cls, cls.Config(), data)
        except UNFIT as own:
            return own
        raise error
    return None


def _build(cls: type[System], config: Config, data: Data) -> None:
    with torch.random.fork_rng([]):
        cls(config, data.configure(cls.inputs(config)).spec)


def _clock() -> Callable[[], float]:
    """Processor time: the jobs beside this one do not cost it anything. An accelerator is not counted by it."""
    return time.monotonic if torch.accelerator.is_available() else time.process_time


def _ended(cls: type[System], training: Mapping[str, Any]) -> str:
    if cls.closed_form:
        return "closed form"
    return "budget" if training["out_of_time"] else "patience" if training["stopped_early"] else "epochs"


def learned_numbers(system: System) -> int:
    """How many numbers were learned: the parameters, or what a closed form keeps instead of them."""
    parameters = sum(p.numel() for p in system.parameters())
    if parameters or not system.closed_form:
        return parameters
    return sum(b.numel() for b in system.buffers() if b.is_floating_point())


def embed_milliseconds(system: System, data: Data, predictions: Predictions) -> float:
    """Milliseconds to embed all modalities of one clip, decoded and in memory."""
    names = predictions.modalities
    some = data.subset(range(min(len(data), TIMED_CLIPS)))
    with Loader(some, batch_size=min(len(some), TIMED_BATCH)) as loader:
        batches = list(loader.batches(0))
    device = next((p.device for p in system.parameters()), torch.device("cpu"))
    shown = [(only_modality(b, n).to(device), n, o) for b in batches for n in names for o in names if n != o]
    clock, passes, started = _clock(), 0, 0.0
    with torch.inference_mode():
        # The first pass warms up; a clock of processor time may tick in hundredths of a second, so there are many.
        while passes == 0 or clock() - started < TIMED_SECONDS:
            for batch, name, toward in shown:
                system.embed(batch, name, toward=toward)  # type: ignore[operator]
            started = clock() if passes == 0 else started
            passes += 1
        seconds = clock() - started
    return 1000 * seconds / (passes - 1) / len(some)


def _queries(predictions: Predictions, scores: Scores) -> dict[str, Any]:
    """Query by query, and the precision-recall curves."""
    queries, curves = {}, {}
    for name, d in scores.directions.items():
        kept = d.ranking.scored
        queries[name] = {"rows": d.rows[kept].tolist(), "ap": d.ranking.ap[kept].round(7).tolist()}
        curve = precision_recall(
            predictions.of(d.query, d.gallery)[d.rows],
            predictions.of(d.gallery, d.query)[d.columns],
            d.row_keys,
            d.column_keys,
            similarity=predictions.similarity,
        )
        curves[name] = {"k": list(curve.k)} | {n: getattr(curve, n).round(6).tolist() for n in ("precision", "recall")}
    if not any(len(q["rows"]) for q in queries.values()):
        raise DataError("no query of the test split has a right answer.")
    groups = cluster_numbers(predictions.groups)[0]
    items = fingerprint({"ids": list(predictions.ids), "groups": groups.tolist()})
    return {"queries": queries, "curves": curves, "groups": tuple(groups.tolist()), "items": items}
