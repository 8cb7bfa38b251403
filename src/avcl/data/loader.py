"""Batches in an order that depends on (seed, epoch) alone, made in this process or in worker processes.

Worker processes are those of torch's DataLoader, forked, one thread each. What they do is a function of (seed, epoch,
row, view): their number changes nothing but the time.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from avcl.data.batching import collate
from avcl.data.dataset import Data
from avcl.errors import AvclError, ConfigError, WorkerError
from avcl.progress import tracked
from avcl.seeds import seed_for
from avcl.types import Batch, Clip, Stream

log = logging.getLogger("avcl.data")

Transform = Callable[[Clip, int, torch.Generator], Clip]
_SMALL_SHARED_MEMORY = 1 << 30


class _Item(NamedTuple):
    epoch: int
    row: int
    view: int


def clip_seed(seed: int, epoch: int, id: str, view: int) -> int:
    """The seed of the transforms of one clip, the same on every machine and in every process."""
    return seed_for(seed, "augmentation", epoch, view, id)


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """The shuffled rows of an epoch."""
    generator = torch.Generator().manual_seed(seed_for(seed, "order", epoch))
    return torch.randperm(n, generator=generator).tolist()


def share(n: int, part: tuple[int, int]) -> range:
    """The rows, of ``n``, of part (k, parts): the parts are nearly equal and follow each other."""
    k, parts = part
    return range(n * k // parts, n * (k + 1) // parts)


class Loader:
    """Batches of ``data``.

    ``batch_size`` rows a batch, each in ``views`` views side by side (row 0 view 0, row 0 view 1, row 1 view 0, ...).
    ``shuffle``: another order each epoch, drawn from (``seed``, epoch). ``drop_last``: leave out a last batch that is
    not full. ``workers``: processes that make batches ahead (0: none). ``transforms`` (Clip, view, generator) -> Clip
    are applied in their order with a generator seeded by (seed, epoch, id, view). Used again and again, it keeps its
    workers; ``close`` ends them.
    """

    def __init__(
        self,
        data: Data,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        workers: int = 0,
        transforms: Sequence[Transform] = (),
        views: int = 1,
    ):
        if batch_size < 1 or views < 1 or workers < 0:
            raise ConfigError(
                f"batch_size {batch_size} and views {views} must be at least 1, workers {workers} at least 0."
            )
        self.data, self.batch_size, self.seed, self.shuffle = data, batch_size, seed, shuffle
        self.drop_last, self.workers, self.transforms, self.views = drop_last, workers, tuple(transforms), views
        self._pool: _Pool | None = None
        self._busy = False

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.data) // self.batch_size if self.drop_last else -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` from number ``start`` on.

        A row that cannot be decoded raises its own error (in the order of the batches). WorkerError: a worker process
        died.
        """
        yield from self._made(self._plan(epoch)[start:])

    def chunks(
        self, epoch: int, start: int = 0, *, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Iterator[Batch]]:
        """The same batches in as few and as equal pieces as have at most ``size`` rows: an iterator over each batch,
        made as it is read; read one to its end before the next.

        ``part`` (k, n): only the k-th of n nearly equal shares of the rows of every batch (``share``).
        """
        plan = [self._cut(items, size, part) for items in self._plan(epoch)[start:]]
        made = self._made([piece for pieces in plan for piece in pieces])
        for pieces in plan:
            yield islice(made, len(pieces))

    def _cut(self, items: list[_Item], size: int, part: tuple[int, int]) -> list[list[_Item]]:
        own = share(len(items) // self.views, part)
        count = -(-len(own) // size)
        pieces = [share(len(own), (k, count)) for k in range(count)]
        return [items[own[p.start] * self.views : (own[p.stop - 1] + 1) * self.views] for p in pieces]

    def _made(self, plan: list[list[_Item]]) -> Iterator[Batch]:
        rows = _Rows(self.data, self.seed, self.transforms)
        if self.workers == 0:
            for items in plan:
                yield _sound(_gather([rows[item] for item in items]))
            return
        if self._busy:  # a second pass while the first is under way gets workers of its own
            with _Pool(rows, self.workers) as pool:
                yield from pool.run(plan)
            return
        self._busy = True
        try:
            if self._pool is None:
                self._pool = _Pool(rows, self.workers)
            yield from self._pool.run(plan)
        except WorkerError:
            self.close()
            raise
        finally:
            self._busy = False

    def _plan(self, epoch: int) -> list[list[_Item]]:
        n = len(self.data)
        order = epoch_order(n, self.seed, epoch) if self.shuffle else list(range(n))
        return [
            [
                _Item(epoch, row, view)
                for row in order[k * self.batch_size : (k + 1) * self.batch_size]
                for view in range(self.views)
            ]
            for k in range(len(self))
        ]

    def close(self) -> None:
        """End the worker processes; the next pass starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Rows(Dataset):
    """Rows of the data as clips; a typed error is an answer, not an exception, so that it crosses the process border
    whole.
    """

    def __init__(self, data: Data, seed: int, transforms: tuple[Transform, ...]):
        self.data, self.seed, self.transforms = data, seed, transforms

    def __getitem__(self, item: _Item) -> Clip | AvclError:
        try:
            clip = self.data.clip(item.row, epoch=item.epoch, view=item.view)
            if clip.view != item.view or clip.index != item.row:
                clip = replace(clip, view=item.view, index=item.row)
            if self.transforms:
                generator = torch.Generator().manual_seed(clip_seed(self.seed, item.epoch, clip.id, item.view))
                for transform in self.transforms:
                    clip = transform(clip, item.view, generator)
            return clip
        except AvclError as error:
            return error


class _Checks(Dataset):
    """(row, None), or (row, why it cannot be decoded)."""

    def __init__(self, data: Data):
        self.data = data

    def __getitem__(self, index: int) -> tuple[int, AvclError | None]:
        try:
            self.data.clip(index)
        except AvclError as error:
            return index, error
        return index, None


def _gather(items: list[Clip | AvclError]) -> Batch | AvclError:
    clips: list[Clip] = []
    for item in items:
        if isinstance(item, AvclError):
            return item
        clips.append(item)
    try:
        return collate(clips)
    except AvclError as error:
        return error


def _sound(made: Any) -> Any:
    """What was made; the error where that is one. Yielded at once, so that no generator keeps a batch alive."""
    if isinstance(made, AvclError):
        raise made
    return made.unpack() if isinstance(made, _Packed) else made


class _Packed(NamedTuple):
    """A batch as NumPy arrays, which travel through the pipe: where shared memory is small, tensors would not fit."""

    streams: dict[str, tuple[np.ndarray, np.ndarray, float]]
    extras: dict[str, np.ndarray]
    batch: Batch

    @classmethod
    def pack(cls, items: list[Clip | AvclError]) -> _Packed | AvclError:
        made = _gather(items)
        if isinstance(made, AvclError):
            return made
        streams = {name: (s.data.numpy(), s.mask.numpy(), s.rate) for name, s in made.streams.items()}
        return cls(streams, {k: v.numpy() for k, v in made.extras.items()}, replace(made, streams={}, extras={}))

    def unpack(self) -> Batch:
        streams = {
            k: Stream(torch.from_numpy(d), torch.from_numpy(m), rate) for k, (d, m, rate) in self.streams.items()
        }
        extras: Mapping[str, torch.Tensor] = {k: torch.from_numpy(v) for k, v in self.extras.items()}
        return replace(self.batch, streams=streams, extras=extras)


class _Pool:
    """Worker processes that stay: the plan of each pass is handed to them item by item."""

    def __init__(self, rows: _Rows | _Checks, workers: int, collate_fn: Callable[[list[Any]], Any] | None = None):
        self._plan: list[Any] = []
        roomy = _shared_memory() >= _SMALL_SHARED_MEMORY
        with _quiet():
            self._loader: DataLoader | None = DataLoader(
                rows,
                batch_sampler=_Plan(self),
                num_workers=workers,
                collate_fn=collate_fn or (_gather if roomy else _Packed.pack),
                persistent_workers=True,
                multiprocessing_context="fork" if "fork" in multiprocessing.get_all_start_methods() else None,
                worker_init_fn=_start_worker,
                generator=torch.Generator(),  # else each pass would draw from the global random state
            )

    def run(self, plan: list[Any]) -> Iterator[Any]:
        assert self._loader is not None
        self._plan = plan
        if not plan:
            return
        handler = signal.getsignal(signal.SIGCHLD)
        with _translated(), _quiet():
            batches = iter(self._loader)
        _restore(handler)

        def following() -> Any:
            with _translated():
                return next(batches, None)

        yield from map(_sound, iter(following, None))

    def close(self) -> None:
        loader, self._loader = self._loader, None
        iterator = getattr(loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Plan:
    """The batch sampler of a pool: whatever plan the pool holds when a pass begins."""

    def __init__(self, pool: _Pool):
        self._pool = pool

    def __iter__(self) -> Iterator[Any]:
        return iter(self._pool._plan)

    def __len__(self) -> int:
        return len(self._pool._plan)


def _start_worker(_: int) -> None:
    # An interrupt is the parent's business: it ends the workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What the parent left as garbage (an older pool, say) is the parent's to finalize, not this process's
    gc.freeze()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without two warnings of torch and Python: how many workers there are is the caller's choice, and a fork beside a
    thread (Python 3.12) is no danger to workers that use one thread and none of the parent's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)
        yield


def _restore(handler: Any) -> None:
    """Take torch's SIGCHLD handler out: it raises in the middle of whatever the parent does; ``next`` notices a death
    as well.
    """
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None else handler)
    except ValueError:
        log.debug("not the main thread: there is no handler to restore")


@contextmanager
def _translated() -> Iterator[None]:
    """torch's RuntimeError about a dead worker as a WorkerError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise WorkerError(
            "a worker process died while it made a batch (killed, or out of memory).",
            hint="Use fewer workers, or workers=0 to see the cause.",
        ) from error


def _shared_memory() -> int:
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return _SMALL_SHARED_MEMORY  # no such folder: the system keeps shared memory elsewhere


def _flat(items: list[Any]) -> list[Any]:
    return items


def each_row(data: Data, *, workers: int, progress: bool) -> Iterator[tuple[int, AvclError | None]]:
    """Every row decoded once: (row, error or None), in the order of the rows."""
    checks = _Checks(data)
    words = "decoding"
    if workers == 0:
        yield from tracked((checks[i] for i in range(len(data))), len(data), words, shown=progress)
        return
    with _Pool(checks, workers, _flat) as pool:
        found = (pair for part in pool.run([[i] for i in range(len(data))]) for pair in part)
        yield from tracked(found, len(data), words, shown=progress)
