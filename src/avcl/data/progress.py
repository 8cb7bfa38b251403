"""How far a long job is: a bar on a terminal, a plain line for every tenth otherwise, nothing unless asked. Always on
stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def tracked(items: Iterable[T], total: int, words: str, *, shown: bool) -> Iterator[T]:
    """``items`` unchanged; after each one the bar moves on."""
    if not shown:
        yield from items
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, words, total=total, console=Console(stderr=True), transient=True)
    else:
        said = 0
        for done, item in enumerate(items, 1):
            yield item
            if done * 10 // max(total, 1) > said:
                said = done * 10 // total
                print(f"{words} {done:,} of {total:,}", file=sys.stderr, flush=True)
