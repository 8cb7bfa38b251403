"""Comparisons in folds: every group of rows is tested once, and the queries of all folds stand in one table.

Small data want it: with two speakers or five actors in one test split, no difference can be told from chance. A query
is ranked among the items of its own fold; a mean is one over the queries of all folds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import avcl
from avcl.comparison.runs import Run
from avcl.comparison.statistics import standings
from avcl.comparison.study import Comparison
from avcl.types import fingerprint


def parts(groups: Sequence[str], folds: int, *, seed: int = 0) -> list[np.ndarray]:
    """For each fold the split of every row: a share of the groups is the test, the next share stops training."""
    names = sorted(set(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    share = {names[g]: i % folds for i, g in enumerate(order)}
    of_row = np.array([share[g] for g in groups])
    return [np.where(of_row == f, "test", np.where(of_row == (f + 1) % folds, "val", "train")) for f in range(folds)]


def compare_folds(write: Callable[[int], Path], folds: int, work: Path, **how: Any) -> Comparison:
    """``avcl.compare`` on the data ``write(fold)`` of each fold, and all of them as one comparison."""
    return pooled([avcl.compare(write(f), out=work / f"fold {f}", progress=True, **how) for f in range(folds)])


def pooled(made: Sequence[Comparison]) -> Comparison:
    """One comparison of the queries of several, whose groups are different ones."""
    each = zip(*(one.runs for one in made), strict=True)
    runs = tuple(_joined(of_folds) for of_folds in each)
    return replace(made[0], runs=runs, table=standings(runs, baseline=made[0].table.baseline))


def _joined(runs: Sequence[Run]) -> Run:
    lost = next((run for run in runs if run.state != "ok"), None)
    if lost is not None:
        return lost
    first = runs[0]
    rows = np.cumsum([0, *(len(run.groups) for run in runs)])
    groups = np.cumsum([0, *(max(run.groups) + 1 for run in runs)])
    queries = {
        name: {
            "rows": [i + int(at) for run, at in zip(runs, rows, strict=False) for i in run.queries[name]["rows"]],
            "ap": [ap for run in runs for ap in run.queries[name]["ap"]],
        }
        for name in first.queries
    }
    counts = {name: [len(run.queries[name]["rows"]) for run in runs] for name in first.queries}
    return replace(
        first,
        scores=_over_queries([run.scores for run in runs], counts),
        chance=_over_queries([run.chance for run in runs], counts),
        interval={},
        params=round(_mean(run.params for run in runs)),
        train_s=_mean(run.train_s for run in runs),
        embed_ms=_mean(run.embed_ms for run in runs),
        ended=", ".join(sorted({run.ended for run in runs})),
        queries=queries,
        groups=tuple(g + int(at) for run, at in zip(runs, groups, strict=False) for g in run.groups),
        items=fingerprint([run.items for run in runs]),
        per_class={},
        curves={},
    )


def _over_queries(
    scores: Sequence[Mapping[str, Mapping[str, float]]], counts: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, float]]:
    """Means over the queries of all folds. Of medians of ranks there is none: they are left out."""
    found = {
        name: {
            metric: float(np.average([fold[name][metric] for fold in scores], weights=sizes))
            for metric in scores[0][name]
            if metric != "medR"
        }
        for name, sizes in counts.items()
    }
    metrics = next(iter(found.values()))
    return found | {"mean": {m: float(np.mean([found[name][m] for name in counts])) for m in metrics}}


def _mean(values: Iterable[float | None]) -> float:
    return float(np.mean([value or 0.0 for value in values]))
