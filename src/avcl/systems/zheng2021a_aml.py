"""AML: adversarial-metric learning, whose face belongs to this voice (Zheng, Hu, Jiang, Huang, Yan, Luo 2021).

Claim: a voice is matched to a face it was never seen with if both are embedded in one space that keeps the person and
hides the modality: a discriminator tries to name the modality of a code, and the networks learn to mislead it.

    e_m = G(t_m(x_m))        t: towers · G, shared by both: linear, leaky ReLU, linear, tanh
    networks       λ CE(s(e_q; c_1 … c_k), which c is the match)                     the task: one of k candidates
                 + β L_lifted(e_q, match, strangers), J = log Σ_n (e^{α-‖q-n‖} + e^{α-‖c-n‖}) + ‖q - c‖,  ½ max(0, J)
                 + γ ½ Σ_m CE(D(e_m), the other modality)
    D              ½ Σ_m CE(D(e_m), m)                                  one step for every ``every`` of the networks

Every clip of the batch is a query in both directions: its match is its own face or voice, its strangers are k - 1
clips of other people, drawn anew. Two items are compared by the Euclidean distance of their codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.audio import LogMelConv
from avcl.encoders.clips import in_unit_range
from avcl.encoders.conv2d import glimpses
from avcl.encoders.faces import PlacedConv
from avcl.encoders.mlp import MLP
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.adversary import ModalityAdversary
from avcl.nn.pooling import masked_max, masked_mean
from avcl.nn.standardize import Standardize, learn_scales
from avcl.objectives.classification import cross_entropy
from avcl.objectives.lifted import lifted_pairs
from avcl.system import MAX, MediaConfig, Phase, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream, StreamSpec

SLOPE = 0.2  # of the leaky ReLU

CARD = Card(
    title="Adversarial-metric learning for audio-visual cross-modal matching",
    year=2021,
    venue="IEEE Transactions on Multimedia",
    authors="A. Zheng, M. Hu, B. Jiang, Y. Huang, Y. Yan, B. Luo",
    survey={
        "paper": "Zheng et al., 2021a",
        "objective": "LSL + Adv.L",
        "learning": "Supervised",
        "application": "Cross-Modal (AV) Retrieval",
        "metric": "ACC",
        "performance": "93.",
        "datasets": "VGGFace + VoxCeleb",
    },
    paper=(
        "VGGFace and VoxCeleb, one of 2: voice to face 92.72 %, face to voice 93.33 % (authors' result figure)",
        "VGGFace and VoxCeleb, one of 10: voice to face 43.45 %, face to voice 39.35 % (authors' result figure)",
    ),
    fidelity="reconstruction: networks, losses and their three weights are in the authors' code; which weight belongs "
    "to which loss, the training loop, the split and the margin are not public.",
    deviations=(
        "The task head is a small network of query, candidate and their product, the same for every candidate: the "
        "authors' single linear layer of the concatenation is a sum of a term of the query and terms of the "
        "candidates, so it cannot ask whether they fit.",
        "Candidates come from the batch, k of them in both directions; the authors list one or nine strangers a query.",
        "The towers are those of this library, a few small frames and a log-mel, for 224 pixels are beyond two cores.",
        "The discriminator has one hidden layer under spectral norm, which keeps it from winning at once.",
        "AdamW with warm-up and cosine instead of Adam at a constant 5e-3: the one loop of this library.",
        "Scores are distances of codes, so that one model serves matching, verification and retrieval.",
    ),
    original_license="none stated",
)


@dataclass(frozen=True)
class AMLConfig(MediaConfig):
    """Settings of ``zheng2021a_aml``."""

    batch_size: int = 64
    learning_rate: float = 2e-3
    fps: float = 2.0  # a face is read from stills
    dim: int = 128  # of the codes
    width: int = 256  # of what a tower hands to G
    candidates: int = 10  # k
    margin: float = 1.0  # α
    task: float = 1.0  # λ
    metric: float = 3.0  # β
    adversarial: float = 2.0  # γ
    every: int = 5  # steps of the networks for one of the discriminator
    dropout: float = 0.1
    frames: int = 2  # of media: how many pictures are looked at

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "dim": (1, MAX),
        "width": (1, MAX),
        "candidates": (2, MAX),
        "margin": (0.0, MAX),
        "task": (0.0, MAX),
        "metric": (0.0, MAX),
        "adversarial": (0.0, MAX),
        "every": (1, MAX),
        "dropout": (0.0, 0.99),
        "frames": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, dim=12, width=16, candidates=3, every=2, dropout=0.0)


# Ten times as many people as the preset has: what links faces to voices is learned from people, not from clips, and the
# intervals are over the people of the test. Link .8: the best possible rule is right in .84 of the cases (.73 at .6).
TRIAL = Trial(
    task="matching",
    preset="face_voice",
    knobs={"persons": 1200, "link": 0.8},
    clips=2000,
    test=400,
    fresh=False,
    settings={"epochs": 9, "batch_size": 32, "fps": 1.0, "size": (64, 64), "sample_rate": 8000},
    short={"epochs": 8, "batch_size": 12, "dropout": 0.0},
    short_clips=48,
    watch="metric",
)


class _Tower(nn.Module):
    """What stands for the clip [B, width]: mean and maximum over the recorded steps, a linear map, and normalization
    over the clips, without which all codes drift into one corner of the tanh. Rows without a recorded step take no
    part in the statistics and are zeros.
    """

    def __init__(self, spec: StreamSpec, config: AMLConfig):
        super().__init__()
        self.frames = config.frames if spec.kind == "video" else 0
        self.net: PlacedConv | LogMelConv | MLP
        self.scale = Standardize(spec.shape[-1]) if spec.kind == "features" else None
        if spec.kind == "video":
            height, width = spec.shape[-2:]
            self.net = PlacedConv((height, width), dropout=config.dropout)
        elif spec.kind == "audio":
            self.net = LogMelConv(widths=(16, 32, 48))
        elif spec.kind in ("features", "map"):
            self.net = MLP(spec.shape[-1], hidden=config.width, dim=config.width, dropout=config.dropout)
        else:
            raise ConfigError(f'aml has no tower for a stream of kind "{spec.kind}".')
        self.out = nn.Linear(2 * self.net.dim, config.width, bias=False)
        self.norm = nn.BatchNorm1d(config.width)

    def forward(self, stream: Stream) -> Tensor:
        pooled, there = self.out(self._pooled(stream)).float(), stream.mask.any(1)
        if self.training and int(there.sum()) < 2:
            raise BatchError("aml normalizes over the clips of a batch (or micro-batch) and needs two or more.")
        if bool(there.all()):
            return self.norm(pooled)
        out = torch.zeros_like(pooled)
        out[there] = self.norm(pooled[there])
        return out

    def _pooled(self, stream: Stream) -> Tensor:
        if self.scale is not None:
            stream = stream._replace(data=self.scale(stream.data.float()) * stream.mask[:, :, None])
        seen = self.net(glimpses(stream, self.frames) if self.frames else stream)
        return torch.cat([masked_mean(seen.data, seen.mask), masked_max(seen.data, seen.mask)], 1)


class Choice(nn.Module):
    """Which of the candidates belongs to the query: [B, D] and [B, k, D] to logits [B, k]."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(3 * dim, dim), nn.LeakyReLU(SLOPE), nn.Linear(dim, 1, bias=False)
        )

    def forward(self, query: Tensor, candidates: Tensor) -> Tensor:
        q = query[:, None].expand_as(candidates)
        return self.net(torch.cat([q, candidates, q * candidates], 2))[:, :, 0]


class AML(system.System):
    """Two towers, one shared generator of codes, the choice among candidates, and the discriminator against them."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = AMLConfig
    trial: ClassVar[Trial | None] = TRIAL
    similarity_name = "euclidean"
    config: AMLConfig

    def __init__(self, config: AMLConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.modalities = config.chosen(spec)
        if len(self.modalities) != 2:
            raise ConfigError(f"aml matches two modalities, not {', '.join(self.modalities)}.", hint="Set modalities.")
        c = config
        self.towers = nn.ModuleDict({name: _Tower(spec.streams[name], c) for name in self.modalities})
        self.generator = nn.Sequential(
            nn.Dropout(c.dropout),
            nn.Linear(c.width, c.dim),
            nn.LeakyReLU(SLOPE),
            nn.Dropout(c.dropout),
            nn.Linear(c.dim, c.dim),
            nn.Tanh(),
        )
        self.choice = Choice(c.dim, c.dropout)
        self.adversary = ModalityAdversary(
            c.dim, modalities=self.modalities, mode="swapped", strength=c.adversarial, dropout=min(0.3, 3 * c.dropout)
        )

    def phases(self) -> tuple[Phase, ...]:
        networks = [p for part in (self.towers, self.generator, self.choice) for p in part.parameters()]
        return (
            Phase("networks", networks, ("task", "metric", "mislead")),
            Phase("discriminator", tuple(self.adversary.parameters()), ("discriminate",), every=self.config.every),
        )

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of feature arrays, before the first step."""
        scales = {name: cast(_Tower, self.towers[name]).scale for name in self.modalities}
        if epoch == 0:
            learn_scales({name: scale for name, scale in scales.items() if scale is not None}, batches)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """The codes of each modality [B, D], which rows have it ("audio?" [B] bool), and who it is."""
        encoded = {"label": batch.label}
        for name, stream in zip(self.modalities, batch.require(*self.modalities), strict=True):
            encoded[name], encoded[f"{name}?"] = self._code(stream, name), stream.mask.any(1)
        return encoded

    def _code(self, stream: Stream, name: str) -> Tensor:
        return self.generator(self.towers[name](in_unit_range(stream))).float()

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """Of the networks "task", "metric" and "mislead", of the discriminator "discriminate"; weights included."""
        first, second = self.modalities
        game = self.adversary({name: encoded[name][encoded[f"{name}?"]] for name in self.modalities}, step=at.progress)
        terms = {"discriminate": game.discriminator, "mislead": game.encoders}
        if at.turn == "discriminator":
            return terms
        both = encoded[f"{first}?"] & encoded[f"{second}?"]
        label = encoded["label"][both]
        if bool((label < 0).any()):
            raise BatchError("aml learns who it is from the label, and a clip of the batch has none.")
        count = self.config.candidates - 1
        task, metric = [], []
        for query, other in ((first, second), (second, first)):
            q, c = encoded[query][both], encoded[other][both]
            wrong = c[strangers(label, count, at.generator)]  # [B, k - 1, D]
            logits = self.choice(q, torch.cat([c[:, None], wrong], 1))  # the head knows no order, so no shuffling
            task.append(cross_entropy(logits, torch.zeros_like(label)))
            metric.append(lifted_pairs(q, c, wrong, margin=self.config.margin))
        terms["task"] = self.config.task * torch.stack(task).mean()
        terms["metric"] = self.config.metric * torch.stack(metric).mean()
        return terms

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """The codes of one modality, entries in (-1, 1): float32 [B, D]."""
        if modality not in self.modalities:
            raise ConfigError(f'this model has no "{modality}".', hint=did_you_mean(modality, set(self.modalities)))
        (stream,) = batch.require(modality)
        return self._code(stream, modality)

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        """Negative squared distance [Q, G]."""
        return -torch.cdist(q, g, compute_mode="donot_use_mm_for_euclid_dist").square()


def strangers(label: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows of other labels for each of [B] labels, drawn with repetition: [B, count]; BatchError for none."""
    other = label[:, None] != label
    if len(label) == 0 or not bool(other.any(1).all()):
        raise BatchError("aml needs clips of two people or more in every batch.")
    return torch.multinomial(other.float(), count, replacement=True, generator=generator)
