"""``write_html``: one Report as one page that needs no network, no other file and no script; and the Report as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from avcl.data.dataset import Data
from avcl.data.predictions import Predictions
from avcl.errors import MissingFile, StoreError
from avcl.files import finite, write_atomic
from avcl.metrics.ranking import Similarity, chance, random_ranking, score_blocks
from avcl.report import figures
from avcl.report.figures import direction_words, short
from avcl.report.frame import panel, write_page
from avcl.report.gallery import gallery
from avcl.tasks.retrieval import Direction, Retrieval
from avcl.types import Report

SAMPLE = 400  # queries and gallery items that the histogram draws its pairs from
RELEVANCE_WORDS = {
    "pair": "The one right answer is the other half of the same clip.",
    "class": "Every item with the same label is a right answer, the other half of the same clip included.",
    "group": "Every item of the same group is a right answer; a repeated item of a group counts once.",
}


def write_json(report: Report, path: str | Path) -> None:
    """The Report as one JSON object (as ``avcl evaluate --json`` prints it), whole or not at all."""
    write_atomic(path, json.dumps(finite(report.as_dict()), indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Report:
    """The Report in a JSON file. Raises MissingFile, StoreError."""
    try:
        return Report.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise MissingFile("there is no such file.", file=path) from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise StoreError("this is not a report.", file=path) from error


def write_html(
    report: Report,
    path: str | Path,
    *,
    predictions: Predictions | None = None,
    data: Data | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    title: str = "",
    also: Sequence[Report] = (),
    directions: Mapping[str, Direction] | None = None,
    similarity: Similarity | None = None,
    projection: Literal["pca", "tsne"] = "pca",
    queries: int = 3,
) -> None:
    """Write the page; nothing in it points to the network.

    ``predictions``: what was scored (without them: tables and bars only) · ``data``: where pictures and sound of the
    gallery come from · ``history``: rows of ``metrics.jsonl`` or of ``FitResult.history`` · ``also``: further Reports
    of the same model and data under other protocols, as tables and bars · ``directions``: of ``Scores``, to save a
    second ranking · ``similarity``: the function, if its name is not a built-in one · ``queries``: best and worst
    ones a direction.
    """
    path = Path(path)
    task = _task(report)
    if predictions is not None and directions is None and task is not None:
        directions = task.rank(predictions, similarity=similarity)
    title = title or f"{report.system}: retrieval"
    charts, shown = [], ""
    if predictions is not None and directions:
        charts.append(_recall(report, directions))
        charts.append(_histogram(directions, predictions, similarity))
    charts += [chart for each in (report, *also) if (chart := _classes(each))]
    if history and (chart := _training(history)):
        charts.append(chart)
    if predictions is not None and directions:
        charts.append(_map(directions, predictions, projection, report.seed))
        cards = gallery(directions, predictions, data=data, folder=path.parent, each=queries, similarity=similarity)
        words = "✓ marks a right answer; a dashed frame shows the right answer where the first hits missed it."
        shown = f"<h2>Best and worst queries</h2><p>{words}</p>{cards}" if cards else ""
    write_page(
        path,
        report,
        title=title,
        lead=_lead(report),
        warnings=_warnings(report),
        tiles="".join(_tiles(each) for each in (report, *also)),
        tables="".join(_tables(each) for each in (report, *also)),
        glossary=_glossary(report),
        charts=f'<h2>Plots</h2><div class="charts">{"".join(charts)}</div>' if any(charts) else "",
        gallery=shown,
    )


# ---------------------------------------------------------------------------------------------------------------- words
def _task(report: Report) -> Retrieval | None:
    try:
        return Retrieval.from_protocol(report.protocol)
    except KeyError:
        return None


def _number(metric: str, value: float) -> str:
    if not math.isfinite(value):
        return "n/a"
    return f"{value:.1f}".removesuffix(".0") if metric == "medR" else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def _interval(report: Report, direction: str, metric: str) -> str:
    pair = report.interval.get(direction, {}).get(metric)
    if pair is None:
        return ""
    low, high = (_number(metric, v).removesuffix("\N{NO-BREAK SPACE}%") for v in pair)
    return f"{low} to {high}" + ("" if metric == "medR" else "\N{NO-BREAK SPACE}%")


def _beside(report: Report, direction: str, metric: str) -> str:
    """Interval and chance of one number, in words."""
    interval = _interval(report, direction, metric)
    expected = report.chance.get(direction, {}).get(metric)
    parts = [f"95\N{NO-BREAK SPACE}% interval {interval}"] if interval else []
    return ", ".join(parts + ([f"chance {_number(metric, expected)}"] if expected is not None else []))


def _lead(report: Report) -> str:
    sentences = []
    for direction, row in report.scores.items():
        recalls = [m for m in row if m.startswith("R@")]
        if direction == "mean" or not recalls:
            continue
        query, gallery_name = direction.split("_to_")
        k, value = recalls[-1].removeprefix("R@"), row[recalls[-1]]
        sentences.append(
            f"Given {escape(short(query))}, a right {escape(short(gallery_name))} is among the first {k} for "
            f"<b>{_number('R', value)}</b> of the queries ({_beside(report, direction, recalls[-1])})."
        )
    return " ".join(sentences)


def _warnings(report: Report) -> str:
    found = []
    if report.n_scored < report.n_official:
        found.append(f"{report.n_official - report.n_scored} of {report.n_official} items were not scored.")
    if report.skipped:
        reasons = ", ".join(f"{short(code)} {count}" for code, count in report.skipped.items())
        found.append(f"Rows that could not be read: {reasons}.")
    mean, expected = report.interval.get("mean", {}), report.chance.get("mean", {})
    metric = next(iter(mean), "")
    if metric and mean[metric][0] <= expected.get(metric, 0) <= mean[metric][1]:
        found.append(f"The interval of {metric} holds chance: this result may be luck.")
    return "".join(f'<p class="warn">{escape(text)}</p>' for text in found)


def _tiles(report: Report) -> str:
    """The mean of the directions at a glance; by pair, mAP is MRR and is left out; by class, mAP is what counts."""
    name = "mean" if "mean" in report.scores else next(iter(report.scores), "")
    relevance = str(report.protocol.get("relevance", ""))
    row = report.scores.get(name, {})
    wanted = [m for m in row if m.startswith("R@")] if relevance != "class" else []
    wanted += ["medR", "MRR"] if relevance != "class" else ["mAP"]
    html = ""
    for metric in (m for m in wanted if m in row):
        beside = _beside(report, name, metric).replace(", chance", "<br>chance")
        by = f" by {relevance}" if relevance else ""
        html += f'<div class="tile"><small>{escape(metric + by)}</small>'
        html += f"<b>{_number(metric, row[metric])}</b><small>{beside}</small></div>"
    return html


def _tables(report: Report) -> str:
    relevance = str(report.protocol.get("relevance", ""))
    heading = f"Scores by {relevance}" if relevance else "Scores"
    html = f"<h2>{escape(heading)}</h2><p>{RELEVANCE_WORDS.get(relevance, '')} "
    html += "In the bars: value, shaded its interval, and chance as an upright line.</p>"
    controls = [(n, t) for n, t in (("untrained copy", report.untrained), ("wrong partner", report.wrong_partner)) if t]
    for direction, row in report.scores.items():
        kind = direction.split("_to_")[0]
        series = kind if kind in (*figures.COLORS, "mean") else "other"
        title = "mean of the directions" if direction == "mean" else direction_words(direction)
        head = "".join(f"<th>{name}</th>" for name, _ in controls)
        html += f'<h3 class="{series}">{escape(title)}</h3><div class="scroll of-{series}"><table>'
        html += f"<tr><th>metric</th><th>value</th><th>95 % interval</th><th>chance</th>{head}<th></th></tr>"
        for metric, value in row.items():
            expected = report.chance.get(direction, {}).get(metric, math.nan)
            cells = "".join(
                f"<td>{_number(metric, t.get(direction, {}).get(metric, math.nan))}</td>" for _, t in controls
            )
            html += f'<tr><td>{escape(metric)}</td><td class="value">{_number(metric, value)}</td>'
            html += f"<td>{_interval(report, direction, metric)}</td><td>{_number(metric, expected)}</td>{cells}"
            html += f'<td class="bar">{_bar(report, direction, metric, value, expected)}</td></tr>'
        html += "</table></div>"
    return html


def _bar(report: Report, direction: str, metric: str, value: float, expected: float) -> str:
    if metric == "medR" or not math.isfinite(value):
        return ""
    html = f'<i class="fill" style="width:{100 * value:.2f}%"></i>'
    low, high = report.interval.get(direction, {}).get(metric, (value, value))
    html += f'<i class="range" style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>'
    if math.isfinite(expected):
        html += f'<i class="chance" style="left:{100 * min(expected, 0.995):.2f}%"></i>'
    return f'<span class="track" aria-hidden="true">{html}</span>'


def _glossary(report: Report) -> str:
    terms = {
        "R@k": "Recall at k: the share of queries with a right answer among the first k hits. Higher is better.",
        "medR": "Median rank: half of the queries have their first right answer at this rank or before. 1 is best.",
        "MRR": "Mean reciprocal rank: the mean of 1 / rank of the first right answer.",
        "mAP": "Mean average precision over the whole ranked list: how purely the right answers stand in front. "
        "mAP@k looks at the first k hits only.",
        "nDCG": "Normalized discounted gain: right answers count less the further down they stand; 100 % is ideal.",
        "chance": "What a random order of the gallery gets on average (computed exactly, not simulated).",
        "interval": "95 % bootstrap interval: how much the number would move with other queries of the same kind. "
        "It does not tell how another training run would score.",
        "ties": "Items with equal similarity count with the mean over all their orders, so a model that cannot tell "
        "items apart scores chance.",
    }
    if report.untrained:
        terms["untrained copy"] = "The same network before any training, with other random weights."
    if report.wrong_partner:
        terms["wrong partner"] = "The same model when every clip is paired with the other half of another clip."
    return "".join(f"<dt>{escape(t)}</dt><dd>{escape(words)}</dd>" for t, words in terms.items())


# --------------------------------------------------------------------------------------------------------------- charts
def _recall(report: Report, directions: Mapping[str, Direction]) -> str:
    size = max(d.ranking.n_gallery for d in directions.values())
    at = np.unique(np.geomspace(1, size, 60).round().astype(np.int64))
    curves, points = {}, {}
    for name, d in directions.items():
        ks = at[at <= d.ranking.n_gallery]
        curves[name] = (d.query, ks, d.ranking.recall_curve(ks.tolist()))
        points[name] = [
            (int(m.removeprefix("R@")), value, *report.interval.get(name, {}).get(m, (value, value)))
            for m, value in report.scores.get(name, {}).items()
            if m.startswith("R@")
        ]
    blind = [random_ranking(d.ranking.n_relevant, d.ranking.n_gallery) for d in directions.values()]
    by_chance = np.mean([b.recall_curve(at.tolist()) for b in blind], axis=0)
    svg = figures.recall_curve(curves, (at, by_chance), points)
    return panel("How far down is the right answer?", "Recall at k, with 95 % intervals at the reported k.", svg)


def _histogram(directions: Mapping[str, Direction], predictions: Predictions, similarity: Similarity | None) -> str:
    d = next(iter(directions.values()))
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(d.rows))[:SAMPLE]
    partner = {int(row): i for i, row in enumerate(d.columns)}
    own = [partner[int(r)] for r in d.rows[rows] if int(r) in partner]
    columns = np.unique(np.concatenate([np.array(own, np.int64), rng.permutation(len(d.columns))[:SAMPLE]]))
    queries = predictions.of(d.query, d.gallery)[d.rows[rows]]
    items = predictions.of(d.gallery, d.query)[d.columns[columns]]
    blocks = score_blocks(
        torch.from_numpy(queries), torch.from_numpy(items), similarity=similarity or predictions.similarity
    )
    scores = np.concatenate([s for _, s in blocks])
    relevant = d.row_keys[rows][:, None] == d.column_keys[columns]
    if not relevant.any() or relevant.all():
        return ""
    svg = figures.similarity_histogram(scores[relevant], scores[~relevant], predictions.similarity)
    words = "The less the two shapes overlap, the better the model tells matches from mismatches."
    return panel("Matched against unmatched pairs", words, svg)


def _classes(report: Report) -> str:
    table = report.per_class
    relevance = report.protocol.get("relevance")
    metrics = [m for m in next(iter(report.scores.values()), {}) if m != "medR"]
    recalls = [m for m in metrics if m.startswith("R@")]
    metric = "mAP" if relevance == "class" and "mAP" in metrics else next(reversed(recalls), "")
    names = next(iter(table.values()), {})
    if not metric or len(names) < 2:
        return ""
    # by class, a query's right answers are as many as its class has queries; by pair there is one
    total = int(sum(row["queries"] for row in names.values()))
    k = int(metric.removeprefix("R@")) if metric.startswith("R@") else 1
    expected = {
        c: chance([int(row["queries"]) if relevance == "class" else 1], total, ks=(k,), map_at=())[metric]
        for c, row in names.items()
    }
    svg = figures.class_bars(table, metric, expected)
    few = f" ({figures.MAX_CLASSES} of {len(names)}: best and worst)" if len(names) > figures.MAX_CLASSES else ""
    return panel(f"{metric} of each class{few}", f"Relevance by {relevance}; the number of queries in brackets.", svg)


def _training(history: Sequence[Mapping[str, Any]]) -> str:
    """Curves of everything numeric that the log calls a loss or a score, over steps where there are steps."""
    rows = [row for row in history if isinstance(row, Mapping)]
    unit = "step" if any("step" in row for row in rows) else "epoch"
    found: dict[str, list[tuple[float, float]]] = {}
    by_step = any(row.get("event") == "step" for row in rows)
    for number, row in enumerate(rows):
        at = float(row.get(unit, number))
        values = {f"loss: {k}": v for k, v in (row.get("losses") or {}).items()}
        values |= {"validation score": row.get("validation")}
        for name, value in values.items():
            if name.startswith("loss") and by_step and row.get("event") == "epoch":
                continue  # the same losses again, averaged
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append((at, float(value)))
    series = {n: (np.array(p)[:, 0], np.array(p)[:, 1]) for n, p in list(found.items())[:4] if len(p) > 1}
    if not series:
        return ""
    svg = figures.training_curves(series, unit)
    return panel("Training", "What the log of the training run says.", svg, wide=len(series) > 1)


def _map(directions: Mapping[str, Direction], predictions: Predictions, projection: str, seed: int) -> str:
    d = next(iter(directions.values()))
    rng = np.random.default_rng(0)
    rows = np.sort(rng.permutation(len(predictions))[: figures.MAX_POINTS])
    arrays = {d.query: predictions.of(d.query, d.gallery)[rows], d.gallery: predictions.of(d.gallery, d.query)[rows]}
    if len({a.shape[1] for a in arrays.values()}) > 1 or len(rows) < 3:
        return ""
    stacked = np.concatenate(list(arrays.values())).astype(np.float64)
    if predictions.similarity == "cosine":
        stacked /= np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-30)
    plane, axes = _tsne(stacked, seed) if projection == "tsne" else _pca(stacked)
    halves = dict(zip(arrays, np.split(plane, 2), strict=True))
    svg = figures.embedding_map(halves, predictions.labels[rows], predictions.label_names, axes)
    words = f"{len(rows)} clips, once as {' and once as '.join(arrays)} (circles audio, triangles video, squares text)."
    labels = predictions.labels[rows]
    return panel("Map of the common space", words, svg, wide=len(np.unique(labels[labels >= 0])) > 1)


def _pca(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """The two directions of largest variance (sign: the largest loading is positive) and their shares."""
    x = x - x.mean(0)
    _, s, v = np.linalg.svd(x, full_matrices=False)
    v = np.pad(v[:2], ((0, 2 - len(v[:2])), (0, 0)))
    v = v * np.where(v[np.arange(2), np.abs(v).argmax(1)] < 0, -1.0, 1.0)[:, None]
    share = np.pad(s**2, (0, 2))[:2] / max(float((s**2).sum()), 1e-30)
    return x @ v.T, (f"first component ({share[0]:.0%} of variance)", f"second ({share[1]:.0%})")


def _tsne(x: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float64], tuple[str, str]]:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(x) - 1) / 3)
    made = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(x.astype(np.float32))
    return made.astype(np.float64), ("t-SNE 1 (distances across the map mean little)", "t-SNE 2")
