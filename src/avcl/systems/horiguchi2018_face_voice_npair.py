"""Face and voice by N-pair loss: whose voice is this, of people never met? (Horiguchi, Kanda, Nagamatsu 2018).

Claim: a voice is matched to the face of a stranger if two networks are trained so that the inner product of one's own
face and voice beats those with all other people of the batch at once.

    f = head_f(x_face)        v = head_v(x_voice)        linear, ReLU, linear; neither is brought to unit length
    L = L_fv + L_vf + λ/N Σ_i (‖f_i‖² + ‖v_i‖²)
    L_fv = 1/N Σ_i log(1 + Σ_{j≠i} exp(f_i·v_j - f_i·v_i))               L_vf the same with the roles exchanged

N: the people of a batch. Each gives one face and one voice to every step, drawn from all of that person's clips in
the batch, so a face also meets a voice of another recording; two clips of one person are never strangers to each other.
x: features of a network trained before, averaged over time, every column at variance 1. Of raw pictures and sounds it
is fixed statistics (where it is light, how strong each band of the log-mel is), or, with ``frames`` > 0, what two
small towers learn to see and hear.
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
from avcl.objectives.contrastive import n_pair
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream, StreamSpec

CARD = Card(
    title="Face-voice matching using cross-modal embeddings",
    year=2018,
    venue="ACM MM",
    authors="S. Horiguchi, N. Kanda, K. Nagamatsu",
    survey={
        "paper": "Horiguchi et al., 2018",
        "objective": "NPL",
        "learning": "Unsupervised",
        "application": "Face-2-Voice Retrieval",
        "metric": "mAP",
        "performance": "2.07",
        "datasets": "FVceleb",
    },
    paper=(
        "FVCeleb, mAP 2.07 % (the survey; presumably the mean of both directions)",
        "One of two, candidates of the same sex: 62.2 % on FVCeleb, 56.5 % on a part of GRID (abstract, from memory)",
    ),
    fidelity="reconstruction: neither the paper's text nor code was available. The N-pair loss is that of Sohn 2016; "
    "networks, λ and the sum of both directions are ours.",
    deviations=(
        "Fixed statistics of face and voice stand for the paper's networks, which had learned from faces and speakers: "
        "from two thousand pairs of the world, small towers with random weights learned nothing (1:2 at .50).",
        "The survey calls it unsupervised; the labels say which clips are of one person. Without labels every clip is "
        "a person of its own.",
        "AdamW with warm-up and cosine: the one loop of this library.",
    ),
    original_license="none stated",
)


@dataclass(frozen=True)
class FaceVoiceConfig(MediaConfig):
    """Settings of ``horiguchi2018_face_voice_npair``."""

    batch_size: int = 64
    learning_rate: float = 1e-3
    fps: float = 2.0  # a face is read from stills
    dim: int = 128  # of f and v
    hidden: int = 256  # of the heads
    norm_weight: float = 0.02  # λ
    compare: Literal["cosine", "dot"] = "cosine"  # how f and v are scored
    dropout: float = 0.1
    frames: int = 0  # of media: how many pictures a tower looks at that learns along; 0: fixed statistics

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "dim": (1, MAX),
        "hidden": (1, MAX),
        "norm_weight": (0.0, MAX),
        "dropout": (0.0, 0.99),
        "frames": (0, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, dim=12, hidden=16, dropout=0.0)


class _Branch(nn.Module):
    """A face or a voice as f or v [B, dim]; a clip without a recorded step gets what the head makes of zeros."""

    def __init__(self, spec: StreamSpec, config: FaceVoiceConfig, vocabulary: int):
        super().__init__()
        self.vector = ClipVector(spec, seconds=config.window, frames=config.frames, vocabulary=vocabulary)
        self.head = nn.Sequential(
            nn.Linear(self.vector.dim, config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.dim),
        )

    def forward(self, stream: Stream) -> Tensor:
        return self.head(self.vector(stream)).float()


# Many people, for what links faces to voices is learned from people and not from clips.
TRIAL = Trial(
    task="matching",
    preset="face_voice",
    knobs={"persons": 1200, "link": 0.9},
    clips=2500,
    test=400,
    fresh=False,
    settings={
        "epochs": 12,
        "fps": 1.0,
        "size": (64, 64),
        "sample_rate": 8000,
        "dropout": 0.3,
        "norm_weight": 0.1,
    },
    short={"epochs": 12, "batch_size": 12, "dropout": 0.0},
    short_clips=48,
)


class FaceVoice(system.System):
    """Two towers with heads, and the N-pair loss over the people of a batch."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = FaceVoiceConfig
    trial: ClassVar[Trial | None] = TRIAL
    similarity_name = "cosine"
    config: FaceVoiceConfig

    def __init__(self, config: FaceVoiceConfig, spec: DataSpec):
        super().__init__(config, spec)
        if config.compare not in ("cosine", "dot"):
            raise ConfigError(f'compare = "{config.compare}" is not "cosine" or "dot".')
        self.modalities = config.chosen(spec)
        if len(self.modalities) != 2:
            names = ", ".join(self.modalities)
            raise ConfigError(f"horiguchi matches two modalities, not {names}.", hint="Set modalities.")
        self.similarity_name = config.compare
        self.branches = nn.ModuleDict(
            {name: _Branch(spec.streams[name], config, len(spec.vocabulary)) for name in self.modalities}
        )

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of the columns of x, before the first step."""
        if epoch == 0:
            learn_vectors({name: self._branch(name).vector for name in self.modalities}, batches)

    def _branch(self, name: str) -> _Branch:
        if name not in self.branches:
            raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
        return cast(_Branch, self.branches[name])

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """f and v [B, D], which rows have them ("audio?" [B] bool), and who it is."""
        encoded = {"label": batch.label}
        for name, stream in zip(self.modalities, batch.require(*self.modalities), strict=True):
            encoded |= {name: self._branch(name)(stream), f"{name}?": stream.mask.any(1)}
        return encoded

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        chosen = one_each(encoded["label"], [encoded[f"{name}?"] for name in self.modalities], at.generator)
        if len(chosen[0]) < 2:
            raise BatchError(f"horiguchi needs two people or more with {' and '.join(self.modalities)} in every batch.")
        a, v = (encoded[name][rows] for name, rows in zip(self.modalities, chosen, strict=True))
        return {"n_pair": n_pair(a, v, weight=self.config.norm_weight)}

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """f or v as it is, not brought to unit length: float32 [B, D]."""
        branch, (stream,) = self._branch(modality), batch.require(modality)
        return branch(stream)

    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """What the head reads: float32 [B, P]."""
        branch, (stream,) = self._branch(modality), batch.require(modality)
        return branch.vector(stream)

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        if self.config.compare == "cosine":
            q, g = nn.functional.normalize(q, dim=1), nn.functional.normalize(g, dim=1)
        return q @ g.T


def one_each(label: Tensor, there: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """For each modality a row of each person, drawn from the rows that ``there`` [B] bool holds: one [N] each.

    ``label`` [B]: who it is; a row with -1 is a person of its own. N counts those whom every modality shows.
    """
    own = label.max().clamp(min=-1) + 1 + torch.arange(len(label), device=label.device)
    person = torch.where(label < 0, own, label).unique(return_inverse=True)[1]
    count = int(person.max()) + 1
    rows = []
    for shown in there:
        order = torch.randperm(len(label), generator=generator, device=generator.device).to(label.device)
        order = order[shown[order]]
        place = torch.arange(len(order), device=label.device)
        never = torch.full((count,), len(order), device=label.device)
        first = never.scatter_reduce(0, person[order], place, "amin")  # where each person comes first
        rows.append(torch.cat([order, order.new_full((1,), -1)])[first])
    shared = torch.stack([row >= 0 for row in rows]).all(0)
    return [row[shared] for row in rows]
