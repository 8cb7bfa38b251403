"""The part of AVE that audio-visual retrieval is measured on (Zeng et al. 2020 and after): 15 classes, features.

File read: an HDF5 file with ``visual_train audio_train lab_train visual_test audio_test lab_test``; 128 values of sound
(VGGish) and 1024 of pictures (Inception) a clip, or a sequence of ten. Classes are numbers; which event is which is not
written in the file, so they keep them as names. The counts are those of later papers, not verified at the file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avcl.data.official_features import FeatureSet, retrieval_h5
from avcl.data.official_lists import pick

LISTS = ("AVE_feature_updated_squence.h5", "AVE_feature_norm.h5", "ave_feature_norm.h5", "ave_feature.h5")
LABELS = tuple(map(str, range(15)))


def arrays(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays of the first of ``LISTS`` that is there."""
    path = pick(folder, *LISTS)
    return None if path is None else retrieval_h5(path, LABELS)


SET = FeatureSet(
    name="ave_retrieval",
    title="AVE for cross-modal retrieval",
    about="features of 1,955 clips of AVE, 15 classes; as the VEGAS features",
    license="none stated",
    source="https://github.com/ZenzenDatabase/CMR",
    citation=(
        "D. Zeng, Y. Yu, K. Oyama. Deep triplet neural networks with cluster-CCA for audio-visual cross-modal "
        "retrieval. ACM TOMM 16(3), 2020."
    ),
    counts={"train": 1564, "test": 391},
    lists=LISTS,
    labels=LABELS,
    arrays=arrays,
)
