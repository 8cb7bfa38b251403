"""AVLnet: sound, picture and text of instructional videos in one space (Rouditchenko et al. 2020).

Claim: the raw sound of a random moment, speech and all, is enough to learn which moment of a video it belongs to;
with a third branch for text, one space holds all three.

    a = W gate(mean_t ResDAVEnet(log-mel)_t),  v = gate(max_t y_t),  t = gate(max_t relu(W' w_t))       y, w: features
    gate(x) = x' ⊙ σ(W₂ x' + b₂),  x' = W₁ x + b₁
    L(S) = -1/B Σ_i log [ e^{S_ii - δ} / ( e^{S_ii - δ} + Σ_{j≠i} e^{S_ij} ) ],  S the dot product, δ = .001, both
    directions summed

    text = "tri"     L_av + L_tv + L_ta: every two of the branches; with ``joint`` S = t (a + v)ᵀ alone
    text = "fused"   L(x, v), x = z ⊙ σ(W₃ z + b₃), z = W_a a' + W_t t': sound and text together find the picture

Pictures are features of two networks, each brought to unit length and laid side by side, or media.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.clips import PictureTower, in_unit_range
from avcl.encoders.spoken import ResDAVEnet
from avcl.encoders.text import CharConv
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.pooling import masked_max, masked_mean
from avcl.nn.standardize import Standardize, learn_scales
from avcl.objectives.margin import masked_margin_softmax
from avcl.objectives.schedules import Exponential
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream, StreamSpec

HINT = "Set modalities."

CARD = Card(
    title="AVLnet: learning audio-visual language representations from instructional videos",
    year=2020,
    venue="arXiv; Interspeech 2021",
    authors="A. Rouditchenko, A. Boggust, D. Harwath, B. Chen, D. Joshi, S. Thomas, K. Audhkhasi, H. Kuehne, R. Panda, "
    "R. Feris, B. Kingsbury, M. Picheny, A. Torralba, J. Glass",
    survey={
        "paper": "Rouditchenko et al., 2020",
        "objective": "MMS",
        "learning": "Semi-Supervised",
        "application": "Text-2-Video Retrieval",
        "metric": "Recall@10",
        "performance": "49.9/67.9",
        "datasets": "MSR-VTT/YouCook2",
    },
    paper=(
        "MSR-VTT and YouCook2, R@10: 49.9 and 67.9, means of sound to picture and picture to sound (the survey's "
        "table, which calls them text to video)",
        "YouCook2, R@1/5/10: sound to picture 30.7 57.7 67.4, picture to sound 33.0 58.9 68.4; MSR-VTT: 20.1 40.0 49.6 "
        "and 22.0 41.4 50.3 (from memory, not verified; their means are the survey's figures)",
    ),
    fidelity="reconstruction: branches, gates and loss are those of the authors' code; HowTo100M, on which all "
    "published figures rest, and the two picture networks are not here; the margin's schedule in the paper's runs is "
    "unknown.",
    deviations=(
        "Every step of the sound's network is normalized for itself, not over the batch, and padding is masked; the "
        "authors' code averages over padding while it learns.",
        "The log-mel is level-free instead of in decibels below its peak.",
        "Pictures of media are read by a small convolutional tower, written text as bytes by convolutions over letters "
        "instead of word2vec; both learn along. Features of either work as they are.",
        "Features are standardized column by column instead of brought to unit length.",
        "AdamW with warm-up and cosine instead of Adam with a falling rate: the one loop of this library.",
        "Ranks count ties once, by their mean; in the authors' evaluation a tie counts several times.",
    ),
    original_license="BSD-3-Clause (own code, DAVEnet) and Apache-2.0 (HowTo100M code)",
)


@dataclass(frozen=True)
class AVLnetConfig(MediaConfig):
    """Settings of ``rouditchenko2020_avlnet``."""

    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    window: float = 10.0  # seconds
    text: Literal["tri", "fused"] = "tri"  # what a third modality does
    joint: bool = False  # of tri: text against the sum of the other two (fine-tuning); False: every pair
    dim: int = 4096  # of the common space (6144 with three branches in the paper)
    margin: float = 0.001  # δ
    growth: float = 1.0  # of δ every 1,000 steps: constant in the authors' code, 1.002 in Ilharco et al. 2019
    normalize: bool = False  # True: unit embeddings and a scale of 1 / τ
    temperature: float = 0.07  # τ
    widths: tuple[int, ...] = (128, 256, 512, 1024)  # of the sound's stages
    depths: tuple[int, ...] = (2, 2, 2, 2)  # residual blocks of a stage
    letters: int = 128  # channels over the letters of a text
    frames: int = 4  # of media: full-size frames that the picture tower looks at

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "dim": (2, MAX),
        "margin": (0.0, MAX),
        "growth": (1.0, MAX),
        "temperature": (0.01, MAX),
        "widths": (1, MAX),
        "depths": (1, MAX),
        "letters": (1, MAX),
        "frames": (1, MAX),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text not in ("tri", "fused"):
            raise ConfigError(f'text = "{self.text}" is not "tri" or "fused".')
        if self.joint and self.text != "tri":
            raise ConfigError("joint belongs to three branches, so to text = tri.")

    @classmethod
    def tiny(cls) -> Self:
        return cls(
            epochs=2,
            batch_size=8,
            dim=12,
            frames=2,
            sample_rate=8000,
            window=3.0,
            widths=(8, 12),
            depths=(1, 1),
            letters=8,
        )


# The sound of the object, its picture, and what is written about it.
TRIAL = Trial(
    task="retrieval",
    preset="captions",
    protocol={"relevance": "pair"},
    knobs={"distractor": 0.0, "offscreen": 0.0},
    streams=("audio", "video", "text"),
    clips=2000,
    fresh=False,
    settings={
        "epochs": 10,
        "batch_size": 64,
        "sample_rate": 8000,
        "fps": 4.0,
        "window": 3.0,
        "dim": 128,
        "normalize": True,
        "widths": (32, 48, 64, 96),
        "depths": (1, 1, 1, 1),
        "learning_rate": 2e-3,
    },
    short={"epochs": 8, "batch_size": 16},
    short_clips=48,
    partner="text",
)


class ContextGate(nn.Module):
    """``x ⊙ σ(W x + b)``: every dimension is let through by what all of them say."""

    def __init__(self, dim: int):
        super().__init__()
        self.gate = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x))


def gated(width: int, dim: int) -> nn.Sequential:
    """``gate(x)``: a linear map [B, width] to [B, dim], and its own gate."""
    return nn.Sequential(nn.Linear(width, dim), ContextGate(dim))


class _Branch(nn.Module):
    """One modality [B, width]: its network and what is pooled of it, before the projection into the common space."""

    def __init__(self, spec: StreamSpec, config: AVLnetConfig, vocabulary: int):
        super().__init__()
        c, self.kind = config, spec.kind
        self.net: ResDAVEnet | PictureTower | CharConv | None = None
        if spec.kind == "audio":
            self.net = ResDAVEnet(widths=c.widths, depths=c.depths)
        elif spec.kind == "video":
            self.net = PictureTower(c.frames)
        elif spec.kind == "tokens":
            self.net = CharConv(vocabulary or 256, dim=c.letters)
        elif spec.kind not in ("features", "map"):
            raise ConfigError(f'avlnet has no branch for a stream of kind "{spec.kind}".')
        self.scale = Standardize(spec.shape[-1]) if spec.kind == "features" else None
        self.width = spec.shape[-1] if self.net is None else self.net.dim

    def steps(self, stream: Stream) -> Stream:
        if self.net is not None:
            return self.net(stream)
        data = stream.data.float()
        data = data.mean((2, 3)) if data.ndim == 5 else data
        return stream._replace(data=data if self.scale is None else self.scale(data))


class _Sound(_Branch):
    """The mean over time, through a gate of its own width."""

    def __init__(self, spec: StreamSpec, config: AVLnetConfig, vocabulary: int):
        super().__init__(spec, config, vocabulary)
        self.out = gated(self.width, self.width)

    def forward(self, stream: Stream) -> Tensor:
        steps = self.steps(stream)
        return self.out(masked_mean(steps.data, steps.mask))


class _Picture(_Branch):
    """The maximum over the clip."""

    def forward(self, stream: Stream) -> Tensor:
        if isinstance(self.net, PictureTower):
            return self.net(in_unit_range(stream)).pooled
        steps = self.steps(stream)
        return masked_max(steps.data, steps.mask)


class _Text(_Branch):
    """``max_t relu(W w_t)``."""

    def __init__(self, spec: StreamSpec, config: AVLnetConfig, vocabulary: int):
        super().__init__(spec, config, vocabulary)
        units = config.dim if config.text == "tri" else config.dim // 2
        self.word, self.width = nn.Linear(self.width, units), units

    def forward(self, stream: Stream) -> Tensor:
        steps = self.steps(stream)
        return masked_max(torch.relu(self.word(steps.data)), steps.mask)


def roles_of(names: Sequence[str], spec: DataSpec) -> dict[str, str]:
    """Which modality is the "sound", the "picture" and, where there is one, the "text": by kind, features by name.

    ConfigError unless there is one sound and one picture, and at most one text.
    """
    by_kind = {"audio": "sound", "video": "picture", "map": "picture", "tokens": "text"}
    by_name = {"video": "picture", "image": "picture", "text": "text"}
    roles: dict[str, str] = {}
    for name in names:
        role = by_kind.get(spec.streams[name].kind) or by_name.get(name, "sound")
        if role in roles:
            raise ConfigError(f"avlnet has one branch for a {role}, not for {roles[role]} and {name}.", hint=HINT)
        roles[role] = name
    if not {"sound", "picture"} <= roles.keys():
        raise ConfigError(f"avlnet needs a sound and a picture, not {', '.join(names)}.", hint=HINT)
    return roles


class AVLnet(system.System):
    """Two or three branches with gates, and the margin softmax between them."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = AVLnetConfig
    trial: ClassVar[Trial | None] = TRIAL
    similarity_name = "dot"
    config: AVLnetConfig

    def __init__(self, config: AVLnetConfig, spec: DataSpec):
        super().__init__(config, spec)
        c, self.modalities = config, config.chosen(spec)
        self.roles = roles_of(self.modalities, spec)
        self.similarity_name = "cosine" if c.normalize else "dot"
        self.margin = Exponential(start=c.margin, rate=c.growth, every=1000)
        self.fused = c.text == "fused" and "text" in self.roles
        if c.joint and "text" not in self.roles:
            raise ConfigError("joint compares a text with the sum of the others, and the data have none.")
        kinds: dict[str, type[_Branch]] = {"sound": _Sound, "picture": _Picture, "text": _Text}
        self.branches, self.heads = nn.ModuleDict(), nn.ModuleDict()
        for role, name in self.roles.items():
            branch = kinds[role](spec.streams[name], c, len(spec.vocabulary))
            self.branches[name] = branch
            if role == "sound" or (role == "text" and self.fused):
                self.heads[name] = nn.Linear(branch.width, c.dim)
            else:
                self.heads[name] = gated(branch.width, c.dim)
        self.context = ContextGate(c.dim) if self.fused else None

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of feature arrays, before the first step."""
        scales = {name: cast(_Branch, branch).scale for name, branch in self.branches.items()}
        if epoch == 0:
            learn_scales({name: scale for name, scale in scales.items() if scale is not None}, batches)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """What each branch adds to the common space [B, D], and which rows have it ("audio?" [B] bool)."""
        encoded = {}
        for name, stream in zip(self.modalities, batch.require(*self.modalities), strict=True):
            encoded[name], encoded[f"{name}?"] = self._part(stream, name), stream.mask.any(1)
        return encoded

    def _part(self, stream: Stream, name: str) -> Tensor:
        return self.heads[name](self.branches[name](stream)).float()

    def _united(self, parts: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> Tensor:
        """One embedding of one or several modalities: their sum; of what is fused, through the gate of the context."""
        picture, rows = self.roles["picture"], {name: there[name][:, None] for name in parts}
        if self.context is None:
            return self._scaled(sum_of([self._scaled(x) * rows[name] for name, x in parts.items()]))
        both = [x * rows[name] for name, x in parts.items() if name != picture]
        made = [self._scaled(self.context(sum_of(both)))] if both else []
        made += [self._scaled(parts[picture]) * rows[picture]] if picture in parts else []
        return self._scaled(sum_of(made))

    def _scaled(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=1) if self.config.normalize else x

    def compared(self) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
        """The sides of each term: which modalities are summed on the left, and which on the right."""
        if self.fused:
            return (((self.roles["sound"], self.roles["text"]), (self.roles["picture"],)),)
        if self.config.joint:
            return (((self.roles["text"],), (self.roles["sound"], self.roles["picture"])),)
        return tuple(((a,), (b,)) for a, b in itertools.combinations(self.modalities, 2))

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """One term for every comparison, over the clips that have all of its modalities; both directions summed."""
        scale, terms = 1 / self.config.temperature if self.config.normalize else 1.0, {}
        for left, right in self.compared():
            rows = torch.stack([encoded[f"{name}?"] for name in (*left, *right)]).all(0)
            if not bool(rows.any()):
                raise BatchError(f"no clip of the batch has all of {', '.join((*left, *right))}.")
            there = dict.fromkeys((*left, *right), rows[rows])
            a, b = (self._united({name: encoded[name][rows] for name in side}, there) for side in (left, right))
            loss = masked_margin_softmax(a, b, margin=self.margin(at.step), scale=scale)
            terms["_".join((*left, *right))] = loss
        return terms

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """One modality, or several together ("audio+text"): float32 [B, D], of unit length with ``normalize``."""
        names = tuple(modality.split("+"))
        for name in names:
            if name not in self.modalities:
                raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
        streams = dict(zip(names, batch.require(*names), strict=True))
        there = {name: stream.mask.any(1) for name, stream in streams.items()}
        return self._united({name: self._part(stream, name) for name, stream in streams.items()}, there)

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return self._scaled(q) @ self._scaled(g).T


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """The sum of one tensor or more."""
    return torch.stack(tuple(parts)).sum(0)
