"""The one training loop. Systems say what to minimize and whose turn it is; this says when, where, and how to stop and go on.

Exact resume: the randomness of step n follows from (seed, n) alone, the data from (seed, epoch, position); what else the next
step depends on (weights and banks, optimizers, moving average, best weights, history) is in the checkpoint. A run that is
killed at any moment and started again therefore ends with the same bits as an unbroken one on the same machine.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from avcl.checkpoint import Checkpoint, check_identity, latest_checkpoint, write_checkpoint
from avcl.data.dataset import Data
from avcl.data.loader import Loader
from avcl.errors import AvclError, ConfigError, DataError, DivergedError, ExistsError, StoreError, did_you_mean
from avcl.files import Lock
from avcl.optimizer import Player, make_players
from avcl.progress import MetricsFile, Progress
from avcl.seeds import kept_random_state, seed_everything, seed_for
from avcl.system import Step, System
from avcl.types import Batch, Clip, Inputs, fingerprint, jsonable

Transform = Callable[[Clip, int, torch.Generator], Clip]
LOG_LINES = 200  # step lines of metrics.jsonl, about, however long the run


@dataclass(frozen=True)
class FitResult:
    """What ``fit`` did.

    ``history``: one mapping an epoch (epoch, step, losses {name: mean}, lr {phase: rate}, validation) · ``best``: epoch,
    step and score of the weights that were kept, None without validation · ``stopped_early``: patience ran out.
    """

    system: System
    steps: int
    epochs: int
    history: tuple[Mapping[str, Any], ...]
    best: Mapping[str, Any] | None
    stopped_early: bool


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
) -> FitResult:
    """Train ``system`` in place, as its ``config`` says, on ``train``; it comes back in evaluation mode on the device used.

    After each epoch it is scored by ``validate(system)`` (higher is better; None: minus the mean loss on ``val``), and the
    best weights are those that remain. The schedule ends after ``config.epochs``, or ``max_steps`` if that is sooner.

    With ``out``: checkpoints in ``out/checkpoints`` (every epoch, every ``checkpoint_steps`` steps, at Ctrl-C), the log in
    ``out/metrics.jsonl``. An unfinished run found there goes on, a finished one is returned; both only if system, config,
    data, seed and length are the same. ``workers`` never changes the result. ``system`` must be built from the same seed
    (``seeded(seed, "init")``) for the whole to follow from ``seed``.

    Raises DivergedError where a loss, gradient or score is not finite; ExistsError where ``out`` holds another run (or any
    run, if not ``resume``); LockedError where another process trains in ``out``; StoreError where no checkpoint is whole.
    """
    if len(train) == 0:
        raise DataError("there are no clips to train on.")
    if system.config.precision not in ("no", "bf16"):
        hint = did_you_mean(system.config.precision, {"no", "bf16"})
        raise ConfigError(f'precision = "{system.config.precision}" is not known.', hint=hint)
    if inputs is not None:
        train, val = train.configure(inputs), val.configure(inputs) if val is not None else None
    run = _Run(system, train, val, inputs, seed, workers, validate, transforms, max_steps)
    folder = None if out is None else Path(out)
    with Lock(folder) if folder else nullcontext(), kept_random_state():
        if system.closed_form:
            return run.solve(folder)
        if folder:
            found = latest_checkpoint(folder / "checkpoints")
            if found is not None:
                if not resume:
                    raise ExistsError("there is a run in this folder.", file=folder, hint="Give another output folder.")
                check_identity(found.state.get("identity", {}), run.identity, folder)
                if found.path.name == "final":
                    return run.take(found)
                run.restore(found)
        return run.train(folder, checkpoint_steps, progress)


class _Run:
    """The state of one training; every attribute that changes from step to step is in ``state`` or ``tensors``."""

    def __init__(
        self,
        system: System,
        train: Data,
        val: Data | None,
        inputs: Inputs | None,
        seed: int,
        workers: int,
        validate: Callable[[System], float] | None,
        transforms: Sequence[Transform],
        max_steps: int | None,
    ):
        self.system, self.data, self.validate, self.seed, self.workers = system, train, validate, seed, workers
        self.config = config = system.config
        self.accelerator = _accelerator()
        self.device = self.accelerator.device
        system.to(self.device)
        self.generator = torch.Generator(device=self.device)

        whole = len(train) >= config.batch_size  # a ragged last batch changes what a contrastive loss means
        self.steps_per_epoch = len(train) // config.batch_size if whole else 1
        self.total = config.epochs * self.steps_per_epoch
        self.total = self.total if max_steps is None else min(self.total, max_steps)
        views = 1 if inputs is None else inputs.views
        common = {"batch_size": config.batch_size, "workers": workers}
        self.loader = Loader(
            train, seed=seed, shuffle=True, drop_last=whole, transforms=tuple(transforms), views=views, **common
        )
        self.val_loader = None
        if val is not None and len(val) > 0:
            # Shuffled once and for all: rows in file order would put one class into one batch.
            whole = len(val) >= config.batch_size
            order = seed_for(seed, "evaluation")
            self.val_loader = Loader(val, seed=order, shuffle=True, drop_last=whole, views=views, **common)
        self.scored = validate is not None or self.val_loader is not None

        self.step = self.epoch = self.position = self.since_best = self.count = 0
        self.stopped = False
        self.history: list[dict[str, Any]] = []
        self.sums: dict[str, float] = {}
        self.best: dict[str, Any] | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.metrics_bytes = 0
        self.players: list[Player] = []
        self.ema: dict[str, Tensor] = {}
        if not system.closed_form:
            self.players = make_players(system.phases(), config, self.total)
            self.trained = {name: p for name, p in system.named_parameters() if p.requires_grad}
            if config.ema:
                self.ema = {name: p.detach().clone() for name, p in self.trained.items()}
        self.identity = {
            "system": f"{type(system).__module__}.{type(system).__qualname__}",
            "config": jsonable(config),
            "spec": fingerprint(system.spec),
            "inputs": None if inputs is None else jsonable(inputs),
            "seed": seed,
            "steps": self.total,
            "train": train.fingerprint,
            "val": None if val is None else val.fingerprint,
            "validation": "loss" if validate is None else "score",
            "transforms": [_name(t) for t in transforms],
        }

    # ------------------------------------------------------------------------------------------------------- the loop
    def train(self, folder: Path | None, checkpoint_steps: int, shown: bool) -> FitResult:
        self.checkpoints = None if folder is None else folder / "checkpoints"
        self.checkpoint_steps = checkpoint_steps
        self.metrics = MetricsFile(folder / "metrics.jsonl" if folder else None, keep=self.metrics_bytes)
        title = type(self.system).__module__.rpartition(".")[2]
        try:
            with _interruptible() as self.interrupt, Progress(self.total, title, shown=shown, start=self.step) as self.bar:
                while self.step < self.total and not self.stopped:
                    self._epoch()
                self._finish()
        finally:
            self.metrics.close()
        return self._result()

    def _epoch(self) -> None:
        if self.position == 0:
            with self._hook("epoch", self.epoch):
                self.system.begin_epoch(_Batches(self, self.epoch), self.epoch)
        every, clips, since = max(1, self.total // LOG_LINES), 0, time.perf_counter()
        batches = iter(self.loader.batches(self.epoch, start=self.position))
        self.system.train()
        while self.position < self.steps_per_epoch and self.step < self.total:
            try:
                batch = next(batches)
            except StopIteration:
                raise DataError(f"epoch {self.epoch} has only {self.position} of {self.steps_per_epoch} batches.") from None
            except Exception:
                if self.interrupt.asked:  # Ctrl-C reaches the workers too, and a dying worker is no error then
                    self._stop_if_asked()
                raise
            values, rates, norms = self._one_step(batch.to(self.device))
            self.step, self.position, self.count, clips = self.step + 1, self.position + 1, self.count + 1, clips + len(batch)
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            speed = clips / max(1e-9, time.perf_counter() - since)
            if self.step % every == 0:
                line = {"event": "step", "step": self.step, "epoch": self.epoch, "losses": values, "lr": rates}
                self.metrics.write({**line, "grad_norm": norms, "clips_per_second": round(speed, 2)})
                clips, since = 0, time.perf_counter()
            self.bar.update(self.step, f"loss {sum(values.values()):.4f}  {speed:.0f} clips/s")
            if self.position < self.steps_per_epoch and self.step < self.total:
                self._stop_if_asked()
                if self.checkpoint_steps and self.step % self.checkpoint_steps == 0:
                    self._checkpoint()
        self._end_epoch()
        self._stop_if_asked()

    def _one_step(self, batch: Batch) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        """Every player's turn at one batch: (loss by name, learning rate by phase, gradient norm by phase)."""
        seed_everything(seed_for(self.seed, "step", self.step))
        self.generator.manual_seed(seed_for(self.seed, "loss", self.step))
        at = Step(self.step, self.total, self.epoch, self.step / self.total, self.generator)
        values: dict[str, float] = {}
        rates: dict[str, float] = {}
        norms: dict[str, float] = {}
        encoded: Mapping[str, Tensor] | None = None
        for player in self.players:
            if not player.plays(self.step):
                continue
            for _ in range(player.phase.repeat):
                with self._precision():
                    terms, encoded = self.system(batch, at)
                    chosen = _chosen(terms, player)
                    loss = torch.stack([t.float() for t in chosen.values()]).sum()
                self.accelerator.backward(loss, inputs=player.parameters)
                norm = self.accelerator.clip_grad_norm_(player.parameters, player.clip_norm or math.inf)
                # One transfer from the device for all that is looked at.
                *numbers, length = torch.stack([*(t.detach().float() for t in chosen.values()), norm.float()]).tolist()
                values |= zip(chosen, numbers, strict=True)
                rates[player.phase.name], norms[player.phase.name] = player.rate(self.step), length
                if not all(map(math.isfinite, [*numbers, length])):
                    raise self._diverged(batch, values, player)
                player.move(self.step)
        with torch.no_grad():
            if encoded is not None:
                self.system.after_step({k: v.detach() for k, v in encoded.items()}, batch, at)
            decay = min(self.config.ema, (1 + self.step) / (10 + self.step))  # the first weights are soon forgotten
            for name, mean in self.ema.items():
                mean.lerp_(self.trained[name].detach(), 1 - decay)
        return values, rates, norms

    def _end_epoch(self) -> None:
        losses = {name: value / self.count for name, value in self.sums.items()}
        rates = {p.phase.name: p.rate(self.step - 1) for p in self.players if p.first < self.step <= p.last}
        entry: dict[str, Any] = {"epoch": self.epoch, "step": self.step, "losses": losses, "lr": rates, "validation": None}
        if self.scored:
            with self._evaluated():
                entry["validation"] = score = self._score()
                if self.best is None or score > self.best["score"]:
                    self.best, self.since_best = {"epoch": self.epoch, "step": self.step, "score": score}, 0
                    self.best_weights = {k: t.detach().clone() for k, t in self.system.state_dict().items()}
                else:
                    self.since_best += 1
            self.stopped = 0 < self.config.patience <= self.since_best
            self.bar.say(f"epoch {self.epoch}  loss {sum(losses.values()):.4f}  validation {score:.4f}")
        self.history.append(entry)
        self.metrics.write({"event": "epoch", **entry})
        self.epoch, self.position, self.count, self.sums = self.epoch + 1, 0, 0, {}
        self._checkpoint()

    def _score(self) -> float:
        """Of the system as it stands: ``validate``, or minus the mean validation loss."""
        seed_everything(seed_for(self.seed, "evaluation"))
        self.generator.manual_seed(seed_for(self.seed, "evaluation"))
        if self.validate is not None:
            score = float(self.validate(self.system))
        else:
            assert self.val_loader is not None
            at = Step(self.step, self.total, self.epoch, self.step / max(1, self.total), self.generator)
            total, clips = 0.0, 0
            for batch in self.val_loader.batches(0):
                with self._precision():
                    terms, _ = self.system(batch.to(self.device), at)
                total += len(batch) * sum(float(t) for t in terms.values())
                clips += len(batch)
            score = -total / clips
        if not math.isfinite(score):
            raise DivergedError(f"the validation score after step {self.step} is {score}.", hint=self._standing())
        return score

    def _finish(self) -> None:
        if self.best_weights:
            self.system.load_state_dict(self.best_weights)
        elif self.ema:
            self._exchange(self.ema)
        with self._hook("finish"):
            self.system.finish(_Batches(self, max(0, self.epoch - 1)))
        if self.checkpoints is not None:
            state = {k: t for k, t in self.system.state_dict().items()}
            write_checkpoint(self.checkpoints, "final", self._state(), {f"system/{k}": t for k, t in state.items()})

    def solve(self, folder: Path | None) -> FitResult:
        """A closed form: one pass over the training clips in their order, no step."""
        with self._hook("finish"):
            self.system.finish(_Batches(self, 0))
        if self.scored:
            with self._evaluated():
                score = self._score()
            self.best = {"epoch": 0, "step": 0, "score": score}
            self.history = [{"epoch": 0, "step": 0, "losses": {}, "lr": {}, "validation": score}]
        metrics = MetricsFile(folder / "metrics.jsonl" if folder else None)
        for entry in self.history:
            metrics.write({"event": "epoch", **entry})
        metrics.close()
        return self._result()

    def _result(self) -> FitResult:
        self.system.eval()
        return FitResult(self.system, self.step, self.epoch, tuple(self.history), self.best, self.stopped)

    # ---------------------------------------------------------------------------------------------------- modes of use
    def _precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    @contextmanager
    def _hook(self, *stream: str | int) -> Iterator[None]:
        """Around hooks that look at the data: evaluation mode, no gradient, randomness of their own."""
        seed_everything(seed_for(self.seed, *stream))
        self.system.eval()
        with torch.no_grad():
            yield

    @contextmanager
    def _evaluated(self) -> Iterator[None]:
        """The weights that count (the moving average where there is one), in evaluation mode, without gradient."""
        kept = {name: self.trained[name].detach().clone() for name in self.ema}
        self._exchange(self.ema)
        self.system.eval()
        with torch.no_grad():
            yield
        self._exchange(kept)

    def _exchange(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in weights.items():
                self.trained[name].copy_(value)

    def _stop_if_asked(self) -> None:
        if self.interrupt.asked:
            self.bar.say(f"interrupted at step {self.step}")
            self._checkpoint()
            raise KeyboardInterrupt

    # ------------------------------------------------------------------------------------------------------ checkpoints
    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "position": self.position,
            "stopped": self.stopped,
            "since_best": self.since_best,
            "best": self.best,
            "count": self.count,
            "sums": self.sums,
            "history": self.history,
            "metrics": self.metrics.settle(),
            "identity": self.identity,
        }

    def _checkpoint(self) -> None:
        if self.checkpoints is None:
            return
        tensors = {f"system/{k}": t for k, t in self.system.state_dict().items()}
        tensors |= {f"ema/{k}": t for k, t in self.ema.items()}
        tensors |= {f"best/{k}": t for k, t in self.best_weights.items()}
        for player in self.players:
            tensors |= {f"optimizer/{player.phase.name}/{k}": t for k, t in player.tensors().items()}
        write_checkpoint(self.checkpoints, f"step-{self.step:08d}", self._state(), tensors)

    def restore(self, found: Checkpoint) -> None:
        """Stand where the checkpoint was written."""
        state = found.state
        self.take(found)
        self.position, self.count, self.sums = state["position"], state["count"], dict(state["sums"])
        self.since_best, self.metrics_bytes = state["since_best"], state["metrics"]
        self.ema = {k: t.to(self.device) for k, t in found.part("ema").items()}
        self.best_weights = {k: t.to(self.device) for k, t in found.part("best").items()}
        for player in self.players:
            player.load(found.part(f"optimizer/{player.phase.name}"))

    def take(self, found: Checkpoint) -> FitResult:
        """The weights and the history of a checkpoint: all of a finished run."""
        try:
            self.system.load_state_dict(found.part("system"))
        except RuntimeError as error:
            raise StoreError("the checkpoint does not fit the system.", file=found.path) from error
        state = found.state
        self.step, self.epoch, self.stopped, self.best = state["step"], state["epoch"], state["stopped"], state["best"]
        self.history = list(state["history"])
        return self._result()

    # ------------------------------------------------------------------------------------------------------- divergence
    def _diverged(self, batch: Batch, values: Mapping[str, float], player: Player) -> DivergedError:
        """Which number went wrong, and the first thing that explains it: an input, a weight, or the gradient."""
        bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
        what = f"loss {', '.join(bad)}" if bad else "the gradient is not finite"
        what = f"step {self.step}: {what} at learning rate {player.rate(self.step):.3g}"
        for name, stream in batch.streams.items():
            rows = torch.isfinite(stream.data.float()).flatten(1).all(1).logical_not().nonzero().flatten().tolist()
            if rows:
                clip = batch.id[rows[0]]
                hint = "Remove or repair that clip."
                return DivergedError(f'{what}; {name} of clip "{clip}" has values that are not finite.', hint=hint)
        hint = f"Lower the learning rate or clip_norm. {self._standing()}".strip()
        for name, parameter in self.system.named_parameters():
            if not torch.isfinite(parameter).all():
                return DivergedError(f"{what}; the weight {name} is not finite.", hint=hint)
        for name, parameter in self.system.named_parameters():
            if not bad and parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                return DivergedError(f"{what}; first in {name}, with finite inputs and losses.", hint=hint)
        return DivergedError(f"{what}; inputs and weights are finite, so the objective overflowed.", hint=hint)

    def _standing(self) -> str:
        return f"The checkpoints in {self.checkpoints} stand." if self.checkpoints else ""


class _Batches:
    """The training clips in their order, once for each ``iter``, on the device: what hooks are given."""

    def __init__(self, run: _Run, epoch: int):
        self._run, self._epoch = run, epoch

    def __iter__(self) -> Iterator[Batch]:
        run = self._run
        size = run.config.batch_size
        loader = Loader(run.data, batch_size=size, seed=run.seed, shuffle=False, drop_last=False, workers=run.workers)
        for batch in loader.batches(self._epoch):
            yield batch.to(run.device)


class _Interrupt:
    asked = False


@contextmanager
def _interruptible() -> Iterator[_Interrupt]:
    """The first Ctrl-C only asks, so that no step is left half done; the second one interrupts at once."""
    interrupt = _Interrupt()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield interrupt
        return

    def ask(number: int, frame: Any) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True

    signal.signal(signal.SIGINT, ask)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def _accelerator() -> Accelerator:
    try:
        accelerator = Accelerator(mixed_precision="no", gradient_accumulation_steps=1)
    except ValueError as error:
        raise ConfigError(f"Accelerate is set up in another way in this process: {str(error)[:80]}") from error
    if accelerator.num_processes > 1:
        raise ConfigError("training in several processes is not supported.", hint="Start it without a launcher.")
    return accelerator


def _chosen(terms: Mapping[str, Tensor], player: Player) -> dict[str, Tensor]:
    """The terms that this player minimizes; ConfigError where the system and its phases do not fit together."""
    phase = player.phase
    missing = [name for name in phase.losses if name not in terms]
    if missing:
        raise ConfigError(f'phase "{phase.name}" asks for the loss "{missing[0]}".', hint=did_you_mean(missing[0], set(terms)))
    chosen = {name: terms[name] for name in phase.losses or terms}
    shaped = [name for name, term in chosen.items() if term.ndim]
    if shaped:
        raise ConfigError(f'the loss "{shaped[0]}" must be a scalar; its shape is {tuple(chosen[shaped[0]].shape)}.')
    if not any(term.requires_grad for term in chosen.values()):
        raise ConfigError(f'no loss of phase "{phase.name}" depends on a parameter that is trained.')
    return chosen


def _name(transform: Transform) -> str:
    """A name that is the same in another process: the repr of a dataclass, the qualified name of anything else."""
    if hasattr(transform, "__dataclass_fields__"):
        return repr(transform)
    return getattr(transform, "__qualname__", type(transform).__qualname__)
