"""Features of Pascal Sentence as DSCMR (Zhen et al. 2019) uses them: VGG-19 of pictures, sentence CNN of text.

Files read: ``train_img.mat`` [800, 4096], ``train_txt.mat`` [800, 300], ``train_img_lab.mat`` [800, 1], and
``test_img.mat``, ``test_txt.mat``, ``test_img_lab.mat`` of 100, each with one array of its own name. Classes are
numbers from 0; which class is which is not written there, so they keep them as names. The pictures' features are the
video. The 100 pictures that validate in the paper are not published.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from avcl.data.feature_files import read_arrays
from avcl.data.official_features import FeatureSet, stacked
from avcl.data.official_lists import pick
from avcl.errors import DataError

LABELS = tuple(map(str, range(20)))
COLUMNS = {"video": "img", "text": "txt", "label": "img_lab"}
LISTS = tuple(f"{split}_{name}.mat" for split in ("train", "test") for name in COLUMNS.values())


def arrays(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays of the splits that are complete. DataError: a file without its array."""
    parts: dict[str, dict[str, Any]] = {}
    for split in ("train", "test"):
        paths = {column: pick(folder, f"{split}_{name}.mat") for column, name in COLUMNS.items()}
        if None in paths.values():
            continue
        parts[split] = {}
        for column, path in paths.items():
            assert path is not None
            found = read_arrays(path)
            if path.stem not in found:
                raise DataError(f'has no "{path.stem}".', file=path)
            parts[split][column] = found[path.stem]
    return stacked(parts, LABELS, folder) if parts else None


SET = FeatureSet(
    name="pascal_sentence_features",
    title="Pascal Sentence, features of DSCMR",
    about="VGG-19 and sentence-CNN features of Pascal Sentence, 20 classes",
    license="none stated",
    source="https://github.com/penghu-cs/DSCMR",
    citation="L. Zhen, P. Hu, X. Wang, D. Peng. Deep supervised cross-modal retrieval. CVPR 2019.",
    counts={"train": 800, "test": 100},
    lists=LISTS,
    labels=LABELS,
    arrays=arrays,
)
