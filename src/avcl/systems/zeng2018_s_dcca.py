"""S-DCCA: supervised deep CCA, music to video and back by what kind of clip it is (Zeng, Yu, Oyama 2018).

Claim: two networks trained to correlate not only a sound with its own picture but with every picture of its class
bring clips of one class together, whichever video they come from.

    h₁ = f(x), h₂ = g(y)                                     x, y: features of sound and picture, averaged over time
    L  = - Σ_{i≤k} σ_i( Σ₁₁^{-½} Σ₁₂ Σ₂₂^{-½} )              σ_i: singular values; Σ_mm = h̄_mᵀh̄_m / (B - 1) + rI
    Σ₁₂ = β h̄₁ᵀh̄₂ / (B - 1) + (1 - β) / M Σ_c (Σ_{i∈c} h̄₁,i)(Σ_{j∈c} h̄₂,j)ᵀ          c: classes, M = Σ_c n_c²

f and g are perceptrons with sigmoids between. L does not change when h₁ or h₂ is multiplied by any invertible matrix,
so the two outputs lie in bases of their own. Only the linear cluster-CCA of all training outputs, with the same r and
β, puts them into one space, in which cosines are taken. β = 1 is the unsupervised deep CCA.

A long sound is first summarized (``chunks`` = k > 0): an LSTM h_t over its steps, e_t = uᵀ tanh(W h_t), and the mean of
the k steps with the largest e, weighted by the softmax of e over those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.clip_perceptron import CanonicalPair, ClipPerceptron
from avcl.encoders.recurrent import Recurrent
from avcl.errors import ConfigError
from avcl.nn.aggregation import masked_softmax
from avcl.objectives.deep_correlation import cluster_cca
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream

CARD = Card(
    title="Audio-visual embedding for cross-modal music video retrieval through supervised deep CCA",
    year=2018,
    venue="ISM",
    authors="D. Zeng, Y. Yu, K. Oyama",
    paper=(
        "VEGAS, mAP by class, 10 components: sound to picture .7034, picture to sound .6927 (C-DCCA; figure code of "
        "the 2020 paper of the same authors)",
        "VEGAS, the same: C-CCA .6516 and .6435, CCA .3243 and .3211 (figure code of the 2020 paper)",
    ),
    fidelity="reconstruction: the objective and the S-DCCA layer sizes are those of the authors' code; which of its "
    "three configurations the paper used, and k of the sound's chunks, are not known.",
    deviations=(
        "AdamW with warm-up and cosine instead of RMSprop at a constant rate: the one loop of this library.",
        "Rows are shuffled; the authors' code keeps their order, which decides the class mix of a batch.",
        "Singular values are the largest and are summed; the authors' code takes the smallest, or a Frobenius norm.",
        "The class sums select the rows of a class; several copies of the authors' code repeat rows 0 and 1 instead.",
        "The kept chunks are weighted by their scores, because a mere choice passes no gradient to the scores.",
        "Media are read by two small convolutional towers that learn along, for want of the pretrained features.",
    ),
    original_license="none stated",
)


@dataclass(frozen=True)
class SDCCAConfig(MediaConfig):
    """Settings of ``zeng2018_s_dcca``."""

    epochs: int = 100
    batch_size: int = 200  # one sample of the covariances: at least five times the components
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    components: int = 10  # k: outputs of each network, and canonical components
    ridge: float = 1e-4  # r, in units of the variance of the outputs
    pair_weight: float = 0.2  # β: share of the own pair in Σ₁₂
    hidden: tuple[int, ...] = (128, 128, 64)  # of the sound (and of text)
    hidden_video: tuple[int, ...] = (256, 256, 128)
    activation: str = "sigmoid"  # "sigmoid", "tanh", "relu", "gelu"
    dropout: float = 0.2
    chunks: int = 0  # how many steps of a long sound are kept; 0: the mean of all
    lstm: int = 512  # units of the LSTM that scores them
    frames: int = 4  # of media: full-size frames that the picture tower looks at

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "components": (1, MAX),
        "ridge": (0.0, MAX),
        "pair_weight": (0.0, 1.0),
        "hidden": (1, MAX),
        "hidden_video": (1, MAX),
        "dropout": (0.0, 0.99),
        "chunks": (0, MAX),
        "lstm": (1, MAX),
        "frames": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, components=2, hidden=(12, 8), hidden_video=(16, 8), dropout=0.0, frames=2)


class TopChunks(nn.Module):
    """The k steps that matter, as one vector: features [B, T, D] to [B, D]."""

    def __init__(self, features: int, count: int, units: int):
        super().__init__()
        self.count = count
        self.lstm = Recurrent(features, hidden=units, cell="lstm", depth=2, bidirectional=False, dropout=0.1)
        self.score = nn.Sequential(nn.Linear(self.lstm.dim, units), nn.Tanh(), nn.Linear(units, 1, bias=False))

    def forward(self, stream: Stream) -> Tensor:
        score = self.score(self.lstm(stream).data)  # [B, T, 1]
        least = score.masked_fill(~stream.mask[:, :, None], -torch.inf).topk(min(self.count, score.shape[1]), 1)
        kept = stream.mask & (score >= least.values[:, -1:])[:, :, 0]
        return (masked_softmax(score, kept) * stream.data).sum(1)


class SDCCA(system.System):
    """Two networks, the correlation loss, and the linear cluster-CCA that turns their outputs into one space."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = SDCCAConfig
    similarity_name = "cosine"
    config: SDCCAConfig
    # Few steps, so GELU instead of sigmoids, which are slow to start, and twice the rate.
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        settings={"epochs": 6, "batch_size": 100, "activation": "gelu", "learning_rate": 2e-3},
        short={"epochs": 8, "batch_size": 32},
    )

    def __init__(self, config: SDCCAConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.modalities, c = config.chosen(spec), config
        if spec.n_classes < 2:
            hint = 'Add a "label" column, or take a system that learns from pairs alone, such as dcca.'
            raise ConfigError(f"s-dcca learns from classes, and the data have {spec.n_classes}.", hint=hint)
        views = {name: self._view(name, spec) for name in self.modalities}
        self.pair = CanonicalPair(views, c.components, classes=spec.n_classes, ridge=c.ridge, pair_weight=c.pair_weight)

    def _view(self, name: str, spec: DataSpec) -> ClipPerceptron:
        """f or g. A long sound is summarized by its best chunks, everything else by its mean."""
        c, stream = self.config, spec.streams[name]
        chunked = c.chunks > 0 and name == "audio" and stream.kind in ("features", "audio")
        return ClipPerceptron(
            stream,
            hidden=c.hidden_video if name == "video" else c.hidden,
            dim=c.components,
            activation=c.activation,
            dropout=c.dropout,
            frames=c.frames,
            vocabulary=len(spec.vocabulary),
            pool=partial(TopChunks, count=c.chunks, units=c.lstm) if chunked else None,
        )

    # --------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """The outputs of both networks [B, k], and which rows have both modalities [B]."""
        return self.pair.encode(batch)

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        c, (views, label) = self.config, self.pair.rows(encoded, batch)
        h1, h2 = views.values()
        return {"correlation": cluster_cca(h1, h2, label, dim=c.components, ridge=c.ridge, pair_weight=c.pair_weight)}

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
        return nn.functional.normalize(q, dim=1) @ nn.functional.normalize(g, dim=1).T
