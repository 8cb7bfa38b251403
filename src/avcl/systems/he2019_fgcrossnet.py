"""FGCrossNet: one network for pictures, videos, sounds and texts of fine-grained classes (He, Peng, Xie 2019).

Claim: if every medium is turned into a picture, one classifier of pictures can read them all, and what it says about
the class is already a common space: no network of its own for any medium.

    p_m = picture of x_m:  a frame · a spectrogram in false colors · characters, embedded and convolved to one plane
    z_m = W f(p_m)                              logits of the C classes; f, W the same for all media
    L   = Σ_m CE(z_m, y)                                                             classification
        + λ 1/N Σ_i ‖z_i - c_{y_i}‖²                                                 center: a class gathers
        + μ mean over active (a, p, n, n') of max(0, 2 D_ap - D_an - D_nn' + α₁ + α₂)   ranking: classes part

Center and ranking take the N rows of all media at once; D = ‖z - z'‖; a and p are of one class, n and n' of two others.
Stage 1 of the training has no ranking. Retrieval compares softmax(z) by cosine. A video counts with the mean logits of
several of its frames; in training each clip shows one frame, drawn anew at every step.

Feature arrays cannot be turned into pictures: each medium has a linear map to a common width, and f is a perceptron.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.audio import log_mel_stream
from avcl.encoders.clips import in_unit_range
from avcl.encoders.conv2d import glimpses
from avcl.encoders.resnet import FrameResNet, wake
from avcl.encoders.text import TokenTable
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.pooling import masked_mean, on_clock
from avcl.nn.standardize import Standardize, learn_scales
from avcl.objectives.classification import center, cross_entropy
from avcl.objectives.lifted import quadruplet
from avcl.objectives.memory import Centers
from avcl.system import MAX, MediaConfig, Phase, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream, StreamSpec

# The color map: dark violet over red to pale yellow, as one-sided spectrograms are drawn.
COLORS = ((0.0, 0.0, 0.01), (0.32, 0.07, 0.49), (0.72, 0.21, 0.48), (0.99, 0.54, 0.38), (0.99, 0.99, 0.75))
RANGE = 1e5  # power of the loudest cell over that of black: 50 dB

CARD = Card(
    title="A new benchmark and approach for fine-grained cross-media retrieval",
    year=2019,
    venue="ACM MM",
    authors="X. He, Y. Peng, L. Xie",
    survey={
        "paper": "He et al., 2019",
        "objective": "CE/L1/QL",
        "learning": "Supervised",
        "application": "Cross-Modal (AVT) Retrieval",
        "metric": "mAP",
        "performance": "41.2",
        "datasets": "CUB-200-2011 + Youtube Birds",
    },
    paper=(
        "PKU FG-XMedia, mAP, one medium against all four: picture .549, text .196, video .416, sound .485, average "
        ".412 (the authors' readme)",
        "The same, one medium against one other: picture to sound .526, sound to picture .553, video to sound .437, "
        "sound to video .443, average of all twelve .366 (the authors' readme)",
    ),
    fidelity="reconstruction: losses, weights, margins and the pictures of sound and text are those of the authors' "
    "code; the pretrained ResNet-50 at 448 pixels is a setting that needs another machine.",
    deviations=(
        "The center term is squared L2, as in the authors' code; the survey calls it L1.",
        "A small residual network at 64 pixels from random weights, with norms that look at one picture at a time.",
        "Centers start at 0 and follow their classes (Wen et al. 2016) instead of taking gradient steps of their own.",
        "The spectrogram has mel bands, 50 dB and the clock of the window; the authors' has linear bands and 80 dB, "
        "and is stretched to a square whatever the length of the sound.",
        "Texts are UTF-8 bytes instead of 68 characters.",
        "The rows of all media come from the same clips; the authors' four lists are independent.",
        "AdamW with warm-up and cosine in each stage, and shuffled batches, instead of SGD whose rate is halved every "
        "three epochs: the one loop of this library.",
    ),
    original_license="none stated",
)


@dataclass(frozen=True)
class FGCrossNetConfig(MediaConfig):
    """Settings of ``he2019_fgcrossnet``. The paper's network: widths 64,128,256,512, depths 3,4,6,3, ``bottleneck``,
    448 pixels, 25 frames."""

    epochs: int = 20
    batch_size: int = 48
    learning_rate: float = 2e-3
    widths: tuple[int, ...] = (16, 32, 64, 128)  # of the stages of f
    depths: tuple[int, ...] = (1, 1, 1, 1)
    bottleneck: bool = False
    width: int = 256  # of feature arrays, before f
    characters: int = 16  # numbers that stand for a character
    shift: int = 8  # in training a text starts after so many blanks at most, an even number
    frames: int = 5  # of a video that is scored
    center: float = 1e-3  # λ
    center_rate: float = 0.5  # how far a center goes toward its class at a step
    ranking: float = 0.1  # μ
    margins: tuple[float, ...] = (1.0, 0.5)  # α₁, α₂, in distance
    clip: Literal["one", "two"] = "one"  # "two": max(0, ·) of each margin for itself (Chen et al. 2017)
    stage: float = 0.5  # share of the training after which the ranking begins

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "widths": (1, MAX),
        "depths": (1, MAX),
        "width": (1, MAX),
        "characters": (1, MAX),
        "shift": (0, MAX),
        "frames": (1, MAX),
        "center": (0.0, MAX),
        "center_rate": (0.001, 1.0),
        "ranking": (0.0, MAX),
        "margins": (0.0, MAX),
        "stage": (0.0, 1.0),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, widths=(8, 12), depths=(1, 1), width=16, characters=4, frames=2)


class SoundPicture(nn.Module):
    """A spectrogram in false colors: audio [B, T, C] to one picture [B, 1, 3, height, width], low pitches below.

    Brightness is the mel power over that of the loudest cell, from ``RANGE`` below it (0) to it (1), in ``width``
    slots of the window. Nothing is learned.
    """

    colors: Tensor

    def __init__(self, size: tuple[int, int], seconds: float):
        super().__init__()
        self.size, self.seconds = size, seconds
        self.register_buffer("colors", torch.tensor(COLORS), persistent=False)

    def forward(self, stream: Stream) -> Stream:
        mel = log_mel_stream(stream, bands=self.size[0])
        keep = mel.mask[:, :, None]
        top = mel.data.masked_fill(~keep, -torch.inf).amax((1, 2), keepdim=True)
        down = torch.where(keep, mel.data - top, 0) * 3  # `log_mel_stream` divides by 3
        bright = (1 + down / torch.log(torch.tensor(RANGE))).clamp(0, 1) * keep
        plane = on_clock(mel._replace(data=bright), steps=self.size[1], seconds=self.seconds)
        return _still(self._painted(plane.transpose(1, 2).flip(1)), stream)

    def _painted(self, plane: Tensor) -> Tensor:
        """[B, H, W] in [0, 1] to [B, 3, H, W]."""
        place = plane * (len(self.colors) - 1)
        lower = place.detach().long().clamp(max=len(self.colors) - 2)
        share = (place - lower)[..., None]
        return ((1 - share) * self.colors[lower] + share * self.colors[lower + 1]).permute(0, 3, 1, 2)


class TextPicture(nn.Module):
    """Characters as a plane: tokens [B, T] to one picture [B, 1, 3, height, width], a column for each character."""

    def __init__(self, size: tuple[int, int], vocabulary: int, *, dim: int, shift: int):
        super().__init__()
        height, self.width = size
        self.shift, self.table = shift, TokenTable(vocabulary, dim)
        self.columns = nn.Sequential(
            nn.Conv1d(dim, max(1, height // 2), 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(max(1, height // 2), height, 3, padding=1),
        )
        self.colors = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, stream: Stream) -> Stream:
        x = self.table(stream).data[:, : self.width].transpose(1, 2)  # [B, dim, T']
        x = nn.functional.pad(x, (0, self.width - x.shape[2]))
        if self.training and self.shift > 1:
            blanks = 2 * torch.randint(0, self.shift // 2 + 1, (len(x),), device=x.device)
            source = torch.arange(self.width, device=x.device) - blanks[:, None]  # [B, width]
            shifted = x.gather(2, source.clamp(min=0)[:, None].expand_as(x))
            x = shifted * (source >= 0)[:, None]
        return _still(self.colors(self.columns(x)[:, None]), stream)


class FeatureFront(nn.Module):
    """The mean over time, every column at variance 1, and the linear map of this medium: [B, T, D] to [B, 1, width]."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.scale, self.out = Standardize(features), nn.Linear(features, width)

    def forward(self, stream: Stream) -> Stream:
        data = stream.data.float()
        mean = masked_mean(data.mean((2, 3)) if data.ndim == 5 else data, stream.mask)
        return _still(self.out(self.scale(mean)), stream)


def _still(x: Tensor, stream: Stream) -> Stream:
    """[B, ...] as a stream of one step, recorded where anything was."""
    return Stream(x[:, None], stream.mask.any(1, keepdim=True), 1.0)


class FeatureTrunk(nn.Module):
    """f of feature arrays: [B, 1, width] to [B, 1, dim]."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, dim), nn.LayerNorm(dim), nn.ReLU())

    def forward(self, stream: Stream) -> Stream:
        return stream._replace(data=self.net(stream.data) * stream.mask[:, :, None])


def one_frame(stream: Stream) -> Stream:
    """A recorded frame of each clip, drawn at random: video [B, T, ...] to [B, 1, ...]."""
    count = stream.mask.sum(1)
    chosen = (torch.rand(len(count), device=count.device) * count).long()
    at = (stream.mask.cumsum(1) <= chosen[:, None]).sum(1).clamp(max=stream.mask.shape[1] - 1)
    rows = torch.arange(len(at), device=at.device)
    return Stream(stream.data[rows, at][:, None], stream.mask[rows, at][:, None], stream.rate)


class FGCrossNet(system.System):
    """What makes a picture of each medium, the one network that reads them, and the centers of the classes."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = FGCrossNetConfig
    similarity_name = "cosine"
    config: FGCrossNetConfig
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        clips=2400,
        fresh=False,
        settings={"epochs": 6, "batch_size": 32},
        short={"epochs": 8, "batch_size": 16},
        short_clips=48,
        watch="classes",
    )

    def __init__(self, config: FGCrossNetConfig, spec: DataSpec):
        super().__init__(config, spec)
        c = config
        if c.clip not in ("one", "two"):
            raise ConfigError(f'clip = "{c.clip}" is not "one" or "two".')
        if len(c.margins) != 2:
            raise ConfigError(f"margins = {c.margins} must be two numbers.")
        if spec.n_classes < 2:
            hint = 'Add a "label" column, or take a system that learns from pairs alone, such as cca.'
            raise ConfigError(f"fgcrossnet learns from classes, and the data have {spec.n_classes}.", hint=hint)
        self.modalities = c.chosen(spec)
        words = len(spec.vocabulary) or 256
        self.fronts = nn.ModuleDict({name: _front(spec.streams[name], c, words) for name in self.modalities})
        pictures = [name for name in self.modalities if not isinstance(self.fronts[name], FeatureFront)]
        dim = (4 if c.bottleneck else 1) * c.widths[-1]
        self.pictures: FrameResNet | None = None
        if pictures:
            strides = (1,) + (2,) * (len(c.widths) - 1)
            self.pictures = FrameResNet(widths=c.widths, depths=c.depths, strides=strides, bottleneck=c.bottleneck)
            wake(self.pictures)
        self.arrays = FeatureTrunk(c.width, dim) if len(pictures) < len(self.modalities) else None
        self.classify = nn.Linear(dim, spec.n_classes)
        self.centers = Centers(spec.n_classes, spec.n_classes, rate=c.center_rate)

    def phases(self) -> tuple[Phase, ...]:
        everything, start = tuple(self.parameters()), self.config.stage
        stages = (
            Phase("stage 1", everything, ("classes", "center"), end=start),
            Phase("stage 2", everything, ("classes", "center", "ranking"), start=start),
        )
        if self.config.ranking == 0 or start == 1:
            return (Phase("stage 1", everything, ("classes", "center")),)
        return stages if start else stages[1:]

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of feature arrays, before the first step."""
        arrays = {name: front.scale for name, front in self.fronts.items() if isinstance(front, FeatureFront)}
        if epoch == 0:
            learn_scales(arrays, batches)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """z of each medium [B, C], which rows have it ("audio?" [B] bool), and the labels."""
        encoded = {"label": batch.label}
        for name, stream in zip(self.modalities, batch.require(*self.modalities), strict=True):
            encoded |= {name: self._logits(stream, name), f"{name}?": stream.mask.any(1)}
        return encoded

    def _logits(self, stream: Stream, name: str) -> Tensor:
        """The mean over the frames of their logits is the logits of the mean."""
        return self.classify(self._read(stream, name)).float()

    def _read(self, stream: Stream, name: str) -> Tensor:
        front, stream = self.fronts[name], in_unit_range(stream)
        if isinstance(front, FeatureFront):
            seen = cast(FeatureTrunk, self.arrays)(front(stream))
        else:
            if self.spec.streams[name].kind == "video":
                stream = one_frame(stream) if self.training else glimpses(stream, self.config.frames)
            seen = cast(FrameResNet, self.pictures)(front(stream))
        return masked_mean(seen.data, seen.mask)

    def _together(self, encoded: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """z of all media and the labels, of what is there: [N, C] and [N]."""
        there = {name: encoded[f"{name}?"] for name in self.modalities}
        rows = torch.cat([encoded[name][there[name]] for name in self.modalities])
        return rows, torch.cat([encoded["label"][there[name]] for name in self.modalities])

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """ "classes", "center" and "ranking", weights included; a batch without a quadruplet ranks nothing."""
        c = self.config
        z, label = self._together(encoded)
        if len(z) == 0 or bool((label < 0).any()):
            raise BatchError("he2019_fgcrossnet needs a label for every clip.", hint="cca and infonce need none.")
        named = [
            cross_entropy(encoded[name][there], encoded["label"][there])
            for name in self.modalities
            if bool((there := encoded[f"{name}?"]).any())
        ]
        terms = {"classes": torch.stack(named).sum(), "center": 2 * c.center * center(z, self.centers.centers, label)}
        if c.ranking and at.turn != "stage 1":
            sizes = label.unique(return_counts=True)[1]
            margins = (c.margins[0], c.margins[1])
            ranked = len(sizes) > 2 and int(sizes.max()) > 1
            terms["ranking"] = c.ranking * quadruplet(z, label, margins=margins, clip=c.clip) if ranked else 0 * z.sum()
        return terms

    def after_step(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> None:
        """The centers follow their classes."""
        self.centers.update(*self._together(encoded))

    # ---------------------------------------------------------------------------------------------------- capabilities
    def _known(self, modality: str) -> tuple[str, ...]:
        names = tuple(modality.split("+"))
        for name in names:
            if name not in self.modalities:
                raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
        return names

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """softmax(z) of one medium, or of the sum of several ("audio+text"): float32 [B, C]."""
        names = self._known(modality)
        streams = zip(names, batch.require(*names), strict=True)
        parts = [self._logits(stream, name).softmax(1) * stream.mask.any(1)[:, None] for name, stream in streams]
        return torch.stack(parts).sum(0)

    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """What W reads: float32 [B, D], of several media side by side."""
        names = self._known(modality)
        streams = zip(names, batch.require(*names), strict=True)
        return torch.cat([self._read(stream, name).float() for name, stream in streams], 1)

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return nn.functional.normalize(q, dim=1) @ nn.functional.normalize(g, dim=1).T


def _front(spec: StreamSpec, config: FGCrossNetConfig, vocabulary: int) -> nn.Module:
    if spec.kind == "video":
        return nn.Identity()
    if spec.kind == "audio":
        return SoundPicture(config.decoding.size, config.window)
    if spec.kind == "tokens":
        return TextPicture(config.decoding.size, vocabulary, dim=config.characters, shift=config.shift)
    if spec.kind in ("features", "map"):
        return FeatureFront(spec.shape[-1], config.width)
    raise ConfigError(f'fgcrossnet has no picture of a stream of kind "{spec.kind}".')
