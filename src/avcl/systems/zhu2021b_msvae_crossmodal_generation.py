"""MS-VAE: one code for sound and picture, from which one shared decoder makes both (Zhu et al. 2021b).

Claim: if each modality alone must explain *both*, its code holds what the two share, and the code of a sound decodes
into a picture. Of every modality m an encoder gives q_m = N(μ_m, σ_m²); with target x = [x_a ; x_v] and z_m ~ q_m

    L = Σ_m [ ½ w ‖g(z_m) - x‖² + β KL(q_m ‖ N(0, I)) ] + λ W₂²(q_a, q_v)
    W₂² = ‖μ_a - μ_v‖² + ‖σ_a - σ_v‖²      (``latent="sample"``: ‖z_a - z_v‖ instead, as in the released code)

β falls from ``beta_first`` to ``beta`` when ``first`` of training is over. Generation is g(μ) of what is there. Targets
are views of the streams (``encoders.views``): features as they are; of sound how loud it is in slots of time, its
spectrum and the rest of its log-mel; of pictures the mean, and where and when they change. Each is standardized and its
blocks count alike, so that ‖x_m‖² is 1 on average. Encoders read the same views, or (``towers``) the streams.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.clips import PictureTower, SoundTower, in_unit_range
from avcl.encoders.views import View, block_scale, view_of
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.multimodal_vae import MultimodalVAE
from avcl.nn.pooling import on_clock
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream, StreamSpec

CARD = Card(
    title="Learning audio-visual correlations from variational cross-modal generation",
    year=2021,
    venue="ICASSP",
    authors="Y. Zhu, Y. Wu, H. Latapie, Y. Yang, Y. Yan",
    survey={
        "paper": "Zhu et al., 2021b",
        "objective": "ELBO + Wasserstein",
        "learning": "Unsupervised",
        "application": "Cross-Modal (AV) Generation",
        "metric": "MRR",
        "performance": "0.175",
        "datasets": "AVE",
    },
    paper=(
        "MRR .175 on AVE (Table 1 of the survey; direction and relevance not stated). A random ranking of the "
        "published test split has .168 by class and .016 by pair, so .175 says little unless it is by pair.",
    ),
    fidelity="paper: the objective is that of the paper in closed form, perceptrons on frozen features and one shared "
    "decoder as in the released code; frozen VGG-19 and VGGish are replaced by fixed views of the media.",
    deviations=(
        "The reconstruction is a sum over standardized numbers with the weight w, and all terms are means over clips; "
        "the code takes a mean over dimensions and sums the KL over the batch, so its weights depend on the batch.",
        "W2 in closed form is the default; the code penalizes the distance of two samples (latent=sample).",
        "One optimizer step for everything; the code registers the shared decoder in two optimizers, stepped twice.",
        "A clip is one row; the code reads up to ten one-second rows of one video a step.",
        "Raw media: in the place of frozen VGG-19 and VGGish features stand fixed views that can be turned back into "
        "sound and picture; with towers=true small convolutional encoders are trained along.",
        "Embeddings are compared by the distance of the codes alone; the paper adds that of their decodings.",
    ),
    original_license="none (no license file in L-YeZhu/Learning-Audio-Visual-Correlations); nothing was copied",
)


@dataclass(frozen=True)
class MSVAEConfig(MediaConfig):
    """Settings of ``zhu2021b_msvae_crossmodal_generation``."""

    epochs: int = 10
    learning_rate: float = 1e-3
    dim: int = 64  # of the code; the paper has 100
    latent: str = "w2"  # what ties the codes: "w2", or "sample" as in the released code
    weight: float = 100.0  # w: the inverse variance of the targets' likelihood, whose total variance is 1
    tie: float = 0.1  # λ
    beta_first: float = 0.1  # β at the beginning, as in the paper
    beta: float = 0.01  # and from then on
    first: float = 0.5  # share of training with the former
    hidden: int = 512  # units of a layer; the paper has 512 for pictures and the decoder, 128 for sound
    depth: int = 2  # hidden layers of an encoder, and of the decoder
    dropout: float = 0.1
    towers: bool = False  # encoders read the media themselves, through convolutions that are trained along
    channels: int = 8  # of the time-resolved part of a tower
    frames: int = 4  # full-size frames that the picture tower looks at
    slots: int = 24  # steps of time in which media are generated
    bands: int = 40  # mel bands of a generated sound
    side: int = 12  # cells a side of a generated picture
    still: bool = False  # pictures are generated without motion: one picture

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "dim": (1, MAX),
        "weight": (0.0, MAX),
        "tie": (0.0, MAX),
        "beta_first": (0.0, MAX),
        "beta": (0.0, MAX),
        "first": (0.0, 1.0),
        "hidden": (1, MAX),
        "depth": (0, 100),
        "dropout": (0.0, 0.99),
        "channels": (1, MAX),
        "frames": (1, MAX),
        "slots": (1, MAX),
        "bands": (1, 512),
        "side": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, dim=4, hidden=16, frames=2, slots=6, bands=8, side=4)


LOG_TWO_PI = math.log(2 * math.pi)
INPUT_SCALE = 10.0  # of views, whose variance is 1 in all


# ------------------------------------------------------------------------------------------------------------- networks
class _MediaTower(nn.Module):
    """What is in a clip, and what happens in ``slots`` of its window: video or audio to [B, dim]."""

    def __init__(self, tower: PictureTower | SoundTower, config: MSVAEConfig):
        super().__init__()
        self.tower, self.slots, self.seconds = tower, config.slots, config.window
        self.when = nn.Linear(tower.sequence_dim, config.channels)
        self.dim = tower.dim + config.slots * config.channels

    def forward(self, stream: Stream) -> Tensor:
        pooled, sequence = self.tower(in_unit_range(stream))
        assert sequence is not None
        track = on_clock(sequence._replace(data=self.when(sequence.data)), steps=self.slots, seconds=self.seconds)
        return torch.cat([pooled, track.flatten(1)], 1)


class _ViewTower(nn.Module):
    """What is to be generated is what is read: the view, in which a small block speaks as loud as a large one."""

    def __init__(self, target: _Target):
        super().__init__()
        self.target, self.dim = target, target.view.dim

    def forward(self, stream: Stream) -> Tensor:
        return INPUT_SCALE * self.target(stream)


class _Target(nn.Module):
    """What is to be generated of a stream: its view, every number standardized by the first training clips, then
    scaled so that blocks count alike and the whole has the variance 1.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, view: View):
        super().__init__()
        self.view = view
        self.register_buffer("mean", torch.zeros(view.dim))
        self.register_buffer("scale", torch.ones(view.dim))
        self.register_buffer("share", block_scale(view.blocks), persistent=False)

    share: Tensor

    def forward(self, stream: Stream) -> Tensor:
        return (self.view.of(stream) - self.mean) / self.scale * self.share

    def back(self, x: Tensor, generator: torch.Generator) -> Stream:
        return self.view.stream(x / self.share * self.scale + self.mean, generator=generator)

    def fit(self, rows: Tensor) -> None:
        """Mean and deviation of the columns. A deviation counts as a quarter of its block's at least: divided by less,
        a corner that one picture in a hundred touches would outweigh all that is drawn.
        """
        deviation = rows.std(0, correction=0)
        self.mean.copy_(rows.mean(0))
        floors = [0.25 * part.square().mean().sqrt().expand_as(part) for part in deviation.split(self.view.blocks)]
        floor = torch.cat(floors)
        self.scale.copy_(torch.where(floor > 1e-6, torch.maximum(deviation, floor), 1.0))


def _view(spec: StreamSpec, config: MSVAEConfig) -> View:
    c = config
    return view_of(spec, seconds=c.window, side=c.side, slots=c.slots, bands=c.bands, still=c.still)


def _perceptron(inputs: int, outputs: int, config: MSVAEConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(config.depth):
        layers += [nn.Linear(inputs, config.hidden), nn.GELU(), nn.Dropout(config.dropout)]
        inputs = config.hidden
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class _Encoder(nn.Module):
    """A stream to [μ ; log σ²]."""

    def __init__(self, spec: StreamSpec, target: _Target, config: MSVAEConfig):
        super().__init__()
        if config.towers and spec.kind == "video":
            self.tower: nn.Module = _MediaTower(PictureTower(config.frames), config)
        elif config.towers and spec.kind == "audio":
            self.tower = _MediaTower(SoundTower(), config)
        else:
            self.tower = _ViewTower(target)
        self.code = _perceptron(self.tower.dim, 2 * config.dim, config)

    def forward(self, stream: Stream) -> Tensor:
        return self.code(self.tower(stream))


# --------------------------------------------------------------------------------------------------------------- system
class MSVAE(system.System):
    """A tied VAE of all modalities of the data; generates any of them from the others."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = MSVAEConfig
    similarity_name = "euclidean"
    trial: ClassVar[Trial | None] = Trial(
        task="generation",
        preset="retrieval",
        clips=3000,
        fresh=False,
        settings={"epochs": 25, "size": (32, 32), "sample_rate": 8000},
        short={"epochs": 6, "batch_size": 16, "hidden": 128},
        short_clips=48,
        watch="video_from_audio",
    )
    config: MSVAEConfig

    def __init__(self, config: MSVAEConfig, spec: DataSpec):
        super().__init__(config, spec)
        if config.latent not in ("w2", "sample"):
            raise ConfigError(f'latent = "{config.latent}" is not one of w2, sample.')
        self.targets = self.modalities = config.chosen(spec)
        views = {m: _view(spec.streams[m], config) for m in self.modalities}
        goals = {m: _Target(view) for m, view in views.items()}
        self.goals = nn.ModuleDict(goals)
        trunk = _perceptron(config.dim, config.hidden, config).append(nn.GELU())
        self.vae = MultimodalVAE(
            {m: _Encoder(spec.streams[m], goals[m], config) for m in self.modalities},
            {m: nn.Linear(config.hidden, views[m].dim) for m in self.modalities},
            dim=config.dim,
            joint="tied",
            beta=config.beta,
            tie=config.tie,
            tied_by="w2" if config.latent == "w2" else "sample",
            shared_decoder=trunk,
        )

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Before the first step: how large the numbers of each view are, from at most eight batches."""
        if epoch > 0:
            return
        found: dict[str, list[Tensor]] = {m: [] for m in self.modalities}
        for batch in itertools.islice(batches, 8):
            for m, stream in zip(self.modalities, batch.require(*self.modalities), strict=True):
                found[m].append(self._goal(m).view.of(stream)[stream.mask.any(1)])
        for m, rows in found.items():
            self._goal(m).fit(torch.cat(rows))

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Of each modality the code [B, 2 dim], the target ("audio!" [B, n]) and which rows have it ("audio?" [B])."""
        streams = dict(zip(self.modalities, batch.require(*self.modalities), strict=True))
        encoded = dict(self.vae.encode(streams))
        for m, stream in streams.items():
            encoded[f"{m}!"] = self._goal(m)(stream) * self.config.weight**0.5
            encoded[f"{m}?"] = stream.mask.any(1)
        return encoded

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """Every target from every code, the KL of every code, and what ties the codes."""
        self.vae.beta = self.config.beta_first if at.progress < self.config.first else self.config.beta
        latents, goals, there = ({m: encoded[m + mark] for m in self.modalities} for mark in ("", "!", "?"))
        # A Gaussian of unit variance, without its constant: the loss is the error and nothing else.
        constant = {m: 0.5 * goals[m].shape[1] * LOG_TWO_PI for m in self.modalities}
        terms = self.vae.terms(latents, goals, present=there, generator=at.generator)
        return {k: v - constant[k.split("_from_")[0]] if "_from_" in k else v for k, v in terms.items()}

    def _goal(self, modality: str) -> _Target:
        goal = self.goals[modality]
        assert isinstance(goal, _Target)
        return goal

    # ----------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def generate(self, batch: Batch, generator: torch.Generator) -> Stream:
        """The one modality that the batch lacks, from the mean code of those it has."""
        wanted = [m for m in self.modalities if m not in batch.streams]
        given = {m: batch.streams[m] for m in self.modalities if m in batch.streams}
        if len(wanted) != 1 or not given:
            raise BatchError(
                f"what is generated is the modality that is missing, and of {', '.join(self.modalities)} the batch "
                f"lacks {', '.join(wanted) or 'none'}.",
                hint="Remove the one that is wanted.",
            )
        made = self.vae.generate(given, wanted[0]) / max(self.config.weight, 1e-12) ** 0.5
        return self._goal(wanted[0]).back(made.float(), generator)

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """The mean code of one modality [B, dim]; the prior's mean where nothing was recorded."""
        if modality not in self.modalities:
            raise ConfigError(f'this model has no "{modality}".', hint=did_you_mean(modality, set(self.modalities)))
        streams = {modality: batch.require(modality)[0]}
        latents = self.vae.encode(streams)
        there = {modality: streams[modality].mask.any(1)}
        return self.vae.codes(latents, present=there)[modality].float()

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        """Minus the squared distance of the codes."""
        return -torch.cdist(q, g).square()
