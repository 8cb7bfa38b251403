"""Full ranking with class relevance: mean average precision over every query, beside torchmetrics and
pytorch-metric-learning, and beside the bound that the matrix product and one sort of every row set.

    python benchmarks/ranking.py [--items 20000] [--dim 256] [--classes 10] [--limit 60] [--small] [--out FILE]

Peers double their number of items until a run would pass ``--limit`` seconds. All of them sort each row of an n × n
matrix, so their time is carried over to the full size by n² log n; the row states the size that was run.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import answer, in_child, limited, measured, table, versions, write
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from avcl.metrics import ranking

ROWS = 100  # of the score matrix at a time in the bound
AIM, MIB = 10.0, 1024.0


def data(items: int, dim: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and gallery, unit rows around class centers that overlap, and their labels."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(items) % classes
    centers = torch.randn(classes, dim, generator=generator)
    a, v = (normalize(0.3 * centers[label] + torch.randn(items, dim, generator=generator), dim=1) for _ in range(2))
    return a, v, label


def ours(a: Tensor, v: Tensor, label: Tensor) -> float:
    keys = label.numpy()
    return float(ranking.rank(a, v, keys, keys).ap.mean())


def by_torchmetrics(a: Tensor, v: Tensor, label: Tensor) -> float:
    """A query at a time, as its own RetrievalMAP does, without the n × n index that RetrievalMAP must be given."""
    from torchmetrics.functional.retrieval import retrieval_average_precision

    total = 0.0
    for query, own in zip(a, label, strict=True):
        scores = (1 + v @ query) / 2  # it counts no item whose score is 0 or less
        total += float(retrieval_average_precision(scores, label == own))
    return total / len(a)


def by_metric_learning(a: Tensor, v: Tensor, label: Tensor) -> float:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    calculator = AccuracyCalculator(include=("mean_average_precision",), k=len(v), device=torch.device("cpu"))
    return calculator.get_accuracy(a, label, v, label)["mean_average_precision"]


def product_and_sort(sort: Callable[[NDArray[np.float32]], Any]) -> Callable[[Tensor, Tensor, Tensor], None]:
    def run(a: Tensor, v: Tensor, label: Tensor) -> None:
        for start in range(0, len(a), ROWS):
            sort((a[start : start + ROWS] @ v.T).numpy())

    return run


SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], float | None]] = {
    "avcl.metrics.rank": ours,
    "torchmetrics retrieval_average_precision": by_torchmetrics,
    "pytorch-metric-learning AccuracyCalculator": by_metric_learning,
    "bound: float32 product, np.sort": product_and_sort(lambda block: block.sort(axis=1)),
    "bound: float32 product, torch.sort": product_and_sort(lambda block: torch.from_numpy(block).sort(dim=1)),
}
PEERS = tuple(SIDES)[1:3]
BOUNDS = tuple(SIDES)[3:]


def child(case: dict[str, Any]) -> dict[str, Any]:
    call, found = SIDES[case["side"]], []
    call(*data(200, case["dim"], case["classes"]))
    inputs = data(case["items"], case["dim"], case["classes"])
    if case["gib"]:
        limited(case["gib"])
    return measured(lambda: found.append(call(*inputs))) | {"map": found[0]}


def run(side: str, items: int, arguments: argparse.Namespace, *, gib: float | None = None) -> dict[str, Any]:
    case = {"side": side, "items": items, "gib": gib}
    case |= {key: getattr(arguments, key) for key in ("dim", "classes", "threads")}
    row = {"side": side, "items": items, **in_child(__file__, case, timeout=10 * arguments.limit)}
    print(json.dumps(row), flush=True)
    return row


def work(items: int) -> float:
    return items**2 * math.log(items)


def largest(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The run of the largest size, doubled from 1,250 on, that finishes within the limit of time and memory."""
    items = best = None
    while items is None or 2 * items <= arguments.items:
        items = min(1250, arguments.items) if items is None else 2 * items
        if best is not None and best["seconds"] * work(items) / work(best["items"]) > arguments.limit:
            break
        row = run(side, items, arguments, gib=arguments.gib)
        if "died" in row or row["seconds"] > arguments.limit:
            return best if best is not None else row
        best = row
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds that a peer may take")
    parser.add_argument("--gib", type=float, default=8.0, help="memory that a peer may take")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="400 items: does it run?")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/ranking.json"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case = json.loads(arguments.case)
        torch.set_num_threads(case["threads"])
        answer(lambda: child(case))
        return
    arguments.items = 400 if arguments.small else arguments.items
    mine = run("avcl.metrics.rank", arguments.items, arguments)
    rows = [mine | {"scaled": mine["seconds"], "ratio": 1.0, "aim": f"≤ {MIB:g} MiB", "met": mine["mib"] <= MIB}]
    for side in PEERS:
        row = largest(side, arguments)
        if "died" not in row:
            same = run("avcl.metrics.rank", row["items"], arguments)
            row["scaled"] = row["seconds"] * work(arguments.items) / work(row["items"])
            row["ratio"] = row["scaled"] / mine["seconds"]
            row["ratio_at_that_size"] = row["seconds"] / same["seconds"]
            row["map_difference"] = abs(row["map"] - same["map"])
            row |= {"aim": f"≥ {AIM:g} × faster", "met": row["ratio"] >= AIM}
        rows.append(row)
    for side in BOUNDS:
        row = run(side, arguments.items, arguments)
        rows.append(row | {"scaled": row["seconds"], "ratio": row["seconds"] / mine["seconds"]})
    columns = ["", "items run", "seconds", "seconds at full size", "of ours", "MiB", "mAP differs", "aim", "met"]
    keys = ["side", "items", "seconds", "scaled", "ratio", "mib", "map_difference", "aim"]
    cells = [[*(row.get(key) for key in keys), {True: "yes", False: "no"}.get(row.get("met"), "")] for row in rows]
    result = {
        "title": "Mean average precision over full rankings",
        "about": f"benchmarks/ranking.py: {arguments.items} queries, each over {arguments.items} items of "
        f"{arguments.classes} classes, d = {arguments.dim}, cosine, {arguments.threads} threads. Ours: all metrics of "
        "the ranking, ties at their expected value; peers: mean average precision alone, at the largest size that they "
        f"finish in {arguments.limit:g} s and {arguments.gib:g} GiB, carried over to the full size by n² log n. Bound: "
        "the matrix product in float32 and one sort of every row, nothing else.",
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("out", "case")},
        "versions": versions("torch", "numpy", "torchmetrics", "pytorch-metric-learning"),
        "tables": [table("", columns, cells)],
        "rows": rows,
    }
    write(arguments.out, result)


if __name__ == "__main__":
    main()
