"""The logarithmic frequency axis of mix-and-separate: few bands, fine at the bottom and coarse at the top."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from avcl.errors import ConfigError


class Warp(NamedTuple):
    """``down`` [F, rows]: bins to rows, ``rows = bins @ down`` · ``up`` [rows, F]: back, ``bins = rows @ up``.

    The columns of both sum to 1, so a constant stays what it is and a mask stays in [0, 1].
    """

    down: Tensor
    up: Tensor


def row_positions(bins: int, rows: int) -> np.ndarray:
    """float64 [rows]: where in 0 .. bins - 1 each row stands (Zhao et al. 2018, on a grid that has both ends):

    ``x(y) = (21^((y + 1) / 2) - 11) / 10`` for y in [-1, 1], both axes scaled to [-1, 1]
    """
    y = np.linspace(-1.0, 1.0, rows)
    return ((21.0 ** ((y + 1) / 2) - 11) / 10 + 1) / 2 * (bins - 1)


@lru_cache(maxsize=16)
def log_frequency(bins: int, rows: int) -> Warp:
    """The matrices between ``bins`` linear frequencies and ``rows`` logarithmic ones, float32.

    A row is the triangle-weighted mean of the bins around its place, as wide as the gap to its neighbors but at least
    one bin: where rows are closer than bins that is linear interpolation, and where they are further apart no bin is
    left out. ConfigError for fewer than two of either.
    """
    if min(bins, rows) < 2:
        raise ConfigError(f"a frequency axis needs two bins and two rows or more, not {bins} and {rows}.")
    place = row_positions(bins, rows)
    reach = np.maximum(np.gradient(place), 1.0)
    down = np.clip(1 - np.abs(np.arange(bins)[:, None] - place) / reach, 0, None)
    between = np.interp(np.arange(bins), place, np.arange(rows))
    up = np.clip(1 - np.abs(np.arange(rows)[:, None] - between), 0, None)
    return Warp(*(torch.from_numpy((m / m.sum(0)).astype(np.float32)) for m in (down, up)))
