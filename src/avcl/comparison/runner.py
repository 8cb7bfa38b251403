"""Every job in a process of its own, a few at a time: one that dies, hangs or needs too much memory is one result less.

Processes are started afresh (nothing is forked), in a session of their own, with one thread; they end when this one
does.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avcl.comparison.plan import Plan
from avcl.comparison.runs import Run, read_run
from avcl.errors import StoreError, WorkerError

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
PAUSE = 0.05  # seconds between two looks at the processes
PATIENCE = 20  # a process that waits for something, by the clock, gets so many times the processor time it may use
KILLED = {9: "was killed (out of memory?).", 24: "used up the processor time that a job may have and was ended."}


@dataclass
class _Job:
    system: str
    seed: int
    process: subprocess.Popen[bytes]
    log: Path
    started: float


def run_jobs(
    jobs: Iterable[tuple[str, int]],
    plan: Plan,
    folder: Path,
    *,
    workers: int,
    memory: float,
    done: Callable[[Run], None],
) -> None:
    """Run (system, seed) after (system, seed), ``workers`` at a time; each leaves ``runs/<system>-<seed>.json``, and
    ``done`` is told. ``memory``: GiB of one process, 0 for no limit. What is "n/a" under one seed is so under all.
    """
    waiting, active = list(jobs), list[_Job]()
    unfit: dict[str, Run] = {}
    (folder / "logs").mkdir(parents=True, exist_ok=True)

    def finish(run: Run, *, write: bool) -> None:
        if write:
            run.write(folder)
        if run.state == "n/a":
            unfit.setdefault(run.system, run)
        done(run)

    try:
        while waiting or active:
            while waiting and len(active) < workers:
                system, seed = waiting.pop(0)
                if system in unfit:
                    finish(Run(system, seed, "n/a", unfit[system].error), write=True)
                else:
                    active.append(_start(system, seed, plan, folder, memory))
            for job in list(active):
                running = job.process.poll() is None
                late = running and 0 < plan.deadline * PATIENCE < time.monotonic() - job.started
                if running and not late:
                    continue
                active.remove(job)
                _end(job)
                run = _result(job, folder, late)
                finish(run, write=run.state == "failed")
            time.sleep(PAUSE if active else 0)
    finally:
        for job in active:
            _end(job)


def _start(system: str, seed: int, plan: Plan, folder: Path, memory: float) -> _Job:
    log = folder / "logs" / f"{system}-{seed}.txt"
    paths = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)  # it finds the modules that we find
    with open(log, "wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "avcl.comparison.worker"],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            env=os.environ | ONE_THREAD | {"PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C is ours to hear
        )
    limits = {"memory": memory, "seconds": plan.deadline}
    request: dict[str, Any] = {"system": system, "seed": seed, "plan": plan.as_json(), **limits}
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it is dead already, which is seen when it is looked at
        process.stdin.write(json.dumps(request | {"folder": str(folder.resolve())}).encode() + b"\n")
        process.stdin.flush()
    return _Job(system, seed, process, log, time.monotonic())


def _end(job: _Job) -> None:
    if job.process.poll() is None:
        job.process.kill()
    if job.process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            job.process.stdin.close()
    job.process.wait()


def _result(job: _Job, folder: Path, late: bool) -> Run:
    """What the process wrote, or what became of it."""
    try:
        found = None if late else read_run(folder, job.system, job.seed)
    except StoreError:
        found = None
    if found is not None and (job.process.returncode == 0):
        if found.state != "failed":
            _drop_if_empty(job.log)
        return found
    status = job.process.returncode
    if late:
        what = f"took longer than {time.monotonic() - job.started:.0f} s and was ended."
    elif status < 0:
        what = f"the process {KILLED.get(-status, f'was ended by signal {-status}.')}"
    else:
        what = f"the process ended with status {status}."
    error = WorkerError(what, hint=f"See {job.log.relative_to(folder)}.")
    return Run.without_result(job.system, job.seed, "failed", error)


def _drop_if_empty(log: Path) -> None:
    if log.exists() and log.stat().st_size == 0:
        log.unlink()
