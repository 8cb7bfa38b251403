"""Features of VEGAS (Zhou et al. 2018) as audio-visual retrieval uses them: 28,103 clips of 10 sounds.

Files read: ``vegas_feature_norm.h5`` or ``vegas_feature.h5`` with ``visual_train audio_train lab_train visual_test
audio_test lab_test`` (1024 values of pictures, 128 of sound a clip); or the folder they were made of: ``vgg/<id>.npy``,
``inception/<id>.npy`` (bytes, one row a second, decoded by (mean - 128) / 256), ``VEGAS_classes/<id>.npy`` and the five
lists of ids in ``folds/``, of which the last is the test part. Classes are numbers; which sound is which is not written
in the files, so they keep them as names.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avcl.data.official_features import FeatureSet, folds, retrieval_h5
from avcl.data.official_lists import pick

LISTS = ("vegas_feature_norm.h5", "vegas_feature.h5", "VEGAS_feature_norm.h5", "VEGAS_feature.h5")
LABELS = tuple(map(str, range(10)))


def arrays(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays of the first of ``LISTS`` that is there, or of the folds."""
    path = pick(folder, *LISTS)
    return folds(folder, LABELS, "VEGAS_classes") if path is None else retrieval_h5(path, LABELS)


SET = FeatureSet(
    name="vegas",
    title="VEGAS: Visually Engaged and Grounded AudioSet, features",
    about="VGGish and Inception features of 28,103 clips, 10 classes",
    license="none stated",
    source="https://github.com/ZenzenDatabase/CMR",
    citation=(
        "Y. Zhou, Z. Wang, C. Fang, T. Bui, T. L. Berg. Visual to sound: generating natural sound for videos in the "
        "wild. CVPR 2018. Features: D. Zeng, Y. Yu, K. Oyama. ACM TOMM 16(3), 2020."
    ),
    counts={"train": 22_482, "test": 5621},
    lists=(*LISTS, "folds/"),
    labels=LABELS,
    arrays=arrays,
)
