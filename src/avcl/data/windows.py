"""Windows of long files: which seconds they cover, shared by data sets and the index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from avcl.data.manifest import Row
from avcl.errors import ConfigError, MediaError


def segments(duration: float, window: float, hop: float | None = None) -> list[tuple[float, float]]:
    """(start, end) of the windows of ``window`` seconds that start every ``hop`` seconds (default: ``window``).

    What is not longer than a window is one segment of its own length. Where the grid leaves more than a twentieth of a
    window uncovered at the end, one more window ends there; so with hop <= window every moment but such a rest is
    covered. No time at all gives no segment. ConfigError: window or hop is not positive.
    """
    hop = window if hop is None else hop
    if not (window > 0 and hop > 0):
        raise ConfigError(f"window {window:g} s and hop {hop:g} s must be greater than 0.")
    if duration <= 0:
        return []
    rest = window / 20
    if duration <= window + rest:
        return [(0.0, float(duration if duration <= window else window))]
    count = int((duration - window) / hop + 1e-9) + 1
    found = [(k * hop, k * hop + window) for k in range(count)]
    # with hop > window there are gaps by design: what lies before the next start of the grid is one of them
    uncovered = duration - max(found[-1][1], count * hop if hop > window else 0.0)
    if uncovered > rest:
        found.append((duration - window, float(duration)))
    return found


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
