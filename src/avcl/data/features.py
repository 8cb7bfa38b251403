"""Features: arrays instead of media, from ``.npz``, ``.h5``, ``.mat`` or a folder of ``.npy``.

Two or more of ``audio``, ``video``, ``text`` [N, ...]. Optional, [N]: ``id`` (default: the row number), ``label``,
``group`` (default: the id), ``split``, and ``<name>_mask`` [N, T]. Shapes: [N] and [N,D] are features [1,1,D] of each
row, [N,T,D] features [1,T,D], [N,H,W,D] and [N,T,H,W,D] maps [1,T,H,W,D], all at 1 step per second; a ``text`` array of
strings becomes tokens, the UTF-8 bytes. Further arrays [N] of numbers or strings are kept as ``info``. A folder holds
``<key>.npy`` for any of these keys, and a ``meta.csv`` (or ``ids.txt``) for the rest.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch

from avcl.data.dataset import Data
from avcl.data.feature_files import KEYS, MASKS, MODALITIES, is_key, read_arrays
from avcl.data.labels import cell, check_ids, check_label, check_split, label_names, label_numbers, labels_file
from avcl.data.tokens import text_stream
from avcl.errors import DataError, FeatureError, LabelError, did_you_mean
from avcl.types import Clip, DataSpec, Kind, Source, Stream, StreamSpec

log = logging.getLogger("avcl.data")


class FeatureData(Data):
    """Rows of arrays. Build one from a file with ``load_data``, or from arrays with ``FeatureData.from_arrays``."""

    kind: Literal["media", "features", "world"] = "features"

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        ids: Sequence[str],
        labels: tuple[str, ...],
        targets: Sequence[int],
        groups: Sequence[str],
        info: Mapping[str, np.ndarray],
        where: str,
        rows: Sequence[int] | None = None,
        split: str = "all",
        bad: frozenset[int] = frozenset(),
        skipped: Mapping[str, int] | None = None,
        n_official: int | None = None,
    ):
        self._arrays, self._info, self._bad, self.where = arrays, info, bad, where
        self._ids, self._targets, self._groups = tuple(ids), tuple(targets), tuple(groups)
        self._rows = tuple(range(len(ids))) if rows is None else tuple(rows)
        self._shown = tuple((self._ids[i], self._targets[i], self._groups[i]) for i in self._rows)
        self.labels, self.split = labels, split
        self.modalities = tuple(name for name in MODALITIES if name in arrays)
        self.skipped = dict(skipped or {})
        self.n_official = len(self._rows) if n_official is None else n_official

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Any],
        *,
        where: str = "arrays",
        classes: Sequence[str] | None = None,
        drop_bad: bool = False,
    ) -> Self:
        """Checked rows from arrays under the keys of a feature file (``split``, if there is one, is kept as info).

        FeatureError: fewer than two of audio, video, text; lengths that disagree; a shape or type that is no feature;
        rows with non-finite values (with ``drop_bad`` ``prepare`` leaves them out and counts them). DataError: ids that
        stand twice. LabelError: a label that is not in ``classes``.
        """
        given = {name: _feature(arrays[name], name, where) for name in MODALITIES if arrays.get(name) is not None}
        if len(given) < 2:
            near = [did_you_mean(key, MODALITIES) for key in arrays if not is_key(key)]
            raise FeatureError(
                f"{len(given)} of the arrays audio, video, text, but two are needed; it has: {_listed(arrays)}.",
                file=where,
                hint=next((words for words in near if words.startswith("Did")), ""),
            )
        _warn_of_near_keys(arrays, where)
        n = len(next(iter(given.values())))
        if any(len(array) != n for array in given.values()):
            sizes = ", ".join(f"{name} {len(array)}" for name, array in given.items())
            raise FeatureError(f"the arrays differ in length: {sizes}.", file=where)
        if n == 0:
            raise FeatureError("the arrays have no rows.", file=where)
        for name in MODALITIES:
            if name in given and arrays.get(f"{name}_mask") is not None:
                given[f"{name}_mask"] = _mask(arrays[f"{name}_mask"], given[name], f"{name}_mask", where)
        columns = {key: _column(arrays[key], key, n, where) for key in KEYS if arrays.get(key) is not None}
        info = {k: _raveled(v) for k, v in arrays.items() if k not in (*MODALITIES, *MASKS, *KEYS) and _is_info(v, n)}
        ids = columns.get("id", [str(i) for i in range(n)])
        empty = next((i for i, id in enumerate(ids) if id is None), None)
        if empty is not None:
            raise DataError(f"the id of row {empty} is empty.", file=where)
        names = [str(id) for id in ids]
        check_ids(names, [f"row {i}" for i in range(n)], where)
        words = columns.get("label", [None] * n)
        for i, word in enumerate(words):
            check_label(word, classes, f"{where} row {i}")
        labels = tuple(classes) if classes is not None else label_names(words)
        if "split" in columns:
            info["split"] = np.array([_split(word, f"{where} row {i}") for i, word in enumerate(columns["split"])])
        bad = _bad_rows(given, where, raising=not drop_bad)
        if len(bad) == n:
            raise FeatureError("every row has non-finite values.", file=where)
        return cls(
            given,
            ids=names,
            labels=labels,
            targets=label_numbers(words, labels),
            groups=[group or id for group, id in zip(columns.get("group", [None] * n), names, strict=True)],
            info=info,
            where=where,
            bad=frozenset(bad),
        )

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(id for id, _, _ in self._shown)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def targets(self) -> tuple[int, ...]:
        return tuple(target for _, target, _ in self._shown)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(group for _, _, group in self._shown)

    def column(self, name: str) -> tuple[str | None, ...]:
        """One cell per row of ``id``, ``label``, ``group``, or a further array of the file; DataError where there is
        none.
        """
        if name == "id":
            return self.ids
        if name == "group":
            return self.groups
        if name == "label":
            return tuple(self.labels[t] if t >= 0 else None for t in self.targets)
        if name not in self._info:
            known = {"id", "group", "label", *self._info}
            raise DataError(f'there is no column "{name}".', file=self.where, hint=did_you_mean(name, known))
        return tuple(cell(self._info[name][i]) for i in self._rows)

    @property
    def official(self) -> tuple[str, ...] | None:
        """The split of each row as the file gives it, or None."""
        return tuple(str(s) for s in self._info["split"][list(self._rows)]) if "split" in self._info else None

    @cached_property
    def spec(self) -> DataSpec:
        streams = {}
        for name in self.modalities:
            array = self._arrays[name]
            kind: Kind = "tokens" if array.dtype.kind == "U" else "map" if array.ndim > 3 else "features"
            shape = () if kind == "tokens" else array.shape[-3:] if kind == "map" else array.shape[-1:]
            streams[name] = StreamSpec(kind, shape, 1.0)
        return DataSpec(streams, self.labels, len(self))

    @cached_property
    def fingerprint(self) -> str:
        rows = []
        for i in self._rows:
            label = self.labels[self._targets[i]] if self._targets[i] >= 0 else None
            row = hashlib.blake2b(repr((self._ids[i], label, self._groups[i])).encode(), digest_size=16)
            for name, array in self._arrays.items():
                value = str(array[i]).encode() if array.dtype.kind == "U" else _float(array[i]).tobytes()
                row.update(f"{name}{array.shape[1:]}".encode())
                row.update(value)
            rows.append((self._ids[i], row.digest()))
        return hashlib.sha256(b"".join(digest for _, digest in sorted(rows))).hexdigest()[:16]

    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        i = self._rows[index]
        if i in self._bad:
            raise FeatureError(f"row {i} has non-finite values.", file=self.where, hint="data.prepare() leaves it out.")
        target = self._targets[i]
        return Clip(
            id=self._ids[i],
            streams={name: self._stream(name, i) for name in self.modalities},
            index=index,
            view=view,
            label=target if target >= 0 else None,
            group=self._groups[i],
            source=Source(self.where),
        )

    def _stream(self, name: str, i: int) -> Stream:
        array = self._arrays[name]
        if array.dtype.kind == "U":
            return text_stream(str(array[i]))
        data = torch.from_numpy(np.array(array[i], dtype=np.float32))
        # [D] and [H,W,D] are one step; [T,D] and [T,H,W,D] many
        data = data[None, None] if array.ndim in (2, 4) else data[None]
        mask = torch.ones(data.shape[:2], dtype=torch.bool)
        if f"{name}_mask" in self._arrays:
            mask = torch.from_numpy(np.array(self._arrays[f"{name}_mask"][i]))[None]
            data[~mask] = 0.0
        return Stream(data, mask, 1.0)

    def subset(self, indices: Sequence[int], *, split: str | None = None) -> Self:
        return self._with([self._rows[i] for i in indices], split=self.split if split is None else split)

    def prepare(self, *, workers: int = 0, on_error: Literal["skip", "raise"] = "skip", progress: bool = False) -> Self:
        """Without the rows that have non-finite values (there are none unless loaded with ``drop_bad``)."""
        kept = [i for i in self._rows if i not in self._bad]
        lost = len(self._rows) - len(kept)
        if lost and on_error == "raise":
            self.clip(next(k for k, i in enumerate(self._rows) if i in self._bad))
        if lost and not kept:
            raise FeatureError(f"every one of {lost} rows has non-finite values.", file=self.where)
        skipped = Counter(self.skipped) + Counter({FeatureError.code: lost})
        return self._with(kept, split=self.split, skipped=skipped, n_official=self.n_official)

    def _with(
        self,
        rows: Sequence[int],
        *,
        split: str,
        skipped: Mapping[str, int] | None = None,
        n_official: int | None = None,
    ) -> Self:
        return type(self)(
            self._arrays,
            ids=self._ids,
            labels=self.labels,
            targets=self._targets,
            groups=self._groups,
            info=self._info,
            where=self.where,
            rows=rows,
            split=split,
            bad=self._bad,
            skipped=skipped,
            n_official=n_official,
        )


def load_features(path: str | Path, *, drop_bad: bool = False) -> FeatureData:
    """The rows of a feature file or a folder of ``.npy`` files.

    MissingFile: there is no such file. DataError, FeatureError: it is none, or damaged; further as
    ``FeatureData.from_arrays``.
    """
    path = Path(path)
    arrays = read_arrays(path)
    classes = labels_file(path) if path.is_dir() else None
    return FeatureData.from_arrays(arrays, where=str(path), classes=classes, drop_bad=drop_bad)


# ------------------------------------------------------------------------------------------------------------ checking
def _feature(value: Any, name: str, where: str) -> np.ndarray:
    """The array of one modality [N, ...], still in its own type; strings only for text."""
    array = np.asarray(value)
    if array.dtype.kind in "SUO":
        words = [_unwrapped(value) for value in _raveled(array)]
        if name != "text" or not all(isinstance(word, str | bytes) for word in words):
            raise FeatureError(f"{name} holds {_kind(array)}, not numbers.", file=where)
        return np.array([cell(word) or "" for word in words], dtype=str)
    if array.dtype.kind not in "fiub":
        raise FeatureError(f"{name} holds {_kind(array)}, not real numbers.", file=where)
    if array.ndim == 1:
        array = array[:, None]
    if not 2 <= array.ndim <= 5 or 0 in array.shape[1:]:
        raise FeatureError(
            f"{name} has the shape {array.shape}.",
            file=where,
            hint="[N,D], [N,T,D], [N,H,W,D] or [N,T,H,W,D] is meant.",
        )
    return array


def _warn_of_near_keys(arrays: Mapping[str, Any], where: str) -> None:
    """A key that is nearly one of ours would be taken for a column of the user's own, and its split not be seen."""
    for name in arrays:
        near = [] if is_key(name) else difflib.get_close_matches(name.lower(), [*KEYS, *MODALITIES], n=1, cutoff=0.75)
        if near and near[0] not in arrays:
            log.warning('%s: the array "%s" is kept as info. Did you mean "%s"?', where, name, near[0])


def _listed(names: Iterable[str]) -> str:
    listed = sorted(names)
    return (", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")) or "nothing"


def _kind(array: np.ndarray) -> str:
    return {"S": "text", "U": "text", "O": "Python objects", "c": "complex numbers"}.get(
        array.dtype.kind, str(array.dtype)
    )


def _mask(value: Any, array: np.ndarray, name: str, where: str) -> np.ndarray:
    mask = np.asarray(value)
    if array.ndim not in (3, 5) or mask.shape != array.shape[:2] or not np.isin(mask, (0, 1)).all():
        raise FeatureError(f"{name} {mask.shape} is not a mask [N, T] for an array {array.shape}.", file=where)
    return mask.astype(bool)


def _raveled(value: Any) -> np.ndarray:
    """[N], [1,N] or [N,1] as [N]; MATLAB knows no one-dimensional array."""
    array = np.asarray(value)
    return array.reshape(-1) if array.ndim == 0 or sum(s != 1 for s in array.shape) <= 1 else array


def _is_info(value: Any, n: int) -> bool:
    array = _raveled(value)
    return array.shape == (n,) and array.dtype.kind in "fiubSUO"


def _column(value: Any, key: str, n: int, where: str) -> list[str | None]:
    array = _raveled(value)
    if array.shape != (n,):
        raise FeatureError(f"{key} has the shape {array.shape}, but there are {n} rows.", file=where)
    if array.dtype.kind == "f" and key == "label":
        odd = np.flatnonzero(np.isfinite(array) & (array != np.round(array)))
        if len(odd):
            raise LabelError(
                f"label {array[odd[0]]:g} of row {odd[0]} is no class.", file=where, hint="Whole numbers or names."
            )
    cells = [cell(_unwrapped(v)) for v in array]
    if key == "label" and array.dtype.kind in "if":
        cells = [None if c is not None and c.startswith("-") else c for c in cells]  # -1: no class
    return cells


def _unwrapped(value: Any) -> Any:
    """The content of a MATLAB cell, which comes as an array in an array."""
    while isinstance(value, np.ndarray):
        if value.size != 1:
            return "" if value.size == 0 else value.tobytes()
        value = value.reshape(-1)[0]
    return value


def _split(word: str | None, where: str) -> str:
    if word is None:
        raise DataError(
            "the split is empty.", file=where, hint="Give every row train, val or test, or leave `split` out."
        )
    check_split(word, where)
    return word


def _bad_rows(arrays: Mapping[str, np.ndarray], where: str, *, raising: bool) -> set[int]:
    """Rows with a value that is not finite where the mask does not hide it; FeatureError that names them if
    ``raising``.
    """
    bad: set[int] = set()
    for name in MODALITIES:
        if name not in arrays or arrays[name].dtype.kind != "f":
            continue
        array, mask = arrays[name], arrays.get(f"{name}_mask")
        block = max(
            1, (1 << 22) // max(1, int(np.prod(array.shape[1:])))
        )  # memory-mapped files are read piece by piece
        rows: list[int] = []
        for first in range(0, len(array), block):
            finite = np.isfinite(_float(array[first : first + block]))
            if mask is not None:
                finite |= ~mask[first : first + block].reshape(
                    mask[first : first + block].shape + (1,) * (array.ndim - 2)
                )
            rows += (first + np.flatnonzero(~finite.reshape(len(finite), -1).all(1))).tolist()
        if rows and raising:
            shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
            raise FeatureError(
                f"{name} row{'s' if len(rows) > 1 else ''} {shown}: non-finite values.",
                file=where,
                hint="Fix the extractor, or load with drop_bad=True (--drop-bad) "
                f"({len(rows):,} of {len(array):,} rows).",
            )
        bad.update(rows)
    return bad


def _float(array: np.ndarray) -> np.ndarray:
    """float32 as the clips have it; what does not fit becomes infinite (and is reported), without a NumPy warning."""
    with np.errstate(over="ignore"):
        return np.asarray(array, dtype=np.float32)
