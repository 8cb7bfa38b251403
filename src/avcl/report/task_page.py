"""The page of any task but retrieval: the deciding figure beside chance and every control, then every figure."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from avcl.report.figures import controls_beside, short
from avcl.report.frame import panel, write_page
from avcl.types import Report


def write_task_html(report: Report, path: str | Path) -> None:
    """Write the page of ``report``; it needs no network, no other file and no script."""
    task = str(report.protocol.get("name", "task"))
    write_page(
        path,
        report,
        title=f"{report.system}: {task}",
        lead=_lead(report),
        warnings=_warnings(report),
        tiles=_tiles(report),
        charts=f'<h2>Beside every control</h2><div class="charts">{_chart(report)}</div>',
        tables="".join(_table(report, condition) for condition in report.scores) + _classes(report),
        glossary=_glossary(report),
    )


def number(value: float | None) -> str:
    """Three significant digits; "n/a" where there is no number."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.3g}"


def _span(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{number(pair[0])} to {number(pair[1])}"


def _deciding(report: Report) -> tuple[str, str]:
    decides = report.protocol["headline"]
    return decides["condition"], decides["metric"]


def _lead(report: Report) -> str:
    condition, metric = _deciding(report)
    better = report.protocol["headline"]["better"]
    value, pair = report.scores[condition][metric], report.interval.get(condition, {}).get(metric)
    return (
        f"{escape(str(report.protocol.get('words', '')))} The figure that decides: {escape(metric)}, "
        f"{escape(condition)}: <b>{number(value)}</b> (95 % interval {_span(pair)}; {better} is better)."
    )


def _warnings(report: Report) -> str:
    found = []
    if not report.controls:
        found.append("No control was scored beside it; --controls measures them.")
    elif lost := report.not_beaten():
        found.append(f"Not beaten: {', '.join(lost)}. Their intervals reach into that of the score.")
    if report.n_scored < report.n_official:
        found.append(f"{report.n_official - report.n_scored} of {report.n_official} items were not scored.")
    if report.skipped:
        reasons = ", ".join(f"{short(code)} {count}" for code, count in report.skipped.items())
        found.append(f"Rows that could not be read: {reasons}.")
    return "".join(f'<p class="warn">{escape(text)}</p>' for text in found)


def _tiles(report: Report) -> str:
    """Every metric of the condition that decides."""
    condition, _ = _deciding(report)
    html = ""
    for metric, value in report.scores[condition].items():
        pair, chance = report.interval.get(condition, {}).get(metric), report.chance.get(condition, {}).get(metric)
        beside = f"95 % interval {_span(pair)}" if pair else ""
        beside += f"<br>chance {number(chance)}" if chance is not None else ""
        html += f'<div class="tile"><small>{escape(metric)}</small><b>{number(value)}</b><small>{beside}</small></div>'
    return html


def _chart(report: Report) -> str:
    condition, metric = _deciding(report)
    rows = {report.system: (report.scores[condition][metric], report.interval.get(condition, {}).get(metric))}
    for name, scores in report.controls.items():
        value = scores.get(condition, {}).get(metric)
        if value is not None and math.isfinite(value):
            rows[name] = (value, report.control_interval.get(name, {}).get(condition, {}).get(metric))
    svg = controls_beside(rows, chance=report.chance.get(condition, {}).get(metric), unit=metric)
    return panel(f"{metric}, {condition}", "Points with 95 % intervals; the dashed line is chance.", svg, wide=True)


def _table(report: Report, condition: str) -> str:
    every = {"chance": report.chance, **report.controls}
    beside = {name: scores[condition] for name, scores in every.items() if condition in scores}
    heads = "".join(f"<th>{escape(name)}</th>" for name in beside)
    html = f'<h3 class="other">{escape(condition)}</h3><div class="scroll of-other"><table>'
    html += f"<tr><th>metric</th><th>value</th><th>95 % interval</th>{heads}</tr>"
    for metric, value in report.scores[condition].items():
        cells = "".join(f"<td>{number(row[metric]) if metric in row else ''}</td>" for row in beside.values())
        span = _span(report.interval.get(condition, {}).get(metric))
        html += f'<tr><td>{escape(metric)}</td><td class="value">{number(value)}</td><td>{span}</td>{cells}</tr>'
    return html + "</table></div>"


def _classes(report: Report) -> str:
    html = ""
    for condition, classes in report.per_class.items():
        metrics = list(dict.fromkeys(metric for row in classes.values() for metric in row))
        heads = "".join(f"<th>{escape(metric)}</th>" for metric in metrics)
        html += f"<h3>Class by class: {escape(condition)}</h3>"
        html += f'<div class="scroll of-other"><table><tr><th>class</th>{heads}</tr>'
        for name, row in classes.items():
            cells = "".join(f"<td>{number(row.get(metric))}</td>" for metric in metrics)
            html += f"<tr><td>{escape(short(name, 60))}</td>{cells}</tr>"
        html += "</table></div>"
    return html


def _glossary(report: Report) -> str:
    terms = {
        "interval": "95 % bootstrap interval over source clips: how much the number would move with other clips of the "
        "same kind. It does not tell how another training run would score.",
        "untrained": "The same network before any training, with other random weights.",
        "wrong partner": f"The same model on the same items with another clip's {escape(_partner(report))}.",
        "chance": "What blind guessing gets on average.",
    }
    shown = {"interval", "chance", *report.controls}
    return "".join(f"<dt>{escape(t)}</dt><dd>{words}</dd>" for t, words in terms.items() if t in shown)


def _partner(report: Report) -> str:
    return str(report.protocol.get("partner", "sound or picture"))
