"""GDT: positive or negative is decided by which transformations of a clip are to matter.

Claim: a pretext task is a composition of transformations (which clip, which moment, forward or backward, which
modality), each *invariant* (what it changes should not show in the embedding) or *distinctive* (it should). Two views
are a positive pair where they differ in invariant factors alone; a distinctive factor makes them a negative pair, also
within one clip. Pairs are of two modalities. For a query q, its positive k and the negatives N, cosines over τ:

    L = -log ( exp(q·k / τ) / (exp(q·k / τ) + Σ_{n ∈ N} exp(q·n / τ)) ),   ½ (v → a) + ½ (a → v)

With x a view of a clip (a moment, forward or backward), Tx the same clip under T, and "others" the clips of the batch:

    base(x):            query x, positive x,  N = x of others
    distinctive(x, Tx): query x, positive x,  N = x and Tx of others, and Tx of the clip itself; the same for Tx
    invariant(x, Tx):   query x, positive Tx, N = x and Tx of others; the same for Tx; averaged with the base

``contrasts`` lists the pairs of each of the paper's nine hypotheses. Where the data have one modality only, it is
contrasted with itself, by the invariances of the hypothesis (a query is no negative of itself).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from avcl import system
from avcl.encoders.audio import LogMelConv, log_mel_stream
from avcl.encoders.clips import PictureTower, Seen
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.cutting import backward, cut, recorded_seconds, spread_starts, two_starts
from avcl.nn.pooling import masked_max, masked_mean
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream

CARD = Card(
    title="Multi-modal Self-Supervision from Generalized Data Transformations",
    year=2020,
    venue="arXiv 2003.04298; ICCV 2021 as On Compositions of Transformations in Contrastive Self-Supervised Learning",
    authors="M. Patrick, Y. M. Asano, P. Kuznetsova, R. Fong, J. F. Henriques, G. Zweig, A. Vedaldi",
    survey={
        "paper": "Patrick et al., 2020",
        "objective": "NCE",
        "learning": "Semi-Supervised",
        "application": "Sound Classification/Action Recognition",
        "metric": "ACC",
        "performance": "88.5/95.2/72.8",
        "datasets": "ESC-50/UCF101/HMDB51",
    },
    paper=(
        "UCF101 95.2, HMDB51 72.8, fine-tuned, pretrained on IG65M (model zoo of the authors' repository)",
        "UCF101 94.1, HMDB51 67.4, fine-tuned, pretrained on HowTo100M (the same)",
        "UCF101 90.9, HMDB51 62.3, fine-tuned, pretrained on Kinetics-400 (the same)",
    ),
    fidelity="paper: the pairs of all nine hypotheses and their weights as in the authors' code; towers, optimizer and "
    "training are reduced to two cores.",
    deviations=(
        "The towers of this house (two frames of a view in full size, all of them in 16 x 16 gray with their change; "
        "convolutions on the log-mel that keep absolute pitch) in place of R(2+1)D-18 and a ResNet of nine layers: an "
        "R(2+1)D of two stages knew no more classes after 400 steps than raw statistics do.",
        "Keys pass gradient, as each direction would else move one tower alone; `detach` is the authors' code.",
        "AdamW with warm-up and cosine in place of SGD with momentum over 200 epochs; temperature 0.1, not 0.07.",
        "No SpecAugment, crops or flips: every epoch of the world has new clips. Level is not drawn, as the log-mel is "
        "level-free.",
        "The default is hypothesis 5, the shift invariant: what a probe of the class asks for.",
        "Of hypotheses 7 to 9 it is known how many base terms there are and not of which views: here of the first pair "
        "of each invariance.",
        "One modality alone is contrasted with itself, for data without pictures.",
    ),
    original_license="CC BY-NC 4.0",
)


class View(NamedTuple):
    """One look at a clip: at the first or the other moment, forward or backward."""

    shifted: bool = False
    reversed: bool = False

    @property
    def number(self) -> int:
        return 2 * self.shifted + self.reversed


class Contrast(NamedTuple):
    """One set of pairs. Queries are those of view ``query``, positives the other modality's of view ``positive``;
    negatives those of other clips in ``views``, and with ``own`` those of the clip itself in ``views`` (without the
    positive).
    """

    name: str
    weight: float
    query: View
    positive: View
    views: tuple[View, ...]
    own: bool = False


def base(weight: float, *views: View) -> list[Contrast]:
    return [Contrast("base", weight / len(views), x, x, (x,)) for x in views]


def distinctive(name: str, weight: float, x: View, y: View) -> list[Contrast]:
    return [Contrast(name, weight / 2, q, q, (x, y), own=True) for q in (x, y)]


def invariant(name: str, weight: float, x: View, y: View) -> list[Contrast]:
    return [Contrast(name, weight / 2, q, k, (x, y)) for q, k in ((x, y), (y, x))]


# hypothesis: what the reversal and the shift are; the first is that a view is of its clip alone
HYPOTHESES: Mapping[int, Mapping[str, str]] = {
    1: {},
    2: {"reversal": "distinctive"},
    3: {"reversal": "invariant"},
    4: {"shift": "distinctive"},
    5: {"shift": "invariant"},
    6: {"reversal": "distinctive", "shift": "distinctive"},
    7: {"reversal": "invariant", "shift": "distinctive"},
    8: {"reversal": "distinctive", "shift": "invariant"},
    9: {"reversal": "invariant", "shift": "invariant"},
}


def contrasts(hypothesis: int) -> tuple[Contrast, ...]:
    """The pairs of a hypothesis; their weights sum to 1 (each counts half for v → a and half for a → v)."""
    roles = HYPOTHESES[hypothesis]
    if not roles:
        return tuple(base(1.0, View()))
    apply = {"distinctive": distinctive, "invariant": invariant}
    twins = {
        "reversal": [(View(s, False), View(s, True)) for s in (False, True)],  # at either moment
        "shift": [(View(False, r), View(True, r)) for r in (False, True)],  # forward and backward
    }
    terms = [(name, role, *pair) for name, role in roles.items() for pair in twins[name][: len(roles)]]
    bases = [twins[name][0] for name, role in roles.items() if role == "invariant"]
    weight = 1 / (len(terms) + len(bases))
    found = [c for name, role, x, y in terms for c in apply[role](name, weight, x, y)]
    return (*found, *(c for pair in bases for c in base(weight, *pair)))


def within_one(found: Sequence[Contrast]) -> tuple[Contrast, ...]:
    """Of these contrasts those that one modality can have with itself: where the positive is another view than the
    query. ConfigError where there is none.
    """
    left = [c for c in found if c.query != c.positive]
    if not left:
        raise ConfigError("one modality alone needs an invariance.", hint="Use hypothesis 3, 5, 7, 8 or 9.")
    total = sum(c.weight for c in left)
    return tuple(c._replace(weight=c.weight / total) for c in left)


@dataclass(frozen=True)
class GDTConfig(MediaConfig):
    """Settings of ``patrick2020_gdt``."""

    batch_size: int = 64
    learning_rate: float = 3e-3
    hypothesis: int = 5  # 1 to 9, see HYPOTHESES
    temperature: float = 0.1
    seconds: float = 1.0  # of a view
    apart: float = 0.5  # seconds between the two moments at least
    looks: int = 3  # views, evenly spread, that features and embeddings of a clip are made of
    frames: int = 2  # of a view that the picture tower sees in full size
    sound: int = 96  # channels of the sound tower
    bands: int = 48  # of the log-mel spectrogram
    hidden: int = 128  # of the projection
    dim: int = 64  # of an embedding of a view
    dropout: float = 0.0  # in the projection
    detach: bool = False  # no gradient through keys, as in the authors' code

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "hypothesis": (1, 9),
        "temperature": (0.01, MAX),
        "seconds": (0.05, MAX),
        "apart": (0.0, MAX),
        "looks": (1, 100),
        "frames": (1, MAX),
        "sound": (1, MAX),
        "bands": (8, MAX),
        "hidden": (1, MAX),
        "dim": (1, MAX),
        "dropout": (0.0, 0.99),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, size=(32, 32), sound=16, hidden=16, dim=8)


class SpectrumTower(nn.Module):
    """Convolutions on a log-mel spectrum [B, T, bands]: mean and maximum over time, [B, dim]."""

    def __init__(self, bands: int, dim: int):
        super().__init__()
        self.net = LogMelConv(bands=bands, dim=dim)
        self.dim = 2 * dim

    def forward(self, stream: Stream) -> Seen:
        heard = self.net.on_spectrum(stream)
        return Seen(torch.cat([masked_mean(heard.data, heard.mask), masked_max(heard.data, heard.mask)], 1), heard)


class GDT(system.System):
    """One tower and one projection for each modality; the loss runs over the pairs of a hypothesis."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = GDTConfig
    learns_from: ClassVar[tuple[str, ...]] = ("media",)
    alone: ClassVar[bool] = True
    similarity_name = "cosine"
    config: GDTConfig
    trial: ClassVar[Trial | None] = Trial(
        task="probe",
        preset="retrieval",
        protocol={"labeled": 600},
        clips=1920,
        test=400,
        retime=0.7,
        settings={"epochs": 8},
        short={"epochs": 4, "batch_size": 16},
        short_clips=64,
    )

    def __init__(self, config: GDTConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.modalities = self._chosen(config, spec)
        kinds = {name: spec.streams[name].kind for name in self.modalities}
        if set(kinds.values()) - {"audio", "video"}:
            raise ConfigError(f"GDT has towers for sound and pictures, not for {kinds}.")
        towers = {
            name: PictureTower(config.frames) if kind == "video" else SpectrumTower(config.bands, config.sound)
            for name, kind in kinds.items()
        }
        self.towers = nn.ModuleDict(towers)
        self.heads = nn.ModuleDict({name: self._head(tower.dim) for name, tower in towers.items()})
        self.contrasts = contrasts(config.hypothesis)
        if len(self.modalities) == 1:
            self.contrasts = within_one(self.contrasts)
        self.views = sorted({v for c in self.contrasts for v in (c.query, c.positive, *c.views)})

    @staticmethod
    def _chosen(config: GDTConfig, spec: DataSpec) -> tuple[str, ...]:
        """Two modalities, or the only one there is."""
        names = config.modalities or tuple(spec.streams)
        if len(names) == 1 and names[0] in spec.streams:
            return names
        names = config.chosen(spec)
        if len(names) > 2:
            raise ConfigError(
                f"GDT pairs two modalities, not {', '.join(names)}.", hint="Name two: modalities=audio,video."
            )
        return names

    def _head(self, width: int) -> nn.Sequential:
        c = self.config
        first, norm, last = nn.Linear(width, c.hidden, bias=False), nn.BatchNorm1d(c.hidden), nn.Linear(c.hidden, c.dim)
        return nn.Sequential(nn.Dropout(c.dropout), first, norm, nn.ReLU(), nn.Dropout(c.dropout), last)

    # --------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """Of each modality the embeddings of every view [B, views, dim], and which rows have it ("audio?" [B] bool)."""
        streams = dict(zip(self.modalities, batch.require(*self.modalities), strict=True))
        starts = self._moments(streams)
        encoded = {}
        for name, stream in streams.items():
            ready = self._ready(stream, name)
            parts = []
            for view in self.views:
                part = cut(ready, starts[:, int(view.shifted)], self.config.seconds)
                parts.append(backward(part) if view.reversed else part)
            encoded[name] = self._project(name, parts)
            encoded[f"{name}?"] = stream.mask.any(1)
        return encoded

    def _moments(self, streams: Mapping[str, Stream]) -> Tensor:
        """[B, 2]: when the two moments begin; drawn in training, else the first and the last that fit."""
        there = [torch.where(s.mask.any(1), recorded_seconds(s), torch.inf) for s in streams.values()]
        shortest = torch.stack(there).amin(0)
        room = torch.where(shortest.isfinite(), shortest - self.config.seconds, 0).clamp(min=0)
        if self.training:
            return two_starts(room, apart=self.config.apart, rate=self.config.fps)
        return spread_starts(room, 2, rate=self.config.fps)

    def _ready(self, stream: Stream, name: str) -> Stream:
        """Sound as log-mel frames, pictures as they are: what can be cut and played backward."""
        if self.spec.streams[name].kind == "audio":
            return log_mel_stream(stream, bands=self.config.bands)
        return stream

    def _seen(self, name: str, parts: Sequence[Stream]) -> Tensor:
        """Features of parts of every clip: [B, parts, tower]."""
        data, mask = torch.stack([p.data for p in parts], 1), torch.stack([p.mask for p in parts], 1)
        seen = self.towers[name](Stream(data.flatten(0, 1), mask.flatten(0, 1), parts[0].rate)).pooled
        return seen.unflatten(0, (-1, len(parts)))

    def _project(self, name: str, parts: Sequence[Stream]) -> Tensor:
        seen = self._seen(name, parts)
        made = self.heads[name](seen.flatten(0, 1)).unflatten(0, seen.shape[:2])
        return nn.functional.normalize(made.float(), dim=2)

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """One term for each kind of contrast: base, reversal, shift; over the clips that have every modality."""
        there = torch.stack([encoded[f"{name}?"] for name in self.modalities]).all(0)
        if not bool(there.any()):
            raise BatchError(f"no clip of the batch has {' and '.join(self.modalities)}.")
        z = {name: encoded[name][there] for name in self.modalities}
        pairs = list(itertools.permutations(z, 2)) or [(name, name) for name in z]
        terms: dict[str, Tensor] = {}
        for contrast in self.contrasts:
            for one, other in pairs:
                cost = self._cost(contrast, z[one], z[other]) * contrast.weight / len(pairs)
                terms[contrast.name] = terms.get(contrast.name, 0) + cost
        return terms

    def _cost(self, contrast: Contrast, queries: Tensor, keys: Tensor) -> Tensor:
        """``-log softmax`` of the positive, mean over the clips: [B, views, dim] each."""
        keys = keys.detach() if self.config.detach else keys
        at = [self.views.index(v) for v in contrast.views]
        query, key = queries[:, self.views.index(contrast.query)], keys[:, at].transpose(0, 1).flatten(0, 1)
        scores = query @ key.T / self.config.temperature  # [B, views · B], view by view
        rows = torch.arange(len(query), device=query.device)
        target = rows + len(query) * contrast.views.index(contrast.positive)
        if not contrast.own:
            for i, view in enumerate(contrast.views):
                if view != contrast.positive:
                    scores = scores.index_put((rows, rows + i * len(query)), scores.new_tensor(-torch.inf))
        return nn.functional.cross_entropy(scores, target)

    # ---------------------------------------------------------------------------------------------------- capabilities
    def _looks(self, batch: Batch, modality: str) -> list[Stream]:
        if modality not in self.modalities:
            raise ConfigError(f'this model has no "{modality}".', hint=did_you_mean(modality, set(self.modalities)))
        (stream,) = batch.require(modality)
        ready, c = self._ready(stream, modality), self.config
        starts = spread_starts((recorded_seconds(stream) - c.seconds).clamp(min=0), c.looks, rate=c.fps)
        return [cut(ready, start, c.seconds) for start in starts.T]

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """Embeddings of ``looks`` views side by side, of unit length [B, looks · dim]: the cosine of two clips is the
        mean of those of their views of the same moment."""
        return self._project(modality, self._looks(batch, modality)).flatten(1) / self.config.looks**0.5

    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """The towers' output, mean over the views: [B, tower]."""
        return self._seen(modality, self._looks(batch, modality)).mean(1).float()

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return nn.functional.normalize(q, dim=1) @ nn.functional.normalize(g, dim=1).T
