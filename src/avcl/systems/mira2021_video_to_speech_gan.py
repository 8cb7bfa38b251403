"""End-to-end video-to-speech synthesis: from the silent picture of a mouth to the waveform, without a vocoder.

Generator G: 3-D convolution and per-frame convolutions on the mouth, a bidirectional GRU over the frames, transposed
convolutions from frames to samples (their strides multiply to sample rate / frame rate). Two critics look at random
windows of w seconds: one at the wave, one at its log power spectrum P. With x the true and x̃ = G(v) the made sound

    critics      L_D = Σ_D  D(x̃) - D(x) + 10 (‖∇ D(x̂)‖ - 1)²                     (Wasserstein, gradient penalty)
    generator    L_G = λ_adv Σ_D -D(x̃) + λ_pow |P(x) - P(x̃)| + λ_mfcc |M(x) - M(x̃)| + λ_perc |φ(x) - φ(x̃)|

(Mira, Vougioukas, Ma, Petridis, Schuller, Pantic 2021), M the mel cepstrum, φ a fixed encoder of speech. The critics
come in when the spectrum stands, at ``adversary_from`` of the training.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, leaky_relu

from avcl import system
from avcl.dsp import log_mel, stft
from avcl.encoders.audio import LogMelConv
from avcl.encoders.decoders import WaveformDecoder, strides_for
from avcl.encoders.norm import ChannelNorm
from avcl.encoders.recurrent import Recurrent
from avcl.errors import BatchError, ConfigError
from avcl.nn.wave_discriminators import WaveDiscriminator
from avcl.objectives.adversarial import gradient_penalty, wgan_critic, wgan_generator
from avcl.seeds import seeded
from avcl.system import MAX, MediaConfig, Phase, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream

BANDS, PARTS = 40, 4  # mel bands, and mel frames of a picture
LOUDNESS = 0.05  # root mean square of what is generated
LEVEL, SPREAD = -10.5, 2.5  # about the mean and deviation of ln mel power of speech: targets of unit size


CARD = Card(
    title="End-to-end video-to-speech synthesis using generative adversarial networks",
    year=2021,
    venue="arXiv 2104.13332; IEEE Transactions on Cybernetics 2022",
    authors="R. Mira, K. Vougioukas, P. Ma, S. Petridis, B. Schuller, M. Pantic",
    survey={
        "paper": "Mira et al., 2021",
        "objective": "Adv.L",
        "learning": "Unsupervised",
        "application": "Video-2-Speech Generation",
        "metric": "WER",
        "performance": "23.1/42.5",
        "datasets": "GRID/LRW",
    },
    paper=(),
    fidelity="reconstruction: no code was released; the blocks follow the published diagram (3-D front end, per-frame "
    "trunk, BiGRU, transposed convolutions, wave and power critics, WGAN-GP) and the abstract's list of losses, their "
    "sizes are ours.",
    deviations=(
        "8 kHz, a mouth crop of 24 pixels and tens of thousands of parameters: what two cores train in minutes.",
        "The perceptual encoder is a fixed random one, not a pre-trained speech encoder: nothing may be downloaded.",
        "A linear head announces the log-mel of every frame, and the decoder reads it: in a training of minutes the "
        "gradient through the wave alone does not teach the picture tower.",
        "The weights of the losses are ours; those of the paper could not be verified.",
        "The critics play in the last part of the training only: before, there is nothing to polish.",
    ),
    original_license="none released",
)


@dataclass(frozen=True)
class MiraConfig(MediaConfig):
    """Settings of ``mira2021_video_to_speech_gan``."""

    epochs: int = 40
    batch_size: int = 16
    learning_rate: float = 1.5e-3
    fps: float = 25.0
    size: tuple[int, ...] = (64, 64)
    sample_rate: int = 8000
    mouth: tuple[float, ...] = (0.5, 0.95, 0.25, 0.75)  # where it is: top, bottom, left, right, shares of the picture
    side: int = 24  # pixels of the mouth crop
    width: int = 24  # of the picture tower
    hidden: int = 64  # of the GRU, each direction
    decoder: int = 48  # channels at the frame rate, halved with every stride
    clip: float = 0.8  # seconds of the window that losses and critics look at
    envelope: float = 10.0  # of the log-mel that the frames announce
    power: float = 0.5  # λ_pow
    mfcc: float = 1.0  # λ_mfcc
    perceptual: float = 1.0  # λ_perc
    adversarial: float = 0.05  # λ_adv
    penalty: float = 10.0
    adversary_from: float = 0.7  # progress at which the critics come in

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "mouth": (0.0, 1.0),
        "side": (8, 512),
        "width": (4, MAX),
        "hidden": (1, MAX),
        "decoder": (8, MAX),
        "clip": (0.1, MAX),
        "envelope": (0.0, MAX),
        "power": (0.0, MAX),
        "mfcc": (0.0, MAX),
        "perceptual": (0.0, MAX),
        "adversarial": (0.0, MAX),
        "penalty": (0.0, MAX),
        "adversary_from": (0.0, 1.0),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mouth) != 4 or self.mouth[0] >= self.mouth[1] or self.mouth[2] >= self.mouth[3]:
            raise ConfigError(f"mouth = {self.mouth} must be top < bottom and left < right, shares of the picture.")
        if self.sample_rate / self.fps % PARTS:
            raise ConfigError(f"{self.sample_rate} samples a second at {self.fps} fps must be a multiple of {PARTS}.")

    @classmethod
    def tiny(cls) -> Self:
        small = {"size": (24, 24), "side": 12, "width": 4, "hidden": 8, "decoder": 8, "fps": 5.0, "sample_rate": 1000}
        return cls(epochs=1, batch_size=4, window=1.0, clip=0.6, adversary_from=0.0, **small)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ networks
class Mouth(nn.Module):
    """Video [B, T, 3, H, W] to [B, T, dim]: mouth crop, a 3-D convolution over 5 frames, then frame by frame."""

    def __init__(self, crop: tuple[float, ...], side: int, width: int, dim: int):
        super().__init__()
        self.crop, self.side, self.dim = crop, side, dim
        self.front = nn.Conv3d(3, width, (5, 5, 5), (1, 2, 2), (2, 2, 2))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in ((width, 2 * width), (2 * width, 2 * width)))
        self.norms = nn.ModuleList([ChannelNorm(width), ChannelNorm(2 * width), ChannelNorm(2 * width)])
        cells = math.ceil(side / 8) ** 2
        self.last = nn.Linear(2 * width * cells, dim)

    def forward(self, video: Stream) -> Stream:
        x, (top, bottom, left, right) = video.data, self.crop
        height, wide = x.shape[3:]
        x = x[..., int(top * height) : math.ceil(bottom * height), int(left * wide) : math.ceil(right * wide)]
        x = nn.functional.interpolate(x.flatten(0, 1), (self.side, self.side), mode="area").unflatten(0, x.shape[:2])
        recorded = video.mask[:, :, None, None, None]
        mean = (x * recorded).sum((1, 3, 4), keepdim=True) / (recorded.sum(1, keepdim=True) * self.side**2).clamp(min=1)
        x = ((x - mean) * recorded).transpose(1, 2)  # [B, 3, T, side, side], without the colors of the clip
        x = gelu(self.norms[0](self.front(x)))
        x = x.transpose(1, 2).flatten(0, 1)
        for conv, norm in zip(self.convs, self.norms[1:], strict=True):
            x = gelu(norm(conv(x)))
        x = self.last(x.flatten(1)).unflatten(0, video.mask.shape)
        return Stream(x * video.mask[:, :, None], video.mask, video.rate)


class PowerCritic(nn.Module):
    """Log power [B, N, F] to a score a patch; no normalization, for the penalty is one item's own."""

    def __init__(self, width: int = 16):
        super().__init__()
        widths = (1, width, 2 * width, 2 * width)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 5, 2, 2) for i, o in itertools.pairwise(widths))
        self.score = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, power: Tensor) -> Tensor:
        x = power[:, None] / 5
        for conv in self.convs:
            x = leaky_relu(conv(x), 0.2)
        return self.score(x).flatten(1)


class VideoToSpeechGAN(system.System):
    """G from frames to samples, a wave critic and a power critic."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = MiraConfig
    learns_from: ClassVar[tuple[str, ...]] = ("media",)
    targets: ClassVar[tuple[str, ...]] = ("audio",)
    trial: ClassVar[Trial | None] = Trial(
        task="speech",
        preset="speech",
        streams=("audio", "video", "transcript"),
        knobs={"persons": 4, "motion": 0.0, "noise": 1.0},
        clips=1000,
        test=120,
        fresh=False,
        protocol={"judge_epochs": 30},
        settings={
            "width": 16,
            "hidden": 96,
            "learning_rate": 3e-3,
            "warmup": 0.25,
            "epochs": 12,
            "clip": 0.32,
            "adversary_from": 0.9,
        },
        short={"epochs": 8, "adversary_from": 1.0},
        short_clips=32,
        watch="envelope",
        partner="video",
    )
    config: MiraConfig
    cosines: Tensor

    def __init__(self, config: MiraConfig, spec: DataSpec):
        super().__init__(config, spec)
        for name in ("audio", "video"):
            if name not in spec.streams or spec.streams[name].kind != name:
                raise ConfigError(f"mira2021_video_to_speech_gan learns from media with sound and picture, not {name}.")
        c = config
        self.mouth = Mouth(c.mouth, c.side, c.width, c.hidden)
        self.level = ChannelNorm(c.hidden)
        self.gru = Recurrent(c.hidden, hidden=c.hidden)
        strides = strides_for(c.fps, c.sample_rate)
        wide = max(c.decoder, 2 ** len(strides))
        self.envelope = nn.Linear(self.gru.dim, PARTS * BANDS)
        self.decoder = WaveformDecoder(self.gru.dim + PARTS * BANDS, strides=strides, width=wide, kernels=(3,))
        self.wave_critic = WaveDiscriminator(widths=(8, 16, 32, 32), norm="none")
        self.power_critic = PowerCritic()
        with seeded(0, "perceptual"):  # the same fixed encoder in every model, whatever its seed
            self.perceived = LogMelConv(dim=64).requires_grad_(False)
        bands = torch.arange(BANDS)
        self.register_buffer("cosines", torch.cos(math.pi / BANDS * (bands[:, None] + 0.5) * torch.arange(20)))

    # -------------------------------------------------------------------------------------------------------- learning
    def made(self, video: Stream) -> Stream:
        """The sound of the whole clip: [B, T · samples a frame, 1]."""
        return self.decoder(self._read(video)[0])

    def _read(self, video: Stream) -> tuple[Stream, Tensor]:
        """What the decoder reads at every frame, and the log-mel that the frames announce [B, T · 4, 40]."""
        seen = self.mouth(video)
        frames = self.gru(
            seen._replace(data=self.level(seen.data.transpose(1, 2)).transpose(1, 2) * seen.mask[..., None])
        )
        envelope = self.envelope(frames.data)
        read = torch.cat([frames.data, envelope], 2) * frames.mask[:, :, None]
        return frames._replace(data=read), envelope.unflatten(2, (PARTS, BANDS)).flatten(1, 2)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """The log-mel of the whole clip, announced and true [B, T · 4, 40] and where it is recorded [B, T · 4]; and a
        window of ``clip`` seconds, made and true [B, L]: a random one in training, else the first."""
        sound, video = batch.require("audio", "video")
        read, envelope = self._read(video)
        frames = read.mask.shape[1]
        hop = round(self.config.sample_rate / self.config.fps)
        true = sound.data.mean(2) * sound.mask
        power = true.square().sum(1, keepdim=True) / sound.mask.sum(1, keepdim=True).clamp(min=1)
        true = true * LOUDNESS / power.sqrt().clamp(min=1e-4)  # how loud a clip is cannot be seen
        true = nn.functional.pad(true, (0, max(0, frames * hop - true.shape[1])))[:, : frames * hop]
        heard = nn.functional.pad(sound.mask, (0, max(0, frames * hop - sound.mask.shape[1])))[:, : frames * hop]
        mel = self._mel(true, hop=hop // PARTS)[:, : envelope.shape[1]]
        steps = min(round(self.config.clip * video.rate), frames)
        first = torch.randint(frames - steps + 1, (len(batch),)) if self.training else torch.zeros(len(batch)).long()
        rows = (first[:, None] + torch.arange(steps)).to(read.mask.device)
        each = torch.arange(len(batch), device=rows.device)[:, None]
        fake = self.decoder(Stream(read.data[each, rows], read.mask[each, rows], read.rate)).data[:, :, 0]
        at = (rows[:, :, None] * hop + torch.arange(hop, device=rows.device)).flatten(1)
        known = read.mask.repeat_interleave(PARTS, 1) & heard.unflatten(1, (-1, hop // PARTS)).all(2)
        return {"fake": fake, "real": true.gather(1, at), "envelope": envelope, "mel": mel, "known": known}

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """The generator's terms at its turn, the critics' at theirs; all of them where it is nobody's."""
        c, fake, real = self.config, encoded["fake"].float(), encoded["real"].float()
        if fake.shape[1] < 64:
            raise BatchError("the window holds fewer than 64 samples.", hint="Set clip to more seconds.")
        terms: dict[str, Tensor] = {}
        if at.turn != "critics":
            power_fake, power_real = self.log_power(fake), self.log_power(real)
            known = encoded["known"]
            if not bool(known.any()):
                raise BatchError("no moment of these clips has both sound and picture.")
            away = (encoded["envelope"].float() - encoded["mel"]).abs().mean(2)
            terms["envelope"] = c.envelope * away[known].mean()
            terms["power"] = c.power * (power_fake - power_real).abs().mean()
            terms["mfcc"] = c.mfcc * (self.cepstrum(fake) - self.cepstrum(real)).abs().mean()
            terms["perceptual"] = c.perceptual * (self._features(fake) - self._features(real)).abs().mean()
            on = float(at.progress >= c.adversary_from)
            terms["adversarial"] = (
                on * c.adversarial * (wgan_generator(self._heard(fake)) + wgan_generator(self.power_critic(power_fake)))
            )
        if at.turn != "generator":
            fake = fake.detach()
            power_fake, power_real = self.log_power(fake), self.log_power(real)
            wave = wgan_critic(self._heard(real), self._heard(fake))
            terms["critics"] = wave + wgan_critic(self.power_critic(power_real), self.power_critic(power_fake))
            slope = gradient_penalty(self._heard, real, fake, generator=at.generator)
            slope = slope + gradient_penalty(self.power_critic, power_real, power_fake, generator=at.generator)
            terms["penalty"] = c.penalty * slope
        return terms

    def phases(self) -> tuple[Phase, ...]:
        generator = [
            *self.mouth.parameters(),
            *self.level.parameters(),
            *self.gru.parameters(),
            *self.decoder.parameters(),
        ]
        generator += self.envelope.parameters()
        critics = [*self.wave_critic.parameters(), *self.power_critic.parameters()]
        comparing = ("envelope", "power", "mfcc", "perceptual", "adversarial")
        start = min(self.config.adversary_from, 0.999)
        return (
            Phase("critics", critics, ("critics", "penalty"), {"learning_rate": 1e-3}, start=start),
            Phase("generator", generator, comparing),
        )

    def log_power(self, wave: Tensor) -> Tensor:
        """ln |STFT|² [B, N, F], frames of 32 ms every 10 ms."""
        size = 1 << max(4, round(0.032 * self.config.sample_rate).bit_length() - 1)
        spectrum = stft(wave, n_fft=size, hop=max(1, round(0.01 * self.config.sample_rate)))
        return (spectrum.real.square() + spectrum.imag.square() + 1e-5).log()

    def cepstrum(self, wave: Tensor) -> Tensor:
        """20 mel-frequency cepstral coefficients [B, N, 20]."""
        return self._mel(wave, hop=max(1, round(0.01 * self.config.sample_rate))) @ self.cosines / BANDS**0.5

    def _mel(self, wave: Tensor, *, hop: int) -> Tensor:
        rate = self.config.sample_rate
        size = 1 << max(8, round(0.032 * rate).bit_length() - 1)
        return (log_mel(wave, sample_rate=rate, n_fft=size, hop=hop, n_mels=BANDS, floor=1e-6) - LEVEL) / SPREAD

    def _features(self, wave: Tensor) -> Tensor:
        mask = torch.ones_like(wave, dtype=torch.bool)
        return self.perceived(Stream(wave[..., None], mask, float(self.config.sample_rate))).data

    def _heard(self, wave: Tensor) -> Tensor:
        mask = torch.ones_like(wave, dtype=torch.bool)
        scores = self.wave_critic(Stream(wave[..., None], mask, float(self.config.sample_rate))).scores.data
        return scores.flatten(1)

    # ------------------------------------------------------------------------------------------------------ capability
    @torch.no_grad()
    def generate(self, batch: Batch, generator: torch.Generator) -> Stream:
        """The sound of the picture [B, T · samples a frame, 1]; nothing is drawn, so ``generator`` is not used."""
        return self.made(batch.video)
