"""Two ears from one microphone and the picture, with stereo truth for a part of the clips (Lin and Wang 2021).

Claim: where a sounding region lies in the picture and which ear is the louder one must agree. That is a loss which
needs no recording with two ears, so that few of those are enough.

    x_M = x_L + x_R,  S = STFT(x),  S̃_L = M_L S_M,  S̃_R = M_R S_M,  S̃_D = S̃_L - S̃_R      M: complex masks of a U-Net
    L_rec = mean |S̃_D - S_D|²                                          S_D = S_L - S_R, clips with two ears only
    L_con = mean_k H( P_a,k , P_av,k )                                 H: binary cross-entropy, k: patches of sound
    P_a,k  = σ( |S_L| - |S_R| )_k                                      the patch is louder on the left (mean over it)
    P_av,k = σ( κ mean_xy C_k(x,y) (w_L(x) - w_R(x)) )                 what looks like the patch lies on the left
    C_k(x,y) = cos(a_k, v_xy),  w_R(x) = σ(q x),  w_L(x) = σ(-q x),  x in [-1, 1]

The U-Net reads the spectrum of one segment and, at its bottleneck, the map v of the frame in the middle of it; a are
its features next to the bottleneck. In clips without two ears P_a is that of the prediction. The ears are
(x_M ± x̃_D) / 2, so that they add up to what was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, gelu, normalize, pad, softplus

from avcl import system
from avcl.dsp.phase import istft
from avcl.dsp.spectrum import stft
from avcl.encoders.clips import in_unit_range
from avcl.encoders.conv2d import centered, change_channels
from avcl.encoders.unet import UNet
from avcl.errors import BatchError, ConfigError
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Inputs, Stream

CARD = Card(
    title="Exploiting audio-visual consistency with partial supervision for spatial audio generation",
    year=2021,
    venue="AAAI",
    authors="Y.-B. Lin, Y.-C. F. Wang",
    survey={
        "paper": "Lin and Wang, 2021",
        "objective": "CE",
        "learning": "Semi-Supervised",
        "application": "Sound Separation",
        "metric": "STFT",
        "performance": "0.865/1.448",
        "datasets": "FAIR PLAY/YT-MUSIC",
    },
    paper=(
        "FAIR-Play, STFT / ENV distance: .865 / .136; without the consistency loss .904 / .140; mono 1.155 / .153",
        "YT-MUSIC: 1.448 / .155; without the consistency loss 1.457 / .161; mono 1.853 / .184",
    ),
    fidelity="reconstruction: the equations of the paper, on the synthesizer of its predecessor; q, the pooling of the "
    "level difference, the weights of the two losses and the optimizer are not given there and are ours.",
    deviations=(
        "8 kHz, segments of a third of a second, a U-Net of three levels with 16 to 64 channels and 64 × 64 pixels: "
        "what two cores can train.",
        "The visual tower is a small one trained along, instead of ResNet-18 pretrained on ImageNet; beside the frame "
        "it sees its change since the frame before, at 16 × 16, for what moves is found sooner.",
        "The U-Net also reads the frequency of every bin: a small one does not see the borders of the spectrum, and "
        "what a place does to the ears depends on the frequency.",
        "Norms over channels instead of over the batch in the U-Net and none in the visual tower, which reads pictures "
        "of mean 0 and variance 1: no clip depends on the others.",
        "The ears are made of the predicted difference, not of the two masks: those are trained on their difference "
        "alone, and their sum would be arbitrary.",
        "The logit of P_av is multiplied by κ, because a mean of cosines cannot leave the middle of the sigmoid.",
        "No change of brightness in training, and segments overlap by half at test time instead of by all but 50 ms.",
    ),
    original_license="none (no code released)",
)

SIDE = 16  # cells of the change of a picture along each side


@dataclass(frozen=True)
class SpatialAudioConfig(MediaConfig):
    """Settings of ``lin2021_spatial_audio_partial_supervision``; lengths of the transform are in samples."""

    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 3e-3
    sample_rate: int = 8000
    n_fft: int = 128
    hop: int = 64
    steps: int = 40  # frames of one segment
    segments: int = 2  # that are drawn of each clip in a training step
    widths: tuple[int, ...] = (16, 32, 64)  # of the U-Net
    look: int = 48  # channels of the picture's map
    told: int = 8  # channels of each cell of the map that the U-Net reads
    labeled: float = 1.0  # share of the clips whose two ears are used
    consistency: float = 1.0  # weight of L_con
    slope: float = 5.0  # q
    sharpness: float = 10.0  # κ

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "n_fft": (16, MAX),
        "hop": (1, MAX),
        "steps": (4, MAX),
        "segments": (1, MAX),
        "widths": (1, MAX),
        "look": (1, MAX),
        "told": (1, MAX),
        "labeled": (0.0, 1.0),
        "consistency": (0.0, MAX),
        "slope": (0.0, MAX),
        "sharpness": (0.0, MAX),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hop > self.n_fft // 2 or len(self.widths) < 2:
            raise ConfigError(f"hop = {self.hop} must be at most n_fft / 2, and widths must name two levels or more.")

    @property
    def decoding(self) -> Inputs:
        return replace(super().decoding, channels=2)

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, size=(32, 32), steps=16, segments=1, widths=(4, 8), look=8, told=2)


class Segments(NamedTuple):
    """S segments of B clips: mono spectrum [B, S, N, F, 2] (real, imaginary), which frames of it were recorded
    [B, S, N], the picture in the middle of each [B, S, 3, H, W] and its change since the one before [B, S, 3, 16, 16].
    """

    spectrum: Tensor
    kept: Tensor
    frames: Tensor
    changes: Tensor


class Heard(NamedTuple):
    """What the network makes of segments: the difference of the ears [B, S, N, F, 2], the logit of P_av for each patch
    [B, S, K], and the patches of the spectrum (frames, bins).
    """

    difference: Tensor
    left: Tensor
    patches: tuple[int, int]


class _Eyes(nn.Module):
    """A picture [M, 3, H, W] and its change [M, 3, 16, 16] to a map v [M, look, H / 8, W / 8].

    Each color is brought to mean 0 and variance 1 over the picture, and there is no norm behind: one at every cell
    makes a cell in which nothing is as strong as the one with the object, and the side is then not found in 200 steps.
    """

    def __init__(self, look: int):
        super().__init__()
        self.stem = nn.Conv2d(3, look // 2, 7, stride=4, padding=3)
        self.down = nn.Conv2d(look // 2 + 3, look, 3, stride=2, padding=1)

    def forward(self, picture: Tensor, change: Tensor) -> Tensor:
        spread = picture.var((2, 3), correction=0, keepdim=True)
        x = gelu(self.stem((picture - picture.mean((2, 3), keepdim=True)) / (spread + 1e-4).sqrt()))
        return gelu(self.down(torch.cat([x, adaptive_avg_pool2d(change, (x.shape[2], x.shape[3]))], 1)))


class SpatialAudio(system.System):
    """The mono-to-stereo U-Net with its view of the picture, and the consistency of both."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = SpatialAudioConfig
    learns_from: ClassVar[tuple[str, ...]] = ("media",)
    targets = ("audio",)
    config: SpatialAudioConfig
    # One source instead of two: which of two objects makes which partials is not learned in minutes.
    trial = Trial(
        task="spatial",
        preset="spatial",
        knobs={"sources": 1},
        settings={"epochs": 4, "labeled": 0.6},
        short={"epochs": 16, "batch_size": 12, "labeled": 1.0},
        short_clips=48,
        watch="recovery",
        partner="video",
    )

    def __init__(self, config: SpatialAudioConfig, spec: DataSpec):
        super().__init__(config, spec)
        kinds = {name: spec.streams[name].kind for name in ("audio", "video") if name in spec.streams}
        if kinds != {"audio": "audio", "video": "video"}:
            raise ConfigError("spatial audio needs sound and pictures, not features.")
        if spec.streams["audio"].shape[-1] != 2:
            raise ConfigError("spatial audio learns from stereo sound, and this has one channel.")
        self.eyes = _Eyes(config.look)
        height, width = (-(-side // 8) for side in spec.streams["video"].shape[-2:])
        self.tell = nn.Sequential(nn.Conv2d(config.look, config.told, 1), nn.ReLU())
        self.unet = UNet(
            inputs=3,
            outputs=4,
            widths=config.widths,
            condition="concat",
            condition_dim=config.told * height * width,
            output="complex",
            upsampling="transposed",
        )
        self.align = nn.Conv2d(config.look, config.widths[-2], 1)

    # -------------------------------------------------------------------------------------------------------- segments
    def _mono(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """x_M [B, L], brought to a root mean square of 0.1, and the factor [B] that did it."""
        audio = batch.audio
        wave = (audio.data.float() * audio.mask[:, :, None]).sum(2)
        count = audio.mask.sum(1).clamp(min=1)
        size = (wave.square().sum(1) / count).sqrt()
        factor = torch.where(size > 1e-6, 0.1 / size.clamp(min=1e-6), 0.0)
        return wave * factor[:, None], factor

    def _spectrum(self, wave: Tensor) -> Tensor:
        """[B, L] to [B, N, F, 2]: real and imaginary part."""
        return torch.view_as_real(stft(wave, n_fft=self.config.n_fft, hop=self.config.hop))

    def _starts(self, frames: int, rows: int, device: torch.device) -> Tensor:
        """First frame of each segment [B, S]: in training a few at random, else all, side by side."""
        steps, every = self.config.steps, -(-frames // self.config.steps)
        if not self.training:
            return (torch.arange(every, device=device) * steps).expand(rows, every)
        room = max(0, frames - steps)
        return torch.randint(0, room + 1, (rows, self.config.segments), device=device)

    def _cut(self, spectrum: Tensor, starts: Tensor) -> Tensor:
        """[B, N, ...] to the segments [B, S, steps, ...]; zeros before the beginning and behind the end."""
        at = starts[:, :, None] + torch.arange(self.config.steps, device=starts.device)
        inside = (at >= 0) & (at < spectrum.shape[1])
        rows = torch.arange(len(spectrum), device=starts.device)[:, None, None]
        found = spectrum[rows, at.clamp(0, spectrum.shape[1] - 1)]
        return found * inside.reshape(*inside.shape, *[1] * (spectrum.ndim - 2))

    def _segments(self, batch: Batch, mono: Tensor, starts: Tensor) -> Segments:
        c, (audio, video) = self.config, batch.require("audio", "video")
        kept = audio.mask[:, :: c.hop]
        middle = (starts + c.steps / 2) * c.hop / audio.rate  # seconds
        there = torch.arange(video.mask.shape[1], device=middle.device) / video.rate
        far = (there - middle[:, :, None]).abs().masked_fill(~video.mask[:, None], torch.inf)
        pictures = centered(in_unit_range(video))
        rows = torch.arange(len(pictures), device=middle.device)[:, None]
        nearest, changes = far.argmin(2), change_channels(in_unit_range(video), SIDE)
        spectrum = self._cut(self._spectrum(mono), starts)
        return Segments(spectrum, self._cut(kept, starts), pictures[rows, nearest], changes[rows, nearest])

    # --------------------------------------------------------------------------------------------------------- network
    def _heard(self, given: Segments) -> Heard:
        b, s = given.kept.shape[:2]
        spectrum, kept = given.spectrum.flatten(0, 1), given.kept.flatten(0, 1)
        frequency = torch.linspace(-1, 1, spectrum.shape[2], device=spectrum.device).expand(spectrum.shape[:3])
        seen = self.eyes(given.frames.flatten(0, 1), given.changes.flatten(0, 1))  # v
        read = Stream(torch.cat([spectrum, frequency[..., None]], 3), kept, self.config.sample_rate / self.config.hop)
        masks, deep = self.unet.with_deep(read, self.tell(seen).flatten(1))
        mask = torch.view_as_complex((masks.data[..., :2] - masks.data[..., 2:]).float().contiguous())  # M_L - M_R
        difference = torch.view_as_real(mask * torch.view_as_complex(spectrum.contiguous()))
        left = self._left(deep.data.float(), self.align(seen).float())
        patches = (deep.data.shape[1], deep.data.shape[2])
        return Heard(difference.unflatten(0, (b, s)), left.unflatten(0, (b, s)), patches)

    def _left(self, sound: Tensor, picture: Tensor) -> Tensor:
        """κ mean_xy C_k (w_L - w_R) [M, K] of the patches a [M, T', F', d] and the map v [M, d, h, w]."""
        a, v = normalize(sound.flatten(1, 2), dim=2), normalize(picture, dim=1)
        x = torch.linspace(-1, 1, v.shape[3], device=v.device)
        side = torch.sigmoid(-self.config.slope * x) - torch.sigmoid(self.config.slope * x)
        # The sum over the cells goes first: C is never formed.
        return self.config.sharpness * torch.einsum("mkd,md->mk", a, (v * side).mean((2, 3)))

    # -------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Predicted and true difference of the ears and the mono spectrum [B, S, N, F, 2], recorded frames [B, S, N],
        the logit of P_av [B, S, K] and which clips' two ears are used [B].
        """
        mono, factor = self._mono(batch)
        starts = self._starts(-(-mono.shape[1] // self.config.hop), len(mono), mono.device)
        given = self._segments(batch, mono, starts)
        heard = self._heard(given)
        encoded = {"difference": heard.difference, "mono": given.spectrum, "kept": given.kept, "left": heard.left}
        encoded["patches"] = torch.tensor(heard.patches, device=mono.device).expand(len(mono), 2)
        audio = batch.audio
        if audio.data.shape[2] != 2:
            raise BatchError("spatial audio learns from stereo sound, and this has one channel.")
        ears = audio.data.float() * audio.mask[:, :, None] * factor[:, None, None]
        encoded["truth"] = self._cut(self._spectrum(ears[:, :, 0] - ears[:, :, 1]), starts)
        # A share of the rows that does not depend on their order: multiples of the golden ratio fill [0, 1) evenly.
        encoded["labeled"] = (batch.index.double() * 0.6180339887498949) % 1 < self.config.labeled
        return encoded

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        labeled, kept = encoded["labeled"], encoded["kept"]
        rows = (kept & labeled[:, None, None])[..., None, None].float()
        gap = (encoded["difference"] - encoded["truth"]).square() * rows
        recovery = gap.sum() / (rows.sum() * gap.shape[3] * 2).clamp(min=1)
        known = torch.where(labeled[:, None, None, None, None], encoded["truth"], encoded["difference"])
        louder = self._louder(encoded["mono"], known, encoded["patches"][0])  # |S_L| - |S_R|
        logit, share = encoded["left"], torch.sigmoid(louder)
        entropy = softplus(logit) - share * logit
        return {"recovery": recovery, "consistency": self.config.consistency * entropy.mean()}

    @staticmethod
    def _louder(mono: Tensor, difference: Tensor, patches: Tensor) -> Tensor:
        """|S_L| - |S_R| of each patch [B, S, K], from sum and difference of the ears [B, S, N, F, 2]."""
        left, right = (torch.linalg.vector_norm(mono + sign * difference, dim=4) / 2 for sign in (1, -1))
        pooled = adaptive_avg_pool2d((left - right).flatten(0, 1)[:, None], tuple(patches.tolist()))
        return pooled.flatten(1).unflatten(0, mono.shape[:2])

    # ------------------------------------------------------------------------------------------------------ capability
    @torch.no_grad()
    def generate(self, batch: Batch, generator: torch.Generator) -> Stream:
        """Left and right [B, L, 2] of the sum of all channels given; segments overlap by half and are blended."""
        mono, factor = self._mono(batch)
        steps, length = self.config.steps, mono.shape[1]
        whole = pad(mono, (0, self.config.n_fft))  # so that the last samples lie under whole windows
        frames = -(-whole.shape[1] // self.config.hop)
        starts = torch.arange(-steps // 2, frames, steps // 2, device=mono.device).expand(len(mono), -1)
        audio = batch.audio._replace(mask=pad(batch.audio.mask, (0, self.config.n_fft)))
        longer = replace(batch, streams={**batch.streams, "audio": audio})
        found = self._heard(self._segments(longer, whole, starts)).difference
        blend = 1 - (torch.arange(steps, device=mono.device) + 0.5 - steps / 2).abs() / (steps / 2)
        total = mono.new_zeros(len(mono), frames + 2 * steps, *found.shape[3:])
        weight = mono.new_zeros(frames + 2 * steps)
        for i, start in enumerate((starts[0] + steps // 2).tolist()):
            total[:, start : start + steps] += found[:, i] * blend[:, None, None]
            weight[start : start + steps] += blend
        kept = slice(steps // 2, steps // 2 + frames)
        difference = (total[:, kept] / weight[kept, None, None]).contiguous()
        wave = istft(torch.view_as_complex(difference), n_fft=self.config.n_fft, hop=self.config.hop, length=length)
        ears = torch.stack([mono + wave, mono - wave], 2) / 2
        ears = ears / factor.clamp(min=1e-12)[:, None, None] * batch.audio.mask[:, :, None]
        return batch.audio._replace(data=torch.where(factor[:, None, None] > 0, ears, 0.0))
