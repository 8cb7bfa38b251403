"""The one training loop. Systems say what to minimize and whose turn it is; this says when, and how to stop and go on.

Exact resume: the randomness of step n follows from (seed, n) alone, the data from (seed, epoch, position); what else
the next step depends on (weights and banks, optimizers, moving average, best weights, history) is in the checkpoint. A
run that is killed at any moment and started again ends with the same bits as an unbroken one on the same machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avcl.data.dataset import Data
from avcl.data.loader import Loader, share
from avcl.errors import DataError, DivergedError, ExistsError
from avcl.files import Lock
from avcl.loop.checkpoint import Checkpoint, check_identity, latest_checkpoint, write_checkpoint
from avcl.loop.chunks import Chunks, Scratch, check_shares
from avcl.loop.journal import MetricsFile, interruptible
from avcl.loop.learner import Learner
from avcl.loop.processes import Processes, launched
from avcl.progress import Progress
from avcl.seeds import kept_random_state, seed_everything, seed_for
from avcl.system import Config, Step, System
from avcl.types import Batch, Clip, Inputs, fingerprint, jsonable

Transform = Callable[[Clip, int, torch.Generator], Clip]
LOG_LINES = 200  # step lines of metrics.jsonl, about, however long the run


@dataclass(frozen=True)
class FitResult:
    """What ``fit`` did.

    ``history``: one mapping an epoch (epoch, step, losses {name: mean}, lr {phase: rate}, validation) · ``best``: the
    epoch, step and score of the weights that were kept, None without validation · ``stopped_early``: patience ran out
    · ``out_of_time``: the budget did.
    """

    system: System
    steps: int
    epochs: int
    history: tuple[Mapping[str, Any], ...]
    best: Mapping[str, Any] | None
    stopped_early: bool
    out_of_time: bool = False


def fit(
    system: System,
    train: Data,
    *,
    val: Data | None = None,
    inputs: Inputs | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    workers: int = 1,
    validate: Callable[[System], float] | None = None,
    transforms: Sequence[Transform] = (),
    progress: bool = True,
    max_steps: int | None = None,
    resume: bool = True,
    checkpoint_steps: int = 0,
    budget: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FitResult:
    """Train ``system`` in place, as its ``config`` says; it comes back in evaluation mode on the device used.

    After each epoch it is scored by ``validate(system)`` (higher is better; None: minus the mean loss on ``val``), and
    the best weights are those that remain. The schedule ends with ``config.epochs``, or ``max_steps`` if that is less.
    ``budget``: seconds by ``clock``, validation included, after which no step is begun (the first one always is); what
    was learned is scored and kept as at the end of an epoch. Such a run depends on the speed of the machine, and by
    ``time.process_time`` not on what else it does. A closed form takes the time it takes.

    With ``out``: checkpoints in ``out/checkpoints`` (every epoch, every ``checkpoint_steps`` steps, at Ctrl-C), the log
    in ``out/metrics.jsonl``. An unfinished run found there goes on, a finished one is returned; both only if system,
    config, data, seed and length are the same. ``workers`` never changes the result. For the whole to follow from
    ``seed``, build the system from it too: ``with seeded(seed, "init"): ...``.

    ``config.micro_batch`` clips at a time are decoded and encoded, the loss being that of the whole batch; several
    processes (started by a launcher) share every batch. Either way ``losses`` gets a batch without streams (``chunks``
    says how it is done, docs/decisions/0006 what is equal to what). Closed forms take no step and need neither.

    ConfigError where the system declares that its loss needs raw batches (``Card.limits["cache"]``), or the processes
    cannot share a batch equally; DivergedError where a loss, gradient or score is not finite; ExistsError where ``out``
    holds another run (or any run, if not ``resume``); LockedError where another process trains there; StoreError if no
    checkpoint is whole; WorkerError where a process died that takes part.
    """
    if len(train) == 0:
        raise DataError("there are no clips to train on.")
    if inputs is not None:
        train, val = train.configure(inputs), None if val is None else val.configure(inputs)
    folder = None if out is None else Path(out)
    processes = launched()
    with kept_random_state(), processes.first_inside(Lock(folder) if folder else nullcontext()):
        how = (workers, validate, transforms, max_steps, processes, budget, clock)
        run = _Run(system, train, val, inputs, seed, folder, *how)
        try:
            if system.closed_form:
                return run.solve()
            found = processes.from_first(lambda: run.found(resume))
            if found is not None:
                run.restore(found)
                if found.path.name == "final":
                    return run.result()
            return run.train(checkpoint_steps, progress and processes.first)
        finally:
            run.close()


class _Run:
    """Where a training stands (step, epoch, position in it, history) and its way through the data."""

    def __init__(
        self,
        system: System,
        train: Data,
        val: Data | None,
        inputs: Inputs | None,
        seed: int,
        folder: Path | None,
        workers: int,
        validate: Callable[[System], float] | None,
        transforms: Sequence[Transform],
        max_steps: int | None,
        processes: Processes,
        budget: float | None,
        clock: Callable[[], float],
    ):
        self.config: Config = system.config
        self.processes = processes
        self.system, self.data = system, train
        self.seed, self.folder, self.workers, self.validate = seed, folder, workers, validate
        size = self.config.batch_size
        whole = len(train) >= size  # a ragged last batch changes what a contrastive loss means
        self.steps_per_epoch = len(train) // size if whole else 1
        self.total = self.config.epochs * self.steps_per_epoch
        self.total = self.total if max_steps is None else min(self.total, max_steps)
        views = 1 if inputs is None else inputs.views
        if not system.closed_form:
            check_shares(system, len(train), processes)
        self.micro = size if system.closed_form else min(self.config.micro_batch or size, size)
        # Which rows of every batch are ours, and in how many chunks.
        own = share(min(size, len(train)), (processes.rank, processes.count))
        self.chunks = {"count": -(-len(own) // self.micro), "first": own.start * views}
        self.clips = min(size, len(train)) * views
        self.scratch = Scratch(folder)
        self.learner = Learner(system, self.total, seed, processes)
        self.loader = Loader(
            train,
            batch_size=size,
            seed=seed,
            shuffle=True,
            drop_last=whole,
            workers=workers,
            transforms=tuple(transforms),
            views=views,
        )
        self.val_loader: Loader | None = None
        if val is not None and len(val) > 0:
            # Shuffled once and for all: rows in the order of the file would put one class into one batch.
            order, whole = seed_for(seed, "evaluation"), len(val) >= size
            self.val_loader = Loader(
                val, batch_size=size, seed=order, shuffle=True, drop_last=whole, workers=workers, views=views
            )
        self.scored = validate is not None or self.val_loader is not None

        self.step = self.epoch = self.position = self.since_best = 0
        self.stopped = self.out_of_time = False
        self.budget, self.clock, self.spent, self.started = budget, clock, 0.0, clock()
        self.sums: dict[str, tuple[float, int]] = {}  # of each loss in this epoch: total, steps
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.metrics_bytes = 0
        self.identity = {
            "system": f"{type(system).__module__}.{type(system).__qualname__}",
            "config": jsonable(self.config),
            "spec": fingerprint(system.spec),
            "inputs": jsonable(inputs),
            "seed": seed,
            "steps": self.total,
            "train": train.fingerprint,
            "val": None if val is None else val.fingerprint,
            "validation": "loss" if validate is None else "score",
            "transforms": [_name(t) for t in transforms],
            **({} if budget is None else {"budget": budget}),
        }

    # ------------------------------------------------------------------------------------------------------- the loop
    def train(self, checkpoint_steps: int, shown: bool) -> FitResult:
        self.checkpoint_steps, self.started = checkpoint_steps, self.clock()
        self.metrics = MetricsFile(self._metrics_path(), keep=self.metrics_bytes)
        self.bar = Progress(self.total, type(self.system).__module__.rpartition(".")[2], shown=shown, start=self.step)
        try:
            with interruptible() as self.interrupt, self.bar:
                while self.step < self.total and not self.stopped and not self.out_of_time:
                    self._epoch()
                self.learner.settle()
                with self._hook("finish"):
                    self.system.finish(_Batches(self, max(0, self.epoch - 1)))
                self._write("final", {f"system/{k}": t for k, t in self.system.state_dict().items()})
        finally:
            self.metrics.close()
        return self.result()

    def _epoch(self) -> None:
        if self.position == 0:
            with self._hook("epoch", self.epoch):
                self.system.begin_epoch(_Batches(self, self.epoch), self.epoch)
        self.system.train()
        every, clips, since = max(1, self.total // LOG_LINES), 0, time.perf_counter()
        for chunks in self._batches():
            turn = self.learner.learn(chunks, self.step, self.epoch)
            self.step += 1
            self.position += 1
            for name, value in turn.losses.items():
                total, steps = self.sums.get(name, (0.0, 0))
                self.sums[name] = (total + value, steps + 1)
            clips += self.clips
            speed = clips / max(1e-9, time.perf_counter() - since)
            self.bar.update(self.step, f"loss {sum(turn.losses.values()):.4f}  {speed:.0f} clips/s")
            if self.step % every == 0:
                line = {"event": "step", "step": self.step, "epoch": self.epoch, **turn._asdict()}
                self.metrics.write({**line, "clips_per_second": round(speed, 2)})
                clips, since = 0, time.perf_counter()
            if self._over():
                break
            if self.position < self.steps_per_epoch and self.step < self.total:
                self._stop_if_asked()
                if self.checkpoint_steps and self.step % self.checkpoint_steps == 0:
                    self._checkpoint()
        self._end_epoch()
        self._stop_if_asked()

    def _batches(self) -> Iterator[Chunks]:
        """The rest of this epoch."""
        part = (self.processes.rank, self.processes.count)
        batches = self.loader.chunks(self.epoch, self.position, size=self.micro, part=part)
        while self.position < self.steps_per_epoch and self.step < self.total:
            source, device = next(batches, iter(())), self.learner.device
            yield Chunks(self._watched(source), **self.chunks, device=device, scratch=self.scratch)
            for _ in source:  # nobody played
                pass

    def _watched(self, source: Iterator[Batch]) -> Iterator[Batch]:
        try:
            yield from source
        except Exception:
            if self.processes.count == 1:
                self._stop_if_asked()  # Ctrl-C reaches the workers too; that one of them died is no news then
            raise
        have = f"{self.position} of {self.steps_per_epoch}"
        raise DataError(f"epoch {self.epoch} ended after {have} batches.")

    def _seconds(self) -> float:
        """Spent on this training, by this process and those before it that it goes on from."""
        return self.spent + self.clock() - self.started

    def _over(self) -> bool:
        """Whether the budget is spent; one process that says so ends all."""
        if self.budget is not None and self.processes.any(self._seconds() >= self.budget):
            self.out_of_time = True
        return self.out_of_time

    def _end_epoch(self) -> None:
        losses = {name: total / steps for name, (total, steps) in self.sums.items()}
        rates = {p.phase.name: p.rate(self.step - 1) for p in self.learner.players if p.first < self.step <= p.last}
        entry: dict[str, Any] = {"epoch": self.epoch, "step": self.step, "losses": losses, "lr": rates}
        entry["validation"] = score = self._score() if self.scored else None
        if score is not None:
            self.stopped = 0 < self.config.patience <= self.since_best
            self.bar.say(f"epoch {self.epoch}  loss {sum(losses.values()):.4f}  validation {score:.4f}")
        self.history.append(entry)
        self.metrics.write({"event": "epoch", **entry})
        self.epoch, self.position, self.sums = self.epoch + 1, 0, {}
        self._checkpoint()

    def _score(self) -> float:
        """Validation of the weights that count; they are kept if none was better."""
        learner = self.learner
        seed_everything(seed_for(self.seed, "evaluation"))
        learner.generator.manual_seed(seed_for(self.seed, "evaluation"))
        with learner.evaluated():
            score = self.processes.from_first(self._scored_here)
            if not math.isfinite(score):
                hint = "Look at the validation clips, or lower the learning rate."
                raise DivergedError(f"the validation score after step {self.step} is {score}.", hint=hint)
            if self.best is None or score > self.best["score"]:
                self.best, self.since_best = {"epoch": self.epoch, "step": self.step, "score": score}, 0
                learner.keep_best()
            else:
                self.since_best += 1
        return score

    def _scored_here(self) -> float:
        if self.validate is not None:
            return float(self.validate(self.system))
        assert self.val_loader is not None
        learner, loader, total, clips = self.learner, self.val_loader, 0.0, 0
        at = Step(self.step, self.total, self.epoch, self.step / max(1, self.total), learner.generator)
        count = -(-min(loader.batch_size, len(loader.data)) // self.micro)
        for source in loader.chunks(0, size=self.micro):
            value, rows = learner.loss(Chunks(source, count=count, device=learner.device), at)
            total, clips = total + rows * value, clips + rows
        return -total / clips

    def solve(self) -> FitResult:
        """A closed form: one pass over the training clips in their order, and no step."""
        with self._hook("finish"):
            self.system.finish(_Batches(self, 0))
        if self.scored:
            self.history = [{"epoch": 0, "step": 0, "losses": {}, "lr": {}, "validation": self._score()}]
        metrics = MetricsFile(self._metrics_path())
        for entry in self.history:
            metrics.write({"event": "epoch", **entry})
        metrics.close()
        return self.result()

    def close(self) -> None:
        """End the worker processes and give back the disk."""
        self.scratch.close()
        for loader in (self.loader, self.val_loader):
            if loader is not None:
                loader.close()

    def result(self) -> FitResult:
        self.system.eval()
        result = (self.system, self.step, self.epoch, tuple(self.history), self.best, self.stopped)
        return FitResult(*result, out_of_time=self.out_of_time)

    @contextmanager
    def _hook(self, *stream: str | int) -> Iterator[None]:
        """Around hooks that look at the data: evaluation mode, no gradient, randomness of their own."""
        seed_everything(seed_for(self.seed, *stream))
        self.system.eval()
        with torch.no_grad():
            yield

    def _stop_if_asked(self) -> None:
        if self.processes.any(self.interrupt.asked):
            self.bar.say(f"interrupted at step {self.step}")
            if self.position:  # else the checkpoint of the last epoch's end says it all
                self._checkpoint()
            raise KeyboardInterrupt

    # ------------------------------------------------------------------------------------------------------ checkpoints
    def _checkpoint(self) -> None:
        self._write(f"step-{self.step:08d}", self.learner.tensors())

    def _write(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        if self.folder is not None:
            folder = self.folder / "checkpoints"
            self.processes.from_first(lambda: write_checkpoint(folder, name, self._state(), tensors))

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "position": self.position,
            "stopped": self.stopped,
            "since_best": self.since_best,
            "best": self.best,
            "sums": self.sums,
            "history": self.history,
            "metrics": self.metrics.settle(),
            "identity": self.identity,
            **({} if self.budget is None else {"spent": self._seconds(), "out_of_time": self.out_of_time}),
        }

    def _metrics_path(self) -> Path | None:
        return self.folder / "metrics.jsonl" if self.folder and self.processes.first else None

    def found(self, resume: bool) -> Checkpoint | None:
        """Where this run is to go on; ExistsError where the folder holds another one."""
        found = latest_checkpoint(self.folder / "checkpoints") if self.folder else None
        if found is not None:
            if not resume:
                raise ExistsError(
                    "there is a run in this folder.", file=self.folder, hint="Give another output folder."
                )
            check_identity(found.state["identity"], self.identity, found.path)
        return found

    def restore(self, found: Checkpoint) -> None:
        """Stand where the checkpoint was written."""
        state = found.state
        self.step, self.epoch, self.position = state["step"], state["epoch"], state["position"]
        self.stopped, self.since_best, self.best = state["stopped"], state["since_best"], state["best"]
        self.out_of_time, self.spent = state.get("out_of_time", False), state.get("spent", 0.0)
        self.sums = {name: (total, steps) for name, (total, steps) in state["sums"].items()}
        self.history, self.metrics_bytes = state["history"], state["metrics"]
        if found.path.name == "final":
            self.learner.players, self.learner.ema = [], {}  # a finished run has neither
        self.learner.load(found)


class _Batches:
    """The training clips in their order, once for each ``iter``, on the device: what hooks are given."""

    def __init__(self, run: _Run, epoch: int):
        self._run, self._epoch = run, epoch

    def __iter__(self) -> Iterator[Batch]:
        run = self._run
        with Loader(run.data, batch_size=run.micro, seed=run.seed, workers=run.workers) as loader:
            for batch in loader.batches(self._epoch):
                yield batch.to(run.learner.device)
                del batch  # or it would live until the next one is whole


def _name(transform: Transform) -> str:
    """A name that is the same in another process: the repr of a dataclass, the qualified name of anything else."""
    if hasattr(transform, "__dataclass_fields__"):
        return repr(transform)
    return getattr(transform, "__qualname__", type(transform).__qualname__)
