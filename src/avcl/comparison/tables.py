"""The table of a comparison for the terminal, in Markdown, in LaTeX and as CSV.

Mean ± standard deviation over seeds. The best mean is marked only where it is significantly above every other one.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence

from avcl.comparison.statistics import LEVEL, Standing, Standings, Value

SHOWN = {"class": ("mAP", "R@1"), "pair": ("mAP", "R@1", "R@10"), "group": ("mAP", "R@1", "R@10")}
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "≥": r"$\geq$",
}


def columns(table: Standings, relevance: str) -> list[tuple[str, Callable[[Standing], str]]]:
    """(head, cell) of each column after the name; every direction where there are two, the means always."""
    directions = [d for d in table.chance if d != "mean"]
    found: list[tuple[str, Callable[[Standing], str]]] = []
    if len(directions) == 2:
        found += [(f"mAP {d.replace('_to_', '→')}", _score(d, "mAP")) for d in directions]
    found += [(f"{metric} mean", _score("mean", metric)) for metric in SHOWN.get(relevance, ("mAP",))]
    found += [
        ("parameters", lambda r: "" if r.params is None else count(r.params)),
        ("train s", lambda r: "" if r.train_s is None else figure(r.train_s, 1)),
        ("embed ms", lambda r: "" if r.embed_ms is None else figure(r.embed_ms, 3)),
        ("p (Holm)", lambda r: "baseline" if r.system == table.baseline else probability(r.p)),
    ]
    return found


def _score(direction: str, metric: str) -> Callable[[Standing], str]:
    def cell(row: Standing) -> str:
        value = row.scores.get(direction, {}).get(metric)
        return "" if value is None else figure(value, 3)

    return cell


def figure(value: Value, digits: int) -> str:
    """``0.231 ± 0.004``; without ± where there is one seed."""
    if not math.isfinite(value.mean):
        return "n/a"
    spread = "" if value.std is None else f" ± {value.std:.{digits}f}"
    return f"{value.mean:.{digits}f}{spread}"


def count(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k" if value >= 1e3 else f"{value:.0f}"


def probability(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def name_of(row: Standing) -> str:
    return row.system if row.ok in (0, row.seeds) else f"{row.system} ({row.ok} of {row.seeds} seeds)"


def notes(table: Standings) -> list[str]:
    """What a reader must know beside the figures, a line each."""
    seeds = max((r.ok for r in table.rows), default=0)
    lines = [f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"]
    lines[0] += "; p: paired permutation test over queries against the baseline, Holm-corrected"
    if any(r.best for r in table.rows):
        lines.append(f"marked: significantly above every other system (p < {LEVEL:g} after Holm)")
    elif sum(bool(r.scores) for r in table.rows) > 1:
        lines.append("no system is significantly above every other one; none is marked")
    if not any(r.system == table.baseline and r.scores for r in table.rows):
        lines.append(f"the baseline {table.baseline} has no result, so nothing was tested against it")
    if table.not_compared:
        lines.append(f"scored on other rows, so not tested: {', '.join(table.not_compared)}")
    if cut := [r.system for r in table.rows if "budget" in r.ended]:
        lines.append(f"training ended by the budget: {', '.join(cut)}")
    return lines


def _body(table: Standings, relevance: str) -> tuple[list[str], list[tuple[Standing, list[str]]], list[str]]:
    """Heads, a row a system with a result, and the cells of the row of chance."""
    shown = columns(table, relevance)
    rows = [(row, [name_of(row), *(cell(row) for _, cell in shown)]) for row in table.rows if row.scores]
    blind = Standing("chance", "ok", 0, 0, scores={d: {m: Value(v, None) for m, v in row.items()}
                                                   for d, row in table.chance.items()})  # fmt: skip
    return ["system", *(head for head, _ in shown)], rows, ["chance", *(cell(blind) for _, cell in shown)]


def _without(table: Standings) -> list[Standing]:
    return [row for row in table.rows if not row.scores]


def text_table(table: Standings, relevance: str) -> str:
    """For the terminal; ``*`` marks the best where it is significant."""
    heads, rows, blind = _body(table, relevance)
    cells = [heads, *([f"{r[0]} *" if row.best else r[0], *r[1:]] for row, r in rows), *([blind] if rows else [])]
    wide = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    lines = ["  ".join([line[0].ljust(wide[0]), *(c.rjust(w) for c, w in zip(line[1:], wide[1:], strict=True))])
             for line in cells] if rows else []  # fmt: skip
    lines += [f"{row.system}  {row.state}  {row.why}" for row in _without(table)]
    return "\n".join([*(line.rstrip() for line in lines), *notes(table)]) + "\n"


def markdown_table(table: Standings, relevance: str) -> str:
    """GitHub's Markdown; the best in bold where it is significant."""
    heads, rows, blind = _body(table, relevance)

    def line(cells: Sequence[str], bold: bool = False) -> str:
        made = [c.replace("|", "\\|") for c in cells]
        return "| " + " | ".join(f"**{c}**" if bold and c else c for c in made) + " |"

    lines = [line(heads), line(["---", *["---:"] * (len(heads) - 1)])]
    lines += [line(cells, row.best) for row, cells in rows] + ([line(blind)] if rows else [])
    for row in _without(table):
        lines.append(line([row.system, f"{row.state}: {row.why}", *[""] * (len(heads) - 2)]))
    return "\n".join([*lines, "", *(f"{note}  " for note in notes(table))]) + "\n"


def latex_table(table: Standings, relevance: str) -> str:
    """A ``tabular`` for the package booktabs; the best in bold where it is significant."""
    heads, rows, blind = _body(table, relevance)

    def line(cells: Sequence[str], bold: bool = False) -> str:
        made = [escape_latex(c) for c in cells]
        return " & ".join(rf"\textbf{{{c}}}" if bold and c else c for c in made) + r" \\"

    lines = [f"% {note}" for note in notes(table)]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule", line(heads), r"\midrule"]
    lines += [line(cells, row.best) for row, cells in rows]
    if rows:
        lines += [r"\midrule", line(blind)]
    for row in _without(table):
        why = escape_latex(f"{row.state}: {row.why}")
        lines.append(rf"{escape_latex(row.system)} & \multicolumn{{{len(heads) - 1}}}{{l}}{{{why}}} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escape_latex(text: str) -> str:
    """``text`` as LaTeX prints it."""
    return "".join(LATEX.get(c, c) for c in " ".join(text.split()))


def csv_table(table: Standings) -> str:
    """Every direction and metric at full precision, a row a system."""
    conditions = {d: list(row) for d, row in table.chance.items()}
    heads = ["system", "state", "seeds", "ok"]
    heads += [f"{d}.{m}{end}" for d, metrics in conditions.items() for m in metrics for end in ("", ".std")]
    heads += ["mean.mAP.low", "mean.mAP.high", "params", "train_s", "train_s.std", "embed_ms", "embed_ms.std"]
    heads += ["difference", "p", "p_holm", "best", "ended", "error"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    none = Value(float("nan"), None)
    for row in table.rows:
        values = [row.scores.get(d, {}).get(m, none) for d, metrics in conditions.items() for m in metrics]
        cells: list[object] = [row.system, row.state, row.seeds, row.ok, *(x for v in values for x in v)]
        cells += [*(row.interval or ("", "")), row.params, *(row.train_s or ("", "")), *(row.embed_ms or ("", ""))]
        cells += [row.difference, row.p_raw, row.p, int(row.best), row.ended, row.why]
        writer.writerow("" if c is None or (isinstance(c, float) and math.isnan(c)) else c for c in cells)
    return out.getvalue()
