"""The Sound of Pixels: the picture says which components of the mixture are its own.

Claim: sounds that were never heard apart can be separated by looking at their sources, learned from nothing but
unlabeled videos whose sounds are added up (mix-and-separate). With X_mix the mixture's log spectrogram on a
logarithmic frequency axis, f_k(X_mix) the K output channels of a U-Net, and v_k(s) the visual code of source s,

    v(s) = σ(BN(W max over frames of [mean ; max over cells of CNN(frame)]))            K numbers in [0, 1]
    z_s(t, f) = Σ_k a_k v_k(s) f_k(t, f) + b                                            a, b learned
    L = mean_s Σ_tf w(t, f) BCE(σ(z_s(t, f)), M_s(t, f)),   M_s = 1[X_s ≥ X_n for all n],   w = ln(1 + |X_mix|)

Separation: σ(z_s) times the mixture's spectrogram, in the mixture's phase. The U-Net runs once for any number of
sources. All pictures of a batch are normalized together, those of both sides of a mixture included: else the two would
differ by their statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.checks import one_of
from avcl.encoders.conv2d import FrameConv
from avcl.encoders.unet import UNet
from avcl.errors import BatchError, ConfigError
from avcl.nn.pooling import masked_max
from avcl.nn.separation import Decision, MixAndSeparate, Pairing, Rule, mono, partners, picture_of
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream

CARD = Card(
    title="The Sound of Pixels",
    year=2018,
    venue="ECCV",
    authors="H. Zhao, C. Gan, A. Rouditchenko, C. Vondrick, J. McDermott, A. Torralba",
    paper=(
        "MUSIC-21, mixtures of two instruments, as measured by Zhao et al. 2019, table 1: SDR 7.52, SIR 13.01, "
        "SAR 11.53 dB (BSS Eval v3)",
    ),
    fidelity="official: front end, loss, target and synthesizer as in the released code, at a size that two cores "
    "train in two minutes.",
    deviations=(
        "8 kHz, 2 s, a U-Net of four levels and 64 bands instead of 11 kHz, 6 s, seven levels and 256: the world's "
        "sounds lie below 4 kHz.",
        "Three convolutions from scratch instead of an ImageNet ResNet-18, on three frames as there; mean and maximum "
        "over the cells instead of the maximum alone; one learning rate for everything.",
        "The visual code is batch-normalized before its sigmoid, over all pictures of the batch: what untrained codes "
        "have in common says nothing of who is whose.",
        "Bands are triangle-weighted means, so no bin between two bands is left out; the log is floored 80 dB below "
        "the loudest bin and standardized by clip, so a gain changes nothing.",
        "Sounds are brought to one level before they are mixed, where the released code draws gains.",
        "Soft masks by default (decision = hard thresholds as the paper does): thresholds of an untrained mask may "
        "leave nothing.",
        "AdamW with warm-up and cosine instead of SGD with steps.",
    ),
    original_license="MIT",
)


@dataclass(frozen=True)
class SoundOfPixelsConfig(MediaConfig):
    """Settings of ``zhao2018_sound_of_pixels``."""

    batch_size: int = 32
    learning_rate: float = 3e-3
    fps: float = 1.5  # three frames in the window: the picture says what, not when
    sample_rate: int = 8000
    window: float = 2.0
    fft: int = 512
    hop: int = 256
    bands: int = 64  # rows of the logarithmic frequency axis
    components: int = 16  # K
    widths: tuple[int, ...] = (16, 32, 64, 64)  # of the U-Net
    picture: tuple[int, ...] = (32, 64, 96)  # widths of the three stages of the frame network
    sources: int = 2  # in a mixture of the training
    rounds: int = 1  # how often each clip of a batch is mixed, with another partner each time
    pairing: Pairing = "any"  # who is mixed with whom: any, other (classes), same (class)
    rule: Rule = "dominant"
    decision: Decision = "soft"

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "fft": (16, MAX),
        "hop": (1, MAX),
        "bands": (2, MAX),
        "components": (1, MAX),
        "widths": (1, MAX),
        "picture": (1, MAX),
        "sources": (2, 8),
        "rounds": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        small: dict[str, Any] = {"size": (32, 32), "window": 0.5, "fps": 4.0, "bands": 16, "fft": 128, "hop": 64}
        return cls(epochs=2, batch_size=8, components=4, widths=(4, 6), picture=(4, 6, 6), **small)


class _Frames(nn.Module):
    """Video [B, T, 3, H, W] to K activations [B, K] of what is there: mean and most over cells, most over time."""

    def __init__(self, widths: tuple[int, ...], components: int):
        super().__init__()
        first, second, third = widths
        self.net = FrameConv((first, second, third))
        self.out = nn.Linear(self.net.dim, components)

    def forward(self, video: Stream) -> Tensor:
        seen = self.net(video)
        return self.out(masked_max(seen.data, seen.mask))


class SoundOfPixels(system.System):
    """U-Net, frame network and synthesizer; ``separate`` is what it can."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = SoundOfPixelsConfig
    learns_from: ClassVar[tuple[str, ...]] = ("media",)
    trial: ClassVar[Trial] = Trial(
        task="separation",
        preset="separation",
        clips=3200,
        test=128,
        settings={"epochs": 5, "pairing": "other", "precision": "bf16"},
        short={"epochs": 25, "batch_size": 16, "size": (32, 32), "window": 1.0, "bands": 32, "widths": (8, 16, 16)},
        short_clips=32,
        partner="video",
    )
    config: SoundOfPixelsConfig

    def __init__(self, config: SoundOfPixelsConfig, spec: DataSpec):
        super().__init__(config, spec)
        c = config
        one_of(c.pairing, ("any", "other", "same"), "pairing", "zhao2018_sound_of_pixels")
        if len(c.picture) != 3:
            raise ConfigError(f"picture = {c.picture} must be three widths.")
        self.front = MixAndSeparate(c.fft, c.hop, c.bands, c.rule, decision=c.decision)
        self.frames = _Frames(c.picture, c.components)
        self.normalize = nn.BatchNorm1d(c.components)
        self.unet = UNet(widths=c.widths, condition="product", condition_dim=c.components, standardize=True)

    # --------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """The wave [B, L], where it was recorded, and what the frame network sees [B, K]."""
        sound, video = batch.require("audio", "video")
        seen = self.frames(video)
        return {"wave": mono(sound), "recorded": sound.mask, "seen": seen.float()}

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """Mixtures within the batch, and the error of their masks."""
        c = self.config
        rows = partners(batch.label, at.generator, sources=c.sources, pairing=c.pairing, rounds=c.rounds)
        mixed = self.front.mixed(encoded["wave"], encoded["recorded"], c.sample_rate, rows)
        codes = self._codes(encoded["seen"])[rows]  # [M, S, K]
        return {"mask": self.front.loss(self.unet(mixed.seen, codes).data, mixed)}

    def _codes(self, seen: Tensor) -> Tensor:
        return torch.sigmoid(self.normalize(seen))

    # ------------------------------------------------------------------------------------------------------- capability
    @torch.no_grad()
    def separate(self, mixture: Stream, guides: Sequence[Batch]) -> Tensor:
        """The part of ``mixture`` [B, T, C] that belongs to the picture of each guide: [B, S, T, C]."""
        if not guides:
            raise BatchError("separation needs a guide for every source.")
        codes = torch.stack([self._codes(self.frames(picture_of(guide)).float()) for guide in guides], 1)
        return self.front.separated(mixture, lambda seen: self.unet(seen, codes).data)
