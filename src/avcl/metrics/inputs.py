"""What every metric asks of its arrays: float64, finite, of the shape it names; tensors and lists are welcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avcl.errors import ConfigError, ExtraError, FeatureError, did_you_mean

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
# Slack of a comparison with a grid of decimal fractions: 3 * 0.05 is above 0.15 in floating point.
GRID_SLACK = 1e-12
# Up to here the sixth power (the kernel distance takes it) stays in the range of float64.
LARGEST = 1e50


def floats(values: Any, what: str, *, ndim: int | tuple[int, ...] = 1, empty: bool = False) -> Floats:
    """``values`` as float64 of ``ndim`` dimensions (any of several); FeatureError if not finite, not real, or empty."""
    array = _array(values)
    wanted = (ndim,) if isinstance(ndim, int) else ndim
    if array.ndim not in wanted or array.dtype.kind not in "fiub" or (array.size == 0 and not empty):
        dims = " or ".join(map(str, wanted))
        raise FeatureError(
            f"{what} must be real numbers in {dims} dimensions and not empty, not {list(array.shape)} {array.dtype}."
        )
    array = array.astype(np.float64)
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise FeatureError(f"{what} has {bad} values that are not finite.")
    if array.size and max(array.max(), -array.min()) > LARGEST:
        raise FeatureError(f"{what} has values beyond {LARGEST:g}.", hint="Scale them.")
    return array


def integers(values: Any, what: str, *, ndim: int | tuple[int, ...] = 1, empty: bool = False) -> Ints:
    """``values`` as int64 (labels, counts, item numbers); FeatureError for other kinds of numbers."""
    array = _array(values)
    wanted = (ndim,) if isinstance(ndim, int) else ndim
    right = array.dtype.kind in "iu" or (array.size == 0 and empty)
    if array.ndim not in wanted or not right or (array.size == 0 and not empty):
        dims = " or ".join(map(str, wanted))
        raise FeatureError(
            f"{what} must be integers in {dims} dimensions and not empty, not {list(array.shape)} {array.dtype}."
        )
    return array.astype(np.int64)


def truths(values: Any, what: str, *, ndim: int | tuple[int, ...] = 1) -> Bools:
    """``values`` as booleans, given as booleans or as 0 and 1; FeatureError for anything else."""
    array = _array(values)
    wanted = (ndim,) if isinstance(ndim, int) else ndim
    if array.ndim not in wanted or array.size == 0 or not np.isin(array, (0, 1)).all():
        dims = " or ".join(map(str, wanted))
        raise FeatureError(
            f"{what} must hold only 0 and 1 in {dims} dimensions, not {list(array.shape)} {array.dtype}."
        )
    return array.astype(bool)


def same_shape(a: NDArray[Any], b: NDArray[Any], what: str) -> None:
    """FeatureError for two arrays that do not belong together."""
    if a.shape != b.shape:
        raise FeatureError(f"{what} do not fit together: {list(a.shape)} and {list(b.shape)}.")


def known(word: str, words: Sequence[str], what: str) -> None:
    """ConfigError for a word that is none of ``words``."""
    if word not in words:
        raise ConfigError(f'"{word}" is not a known {what}.', hint=did_you_mean(str(word), list(words)))


def inside(value: float, low: float, high: float, what: str) -> None:
    """ConfigError for a number that is not in [low, high]."""
    if not low <= value <= high:
        raise ConfigError(f"{what} = {value} must lie in [{low:g}, {high:g}].")


def missing(package: str, extra: str, what: str) -> ExtraError:
    """The error that says which extra holds the ``package`` that ``what`` needs."""
    return ExtraError(f"{what} needs {package}.", hint=f'Run: pip install "avcl[{extra}]"')


def _array(values: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):  # a tensor: on any device, with gradient, in a type that NumPy does not know
        values = values.detach().cpu()
        values = values.double().numpy() if values.is_floating_point() else values.numpy()
    try:
        return np.asarray(values)
    except ValueError as error:  # rows of unequal length
        raise FeatureError("the rows of an array have different lengths.") from error
