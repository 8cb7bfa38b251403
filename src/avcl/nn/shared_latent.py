"""One latent for all modalities: joined by concatenation, or by attention of one modality over the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.attention import MultiHeadAttention
from avcl.nn.autoencoders import Error, ModalAutoencoder, Present, Value, kept, reconstruction, rows_of, some
from avcl.nn.conditioning import positive
from avcl.nn.pooling import masked_mean
from avcl.objectives import l2
from avcl.objectives.inputs import at_least
from avcl.types import Stream


class SharedLatent(ModalAutoencoder):
    """What both have: ``encode`` returns {"shared": z [B, dim]}, and every decoder starts from z.

    ``L = Σ_m w_m error(x̂_m, x_m)``, ``weights`` w by target, 1 where none is given.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        *,
        weights: Mapping[str, float] | None = None,
        error: Error = l2,
    ):
        super().__init__(encoders, decoders)
        self.weights, self.error = dict(weights or {}), error
        for name, weight in self.weights.items():
            at_least(f"the weight of {name}", weight)
        self.latents = ("shared",)

    def terms(
        self,
        latents: Mapping[str, Tensor],
        targets: Mapping[str, Value],
        *,
        label: Tensor | None = None,
        present: Present = None,
        generator: torch.Generator | None = None,
    ) -> Mapping[str, Tensor]:
        """``{target}_from_shared`` for every modality of ``targets`` that has a decoder."""
        terms = {}
        for name in (n for n in self.decoders if n in targets and self.weights.get(n, 1.0) > 0):
            rows = rows_of(name, present, targets)
            cost = reconstruction(self.error, self.decode(latents["shared"], name), targets[name], rows)
            terms[f"{name}_from_shared"] = self.weights.get(name, 1.0) * cost
        return some(terms)


class Gate(nn.Module):
    """``y = x (1 + strength · tanh(W x + b))``: how much a modality, or each of its features, counts for this concept.

    "scalar": W is one row, "vector": square. x [..., dim]; to be put before an encoder. Wang et al. 2018, whose
    strength is 0.1. Pitfall: with so small a strength no gate can close; it weighs, it does not choose.
    """

    def __init__(self, dim: int, kind: Literal["scalar", "vector"] = "vector", *, strength: float = 0.1):
        super().__init__()
        positive(dim=dim)
        if kind not in ("scalar", "vector"):
            raise ConfigError(f'a gate is "scalar" or "vector", not "{kind}".')
        self.dim, self.strength = dim, strength
        self.linear = nn.Linear(dim, 1 if kind == "scalar" else dim)

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.strength * torch.tanh(self.linear(x)))


class ConcatAE(SharedLatent):
    """Shared latent by concatenation: ``z = tanh(W [h_1 ; ... ; h_M] + b)``, ``[u_1 ; ...] = tanh(W' z + b')``,
    ``x̂_m = g_m(u_m)``, ``L = Σ_m w_m error(x̂_m, x_m)``

    ``widths``: of each encoder's output h_m [B, widths[m]], which is also that of u_m · ``dim`` of z · ``dropout``:
    share of the training rows with two modalities or more that lose one of them, drawn uniformly · ``weights`` w by
    target. A decoder of another name than an encoder's starts from z itself: the association of Wang et al. ("the
    vector of another clip of the class"), with its own key in ``targets``. An absent modality is h_m = 0, which for
    tanh units is the middle. ``Gate`` goes before an encoder.

    Wang, Zhang, Zong 2018 (without dropout); dropout of a modality after Ngiam et al. 2011. Pitfall: without dropout
    the latent of a single modality is one that the decoders have never seen.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        *,
        widths: Mapping[str, int],
        dim: int,
        dropout: float = 0.0,
        weights: Mapping[str, float] | None = None,
        error: Error = l2,
    ):
        super().__init__(encoders, decoders, weights=weights, error=error)
        positive(dim=dim, **{f"widths of {name}": width for name, width in widths.items()})
        if set(widths) != set(encoders):
            raise ConfigError("widths must name every modality that has an encoder, and no other.")
        if not 0 <= dropout <= 1:
            raise ConfigError(f"dropout = {dropout} must lie in [0, 1].")
        self.widths = {name: widths[name] for name in self.modalities}
        self.dim, self.dropout = dim, dropout
        self.join, self.split = nn.Linear(sum(widths.values()), dim), nn.Linear(dim, sum(widths.values()))

    def encode(
        self,
        inputs: Mapping[str, Value],
        *,
        present: Present = None,
        generator: torch.Generator | None = None,
    ) -> Mapping[str, Tensor]:
        names = self.named(inputs)
        there = torch.stack([rows_of(name, present, inputs) for name in names])
        if self.training and self.dropout > 0:
            there = self._without_one(there, generator)
        parts = {name: kept(self.encoded(name, inputs, present), rows) for name, rows in zip(names, there, strict=True)}
        for name, h in parts.items():
            if h.shape != (there.shape[1], self.widths[name]):
                raise BatchError(f"the latent of {name} must be [B, {self.widths[name]}], not {tuple(h.shape)}.")
        blank = parts[names[0]]
        row = [parts.get(m, blank.new_zeros(len(blank), width)) for m, width in self.widths.items()]
        return {"shared": torch.tanh(self.join(torch.cat(row, 1)))}

    def _without_one(self, there: Tensor, generator: torch.Generator | None) -> Tensor:
        """[M, B] with one True less in a share ``dropout`` of the columns that have two or more."""
        device = there.device if generator is None else generator.device
        draws = torch.rand(2, *there.shape, generator=generator, device=device).to(there.device)
        loses = (draws[0, 0] < self.dropout) & (there.sum(0) > 1)
        lost = draws[1].masked_fill(~there, -1).argmax(0)  # uniform among those present
        return there & ~(F.one_hot(lost, len(there)).T.bool() & loses)

    def decode(self, latent: Tensor, modality: str) -> Tensor:
        parts = dict(zip(self.widths, torch.tanh(self.split(latent)).split(list(self.widths.values()), 1), strict=True))
        return super().decode(parts.get(modality, latent), modality)


class AttentionSharedLatent(SharedLatent):
    """Shared latent by attention of one modality, the ``query``, over the other, the context.

    - "gate": ``A = σ(conv(f_q))`` [B, 1, H, W], ``z = W pool(gelu(conv([f_q ; A c])))``: the query's encoder gives a
      map [B, C, H, W], the context's a vector [B, K], which is laid on every place by its weight (Zhao et al. 2019).
    - "dot": ``z = mean_t (Σ_s softmax_s(q_t·k_s / √d) v_s + h_t)``: both encoders give sequences, Streams or [B, T, C];
      ``heads`` of them; the mean is over recorded steps; without ``residual`` h_t is left out.

    ``widths``: channels of each encoder's output · ``dim`` of z. ``encode_with_map`` also returns the map: A, or
    [B, heads, T, S]. An absent context adds nothing; an absent query is one place, or one step, of zeros. Pitfall: the
    gate of "gate" sees the query alone: it learns where things sound, not what sounds here.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        *,
        query: str,
        widths: Mapping[str, int],
        dim: int,
        kind: Literal["gate", "dot"] = "dot",
        heads: int = 1,
        residual: bool = True,
        weights: Mapping[str, float] | None = None,
        error: Error = l2,
    ):
        super().__init__(encoders, decoders, weights=weights, error=error)
        positive(dim=dim, heads=heads, **{f"widths of {name}": width for name, width in widths.items()})
        if len(encoders) != 2 or set(widths) != set(encoders) or query not in encoders:
            raise ConfigError("attention joins two modalities: name the width of both, and one of them as the query.")
        if kind not in ("gate", "dot"):
            raise ConfigError(f'kind = "{kind}" is not "gate" or "dot".')
        self.query, (self.context,) = query, [name for name in encoders if name != query]
        self.widths, self.dim, self.kind, self.residual = dict(widths), dim, kind, residual
        mine, other = widths[query], widths[self.context]
        if kind == "gate":
            self.map = nn.Conv2d(mine, 1, 1)
            self.fuse = nn.Conv2d(mine + other, dim, 3, padding=1)
            self.output = nn.Linear(dim, dim)
        else:
            self.into = nn.Linear(mine, dim)
            self.attention = MultiHeadAttention(dim, heads=heads, context_dim=other)

    def encode(self, inputs: Mapping[str, Value], *, present: Present = None) -> Mapping[str, Tensor]:
        return self.encode_with_map(inputs, present=present)[0]

    def encode_with_map(
        self, inputs: Mapping[str, Value], *, present: Present = None
    ) -> tuple[Mapping[str, Tensor], Tensor]:
        """({"shared": z}, the attention map)."""
        names = self.named(inputs)
        there = {name: rows_of(name, present, inputs) for name in names}
        found = {name: self.encoded(name, inputs, present) for name in names}
        z, weights = (self._gated if self.kind == "gate" else self._attended)(found, there)
        return {"shared": z}, weights

    def _gated(self, found: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        some_rows = next(iter(found.values()))
        places = found.get(self.query, some_rows.new_zeros(len(some_rows), self.widths[self.query], 1, 1))
        vector = found.get(self.context, some_rows.new_zeros(len(some_rows), self.widths[self.context]))
        if places.ndim != 4 or places.shape[1] != self.widths[self.query]:
            raise BatchError(f"{self.query} must be a map [B, {self.widths[self.query]}, H, W], not {_shape(places)}.")
        if vector.shape != (len(places), self.widths[self.context]):
            raise BatchError(f"{self.context} must be [B, {self.widths[self.context]}], not {_shape(vector)}.")
        places = kept(places, there[self.query]) if self.query in there else places
        vector = kept(vector, there[self.context]) if self.context in there else vector
        gate = torch.sigmoid(self.map(places))
        both = torch.cat([places, gate * vector[:, :, None, None]], 1)
        return self.output(F.gelu(self.fuse(both)).mean((2, 3))), gate

    def _attended(self, found: Mapping[str, Tensor | Stream], there: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        sides = {name: self._steps(name, found, there) for name in (self.query, self.context)}
        (x, x_mask), (c, c_mask) = sides[self.query], sides[self.context]
        h = self.into(x) * x_mask[:, :, None]
        blank = ~x_mask.any(1, keepdim=True)  # a row without a query looks once, with zeros
        x_mask = torch.cat([x_mask[:, :1] | blank, x_mask[:, 1:]], 1)
        seen, weights = self.attention(h, c, mask=c_mask, return_attention=True)
        assert weights is not None
        return masked_mean(seen + h if self.residual else seen, x_mask), weights * x_mask[:, None, :, None]

    def _steps(
        self, name: str, found: Mapping[str, Tensor | Stream], there: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """[B, T, C] and mask [B, T] of one side; one step that nobody recorded where the modality is absent."""
        if name not in found:
            rows = next(iter(there.values()))
            dtype = next(self.parameters()).dtype
            blank = torch.zeros(len(rows), 1, self.widths[name], dtype=dtype, device=rows.device)
            return blank, torch.zeros(len(rows), 1, dtype=torch.bool, device=rows.device)
        value = found[name]
        data = value.data if isinstance(value, Stream) else value
        if data.ndim != 3 or data.shape[2] != self.widths[name]:
            raise BatchError(f"{name} must be steps [B, T, {self.widths[name]}], not {_shape(data)}.")
        steps = there[name][:, None].expand(data.shape[:2])
        steps = steps & value.mask if isinstance(value, Stream) else steps
        return data.masked_fill(~steps[:, :, None], 0), steps


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
