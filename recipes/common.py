"""What the recipes share: the command line, the reports, and where results go."""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from avcl.comparison.study import Comparison
from avcl.files import finite, write_json
from avcl.types import Report, jsonable

Recipe = Callable[..., Mapping[str, Any]]


def main(recipe: Recipe, *folders: str, result: str) -> None:
    """Run ``recipe(folder, ..., seed=)`` from the shell and write ``RESULTS/<result>.json``."""
    parser = argparse.ArgumentParser(description=(recipe.__doc__ or "").partition("\n")[0])
    for name in folders:
        parser.add_argument(name, type=Path, help=f"the folder of {name}")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    torch.set_num_threads(1)  # one thread to train, the other core for the worker that decodes
    found = recipe(*(given[name] for name in folders), seed=given["seed"])
    write_result(given["results"], result, found)


def write_result(results: Path, name: str, found: Mapping[str, Any]) -> None:
    """``results/<name>.json``, and a word that it is there."""
    path = results / f"{name}.json"
    write_json(path, finite(jsonable(found)))
    print(f"wrote {path}")


def comparison_parser(
    about: str | None, *, systems: str, seeds: int, budget: float | None = None
) -> argparse.ArgumentParser:
    """The command line of a recipe that compares systems; ``budget``: minutes, None where it is not asked for."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--systems", default=systems)
    parser.add_argument("--seeds", type=int, default=seeds)
    if budget is not None:
        parser.add_argument("--budget", type=float, default=budget, help="minutes of training of a system and seed")
    parser.add_argument("--work", type=Path, help="keep features and runs here, and go on from what is there")
    parser.add_argument("--results", type=Path, default=Path("results"))
    return parser


@contextmanager
def workplace(kept: Path | None) -> Iterator[Path]:
    """The folder to work in: ``kept``, which stays, or one that is gone afterwards. Training has one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = kept or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        yield work


def row(report: Report, *metrics: str) -> dict[str, Any]:
    """{direction: {metric: value, interval, chance, and the controls that were scored}} of a report, four decimals."""
    controls = {"untrained": report.untrained, "wrong_partner": report.wrong_partner}
    return {
        direction: {
            metric: {
                "value": round(values[metric], 4),
                "interval": [round(x, 4) for x in report.interval[direction][metric]],
                "chance": round(report.chance[direction][metric], 4),
                **{name: round(scores[direction][metric], 4) for name, scores in controls.items() if scores},
            }
            for metric in metrics
        }
        for direction, values in report.scores.items()
    }


def table(title: str, cells: Iterable[tuple[Sequence[Any], Mapping[str, Any]]], *heads: str) -> dict[str, Any]:
    """A table for docs/results.md: for each (what, row of scores) a line a direction and metric, led by ``what``."""
    figures = ("value", "interval", "chance", "untrained", "wrong_partner")
    rows = [
        [*what, direction.replace("_", " "), metric, *(cell.get(name) for name in figures)]
        for what, scores in cells
        for direction, metrics in scores.items()
        for metric, cell in metrics.items()
    ]
    columns = [*heads, "direction", "metric", *(name.replace("_", " ") for name in figures)]
    return {"title": title, "columns": columns, "rows": rows}


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A manifest of these rows, which share their columns."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def standings(made: Comparison, *, vegas: bool = False) -> list[list[Any]]:
    """A line a system, best first, under ``columns``."""
    papers = made.table.order.papers if vegas and made.table.order else {}
    width = len(columns(made, vegas=vegas))
    found = []
    for row in made.table.rows:
        if not row.scores:
            line = [row.system, row.state, row.why]
            found.append(line + [None] * (width - len(line)))
            continue
        ways = [round(m["mAP"].mean, 4) for d, m in row.scores.items() if d != "mean"]
        seconds, milliseconds = (None if v is None else round(v.mean, 3) for v in (row.train_s, row.embed_ms))
        span = [round(x, 4) for x in row.interval] if row.interval else None
        recall = [round(row.scores["mean"]["R@10"].mean, 4)] if made.plan.relevance != "class" else []
        paper = [papers[row.system].value if row.system in papers else None] if vegas else []
        size = None if row.params is None else round(row.params)
        found.append([row.system, round(row.mean, 4), span, *recall, *ways, row.p, size, seconds, milliseconds, *paper])
    return found


def columns(made: Comparison, *, vegas: bool = False) -> list[str]:
    """The heads: means, R@10 where instances are sought, directions, test, size and cost; ``vegas``: what the papers
    report of that set, which belongs beside nothing but its imitation."""
    ways = [d.replace("_", " ") for d in made.table.chance if d != "mean"]
    recall = ["mean R@10"] if made.plan.relevance != "class" else []
    paper = ["papers, on VEGAS"] if vegas else []
    return ["system", "mean mAP", "interval", *recall, *ways, "p", "numbers", "train s", "embed ms", *paper]


def compared(made: Comparison, title: str, about: str, *, vegas: bool = False) -> dict[str, Any]:
    """What ``results/`` keeps of a comparison."""
    return {"title": title, "about": f"{about} {rules(made, vegas=vegas)}", **kept(made, vegas=vegas)}


def rules(made: Comparison, *, vegas: bool = False) -> str:
    """Chance, what p is, and Spearman's correlation with the papers' order."""
    order, blind = made.table.order, made.table.chance.get("mean", {})
    said = ""
    if vegas and order is not None:
        said = f" Spearman's correlation with the papers' order: {order.rho:.2f} [{order.low:.2f}, {order.high:.2f}]."
    recall = f", R@10 {blind['R@10']:.3f}" if made.plan.relevance != "class" and blind else ""
    return (
        f"Chance {blind.get('mAP', float('nan')):.3f}{recall}; p against {made.table.baseline}, paired permutations of "
        f"queries, Holm.{said}"
    )


def kept(made: Comparison, title: str = "", *, vegas: bool = False) -> dict[str, Any]:
    """The table and all runs of one comparison."""
    found: dict[str, Any] = {
        "tables": [{"title": title, "columns": columns(made, vegas=vegas), "rows": standings(made, vegas=vegas)}],
        "runs": made.lines(),
    }
    return found | ({"order": made.table.order._asdict()} if vegas and made.table.order else {})
