"""An iterable with a progress bar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from avcl.progress import Progress

T = TypeVar("T")


def tracked(items: Iterable[T], total: int, words: str, *, shown: bool) -> Iterator[T]:
    """``items`` unchanged; after each one the bar on stderr moves on (nothing is seen unless ``shown``)."""
    with Progress(total, words, shown=shown) as bar:
        for done, item in enumerate(items, 1):
            yield item
            bar.update(done, "")
