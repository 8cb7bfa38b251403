"""Convolutions on the log-mel spectrogram."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from avcl.dsp import log_mel
from avcl.encoders.norm import ChannelNorm
from avcl.nn.pooling import strided_mask
from avcl.types import Stream


def log_mel_stream(stream: Stream, *, bands: int = 48, hop: float = 1 / 64, window: float = 0.032) -> Stream:
    """Level-free log-mel frames of audio [B, T, C]: spectrum [B, T', bands] at about 1 / hop frames a second.

    ``x = (log max(m, 1e-5 · largest m of the clip) - mean over the clip) / 3`` with m the mel power of the channel
    mean: gain cancels, and silence stays finite. Frame i is centered on sample i · step (step = hop in whole samples,
    hence the true rate is sample rate / step); it is recorded where that sample is. What lies behind the mask never
    enters.
    """
    step, size = max(1, round(hop * stream.rate)), 1 << max(5, round(window * stream.rate) - 1).bit_length()
    kind = torch.promote_types(stream.data.dtype, torch.float32)  # there is no transform of half a precision
    wave = (stream.data.to(kind) * stream.mask[:, :, None]).mean(2)
    level = log_mel(
        wave,
        sample_rate=stream.rate,
        n_fft=max(size, step),
        hop=step,
        n_mels=bands,
        fmin=50.0,
        scale="htk",
        floor=1e-10,
    )  # [B, T', bands]
    mask = stream.mask[:, ::step]
    keep = mask[:, :, None]
    top = level.masked_fill(~keep, math.log(1e-10)).amax((1, 2), keepdim=True)
    level = torch.maximum(level, top - math.log(1e5))
    mean = (level * keep).sum((1, 2), keepdim=True) / (keep.sum((1, 2), keepdim=True) * bands).clamp(min=1)
    return Stream(((level - mean) / 3 * keep).to(stream.data.dtype), mask, stream.rate / step)


class LogMelConv(nn.Module):
    """Audio [B, T, C] to [B, T', dim] at 8 steps a second (1 / 64 s frames, three halvings), any sample rate.

    Strided 3 × 3 convolutions over frequency and time; then all frequency cells of a step to one vector (absolute
    pitch is kept), then convolutions over time. Channels last in memory.
    """

    def __init__(self, *, dim: int = 128, bands: int = 48, widths: tuple[int, int, int] = (24, 48, 64), reach: int = 5):
        super().__init__()
        self.bands, self.dim = bands, dim
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in zip((1, *widths[:2]), widths, strict=True)
        )
        self.norms = nn.ModuleList(ChannelNorm(w) for w in widths)
        cells = bands
        for _ in widths:
            cells = (cells + 1) // 2
        self.cells = nn.Linear(cells * widths[-1], dim)
        self.time_norms = nn.ModuleList(ChannelNorm(dim) for _ in range(2))
        self.times = nn.ModuleList(nn.Conv1d(dim, dim, reach, padding=reach // 2) for _ in range(2))

    def forward(self, stream: Stream) -> Stream:
        return self.on_spectrum(log_mel_stream(stream, bands=self.bands))

    def on_spectrum(self, mel: Stream) -> Stream:
        """The same of log-mel frames [B, T, bands], which may have been cut or turned round."""
        x, mask = mel.data[:, None].to(memory_format=torch.channels_last), mel.mask  # [B, 1, T, F]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            mask = halve(mask)
            x = nn.functional.gelu(norm(conv(x))) * mask[:, None, :, None]
        x = self.cells(x.permute(0, 2, 3, 1).flatten(2)).transpose(1, 2)  # [B, dim, T']
        valid = mask[:, None]
        x = x * valid
        for norm, conv in zip(self.time_norms, self.times, strict=True):
            x = (x + conv(nn.functional.gelu(norm(x)) * valid)) * valid
        return Stream(x.transpose(1, 2), mask, mel.rate / 2 ** len(self.convs))


def halve(mask: Tensor) -> Tensor:
    """The mask after a stride of two: a step is recorded where either of its two parts is; ceil(T / 2) steps."""
    return strided_mask(mask, 2)
