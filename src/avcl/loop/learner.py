"""What one batch does to a system: every player's turn, the moving average, and the cause of a non-finite number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from avcl.errors import ConfigError, DivergedError, StoreError, did_you_mean
from avcl.loop.checkpoint import Checkpoint
from avcl.loop.chunks import Cached, Chunks
from avcl.loop.optimizer import Player, make_players
from avcl.loop.processes import Processes, accelerator
from avcl.seeds import seed_everything, seed_for
from avcl.system import Config, Step, System
from avcl.types import Batch


class Turn(NamedTuple):
    """What one batch did: loss by name, learning rate and gradient norm (before clipping) by phase."""

    losses: dict[str, float]
    lr: dict[str, float]
    grad_norm: dict[str, float]


class Learner:
    """A system with its optimizers, moving average and best weights, on the device that Accelerate chose.

    The moving average is that of the trained weights; banks and statistics (buffers) are always the newest. With
    several ``processes`` every one of them holds the same, and starts with the weights of the first.
    """

    def __init__(self, system: System, total: int, seed: int, processes: Processes | None = None):
        self.config: Config = system.config
        precision = self.config.precision
        if precision not in ("no", "bf16"):
            raise ConfigError(f'precision = "{precision}" is not known.', hint=did_you_mean(precision, {"no", "bf16"}))
        self.system, self.total, self.seed = system, total, seed
        self.processes = processes or Processes()
        self.accelerator = accelerator()
        self.device = self.accelerator.device
        system.to(self.device)
        with torch.no_grad():
            self.processes.copy_first([*system.parameters(), *system.buffers()])
        self.generator = torch.Generator(device=self.device)
        self.players: list[Player] = []
        if not system.closed_form:
            self.players = make_players(system.phases(), system.config, total)
        self.trained = {name: p for name, p in system.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.trained.items()} if self.config.ema else {}
        self.best: dict[str, Tensor] = {}

    # ----------------------------------------------------------------------------------------------------- one batch
    def learn(self, chunks: Chunks, step: int, epoch: int) -> Turn:
        """Optimizer step ``step``; all its randomness follows from the seed and ``step``."""
        if self._whole(chunks):
            chunks.only()  # made before the random state is set
        seed_everything(seed_for(self.seed, "step", step))
        self.generator.manual_seed(seed_for(self.seed, "loss", step))
        at = Step(step, self.total, epoch, step / self.total, self.generator)
        turn = Turn({}, {}, {})
        encoded: Mapping[str, Tensor] | None = None
        players = [player for player in self.players if player.plays(step) for _ in range(player.phase.repeat)]
        for number, player in enumerate(players):
            encoded, batch = self._play(player, chunks, at, turn, seed_for(self.seed, "step", step, "turn", number))
        with torch.no_grad():
            if encoded is not None:
                self.system.after_step({k: v.detach() for k, v in encoded.items()}, batch, at)
            decay = min(self.config.ema, (1 + step) / (10 + step))  # the first weights are soon forgotten
            for name, mean in self.ema.items():
                mean.lerp_(self.trained[name].detach(), 1 - decay)
        return turn

    def _whole(self, chunks: Chunks) -> bool:
        """Whether the batch is encoded at once, here: then its losses may see its streams."""
        return chunks.count == 1 and self.processes.count == 1

    def _cached(self, chunks: Chunks, seed: int, processes: Processes | None = None) -> Cached:
        return Cached(self.system, chunks, seed=seed, processes=processes, precision=self.precision)

    def _play(
        self, player: Player, chunks: Chunks, at: Step, turn: Turn, seed: int
    ) -> tuple[Mapping[str, Tensor], Batch]:
        cached = None if self._whole(chunks) else self._cached(chunks, seed, self.processes)
        at = at._replace(turn=player.phase.name)
        if cached is None:
            batch = chunks.only()
            with self.precision():
                terms, encoded = self.system(batch, at)
        else:
            encoded, batch = cached.encode()
            with self.precision():
                terms = self.system.losses(encoded, batch, at)
        chosen = _chosen(terms, player)
        loss = sum(chosen.values(), torch.zeros((), device=self.device))
        # Only this player's gradients: those of the others would be wasted, and wrong at their turn.
        if cached is None:
            self.accelerator.backward(loss, inputs=player.parameters)
        else:
            cached.backward(loss, player.parameters)
        norm = get_total_norm([p.grad for p in player.parameters if p.grad is not None])
        # One transfer from the device for all the numbers that are looked at.
        *values, length = torch.stack([*(t.detach().float() for t in chosen.values()), norm.float()]).tolist()
        turn.losses.update(zip(chosen, values, strict=True))
        turn.lr[player.phase.name], turn.grad_norm[player.phase.name] = player.rate(at.step), length
        if not all(map(math.isfinite, [*values, length])):
            raise self._diverged(chunks, turn, player, at.step)
        if player.clip_norm:  # after the check, for clipping by a norm that is not finite would spoil every gradient
            clip_grads_with_norm_(player.parameters, player.clip_norm, norm)
        player.move(at.step)
        return encoded, batch

    def loss(self, chunks: Chunks, at: Step) -> tuple[float, int]:
        """The sum of all terms without a step, and the number of clips. Of this process alone."""
        if chunks.count == 1:
            batch = chunks.only()
            with self.precision():
                terms, _ = self.system(batch, at)
        else:
            cached = self._cached(chunks, seed_for(self.seed, "evaluation"))
            encoded, batch = cached.encode(gradient=False)
            with self.precision():
                terms = self.system.losses(encoded, batch, at)
        return sum(float(t) for t in terms.values()), len(batch)

    def precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    # ----------------------------------------------------------------------------------------------- weights that count
    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """The weights that count (the moving average where there is one), in evaluation mode, without gradient."""
        kept = {name: self.trained[name].detach().clone() for name in self.ema}
        self._put(self.ema)
        self.system.eval()
        with torch.no_grad():
            yield
        self._put(kept)

    def keep_best(self) -> None:
        self.best = {name: t.detach().clone() for name, t in self.system.state_dict().items()}

    def settle(self) -> None:
        """The system holds what is to be kept: the best weights, else the moving average, else what it has."""
        if self.best:
            self.system.load_state_dict(self.best)
        else:
            self._put(self.ema)

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in weights.items():
                self.trained[name].copy_(value)

    # ------------------------------------------------------------------------------------------------------ checkpoints
    def tensors(self) -> dict[str, Tensor]:
        """Everything here that the next step depends on, by the names of a checkpoint."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "system": self.system.state_dict(),
            "ema": self.ema,
            "best": self.best,
        }
        parts |= {f"optimizer/{player.phase.name}": player.tensors() for player in self.players}
        return {f"{part}/{name}": t for part, tensors in parts.items() for name, t in tensors.items()}

    def load(self, found: Checkpoint) -> None:
        """The inverse of ``tensors``; StoreError where the checkpoint does not fit the system."""
        try:
            self.system.load_state_dict(found.part("system"))
        except RuntimeError as error:
            raise StoreError("the checkpoint does not fit the system.", file=found.path) from error
        self.ema = {name: t.to(self.device) for name, t in found.part("ema").items()}
        self.best = {name: t.to(self.device) for name, t in found.part("best").items()}
        for player in self.players:
            player.load(found.part(f"optimizer/{player.phase.name}"))

    # ------------------------------------------------------------------------------------------------------- divergence
    def _diverged(self, chunks: Chunks, turn: Turn, player: Player, step: int) -> DivergedError:
        """Which number went wrong, and the first thing that explains it: an input, a weight, or the gradient."""
        bad = [f"{name} = {value}" for name, value in turn.losses.items() if not math.isfinite(value)]
        what = f"loss {', '.join(bad)}" if bad else "the gradient is not finite"
        what = f"step {step}: {what} at learning rate {player.rate(step):.3g}"
        found = self.processes.shared(lambda: next(filter(None, map(_bad_clip, chunks)), None))
        cause = next(filter(None, found), None)
        if cause is not None:
            return DivergedError(f"{what}; {cause}", hint="Repair or remove that clip.")
        named = list(self.system.named_parameters())
        weights = [name for name, p in named if not torch.isfinite(p).all()]
        gradients = [name for name, p in named if p.grad is not None and not torch.isfinite(p.grad).all()]
        if weights:
            cause = f"the weight {weights[0]} is not finite."
        elif bad:
            cause = "inputs and weights are finite, so the objective overflowed."
        else:
            cause = f"first in {gradients[0]}, while inputs, weights and losses are finite."
        return DivergedError(f"{what}; {cause}", hint="Lower the learning rate or clip_norm.")


def _bad_clip(batch: Batch) -> str | None:
    """The first clip whose input is not finite, in words."""
    for name, stream in batch.streams.items():
        rows = torch.isfinite(stream.data.flatten(1)).all(1).logical_not().nonzero().flatten().tolist()
        if rows:
            return f'{name} of clip "{batch.id[rows[0]]}" has values that are not finite.'
    return None


def _chosen(terms: Mapping[str, Tensor], player: Player) -> dict[str, Tensor]:
    """The terms that this player minimizes; ConfigError where the system and its phases do not fit together."""
    phase = player.phase
    for name in phase.losses:
        if name not in terms:
            what = f'the phase "{phase.name}" minimizes a loss "{name}" that the system does not have.'
            raise ConfigError(what, hint=did_you_mean(name, set(terms)))
    chosen = {name: terms[name] for name in phase.losses or terms}
    for name, term in chosen.items():
        if term.ndim:
            raise ConfigError(f'the loss "{name}" must be a scalar; its shape is {tuple(term.shape)}.')
    if not any(term.requires_grad for term in chosen.values()):
        raise ConfigError(f'no loss of the phase "{phase.name}" depends on a parameter that is trained.')
    return chosen
