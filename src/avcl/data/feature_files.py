"""Arrays from feature files: ``.npz``, ``.h5``, ``.mat`` or a folder of ``.npy``. Nothing is ever unpickled."""

from __future__ import annotations

import csv
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from avcl.errors import DataError, FeatureError, MissingFile

MODALITIES = ("audio", "video", "text")
KEYS = ("id", "label", "group", "split")
MASKS = tuple(f"{name}_mask" for name in MODALITIES)
FEATURE_SUFFIXES = frozenset({".npz", ".h5", ".hdf5", ".mat"})


def is_key(name: str) -> bool:
    """Whether an array of this name means something in a feature file."""
    return name in (*MODALITIES, *MASKS, *KEYS)


def read_arrays(path: Path) -> dict[str, Any]:
    """Every array of a feature file by its key, unchecked; a folder gives its ``.npy`` files and the columns of
    meta.csv.

    MissingFile: there is no such file. DataError: not a feature file. FeatureError: damaged, or a key that holds
    objects.
    """
    if not path.exists():
        raise MissingFile("there is no such file.", file=path)
    if not os.access(path, os.R_OK):
        raise MissingFile("may not be read.", file=path, hint="Check its permissions.")
    if path.is_dir():
        return _folder(path)
    readers = {".npz": _npz, ".h5": _h5, ".hdf5": _h5, ".mat": _mat}
    if path.suffix.lower() not in readers:
        known = ", ".join(readers)
        raise DataError(f'"{path.suffix}" is not a feature file.', file=path, hint=f"Known: {known}, a folder.")
    return readers[path.suffix.lower()](path)


def _npy(path: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r")  # refuses Python objects, as np.load(allow_pickle=False) does
    except (ValueError, OSError, EOFError) as error:
        raise FeatureError("is not a plain .npy array.", file=path, hint=_objects_hint(error)) from error


def _npz(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise FeatureError("is a single array, not an .npz archive.", file=path)
            for name in file.files:
                try:
                    arrays[name] = file[name]
                except ValueError as error:
                    if is_key(name):
                        raise FeatureError(f"{name} cannot be read.", file=path, hint=_objects_hint(error)) from error
    except (ValueError, OSError, EOFError, KeyError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        raise FeatureError("is not an .npz archive, or is damaged.", file=path, hint=_objects_hint(error)) from error
    return arrays


def _objects_hint(error: Exception) -> str:
    # Not by "allow_pickle" alone: numpy takes any bytes that it does not know for a pickle.
    if "Object arrays" in str(error) or "Python objects" in str(error):
        return "It holds Python objects; save text as np.array(values, dtype=str)."
    return ""


def _h5(path: Path) -> dict[str, np.ndarray]:
    import h5py

    arrays = {}
    try:
        with h5py.File(path, "r") as file:
            for name, item in file.items():
                if isinstance(item, h5py.Dataset) and item.shape is not None:
                    arrays[str(name)] = item.asstr()[...] if h5py.check_string_dtype(item.dtype) else item[...]
    except (OSError, KeyError, RuntimeError, UnicodeDecodeError, TypeError) as error:
        raise FeatureError("is not an HDF5 file, or is damaged.", file=path) from error
    return arrays


def _mat(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            if b"MATLAB 7.3" in file.read(128):
                raise FeatureError(
                    "is of MATLAB's version 7.3.", file=path, hint="Save it with -v7, or as .h5 or .npz."
                )
        found = loadmat(path, mat_dtype=False)
    except FeatureError:
        raise
    except Exception as error:  # scipy raises a dozen types on damaged bytes, MemoryError among them
        raise FeatureError("is not a .mat file, or is damaged.", file=path) from error
    return {name: value for name, value in found.items() if not name.startswith("__") and isinstance(value, np.ndarray)}


def _folder(folder: Path) -> dict[str, Any]:
    arrays: dict[str, Any] = {path.stem: _npy(path) for path in sorted(folder.glob("*.npy"))}
    if "ids" in arrays:
        arrays.setdefault("id", arrays.pop("ids"))
    if (folder / "ids.txt").is_file():
        arrays["id"] = np.array([line.strip() for line in (folder / "ids.txt").read_text("utf-8-sig").splitlines()])
    meta = folder / "meta.csv"
    if not meta.is_file():
        return arrays
    try:
        with meta.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError("is not CSV in UTF-8.", file=meta) from error
    header = [name.strip() for name in rows[0]] if rows else []
    uneven = next((i for i, row in enumerate(rows, 1) if len(row) != len(header)), None)
    if uneven is not None:
        raise DataError(f"{len(rows[uneven - 1])} cells, but {len(header)} columns.", file=f"{meta}:{uneven}")
    n = len(next((arrays[m] for m in MODALITIES if m in arrays), rows[1:]))
    if len(rows) - 1 != n:
        raise FeatureError(f"{len(rows) - 1} rows, but the arrays have {n}.", file=meta)
    columns = {name: np.array([row[i] for row in rows[1:]], dtype=str) for i, name in enumerate(header)}
    return {**arrays, **columns}
