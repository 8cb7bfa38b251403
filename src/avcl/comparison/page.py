"""``report.html`` of a comparison: who is ahead, by how much, how sure that is, and where the differences lie."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from avcl.comparison.plan import Plan
from avcl.comparison.runs import Run
from avcl.comparison.statistics import Standing, Standings
from avcl.comparison.tables import columns, name_of, notes
from avcl.environment import versions
from avcl.files import finite
from avcl.report import comparison_figures as figures
from avcl.report.figures import MAX_CLASSES, short
from avcl.report.frame import facts, panel, write_parts

SHOWN = 6  # systems in the plots that would be crowded by all: the first ones, the baseline always among them
PERCENT = "\N{NO-BREAK SPACE}%"


def write_comparison_html(
    path: Path, table: Standings, runs: Sequence[Run], *, plan: Plan, about: Mapping[str, Any], leaking: int = 0
) -> None:
    """Write the page; it needs no network, no other file and no script."""
    measured = [row for row in table.rows if row.scores]
    shown = _shown(measured, table.baseline)
    good = {name: [r for r in runs if r.system == name and r.state == "ok"] for name in shown}
    charts = [_ranking(table, measured), _order(table), _classes(shown, good, plan.relevance), _curves(shown, good)]
    counts = " + ".join(f"{about['counts'][n]} {n}" for n in ("train", "val", "test"))
    settings = {"plan": plan.as_json(), "data": dict(about), "versions": versions()}
    write_parts(
        path,
        title=f"Comparison of {len(table.rows)} system{'s' if len(table.rows) != 1 else ''}: retrieval",
        meta=facts(
            [
                f"data {Path(str(about['data'])).name or about['data']}",
                f"rows {counts}",
                f"relevance {plan.relevance}",
                f"seeds {max((r.seeds for r in table.rows), default=0)}",
                f"budget {plan.budget:g} min" if plan.budget else "no budget",
                f"patience {plan.patience} epochs",
                f"{plan.tune} tuning trials" if plan.tune else "not tuned",
                f"baseline {table.baseline}",
            ]
        ),
        details=json.dumps(finite(settings), indent=2, ensure_ascii=False),
        value={"table": [_plain(row) for row in table.rows], "baseline": table.baseline, "chance": table.chance},
        lead=_lead(table, measured),
        warnings=_warnings(table, leaking),
        tiles=_tiles(table, measured),
        charts=f'<h2>Plots</h2><div class="charts">{"".join(charts)}</div>' if any(charts) else "",
        tables=_table(table, plan.relevance) + _class_table(measured, runs) + _absent(table),
        glossary=_glossary(table),
    )


def _shown(measured: Sequence[Standing], baseline: str) -> list[str]:
    names = [row.system for row in measured]
    if baseline in names[SHOWN:]:
        return [*names[: SHOWN - 1], baseline]
    return names[:SHOWN]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}{PERCENT}" if math.isfinite(value) else "n/a"


def _span(row: Standing) -> str:
    return f"{100 * row.interval[0]:.1f} to {100 * row.interval[1]:.1f}{PERCENT}" if row.interval else ""


def _plain(row: Standing) -> dict[str, Any]:
    scores = {d: {m: v.mean for m, v in metrics.items()} for d, metrics in row.scores.items()}
    keep = ("system", "state", "seeds", "ok", "why", "interval", "params", "difference", "p_raw", "p", "best", "ended")
    return {name: getattr(row, name) for name in keep} | {"scores": scores}


# ---------------------------------------------------------------------------------------------------------------- words
def _lead(table: Standings, measured: Sequence[Standing]) -> str:
    if not measured:
        return "No system has a result."
    first = measured[0]
    words = f"<b>{escape(first.system)}</b> is first with a mean mAP of <b>{_percent(first.mean)}</b>"
    words += f" (95 % interval {_span(first)})." if first.interval else "."
    if len(measured) > 1:
        words += (
            " It is significantly above every other system."
            if first.best
            else f" It is <b>not</b> significantly above every other system; second is {escape(measured[1].system)} "
            f"with {_percent(measured[1].mean)}."
        )
    better = [r for r in measured if r.p is not None and r.p < 0.05 and (r.difference or 0) > 0]
    tested = [r for r in measured if r.p is not None]
    if tested:
        words += (
            f" {len(better)} of {len(tested)} are significantly above the baseline {escape(table.baseline)} "
            "(p &lt; 0.05 after Holm)."
        )
    return words


def _warnings(table: Standings, leaking: int) -> str:
    found = [note for note in notes(table)[1:] if "no result" in note or "other rows" in note or "budget" in note]
    found = [note[:1].upper() + note[1:] + "." for note in found]
    if leaking:
        found.append(f"{leaking} groups stand in more than one split: scores may be inflated.")
    if failed := [r.system for r in table.rows if r.state == "failed" or 0 < r.ok < r.seeds]:
        found.append(f"Runs failed of: {', '.join(failed)}. The other figures do not depend on them.")
    return "".join(f'<p class="warn">{escape(text)}</p>' for text in found)


def _tiles(table: Standings, measured: Sequence[Standing]) -> str:
    blind = table.chance.get("mean", {}).get("mAP")
    own = next((r for r in measured if r.system == table.baseline), None)
    tiles = []
    if measured:
        tiles.append((f"best: {measured[0].system}", _percent(measured[0].mean), f"mean mAP, {_span(measured[0])}"))
    if own is not None and own is not measured[0]:
        tiles.append((f"baseline: {own.system}", _percent(own.mean), f"mean mAP, {_span(own)}"))
    if blind is not None:
        tiles.append(("chance", _percent(blind), "mean mAP of a random order"))
    states = [r.state for r in table.rows]
    tiles.append(("systems", str(states.count("ok")), f"{states.count('failed')} failed, {states.count('n/a')} n/a"))
    return "".join(
        f'<div class="tile"><small>{escape(a)}</small><b>{escape(b)}</b><small>{escape(c)}</small></div>'
        for a, b, c in tiles
    )


def _glossary(table: Standings) -> str:
    terms = {
        "mAP": "Mean average precision over the whole ranked list: how purely the right answers stand in front. The "
        "mean is that of the directions.",
        "±": "Standard deviation over seeds: how much another training run moves the figure.",
        "interval": "95 % bootstrap interval over queries, seeds averaged: how much other queries of the same kind "
        "would move it.",
        "p (Holm)": "Paired permutation test of the average precision of the same queries against the baseline; signs "
        "are tossed by group. Holm's correction holds the chance of any false alarm among all systems below the level.",
        "best": "Marked only where the first system is significantly above every other one.",
        "chance": "What a random order of the gallery gets on average (computed exactly).",
        "train s": "Processor seconds of training of one seed, validation included, on one thread.",
        "embed ms": "Processor milliseconds to embed all modalities of one clip that is in memory, on one thread.",
        "parameters": "Learned numbers; of a closed form, those that it keeps.",
        "n/a": "The data lack what the system needs; it did not fail.",
    }
    return "".join(f"<dt>{escape(t)}</dt><dd>{escape(words)}</dd>" for t, words in terms.items())


# --------------------------------------------------------------------------------------------------------------- tables
def _table(table: Standings, relevance: str) -> str:
    shown = columns(table, relevance)
    heads = "".join(f"<th>{escape(h)}</th>" for h in ["95 % interval", *(head for head, _ in shown)])
    html = f'<h2>All systems</h2><div class="scroll"><table><tr><th>system</th>{heads}</tr>'
    for row in (r for r in table.rows if r.scores):
        cells = "".join(f"<td>{escape(cell(row))}</td>" for _, cell in shown)
        name = escape(name_of(row)) + (' <span class="tag best">best</span>' if row.best else "")
        span = f"{row.interval[0]:.3f} to {row.interval[1]:.3f}" if row.interval else ""
        html += f"<tr><td>{name}</td><td>{span}</td>{cells}</tr>"
    html += "</table></div>"
    return html + "".join(f'<p class="note">{escape(note)}</p>' for note in notes(table))


def _class_means(runs: Sequence[Run]) -> dict[str, float]:
    classes = dict.fromkeys(c for run in runs for c in run.per_class)
    return {c: float(np.mean([r.per_class[c]["mAP"] for r in runs if c in r.per_class])) for c in classes}


def _class_table(measured: Sequence[Standing], runs: Sequence[Run]) -> str:
    rows = {s.system: _class_means([r for r in runs if r.system == s.system and r.state == "ok"]) for s in measured}
    classes = list(dict.fromkeys(c for row in rows.values() for c in row))
    if len(classes) < 2:
        return ""
    heads = "".join(f"<th>{escape(short(c, 24))}</th>" for c in classes)
    html = f'<h2>mAP class by class</h2><div class="scroll"><table><tr><th>system</th>{heads}</tr>'
    for name, row in rows.items():
        cells = "".join(f"<td>{row[c]:.3f}</td>" if c in row else "<td></td>" for c in classes)
        html += f"<tr><td>{escape(name)}</td>{cells}</tr>"
    return html + "</table></div>"


def _absent(table: Standings) -> str:
    rows = [row for row in table.rows if row.state != "ok" or row.ok < row.seeds]
    if not rows:
        return ""
    html = '<h2>Without a result</h2><div class="scroll"><table class="ids">'
    html += "<tr><th>system</th><th>state</th><th>why</th></tr>"
    for row in rows:
        state = row.state if row.state != "ok" else f"{row.seeds - row.ok} of {row.seeds} seeds failed"
        html += f"<tr><td>{escape(row.system)}</td><td>{escape(state)}</td><td>{escape(row.why)}</td></tr>"
    return html + "</table></div>"


# --------------------------------------------------------------------------------------------------------------- charts
def _ranking(table: Standings, measured: Sequence[Standing]) -> str:
    if not measured:
        return ""
    rows = {row.system: (row.mean, row.interval, row.each) for row in measured}
    blind = table.chance.get("mean", {}).get("mAP")
    svg = figures.ranking_bars(rows, chance=blind, unit="mean mAP")
    words = "Bars: mean of seeds and directions; dots: each seed; dark lines: 95 % intervals; dashed: chance."
    return panel("Ranking", words, svg)


def _classes(shown: Sequence[str], good: Mapping[str, Sequence[Run]], relevance: str) -> str:
    rows = {name: means for name in shown if (means := _class_means(good[name]))}
    classes = dict.fromkeys(c for row in rows.values() for c in row)
    if len(classes) < 2:
        return ""
    svg = figures.bars_by_class(rows, figures.system_colors(shown), unit="mAP")
    few = f" Of {len(classes)} classes the best and the worst are shown." if len(classes) > MAX_CLASSES else ""
    words = f"Relevance by {relevance}; the first systems and the baseline.{few}"
    return panel("mAP of each class", words, svg, wide=True)


def _curves(shown: Sequence[str], good: Mapping[str, Sequence[Run]]) -> str:
    directions = list(dict.fromkeys(d for name in shown for run in good[name] for d in run.curves))[:2]
    if not directions:
        return ""
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {d: {} for d in directions}
    blind: dict[str, float] = {}
    for direction in directions:
        for name in shown:
            found = [run.curves[direction] for run in good[name] if direction in run.curves]
            if found and len({tuple(c["k"]) for c in found}) == 1:
                recall, precision = (np.mean([c[n] for c in found], axis=0).tolist() for n in ("recall", "precision"))
                curves[direction][name] = (recall, precision)
                blind.setdefault(direction, precision[-1])  # of the whole gallery: what any order has there
    svg = figures.precision_recall_curves(curves, blind, figures.system_colors(shown))
    words = "Of the first k for growing k, means over queries and seeds; the first systems and the baseline."
    return panel("Precision over recall", words, svg, wide=True)


def _order(table: Standings) -> str:
    order = table.order
    if order is None:
        words = "Fewer than three of these systems have a published figure on VEGAS, so the orders are not compared."
        return panel("Beside the papers' order", words, "")
    head = f"Spearman's ρ = {order.rho:.2f}, 95 % interval over queries {order.low:.2f} to {order.high:.2f}"
    figure = figures.order_beside(order.ours, {n: p.value for n, p in order.papers.items()}, words=head)
    sources = "; ".join(dict.fromkeys(p.source for p in order.papers.values()))
    words = f"{head}, {len(order.ours)} systems. Published: {sources}. Other data and features: only the order counts."
    names = ", ".join(f"{n} {p.value:.3f}" for n, p in order.papers.items())
    return panel("Beside the papers' order", words, figure + f'<p class="note">Published: {escape(names)}</p>')
