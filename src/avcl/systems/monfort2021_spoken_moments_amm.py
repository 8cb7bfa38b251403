"""AMM: spoken moments, a margin that grows with what is learned (Monfort, Jin, Liu, Harwath, Feris, Glass, Oliva 2021).

Claim: in the margin softmax between videos and their captions, a margin that follows the batch, a share of how far each
pair already is from its mean mismatch, needs no schedule and does better than a fixed or growing one.

    v = head(max_t f(frame_t)),  c = head(mean_t g(caption)_t)                 S = v cᵀ, the dot product
    head: linear, gated linear unit, linear, gated linear unit
    L_vc(S) = -1/B Σ_i log [ e^{S_ii - δ_i} / ( e^{S_ii - δ_i} + Σ_{j≠i} e^{S_ij} ) ]
    δ_i = α ( S_ii - 1/(B-1) Σ_{j≠i} S_ij ),  α = .5,  L = L_vc(S) + L_vc(Sᵀ)

The margin is part of the graph, and each direction has its own: the pull on a pair is 1 - α. A caption is spoken
(log-mel and a residual network), or written: of its steps ``words`` are drawn at random in training, all are used else.
``objective`` is what the paper compares: "amm", "mms" (δ = .001 · 1.002^⌊step / 1000⌋), "nce" (no positive in the
denominator), "shn" (semi-hard triplets).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.clips import PictureTower, in_unit_range
from avcl.encoders.resnet import LogMelResNet, wake
from avcl.encoders.spoken import ResDAVEnet, picture_and_caption
from avcl.encoders.text import CharConv
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.pooling import masked_max, masked_mean
from avcl.nn.standardize import Standardize, learn_scales
from avcl.objectives.contrastive import decoupled_info_nce
from avcl.objectives.margin import adaptive_mean_margin, masked_margin_softmax
from avcl.objectives.schedules import Exponential
from avcl.objectives.triplets import triplet
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream, StreamSpec

OBJECTIVES = ("amm", "mms", "nce", "shn")
READERS = ("resnet", "davenet")

CARD = Card(
    title="Spoken Moments: learning joint audio-visual representations from video descriptions",
    year=2021,
    venue="CVPR",
    authors="M. Monfort, S. Jin, A. Liu, D. Harwath, R. Feris, J. Glass, A. Oliva",
    paper=(
        "S-MiT, spoken captions, ResNet-50, mean of both directions, R@1/5/10 and mAP: AMM 39.8 66.0 75.0 51.8, MMS "
        "37.5 65.0 74.7 50.0, NCE 32.9 60.1 70.1 45.5, SHN 34.0 60.3 70.5 45.9 (the paper's table)",
        "S-MiT, written captions, BART: AMM 38.4 68.5 78.7 52.1, NCE 38.0 69.3 79.1 51.8, MMS 34.9 64.8 76.0 48.5, SHN "
        "32.3 63.1 74.4 46.1 (the paper's table)",
    ),
    fidelity="paper: losses, heads, pooling and the sampling of words are in the paper's text; there is no public "
    "code, and whether embeddings are normalized is not said.",
    deviations=(
        "Pictures of media are read by a small convolutional tower that learns along, for want of ResNet-152 and TSM; "
        "so there is no first phase in which the picture network is frozen.",
        "Small residual networks read the log-mel; written captions as bytes are read by convolutions over letters "
        "instead of BART, whose features work as they are.",
        "Features are standardized column by column.",
        "AdamW with warm-up and cosine instead of Adam at two constant rates: the one loop of this library.",
        "The triplet baseline compares unit vectors, so that its margin has a scale.",
    ),
    original_license="none: no code was released",
)


@dataclass(frozen=True)
class AMMConfig(MediaConfig):
    """Settings of ``monfort2021_spoken_moments_amm``."""

    batch_size: int = 128  # 2048 in the paper: the larger, the better the mean mismatch is known
    learning_rate: float = 1e-3
    window: float = 10.0  # seconds of a caption
    objective: Literal["amm", "mms", "nce", "shn"] = "amm"
    alpha: float = 0.5  # α
    row_margins: bool = False  # True: the margins of L_vc in both directions, as in a public port of the loss
    margin: float = 0.2  # of shn, on the cosine
    normalize: bool = False  # True: unit embeddings and a scale of 1 / τ
    temperature: float = 0.07  # τ
    dim: int = 4096  # of the common space
    hidden: int = 4096  # between the two layers of a head
    reader: Literal["resnet", "davenet"] = "resnet"  # of spoken captions
    widths: tuple[int, ...] = (16, 32, 64, 128)  # of its stages
    depths: tuple[int, ...] = (1, 1, 1, 1)
    bottleneck: bool = False  # with depths 3, 4, 6, 3 and widths 64 to 512: ResNet-50
    letters: int = 128  # channels over the letters of a written caption
    words: int = 10  # steps of a written caption that are drawn in training; 0: all
    frames: int = 4  # of media: full-size frames that the picture tower looks at

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "alpha": (0.0, 1.0),
        "margin": (0.0, MAX),
        "temperature": (0.01, MAX),
        "dim": (1, MAX),
        "hidden": (1, MAX),
        "widths": (1, MAX),
        "depths": (1, MAX),
        "letters": (1, MAX),
        "words": (0, MAX),
        "frames": (1, MAX),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("objective", OBJECTIVES), ("reader", READERS)):
            if getattr(self, name) not in known:
                raise ConfigError(f'{name} = "{getattr(self, name)}" is none of {", ".join(known)}.')
        if self.row_margins and self.objective != "amm":
            raise ConfigError(f"row_margins belongs to amm, not to {self.objective}.")

    @classmethod
    def tiny(cls) -> Self:
        return cls(
            epochs=2,
            batch_size=8,
            dim=12,
            hidden=16,
            frames=2,
            sample_rate=8000,
            window=3.0,
            widths=(8, 12),
            depths=(1, 1),
            letters=8,
        )


# Captions of one thing, which are short and tell it from 359 others; a small batch, as the epochs are few. Dot
# products, because unit embeddings at scale 1 / τ all become one before the first pair is told apart.
TRIAL = Trial(
    task="retrieval",
    preset="captions",
    protocol={"relevance": "pair"},
    knobs={"distractor": 0.0, "offscreen": 0.0},
    streams=("video", "speech"),
    clips=2000,
    fresh=False,
    settings={
        "epochs": 12,
        "batch_size": 32,
        "sample_rate": 8000,
        "fps": 4.0,
        "window": 4.0,
        "dim": 128,
        "hidden": 128,
        "reader": "davenet",
        "widths": (32, 64, 96, 128),
        "learning_rate": 1e-3,
    },
    short={"epochs": 8, "batch_size": 16},
    short_clips=48,
    partner="speech",
)


class _Side(nn.Module):
    """Picture or caption [B, dim]: the tower, what is pooled of it, and the head."""

    def __init__(self, spec: StreamSpec, config: AMMConfig, *, caption: bool, vocabulary: int):
        super().__init__()
        c, self.kind, self.caption = config, spec.kind, caption
        self.words = c.words if caption and spec.kind in ("features", "tokens") else 0
        if spec.kind not in ("features", "map", *(("audio", "tokens") if caption else ("video",))):
            what = "caption" if caption else "picture"
            raise ConfigError(f'amm has no tower for a {what} of kind "{spec.kind}".')
        self.scale = Standardize(spec.shape[-1]) if spec.kind == "features" else None
        self.net: PictureTower | LogMelResNet | ResDAVEnet | CharConv | None = None
        if spec.kind == "video":
            self.net = PictureTower(c.frames)
        elif spec.kind == "tokens":
            self.net = CharConv(vocabulary or 256, dim=c.letters)
        elif spec.kind == "audio" and c.reader == "davenet":
            self.net = ResDAVEnet(widths=c.widths, depths=c.depths)
        elif spec.kind == "audio":
            self.net = LogMelResNet(
                bands=40,
                hop=0.01,
                window=0.025,
                widths=c.widths,
                depths=c.depths,
                strides=(2,) * len(c.widths),
                pool=False,
                bottleneck=c.bottleneck,
            )
            wake(self.net)
        width = spec.shape[-1] if self.net is None else self.net.dim
        self.head = nn.Sequential(
            nn.Linear(width, 2 * c.hidden), nn.GLU(dim=1), nn.Linear(c.hidden, 2 * c.dim), nn.GLU(dim=1)
        )

    def forward(self, stream: Stream) -> Tensor:
        if isinstance(self.net, PictureTower):
            return self.head(self.net(in_unit_range(stream)).pooled)
        if self.net is None:
            data = stream.data.float()
            data = data.mean((2, 3)) if data.ndim == 5 else data
            steps = stream._replace(data=data if self.scale is None else self.scale(data))
        else:
            steps = self.net(stream)
        if not self.caption:
            return self.head(masked_max(steps.data, steps.mask))
        if self.training and self.words:
            steps = some_steps(steps, self.words)
        return self.head(masked_mean(steps.data, steps.mask))


def some_steps(stream: Stream, count: int) -> Stream:
    """``count`` recorded steps of every row, drawn at random without order; with repetition where there are fewer."""
    there = stream.mask.sum(1, keepdim=True)
    # Random keys sort the recorded steps to the front; position k modulo their number repeats them.
    order = torch.rand(stream.mask.shape, device=stream.mask.device).masked_fill(~stream.mask, 2.0).argsort(1)
    place = torch.arange(count, device=order.device)[None] % there.clamp(min=1)
    drawn = order.gather(1, place.expand(len(order), -1))
    data = stream.data.gather(1, drawn[:, :, None].expand(-1, -1, stream.data.shape[2]))
    return stream._replace(data=data, mask=stream.mask.gather(1, drawn))


class AMM(system.System):
    """Two towers with gated heads, and the margin softmax between them."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = AMMConfig
    trial: ClassVar[Trial | None] = TRIAL
    similarity_name = "dot"
    config: AMMConfig

    def __init__(self, config: AMMConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.picture, self.caption = picture_and_caption(config.chosen(spec), spec)
        self.unit = config.normalize or config.objective == "shn"
        self.similarity_name = "cosine" if self.unit else "dot"
        self.growing = Exponential(start=0.001, rate=1.002, every=1000)
        words = len(spec.vocabulary)
        self.sides = nn.ModuleDict(
            {
                name: _Side(spec.streams[name], config, caption=name == self.caption, vocabulary=words)
                for name in (self.picture, self.caption)
            }
        )

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of feature arrays, before the first step."""
        scales = {name: cast(_Side, side).scale for name, side in self.sides.items()}
        if epoch == 0:
            learn_scales({name: scale for name, scale in scales.items() if scale is not None}, batches)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Embeddings of pictures and captions [B, D], and which rows have both [B] bool."""
        streams = dict(zip(self.sides, batch.require(*self.sides), strict=True))
        encoded = {name: self._embedding(stream, name) for name, stream in streams.items()}
        return encoded | {"both": batch.complete(*streams)}

    def _embedding(self, stream: Stream, name: str) -> Tensor:
        made = self.sides[name](stream).float()
        return nn.functional.normalize(made, dim=1) if self.unit else made

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """The sum of both directions, under the name of the objective."""
        c, both = self.config, encoded["both"]
        if not bool(both.any()):
            raise BatchError(f"no clip of the batch has both {self.picture} and {self.caption}.")
        v, a = encoded[self.picture][both], encoded[self.caption][both]
        scale = 1 / c.temperature if c.normalize else 1.0
        if c.objective == "mms":
            loss = masked_margin_softmax(v, a, margin=self.growing(at.step), scale=scale)
        elif c.objective == "nce":
            loss = decoupled_info_nce(v, a, temperature=1 / scale)
        elif c.objective == "shn":
            loss = triplet(v, a, margin=2 * c.margin, mining="semi-hard")  # of unit rows d² = 2 - 2 cos
        elif c.row_margins:
            loss = ported_margin(v, a, alpha=c.alpha, scale=scale)
        else:
            loss = adaptive_mean_margin(v, a, alpha=c.alpha, scale=scale)
        return {c.objective: loss}

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """Picture or caption, of unit length with ``normalize``: float32 [B, D]; zeros where nothing was recorded."""
        if modality not in self.sides:
            raise ConfigError(f'this model has no "{modality}".', hint=did_you_mean(modality, set(self.sides)))
        (stream,) = batch.require(modality)
        return self._embedding(stream, modality) * stream.mask.any(1)[:, None]

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        if self.unit:
            q, g = nn.functional.normalize(q, dim=1), nn.functional.normalize(g, dim=1)
        return q @ g.T


def ported_margin(v: Tensor, a: Tensor, *, alpha: float, scale: float) -> Tensor:
    """The loss with the margins of its rows in the columns too: a bug of a public port, for comparison."""
    scores = v @ a.T
    own = scores.diagonal()
    margin = alpha * (own - (scores.sum(1) - own) / max(1, len(v) - 1))
    scores = scale * (scores - torch.diag(margin))
    return -(scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal()).mean()
