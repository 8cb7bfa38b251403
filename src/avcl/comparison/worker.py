"""The process of one job: ``python -m avcl.comparison.worker``, started by ``runner`` and told what to do on stdin.

It limits its own memory before anything large is loaded, writes its result as one file, and ends when whoever started
it ends (its stdin is closed then). It imports nothing heavy before it has done the first and last of these.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avcl.errors import AvclError, WorkerError

GIB = 2**30


def main() -> None:
    request = json.loads(_first_line())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lifted = limit_memory(request["memory"])
    limit_time(request["seconds"])
    try:
        run = _run(request)
    except BaseException as error:  # whatever it is: it is this job's, and goes into the table
        from avcl.comparison.runs import Run

        lifted()
        traceback.print_exc()
        run = Run.without_result(request["system"], request["seed"], "failed", _typed(error, request))
    lifted()
    run.write(Path(request["folder"]))
    # Nothing is left to do, and no thread of a library shall keep the process from ending.
    sys.stderr.flush()
    os._exit(0)


def _run(request: Mapping[str, Any]) -> Any:
    import torch

    from avcl.comparison.job import perform
    from avcl.comparison.plan import Plan

    torch.set_num_threads(1)
    return perform(request["system"], request["seed"], Plan(**request["plan"]))


def limit_memory(gib: float) -> Any:
    """No more private memory than this for the process; returns what lifts the limit again. 0: none.

    The limit is on what the process may write to (``RLIMIT_DATA``): mapped libraries and files do not count. Where the
    system has no such limit, there is none.
    """
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if gib:
            wanted = round(gib * GIB)
            resource.setrlimit(
                resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
            )
    except (ImportError, ValueError, OSError):
        return lambda: None
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def limit_time(seconds: int) -> None:
    """The system kills this process (SIGXCPU) after so much processor time. 0: never."""
    try:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        if seconds and (hard == resource.RLIM_INFINITY or seconds < hard):
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))
    except (ImportError, ValueError, OSError):
        pass


def _typed(error: BaseException, request: Mapping[str, Any]) -> AvclError:
    if isinstance(error, AvclError):
        return error
    words = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "can't allocate memory" in words or "Cannot allocate memory" in words:
        return WorkerError(
            f"needs more memory than its share of {request['memory']:.3g} GiB.",
            hint="Give more --memory, fewer --workers, or a smaller batch_size or micro_batch.",
        )
    log = f"logs/{request['system']}-{request['seed']}.txt"
    return WorkerError(f"{type(error).__name__}: {words[:160]}", hint=f"See {log}.")


def _first_line() -> bytes:
    """Read without buffering: the rest of stdin is never read for its content."""
    line = b""
    while not line.endswith(b"\n"):
        got = os.read(0, 65536)
        if not got:
            raise SystemExit("nothing to do")
        line += got
    return line


def _end_with_parent() -> None:
    while os.read(0, 65536):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
