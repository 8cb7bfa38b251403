"""Features of AVE (Tian et al. 2018): VGGish of sound and VGG-19 maps of pictures, one a second.

Files read: ``audio_feature.h5`` [N, 10, 128] and ``visual_feature.h5`` [N, 10, 7, 7, 512], each under "avadataset", in
the order of the lines of ``Annotations.txt``; the splits of ``*_order.h5``. Rows are those of ``avcl.data.sets.ave``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avcl.data.feature_files import read_arrays
from avcl.data.official_features import FeatureSet
from avcl.data.official_lists import pick
from avcl.data.sets.ave import LABELS, OFFICIAL, read
from avcl.errors import FeatureError


def arrays(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays with their annotation. FeatureError: a file without "avadataset", or with other rows."""
    paths = {"audio": pick(folder, "audio_feature.h5"), "video": pick(folder, "visual_feature.h5")}
    annotation = pick(folder, "Annotations.txt")
    if annotation is None or None in paths.values():
        return None
    table = read(annotation.parent)
    rows = [row for row in table.rows if row.split]
    found = {}
    for name, path in paths.items():
        assert path is not None
        features = read_arrays(path).get("avadataset")
        if features is None or len(features) != len(table.rows):
            lines = len(table.rows)
            raise FeatureError(f'has no "avadataset" of {lines} rows, one for each line of the annotation.', file=path)
        found[name] = features[[row.number for row in rows]]
    return found | {
        "id": np.array([row.id for row in rows]),
        "label": np.array([LABELS[row.label] for row in rows]),
        "split": np.array([row.split for row in rows]),
        "group": np.array([row.video for row in rows]),
    }


SET = FeatureSet(
    name="ave_features",
    title="AVE: audio-visual events, features",
    about="VGGish and VGG-19 features of AVE, ten steps of one second",
    license="none stated",
    source="https://github.com/YapengTian/AVE-ECCV18",
    citation=(
        "Y. Tian, J. Shi, B. Li, Z. Duan, C. Xu. Audio-visual event localization in unconstrained videos. ECCV 2018."
    ),
    counts=OFFICIAL,
    lists=(
        "audio_feature.h5",
        "visual_feature.h5",
        "Annotations.txt",
        "train_order.h5",
        "val_order.h5",
        "test_order.h5",
    ),
    labels=LABELS,
    arrays=arrays,
)
