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
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.clips import PictureTower, SoundTower, in_unit_range
from avcl.encoders.recurrent import Recurrent
from avcl.encoders.statistics import summarize, summary_dim
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.aggregation import masked_softmax
from avcl.nn.canonical import ClusterCCA
from avcl.nn.dense import dense, glorot
from avcl.objectives.deep_correlation import cluster_cca
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream, StreamSpec

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


class _View(nn.Module):
    """f or g: what stands for the clip [B, D], normalized over the batch, and the perceptron, [B, k]."""

    def __init__(self, name: str, spec: StreamSpec, config: SDCCAConfig, vocabulary: int):
        super().__init__()
        self.spec, self.config, self.vocabulary = spec, config, vocabulary
        self.tower: PictureTower | SoundTower | None = None
        if spec.kind == "video":
            self.tower = PictureTower(config.frames)
        elif spec.kind == "audio":
            self.tower = SoundTower()
        width = summary_dim(spec, vocabulary) if self.tower is None else self.tower.dim
        self.chunks: TopChunks | None = None
        if config.chunks and name == "audio" and spec.kind in ("features", "audio"):
            width = width if self.tower is None else self.tower.sequence_dim
            self.chunks = TopChunks(width, config.chunks, config.lstm)
        sizes = (width, *(config.hidden_video if name == "video" else config.hidden))
        layers = dense(sizes, activation=config.activation, dropout=config.dropout)
        self.net = nn.Sequential(nn.BatchNorm1d(width), *layers, glorot(sizes[-1], config.components))

    def forward(self, stream: Stream) -> Tensor:
        """Rows without a recorded step take no part in the statistics of the batch, and are zeros."""
        x, there = self.clip(in_unit_range(stream)).float(), stream.mask.any(1)
        if self.training and int(there.sum()) < 2:
            raise BatchError("s-dcca normalizes over the clips of a batch (or micro-batch) and needs two or more.")
        if bool(there.all()):
            return self.net(x)
        out = x.new_zeros(len(x), self.config.components)
        out[there] = self.net(x[there]).to(out.dtype)
        return out

    def clip(self, stream: Stream) -> Tensor:
        seen = None if self.tower is None else self.tower(stream)
        if self.chunks is not None:
            return self.chunks(stream if seen is None else seen.sequence)
        if seen is None:
            return summarize(stream, self.spec, seconds=self.config.window, vocabulary=self.vocabulary)
        return seen.pooled


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
        self.modalities = config.chosen(spec)
        words, k = len(spec.vocabulary), config.components
        self.cca = ClusterCCA(
            dict.fromkeys(self.modalities, k),
            k,
            classes=spec.n_classes,
            ridge=config.ridge,
            pair_weight=config.pair_weight,
        )
        self.views = nn.ModuleDict({name: _View(name, spec.streams[name], config, words) for name in self.modalities})

    # --------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """The outputs of both networks [B, k], and which rows have both modalities [B]."""
        streams = dict(zip(self.modalities, batch.require(*self.modalities), strict=True))
        encoded = {name: self.views[name](stream) for name, stream in streams.items()}
        return encoded | {"both": batch.complete(*streams)}

    def _labeled(self, encoded: Mapping[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The outputs and labels of the rows that have both modalities."""
        both = encoded["both"]
        label = batch.label[both]
        if bool((label < 0).any()):
            raise BatchError("zeng2018_s_dcca needs a label for every clip.", hint="cca and infonce need none.")
        return {name: encoded[name][both] for name in self.modalities}, label

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        c, (views, label) = self.config, self._labeled(encoded, batch)
        h1, h2 = views.values()
        return {"correlation": cluster_cca(h1, h2, label, dim=c.components, ridge=c.ridge, pair_weight=c.pair_weight)}

    def after_step(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> None:
        """The common space follows the networks, so that validation during training means something."""
        self.cca.follow(*self._labeled(encoded, batch))

    @torch.no_grad()
    def finish(self, batches: Iterable[Batch]) -> None:
        """The common space of the trained networks: the linear cluster-CCA of all training outputs."""
        self.cca.fit(self._labeled(self.encode(batch), batch) for batch in batches)

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """The output of the network in its own basis, before the linear CCA: float32 [B, k]."""
        view, (stream,) = self._view(modality), batch.require(modality)
        return view(stream).float()

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """Canonical components of one modality, or of the sum of both ("audio+video"), of unit length: [B, k]."""
        total = self.cca.mean.new_zeros(len(batch), self.cca.components)
        for name in modality.split("+"):
            unit = nn.functional.normalize(self.cca(self.features(batch, name), name), dim=1)
            total += unit * batch.streams[name].mask.any(1)[:, None]
        return nn.functional.normalize(total, dim=1).float()

    def _view(self, name: str) -> nn.Module:
        if name not in self.views:
            raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
        return self.views[name]

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return nn.functional.normalize(q, dim=1) @ nn.functional.normalize(g, dim=1).T
