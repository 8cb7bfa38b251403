"""AGAH: adversary-guided asymmetric hashing, binary codes that two critics keep free of the modality (Gu et al. 2019).

Claim: codes of two modalities agree if the networks do not only rank by class, but also give features of which a critic
cannot say where they came from; and if each feature is mixed with the centers of the classes that it resembles.

    f_m = unit(net_m(x_m))                                            features of one space, of unit length
    f'_m = λ f_m + (1 - λ) Σ_c w_c k_c / Σ_c w_c,  w_c = σ(5 f_m·k_c)    attention; k_c: center of class c
    h_m = tanh(W_m f'_m) in (-1, 1)^b,   code sign(h_m)
    L   = T(h_x, h_y)                            triplets across the modalities by cosine: max(0, s_an - s_ap + .3)
        + γ Σ_m mean (h_m Cᵀ / b - (2Y - 1))²    asymmetric: h against the binary codes C of the classes
        + η Σ_m mean (h_m - sign h_m)²           quantization
        + α Σ_m mean_bits (mean_i h_m,i)²        balance: every bit is +1 as often as -1
        + β Σ_m CE(V_m f'_m, y)                  classification, off unless asked for
        + μ Σ_m ( E D_m(f_m) - E D_m(f_n) )      each modality passes for the other; f_m there without gradient
    D_m: E D_m(f_n) - E D_m(f_m) + 10 (gradient penalty)

The centers k and the class codes C are those of the epoch before: the mean of all f of a class in both modalities,
and the sign of the sum of all its h. Codes are compared by their inner product, b - 2 · (Hamming distance).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.clip_vector import ClipVector, learn_vectors
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.adversary import ModalityAdversary
from avcl.nn.dense import dense, glorot
from avcl.objectives.classification import cross_entropy
from avcl.objectives.triplets import triplet
from avcl.system import MAX, MediaConfig, Phase, Step, Trial
from avcl.types import Batch, Card, DataSpec

SHARPNESS, PENALTY = 5.0, 10.0  # of the attention; of the critics' slope

CARD = Card(
    title="Adversary guided asymmetric hashing for cross-modal retrieval",
    year=2019,
    venue="ICMR",
    authors="W. Gu, X. Gu, J. Gu, B. Li, Z. Xiong, W. Wang",
    paper=(
        "MIRFlickr25K, 64 bits, mAP: picture to text .807, text to picture .805 (the authors' figure)",
        "NUS-WIDE, 64 bits, mAP: .651 and .634 (the authors' figure)",
        "As a baseline on VEGAS, mAP: .578 and .568; AVE .200 and .196 (from memory)",
    ),
    fidelity="reconstruction: attention, terms, weights of attention and critics are those of the authors' code as "
    "written up; how its centers and class codes are refreshed, and the scale of every term, are ours.",
    deviations=(
        "Two perceptrons on feature arrays or fixed summaries instead of CNN-F and a network on tags.",
        "Every term is a mean over its cells; the authors sum, so their weights (γ = .001, η = 1, α = 1) are others.",
        "Centers and class codes are taken from the training steps of the last epoch instead of a pass of their own.",
        "A clip has one label; the class term is softmax cross-entropy instead of a sigmoid for each label.",
        "AdamW with warm-up and cosine instead of Adamax whose rate falls by .6 every 100 epochs: the one loop of this "
        "library.",
    ),
    original_license="none stated",
)


@dataclass(frozen=True)
class AGAHConfig(MediaConfig):
    """Settings of ``agah``."""

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    bits: int = 32  # b
    hidden: tuple[int, ...] = (512,)
    dim: int = 512  # of f
    dropout: float = 0.1
    attention: float = 0.8  # λ; 1: none
    margin: float = 0.3  # in cosine
    code: float = 0.1  # γ
    quantization: float = 0.1  # η
    balance: float = 0.1  # α
    classify: float = 0.0  # β
    adversarial: float = 0.1  # μ
    critic: tuple[int, ...] = (512, 256)
    critic_rate: float = 1e-4

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "bits": (1, MAX),
        "hidden": (1, MAX),
        "dim": (1, MAX),
        "dropout": (0.0, 0.99),
        "attention": (0.0, 1.0),
        "margin": (0.0, 2.0),
        "code": (0.0, MAX),
        "quantization": (0.0, MAX),
        "balance": (0.0, MAX),
        "classify": (0.0, MAX),
        "adversarial": (0.0, MAX),
        "critic": (1, MAX),
        "critic_rate": (0.0, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, bits=12, hidden=(16,), dim=16, critic=(12,), dropout=0.0, classify=0.1)


class ClassMemory(nn.Module):
    """Centers k [C, D] and binary codes C [C, b] of the classes, and the sums out of which ``renew`` makes the next.

    Random codes and no centers at the start; a class that an epoch did not show keeps what it had.
    """

    centers: Tensor
    codes: Tensor
    feature_sum: Tensor
    code_sum: Tensor

    def __init__(self, classes: int, dim: int, bits: int):
        super().__init__()
        self.register_buffer("centers", torch.zeros(classes, dim))
        self.register_buffer("codes", 2.0 * torch.randint(0, 2, (classes, bits)) - 1)
        self.register_buffer("feature_sum", torch.zeros(classes, dim))
        self.register_buffer("code_sum", torch.zeros(classes, bits))

    @torch.no_grad()
    def add(self, features: Tensor, codes: Tensor, label: Tensor) -> None:
        self.feature_sum.index_add_(0, label, features)
        self.code_sum.index_add_(0, label, codes)

    @torch.no_grad()
    def renew(self) -> None:
        seen = (self.feature_sum != 0).any(1)
        self.centers[seen] = nn.functional.normalize(self.feature_sum[seen], dim=1)
        self.codes[seen] = torch.where(self.code_sum[seen] >= 0, 1.0, -1.0)
        self.feature_sum.zero_()
        self.code_sum.zero_()

    def attended(self, f: Tensor, share: float) -> Tensor:
        """f' of f [B, D]; ``share``: λ."""
        weight = torch.sigmoid(SHARPNESS * f @ self.centers.T)
        return share * f + (1 - share) * (weight @ self.centers) / weight.sum(1, keepdim=True)


class AGAH(system.System):
    """A network with its hash layer for each modality, the classes' memory, and the two critics."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = AGAHConfig
    similarity_name = "dot"
    config: AGAHConfig
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        clips=2400,
        fresh=False,
        settings={"epochs": 6, "batch_size": 64},
        short={"epochs": 6, "batch_size": 32},
        watch="triplet",
    )

    def __init__(self, config: AGAHConfig, spec: DataSpec):
        super().__init__(config, spec)
        c = config
        if spec.n_classes < 2:
            hint = 'Add a "label" column, or take a system that learns from pairs alone, such as cca.'
            raise ConfigError(f"agah learns from classes, and the data have {spec.n_classes}.", hint=hint)
        self.modalities = c.chosen(spec)
        if len(self.modalities) != 2:
            raise ConfigError(f"agah relates two modalities, not {', '.join(self.modalities)}.", hint="Set modalities.")
        words = len(spec.vocabulary)
        vectors = {n: ClipVector(spec.streams[n], seconds=c.window, vocabulary=words) for n in self.modalities}
        self.vectors = nn.ModuleDict(vectors)
        self.nets = nn.ModuleDict({name: _net(vector.dim, c) for name, vector in vectors.items()})
        self.hash = nn.ModuleDict({name: glorot(c.dim, c.bits) for name in vectors})
        self.classifiers = nn.ModuleDict({name: nn.Linear(c.dim, spec.n_classes) for name in vectors if c.classify})
        self.memory = ClassMemory(spec.n_classes, c.dim, c.bits)
        self.critics = nn.ModuleDict(
            {
                name: ModalityAdversary(
                    c.dim, modalities=self.modalities, hidden=c.critic, mode="wgan", anchor=name, penalty=PENALTY
                )
                for name in (vectors if c.adversarial else ())
            }
        )

        for critic in self.critics.values():  # what is added to every score has no effect on a difference of scores
            cast(ModalityAdversary, critic).last.bias.requires_grad_(False)

    def phases(self) -> tuple[Phase, ...]:
        critics = tuple(self.critics.parameters())
        moved = {id(p) for p in critics}
        networks = tuple(p for p in self.parameters() if id(p) not in moved)
        if not critics:
            return (Phase("networks", networks),)
        c = self.config
        weights = {"code": c.code, "quantization": c.quantization, "balance": c.balance, "class": c.classify}
        names = ("triplet", *(name for name, weight in weights.items() if weight), "mislead")
        rate = {"learning_rate": c.critic_rate, "weight_decay": 0.0, "clip_norm": 0.0}
        return Phase("networks", networks, names), Phase("critics", critics, ("critics",), rate)

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of the columns of x before the first step; then centers and codes of the last epoch."""
        if epoch == 0:
            learn_vectors({name: cast(ClipVector, self.vectors[name]) for name in self.modalities}, batches)
        else:
            self.memory.renew()

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """h of each modality [B, b], f ("audio f"), which rows have it ("audio?" [B] bool), and the labels."""
        encoded = {"label": batch.label}
        for name, stream in zip(self.modalities, batch.require(*self.modalities), strict=True):
            f = nn.functional.normalize(self.nets[name](self.vectors[name](stream)).float(), dim=1)
            encoded |= {name: self._hashed(f, name), f"{name} f": f, f"{name}?": stream.mask.any(1)}
        return encoded

    def _hashed(self, f: Tensor, name: str) -> Tensor:
        return torch.tanh(self.hash[name](self.memory.attended(f, self.config.attention)).float())

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """Of the networks "triplet", "code", "quantization", "balance", "class" and "mislead", of the critics
        "critics"; weights included.
        """
        c, label = self.config, encoded["label"]
        if bool((label < 0).any()):
            raise BatchError("agah needs a label for every clip.", hint="cca and infonce need none.")
        there = {name: encoded[f"{name}?"] for name in self.modalities}
        terms = {}
        if self.critics:
            rows = {name: encoded[f"{name} f"][there[name]] for name in self.modalities}
            games = [cast(ModalityAdversary, d)(rows, generator=at.generator) for d in self.critics.values()]
            terms["critics"] = torch.stack([game.discriminator for game in games]).sum()
            if at.turn == "critics":
                return terms
            terms["mislead"] = c.adversarial * torch.stack([game.encoders for game in games]).sum()
        both = torch.stack(list(there.values())).all(0)
        a, v = (nn.functional.normalize(encoded[name][both], dim=1) for name in self.modalities)
        # Of unit rows the squared distance is 2 - 2 cos, so the hinge in cosine is half of the one in distance.
        terms["triplet"] = 0.5 * triplet(a, v, label=label[both], margin=2 * c.margin)
        every: dict[str, list[Tensor]] = {"code": [], "quantization": [], "balance": [], "class": []}
        for name in self.modalities:
            h, y = encoded[name][there[name]], label[there[name]]
            sought = 2.0 * nn.functional.one_hot(y, self.spec.n_classes) - 1
            every["code"].append((h @ self.memory.codes.T / c.bits - sought).square().mean())
            every["quantization"].append((h.abs() - 1).square().mean())
            every["balance"].append(h.mean(0).square().mean())
            if c.classify:
                attended = self.memory.attended(encoded[f"{name} f"][there[name]], c.attention)
                every["class"].append(cross_entropy(self.classifiers[name](attended), y))
        weights = {"code": c.code, "quantization": c.quantization, "balance": c.balance, "class": c.classify}
        return terms | {name: w * torch.stack(every[name]).sum() for name, w in weights.items() if w}

    def after_step(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> None:
        """What the next centers and class codes are made of."""
        for name in self.modalities:
            rows = encoded[f"{name}?"]
            self.memory.add(encoded[f"{name} f"][rows], encoded[name][rows], encoded["label"][rows])

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """h before the sign, of both modalities ("audio+video") their mean: float32 [B, b] in [-1, 1]."""
        total = torch.zeros(len(batch), self.config.bits, device=batch.label.device)
        names = modality.split("+")
        for name in names:
            if name not in self.modalities:
                raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
            (stream,) = batch.require(name)
            f = nn.functional.normalize(self.nets[name](self.vectors[name](stream)).float(), dim=1)
            total += self._hashed(f, name) * stream.mask.any(1)[:, None]
        return total / len(names)

    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """The binary code: -1 or +1 in float32 [B, b]."""
        return torch.where(self.features(batch, modality) >= 0, 1.0, -1.0)

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        """b - 2 · (Hamming distance): [Q, G]."""
        return q @ g.T


def _net(width: int, config: AGAHConfig) -> nn.Sequential:
    sizes = (width, *config.hidden)
    return nn.Sequential(
        *dense(sizes, activation="relu", dropout=config.dropout), glorot(sizes[-1], config.dim), nn.ReLU()
    )
