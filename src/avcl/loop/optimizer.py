"""One player of the training: a phase with its AdamW and its learning-rate curve.

    rate(s) = peak · (s + 1) / w                                for the first w = warmup · n steps of the phase's n
    rate(s) = peak · ½ (1 + cos(π (s - w) / (n - w)))           afterwards, tied to steps, not to epochs

Biases, norm gains and temperatures (tensors of one axis or none) are not decayed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW

from avcl.errors import ConfigError, StoreError, did_you_mean
from avcl.system import Config, Phase

FUSED = ("cpu", "cuda")  # where torch has the whole step as one kernel


class Player:
    """A phase in play. Its settings are those of ``config`` unless ``phase.optimizer`` names others.

    ``phase.optimizer`` may hold learning_rate, weight_decay, warmup, clip_norm, beta1, beta2, eps.
    """

    def __init__(self, phase: Phase, config: Config, total: int):
        settings = {
            "learning_rate": config.learning_rate,
            "weight_decay": config.weight_decay,
            "warmup": config.warmup,
            "clip_norm": config.clip_norm,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
        }
        for key in phase.optimizer:
            if key not in settings:
                hint = did_you_mean(key, set(settings))
                raise ConfigError(f'"{key}" is not a setting of the optimizer of phase "{phase.name}".', hint=hint)
        settings |= phase.optimizer
        self.phase = phase
        decayed = [p for p in phase.parameters if p.requires_grad and p.ndim > 1]
        plain = [p for p in phase.parameters if p.requires_grad and p.ndim <= 1]
        self.parameters: list[nn.Parameter] = [*decayed, *plain]
        if not self.parameters:
            raise ConfigError(f'the phase "{phase.name}" has no parameter to train.')
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = AdamW(
            [group for group in groups if group["params"]],
            lr=settings["learning_rate"],
            betas=(settings["beta1"], settings["beta2"]),
            eps=settings["eps"],
            weight_decay=settings["weight_decay"],
            # One pass over the weights instead of one for each term of the rule: of a wide perceptron on features the
            # plain step takes longer than its gradients.
            fused=all(p.is_floating_point() and p.device.type in FUSED for p in self.parameters),
        )
        self.peak, self.clip_norm = settings["learning_rate"], settings["clip_norm"]
        self.first = math.ceil(phase.start * total)
        self.last = math.ceil(phase.end * total)  # exclusive
        self.warm = round(settings["warmup"] * (self.last - self.first))

    def plays(self, step: int) -> bool:
        return self.first <= step < self.last and step % self.phase.every == 0

    def rate(self, step: int) -> float:
        """The learning rate of this step."""
        position, length = step - self.first, self.last - self.first
        if position < self.warm:
            return self.peak * (position + 1) / self.warm
        return self.peak * 0.5 * (1 + math.cos(math.pi * (position - self.warm) / max(1, length - self.warm)))

    def move(self, step: int) -> None:
        """One optimizer step with the gradients that stand in the parameters, at the rate of this step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """{"<number of the parameter>/<key>": tensor}: the whole state of the optimizer."""
        state = self.optimizer.state
        return {f"{i}/{key}": t for i, p in enumerate(self.parameters) for key, t in state.get(p, {}).items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``tensors``; StoreError where they belong to other parameters."""
        for name, value in tensors.items():
            number, _, key = name.partition("/")
            if not number.isdigit() or int(number) >= len(self.parameters):
                raise StoreError(f'the checkpoint knows other parameters of phase "{self.phase.name}".')
            parameter = self.parameters[int(number)]
            # AdamW counts its steps on the CPU, and beside the weights where the step is one kernel.
            beside = key != "step" or self.optimizer.defaults["fused"]
            self.optimizer.state[parameter][key] = value.to(parameter.device) if beside else value


def make_players(phases: Sequence[Phase], config: Config, total: int) -> list[Player]:
    """The players of a run; ConfigError where there is none, or two bear one name."""
    names = [phase.name for phase in phases]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"the phases of a system need different names, not {names}.")
    return [Player(phase, config, total) for phase in phases]
