"""MMS: spoken captions and pictures by a softmax over all pairs of the batch (Ilharco, Zhang, Baldridge 2019).

Claim: contrasting every caption with all pictures of a large batch at once, with a margin and with the pairs that are
known to match left out, learns better than triplets do; and the speech to start from may be synthetic.

    a = f(log-mel), v = g(picture)                               residual networks, pooled over their cells, then linear
    L_av(S) = -1/B Σ_i log [ e^{s(S_ii - δ)} / ( e^{s(S_ii - δ)} + Σ_j M_ij e^{s S_ij} ) ],  S = a vᵀ
    L = L_av(S) + L_av(Sᵀ),  δ = .001 · 1.002^⌊step / 1000⌋
    M_ij = 0 where i = j or both are of one group (two captions of one picture), else 1

With δ = 0 and M full this is the symmetric InfoNCE at τ = 1 / s. Whether the paper brings a and v to unit length is not
known: with ``normalize`` they are, and s is 1 / τ; without it s = 1 (the plain dot product). ``objective = "triplet"``
is the semi-hard triplet loss that the paper compares with, its margin on the cosine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.clips import in_unit_range
from avcl.encoders.conv2d import glimpses
from avcl.encoders.resnet import FrameResNet, LogMelResNet, wake
from avcl.encoders.spoken import picture_and_caption
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.pooling import masked_max, masked_mean
from avcl.nn.standardize import Standardize, learn_scales
from avcl.objectives.margin import masked_margin_softmax
from avcl.objectives.schedules import Exponential
from avcl.objectives.triplets import triplet
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream, StreamSpec

CARD = Card(
    title="Large-scale representation learning from visually grounded untranscribed speech",
    year=2019,
    venue="CoNLL",
    authors="G. Ilharco, Y. Zhang, J. Baldridge",
    survey={
        "paper": "Ilharco et al., 2019",
        "objective": "MMS/T",
        "learning": "Supervised",
        "application": "Cross-Modal (AV) Retrieval",
        "metric": "Recall@10",
        "performance": "52.65",
        "datasets": "Flickr Audio Caption Corpus",
    },
    paper=(
        "Flickr Audio Caption Corpus, speech to picture, R@10: 49.5, with 29.6 the best before (the paper's abstract)",
        "Flickr Audio Caption Corpus, picture to speech, R@10: 55.8 (from memory, not verified; the mean of both is "
        "the survey's figure)",
    ),
    fidelity="reconstruction: the loss, its margin's schedule and the two-tower design are the paper's; width, batch, "
    "spectra and whether embeddings are normalized are not known, and there is no public code.",
    deviations=(
        "Residual networks of four small stages instead of Inception-ResNet-v2 in both towers: two cores can train "
        "them.",
        "The picture tower learns along instead of starting from ImageNet, on pictures of the data's own size.",
        "Mean and maximum over the cells side by side, not the mean alone: a small network keeps what is small.",
        "Plain dot products by default, as in AVLnet's code; unit ones need a scale, and learn later.",
        "AdamW with warm-up and cosine instead of an exponentially falling rate: the one loop of this library.",
        "No corpus of synthetic speech comes with this library; the generated world speaks its captions.",
    ),
    original_license="none: no code was released",
)


@dataclass(frozen=True)
class MMSConfig(MediaConfig):
    """Settings of ``ilharco2019_mms``."""

    batch_size: int = 64
    learning_rate: float = 1e-3
    window: float = 10.0  # seconds of a caption
    objective: Literal["mms", "triplet"] = "mms"
    dim: int = 512  # of the common space
    margin: float = 0.001  # δ at the start (mms), or the margin on the cosine (triplet: .2 or so)
    growth: float = 1.002  # of δ; 1: constant, as in AVLnet's code
    every: int = 1000  # steps until δ grows
    normalize: bool = False
    temperature: float = 0.07  # τ = 1 / s of unit embeddings; without normalize s = 1
    mask: bool = True  # clips of one group are no negatives of each other
    widths: tuple[int, ...] = (16, 32, 64, 128)  # of the residual stages, of both towers
    depths: tuple[int, ...] = (1, 1, 1, 1)
    bands: int = 64
    frames: int = 4  # of media: how many pictures are looked at

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "dim": (1, MAX),
        "margin": (0.0, MAX),
        "growth": (1.0, MAX),
        "every": (1, MAX),
        "temperature": (0.01, MAX),
        "widths": (1, MAX),
        "depths": (1, MAX),
        "bands": (8, MAX),
        "frames": (1, MAX),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in ("mms", "triplet"):
            raise ConfigError(f'objective = "{self.objective}" is not "mms" or "triplet".')

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
            bands=32,
        )


# Captions of one thing, which are short and tell it from 359 others.
TRIAL = Trial(
    task="retrieval",
    preset="captions",
    protocol={"relevance": "pair"},
    knobs={"distractor": 0.0, "offscreen": 0.0},
    streams=("video", "speech"),
    clips=2000,
    fresh=False,
    settings={
        "epochs": 8,
        "batch_size": 32,
        "sample_rate": 8000,
        "fps": 4.0,
        "window": 4.0,
        "dim": 128,
        "frames": 2,
        "learning_rate": 1e-3,
    },
    short={"epochs": 8, "batch_size": 16},
    short_clips=48,
    partner="speech",
)


class _Tower(nn.Module):
    """What stands for a clip [B, dim]: a residual network of media, a standardized mean of features, then linear."""

    def __init__(self, spec: StreamSpec, config: MMSConfig, *, caption: bool):
        super().__init__()
        c = config
        if spec.kind not in ("features", "map", "audio" if caption else "video"):
            what = "caption" if caption else "picture"
            raise ConfigError(f'ilharco2019_mms has no tower for a {what} of kind "{spec.kind}".')
        self.frames, count = c.frames, len(c.widths)
        self.scale = Standardize(spec.shape[-1]) if spec.kind == "features" else None
        self.net: FrameResNet | LogMelResNet | None = None
        if spec.kind == "video":
            self.net = FrameResNet(widths=c.widths, depths=c.depths, strides=(1, *[2] * (count - 1)))
        elif spec.kind == "audio":
            self.net = LogMelResNet(bands=c.bands, widths=c.widths, depths=c.depths, strides=(2,) * count, pool=False)
        if self.net is not None:
            wake(self.net)
        self.out = nn.Linear(spec.shape[-1] if self.net is None else 2 * self.net.dim, c.dim)

    def forward(self, stream: Stream) -> Tensor:
        if self.net is not None:
            seen = self.net(glimpses(stream, self.frames) if isinstance(self.net, FrameResNet) else stream)
            return self.out(torch.cat([masked_mean(seen.data, seen.mask), masked_max(seen.data, seen.mask)], 1))
        data = stream.data.float()
        pooled = masked_mean(data.mean((2, 3)) if data.ndim == 5 else data, stream.mask)
        return self.out(pooled if self.scale is None else self.scale(pooled))


class MMS(system.System):
    """Two towers and the masked margin softmax between them."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = MMSConfig
    trial: ClassVar[Trial | None] = TRIAL
    similarity_name = "cosine"
    config: MMSConfig

    def __init__(self, config: MMSConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.picture, self.caption = picture_and_caption(config.chosen(spec), spec)
        self.similarity_name = "cosine" if config.normalize else "dot"
        self.margin = Exponential(start=config.margin, rate=config.growth, every=config.every)
        self.towers = nn.ModuleDict(
            {n: _Tower(spec.streams[n], config, caption=n == self.caption) for n in (self.caption, self.picture)}
        )

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of feature arrays, before the first step."""
        scales = {name: cast(_Tower, tower).scale for name, tower in self.towers.items()}
        if epoch == 0:
            learn_scales({name: scale for name, scale in scales.items() if scale is not None}, batches)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Embeddings of captions and pictures [B, D], and which rows have both [B] bool."""
        streams = dict(zip(self.towers, batch.require(*self.towers), strict=True))
        encoded = {name: self._embedding(stream, name) for name, stream in streams.items()}
        return encoded | {"both": batch.complete(*streams)}

    def _embedding(self, stream: Stream, name: str) -> Tensor:
        made = self.towers[name](in_unit_range(stream)).float()
        return nn.functional.normalize(made, dim=1) if self.config.normalize else made

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """The sum of both directions; of the triplet loss too."""
        c, both = self.config, encoded["both"]
        if not bool(both.any()):
            raise BatchError(f"no clip of the batch has both {self.caption} and {self.picture}.")
        a, v = encoded[self.caption][both], encoded[self.picture][both]
        if c.objective == "triplet":
            # Of unit rows the squared distance is 2 - 2 cos: twice the margin.
            a, v = nn.functional.normalize(a, dim=1), nn.functional.normalize(v, dim=1)
            return {"triplet": triplet(a, v, margin=2 * c.margin, mining="semi-hard")}
        scale = 1 / c.temperature if c.normalize else 1.0
        mask = others(batch.group, both) if c.mask else None
        return {"mms": masked_margin_softmax(a, v, margin=self.margin(at.step), mask=mask, scale=scale)}

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """Caption or picture, of unit length with ``normalize``: float32 [B, D]; zeros where nothing was recorded."""
        if modality not in self.towers:
            raise ConfigError(f'this model has no "{modality}".', hint=did_you_mean(modality, set(self.towers)))
        (stream,) = batch.require(modality)
        return self._embedding(stream, modality) * stream.mask.any(1)[:, None]

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        if self.config.normalize:
            q, g = nn.functional.normalize(q, dim=1), nn.functional.normalize(g, dim=1)
        return q @ g.T


def others(group: Sequence[str], rows: Tensor) -> Tensor | None:
    """M [n, n] bool of the ``rows`` [B] that are True: False where two clips are of one group; None: none are."""
    kept = [name for name, there in zip(group, rows.tolist(), strict=True) if there]
    number = {name: i for i, name in enumerate(kept)}
    if len(number) == len(kept):
        return None
    of = torch.tensor([number[name] for name in kept], device=rows.device)
    return of[:, None] != of
