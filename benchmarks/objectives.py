"""Objectives beside their peers: forward and backward, seconds and peak resident memory above the process before.

    python benchmarks/objectives.py [--only info_nce ...] [--threads 2] [--gib 8] [--small] [--out FILE]

Peers are the plain dense form written in torch, and pytorch-metric-learning. Each measurement of memory runs in a
fresh process whose peers get at most ``--gib`` above their start; where both sides are quick, a third process times
them in turns. Batches double until the peer cannot: the last size it can do is where memory is compared.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from measure import answer, in_child, limited, measured, side_by_side, table, versions, write
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from avcl import objectives

CLASSES = 10
QUICK = 3.0  # seconds of a call up to which both sides are timed in turns
MARGIN, TAU, ALPHA, DELTA = 0.2, 0.07, 0.5, 0.001


@dataclass(frozen=True)
class Batch:
    """Two views of unit rows, labels of ten classes, and the number of each row."""

    a: Tensor
    v: Tensor
    label: Tensor
    own: Tensor


Loss = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Aim:
    """What a row must reach: ours at most ``time`` of the peer's seconds, the peer at least ``memory`` of our MiB."""

    time: float | None = None
    memory: float | None = None
    seconds: float | None = None
    mib: float | None = None

    def words(self) -> str:
        parts = [
            (self.time, "time ≤ {:g} ×"),
            (self.memory, "≥ {:g} × less memory"),
            (self.seconds, "< {:g} s"),
            (self.mib, "≤ {:g} MiB"),
        ]
        return ", ".join(text.format(value) for value, text in parts if value is not None)

    def met(self, row: dict[str, Any]) -> bool | None:
        checks = [
            (self.time, "ratio", lambda x, bound: x <= bound),
            (self.memory, "memory_ratio", lambda x, bound: x >= bound),
            (self.seconds, "ours_seconds", lambda x, bound: x < bound),
            (self.mib, "ours_mib", lambda x, bound: x <= bound),
        ]
        asked = [(row.get(key), bound, holds) for bound, key, holds in checks if bound is not None]
        if not asked or any(value is None for value, _, _ in asked):
            return None
        return all(holds(value, bound) for value, bound, holds in asked)


@dataclass(frozen=True)
class Comparison:
    """``small`` is the aim below the largest size, ``largest`` there; ``at`` holds sizes with their own aim. The peer
    is searched by doubling where ``search`` is set. ``differs``: why the two values are not the same number."""

    peer_name: str
    ours: Loss
    peer: Loss | None
    largest: Aim = field(default_factory=lambda: Aim(time=1.0, memory=10.0))
    small: Aim = field(default_factory=lambda: Aim(time=1.0))
    at: dict[int, Aim] = field(default_factory=dict)
    search: bool = True
    alone: dict[int, Aim] = field(default_factory=dict)  # sizes at which only ours is run
    differs: str = ""


# --------------------------------------------------------------------------------------------------------- dense peers
def dense_info_nce(batch: Batch) -> Tensor:
    logits = batch.a @ batch.v.T / TAU
    return 0.5 * (cross_entropy(logits, batch.own) + cross_entropy(logits.T, batch.own))


def dense_masked_margin_softmax(batch: Batch) -> Tensor:
    logits = batch.a @ batch.v.T
    logits = logits - DELTA * torch.eye(len(logits))
    return cross_entropy(logits, batch.own) + cross_entropy(logits.T, batch.own)


def dense_adaptive_mean_margin(batch: Batch) -> Tensor:
    scores = batch.a @ batch.v.T
    own, size = scores.diagonal(), len(scores)
    total = torch.zeros(())
    for s in (scores, scores.T):
        margin = ALPHA * (own - (s.sum(1) - own) / (size - 1))
        total = total + cross_entropy(s - torch.diag(margin), batch.own)
    return total


def dense_hinge(batch: Batch) -> Tensor:
    scores = batch.a @ batch.v.T
    own = scores.diagonal()
    off = ~torch.eye(len(scores), dtype=torch.bool)
    rows, columns = (scores - own[:, None] + MARGIN).relu(), (scores - own + MARGIN).relu()
    return ((rows + columns) * off).sum() / len(scores)


# ----------------------------------------------------------------------------- pytorch-metric-learning, both directions
def both_ways(make: Callable[[], tuple[Any, Any]], labels: str = "label") -> Loss:
    """A loss of the library with ``ref_emb``, once with audio and once with video as anchors; ``make`` gives it and
    its miner or None."""

    def run(batch: Batch) -> Tensor:
        loss, miner = make()
        label = getattr(batch, labels)
        other = label.clone()  # the library leaves the own partner out where both are one object
        total = torch.zeros(())
        for anchors, rest in ((batch.a, batch.v), (batch.v, batch.a)):
            mined = None if miner is None else miner(anchors, label, rest, other)
            total = total + loss(anchors, label, mined, rest, other)
        return total

    return run


def squared_distance() -> Any:
    from pytorch_metric_learning.distances import LpDistance

    return LpDistance(normalize_embeddings=False, p=2, power=2)


def triplet_loss() -> Any:
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.reducers import MeanReducer

    return TripletMarginLoss(margin=MARGIN, distance=squared_distance(), reducer=MeanReducer())


def easy_hard_miner(negatives: str) -> Any:
    from pytorch_metric_learning.miners import BatchEasyHardMiner

    return BatchEasyHardMiner(pos_strategy="hard", neg_strategy=negatives, distance=squared_distance())


def margin_miner() -> Any:
    from pytorch_metric_learning.miners import TripletMarginMiner

    return TripletMarginMiner(margin=MARGIN, type_of_triplets="semihard", distance=squared_distance())


def supcon() -> Any:
    from pytorch_metric_learning.losses import SupConLoss

    return SupConLoss(temperature=TAU)


def peer_lifted(batch: Batch) -> Tensor:
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import LiftedStructureLoss

    loss = LiftedStructureLoss(neg_margin=1.0, distance=LpDistance(normalize_embeddings=False, p=2))
    return loss(batch.a, batch.label)


def peer_n_pair(batch: Batch) -> Tensor:
    from pytorch_metric_learning.losses import NPairsLoss

    label = torch.cat([batch.own, batch.own])
    return sum(NPairsLoss()(torch.cat(views), label) for views in ((batch.a, batch.v), (batch.v, batch.a)))


PML = "pytorch-metric-learning"
SORTED = Aim(time=0.1, memory=10.0)  # ten times faster, where the peer enumerates
COMPARISONS: dict[str, Comparison] = {
    "info_nce": Comparison(
        "plain cross_entropy, both ways",
        lambda b: objectives.info_nce(b.a, b.v, temperature=TAU),
        dense_info_nce,
        small=Aim(),
        largest=Aim(),
        at={1024: Aim(time=1.05), 4096: Aim(), 32768: Aim(time=0.8, memory=25.0)},
        search=False,
        alone={131072: Aim(mib=2048.0)},
    ),
    "supervised_contrastive": Comparison(
        f"{PML} SupConLoss, ref_emb, both ways",
        lambda b: objectives.supervised_contrastive(b.a, b.v, b.label, temperature=TAU),
        both_ways(lambda: (supcon(), None)),
    ),
    "triplet, all": Comparison(
        f"{PML} TripletMarginLoss, ref_emb, both ways",
        lambda b: objectives.triplet(b.a, b.v, margin=MARGIN, label=b.label),
        both_ways(lambda: (triplet_loss(), None)),
        largest=SORTED,
        alone={4096: Aim(seconds=5.0)},
    ),
    "triplet, all, own pairs": Comparison(
        f"{PML} TripletMarginLoss, ref_emb, both ways",
        lambda b: objectives.triplet(b.a, b.v, margin=MARGIN),
        both_ways(lambda: (triplet_loss(), None), labels="own"),
    ),
    "triplet, hard": Comparison(
        f"{PML} BatchHardMiner + TripletMarginLoss, ref_emb, both ways",
        lambda b: objectives.triplet(b.a, b.v, margin=MARGIN, label=b.label, mining="hard"),
        both_ways(lambda: (triplet_loss(), easy_hard_miner("hard"))),
    ),
    "triplet, semi-hard, own pairs": Comparison(
        f"{PML} BatchEasyHardMiner(semihard) + TripletMarginLoss, ref_emb, both ways",
        lambda b: objectives.triplet(b.a, b.v, margin=MARGIN, mining="semi-hard"),
        both_ways(lambda: (triplet_loss(), easy_hard_miner("semihard")), labels="own"),
    ),
    "triplet, semi-hard": Comparison(
        f"{PML} TripletMarginMiner(semihard) + TripletMarginLoss, ref_emb, both ways",
        lambda b: objectives.triplet(b.a, b.v, margin=MARGIN, label=b.label, mining="semi-hard"),
        both_ways(lambda: (triplet_loss(), margin_miner())),
        differs="the miner keeps every negative between positive and margin, ours the nearest behind each positive",
    ),
    "lifted_structured": Comparison(
        f"{PML} LiftedStructureLoss",
        lambda b: objectives.lifted_structured(b.a, b.label, margin=1.0),
        peer_lifted,
        largest=SORTED,
    ),
    "n_pair": Comparison(
        f"{PML} NPairsLoss on stacked views, both ways",
        lambda b: objectives.n_pair(b.a, b.v),
        peer_n_pair,
    ),
    "masked_margin_softmax": Comparison(
        "plain dense form",
        lambda b: objectives.masked_margin_softmax(b.a, b.v, margin=DELTA),
        dense_masked_margin_softmax,
    ),
    "adaptive_mean_margin": Comparison(
        "plain dense form",
        lambda b: objectives.adaptive_mean_margin(b.a, b.v, alpha=ALPHA),
        dense_adaptive_mean_margin,
    ),
    "hinge": Comparison("plain dense form", lambda b: objectives.hinge(b.a, b.v, margin=MARGIN), dense_hinge),
}


# ------------------------------------------------------------------------------------------------------------ one child
def batch_of(size: int, dim: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    a = normalize(torch.randn(size, dim, generator=generator), dim=1)
    v = torch.randn(size, dim, generator=generator).mul_(4 * dim**-0.5).add_(a)  # near enough that some margins hold
    return Batch(
        a.requires_grad_(), normalize(v, dim=1).requires_grad_(), torch.arange(size) % CLASSES, torch.arange(size)
    )


def step(loss: Loss, batch: Batch) -> float:
    """Forward and backward; the gradients are dropped, as between two steps of training."""
    batch.a.grad = batch.v.grad = None
    value = loss(batch)
    value.backward()
    return float(value.detach())


def child(case: dict[str, Any]) -> dict[str, Any]:
    comparison = COMPARISONS[case["objective"]]
    losses: dict[str, Loss] = {"ours": comparison.ours}
    if comparison.peer is not None:
        losses["peer"] = comparison.peer
    batch, warm = batch_of(case["size"], case["dim"]), batch_of(64, case["dim"])
    if case["side"] == "both":
        values = {name: step(loss, batch) for name, loss in losses.items()}
        return values | side_by_side(
            {name: lambda loss=loss: step(loss, batch) for name, loss in losses.items()}, rounds=case["rounds"]
        )
    loss = losses[case["side"]]
    step(loss, warm)
    if case["gib"]:
        limited(case["gib"])
    return measured(lambda: step(loss, batch), rounds=case["rounds"])


# -------------------------------------------------------------------------------------------------------------- the run
def compared(name: str, size: int, aim: Aim, arguments: argparse.Namespace, *, alone: bool = False) -> dict[str, Any]:
    comparison = COMPARISONS[name]
    case = {"objective": name, "size": size, "dim": arguments.dim, "threads": arguments.threads, "rounds": 1}
    row: dict[str, Any] = {
        "objective": name,
        "peer": "" if alone else comparison.peer_name,
        "B": size,
        "d": arguments.dim,
    }
    ours = in_child(__file__, case | {"side": "ours", "gib": None}, timeout=3600)
    row |= {f"ours_{key}": value for key, value in ours.items()}
    if not alone:
        gib = None if size in comparison.at else arguments.gib  # a size of its own is asked of the plain form as well
        peer = in_child(__file__, case | {"side": "peer", "gib": gib}, timeout=arguments.timeout)
        row |= {f"peer_{key}": value for key, value in peer.items()}
        if "died" not in peer and "died" not in ours:
            if max(ours["seconds"], peer["seconds"]) < QUICK:
                both = in_child(__file__, case | {"side": "both", "rounds": arguments.rounds}, timeout=600)
                row |= {key: both[key] for key in ("ours_seconds", "peer_seconds")}
                row["values"] = [both["ours"], both["peer"]]
                near = abs(both["ours"] - both["peer"]) <= 1e-4 * max(1.0, abs(both["peer"]))
                row["same_value"] = near or comparison.differs or False
            row["ratio"] = row["ours_seconds"] / row["peer_seconds"]
            row["memory_ratio"] = row["peer_mib"] / max(row["ours_mib"], 1 / 16)
    row |= {"aim": aim.words(), "met": aim.met(row)}
    print(json.dumps(row), flush=True)
    return row


def rows_of(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    comparison, rows = COMPARISONS[name], []
    if arguments.small:
        return [compared(name, 64, comparison.small, arguments)]
    for size, aim in comparison.at.items():
        rows.append(compared(name, size, aim, arguments))
    if comparison.search:
        size = 256
        while not rows or not rows[-1].keys() & {"peer_died", "ours_died"}:
            rows.append(compared(name, size, comparison.small, arguments))
            size *= 2
        alive = [row for row in rows if "peer_died" not in row]
        if alive:
            alive[-1] |= {"aim": comparison.largest.words(), "met": comparison.largest.met(alive[-1])}
            alive[-1]["largest"] = True
    for size, aim in comparison.alone.items():
        rows.append(compared(name, size, aim, arguments, alone=True))
    return rows


COLUMNS = {
    "objective": "objective",
    "peer": "peer",
    "B": "B",
    "ours_seconds": "ours s",
    "peer_seconds": "peer s",
    "ratio": "time ratio",
    "ours_mib": "ours MiB",
    "peer_mib": "peer MiB",
    "memory_ratio": "memory ratio",
    "aim": "aim",
    "met": "met",
}


def shown(row: dict[str, Any]) -> list[Any]:
    cells = dict(row)
    cells["met"] = {True: "yes", False: "no", None: ""}[row["met"]]
    for side in ("ours", "peer"):
        if died := row.get(f"{side}_died"):
            cells[f"{side}_seconds"] = died
    return [cells.get(key) for key in COLUMNS]


def about(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    differs = [f"{name} ({c.differs})" for name, c in COMPARISONS.items() if c.differs]
    wrong = [f"{row['objective']} at B = {row['B']}" for row in rows if row.get("same_value") is False]
    values = f"NOT THE SAME VALUE: {', '.join(wrong)}." if wrong else "Where both are quick their values agree to 1e-4"
    return (
        f"benchmarks/objectives.py: forward + backward, float32, d = {arguments.dim}, {arguments.threads} threads; "
        f"unit rows, {CLASSES} classes where there are labels. Seconds: median of {arguments.rounds} rounds in turns "
        f"where both take less than {QUICK:g} s, otherwise one call. MiB: peak resident memory above the process with "
        f"its inputs, each side in a fresh process, peers at most {arguments.gib:g} GiB (InfoNCE: unlimited). Batches "
        "double until the peer cannot. Time ratio: ours / peer; memory ratio: peer / ours. "
        + (values if wrong else f"{values}, but for {'; '.join(differs)}.")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = "these objectives; the rest stays as an earlier run found it"
    parser.add_argument("--only", nargs="*", choices=COMPARISONS, default=[], help=words)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gib", type=float, default=8.0, help="memory that a peer may take")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that a peer may take")
    parser.add_argument("--small", action="store_true", help="batches of 64: does it run?")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/objectives.json"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case = json.loads(arguments.case)
        torch.set_num_threads(case["threads"])
        answer(lambda: child(case))
        return
    settings = {key: value for key, value in vars(arguments).items() if key not in ("out", "case", "only")}
    measured_with = versions("torch", "pytorch-metric-learning")
    found = {name: rows_of(name, arguments) for name in arguments.only or COMPARISONS}
    if arguments.only and arguments.out.exists():  # of the others, what an earlier run with the same settings found
        earlier = json.loads(arguments.out.read_text())
        same = all(earlier["settings"][key] == value for key, value in settings.items())
        if same and earlier["versions"] == measured_with:
            for row in earlier["rows"]:
                if row["objective"] not in arguments.only:
                    found.setdefault(row["objective"], []).append(row)
    rows = [row for name in COMPARISONS for row in found.get(name, [])]
    result = {
        "title": "Objectives: time and memory beside their peers",
        "about": about(rows, arguments),
        "settings": settings,
        "versions": measured_with,
        "tables": [table("", list(COLUMNS.values()), map(shown, rows))],
        "rows": rows,
    }
    write(arguments.out, result)


if __name__ == "__main__":
    main()
