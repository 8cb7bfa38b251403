"""One measurement in a fresh process: seconds, and peak resident memory above what was there before the call.

A script that measures hands a case (a JSON object) to ``in_child``, which starts the script again with ``--case``; the
child imports and allocates what it needs, calls the function once on something small, and only then ``measured``. A
child that runs out of its memory or its time is a result too: {"died": why}.
"""

from __future__ import annotations

import gc
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
WORDS = ("can't allocate", "Cannot allocate", "out of memory", "bad_alloc")


def kib(field: str) -> int:
    """A field of the process status: VmRSS (resident now), VmHWM (its peak), VmSize (address space)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1])


def limited(gib: float) -> None:
    """From here on this process gets no more than ``gib`` of further address space."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, ((kib("VmSize") << 10) + int(gib * 2**30), hard))


def timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measured(call: Callable[[], Any], *, rounds: int = 1) -> dict[str, Any]:
    """Median seconds of ``rounds`` calls, and how far the peak of resident memory rose above the memory before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = kib("VmHWM")
    seconds = [timed(call) for _ in range(rounds)]
    return {"seconds": statistics.median(seconds), "mib": (kib("VmHWM") - before) / 1024}


def side_by_side(calls: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, Any]:
    """Median seconds of each, all called in every round: the machine is the same for both."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(timed(call))
    return {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}


def answer(work: Callable[[], dict[str, Any]]) -> None:
    """The end of a child: one line of JSON on standard output."""
    try:
        result = work()
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(word in str(error) for word in WORDS):
            raise
        result = {"died": "out of memory"}
    print(json.dumps(result))


def in_child(script: str, case: dict[str, Any], *, timeout: float) -> dict[str, Any]:
    command = [sys.executable, script, "--case", json.dumps(case)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"died": f"more than {timeout:g} s"}
    if done.returncode < 0:  # killed from outside, as the kernel does when memory is gone
        return {"died": f"killed by signal {-done.returncode}"}
    if done.returncode:
        raise RuntimeError(f"{case} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def versions(*packages: str) -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def write(out: Path, result: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {out}")


def table(title: str, columns: list[str], rows: Iterable[list[Any]]) -> dict[str, Any]:
    """A table of a result file, printed too."""
    shown = list(rows)
    print(f"\n{title}\n{' | '.join(columns)}")
    for row in shown:
        print(" | ".join(f"{x:.4g}" if isinstance(x, float) else "" if x is None else str(x) for x in row))
    return {"title": title, "columns": columns, "rows": shown}
