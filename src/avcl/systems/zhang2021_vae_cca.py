"""VAE-CCA: one variational code for sound and picture that is generated from, classified, and correlated (Zhang 2021).

Claim: a code from which each modality is generated again keeps what a mere classifier throws away; correlation,
distance and class centers then bring the codes of both modalities together.

    q(z | x_m) = N(μ_m, σ_m²),  [μ, log σ²] = V U relu(W_m x_m)         U, V shared by both · z ~ q, in evaluation z = μ
    L = 1e-4 L_vae + L_label + 1e-3 L_corr + .1 L_pair + .01 L_center
    L_vae    = Σ_m [ mean (x̂_m - x_m)² + ½ Σ_{i,d} (σ² + μ² - 1 - log σ²) ],   x̂_m = R_m S z_m, S shared
    L_label  = Σ_m 1/B Σ_i ‖P z_m,i - y_i‖                               P shared, y one-hot
    L_corr   = Σ over (a, v), (a, a), (v, v) of mean_ij [ log(1 + e^{Θ_ij}) - 1[y_i = y_j] Θ_ij ],  Θ = ½ Pearson's r
    L_pair   = 1/B Σ_i ‖z_a,i - z_v,i‖
    L_center = ½ Σ_m ½ λ · 1/B Σ_i ‖z_m,i - c_{y_i}‖² / n_{y_i}          n: clips of the class in the batch, λ = ½

The error is a mean over all numbers, the divergence a sum over the batch: 1e-4 holds for that mix and for this batch
size. No canonical analysis is solved in the released code; ``correlation_form = "cca"`` takes minus the sum of the
canonical correlations, as the paper's text says. Items are compared by the cosine of μ.
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
from avcl.objectives.deep_correlation import deep_cca
from avcl.objectives.reconstruction import l2
from avcl.objectives.regularizers import invariance
from avcl.objectives.variational import gaussian_kl, sample_gaussian
from avcl.system import MAX, MediaConfig, Phase, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream

CARD = Card(
    title="Variational autoencoder with CCA for audio-visual cross-modal retrieval",
    year=2021,
    venue="arXiv 2112.02601; ACM TOMM (2023)",
    authors="J. Zhang, Y. Yu, S. Tang, J. Wu, W. Li",
    survey={
        "paper": "Zhang et al., 2021",
        "objective": "ELBO + Corr. + Center + L2",
        "learning": "Supervised",
        "application": "Cross-Modal (AV) Retrieval",
        "metric": "mAP",
        "performance": "81.2/35.",
        "datasets": "VEGAS/AVE",
    },
    paper=(
        "VEGAS 81.2 and AVE 35.0, mAP by class, mean of both directions (Table 1 of the survey)",
        "The authors' follow-up reports VEGAS .932 and AVE .508 on features of another normalization (its readme): "
        "figures of different feature files cannot be compared.",
    ),
    fidelity="official: layers, losses and weights are those of the authors' released code for VEGAS; its settings for "
    "AVE and the normalization of its features are not public.",
    deviations=(
        "Class centers are learned; the released code draws new random ones at every step (centers=drawn).",
        "A layer from the classes to the code, which the released code has and never uses, is left out: 704 of its "
        "1,257,610 parameters for 10 classes.",
        "AdamW without weight decay, with warm-up and cosine, instead of Adam at a constant rate, and a fifth of the "
        "500 epochs; rows are shuffled.",
        "The columns of features are standardized; those of the paper were normalized in a way that is not public.",
        "Media are read by two small convolutional towers that learn along; generated is a fixed summary of the clip.",
    ),
    original_license="none (no license file in zhangjiwei-japan/visual-audio-cross-modal-retrieval), nothing copied",
)


@dataclass(frozen=True)
class VAECCAConfig(MediaConfig):
    """Settings of ``zhang2021_vae_cca``."""

    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    hidden: int = 512
    dim: int = 64  # of the code
    vae: float = 1e-4
    label: float = 1.0
    correlation: float = 1e-3
    pair: float = 0.1
    center: float = 0.01
    correlation_form: Literal["pearson", "cca"] = "pearson"  # of the released code, or of the paper's text
    ridge: float = 1e-3  # of "cca", in units of the variance of z
    centers: Literal["learned", "drawn"] = "learned"  # "drawn": anew from N(0, I) at every step, as the released code
    standardize: bool = True
    frames: int = 4  # of media: full-size frames that the picture tower looks at

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "hidden": (1, MAX),
        "dim": (1, MAX),
        "vae": (0.0, MAX),
        "label": (0.0, MAX),
        "correlation": (0.0, MAX),
        "pair": (0.0, MAX),
        "center": (0.0, MAX),
        "ridge": (0.0, MAX),
        "frames": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, hidden=16, dim=6, frames=2)


SPREAD = 0.5  # λ of the center term


class VAECCA(system.System):
    """Shared layers between a first and a last layer of each modality's own."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = VAECCAConfig
    similarity_name = "cosine"
    config: VAECCAConfig
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        settings={"epochs": 8, "batch_size": 64, "learning_rate": 2e-3, "hidden": 256},
        short={"epochs": 8, "batch_size": 32},
    )

    def __init__(self, config: VAECCAConfig, spec: DataSpec):
        super().__init__(config, spec)
        c, self.modalities = config, config.chosen(spec)
        for key, known in (("correlation_form", ("pearson", "cca")), ("centers", ("learned", "drawn"))):
            if getattr(c, key) not in known:
                raise ConfigError(f'{key} = "{getattr(c, key)}" is not one of {", ".join(known)}.')
        if len(self.modalities) != 2:
            listed = ", ".join(self.modalities)
            raise ConfigError(f"vae-cca relates two modalities, not {listed}.", hint="Set modalities.")
        if spec.n_classes < 2:
            raise ConfigError(f"vae-cca learns from classes, and the data have {spec.n_classes}.", hint="Add a label.")
        vectors, goals = ({n: self._made(n, frames) for n in self.modalities} for frames in (c.frames, 0))
        self.vectors, self.goals = nn.ModuleDict(vectors), nn.ModuleDict(goals)
        self.first = nn.ModuleDict({name: nn.Linear(x.dim, c.hidden) for name, x in vectors.items()})
        self.shared, self.mean, self.log_variance = (nn.Linear(n, c.dim) for n in (c.hidden, c.dim, c.dim))
        self.classify = nn.Linear(c.dim, spec.n_classes)
        self.decode = nn.Linear(c.dim, c.hidden)
        self.last = nn.ModuleDict({name: nn.Linear(c.hidden, x.dim) for name, x in goals.items()})
        self.centers: nn.Parameter | None = None
        if c.centers == "learned":
            self.centers = nn.Parameter(torch.randn(spec.n_classes, c.dim))

    def _made(self, name: str, frames: int) -> ClipVector:
        c, spec, words = self.config, self.spec.streams[name], len(self.spec.vocabulary)
        return ClipVector(spec, seconds=c.window, frames=frames, vocabulary=words, standardize=c.standardize)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("main", tuple(self.parameters()), optimizer={"beta1": 0.5}),)

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of what is generated, and of features, before the first step."""
        if epoch == 0:
            goals = {name: cast(ClipVector, self.goals[name]) for name in self.modalities}
            learn_vectors(goals, batches)
            for name, goal in goals.items():
                self._follow(cast(ClipVector, self.vectors[name]), goal)

    @staticmethod
    def _follow(vector: ClipVector, goal: ClipVector) -> None:
        """What is read of features is what is generated of them."""
        if vector.scale is not None and goal.scale is not None:
            vector.scale.load_state_dict(goal.scale.state_dict())

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Of each modality z ("audio" [B, D]), what the posterior, the classifier and the decoder say, the target, and
        whether the clip has it ("audio?" [B] bool).
        """
        encoded: dict[str, Tensor] = {}
        for name, stream in zip(self.modalities, batch.require(*self.modalities), strict=True):
            mean, log_variance = self._posterior(stream, name)
            z = sample_gaussian(mean, log_variance) if self.training else mean
            encoded |= {name: z, f"{name} mean": mean, f"{name} log variance": log_variance}
            encoded |= {f"{name} label": self.classify(z), f"{name} made": self.last[name](self.decode(z))}
            encoded |= {f"{name} goal": self.goals[name](stream), f"{name}?": stream.mask.any(1)}
        return encoded

    def _posterior(self, stream: Stream, name: str) -> tuple[Tensor, Tensor]:
        h = self.shared(torch.relu(self.first[name](self.vectors[name](stream))))
        return self.mean(h).float(), self.log_variance(h).float()

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """The five terms, weights included, over the clips that have both modalities."""
        c, names = self.config, self.modalities
        both = torch.stack([encoded[f"{name}?"] for name in names]).all(0)
        label = batch.label[both]
        if bool((label < 0).any()):
            raise BatchError("zhang2021_vae_cca needs a label for every clip.", hint="cca and infonce need none.")
        row = {key: value[both] for key, value in encoded.items()}
        a, v = (row[name] for name in names)
        vae = [
            l2(row[f"{m} made"], row[f"{m} goal"])
            + gaussian_kl(row[f"{m} mean"], row[f"{m} log variance"], reduction="sum")
            for m in names
        ]
        centers = self._centers(at)
        return {
            "vae": c.vae * torch.stack(vae).sum(),
            "label": c.label * torch.stack([label_distance(row[f"{m} label"], label) for m in names]).sum(),
            "correlation": c.correlation * self._correlation(a, v, label),
            "pair": c.pair * invariance(a, v, distance="l2"),
            "center": c.center * 0.5 * (spread(a, centers, label) + spread(v, centers, label)),
        }

    def _centers(self, at: Step) -> Tensor:
        if self.centers is not None:
            return self.centers
        return torch.randn(self.spec.n_classes, self.config.dim, generator=at.generator, device=at.generator.device)

    def _correlation(self, a: Tensor, v: Tensor, label: Tensor) -> Tensor:
        if self.config.correlation_form == "pearson":
            return label_likelihood(a - a.mean(1, keepdim=True), v - v.mean(1, keepdim=True), label)
        if not self.training and len(a) <= self.config.dim:
            return a.new_zeros(())  # a handful of validation clips has no correlation to tell
        return deep_cca(a, v, dim=self.config.dim, ridge=self.config.ridge)

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """μ, not normalized: float32 [B, D]."""
        if modality not in self.modalities:
            raise ConfigError(f'this model has no "{modality}".', hint=did_you_mean(modality, set(self.modalities)))
        (stream,) = batch.require(modality)
        return self._posterior(stream, modality)[0]

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """μ of one modality, or the sum of both ("audio+video"), of unit length: float32 [B, D]."""
        parts = [
            nn.functional.normalize(self.features(batch, name), dim=1) * batch.streams[name].mask.any(1)[:, None]
            for name in modality.split("+")
        ]
        return nn.functional.normalize(torch.stack(parts).sum(0), dim=1)

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return nn.functional.normalize(q, dim=1) @ nn.functional.normalize(g, dim=1).T


def spread(z: Tensor, centers: Tensor, label: Tensor) -> Tensor:
    """``½ λ · 1/B Σ_i ‖z_i - c_{y_i}‖² / n_{y_i}`` with n the clips of the class among ``label`` [B], λ = ½."""
    count = torch.bincount(label, minlength=len(centers))[label]
    gap = (z - centers.to(z)[label]).square().sum(1)
    return 0.5 * SPREAD * (gap / count).mean()
