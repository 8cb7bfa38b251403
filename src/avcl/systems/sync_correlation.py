"""Lag by cross-correlation of two learned tracks: where does the sound fit the picture best?

Claim: what happens is seen and heard, so the lag between sound and picture is where two learned signals of events
agree. The picture becomes a track v [T, C], the sound a track a [T, C], both on one grid of h = 20 ms and each with
mean 0 over the clip; the score of the lag δ is their cross-correlation

    s(δ) = γ Σ_t <v(t), a(t + δ)>          p(δ | clip) = softmax over the lags

(δ above zero: the sound is late). Training maximizes log p at the true lag, which lies between two lags of the grid
and is shared between them, so that p is a density and its confidence means something; the sound of another clip of the
batch, and a picture that stands still, are to give the flat posterior, so that "undecidable" can be said:

    L = -log p(δ*) + λ · mean over lags of -log p(δ | picture of one clip, sound of another)

Where the clip knows its lag (extras "offset": the generated world, ``avcl.data.shifted``) that is δ*. A clip that
knows of none, or of exactly 0 (any folder of videos), is taken to be in time and its sound is moved inside of the
window by a random lag. Only the middle of it is kept: whatever the lag, the same seconds of the clock are heard, so the
edge of the sound does not tell it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.audio import log_mel_stream
from avcl.encoders.conv2d import ChangeConv
from avcl.encoders.norm import ChannelNorm
from avcl.errors import ConfigError
from avcl.nn.pooling import masked_mean, strided_mask
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream

CARD = Card(
    title="Lag by cross-correlation of learned tracks",
    year=2025,
    venue="this library",
    authors="avcl",
    fidelity="reconstruction: of no paper, and no row of Table 1; the textbook estimator of a delay, with learned "
    "signals in place of raw ones, made so that the verb sync has a system.",
    deviations=(
        "Nothing to deviate from: synchronization networks of the literature classify windows of a fixed few lags "
        "with far larger towers; correlation gives every lag of a continuous range from one pass.",
    ),
)


@dataclass(frozen=True)
class SyncCorrelationConfig(MediaConfig):
    """Settings of ``sync_correlation``."""

    epochs: int = 20
    batch_size: int = 48
    learning_rate: float = 2e-3
    fps: float = 25.0
    size: tuple[int, ...] = (32, 32)
    window: float = 2.0
    search: float = 0.4  # seconds either way by which the sound is moved where clips do not know their lag
    margin: float = 0.08  # further lags on each side that training scores: a lag at the end of ±search has neighbors
    step: float = 0.02  # seconds from one lag to the next; a whole number of them makes a frame
    channels: int = 16  # of the tracks
    side: int = 32  # pixels a side of the gray picture that is looked at
    bands: int = 40  # of the log-mel
    unrelated: float = 0.3  # λ, weight of the pairs that do not belong together
    blind: float = 0.1  # share of the training clips whose picture is made to stand still

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "search": (0.02, MAX),
        "margin": (0.0, MAX),
        "step": (0.001, 1.0),
        "channels": (1, MAX),
        "side": (16, 256),
        "bands": (8, 256),
        "unrelated": (0.0, MAX),
        "blind": (0.0, 0.9),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        per_frame = 1 / (self.fps * self.step)
        if per_frame < 0.999 or abs(per_frame - round(per_frame)) > 1e-3:
            raise ConfigError(
                f"a frame of {1000 / self.fps:g} ms is no whole number of lags of {self.step * 1000:g} ms."
            )
        if self.window <= 2 * self.search:
            raise ConfigError(f"window = {self.window:g} s must be longer than twice search = {self.search:g} s.")

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, window=1.0, search=0.2, channels=4, side=16, bands=16)


class SeenTrack(nn.Module):
    """Video [B, T, 3, H, W] to [B, T · up, C]: motion of small gray frames; a frame gives ``up`` steps of the track."""

    def __init__(self, channels: int, side: int, up: int):
        super().__init__()
        self.motion, self.up = ChangeConv(side=side, widths=(16, 32)), up
        self.norm = nn.LayerNorm(self.motion.dim)
        self.head = nn.Linear(self.motion.dim, channels * up)

    def forward(self, stream: Stream) -> Stream:
        seen = self.motion(stream)
        x = self.head(nn.functional.gelu(self.norm(seen.data)))
        x = x.unflatten(2, (self.up, -1)).flatten(1, 2)
        return Stream(x, seen.mask.repeat_interleave(self.up, 1), seen.rate * self.up)


class HeardTrack(nn.Module):
    """Audio [B, L, channels] to [B, T, C]: log-mel at twice the rate of the track, convolutions over time."""

    def __init__(self, channels: int, bands: int, step: float, dim: int = 64):
        super().__init__()
        self.bands, self.step = bands, step
        self.first = nn.Conv1d(bands, dim, 5, stride=2, padding=2)
        self.norms = nn.ModuleList(ChannelNorm(dim) for _ in range(2))
        self.times = nn.ModuleList(nn.Conv1d(dim, dim, 5, padding=2) for _ in range(2))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, channels)

    def forward(self, stream: Stream) -> Stream:
        mel = log_mel_stream(stream, bands=self.bands, hop=self.step / 2)
        mask = strided_mask(mel.mask, 2)
        x = self.first(mel.data.transpose(1, 2)) * mask[:, None]
        for norm, conv in zip(self.norms, self.times, strict=True):
            x = (x + conv(nn.functional.gelu(norm(x)) * mask[:, None])) * mask[:, None]
        x = self.head(nn.functional.gelu(self.norm(x.transpose(1, 2))))
        return Stream(x, mask, mel.rate / 2)


class SyncCorrelation(system.System):
    """Two tracks and their correlation; ``offsets`` is what it can do."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = SyncCorrelationConfig
    learns_from = ("media",)
    # Plucks leave windows without any event, silent movers and sounds off screen mislead: what cannot be told is there.
    trial = Trial(
        task="sync",
        preset="sync",
        knobs={"motions": ("bounce", "pluck"), "distractor": 0.5, "offscreen": 0.5},
        clips=480,
        test=300,
        settings={"epochs": 8},
    )
    config: SyncCorrelationConfig

    def __init__(self, config: SyncCorrelationConfig, spec: DataSpec):
        super().__init__(config, spec)
        for name in ("audio", "video"):
            if name not in spec.streams or spec.streams[name].kind != name:
                raise ConfigError(f"sync_correlation needs {name}; the data have {', '.join(spec.streams)}.")
        self.seen = SeenTrack(config.channels, config.side, round(1 / (config.fps * config.step)))
        self.heard = HeardTrack(config.channels, config.bands, config.step)
        self.steps = round(config.window / config.step)
        # γ as a logarithm; at the start the scores of a window are of the order of one.
        self.log_scale = nn.Parameter(torch.tensor(-0.5 * math.log(self.steps * config.channels)))

    # ---------------------------------------------------------------------------------------------------------- tracks
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Both tracks [B, window / step, C], the lag "offset" [B] in seconds, and whether sound and picture belong
        together ("related" [B] bool)."""
        sound, picture = batch.require("audio", "video")
        related = torch.ones(len(batch), dtype=torch.bool, device=sound.data.device)
        known = batch.extras.get("offset")
        offset = torch.zeros(len(batch), device=sound.data.device) if known is None else known.float()
        if bool((offset == 0).any()):  # in time: moved, for a lag that is always 0 teaches to answer 0
            (moved, there, _), lag = self._moved(sound, batch)
            still = offset == 0
            data = torch.where(still[:, None, None], moved, sound.data)
            sound = sound._replace(data=data, mask=torch.where(still[:, None], there, sound.mask))
            offset = torch.where(still, lag, offset)
        if self.training and self.config.blind:
            picture, related = _still(picture, self.config.blind)
        video, audio = self._tracks(picture, sound)
        tracks = {name: _resized(track, self.steps) for name, track in (("video", video), ("audio", audio))}
        return {**tracks, "offset": offset, "related": related}

    def _tracks(self, picture: Stream, sound: Stream) -> tuple[Tensor, Tensor]:
        """Both tracks [B, T, C], of mean 0 over what was recorded and 0 elsewhere."""
        found = []
        for track in (self.seen(picture), self.heard(sound)):
            mean = masked_mean(track.data, track.mask)[:, None]
            found.append((track.data - mean) * track.mask[:, :, None])
        return found[0], found[1]

    def _moved(self, sound: Stream, batch: Batch) -> tuple[Stream, Tensor]:
        """The sound later by a random lag, and that lag in seconds; only the middle of the window stays."""
        most = self.config.search
        if self.training:
            drawn = torch.rand(len(batch), device=sound.data.device)
        else:  # the same for the same row, whatever stands beside it
            drawn = torch.frac((batch.index + 1).double() * 0.6180339887498949).float()
        steps = ((2 * drawn - 1) * most * sound.rate).round().long()
        place = torch.arange(sound.data.shape[1], device=sound.data.device)
        source = place - steps[:, None]
        inside = (source >= 0) & (source < len(place))
        source = source.clamp(0, len(place) - 1)
        last = sound.mask.sum(1, keepdim=True)  # of a clip that ends early
        edge = round(most * sound.rate)
        mask = inside & sound.mask.gather(1, source) & (place >= edge) & (place < last - edge)
        data = sound.data.gather(1, source[:, :, None].expand_as(sound.data)) * mask[:, :, None]
        return Stream(data, mask, sound.rate), steps / sound.rate

    def _correlation(self, video: Tensor, audio: Tensor, most: int) -> Tensor:
        """s [B, 2 most + 1] of the lags -most ... most steps; tracks [B, T, C]."""
        longest = max(video.shape[1], audio.shape[1])
        video, audio = _resized(video, longest), _resized(audio, longest)
        lagged = nn.functional.pad(audio, (0, 0, most, most)).unfold(1, longest, 1)  # [B, 2 most + 1, C, T]
        return self.log_scale.exp() * torch.einsum("btc,blct->bl", video, lagged)

    # -------------------------------------------------------------------------------------------------------- learning
    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """``offset``: -log p of the true lag; ``unrelated``: the distance of foreign pairs from a flat posterior."""
        c = self.config
        most = round((c.search + c.margin) / c.step)
        video, audio, related = encoded["video"], encoded["audio"], encoded["related"]
        own = self._correlation(video, audio, most).log_softmax(1)
        other = self._correlation(video, audio.roll(1, 0), most).log_softmax(1)
        place = (encoded["offset"] / c.step + most).clamp(0, 2 * most)
        right = _between(own, place[:, None])[:, 0]
        flat = math.log(2 * most + 1)
        blank = torch.where(related, 0, -own.mean(1) - flat)
        foreign = -other.mean(1) - flat if len(batch) > 1 else torch.zeros_like(blank)
        return {
            "offset": -(right * related).sum() / related.sum().clamp(min=1),
            "unrelated": c.unrelated * (foreign.mean() + blank.sum() / (~related).sum().clamp(min=1)),
        }

    # ------------------------------------------------------------------------------------------------------ capability
    @torch.no_grad()
    def offsets(self, batch: Batch, grid: Tensor) -> Tensor:
        """Log-scores [B, K] of the lags ``grid`` [K] in seconds, above zero: the sound is late; any range, any length
        of the clips."""
        sound, picture = batch.require("audio", "video")
        video, audio = self._tracks(picture, sound)
        grid = grid.to(video)
        most = math.ceil(float(grid.abs().max()) / self.config.step) + 1
        scores = self._correlation(video, audio, most)
        return _between(scores, (grid / self.config.step + most).expand(len(scores), -1)).float()


def _resized(track: Tensor, steps: int) -> Tensor:
    """[B, steps, C]: cut, or followed by zeros."""
    return nn.functional.pad(track[:, :steps], (0, 0, 0, max(0, steps - track.shape[1])))


def _between(scores: Tensor, place: Tensor) -> Tensor:
    """``scores`` [B, L] at the fractional columns ``place`` [B, K], between two columns linearly."""
    below = place.floor().clamp(0, scores.shape[1] - 2)
    share = (place - below).to(scores.dtype)
    at = below.long()
    return scores.gather(1, at) * (1 - share) + scores.gather(1, at + 1) * share


def _still(picture: Stream, share: float) -> tuple[Stream, Tensor]:
    """The video with a ``share`` of its rows frozen at one frame, and which rows still move [B]."""
    rows, steps = picture.mask.shape
    moves = torch.rand(rows, device=picture.data.device) >= share
    frame = torch.randint(steps, (rows,), device=picture.data.device)
    frozen = picture.data[torch.arange(rows, device=frame.device), frame][:, None].expand_as(picture.data)
    data = torch.where(moves[:, None, None, None, None], picture.data, frozen)
    return picture._replace(data=data), moves
