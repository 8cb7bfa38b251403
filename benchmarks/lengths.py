"""One layer over ten seconds to an hour: seconds for a second of input, and peak memory (a part of encoders.py)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import limited, measured, timed
from torch import nn

from avcl.nn.memory_attention import MemoryAttention
from avcl.nn.transformer import TransformerLayer
from avcl.types import Stream

RATE, DIM, HEADS = 25.0, 128, 4
SPREAD = 1.3  # of the cost of a second, from a minute to an hour
ENOUGH = 0.05  # seconds that one measurement takes at least: short calls are repeated


def repeated(call: Callable[[], Any], enough: float = ENOUGH) -> Callable[[], float]:
    """Seconds of one call, measured over as many as take ``enough`` seconds."""
    call()
    count = max(1, round(enough / max(timed(call), 1e-6)))

    def run() -> float:
        begin = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - begin) / count

    return run


def in_turns(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, Any]:
    """Median seconds of each, and the median over rounds of the ratio of ours to each other."""
    seconds = [{name: call() for name, call in calls.items()} for _ in range(rounds)]
    result: dict[str, Any] = {f"{name}_seconds": statistics.median(s[name] for s in seconds) for name in calls}
    first = next(iter(calls))
    for name in list(calls)[1:]:
        result[f"{first}_over_{name}"] = statistics.median(s[first] / s[name] for s in seconds)
    return result


def features(seconds: float) -> Stream:
    steps = round(seconds * RATE)
    data = torch.randn(1, steps, DIM, generator=torch.Generator().manual_seed(0))
    return Stream(data, torch.ones(1, steps, dtype=torch.bool), RATE)


def beginning(piece: Stream, steps: int) -> Stream:
    return piece._replace(data=piece.data[:, :steps], mask=piece.mask[:, :steps])


def forward(model: nn.Module, seconds: float) -> Callable[[], Any]:
    given = features(seconds)

    def run() -> None:
        with torch.no_grad():
            model(given) if isinstance(model, MemoryAttention) else model(given.data, mask=given.mask)

    return run


def by_step(model: MemoryAttention, seconds: float) -> Callable[[], Any]:
    """The stream comes in pieces of eight segments and is let go of, as from a file or a microphone."""
    size, steps = 8 * model.segment, round(seconds * RATE)
    piece = features(size / RATE)

    def run() -> None:
        state = model.start(1)
        with torch.no_grad():
            for at in range(0, steps, size):
                state = model.step(beginning(piece, steps - at), state)[1]

    return run


def training(model: nn.Module, seconds: float) -> Callable[[], Any]:
    given = features(seconds)

    def run() -> None:
        model.zero_grad()
        out = model(given).data if isinstance(model, MemoryAttention) else model(given.data, mask=given.mask)[0]
        out.square().mean().backward()

    return run


def training_by_step(model: MemoryAttention, seconds: float) -> Callable[[], Any]:
    """Truncated backpropagation: a backward pass behind every eight segments, the state carried on."""
    size, steps = 8 * model.segment, round(seconds * RATE)
    piece = features(size / RATE)

    def run() -> None:
        model.zero_grad()
        state = model.start(1)
        for at in range(0, steps, size):
            out, state = model.step(beginning(piece, steps - at), state.detach())
            out.data.square().mean().backward()

    return run


def memory_of(case: dict[str, Any], *, recompute: bool = False) -> MemoryAttention:
    torch.manual_seed(0)
    return MemoryAttention(DIM, heads=HEADS, segment=case["segment"], slots=case["slots"], recompute=recompute)


def full_of(_: dict[str, Any]) -> TransformerLayer:
    torch.manual_seed(0)
    return TransformerLayer(DIM, heads=HEADS)


WAYS: dict[str, Callable[[dict[str, Any], float], Callable[[], Any]]] = {
    "memory attention, whole": lambda case, seconds: forward(memory_of(case), seconds),
    "memory attention, by step": lambda case, seconds: by_step(memory_of(case), seconds),
    "full attention": lambda case, seconds: forward(full_of(case), seconds),
    "memory attention, training": lambda case, seconds: training(memory_of(case), seconds),
    "memory attention, training, recompute": lambda case, s: training(memory_of(case, recompute=True), s),
    "memory attention, training by step": lambda case, seconds: training_by_step(memory_of(case), seconds),
    "full attention, training": lambda case, seconds: training(full_of(case), seconds),
}
LINEAR = ("memory attention, whole", "memory attention, by step")


def length_child(case: dict[str, Any]) -> dict[str, Any]:
    """Time at all lengths in turns, or time and memory at one."""
    if case["way"] in LINEAR and "seconds" not in case:
        calls = {f"{seconds:g}": repeated(WAYS[case["way"]](case, seconds), 0.5) for seconds in case["lengths"]}
        found = in_turns(calls, case["rounds"])
        return {name: found[f"{name}_seconds"] for name in calls}
    WAYS[case["way"]](case, 1.0)()
    call = WAYS[case["way"]](case, case["seconds"])
    limited(case["gib"])
    return measured(call)


def spread(rows: list[dict[str, Any]], way: str) -> float | None:
    """Dearest over cheapest second of input, over the lengths of a minute or more."""
    costs = [row["ms_per_second"] for row in rows if row["way"] == way and row["seconds"] >= 60]
    return max(costs) / min(costs) if costs else None


def length_row(row: dict[str, Any], base: dict[str, float]) -> list[Any]:
    cost = row.get("ms_per_second")
    relative = None if cost is None or row["way"] not in base else round(cost / base[row["way"]], 3)
    took = row["died"] if row["took"] is None else round(row["took"], 5)
    return [
        row["way"],
        row["seconds"],
        row["steps"],
        took,
        None if cost is None else round(cost, 4),
        relative,
        row["mib"],
    ]
