"""Music for a video, and a video for the music: a triplet over what is on the shelf (Prétet, Richard, Peeters 2021).

Claim: which music goes with a video can be learned from music videos alone, without a label, with two small networks on
fixed features, if the features of the music are learned ones (not handcrafted statistics) and the loss ranks (and does
not ask "do the two belong together?"):

    z_m = unit( BN( W_L relu( ... relu(W₁ x_m) ) ) )       three layers on the music, two on the video; x_m: features
    L   = w₁ T(S) + w₂ T(Sᵀ) + λ Σ_m R(z_m, x_m)           S_ij = z_music,i · z_video,j of the B pairs of the batch
    T(S) = 1/(BK) Σ_i Σ_{j∈top_K(i)} max(0, S_ij - S_ii + ζ)          top_K(i): the K ≠ i of the largest S_ij
    R(z, x) = 1/B Σ_i |sgn Δz_i - sgn Δx_i| |Δz_i|
              Δz_i = z_i·z_{i+1} - z_i·z_{i+2},   Δx_i = ‖x_i - x_{i+2}‖ - ‖x_i - x_{i+1}‖

R keeps the order of distances inside a modality (VM-NET's soft structure term; λ = 0: none). With ``objective =
"correspondence"``, what the paper compares with, L is the binary cross-entropy of σ(s S_ij + o) on the own pairs and on
as many of strangers.

Features are averaged over time. Raw sound and pictures are summarized by fixed statistics, which stand for the
handcrafted features of the comparison (``frames`` > 0: by two small towers that learn along); pretrained ones come as
arrays of features.
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
from avcl.nn.dense import dense, glorot
from avcl.objectives.classification import binary_cross_entropy
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec

CARD = Card(
    title="Cross-modal music-video recommendation: a study of design choices",
    year=2021,
    venue="IJCNN",
    authors="L. Prétet, G. Richard, G. Peeters",
    survey={
        "paper": "Pretet et al., 2021",
        "objective": "T",
        "learning": "Semi-Supervised",
        "application": "Cross-Modal (AV) Retrieval",
        "metric": "Recall@10",
        "performance": "7.425",
        "datasets": "MVD",
    },
    paper=("Music Video Dataset: Recall@10 7.425 % (the survey; the size of the gallery is not known)",),
    fidelity="reconstruction: layers, triplet, its top 100, margin, weights and structure term are those of the public "
    "code of VM-NET (Hong et al. 2018), on which the paper builds; of the paper itself no code is public.",
    deviations=(
        "AdamW without weight decay, with warm-up and cosine, instead of Adam at a constant rate: the one loop of this "
        "library.",
        "The columns of the features are brought to mean 0 and variance 1 of the training clips.",
        "The head of the correspondence loss (scale and offset of the cosine) and its one stranger a pair are ours.",
        "Of raw media the fixed statistics of this library are read: fewer and other ones than VM-NET's 1140 numbers.",
    ),
    original_license="none stated",
)


@dataclass(frozen=True)
class MusicVideoConfig(MediaConfig):
    """Settings of ``pretet2021_music_video``."""

    batch_size: int = 1000
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    dim: int = 512
    hidden: tuple[int, ...] = (2048, 1024)  # of the music (and of text)
    hidden_video: tuple[int, ...] = (2048,)
    linear: tuple[str, ...] = ()  # modalities whose layers have no ReLU between them
    dropout: float = 0.1
    norm_decay: float = 0.99  # of the running mean and variance of BN
    objective: Literal["triplet", "correspondence"] = "triplet"
    margin: float = 0.1  # ζ, in cosine
    hardest: int = 100  # K: negatives of a query that count; 0: all of the batch
    weights: tuple[float, ...] = (3.0, 1.0)  # w₁: music asks for a video; w₂: the video asks
    structure: float = 0.0  # λ; VM-NET: .2
    frames: int = 0  # of media: full-size frames that the picture tower looks at; 0: no towers, fixed statistics

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "dim": (1, MAX),
        "hidden": (1, MAX),
        "hidden_video": (1, MAX),
        "dropout": (0.0, 0.99),
        "norm_decay": (0.0, 0.9999),
        "margin": (0.0, MAX),
        "hardest": (0, MAX),
        "weights": (0.0, MAX),
        "structure": (0.0, MAX),
        "frames": (0, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, dim=12, hidden=(16, 12), hidden_video=(16,), dropout=0.0, structure=0.2)


class _Branch(nn.Module):
    """x [B, width] to z [B, dim] of unit length; rows that are not ``there`` take no part in BN and are zeros."""

    def __init__(self, width: int, hidden: tuple[int, ...], *, linear: bool, config: MusicVideoConfig):
        super().__init__()
        layers = dense((width, *hidden), activation="relu", dropout=config.dropout)
        if linear:
            layers = [layer for layer in layers if not isinstance(layer, nn.ReLU)]
        self.net = nn.Sequential(*layers, glorot((width, *hidden)[-1], config.dim))
        self.norm = nn.BatchNorm1d(config.dim, eps=1e-3, momentum=1 - config.norm_decay)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        if self.training and int(there.sum()) < 2:
            raise BatchError("pretet normalizes over the clips of a batch (or micro-batch) and needs two or more.")
        raw = self.net(x)
        if bool(there.all()):
            return nn.functional.normalize(self.norm(raw).float(), dim=1)
        out = torch.zeros_like(raw, dtype=torch.float32)
        if bool(there.any()):
            out[there] = nn.functional.normalize(self.norm(raw[there]).float(), dim=1)
        return out


class MusicVideo(system.System):
    """Two branches on fixed features, and the triplet over the most similar strangers of the batch."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = MusicVideoConfig
    similarity_name = "cosine"
    config: MusicVideoConfig
    # Batches and layers for thousands of clips instead of hundreds of thousands.
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        clips=2400,
        fresh=False,
        settings={
            "epochs": 6,
            "batch_size": 100,
            "learning_rate": 1e-3,
            "dim": 128,
            "hidden": (512, 256),
            "hidden_video": (512,),
            "hardest": 20,
            "norm_decay": 0.9,
        },
        short={"epochs": 8, "batch_size": 32},
    )

    def __init__(self, config: MusicVideoConfig, spec: DataSpec):
        super().__init__(config, spec)
        if config.objective not in ("triplet", "correspondence"):
            raise ConfigError(f'objective = "{config.objective}" is not "triplet" or "correspondence".')
        if len(config.weights) != 2:
            raise ConfigError(f"weights = {config.weights} must be two numbers, one for each direction.")
        self.modalities = config.chosen(spec)
        if len(self.modalities) != 2:
            raise ConfigError(f"pretet pairs two modalities, not {', '.join(self.modalities)}.", hint="Set modalities.")
        for name in config.linear:
            self._known(name)
        words, c = len(spec.vocabulary), config
        vectors = {
            name: ClipVector(spec.streams[name], seconds=c.window, frames=c.frames, vocabulary=words)
            for name in self.modalities
        }
        self.vectors, self.branches = nn.ModuleDict(vectors), nn.ModuleDict()
        for name, vector in vectors.items():
            hidden = c.hidden_video if name == "video" else c.hidden
            self.branches[name] = _Branch(vector.dim, hidden, linear=name in c.linear, config=c)
        if config.objective == "correspondence":
            self.scale, self.offset = nn.Parameter(torch.tensor(5.0)), nn.Parameter(torch.zeros(()))

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of the columns of x, before the first step."""
        if epoch == 0:
            learn_vectors({name: cast(ClipVector, self.vectors[name]) for name in self.modalities}, batches)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """z of both modalities [B, dim], where needed x ("audio x"), and which rows have both [B]."""
        encoded, there = {}, {}
        for name, stream in zip(self.modalities, batch.require(*self.modalities), strict=True):
            x, there[name] = self.vectors[name](stream), stream.mask.any(1)
            encoded[name] = self.branches[name](x, there[name])
            if self.config.structure:
                encoded[f"{name} x"] = x.detach()
        return encoded | {"both": torch.stack(list(there.values())).all(0)}

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        c, both = self.config, encoded["both"]
        if int(both.sum()) < 2:
            raise BatchError(f"pretet needs two clips or more with {' and '.join(self.modalities)} in a batch.")
        music, video = (encoded[name][both] for name in self.modalities)
        if c.objective == "correspondence":
            stranger = (music * video.roll(1, 0)).sum(1)  # rows are shuffled, so the next one is anyone
            cosine = torch.cat([(music * video).sum(1), stranger])
            own = (torch.arange(len(cosine), device=cosine.device) < len(music)).float()
            terms = {"correspondence": binary_cross_entropy(self.scale * cosine + self.offset, own)}
        else:
            scores = music @ video.T
            music_asks = hardest_negatives(scores, margin=c.margin, count=c.hardest)
            video_asks = hardest_negatives(scores.T, margin=c.margin, count=c.hardest)
            terms = {"triplet": c.weights[0] * music_asks + c.weights[1] * video_asks}
        if c.structure:
            kept = [order_kept(encoded[name][both], encoded[f"{name} x"][both]) for name in self.modalities]
            terms["structure"] = c.structure * torch.stack(kept).sum()
        return terms

    # ---------------------------------------------------------------------------------------------------- capabilities
    def _known(self, modality: str) -> tuple[str, ...]:
        names = tuple(modality.split("+"))
        for name in names:
            if name not in self.modalities:
                raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
        return names

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """z of one modality, or of the sum of both ("audio+video"), of unit length: float32 [B, dim]."""
        parts = []
        for name in self._known(modality):
            (stream,) = batch.require(name)
            parts.append(self.branches[name](self.vectors[name](stream), stream.mask.any(1)))
        return nn.functional.normalize(torch.stack(parts).sum(0), dim=1)

    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """x, what the networks read: float32 [B, width], of both modalities side by side."""
        names = self._known(modality)
        return torch.cat([self.vectors[n](s) for n, s in zip(names, batch.require(*names), strict=True)], 1)

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return nn.functional.normalize(q, dim=1) @ nn.functional.normalize(g, dim=1).T


def hardest_negatives(scores: Tensor, *, margin: float, count: int) -> Tensor:
    """T(S): mean over the rows of S [B, B] and over the ``count`` columns off the diagonal that violate the margin
    most (0: all of them), B ≥ 2: a scalar ≥ 0.
    """
    rows = len(scores)
    own = torch.eye(rows, dtype=torch.bool, device=scores.device)
    over = scores - scores.diagonal()[:, None] + margin
    k = min(count or rows - 1, rows - 1)
    return over.masked_fill(own, -torch.inf).topk(k, dim=1).values.clamp(min=0).mean()


def order_kept(z: Tensor, x: Tensor) -> Tensor:
    """R(z, x): of three rows in a circle, is the one that was nearer before (x [B, D]) also the nearer one in z
    [B, D']? A scalar ≥ 0, 0 for fewer than three rows. The choice passes no gradient, only the gap in z does.
    """
    if len(z) < 3:
        return 0.0 * z.sum()
    gap = (z * (z.roll(-1, 0) - z.roll(-2, 0))).sum(1)
    before = (x - x.roll(-2, 0)).norm(dim=1) - (x - x.roll(-1, 0)).norm(dim=1)
    return ((gap.sign() - before.sign()).detach() * gap).mean()
