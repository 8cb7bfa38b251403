"""What a long job shows: a bar on a terminal, plain lines elsewhere, nothing unless asked. All on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Progress:
    """``with Progress(total, "infonce") as bar: bar.update(step, "loss 1.2")``; on stderr, nothing if not ``shown``.

    On a terminal a rich bar with the time left; elsewhere one line at about each tenth of the way.
    """

    def __init__(self, total: int, title: str, *, shown: bool = True, start: int = 0):
        self.total, self.title, self.shown = total, title, shown
        self._said = 10 * start // max(1, total)
        self._start = start
        self._bar: Any = None  # rich is imported only where there is a terminal

    def __enter__(self) -> Self:
        if self.shown and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            columns = (
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[note]}"),
            )
            self._bar = progress.Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self._start, note="")
        return self

    def update(self, step: int, note: str) -> None:
        """``step`` of ``total`` are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif self.shown and (10 * step // max(1, self.total) > self._said):
            self._said = 10 * step // max(1, self.total)
            self.say(f"step {step}/{self.total}  {note}")

    def say(self, text: str) -> None:
        """One line that stays."""
        if self._bar is not None:
            self._bar.console.print(f"{self.title}: {text}", highlight=False, markup=False)
        elif self.shown:
            print(f"{self.title}: {text}", file=sys.stderr, flush=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()


def tracked(items: Iterable[T], total: int, words: str, *, shown: bool) -> Iterator[T]:
    """``items`` unchanged; after each one the bar on stderr moves on (nothing is seen unless ``shown``)."""
    with Progress(total, words, shown=shown) as bar:
        for done, item in enumerate(items, 1):
            yield item
            bar.update(done, "")
