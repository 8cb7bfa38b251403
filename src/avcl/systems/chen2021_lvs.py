"""LVS: the place whose feature agrees with the sound is its source; the rest of the same picture is a hard negative.

Claim: a picture and its own sound agree somewhere, and nowhere else in that picture. With features V_i(x) of the places
x of picture i and a_j of sound j, all of unit length, S_ij(x) = <V_i(x), a_j> is a map, and σ the logistic function:

    m(s; e) = σ((s - e) / τ_m)                                      soft threshold
    P_i  = Σ_x m(S_ii; e_p) S_ii / Σ_x m(S_ii; e_p)                 confident places: positive
    H_i  = Σ_x (1 - m(S_ii; e_n)) S_ii / Σ_x (1 - m(S_ii; e_n))     background of the same picture: hard negative
    E_ij = Σ_x m(S_ij; e_p) S_ij / Σ_x m(S_ij; e_p)                 other sounds, j ≠ i: easy negatives
    L = mean_i -log [ exp(P_i/τ) / ( exp(P_i/τ) + exp(H_i/τ) + Σ_j≠i exp(E_ij/τ) ) ]

Places between e_n and e_p count as neither: the *tri-map*. It needs features that already find something (the paper
starts from ImageNet): before, no place is above e_p, and in 400 steps the loss did not leave log B. So training begins
with

    p_ij = Σ_x softmax_x(S_ij / δ) S_ij,   W = ½ (CE(p / τ) + CE(pᵀ / τ)),   δ falling from 1 to 0.1,

and turns to L once W, smoothed, has fallen below ``leave`` · log B; a fixed share of the time would be too early under
some seeds. After training two numbers turn S into the probability that picture and sound belong together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.audio import log_mel_stream
from avcl.encoders.conv2d import glimpses
from avcl.encoders.resnet import FrameResNet, SpectrumResNet, wake
from avcl.errors import BatchError, ConfigError
from avcl.nn.pooling import masked_max
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream

CARD = Card(
    title="Localizing Visual Sounds the Hard Way",
    year=2021,
    venue="CVPR",
    authors="H. Chen, W. Xie, T. Afouras, A. Nagrani, A. Vedaldi, A. Zisserman",
    survey={
        "paper": "Chen et al., 2021",
        "objective": "NCE",
        "learning": "Semi-Supervised",
        "application": "Sound Localization",
        "metric": "AUC",
        "performance": "0.573/0.590",
        "datasets": "Flickr-SoundNet/VGG-SS",
    },
    paper=(
        "AUC 0.573 and 0.590 (the survey's two figures): both on the Flickr-SoundNet test set, trained on Flickr 144k "
        "and on VGG-Sound; not on VGG-SS, as the survey's cell reads.",
    ),
    fidelity="official: equations, thresholds and the place of the strides are those of the authors' code; network and "
    "data are reduced, and a warm-up stands for ImageNet weights.",
    deviations=(
        "Small residual networks from scratch instead of ResNet-18 with ImageNet weights: what two cores can train.",
        "A warm-up by softmax-pooled similarity comes first, because from scratch the tri-map loss did not leave its "
        "plateau.",
        "The diagonal of the easy negatives is left out; the authors' code multiplies it by -99, which was to do that.",
        "Log-mel spectrogram with its frequency as a second channel instead of 257 linear bins; mean over frequency "
        "and maximum over time instead of a maximum over both: pitch is the size of things in the world.",
        "Any recorded frame of the clip in training, its middle frame in evaluation, without crops and flips: the "
        "sound of the whole clip belongs to each of them.",
        "Normalization over channels instead of over the batch: a map does not depend on other clips.",
        "Maps are turned into probabilities; order and places of a map do not change by that.",
    ),
    original_license="Apache-2.0",
)


@dataclass(frozen=True)
class LVSConfig(MediaConfig):
    """Settings of ``chen2021_lvs``."""

    fps: float = 1.0  # one frame is looked at in a step; more would only be decoded
    learning_rate: float = 2e-3
    dim: int = 64  # of the common space (paper: 512)
    widths: tuple[int, ...] = (32, 64)  # of the stages of the picture net (paper: 64, 128, 256, 512)
    depth: int = 1  # residual blocks of a stage (paper: 2)
    heard: tuple[int, ...] = (16, 32, 64)  # widths of the stages of the sound net
    temperature: float = 0.07  # τ
    positive: float = 0.65  # e_p
    negative: float = 0.4  # e_n
    sharpness: float = 0.03  # τ_m
    pooling: tuple[float, ...] = (1.0, 0.1)  # δ at the start and at the end of the warm-up's annealing
    anneal: float = 0.4  # share of the training in which δ falls
    leave: float = 0.93  # share of log B below which the warm-up has done its work; 0: never
    ramp: float = 0.1  # share of the training in which the tri-map loss takes over
    bands: int = 64  # of the log-mel spectrogram
    hop: float = 1 / 32  # seconds between its frames

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "dim": (1, MAX),
        "widths": (1, MAX),
        "depth": (1, 100),
        "heard": (1, MAX),
        "temperature": (0.001, MAX),
        "positive": (-1.0, 1.0),
        "negative": (-1.0, 1.0),
        "sharpness": (0.001, MAX),
        "pooling": (0.001, MAX),
        "anneal": (0.0, 1.0),
        "leave": (0.0, 1.0),
        "ramp": (0.0, 1.0),
        "bands": (8, 1024),
        "hop": (0.001, 1.0),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.pooling) != 2:
            raise ConfigError(f"pooling = {self.pooling} must be two numbers: at the start and at the end.")
        if self.negative > self.positive:
            raise ConfigError(f"negative = {self.negative} must not be above positive = {self.positive}.")

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, dim=16, widths=(8, 16), heard=(8, 16), size=(32, 32), bands=32)


# --------------------------------------------------------------------------------------------------------- the losses
def threshold(maps: Tensor, edge: float, sharpness: float) -> Tensor:
    """``m(s; e) = σ((s - e) / τ_m)``, any shape."""
    return torch.sigmoid((maps - edge) / sharpness)


def weighted(maps: Tensor, weight: Tensor) -> Tensor:
    """``Σ_x w S / Σ_x w`` over the last axis; 0 where nothing weighs anything."""
    return (weight * maps).sum(-1) / (weight.sum(-1) + 1e-8)


def trimap_loss(maps: Tensor, *, positive: float, negative: float, sharpness: float, temperature: float) -> Tensor:
    """L of the module's head for maps S [B, B, N]: picture i, sound j, place x. A scalar ≥ 0, lower is better."""
    easy = weighted(maps, threshold(maps, positive, sharpness))  # E_ij, and P_i on the diagonal
    own = maps.diagonal().mT  # [B, N]
    hard = weighted(own, 1 - threshold(own, negative, sharpness))
    logits = torch.cat([easy, hard[:, None]], 1) / temperature
    return nn.functional.cross_entropy(logits, torch.arange(len(maps), device=maps.device))


def pooled_loss(maps: Tensor, *, softness: float, temperature: float) -> Tensor:
    """W of the module's head for maps S [B, B, N]; log B where the maps say nothing."""
    logits = (torch.softmax(maps / softness, -1) * maps).sum(-1) / temperature
    own = torch.arange(len(maps), device=maps.device)
    return 0.5 * (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own))


# -------------------------------------------------------------------------------------------------------- the networks
class _Picture(nn.Module):
    """Video [B, T, 3, H, W] to places of unit length [B, T, h, w, D]; the last stage keeps its resolution."""

    def __init__(self, config: LVSConfig):
        super().__init__()
        stages = len(config.widths)
        strides = [1, *[2] * (stages - 2), 1][:stages]
        self.net = FrameResNet(widths=config.widths, depths=[config.depth] * stages, strides=strides)
        self.head = nn.Linear(self.net.dim, config.dim)
        wake(self.net)

    def forward(self, stream: Stream) -> Tensor:
        return nn.functional.normalize(self.head(self.net.maps(stream).data).float(), dim=-1)


class _Sound(nn.Module):
    """Audio [B, L, C] to a vector of unit length [B, D]: what was loudest of each kind at any time."""

    def __init__(self, config: LVSConfig):
        super().__init__()
        self.bands, self.hop = config.bands, config.hop
        stages = len(config.heard)
        strides = [1, *[2] * (stages - 1)]
        self.net = SpectrumResNet(channels=2, widths=config.heard, depths=[1] * stages, strides=strides)
        self.head = nn.Linear(self.net.dim, config.dim)
        wake(self.net)

    def forward(self, stream: Stream) -> Tensor:
        mel = log_mel_stream(stream, bands=self.bands, hop=self.hop, window=0.064)
        height = torch.linspace(-1, 1, self.bands, device=mel.data.device).expand_as(mel.data)
        seen = self.net(mel._replace(data=torch.stack([mel.data, height], -1)))
        return nn.functional.normalize(self.head(masked_max(*seen[:2])).float(), dim=-1)


# ---------------------------------------------------------------------------------------------------------- the system
class LVS(system.System):
    """Two networks, one map for every pair of picture and sound."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = LVSConfig
    learns_from: ClassVar[tuple[str, ...]] = ("media",)
    trial: ClassVar[Trial] = Trial(
        task="localization",
        preset="localization",
        clips=1600,
        settings={"epochs": 14, "precision": "bf16"},
        short={"epochs": 10, "batch_size": 16, "leave": 0.0, "anneal": 0.2, "precision": "no"}
        | {"dim": 32, "widths": (16, 32), "heard": (8, 16, 32)},
        watch="pooled",
    )
    config: LVSConfig
    level: Tensor
    turned: Tensor
    slope: Tensor
    middle: Tensor

    def __init__(self, config: LVSConfig, spec: DataSpec):
        super().__init__(config, spec)
        for name, kind in (("audio", "audio"), ("video", "video")):
            if name not in spec.streams or spec.streams[name].kind != kind:
                raise ConfigError(
                    f"chen2021_lvs needs decoded {name}.", hint="Give media files with sound and picture."
                )
        self.picture, self.sound = _Picture(config), _Sound(config)
        # Pooled loss, smoothed, as a share of log B; the step at which the tri-map loss began (-1: not yet).
        self.register_buffer("level", torch.ones(()))
        self.register_buffer("turned", torch.full((), -1, dtype=torch.long))
        # p = σ(slope · (S - middle)): the probability that a place of this similarity belongs to the sound.
        self.register_buffer("slope", torch.tensor(10.0))
        self.register_buffer("middle", torch.tensor(0.5))

    # --------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Places [B, h, w, D] of one frame, sound [B, D], and which clips have both [B] bool."""
        sound, video = batch.require("audio", "video")
        frame = _any_frame(video) if self.training else glimpses(video, 1)
        there = sound.mask.any(1) & video.mask.any(1)
        return {"places": self.picture(frame)[:, 0], "sound": self.sound(sound), "both?": there}

    def maps(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """S [B, B, N] of the clips that have both."""
        both = encoded["both?"]
        if not bool(both.any()):
            raise BatchError("no clip of the batch has both sound and picture.")
        places, sound = encoded["places"][both].flatten(1, 2), encoded["sound"][both]
        return torch.einsum("ixd,jd->ijx", places, sound)

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """``pooled`` alone until the warm-up has left log B, then less and less of it and more of ``trimap``."""
        c, maps, share = self.config, self.maps(encoded), self.share(at)
        terms = {}
        if share < 1:
            pooled = pooled_loss(maps, softness=self.softness(at), temperature=c.temperature)
            terms["pooled"] = (1 - share) * pooled
        if share > 0:
            edges = {"positive": c.positive, "negative": c.negative, "sharpness": c.sharpness}
            terms["trimap"] = share * trimap_loss(maps, **edges, temperature=c.temperature)
        return terms

    def softness(self, at: Step) -> float:
        """δ, falling by a constant factor a step."""
        first, last = self.config.pooling
        done = min(1.0, at.progress / self.config.anneal) if self.config.anneal else 1.0
        return first * (last / first) ** done

    def share(self, at: Step) -> float:
        """How much of the loss is the tri-map's: 0 in the warm-up, 1 at the end of the ramp."""
        since = at.step - int(self.turned)
        if int(self.turned) < 0:
            return 0.0
        return min(1.0, since / max(1.0, self.config.ramp * at.total))

    @torch.no_grad()
    def after_step(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> None:
        """Watch the warm-up: W at its final softness, smoothed over some ten steps."""
        if int(self.turned) >= 0 or not self.config.leave:
            return
        maps = self.maps(encoded)
        if len(maps) < 2:  # log 1 is 0: there was nothing to tell apart
            return
        now = pooled_loss(maps, softness=self.softness(at), temperature=self.config.temperature)
        self.level.lerp_(now / math.log(len(maps)), 0.1)
        if float(self.level) < self.config.leave:
            self.turned.fill_(at.step + 1)

    @torch.no_grad()
    def finish(self, batches: Iterable[Batch]) -> None:
        """Fit slope and middle by logistic regression on the peaks of own and of foreign sounds, in equal weight."""
        own, foreign = [], []
        for n, batch in enumerate(batches):
            peaks = self.maps(self.encode(batch)).amax(-1)
            own.append(peaks.diagonal())
            foreign.append(peaks[~torch.eye(len(peaks), dtype=torch.bool, device=peaks.device)])
            if n >= 15:
                break
        if sum(map(len, foreign)):
            slope, middle = _logistic(torch.cat(own).double(), torch.cat(foreign).double())
            self.slope.fill_(slope)
            self.middle.fill_(middle)

    # ------------------------------------------------------------------------------------------------------- capability
    @torch.no_grad()
    def heatmap(self, batch: Batch) -> Tensor:
        """Float32 [B, T, H, W] in [0, 1] at the size of the frames: how probable it is that the sound comes from this
        place. The peak of a frame is the probability that it comes from anything in it, as far as training clips with
        their own and with foreign sounds tell. 0 in frames that were not recorded, or without sound."""
        sound, video = batch.require("audio", "video")
        cells = torch.einsum("btyxd,bd->btyx", self.picture(video), self.sound(sound))
        heat = torch.sigmoid(self.slope * (_laid(cells, video, self.picture.net.stride) - self.middle))
        there = video.mask & sound.mask.any(1)[:, None]
        return heat * there[:, :, None, None]


def _any_frame(stream: Stream) -> Stream:
    """One recorded frame of each clip, drawn at random: [B, 1, 3, H, W]."""
    chance = torch.rand(stream.mask.shape, device=stream.mask.device)
    where = (chance + stream.mask).argmax(1)  # the highest among the recorded ones
    rows = torch.arange(len(where), device=where.device)
    return Stream(stream.data[rows, where][:, None], stream.mask[rows, where][:, None], stream.rate)


def _laid(cells: Tensor, stream: Stream, stride: int) -> Tensor:
    """Cells [B, T, h, w] over the pixels of the frames [B, T, H, W]: cell k is centered on pixel k · stride, bilinear
    between the centers, constant beyond the last."""
    height, width = stream.data.shape[-2:]
    rows, columns = ((n - 1) * stride + 1 for n in cells.shape[-2:])
    fine = nn.functional.interpolate(cells, (rows, columns), mode="bilinear", align_corners=True)
    return nn.functional.pad(fine, (0, width - columns, 0, height - rows), mode="replicate")


def _logistic(own: Tensor, foreign: Tensor) -> tuple[float, float]:
    """Slope k > 0 and middle m that maximize mean log σ(k (own - m)) + mean log σ(-k (foreign - m)), with a small pull
    of k to zero, so that it stays finite where the two do not overlap. Where foreign sounds fit no worse: nothing is
    probable."""
    from sklearn.linear_model import LogisticRegression

    x = torch.cat([own, foreign])[:, None].cpu().numpy()
    y = np.repeat([1, 0], [len(own), len(foreign)])
    weight = np.where(y == 1, 0.5 / len(own), 0.5 / len(foreign))
    fitted = LogisticRegression(C=1e6, max_iter=1000).fit(x, y, sample_weight=weight)
    slope, shift = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return (slope, -shift / slope) if slope > 0.1 else (10.0, 2.0)
