"""MV-10K (Zeng et al. 2018): features of about 10,000 music videos of YouTube-8M.

Files read: the folder of the authors: ``vgg/<id>.npy`` (sound, bytes [T, 128]), ``inception/<id>.npy`` (pictures, bytes
[T, 1024]), both decoded by (mean - 128) / 256, ``classes/<id>.npy`` (a number) and the lists of ids in ``folds/``, of
which the last is the test part. Not verified: the names of the folders (those of the same authors' VEGAS are read, with
``classes``), the ten classes, and the counts, which are round figures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avcl.data.official_features import FeatureSet, folds

LABELS = tuple(map(str, range(10)))


def arrays(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays of the folds."""
    return folds(folder, LABELS, "classes")


SET = FeatureSet(
    name="mv10k",
    title="MV-10K: music videos of YouTube-8M, features",
    about="VGGish and Inception features of about 10,000 music videos",
    license="none stated (YouTube-8M's features: CC BY 4.0)",
    source="https://github.com/ZenzenDatabase/CMR",
    citation=(
        "D. Zeng, Y. Yu, K. Oyama. Audio-visual embedding for cross-modal music video retrieval through supervised "
        "deep CCA. ISM 2018."
    ),
    counts={"train": 8000, "test": 2000},
    lists=("folds/", "vgg/", "inception/", "classes/"),
    labels=LABELS,
    arrays=arrays,
)
