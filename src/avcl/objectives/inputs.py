"""What every objective asks of its tensors: shapes, ranges, and float32 at least even under autocast."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from avcl.errors import BatchError, ConfigError


def raised(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in one floating type: their common one, float32 at least (half precision is raised to it)."""
    kind = torch.float32
    for x in tensors:
        kind = torch.promote_types(kind, x.dtype)
    return tuple(x.to(kind) for x in tensors)


def pairs(name: str, a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``a``, ``v`` [B, D] of one shape with B > 0, raised; BatchError otherwise."""
    if a.ndim != 2 or a.shape != v.shape or len(a) == 0:
        raise BatchError(f"{name} needs two [B, D] of one shape with B > 0, not {tuple(a.shape)} and {tuple(v.shape)}.")
    a, v = raised(a, v)
    return a, v


def labels(name: str, label: Tensor, rows: int) -> Tensor:
    """``label`` [rows] of an integer type; BatchError otherwise."""
    if label.shape != (rows,) or label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise BatchError(f"{name} needs {rows} integer labels, not {label.dtype} {tuple(label.shape)}.")
    return label


def classes(name: str, label: Tensor, rows: int, count: int) -> Tensor:
    """Labels as int64, each one of 0..count-1; on an accelerator a wrong index would end the process unnamed."""
    label = labels(name, label, rows).long()
    if not bool(((label >= 0) & (label < count)).all()):
        raise BatchError(f"{name} has labels in {int(label.min())}..{int(label.max())}, not in 0..{count - 1}.")
    return label


def class_logits(name: str, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """``logits`` [N, M] with M > 1, raised, and their ``label`` [N] in 0..M-1 as int64; BatchError otherwise."""
    if logits.ndim != 2 or len(logits) == 0 or logits.shape[1] < 2:
        raise BatchError(f"{name} needs logits [N, M] with N > 0 and M > 1, not {tuple(logits.shape)}.")
    return raised(logits)[0], classes(name, label, *logits.shape)


def some_logits(name: str, *values: Tensor) -> tuple[Tensor, ...]:
    """The tensors raised to one floating type; BatchError where one has no value."""
    if any(x.numel() == 0 for x in values):
        raise BatchError(f"{name} needs at least one value of each side, not {[tuple(x.shape) for x in values]}.")
    return raised(*values)


def above(name: str, value: float | Tensor, floor: float = 0.0) -> None:
    """ConfigError for a number that is not above ``floor``; a learnable tensor is its owner's to bound."""
    if not isinstance(value, Tensor) and not value > floor:
        raise ConfigError(f"{name} = {value} must be above {floor:g}.")


def finite(name: str, value: float) -> None:
    """ConfigError for a number that is infinite or NaN."""
    if not math.isfinite(value):
        raise ConfigError(f"{name} = {value} must be a finite number.")


def at_least(name: str, value: float, floor: float = 0.0) -> None:
    """ConfigError for a number below ``floor`` (or NaN)."""
    if not value >= floor:
        raise ConfigError(f"{name} = {value} must be at least {floor:g}.")


def full_precision(x: Tensor) -> Any:
    """A context in which an outer autocast does not round products to half precision again."""
    return torch.autocast(x.device.type, enabled=False)
