"""Auto-encoders of several modalities: what all of them share, and reconstruction from one modality to another.

One API. Encoders and decoders are given modules, one for each modality; values are tensors [B, ...] or Streams:

- ``encode(inputs)``: what is there of the modalities to a mapping of latents, one row for each clip. Row-wise, so a
  System returns it from ``encode`` (beside the targets), where it may be chunked and cached.
- ``decode(latent, modality)``: any latent to any modality; so ``decode(encode({"video": x})["video"], "audio")``
  generates across modalities.
- ``terms(latents, targets)``: named scalars, weights included, which a System returns from ``losses``.
- ``codes(latents)``: the vectors that are compared, classified or searched.

A modality is absent where its key is not given, or row by row: ``present`` {modality: [B] bool}, which Streams bring
along in their mask. Absent rows reach neither value nor gradient.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.objectives import invariance, l2
from avcl.objectives.inputs import at_least
from avcl.types import Stream

Value = Tensor | Stream
Present = Mapping[str, Tensor] | None
Error = Callable[..., Tensor]  # objectives.l2, l1, charbonnier: (x, y, *, weight) to a scalar
Pair = tuple[str, str]  # source, target


class Autoencoder(nn.Module, ABC):
    """The one API of all of them; see above."""

    modalities: tuple[str, ...]  # those that have an encoder
    latents: tuple[str, ...]  # the names that ``encode`` may return

    @abstractmethod
    def encode(self, inputs: Mapping[str, Value], *, present: Present = None) -> Mapping[str, Tensor]:
        """The latents of what is given, [B, ...] each."""

    @abstractmethod
    def decode(self, latent: Tensor, modality: str) -> Tensor:
        """What ``modality`` looks like for this latent [B, ...]; ConfigError for one without a decoder."""

    def codes(self, latents: Mapping[str, Tensor], *, present: Present = None) -> Mapping[str, Tensor]:
        """The deterministic vectors [B, K] that are compared, classified or searched; the latents themselves where
        nothing else is said.
        """
        return latents

    @abstractmethod
    def terms(
        self,
        latents: Mapping[str, Tensor],
        targets: Mapping[str, Value],
        *,
        label: Tensor | None = None,
        present: Present = None,
        generator: torch.Generator | None = None,
    ) -> Mapping[str, Tensor]:
        """Named scalars, weights included, whose sum is to be minimized; ``targets`` are what is to be reconstructed.

        ``label`` [B] integers (-1: none), ``generator`` of the noise: used where a method has labels or noise.
        """


class ModalAutoencoder(Autoencoder):
    """An encoder and a decoder for each modality; one without a decoder is a source only, without an encoder a target.

    ``shared_encoder`` follows every encoder, ``shared_decoder`` precedes every decoder (optional).
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        *,
        shared_encoder: nn.Module | None = None,
        shared_decoder: nn.Module | None = None,
    ):
        super().__init__()
        if not encoders or not decoders:
            raise ConfigError("an auto-encoder needs at least one encoder and one decoder.")
        self.encoders, self.decoders = nn.ModuleDict(encoders), nn.ModuleDict(decoders)
        self.shared_encoder, self.shared_decoder = shared_encoder, shared_decoder
        self.modalities = tuple(encoders)
        self.latents = self.modalities

    def encode(self, inputs: Mapping[str, Value], *, present: Present = None) -> Mapping[str, Tensor]:
        """The latent of each modality of ``inputs``; rows that ``present`` rules out are encoded from zeros."""
        return {name: self.encoded(name, inputs, present) for name in self.named(inputs)}

    def decode(self, latent: Tensor, modality: str) -> Tensor:
        if modality not in self.decoders:
            hint = did_you_mean(modality, set(self.decoders))
            raise ConfigError(f'there is no decoder for "{modality}".', hint=hint)
        return self.decoders[modality](latent if self.shared_decoder is None else self.shared_decoder(latent))

    def named(self, inputs: Mapping[str, object]) -> tuple[str, ...]:
        """The modalities of ``inputs`` in the fixed order; BatchError for none, or for an unknown one."""
        for name in inputs:
            if name not in self.encoders:
                raise BatchError(f'there is no encoder for "{name}".', hint=did_you_mean(name, set(self.encoders)))
        if not inputs:
            raise BatchError(f"nothing to encode: give one of {', '.join(self.modalities)} or more.")
        return tuple(name for name in self.modalities if name in inputs)

    def encoded(self, name: str, inputs: Mapping[str, Value], present: Present) -> Tensor:
        """The output of one encoder; what stands in absent rows of a tensor does not reach it."""
        value = inputs[name]
        if isinstance(value, Tensor) and present is not None and name in present:
            value = kept(value, present[name])
        h = self.encoders[name](value)
        return h if self.shared_encoder is None else self.shared_encoder(h)


# -------------------------------------------------------------------------------------------------------- rows, errors
def kept(x: Tensor, rows: Tensor) -> Tensor:
    """``x`` [B, ...] with zeros in the rows [B] that are False, whatever stood there."""
    if rows.shape != x.shape[:1] or rows.dtype != torch.bool:
        raise BatchError(f"present must be bool [{len(x)}], not {rows.dtype} {tuple(rows.shape)}.")
    return x.masked_fill(~rows.reshape(-1, *[1] * (x.ndim - 1)), 0)


def recorded(present: Present, values: Mapping[str, Value]) -> dict[str, Tensor]:
    """``present`` and what the masks of the Streams among ``values`` add: a row without a recorded step is absent."""
    rows = dict(present or {})
    for name, value in values.items():
        if isinstance(value, Stream):
            there = value.mask.any(1)
            rows[name] = rows[name] & there if name in rows else there
    return rows


def rows_of(name: str, present: Present, *values: Mapping[str, Value]) -> Tensor:
    """[B] bool: the rows that have this modality, by ``present`` and by the mask of every Stream among the values."""
    for held in values:
        present = recorded(present, {name: held[name]} if name in held else {})
    if present is not None and name in present:
        return present[name]
    known = next((held[name] for held in values if name in held), None)
    if known is None:
        raise BatchError(f"the batch has no {name}.")
    assert isinstance(known, Tensor)  # a Stream has brought its mask
    return torch.ones(len(known), dtype=torch.bool, device=known.device)


def reconstruction(error: Error, made: Tensor, target: Value, rows: Tensor) -> Tensor:
    """``error`` over the recorded cells of the rows [B]; 0 where there are none.

    A Stream counts where its mask is True: ``made`` has the shape of its data [B, T, ...].
    """
    data = target.data if isinstance(target, Stream) else target
    live = rows[:, None] & target.mask if isinstance(target, Stream) else rows
    if not bool(live.any()):
        return torch.zeros((), device=made.device)
    return error(made, data, weight=live.reshape(*live.shape, *[1] * (data.ndim - live.ndim)))


def some(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms; BatchError where there is none."""
    if not terms:
        raise BatchError("nothing to learn: no latent meets a target that has a decoder and a weight above 0.")
    return terms


def pair_weights(
    weights: Mapping[Pair, float] | None, sources: Iterable[str], targets: Iterable[str]
) -> dict[Pair, float]:
    """The weights, or 1 for every (source, target); ConfigError for an unknown name or a negative weight."""
    pairs = list(itertools.product(sources, targets))
    if weights is None:
        return dict.fromkeys(pairs, 1.0)
    for pair, weight in weights.items():
        if pair not in pairs:
            raise ConfigError(f"weights name {pair}, which is no pair of an encoder and a decoder.")
        at_least(f"the weight of {pair}", weight)
    return {pair: weights[pair] for pair in pairs if pair in weights}


# ------------------------------------------------------------------------------------------------- across modalities
class CrossReconstruction(ModalAutoencoder):
    """Every latent answers for every modality: ``L = Σ_{m,n} w_mn error(g_n(h_m), x_n)``.

    ``weights`` {(source m, target n): w}; without it 1 for every pair. w_mm alone are separate auto-encoders, w_mn
    with m ≠ n alone a translation. With ``shared_decoder`` all g_n have one trunk, as in MS-VAE (Zhu et al. 2021).
    Rajan et al. 2021, Wang et al. 2018. Pitfall: where the other modality cannot be known, the best answer is its
    mean, and the latent drops what only its own modality shows.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        *,
        weights: Mapping[Pair, float] | None = None,
        error: Error = l2,
        shared_encoder: nn.Module | None = None,
        shared_decoder: nn.Module | None = None,
    ):
        super().__init__(encoders, decoders, shared_encoder=shared_encoder, shared_decoder=shared_decoder)
        self.weights = pair_weights(weights, encoders, decoders)
        self.error = error

    def terms(
        self,
        latents: Mapping[str, Tensor],
        targets: Mapping[str, Value],
        *,
        label: Tensor | None = None,
        present: Present = None,
        generator: torch.Generator | None = None,
    ) -> Mapping[str, Tensor]:
        """``{target}_from_{source}`` for every pair of a weight above 0 that is there."""
        terms = {}
        for (source, target), weight in self.weights.items():
            if weight > 0 and source in latents and target in targets:
                rows = rows_of(source, present, latents, targets) & rows_of(target, present, targets)
                cost = reconstruction(self.error, self.decode(latents[source], target), targets[target], rows)
                terms[f"{target}_from_{source}"] = weight * cost
        return some(terms)


class LatentPrediction(ModalAutoencoder):
    """Cross-reconstruction in the latent space, without decoding: ``L = Σ_{m≠n} w_mn ‖ q̂_n(p_m) - sg(p̂_n) ‖²``

    with p_m the encoder's (projected) output, q_n the ``predictors``, a hat for unit length and sg for no gradient.
    ``decode(p, n)`` is q_n(p). ``terms(latents, targets)``: targets are the latents themselves, or those of a slowly
    following teacher. Recasens et al. 2021 (BraVe), after Grill et al. 2020. Pitfall: nothing but the stopped gradient
    and the predictor stands against all clips getting one latent: watch the spread of the latents; a teacher
    (``objectives.Teacher``) or a decorrelation term helps.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        predictors: Mapping[str, nn.Module],
        *,
        weights: Mapping[Pair, float] | None = None,
    ):
        super().__init__(encoders, predictors)
        self.weights = pair_weights(weights, encoders, predictors)

    def terms(
        self,
        latents: Mapping[str, Tensor],
        targets: Mapping[str, Value] | None = None,
        *,
        label: Tensor | None = None,
        present: Present = None,
        generator: torch.Generator | None = None,
    ) -> Mapping[str, Tensor]:
        """``{target}_from_{source}`` for every pair of two modalities that are there."""
        goals: Mapping[str, Value] = latents if targets is None else targets
        terms = {}
        for (source, target), weight in self.weights.items():
            if source == target or weight <= 0 or source not in latents or target not in goals:
                continue
            goal = goals[target]
            if isinstance(goal, Stream) or goal.ndim != 2:
                raise BatchError("the targets of a latent prediction are latents [B, K], as encode gives them.")
            rows = rows_of(source, present, latents) & rows_of(target, present, goals)
            if bool(rows.any()):
                made = F.normalize(self.decode(latents[source][rows], target).float(), dim=1)
                sought = F.normalize(goal[rows].detach().float(), dim=1)
                terms[f"{target}_from_{source}"] = weight * invariance(made, sought, distance="squared")
        return some(terms)
