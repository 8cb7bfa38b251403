"""Foley Music: from the key points of a silent player to the events of the tune, which an instrument then plays
(Gan et al. 2020a).

Claim: between body and sound stands a symbolic score, and motion to score is a translation. A graph convolution over
the joints and time makes a memory m of the key points; a causal Transformer that attends to it writes the events:

    p(y | pose) = Π_i p(y_i | y_1 ... y_{i-1}, m),    L = -mean log p(y_i | ...)    (teacher forcing, no padding)

The vocabulary is that of the paper in the small: note on and note off of each pitch, velocities, time shifts, and a
stop (``encoders.notes``). Every step also knows the second that the shifts so far have led to, and the memory there.
Generation writes event after event; open notes are closed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.autoregressive import EventDecoder
from avcl.encoders.notes import NoteCode
from avcl.encoders.skeleton import SkeletonConv
from avcl.errors import BatchError, ConfigError
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream

CARD = Card(
    title="Foley Music: learning to generate music from videos",
    year=2020,
    venue="ECCV",
    authors="C. Gan, D. Huang, P. Chen, J. B. Tenenbaum, A. Torralba",
    survey={
        "paper": "Gan et al., 2020a",
        "objective": "CE",
        "learning": "Supervised",
        "application": "Music Generation",
        "metric": "NDB",
        "performance": "20",
        "datasets": "MUSIC",
    },
    paper=("NDB 20 on MUSIC (Table 1 of the survey; number of bins, feature and instruments not stated there)",),
    fidelity="paper: key points, spatial-temporal graph convolution, causal decoder with relative attention and the "
    "event vocabulary as in the released code, everything small.",
    deviations=(
        "Three key points (neck, two hands) instead of 65; one model for the four instruments of the world, the paper "
        "has one for each.",
        "Joints are laid side by side at the end, not averaged: with two hands the mean forgets which one it was.",
        "Time shifts of 40 ms to 1.28 s in equal steps, one event for nearly every gap; those of the paper grow "
        "geometrically from 15 ms and a gap takes several.",
        "Each step is told the second it stands at and the memory there; the paper's decoder must add the shifts up "
        "and search for the place, which takes more steps than are trained here.",
        "Coordinates are given with sine and cosine at four wavelengths: a key is one thirtieth of the picture wide.",
        "AdamW with warm-up and cosine instead of the Noam schedule; no rotation and scaling of the body; layer norm "
        "instead of batch norm; the likeliest event instead of a beam of 5.",
        "Sound is made by the world's own instruments, not by FluidSynth.",
    ),
    original_license="none (no license file in chuangg/Foley-Music); nothing was copied",
)


WAVES = (2.0, 1.0, 0.5, 0.25)  # of the codes of a coordinate, in half pictures; neighboring keys are .07 apart


@dataclass(frozen=True)
class FoleyMusicConfig(MediaConfig):
    """Settings of ``gan2020a_foley_music``."""

    fps: float = 25.0
    batch_size: int = 32
    learning_rate: float = 2e-3
    edges: tuple[int, ...] = ()  # joints in pairs, a b a b ...; empty: a star around the center
    center: int = 0
    skeleton: tuple[int, ...] = (32, 32, 32)  # widths of the graph convolutions; the paper has ten of 64 to 256
    width: int = 64  # of the decoder; the paper has 512
    depth: int = 2  # layers of it; 6
    heads: int = 4  # 8
    hidden: int = 128  # 1,024
    dropout: float = 0.1
    lowest: int = 57  # MIDI numbers of the vocabulary; the paper has 21 to 108
    highest: int = 81
    velocities: int = 8  # 32
    shift: float = 0.04  # seconds of the smallest time shift; further ones are multiples
    shifts: int = 32
    length: int = 96  # events at most; 512
    temperature: float = 0.0  # of generation; 0: the likeliest event

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "edges": (0, MAX),
        "center": (0, MAX),
        "skeleton": (1, MAX),
        "width": (2, MAX),
        "depth": (1, 100),
        "heads": (1, MAX),
        "hidden": (1, MAX),
        "dropout": (0.0, 0.99),
        "lowest": (0, 127),
        "highest": (0, 127),
        "velocities": (1, 127),
        "shift": (1e-3, MAX),
        "shifts": (1, 1000),
        "length": (2, MAX),
        "temperature": (0.0, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, skeleton=(8,), width=8, depth=1, heads=2, hidden=8, length=48)


class FoleyMusic(system.System):
    """Writes the notes ("notes" [K, 4]: onset, duration, pitch, velocity) of a body ("pose" [T, 2 points])."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = FoleyMusicConfig
    learns_from: ClassVar[tuple[str, ...]] = ("media",)
    targets = ("notes",)
    trial: ClassVar[Trial | None] = Trial(
        task="music",
        preset="music",
        streams=("pose", "notes"),
        clips=6400,
        settings={"epochs": 4},
        short={"epochs": 6, "batch_size": 16, "dropout": 0.0},
        short_clips=48,
        watch="events",
        partner="pose",
    )
    config: FoleyMusicConfig

    def __init__(self, config: FoleyMusicConfig, spec: DataSpec):
        super().__init__(config, spec)
        pose, notes = spec.streams.get("pose"), spec.streams.get("notes")
        if pose is None or notes is None or len(pose.shape) != 1 or pose.shape[0] % 2 or notes.shape != (4,):
            raise ConfigError(
                f"it learns from key points [T, 2 points] and notes [K, 4], not from {', '.join(spec.streams)}.",
                hint='World("music", streams=("pose", "notes")) has both.',
            )
        if config.lowest > config.highest or len(config.edges) % 2:
            raise ConfigError("lowest is at most highest, and edges are pairs of joints.")
        c = config
        shifts = tuple(round(c.shift * k, 6) for k in range(1, c.shifts + 1))
        self.code = NoteCode(c.lowest, c.highest, c.velocities, shifts)
        self.body = SkeletonConv(
            pose.shape[0] // 2,
            channels=2 * (1 + 2 * len(WAVES)),
            edges=list(zip(c.edges[::2], c.edges[1::2], strict=True)),
            center=c.center,
            widths=c.skeleton,
            strides=tuple(2 if i == 1 else 1 for i in range(len(c.skeleton))),
            dim=c.width,
            dropout=c.dropout,
        )
        self.decoder = EventDecoder(
            self.code.size,
            memory_dim=c.width,
            width=c.width,
            depth=c.depth,
            heads=c.heads,
            hidden=c.hidden,
            relative=True,
            dropout=c.dropout,
            durations=self.code.seconds,
        )

    # --------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Of each clip the sum of -log p over its events, their number, and how many were the likeliest: [B] each."""
        pose, notes = batch.require("pose", "notes")
        events = _trimmed(self.code.encode(notes, length=self.config.length))
        z = self.decoder(events, self.body(_resolved(pose))).data.float()
        cost = nn.functional.cross_entropy(z.transpose(1, 2), events.data, reduction="none")
        right = (z.argmax(2) == events.data) & events.mask
        return {"cost": (cost * events.mask).sum(1), "events": events.mask.sum(1), "right": right.sum(1)}

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """The cross-entropy of an event, the mean over all events of the batch."""
        return {"events": encoded["cost"].sum() / encoded["events"].sum()}

    # ------------------------------------------------------------------------------------------------------- capability
    @torch.no_grad()
    def generate(self, batch: Batch, generator: torch.Generator) -> Stream:
        """The notes [B, K, 4] that the body plays."""
        if "notes" in batch.streams:
            raise BatchError("notes are what is generated, and the batch has them.", hint="Remove them.")
        [pose] = batch.require("pose")
        c = self.config
        memory = self.body(_resolved(pose))
        events = self.decoder.generate(
            memory, max_steps=c.length, stop=self.code.stop, temperature=c.temperature, generator=generator
        )
        return self.code.decode(events)


def _resolved(pose: Stream) -> Stream:
    """Every coordinate beside sine and cosine of it at several wavelengths: [B, T, points · 2 · (1 + 2 waves)]."""
    angle = pose.data[..., None] * (2 * math.pi / torch.tensor(WAVES, device=pose.data.device))
    codes = torch.cat([pose.data[..., None], angle.sin(), angle.cos()], -1).flatten(2)
    return pose._replace(data=codes * pose.mask[:, :, None])


def _trimmed(events: Stream) -> Stream:
    """Without the steps that no clip has."""
    steps = int(events.mask.sum(1).max())
    return Stream(events.data[:, :steps], events.mask[:, :steps], events.rate)
