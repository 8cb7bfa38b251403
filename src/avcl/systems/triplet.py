"""Triplet loss across modalities: two networks, one space, what belongs together nearer than what does not.

Claim: the order of distances is all that retrieval needs, so it is learned directly: an anchor of one modality is to be
nearer to its positive of the other than to a negative, by a margin (Weinberger & Saul 2009; Schroff et al. 2015).

    z = f(x) / ‖f(x)‖, w = g(y) / ‖g(y)‖,    d_ij = ‖z_i - w_j‖² = 2 - 2 cos
    L = mean over (i, p, n) of max(0, d_ip - d_in + ζ) + the same with pictures as anchors

``positives`` "pair": p is the own partner, n any other clip; "label": p any clip of the same class, n one of another.
``mining`` "all": every triplet of the batch · "hard": of each anchor the farthest positive and the nearest negative ·
"semi-hard": for each positive the nearest negative that is farther than it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from avcl import system
from avcl.encoders.clip_perceptron import ClipPerceptron
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.objectives.triplets import Mining, triplet
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec

CARD = Card(
    title="FaceNet: a unified embedding for face recognition and clustering (the triplet loss, across modalities)",
    year=2015,
    venue="CVPR",
    authors="F. Schroff, D. Kalenichenko, J. Philbin",
    fidelity="paper: the loss and its mining, on squared distances of unit vectors; the two networks are small "
    "perceptrons, for it is the baseline of papers with two modalities.",
    deviations=(
        "Anchor and other two are of different modalities, in both directions.",
        "AdamW with warm-up and cosine: the one loop of this library.",
        "Inputs are normalized over the batch; media are read by two small convolutional towers that learn along.",
    ),
)


@dataclass(frozen=True)
class TripletConfig(MediaConfig):
    """Settings of ``triplet``."""

    epochs: int = 20
    batch_size: int = 100
    learning_rate: float = 1e-3
    positives: Literal["pair", "label"] = "label"
    mining: Mining = "all"
    margin: float = 0.4  # ζ, in squared distance: .2 in cosine
    own_pair: bool = True  # the own partner is one of the positives by label
    reduction: Literal["valid", "active"] = "active"  # "active": easy triplets do not dilute the others
    dim: int = 64  # of the common space
    hidden: tuple[int, ...] = (256,)
    activation: str = "gelu"  # "sigmoid", "tanh", "relu", "gelu"
    dropout: float = 0.1
    frames: int = 4  # of media: full-size frames that the picture tower looks at

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "margin": (0.0, 4.0),
        "dim": (1, MAX),
        "hidden": (1, MAX),
        "dropout": (0.0, 0.99),
        "frames": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, dim=12, hidden=(16,), dropout=0.0, frames=2)


class Triplet(system.System):
    """Two networks to the unit sphere, and the triplet loss in both directions."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = TripletConfig
    similarity_name = "cosine"
    config: TripletConfig
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        clips=2400,
        fresh=False,
        settings={"epochs": 6, "learning_rate": 2e-3},
        short={"epochs": 8, "batch_size": 32},
    )

    def __init__(self, config: TripletConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.modalities, c = config.chosen(spec), config
        if len(self.modalities) != 2:
            raise ConfigError(
                f"triplet relates two modalities, not {', '.join(self.modalities)}.", hint="Set modalities."
            )
        if c.positives not in ("pair", "label"):
            raise ConfigError(f'positives = "{c.positives}" must be pair or label.')
        if c.positives == "pair" and not c.own_pair:
            raise ConfigError('own_pair = false leaves no positive with positives = "pair".')
        self.views = nn.ModuleDict(
            {
                name: ClipPerceptron(
                    spec.streams[name],
                    hidden=c.hidden,
                    dim=c.dim,
                    activation=c.activation,
                    dropout=c.dropout,
                    frames=c.frames,
                    vocabulary=len(spec.vocabulary),
                )
                for name in self.modalities
            }
        )

    # --------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """z of both modalities [B, dim], and which rows have both modalities, "both" [B]."""
        streams = dict(zip(self.modalities, batch.require(*self.modalities), strict=True))
        encoded = {name: normalize(self.views[name](stream).float(), dim=1) for name, stream in streams.items()}
        return encoded | {"both": batch.complete(*streams)}

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        c, both = self.config, encoded["both"]
        first, second = (encoded[name][both] for name in self.modalities)
        label = batch.label[both] if c.positives == "label" else None
        if label is not None and bool((label < 0).any()):
            raise BatchError('positives = "label" needs a label for every clip.', hint='Set positives="pair".')
        loss = triplet(
            first, second, label=label, margin=c.margin, mining=c.mining, own_pair=c.own_pair, reduction=c.reduction
        )
        return {"triplet": loss}

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """One modality, or the sum of both ("audio+video"), of unit length: float32 [B, dim]."""
        parts = []
        for name in modality.split("+"):
            if name not in self.views:
                raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
            (stream,) = batch.require(name)
            parts.append(normalize(self.views[name](stream).float(), dim=1) * stream.mask.any(1)[:, None])
        return normalize(torch.stack(parts).sum(0), dim=1)

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return normalize(q, dim=1) @ normalize(g, dim=1).T
