"""LLA: are the sound and the picture of one clip in step? Co-attention reads each in the light of the other.

Claim: to tell a clip's own sound from the same sound a moment off, both towers must learn what happens when. The pair
is judged after co-attention, where every region of the picture looks at the sound and every moment of the sound at the
picture, and not by two vectors laid end to end:

    O = MHA(V → A),  V' = LN(V + O),  V'' = LN(V' + FF(V'))      visual-guided: V reads the sound
    the same of A → V: audio-guided; both at once: "cross"
    p = softmax(MLP([mean V'' ; mean A'' ; mean V ⊙ O_V ; mean A ⊙ O_A]))
    L = -½ mean log p₁ (own sound) - ½ mean log p₀ (wrong sounds)

The own sound is that of the same seconds. Wrong sounds are those of other clips (easy) and the clip's own of other
seconds (hard), whose share grows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.audio import LogMelConv, log_mel_stream
from avcl.encoders.conv2d import change_channels
from avcl.encoders.conv3d import VideoResNet
from avcl.encoders.resnet import wake
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.attention import FeedForward, MultiHeadAttention
from avcl.nn.cutting import cut, recorded_seconds, spread_starts, two_starts
from avcl.nn.pooling import masked_max, masked_mean
from avcl.nn.positions import SecondsEncoding
from avcl.objectives.schedules import Linear
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream

CARD = Card(
    title="Look, Listen, and Attend: Co-Attention Network for Self-Supervised Audio-Visual Representation Learning",
    year=2020,
    venue="ACM Multimedia",
    authors="Y. Cheng, R. Wang, Z. Pan, R. Feng, Y. Zhang",
    survey={
        "paper": "Cheng et al., 2020",
        "objective": "CE",
        "learning": "Semi-Supervised",
        "application": "Action Recognition",
        "metric": "ACC",
        "performance": "87.8/58.2",
        "datasets": "UCF101/HMDB51",
    },
    fidelity="reconstruction: the pretext (in step or not) and visual-guided, audio-guided and cross-modal "
    "co-attention as the abstract has them; all sizes, the clip length, the negatives and the head are ours.",
    deviations=(
        "The picture enters as gray, change and size of the change, 16 x 16: at full size the judgment of a small "
        "network had not left a blind guess after 200 steps.",
        "Attention sees at most 0.3 s to either side: what is in step is near in time.",
        "The head also reads how far every token agrees with what it read, and batch statistics center what it reads; "
        "means of tokens alone stayed at log 2.",
        "Three wrong sounds to each own one, weighted to balance; the share of wrong sounds from the same clip grows.",
        "AdamW on 1.5 s of sound and picture.",
        "Action is what an object is seen to do, told by a linear probe of the frozen tower; the paper fine-tunes.",
    ),
    original_license="none",
)

Guide = Literal["visual", "audio", "cross"]


@dataclass(frozen=True)
class LLAConfig(MediaConfig):
    """Settings of ``cheng2020_lla``."""

    size: tuple[int, ...] = (32, 32)
    batch_size: int = 32
    learning_rate: float = 3e-3
    guide: Guide = "cross"  # who reads the other
    seconds: float = 1.5  # of what is judged
    apart: float = 0.4  # seconds by which a hard negative is off, at least
    negatives: int = 3  # wrong sounds to each own one
    hard: float = 0.8  # at the end, share of the clips whose first wrong sound is a hard one
    rise: float = 0.5  # part of the training over which it rises from none
    side: int = 16  # pixels a side of the gray picture and its change, which the tower sees
    reach: float = 0.3  # seconds to either side that attention sees; 0: everything
    widths: tuple[int, ...] = (32, 64)  # of the stages of R(2+1)D
    dim: int = 64  # of a token
    heads: int = 4
    layers: int = 1  # of co-attention
    dropout: float = 0.0
    looks: int = 2  # parts, evenly spread, that the features of a clip are the mean of

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "seconds": (0.05, MAX),
        "apart": (0.0, MAX),
        "negatives": (1, 100),
        "hard": (0.0, 1.0),
        "rise": (0.0, 1.0),
        "side": (8, 512),
        "reach": (0.0, MAX),
        "widths": (1, MAX),
        "dim": (2, MAX),
        "heads": (1, MAX),
        "layers": (1, 100),
        "dropout": (0.0, 0.99),
        "looks": (1, 100),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, widths=(8, 12), dim=16, heads=2)


class Tokens(NamedTuple):
    """N things to look at in each clip: [B, N, dim], which were recorded [B, N], and the second of each [N]."""

    data: Tensor
    mask: Tensor
    seconds: Tensor


class Read(nn.Module):
    """One modality reads the other: ``X' = LN(X + MHA(X → Y))``, ``X'' = LN(X' + FF(X'))``.

    A token sees what lies at most ``reach`` seconds from it. Returns X'', how far each token agrees with what it read,
    ``mean X ⊙ MHA(X → Y)`` [B, dim], and the map [B, heads, N, M] (None unless asked for).
    """

    def __init__(self, dim: int, *, heads: int, reach: float, dropout: float):
        super().__init__()
        self.reach = reach
        self.attention = MultiHeadAttention(dim, heads=heads, dropout=dropout)
        self.feed = FeedForward(dim, hidden=2 * dim, dropout=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))

    def forward(self, x: Tokens, y: Tokens, *, return_attention: bool = False) -> tuple[Tokens, Tensor, Tensor | None]:
        near = (x.seconds[:, None] - y.seconds).abs() <= self.reach + 1e-6
        read, attended = self.attention(
            x.data, y.data, mask=y.mask, pairs=near[None], return_attention=return_attention
        )
        data = self.norms[0](x.data + read)
        data = self.norms[1](data + self.feed(data))
        agreement = masked_mean(x.data * read, x.mask)
        return x._replace(data=data.masked_fill(~x.mask[:, :, None], 0)), agreement, attended


class LLA(system.System):
    """Two towers that leave tokens, layers of co-attention, and a head that says in step or not."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = LLAConfig
    learns_from: ClassVar[tuple[str, ...]] = ("media",)
    config: LLAConfig
    trial: ClassVar[Trial | None] = Trial(
        task="probe",
        preset="retrieval",
        protocol={"labeled": 600, "target": "motion"},
        clips=1600,
        test=400,
        settings={"epochs": 6},
        short={"epochs": 10, "batch_size": 32},
        short_clips=64,
    )

    def __init__(self, config: LLAConfig, spec: DataSpec):
        super().__init__(config, spec)
        kinds = {name: spec.streams[name].kind for name in config.chosen(spec)}
        if sorted(kinds.values()) != ["audio", "video"]:
            raise ConfigError(f"LLA judges one sound and one moving picture, not {kinds}.")
        if config.guide not in ("visual", "audio", "cross"):
            raise ConfigError(f'guide = "{config.guide}" is not visual, audio or cross.')
        self.names = {kind: name for name, kind in kinds.items()}
        c, stages = config, len(config.widths)
        self.picture = VideoResNet(
            widths=c.widths,
            depths=(1,) * stages,
            strides=(2,) * stages,
            time_strides=(1,) * stages,
            factorized=True,
            stem_middle=16,
        )
        wake(self.picture)
        self.sound = LogMelConv(dim=c.dim)
        self.regions, self.moments = nn.Linear(self.picture.dim, c.dim), nn.Linear(self.sound.dim, c.dim)
        self.clock = SecondsEncoding(c.dim, longest=10.0)
        reach = c.reach or math.inf

        def reads(side: str) -> nn.ModuleList:
            layers = c.layers if c.guide in (side, "cross") else 0
            return nn.ModuleList(Read(c.dim, heads=c.heads, reach=reach, dropout=c.dropout) for _ in range(layers))

        self.video_reads, self.audio_reads = reads("visual"), reads("audio")
        told = (4 if c.guide == "cross" else 3) * c.dim
        hidden = nn.Linear(told, c.dim), nn.ReLU(), nn.Dropout(c.dropout)
        self.head = nn.Sequential(nn.BatchNorm1d(told), *hidden, nn.Linear(c.dim, 2))
        self.share = Linear(start=0.0, end=c.hard, over=max(c.rise, 1e-9))

    # ----------------------------------------------------------------------------------------------------------- towers
    def _cells(self, stream: Stream) -> Stream:
        """What the tower makes of gray, change and its size, which take the place of the three colors."""
        change = change_channels(stream, self.config.side)
        return self.picture.maps(stream._replace(data=change + 0.5))

    def _video(self, stream: Stream) -> Tokens:
        cells = self._cells(stream)
        coded = self.clock(cells._replace(data=self.regions(cells.data)))
        steps, places = coded.data.shape[1], coded.data.shape[2] * coded.data.shape[3]
        seconds = torch.arange(steps, device=coded.data.device).repeat_interleave(places) / coded.rate
        return Tokens(coded.data.flatten(1, 3), coded.mask.repeat_interleave(places, 1), seconds)

    def _audio(self, mel: Stream) -> Tokens:
        heard = self.sound.on_spectrum(mel)
        coded = self.clock(heard._replace(data=self.moments(heard.data)))
        return Tokens(coded.data, coded.mask, torch.arange(coded.data.shape[1], device=mel.data.device) / coded.rate)

    # --------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Tokens of the picture, of the sound of the same seconds, and of the sound of other seconds ("off")."""
        sound, picture = batch.require(self.names["audio"], self.names["video"])
        there = sound.mask.any(1) & picture.mask.any(1)
        room = torch.minimum(recorded_seconds(sound), recorded_seconds(picture)) - self.config.seconds
        room = torch.where(there, room, 0).clamp(min=0)
        if self.training:
            starts = two_starts(room, apart=self.config.apart, rate=self.config.fps)
        else:
            starts = spread_starts(room, 2, rate=self.config.fps)
        mel = log_mel_stream(sound)
        encoded = {"there": there, "can be off": room >= self.config.apart}
        for name, tokens in (
            ("video", self._video(cut(picture, starts[:, 0], self.config.seconds))),
            ("audio", self._audio(cut(mel, starts[:, 0], self.config.seconds))),
            ("off", self._audio(cut(mel, starts[:, 1], self.config.seconds))),
        ):
            seconds = tokens.seconds.expand(len(batch), -1)
            encoded |= {name: tokens.data, f"{name} mask": tokens.mask, f"{name} seconds": seconds}
        return encoded

    @staticmethod
    def tokens(encoded: Mapping[str, Tensor], rows: Tensor | slice = slice(None)) -> dict[str, Tokens]:
        """What ``encode`` returned (of some rows) as tokens: "video", "audio", "off"."""
        return {
            name: Tokens(encoded[name][rows], encoded[f"{name} mask"][rows], encoded[f"{name} seconds"][0])
            for name in ("video", "audio", "off")
        }

    def in_step(self, video: Tokens, audio: Tokens) -> Tensor:
        """Logits [B, 2]: not in step, in step."""
        agreed: list[Tensor] = []
        for number in range(self.config.layers):
            seen, heard, agreed = video, audio, []
            if len(self.video_reads):
                seen, agreement, _ = self.video_reads[number](video, audio)
                agreed.append(agreement)
            if len(self.audio_reads):
                heard, agreement, _ = self.audio_reads[number](audio, video)
                agreed.append(agreement)
            video, audio = seen, heard
        pooled = masked_mean(video.data, video.mask), masked_mean(audio.data, audio.mask)
        return self.head(torch.cat([*pooled, *agreed], 1))

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        there = encoded["there"]
        if not bool(there.any()):
            raise BatchError("no clip of the batch has both sound and picture.")

        sides = self.tokens(encoded, there)
        video, audio, off = sides["video"], sides["audio"], sides["off"]
        draws = torch.rand(len(video.data), generator=at.generator, device=at.generator.device).to(video.data.device)
        hard = (draws < self.share(at.progress)) & encoded["can be off"][there]
        sounds = [audio, *self._wrong(audio, off, hard)]
        times = len(sounds)  # all judged together, so that the statistics are those of right and wrong pairs
        seen = video._replace(data=video.data.repeat(times, 1, 1), mask=video.mask.repeat(times, 1))
        heard = audio._replace(data=torch.cat([s.data for s in sounds]), mask=torch.cat([s.mask for s in sounds]))
        logp = nn.functional.log_softmax(self.in_step(seen, heard), 1)
        return {"in_step": -0.5 * logp[: len(hard), 1].mean() - 0.5 * logp[len(hard) :, 0].mean()}

    def _wrong(self, audio: Tokens, off: Tokens, hard: Tensor) -> list[Tokens]:
        """For every clip ``negatives`` sounds that are not its own; the first from its other seconds where ``hard``."""
        if len(hard) == 1:
            return [off]
        found = []
        for number in range(self.config.negatives):
            by = number % (len(hard) - 1) + 1
            found.append(audio._replace(data=audio.data.roll(by, 0), mask=audio.mask.roll(by, 0)))
        data = torch.where(hard[:, None, None], off.data, found[0].data)
        found[0] = audio._replace(data=data, mask=torch.where(hard[:, None], off.mask, found[0].mask))
        return found

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """What the tower of one modality leaves, before co-attention: mean and maximum over its cells, and the mean
        over ``looks`` parts of the clip. [B, 2 · width]"""
        if modality not in self.names.values():
            raise ConfigError(f'this model has no "{modality}".', hint=did_you_mean(modality, set(self.names.values())))
        (stream,) = batch.require(modality)
        c = self.config
        starts = spread_starts((recorded_seconds(stream) - c.seconds).clamp(min=0), c.looks, rate=c.fps)
        seen = []
        for start in starts.T:
            if modality == self.names["video"]:
                cells = self._cells(cut(stream, start, c.seconds))
                data, mask = cells.data.flatten(2, 3), cells.mask
                parts = masked_mean(data, mask).mean(1), masked_max(data, mask).amax(1)
            else:
                heard = self.sound.on_spectrum(cut(log_mel_stream(stream), start, c.seconds))
                parts = masked_mean(heard.data, heard.mask), masked_max(heard.data, heard.mask)
            seen.append(torch.cat(parts, 1))
        return torch.stack(seen).mean(0).float()
