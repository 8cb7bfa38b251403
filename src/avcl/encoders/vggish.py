"""The shape of VGGish: one embedding per 0.96 s of sound."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from avcl.encoders.audio import log_mel_stream
from avcl.encoders.checks import at_least_one
from avcl.nn.pooling import lacking, strided_mask
from avcl.types import Stream

BANDS, FRAMES = 64, 96  # a patch: 64 mel bands, 96 frames of 10 ms
POOL_AFTER = (0, 1, 3, 5)  # the convolutions that a 2 × 2 maximum follows


class VGGish(nn.Module):
    """The network of VGGish (Hershey et al. 2017): audio [B, T, C] to [B, T', dim], a step per 0.96 s.

    ``log_mel_stream`` with 64 bands and frames of 25 ms every 10 ms, cut into patches of 96 frames that follow one
    another; six 3 × 3 convolutions of ``widths`` with ReLU, a 2 × 2 maximum after the first, second, fourth and
    sixth, which leaves 6 × 4 cells; two hidden layers of ``hidden`` units; a linear map to ``dim``. ``paper()``:
    72,141,184 parameters. Channels last in memory.

    Rate: (sample rate / hop in whole samples) / 96, 1 / 0.96 s for any rate that 100 divides. A patch is recorded
    where any of its frames is; the frames that are missing (the last patch is hardly ever full) are zeros before every
    convolution, so a patch of 0.2 s is weaker than a full one and not another sound. Deviations: the level-free
    spectrum of this library instead of log(m + 0.01), so published weights do not fit; no PCA and quantization.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, int, int, int, int, int] = (16, 24, 32, 32, 48, 48),
        hidden: tuple[int, int] = (128, 128),
        dim: int = 128,
    ):
        super().__init__()
        for i, width in enumerate((*widths, *hidden)):
            at_least_one({"width": width}, f"VGGish: layer {i}")
        at_least_one({"dim": dim}, "VGGish")
        self.dim = dim
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in zip((1, *widths[:5]), widths, strict=True))
        cells = FRAMES // 16 * (BANDS // 16)
        sizes = (cells * widths[5], *hidden, dim)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        # Without norms the default start would lose nine tenths of the variance in three layers.
        for layer in (*self.convs, *self.layers):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    @classmethod
    def tiny(cls) -> VGGish:
        """Twelve thousand parameters, 16 numbers a step."""
        return cls(widths=(4, 8, 8, 8, 16, 16), hidden=(16, 16), dim=16)

    @classmethod
    def paper(cls) -> VGGish:
        return cls(widths=(64, 128, 256, 256, 512, 512), hidden=(4096, 4096), dim=128)

    def forward(self, stream: Stream) -> Stream:
        mel = log_mel_stream(stream, bands=BANDS, hop=0.01, window=0.025)
        batch, frames = mel.mask.shape
        more = lacking(frames, FRAMES)
        # [B · T', 1, 96, 64] and which of the 96 frames are recorded
        x = nn.functional.pad(mel.data, (0, 0, 0, more)).reshape(-1, 1, FRAMES, BANDS)
        kept = nn.functional.pad(mel.mask, (0, more)).reshape(-1, FRAMES)
        x = x.to(memory_format=torch.channels_last)
        for i, conv in enumerate(self.convs):
            x = nn.functional.relu(conv(x)) * kept[:, None, :, None]
            if i in POOL_AFTER:  # nothing is below zero here: a frame that is missing never wins
                x, kept = nn.functional.max_pool2d(x, 2), strided_mask(kept, 2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        for i, layer in enumerate(self.layers):
            x = layer(nn.functional.relu(x) if i else x)
        mask = strided_mask(mel.mask, FRAMES)
        return Stream(x.reshape(batch, -1, self.dim) * mask[:, :, None], mask, mel.rate / FRAMES)
