"""Semantic matching: what a classifier of each modality believes is the common space (Rasiwasia et al. 2010).

Claim: the posteriors of two classifiers that never met live in the same space by construction, for both are about the
same classes: no correlation has to be found, and a strong shallow classifier makes a strong baseline.

    π_m(x) = ( P(c | x) )_c                             one classifier for each modality m, fitted alone
    sim(x, y) = cos( π_1(x) - 1/C, π_2(y) - 1/C )       normalized correlation; ``centered`` = false: cos(π_1, π_2)

``classifier``

- "logistic": softmax regression on standardized columns, min_w (C / n) ‖w‖² / 2 + cost · mean cross-entropy, up to a
  factor: ``cost`` is the inverse weight of the penalty, as in an SVM
- "chi2-svm": one kernel SVM for each class against the rest, k = exp(-χ²(x, y) / mean χ²), χ² = Σ_d (x_d - y_d)² /
  (x_d + y_d): for histograms, such as visual words and topics, which are not negative
- "rbf-svm": the same with k = exp(-‖x - y‖² / mean) on standardized columns

The margins f_c of an SVM become posteriors by Platt's sigmoids, P(c | x) ∝ σ(a_c f_c(x) + b_c), a and b from margins of
clips that the SVM had not seen (``folds`` parts in turn). Features are averaged over time, media summarized by fixed
statistics. All of the fitted classifier is kept as tensors and computed by torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from avcl import system
from avcl.encoders.statistics import summarize, summary_dim
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.objectives.inputs import above
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec

Classifier = Literal["logistic", "chi2-svm", "rbf-svm"]
NEVER = -50.0  # the logit of a class that training did not show
LEAST = 1e-12  # a column that varies less, and a χ² denominator that is smaller, count as nothing
BLOCK = 1 << 18  # numbers of one block of differences: what a cache holds

CARD = Card(
    title="A new approach to cross-modal multimedia retrieval: semantic matching",
    year=2010,
    venue="ACM Multimedia",
    authors="N. Rasiwasia, J. Costa Pereira, E. Coviello, G. Doyle, G. Lanckriet, R. Levy, N. Vasconcelos",
    paper=(
        "Wikipedia features, semantic correlation matching (the posteriors of CCA components): image query .277, text "
        "query .226 (recalled)",
    ),
    fidelity="paper: posteriors of one classifier for each modality, compared by normalized correlation, which is the "
    "best of the paper's measures.",
    deviations=(
        "Softmax regression has a penalty on its weights; the paper's, a library's of 2008, has one of its own.",
        "The two kernel SVMs are additions: shallow, and stronger on histograms than a linear classifier.",
        "Raw media are summarized by fixed statistics, for the method has no encoder of its own.",
    ),
    limits={"gradient": "fitted in closed form; there is no parameter to train"},
)


@dataclass(frozen=True)
class SemanticMatchingConfig(MediaConfig):
    """Settings of ``semantic_matching``; those of the optimization are not used."""

    classifier: Classifier = "logistic"
    cost: float = 0.1  # C: weight of an error against the penalty; the SVMs want some ten times as much
    centered: bool = True  # posteriors minus 1/C before the cosine
    folds: int = 5  # of the SVM's calibration
    samples: int = 3000  # clips that an SVM is fitted on at most, drawn at random

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "cost": (1e-9, MAX),
        "folds": (2, MAX),
        "samples": (2, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(samples=30)


# ---------------------------------------------------------------------------------------------------------- classifiers
class _Logistic(nn.Module):
    """softmax(x W + b): rows [B, D] in float64 to posteriors [B, C]; random until it is fitted."""

    weight: Tensor
    bias: Tensor

    def __init__(self, size: int, classes: int):
        super().__init__()
        self.register_buffer("weight", torch.randn(size, classes, dtype=torch.float64) / max(1, size) ** 0.5)
        self.register_buffer("bias", torch.zeros(classes, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight + self.bias).softmax(1)

    def fit(self, x: Tensor, label: Tensor, config: SemanticMatchingConfig) -> None:
        from sklearn.linear_model import LogisticRegression

        mean, deviation = _columns(x)
        rows = ((x - mean) / deviation).numpy()
        found = LogisticRegression(C=config.cost, max_iter=10_000).fit(rows, label.numpy())
        weight, bias = torch.from_numpy(found.coef_.T.copy()), torch.from_numpy(found.intercept_.copy())
        if len(found.classes_) == 2:  # one column: the log-odds of the second class
            weight, bias = torch.cat([-weight, weight], 1) / 2, torch.cat([-bias, bias]) / 2
        weight = weight / deviation[:, None]
        known, classes = torch.from_numpy(found.classes_), len(self.bias)
        self.weight.copy_(weight.new_zeros(len(weight), classes).index_copy(1, known, weight))
        self.bias.copy_(bias.new_full((classes,), NEVER).index_copy(0, known, bias - mean @ weight))


class _KernelSVM(nn.Module):
    """σ(a_c f_c(x) + b_c), each row to sum one, f_c(x) = Σ_i α_ic k(x, x_i) + β_c: [B, D] to posteriors [B, C]."""

    rows: Tensor
    dual: Tensor
    bias: Tensor
    slope: Tensor
    offset: Tensor
    mean: Tensor
    deviation: Tensor
    scale: Tensor

    def __init__(self, size: int, classes: int, kernel: Classifier, samples: int):
        super().__init__()
        self.kernel = kernel
        self.register_buffer("rows", torch.rand(samples, size, dtype=torch.float64))
        self.register_buffer("dual", torch.randn(samples, classes, dtype=torch.float64) / samples**0.5)
        for name, shape, value in (
            ("bias", (classes,), 0.0),
            ("slope", (classes,), 1.0),
            ("offset", (classes,), 0.0),
            ("mean", (size,), 0.0),
            ("deviation", (size,), 1.0),
            ("scale", (), float(size)),
        ):
            self.register_buffer(name, torch.full(shape, value, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        odds = self.slope * (self._similar(x) @ self.dual + self.bias) + self.offset
        p = odds.sigmoid()
        return p / p.sum(1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)

    def _similar(self, x: Tensor) -> Tensor:
        """k between rows [B, D] and the kept ones: [B, S]."""
        x = x.clamp(min=0) if self.kernel == "chi2-svm" else (x - self.mean) / self.deviation
        return (_distances(x, self.rows, chi2=self.kernel == "chi2-svm") / -self.scale).exp()

    def fit(self, x: Tensor, label: Tensor, config: SemanticMatchingConfig) -> None:
        if self.kernel == "chi2-svm" and bool((x < 0).any()):
            hint = 'Take classifier="rbf-svm" or "logistic".'
            raise BatchError("the χ² kernel compares histograms, and these features have negative values.", hint=hint)
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: len(self.rows)].sort().values
        x, label = x[chosen], label[chosen]
        n, classes = len(x), len(self.bias)
        if self.kernel == "rbf-svm":
            mean, deviation = _columns(x)
            self.mean.copy_(mean)
            self.deviation.copy_(deviation)
            x = (x - mean) / deviation
        apart = _distances(x, x, chi2=self.kernel == "chi2-svm")
        scale = apart.mean().clamp(min=LEAST)
        self.scale.copy_(scale)
        kernel, y = (apart / -scale).exp().numpy(), label.numpy()
        unseen, fold = np.zeros((n, classes)), _folds(y, config.folds)
        for f in range(config.folds):
            inside, held = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
            for c in range(classes) if len(held) else ():
                dual, bias = _margin(kernel[np.ix_(inside, inside)], y[inside] == c, config.cost)
                unseen[held, c] = kernel[np.ix_(held, inside)] @ dual + bias
        self.rows.zero_()[:n] = x
        self.dual.zero_()
        for c in range(classes):
            dual, bias = _margin(kernel, y == c, config.cost)
            self.dual[:n, c] = torch.from_numpy(dual)
            self.bias[c] = bias
            self.slope[c], self.offset[c] = _platt(unseen[:, c], y == c)


def _columns(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the columns [D]; 1 for one that never varies."""
    deviation = x.std(0, correction=0)
    return x.mean(0), torch.where(deviation > LEAST, deviation, 1.0)


def _distances(x: Tensor, y: Tensor, *, chi2: bool) -> Tensor:
    """χ² or squared Euclidean distances of rows ≥ 0 [n, D] and [m, D]: [n, m], a block at a time."""
    parts = []
    for rows in x.split(max(1, BLOCK // max(1, y.numel()))):
        if chi2:
            gap, total = rows[:, None] - y, rows[:, None] + y
            parts.append((gap.square_() / total.clamp_(min=LEAST)).sum(2))
        else:
            parts.append((rows[:, None] - y).square_().sum(2))
    return torch.cat(parts) if parts else x.new_zeros(0, len(y))


def _folds(y: np.ndarray, count: int) -> np.ndarray:
    """Which of ``count`` parts a clip is held out in: the members of each class in turn."""
    fold = np.zeros(len(y), dtype=np.int64)
    for c in np.unique(y):
        members = np.flatnonzero(y == c)
        fold[members] = np.random.default_rng(int(c)).permutation(len(members)) % count
    return fold


def _margin(kernel: np.ndarray, positive: np.ndarray, cost: float) -> tuple[np.ndarray, float]:
    """Dual coefficients [n] and offset of an SVM; no class to tell from the rest: the constant -1 or 1."""
    from sklearn.svm import SVC

    dual = np.zeros(len(kernel))
    if positive.all() or not positive.any():
        return dual, 1.0 if len(positive) and positive.all() else -1.0
    found = SVC(kernel="precomputed", C=cost).fit(kernel, positive)
    dual[found.support_] = found.dual_coef_[0]
    return dual, float(found.intercept_[0])


def _platt(margin: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """a and b of σ(a f + b), from margins of clips that were held out."""
    from sklearn.linear_model import LogisticRegression

    if positive.all() or not positive.any():
        return 0.0, -NEVER if positive.all() else NEVER
    found = LogisticRegression(C=1e4, max_iter=1000).fit(margin[:, None], positive)
    return float(found.coef_[0, 0]), float(found.intercept_[0])


# --------------------------------------------------------------------------------------------------------------- system
class SemanticMatching(system.System):
    """One classifier for each modality, fitted by ``finish``; their posteriors are the embeddings."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = SemanticMatchingConfig
    closed_form: ClassVar[bool] = True
    similarity_name = "cosine"
    config: SemanticMatchingConfig
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        fresh=False,  # one pass is all it takes
    )

    def __init__(self, config: SemanticMatchingConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.modalities = config.chosen(spec)
        if config.classifier not in get_args(Classifier):
            hint = did_you_mean(config.classifier, set(get_args(Classifier)))
            raise ConfigError(f'classifier = "{config.classifier}" is not known.', hint=hint)
        if spec.n_classes < 2:
            hint = 'Add a "label" column, or take a system that learns from pairs alone, such as cca.'
            raise ConfigError(f"semantic matching learns from classes, and the data have {spec.n_classes}.", hint=hint)
        above("cost", config.cost)
        sizes = {name: summary_dim(spec.streams[name], len(spec.vocabulary)) for name in self.modalities}
        self.classifiers = nn.ModuleDict(
            {
                name: _Logistic(size, spec.n_classes)
                if config.classifier == "logistic"
                else _KernelSVM(size, spec.n_classes, config.classifier, config.samples)
                for name, size in sizes.items()
            }
        )

    # ------------------------------------------------------------------------------------------------------ the fitting
    @torch.no_grad()
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """The posteriors of each modality [B, C] in float64."""
        return {name: self._posterior(batch, name) for name in self.modalities}

    def _summary(self, batch: Batch, name: str) -> Tensor:
        (stream,) = batch.require(name)
        spec, words = self.spec.streams[name], len(self.spec.vocabulary)
        return summarize(stream, spec, seconds=self.config.window, vocabulary=words)

    def _posterior(self, batch: Batch, name: str) -> Tensor:
        if name not in self.classifiers:
            raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
        return self.classifiers[name](self._summary(batch, name))

    @torch.no_grad()
    def finish(self, batches: Iterable[Batch]) -> None:
        """Fit the classifier of each modality on every labeled clip that has it; no pair is needed."""
        rows: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.modalities}
        for batch in batches:
            for name in self.modalities:
                kept = batch.streams[name].mask.any(1) & (batch.label >= 0)
                rows[name].append((self._summary(batch, name)[kept].float().cpu(), batch.label[kept].cpu()))
        for name, found in rows.items():
            x, label = (torch.cat(part) if part else torch.zeros(0) for part in zip(*found, strict=True))
            if len(label.unique()) < 2:
                raise BatchError(f"semantic matching needs {name} clips of two classes or more.")
            classifier = self.classifiers[name]
            fit = cast(Callable[[Tensor, Tensor, SemanticMatchingConfig], None], classifier.fit)
            fit(x.double(), label, self.config)

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """For the log only: the mean of -log P(label) over the modalities."""
        rows = (batch.label >= 0).nonzero()[:, 0]
        own = torch.stack([encoded[name][rows, batch.label[rows]] for name in self.modalities])
        value = -own.clamp(min=torch.finfo(own.dtype).tiny).log().sum() / max(1, own.numel())
        return {"cross_entropy": value}

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """The summary before the classifier, float32 [B, D]."""
        return self._summary(batch, modality).float()

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """Posteriors of one modality, or the sum of several ("audio+text"), of unit length: float32 [B, C]."""
        parts = []
        for name in modality.split("+"):
            p = self._posterior(batch, name)
            unit = normalize(p - p.mean(1, keepdim=True) if self.config.centered else p, dim=1)
            parts.append(unit * batch.streams[name].mask.any(1)[:, None])
        return normalize(torch.stack(parts).sum(0), dim=1).float()

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return normalize(q, dim=1) @ normalize(g, dim=1).T
