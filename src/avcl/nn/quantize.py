"""Vector quantization: latents that are one of K learned vectors, and an auto-encoder over one shared codebook."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.autoencoders import CrossReconstruction, Error, Pair, Present, Value, rows_of
from avcl.nn.conditioning import positive
from avcl.objectives import l2
from avcl.objectives.inputs import at_least, full_precision, raised

ROWS = 4096  # rows whose distances to all codes are in memory at once


class Quantized(NamedTuple):
    """``data`` [..., D] the codes, with the gradient of what was quantized · ``number`` [...] which code, -1 where
    nothing was recorded · ``commitment``, ``codebook``: scalars without weights · ``perplexity``: how many codes are
    used, exp of the entropy of their shares in this batch, from 1 to K.
    """

    data: Tensor
    number: Tensor
    commitment: Tensor
    codebook: Tensor
    perplexity: Tensor


class VectorQuantizer(nn.Module):
    """``c(z) = e_k``, ``k = argmin_j ‖z - e_j‖``; backward the identity (straight through), forward the code.

    ``learning`` of the codes e: "ema" ``n_j ← γ n_j + (1-γ) N_j``, ``m_j ← γ m_j + (1-γ) Σ_{z→j} z``, ``e_j = m_j /
    n_j`` for those that were used, all in buffers; or "loss", where e is a Parameter moved by the
    term ``codebook`` = mean (sg(z) - e)². In both cases ``commitment`` = mean (z - sg(e))² draws the encoder to its
    code; the usual weight is .25. ``forward`` remembers nothing, so it is the same in training and evaluation, chunked
    or not; ``update``, once per optimizer step on what was quantized (``System.after_step``), moves the "ema" codes and
    puts a code whose running count n_j (rows of a step) falls below ``restart`` on a random row of the batch. Counts
    start at 1, so with ``restart`` = 1 the codes that nobody takes move to the data in the very first step.

    van den Oord et al. 2017; EMA as its appendix, restarts after Dhariwal et al. 2020. Pitfall: latents far from all
    codes use one of them, and it alone learns: keep the scale of latents near 1 (a LayerNorm before), restart, and
    watch the perplexity. With "loss" a restarted code keeps its optimizer moments for a few steps.
    """

    codebook: Tensor
    count: Tensor
    total: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        learning: Literal["ema", "loss"] = "ema",
        decay: float = 0.99,
        restart: float = 0.0,
    ):
        super().__init__()
        positive(codes=codes, dim=dim)
        if learning not in ("ema", "loss"):
            raise ConfigError(f'codes learn by "ema" or "loss", not "{learning}".')
        if not 0 <= decay < 1:
            raise ConfigError(f"decay = {decay} must lie in [0, 1).")
        at_least("restart", restart)
        self.codes, self.dim, self.learning, self.decay, self.restart = codes, dim, learning, decay, restart
        start = torch.randn(codes, dim)
        if learning == "loss":
            self.codebook = nn.Parameter(start)
        else:
            self.register_buffer("codebook", start)
        self.register_buffer("count", torch.full((codes,), max(1.0, restart)))  # nobody is dead before the first step
        self.register_buffer("total", start * self.count[:, None])

    def nearest(self, z: Tensor) -> Tensor:
        """Index [N] of the nearest code to each row [N, D]; the first one at equal distance."""
        with torch.no_grad(), full_precision(z):
            rows, book = raised(z, self.codebook)
            square = 0.5 * book.square().sum(1)
            return torch.cat([(square - part @ book.T).argmin(1) for part in rows.split(ROWS)])

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """``z`` [..., D], ``mask`` [...] bool; zeros where nothing was recorded."""
        if z.ndim < 2 or z.shape[-1] != self.dim or z.numel() == 0:
            raise BatchError(f"VectorQuantizer needs [..., {self.dim}], not {tuple(z.shape)}.")
        mask = torch.ones(z.shape[:-1], dtype=torch.bool, device=z.device) if mask is None else mask
        if mask.shape != z.shape[:-1] or mask.dtype != torch.bool:
            raise BatchError(f"mask must be bool {tuple(z.shape[:-1])}, not {mask.dtype} {tuple(mask.shape)}.")
        rows = z[mask]
        if len(rows) == 0:
            none = z.new_zeros((), dtype=torch.float32)
            empty = torch.full(mask.shape, -1, device=z.device)
            return Quantized(z.masked_fill(~mask[..., None], 0), empty, none, none, none + 1)
        index = self.nearest(rows)
        code = self.codebook[index].to(z.dtype)
        data = torch.zeros_like(z).masked_scatter(mask[..., None], code.detach() + (rows - rows.detach()))
        share = torch.bincount(index, minlength=self.codes) / len(index)
        entropy = torch.special.entr(share).sum()
        return Quantized(
            data,
            torch.full(mask.shape, -1, device=z.device).masked_scatter(mask, index),
            l2(rows, code.detach()),
            l2(rows.detach(), code),
            entropy.exp(),
        )

    def decode(self, index: Tensor) -> Tensor:
        """The codes of those numbers [...]: [..., D], zeros for -1."""
        return self.codebook[index.clamp(min=0)] * (index >= 0)[..., None]

    @torch.no_grad()
    def update(self, z: Tensor, mask: Tensor | None = None, *, generator: torch.Generator | None = None) -> int:
        """One step of the running counts and codes with what was quantized; the number of codes restarted.

        ``generator`` draws the rows for restarts. Sums are float64, so that the order of rows makes no difference.
        """
        rows = (z.reshape(-1, self.dim) if mask is None else z[mask]).detach()
        if len(rows) == 0:
            return 0
        index = self.nearest(rows)
        wide = rows.double()
        number = torch.bincount(index, minlength=self.codes).double()
        sums = torch.zeros(self.codes, self.dim, dtype=wide.dtype, device=wide.device).index_add(0, index, wide)
        count = self.decay * self.count.double() + (1 - self.decay) * number
        total = self.decay * self.total.double() + (1 - self.decay) * sums
        dead = count < self.restart
        if self.learning == "ema":
            used = number > 0  # the others stay where they are
            self.codebook[used] = (total[used] / count[used][:, None]).to(self.codebook.dtype)
        if bool(dead.any()):
            device = rows.device if generator is None else generator.device
            order = torch.rand(len(rows), generator=generator, device=device).to(rows.device).argsort()
            chosen = wide[order.repeat(math.ceil(int(dead.sum()) / len(rows)))[: int(dead.sum())]]
            self.codebook[dead] = chosen.to(self.codebook.dtype)
            count[dead] = max(1.0, self.restart)
            total[dead] = chosen * count[dead][:, None]
        self.count.copy_(count)
        self.total.copy_(total)
        return int(dead.sum())


class QuantizedAE(CrossReconstruction):
    """VQ-VAE over one codebook for all modalities: ``L = Σ_mn w_mn error(g_n(c(h_m)), x_n) + β Σ_m mean (h_m - sg c)²``

    (and the codebook's own term where it learns by "loss"). ``encode`` gives h [..., D] before the quantizer, as
    ``quantizer.update`` wants them; ``decode`` quantizes (again: a code is its own code); ``codes`` are the quantized
    latents, ``indices`` their numbers, which a Transformer may model. ``commitment`` β.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        quantizer: VectorQuantizer,
        *,
        commitment: float = 0.25,
        weights: Mapping[Pair, float] | None = None,
        error: Error = l2,
    ):
        super().__init__(encoders, decoders, weights=weights, error=error)
        at_least("commitment", commitment)
        self.quantizer, self.commitment = quantizer, commitment

    def decode(self, latent: Tensor, modality: str) -> Tensor:
        return super().decode(self.quantizer(latent).data, modality)

    def codes(self, latents: Mapping[str, Tensor], *, present: Present = None) -> Mapping[str, Tensor]:
        return {name: self.quantizer(h).data for name, h in latents.items()}

    def indices(self, latents: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Which code each latent is [...]."""
        return {name: self.quantizer(h).number for name, h in latents.items()}

    def terms(
        self,
        latents: Mapping[str, Tensor],
        targets: Mapping[str, Value],
        *,
        label: Tensor | None = None,
        present: Present = None,
        generator: torch.Generator | None = None,
    ) -> Mapping[str, Tensor]:
        """The reconstructions, ``commitment_{m}``, and ``codebook_{m}`` where the codes learn by their loss."""
        terms = dict(super().terms(latents, targets, label=label, present=present, generator=generator))
        for name, h in latents.items():
            rows = rows_of(name, present, latents, targets)
            found = self.quantizer(h, rows.reshape(-1, *[1] * (h.ndim - 2)).expand(h.shape[:-1]))
            terms[f"commitment_{name}"] = self.commitment * found.commitment
            if self.quantizer.learning == "loss":
                terms[f"codebook_{name}"] = found.codebook
        return terms
