"""CAH: correlation autoencoder hashing, short binary codes of two modalities in one Hamming space (Cao et al. 2016).

Claim: a few bits suffice to find a text by a picture, or a picture by a sound, if deep auto-encoders put both into the
code: the feature correlation that pairs reveal and the semantic correlation that labels convey.

    h_m = tanh( W f_m(x_m) ) in (-1, 1)^b          x̂_m = g_m(h_m)          b_m = sign(h_m), 0 counts as +1
    L   = ρ Σ_m 1/(B d_m) ‖X_m - X̂_m‖²                      each modality from its own code, d_m columns of variance 1
        + λ 1/(B b) ‖H_x - H_y‖²                            feature correlation: the two of a pair have one code
        + μ 1/B² Σ_ij (S_ij - <h_x,i, h_y,j> / b)²          semantic correlation: S = 1 within a class, else -1
        + γ Σ_m 1/(B b) ‖|H_m| - 1‖²                        quantization: little is lost by the sign

For the first part of the training the auto-encoders learn alone. ``semantic = "likelihood"`` puts the negative
log-likelihood of S in {0, 1} in the third place, mean_ij softplus(Θ_ij) - S_ij Θ_ij with Θ = <h_x,i, h_y,j> / 2.
Codes are compared by their inner product, which is b - 2 · (Hamming distance); equal distances are ties.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.clip_vector import ClipVector, learn_vectors
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.constrained import ConstrainedAE, Coupling
from avcl.nn.dense import dense, glorot
from avcl.system import MAX, MediaConfig, Phase, Step, Trial
from avcl.types import Batch, Card, DataSpec

CARD = Card(
    title="Correlation autoencoder hashing for supervised cross-modal search",
    year=2016,
    venue="ICMR",
    authors="Y. Cao, M. Long, J. Wang, H. Zhu",
    survey={
        "paper": "Cao et al., 2016",
        "objective": "L2",
        "learning": "Supervised",
        "application": "Cross-Modal (IT) Retrieval",
        "metric": "mAP",
        "performance": "35.5/71.7",
        "datasets": "Wiki Dataset/Flickr",
    },
    paper=(
        "Wiki mAP 35.5, Flickr mAP 71.7 (the survey; code length, cut-off of the list and directions are not known)",
    ),
    fidelity="reconstruction: neither the paper's text nor code was available. The two correlations, the auto-encoders "
    "and the binary codes are those of its abstract; every equation, size and weight is ours.",
    deviations=(
        "Every term is a mean over its cells, so that its weight means the same for any width and code length.",
        "AdamW with warm-up and cosine: the one loop of this library.",
        "A clip has one label; of Flickr's several labels any shared one makes two items relevant.",
        "Media are summarized by fixed statistics, as the paper's pictures are by a bag of visual words.",
        "Equal Hamming distances count with their expected value, not in the order of the gallery.",
    ),
    original_license="none stated",
)


@dataclass(frozen=True)
class CAHConfig(MediaConfig):
    """Settings of ``cao2016_cah``."""

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    bits: int = 32  # b
    hidden: tuple[int, ...] = (512, 256)  # of every encoder; the decoder mirrors it
    activation: str = "tanh"  # of the hidden layers: "sigmoid", "tanh", "relu", "gelu"
    dropout: float = 0.0
    pretraining: float = 0.2  # share of the training in which there is nothing but reconstruction
    reconstruction: float = 0.1  # ρ
    pair: float = 1.0  # λ
    semantic: Literal["squares", "likelihood"] = "squares"
    semantic_weight: float = 1.0  # μ
    quantization: float = 0.1  # γ

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "bits": (1, MAX),
        "hidden": (1, MAX),
        "dropout": (0.0, 0.99),
        "pretraining": (0.0, 0.9),
        "reconstruction": (0.0, MAX),
        "pair": (0.0, MAX),
        "semantic_weight": (0.0, MAX),
        "quantization": (0.0, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, bits=12, hidden=(16,), dropout=0.0)


class CAH(system.System):
    """An auto-encoder for each modality, coupled through the codes."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = CAHConfig
    similarity_name = "dot"
    config: CAHConfig
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        clips=2400,
        fresh=False,
        settings={"epochs": 6, "batch_size": 64},
        short={"epochs": 8, "batch_size": 32, "pretraining": 0.0},
    )

    def __init__(self, config: CAHConfig, spec: DataSpec):
        super().__init__(config, spec)
        if config.semantic not in ("squares", "likelihood"):
            raise ConfigError(f'semantic = "{config.semantic}" is not "squares" or "likelihood".')
        self.modalities = config.chosen(spec)
        vectors = {
            name: ClipVector(spec.streams[name], seconds=config.window, vocabulary=len(spec.vocabulary))
            for name in self.modalities
        }
        self.vectors = nn.ModuleDict(vectors)
        squares = config.semantic_weight if config.semantic == "squares" else 0.0
        couplings: dict[Coupling, float] = {"l2": config.pair / config.bits, "pairwise": squares}
        self.autoencoder = ConstrainedAE(
            {name: _encoder(vector.dim, config) for name, vector in vectors.items()},
            {name: _decoder(vector.dim, config) for name, vector in vectors.items()},
            couplings=couplings,
            quantization=config.quantization / config.bits,
            weights={(name, name): config.reconstruction for name in vectors},
        )

    def phases(self) -> tuple[Phase, ...]:
        start, everything = self.config.pretraining, tuple(self.parameters())
        joint = Phase("joint", everything, start=start)
        if start == 0 or self.config.reconstruction == 0:
            return (Phase("joint", everything),)
        alone = tuple(f"{name}_from_{name}" for name in self.modalities)
        return Phase("reconstruction", everything, alone, end=start), joint

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of the columns of x, before the first step."""
        if epoch == 0:
            learn_vectors({name: self._vector(name) for name in self.modalities}, batches)

    def _vector(self, name: str) -> ClipVector:
        return cast(ClipVector, self.vectors[name])

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """h of each modality [B, b], x ("audio x"), which rows have it ("audio?" [B] bool), and the labels."""
        encoded = {"label": batch.label}
        for name, stream in zip(self.modalities, batch.require(*self.modalities), strict=True):
            x = self._vector(name)(stream)
            encoded |= {name: self._code(x, name), f"{name} x": x, f"{name}?": stream.mask.any(1)}
        return encoded

    def _code(self, x: Tensor, name: str) -> Tensor:
        return self.autoencoder.encoders[name](x).float()

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        c, label = self.config, encoded["label"]
        if bool((label < 0).any()):
            raise BatchError("cao2016_cah needs a label for every clip.", hint="cca and infonce need none.")
        codes, inputs, there = ({name: encoded[f"{name}{end}"] for name in self.modalities} for end in ("", " x", "?"))
        terms = dict(self.autoencoder.terms(codes, inputs, label=label, present=there))
        if c.semantic == "likelihood" and c.semantic_weight > 0:
            for a, b in itertools.combinations(self.modalities, 2):
                both = there[a] & there[b]
                if bool(both.any()):
                    value = code_likelihood(codes[a][both], codes[b][both], label[both])
                    terms[f"likelihood_{a}_{b}"] = c.semantic_weight * value
        return terms

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """h before the sign, of several modalities ("audio+text") their mean: float32 [B, b] in [-1, 1]."""
        total = torch.zeros(len(batch), self.config.bits, device=batch.label.device)
        names = modality.split("+")
        for name in names:
            if name not in self.modalities:
                raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
            (stream,) = batch.require(name)
            total += self._code(self._vector(name)(stream), name) * stream.mask.any(1)[:, None]
        return total / len(names)

    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """The binary code: -1 or +1 in float32 [B, b]."""
        return torch.where(self.features(batch, modality) >= 0, 1.0, -1.0)

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        """b - 2 · (Hamming distance): [Q, G]."""
        return q @ g.T


def _encoder(width: int, config: CAHConfig) -> nn.Sequential:
    sizes = (width, *config.hidden)
    hidden = dense(sizes, activation=config.activation, dropout=config.dropout)
    return nn.Sequential(*hidden, glorot(sizes[-1], config.bits), nn.Tanh())


def _decoder(width: int, config: CAHConfig) -> nn.Sequential:
    sizes = (config.bits, *reversed(config.hidden))
    hidden = dense(sizes, activation=config.activation, dropout=config.dropout)
    return nn.Sequential(*hidden, glorot(sizes[-1], width))


def code_likelihood(a: Tensor, v: Tensor, label: Tensor) -> Tensor:
    """Negative log-likelihood that two items share a class, by the inner product of their codes:

    ``mean_ij [ softplus(Θ_ij) - 1[y_i = y_j] Θ_ij ]``, ``Θ_ij = ½ <a_i, v_j>``: [B, b] twice and [B] to a scalar.
    """
    theta = 0.5 * a @ v.T
    return (nn.functional.softplus(theta) - (label[:, None] == label) * theta).mean()
