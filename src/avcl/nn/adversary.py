"""The adversary that tells modalities apart, so that the encoders learn to hide which one a code came from."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, one_hot

from avcl.errors import BatchError, ConfigError
from avcl.nn.judging import SLOPE
from avcl.nn.players import Norm, frozen, normalized
from avcl.objectives.adversarial import (
    gradient_penalty,
    modality_confusion,
    modality_discriminator,
    reverse_gradient,
    wgan_critic,
)
from avcl.objectives.inputs import at_least
from avcl.objectives.inputs import classes as checked_classes
from avcl.objectives.schedules import Constant, Schedule
from avcl.types import Stream

AdversaryMode = Literal["reversal", "minmax", "uniform", "swapped", "wgan"]


class Game(NamedTuple):
    """What both players minimize, and how often the discriminator is right (detached, chance: 1 / modalities)."""

    discriminator: Tensor
    encoders: Tensor
    accuracy: Tensor


class ModalityAdversary(nn.Module):
    r"""A small network D reads the modality of a code; the encoders want it to fail. With strength λ and M modalities:

    ``L_D = 1/M Σ_m mean CE(D(sg z_m), m)`` in all modes but "wgan", and for the encoders, D's parameters frozen,

    ``reversal``: the same value on ``R(z)``, whose gradient is turned to -λ times itself (Ganin & Lempitsky 2015) ·
    ``minmax``: ``-λ L_D``, the same gradient with the value of what is minimized (Wang et al. 2017, ACMR) ·
    ``uniform``: ``λ · 1/M Σ_m mean`` cross-entropy with 1/M each, ≥ λ log M, the stable choice (Tzeng et al. 2015) ·
    ``swapped``: λ times cross-entropy with the other modalities (inverted labels; Zheng et al. 2021, AML) ·
    ``wgan``: a critic of two modalities: ``L_D = mean D(z̃) - mean D(z)``, ``λ (mean D(z) - mean D(z̃))`` for the
    encoders, z the ``anchor`` (else the first). It is bounded by spectral norm, or by ``penalty`` times the gradient
    penalty (Gulrajani et al. 2017), or by ``clip``: every weight held in [-clip, clip] (Arjovsky et al. 2017).

    ``anchor``: that modality is what the others must look like; it gets no gradient (knowledge transfer, as text in
    Seo et al. 2020: "swapped" with an anchor is their non-saturating game). ``classes``: D is told the label too.
    ``norm``: spectral unless ``penalty`` or ``clip`` bound it already.

    ``forward(codes, step=at.step)``: codes {modality: [N, dim], or Stream [B, T, dim] of which the recorded steps
    count}, every modality with equal weight however many rows it has; ``strength``, a number or a schedule, is taken
    at ``step``. Neither loss reaches the other player, so both may be summed in one phase, or be those of two phases.

    Pitfalls, measured (three draws of 4 classes, 1792 pairs, 200 - 800 steps): (1) Never score alignment by this
    discriminator or its accuracy, but by a FRESH probe: beside a class loss alone, "uniform" leaves the modality
    readable at 1.00 while its own accuracy falls to .64 - .76. Accuracy below chance is overshoot, not alignment.
    (2) It aligns marginals, not pairs; MRR .19 - .24 with the class loss, with or without it. Add it to a pair, metric
    or class-center loss: with a pair term of weight .1 the probe is at .50 - .54 and MRR at .34 - .40 (chance .03),
    which the pair term alone reaches too: the adversary is for where pairs are few. (3) More is not better: without
    spectral norm, four steps of D for each of the encoders undid the pair term and the classes (probe 1.00, MRR .01,
    accuracy .31). (4) "wgan" with the penalty circles around (probe .87 - 1.00); bounded by spectral norm or clipping,
    λ = .1 and 5 steps of the critic, it does not (.50).
    """

    def __init__(
        self,
        dim: int,
        *,
        modalities: tuple[str, ...] = ("audio", "video"),
        hidden: tuple[int, ...] = (64,),
        mode: AdversaryMode = "uniform",
        strength: Schedule | float = 1.0,
        anchor: str | None = None,
        classes: int = 0,
        penalty: float = 0.0,
        clip: float = 0.0,
        norm: Norm | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        if mode not in get_args(AdversaryMode):
            raise ConfigError(f"mode = {mode!r} must be one of {', '.join(get_args(AdversaryMode))}.")
        if len(modalities) < 2 or len(set(modalities)) < len(modalities):
            raise ConfigError(f"an adversary needs two modalities or more, all different, not {modalities}.")
        if mode == "wgan" and len(modalities) > 2:
            raise ConfigError(f"mode = 'wgan' compares two modalities, not {len(modalities)}.")
        if anchor is not None and anchor not in modalities:
            raise ConfigError(f"anchor = {anchor!r} is not one of {', '.join(modalities)}.")
        if dim < 1 or classes < 0 or min(hidden, default=0) < 1:
            raise ConfigError(f"an adversary needs dim and hidden widths above 0, not {dim} and {hidden}.")
        at_least("penalty", penalty)
        at_least("clip", clip)
        if penalty and clip:
            raise ConfigError(f"penalty = {penalty} and clip = {clip} bound the critic twice: give one of them.")
        if not callable(strength):
            at_least("strength", strength)
        self.dim, self.modalities, self.mode, self.anchor, self.classes = dim, modalities, mode, anchor, classes
        self.strength: Schedule = strength if callable(strength) else Constant(value=strength)
        self.penalty, self.clip = penalty, clip
        bounded = mode == "wgan" and (penalty > 0 or clip > 0)
        if norm is None:
            norm = "none" if bounded else "spectral"
        if mode == "wgan" and norm != "spectral" and not bounded:
            raise ConfigError("a critic without a bound runs to infinity: spectral norm, penalty or clip.")
        widths = (dim + classes, *hidden)
        self.layers = nn.ModuleList(normalized(nn.Linear(i, o), norm) for i, o in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.last = normalized(nn.Linear(hidden[-1], 1 if mode == "wgan" else len(modalities)), norm)

    def logits(self, rows: Tensor, label: Tensor | None = None) -> Tensor:
        """D of codes [N, dim]: [N, M] logits, or [N, 1] scores of the critic."""
        if self.clip and self.mode == "wgan":
            for p in self.parameters():
                # Not a change of the graph: within one, no weight is out of bounds twice. Hence .data.
                p.data.clamp_(-self.clip, self.clip)
        if (label is None) != (self.classes == 0):
            raise BatchError("an adversary with classes needs the label of each row, one without needs none.")
        if label is not None:
            told = one_hot(checked_classes("the adversary", label, len(rows), self.classes), self.classes)
            rows = torch.cat([rows, told.to(rows.dtype)], 1)
        for layer in self.layers:
            rows = self.dropout(leaky_relu(layer(rows), SLOPE))
        return self.last(rows)

    def forward(
        self,
        codes: Mapping[str, Tensor | Stream],
        *,
        label: Tensor | None = None,
        step: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Game:
        """Both losses and the accuracy.

        ``label`` [N] (of a Stream: of its items) where it has ``classes``; ``generator`` draws for the penalty.
        """
        strength = self.strength(step)
        at_least("strength", strength)
        rows, labels = {}, {}
        for name, code in codes.items():
            if name not in self.modalities:
                raise BatchError(f'"{name}" is not a modality of this adversary: {", ".join(self.modalities)}.')
            data, of = _recorded(name, code, label, self.dim)
            if len(data):
                rows[name], labels[name] = data, of
        if not rows:
            raise BatchError("nothing was recorded in any modality.")
        if self.mode == "wgan":
            return self._critic(rows, labels, strength, generator)
        right, told, hidden = [], [], []
        for name, data in rows.items():
            target = torch.full((len(data),), self.modalities.index(name), device=data.device)
            logits = self.logits(data.detach(), labels[name])
            told.append(modality_discriminator(logits, target))
            right.append((logits.detach().argmax(1) == target).float().mean())
            if name == self.anchor:
                continue
            with frozen(self):
                seen = reverse_gradient(data, strength) if self.mode == "reversal" else data
                logits = self.logits(seen, labels[name])
            if self.mode in ("reversal", "minmax"):
                value = modality_discriminator(logits, target)
                hidden.append(-strength * value if self.mode == "minmax" else value)
            else:
                kind: Literal["uniform", "swapped"] = "uniform" if self.mode == "uniform" else "swapped"
                hidden.append(strength * modality_confusion(logits, target, target=kind))
        encoders = torch.stack(hidden).mean() if hidden else told[0].new_zeros(())
        return Game(torch.stack(told).mean(), encoders, torch.stack(right).mean())

    def _critic(
        self,
        rows: Mapping[str, Tensor],
        labels: Mapping[str, Tensor | None],
        strength: float,
        generator: torch.Generator | None,
    ) -> Game:
        first = self.anchor or self.modalities[0]
        second = next(name for name in self.modalities if name != first)
        if len(rows) < 2:
            raise BatchError("the critic compares two modalities; nothing was recorded in one of them.")
        real, fake = rows[first], rows[second]
        scores = [self.logits(rows[name].detach(), labels[name])[:, 0] for name in (first, second)]
        critic = wgan_critic(*scores)
        if self.penalty:
            critic = critic + self.penalty * self._slope(real, fake, labels[first], labels[second], generator)
        with frozen(self):
            away = self.logits(fake, labels[second]).float().mean()
            there = self.logits(real if self.anchor is None else real.detach(), labels[first]).float().mean()
        high, low = (s.detach().float() for s in scores)
        middle = (high.mean() + low.mean()) / 2
        accuracy = ((high > middle).float().mean() + (low <= middle).float().mean()) / 2
        return Game(critic, strength * (there - away), accuracy)

    def _slope(
        self,
        real: Tensor,
        fake: Tensor,
        real_label: Tensor | None,
        fake_label: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The gradient penalty between rows that are drawn together, as many as the smaller side has."""
        count = min(len(real), len(fake))
        device = real.device if generator is None else generator.device
        chosen = [torch.randperm(len(x), generator=generator, device=device)[:count].to(x.device) for x in (real, fake)]
        label = None if real_label is None else real_label[chosen[0]]
        return gradient_penalty(lambda x: self.logits(x, label), real[chosen[0]], fake[chosen[1]], generator=generator)


def _recorded(name: str, code: Tensor | Stream, label: Tensor | None, dim: int) -> tuple[Tensor, Tensor | None]:
    """The codes that count [N, dim], and the label of each."""
    data, mask = (code.data, code.mask) if isinstance(code, Stream) else (code, None)
    if data.ndim != (2 if mask is None else 3) or data.shape[-1] != dim or not data.is_floating_point():
        raise BatchError(f"{name} must be [N, {dim}] or a Stream [B, T, {dim}], not {data.dtype} {tuple(data.shape)}.")
    if label is not None and len(label) != len(data):
        raise BatchError(f"{name} has {len(data)} rows for {len(label)} labels.")
    if mask is None:
        return data, label
    return data[mask], None if label is None else label[:, None].expand(mask.shape)[mask]
