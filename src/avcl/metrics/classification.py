"""Recognition: one label, several labels, a value, or a decision about a pair.

Rules that hold throughout. Classes are numbers from 0. A class that cannot be scored (it never occurs) is left out of
the mean and counted; it is never a silent 0 or NaN. Equal scores get their expected value, so a model that gives every
class the same score gets exactly chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from avcl.errors import ConfigError, FeatureError
from avcl.metrics.inputs import Bools, Floats, Ints, floats, integers, known, same_shape, truths
from avcl.metrics.ranking import rank_scores

POOLINGS = ("softmax", "values", "votes")


# --------------------------------------------------------------------------------------------------- one label an item
@dataclass(frozen=True)
class ClassScores:
    """Everything that follows from one confusion matrix; C classes.

    ``confusion`` [C, C] rows are the truth, columns the prediction · ``precision``, ``recall``, ``f1`` [C], 0 where
    undefined · ``present`` [C] the class occurs in the truth · ``seen`` [C] it occurs in the truth or in the
    prediction. Means over recalls go over the present classes, means over F1 over the seen ones: a class that was
    predicted but never true is an error and counts 0, a class that never came up says nothing.
    """

    confusion: Ints
    precision: Floats
    recall: Floats
    f1: Floats

    @property
    def support(self) -> Ints:
        """[C] how often each class is true."""
        return self.confusion.sum(1)

    @property
    def present(self) -> Bools:
        return self.support > 0

    @property
    def seen(self) -> Bools:
        return self.present | (self.confusion.sum(0) > 0)

    @property
    def absent(self) -> int:
        """How many classes never occur in the truth; they are in no mean of recalls."""
        return int((~self.present).sum())

    @property
    def accuracy(self) -> float:
        """Correct over all: WA in the speech literature, and micro F1."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def uar(self) -> float:
        """Mean recall of the present classes: unweighted average recall, UA."""
        return float(self.recall[self.present].mean())

    @property
    def macro_f1(self) -> float:
        """Plain mean of F1 over the seen classes."""
        return float(self.f1[self.seen].mean())

    @property
    def weighted_f1(self) -> float:
        """Mean of F1 weighted by support."""
        return float(self.f1 @ self.support / self.support.sum())

    @property
    def one_vs_rest(self) -> Floats:
        """[C] (true positive rate + true negative rate) / 2 of "this class or not".

        The "weighted accuracy" of multimodal sentiment papers. 0 where it is undefined (no positives or no negatives:
        see ``separable``).
        """
        total, hit = self.confusion.sum(), np.diag(self.confusion)
        negatives = total - self.support
        rejected = negatives - (self.confusion.sum(0) - hit)
        rate = np.divide(rejected, negatives, out=np.zeros(len(hit)), where=negatives > 0)
        return np.where(self.separable, (self.recall + rate) / 2, 0.0)

    @property
    def separable(self) -> Bools:
        """[C] both items of the class and items of other classes exist."""
        return self.present & (self.support < self.support.sum())

    @property
    def weighted_accuracy(self) -> float:
        """Mean of ``one_vs_rest`` over the separable classes (of two classes both give the same value)."""
        if not self.separable.any():
            raise FeatureError("the weighted accuracy needs at least two classes in the truth.")
        return float(self.one_vs_rest[self.separable].mean())


def class_scores(truth: ArrayLike, predicted: ArrayLike, *, n_classes: int | None = None) -> ClassScores:
    """Confusion, recall, precision and F1 from labels [N]; ``n_classes``: where the last classes may not occur."""
    y, p = _labels(truth, predicted)
    count = int(max(y.max(), p.max())) + 1 if n_classes is None else n_classes
    if min(y.min(), p.min()) < 0 or max(y.max(), p.max()) >= count:
        raise FeatureError(f"labels must lie in 0..{count - 1}, not {min(y.min(), p.min())}..{max(y.max(), p.max())}.")
    confusion = np.bincount(y * count + p, minlength=count * count).reshape(count, count)
    # Not by scikit-learn, to which a test holds it: 20 times slower, and a bootstrap asks a thousand times.
    hit, true, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    precision, recall = (np.divide(hit, n, out=np.zeros(count), where=n > 0) for n in (said, true))
    f1 = np.divide(2 * hit, true + said, out=np.zeros(count), where=true + said > 0)
    return ClassScores(confusion, precision, recall, f1)


def accuracy(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Share of equal labels: items [N], or segments [V, T] of videos (background is a class like any other)."""
    y, p = integers(truth, "the truth", ndim=(1, 2)), integers(predicted, "the prediction", ndim=(1, 2))
    same_shape(y, p, "truth and prediction")
    return float((y == p).mean())


def top_k_accuracy(scores: ArrayLike, truth: ArrayLike, *, k: int = 1) -> float:
    """Mean probability that the true class is among the k best of ``scores`` [N, C], over the orders inside ties.

    With one column for each candidate this is also 1:C matching, such as a voice against C faces. A collapsed model
    gets k / C.
    """
    s, y = floats(scores, "the scores", ndim=2), integers(truth, "the truth")
    if len(s) != len(y) or y.min() < 0 or y.max() >= s.shape[1]:
        raise FeatureError(f"{len(s)} rows of {s.shape[1]} scores do not fit {len(y)} labels in {y.min()}..{y.max()}.")
    if not 1 <= k <= s.shape[1]:
        raise ConfigError(f"k = {k} must lie in 1..{s.shape[1]}, the number of classes.")
    own = s[np.arange(len(s)), y][:, None]
    above, tied = (s > own).sum(1), (s == own).sum(1)
    return float(np.clip((k - above) / tied, 0.0, 1.0).mean())


def pool_clips(scores: ArrayLike, video: ArrayLike, *, rule: str) -> tuple[Any, Floats]:
    """(names [V], scores [V, C]) of whole videos from the ``scores`` [N, C] of their clips or crops.

    ``rule``: "softmax" (mean of the softmax: fine-tuned networks), "values" (mean of the values as they are: decision
    values of an SVM), "votes" (share of clips whose best class it is; equal best classes share the vote).
    """
    s, names = floats(scores, "the scores", ndim=2), np.asarray(video)
    known(rule, POOLINGS, "rule of pooling clips")
    if names.shape != (len(s),):
        raise FeatureError(f"{len(s)} rows of scores need as many videos, not {list(names.shape)}.")
    if rule == "softmax":
        s = np.exp(s - s.max(1, keepdims=True))
        s /= s.sum(1, keepdims=True)
    elif rule == "votes":
        best = s == s.max(1, keepdims=True)
        s = best / best.sum(1, keepdims=True)
    kinds, number = np.unique(names, return_inverse=True)
    total = np.zeros((len(kinds), s.shape[1]))
    np.add.at(total, number.reshape(-1), s)
    return kinds, total / np.bincount(number.reshape(-1))[:, None]


def match_clusters(cluster: ArrayLike, truth: ArrayLike) -> dict[int, int]:
    """{cluster: class} that makes the most items right, one to one (Hungarian); clusters left over are not in it."""
    from scipy.optimize import linear_sum_assignment

    y, c = _labels(truth, cluster)
    clusters, row = np.unique(c, return_inverse=True)
    classes, column = np.unique(y, return_inverse=True)
    together = np.zeros((len(clusters), len(classes)), np.int64)
    np.add.at(together, (row.reshape(-1), column.reshape(-1)), 1)
    return {int(clusters[i]): int(classes[j]) for i, j in zip(*linear_sum_assignment(-together), strict=True)}


# ---------------------------------------------------------------------------------------------------- several labels
def average_precision(scores: ArrayLike, truth: ArrayLike) -> float:
    """Mean over the positives of the precision at their place; expected value inside ties (a tie of all: chance)."""
    s, y = floats(scores, "the scores"), truths(truth, "the truth")
    same_shape(s, y, "scores and truth")
    if not y.any():
        raise FeatureError("the average precision needs at least one positive.")
    return float(rank_scores(s[None], [1], y.astype(np.int64), map_at=()).ap[0])


class MultilabelPrecision(NamedTuple):
    """``value`` mean average precision over the classes that occur · ``per_class`` [C], 0 where not ``present`` [C]."""

    value: float
    per_class: Floats
    present: Bools

    @property
    def absent(self) -> int:
        """How many classes have no positive and stand in no mean."""
        return int((~self.present).sum())


def multilabel_precision(scores: ArrayLike, truth: ArrayLike) -> MultilabelPrecision:
    """Macro mAP of ``scores`` [N, C] against ``truth`` [N, C] of 0 and 1."""
    s, y = floats(scores, "the scores", ndim=2), truths(truth, "the truth", ndim=2)
    same_shape(s, y, "scores and truth")
    present = np.any(y, axis=0)
    if not present.any():
        raise FeatureError("none of the classes has a positive.")
    each = np.array([average_precision(s[:, c], y[:, c]) if present[c] else 0.0 for c in range(s.shape[1])])
    return MultilabelPrecision(float(each[present].mean()), each, present)


# -------------------------------------------------------------------------------------------- decisions about a pair
def roc_auc(scores: ArrayLike, truth: ArrayLike) -> float:
    """P(a positive scores above a negative) + P(they tie) / 2."""
    wrong, right, _ = _falling(*_two_sided(scores, truth))
    above = np.cumsum(right) - right / 2  # of the positives, at each score that falls
    return float(wrong @ above / (wrong.sum() * right.sum()))


class EqualErrorRate(NamedTuple):
    """``value``: the rate at which as many true pairs are refused as false ones accepted · ``threshold`` near it."""

    value: float
    threshold: float


def equal_error_rate(scores: ArrayLike, same: ArrayLike) -> EqualErrorRate:
    """EER of verification: ``scores`` [N] (higher: rather the same), ``same`` [N] of 0 and 1.

    Between two operating points the curve is a straight line: the expected rates of deciding a tie at random. A model
    that scores all pairs alike gets 0.5. ``threshold``: the highest score at which no more are refused than accepted
    wrongly.
    """
    wrong, right, values = _falling(*_two_sided(scores, same))
    accepted, hit = (np.concatenate([[0.0], np.cumsum(n) / n.sum()]) for n in (wrong, right))
    thresholds = np.concatenate([[np.inf], values])
    gap = 1 - hit - accepted  # falls from 1 to -1
    at = int(np.argmax(gap <= 0))  # at least 1: the first point refuses everything
    part = gap[at - 1] / (gap[at - 1] - gap[at])
    return EqualErrorRate(float(accepted[at - 1] + part * (accepted[at] - accepted[at - 1])), float(thresholds[at]))


# --------------------------------------------------------------------------------------------------------------- values
def mean_absolute_error(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Mean of |truth - prediction|."""
    y, p = _values(truth, predicted)
    return float(np.abs(y - p).mean())


def pearson(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Correlation of two series; a constant prediction is worth 0, a constant truth is a FeatureError."""
    y, p = _values(truth, predicted)
    if np.ptp(y) == 0:
        raise FeatureError("the truth is constant: there is nothing to correlate with.")
    if np.ptp(p) == 0:
        return 0.0
    y, p = (y - y.mean()) / np.ptp(y), (p - p.mean()) / np.ptp(p)  # scaled first: squares neither overflow nor vanish
    return float(np.clip((y @ p) / np.sqrt((y @ y) * (p @ p)), -1.0, 1.0))


def ccc(truth: ArrayLike, predicted: ArrayLike, *, ddof: int = 0) -> float:
    """2 cov / (var + var + (mean - mean)²), the concordance of two series [N] (Lin 1989).

    ``ddof`` 0: moments over N, the usual convention; 1: over N - 1; unlike Pearson's, the value depends on it. Constant
    prediction: 0. FeatureError where both are constant and equal, for then it is 0 / 0.
    """
    y, p = _values(truth, predicted)
    if ddof not in (0, 1) or len(y) <= ddof:
        raise ConfigError(f"ddof = {ddof} must be 0 or 1, and less than the {len(y)} values.")
    if np.ptp(y) == 0 and np.ptp(p) == 0:
        if y[0] == p[0]:
            raise FeatureError("both series are constant and equal: their concordance is undefined.")
        return 0.0
    largest = max(np.abs(y).max(), np.abs(p).max())
    y, p = y / largest, p / largest
    n = len(y) - ddof
    dy, dp = y - y.mean(), p - p.mean()
    return float(2 * (dy @ dp) / n / ((dy @ dy) / n + (dp @ dp) / n + (y.mean() - p.mean()) ** 2))


class Concordance(NamedTuple):
    """``value`` under its ``rule`` and ``ddof`` · ``per_recording`` [R], 0 where not ``scored`` [R]."""

    value: float
    rule: str
    ddof: int
    per_recording: Floats
    scored: Bools


def ccc_of_recordings(
    truth: ArrayLike, predicted: ArrayLike, recording: ArrayLike, *, rule: str = "concatenated", ddof: int = 0
) -> Concordance:
    """CCC over several recordings: "concatenated" (AVEC practice) or the "mean" of the recordings' own values.

    Concatenation rewards what differs *between* recordings; the two are not comparable, so the result carries its rule.
    Recordings where both series are constant and equal are left out of the mean and show in ``scored``.
    """
    y, p = _values(truth, predicted)
    names = np.asarray(recording)
    known(rule, ("concatenated", "mean"), "rule over recordings")
    if names.shape != y.shape:
        raise FeatureError(f"{len(y)} values need as many recordings, not {list(names.shape)}.")
    each, scored = [], []
    for name in np.unique(names):
        at = names == name
        defined = np.ptp(y[at]) > 0 or np.ptp(p[at]) > 0 or y[at][0] != p[at][0]
        scored.append(defined)
        each.append(ccc(y[at], p[at], ddof=ddof) if defined else 0.0)
    values, mask = np.array(each), np.array(scored)
    if rule == "mean" and not mask.any():
        raise FeatureError("no recording varies: the concordance is undefined.")
    value = ccc(y, p, ddof=ddof) if rule == "concatenated" else float(values[mask].mean())
    return Concordance(value, rule, ddof, values, mask)


class Sentiment(NamedTuple):
    """Scores of sentiment in [-3, 3] (CMU-MOSI). "nonnegative": >= 0 against < 0; "positive": > 0 against < 0.

    The second drops the items whose true value is exactly zero (``n_zero``). F1 is weighted by support.
    """

    accuracy_nonnegative: float
    f1_nonnegative: float
    accuracy_positive: float
    f1_positive: float
    n_zero: int
    accuracy_seven: float
    mae: float
    pearson: float


def sentiment(truth: ArrayLike, predicted: ArrayLike) -> Sentiment:
    """Both binary rules, the seven classes (rounded half to even, clipped to -3..3), MAE and Pearson."""
    y, p = _values(truth, predicted)
    kept = y != 0
    if not kept.any():
        raise FeatureError("every true value is zero: positive against negative is undefined.")
    nonnegative = class_scores((y >= 0).astype(np.int64), (p >= 0).astype(np.int64), n_classes=2)
    positive = class_scores((y[kept] > 0).astype(np.int64), (p[kept] > 0).astype(np.int64), n_classes=2)
    seven = (np.clip(y, -3, 3).round() == np.clip(p, -3, 3).round()).mean()
    return Sentiment(
        nonnegative.accuracy,
        nonnegative.weighted_f1,
        positive.accuracy,
        positive.weighted_f1,
        int((~kept).sum()),
        float(seven),
        mean_absolute_error(y, p),
        pearson(y, p),
    )


# ------------------------------------------------------------------------------------------------------------ internals
def _labels(truth: ArrayLike, predicted: ArrayLike) -> tuple[Ints, Ints]:
    y, p = integers(truth, "the truth"), integers(predicted, "the prediction")
    same_shape(y, p, "truth and prediction")
    return y, p


def _values(truth: ArrayLike, predicted: ArrayLike) -> tuple[Floats, Floats]:
    y, p = floats(truth, "the truth"), floats(predicted, "the prediction")
    same_shape(y, p, "truth and prediction")
    return y, p


def _two_sided(scores: ArrayLike, truth: ArrayLike) -> tuple[Floats, Bools]:
    s, y = floats(scores, "the scores"), truths(truth, "the truth")
    same_shape(s, y, "scores and truth")
    if y.all() or not y.any():
        raise FeatureError("positives and negatives are both needed, and only one kind is there.")
    return s, y


def _falling(scores: Floats, truth: Bools) -> tuple[Ints, Ints, Floats]:
    """Negatives and positives at each score that occurs, from the highest down, and those scores.

    Tests hold what follows from it to scikit-learn, which is ten times slower: a bootstrap asks a thousand times.
    """
    values, index = np.unique(scores, return_inverse=True)
    counts = [np.bincount(index.reshape(-1)[part], minlength=len(values))[::-1] for part in (~truth, truth)]
    return counts[0], counts[1], values[::-1]
