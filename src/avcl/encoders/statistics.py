"""Fixed summaries of a clip, for methods without an encoder: tens to hundreds of numbers, nothing learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avcl.encoders.audio import log_mel_stream
from avcl.errors import BatchError
from avcl.nn.pooling import masked_mean, masked_std, on_clock
from avcl.types import Stream, StreamSpec

MELS, SLOTS, GRID, MOTION, BYTES = 40, 24, 12, 6, 256


def summary_dim(spec: StreamSpec, vocabulary: int = 0) -> int:
    """Width of what ``summarize`` returns for such a stream."""
    if spec.kind in ("features", "map"):
        return spec.shape[-1]
    sizes = {"audio": 3 * MELS + SLOTS, "video": 10 + GRID**2 + MOTION**2 + SLOTS, "tokens": vocabulary or BYTES}
    if spec.kind not in sizes:
        raise BatchError(f'a stream of kind "{spec.kind}" has no fixed summary.')
    return sizes[spec.kind]


def summarize(stream: Stream, spec: StreamSpec, *, seconds: float, vocabulary: int = 0) -> Tensor:
    """One row of float64 per clip [B, summary_dim], from what was recorded only (padding changes nothing).

    features: mean over time (and cells) · audio: log-mel mean, deviation and mean |step| per band, loudness in slots
    of the first ``seconds`` · video: color mean and deviation, edge strength, mean gray picture, mean |change|
    picture, change in slots · tokens: share of each token.
    """
    if spec.kind in ("features", "map"):
        data = stream.data.to(torch.float64)
        return masked_mean(data.mean((2, 3)) if data.ndim == 5 else data, stream.mask)
    if spec.kind == "audio":
        return _audio(stream, seconds).to(torch.float64)
    if spec.kind == "video":
        return _video(stream, seconds).to(torch.float64)
    counts = nn.functional.one_hot(stream.data.clamp(0, (vocabulary or BYTES) - 1), vocabulary or BYTES)
    return masked_mean(counts.to(torch.float64), stream.mask)


def column_scale(variance: Tensor, spec: StreamSpec, *, standardize: bool = False) -> Tensor:
    """Factor of each column of a summary, from its ``variance`` [D]: one over its deviation for media (0 where a column
    is constant); one for features, unless ``standardize``.
    """
    if spec.kind in ("features", "map") and not standardize:
        return torch.ones_like(variance)
    constant = variance <= 1e-12 * variance.max()
    return torch.where(constant, 0, variance.clamp(min=torch.finfo(variance.dtype).tiny).rsqrt())


def _audio(stream: Stream, seconds: float) -> Tensor:
    mel = log_mel_stream(stream, bands=MELS)
    step = (mel.data[:, 1:] - mel.data[:, :-1]).abs()
    both = mel.mask[:, 1:] & mel.mask[:, :-1]
    loud = on_clock(mel._replace(data=mel.data.mean(2, keepdim=True)), steps=SLOTS, seconds=seconds)
    return torch.cat(
        [masked_mean(mel.data, mel.mask), masked_std(mel.data, mel.mask), masked_mean(step, both), loud.flatten(1)], 1
    )


def _video(stream: Stream, seconds: float) -> Tensor:
    frames, mask = stream.data, stream.mask
    if frames.dtype == torch.uint8:
        frames = frames.float() / 255
    gray = frames.mean(2)  # [B, T, H, W]
    color = masked_mean(frames.mean((3, 4)), mask), masked_mean(frames.std((3, 4), correction=0), mask)
    edge = [masked_mean(gray.diff(dim=d).square().mean((2, 3)), mask)[:, None] for d in (2, 3)]
    edge += [masked_mean(gray.diff(dim=d).abs().mean((2, 3)), mask)[:, None] for d in (2, 3)]
    picture = masked_mean(nn.functional.adaptive_avg_pool2d(gray, GRID), mask)
    both = mask[:, 1:] & mask[:, :-1]
    small = nn.functional.adaptive_avg_pool2d(gray, 16)  # averaged before the difference: camera jitter is not motion
    change = (small[:, 1:] - small[:, :-1]).abs()
    where = masked_mean(nn.functional.adaptive_avg_pool2d(change, MOTION), both)
    amount = torch.zeros_like(gray[:, :, 0, :1])
    amount[:, 1:, 0] = change.mean((2, 3)) * both
    when = on_clock(stream._replace(data=amount), steps=SLOTS, seconds=seconds)
    return torch.cat([*color, *edge, picture.flatten(1), where.flatten(1), when.flatten(1)], 1)
