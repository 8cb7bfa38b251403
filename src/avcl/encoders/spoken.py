"""What hears a spoken caption: cepstra as frames, and a residual network that reads spectra along time alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avcl.encoders.audio import log_mel_stream
from avcl.encoders.checks import at_least_one
from avcl.encoders.resnet import ResidualTrunk, check_stages, wake
from avcl.errors import ConfigError
from avcl.nn.pooling import masked_mean, masked_std
from avcl.types import DataSpec, Stream

PICTURES = ("video", "image")  # names by which features of a picture are known


def picture_and_caption(names: Sequence[str], spec: DataSpec) -> tuple[str, str]:
    """Which of two streams is seen, and which one says what is there: a picture by its kind, features by their name.

    ConfigError where it is not one of each.
    """
    seen = [name for name in names if spec.streams[name].kind in ("video", "map")]
    seen = seen or [name for name in names if name in PICTURES]
    if len(names) != 2 or len(seen) != 1:
        raise ConfigError(
            f"one picture and one caption are needed, not {', '.join(names)}.", hint="Set modalities, picture first."
        )
    return seen[0], next(name for name in names if name != seen[0])


def mfcc_stream(stream: Stream, *, coefficients: int = 12, bands: int = 40, deltas: int = 2) -> Stream:
    """Cepstra of audio [B, T, C], 100 frames a second: spectrum [B, T', (1 + coefficients) · (1 + deltas)].

    ``c_k = Σ_m x_m cos(π k (m + ½) / M)``, k = 0 (the energy) ... ``coefficients``, of the M ``bands`` of the log-mel
    (windows of 25 ms); then each to mean 0 and deviation 1 over the recorded frames of its clip. Beside them their
    slopes ``Δ_t = Σ_{n=1,2} n (c_{t+n} - c_{t-n}) / 10``, and the slopes of those, ``deltas`` times; a frame that is
    missing counts as frame t. Gain and any fixed filter (pre-emphasis, a microphone) cancel. Davis and Mermelstein
    1980.
    """
    mel = log_mel_stream(stream, bands=bands, hop=0.01, window=0.025)
    order = torch.arange(1 + coefficients, device=mel.data.device)[:, None]
    band = torch.arange(bands, device=mel.data.device)[None] + 0.5
    cepstra = mel.data @ torch.cos(math.pi / bands * order * band).T.to(mel.data.dtype)
    mean, deviation = masked_mean(cepstra, mel.mask), masked_std(cepstra, mel.mask)
    keep = mel.mask[:, :, None]
    parts = [(cepstra - mean[:, None]) / deviation.clamp(min=1e-3)[:, None] * keep]
    for _ in range(deltas):
        parts.append(_slope(parts[-1], keep))
    return mel._replace(data=torch.cat(parts, 2))


def _slope(x: Tensor, keep: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for n in (1, 2):
        ahead, there = (nn.functional.pad(part[:, n:], (0, 0, 0, min(n, part.shape[1]))) for part in (x, keep))
        behind, was = (nn.functional.pad(part, (0, 0, n, 0))[:, : part.shape[1]] for part in (x, keep))
        total = total + n / 10 * (torch.where(there, ahead, x) - torch.where(was, behind, x))
    return total * keep


class ResDAVEnet(nn.Module):
    """Residual convolutions along time on all bands at once: audio [B, T, C] to [B, T', dim], any sample rate.

    The first convolution reads a whole frame of the log-mel (``bands``, 100 frames a second); then one stage of
    ``depths[i]`` residual blocks for each of ``widths``, ``kernel`` frames wide, the first of each stage at stride two:
    T' = ⌈frames / 2^stages⌉, hence 10 s are 63 steps. ``paper()``: four stages of two blocks, 128 to 1024 channels.

    Papers: Hsu et al. 2019; AVLnet, Rouditchenko et al. 2021. Theirs normalize over the batch and count padding; here
    every step is normalized for itself, and what was not recorded is zero at every layer.
    """

    def __init__(
        self, *, bands: int = 40, widths: Sequence[int] = (32, 64, 96, 128), depths: Sequence[int] = (1, 1, 1, 1),
        kernel: int = 9,
    ):  # fmt: skip
        super().__init__()
        at_least_one({"bands": bands, "kernel": kernel}, "ResDAVEnet")
        check_stages(widths, depths, [2] * len(widths))
        if kernel % 2 == 0:
            raise ConfigError(f"ResDAVEnet: kernel = {kernel} must be odd to read both sides alike.")
        blocks, inside = [], widths[0]
        for width, depth in zip(widths, depths, strict=True):
            for stride in [2] + [1] * (depth - 1):
                blocks.append([_along(inside, width, kernel, stride), _along(width, width, kernel)])
                inside = width
        self.bands = bands
        self.trunk = ResidualTrunk([nn.Conv2d(1, widths[0], (1, bands), bias=False)], blocks)
        wake(self.trunk)
        self.dim = self.trunk.dim

    @classmethod
    def paper(cls) -> ResDAVEnet:
        """The audio network of AVLnet: 1024 channels."""
        return cls(widths=(128, 256, 512, 1024), depths=(2, 2, 2, 2))

    def forward(self, stream: Stream) -> Stream:
        mel = log_mel_stream(stream, bands=self.bands, hop=0.01, window=0.025)
        x, mask = self.trunk(mel.data[:, None], mel.mask)  # [B, dim, T', 1]
        assert mask is not None
        return Stream(x[:, :, :, 0].transpose(1, 2), mask, mel.rate / self.trunk.strides[0])


def _along(inside: int, outside: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution along time, padded by half of its kernel, no bias: a norm follows."""
    return nn.Conv2d(inside, outside, (kernel, 1), stride=(stride, 1), padding=(kernel // 2, 0), bias=False)
