"""Audio-visual event localization: sound says where to look, and each half of the clip is read along time.

Claim: an event that is both heard and seen is localized in time better by sound and picture together than by either,
and best when the sound chooses the places of the picture (Tian et al. 2018).

    v_s = Σ_p softmax_p( wᵀ tanh(W_r relu(U_r R_sp) + W_a relu(U_a a_s)) ) R_sp    R regions, a sound of segment s
    h^a = BiLSTM(a),  h^v = BiLSTM(v)                                              [B, S, 2 · hidden]
    concat:    z_s = W_2 relu(W_1 relu([h^a_s ; h^v_s]))                           A+V-att
    residual:  m = (U_v h^v + U_a h^a) / 2,  z_s = W (tanh(h^v + m) + tanh(h^a + m)) / 2     DMRN, U a two-layer net

S segments, C + 1 logits each, the last of them background. Weak supervision pools z over the segments. Matching across
modalities (AVDLN) compares a segment's sound and picture by distance in a space of their own.
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
from avcl.nn.events import EventTerms, SegmentMatch, blank, looked, segments_of
from avcl.nn.regions import AudioGuidedAttention
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream

CARD = Card(
    title="Audio-Visual Event Localization in Unconstrained Videos",
    year=2018,
    venue="ECCV",
    authors="Y. Tian, J. Shi, B. Li, Z. Duan, C. Xu",
    paper=(
        "Reference values of its data, computed from the annotation file: background alone is 17.8 % of the test "
        "segments, the right class at every second 82.2 %, an exact start drawn at random 20.8 %",
    ),
    fidelity="official: attention, LSTMs, both fusions, the distance network and the losses follow the authors' code; "
    "the towers below them are small and learned from scratch.",
    deviations=(
        "VGGish and VGG-19 are replaced by small convolutional towers that are trained along; features of any tower "
        "can be given in their place.",
        "The sound looks at single frames, and what it sees is averaged over a segment; the paper averages 16 frames "
        "first, which would blur small moving objects.",
        "Cross-entropy on the logits by default; the soft margin on softmax outputs of the authors' code is "
        "`legacy_loss`.",
        "Weak training has no background-only videos: the picture with the sound of a clip of another label stands in.",
        "In the residual fusion each modality keeps its own residual, as printed; the code exchanges them, which "
        "changes nothing with one block.",
        "The distance network is trained along with the rest, from features that get no gradient of it.",
    ),
    original_license="none stated",
)


@dataclass(frozen=True)
class AvelConfig(MediaConfig):
    """Settings of ``tian2018_avel``; the paper: hidden 128, AVE features, Adam 1e-3, batch 64, 300 epochs."""

    segment: float = 0.5  # seconds of one segment; AVE has 1.0 and a window of 10
    frames: int = 2  # frames of a segment that are looked at
    weak: bool = False  # learn from the label of the clip alone
    fusion: str = "concat"  # or "residual"
    use: str = "both"  # or "audio", "video": a model of one modality, to compare with
    dim: int = 64  # width of the sound
    widths: tuple[int, ...] = (32, 64, 96)  # of the convolutions on pictures
    hidden: int = 64  # of the LSTMs, in each direction
    units: int = 49  # of the attention
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
        "hidden": (1, MAX),
        "units": (1, MAX),
        "swapped": (0.0, MAX),
        "sides": (0.0, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(weak=True, dim=16, widths=(8, 8, 12), hidden=8, units=8, frames=1, batch_size=8)


class Avel(system.System):
    """Audio-guided attention over regions, an LSTM along each modality, and a class for every segment."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = AvelConfig
    trial: ClassVar[Trial | None] = Trial(
        task="events",
        preset="events",
        clips=1600,
        test=200,
        settings={"epochs": 4},
        short={"epochs": 6, "batch_size": 16, "learning_rate": 3e-3},
        short_clips=32,
    )
    config: AvelConfig

    def __init__(self, config: AvelConfig, spec: DataSpec):
        super().__init__(config, spec)
        for name, value, known in (
            ("fusion", config.fusion, ("concat", "residual")),
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
        sound, region = self.towers.sound_dim, self.towers.region_dim
        classes, wide = spec.n_classes + 1, 2 * config.hidden
        look = {"hidden": config.dim, "units": config.units}
        self.look = AudioGuidedAttention(sound, region, **look) if self.towers.placed else None
        self.along_sound, self.along_picture = (
            Recurrent(width, hidden=config.hidden, cell="lstm") for width in (sound, region)
        )
        self.fuse: nn.Module
        if config.fusion == "concat":
            self.fuse = nn.Sequential(nn.ReLU(), nn.Linear(2 * wide, 64), nn.ReLU(), nn.Linear(64, classes))
        else:
            self.fuse = _Residual(wide, classes)
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
        seen = looked(self.look, sound, regions)
        return self.fuse(torch.cat([self.along_sound(sound).data, self.along_picture(seen).data], 2))

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


class _Residual(nn.Module):
    """DMRN: ``m = (U_v h^v + U_a h^a) / 2``, each modality adds it to its own, and their mean is classified."""

    def __init__(self, wide: int, classes: int):
        super().__init__()
        self.of_sound, self.of_picture = (
            nn.Sequential(nn.Linear(wide, wide), nn.Tanh(), nn.Linear(wide, wide)) for _ in range(2)
        )
        self.last = nn.Linear(wide, classes)

    def forward(self, both: Tensor) -> Tensor:
        sound, picture = both.chunk(2, 2)
        m = (self.of_sound(sound) + self.of_picture(picture)) / 2
        return self.last((torch.tanh(sound + m) + torch.tanh(picture + m)) / 2)
