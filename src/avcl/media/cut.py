"""Which seconds of a long recording its windows cover: shared by data sets, the index and queries."""

from __future__ import annotations

import math

from avcl.errors import ConfigError

TAIL = 0.05  # share of a window that may stay uncovered at the end: encoders pad the last packet


def segments(duration: float, window: float, hop: float | None = None, *, first: int = 0) -> list[tuple[float, float]]:
    """[k·hop, k·hop + window] for k = ``first``, … while it fits, and [duration - window, duration] for what is left.

    What is not longer than a window is one segment of its own length. Where the grid leaves more than a twentieth of a
    window uncovered at the end, one more window ends there; so with hop <= window every moment but such a rest is
    covered (with hop > window there are gaps between them). ``hop``: by default the window. Seconds, rounded to
    microseconds. No time at all gives no segment. ConfigError: window or hop is not a positive number.
    """
    hop = window if hop is None else hop
    check(window, hop)
    if duration <= 0:
        return []
    slack = TAIL * window
    if duration <= window + slack:
        return [(0.0, round(min(duration, window), 6))] if first == 0 else []
    count = math.floor((duration - window) / hop + 1e-9) + 1
    parts = [(round(k * hop, 6), round(k * hop + window, 6)) for k in range(first, count)]
    if duration - ((count - 1) * hop + window) > slack and first <= count:
        parts.append((round(duration - window, 6), round(duration, 6)))
    return parts


def check(window: float, hop: float) -> None:
    """ConfigError unless both are finite numbers of seconds above zero."""
    for name, value in (("window", window), ("hop", hop)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be a number of seconds above 0, not {value}.")
