"""Speech to image: find the picture of a spoken caption, and the caption of a picture (Merkx, Frank, Ernestus 2019).

Claim: a recurrent network that reads cepstra, pooled by an attention that weighs every dimension for itself, finds a
picture by what is said about it, and has never seen a transcript.

    h_1 … h_T = GRU(conv(x))                        x: 12 cepstra and energy, their slopes and the slopes of those; the
                                                    convolution is 6 frames wide, at stride 2; GRU in both directions
    s = Σ_t α_t ⊙ h_t,  α_·d = softmax_t( W₂ tanh(W₁ h_t) )_d        "vectorial" attention: weights for every dimension
    a = s / ‖s‖,  v = W y / ‖W y‖                                    y: features of the picture
    L = 1/B² Σ_i Σ_{j≠i} [ max(0, S_ij - S_ii + α) + max(0, S_ji - S_ii + α) ],  S = a vᵀ, α = .2

Padding has no weight in the softmax. Features of a caption that are one vector need no reader: they are mapped by W too
(``reader``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.clips import PictureTower, in_unit_range
from avcl.encoders.recurrent import Recurrent
from avcl.encoders.spoken import mfcc_stream, picture_and_caption
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.aggregation import masked_softmax
from avcl.nn.pooling import masked_mean, strided_mask
from avcl.nn.standardize import Standardize, learn_scales
from avcl.objectives.margin import hinge
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream, StreamSpec

CEPSTRA = 39  # 12 and the energy, with slopes and slopes of slopes

CARD = Card(
    title="Language learning using speech to image retrieval",
    year=2019,
    venue="Interspeech",
    authors="D. Merkx, S. L. Frank, M. Ernestus",
    survey={
        "paper": "Merkx et al., 2019",
        "objective": "Hinge",
        "learning": "Supervised",
        "application": "Speech-2-Image Retrieval",
        "metric": "Recall@10",
        "performance": "52.3",
        "datasets": "Flikr-8K",
    },
    paper=(
        "Flickr8k, R@10: 52.3, mean of both directions (the survey's table)",
        "Flickr8k, R@1/5/10, bottleneck features and ensemble: caption to picture 12.7 34.9 48.5, picture to caption "
        "16.0 42.8 56.1 (from memory, not verified; their mean is the survey's figure)",
    ),
    fidelity="reconstruction: layers, attention and loss are those of the authors' code; bottleneck features, the "
    "ensemble of snapshots and the final kind of recurrent cell are not reproduced.",
    deviations=(
        "AdamW with one warm-up and cosine instead of Adam under a cosine that starts anew every four epochs: the one "
        "loop of this library; hence no ensemble of the snapshots at the ends of the cycles.",
        "Padding is masked in convolution, recurrence and attention; the authors' softmax gives it weight.",
        "The convolution is padded, so that a caption shorter than its kernel has a step.",
        "Pictures of media are read by a small convolutional tower that learns along, for want of ResNet-152.",
        "Cepstra have no pre-emphasis: the normalization of each clip cancels any fixed filter.",
    ),
    original_license="none stated",
)


@dataclass(frozen=True)
class Speech2ImageConfig(MediaConfig):
    """Settings of ``merkx2019_speech2image``."""

    epochs: int = 32
    batch_size: int = 32
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    window: float = 10.0  # seconds of a caption; the authors cut at 1,024 frames
    reader: Literal["auto", "recurrent", "mean"] = "auto"  # auto: mean for features
    channels: int = 64  # of the convolution
    kernel: int = 6  # frames
    stride: int = 2
    hidden: int = 1024  # units of one direction; twice as many are the common space
    depth: int = 4  # recurrent layers
    cell: Literal["gru", "lstm"] = "gru"  # the paper's; later code has lstm
    attention: int = 128  # units of W₁
    dropout: float = 0.0  # between recurrent layers
    margin: float = 0.2  # α
    negatives: Literal["sum", "hardest"] = "sum"  # all of the batch, or the hardest of every row and column alone
    frames: int = 4  # of media: full-size frames that the picture tower looks at

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "channels": (1, MAX),
        "kernel": (1, MAX),
        "stride": (1, MAX),
        "hidden": (1, MAX),
        "depth": (1, MAX),
        "attention": (1, MAX),
        "dropout": (0.0, 0.99),
        "margin": (0.0, MAX),
        "frames": (1, MAX),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("reader", ("auto", "recurrent", "mean")), ("negatives", ("sum", "hardest"))):
            if getattr(self, name) not in known:
                raise ConfigError(f'{name} = "{getattr(self, name)}" is none of {", ".join(known)}.')

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, sample_rate=8000, window=3.0, channels=8, hidden=6, depth=1, attention=4)


# Captions of one thing, which are short and tell it from 359 others; small layers and a few frames a second.
TRIAL = Trial(
    task="retrieval",
    preset="captions",
    protocol={"relevance": "pair"},
    knobs={"distractor": 0.0, "offscreen": 0.0},
    streams=("video", "speech"),
    clips=2000,
    fresh=False,
    settings={
        "epochs": 6,
        "batch_size": 32,
        "sample_rate": 8000,
        "fps": 4.0,
        "window": 4.0,
        "channels": 64,
        "hidden": 96,
        "depth": 1,
        "learning_rate": 2e-3,
        "clip_norm": 1.0,
    },
    short={"epochs": 8, "batch_size": 16, "hidden": 48},
    short_clips=48,
    partner="speech",
)


class VectorialAttention(nn.Module):
    """``Σ_t α_t ⊙ h_t``, ``α_·d = softmax_t( W₂ tanh(W₁ h_t) )_d``: [B, T, D] and [B, T] to [B, D].

    Every dimension has its own weights, which sum to one over what was recorded; zeros where nothing was.
    """

    def __init__(self, dim: int, units: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(dim, units), nn.Linear(units, dim, bias=False)  # an offset would cancel
        nn.init.orthogonal_(self.inner.weight)

    def weights(self, data: Tensor, mask: Tensor) -> Tensor:
        return masked_softmax(self.outer(torch.tanh(self.inner(data))), mask)

    def forward(self, data: Tensor, mask: Tensor) -> Tensor:
        return (self.weights(data, mask) * data).sum(1)


class SpeechReader(nn.Module):
    """Convolution, recurrent layers, attention: frames [B, T, features] to [B, dim]."""

    def __init__(self, features: int, config: Speech2ImageConfig):
        super().__init__()
        c = self.config = config
        self.conv = nn.Conv1d(features, c.channels, c.kernel, stride=c.stride)
        self.recurrent = Recurrent(c.channels, hidden=c.hidden, depth=c.depth, cell=c.cell, dropout=c.dropout)
        self.attention = VectorialAttention(self.recurrent.dim, c.attention)
        self.dim = self.recurrent.dim

    def states(self, stream: Stream) -> Stream:
        """h: one step for every ``stride`` frames, recorded where any of those is."""
        around = self.config.kernel - 1, self.config.stride - 1
        x = (stream.data * stream.mask[:, :, None]).transpose(1, 2)
        x = self.conv(nn.functional.pad(x, (around[0] // 2, around[0] - around[0] // 2 + around[1])))
        mask = strided_mask(stream.mask, self.config.stride)
        x = x[:, :, : mask.shape[1]].transpose(1, 2)
        return self.recurrent(Stream(x * mask[:, :, None], mask, stream.rate / self.config.stride))

    def forward(self, stream: Stream) -> Tensor:
        states = self.states(stream)
        return self.attention(states.data, states.mask)


class _Side(nn.Module):
    """What stands for a picture or a caption [B, D], before it is brought to unit length."""

    def __init__(self, spec: StreamSpec, config: Speech2ImageConfig, *, caption: bool):
        super().__init__()
        self.kind, dim = spec.kind, 2 * config.hidden
        self.scale: Standardize | None = None
        self.tower: PictureTower | None = None
        self.reader: SpeechReader | None = None
        if spec.kind not in ("features", "map", "audio" if caption else "video"):
            what = "caption" if caption else "picture"
            raise ConfigError(f'speech2image has no tower for a {what} of kind "{spec.kind}".')
        if spec.kind in ("features", "map"):
            self.scale = Standardize(spec.shape[-1])
        width = CEPSTRA if spec.kind == "audio" else spec.shape[-1]
        if caption and (config.reader == "recurrent" or (config.reader == "auto" and spec.kind == "audio")):
            self.reader = SpeechReader(width, config)
            return
        if spec.kind == "video":
            self.tower = PictureTower(config.frames)
            width = self.tower.dim
        self.out = nn.Linear(width, dim)

    def forward(self, stream: Stream) -> Tensor:
        if self.tower is not None:
            return self.out(self.tower(in_unit_range(stream)).pooled)
        if self.scale is not None:
            data = stream.data.float()
            data = self.scale(data.mean((2, 3)) if data.ndim == 5 else data)
            stream = stream._replace(data=data * stream.mask[:, :, None])
        elif self.kind == "audio":
            stream = mfcc_stream(stream)
        return self.out(masked_mean(stream.data, stream.mask)) if self.reader is None else self.reader(stream)


class Speech2Image(system.System):
    """A reader of speech, a linear map of pictures, and the hinge between them."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = Speech2ImageConfig
    trial: ClassVar[Trial | None] = TRIAL
    similarity_name = "cosine"
    config: Speech2ImageConfig

    def __init__(self, config: Speech2ImageConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.picture, self.caption = picture_and_caption(config.chosen(spec), spec)
        self.sides = nn.ModuleDict(
            {
                name: _Side(spec.streams[name], config, caption=name == self.caption)
                for name in (self.caption, self.picture)
            }
        )

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of feature arrays, before the first step."""
        scales = {name: cast(_Side, side).scale for name, side in self.sides.items()}
        kept = {name: scale for name, scale in scales.items() if scale is not None}
        if epoch == 0:
            learn_scales({n: s for n, s in kept.items() if self.spec.streams[n].kind == "features"}, batches)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Unit embeddings of captions and pictures [B, D], and which rows have both [B] bool."""
        streams = dict(zip(self.sides, batch.require(*self.sides), strict=True))
        encoded = {name: self._unit(stream, name) for name, stream in streams.items()}
        return encoded | {"both": batch.complete(*streams)}

    def _unit(self, stream: Stream, name: str) -> Tensor:
        return nn.functional.normalize(self.sides[name](stream).float(), dim=1)

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """The hinge, a mean over all B² cells of the similarities, the zeros of the diagonal included."""
        both = encoded["both"]
        if not bool(both.any()):
            raise BatchError(f"no clip of the batch has both {self.caption} and {self.picture}.")
        a, v = encoded[self.caption][both], encoded[self.picture][both]
        loss = hinge(a, v, margin=self.config.margin, negatives=self.config.negatives)
        return {"hinge": loss / len(a) if self.config.negatives == "sum" else loss}

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """Caption or picture, of unit length: float32 [B, 2 · hidden]; zeros where nothing was recorded."""
        if modality not in self.sides:
            raise ConfigError(f'this model has no "{modality}".', hint=did_you_mean(modality, set(self.sides)))
        (stream,) = batch.require(modality)
        return self._unit(stream, modality) * stream.mask.any(1)[:, None]

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return nn.functional.normalize(q, dim=1) @ nn.functional.normalize(g, dim=1).T
