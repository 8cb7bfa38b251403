"""The processes that train one system together: who this one is, and what they tell each other.

They are what a launcher started (``torchrun``, ``accelerate launch``: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT). Each
decodes and encodes its own rows of every batch; embeddings are gathered, every process takes the loss over all rows,
and the gradients of the rows are added up. Process 0 alone holds the lock and writes. Alone, every call is free.

An error that one of them meets while it makes its rows, or that process 0 meets while it writes or scores, is raised
in all. If one is killed the others end with WorkerError: at once where its connections close, else after ``PATIENCE``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor
from torch import distributed as dist

from avcl.errors import AvclError, ConfigError, WorkerError

T = TypeVar("T")
PATIENCE = timedelta(hours=1)  # the longest that the others wait while one decodes, or process 0 validates


class Form(NamedTuple):
    """What a row of bytes holds."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class Processes:
    """``rank`` (from 0) of ``count``. ``accelerator``: that of this process; None: alone, whatever was launched."""

    def __init__(self, accelerator: Accelerator | None = None):
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.count = 1 if accelerator is None else accelerator.num_processes
        self.device = torch.device("cpu") if accelerator is None else accelerator.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    # ---------------------------------------------------------------------------------------------------- plain values
    def shared(self, call: Callable[[], T]) -> list[T]:
        """What ``call()`` gives in each process, in their order; an error of one of them is raised in all."""
        if self.count == 1:
            return [call()]
        error, value = _tried(call)
        found: list[Any] = [None] * self.count
        with _talking():
            dist.all_gather_object(found, (_told(error), value))
        if error is not None:
            raise error
        _raise_told(told for told, _ in found)
        return [value for _, value in found]

    def from_first(self, call: Callable[[], T]) -> T:
        """What ``call()`` gives in process 0, which alone calls it; its error is raised in all."""
        if self.count == 1:
            return call()
        error, value = _tried(call) if self.first else (None, None)
        found: list[Any] = [(_told(error), value)]
        with _talking():
            dist.broadcast_object_list(found, src=0)
        if error is not None:
            raise error
        _raise_told(told for told, _ in found)
        return found[0][1]

    def after_first(self, call: Callable[[], T]) -> T:
        """What ``call()`` gives here; the others call it after process 0, and find what it has put into a cache."""
        if self.count == 1:
            return call()
        found: list[T] = []
        self.from_first(lambda: found.append(call()))
        return found[0] if self.first else call()

    @contextmanager
    def first_inside(self, context: AbstractContextManager[Any]) -> Iterator[None]:
        """Process 0 is inside ``context`` meanwhile; where it may not enter, none goes on."""
        with ExitStack() as held:

            def enter() -> None:
                held.enter_context(context)

            self.from_first(enter)
            yield

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of them."""
        return any(self.shared(lambda: flag))

    # --------------------------------------------------------------------------------------------------------- tensors
    def gathered(self, tensors: Sequence[Tensor], forms: Sequence[Sequence[Form]]) -> list[list[Tensor]]:
        """The ``tensors`` of each process, in their order; ``forms``: those of each process. No gradient flows."""
        if self.count == 1:
            return [list(tensors)]
        sizes = [sum(size_of(form) for form in some) for some in forms]
        own = torch.zeros(max(sizes), dtype=torch.uint8, device=self.device)
        own[: sizes[self.rank]] = packed(tensors)
        found = [torch.empty_like(own) for _ in range(self.count)]
        with _talking():
            dist.all_gather(found, own)
        return [unpacked(one, some) for one, some in zip(found, forms, strict=True)]

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Each parameter's gradient is the sum over the processes afterwards; None where none of them has one."""
        if self.count == 1:
            return
        marks = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        self._add([marks])
        having = [p for p, mark in zip(parameters, marks.tolist(), strict=True) if mark]
        for p in having:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        self._add([p.grad for p in having if p.grad is not None])

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Every floating tensor is the mean over the processes afterwards, any other that of process 0."""
        if self.count > 1:
            floating = [t for t in tensors if t.is_floating_point()]
            self._add(floating)
            for tensor in floating:
                tensor /= self.count
            self.copy_first([t for t in tensors if not t.is_floating_point()])

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Every tensor is that of process 0 afterwards."""
        if self.count > 1 and tensors:
            row = packed(tensors)
            with _talking():
                dist.broadcast(row, src=0)
            for tensor, value in zip(tensors, unpacked(row, [form_of(t) for t in tensors]), strict=True):
                tensor.copy_(value)

    def _add(self, tensors: Sequence[Tensor]) -> None:
        for dtype in dict.fromkeys(t.dtype for t in tensors):  # all tensors of a type in one go
            some = [t for t in tensors if t.dtype == dtype]
            row = torch.cat([t.detach().reshape(-1) for t in some])
            with _talking():
                dist.all_reduce(row)
            for tensor, part in zip(some, row.split([t.numel() for t in some]), strict=True):
                tensor.copy_(part.reshape(tensor.shape))


def accelerator() -> Accelerator:
    """The device of this process, and its place among those that a launcher started."""
    many = int(os.environ.get("WORLD_SIZE") or 1) > 1
    try:
        # Precision is set where it is used: Accelerate has one setting for the life of a process, and runs differ. It
        # joins processes that have no accelerator only if told that they compute on the CPU.
        return Accelerator(
            mixed_precision="no",
            gradient_accumulation_steps=1,
            cpu=many and not torch.accelerator.is_available(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except ValueError as error:
        raise ConfigError(f"Accelerate is set up in another way in this process: {str(error)[:80]}") from error


def launched() -> Processes:
    """The processes that a launcher started with this one; without a launcher, this one alone."""
    return Processes(accelerator())


# ----------------------------------------------------------------------------------------------------- tensors as bytes
def form_of(tensor: Tensor) -> Form:
    return Form(tensor.dtype, tuple(tensor.shape))


def size_of(form: Form) -> int:
    """Bytes."""
    return form.dtype.itemsize * torch.Size(form.shape).numel()


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """All bytes in one row, so that tensors of any type travel at once."""
    rows = [raw(t) for t in tensors]
    return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.uint8)


def raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, without a copy where it lies in one piece."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def unpacked(row: Tensor, forms: Sequence[Form]) -> list[Tensor]:
    """The inverse of ``packed``; each tensor has memory of its own."""
    parts = row[: sum(map(size_of, forms))].split([size_of(form) for form in forms])
    return [part.clone().view(form.dtype).reshape(form.shape) for part, form in zip(parts, forms, strict=True)]


# --------------------------------------------------------------------------------------------------------------- errors
def _tried(call: Callable[[], T]) -> tuple[BaseException | None, T | None]:
    try:
        return None, call()
    except BaseException as error:  # told to the others first, then raised
        return error, None


def _told(error: BaseException | None) -> AvclError | None:
    """What the others are told: any error but ours may not survive the way."""
    if error is None or isinstance(error, AvclError):
        return error
    return WorkerError(f"another process of this training ended with {type(error).__name__}: {str(error)[:120]}.")


def _raise_told(told: Iterator[AvclError | None]) -> None:
    error = next((one for one in told if one is not None), None)
    if error is not None:
        raise error


@contextmanager
def _talking() -> Iterator[None]:
    """An error of the connection as a WorkerError."""
    try:
        yield
    except RuntimeError as error:
        raise WorkerError(
            f"another process of this training ended, or did not answer within {PATIENCE}.",
            hint="Its own message says why; start all of them again to go on.",
        ) from error
