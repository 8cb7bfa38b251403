"""Vectors on disk, and exact search in them.

A vector file is float32, one row of ``dim`` numbers after the other, only ever appended to; slot i is row i. How many
rows count is written in SQLite, after the rows are on the disk: whatever a killed writer left behind the last counted
row is cut off by the next one. Readers map the file; nothing is loaded at open.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from avcl.errors import FeatureError, StoreError
from avcl.files import fsync

BLOCK = 16_384  # rows at a time where the work needs a copy
BATCH = 4  # so many queries are faster as a matrix product than one after the other
GROUP = 1024  # queries at a time


def library() -> Any:
    """FAISS, loaded when it is first needed."""
    import faiss

    return faiss


def append(path: Path, count: int, vectors: np.ndarray) -> None:
    """Write ``vectors`` [n, dim] behind the ``count`` rows that are valid, and wait until they are on the disk."""
    size = count * vectors.shape[1] * 4
    new = not path.exists()
    if new and count:
        raise StoreError("a vector file is missing.", file=path, hint="Build the index again.")
    with open(path, "ab" if new else "r+b") as file:
        if os.fstat(file.fileno()).st_size < size:
            raise _short(path, os.fstat(file.fileno()).st_size // (vectors.shape[1] * 4), count)
        file.truncate(size)
        file.seek(size)
        file.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        file.flush()
        os.fsync(file.fileno())
    if new:
        fsync(path.parent)


def open_map(path: Path, count: int, dim: int) -> np.ndarray:
    """The first ``count`` vectors [count, dim] float32, mapped; StoreError where the file holds fewer.

    FileNotFoundError where it is gone: a writer may have replaced it since the state was read.
    """
    if count == 0:
        return np.zeros((0, dim), np.float32)
    held = path.stat().st_size // (dim * 4)
    if held < count:
        raise _short(path, held, count)
    # A plain array over the map: the subclass costs microseconds at every slice.
    return np.asarray(np.memmap(path, dtype="<f4", mode="r", shape=(count, dim)))


def _short(path: Path, held: int, count: int) -> StoreError:
    return StoreError(f"the file holds {held:,} of {count:,} vectors.", file=path, hint="Build the index again.")


def normalized(vectors: np.ndarray, *, cosine: bool) -> np.ndarray:
    """float32 [n, dim], rows of length 1 where ``cosine`` (a row of zeros stays)."""
    wide = np.asarray(vectors, dtype=np.float64)
    if cosine:
        length = np.linalg.norm(wide, axis=1, keepdims=True)
        wide = wide / np.where(length == 0, 1.0, length)
    return np.ascontiguousarray(wide, dtype=np.float32)


def checked(vectors: np.ndarray, dim: int, what: str) -> np.ndarray:
    """``vectors`` as an array [n, dim] of finite numbers; FeatureError otherwise."""
    array = np.asarray(vectors)
    if array.ndim != 2 or array.shape[1] != dim or array.dtype.kind not in "fiu":
        raise FeatureError(f"{what} must be numbers [n, {dim}], not {array.dtype} {list(array.shape)}.")
    bad = np.flatnonzero(~np.isfinite(array).all(1))
    if len(bad):
        shown = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        raise FeatureError(f"{what}, rows {shown}: non-finite values.", hint="Fix the model or what it was given.")
    return array


@contextmanager
def openmp_threads(threads: int | None) -> Iterator[None]:
    """FAISS on so many threads inside (None: as it is)."""
    if threads is None:
        yield
        return
    faiss = library()

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class Selector:
    """The slots that may be found, as FAISS wants them; keeps the bits alive as long as FAISS looks at them."""

    def __init__(self, mask: np.ndarray):
        faiss = library()

        self._bits = np.packbits(mask, bitorder="little")
        self.faiss = faiss.IDSelectorBitmap(len(self._bits), faiss.swig_ptr(self._bits))


def nearest(vectors: np.ndarray, queries: np.ndarray, k: int, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` largest inner products of each query [Q, dim] with ``vectors`` [N, dim]: scores, slots [Q, k], best
    first.

    ``mask`` [N] bool: only these slots. There are fewer than ``k`` columns where there are fewer slots. A few queries
    go through the kernel of FAISS' ``IndexFlatIP``, run on the mapped file itself; a batch through blocks of matrix
    products.
    """
    faiss = library()
    slots = None if mask is None else np.flatnonzero(mask)
    k = min(k, len(vectors) if slots is None else len(slots))
    if len(queries) >= BATCH:
        groups = [_blocks(vectors, queries[i : i + GROUP], k, slots) for i in range(0, len(queries), GROUP)]
        return np.concatenate([g[0] for g in groups]), np.concatenate([g[1] for g in groups])
    if slots is None:
        return faiss.knn(queries, vectors, k, faiss.METRIC_INNER_PRODUCT)
    if len(slots) * 8 <= len(vectors):
        scores, found = faiss.knn(queries, vectors[slots], k, faiss.METRIC_INNER_PRODUCT)
        return scores, slots[found]
    scores = np.empty((len(queries), k), np.float32)
    found = np.empty((len(queries), k), np.int64)
    assert mask is not None
    selector = Selector(mask)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    faiss.knn_inner_product(
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        vectors.shape[1],
        len(queries),
        len(vectors),
        k,
        faiss.swig_ptr(scores),
        faiss.swig_ptr(found),
        selector.faiss,
    )
    return scores, found


def _blocks(
    vectors: np.ndarray, queries: np.ndarray, k: int, slots: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """``nearest`` by matrix products: of each block only what beats a query's k-th best so far is looked at again."""
    count = len(vectors) if slots is None else len(slots)
    who, where = np.zeros(0, np.int64), np.zeros(0, np.int64)
    best = np.zeros(0, np.float32)
    floor = np.full((len(queries), 1), -np.inf, np.float32)
    for start in range(0, count, BLOCK):
        here = None if slots is None else slots[start : start + BLOCK]
        scores = queries @ (vectors[start : start + BLOCK] if here is None else vectors[here]).T
        if start == 0 and scores.shape[1] > k:
            column = np.argpartition(scores, -k, axis=1)[:, -k:].ravel()
            query = np.repeat(np.arange(len(queries)), k)
        else:
            query, column = np.nonzero(scores > floor)
        who = np.concatenate([who, query])
        where = np.concatenate([where, column + start if here is None else here[column]])
        best = np.concatenate([best, scores[query, column]])
        order = np.lexsort((-best, who))
        who, where, best = who[order], where[order], best[order]
        rank = np.arange(len(who)) - np.searchsorted(who, np.arange(len(queries)))[who]
        kept = rank < k
        who, where, best, rank = who[kept], where[kept], best[kept], rank[kept]
        floor[who[rank == k - 1], 0] = best[rank == k - 1]
    if len(best) != len(queries) * k:
        raise StoreError("the index holds vectors that are not finite.", hint="Build the index again.")
    return best.reshape(-1, k), where.reshape(-1, k)


def products(vectors: np.ndarray, query: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Inner products [n] in float64 of one query with the vectors of ``slots``.

    Each row is summed by itself, so the same two vectors give the same bits wherever they stand: equal content is a
    tie.
    """
    wide = query.astype(np.float64)
    parts = [(vectors[slots[i : i + BLOCK]].astype(np.float64) * wide).sum(1) for i in range(0, len(slots), BLOCK)]
    return np.concatenate(parts) if parts else np.zeros(0)
