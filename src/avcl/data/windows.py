"""Windows of long files as rows of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from avcl.data.manifest import Row
from avcl.errors import MediaError
from avcl.media import segments


def expand_row(row: Row, window: float, hop: float | None, duration: Callable[[Row], float]) -> list[Row]:
    """One row per window of ``row``, all in its group; a file whose ``duration`` cannot be told stays one row.

    A window of a row that starts at 12.5 s has the id ``<id>@12.500``; its label and text are those of the row.
    """
    if row.image is not None and row.video is None and row.audio is None:
        return [row]
    start = row.start or 0.0
    if row.end is None:
        try:
            end = duration(row)
        except MediaError:
            return [row]  # decoding it will name the cause, and count it
    else:
        end = row.end
    return [
        replace(row, id=f"{row.id}@{start + a:.3f}", start=start + a, end=start + b, info={**row.info, "row": row.id})
        for a, b in segments(end - start, window, hop)
    ] or [row]
