"""DSCMR: deep supervised cross-modal retrieval, pictures and texts of one class together (Zhen, Hu, Wang, Peng 2019).

Claim: if the last layers of both networks are shared, and labels speak in the label space as well as in the common
space, the gap between the modalities closes and cosines there rank by class.

    u = W relu(W₁ x), v = W relu(W₂ y)          common space; W shared · p(u) = P u, p(v) = P v: label space, P shared
    L   = J₁ + α J₂ + β J₃
    J₁  = 1/B Σ_i ( ‖P u_i - y_i‖ + ‖P v_i - y_i‖ )                                  y_i: one-hot row of the label
    J₂  = Σ over (u, v), (u, u), (v, v) of 1/B² Σ_ij [ log(1 + e^{Θ_ij}) - S_ij Θ_ij ],  Θ = ½ cos,  S_ij = 1[y_i = y_j]
    J₃  = 1/B Σ_i ‖u_i - v_i‖

There is neither a center loss nor a softmax. ``form = "frobenius"`` takes the norms of J₁ and J₃ over the whole batch,
as the paper prints them: (1/B) ‖P U - Y‖_F and (1/B) ‖U - V‖_F.
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
from avcl.objectives.classification import label_distance, label_likelihood
from avcl.objectives.regularizers import frobenius, invariance
from avcl.system import MAX, MediaConfig, Phase, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream

CARD = Card(
    title="Deep supervised cross-modal retrieval",
    year=2019,
    venue="CVPR",
    authors="L. Zhen, P. Hu, X. Wang, D. Peng",
    survey={
        "paper": "Zhen et al., 2019",
        "objective": "CE + Center + L2",
        "learning": "Supervised",
        "application": "Cross-Modal (IT) Retrieval",
        "metric": "mAP",
        "performance": "71.6/61.3",
        "datasets": "Pascal Sentence/NUS-WIDE-10k",
    },
    paper=(
        "Pascal Sentence, mAP by class: picture to text .710, text to picture .722, mean .716; there CCA .226, DCCA "
        ".678, ACMR .673 (authors' result figure). The released code takes the best epoch of the test set.",
        "NUS-WIDE-10k .611 and .615, Wikipedia .521 and .478, XMediaNet .697 and .693 (recalled, unverified)",
    ),
    fidelity="official: networks, losses, weights, batch size and rate are those of the authors' released code; the "
    "survey's center loss and cross-entropy are not in it.",
    deviations=(
        "AdamW without weight decay, with warm-up and cosine, instead of Adam at a constant rate: the one loop of this "
        "library. A fifth of the 500 epochs, for the rate falls.",
        "Rows are shuffled; the released loader keeps the order of data that are sorted by class, so that a batch "
        "holds few classes.",
        "Epochs are selected on validation data or not at all; the released code selects on the test set.",
        "The columns of features are standardized (standardize=false: as they are), for they may be of any scale.",
        "Media are read by two small convolutional towers that learn along, in place of VGG-19 and a sentence CNN.",
    ),
    original_license="none (no license file in penghu-cs/DSCMR); nothing was copied",
)


@dataclass(frozen=True)
class DSCMRConfig(MediaConfig):
    """Settings of ``zhen2019_dscmr``."""

    epochs: int = 100
    batch_size: int = 100
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    hidden: int = 2048
    dim: int = 1024  # of the common space
    likelihood: float = 1e-3  # α
    invariance: float = 0.1  # β
    form: Literal["rows", "frobenius"] = "rows"  # J₁ and J₃ of the released code, or as the paper prints them
    standardize: bool = True
    frames: int = 4  # of media: full-size frames that the picture tower looks at

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "hidden": (1, MAX),
        "dim": (1, MAX),
        "likelihood": (0.0, MAX),
        "invariance": (0.0, MAX),
        "frames": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, hidden=16, dim=8, frames=2)


class DSCMR(system.System):
    """A first layer for each modality, the shared layer into the common space, and the shared classifier."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = DSCMRConfig
    similarity_name = "cosine"
    config: DSCMRConfig
    # Towers start from nothing here, so ten times the rate.
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        settings={"epochs": 8, "batch_size": 64, "learning_rate": 2e-3, "hidden": 256, "dim": 128},
        short={"epochs": 8, "batch_size": 32},
    )

    def __init__(self, config: DSCMRConfig, spec: DataSpec):
        super().__init__(config, spec)
        c, self.modalities = config, config.chosen(spec)
        if c.form not in ("rows", "frobenius"):
            raise ConfigError(f'form = "{c.form}" is not "rows" or "frobenius".')
        if len(self.modalities) != 2:
            listed = ", ".join(self.modalities)
            raise ConfigError(f"dscmr relates two modalities, not {listed}.", hint="Set modalities.")
        if spec.n_classes < 2:
            raise ConfigError(f"dscmr learns from classes, and the data have {spec.n_classes}.", hint="Add a label.")
        self.vectors = nn.ModuleDict({name: self._made(name) for name in self.modalities})
        self.first = nn.ModuleDict({n: nn.Linear(self._vector(n).dim, c.hidden) for n in self.modalities})
        self.common = nn.Linear(c.hidden, c.dim)
        self.classify = nn.Linear(c.dim, spec.n_classes)

    def _made(self, name: str) -> ClipVector:
        c, spec, words = self.config, self.spec.streams[name], len(self.spec.vocabulary)
        return ClipVector(spec, seconds=c.window, frames=c.frames, vocabulary=words, standardize=c.standardize)

    def _vector(self, name: str) -> ClipVector:
        return cast(ClipVector, self.vectors[name])

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("main", tuple(self.parameters()), optimizer={"beta1": 0.5}),)

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of the features, before the first step."""
        if epoch == 0:
            learn_vectors({name: self._vector(name) for name in self.modalities}, batches)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Of each modality its row in the common space [B, D], in the label space ("audio label" [B, C]), and whether
        the clip has it ("audio?" [B] bool).
        """
        streams = batch.require(*self.modalities)
        hidden = [self._first(stream, name) for name, stream in zip(self.modalities, streams, strict=True)]
        u = self.common(torch.cat(hidden))  # both modalities at once: one large product instead of two small ones
        encoded: dict[str, Tensor] = {}
        rows, labels = u.chunk(2), self.classify(u).chunk(2)
        for i, (name, stream) in enumerate(zip(self.modalities, streams, strict=True)):
            encoded |= {name: rows[i], f"{name} label": labels[i], f"{name}?": stream.mask.any(1)}
        return encoded

    def _first(self, stream: Stream, name: str) -> Tensor:
        return torch.relu(self.first[name](self.vectors[name](stream)))

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """J₁, α J₂ and β J₃, over the clips that have both modalities."""
        c, (first, second) = self.config, self.modalities
        both = encoded[f"{first}?"] & encoded[f"{second}?"]
        label = batch.label[both]
        if bool((label < 0).any()):
            raise BatchError("zhen2019_dscmr needs a label for every clip.", hint="cca and infonce need none.")
        u, v = encoded[first][both], encoded[second][both]
        said = [encoded[f"{name} label"][both] for name in self.modalities]
        near = invariance(u, v, distance="l2") if c.form == "rows" else frobenius(u, v) / len(u)
        return {
            "label": torch.stack([label_distance(p, label, form=c.form) for p in said]).sum(),
            "likelihood": c.likelihood * label_likelihood(u, v, label),
            "invariance": c.invariance * near,
        }

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """The row in the common space, not normalized: float32 [B, D]."""
        if modality not in self.modalities:
            raise ConfigError(f'this model has no "{modality}".', hint=did_you_mean(modality, set(self.modalities)))
        (stream,) = batch.require(modality)
        return self.common(self._first(stream, modality)).float()

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """One modality in the common space, or the sum of both ("audio+video"), of unit length: float32 [B, D]."""
        parts = [
            nn.functional.normalize(self.features(batch, name), dim=1) * batch.streams[name].mask.any(1)[:, None]
            for name in modality.split("+")
        ]
        return nn.functional.normalize(torch.stack(parts).sum(0), dim=1)

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return nn.functional.normalize(q, dim=1) @ nn.functional.normalize(g, dim=1).T
