"""Which parts of a file get a vector of their own."""

from __future__ import annotations

import math

from avcl.errors import ConfigError

TAIL = 0.05  # share of a segment that may stay uncovered at the end: encoders pad the last packet


def segments(duration: float, window: float, hop: float, *, first: int = 0) -> list[tuple[float, float]]:
    """[k·hop, k·hop + window] for k = ``first``, … while it fits, and [duration - window, duration] for what is left
    over.

    A file shorter than the window is one segment [0, duration]. What is left over at the end gets the last segment,
    aligned to the end, if it is longer than a twentieth of the window. Seconds, rounded to microseconds.
    """
    check(window, hop)
    slack = TAIL * window
    if duration <= window + slack:
        return [(0.0, round(min(duration, window), 6))] if first == 0 else []
    count = math.floor((duration - window) / hop + 1e-9) + 1
    parts = [(round(k * hop, 6), round(k * hop + window, 6)) for k in range(first, count)]
    covered = (count - 1) * hop + window
    if duration - covered > slack and first <= count:
        parts.append((round(duration - window, 6), round(duration, 6)))
    return parts


def check(window: float, hop: float) -> None:
    """ConfigError unless both are finite numbers of seconds above zero."""
    for name, value in (("segment", window), ("hop", hop)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be a number of seconds above 0, not {value}.")
