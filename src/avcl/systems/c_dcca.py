"""C-DCCA: deep cluster-CCA, every sound with every picture of its class (Zeng, Yu, Oyama 2018, after Rasiwasia 2014).

Claim: deep CCA correlates a clip with its own partner; summed over all pairs of a class, the same loss makes two
networks agree on what the class looks and sounds like.

    h₁ = f(x), h₂ = g(y),   L = - Σ_{i≤k} σ_i( Σ₁₁^{-½} Σ₁₂ Σ₂₂^{-½} )                         σ_i: singular values

- ``pairs`` "all" (Rasiwasia et al. 2014, M = Σ_c n_c²): Σ₁₁ = 1/M Σ_c n_c Σ_{i∈c} h̄₁,i h̄₁,iᵀ + rI,
  Σ₁₂ = 1/M Σ_c (Σ_{i∈c} h̄₁,i)(Σ_{j∈c} h̄₂,j)ᵀ, means weighted by n_c
- "mixed" (Zeng et al. 2018): ordinary means, Σ₁₁ and Σ₂₂, and Σ₁₂ = β Σ₁₂_pair + (1 - β) Σ₁₂_class

The M pairs are never listed: class sums do. Two outputs are two bases; the linear cluster-CCA of all training outputs,
with ordinary means and Σ_mm and with β (0 for "all"), puts them into one space, in which cosines are taken.
``zeng2018_s_dcca`` is "mixed" with the networks, and the attention over a long sound, of its paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from avcl import system
from avcl.encoders.clip_perceptron import CanonicalPair, ClipPerceptron
from avcl.errors import ConfigError
from avcl.objectives.deep_correlation import cluster_cca
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec

CARD = Card(
    title="Deep cluster canonical correlation analysis",
    year=2018,
    venue="ISM",
    authors="D. Zeng, Y. Yu, K. Oyama (the loss); N. Rasiwasia et al. 2014 (covariances of all pairs of a class)",
    paper=(
        "VEGAS, mAP by class, 10 components: sound to picture .7034, picture to sound .6927 (as C-DCCA in the figure "
        "code of Zeng et al. 2020)",
        "VEGAS, the same: .722 and .716 (later tables of the same authors, recalled)",
    ),
    fidelity="reconstruction: the loss is deep CCA's with the covariances of cluster-CCA; the networks are those of "
    "the audio-visual papers that compare with it.",
    deviations=(
        "AdamW with warm-up and cosine instead of RMSprop at a constant rate: the one loop of this library.",
        "Rows are shuffled; the authors' code keeps their order, which decides the class mix of a batch.",
        "Inputs are normalized over the batch; media are read by two small convolutional towers that learn along.",
    ),
)


@dataclass(frozen=True)
class CDCCAConfig(MediaConfig):
    """Settings of ``c_dcca``."""

    epochs: int = 50
    batch_size: int = 200  # one sample of the covariances: at least five times the components
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    components: int = 10  # k: outputs of each network, and canonical components
    ridge: float = 1e-4  # r, in units of the variance of the outputs
    pairs: Literal["all", "mixed"] = "all"
    pair_weight: float = 0.2  # β of "mixed": share of the own pair in Σ₁₂
    hidden: tuple[int, ...] = (100, 100, 100)  # of both networks
    activation: str = "sigmoid"  # "sigmoid", "tanh", "relu", "gelu"
    dropout: float = 0.1
    frames: int = 4  # of media: full-size frames that the picture tower looks at

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "components": (1, MAX),
        "ridge": (0.0, MAX),
        "pair_weight": (0.0, 1.0),
        "hidden": (1, MAX),
        "dropout": (0.0, 0.99),
        "frames": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, components=2, hidden=(12, 8), dropout=0.0, frames=2)


class CDCCA(system.System):
    """Two networks, the cluster correlation as their loss, and the linear cluster-CCA of their outputs."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = CDCCAConfig
    similarity_name = "cosine"
    config: CDCCAConfig
    # Few steps, so GELU instead of sigmoids, which are slow to start, and twice the rate.
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        clips=2400,
        fresh=False,
        settings={"epochs": 6, "batch_size": 100, "activation": "gelu", "learning_rate": 2e-3},
        short={"epochs": 8, "batch_size": 32},
    )

    def __init__(self, config: CDCCAConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.modalities, c = config.chosen(spec), config
        if c.pairs not in ("all", "mixed"):
            raise ConfigError(f'pairs = "{c.pairs}" must be all or mixed.')
        if spec.n_classes < 2:
            hint = 'Add a "label" column, or take a system that learns from pairs alone, such as dcca.'
            raise ConfigError(f"cluster-CCA learns from classes, and the data have {spec.n_classes}.", hint=hint)
        views = {
            name: ClipPerceptron(
                spec.streams[name],
                hidden=c.hidden,
                dim=c.components,
                activation=c.activation,
                dropout=c.dropout,
                frames=c.frames,
                vocabulary=len(spec.vocabulary),
                offset=False,
            )
            for name in self.modalities
        }
        self.beta = c.pair_weight if c.pairs == "mixed" else None
        self.pair = CanonicalPair(
            views, c.components, classes=spec.n_classes, ridge=c.ridge, pair_weight=self.beta or 0.0
        )

    # --------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """The outputs of both networks [B, k], and which rows have both modalities [B]."""
        return self.pair.encode(batch)

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        c, (views, label) = self.config, self.pair.rows(encoded, batch)
        h1, h2 = views.values()
        return {"correlation": cluster_cca(h1, h2, label, dim=c.components, ridge=c.ridge, pair_weight=self.beta)}

    def after_step(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> None:
        """The common space follows the networks, so that validation during training means something."""
        self.pair.follow(encoded, batch)

    def finish(self, batches: Iterable[Batch]) -> None:
        """The common space of the trained networks: the linear cluster-CCA of all training outputs."""
        self.pair.fit(batches)

    # ---------------------------------------------------------------------------------------------------- capabilities
    def features(self, batch: Batch, modality: str) -> Tensor:
        """The output of the network in its own basis, before the linear CCA: float32 [B, k]."""
        return self.pair.features(batch, modality)

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """Canonical components of one modality, or of the sum of both ("audio+video"), of unit length: [B, k]."""
        return self.pair.embed(batch, modality)

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return normalize(q, dim=1) @ normalize(g, dim=1).T
