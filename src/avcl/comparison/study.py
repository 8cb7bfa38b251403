"""``compare``: every system under every seed, each in its own process, into one table that can be believed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from avcl.comparison.page import write_comparison_html
from avcl.comparison.plan import Plan, check_data, check_settings, chosen
from avcl.comparison.runner import run_jobs
from avcl.comparison.runs import Run, directions_of, read_run
from avcl.comparison.statistics import Standings, standings
from avcl.comparison.tables import csv_table, latex_table, markdown_table, text_table
from avcl.comparison.tuning import require
from avcl.data import load_data
from avcl.environment import cores
from avcl.errors import ConfigError, ExistsError, ProtocolError, StoreError
from avcl.files import PART, Lock, finite, read_json, sweep, write_atomic, write_json
from avcl.progress import Progress
from avcl.types import jsonable

log = logging.getLogger("avcl.comparison")
PLAN_FILE = "comparison.json"


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` returns: the ``runs``, the ``table`` of standings, the ``folder`` with all that was written."""

    folder: Path
    plan: Plan
    runs: tuple[Run, ...]
    table: Standings

    def lines(self) -> list[dict[str, Any]]:
        """One object for each system and seed, as ``--json`` prints them."""
        directions = next((tuple(d for d in r.scores if d != "mean") for r in self.runs if r.scores), ())
        return [jsonable(run.line(directions)) for run in self.runs]

    def __str__(self) -> str:
        return text_table(self.table, self.plan.relevance)


def compare(
    data: str | Path,
    *,
    out: str | Path,
    systems: str | Iterable[str] = "all",
    seeds: int = 3,
    budget: float = 5.0,
    patience: int = 20,
    tune: int = 0,
    baseline: str = "",
    relevance: Literal["pair", "class", "group"] = "class",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    workers: int | None = None,
    memory: float | None = None,
    retry: bool = False,
    on_error: Literal["skip", "raise"] = "skip",
    progress: bool = False,
    **reading: Any,
) -> Comparison:
    """Train every system under seeds 0, 1, ... and rank them on the same test split.

    Same for all: data, split, features, ``budget`` (minutes of training of one system and seed; processor time unless
    there is an accelerator; 0: none), early stopping (``patience`` epochs without a better validation score, the best
    epoch is kept), ``tune`` trials of settings on the validation split (0: none), one thread. ``settings`` {system:
    {setting: value}}, under "all" those of every system that knows them. ``reading``: keyword arguments of
    ``load_data``; its ``seed`` is that of the split.

    Up to ``workers`` processes (default: one per core) share ``memory`` GiB (None: no limit). One that fails is
    "failed" with its error; one whose inputs the data lack is "n/a". ``out`` gets a file for each finished run
    (``runs/``), the tables (``table.txt``, ``.md``, ``.tex``, ``.csv``), ``results.jsonl`` and ``report.html``. A rerun
    does only what is missing (with ``retry`` also what failed), and more systems or seeds may be asked for.

    ConfigError, DataError, LabelError for what cannot be compared; ProtocolError where ``out`` holds results of other
    settings or data, ExistsError where it holds something else, LockedError where another process compares there.
    ExtraError where ``tune`` needs Optuna and there is none.
    """
    if not isinstance(data, str | Path):
        raise ConfigError(f"data is a {type(data).__name__}; every process reads it anew.", hint="Give its path.")
    workers = workers or cores()
    if seeds < 1 or (memory is not None and memory <= 0):
        raise ConfigError("seeds must be at least 1, and memory more than 0 GiB.")
    names = chosen(systems)
    plan = Plan(_absolute(data), reading, relevance, float(budget), patience, tune, dict(settings or {}), on_error)
    check_settings(plan.settings, names)
    if baseline and baseline not in names:
        raise ConfigError(f'the baseline "{baseline}" is not among the systems that are compared.')
    if tune:
        require()
    splits = load_data(plan.data, **reading)
    check_data(splits, relevance)
    identity, leaking, modalities = plan.identity(splits), splits.leaking, splits.all.modalities
    about = {"data": str(data), "counts": {n: len(splits.part(n)) for n in ("train", "val", "test")}}
    del splits  # the processes have their own
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ExistsError("is a file, not a folder for a comparison.", file=folder)
    with Lock(folder):
        _claim(folder, identity, about)
        sweep(folder / "runs")
        wanted = [(name, seed) for seed in range(seeds) for name in names]
        found = {key: run for key in wanted if (run := _finished(folder, *key, retry=retry)) is not None}
        missing = [key for key in wanted if key not in found]
        with Progress(len(wanted), "compare", shown=progress, start=len(found)) as bar:
            if found:
                bar.say(f"{len(found)} of {len(wanted)} are there already")

            def done(run: Run) -> None:
                found[run.system, run.seed] = run
                bar.say(f"[{len(found)}/{len(wanted)}] {_words(run)}")

            share = (memory or 0.0) / workers
            run_jobs(missing, plan, folder, workers=workers, memory=share, done=done)
        runs = tuple(found[name, seed] for name in names for seed in range(seeds))
        made = Comparison(folder, plan, runs, standings(runs, baseline=baseline))
        _write(made, leaking, about, directions_of(modalities))
    return made


def _absolute(data: str | Path) -> str:
    return data if isinstance(data, str) and data.startswith("world:") else str(Path(data).absolute())


def _claim(folder: Path, identity: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """The folder is ours: empty, or a comparison under the same rules."""
    path = folder / PLAN_FILE
    if not path.exists():
        strange = [p.name for p in folder.iterdir() if p.name != ".lock" and not p.name.startswith(PART)]
        if strange:
            raise ExistsError("holds something that is not a comparison.", file=folder, hint="Choose another --out.")
        write_json(path, {"identity": identity, "about": about})
        return
    value = read_json(path)
    before, now = value.get("identity") if isinstance(value, dict) else None, json.loads(json.dumps(jsonable(identity)))
    if not isinstance(before, dict):
        raise StoreError("this is not the plan of a comparison.", file=path)
    changed = [key for key in dict.fromkeys([*now, *before]) if before.get(key) != now.get(key)]
    if changed:
        said = "; ".join(f"{key} was {_short(before.get(key))}, is {_short(now.get(key))}" for key in changed[:3])
        raise ProtocolError(
            f"the results here were made under other rules: {said}.",
            file=folder,
            hint="Choose another --out, or the same settings and data.",
        )


def _short(value: Any) -> str:
    words = json.dumps(value)
    return words if len(words) <= 40 else words[:39] + "…"


def _finished(folder: Path, system: str, seed: int, *, retry: bool) -> Run | None:
    try:
        run = read_run(folder, system, seed)
    except StoreError as error:
        log.warning("%s It is run again.", error)
        return None
    return None if run is not None and run.state == "failed" and retry else run


def _words(run: Run) -> str:
    head = f"{run.system} seed {run.seed}  {run.state}"
    if run.state != "ok":
        return f"{head}  {run.why}"
    return f"{head}  mAP {run.scores['mean']['mAP']:.4f}  {run.train_s:.1f} s, ended by {run.ended}"


def _write(made: Comparison, leaking: int, about: Mapping[str, Any], directions: Sequence[str]) -> None:
    folder, relevance = made.folder, made.plan.relevance
    write_atomic(folder / "table.txt", text_table(made.table, relevance))
    write_atomic(folder / "table.md", markdown_table(made.table, relevance))
    write_atomic(folder / "table.tex", latex_table(made.table, relevance))
    write_atomic(folder / "table.csv", csv_table(made.table))
    lines = [json.dumps(finite(line)) for line in made.lines()]
    write_atomic(folder / "results.jsonl", "".join(f"{line}\n" for line in lines))
    write_comparison_html(
        folder / "report.html", made.table, made.runs, plan=made.plan, about=dict(about), leaking=leaking
    )
