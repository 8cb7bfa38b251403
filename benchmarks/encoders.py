"""Attention beside its formula and torch's own modules; memory attention from ten seconds to an hour beside full one.

    python benchmarks/encoders.py [--only self-attention ...] [--threads 1] [--rounds 15] [--small] [--out FILE]

Parts: one process for each part, size and pass, in which ours, torch's module (with our weights) and the formula
written out (clip by clip, head by head, padding cut off) are called in turns; all outputs are compared first. Length:
memory attention at all lengths in turns, in one process; peak memory, and full attention, in a process for each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lengths import (
    DIM,
    HEADS,
    LINEAR,
    RATE,
    SPREAD,
    WAYS,
    in_turns,
    length_child,
    length_row,
    repeated,
    spread,
)
from measure import answer, in_child, table, versions, write
from torch import Tensor, nn

from avcl.nn.aggregation import AttentionPool
from avcl.nn.attention import MultiHeadAttention
from avcl.nn.transformer import TransformerLayer

SIZES = ((8, 32, 64, 4), (8, 128, 128, 4), (8, 512, 256, 8), (2, 2048, 256, 8))  # B, T, d, heads
SLOWEST, NEAR = 1.1, 1e-5  # of torch's time; largest difference of an output
Forward = Callable[[], Tensor]


@dataclass(frozen=True)
class Part:
    """``ours``, ``peer`` (None: torch has no such module) and the formula, of the same weights and inputs; ``keep``
    marks the outputs that count, [B, T] or [B]."""

    ours: Forward
    peer: Forward | None
    formula: Forward
    keep: Tensor
    modules: tuple[nn.Module, ...]
    inputs: tuple[Tensor, ...]


def inputs_of(batch: int, steps: int, dim: int, *, masked: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random features; with ``masked`` the clips end between half and the whole of the length."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(batch, steps, dim, generator=generator)
    ends = torch.linspace(0.5, 1.0, batch) * steps if masked else torch.full((batch,), float(steps))
    return data.requires_grad_(), torch.arange(steps)[None] < ends.ceil()[:, None]


def torch_attention(ours: MultiHeadAttention) -> nn.MultiheadAttention:
    """torch's module with the weights of ours, which has no bias in its last map."""
    peer = nn.MultiheadAttention(ours.dim, ours.heads, batch_first=True)
    with torch.no_grad():
        peer.in_proj_weight.copy_(ours.inputs.weight)
        peer.in_proj_bias.copy_(ours.inputs.bias)
        peer.out_proj.weight.copy_(ours.output.weight)
        peer.out_proj.bias.zero_()
    return peer


def written_out(part: MultiHeadAttention, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q Kᵀ / √d) V for each clip and head by itself, over its recorded keys."""
    width, rows = part.dim // part.heads, []
    for b in range(len(x)):
        keys = context[b] if mask is None else context[b, mask[b]]
        q, k, v = (
            rows_ @ w.T + bias
            for rows_, w, bias in zip(
                (x[b], keys, keys), part.inputs.weight.chunk(3), part.inputs.bias.chunk(3), strict=True
            )
        )
        heads = []
        for h in range(part.heads):
            cut = slice(h * width, (h + 1) * width)
            scores = (q[:, cut] @ k[:, cut].T) / width**0.5
            weights = (scores - scores.amax(1, keepdim=True)).exp()
            heads.append(weights / weights.sum(1, keepdim=True) @ v[:, cut])
        rows.append(torch.cat(heads, 1) @ part.output.weight.T)
    return torch.stack(rows)


def attention(size: tuple[int, int, int, int], *, cross: bool, masked: bool) -> Part:
    batch, steps, dim, heads = size
    ours = MultiHeadAttention(dim, heads=heads)
    peer = torch_attention(ours)
    x, mask = inputs_of(batch, steps, dim, masked=masked)
    context = inputs_of(batch, steps * 3 // 2, dim, masked=masked, seed=1) if cross else (x, mask)
    known, hidden = (context[1], ~context[1]) if masked else (None, None)
    return Part(
        lambda: ours(x, context[0], mask=known)[0],
        lambda: peer(x, context[0], context[0], key_padding_mask=hidden, need_weights=False)[0],
        lambda: written_out(ours, x, context[0], known),
        mask,
        (ours, peer),
        (x, context[0]),
    )


def layer(size: tuple[int, int, int, int], *, masked: bool) -> Part:
    """The post-norm encoder layer."""
    batch, steps, dim, heads = size
    ours = TransformerLayer(dim, heads=heads, norm="post", activation="relu")
    own, feed, (norm, last) = ours.own, ours.feed, ours.norms
    peer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, batch_first=True)
    assert own is not None
    peer.self_attn = torch_attention(own)
    peer.linear1, peer.linear2, peer.norm1, peer.norm2 = feed.first, feed.second, norm, last
    x, mask = inputs_of(batch, steps, dim, masked=masked)
    known, hidden = (mask, ~mask) if masked else (None, None)

    def formula() -> Tensor:
        y = norm(x + written_out(own, x, x, known))
        return last(y + (y @ feed.first.weight.T + feed.first.bias).relu() @ feed.second.weight.T + feed.second.bias)

    return Part(
        lambda: ours(x, mask=known)[0],
        lambda: peer(x, src_key_padding_mask=hidden),
        formula,
        mask,
        (ours, peer),
        (x,),
    )


def pool(size: tuple[int, int, int, int]) -> Part:
    batch, steps, dim, _ = size
    ours = AttentionPool(dim)
    x, mask = inputs_of(batch, steps, dim, masked=True)

    def formula() -> Tensor:
        rows = []
        for b in range(batch):
            items = x[b, mask[b]]
            scores = torch.tanh(items @ ours.inner.weight.T + ours.inner.bias) @ ours.score.weight[0]
            weights = (scores - scores.max()).exp()
            rows.append(weights / weights.sum() @ items)
        return torch.stack(rows)

    return Part(lambda: ours(x, mask), None, formula, mask.any(1), (ours,), (x,))


PARTS: dict[str, Callable[[tuple[int, int, int, int]], Part]] = {
    "self-attention": lambda size: attention(size, cross=False, masked=False),
    "self-attention, masked": lambda size: attention(size, cross=False, masked=True),
    "cross-attention, masked": lambda size: attention(size, cross=True, masked=True),
    "Transformer layer": lambda size: layer(size, masked=False),
    "Transformer layer, masked": lambda size: layer(size, masked=True),
    "AttentionPool, masked": pool,
}
PASSES = ("forward", "forward + backward")


# ----------------------------------------------------------------------------------------------------------- one child
def part_child(case: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    part = PARTS[case["part"]](tuple(case["size"]))
    training = case["pass"] == "forward + backward"
    for module in part.modules:
        module.train(training)
    sides = {"ours": part.ours, "formula": part.formula} | ({"peer": part.peer} if part.peer else {})
    leaves = [*part.inputs, *(p for module in part.modules for p in module.parameters())]

    def once(side: Forward) -> None:
        if not training:
            with torch.no_grad():
                side()
            return
        for leaf in leaves:
            leaf.grad = None
        side().square().mean().backward()

    with torch.no_grad():
        outputs = {name: side()[part.keep] for name, side in sides.items()}
    difference = max(float((outputs["ours"] - other).abs().max()) for other in outputs.values())
    assert difference <= NEAR, f"{case}: the outputs differ by {difference:.2g}"
    calls = {name: repeated(lambda side=side: once(side)) for name, side in sides.items()}
    return {"difference": difference} | in_turns(calls, case["rounds"])


# -------------------------------------------------------------------------------------------------------------- the run
def parts(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name in arguments.only or PARTS:
        for size in SIZES[: 1 if arguments.small else None]:
            for which in PASSES:
                case = {"part": name, "size": size, "pass": which}
                found = in_child(__file__, case | settings(arguments), timeout=1800)
                row = case | found
                row["met"] = row["ours_over_peer"] <= SLOWEST if "ours_over_peer" in row else None
                print(json.dumps(row), flush=True)
                rows.append(row)
    return rows


def lengths(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows, given = [], settings(arguments)
    times = {way: in_child(__file__, {"way": way} | given, timeout=3600) for way in LINEAR}
    for way in WAYS:
        died = ""
        for seconds in arguments.lengths:
            row: dict[str, Any] = {"way": way, "seconds": seconds, "steps": round(seconds * RATE)}
            # What cannot do a length cannot do the next one.
            found = {"died": died} if died else in_child(__file__, row | given, timeout=arguments.timeout)
            died = found.get("died", "")
            row |= {"took": found.get("seconds"), "mib": found.get("mib"), "died": died}
            if way in times:
                row["took"] = times[way][f"{seconds:g}"]
            if row["took"] is not None:
                row["ms_per_second"] = 1e3 * row["took"] / seconds
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("threads", "rounds", "segment", "slots", "lengths", "gib")
    return {name: getattr(arguments, name) for name in names}


def part_row(row: dict[str, Any]) -> list[Any]:
    batch, steps, dim, heads = row["size"]
    met = {True: "yes", False: "no", None: ""}[row["met"]]
    values = [row["ours_seconds"], row.get("peer_seconds"), row["formula_seconds"]]
    ratios = [row.get("ours_over_peer"), row["ours_over_formula"]]
    shown = [None if v is None else round(1e3 * v, 4) for v in values] + [
        None if r is None else round(r, 3) for r in ratios
    ]
    return [row["part"], row["pass"], batch, steps, dim, heads, *shown, f"{row['difference']:.1e}", met]


def about(part_rows: list[dict[str, Any]], length_rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    compared = [row for row in part_rows if row["met"] is not None]
    slow = sum(not row["met"] for row in compared)
    words = f"benchmarks/encoders.py: float32, CPU, threads: {arguments.threads}. "
    if compared:
        words += (
            f"Parts: outputs of all sides agree to {NEAR:g} at recorded steps; ratios are medians over "
            f"{arguments.rounds} rounds in turns; aim {SLOWEST:g} × of torch: "
            f"{'reached' if not slow else f'missed in {slow}'} of {len(compared)} comparisons. Forward runs in "
            "evaluation without gradients, where torch takes its fused path. "
        )
    words += (
        f"Length: {RATE:g} features a second, d = {DIM}, {HEADS} heads, segments of {arguments.segment} steps "
        f"({arguments.segment / RATE:.3g} s), {arguments.slots} slots, one layer each. MiB: peak above the process "
        "with its inputs. "
    )
    for way in LINEAR:
        found = spread(length_rows, way)
        if found is not None:
            words += (
                f"{way[0].upper()}{way[1:]}: cost of a second of input within {found:.2f} × from a minute on (aim "
                f"{SPREAD:g}: {'reached' if found <= SPREAD else 'missed'}). "
            )
    return words + "Ten seconds end within a segment, which is computed to its end, and have the overhead of one call."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=[], help="these parts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--lengths", type=float, nargs="+", default=[10.0, 60.0, 600.0, 3600.0], help="seconds")
    parser.add_argument("--segment", type=int, default=128)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--gib", type=float, default=8.0, help="memory that a call may take")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that a length may take")
    parser.add_argument("--small", action="store_true", help="the smallest size and two lengths: does it run?")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/encoders.json"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case = json.loads(arguments.case)
        torch.set_num_threads(case["threads"])
        answer(lambda: (part_child if "part" in case else length_child)(case))
        return
    if arguments.small:
        arguments.rounds, arguments.lengths = 1, [2.0, 60.0]
    part_rows, length_rows = parts(arguments), lengths(arguments)
    first = {
        way: next((r["ms_per_second"] for r in length_rows if r["way"] == way and r["seconds"] >= 60), None)
        for way in WAYS
    }
    base = {way: cost for way, cost in first.items() if cost is not None}
    columns = ["part", "pass", "B", "T", "d", "heads", "ours ms", "torch ms", "formula ms", "of torch", "of formula"]
    names = ["", "seconds", "steps", "took s", "ms per second", "of a minute's", "peak MiB"]
    shown = [
        table("Parts", [*columns, "largest difference", "met"], map(part_row, part_rows)),
        table("Length", names, [length_row(row, base) for row in length_rows]),
    ]
    result = {
        "title": "Attention parts beside torch's, and memory attention up to an hour",
        "about": about(part_rows, length_rows, arguments),
        "settings": settings(arguments) | {"rate": RATE, "dim": DIM, "heads": HEADS},
        "versions": versions("torch"),
        "tables": shown,
        "parts": part_rows,
        "lengths": length_rows,
    }
    write(arguments.out, result)


if __name__ == "__main__":
    main()
