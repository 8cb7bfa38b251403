"""The arithmetic of the one clock: which frame a slot shows, and at which sample a sound frame begins. Pure, no files.

t = 0 is the first video frame. Slot i of a picture grid stands at ``start + i / rate`` and shows the latest frame
whose timestamp is not later. Containers round timestamps to ticks (1 ms in mkv and webm, up to a whole frame in avi),
so "not later" is meant within a tolerance of one tick, and never more than one millisecond.
"""

from __future__ import annotations

import math
from fractions import Fraction

# Slots and samples that end within this share of a step are the same: 3.0000000001 s at 25 a second are 75 steps, not
# 76.
EPSILON = 1e-6
MAX_TOLERANCE = 1e-3


def tolerance(tick: float) -> float:
    """Seconds by which a timestamp may be later than a slot and still be shown in it: one tick, at most 1 ms."""
    return min(abs(tick), MAX_TOLERANCE)


def slots_before(time: float, *, start: float, rate: float, slack: float = 0.0) -> int:
    """How many of the slots ``start + i / rate`` (i = 0, 1, ...) stand before ``time - slack``. Never negative."""
    return max(0, math.ceil((time - slack - start) * rate - EPSILON))


def sample_at(time: float, rate: float) -> int:
    """The number of the sample nearest to ``time`` on a clock that counts ``rate`` samples a second."""
    return math.floor(time * rate + 0.5)


def snap(raw: int, anchor: int, step: int, slack: int) -> int:
    """``raw``, or the point ``anchor + k * step`` (k >= 0) next to it where that is no farther than ``slack`` samples.

    Sound in frames of ``step`` samples stands on such points; a coarse tick hides that. Snapping makes a read after a
    seek agree with a read of the whole file to the sample.
    """
    if step <= 0:
        return raw
    point = anchor + max(0, round((raw - anchor) / step)) * step
    return point if abs(point - raw) <= slack else raw


def placement(position: int, stamped: int, length: int, slack: int) -> tuple[int, int]:
    """(missing, surplus) samples for a frame stamped ``stamped`` when ``position`` samples are there already.

    Within ``slack`` samples the frame simply follows on (timestamps are rounded, samples are not): (0, 0). A later
    stamp leaves a gap of ``missing`` samples before the frame; an earlier one repeats ``surplus`` of its samples,
    which are cut.
    """
    difference = stamped - position
    if abs(difference) <= slack:
        return 0, 0
    return (difference, 0) if difference > 0 else (0, min(length, -difference))


def rational_rate(rate: float) -> Fraction:
    """A rate as a fraction with a denominator of at most 1001 (29.97 is 30000/1001)."""
    return Fraction(rate).limit_denominator(1001)


def native_window(first: int, stop: int, *, up: int, down: int, margin: int) -> tuple[int, int, int]:
    """Input samples needed for the outputs ``first..stop`` of a resampler by up/down, and how many outputs to drop in
    front.

    Returns (low, high, drop): the input window begins on a multiple of ``down``, so that its outputs fall on the same
    points as those of the whole stream, and it holds ``margin`` more samples on each side than the outputs span, the
    reach of the filter.
    """
    low = (first * down // up - margin) // down * down
    high = -(-stop * down // up) + margin
    return low, high, first - low // down * up
