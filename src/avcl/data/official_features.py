"""Sets of features: the arrays of official files, and a feature file of them that ``load_data`` reads."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avcl.data.feature_files import read_arrays
from avcl.data.official import Check, Entry, OfficialSet, checked, existing, listed
from avcl.data.official_lists import lines
from avcl.errors import ConfigError, DataError
from avcl.files import write_atomic


@dataclass(frozen=True, kw_only=True)
class FeatureSet(OfficialSet):
    """A set of arrays. ``arrays(folder)``: those of the official file under the keys of a feature file (audio, video,
    text, id, label, split, group); None where it is not there. A row's part is its split.
    """

    arrays: Callable[[Path], Mapping[str, np.ndarray] | None]

    def load(self, folder: str | Path) -> Mapping[str, np.ndarray]:
        """The arrays. MissingFile: there is no official file. DataError, FeatureError: it is not as published."""
        arrays = self.arrays(existing(folder))
        if arrays is None:
            raise self.no_list(Path(folder))
        return arrays

    def entries(self, folder: str | Path) -> Iterator[Entry]:
        arrays = self.load(folder)
        for i, (id, split) in enumerate(zip(arrays["id"], arrays["split"], strict=True)):
            label = str(arrays["label"][i]) if "label" in arrays else ""
            yield Entry(id=str(id), part=str(split), split=str(split), label=label)

    def verify(self, folder: str | Path, lists: str | Path | None = None) -> Iterator[Check]:
        arrays = self.arrays(existing(folder))
        found = Counter(map(str, arrays["split"])) if arrays is not None else Counter()
        for part in [*self.counts, *(split for split in found if split not in self.counts)]:
            yield checked(part, self.counts.get(part), found[part], found[part], ())

    def manifest(
        self, folder: str | Path, media: str | Path, out: str | Path, *, only: Sequence[str] = ()
    ) -> dict[str, int]:
        self.check_only(only)
        if Path(out).suffix.lower() != ".npz":
            raise ConfigError("features are written as .npz.", file=out)
        arrays = dict(self.load(folder))
        keep = np.isin(arrays["split"], only) if only else np.ones(len(arrays["split"]), bool)
        if not keep.any():
            raise DataError(f"holds no row of {listed(only)}.", file=folder)
        kept = {key: value[keep] for key, value in arrays.items()}
        write_atomic(out, lambda path: _savez(path, kept))
        missing = sum(check.missing for check in self.verify(folder) if not only or check.part in only)
        return {"rows": int(keep.sum()), "missing": missing}


def _savez(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def stacked(parts: Mapping[str, Mapping[str, Any]], labels: Sequence[str], where: Path) -> dict[str, Any]:
    """Arrays of several splits, one below the other: {split: {"audio", "video", "text", "label" (class numbers from 0)
    and perhaps "id"}}. DataError: lengths that differ, or a number that is no class."""
    joined: dict[str, list[Any]] = defaultdict(list)
    for split, arrays in parts.items():
        n = len(arrays["label"])
        sizes = {key: len(value) for key, value in arrays.items()}
        if set(sizes.values()) != {n}:
            raise DataError(f"the {split} arrays differ in length: {sizes}.", file=where)
        for key, value in arrays.items():
            joined[key].append(_names(value, labels, where) if key == "label" else np.asarray(value))
        if "id" not in arrays:
            joined["id"].append(np.array([f"{split}-{i:05d}" for i in range(n)]))
        joined["split"].append(np.array([split] * n))
    try:
        return {key: np.concatenate(value) for key, value in joined.items()}
    except ValueError as error:
        shapes = {key: [part.shape[1:] for part in value] for key, value in joined.items()}
        raise DataError(f"the splits have other shapes: {shapes}.", file=where) from error


def _names(numbers: Any, labels: Sequence[str], where: Path) -> np.ndarray:
    values = np.asarray(numbers)
    flat = values.argmax(1) if values.ndim == 2 and values.shape[1] == len(labels) > 1 else values.reshape(-1)
    if flat.dtype.kind not in "iuf" or not np.equal(np.mod(flat, 1), 0).all():
        raise DataError("the labels are no class numbers.", file=where)
    bad = np.flatnonzero((flat < 0) | (flat >= len(labels)))
    if len(bad):
        raise DataError(f"row {bad[0]} has the class {flat[bad[0]]:g}, but there are {len(labels)} from 0.", file=where)
    return np.array(labels)[flat.astype(int)]


def retrieval_h5(path: Path, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of a file with visual_train, audio_train, lab_train, visual_test, audio_test and lab_test: one vector
    (or sequence) of each modality a row, classes as numbers from 0 or one-hot. DataError: a key is missing."""
    arrays = read_arrays(path)
    names = {"video": "visual", "audio": "audio", "label": "lab"}
    parts: dict[str, dict[str, Any]] = {}
    for split in ("train", "test"):
        keys = {column: f"{name}_{split}" for column, name in names.items()}
        for key in keys.values():
            if key not in arrays:
                raise DataError(f'has no "{key}".', file=path, hint=f"It has: {listed(sorted(arrays))}.")
        parts[split] = {column: arrays[key] for column, key in keys.items()}
    return stacked(parts, labels, path)


def youtube8m(array: np.ndarray) -> np.ndarray:
    """float32 [D] of the features of a clip: bytes [T, D] are averaged and decoded by (x - 128) / 256; vectors of real
    numbers stay."""
    values = np.asarray(array)
    mean = values.astype(np.float32).mean(0) if values.ndim == 2 else values.astype(np.float32)
    return (mean - 128) / 256 if values.dtype.kind in "iu" else mean


def folds(folder: Path, labels: Sequence[str], classes: str) -> dict[str, np.ndarray] | None:
    """The arrays of a folder with ``vgg/<id>.npy`` (sound, bytes [T, 128]), ``inception/<id>.npy`` (pictures, bytes
    [T, 1024]), ``<classes>/<id>.npy`` (the class, a number) and ``folds/``: text files of one id a line, in the order
    of their names. The last fold is tested on, the others train. None: there are no folds. DataError: an id
    whose array is missing or is none.
    """
    lists = sorted(path for path in (folder / "folds").glob("*") if path.is_file())
    if len(lists) < 2:
        return None
    parts: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for fold, path in enumerate(lists):
        for where, id in lines(path):
            row = parts["train" if fold < len(lists) - 1 else "test"]
            row["id"].append(id)
            row["audio"].append(youtube8m(_array(folder / "vgg" / f"{id}.npy", where)))
            row["video"].append(youtube8m(_array(folder / "inception" / f"{id}.npy", where)))
            row["label"].append(int(_array(folder / classes / f"{id}.npy", where).reshape(-1)[0]))
    return stacked(parts, labels, folder / "folds")


def _array(path: Path, where: str) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"names {path.stem}, but there is no {path.parent.name}/{path.name}.", file=where) from error
    except (ValueError, OSError, EOFError) as error:
        raise DataError("is not a plain .npy array.", file=path) from error
