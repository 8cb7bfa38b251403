"""Deep CCA: two networks whose outputs correlate as much as they can (Andrew, Arora, Bilmes, Livescu 2013).

Claim: what linear CCA cannot see, because it is bent differently in the two modalities, two networks can straighten
out; all they are told is which sound belongs to which picture.

    h₁ = f(x), h₂ = g(y)                         perceptrons; x, y: what stands for sound and picture of a clip
    L  = - Σ_{i≤k} σ_i( Σ₁₁^{-½} Σ₁₂ Σ₂₂^{-½} )   σ_i: singular values
    Σ_mm = h̄_mᵀh̄_m / (B - 1) + rI, Σ₁₂ = h̄₁ᵀh̄₂ / (B - 1)

The batch is one sample of the correlation, so it must be large beside k. L does not change when h₁ or h₂ is multiplied
by any invertible matrix: only the linear CCA of all training outputs puts the two into one space, in which cosines are
taken. Labels are not looked at.
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
from avcl.objectives.deep_correlation import deep_cca
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec

CARD = Card(
    title="Deep canonical correlation analysis",
    year=2013,
    venue="ICML",
    authors="G. Andrew, R. Arora, J. Bilmes, K. Livescu",
    paper=(
        "Pascal Sentence, mAP by class: picture to text .678, text to picture .677 (as DCCA in the result figure of "
        "Zhen et al. 2019)",
    ),
    fidelity="paper: the objective with its analytic gradient, in float64, and the closing linear CCA; networks and "
    "batches are those of the audio-visual papers that compare with it.",
    deviations=(
        "Sigmoids instead of the paper's cube-root unit, and no pretraining by denoising auto-encoders.",
        "Large batches of stochastic descent (Wang et al. 2015) instead of full-batch L-BFGS; AdamW with warm-up and "
        "cosine: the one loop of this library.",
        "Inputs are normalized over the batch; media are read by two small convolutional towers that learn along.",
    ),
)


@dataclass(frozen=True)
class DCCAConfig(MediaConfig):
    """Settings of ``dcca``."""

    epochs: int = 50
    batch_size: int = 200  # one sample of the covariances: at least five times the components
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    components: int = 10  # k: outputs of each network, and canonical components
    ridge: float = 1e-4  # r, in units of the variance of the outputs
    norm: Literal["trace", "frobenius"] = "trace"  # "frobenius": (Σ σ²)^½, which some published code minimizes
    hidden: tuple[int, ...] = (100, 100, 100)  # of both networks
    activation: str = "sigmoid"  # "sigmoid", "tanh", "relu", "gelu"
    dropout: float = 0.1
    frames: int = 4  # of media: full-size frames that the picture tower looks at

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "components": (1, MAX),
        "ridge": (0.0, MAX),
        "hidden": (1, MAX),
        "dropout": (0.0, 0.99),
        "frames": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, components=2, hidden=(12, 8), dropout=0.0, frames=2)


class DCCA(system.System):
    """Two networks, the correlation loss, and the linear CCA that turns their outputs into one space."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = DCCAConfig
    similarity_name = "cosine"
    config: DCCAConfig
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

    def __init__(self, config: DCCAConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.modalities, c = config.chosen(spec), config
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
        self.pair = CanonicalPair(views, c.components, ridge=c.ridge)

    # --------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """The outputs of both networks [B, k], and which rows have both modalities [B]."""
        return self.pair.encode(batch)

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        c, (views, _) = self.config, self.pair.rows(encoded, batch)
        return {"correlation": deep_cca(*views.values(), dim=c.components, ridge=c.ridge, norm=c.norm)}

    def after_step(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> None:
        """The common space follows the networks, so that validation during training means something."""
        self.pair.follow(encoded, batch)

    def finish(self, batches: Iterable[Batch]) -> None:
        """The common space of the trained networks: the linear CCA of all training outputs."""
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
