"""Index and search: vectors searched with FAISS, rows in SQLite, one folder, one fingerprint.

``build`` and ``update`` make an index of a media folder, ``Index.open(folder).search(vector, "audio")`` finds the
nearest segments, ``remove`` and ``info`` do what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avcl.index.crawl import build, update
from avcl.index.folder import Index
from avcl.index.job import Progress
from avcl.index.meta import Embedder, Meta

__all__ = ["Embedder", "Index", "Meta", "Progress", "build", "info", "remove", "update"]


def remove(folder: str | Path, paths: Sequence[str | Path] = (), *, where: str | None = None) -> dict[str, int]:
    """Remove files, or segments for which ``where`` holds; see ``Index.remove``."""
    with Index.open(folder) as index:
        return index.remove(paths, where=where)


def info(folder: str | Path) -> dict[str, Any]:
    """What an index holds; see ``Index.info``."""
    with Index.open(folder) as index:
        return index.info()
