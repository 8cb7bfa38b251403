"""Ranking metrics of retrieval: complete arrays in, float64 per query out, ties at their expected value.

A query sees the gallery in the order of falling score. Items of equal score stand in one *run*, and every metric is
the expected value over a uniformly random order inside each run. So a model that gives every item the same score gets
exactly what a random ranking gets, and any increasing map of the scores leaves every number alone (negative scores
included).

One run: ``n`` items rank above it, it holds ``m`` items of which ``r`` are relevant, and ``R`` relevant items stand
above it. An item is relevant to a query where their integer keys are equal (pair: row number · class: label · group:
group number); a negative key is relevant to nothing. Queries that have no relevant item in the gallery are left out
of every mean and counted (``Ranking.scored``); they neither help nor harm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from avcl.errors import ConfigError, FeatureError, did_you_mean

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Similarity = Callable[[Tensor, Tensor], Tensor]  # [q, D], [g, D] -> [q, g], higher is nearer

# Cells of the score matrix that are in memory at once (float32 scores, 64-bit sort keys and a few masks each), gallery
# rows that are taken to float64 at once, and float64 numbers of the gallery that are kept from block to block.
# Of a block, GROUP_CELLS are sorted by one thread at a time: about what a core's cache holds.
BLOCK_CELLS = 1 << 21
GROUP_CELLS = 1 << 18
GALLERY_ROWS = 4096
GALLERY_CELLS = 1 << 24
SIMILARITIES = ("cosine", "dot", "euclidean")


@dataclass(frozen=True)
class Ranking:
    """What one direction of retrieval leaves behind: a row for each query, Q queries over ``n_gallery`` items.

    ``n_relevant`` [Q] relevant items in the gallery · ``above``, ``tied``, ``tied_relevant`` [Q]: n, m and r of the
    first run that holds a relevant item · ``ap`` [Q] average precision over the full list · ``ap_at`` {k: [Q]} ·
    ``ndcg`` [Q] · ``ndcg_at`` {k: [Q]}. Rows of queries without relevant items are zero and are not part of any mean.
    """

    n_gallery: int
    n_relevant: Ints
    above: Ints
    tied: Ints
    tied_relevant: Ints
    ap: Floats
    ndcg: Floats
    ap_at: Mapping[int, Floats] = field(default_factory=dict)
    ndcg_at: Mapping[int, Floats] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.n_relevant)

    @property
    def scored(self) -> NDArray[np.bool_]:
        """[Q] True where the gallery holds something relevant to the query."""
        return self.n_relevant > 0

    def take(self, rows: ArrayLike) -> Ranking:
        """The same ranking for some of the queries (row numbers or a mask)."""
        at = np.asarray(rows)
        return Ranking(
            self.n_gallery,
            self.n_relevant[at],
            self.above[at],
            self.tied[at],
            self.tied_relevant[at],
            self.ap[at],
            self.ndcg[at],
            {k: v[at] for k, v in self.ap_at.items()},
            {k: v[at] for k, v in self.ndcg_at.items()},
        )

    def recall(self, k: int) -> Floats:
        """[Q] P(a relevant item is among the first k) = 1 - C(m - r, j) / C(m, j), j = min(max(k - n, 0), m)."""
        j = np.clip(k - self.above, 0, self.tied)
        m, r = self.tied, self.tied_relevant
        log = _log_factorials(self.n_gallery)
        miss = np.maximum(m - r, 0)
        log_miss = log[miss] - log[np.maximum(miss - j, 0)] - log[m] + log[m - j]
        chance = np.where(j <= miss, -np.expm1(np.minimum(log_miss, 0.0)), 1.0)
        hit = np.where(r == 1, j / np.maximum(m, 1), chance)
        return np.where(self.scored & (j > 0), hit, 0.0)

    @property
    def expected_rank(self) -> Floats:
        """[Q] expected rank (from 1) of the first relevant item, n + (m + 1) / (r + 1); G + 1 if there is none."""
        rank = self.above + (self.tied + 1) / (self.tied_relevant + 1)
        return np.where(self.scored, rank, self.n_gallery + 1.0)

    @property
    def reciprocal_rank(self) -> Floats:
        """[Q] expected 1 / rank of the best placed relevant item (0 where none is)."""
        n, m, r = self.above, self.tied, self.tied_relevant
        harmonic = _harmonic(self.n_gallery)
        result = np.where(r == m, 1 / (n + 1), (harmonic[n + m] - harmonic[n]) / np.maximum(m, 1))
        several = np.flatnonzero((r > 1) & (r < m))
        if len(several):
            log = _log_factorials(self.n_gallery)
            triples, which = np.unique(np.stack([n, m, r])[:, several], axis=1, return_inverse=True)
            values = np.empty(triples.shape[1])
            for i, (ni, mi, ri) in enumerate(triples.T):
                j = np.arange(1, mi - ri + 2)  # P(first at j) = C(m - j, r - 1) / C(m, r)
                p = np.exp(log[mi - j] - log[ri - 1] - log[mi - j - ri + 1] - log[mi] + log[ri] + log[mi - ri])
                values[i] = (p / (ni + j)).sum()
            result[several] = values[which.reshape(-1)]
        return np.where(self.scored, result, 0.0)

    def median_rank(self, weights: Floats | None = None) -> Floats:
        """[S] median rank of the best placed relevant item, over queries and over the orders inside ties.

        It is the point where recall@x crosses one half (mid-point where it equals one half over a range), which
        without ties is the ordinary median of the ranks. ``weights`` [S, Q]: how often each query counts, for S
        resamples at once.
        """
        scored = self if self.scored.all() else self.take(self.scored)
        w = np.ones((1, len(scored))) if weights is None else np.asarray(weights, np.float64)[:, self.scored]
        total = w.sum(1)
        if len(scored) == 0 or not (total > 0).all():
            return np.full(len(w), np.nan)
        slack = 1e-9  # sums of float64 probabilities that are one half on paper

        def share(x: int) -> Floats:
            return w @ scored.recall(x) / total

        low = _first(lambda x: bool(share(x).max() >= 0.5 - slack), scored.n_gallery) - 1
        high = _first(lambda x: bool(share(x).min() > 0.5 + slack), scored.n_gallery)
        # Only queries whose rank may fall into (low, high] differ between the candidates.
        last = scored.above + scored.tied - scored.tied_relevant + 1
        inside = np.flatnonzero((last > low) & (scored.above < high))
        settled = w[:, last <= low].sum(1)
        part, w = scored.take(inside), w[:, inside]
        lower, upper = np.full(len(w), low + 1), np.full(len(w), low + 1)
        step = max(1, BLOCK_CELLS // max(1, len(inside)))
        for start in range(low + 1, high + 1, step):
            ranks = range(start, min(start + step, high + 1))
            table = np.stack([part.recall(x) for x in ranks], axis=1)
            reached = (settled[:, None] + w @ table) / total[:, None]
            lower += (reached < 0.5 - slack).sum(1)
            upper += (reached <= 0.5 + slack).sum(1)
        return (lower + upper) / 2

    def recall_curve(self, ks: Sequence[int]) -> Floats:
        """[len(ks)] mean recall@k over the scored queries."""
        scored = self.take(self.scored)
        return np.array([scored.recall(k).mean() if len(scored) else np.nan for k in ks])

    def per_query(self, ks: Sequence[int] = (1, 5, 10)) -> dict[str, Floats]:
        """{metric: [Q]} of every metric that is a mean over queries (all but the median rank), in report order."""
        values = {f"R@{k}": self.recall(k) for k in ks}
        values |= {"MRR": self.reciprocal_rank, "mAP": self.ap}
        values |= {f"mAP@{k}": v for k, v in self.ap_at.items()}
        values["nDCG"] = self.ndcg
        return values | {f"nDCG@{k}": v for k, v in self.ndcg_at.items()}

    def summary(self, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
        """{metric: value} over the scored queries; fractions in [0, 1] except medR. NaN where no query is scored."""
        scored = self.take(self.scored)
        means = {name: float(v.mean()) if len(v) else float("nan") for name, v in scored.per_query(ks).items()}
        return in_order(means | {"medR": float(scored.median_rank()[0])}, ks)


def in_order(values: Mapping[str, Any], ks: Sequence[int]) -> dict[str, Any]:
    """Metrics as reports list them: recalls, the median rank, then the means over the whole list."""
    first = [*(f"R@{k}" for k in ks), "medR"]
    return {name: values[name] for name in (*first, *(n for n in values if n not in first))}


def rank(
    queries: Any,
    gallery: Any,
    query_keys: ArrayLike,
    gallery_keys: ArrayLike,
    *,
    similarity: str | Similarity = "cosine",
    map_at: Sequence[int] = (10,),
    ndcg_at: Sequence[int] = (),
    block_cells: int = BLOCK_CELLS,
) -> Ranking:
    """Rank ``gallery`` [G, D] for each of ``queries`` [Q, D], ``block_cells`` (or one row) of scores at a time.

    ``similarity``: "cosine" (a zero vector is at similarity 0 to everything), "dot", "euclidean" (negative squared
    distance), or a function of two tensors. Scores are summed in float64 and rounded to float32 once: two items that
    are equal tie whatever block they fall in, so block boundaries cannot change a result. AP@k divides by min(k,
    relevant items). Raises FeatureError for values that are not finite and shapes that do not fit.
    """
    q, g = _matrix(queries, "query"), _matrix(gallery, "gallery")
    if q.shape[1] != g.shape[1] and not callable(similarity):
        raise FeatureError(f"queries have {q.shape[1]} dimensions, the gallery has {g.shape[1]}.")
    blocks = score_blocks(q, g, similarity=similarity, block_cells=block_cells)
    return _rank_blocks(blocks, query_keys, gallery_keys, (len(q), len(g)), map_at, ndcg_at)


def rank_scores(
    scores: Any,
    query_keys: ArrayLike,
    gallery_keys: ArrayLike,
    *,
    map_at: Sequence[int] = (10,),
    ndcg_at: Sequence[int] = (),
) -> Ranking:
    """The same from a score matrix [Q, G] (higher is better), compared exactly as given."""
    matrix = _matrix(scores, "score")
    blocks = iter([(0, _dense_codes(matrix.numpy()))])
    return _rank_blocks(blocks, query_keys, gallery_keys, (matrix.shape[0], matrix.shape[1]), map_at, ndcg_at)


def chance(
    n_relevant: ArrayLike,
    n_gallery: int,
    *,
    ks: Sequence[int] = (1, 5, 10),
    map_at: Sequence[int] = (10,),
    ndcg_at: Sequence[int] = (),
) -> dict[str, float]:
    """Expected value of every metric when the gallery is ordered at random: exact, no simulation.

    One relevant item of G: R@k = k / G, medR = (G + 1) / 2, MRR = mAP = H_G / G. With R relevant of G: R@k = 1 -
    C(G-R, k) / C(G, k), AP = [H_G + (R - 1) / (G - 1) (G - H_G)] / G, DCG = R / G sum_i 1 / log2(i + 1). medR is the
    median over queries and orders.
    """
    return random_ranking(n_relevant, n_gallery, map_at=map_at, ndcg_at=ndcg_at).summary(ks)


def random_ranking(
    n_relevant: ArrayLike, n_gallery: int, *, map_at: Sequence[int] = (), ndcg_at: Sequence[int] = ()
) -> Ranking:
    """The Ranking of a model that gives all items the same score: every query sees one run of the whole gallery."""
    relevant = np.asarray(n_relevant, np.int64)
    query = np.flatnonzero(relevant)
    runs = _Runs(query, np.zeros(len(query), np.int64), np.full(len(query), n_gallery), relevant[query])
    return _from_runs(runs, relevant, n_gallery, map_at, ndcg_at)


def score_blocks(
    queries: Tensor, gallery: Tensor, *, similarity: str | Similarity = "cosine", block_cells: int = BLOCK_CELLS
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first query, scores [b, G] float32) by block; each row is complete: comparisons stay inside one block."""
    rows = max(1, block_cells // max(1, len(gallery)))
    spans = [slice(at, min(at + GALLERY_ROWS, len(gallery))) for at in range(0, len(gallery), GALLERY_ROWS)]
    kept = [_prepared(gallery[span], similarity) for span in spans] if gallery.numel() <= GALLERY_CELLS else None
    for start in range(0, len(queries), rows):
        q = _prepared(queries[start : start + rows], similarity)
        block = np.empty((len(q), len(gallery)), np.float32)
        scores = torch.from_numpy(block)
        for i, span in enumerate(spans):
            g = kept[i] if kept is not None else _prepared(gallery[span], similarity)
            scores[:, span] = _similar(q, g, similarity)
        if not math.isfinite(block.sum(dtype=np.float64)):  # no sum of finite float32 leaves the range of float64
            raise FeatureError("similarities are not finite.", hint="Scale the embeddings, or use the cosine.")
        yield start, block


def _prepared(rows: Tensor, similarity: str | Similarity) -> Tensor:
    """What a comparison needs of each row alone: float64, of unit length for the cosine."""
    if callable(similarity):
        return rows
    rows = rows.double()
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30) if similarity == "cosine" else rows


def _similar(q: Tensor, g: Tensor, similarity: str | Similarity) -> Tensor:
    if callable(similarity):
        with torch.no_grad():
            return similarity(q, g).detach().to("cpu", torch.float32)
    if similarity in ("cosine", "dot"):
        return q @ g.T
    if similarity == "euclidean":
        squares = q.square().sum(1, keepdim=True) + g.square().sum(1)
        distance = squares - 2 * q @ g.T
        # Of equal vectors the difference leaves rounding, another one in every shape of the product: they are at 0.
        return -distance.masked_fill(distance <= 1e-12 * squares, 0)
    hint = did_you_mean(similarity, SIMILARITIES) + " Others need the function itself."
    raise ConfigError(f'"{similarity}" is not a known similarity.', hint=hint)


# ------------------------------------------------------------------------------------------------------------ internals
@dataclass(frozen=True)
class _Runs:
    """All runs that hold a relevant item, ordered by query, then by position: query, n, m, r of each."""

    query: Ints
    n: Ints
    m: Ints
    r: Ints


def _matrix(values: Any, what: str) -> Tensor:
    matrix = torch.as_tensor(values).detach().cpu()
    if matrix.ndim != 2 or not (matrix.is_floating_point() or matrix.dtype in (torch.int32, torch.int64)):
        raise FeatureError(
            f"the {what} array must be two-dimensional and real, not {list(matrix.shape)} {matrix.dtype}."
        )
    matrix = matrix if matrix.is_floating_point() else matrix.double()
    bad = (~torch.isfinite(matrix)).any(1).nonzero().flatten().tolist()
    if bad:
        rows = ", ".join(str(b) for b in bad[:5]) + (", ..." if len(bad) > 5 else "")
        raise FeatureError(f"the {what} array has values that are not finite in {len(bad)} rows (row {rows}).")
    return matrix


def _keys(values: ArrayLike, length: int, what: str) -> Ints:
    keys = np.asarray(values)
    if keys.shape != (length,) or not (np.issubdtype(keys.dtype, np.integer) or len(keys) == 0):
        raise FeatureError(f"the {what} keys must be {length} integers, not {keys.shape} {keys.dtype}.")
    return keys.astype(np.int64)


def _rank_blocks(
    blocks: Iterator[tuple[int, NDArray[Any]]],
    query_keys: ArrayLike,
    gallery_keys: ArrayLike,
    shape: tuple[int, int],
    map_at: Sequence[int],
    ndcg_at: Sequence[int],
) -> Ranking:
    qk, gk = _keys(query_keys, shape[0], "query"), _keys(gallery_keys, shape[1], "gallery")
    gk = np.where(gk < 0, -2, gk)  # a negative key matches nothing, not even another negative key
    qk = np.where(qk < 0, -1, qk)
    known, counts = np.unique(gk, return_counts=True)
    place = np.minimum(np.searchsorted(known, qk), max(0, len(known) - 1))
    n_relevant = np.where(known[place] == qk, counts[place], 0) if len(known) else np.zeros(len(qk), np.int64)
    single = n_relevant.max(initial=0) <= 1
    column = np.argsort(gk, kind="stable")  # where the only relevant item stands, if there is just one
    first = column[np.minimum(np.searchsorted(gk[column], qk), max(0, len(gk) - 1))] if len(gk) else qk
    n_relevant = n_relevant.astype(np.int64)

    def added_up(scores: NDArray[Any], mine: slice) -> Ranking:  # at once: the runs of all queries would not be bounded
        if single:
            runs = _runs_of_single(scores, first[mine], n_relevant[mine] > 0)
        else:
            runs = _runs_of_many(scores, qk[mine, None] == gk)
        return _from_runs(runs, n_relevant[mine], shape[1], map_at, ndcg_at)

    parts: list[Ranking] = []
    rows = max(1, GROUP_CELLS // max(1, shape[1]))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # NumPy sorts outside the interpreter's lock
        for start, scores in blocks:
            spans = [slice(at, min(at + rows, len(scores))) for at in range(0, len(scores), rows)]
            queries = [slice(start + span.start, start + span.stop) for span in spans]
            parts += (map if len(spans) == 1 else pool.map)(added_up, [scores[span] for span in spans], queries)
    return _joined(parts) if parts else random_ranking([], shape[1], map_at=map_at, ndcg_at=ndcg_at)


def _joined(parts: Sequence[Ranking]) -> Ranking:
    names = ("n_relevant", "above", "tied", "tied_relevant", "ap", "ndcg")
    n_relevant, above, tied, r, ap, ndcg = (np.concatenate([getattr(p, name) for p in parts]) for name in names)
    ap_at = {k: np.concatenate([p.ap_at[k] for p in parts]) for k in parts[0].ap_at}
    ndcg_at = {k: np.concatenate([p.ndcg_at[k] for p in parts]) for k in parts[0].ndcg_at}
    return Ranking(parts[0].n_gallery, n_relevant, above, tied, r, ap, ndcg, ap_at, ndcg_at)


def _runs_of_single(scores: NDArray[Any], column: Ints, known: NDArray[np.bool_]) -> _Runs:
    """One relevant item a query: two counts, no sorting. Its score is read from the block it is compared with."""
    own = scores[np.arange(len(scores)), column][:, None]
    above, tied = (scores > own).sum(1), (scores == own).sum(1)
    query = np.flatnonzero(known)
    return _Runs(query, above[query], tied[query], np.ones(len(query), np.int64))


def _runs_of_many(scores: NDArray[Any], relevant: NDArray[np.bool_]) -> _Runs:
    """Sort (score, relevant) packed into one integer each; find the run of each relevant item."""
    width = scores.shape[1]
    packed = _falling_codes(scores)
    packed <<= 1
    packed |= relevant
    packed.sort(axis=1)
    flat = packed.reshape(-1)
    hits = np.flatnonzero((flat & 1).astype(bool))
    # Most relevant items share their score with no other: only where a neighbor ties is the run looked for.
    row, code = hits // width * width, flat[hits] >> 1
    left = (hits > row) & (flat[np.maximum(hits - 1, 0)] >> 1 == code)
    right = (hits + 1 < row + width) & (flat[np.minimum(hits + 1, len(flat) - 1)] >> 1 == code)
    begin, end = hits.copy(), hits + 1
    tied = np.flatnonzero(left | right)
    begin[tied] = _bisect(flat, row[tied], hits[tied], code[tied] << 1)
    end[tied] = _bisect(flat, end[tied], row[tied] + width, (code[tied] + 1) << 1)
    first = np.flatnonzero(np.diff(begin, prepend=-1))  # relevant items of one run have one begin
    r = np.diff(first, append=len(hits))
    begin, end, row = begin[first], end[first], row[first]
    return _Runs(row // width, begin - row, end - begin, r)


def _bisect(flat: Ints, low: Ints, high: Ints, value: Ints) -> Ints:
    """The first position in low..high where ``flat``, rising there, holds at least ``value``; ``high`` if none does."""
    for _ in range(int((high - low).max(initial=0)).bit_length()):
        middle = (low + high) // 2
        less = (middle < high) & (flat[np.minimum(middle, len(flat) - 1)] < value)
        low, high = np.where(less, middle + 1, low), np.where(less, high, middle)
    return low


def _falling_codes(scores: NDArray[Any]) -> Ints:
    """Integers that rise where scores fall and are equal where scores are equal; they stay below 2^62."""
    if scores.dtype != np.float32:
        return -scores.astype(np.int64)
    bits = (scores + np.float32(0)).view(np.int32)  # + 0 makes -0.0 equal to 0.0
    falling = bits >> 31
    falling &= 0x7FFFFFFF  # of two negative floats the one with the larger bits is smaller
    falling ^= bits
    np.invert(falling, out=falling)
    return falling.astype(np.int64)


def _dense_codes(scores: NDArray[Any]) -> Ints:
    """Scores of any precision as their rank among the distinct values of the row (higher stays higher)."""
    order = np.argsort(scores, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=1)
    dense = np.zeros(scores.shape, np.int64)
    dense[:, 1:] = np.cumsum(ordered[:, 1:] != ordered[:, :-1], axis=1)
    codes = np.empty_like(dense)
    np.put_along_axis(codes, order, dense, axis=1)
    return codes


def _from_runs(runs: _Runs, n_relevant: Ints, n_gallery: int, map_at: Sequence[int], ndcg_at: Sequence[int]) -> Ranking:
    """Add up the runs of each query; every expected value below is exact for a random order inside the run."""
    count = len(n_relevant)
    query, n, m, r = runs.query, runs.n, runs.m, runs.r
    is_first = np.ones(len(query), bool)
    is_first[1:] = query[1:] != query[:-1]
    firsts = np.flatnonzero(is_first)
    before = np.cumsum(r) - r
    before -= before[firsts][np.cumsum(is_first) - 1] if len(query) else 0
    harmonic, discount = _harmonic(n_gallery), _discounts(n_gallery)

    alone = (before + 1) / (n + 1)  # what a run of one item adds to the sum of precisions
    several = np.flatnonzero(m > 1)

    def precision_sum(k: int) -> Floats:
        # position j of a run is relevant with probability r / m; then R + 1 + (j - 1)(r - 1) / (m - 1) of n + j are
        # relevant
        value = alone if k >= n_gallery else np.where(n < k, alone, 0.0)
        if len(several):
            above, size, hits = n[several], m[several], r[several]
            j = np.clip(k - above, 0, size)
            h = np.where(j == 1, 1 / (above + 1), harmonic[above + j] - harmonic[above])
            slope = (hits - 1) / (size - 1)
            value = value.copy()
            value[several] = hits / size * ((before[several] + 1) * h + slope * (j - (above + 1) * h))
        return np.bincount(query, value, count).astype(np.float64)

    def gain(k: int) -> Floats:
        j = m if k >= n_gallery else np.clip(k - n, 0, m)
        return np.bincount(query, r / m * (discount[n + j] - discount[n]), count).astype(np.float64)

    def ndcg(k: int) -> Floats:
        ideal = discount[np.minimum(n_relevant, min(k, n_gallery))]
        return np.divide(gain(k), ideal, out=np.zeros(count), where=ideal > 0)

    def scatter(values: Ints) -> Ints:
        result = np.zeros(count, np.int64)
        result[query[firsts]] = values[firsts]
        return result

    some = np.maximum(n_relevant, 1)
    return Ranking(
        n_gallery,
        n_relevant,
        scatter(n),
        scatter(m),
        scatter(r),
        precision_sum(n_gallery) / some,
        ndcg(n_gallery),
        {k: precision_sum(k) / np.minimum(some, k) for k in map_at},
        {k: ndcg(k) for k in ndcg_at},
    )


def _first(holds: Callable[[int], bool], n: int) -> int:
    """Smallest x in 1..n where a monotone condition holds (n if it holds nowhere before)."""
    low, high = 1, max(1, n)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


@lru_cache(maxsize=8)
def _harmonic(n: int) -> Floats:
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])


@lru_cache(maxsize=8)
def _discounts(n: int) -> Floats:
    return np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, n + 2)))])


@lru_cache(maxsize=8)
def _log_factorials(n: int) -> Floats:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
