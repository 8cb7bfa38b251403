"""Learn and measure: ``train``, ``evaluate``, ``load``. Values in, values out; what Python users call and ``ops``
wraps.

The other verbs are neighbors: ``archive`` (index, search, embed) and ``catalog`` (list, describe).
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from avcl import discover
from avcl.data import Loader, load_data
from avcl.data.dataset import Data, Splits
from avcl.environment import cores, threads_beside, versions
from avcl.errors import ConfigError, DataError, ExistsError, did_you_mean
from avcl.files import PART
from avcl.loop import fit, launched
from avcl.model import Media, Model, check_streams
from avcl.report import write_html, write_task_html
from avcl.seeds import seeded
from avcl.system import Config, Embeds, System, coerce
from avcl.task import Scores, Task
from avcl.tasks.retrieval import Predictions, Retrieval
from avcl.types import Inputs, Report, jsonable

__all__ = ["Model", "evaluate", "load", "load_data", "predict", "train"]

OnError = Literal["skip", "raise"]
Relevance = Literal["pair", "class", "group"]
# The files by which a run folder is known; ``force`` deletes nothing else.
OURS = (".lock", PART)
RUN_FILES = ("config.json", "weights.safetensors", "metrics.jsonl", "checkpoints")


# --------------------------------------------------------------------------------------------------------------- train
def train(
    system: str | type[System],
    data: Data | Splits | Media,
    *,
    val: Data | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    micro_batch: int | None = None,
    out: Media | None = None,
    on_error: OnError = "skip",
    workers: int | None = None,
    max_steps: int | None = None,
    select: Relevance = "pair",
    budget: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    force: bool = False,
    progress: bool = False,
) -> Model:
    """Learn f and g from ``data`` (early stopping on ``val``) and return the model; with ``out`` also write a run
    folder.

    ``data``: a Data, the Splits of ``load_data`` (then its train and val parts are used and the split is stored with
    the run), or a path. A run that was killed goes on from its last checkpoint when called again with the same
    arguments; another run in ``out`` is an ExistsError unless ``force``. ``select``: the epoch that is kept is the one
    with the best reciprocal rank of the own pair in ``val`` (of its group: "group"), or the best mAP by class (where
    pairs are by class only, the former is noise). ``budget``: seconds by ``clock`` after which no step is begun.

    ``batch_size`` and ``micro_batch`` go before ``settings``: the loss is that of ``batch_size`` clips, of which
    ``micro_batch`` at a time are decoded and encoded (0: all). Under a launcher (``torchrun``) the processes share
    every batch; each returns the model, the first one writes.
    """
    cls = discover.system_class(system) if isinstance(system, str) else system
    sizes = {"batch_size": batch_size, "micro_batch": micro_batch}
    given = {name: value for name, value in sizes.items() if value is not None}
    config = cls.Config.from_json({**(settings or {}), **given})
    processes = launched()
    splits = load_data(data, seed=seed) if isinstance(data, str | Path) else data if isinstance(data, Splits) else None
    part = splits.train if splits is not None else data
    if not isinstance(part, Data):
        raise ConfigError(f"data is a {type(data).__name__}.", hint="Give a path, or what load_data returned.")
    val = splits.val if splits is not None and val is None else val
    workers = _workers(workers, part)
    folder = None if out is None else processes.from_first(lambda: _run_folder(Path(out), force=force))
    started = time.monotonic()

    if len(part.modalities) < (1 if cls.alone else 2):
        raise DataError(
            f"the clips have only {', '.join(part.modalities) or 'nothing'}; two of sound, picture, text are needed.",
            file=data if isinstance(data, str | Path) else None,
            hint="Give files that have both, or a manifest with a column for each.",
        )
    inputs = cls.inputs(config)
    progress = progress and processes.first
    prepare = partial(_prepared, inputs=inputs, workers=workers, on_error=on_error, progress=progress)
    part = processes.after_first(partial(prepare, part))
    if len(part) < 2:
        whole = "" if splits is None else f" ({len(splits.all):,} in all, split into train, val and test)"
        raise DataError(
            f"{len(part)} clip{'s' if len(part) != 1 else ''} to train on{whole}; at least 2 are needed.",
            file=data if isinstance(data, str | Path) else None,
            hint="Give more clips, or a `split` column that says train.",
        )
    if val is not None:
        val = processes.after_first(partial(prepare, val)) if len(val) else None
        if val is not None:
            check_streams(part.spec, val.spec)
    with seeded(seed, "init"):
        network = cls(config, part.spec)
    with threads_beside(workers):
        fitted = fit(
            network,
            part,
            val=val,
            inputs=inputs,
            seed=seed,
            out=folder,
            workers=workers,
            validate=None if val is None or len(val) < 2 else _validation(network, val, select, config),
            max_steps=max_steps,
            progress=progress,
            budget=budget,
            clock=clock,
        )
    meta = {
        "training": {
            "data": part.fingerprint,
            "clips": len(part),
            "skipped": dict(part.skipped),
            "leaking": 0 if splits is None else splits.leaking,
            "seed": seed,
            "steps": fitted.steps,
            "epochs": fitted.epochs,
            "best": fitted.best,
            "stopped_early": fitted.stopped_early,
            "out_of_time": fitted.out_of_time,
            "seconds": round(time.monotonic() - started, 1),
        },
        "history": fitted.history,
        "split": None if splits is None else _split_record(splits),
    }
    model = Model(fitted.system, inputs, jsonable(meta))
    if folder is not None:
        processes.from_first(lambda: model.save(folder))
    return model


def _prepared(data: Data, inputs: Inputs, workers: int, on_error: OnError, progress: bool) -> Data:
    return data.configure(inputs).prepare(workers=workers, on_error=on_error, progress=progress)


def _split_record(splits: Splits) -> dict[str, Any]:
    """Which rows were whose, so that ``evaluate`` on the same data scores the same test rows."""
    parts = (
        {name: list(splits.part(name).ids) for name in ("train", "val", "test")} if splits.all.kind != "world" else {}
    )
    overridden = not splits.official and getattr(splits.all, "official", None) is not None  # split_by was given
    return {"data": splits.all.fingerprint, "official": splits.official, "overridden": overridden, **parts}


def _workers(workers: int | None, data: Data) -> int:
    """By default one core computes and the others decode or render; arrays in memory need no worker."""
    if workers is not None:
        return workers
    return 0 if data.kind == "features" else max(1, cores() - 1)


def _run_folder(folder: Path, *, force: bool) -> Path:
    """``folder``, free for a run: empty, an unfinished run to go on with, or emptied because ``force`` says so."""
    if folder.exists() and not folder.is_dir():
        raise ExistsError("is a file, not a folder for a run.", file=folder)
    # What a run leaves that stopped before its first step (a lock, an unfinished file) is nobody's work.
    if not folder.exists() or all(path.name.startswith(OURS) for path in folder.iterdir()):
        return folder
    if not any((folder / name).exists() for name in RUN_FILES):
        raise ExistsError("holds something that is not a run.", file=folder, hint="Choose another --out.")
    if force:
        shutil.rmtree(folder)
    elif (folder / "config.json").exists():
        raise ExistsError(
            "holds a finished run.", file=folder, hint="Choose another --out, or replace it with --force."
        )
    return folder


def _validation(network: System, val: Data, select: Relevance, config: Config) -> Callable[[System], float] | None:
    """system -> mean reciprocal rank of the own pair or group, or mAP by class, in ``val``; higher is better. None (the
    loss decides) for a system that is not made to embed two modalities in one space."""
    if not isinstance(network, Embeds):
        return None
    task = Retrieval(relevance=select, bootstrap=0)
    metric = "mAP" if select == "class" else "MRR"
    size = min(config.micro_batch or config.batch_size, config.batch_size)

    def score(system: System) -> float:
        predictions = predict(system, val, task, batch_size=size, workers=0)
        return float(task.score(predictions).scores["mean"][metric])

    return score


# ------------------------------------------------------------------------------------------------------------ evaluate
def evaluate(
    model: Model | Media,
    data: Data | Splits | Media,
    *,
    task: str = "retrieval",
    relevance: Relevance = "pair",
    protocol: Mapping[str, Any] | None = None,
    fit: Data | None = None,
    split: str | None = None,
    controls: bool = False,
    report: Media | None = None,
    on_error: OnError = "skip",
    workers: int | None = None,
    progress: bool = False,
) -> Report:
    """Score a model at ``task``, with 95 % intervals, beside chance.

    Which rows: a Data is scored whole. Of a path or Splits, ``split`` if given; else ``test`` where the data has an
    official split (unless the run overrode it with ``split_by``); else the test rows stored with the run if this is the
    data it was trained on; else everything. Tasks that learn a probe or a judge do so on ``fit`` (default: the train
    part of Splits). ``protocol``: fields of the task (``relevance`` is that of retrieval).
    ``controls`` also scores an untrained copy, wrong partners and the task's own baselines. ``report``: write a
    self-contained HTML page there.
    """
    how: dict[str, Any] = {"split": split, "controls": controls, "on_error": on_error}
    how |= {"workers": workers, "progress": progress}
    if task == "retrieval":
        if protocol:
            relevance = protocol.get("relevance", relevance)
        return evaluate_each(model, data, (relevance,), report=report, **how)[0]
    _check_page(report)
    measured = _measured(_task(task, protocol or {}), model, data, fit=fit, **how)
    if report is not None:
        write_task_html(measured, report)
    return measured


def _check_page(report: Media | None) -> None:
    if report is not None and Path(report).is_dir():
        raise ConfigError("the report is one file, and this is a folder.", file=report, hint="Name a file in it.")


def _task(name: str, protocol: Mapping[str, Any]) -> Task:
    """The protocol of that name with these fields; ConfigError for an unknown one."""
    if name not in discover.task_names():
        raise ConfigError(f'"{name}" is not a task.', hint=f"Known: {', '.join(discover.task_names())}.")
    cls = discover.task_class(name)
    known = {f.name: f.default for f in dataclasses.fields(cls)}
    for key in protocol:
        if key not in known:
            raise ConfigError(f'"{key}" is not a setting of the task {name}.', hint=did_you_mean(key, set(known)))
    return cls(**{key: coerce(key, value, known[key]) for key, value in protocol.items()})


def _measured(
    task: Task,
    model: Model | Media,
    data: Data | Splits | Media,
    *,
    fit: Data | None,
    split: str | None,
    controls: bool,
    on_error: OnError,
    workers: int | None,
    progress: bool,
) -> Report:
    """The report of any task but retrieval; with ``controls`` every control is scored with its interval."""
    model = Model.load(model) if isinstance(model, str | Path) else model
    task.require(model.system)
    started = time.monotonic()
    data = load_data(data) if isinstance(data, str | Path) else data
    if task.fits and fit is None and isinstance(data, Splits) and len(data.train):
        fit = data.train
    part, split_name, leaking = _rows(model, data, split)
    workers = _workers(workers, part)
    prepare = partial(_prepared, inputs=model.inputs, workers=workers, on_error=on_error, progress=progress)
    part, fit = prepare(part), None if fit is None or not task.fits else prepare(fit)
    check_streams(model.spec, part.spec)
    judge = None if not task.judge or fit is None else _judge(task, fit, model, workers, progress)
    how: dict[str, Any] = {"fit": fit, "judge": judge, "workers": workers}
    with threads_beside(workers):
        made = task.predict(model.system, part, **how)
        own = task.score(made)
        beside: dict[str, Scores] = {}
        if controls:
            others = {"untrained": (_untrained(model), False), "wrong partner": (model.system, True)}
            for name, (system, wrong) in others.items():
                answers = task.predict(system, part, wrong_partner=wrong, **how)
                beside[name] = task.score(answers)
            beside |= {name: task.score(answers) for name, answers in task.baselines(made).items()}
    pair = {name: beside[name].scores if controls else {} for name in ("untrained", "wrong partner")}
    return Report(
        system=model.name,
        data=part.fingerprint,
        **own.parts(),
        untrained=pair["untrained"],
        wrong_partner=pair["wrong partner"],
        baselines={name: s.scores for name, s in beside.items() if name not in pair},
        control_interval={name: s.interval for name, s in beside.items()},
        **_about(model, part, split_name, leaking, started),
    )


def _judge(task: Task, fit: Data, model: Model, workers: int, progress: bool) -> Model:
    """The judge of a task, trained on ``fit`` by the one loop; it reads media as the model writes them."""
    known = {f.name for f in dataclasses.fields(discover.system_class(task.judge).Config)}
    reads = {"fps": model.inputs.fps, "size": model.inputs.size, "sample_rate": model.inputs.sample_rate}
    reads |= {"window": model.inputs.window}
    settings = {k: v for k, v in reads.items() if k in known} | dict(task.judge_settings(fit))
    return train(task.judge, fit, seed=task.seed, settings=settings, workers=workers, progress=progress)


def _about(model: Model, part: Data, split: str, leaking: int, started: float) -> dict[str, Any]:
    """What every report says of the model, the data and the run beside the scores."""
    return {
        "split": split,
        "seed": int(model.meta.get("training", {}).get("seed", 0)),
        "config": jsonable(model.system.config),
        "model": model.fingerprint,
        "skipped": dict(part.skipped),
        "leaking": leaking,
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 2),
    }


def evaluate_each(
    model: Model | Media,
    data: Data | Splits | Media,
    relevances: Sequence[Relevance],
    *,
    split: str | None = None,
    controls: bool = False,
    report: Media | None = None,
    on_error: OnError = "skip",
    workers: int | None = None,
    progress: bool = False,
) -> list[Report]:
    """Retrieval by each of ``relevances``, from the same embeddings. The page shows all of them, and by pair or by
    class where the data allow it.
    """
    _check_page(report)
    model = Model.load(model) if isinstance(model, str | Path) else model
    started = time.monotonic()
    part, split_name, leaking = _rows(model, data, split)
    workers = _workers(workers, part)
    part = _prepared(part, model.inputs, workers, on_error, progress)
    check_streams(model.spec, part.spec)
    predictions = predict(model.system, part, Retrieval(), batch_size=64, workers=workers)
    untrained = predict(_untrained(model), part, Retrieval(), batch_size=64, workers=workers) if controls else None

    def measure(relevance: Relevance) -> Report:
        protocol = Retrieval(relevance=relevance)
        beside = {}
        if untrained is not None:
            wrong = predictions.with_wrong_partners()
            beside = {"untrained": protocol.score(untrained), "wrong partner": protocol.score(wrong)}
        return Report(
            system=model.name,
            data=part.fingerprint,
            **protocol.score(predictions).parts(),
            untrained=beside["untrained"].scores if beside else {},
            wrong_partner=beside["wrong partner"].scores if beside else {},
            control_interval={name: scores.interval for name, scores in beside.items()},
            **_about(model, part, split_name, leaking, started),
        )

    results = [measure(relevance) for relevance in relevances]
    if report is not None:
        first, *also = results
        other: Relevance = "class" if "pair" in relevances else "pair"
        if other not in relevances and (other == "pair" or min(part.targets) >= 0):
            also.append(measure(other))
        history = model.meta.get("history")
        write_html(first, Path(report), predictions=predictions, data=part, history=history, also=also)
    return results


def predict(system: System, data: Data, task: Retrieval, *, batch_size: int, workers: int) -> Predictions:
    """Embeddings of every row of ``data``, in order."""
    with Loader(data, batch_size=batch_size, workers=workers) as loader, threads_beside(workers):
        return task.predict(system, loader.batches(0), labels=data.labels, n_official=data.n_official)


def _untrained(model: Model) -> System:
    """The same network under another seed, which has seen nothing."""
    with seeded(int(model.meta.get("training", {}).get("seed", 0)), "untrained"):
        return type(model.system)(model.system.config, model.spec).eval().to(model.device)


def _rows(model: Model, data: Data | Splits | Media, split: str | None) -> tuple[Data, str, int]:
    """The rows to score, the name of their split, and how many groups stand in more than one split."""
    if isinstance(data, Data):
        return data, data.split, 0
    splits = load_data(data) if isinstance(data, str | Path) else data
    names = ("train", "val", "test", "all")
    if split is not None and split not in names:
        raise ConfigError(f'"{split}" is not a split.', hint=did_you_mean(split, names))
    record = model.meta.get("split") or {}
    same = record.get("data") == splits.all.fingerprint and "test" in record
    ours = same and (not splits.official or bool(record.get("overridden")))  # else rows trained on would be scored
    if split is None:
        split = "test" if splits.official or ours else "all"
    if split == "all":
        part = splits.all
    elif ours:
        place = {id: i for i, id in enumerate(splits.all.ids)}
        part = splits.all.subset([place[id] for id in record[split]], split=split)
    else:
        part = splits.part(split)
    if len(part) == 0:
        raise DataError(f'the split "{split}" is empty.', hint="Choose another with --split, or --split all.")
    return part, split, splits.leaking


def load(folder: Media) -> Model:
    """The model in a run folder or a folder that ``Model.save`` wrote; loading never executes code."""
    return Model.load(folder)
