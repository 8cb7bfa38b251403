"""What objectives remember between steps: class centers, a row per item, recent rows, a slowly following teacher.

The only state in this folder, kept in buffers (the teacher's in frozen parameters), so that it follows the device, is
saved with the weights and a resumed run goes on exactly. Every ``update`` and ``push`` is one optimizer step's, called
once after it (``System.after_step``) with detached rows of any floating type; under several processes with the
gathered rows, so that all keep the same memory. Sums over rows are taken in float64 and rounded once, so the order of
the rows makes no difference.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.objectives.inputs import labels


class Centers(nn.Module):
    """A running center of each class: ``c_j ← c_j - α Σ_{i: y_i = j} (c_j - x_i) / (1 + n_j)``, n_j rows of class j.

    The term itself is ``objectives.center(x, memory.centers, label)``. Classes that are not in the batch stay; the 1
    in the denominator holds a center back when it has few rows. ``rate`` α in (0, 1]. The centers start at 0, or as
    standard normal rows where a ``generator`` is given. Paper: Wen et al. 2016 (α = 0.5).
    """

    centers: Tensor

    def __init__(self, n_classes: int, dim: int, *, rate: float = 0.5, generator: torch.Generator | None = None):
        super().__init__()
        _sizes(n_classes=n_classes, dim=dim)
        if not 0 < rate <= 1:
            raise ConfigError(f"rate = {rate} must lie in (0, 1].")
        self.rate = rate
        start = torch.zeros(n_classes, dim) if generator is None else _normal(n_classes, dim, generator)
        self.register_buffer("centers", start)

    @torch.no_grad()
    def update(self, x: Tensor, label: Tensor) -> None:
        """One step toward the rows ``x`` [B, D] of the classes ``label`` [B]; BatchError where they do not fit."""
        x = _rows("Centers", x, self.centers)
        index = _indices("Centers", label, len(x), len(self.centers)).to(x.device)
        if len(x) == 0:
            return
        seen, total, count = _sums(index, x)
        old = self.centers[seen].double()
        self.centers[seen] = (old - self.rate * (count * old - total) / (1 + count)).float()


class MemoryBank(nn.Module):
    """One unit row for each item of the training set: ``m_i ← unit(μ m_i + (1 - μ) x_i)``, x_i of unit length.

    ``rows`` [n_items, D] stand in for the embeddings of items that are not in the batch, as positives
    (``bank.rows[index]``) and as noise (``sample``, ``sample_each``). ``momentum`` μ in [0, 1]. The rows start as
    random directions from ``generator``. An item that is twice in a batch counts with the mean of its rows; a row
    without direction (0, or opposite to the stored one at μ = ½) changes nothing. Paper: Wu et al. 2018 (μ = 0.5);
    across modalities Tian et al. 2020, Morgado et al. 2021. Pitfall: a row is as old as the item's last batch; memory
    is 4 · n_items · D bytes for each bank.
    """

    rows: Tensor

    def __init__(self, n_items: int, dim: int, *, momentum: float = 0.5, generator: torch.Generator):
        super().__init__()
        _sizes(n_items=n_items, dim=dim)
        _momentum(momentum)
        self.momentum = momentum
        self.register_buffer("rows", F.normalize(_normal(n_items, dim, generator), dim=1))

    @torch.no_grad()
    def update(self, index: Tensor, x: Tensor) -> None:
        """Move the rows of the items ``index`` [B] toward ``x`` [B, D]; BatchError where they do not fit."""
        x = _rows("MemoryBank", x, self.rows)
        index = _indices("MemoryBank", index, len(x), len(self.rows)).to(x.device)
        if len(x) == 0:
            return
        seen, total, count = _sums(index, F.normalize(x.double(), dim=1))
        old = self.rows[seen].double()
        new = self.momentum * old + (1 - self.momentum) * total / count
        length = torch.linalg.vector_norm(new, dim=1, keepdim=True)
        # Below 1e-6 only rounding is left of the direction.
        self.rows[seen] = torch.where(length > 1e-6, new / length.clamp(min=1e-6), old).float()

    def sample(self, count: int, *, exclude: Tensor | None = None, generator: torch.Generator) -> Tensor:
        """``count`` items drawn uniformly with replacement, none of them in ``exclude``: indices [count].

        One set of noise for the whole batch. BatchError where no other item is left.
        """
        taken = torch.empty(0, dtype=torch.long) if exclude is None else exclude.reshape(-1).cpu()
        taken = _indices("MemoryBank", taken, len(taken), len(self.rows)).unique()
        drawn = self._draw((count,), len(self.rows) - len(taken), generator)
        # The r-th item that is not taken is r + the number of taken items before it.
        before = torch.searchsorted(taken - torch.arange(len(taken)), drawn, right=True)
        return (drawn + before).to(self.rows.device)

    def sample_each(self, index: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
        """For each item of ``index`` [B] ``count`` others, uniformly with replacement: indices [B, count]."""
        own = _indices("MemoryBank", index, len(index), len(self.rows)).cpu()[:, None]
        drawn = self._draw((len(own), count), len(self.rows) - 1, generator)
        return (drawn + (drawn >= own).long()).to(self.rows.device)

    def _draw(self, shape: tuple[int, ...], items: int, generator: torch.Generator) -> Tensor:
        if items < 1 or min(shape) < 0:
            raise BatchError(f"{items} of {len(self.rows)} items are left to draw {shape[-1]} negatives from.")
        return torch.randint(items, shape, generator=generator, device=generator.device).cpu()


class Queue(nn.Module):
    """The last ``size`` rows that were pushed, in a ring: negatives from the batches just gone by.

    ``stored`` [n, D] are the rows present, n ≤ ``size``, in the order of the ring and not of age. Paper: He et al.
    2020 (with the rows of a ``Teacher``), Wang et al. 2020 (without). Pitfall: push after the backward pass; a row
    pushed before it changes what the pass still needs, and becomes the negative of its own anchor.
    """

    rows: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        _sizes(size=size, dim=dim)
        self.register_buffer("rows", torch.zeros(size, dim))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.long))  # rows so far; the next goes to its remainder

    @property
    def stored(self) -> Tensor:
        return self.rows[: min(int(self.pushed), len(self.rows))]

    @torch.no_grad()
    def push(self, x: Tensor) -> None:
        """Add rows ``x`` [B, D], the oldest leave; of more than ``size`` the last remain."""
        x = _rows("Queue", x, self.rows)
        size = len(self.rows)
        skipped = max(0, len(x) - size)
        place = (self.pushed + torch.arange(skipped, len(x), device=x.device)) % size
        self.rows[place] = x[skipped:].float()
        self.pushed += len(x)


class Teacher(nn.Module):
    """A copy of a module that follows it: ``θ' ← m θ' + (1 - m) θ`` for parameters; buffers are copied.

    Nothing is shared with the student, no parameter asks for a gradient, and the forward pass records none. It is in
    training mode when the module around it is, as the key encoder of MoCo (batch statistics, dropout); call ``eval()``
    on it for a deterministic one. ``momentum`` m in [0, 1], or another at each ``update`` where it follows a schedule.
    Paper: Tarvainen and Valpola 2017 (mean teacher), He et al. 2020 (0.999), Grill et al. 2020 (to 1 by a cosine).
    Pitfall: the first updates average the random start in: 0.999 forgets it over thousands of steps.
    """

    def __init__(self, student: nn.Module, *, momentum: float = 0.999):
        super().__init__()
        _momentum(momentum)
        self.momentum = momentum
        small = [n for n, p in student.named_parameters() if p.is_floating_point() and p.element_size() < 4]
        if small:
            raise ConfigError(
                f'a moving average would lose its small steps in half precision ("{small[0]}").',
                hint="Keep the weights in float32 and let autocast lower the computation.",
            )
        self.module = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    @torch.no_grad()
    def update(self, student: nn.Module, *, momentum: float | None = None) -> None:
        """Follow ``student``, a module of the same parameters and buffers (ConfigError otherwise), by one step."""
        share = self.momentum if momentum is None else momentum
        _momentum(share)
        mine, theirs = (dict(chain(m.named_parameters(), m.named_buffers())) for m in (self.module, student))
        if {n: t.shape for n, t in mine.items()} != {n: t.shape for n, t in theirs.items()}:
            raise ConfigError("the teacher copies a module of other parameters than this student.")
        averaged = {name for name, _ in self.module.named_parameters()}
        for name, tensor in mine.items():
            if name in averaged and tensor.is_floating_point():
                tensor.lerp_(theirs[name].to(tensor), 1 - share)
            else:
                tensor.copy_(theirs[name])


def _normal(rows: int, dim: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, dim, generator=generator, device=generator.device)


def _sums(index: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The different indices [U], the float64 sums of their rows [U, D] and their counts [U, 1]."""
    seen, inverse, count = index.unique(return_inverse=True, return_counts=True)
    total = x.new_zeros(len(seen), x.shape[1], dtype=torch.float64)
    return seen, total.index_add_(0, inverse, x.double()), count[:, None].double()


def _rows(name: str, x: Tensor, like: Tensor) -> Tensor:
    if x.ndim != 2 or x.shape[1] != like.shape[1] or not x.is_floating_point():
        raise BatchError(f"{name} needs rows [B, {like.shape[1]}] of floats, not {x.dtype} {tuple(x.shape)}.")
    if not bool(x.isfinite().all()):
        raise BatchError(f"{name} was given rows that are not finite; it would remember them.")
    return x.detach().to(like.device)


def _indices(name: str, index: Tensor, rows: int, items: int) -> Tensor:
    index = labels(name, index, rows).long()
    if not bool(((index >= 0) & (index < items)).all()):
        raise BatchError(f"{name} has indices in {int(index.min())}..{int(index.max())}, not in 0..{items - 1}.")
    return index


def _sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} = {size} must be at least 1.")


def _momentum(momentum: float) -> None:
    if not 0 <= momentum <= 1:
        raise ConfigError(f"momentum = {momentum} must lie in [0, 1].")
