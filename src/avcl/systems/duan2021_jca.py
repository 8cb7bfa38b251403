"""Recursive joint co-attention: the joint representation of sound and picture attends to each of them, again and again.

Claim: fusing first and letting the fused representation attend to both modalities localizes events better than letting
the modalities attend to each other; repeating the unit improves both (Duan et al. 2021).

    a = B_a(sound)                                              B(x) = unit(W [BiLSTM(x) ; x]) in R^{S × d}
    v = B_v(W Σ_p softmax_p( wᵀ tanh(W_r relu(U_r R_sp) + W_a relu(U_a a_s)) ) R_sp)       a chooses the regions R
    J = [v ; a] W_J,  C_x = tanh(K_x(x)ᵀ J / √(2d)),  x ← x + relu(relu(tanh(x W C_x)) W_o)  for x = a, v, several times
    z = W_2 relu(W_1 B([v ; a])) in R^{S × (C + 1)}

S segments, the last class is background. The affinity C_x is between channels of one modality and channels of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.recurrent import Recurrent
from avcl.encoders.segments import SegmentTowers
from avcl.errors import ConfigError, did_you_mean
from avcl.nn.coattention import JointCoAttention
from avcl.nn.events import EventTerms, SegmentMatch, blank, looked, segments_of
from avcl.nn.regions import AudioGuidedAttention
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream

CARD = Card(
    title="Audio-Visual Event Localization via Recursive Fusion by Joint Co-Attention",
    year=2021,
    venue="WACV",
    authors="B. Duan, H. Tang, W. Wang, Z. Zong, G. Yang, Y. Yan",
    survey={
        "paper": "Duan et al., 2021",
        "objective": "CE",
        "learning": "Supervised",
        "application": "Sound Localization",
        "metric": "ACC",
        "performance": "76.2",
        "datasets": "AVE",
    },
    fidelity="official: the order of the parts, the joint co-attention unit and the blocks follow the authors' code; "
    "width, repeats and towers are smaller, and the towers are learned from scratch.",
    deviations=(
        "VGGish and VGG-19 are replaced by small convolutional towers that are trained along; features of any tower "
        "can be given in their place.",
        "The key K does not act on time by a matrix of 10 x 10, which would fix the number of segments; `keys` = "
        '"linear" is that of the code.',
        "What the code brings to unit length is brought to length √d here: at length 1 and width 128 the affinities "
        "would start near 0.",
        "The sound looks at single frames, and what it sees is averaged over a segment.",
        "Cross-entropy on the logits; the soft margin on softmax outputs of the authors' code is `legacy_loss`.",
        "Weak supervision and matching across modalities are those of Tian et al. 2018; the paper has neither.",
        "AdamW with warm-up and cosine in place of Adam at 1e-4 with plateaus over 300 epochs.",
    ),
    original_license="MIT",
)


@dataclass(frozen=True)
class JcaConfig(MediaConfig):
    """Settings of ``duan2021_jca``; the paper: width 512, 4 repeats, AVE features, Adam 1e-4, batch 64, 300 epochs."""

    segment: float = 0.5  # seconds of one segment; AVE has 1.0 and a window of 10
    frames: int = 2  # frames of a segment that are looked at
    weak: bool = False  # learn from the label of the clip alone
    use: str = "both"  # or "audio", "video": a model of one modality, to compare with
    dim: int = 64  # width of the sound before its LSTM
    widths: tuple[int, ...] = (32, 64, 96)  # of the convolutions on pictures
    width: int = 128  # d
    units: int = 49  # of the attention
    repeats: int = 2  # joint co-attention units, one after the other; 0: fusion by LSTM alone
    shared: bool = False  # they are one unit, applied again and again
    keys: str = "identity"  # how K acts on time: "identity", "conv", "linear"
    dropout: float = 0.1  # of LSTM and co-attention; the code has 0.1 and 0.3
    pool: str = "max"  # of the segments under weak supervision: "max", "mean", "top-k", "attention"
    swapped: float = 1.0  # weight of pictures with another clip's sound (background) under weak supervision
    sides: float = 0.0  # weight of classifying each modality by itself
    legacy_loss: bool = False
    every_pair: bool = False  # the distance network learns from every two segments of a clip

    fps: float = 4.0
    window: float = 5.0
    learning_rate: float = 2e-3
    batch_size: int = 32

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "segment": (0.02, MAX),
        "frames": (1, MAX),
        "dim": (1, MAX),
        "widths": (1, MAX),
        "width": (2, MAX),
        "units": (1, MAX),
        "repeats": (0, 64),
        "dropout": (0.0, 0.99),
        "swapped": (0.0, MAX),
        "sides": (0.0, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(weak=True, dim=16, widths=(8, 8, 12), width=16, units=8, repeats=1, frames=1, batch_size=8)


class Along(nn.Module):
    """``B(x) = √d unit(W dropout([BiLSTM(x) ; x]))``, two layers with learned first states: [B, S, D] to [B, S, d]."""

    def __init__(self, features: int, width: int, dropout: float):
        super().__init__()
        half = width // 2
        self.lstm = Recurrent(features, hidden=half, depth=2, cell="lstm", dropout=dropout, learned_start=True)
        self.join = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * half + features, width))
        self.scale = width**0.5

    def forward(self, stream: Stream) -> Stream:
        joined = self.join(torch.cat([self.lstm(stream).data, stream.data], 2))
        data = self.scale * nn.functional.normalize(joined, dim=2)
        return stream._replace(data=data.masked_fill(~stream.mask[:, :, None], 0))


class Jca(system.System):
    """Audio-guided regions, an LSTM block along each modality, ``repeats`` joint co-attention units, an LSTM block."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = JcaConfig
    trial: ClassVar[Trial | None] = Trial(
        task="events",
        preset="events",
        clips=1600,
        test=200,
        settings={"epochs": 6},
        short={"epochs": 6, "batch_size": 16, "learning_rate": 3e-3},
        short_clips=32,
    )
    config: JcaConfig

    def __init__(self, config: JcaConfig, spec: DataSpec):
        super().__init__(config, spec)
        for name, value, known in (
            ("keys", config.keys, ("identity", "conv", "linear")),
            ("use", config.use, ("both", "audio", "video")),
        ):
            if value not in known:
                raise ConfigError(f'{name} = "{value}" is unknown.', hint=did_you_mean(value, known))
        self.steps = max(1, round(config.window / config.segment))
        self.towers = SegmentTowers(
            spec,
            seconds=config.window,
            steps=self.steps,
            frames=config.frames,
            dim=config.dim,
            widths=config.widths,
        )
        sound, region, width = self.towers.sound_dim, self.towers.region_dim, config.width
        self.along_sound = Along(sound, width, config.dropout)
        look = {"hidden": width, "units": config.units}
        self.look = AudioGuidedAttention(width, region, **look) if self.towers.placed else None
        self.seen = nn.Linear(region, width)
        self.along_picture = Along(width, width, config.dropout)
        keys = {"keys": config.keys, "steps": self.steps if config.keys == "linear" else None}
        how = {"units": config.repeats, "shared": config.shared, "dropout": config.dropout, **keys}
        self.joint = JointCoAttention(width, **how) if config.repeats else None  # type: ignore[arg-type]
        self.along_both = Along(2 * width, width, config.dropout)
        self.classify = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(width, spec.n_classes + 1)
        )
        self.terms = EventTerms(
            spec.n_classes,
            sound_dim=sound,
            region_dim=region,
            weak=config.weak,
            pool=config.pool,  # type: ignore[arg-type]
            swapped=config.swapped if config.weak else 0.0,
            sides=config.sides,
            legacy=config.legacy_loss,
        )
        self.matching = None if config.weak else SegmentMatch(sound, region, every_pair=config.every_pair)

    # --------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Sound [B, S, dim] and regions [B, S · frames, H, W, dim'] with their masks."""
        return self.towers.encode(batch).tensors()

    def name(self, sound: Stream, regions: Stream) -> Tensor:
        """Logits [B, S, C + 1]."""
        # Of a model of one modality the other is as if nothing had been recorded.
        sound = blank(sound) if self.config.use == "video" else sound
        regions = blank(regions) if self.config.use == "audio" else regions
        heard = self.along_sound(sound)
        seen = looked(self.look, heard, regions)
        pair = heard, self.along_picture(seen._replace(data=self.seen(seen.data)))
        if self.joint is not None:
            pair = self.joint(*pair)
        both = Stream(torch.cat([pair[1].data, pair[0].data], 2), heard.mask | seen.mask, heard.rate)
        return self.classify(self.along_both(both).data)

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        sound, regions = self.towers.pair(encoded)
        terms = self.terms(self.name, sound, regions, batch)
        if self.matching is not None:
            event = segments_of(batch, encoded["heard"]) < self.terms.classes
            terms["match"] = self.matching(sound, regions, event)
        return terms

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def events(self, batch: Batch) -> Tensor:
        """Logits of the S segments of the window [B, S, C + 1], float32; the last class is background."""
        return self.name(*self.towers.encode(batch)).float()

    @torch.no_grad()
    def match(self, batch: Batch, modality: str) -> Tensor | None:
        """Each segment of one modality in the common space of the distance network [B, S, 64]; None without one."""
        if self.matching is None:
            return None
        sound, regions = self.towers.encode(batch)
        if modality == "audio":
            return self.matching.of_sound(sound).float()
        return self.matching.of_picture(regions, steps=self.steps).float()
