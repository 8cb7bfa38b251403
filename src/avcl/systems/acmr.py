"""ACMR: adversarial cross-modal retrieval (Wang, Yang, Xu, Hanjalic, Shen 2017).

Claim: codes of which a classifier can tell the class, and a discriminator cannot tell the modality, are compared across
the gap between the two modalities.

    z = f(x), w = g(y)                                    perceptrons of tanh; p(c | ·) = softmax(P ·), P shared by both
    L_emb  = α ½ Σ_m CE(P z_m, label) + β (L_zw + L_wz)
    L_zw   = 1/B Σ_i max(0, ζ + λ ‖z_i - w_i‖ - ‖z_i - w_n(i)‖)      n(i): the clip of another class whose features of
             the anchor's modality are most similar (cosine) to those of i
    L_adv  = ½ Σ_m CE(D(z_m), m)                            D names the modality
    networks: min L_emb - γ(p) L_adv      discriminator: min L_adv      γ(p) = 2 / (1 + e^{-10p}) - 1, p: progress

The two players take turns. ``literal`` is the authors' demo as it runs: hinges of distances that are summed over the
batch, P left at its initialization, and no gradient of D for the networks; so there is no adversary in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from avcl import system
from avcl.encoders.clip_perceptron import ClipPerceptron
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.adversary import ModalityAdversary
from avcl.objectives.schedules import Reversal
from avcl.system import MAX, MediaConfig, Phase, Step, Trial
from avcl.types import Batch, Card, DataSpec

CARD = Card(
    title="Adversarial cross-modal retrieval",
    year=2017,
    venue="ACM Multimedia",
    authors="B. Wang, Y. Yang, X. Xu, A. Hanjalic, H. T. Shen",
    paper=(
        "Pascal Sentence, mAP by class: picture to text .671, text to picture .676 (as ACMR in the result figure of "
        "Zhen et al. 2019)",
        "VEGAS, mAP by class: sound to picture .465, picture to sound .442; AVE .162 and .159 (tables of Zeng et al., "
        "recalled)",
    ),
    fidelity="paper: the min-max game of the paper, with the layer sizes and weights of the authors' demo, whose own "
    "game never reaches the networks (literal = true).",
    deviations=(
        "The hinge is taken for every clip and averaged; the demo sums distances over the batch before the hinge, so "
        "that it is one number that is above or below the margin.",
        "The label loss weighs as much as the triplets, and not a hundred times, which undoes the sum in the demo.",
        "The discriminator has leaky ReLUs and spectral norm; without activations its three layers are one.",
        "AdamW with warm-up and cosine instead of Adam at a constant rate: the one loop of this library.",
        "Inputs are normalized over the batch; media are read by two small convolutional towers that learn along.",
    ),
    original_license="none stated",
)


@dataclass(frozen=True)
class ACMRConfig(MediaConfig):
    """Settings of ``acmr``."""

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    dim: int = 40  # of the common space
    hidden: tuple[int, ...] = (100,)  # of the sound (and of text)
    hidden_video: tuple[int, ...] = (512, 100)
    semantic: float = 1.0  # α
    metric: float = 1.0  # β
    adversarial: float = 0.1  # what γ rises to
    margin: float = 1.0  # ζ, in distance
    pull: float = 1.0  # λ
    literal: bool = False  # the authors' demo as it runs
    dropout: float = 0.0
    frames: int = 4  # of media: full-size frames that the picture tower looks at

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "dim": (1, MAX),
        "hidden": (1, MAX),
        "hidden_video": (1, MAX),
        "semantic": (0.0, MAX),
        "metric": (0.0, MAX),
        "adversarial": (0.0, MAX),
        "margin": (0.0, MAX),
        "pull": (0.0, MAX),
        "dropout": (0.0, 0.99),
        "frames": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, dim=12, hidden=(16,), hidden_video=(16,), frames=2)


class ACMR(system.System):
    """Two networks, a label head that both share, and the discriminator of the modalities."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = ACMRConfig
    similarity_name = "euclidean"
    config: ACMRConfig
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        clips=2400,
        fresh=False,
        settings={"epochs": 6, "learning_rate": 2e-3},
        short={"epochs": 8, "batch_size": 32},
        watch="metric",
    )

    def __init__(self, config: ACMRConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.modalities, c = config.chosen(spec), config
        if len(self.modalities) != 2:
            raise ConfigError(f"acmr relates two modalities, not {', '.join(self.modalities)}.", hint="Set modalities.")
        if spec.n_classes < 2:
            hint = 'Add a "label" column, or take a system that learns from pairs alone, such as infonce.'
            raise ConfigError(f"acmr learns from classes, and the data have {spec.n_classes}.", hint=hint)
        self.views = nn.ModuleDict(
            {
                name: ClipPerceptron(
                    spec.streams[name],
                    hidden=c.hidden_video if name == "video" else c.hidden,
                    dim=c.dim,
                    activation="tanh",
                    dropout=c.dropout,
                    frames=c.frames,
                    vocabulary=len(spec.vocabulary),
                )
                for name in self.modalities
            }
        )
        self.head = nn.Linear(c.dim, spec.n_classes)
        self.adversary = ModalityAdversary(
            c.dim,
            modalities=self.modalities,
            hidden=(20, 10),
            mode="minmax",
            strength=Reversal(over=1.0, height=c.adversarial),
        )

    def phases(self) -> tuple[Phase, ...]:
        networks = list(self.views.parameters())
        if not self.config.literal:
            networks += self.head.parameters()
        terms = ("semantic", "metric") if self.config.literal else ("semantic", "metric", "mislead")
        return (
            Phase("networks", networks, terms),
            Phase("discriminator", tuple(self.adversary.parameters()), ("discriminate",)),
        )

    # --------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Codes of both modalities [B, dim], the features "audio:x" [B, D] that negatives are chosen by, "both" [B]."""
        encoded: dict[str, Tensor] = {}
        streams = dict(zip(self.modalities, batch.require(*self.modalities), strict=True))
        for name, stream in streams.items():
            view = cast(ClipPerceptron, self.views[name])
            encoded[name], encoded[f"{name}:x"] = view(stream).float().tanh(), view.clip(stream).detach().float()
        return encoded | {"both": batch.complete(*streams)}

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """Of the networks "semantic", "metric" and "mislead", of the discriminator "discriminate"; weights included."""
        c, both = self.config, encoded["both"]
        codes = {name: encoded[name][both] for name in self.modalities}
        game = self.adversary(codes, step=at.progress)
        if at.turn == "discriminator":
            return {"discriminate": game.discriminator}
        label = batch.label[both]
        if bool((label < 0).any()):
            raise BatchError("acmr needs a label for every clip.", hint="triplet and infonce learn from pairs.")
        metric, names = [], self.modalities
        for anchor, other in (names, names[::-1]):
            wrong = hardest(encoded[f"{anchor}:x"][both], label)
            near = (codes[anchor] - codes[other]).square().sum(1)
            far = (codes[anchor] - codes[other][wrong]).square().sum(1)
            if c.literal:
                metric.append((c.margin + c.pull * near.sum() - far.sum()).relu())
            else:
                metric.append((c.margin + c.pull * root(near) - root(far)).relu().mean())
        told = torch.stack([cross_entropy(self.head(code), label) for code in codes.values()])
        return {
            "semantic": c.semantic * told.mean(),
            "metric": c.metric * torch.stack(metric).sum(),
            "mislead": game.encoders,
            "discriminate": game.discriminator,
        }

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """The code of one modality, entries in (-1, 1), zeros where nothing was recorded: float32 [B, dim]."""
        if modality not in self.views:
            raise ConfigError(f'this model has no "{modality}".', hint=did_you_mean(modality, set(self.modalities)))
        (stream,) = batch.require(modality)
        return self.views[modality](stream).float().tanh()

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        """Negative squared distance [Q, G]."""
        return -torch.cdist(q, g, compute_mode="donot_use_mm_for_euclid_dist").square()


def hardest(x: Tensor, label: Tensor) -> Tensor:
    """Of each row of ``x`` [B, D] the row of another label with the largest cosine, [B]; BatchError for one label."""
    unit = normalize(x.flatten(1), dim=1)
    other = label[:, None] != label
    if not len(label) or not bool(other.any(1).all()):
        raise BatchError("acmr needs clips of two classes or more in every batch.")
    return (unit @ unit.T).masked_fill(~other, -torch.inf).argmax(1)


def root(square: Tensor) -> Tensor:
    """√(d² + ε): distances whose slope is finite at zero."""
    return (square + 1e-12).sqrt()
