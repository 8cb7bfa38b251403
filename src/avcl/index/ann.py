"""Approximate search: a FAISS index derived from a vector file, for those who ask for one with ``factory=``.

It is a copy that can be made again: vectors behind its count are searched exactly, removed ones are masked, and every
score that leaves the index is computed from the vector file. Families: IVF and HNSW (HNSW cannot remove, hence the
mask).
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from avcl.errors import ConfigError, StoreError
from avcl.files import write_atomic
from avcl.index.vectors import BLOCK, Selector, library

TRAIN_PER_CELL = 39  # FAISS warns below so many training vectors per cell
TRAIN_MAX_PER_CELL = 256  # and takes no more than so many


def is_exact(factory: str) -> bool:
    return factory.strip().lower() == "flat"


def make(factory: str, dim: int) -> Any:
    """An empty FAISS index for inner products; ConfigError where the factory string is none or of another family."""
    faiss = library()

    families = "Use Flat (exact), or an IVF or HNSW factory such as IVF64,Flat or HNSW32."
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, ValueError, TypeError):
        raise ConfigError(f'"{factory}" is not a FAISS factory string for {dim} dimensions.', hint=families) from None
    if not isinstance(index, faiss.IndexIVF | faiss.IndexHNSW):
        raise ConfigError(f'factory "{factory}" is a {type(index).__name__}.', hint=families)
    return index


def needed(factory: str, dim: int) -> int:
    """How many vectors the index wants before it can be trained; below that, search is exact."""
    faiss = library()

    index = make(factory, dim)
    cells = index.nlist if isinstance(index, faiss.IndexIVF) else 1
    codes = 2**index.pq.nbits if hasattr(index, "pq") else 1
    return max(1, TRAIN_PER_CELL * max(cells, codes)) if cells > 1 or codes > 1 else 1


def train(factory: str, vectors: np.ndarray, seed: int = 0) -> Any:
    """A trained index that holds all ``vectors``."""
    index = make(factory, vectors.shape[1])
    if not index.is_trained:
        most = TRAIN_MAX_PER_CELL * max(getattr(index, "nlist", 1), 256 if hasattr(index, "pq") else 1)
        chosen = np.random.default_rng(seed).permutation(len(vectors))[:most]
        index.train(np.ascontiguousarray(vectors[np.sort(chosen)]))
    extend(index, vectors, 0)
    return index


def extend(index: Any, vectors: np.ndarray, start: int) -> None:
    """Add the vectors from slot ``start`` on; positions in the index are slots."""
    for at in range(start, len(vectors), 4 * BLOCK):
        index.add(np.ascontiguousarray(vectors[at : at + 4 * BLOCK]))


def write(index: Any, path: Path) -> int:
    """Write the index; returns the CRC-32 of the file, without which ``read`` does not hand it to FAISS."""
    faiss = library()

    try:
        write_atomic(path, lambda part: faiss.write_index(index, str(part)))
    except RuntimeError as error:
        raise StoreError(f"the approximate index cannot be written ({str(error)[:80]}).", file=path) from None
    return _crc(path)


def read(path: Path, crc: int) -> Any:
    """StoreError where the file is not what was written; FileNotFoundError where it has been replaced."""
    faiss = library()

    hint = "Delete this file (search is then exact) and run avcl index update."
    try:
        if _crc(path) == crc:
            return faiss.read_index(str(path))
    except RuntimeError as error:
        raise StoreError(f"FAISS cannot read the file ({str(error)[:80]}).", file=path, hint=hint) from None
    raise StoreError("the approximate index is damaged (checksum).", file=path, hint=hint)


def _crc(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def search(index: Any, queries: np.ndarray, k: int, mask: np.ndarray | None) -> np.ndarray:
    """Slots [Q, k] near each query, -1 where the index found fewer than ``k``. ``mask`` [N] bool: only these."""
    faiss = library()

    selector = None if mask is None else Selector(mask[: index.ntotal])
    chosen = {} if selector is None else {"sel": selector.faiss}
    k = min(k, index.ntotal)
    if isinstance(index, faiss.IndexIVF):
        parameters = faiss.SearchParametersIVF(nprobe=max(1, math.ceil(index.nlist / 8)), **chosen)
    else:
        parameters = faiss.SearchParametersHNSW(efSearch=max(64, 2 * k), **chosen)
    return index.search(np.ascontiguousarray(queries, dtype=np.float32), k, params=parameters)[1]
