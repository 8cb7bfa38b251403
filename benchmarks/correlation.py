"""Linear CCA in one pass over blocks of rows, beside cca-zoo and scikit-learn, and out of core.

    python benchmarks/correlation.py [--rows 20000] [--stream 2000000] [--threads 2] [--small] [--out FILE]

Every measurement runs in a fresh process. Ours and cca-zoo are timed in turns; scikit-learn's iterative CCA takes
minutes and is called once. The stream generates its blocks as it goes, in float32, and keeps none of them.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import answer, in_child, measured, side_by_side, table, versions, write
from threadpoolctl import threadpool_limits
from torch import Tensor

from avcl.objectives import Moments, add_moments, canonical_directions

BLOCK = 8192  # rows at a time
SHARED = 20  # directions that the two views have in common, of falling strength
ZOO_AIM, SKLEARN_AIM, SAME, MIB = 2.0, 50.0, 1e-6, 1024.0
ZOO, SKLEARN = "cca-zoo CCA", "scikit-learn CCA"

Views = tuple[Tensor, Tensor]
Fit = Callable[[Tensor, Tensor, int], np.ndarray]


class Source:
    """x = s M₁ + noise, y = s M₂ + noise: as many rows as one likes, and the correlations of infinitely many."""

    def __init__(self, widths: tuple[int, int]):
        generator = torch.Generator().manual_seed(0)
        strength = torch.linspace(0.9, 0.3, SHARED)[:, None]
        self.mixing = [strength * torch.randn(SHARED, d, generator=generator) for d in widths]
        self.widths = widths

    def rows(self, n: int, seed: int) -> Views:
        generator = torch.Generator().manual_seed(seed)
        shared = torch.randn(n, SHARED, generator=generator)
        first, second = (torch.randn(n, d, generator=generator).mul_(4).addmm_(shared, m) for d, m in self.parts())
        return first, second

    def parts(self) -> Iterator[tuple[int, Tensor]]:
        return zip(self.widths, self.mixing, strict=True)

    def stream(self, n: int) -> Iterator[Views]:
        for i, start in enumerate(range(0, n, BLOCK)):
            yield self.rows(min(BLOCK, n - start), seed=i)

    def correlations(self, dim: int) -> np.ndarray:
        joint = torch.cat(self.mixing, 1).double()
        covariance = joint.T @ joint + 16 * torch.eye(sum(self.widths), dtype=torch.float64)
        return canonical_directions(covariance, self.widths, dim=dim).correlation.numpy()


# ------------------------------------------------------------------------------------------------------------ the sides
def fit(blocks: Iterable[Views], dim: int) -> np.ndarray:
    moments: Moments | None = None
    widths = (0, 0)
    for x, y in blocks:
        widths = (x.shape[1], y.shape[1])
        moments = add_moments(moments, torch.cat([x, y], 1))
    assert moments is not None
    return canonical_directions(moments.scatter / (moments.n - 1), widths, dim=dim).correlation.numpy()


def ours(x: Tensor, y: Tensor, dim: int) -> np.ndarray:
    return fit(zip(x.split(BLOCK), y.split(BLOCK), strict=True), dim)


def by_cca_zoo(x: Tensor, y: Tensor, dim: int) -> Any:
    from cca_zoo.linear import CCA

    return CCA(n_components=dim).fit([x.numpy(), y.numpy()])


def by_scikit_learn(x: Tensor, y: Tensor, dim: int) -> Any:
    from sklearn.cross_decomposition import CCA

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so where a component has not converged; the table shows by how much
        return CCA(n_components=dim).fit(x.numpy(), y.numpy())


PEERS = {ZOO: by_cca_zoo, SKLEARN: by_scikit_learn}


def reached(name: str, model: Any, x: Tensor, y: Tensor) -> np.ndarray:
    """The correlations of a peer: those of its own projections of the rows it was fitted on."""
    views = (x.numpy(), y.numpy())
    p, q = model.transform(list(views)) if name == ZOO else model.transform(*views)
    p, q = (z.astype(np.float64) - z.mean(0, dtype=np.float64) for z in (p, q))
    return np.abs((p * q).sum(0) / np.sqrt((p**2).sum(0) * (q**2).sum(0)))


# ------------------------------------------------------------------------------------------------------------ one child
def child(case: dict[str, Any]) -> dict[str, Any]:
    source, dim = Source(tuple(case["widths"])), case["dim"]
    small = source.rows(4 * sum(case["widths"]), seed=1)
    if case["side"] == "stream":
        ours(*small, dim)
        return streamed(source, case["rows"], dim)
    x, y = (z.to(getattr(torch, case["kind"])) for z in source.rows(case["rows"], seed=0))
    if case["side"] == "both":
        found = ours(x, y, dim)
        peer = PEERS[case["peer"]]
        gap = float(np.abs(reached(case["peer"], peer(x, y, dim), x, y) - found).max())
        calls = {"ours": lambda: ours(x, y, dim), "peer": lambda: peer(x, y, dim)}
        return side_by_side(calls, rounds=case["rounds"]) | {"difference": gap}
    results: list[Any] = []
    if case["side"] == "ours":
        ours(*small, dim)
        return measured(lambda: ours(x, y, dim))
    peer = PEERS[case["side"]]
    if case["side"] == ZOO:
        peer(*small, dim)
    row = measured(lambda: results.append(peer(x, y, dim)))
    return row | {"difference": float(np.abs(reached(case["side"], results[0], x, y) - ours(x, y, dim)).max())}


def streamed(source: Source, rows: int, dim: int) -> dict[str, Any]:
    making, found = 0.0, []

    def blocks() -> Iterator[Views]:
        nonlocal making
        stream = source.stream(rows)
        while True:
            begin = time.perf_counter()
            block = next(stream, None)
            making += time.perf_counter() - begin
            if block is None:
                return
            yield block

    row = measured(lambda: found.append(fit(blocks(), dim)))
    gap = float(np.abs(found[0] - source.correlations(dim)).max())
    return row | {"seconds": row["seconds"] - making, "making_seconds": making, "difference": gap}


# -------------------------------------------------------------------------------------------------------------- the run
def compared(name: str, kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    case = {key: getattr(arguments, key) for key in ("rows", "widths", "dim", "threads", "rounds")} | {"kind": kind}
    mine = in_child(__file__, case | {"side": "ours"}, timeout=600)
    peer = in_child(__file__, case | {"side": name}, timeout=arguments.timeout)
    row: dict[str, Any] = {"peer": name, "rows": arguments.rows, "kind": kind}
    row |= {f"ours_{key}": value for key, value in mine.items()}
    row |= {f"peer_{key}": value for key, value in peer.items()}
    row["difference"] = row.pop("peer_difference", None)
    if name == ZOO:
        row |= in_child(__file__, case | {"side": "both", "peer": name}, timeout=600)
    aim = ZOO_AIM if name == ZOO else SKLEARN_AIM
    least = row.get("peer_seconds", arguments.timeout)  # a peer that was stopped has taken at least so long
    row |= {"ratio": least / row["ours_seconds"], "aim": f"≥ {aim:g} × faster"}
    row["met"] = row["ratio"] >= aim
    if name == ZOO:
        row["aim"] += f", same correlations to {SAME:g}"
        row["met"] = row["met"] and row["difference"] <= SAME
    if "peer_mib" in row:
        row["memory_ratio"] = row["peer_mib"] / max(row["ours_mib"], 1 / 16)
    print(json.dumps(row), flush=True)
    return row


def out_of_core(arguments: argparse.Namespace) -> dict[str, Any]:
    case = {"side": "stream", "rows": arguments.stream}
    case |= {key: getattr(arguments, key) for key in ("widths", "dim", "threads")}
    found = in_child(__file__, case, timeout=3600)
    row = {"peer": "", "rows": arguments.stream, "kind": "float32, streamed", "difference": found.pop("difference")}
    row |= {f"ours_{key}": value for key, value in found.items()}
    row |= {"aim": f"≤ {MIB:g} MiB", "met": row["ours_mib"] <= MIB}
    print(json.dumps(row), flush=True)
    return row


COLUMNS = {
    "rows": "rows",
    "kind": "input",
    "peer": "peer",
    "ours_seconds": "ours s",
    "peer_seconds": "peer s",
    "ratio": "peer / ours",
    "ours_mib": "ours MiB",
    "peer_mib": "peer MiB",
    "memory_ratio": "memory ratio",
    "difference": "correlations differ by",
    "aim": "aim",
    "met": "met",
}


def shown(row: dict[str, Any]) -> list[Any]:
    cells = row | {"met": "yes" if row["met"] else "no"}
    if died := row.get("peer_died"):
        cells["peer_seconds"] = died
    return [cells.get(key) for key in COLUMNS]


def about(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    stream = rows[-1]
    return (
        f"benchmarks/correlation.py: two views of {arguments.widths[0]} and {arguments.widths[1]} columns, "
        f"{arguments.dim} components, {arguments.threads} threads. Ours accumulates in float64 in blocks of {BLOCK} "
        "rows whatever the input; cca-zoo computes in the type of its input, so that float32 costs it half the "
        f"arithmetic of ours. Both are timed in turns, median of {arguments.rounds} rounds; scikit-learn once. MiB: "
        "peak resident memory above the process with its inputs, each side in a fresh process. Correlations differ by: "
        "the largest difference to those that the projections of the peer reach; in the stream, to those of infinitely "
        f"many rows (1/√rows = {arguments.stream**-0.5:.1g}). Seconds of the stream "
        f"without the {stream['ours_making_seconds']:.3g} s that making the rows took."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--widths", type=int, nargs=2, default=[1024, 128])
    parser.add_argument("--dim", type=int, default=10)
    parser.add_argument("--stream", type=int, default=2_000_000, help="rows of the stream")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds that a peer may take")
    parser.add_argument("--small", action="store_true", help="1,000 rows of 32 + 16: does it run?")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/correlation.json"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case = json.loads(arguments.case)
        torch.set_num_threads(case["threads"])
        with threadpool_limits(case["threads"]):
            answer(lambda: child(case))
        return
    if arguments.small:
        arguments.rows, arguments.widths, arguments.dim, arguments.stream, arguments.rounds = (
            1000,
            [32, 16],
            4,
            20_000,
            2,
        )
    rows = [compared(ZOO, "float32", arguments), compared(ZOO, "float64", arguments)]
    rows += [compared(SKLEARN, "float64", arguments), out_of_core(arguments)]
    result = {
        "title": "Canonical correlation analysis beside cca-zoo and scikit-learn, and out of core",
        "about": about(rows, arguments),
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("out", "case")},
        "versions": versions("torch", "numpy", "cca-zoo", "scikit-learn"),
        "tables": [table("", list(COLUMNS.values()), map(shown, rows))],
        "rows": rows,
    }
    write(arguments.out, result)


if __name__ == "__main__":
    main()
