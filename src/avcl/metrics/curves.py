"""Precision-recall curves of retrieval, with ties at their expected value as in ``avcl.metrics.ranking``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from avcl.errors import ConfigError, FeatureError
from avcl.metrics.ranking import Similarity, score_blocks

Floats = NDArray[np.float64]


class PrecisionRecall(NamedTuple):
    """``k`` cut-offs · ``precision``, ``recall`` at each, means over the queries that have something relevant."""

    k: tuple[int, ...]
    precision: Floats
    recall: Floats


def precision_recall(
    queries: Any,
    gallery: Any,
    query_keys: ArrayLike,
    gallery_keys: ArrayLike,
    *,
    ks: Sequence[int] = (),
    similarity: str | Similarity = "cosine",
) -> PrecisionRecall:
    """Precision and recall of the first k of the gallery [G, D] for queries [Q, D], means over the queries.

        P(k) = E[relevant among the first k] / k,   R(k) = E[relevant among the first k] / relevant in the gallery

    Inside a run of m equal scores after n items, of which r are relevant, the first k hold (k - n) r / m of them on
    average, which is exact. Equal keys are relevant, negative ones to nothing; queries without relevant items are left
    out. ``ks``: cut-offs (default: about 40 from 1 to G, evenly on a logarithmic scale).
    """
    q, g = (torch.as_tensor(x).detach().cpu() for x in (queries, gallery))
    rows, columns = np.asarray(query_keys), np.asarray(gallery_keys)
    if rows.shape != (len(q),) or columns.shape != (len(g),):
        raise FeatureError(f"keys {rows.shape} and {columns.shape} do not fit {len(q)} queries and {len(g)} items.")
    size = len(g)
    at = np.array(ks or np.unique(np.geomspace(1, max(1, size), 40).round()), np.int64)
    if len(at) == 0 or at.min() < 1 or at.max() > max(1, size):
        raise ConfigError(f"cut-offs must lie between 1 and {size}.")
    found, recall, count = np.zeros(len(at)), np.zeros(len(at)), 0
    for start, scores in score_blocks(q, g, similarity=similarity):
        for row, key in zip(scores, rows[start : start + len(scores)].tolist(), strict=True):
            relevant = (columns == key) & (columns >= 0)
            total = int(relevant.sum())
            if total == 0:
                continue
            order = np.argsort(-row, kind="stable")
            ends = np.flatnonzero(np.append(np.diff(row[order]) != 0, True)) + 1  # the last item of each run
            held = np.interp(at, np.append(0, ends), np.append(0, np.cumsum(relevant[order])[ends - 1]))
            found, recall, count = found + held, recall + held / total, count + 1
    if count == 0:
        raise FeatureError("no query has anything relevant in the gallery.")
    return PrecisionRecall(tuple(at.tolist()), found / count / at, recall / count)
