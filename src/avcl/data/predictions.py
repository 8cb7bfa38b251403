"""Predictions of an embedding system: savable arrays with ids, in the layout of feature files.

One ``.npz`` without pickle. Another program may write it: any two or more embedding arrays ``audio``, ``video``,
``text`` (``[N, D]``; ``video_to_text`` where a modality is embedded differently toward each other one), everything
else optional: ``label [N]`` (numbers from 0, -1 for none, or names), ``id [N]`` (default: row number), ``group [N]``
(default: id), ``label_names``, ``similarity`` (default: cosine), ``n_official`` (default: N), ``item_<modality> [N]``
(the row that first has the same content inside the group; default: every row is an item of its own).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avcl.errors import DataError, FeatureError, MissingFile
from avcl.files import write_atomic

RESERVED = ("id", "label", "group", "split", "label_names", "similarity", "n_official")


@dataclass(frozen=True)
class Predictions:
    """Embeddings of N rows. ``embeddings`` {modality or ``a_to_b``: [N, D] float32} · ``labels`` [N], -1 for none ·
    ``items`` {modality: [N]} first row of the same group with the same content · ``similarity``: name of the measure
    · ``n_official``: rows there should be.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: tuple[str, ...]
    embeddings: Mapping[str, NDArray[np.float32]]
    items: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    similarity: str = "cosine"
    n_official: int = 0
    label_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.ids)
        columns: dict[str, Any] = {
            "label": self.labels,
            "group": self.groups,
            **{f"item_{k}": v for k, v in self.items.items()},
        }
        wrong = [name for name, column in columns.items() if len(column) != n]
        if wrong:
            raise DataError(f"{', '.join(wrong)} must have one entry for each of the {n} ids.")
        for name, array in self.embeddings.items():
            if array.ndim != 2 or len(array) != n or array.dtype.kind not in "fiu":
                raise FeatureError(
                    f"{name} must be an array of numbers [{n}, D], not {list(array.shape)} {array.dtype}."
                )
            rows = np.flatnonzero(~np.isfinite(array).all(1))
            if len(rows):
                some = ", ".join(self.ids[i] for i in rows[:3]) + (", ..." if len(rows) > 3 else "")
                raise FeatureError(f"{name} has values that are not finite in {len(rows)} of {n} rows ({some}).")
        object.__setattr__(self, "n_official", self.n_official or n)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order they were stored."""
        return tuple(dict.fromkeys(name.split("_to_")[0] for name in self.embeddings))

    def of(self, modality: str, toward: str) -> NDArray[np.float32]:
        """[N, D] embeddings of one modality, those made toward the other one where they differ."""
        for name in (f"{modality}_to_{toward}", modality):
            if name in self.embeddings:
                return self.embeddings[name]
        raise DataError(f"the predictions have no {modality} toward {toward} (they have {', '.join(self.embeddings)}).")

    def with_wrong_partners(self, *, seed: int = 0) -> Predictions:
        """The control: every modality of a row comes from a different other row (along one random cycle).

        What still scores above chance here does not come from telling the right partner. Every modality moves, for a
        gallery that kept its labels would keep its clusters too, and clusters alone raise the AP of a random query.
        """
        order = np.random.default_rng(seed).permutation(len(self))
        names = list(dict.fromkeys(key.split("_to_")[0] for key in self.embeddings))
        partner = {}
        for steps, name in enumerate(names, 1):
            partner[name] = np.empty(len(self), np.int64)
            partner[name][order] = np.roll(order, steps)
        moved = {key: vectors[partner[key.split("_to_")[0]]] for key, vectors in self.embeddings.items()}
        return replace(self, embeddings=moved, items={})

    def save(self, path: str | Path) -> None:
        """Write one ``.npz``, whole or not at all."""
        arrays: dict[str, Any] = {
            **self.embeddings,
            **{f"item_{name}": rows for name, rows in self.items.items()},
            "id": np.array(self.ids, np.str_),
            "label": self.labels,
            "group": np.array(self.groups, np.str_),
            "label_names": np.array(self.label_names, np.str_),
            "similarity": np.array(self.similarity),
            "n_official": np.array(self.n_official),
        }
        write_atomic(path, lambda part: np.savez(part, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> Predictions:
        """Read what ``save`` or another program wrote. Raises MissingFile, DataError, FeatureError; never unpickles."""
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        except FileNotFoundError as error:
            raise MissingFile("there is no such file.", file=path) from error
        except Exception as error:  # zipfile, NumPy and OS errors of a damaged file share no base class
            raise DataError("this is not a readable .npz of plain arrays.", file=path) from error
        arrays = {k: v for k, v in found.items() if k not in RESERVED and not k.startswith("item_")}
        if not arrays:
            raise DataError("the file has no embedding array (audio, video, text, ...).", file=path)
        n = len(next(iter(arrays.values()))) if next(iter(arrays.values())).ndim else 0
        ids = tuple(str(i) for i in found["id"].reshape(-1)) if "id" in found else tuple(str(i) for i in range(n))
        groups = tuple(str(g) for g in found["group"].reshape(-1)) if "group" in found else ids
        labels, names = _labels(found.get("label", np.full(n, -1)))
        if "label_names" in found:
            names = tuple(str(name) for name in found["label_names"].reshape(-1))
        return cls(
            ids=ids,
            labels=labels,
            groups=groups,
            embeddings={k: v.astype(np.float32) if v.dtype.kind in "fiu" else v for k, v in arrays.items()},
            items={k.removeprefix("item_"): v.astype(np.int64) for k, v in found.items() if k.startswith("item_")},
            similarity=str(found["similarity"]) if "similarity" in found else "cosine",
            n_official=int(found["n_official"]) if "n_official" in found else n,
            label_names=names,
        )


def _labels(column: NDArray[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class numbers as they are; class names (an empty one: none) as their place in the sorted list."""
    flat = column.reshape(-1)
    if flat.dtype.kind in "iub" or (flat.dtype.kind == "f" and (flat == flat.astype(np.int64)).all()):
        return flat.astype(np.int64), ()
    if flat.dtype.kind not in "US":
        raise DataError(f"label must hold class numbers or names, not {flat.dtype}.")
    texts = [str(t) for t in flat.astype(np.str_)]
    names = tuple(sorted(set(texts) - {""}))
    place = {name: i for i, name in enumerate(names)}
    return np.array([place.get(t, -1) for t in texts], np.int64), names
