"""Batches larger than the machine: a batch is encoded chunk by chunk, and its loss is that of the whole batch.

    1  for each chunk:  z = encode(chunk)                without gradient; only z is kept
    2  L = losses(all z);  g = ∂L/∂z                     and ∂L/∂θ of what losses uses itself (a temperature)
    3  for each chunk:  ∂L/∂θ += g · ∂encode(chunk)/∂θ   encoded again, with gradient

The chain rule, so exact (Gao et al. 2021, gradient caching). Both passes see the same: random numbers are seeded by
(seed, step, turn, first row of the chunk), and buffers that ``encode`` moves (running statistics) are put back between
them, so that they move once. Batch statistics are those of a chunk. Only one chunk of decoded media is in memory, and
the next one that is made or read meanwhile: for the second pass they wait in a file.

With several processes (``processes``) step 1 encodes their own rows and gathers z; step 3 adds up their gradients.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from avcl.errors import BatchError, ConfigError
from avcl.loop.processes import Form, Processes, form_of, raw, size_of
from avcl.seeds import seed_everything, seed_for
from avcl.system import System
from avcl.types import Batch, Stream


# ---------------------------------------------------------------------------------------------------------- the media
class Scratch:
    """Decoded chunks on the disk, in a file without a name: it is gone with the process, however that ends.

    In ``folder``, or where the system keeps temporary files. Not a memory map: a chunk that is read is memory of its
    own, which nothing that comes later can change.
    """

    def __init__(self, folder: Path | None = None):
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._kept: list[_Kept] = []

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Room for the next batch."""
        self._kept = []

    def put(self, batch: Batch) -> None:
        if self._file is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed by close)
        tensors = [t for stream in batch.streams.values() for t in (stream.data, stream.mask)]
        place = self._kept[-1].end if self._kept else 0
        names = [(name, stream.rate) for name, stream in batch.streams.items()]
        kept = _Kept(place, [form_of(t) for t in tensors], names, replace(batch, streams={}))
        self._file.seek(place)
        for tensor in tensors:
            self._file.write(raw(tensor).numpy().data)
        self._kept.append(kept)

    def get(self, number: int) -> Batch:
        kept = self._kept[number]
        assert self._file is not None
        self._file.seek(kept.place)
        tensors = [torch.empty(form.shape, dtype=form.dtype) for form in kept.forms]
        for tensor in tensors:
            self._file.readinto(raw(tensor).numpy())  # type: ignore[attr-defined] # a BufferedRandom
        found = iter(tensors)
        streams = {name: Stream(next(found), next(found), rate) for name, rate in kept.names}
        return replace(kept.batch, streams=streams)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _Kept(NamedTuple):
    place: int
    forms: list[Form]
    names: list[tuple[str, float]]
    batch: Batch

    @property
    def end(self) -> int:
        return self.place + sum(map(size_of, self.forms))


class Chunks:
    """The rows of one batch that this process encodes, ``count`` chunks on ``device``, as often as they are read.

    They come from ``source`` the first time (a chunk is asked for when it is needed), from ``scratch`` afterwards; a
    single one is kept in memory. ``first``: number of its first row in the batch.
    """

    def __init__(
        self,
        source: Iterator[Batch],
        *,
        count: int = 1,
        first: int = 0,
        device: torch.device | str = "cpu",
        scratch: Scratch | None = None,
    ):
        self.count, self.first = count, first
        self._source, self._device, self._scratch = source, device, scratch
        self._only: Batch | None = None
        self._fresh = True
        if scratch is not None:
            scratch.clear()

    def only(self) -> Batch:
        """The single chunk."""
        if self._only is None:
            self._only = next(self._source).to(self._device)
        return self._only

    def __iter__(self) -> Iterator[Batch]:
        if self.count == 1:
            yield self.only()
            return
        if self._fresh:
            self._fresh = False
            for _ in range(self.count):
                yield self._taken()
            return
        # Reading and converting take a quarter of the time of encoding; a thread does it while the system computes.
        with ThreadPoolExecutor(1) as reader:
            coming = [reader.submit(self._read, 0)]
            for number in range(1, self.count + 1):
                if number < self.count:
                    coming.append(reader.submit(self._read, number))
                yield coming.pop(0).result()  # in one breath, so that nothing here keeps it alive

    def _taken(self) -> Batch:
        batch = next(self._source)
        if self._scratch is not None:
            self._scratch.put(batch)
        return batch.to(self._device)

    def _read(self, number: int) -> Batch:
        assert self._scratch is not None, "these chunks can be read once"
        return self._scratch.get(number).to(self._device)


@dataclass(frozen=True)
class Seen(Batch):
    """What ``losses`` and ``after_step`` get of a batch whose media are gone."""

    def require(self, *names: str) -> tuple[Stream, ...]:
        raise BatchError(
            f"the losses of this system read {', '.join(names)}; with micro_batch or several processes they get only"
            " what encode returned.",
            hint='Train without; the system should declare Card.limits = {"cache": reason}.',
        )


def check_shares(system: System, rows: int, processes: Processes) -> None:
    """Whether this system and batch size can be trained in chunks, or by so many processes: ConfigError if not."""
    config, count, reason = system.config, processes.count, system.card.limits.get("cache")
    how = "micro_batch" if config.micro_batch else "several processes"
    if reason is not None and (config.micro_batch or count > 1):
        name = type(system).__module__.rpartition(".")[2]
        raise ConfigError(f"{name} cannot be trained with {how}: {reason}.", hint="Use a smaller batch_size instead.")
    if config.batch_size % count:
        hint = f"Use a multiple of {count}, or as many processes as divide it."
        raise ConfigError(f"batch_size = {config.batch_size} cannot be shared by {count} processes.", hint=hint)
    if rows < count:
        raise ConfigError(f"{rows} clips cannot be shared by {count} processes.", hint="Start fewer processes.")


# ----------------------------------------------------------------------------------------------------- the two passes
class _Told(NamedTuple):
    """What a process tells the others of its rows, beside the tensors."""

    forms: list[dict[str, Form]]  # of each chunk: form of each tensor
    batches: list[Batch]  # of each chunk, without streams
    moved: list[str]  # buffers that encode has changed


class Cached:
    """One turn at a batch that is encoded in chunks: ``encode``, the losses of what it returns, ``backward``.

    ``seed``: of this turn, for the random numbers that ``encode`` and ``losses`` draw from the global generators.
    ``precision``: the context in which the loop encodes.
    """

    def __init__(
        self,
        system: System,
        chunks: Chunks,
        *,
        seed: int,
        processes: Processes | None = None,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        self.system, self.chunks, self.seed = system, chunks, seed
        self.processes, self._precision = processes or Processes(), precision
        self._own: list[dict[str, Tensor]] = []  # what each of our chunks was encoded to
        self._graph: Mapping[str, Tensor] | None = None  # the same of a single chunk, with gradient
        self._leaves: dict[str, Tensor] = {}  # of all rows
        self._start = 0  # our first row in them
        self._before: dict[str, Tensor] = {}  # buffers that encode moves, as they were
        self._moved: list[str] = []  # names of those that it moves in any process

    def encode(self, *, gradient: bool = True) -> tuple[Mapping[str, Tensor], Batch]:
        """Pass 1: the embeddings of the whole batch, and the batch without streams."""
        told = self.processes.shared(lambda: self._encoded(gradient))
        forms = [[form for part in one.forms for form in part.values()] for one in told]
        rows = self.processes.gathered([t for part in self._own for t in part.values()], forms)
        parts: list[dict[str, Tensor]] = []
        for one, tensors in zip(told, rows, strict=True):
            found = iter(tensors)
            parts += [{name: next(found) for name in part} for part in one.forms]
        self._own = []
        self._leaves = {name: _beside(name, parts) for name in parts[0]}
        for leaf in self._leaves.values():
            leaf.requires_grad_(gradient and leaf.is_floating_point())
        counts = [sum(map(len, one.batches)) for one in told]
        self._start = sum(counts[: self.processes.rank])
        self._moved = list(dict.fromkeys(name for one in told for name in one.moved))
        seed_everything(seed_for(self.seed, "losses"))
        batch = _joined([batch for one in told for batch in one.batches])
        return self._leaves, batch.to(next(iter(self._leaves.values())).device)

    def backward(self, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        """Pass 2: the gradient of ``loss`` in each of ``parameters``, and buffers moved once."""
        leaves = [leaf for leaf in self._leaves.values() if leaf.requires_grad]
        loss.backward(inputs=[*leaves, *parameters])
        if not self.processes.first:  # every process has taken the whole loss, so what it uses itself counts once
            for parameter in parameters:
                parameter.grad = None
        start = self._start
        if self._graph is not None:
            self._push(self._graph, start, parameters)
        else:
            buffers = dict(self.system.named_buffers())
            for name, value in self._before.items():
                buffers[name].copy_(value)
            for batch, first in self._numbered():
                rows = len(batch)
                encoded = self._encode(batch, first)
                del batch
                self._push(encoded, start, parameters)
                start += rows
                del encoded
        self.processes.add_gradients(parameters)
        buffers = dict(self.system.named_buffers())
        self.processes.average([buffers[name] for name in self._moved])

    # ------------------------------------------------------------------------------------------------------- one chunk
    def _numbered(self) -> Iterator[tuple[Batch, int]]:
        """Our chunks, with the number of their first row in the batch."""
        first = self.chunks.first
        for batch in self.chunks:
            rows = len(batch)
            yield batch, first
            del batch
            first += rows

    def _encode(self, batch: Batch, first: int) -> Mapping[str, Tensor]:
        seed_everything(seed_for(self.seed, "row", first))
        with self._precision():  # each chunk's own: autocast remembers casts that were made without gradient
            encoded = self.system.encode(batch)
        for name, value in encoded.items():
            if value.ndim == 0 or len(value) != len(batch):
                shape = tuple(value.shape)
                raise ConfigError(
                    f'encode gave "{name}" of shape {shape} for {len(batch)} clips, not one row per clip.',
                    hint='Train without micro_batch, in one process; declare Card.limits = {"cache": reason}.',
                )
        return encoded

    def _encoded(self, gradient: bool) -> _Told:
        before = {name: b.clone() for name, b in self.system.named_buffers()} if gradient else {}
        single = gradient and self.chunks.count == 1  # its graph can wait for the loss
        batches: list[Batch] = []
        for batch, first in self._numbered():
            with torch.set_grad_enabled(single):
                encoded = self._encode(batch, first)
            # Clones: a view would hold all that it was taken from.
            self._own.append({name: value.detach().clone() for name, value in encoded.items()})
            batches.append(replace(batch, streams={}).to("cpu"))
            self._graph = encoded if single else None
            del batch, encoded
        now = dict(self.system.named_buffers())
        # By value: running statistics change without a new version of the tensor.
        self._before = {name: value for name, value in before.items() if not torch.equal(value, now[name])}
        return _Told([{n: form_of(t) for n, t in part.items()} for part in self._own], batches, list(self._before))

    def _push(self, encoded: Mapping[str, Tensor], start: int, parameters: Sequence[Tensor]) -> None:
        """The gradients that stand in our rows of the leaves from ``start`` on, back into ``parameters``."""
        values, gradients = [], []
        for name, value in encoded.items():
            whole = self._leaves[name].grad
            if whole is not None and value.requires_grad:
                index = (slice(start, start + len(value)), *(slice(n) for n in value.shape[1:]))
                values.append(value)
                gradients.append(whole[index])
        if values:
            torch.autograd.backward(values, gradients, inputs=list(parameters))


def _beside(name: str, parts: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The rows of all parts; where parts differ in length (time), zeros behind the end of the shorter ones."""
    if any(part.keys() != parts[0].keys() for part in parts):
        raise ConfigError(f"encode gave {list(parts[0])} for one part of the batch and other tensors for another.")
    tensors = [part[name] for part in parts]
    if len({t.ndim for t in tensors}) > 1 or len({t.dtype for t in tensors}) > 1:
        raise ConfigError(f'encode gave "{name}" of different types or numbers of axes for parts of the batch.')
    longest = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    lacking = [[n - m for n, m in zip(longest, t.shape[1:], strict=True)] for t in tensors]
    # F.pad counts axes from the last one, a pair each
    padded = [
        pad(t, [k for n in reversed(lack) for k in (0, n)]) if any(lack) else t
        for t, lack in zip(tensors, lacking, strict=True)
    ]
    return padded[0] if len(padded) == 1 else torch.cat(padded)


def _joined(batches: Sequence[Batch]) -> Seen:
    """All rows as one batch without streams."""
    first = batches[0]
    for name, extra in first.extras.items():
        if any(name not in b.extras or b.extras[name].shape[1:] != extra.shape[1:] for b in batches):
            raise BatchError(f'the extra "{name}" is absent in some clips, or differs in shape.')
    return Seen(
        id=tuple(id for b in batches for id in b.id),
        streams={},
        index=torch.cat([b.index for b in batches]),
        view=torch.cat([b.view for b in batches]),
        label=torch.cat([b.label for b in batches]),
        group=tuple(group for b in batches for group in b.group),
        extras={name: torch.cat([b.extras[name] for b in batches]) for name in first.extras},
    )
