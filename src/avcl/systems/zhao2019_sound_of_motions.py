"""The Sound of Motions: who moves how says which part of the mixture is whose.

Claim: motion separates sounds that appearance cannot tell apart, two instruments of one kind (Zhao et al. 2019).

    w_t = flow(I_t, I_{t+1}),   dP_t = w_t(G_t),   G_{t+1} = G_t + dP_t,   G_0 the grid     dense trajectories
    m = CNN3D(dP),   a = CNN(I_1),   A = σ(conv(a))                 motion [T, H', W'], appearance, attention
    c_t = BN(max over cells of MLP([A · m_t ; a]))                  what is seen at time t
    z = U-Net(log X_mix) with  y = (1 + γ(c_t)) x + β(c_t)  at its bottleneck, one pair (γ, β) per time step
    L = mean_s Σ_tf BCE(σ(z_s), M_s),   M_s = 1[X_s ≥ X_n for all n]

Displacements, not positions, go into the network, so a trajectory is the same wherever it lies; the first frame alone
gives the appearance, whose cells are the points at which the trajectories begin. Training may begin with any two clips
of the data and go on with clips of one class (``curriculum``), where nothing but motion is left to go by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, gelu, interpolate, pad

from avcl import system
from avcl.dsp.flow import lucas_kanade, trajectories
from avcl.encoders.conv2d import centered
from avcl.encoders.norm import ChannelNorm
from avcl.encoders.resnet import ResidualTrunk, wake
from avcl.encoders.unet import UNet
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.separation import Decision, MixAndSeparate, mono, partners, picture_of
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream

CARD = Card(
    title="The Sound of Motions",
    year=2019,
    venue="ICCV",
    authors="H. Zhao, C. Gan, W.-C. Ma, A. Torralba",
    survey={
        "paper": "Zhao et al., 2019",
        "objective": "CE",
        "learning": "Semi-Supervised",
        "application": "Sound Separation",
        "metric": "SDR",
        "performance": "8.31",
        "datasets": "MUSIC",
    },
    paper=(
        "MUSIC-21, mixtures of two different instruments, RGB and trajectories: SDR 8.31, SIR 14.82, SAR 13.11 dB "
        "(table 1; BSS Eval v3)",
    ),
    fidelity="paper: no code was released; trajectories, attention, fusion, FiLM per time step, target and loss follow "
    "the text, widths and towers are our own.",
    deviations=(
        "Lucas-Kanade on a three-level pyramid instead of PWC-Net: it suits small pictures, and nothing is downloaded.",
        "Displacements are divided by a sixteenth of the picture and cut at ±1: raw pixels saturate the network.",
        "A residual 3-D network of two stages instead of I3D, two convolutions from scratch instead of an ImageNet "
        "ResNet-18; one learning rate for all.",
        "What is seen is batch-normalized over all times of all clips: what untrained codes have in common says "
        "nothing of who is whose.",
        "8 kHz, 2 s, U-Net of four levels instead of 11 kHz, 3 s, six levels; 12.5 frames a second instead of 8, since "
        "the world's motions are faster than a bow.",
        "Logarithmic frequencies and the energy weight of Zhao et al. 2018, which this paper does not mention.",
        "Sounds are brought to one level before they are mixed; soft masks by default.",
        "Of the curriculum's stages the third, two shots of one long video, is left out.",
        "AdamW with warm-up and cosine instead of SGD.",
    ),
)


@dataclass(frozen=True)
class SoundOfMotionsConfig(MediaConfig):
    """Settings of ``zhao2019_sound_of_motions``."""

    batch_size: int = 16
    learning_rate: float = 3e-3
    fps: float = 12.5
    size: tuple[int, ...] = (48, 48)
    sample_rate: int = 8000
    window: float = 2.0
    fft: int = 512
    hop: int = 256
    bands: int = 64  # rows of the logarithmic frequency axis
    widths: tuple[int, ...] = (16, 32, 64, 64)  # of the U-Net
    motion: tuple[int, ...] = (16, 32)  # widths of the 3-D network
    appearance: tuple[int, ...] = (32, 64)  # widths of the frame network
    seen: int = 32  # K_v
    shrink: int = 2  # pictures are averaged over so many pixels before motion is looked for
    sources: int = 2  # in a mixture of the training
    rounds: int = 2  # how often each clip of a batch is mixed, with another partner each time
    curriculum: tuple[str, ...] = ("any",)  # who is mixed: any, other, same (class); equal parts of the training
    weighted: bool = True  # louder bins count more
    decision: Decision = "soft"

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "fft": (16, MAX),
        "hop": (1, MAX),
        "bands": (2, MAX),
        "widths": (1, MAX),
        "motion": (1, MAX),
        "appearance": (1, MAX),
        "seen": (1, MAX),
        "shrink": (1, 16),
        "sources": (2, 8),
        "rounds": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        small: dict[str, Any] = {"size": (32, 32), "window": 0.5, "fps": 8.0, "bands": 16, "fft": 128, "hop": 64}
        return cls(epochs=2, batch_size=8, widths=(4, 6), motion=(4, 6), appearance=(4, 6), seen=6, **small)


class _Motion(nn.Module):
    """Video [B, T, 3, H, W] to motion features [B, T, H', W', K_m] of its dense trajectories, and their mask [B, T].

    Step t is the motion from frame t to the next; the last frame has none.
    """

    def __init__(self, widths: Sequence[int], shrink: int):
        super().__init__()
        self.shrink = shrink
        stem = nn.Conv3d(2, widths[0], (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2), bias=False)
        pairs = zip(widths, widths[1:] or widths, strict=False)
        blocks = [[_cube(i, o, stride=2 if n == 0 else 1), _cube(o, o)] for n, (i, o) in enumerate(pairs)]
        self.trunk = ResidualTrunk([stem], blocks)
        self.dim = self.trunk.dim

    def forward(self, video: Stream) -> tuple[Tensor, Tensor]:
        moved, mask = self.displacements(video)
        cells, _ = self.trunk(moved.permute(0, 4, 1, 2, 3), mask)
        return cells.permute(0, 2, 3, 4, 1), mask

    @torch.no_grad()
    def displacements(self, video: Stream) -> tuple[Tensor, Tensor]:
        """Dense trajectories [B, T, h, w, 2] in sixteenths of the picture, within [-1, 1], and their mask."""
        data, mask = video.data.float(), video.mask
        size = (max(8, data.shape[3] // self.shrink), max(8, data.shape[4] // self.shrink))
        gray = adaptive_avg_pool2d(data.mean(2), size)
        ends = gray[:, :-1].flatten(0, 1), gray[:, 1:].flatten(0, 1)
        both = mask[:, :-1] & mask[:, 1:]
        flow = lucas_kanade(*ends).unflatten(0, both.shape) if both.numel() else gray.new_zeros(*both.shape, *size, 2)
        flow = flow * both[:, :, None, None, None]
        moved = trajectories(flow) if flow.shape[1] else flow
        scale = moved.new_tensor([16 / size[1], 16 / size[0]])
        moved = (moved * scale).clamp(-1, 1) * both[:, :, None, None, None]
        return pad(moved, (0, 0, 0, 0, 0, 0, 0, 1)), pad(both, (0, 1))


def _cube(inside: int, outside: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inside, outside, 3, stride=(1, stride, stride), padding=1, bias=False)


class _Appearance(nn.Module):
    """A frame [B, 3, H, W] to cells [B, K_a, H / 8, W / 8]: patches of 4 x 4, then a strided convolution."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        kernels = [(7, 4), *[(3, 2 if n == 0 else 1) for n in range(len(widths) - 1)]]
        pairs = zip((3, *widths), widths, kernels, strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, stride=s, padding=k // 2) for i, o, (k, s) in pairs)
        self.norms = nn.ModuleList(ChannelNorm(w) for w in widths)
        self.dim = widths[-1]

    def forward(self, frame: Tensor) -> Tensor:
        x = frame.to(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = gelu(norm(conv(x)))
        return x


class _Seen(nn.Module):
    """Video to what is seen at each time, a Stream [B, T, K_v]: appearance attends to motion, both are fused."""

    def __init__(self, config: SoundOfMotionsConfig):
        super().__init__()
        c = config
        self.motion, self.appearance = _Motion(c.motion, c.shrink), _Appearance(c.appearance)
        wake(self.motion)
        self.attention = nn.Conv2d(self.appearance.dim, 1, 1)
        self.fuse = nn.Linear(self.motion.dim + self.appearance.dim, 2 * c.seen)
        self.norm = nn.LayerNorm(2 * c.seen)
        self.last = nn.Linear(2 * c.seen, c.seen)

    def forward(self, video: Stream) -> Stream:
        moved, mask = self.motion(video)
        first = centered(Stream(video.data[:, :1], video.mask[:, :1], video.rate))[:, 0]
        looks = self.appearance(first)  # [B, K_a, H', W']
        if looks.shape[2:] != moved.shape[2:4]:
            looks = interpolate(looks, moved.shape[2:4], mode="bilinear", align_corners=False)
        where = torch.sigmoid(self.attention(looks)).permute(0, 2, 3, 1)[:, None]  # A: [B, 1, H', W', 1]
        still = looks.permute(0, 2, 3, 1)[:, None].expand(-1, moved.shape[1], -1, -1, -1)
        cells = self.last(gelu(self.norm(self.fuse(torch.cat([where * moved, still], -1)))))
        return Stream(cells.amax((2, 3)).float() * mask[:, :, None], mask, video.rate)


class SoundOfMotions(system.System):
    """Trajectories, appearance, fusion and a U-Net under FiLM; ``separate`` is what it can."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = SoundOfMotionsConfig
    learns_from: ClassVar[tuple[str, ...]] = ("media",)
    trial: ClassVar[Trial] = Trial(
        task="separation",
        preset="separation",
        clips=1600,
        test=128,
        settings={"epochs": 4, "curriculum": ("other",), "precision": "bf16"},
        short={"epochs": 30, "size": (32, 32), "fps": 8.0, "window": 1.0, "bands": 32, "widths": (8, 16, 16)},
        short_clips=32,
        partner="video",
    )
    config: SoundOfMotionsConfig

    def __init__(self, config: SoundOfMotionsConfig, spec: DataSpec):
        super().__init__(config, spec)
        c, known = config, ("any", "other", "same")
        for stage in c.curriculum or ("",):
            if stage not in known:
                raise ConfigError(f'"{stage}" is no stage of a curriculum.', hint=did_you_mean(stage, known))
        self.front = MixAndSeparate(c.fft, c.hop, c.bands, weighted=c.weighted, decision=c.decision)
        self.seen = _Seen(c)
        self.normalize = nn.BatchNorm1d(c.seen)
        self.unet = UNet(widths=c.widths, condition="film", condition_dim=c.seen, standardize=True)

    # --------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """The wave [B, L], where it was recorded, and what is seen when: [B, T, K_v], its mask, [B, T]."""
        sound, video = batch.require("audio", "video")
        seen = self.seen(video)
        return {"wave": mono(sound), "recorded": sound.mask, "seen": seen.data, "known": seen.mask}

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """Mixtures within the batch, and the error of their masks."""
        c = self.config
        stage: Any = c.curriculum[min(int(at.progress * len(c.curriculum)), len(c.curriculum) - 1)]
        rows = partners(batch.label, at.generator, sources=c.sources, pairing=stage, rounds=c.rounds)
        mixed = self.front.mixed(encoded["wave"], encoded["recorded"], c.sample_rate, rows)
        seen, known = self._normal(encoded["seen"], encoded["known"]), encoded["known"]
        guides = [Stream(seen[r], known[r], c.fps) for r in rows.unbind(1)]
        return {"mask": self.front.loss(self._logits(mixed.seen, guides), mixed)}

    def _normal(self, seen: Tensor, known: Tensor) -> Tensor:
        """[B, T, K_v], of mean 0 and variance 1 over all times of all clips; zeros where nothing is known."""
        if not bool(known.any()):
            return seen
        out = torch.zeros_like(seen)
        out[known] = self.normalize(seen[known])
        return out

    def _logits(self, spectrum: Stream, guides: Sequence[Stream]) -> Tensor:
        """[B, N, R, S]: one pass of the U-Net for each guide."""
        count = len(guides)
        several = Stream(spectrum.data.repeat(count, 1, 1, 1), spectrum.mask.repeat(count, 1), spectrum.rate)
        steered = Stream(torch.cat([g.data for g in guides]), torch.cat([g.mask for g in guides]), guides[0].rate)
        out = self.unet(several, steered).data[..., 0]
        return torch.stack(out.chunk(count), -1)

    # ------------------------------------------------------------------------------------------------------- capability
    @torch.no_grad()
    def separate(self, mixture: Stream, guides: Sequence[Batch]) -> Tensor:
        """The part of ``mixture`` [B, T, C] that belongs to the picture of each guide: [B, S, T, C]."""
        if not guides:
            raise BatchError("separation needs a guide for every source.")
        seen = [self.seen(picture_of(guide)) for guide in guides]
        seen = [stream._replace(data=self._normal(stream.data, stream.mask)) for stream in seen]
        return self.front.separated(mixture, lambda spectrum: self._logits(spectrum, seen))
