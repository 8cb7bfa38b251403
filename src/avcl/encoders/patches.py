"""Transformers on patches: of frames (ViT), of frames over time (ViViT), of the log-mel spectrogram (AST)."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn

from avcl.encoders.audio import log_mel_stream
from avcl.encoders.checks import at_least_one, one_of
from avcl.encoders.conv2d import centered
from avcl.errors import ConfigError
from avcl.nn.attention import MultiHeadAttention
from avcl.nn.pooling import lacking, strided_mask
from avcl.nn.positions import DropToken, SecondsEncoding, seconds_of
from avcl.nn.transformer import TransformerLayer
from avcl.types import Stream

Mixing = Literal["step", "joint", "factorized"]
Readout = Literal["agg", "mean"]


class PatchTransformer(nn.Module):
    """``depth`` pre-norm Transformer layers on patches [B, T, N, dim] with a mask of steps [B, T].

    ``step``: the N patches of a step look at each other alone. ``joint``: all T · N at once, cost (T N)².
    ``factorized`` (TimeSformer, Bertasius et al. 2021; ViViT model 3): each layer first looks along time at the same
    place, then within the step, cost N T² + T N². Unless ``step``, patches first get the code of their second, times
    a learned gain. Keys at steps that were not recorded are never read.

    ``readout``: the state of a learned token that stands in every step ("agg"), or the mean of its patches. ``keep``:
    in training a random part of the patches of each step stays (DropToken, VATT; with ``factorized`` the same places
    at all times); cost falls with it.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        heads: int,
        mixing: Mixing,
        readout: Readout,
        keep: float,
        dropout: float,
        longest: float = 100.0,
    ):
        super().__init__()
        at_least_one({"depth": depth, "heads": heads}, "a patch Transformer")
        one_of(mixing, ("step", "joint", "factorized"), "mixing", "a patch Transformer")
        one_of(readout, ("agg", "mean"), "readout", "a patch Transformer")
        self.dim, self.mixing = dim, mixing
        self.agg = nn.Parameter(torch.randn(dim) * 0.02) if readout == "agg" else None
        self.drop = DropToken(keep)
        if mixing != "step":
            self.when = SecondsEncoding(dim, longest=longest)
            self.gain = nn.Parameter(torch.tensor(1.0))
        self.layers = nn.ModuleList(TransformerLayer(dim, heads=heads, dropout=dropout) for _ in range(depth))
        along = depth if mixing == "factorized" else 0
        self.along = nn.ModuleList(MultiHeadAttention(dim, heads=heads, dropout=dropout) for _ in range(along))
        self.along_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(along))
        self.last = nn.LayerNorm(dim)

    def forward(
        self, stream: Stream, *, whole: bool = False, return_attention: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A stream of [B, T, N, dim] to (steps [B, T, dim], patches [B, T, N', dim], map [B, T, h, N'] or None).

        ``whole``: no patch is dropped, N' = N. The map says how much the read-out of a step looks at each place in
        the last layer (where several steps are seen, at this place in all of them); its sum is at most 1.
        """
        x, mask, _ = stream
        x = x if whole else self._some(x)
        if self.agg is not None:
            x = torch.cat([self.agg.to(x.dtype).expand(*x.shape[:2], 1, -1), x], 2)
        if self.mixing != "step":
            x = x + (self.gain * self.when.code(seconds_of(stream))[:, None]).to(x.dtype)
        x, shown = self._layers(x, mask, return_attention)
        x = self.last(x).masked_fill(~mask[:, :, None, None], 0)
        if shown is not None:  # [B, T, h, N' queries, N' keys], the read-out token first if there is one
            shown = shown.mean(3) if self.agg is None else shown[:, :, :, 0, 1:]
            shown = shown.masked_fill(~mask[:, :, None, None], 0)
        return (x.mean(2), x, shown) if self.agg is None else (x[:, :, 0], x[:, :, 1:], shown)

    def _some(self, x: Tensor) -> Tensor:
        if not self.training or self.drop.keep == 1:
            return x
        batch, steps = x.shape[:2]
        rows = x.transpose(1, 2).flatten(2) if self.mixing == "factorized" else x.flatten(0, 1)  # [., N, .]
        rows = self.drop(Stream(rows, rows.new_ones(rows.shape[:2], dtype=torch.bool), 1.0)).data
        if self.mixing == "factorized":
            return rows.unflatten(2, (steps, self.dim)).transpose(1, 2)
        return rows.unflatten(0, (batch, steps))

    def _layers(self, x: Tensor, mask: Tensor, return_attention: bool) -> tuple[Tensor, Tensor | None]:
        batch, steps, places, _ = x.shape
        shown = None
        if self.mixing == "joint":
            x, mask = x.flatten(1, 2), mask[:, :, None].expand(-1, -1, places).flatten(1)
            for i, layer in enumerate(self.layers, 1):
                x, shown, _ = layer(x, mask=mask, return_attention=return_attention and i == len(self.layers))
            if shown is not None:  # [B, h, T · N, T · N] to [B, T, h, N, N], summed over the steps of the keys
                shown = shown.unflatten(3, (steps, places)).sum(3).unflatten(2, (steps, places)).transpose(1, 2)
            return x.unflatten(1, (steps, places)), shown
        x = x.flatten(0, 1)
        recorded = mask[:, None].expand(-1, places, -1).flatten(0, 1)  # [B · N, T]
        for i, layer in enumerate(self.layers, 1):
            if self.mixing == "factorized":
                y = x.unflatten(0, (batch, steps)).transpose(1, 2).flatten(0, 1)  # [B · N, T, dim]
                z = self.along_norms[i - 1](y)
                y = y + self.along[i - 1](z, z, mask=recorded)[0]
                x = y.unflatten(0, (batch, places)).transpose(1, 2).flatten(0, 1)
            x, shown, _ = layer(x, return_attention=return_attention and i == len(self.layers))
        return x.unflatten(0, (batch, steps)), None if shown is None else shown.unflatten(0, (batch, steps))


def placed(cells: Tensor, table: Tensor) -> Tensor:
    """Cells [B, T, H, W, D] plus a learned table [Y, X, D], stretched (bicubic) where the grid has another size."""
    if cells.shape[2:4] != table.shape[:2]:
        size = tuple(cells.shape[2:4])
        table = nn.functional.interpolate(table.permute(2, 0, 1)[None], size, mode="bicubic", align_corners=False)
        table = table[0].permute(1, 2, 0)
    return cells + table.to(cells.dtype)


class VideoTransformer(nn.Module):
    """Transformer on tubelets of ``tubelet`` frames × ``patch`` × ``patch`` pixels: video to [B, T', dim].

    ``x = W · tubelet + table[y, x]``, ``PatchTransformer``, one vector per step of ``tubelet`` frames: rate / tubelet,
    T' = ceil(T / tubelet), a step is recorded where any of its frames is. Any T, H and W: what a patch lacks at the
    right, below or behind is zeros (mid gray). ``grid``: the size of the learned table in patches; frames with another
    number of them get it stretched. Missing frames are zeros, whatever lies there.

    ``mixing="step"`` with ``tubelet=1`` is ViT (Dosovitskiy et al. 2021), every frame for itself; "joint" and
    "factorized" are ViViT (Arnab et al. 2021), in order of time, with positions in seconds. ``paper()``: ViT-B/16,
    85,788,672 parameters.

    ``maps`` gives the patches, ceil(H / stride) × ceil(W / stride) of them. Geometry: patch (y, x) is made of the
    pixels from (y · stride, x · stride) on and centered on (offset + y · stride, offset + x · stride), offset =
    (stride - 1) / 2; each has looked at all others.
    """

    def __init__(
        self,
        *,
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
        patch: int = 8,
        tubelet: int = 1,
        grid: tuple[int, int] = (8, 8),
        mixing: Mixing = "step",
        readout: Readout = "agg",
        keep: float = 1.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        sizes = {"dim": dim, "patch": patch, "tubelet": tubelet, "grid": min(grid)}
        at_least_one(sizes, "VideoTransformer")
        self.embed = nn.Conv3d(3, dim, (tubelet, patch, patch), stride=(tubelet, patch, patch))
        self.table = nn.Parameter(torch.randn(*grid, dim) * 0.02)
        self.net = PatchTransformer(
            dim, depth=depth, heads=heads, mixing=mixing, readout=readout, keep=keep, dropout=dropout
        )
        self.dim, self.tubelet, self.stride, self.offset = dim, tubelet, patch, (patch - 1) / 2

    @classmethod
    def tiny(cls, *, mixing: Mixing = "step", tubelet: int = 1) -> VideoTransformer:
        """Two layers of 16 numbers on patches of 8 pixels: about ten thousand parameters."""
        return cls(dim=16, depth=2, heads=2, grid=(4, 4), mixing=mixing, tubelet=tubelet)

    @classmethod
    def paper(cls, *, mixing: Mixing = "step", tubelet: int = 1, keep: float = 1.0) -> VideoTransformer:
        """The base size: 12 layers of 768 numbers and 12 heads, patches of 16 pixels on 224 × 224."""
        return cls(dim=768, depth=12, heads=12, patch=16, grid=(14, 14), mixing=mixing, tubelet=tubelet, keep=keep)

    def maps(self, stream: Stream) -> Stream:
        """The patches behind the last layer: [B, T', H', W', dim]."""
        cells = self._cells(stream)
        _, patches, _ = self.net(cells._replace(data=cells.data.flatten(2, 3)), whole=True)
        return cells._replace(data=patches.unflatten(2, cells.data.shape[2:4]))

    @overload
    def forward(self, stream: Stream, *, return_attention: Literal[False] = ...) -> Stream: ...
    @overload
    def forward(self, stream: Stream, *, return_attention: Literal[True]) -> tuple[Stream, Tensor]: ...
    def forward(self, stream: Stream, *, return_attention: bool = False) -> Stream | tuple[Stream, Tensor]:
        """With ``return_attention`` also the map [B, T', heads, H', W'] of ``PatchTransformer``, nothing dropped."""
        cells = self._cells(stream)
        given = cells._replace(data=cells.data.flatten(2, 3))
        steps, _, shown = self.net(given, whole=return_attention, return_attention=return_attention)
        out = cells._replace(data=steps)
        return out if shown is None else (out, shown.unflatten(3, cells.data.shape[2:4]))

    def _cells(self, stream: Stream) -> Stream:
        x = centered(stream).transpose(1, 2)  # [B, 3, T, H, W]
        missing = [lacking(size, part) for size, part in zip(x.shape[2:], self.embed.kernel_size, strict=True)]
        x = nn.functional.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))
        x = placed(self.embed(x).permute(0, 2, 3, 4, 1), self.table)
        return Stream(x, strided_mask(stream.mask, self.tubelet), stream.rate / self.tubelet)


class SpectrogramTransformer(nn.Module):
    """AST (Gong et al. 2021): audio [B, T, C] to [B, T', dim], Transformer on overlapping patches of the log-mel.

    ``log_mel_stream`` with ``bands`` and ``hop``; patches of ``patch`` × ``patch`` every ``stride`` frames and bands,
    ``(bands - patch) // stride + 1`` to a step; a learned table of frequency and the code of seconds; all patches look
    at all recorded ones. One vector per ``stride`` frames, T' = ceil(frames / stride), each patch lying around the
    frames of its step; a step is recorded where any of them is. ``paper()``: 128 bands, 12 layers of 768 numbers,
    85,254,145 parameters, ten steps a second.

    Deviation: positions of time are codes of seconds instead of a learned table, so any length is read. Pitfall: cost
    grows with the square of the length; ``keep`` (DropToken) and ``mixing="factorized"`` make training cheaper.
    """

    def __init__(
        self,
        *,
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
        bands: int = 64,
        hop: float = 0.01,
        window: float = 0.025,
        patch: int = 16,
        stride: int = 10,
        mixing: Mixing = "joint",
        readout: Readout = "mean",
        keep: float = 1.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        at_least_one({"dim": dim, "patch": patch, "stride": stride}, "SpectrogramTransformer")
        if not stride <= patch <= bands:
            raise ConfigError(f"stride ({stride}) ≤ patch ({patch}) ≤ bands ({bands}) is needed.")
        if min(hop, window) <= 0:
            raise ConfigError(f"hop ({hop}) and window ({window}) are seconds above 0.")
        self.embed = nn.Conv2d(1, dim, patch, stride=stride)
        self.table = nn.Parameter(torch.randn((bands - patch) // stride + 1, dim) * 0.02)
        self.net = PatchTransformer(
            dim, depth=depth, heads=heads, mixing=mixing, readout=readout, keep=keep, dropout=dropout
        )
        self.dim, self.bands, self.hop, self.window, self.stride = dim, bands, hop, window, stride
        before = (patch - stride) // 2
        self.around = before, patch - 1 - before

    @classmethod
    def tiny(cls) -> SpectrogramTransformer:
        """Two layers of 16 numbers on 32 bands: eight thousand parameters, about 13 steps a second."""
        return cls(dim=16, depth=2, heads=2, bands=32, hop=1 / 64, window=0.032, patch=8, stride=5)

    @classmethod
    def paper(cls, *, mixing: Mixing = "joint", keep: float = 1.0) -> SpectrogramTransformer:
        return cls(dim=768, depth=12, heads=12, bands=128, mixing=mixing, readout="agg", keep=keep)

    def forward(self, stream: Stream) -> Stream:
        mel = log_mel_stream(stream, bands=self.bands, hop=self.hop, window=self.window)
        x = nn.functional.pad(mel.data, (0, 0, *self.around))[:, None]  # [B, 1, T + patch - 1, bands]
        cells = self.embed(x).permute(0, 2, 3, 1) + self.table.to(x.dtype)  # [B, T', N, dim]
        given = Stream(cells, strided_mask(mel.mask, self.stride), mel.rate / self.stride)
        steps, _, _ = self.net(given)
        return given._replace(data=steps)
