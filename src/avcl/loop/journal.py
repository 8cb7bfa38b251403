"""What a training writes down for machines (``metrics.jsonl``), and what it hears while it runs (Ctrl-C)."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avcl.files import fsync


class MetricsFile:
    """Append-only JSON lines. ``keep`` bytes of an older file stay: a resumed run writes no line twice."""

    def __init__(self, path: Path | None, *, keep: int = 0):
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab")  # noqa: SIM115 (closed by close)
            self._file.truncate(min(keep, self._file.seek(0, os.SEEK_END)))
            fsync(path.parent)

    def write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()

    def settle(self) -> int:
        """Everything written is on the disk; the length of the file in bytes."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Interrupt:
    """``asked``: Ctrl-C was pressed and is to be obeyed at the next whole step."""

    asked = False


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """The first Ctrl-C only asks, so that no step is left half done; a second one interrupts at once.

    Outside the main thread, or where Ctrl-C is ignored or handled outside Python, it changes nothing.
    """
    interrupt = Interrupt()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield interrupt
        return

    def ask(number: int, frame: Any) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True

    signal.signal(signal.SIGINT, ask)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
