"""Data: from files, arrays or the generated world to batches.

``load_data`` reads a path and splits it; ``Loader`` makes batches of a part; ``Data`` is what both speak of.
"""

from avcl.data.batching import collate
from avcl.data.cache import StreamCache
from avcl.data.dataset import Data, Splits
from avcl.data.features import FeatureData, load_features
from avcl.data.folders import read_folder
from avcl.data.loader import Loader
from avcl.data.loading import load_data
from avcl.data.manifest import Row, Table, read_manifest
from avcl.data.media_data import MediaData
from avcl.data.split import assign_splits, make_splits

__all__ = [
    "Data",
    "FeatureData",
    "Loader",
    "MediaData",
    "Row",
    "Splits",
    "StreamCache",
    "Table",
    "assign_splits",
    "collate",
    "load_data",
    "load_features",
    "make_splits",
    "read_folder",
    "read_manifest",
]
