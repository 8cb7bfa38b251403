"""EICS: an explicit and an implicit common space at once, for sound and picture of one class (Zeng et al. 2021).

Claim: one common space drops what is special to a modality. So project into two: an explicit one learned from the given
pairs, and an implicit one in which each modality by itself is drawn to its labels. Retrieval uses both.

    e_m = E_m h_m, i_m = I_m h_m,   h_m = tanh(W₂ tanh(W₁ x_m))                   explicit [B, k], implicit [B, C]
    L  = λ₁ L_corr + λ₂ L_pair + λ₃ L_label
    L_corr  = - Σ_{i≤k} σ_i( Σ_aa^{-½} Σ_av Σ_vv^{-½} )      of e; Σ_av = β Σ_av,pair + (1 - β) Σ_av,class (cluster-CCA)
    L_pair  = 1/B Σ_i ‖e_a,i - e_v,i‖²
    L_label = 1/B ( ‖I_a - Y‖_F² + ‖I_v - Y‖_F² )            Y: one-hot rows; ``label_norm = "plain"``: ‖·‖_F + ‖·‖_F

An item is [ê ; î], both parts of unit length, so that the cosine weighs the two spaces alike. Correlation does not see
the basis, scale and mean of e: for ê it is first turned by the linear cluster-CCA of all training outputs, as in the
group's C-DCCA. ``space`` keeps one of the two alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.clip_vector import ClipVector, learn_vectors
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.canonical import ClusterCCA
from avcl.nn.dense import glorot
from avcl.objectives.deep_correlation import cluster_cca
from avcl.objectives.regularizers import frobenius, invariance
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream

CARD = Card(
    title="Learning explicit and implicit dual common subspaces for audio-visual cross-modal retrieval",
    year=2021,
    venue="ACM TOMM (2023)",
    authors="D. Zeng, J. Wu, G. Hattori, R. Xu, Y. Yu",
    survey={
        "paper": "Zeng et al., 2021",
        "objective": "Corr. + L2 + Frob. Norm",
        "learning": "Supervised",
        "application": "Cross-Modal (AV) Retrieval",
        "metric": "mAP",
        "performance": "77.8/30.8",
        "datasets": "VEGAS/AVE",
    },
    paper=(
        "VEGAS 77.8 and AVE 30.8, mAP by class, mean of both directions (Table 1 of the survey)",
        "VEGAS: sound to picture .797, picture to sound .779; AVE: .337 and .279 (later papers of the group, recalled, "
        "unverified; their VEGAS mean is 78.8)",
    ),
    fidelity="reconstruction: two spaces, correlation and distance of pairs in one, distance to the labels in the "
    "other, both used at test time, are in the abstract and the survey; layers, weights and fusion are ours.",
    deviations=(
        "Sizes, dropout, the three weights, the linear CCA behind the explicit space and the fusion by concatenation "
        "are our own choice: no code is public.",
        "The distance to the labels is squared and a mean over clips, which does not depend on the batch size; the "
        "plain norm is a setting.",
        "AdamW with warm-up and cosine: the one loop of this library.",
        "Media are read by two small convolutional towers that learn along, in place of VGGish and Inception.",
    ),
    original_license="no code",
)


@dataclass(frozen=True)
class EICSConfig(MediaConfig):
    """Settings of ``zeng2021_eics``."""

    epochs: int = 100
    batch_size: int = 200  # one sample of the covariances: at least five times the components
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    hidden: int = 1024
    dropout: float = 0.1
    components: int = 0  # k of the explicit space; 0: as many as there are classes
    ridge: float = 1e-4  # r, in units of the variance of e
    pair_weight: float = 0.2  # β
    correlation: float = 1.0  # λ₁; the term lies between -k and 0
    pair: float = 0.1  # λ₂
    label: float = 1.0  # λ₃
    label_norm: Literal["squared", "plain"] = "squared"
    space: Literal["both", "explicit", "implicit"] = "both"  # what an embedding is made of
    standardize: bool = True
    frames: int = 4  # of media: full-size frames that the picture tower looks at

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "hidden": (1, MAX),
        "dropout": (0.0, 0.99),
        "components": (0, MAX),
        "ridge": (0.0, MAX),
        "pair_weight": (0.0, 1.0),
        "correlation": (0.0, MAX),
        "pair": (0.0, MAX),
        "label": (0.0, MAX),
        "frames": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, hidden=16, dropout=0.0, components=2, frames=2)


class EICS(system.System):
    """An encoder and two heads for each modality."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = EICSConfig
    similarity_name = "cosine"
    config: EICSConfig
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        settings={"epochs": 8, "batch_size": 100, "learning_rate": 2e-3, "hidden": 256},
        short={"epochs": 8, "batch_size": 32},
    )

    def __init__(self, config: EICSConfig, spec: DataSpec):
        super().__init__(config, spec)
        c, self.modalities = config, config.chosen(spec)
        for key, known in (("label_norm", ("squared", "plain")), ("space", ("both", "explicit", "implicit"))):
            if getattr(c, key) not in known:
                raise ConfigError(f'{key} = "{getattr(c, key)}" is not one of {", ".join(known)}.')
        if len(self.modalities) != 2:
            listed = ", ".join(self.modalities)
            raise ConfigError(f"eics relates two modalities, not {listed}.", hint="Set modalities.")
        if spec.n_classes < 2:
            raise ConfigError(f"eics learns from classes, and the data have {spec.n_classes}.", hint="Add a label.")
        self.components = c.components or spec.n_classes
        vectors = {
            name: ClipVector(
                spec.streams[name],
                seconds=c.window,
                frames=c.frames,
                vocabulary=len(spec.vocabulary),
                standardize=c.standardize,
            )
            for name in self.modalities
        }
        self.vectors = nn.ModuleDict(vectors)
        self.encoders = nn.ModuleDict({name: _encoder(v.dim, c.hidden, c.dropout) for name, v in vectors.items()})
        self.explicit = nn.ModuleDict({name: glorot(c.hidden, self.components) for name in vectors})
        self.implicit = nn.ModuleDict({name: glorot(c.hidden, spec.n_classes) for name in vectors})
        self.cca = ClusterCCA(
            dict.fromkeys(vectors, self.components),
            self.components,
            classes=spec.n_classes,
            ridge=c.ridge,
            pair_weight=c.pair_weight,
        )

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of the features, before the first step."""
        if epoch == 0:
            learn_vectors({name: cast(ClipVector, self.vectors[name]) for name in self.modalities}, batches)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Of each modality e ("audio explicit" [B, k]), i ("audio implicit" [B, C]), and which rows have both [B]."""
        streams = dict(zip(self.modalities, batch.require(*self.modalities), strict=True))
        encoded = {"both": batch.complete(*streams)}
        for name, stream in streams.items():
            encoded[f"{name} explicit"], encoded[f"{name} implicit"] = self._spaces(stream, name)
        return encoded

    def _spaces(self, stream: Stream, name: str) -> tuple[Tensor, Tensor]:
        h = self.encoders[name](self.vectors[name](stream))
        return self.explicit[name](h).float(), self.implicit[name](h).float()

    def _pairs(self, encoded: Mapping[str, Tensor], space: str) -> tuple[Tensor, Tensor]:
        first, second = (encoded[f"{name} {space}"][encoded["both"]] for name in self.modalities)
        return first, second

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """The three terms, weights included; "correlation" is below zero."""
        c, label = self.config, batch.label[encoded["both"]]
        if bool((label < 0).any()):
            raise BatchError("zeng2021_eics needs a label for every clip.", hint="cca and infonce need none.")
        a, v = self._pairs(encoded, "explicit")
        corr = a.new_zeros(())
        # A handful of validation clips has no correlation to tell; in training that is refused.
        if c.correlation > 0 and (self.training or len(a) > self.components):
            corr = cluster_cca(a, v, label, dim=self.components, ridge=c.ridge, pair_weight=c.pair_weight)
        return {
            "correlation": c.correlation * corr,
            "pair": c.pair * invariance(a, v, distance="squared"),
            "label": c.label * self._label(self._pairs(encoded, "implicit"), label),
        }

    def _label(self, said: tuple[Tensor, Tensor], label: Tensor) -> Tensor:
        target = nn.functional.one_hot(label, self.spec.n_classes).to(said[0].dtype)
        squared = self.config.label_norm == "squared"
        norms = torch.stack([frobenius(i, target, squared=squared) for i in said]).sum()
        return norms / len(target) if squared else norms

    def _explicit(self, encoded: Mapping[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        rows = dict(zip(self.modalities, self._pairs(encoded, "explicit"), strict=True))
        return rows, batch.label[encoded["both"]]

    def after_step(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> None:
        """The basis of the explicit space follows the networks, so that validation during training means something."""
        self.cca.follow(*self._explicit(encoded, batch))

    @torch.no_grad()
    def finish(self, batches: Iterable[Batch]) -> None:
        """The basis of the explicit space: the linear cluster-CCA of all training outputs."""
        self.cca.fit(self._explicit(self.encode(batch), batch) for batch in batches)

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """[ê ; î], or the part that ``space`` names: float32 [B, k + C]."""
        if modality not in self.modalities:
            raise ConfigError(f'this model has no "{modality}".', hint=did_you_mean(modality, set(self.modalities)))
        (stream,) = batch.require(modality)
        e, i = self._spaces(stream, modality)
        parts = {"explicit": self.cca(e, modality).float(), "implicit": i}
        kept = [x for name, x in parts.items() if self.config.space in (name, "both")]
        return torch.cat([nn.functional.normalize(x, dim=1) for x in kept], 1)

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """Both spaces side by side, of one modality or of the sum of both ("audio+video"), of unit length."""
        parts = [
            nn.functional.normalize(self.features(batch, name), dim=1) * batch.streams[name].mask.any(1)[:, None]
            for name in modality.split("+")
        ]
        return nn.functional.normalize(torch.stack(parts).sum(0), dim=1)

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return nn.functional.normalize(q, dim=1) @ nn.functional.normalize(g, dim=1).T


def _encoder(width: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(glorot(width, hidden), nn.Tanh(), nn.Dropout(dropout), glorot(hidden, hidden), nn.Tanh())
