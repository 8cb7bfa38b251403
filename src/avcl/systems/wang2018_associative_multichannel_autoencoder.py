"""AMA: an associative multichannel auto-encoder, one code from all channels of a concept (Wang, Zhang, Zong 2018).

Claim: a code that gives back what went in, and also what is associated with it, is nearer to what people mean by a
concept than its channels are; and a channel that is missing can be predicted from those that are there.

    x̃_m = x_m (1 + .1 tanh(W_m x_m + b_m))          gate of channel m: one number ("scalar") or one a feature ("vector")
    z   = tanh(W [h_1 ; ... ; h_M] + b),  h_m = tanh layers of x̃_m
    x̂_m = mirrored tanh layers of u_m,  [u_1 ; ... ; u_M] = tanh(W' z + b'),  t̂ = tanh layers of z
    L   = r Σ_m mean (x̂_m - x_m)² + a mean (t̂ - t)²

Three stages: the auto-encoder; the association decoder alone; everything, at a tenth of the rate. Associated with a
clip (t) is, drawn anew at every step, another clip of its class ("clip"), or its class as a row of zeros and a one,
behind a sigmoid ("label"). x_m are standardized and squeezed into [-1, 1], where tanh can reach them.

Every clip is coded from all of its channels and from each alone, and every one of these codes must explain all: that
makes codes of single channels comparable, by their cosine. In the place of a missing channel m stands x_n R_nm, the
ridge regression from a channel that is there ("predict"; from several, the mean), or h_m = 0 ("zero").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.clip_vector import ClipVector
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.autoencoders import reconstruction
from avcl.nn.dense import dense, glorot
from avcl.nn.shared_latent import ConcatAE, Gate
from avcl.objectives.correlation import Moments, add_moments
from avcl.objectives.reconstruction import l2
from avcl.system import MAX, MediaConfig, Phase, Step, Trial
from avcl.types import Batch, Card, DataSpec

CARD = Card(
    title="Associative multichannel autoencoder for multimodal word representation",
    year=2018,
    venue="EMNLP",
    authors="S. Wang, J. Zhang, C. Zong",
    fidelity="reconstruction: layers, gates, stages and rates are those of the authors' released code; how the paper "
    "weighs the losses, and its predictor of missing channels, are not known to us.",
    deviations=(
        "Clips instead of words: associated is another clip of the class, or the class, not the word that people name.",
        "Codes of single channels are trained along, so that one channel can be searched by another.",
        "Both losses are on in the last stage (reconstruction=0: the association alone, as in the released scripts).",
        "AdamW with warm-up and cosine in every stage; weights start as Glorot's; the stages are shares of training.",
        "Inputs are standardized and squeezed into [-1, 1]; media are summarized by fixed statistics, for want of "
        "pretrained vectors.",
    ),
    original_license="none (no license file in wangshaonan/Associative-multichannel-autoencoder); nothing was copied",
)


@dataclass(frozen=True)
class AMAConfig(MediaConfig):
    """Settings of ``wang2018_associative_multichannel_autoencoder``."""

    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 0.0
    channel: tuple[int, ...] = (90, 60)  # layers of a channel, mirrored behind the code
    channel_text: tuple[int, ...] = (250, 150)
    dim: int = 300  # of the code
    gate: Literal["none", "scalar", "vector"] = "vector"
    association: Literal["none", "clip", "label"] = "clip"
    hidden: int = 350  # of the association decoder
    reconstruct: float = 1.0  # r in the last stage; in the first it is 1
    associate: float = 1.0  # a
    stages: tuple[float, ...] = (0.15, 0.2)  # where the second and the third stage begin, as shares of training
    tuning: float = 0.1  # rate of the third stage, of that of the others
    missing: Literal["predict", "zero"] = "predict"
    ridge: float = 0.1  # of the predictor, in units of the variance of a feature

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "channel": (1, MAX),
        "channel_text": (1, MAX),
        "dim": (1, MAX),
        "hidden": (1, MAX),
        "reconstruct": (0.0, MAX),
        "associate": (0.0, MAX),
        "stages": (0.0, 1.0),
        "tuning": (0.0, MAX),
        "ridge": (1e-9, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, channel=(8, 6), channel_text=(8, 6), dim=10, hidden=12)


REACH = 3.0  # deviations that become 1: what lies farther is squeezed
ALL = "all"


class AMA(system.System):
    """One auto-encoder over all channels, and the decoder of what is associated."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = AMAConfig
    similarity_name = "cosine"
    config: AMAConfig
    # The same clips every epoch: their summaries are all that is read. Few steps, so all stages at one rate.
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        clips=1600,
        fresh=False,
        settings={"epochs": 10, "association": "label", "tuning": 1.0},
        short={"epochs": 8, "batch_size": 32},
        watch="reconstruct",
    )

    def __init__(self, config: AMAConfig, spec: DataSpec):
        super().__init__(config, spec)
        c, self.modalities = config, config.chosen(spec)
        for key, known in (
            ("gate", ("none", "scalar", "vector")),
            ("association", ("none", "clip", "label")),
            ("missing", ("predict", "zero")),
        ):
            if getattr(c, key) not in known:
                raise ConfigError(f'{key} = "{getattr(c, key)}" is not one of {", ".join(known)}.')
        if len(c.stages) != 2 or c.stages[0] > c.stages[1]:
            raise ConfigError(f"stages = {c.stages} must be where the second and the third stage begin.")
        if c.association != "none" and spec.n_classes < 2:
            hint = "Set association=none, or add a label."
            raise ConfigError(f"ama associates by classes, and the data have {spec.n_classes}.", hint=hint)
        words = len(spec.vocabulary)
        vectors = {n: ClipVector(spec.streams[n], seconds=c.window, vocabulary=words) for n in self.modalities}
        self.vectors = nn.ModuleDict(vectors)
        self.sizes = {name: vector.dim for name, vector in vectors.items()}
        channels = {n: (size, *(c.channel_text if n == "text" else c.channel)) for n, size in self.sizes.items()}
        decoders: dict[str, nn.Module] = {n: _stack(sizes[::-1]) for n, sizes in channels.items()}
        if c.association != "none":
            target = spec.n_classes if c.association == "label" else sum(self.sizes.values())
            last = nn.Sigmoid() if c.association == "label" else nn.Tanh()
            decoders["association"] = nn.Sequential(_stack((c.dim, c.hidden)), glorot(c.hidden, target), last)
        self.ae = ConcatAE(
            {n: nn.Sequential(_gate(sizes[0], c.gate), _stack(sizes)) for n, sizes in channels.items()},
            decoders,
            widths={n: sizes[-1] for n, sizes in channels.items()},
            dim=c.dim,
        )
        for name, size in self.sizes.items():  # R_nm: standardized channel n to m
            for other in self.sizes:
                if other != name and c.missing == "predict":
                    self.register_buffer(f"{name}_to_{other}", torch.zeros(size, self.sizes[other]))

    def phases(self) -> tuple[Phase, ...]:
        c, everything = self.config, tuple(self.parameters())
        if c.association == "none":
            return (Phase("reconstruct", everything, ("reconstruct",)),)
        last = tuple(self.ae.decoders["association"].parameters())
        rest = tuple(p for p in everything if all(p is not q for q in last))
        (start, tune), slow = c.stages, {"learning_rate": c.tuning * c.learning_rate}
        return (
            Phase("reconstruct", rest, ("reconstruct",), end=start),
            Phase("associate", last, ("associate",), start=start, end=tune),
            Phase("tune", everything, ("reconstruct", "associate"), slow, start=tune),
        )

    # --------------------------------------------------------------------------------------------------------- learning
    @torch.no_grad()
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Before the first step, from the clips that have all channels: scales, and what one tells of the others."""
        if epoch > 0:
            return
        moments: Moments | None = None
        for batch in batches:
            streams = batch.require(*self.modalities)
            rows = torch.cat([self._vector(n).summary(s) for n, s in zip(self.modalities, streams, strict=True)], 1)
            rows = rows[batch.complete(*self.modalities)]
            moments = add_moments(moments, rows) if len(rows) else moments
        if moments is None:
            raise BatchError(f"ama needs clips that have {' and '.join(self.modalities)}.")
        at = dict(
            zip(
                self.sizes,
                torch.arange(len(moments.mean), device=moments.mean.device).split(list(self.sizes.values())),
                strict=True,
            )
        )
        deviation = torch.ones_like(moments.mean)
        for name, own in at.items():
            scale = self._vector(name).scale
            assert scale is not None
            scale.learn(Moments(moments.n, moments.mean[own], moments.scatter[own][:, own]))
            deviation[own] = scale.deviation.double()
        covariance = moments.scatter / moments.n / deviation / deviation[:, None]
        for name, own in at.items() if self.config.missing == "predict" else ():
            ridge = self.config.ridge * torch.eye(len(own), dtype=torch.float64, device=covariance.device)
            for other in self.modalities:
                if other != name:
                    found = torch.linalg.solve(covariance[own][:, own] + ridge, covariance[own][:, at[other]])
                    self.get_buffer(f"{name}_to_{other}").copy_(found)

    def _vector(self, name: str) -> ClipVector:
        return cast(ClipVector, self.vectors[name])

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Codes from all channels and from each alone ("all", "audio", ... [B, dim]), the channels in [-1, 1] ("audio!"
        [B, D]), which a clip has ("audio?" [B] bool), and its label.
        """
        streams = dict(zip(self.modalities, batch.require(*self.modalities), strict=True))
        x, there = self._channels(batch, self.modalities)
        encoded = {"label": batch.label, ALL: self._code(x, there)}
        for name in streams:
            encoded |= {name: self._code({name: x[name]}, {name: there[name]}), f"{name}?": there[name]}
            encoded[f"{name}!"] = squeezed(x[name])
        return encoded

    def _channels(self, batch: Batch, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Standardized vectors [B, D] of the channels, zeros where a clip lacks one, and who has it [B]."""
        streams = dict(zip(names, batch.require(*names), strict=True))
        return {n: self.vectors[n](s) for n, s in streams.items()}, {n: s.mask.any(1) for n, s in streams.items()}

    def _code(self, x: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> Tensor:
        """z of what is given, the rest predicted or left out; of a clip without any channel that of zeros."""
        if self.config.missing == "predict":
            x = {m: self._filled(m, x, there) for m in self.modalities}
            return self.ae.encode({m: squeezed(v) for m, v in x.items()})["shared"].float()
        return self.ae.encode({m: squeezed(v) for m, v in x.items()}, present=there)["shared"].float()

    def _filled(self, name: str, x: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> Tensor:
        """Channel ``name`` where a clip has it, else the mean of what the channels it has predict."""
        others = [n for n in x if n != name]
        if not others:
            return x[name]
        says = torch.stack([x[n] @ self.get_buffer(f"{n}_to_{name}") for n in others]).sum(0)
        count = torch.stack([there[n] for n in others]).sum(0).clamp(min=1)
        guess = says / count[:, None]
        return guess if name not in x else torch.where(there[name][:, None], x[name], guess)

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """ "reconstruct" and "associate", weights included: the mean over the codes of a clip."""
        c, codes = self.config, (ALL, *self.modalities)
        there = {name: encoded[f"{name}?"] for name in self.modalities}
        able = torch.stack(list(there.values()))
        rows = {ALL: able.any(0), **there}
        terms = {}
        if at.turn != "associate":
            weight = 1.0 if at.turn == "reconstruct" or c.association == "none" else c.reconstruct
            errors = [self._error(encoded[k], m, encoded[f"{m}!"], rows[k] & there[m]) for k in codes for m in there]
            terms["reconstruct"] = weight * torch.stack(errors).sum() / len(codes)
        if c.association != "none" and at.turn != "reconstruct":
            target, known = self._associated(encoded, able.all(0), at.generator)
            errors = [self._error(encoded[k], "association", target, rows[k] & known) for k in codes]
            terms["associate"] = c.associate * torch.stack(errors).mean()
        return terms

    def _error(self, code: Tensor, name: str, target: Tensor, rows: Tensor) -> Tensor:
        return reconstruction(l2, self.ae.decode(code, name).float(), target, rows)

    def _associated(
        self, encoded: Mapping[str, Tensor], complete: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """What is associated with each clip [B, n], and where anything is [B]."""
        label = encoded["label"]
        if not bool((label >= 0).any()):
            raise BatchError("ama associates by labels, and no clip of the batch has one.")
        if self.config.association == "label":
            one = nn.functional.one_hot(label.clamp(min=0), self.spec.n_classes).to(encoded[ALL].dtype)
            return one, label >= 0
        mate, known = mates(label, complete, generator)
        return torch.cat([encoded[f"{m}!"] for m in self.modalities], 1)[mate], known

    # ---------------------------------------------------------------------------------------------------- capabilities
    def _names(self, modality: str) -> tuple[str, ...]:
        names = tuple(modality.split("+"))
        for name in names:
            if name not in self.modalities:
                raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
        return names

    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """z of one channel, or of several together ("audio+video"), entries in (-1, 1): float32 [B, dim]."""
        return self._code(*self._channels(batch, self._names(modality)))

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """z of one channel, or of several together ("audio+video"), of unit length: float32 [B, dim]."""
        return nn.functional.normalize(self.features(batch, modality), dim=1)

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return nn.functional.normalize(q, dim=1) @ nn.functional.normalize(g, dim=1).T


def squeezed(x: Tensor) -> Tensor:
    """Standardized numbers into [-1, 1]: three deviations are 1."""
    return (x / REACH).clamp(-1, 1)


def mates(label: Tensor, able: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each of [B] labels the row of another clip of its class among those ``able`` [B], drawn anew; its own where
    there is no other. And which rows have one [B] bool: not those without a label (-1).
    """
    same = (label[:, None] == label) & able & (label >= 0)[:, None]
    other = same & ~torch.eye(len(label), dtype=torch.bool, device=label.device)
    choice = torch.where(other.any(1, keepdim=True), other, same)
    known = choice.any(1)
    weights = torch.where(known[:, None], choice, True).float().to(generator.device)
    return torch.multinomial(weights, 1, generator=generator)[:, 0].to(label.device), known


def _stack(sizes: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(*dense(sizes, activation="tanh"))


def _gate(dim: int, kind: Literal["none", "scalar", "vector"]) -> nn.Module:
    return nn.Identity() if kind == "none" else Gate(dim, kind)
