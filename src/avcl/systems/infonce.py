"""InfoNCE: two towers, one space, every other clip of the batch a negative.

Claim: the moment itself is the label. Of the B sounds of a batch, the one recorded with a picture is to be nearer to
it than all others, in both directions (van den Oord et al. 2018; between modalities as in Radford et al. 2021):

    L = ½ (L_av + L_va),   L_av = -1/B Σ_i log ( exp(s_ii/τ) / Σ_j exp(s_ij/τ) ),   s = cosine,   τ learned, 1/τ ≤ 100

Raw media: the picture tower looks twice, at a few frames in full size (what is there) and at all frames in 16 × 16
gray with their change (when it moves); the sound tower reads the log-mel. An embedding holds what is there, pooled
over time, and a time-resolved signature of when it happens, so that the cosine weighs agreement in kind and in
timing. Features: one MLP each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.clips import PictureTower, Seen, SoundTower, in_unit_range
from avcl.encoders.mlp import MLP
from avcl.encoders.tokens import TokenConv
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.pooling import masked_mean
from avcl.nn.projection import WhatWhen
from avcl.objectives.contrastive import info_nce
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream, StreamSpec

CARD = Card(
    title="Two towers under symmetric InfoNCE",
    year=2018,
    venue="arXiv",
    authors="A. van den Oord, Y. Li, O. Vinyals (objective); A. Radford et al. 2021 (symmetric form)",
    fidelity="The objective is exact; the towers are our own and small enough for one processor core.",
    deviations=(
        "Towers, embedding with a time-resolved part and a batch of 64 instead of thousands: what two cores can train.",
        "Half of the similarity is agreement in time where both sides are media, as timing identifies a pair.",
    ),
)


@dataclass(frozen=True)
class InfoNCEConfig(MediaConfig):
    """Settings of ``infonce``."""

    learning_rate: float = 2e-3
    positives: Literal["pair", "label"] = "pair"  # the own partner alone, or every clip of the same label
    temperature: float = 0.07  # at the start
    width: int = 128  # of the pooled part of the embedding
    channels: int = 8  # of the time-resolved part
    steps: int = 24  # slots of the time-resolved part in one window
    timing: float = 0.5  # share of the cosine that the time-resolved part has
    hidden: int = 512  # units of the feature towers
    depth: int = 1  # hidden layers of the feature towers
    dropout: float = 0.1  # in the feature towers
    frames: int = 4  # full-size frames that the picture tower looks at

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "temperature": (0.01, MAX),  # 1/τ is kept below 100
        "width": (1, MAX),
        "channels": (1, MAX),
        "steps": (1, MAX),
        "timing": (0.0, 1.0),
        "hidden": (1, MAX),
        "depth": (0, 100),
        "dropout": (0.0, 0.99),
        "frames": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, width=16, hidden=32, frames=2)


class _Sequence(nn.Module):
    """Features or tokens: no timing that sound and picture could share, so the mean over the steps is all."""

    def __init__(self, encoder: MLP | TokenConv):
        super().__init__()
        self.encoder, self.dim = encoder, encoder.dim

    def forward(self, stream: Stream) -> Seen:
        seen = self.encoder(stream)
        return Seen(masked_mean(seen.data, seen.mask), None)


def _tower(spec: StreamSpec, config: InfoNCEConfig, vocabulary: int) -> PictureTower | SoundTower | _Sequence:
    if spec.kind == "video":
        return PictureTower(config.frames)
    if spec.kind == "audio":
        return SoundTower()
    if spec.kind in ("features", "map"):
        mlp = MLP(spec.shape[-1], hidden=config.hidden, dim=config.hidden, depth=config.depth, dropout=config.dropout)
        return _Sequence(mlp)
    if spec.kind == "tokens":
        return _Sequence(TokenConv(vocabulary or 256, dim=128))
    raise ConfigError(f'infonce has no tower for a stream of kind "{spec.kind}".')


class _Pooled(nn.Module):
    """The head of a modality without timing: a linear map of the pooled feature."""

    def __init__(self, pooled: int, width: int):
        super().__init__()
        self.what = nn.Linear(pooled, width)

    def forward(self, pooled: Tensor, sequence: Stream | None) -> Tensor:
        return self.what(pooled)


class InfoNCE(system.System):
    """One tower and one head for each modality; the loss runs over every pair of modalities."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = InfoNCEConfig
    similarity_name = "cosine"
    config: InfoNCEConfig
    # The recipe of the demo at half its length: part of the sounds at another moment, so that class is learned too.
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "pair"},
        retime=0.7,
        settings={"epochs": 6},
        short={"epochs": 8, "batch_size": 32},
    )

    def __init__(self, config: InfoNCEConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.modalities = config.chosen(spec)
        if config.positives not in ("pair", "label"):
            raise ConfigError(f'positives = "{config.positives}" is not "pair" or "label".')
        streams = {name: spec.streams[name] for name in self.modalities}
        towers = {name: _tower(stream, config, len(spec.vocabulary)) for name, stream in streams.items()}
        timed = all(stream.kind in ("audio", "video") for stream in streams.values())
        self.towers = nn.ModuleDict(towers)
        self.heads = nn.ModuleDict({name: self._head(tower, timed) for name, tower in towers.items()})
        # The scale 1/τ as a logarithm: a step changes it by a factor.
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def _head(self, tower: PictureTower | SoundTower | _Sequence, timed: bool) -> nn.Module:
        c = self.config
        if not timed or isinstance(tower, _Sequence):
            return _Pooled(tower.dim, c.width)
        shape = {"channels": c.channels, "steps": c.steps}
        return WhatWhen(tower.dim, tower.sequence_dim, c.width, seconds=c.window, weight=c.timing, **shape)

    @property
    def temperature(self) -> Tensor:
        return self.log_scale.clamp(max=math.log(100)).neg().exp()

    # --------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """The embedding of each modality [B, D], which rows have it ("audio?" [B] bool), and the labels."""
        encoded = {"label": batch.label}
        for name, stream in zip(self.modalities, batch.require(*self.modalities), strict=True):
            encoded[name] = self._embedding(stream, name)
            encoded[f"{name}?"] = stream.mask.any(1)
        return encoded

    def _embedding(self, stream: Stream, name: str) -> Tensor:
        raw = self.heads[name](*self.towers[name](in_unit_range(stream)))
        return nn.functional.normalize(raw.float(), dim=1)

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """One term for every pair of modalities, over the clips that have both."""
        terms = {}
        for a, b in itertools.combinations(self.modalities, 2):
            both = encoded[f"{a}?"] & encoded[f"{b}?"]
            if not bool(both.any()):
                raise BatchError(f"no clip of the batch has both {a} and {b}.")
            label = encoded["label"][both]
            if self.config.positives == "label" and bool((label < 0).any()):
                raise BatchError('positives = "label" needs a label for every clip.')
            same = label[:, None] == label if self.config.positives == "label" else None
            terms[f"{a}_{b}"] = info_nce(
                encoded[a][both], encoded[b][both], temperature=self.temperature, positives=same
            )
        return terms

    # ---------------------------------------------------------------------------------------------------- capabilities
    def _known(self, modality: str) -> tuple[str, ...]:
        names = tuple(modality.split("+"))
        for name in names:
            if name not in self.modalities:
                raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
        return names

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """Embeddings of one modality, or of the sum of several ("audio+text"), of unit length: float32 [B, D]."""
        names = self._known(modality)
        parts = [
            self._embedding(stream, name) * stream.mask.any(1)[:, None]
            for name, stream in zip(names, batch.require(*names), strict=True)
        ]
        return nn.functional.normalize(torch.stack(parts).sum(0), dim=1)

    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """The pooled output of the tower before the head: float32 [B, P], of several modalities side by side."""
        names = self._known(modality)
        streams = batch.require(*names)
        pooled = [self.towers[name](in_unit_range(stream)).pooled for name, stream in zip(names, streams, strict=True)]
        return torch.cat(pooled, 1).float()

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return nn.functional.normalize(q, dim=1) @ nn.functional.normalize(g, dim=1).T
