"""Wikipedia (Rasiwasia et al. 2010): 2,866 pictures with a passage of text, 10 categories, features.

Files read: ``raw_features.mat`` with I_tr, I_te (128 values: SIFT bag of words) and T_tr, T_te (10 values: topics)
beside ``trainset_txt_img_cat.list`` and ``testset_txt_img_cat.list``, lines ``text<TAB>picture<TAB>category`` with
categories from 1; or ``wikiData.mat``, which also has L_tr and L_te, one-hot or from 1. The pictures' features are
the video.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from avcl.data.feature_files import read_arrays
from avcl.data.official_features import FeatureSet, stacked
from avcl.data.official_lists import cells, number, pick
from avcl.errors import DataError, LabelError

LABELS = (
    "art",
    "biology",
    "geography",
    "history",
    "literature",
    "media",
    "music",
    "royalty",
    "sport",
    "warfare",
)
SPLITS = {"train": "tr", "test": "te"}


def arrays(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays with their categories. DataError: a key or a list is missing, or they differ in length."""
    path = pick(folder, "wikiData.mat", "raw_features.mat")
    if path is None:
        return None
    found = read_arrays(path)
    parts: dict[str, dict[str, Any]] = {}
    for split, short in SPLITS.items():
        for key in (f"I_{short}", f"T_{short}"):
            if key not in found:
                raise DataError(f'has no "{key}".', file=path)
        parts[split] = {"video": found[f"I_{short}"], "text": found[f"T_{short}"]}
        if f"L_{short}" in found:
            parts[split]["label"] = _from_zero(np.asarray(found[f"L_{short}"], int))
        else:
            parts[split]["id"], parts[split]["label"] = _listed(folder, split)
    return stacked(parts, LABELS, path)


def _from_zero(labels: np.ndarray) -> np.ndarray:
    return labels.argmax(1) if labels.ndim == 2 and labels.shape[1] == len(LABELS) else labels.reshape(-1) - 1


def _listed(folder: Path, split: str) -> tuple[list[str], list[int]]:
    name = f"{split}set_txt_img_cat.list"
    path = pick(folder, name)
    if path is None:
        raise DataError("has no categories.", file=folder, hint=f"{name} is missing.")
    ids, labels = [], []
    for where, (text, _, category) in cells(path, 3, "text<TAB>picture<TAB>category", delimiter="\t"):
        label = number(category, "the category", where)
        if not 1 <= label <= len(LABELS):
            raise LabelError(f"{label} is not a category from 1 to {len(LABELS)}.", file=where)
        ids.append(text)
        labels.append(label - 1)
    return ids, labels


SET = FeatureSet(
    name="wikipedia",
    title="Wikipedia articles: pictures and text, features",
    about="features of 2,866 pictures with a passage of text, 10 categories",
    license="none stated (the texts: CC BY-SA)",
    source="http://www.svcl.ucsd.edu/projects/crossmodal/",
    citation=(
        "N. Rasiwasia, J. Costa Pereira, E. Coviello, G. Doyle, G. R. G. Lanckriet, R. Levy, N. Vasconcelos. "
        "A new approach to cross-modal multimedia retrieval. ACM Multimedia 2010."
    ),
    counts={"train": 2173, "test": 693},
    lists=("raw_features.mat", "trainset_txt_img_cat.list", "testset_txt_img_cat.list", "wikiData.mat"),
    labels=LABELS,
    arrays=arrays,
)
