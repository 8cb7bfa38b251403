"""U-Net on spectrograms, steered by what is seen: the separator of the mix-and-separate family."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu, pad, relu

from avcl.encoders.audio import halve
from avcl.encoders.checks import at_least_one, one_of
from avcl.encoders.norm import NormName, norm_layer
from avcl.errors import BatchError, ConfigError
from avcl.nn.conditioning import CrossAttentionCondition, FiLM
from avcl.nn.pooling import on_clock
from avcl.nn.positions import SecondsEncoding
from avcl.types import Stream

Conditioning = Literal["none", "concat", "film", "attention", "product"]
Output = Literal["logits", "complex", "signal"]
Upsampling = Literal["bilinear", "transposed"]


class UNet(nn.Module):
    """Down by halves, up again with skips: spectrum [B, T, F] or [B, T, F, inputs] to [B, T, F, outputs], any F and T.

    Level i: convolution 4 × 4 with stride 2 to ``widths[i]`` channels, norm, LeakyReLU(0.2); on the way up bilinear
    × 2 and a 3 × 3 convolution (or a transposed one of 4 × 4), norm, ReLU, next to the skip of its level. Odd sizes are
    padded by one zero row inside and cut again. ``dim`` = outputs; rate and mask stay as they are.

    ``condition`` (its width ``condition_dim`` = k) is a vector [B, k] that holds for the clip, or a Stream: a sequence
    [B, T', k] or a map [B, T', H, W, k] with its own clock.

    - "concat": beside the bottleneck's channels, at every cell (Gao and Grauman 2019, ``co_separation``)
    - "film": ``(1 + γ(c)) x + β(c)`` at the bottleneck, one pair (γ, β) per step of a sequence (Zhao et al. 2019)
    - "attention": the bottleneck's cells attend to the steps and cells of the condition, both with the code of their
      second when the condition is a Stream (even widths)
    - "product": ``z = Σ_k s_k c_k f_k + b`` with f the k output channels (Zhao et al. 2018, ``sound_of_pixels``);
      several vectors [B, N, k], as those of N pixels, give N · outputs channels from one pass

    A sequence is brought to the clock of the bottleneck ("product": of the output) by averaging; a map is averaged
    over its cells first, except for "attention", which sees each.

    ``output`` · "logits": z, for a sigmoid (or any real target) · "complex": ``2σ(z) - 1`` in [-1, 1], pairs (real,
    imaginary) · "signal": mask times input, ``σ(z) x`` for one input channel, the complex product with the mask above
    for two. ``standardize``: subtract the mean and divide by the deviation of the recorded bins of each item and
    channel (log magnitudes want it; it stands where the papers normalize over the batch).

    ``norm`` "channel" keeps rows and padding apart; "batch" is the papers', and breaks that: statistics of the batch,
    padding included, enter every row. Pitfall: a still picture is a vector, not a sequence of one step, which would
    hold for that step's duration only.
    """

    def __init__(
        self,
        *,
        inputs: int = 1,
        outputs: int = 1,
        widths: tuple[int, ...] = (16, 32, 64, 64),
        condition: Conditioning = "none",
        condition_dim: int = 0,
        heads: int = 4,
        output: Output = "logits",
        upsampling: Upsampling = "bilinear",
        norm: NormName = "channel",
        standardize: bool = False,
    ):
        super().__init__()
        at_least_one(
            {"inputs": inputs, "outputs": outputs, "levels": len(widths), "width": min(widths, default=1)}, "UNet"
        )
        one_of(condition, ("none", "concat", "film", "attention", "product"), "condition", "UNet")
        one_of(output, ("logits", "complex", "signal"), "output", "UNet")
        one_of(upsampling, ("bilinear", "transposed"), "upsampling", "UNet")
        if (condition == "none") != (condition_dim == 0) or condition_dim < 0:
            raise ConfigError(f'UNet: condition "{condition}" does not go with condition_dim = {condition_dim}.')
        if output == "signal" and inputs > 2:
            raise ConfigError(f"UNet: a masked signal needs 1 (magnitude) or 2 (complex) input channels, not {inputs}.")
        if outputs % 2 and (output == "complex" or (output == "signal" and inputs == 2)):
            raise ConfigError(f"UNet: complex outputs are pairs; {outputs} is odd.")
        self.inputs, self.dim, self.condition_dim, self.standardize = inputs, outputs, condition_dim, standardize
        self.condition, self.output, self.upsampling = condition, output, upsampling
        self.downs = nn.ModuleList(
            nn.Conv2d(i, o, 4, stride=2, padding=1) for i, o in zip((inputs, *widths[:-1]), widths, strict=True)
        )
        self.down_norms = nn.ModuleList(norm_layer(norm, w, axes=2) for w in widths)
        channels = widths[-1] + (condition_dim if condition == "concat" else 0)
        last = outputs * (condition_dim if condition == "product" else 1)
        wide = [channels, *(2 * w for w in widths[-2::-1])]
        narrow = [*widths[-2::-1], last]
        self.ups = nn.ModuleList(_up(upsampling, i, o) for i, o in zip(wide, narrow, strict=True))
        self.up_norms = nn.ModuleList(norm_layer(norm, w, axes=2) for w in narrow[:-1])
        if condition == "film":
            self.film = FiLM(channels, condition_dim)
        if condition == "attention":
            self.look = CrossAttentionCondition(channels, condition_dim, heads)
            self.here, self.there = SecondsEncoding(channels), SecondsEncoding(condition_dim)
        if condition == "product":
            self.scale = nn.Parameter(torch.ones(condition_dim))
            self.bias = nn.Parameter(torch.zeros(()))

    @classmethod
    def sound_of_pixels(cls, *, channels: int = 32, norm: NormName = "channel") -> UNet:
        """Seven levels, inner product with the visual vector (Zhao et al. 2018); 256 × 256 log magnitudes."""
        widths = (64, 128, 256, 512, 512, 512, 512)
        return cls(widths=widths, condition="product", condition_dim=channels, norm=norm, standardize=True)

    @classmethod
    def co_separation(cls, *, condition_dim: int = 512, norm: NormName = "channel") -> UNet:
        """Seven levels, the object's vector tiled at the bottleneck (Gao and Grauman 2019)."""
        widths = (64, 128, 256, 512, 512, 512, 512)
        return cls(
            widths=widths,
            condition="concat",
            condition_dim=condition_dim,
            upsampling="transposed",
            norm=norm,
            standardize=True,
        )

    @classmethod
    def binaural(cls, *, masks: int = 1, condition_dim: int = 784, norm: NormName = "channel") -> UNet:
        """Five levels on (real, imaginary), complex masks of the difference (1) or of both ears (2) (Lin and Wang
        2021)."""
        return cls(
            inputs=2,
            outputs=2 * masks,
            widths=(64, 128, 256, 512, 512),
            condition="concat",
            condition_dim=condition_dim,
            output="complex",
            upsampling="transposed",
            norm=norm,
        )

    @overload
    def forward(self, stream: Stream, condition: Tensor | Stream | None = None) -> Stream: ...
    @overload
    def forward(
        self, stream: Stream, condition: Tensor | Stream | None = None, *, return_attention: Literal[True]
    ) -> tuple[Stream, Tensor]: ...
    def forward(
        self, stream: Stream, condition: Tensor | Stream | None = None, *, return_attention: bool = False
    ) -> Stream | tuple[Stream, Tensor]:
        """``return_attention`` ("attention" only): also the map [B, heads, F', T', N] over the condition's N items."""
        out, _, attention = self._run(stream, condition, return_attention)
        if not return_attention:
            return out
        if attention is None:
            raise BatchError(f'UNet: condition "{self.condition}" has no attention map.')
        return out, attention

    def with_deep(self, stream: Stream, condition: Tensor | Stream | None = None) -> tuple[Stream, Stream]:
        """The result, and the features [B, T', F', C] of the upward level nearest to the bottleneck, with their clock
        (what a co-attention between sound and image compares); with a single level, the bottleneck's.
        """
        return self._run(stream, condition, False)[:2]

    def _run(
        self, stream: Stream, condition: Tensor | Stream | None, shown: bool
    ) -> tuple[Stream, Stream, Tensor | None]:
        x = self._input(stream)
        self._check(condition, x.shape[0])
        masks, sizes, skips = [stream.mask], [x.shape[2:]], []
        given, deepest = x.permute(0, 3, 2, 1), len(self.downs)
        x = self._standard(x, stream.mask) if self.standardize else x
        for conv, norm in zip(self.downs, self.down_norms, strict=True):
            masks.append(halve(masks[-1]))
            x = leaky_relu(norm(conv(pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))), 0.2) * masks[-1][:, None, None]
            skips.append(x)
            sizes.append(x.shape[2:])
        x, attention = self._steered(x, masks[-1], stream.rate / 2**deepest, condition, shown)
        x = x * masks[-1][:, None, None]
        deep = Stream(x.permute(0, 3, 2, 1), masks[-1], stream.rate / 2**deepest)
        for i, up in enumerate(self.ups):
            level = deepest - 1 - i  # the one that this step arrives at
            bands, steps = sizes[level]
            if self.upsampling == "bilinear":
                # Cut and blanked before the convolution: it may not read a step that padding has added or not.
                x = _doubled(x, masks[level + 1])[:, :, :bands, :steps] * masks[level][:, None, None]
            x = up(x)[:, :, :bands, :steps]
            if level:
                x = relu(self.up_norms[i](x)) * masks[level][:, None, None]
                if i == 0:
                    deep = Stream(x.permute(0, 3, 2, 1), masks[level], stream.rate / 2**level)
                x = torch.cat([x, skips[level - 1]], 1)
        z = self._multiplied(x, stream, condition) if self.condition == "product" else x.permute(0, 3, 2, 1)
        out = self._shaped(z, given) * stream.mask[:, :, None, None]
        return stream._replace(data=out), deep, attention

    def _input(self, stream: Stream) -> Tensor:
        """[B, inputs, F, T], zeros where nothing was recorded."""
        data = stream.data[..., None] if stream.data.ndim == 3 else stream.data
        if data.ndim != 4 or data.shape[3] != self.inputs or min(data.shape[1:]) < 1:
            shape = list(stream.data.shape)
            raise BatchError(f"UNet needs a spectrum [B, T, F, {self.inputs}], not {shape}.")
        return data.masked_fill(~stream.mask[:, :, None, None], 0).permute(0, 3, 2, 1)

    def _check(self, condition: Tensor | Stream | None, batch: int) -> None:
        if condition is None or self.condition == "none":
            if condition is not None or self.condition != "none":
                raise BatchError(
                    f'UNet: condition "{self.condition}" was given {"no" if condition is None else "a"} condition.'
                )
            return
        data = condition if isinstance(condition, Tensor) else condition.data
        ranks = (3, 5) if isinstance(condition, Stream) else (2, 3) if self.condition == "product" else (2,)
        if data.ndim not in ranks or data.shape[0] != batch or data.shape[-1] != self.condition_dim:
            raise BatchError(
                f'UNet: condition "{self.condition}" needs a vector [{batch}, {self.condition_dim}] or a stream '
                f"[{batch}, T, (H, W,) {self.condition_dim}], not {list(data.shape)}.",
            )

    def _standard(self, x: Tensor, mask: Tensor) -> Tensor:
        keep = mask[:, None, None]
        count = (keep.sum((2, 3), keepdim=True) * x.shape[2]).clamp(min=1)
        mean = x.sum((2, 3), keepdim=True) / count
        centered = (x - mean) * keep
        return centered / (centered.square().sum((2, 3), keepdim=True) / count + 1e-5).sqrt()

    def _steered(
        self, x: Tensor, mask: Tensor, rate: float, condition: Tensor | Stream | None, shown: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The bottleneck [B, C, F', T'] under its condition, and what it attended to."""
        if condition is None or self.condition == "product":
            return x, None
        if self.condition == "attention":
            return self._attended(x, mask, rate, condition, shown)
        if isinstance(condition, Tensor):
            code = condition[:, None].expand(-1, x.shape[3], -1)
        else:
            code = _over_time(condition, x.shape[3], rate)  # [B, T', k]
        if self.condition == "concat":
            return torch.cat([x, code.transpose(1, 2)[:, :, None].expand(-1, -1, x.shape[2], -1)], 1), None
        steps = x.permute(0, 3, 1, 2)  # [B, T', C, F']
        steered = self.film(steps.flatten(0, 1), code.flatten(0, 1)).reshape(steps.shape)
        return steered.permute(0, 2, 3, 1), None

    def _attended(
        self, x: Tensor, mask: Tensor, rate: float, condition: Tensor | Stream, shown: bool
    ) -> tuple[Tensor, Tensor | None]:
        if isinstance(condition, Tensor):
            return self._looked(x, condition[:, None], None, shown)
        cells = self.here(Stream(x.permute(0, 3, 2, 1)[:, :, :, None], mask, rate)).data[:, :, :, 0]  # [B, T', F', C]
        keys, there, _ = self.there(condition)
        if keys.ndim == 5:
            there = there[:, :, None].expand(-1, -1, keys.shape[2] * keys.shape[3]).flatten(1)
        return self._looked(cells.permute(0, 3, 2, 1), keys.flatten(1, -2), there, shown)

    def _looked(self, x: Tensor, keys: Tensor, there: Tensor | None, shown: bool) -> tuple[Tensor, Tensor | None]:
        return self.look(x, keys, there, return_attention=True) if shown else (self.look(x, keys, there), None)

    def _multiplied(self, x: Tensor, stream: Stream, condition: Tensor | Stream | None) -> Tensor:
        f = x.unflatten(1, (self.dim, self.condition_dim)) * self.scale[:, None, None]  # [B, outputs, k, F, T]
        if isinstance(condition, Stream):
            code = _over_time(condition, x.shape[3], stream.rate)
            return torch.einsum("bokft,btk->btfo", f, code) + self.bias
        assert condition is not None
        several = condition[:, None] if condition.ndim == 2 else condition
        return torch.einsum("bokft,bnk->btfno", f, several).flatten(3) + self.bias

    def _shaped(self, z: Tensor, x: Tensor) -> Tensor:
        """The output [B, T, F, outputs] of z for the input x [B, T, F, inputs]."""
        if self.output == "logits":
            return z
        if self.output == "signal" and self.inputs == 1:
            return torch.sigmoid(z) * x
        mask = torch.tanh(z / 2)
        if self.output == "complex":
            return mask
        real, imaginary = mask[..., ::2], mask[..., 1::2]
        product = torch.stack(
            [real * x[..., :1] - imaginary * x[..., 1:], real * x[..., 1:] + imaginary * x[..., :1]], -1
        )
        return product.flatten(3)


def _up(upsampling: Upsampling, wide: int, narrow: int) -> nn.Module:
    if upsampling == "transposed":
        return nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1)
    return nn.Conv2d(wide, narrow, 3, padding=1)


def _doubled(x: Tensor, mask: Tensor) -> Tensor:
    """x [B, C, F, T] at twice the size, bilinear; along time only recorded steps are blended."""
    weight = interpolate(mask[:, None].to(x.dtype), scale_factor=2.0, mode="linear")[:, :, None]
    return interpolate(x, scale_factor=2.0, mode="bilinear") / weight.clamp(min=0.25)


def _over_time(condition: Stream, steps: int, rate: float) -> Tensor:
    """A sequence or map averaged into ``steps`` steps of ``rate`` a second: [B, steps, k]."""
    data = condition.data.mean((2, 3)) if condition.data.ndim == 5 else condition.data
    kept = condition._replace(data=data.masked_fill(~condition.mask[:, :, None], 0))
    return on_clock(kept, steps=steps, seconds=steps / rate)
