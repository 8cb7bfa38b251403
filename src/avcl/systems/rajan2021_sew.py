"""SEW: stronger enhancing weaker, an emotion model that is trained with two modalities and answers with any of them.

Claim (Rajan, Brutti, Cavallaro 2021): the modality that tells less, W, tells more if its code learned to *translate*
into the features of the stronger one, S, and to *correlate* with the code of S; at test S may be missing.

    z_w = E_w(x_w), z_s = E_s(x_s)                  x: features [T, d] on one clock · E: recurrent, both directions
    L = a MSE(D_ws(z_w), x_s)                       translation of the weak into the strong
      + b MSE(D_s(z_s), x_s)                        auto-encoder of the strong
      - c Σ_i σ_i(T), T = Σ_ww^{-½} Σ_ws Σ_ss^{-½}  correlation of P(z_w) and Q(z_s), over all steps of the batch
      + d Σ_m CE(C_m(mean_t z_m), y)                the task, from each code alone

Where both modalities are there, their log-probabilities are added; where one is missing, the other answers. Feature
arrays are brought to zero mean and unit variance. Media are first read by convolutions, which task and correlation
train, and their output to unit variance at each step; as a target it gets no gradient, or the least error would be
features that say nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.audio import LogMelConv
from avcl.encoders.clips import in_unit_range
from avcl.encoders.faces import PlacedConv
from avcl.encoders.recurrent import Recurrent
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.pooling import masked_mean, on_clock
from avcl.nn.standardize import Standardize, learn_scales
from avcl.objectives.classification import cross_entropy
from avcl.objectives.deep_correlation import deep_cca
from avcl.objectives.reconstruction import l2
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream, StreamSpec

CARD = Card(
    title="Robust latent representations via cross-modal translation and alignment",
    year=2021,
    venue="ICASSP",
    authors="V. Rajan, A. Brutti, A. Cavallaro",
    survey={
        "paper": "Rajan et al., 2021",
        "objective": "MSE + DCCA + CE",
        "learning": "Supervised",
        "application": "Emotion Recognition",
        "metric": "ACC",
        "performance": "56.5(A)/55.2(V)",
        "datasets": "SEW",
    },
    paper=(
        "RECOLA (AVEC 2016): the survey's 56.5 and 55.2 are read as CCC .565 and .552 of its two dimensions. SEW is "
        "the method's name, not a data set, and the paper's task is regression (abstract and introduction)",
    ),
    fidelity="reconstruction: translation, alignment and the use of the weak modality alone are in the paper's text; "
    "sizes, weights and the task loss are not known to us, and no code is public.",
    deviations=(
        "Classes and cross-entropy, as the survey lists it, instead of continuous emotion: the data here have classes.",
        "The strong modality has a classifier of its own, so that the model answers from both, or from either alone.",
        "Features of each clip are averaged into one step where they come as arrays, which have no common clock.",
        "Media are read by small convolutional networks that learn along, in place of eGeMAPS and LGBP-TOP features.",
        "Everything is trained at once; whether the strong auto-encoder came first in the paper is not known.",
    ),
    original_license="no code",
)


@dataclass(frozen=True)
class SEWConfig(MediaConfig):
    """Settings of ``rajan2021_sew``."""

    batch_size: int = 64
    learning_rate: float = 1e-3
    fps: float = 1.0  # an expression is read from stills
    strong: str = "video"  # which modality is the stronger one; the other is enhanced
    steps: int = 6  # of the common clock in one window of media
    hidden: int = 64  # of E, each direction
    depth: int = 1  # layers of E
    decoder: int = 128  # units of the hidden layer of D
    components: int = 4  # outputs of P and Q; the steps of a clip are alike, so it is clips that must outnumber them
    ridge: float = 1e-3  # of the correlation
    translation: float = 1.0  # a
    reconstruction: float = 1.0  # b
    correlation: float = 0.1  # c
    task: float = 1.0  # d
    dropout: float = 0.3
    smoothing: float = 0.1  # of the labels: over-confident codes add up badly

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "steps": (1, MAX),
        "hidden": (1, MAX),
        "depth": (1, 100),
        "decoder": (1, MAX),
        "components": (1, MAX),
        "ridge": (0.0, MAX),
        "translation": (0.0, MAX),
        "reconstruction": (0.0, MAX),
        "correlation": (0.0, MAX),
        "task": (0.0, MAX),
        "dropout": (0.0, 0.99),
        "smoothing": (0.0, 0.99),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, steps=3, fps=1.0, hidden=8, decoder=12, components=2, dropout=0.0)


# The same clips every epoch: a face takes longer to render than to learn from.
TRIAL = Trial(
    task="recognition",
    preset="emotion",
    clips=1200,
    test=400,
    fresh=False,
    settings={"epochs": 20, "batch_size": 32, "learning_rate": 2e-3, "size": (48, 48), "sample_rate": 8000},
    short={"epochs": 8, "batch_size": 12, "dropout": 0.0},
    short_clips=48,
    watch="task",
)


class _Front(nn.Module):
    """x_m: the stream as features on the common clock [B, steps, dim]."""

    def __init__(self, spec: StreamSpec, steps: int, seconds: float):
        super().__init__()
        self.steps, self.seconds = steps, seconds
        self.net: PlacedConv | LogMelConv | None = None
        if spec.kind == "video":
            height, width = spec.shape[-2:]
            self.net = PlacedConv((height, width))
        elif spec.kind == "audio":
            self.net = LogMelConv(widths=(16, 32, 48))
        elif spec.kind != "features":
            raise ConfigError(f'sew has no encoder for a stream of kind "{spec.kind}".')
        self.dim = spec.shape[-1] if self.net is None else self.net.dim
        self.scale = Standardize(self.dim) if self.net is None else None
        self.norm = nn.LayerNorm(self.dim, elementwise_affine=False)

    def forward(self, stream: Stream) -> Stream:
        if self.scale is not None:
            data = self.scale(masked_mean(stream.data.float(), stream.mask))
            there = stream.mask.any(1, keepdim=True)
            return Stream(data[:, None] * there[:, :, None], there, 1.0)
        assert self.net is not None
        seen = self.net(in_unit_range(stream))
        ones = seen._replace(data=seen.mask[:, :, None].to(seen.data.dtype))
        data, there = (on_clock(x, steps=self.steps, seconds=self.seconds) for x in (seen, ones))
        mask = there[:, :, 0] > 0
        return Stream(self.norm(data) * mask[:, :, None], mask, self.steps / self.seconds)

    def target(self, features: Tensor) -> Tensor:
        """What a decoder is to give back [B, T, dim]."""
        return features.detach()


class _Encoder(nn.Module):
    """E: ``W σ(x) + BiGRU(x)``, [B, T, D] to [B, T, dim]; the direct path takes the gradient to the convolutions below.
    Of a single step, about which nothing is recurrent: a perceptron.
    """

    def __init__(self, features: int, config: SEWConfig, *, recurrent: bool):
        super().__init__()
        self.dim = 2 * config.hidden
        self.gru = None
        if recurrent:
            self.gru = Recurrent(features, hidden=config.hidden, depth=config.depth, dropout=config.dropout)
        inner = features if recurrent else self.dim
        self.first = nn.Identity() if recurrent else nn.Linear(features, inner)
        self.direct = nn.Sequential(nn.GELU(), nn.Dropout(config.dropout), nn.Linear(inner, self.dim))

    def forward(self, stream: Stream) -> Stream:
        z = self.direct(self.first(stream.data))
        z = torch.tanh(z) if self.gru is None else z + self.gru(stream).data
        return stream._replace(data=z * stream.mask[:, :, None])


def _decoder(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


class SEW(system.System):
    """Two encoders, the translator of the weak code, the auto-encoder of the strong one, and a classifier of each."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = SEWConfig
    trial: ClassVar[Trial | None] = TRIAL
    config: SEWConfig

    def __init__(self, config: SEWConfig, spec: DataSpec):
        super().__init__(config, spec)
        names = config.chosen(spec)
        if len(names) != 2:
            raise ConfigError(f"sew has a weak and a strong modality, not {', '.join(names)}.", hint="Set modalities.")
        if config.strong not in names:
            raise ConfigError(
                f'strong = "{config.strong}" is no modality here.', hint=did_you_mean(config.strong, set(names))
            )
        if spec.n_classes < 2:
            raise ConfigError("sew needs labels of two classes or more.", hint='Give a "label" column.')
        self.strong = config.strong
        (self.weak,) = (name for name in names if name != config.strong)
        self.modalities = (self.weak, self.strong)
        c = config
        fronts = {name: _Front(spec.streams[name], c.steps, c.window) for name in self.modalities}
        self.fronts = nn.ModuleDict(fronts)
        self.encoders = nn.ModuleDict(
            {name: _Encoder(front.dim, c, recurrent=front.net is not None) for name, front in fronts.items()}
        )
        width, target = 2 * c.hidden, fronts[self.strong].dim
        self.dropout = nn.Dropout(c.dropout)
        self.translate, self.rebuild = _decoder(width, c.decoder, target), _decoder(width, c.decoder, target)
        self.project = nn.ModuleDict({name: nn.Linear(width, c.components, bias=False) for name in self.modalities})
        self.classify = nn.ModuleDict({name: nn.Linear(width, spec.n_classes) for name in self.modalities})

    def _front(self, name: str) -> _Front:
        return cast(_Front, self.fronts[name])

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of feature arrays, before the first step."""
        scales = {name: self._front(name).scale for name in self.modalities}
        if epoch == 0:
            learn_scales({name: scale for name, scale in scales.items() if scale is not None}, batches)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Codes, what is decoded from them, and the target, one row a clip; "audio?" [B, T]: the recorded steps."""
        encoded = {"label": batch.label}
        for name, stream in zip(self.modalities, batch.require(*self.modalities), strict=True):
            x, z = self._code(stream, name)
            encoded |= {name: self.project[name](z.data), f"{name}?": z.mask, f"{name} logits": self._logits(z, name)}
            if name == self.strong:
                encoded |= {"target": self._front(name).target(x.data), "rebuilt": self.rebuild(z.data)}
            else:
                encoded["translated"] = self.translate(z.data)
        return encoded

    def _code(self, stream: Stream, name: str) -> tuple[Stream, Stream]:
        x = self.fronts[name](stream)
        return x, self.encoders[name](x._replace(data=self.dropout(x.data)))

    def _logits(self, code: Stream, name: str) -> Tensor:
        return self.classify[name](self.dropout(masked_mean(code.data, code.mask)))

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """The four terms, weights included; "correlation" is below zero."""
        c, weak, strong = self.config, encoded[f"{self.weak}?"], encoded[f"{self.strong}?"]
        both = weak & strong
        if not bool(both.any()):
            raise BatchError(f"no clip of the batch has both {self.weak} and {self.strong}.")
        rows = [encoded[name][both] for name in self.modalities]
        corr = rows[0].new_zeros(())
        if self.training or len(rows[0]) > c.components:  # a handful of validation clips has no correlation to tell
            corr = deep_cca(rows[0], rows[1], dim=c.components, ridge=c.ridge)
        return {
            "translation": c.translation * l2(encoded["translated"], encoded["target"], weight=both[:, :, None]),
            "reconstruction": c.reconstruction * l2(encoded["rebuilt"], encoded["target"], weight=strong[:, :, None]),
            "correlation": c.correlation * corr,
            "task": c.task * torch.stack([self._task(encoded, name) for name in self.modalities]).sum(),
        }

    def _task(self, encoded: Mapping[str, Tensor], name: str) -> Tensor:
        """Cross-entropy of one code, over the clips that have the modality and a label."""
        rows = encoded[f"{name}?"].any(1) & (encoded["label"] >= 0)
        if not bool(rows.any()):
            raise BatchError(f"no clip of the batch has {name} and a label.")
        return cross_entropy(encoded[f"{name} logits"][rows], encoded["label"][rows], smoothing=self.config.smoothing)

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Sum of the log-probabilities of the modalities that each clip has: float32 [B, C]; equal where it has none.
        BatchError where the batch has neither stream.
        """
        known = [name for name in self.modalities if name in batch.streams]
        if not known:
            batch.require(*self.modalities)
        parts = []
        for name in known:
            stream = batch.streams[name]
            said = self._logits(self._code(stream, name)[1], name).float().log_softmax(1)
            parts.append(said * stream.mask.any(1)[:, None])
        return torch.stack(parts).sum(0)
