"""DCCAE: deep CCA with auto-encoders (Wang, Arora, Livescu, Bilmes 2015).

Claim: correlation alone lets the networks forget all of a modality that the other does not show; that they must also
reconstruct their inputs keeps them from correlating noise.

    L = - Σ_{i≤k} σ_i( Σ₁₁^{-½} Σ₁₂ Σ₂₂^{-½} )  +  λ / N Σ_n ( ‖x_n - p(f(x_n))‖² + ‖y_n - q(g(y_n))‖² )

f, g: perceptrons to k outputs, whose covariances are those of ``dcca``; p, q: decoders that mirror them. x, y: features
averaged over time, media summarized by fixed statistics, all columns standardized; so what is reconstructed cannot
shrink. L knows no basis: the linear CCA of all training outputs puts the two into one space, in which cosines are
taken. Labels are not looked at. λ = 0 is deep CCA.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from avcl import system
from avcl.encoders.clip_perceptron import CanonicalPair
from avcl.encoders.clip_vector import ClipVector, learn_vectors
from avcl.nn.dense import dense, glorot
from avcl.objectives.deep_correlation import deep_cca
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec

CARD = Card(
    title="On deep multi-view representation learning",
    year=2015,
    venue="ICML",
    authors="W. Wang, R. Arora, K. Livescu, J. Bilmes",
    paper=(
        "Pascal Sentence, mAP by class: picture to text .680, text to picture .671 (as DCCAE in the result figure of "
        "Zhen et al. 2019)",
    ),
    fidelity="paper: the objective with the analytic gradient of its correlation, in float64, and the closing linear "
    "CCA; networks and batches are those of the audio-visual papers that compare with it.",
    deviations=(
        "No pretraining by restricted Boltzmann machines; the auto-encoders learn along from the first step.",
        "AdamW with warm-up and cosine instead of descent with momentum: the one loop of this library.",
        "Media are summarized by fixed statistics, which decoders can reconstruct.",
    ),
)


@dataclass(frozen=True)
class DCCAEConfig(MediaConfig):
    """Settings of ``dccae``."""

    epochs: int = 50
    batch_size: int = 200  # one sample of the covariances: at least five times the components
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    components: int = 10  # k: outputs of each network, and canonical components
    ridge: float = 1e-4  # r, in units of the variance of the outputs
    reconstruction: float = 1e-2  # λ; the paper looks between 1e-3 and 1e-1
    hidden: tuple[int, ...] = (100, 100, 100)  # of both networks; the decoders have them in reverse
    activation: str = "sigmoid"  # "sigmoid", "tanh", "relu", "gelu"
    dropout: float = 0.1

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "components": (1, MAX),
        "ridge": (0.0, MAX),
        "reconstruction": (0.0, MAX),
        "hidden": (1, MAX),
        "dropout": (0.0, 0.99),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, components=2, hidden=(12, 8), dropout=0.0)


class DCCAE(system.System):
    """Two auto-encoders whose codes are correlated, and the linear CCA that turns the codes into one space."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = DCCAEConfig
    similarity_name = "cosine"
    config: DCCAEConfig
    # Few steps, so GELU instead of sigmoids, which are slow to start, and twice the rate.
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        clips=2400,
        fresh=False,
        settings={"epochs": 6, "batch_size": 100, "activation": "gelu", "learning_rate": 2e-3},
        short={"epochs": 12, "batch_size": 32},
        watch="correlation",
    )

    def __init__(self, config: DCCAEConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.modalities, c = config.chosen(spec), config
        vectors, encoders, decoders = {}, {}, {}
        for name in self.modalities:
            vectors[name] = ClipVector(spec.streams[name], seconds=c.window, vocabulary=len(spec.vocabulary))
            sizes, how = (vectors[name].dim, *c.hidden), {"activation": c.activation, "dropout": c.dropout}
            encoders[name] = nn.Sequential(*dense(sizes, **how), glorot(sizes[-1], c.components))  # type: ignore[arg-type]
            back = (c.components, *c.hidden[::-1])
            decoders[name] = nn.Sequential(*dense(back, **how), glorot(back[-1], sizes[0]))  # type: ignore[arg-type]
        self.vectors, self.encoders = vectors, encoders  # held by the views
        self.decoders = nn.ModuleDict(decoders)
        views = {name: nn.Sequential(vectors[name], encoders[name]) for name in self.modalities}
        self.pair = CanonicalPair(views, c.components, ridge=c.ridge)

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of the columns, before the first step."""
        if epoch == 0:
            learn_vectors(self.vectors, batches)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """The codes [B, k], the standardized inputs "audio:x" [B, D], and which rows have both modalities [B]."""
        encoded: dict[str, Tensor] = {}
        streams = dict(zip(self.modalities, batch.require(*self.modalities), strict=True))
        for name, stream in streams.items():
            x = self.vectors[name](stream)
            encoded[name], encoded[f"{name}:x"] = self.encoders[name](x), x
        return encoded | {"both": batch.complete(*streams)}

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        c, (codes, _) = self.config, self.pair.rows(encoded, batch)
        terms = {"correlation": deep_cca(*codes.values(), dim=c.components, ridge=c.ridge)}
        if c.reconstruction:
            missed = [
                (encoded[f"{name}:x"][encoded["both"]] - self.decoders[name](code)).square().sum(1).mean()
                for name, code in codes.items()
            ]
            terms["reconstruction"] = c.reconstruction * torch.stack(missed).sum()
        return terms

    def after_step(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> None:
        """The common space follows the networks, so that validation during training means something."""
        self.pair.follow(encoded, batch)

    def finish(self, batches: Iterable[Batch]) -> None:
        """The common space of the trained networks: the linear CCA of all training outputs."""
        self.pair.fit(batches)

    # ---------------------------------------------------------------------------------------------------- capabilities
    def features(self, batch: Batch, modality: str) -> Tensor:
        """The code in its own basis, before the linear CCA: float32 [B, k]."""
        return self.pair.features(batch, modality)

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """Canonical components of one modality, or of the sum of both ("audio+video"), of unit length: [B, k]."""
        return self.pair.embed(batch, modality)

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return normalize(q, dim=1) @ normalize(g, dim=1).T
