"""What may be said of the differences: means over seeds, intervals over queries, tests against a baseline.

The value of a query is its average precision, averaged over the seeds of a system; a system's mean is the mean over
the directions of the mean over their queries. Queries of one group are drawn and tossed together, those of all
directions too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from avcl.comparison.published import Published, published
from avcl.comparison.runs import Run
from avcl.errors import ConfigError
from avcl.metrics import cluster_numbers, holm, resamples, sign_flip_test, spearman

Floats = NDArray[np.float64]
LEVEL = 0.05  # of the tests that mark the best
BOOTSTRAP = 1000
PERMUTATIONS = 10_000


class Value(NamedTuple):
    """The mean over seeds and their standard deviation (None with one seed)."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Standing:
    """One line of the table.

    ``ok`` of ``seeds`` runs went well · ``scores`` {direction: {metric: Value}} · ``interval`` 95 % of the mean mAP
    over queries · ``p`` against the baseline after Holm, ``p_raw`` before (None: the baseline itself, or untested) ·
    ``difference`` of mean mAP to the baseline · ``best``: first, and significantly above every other one.
    """

    system: str
    state: str
    seeds: int
    ok: int
    why: str = ""
    scores: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    params: float | None = None
    train_s: Value | None = None
    embed_ms: Value | None = None
    ended: str = ""
    difference: float | None = None
    p_raw: float | None = None
    p: float | None = None
    best: bool = False
    each: tuple[float, ...] = ()  # mean mAP of each seed

    @property
    def mean(self) -> float:
        return self.scores["mean"]["mAP"].mean if self.scores else float("nan")


class Order(NamedTuple):
    """Spearman's ρ of our order with the papers', its 95 % interval over queries, and the systems with both figures."""

    rho: float
    low: float
    high: float
    ours: Mapping[str, float]
    papers: Mapping[str, Published]


@dataclass(frozen=True)
class Standings:
    """The table, best first; failed and "n/a" systems last. ``order``: None with fewer than three published figures."""

    rows: tuple[Standing, ...]
    baseline: str
    chance: Mapping[str, Mapping[str, float]]
    order: Order | None
    not_compared: tuple[str, ...]  # measured, but on other rows than the rest


class _Queries:
    """Per-query average precision [Q] of each system on the same queries, seeds averaged."""

    def __init__(self, runs: Mapping[str, Sequence[Run]]):
        first = next(iter(runs.values()))[0]
        self.systems = tuple(runs)
        self.directions = {d: np.asarray(q["rows"], np.int64) for d, q in first.queries.items()}
        groups = np.asarray(first.groups, np.int64)
        rows = np.concatenate(list(self.directions.values()))
        self.groups = groups[rows]
        sizes = [len(r) for r in self.directions.values()]
        self.weights = np.concatenate([np.full(n, 1 / (n * len(sizes))) for n in sizes])
        self.values = {
            name: np.mean([np.concatenate([run.queries[d]["ap"] for d in self.directions]) for run in each], axis=0)
            for name, each in runs.items()
        }
        self.spans = np.split(np.arange(len(rows)), np.cumsum(sizes)[:-1])

    def p(self, a: str, b: str) -> float:
        difference = self.values[a] - self.values[b]
        return sign_flip_test(difference, groups=self.groups, weights=self.weights, repeats=PERMUTATIONS)

    def resampled(self) -> Floats:
        """[resamples, systems]: the mean mAP of each system on the same draws of query groups."""
        cluster, count = cluster_numbers(self.groups)
        table = np.stack([self.values[name] for name in self.systems], axis=1)
        sums, sizes = [], []
        for span in self.spans:
            sums.append(np.stack([np.bincount(cluster[span], column, count) for column in table[span].T], axis=1))
            sizes.append(np.bincount(cluster[span], minlength=count).astype(np.float64))
        parts = []
        for drawn in resamples(count, repeats=BOOTSTRAP, seed=0):
            means = [(drawn @ s) / np.maximum(drawn @ n, 1e-12)[:, None] for s, n in zip(sums, sizes, strict=True)]
            parts.append(np.mean(means, axis=0))
        return np.concatenate(parts)


def standings(runs: Sequence[Run], *, baseline: str = "") -> Standings:
    """The table of these runs. ``baseline``: "cca" where it is one of them, else the first named (ConfigError for a
    system that is not one of them); where it has no result nothing is tested."""
    by: dict[str, list[Run]] = {}
    for run in runs:
        by.setdefault(run.system, []).append(run)
    if baseline and baseline not in by:
        raise ConfigError(f'the baseline "{baseline}" is not among the systems that are compared.')
    baseline = baseline or ("cca" if "cca" in by else next(iter(by), ""))
    good = {name: [r for r in each if r.state == "ok"] for name, each in by.items()}
    good = {name: each for name, each in good.items() if each}
    rows = {name: _summed(name, each, good.get(name, [])) for name, each in by.items()}
    same, others = _on_the_same_rows(good, baseline)
    order = None
    if same:
        queries = _Queries(same)
        rows |= _tested(rows, queries, baseline)
        drawn = queries.resampled()
        for i, name in enumerate(queries.systems):
            low, high = np.quantile(drawn[:, i], [0.025, 0.975])
            rows[name] = replace(rows[name], interval=(float(low), float(high)))
        order = _order(rows, queries.systems, drawn)
    ranked = sorted(rows.values(), key=lambda r: (not r.scores, r.state, -r.mean if r.scores else 0.0, r.system))
    chance = next((each[0].chance for each in good.values()), {})
    return Standings(tuple(ranked), baseline, chance, order, others)


def _summed(name: str, runs: Sequence[Run], good: Sequence[Run]) -> Standing:
    if not good:
        states = Counter(r.state for r in runs)
        state = "failed" if states["failed"] else "n/a"
        why = next(r.why for r in runs if r.state == state)
        return Standing(name, state, len(runs), 0, why)
    scores = {
        direction: {m: value_of([r.scores[direction][m] for r in good]) for m in row}
        for direction, row in good[0].scores.items()
    }
    return Standing(
        name,
        "ok",
        len(runs),
        len(good),
        why=next((r.why for r in runs if r.state != "ok"), ""),
        scores=scores,
        params=float(np.mean([r.params or 0 for r in good])),
        train_s=value_of([r.train_s or 0.0 for r in good]),
        embed_ms=value_of([r.embed_ms or 0.0 for r in good]),
        ended=", ".join(sorted({r.ended for r in good})),
        each=tuple(r.scores["mean"]["mAP"] for r in good),
    )


def value_of(values: Sequence[float | None]) -> Value:
    numbers = [float("nan") if v is None else float(v) for v in values]
    std = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
    return Value(float(np.mean(numbers)), std)


def _on_the_same_rows(
    good: Mapping[str, Sequence[Run]], baseline: str
) -> tuple[dict[str, Sequence[Run]], tuple[str, ...]]:
    """Systems scored on the same queries, and the names of the others (a file that only some could read): those of the
    baseline, or of most."""

    def key(run: Run) -> tuple[object, ...]:
        return (run.items, *((d, len(q["rows"])) for d, q in run.queries.items()))

    keys = Counter(key(r) for each in good.values() for r in each)
    if not keys:
        return {}, ()
    wanted = key(good[baseline][0]) if baseline in good else keys.most_common(1)[0][0]
    same = {name: each for name, each in good.items() if all(key(r) == wanted for r in each)}
    return same, tuple(name for name in good if name not in same)


def _tested(rows: Mapping[str, Standing], queries: _Queries, baseline: str) -> dict[str, Standing]:
    """Against the baseline; and the first one against every other."""
    changed = {name: rows[name] for name in queries.systems}
    others = [name for name in queries.systems if name != baseline]
    if baseline in queries.systems and others:
        raw = [queries.p(name, baseline) for name in others]
        for name, p_raw, p in zip(others, raw, holm(raw), strict=True):
            difference = rows[name].mean - rows[baseline].mean
            changed[name] = replace(changed[name], difference=difference, p_raw=p_raw, p=p)
    first = max(queries.systems, key=lambda name: rows[name].mean)
    rest = [name for name in queries.systems if name != first]
    if rest and max(holm([queries.p(first, name) for name in rest])) < LEVEL:
        changed[first] = replace(changed[first], best=True)
    return changed


def _order(rows: Mapping[str, Standing], systems: Sequence[str], drawn: Floats) -> Order | None:
    papers = published(systems)
    if len(papers) < 3:
        return None
    ours = {name: rows[name].mean for name in papers}
    values = [p.value for p in papers.values()]
    at = [list(systems).index(name) for name in papers]
    each = [spearman(row, values) for row in drawn[:, at]]
    low, high = np.nanquantile(each, [0.025, 0.975]) if not all(map(math.isnan, each)) else (math.nan, math.nan)
    return Order(spearman(list(ours.values()), values), float(low), float(high), ours, papers)
