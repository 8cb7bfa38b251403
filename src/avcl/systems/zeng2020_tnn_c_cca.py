"""TNN-C-CCA: triplet networks on top of cluster-CCA, sound and picture of one class together (Zeng, Yu, Oyama 2020).

Claim: linear cluster-CCA finds the directions that sound and picture of a class share; networks trained with triplets
across the modalities then pull a class together and push the others away, which no correlation does by itself.

    p_m = (x_m - mean_m) W_m          W from Σ₁₂ = β Σ₁₂_pair + (1 - β) Σ₁₂_class, in closed form before the first step
    z_m = σ(tanh(... tanh(p_m W₁) ...))                        three hidden layers; one network for both modalities
    L   = mean over (a, p, n) of max(0, ‖z_a - z_p‖² - ‖z_a - z_n‖² + ζ)

Anchor a: a sound; positive p: the picture of another clip of its class; negative n: a picture of another class; all
valid triplets of the batch count. Cosine of z decides.

Features are averaged over time, media summarized by fixed statistics; the columns of either are brought to unit
variance. With ``order = "cca-last"`` the networks (then one for each modality) read the features themselves, and the
cluster-CCA is that of their outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.statistics import summarize, summary_dim
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.canonical import ClusterCCA
from avcl.nn.dense import dense
from avcl.objectives.triplets import triplet
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec

CARD = Card(
    title="Deep triplet neural networks with cluster-CCA for audio-visual cross-modal retrieval",
    year=2020,
    venue="ACM TOMM",
    authors="D. Zeng, Y. Yu, K. Oyama",
    survey={
        "paper": "Zeng et al., 2020",
        "objective": "T",
        "learning": "Supervised",
        "application": "Cross-Modal (AV) Retrieval",
        "metric": "mAP",
        "performance": "74.2",
        "datasets": "VEGAS",
    },
    paper=(
        "VEGAS, mAP by class, 10 components: sound to picture .7466, picture to sound .7377, mean .7422 (the authors' "
        "figure code)",
        "VEGAS, the same, C-DCCA: .7034 and .6927; C-CCA: .6516 and .6435; CCA: .3243 and .3211 (the authors' figure "
        "code)",
    ),
    fidelity="reconstruction: layers, margin, β, r and batch size are those of the authors' code, which has both "
    "orders of the two parts; which of them gave the published figure is not known.",
    deviations=(
        "AdamW without weight decay, with warm-up and cosine, instead of Adam at a constant rate: the one loop of this "
        "library.",
        "Rows are shuffled; the authors' code cuts the training set into fixed batches in its order.",
        "In the order cca-last the inputs are normalized over the batch and the CCA is that of the classes; the "
        "authors' script feeds raw features and turns the classes off.",
        "Media are summarized by fixed statistics, for want of the pretrained features.",
    ),
    original_license="none stated",
)


@dataclass(frozen=True)
class TNNCCCAConfig(MediaConfig):
    """Settings of ``zeng2020_tnn_c_cca``."""

    epochs: int = 10
    batch_size: int = 45  # as many as one of the 500 batches that the authors cut their training set into
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    order: Literal["cca-first", "cca-last"] = "cca-first"
    components: int = 10  # of the cluster-CCA, and outputs of the networks
    ridge: float = 1e-4  # r of the cluster-CCA; in units of the variance of the columns
    pair_weight: float = 0.2  # β: share of the own pair in Σ₁₂
    hidden: tuple[int, ...] = (100, 100, 100)
    dropout: float = 0.1
    margin: float = 0.4  # ζ, in squared distance
    shared: bool = True  # one network for both modalities; with cca-last there are always two
    own_pair: bool = False  # the own picture of a sound is one of its positives too
    symmetric: bool = False  # pictures are anchors too

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "components": (1, MAX),
        "ridge": (0.0, MAX),
        "pair_weight": (0.0, 1.0),
        "hidden": (1, MAX),
        "dropout": (0.0, 0.99),
        "margin": (0.0, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, components=4, hidden=(12, 8), dropout=0.0, own_pair=True)


def _branch(width: int, config: TNNCCCAConfig) -> nn.Sequential:
    """p or x to z [B, k] in (0, 1): tanh layers and a sigmoid on top of the last of them."""
    net = nn.Sequential(
        *dense((width, *config.hidden, config.components), activation="tanh", dropout=config.dropout), nn.Sigmoid()
    )
    for layer in list(net)[3:]:  # all but the first, which keeps Glorot's start
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.05)
    return net


class TNNCCCA(system.System):
    """Cluster-CCA and triplet networks, one on top of the other."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = TNNCCCAConfig
    similarity_name = "cosine"
    config: TNNCCCAConfig
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        settings={"epochs": 5, "ridge": 0.1},
        short={"epochs": 10, "batch_size": 32},
    )

    def __init__(self, config: TNNCCCAConfig, spec: DataSpec):
        super().__init__(config, spec)
        if config.order not in ("cca-first", "cca-last"):
            raise ConfigError(f'order = "{config.order}" is not "cca-first" or "cca-last".')
        self.modalities, self.first = config.chosen(spec), config.order == "cca-first"
        widths = {name: summary_dim(spec.streams[name], len(spec.vocabulary)) for name in self.modalities}
        k = config.components
        media = tuple(name for name in self.modalities if spec.streams[name].kind not in ("features", "map"))
        self.cca = ClusterCCA(
            widths if self.first else dict.fromkeys(widths, k),
            k,
            classes=spec.n_classes,
            ridge=config.ridge,
            pair_weight=config.pair_weight,
            standardize=media if self.first else (),
        )
        if self.first:
            nets = [_branch(self.cca.components, config) for _ in range(1 if config.shared else 2)]
        else:
            nets = [nn.Sequential(nn.BatchNorm1d(w), *_branch(w, config)) for w in widths.values()]
        self.branches = nn.ModuleList(nets)

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """The cluster-CCA of the features, before the first step."""
        if self.first and epoch == 0:
            self.cca.fit(self._labeled(self._summaries(batch), batch) for batch in batches)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """z of both modalities [B, k], and which rows have both [B]."""
        summaries = self._summaries(batch)
        return {name: self._code(summaries[name], name) for name in self.modalities} | {"both": summaries["both"]}

    def _summaries(self, batch: Batch) -> dict[str, Tensor]:
        """x of both modalities [B, D] in float64, and which rows have both [B]."""
        streams = dict(zip(self.modalities, batch.require(*self.modalities), strict=True))
        both = batch.complete(*streams)
        return {name: self._summary(batch, name) for name in streams} | {"both": both}

    def _summary(self, batch: Batch, name: str) -> Tensor:
        (stream,) = batch.require(name)
        spec, words = self.spec.streams[name], len(self.spec.vocabulary)
        return summarize(stream, spec, seconds=self.config.window, vocabulary=words)

    def _code(self, summary: Tensor, name: str) -> Tensor:
        net = self.branches[self.modalities.index(name) % len(self.branches)]
        return net((self.cca(summary, name) if self.first else summary).float())

    def _labeled(self, encoded: Mapping[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The rows that have both modalities, and their labels."""
        label = batch.label[encoded["both"]]
        if bool((label < 0).any()):
            raise BatchError("zeng2020_tnn_c_cca needs a label for every clip.", hint="cca and infonce need none.")
        return {name: encoded[name][encoded["both"]] for name in self.modalities}, label

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        views, label = self._labeled(encoded, batch)
        sound, picture = views.values()
        c, anchors = self.config, (1.0, 1.0 if self.config.symmetric else 0.0)
        loss = triplet(sound, picture, label=label, own_pair=c.own_pair, margin=c.margin, weights=anchors)
        return {"triplet": loss}

    def after_step(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> None:
        """The space of the outputs follows the networks, so that validation during training means something."""
        if not self.first:
            self.cca.follow(*self._labeled(encoded, batch))

    @torch.no_grad()
    def finish(self, batches: Iterable[Batch]) -> None:
        """The cluster-CCA of the outputs of the trained networks, where it comes last."""
        if not self.first:
            self.cca.fit(self._labeled(self.encode(batch), batch) for batch in batches)

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """The output of the network: float32 [B, k]."""
        self._check(modality)
        return self._code(self._summary(batch, modality), modality).float()

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """One modality, or the sum of both ("audio+video"), of unit length: float32 [B, k]."""
        parts = []
        for name in modality.split("+"):
            z = self.features(batch, name)
            z = nn.functional.normalize(z if self.first else self.cca(z, name).float(), dim=1)
            parts.append(z * batch.streams[name].mask.any(1)[:, None])
        return nn.functional.normalize(torch.stack(parts).sum(0), dim=1)

    def _check(self, name: str) -> None:
        if name not in self.modalities:
            raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return nn.functional.normalize(q, dim=1) @ nn.functional.normalize(g, dim=1).T
