"""avcl: deep audio-visual correlation learning.

Networks f and g project the sound x_a and the picture x_v of a clip into one space in which what belongs together lies
together. ``import avcl`` is cheap: the verbs below load torch when they are first used.

>>> data = avcl.load_data("features.npz")                                    # or a folder, or a manifest
>>> model = avcl.train("cca", data.train, val=data.val, seed=0)
>>> print(avcl.evaluate(model, data.test, task="retrieval", relevance="class"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avcl import index as index
    from avcl.api import Model as Model
    from avcl.api import evaluate as evaluate
    from avcl.api import load as load
    from avcl.api import train as train
    from avcl.apply.sync import check_sync as check_sync
    from avcl.archive import search as search
    from avcl.catalog import describe as describe
    from avcl.comparison.study import compare as compare
    from avcl.data import load_data as load_data
    from avcl.environment import doctor as doctor
    from avcl.media import probe as probe
    from avcl.showcase import demo as demo

__version__ = "0.1.0"

_HOME = {
    "Model": "avcl.api",
    "check_sync": "avcl.apply.sync",
    "compare": "avcl.comparison.study",
    "demo": "avcl.showcase",
    "describe": "avcl.catalog",
    "doctor": "avcl.environment",
    "evaluate": "avcl.api",
    "load": "avcl.api",
    "load_data": "avcl.data",
    "probe": "avcl.media",
    "search": "avcl.archive",
    "train": "avcl.api",
}
__all__ = [
    "Model",
    "check_sync",
    "compare",
    "demo",
    "describe",
    "doctor",
    "evaluate",
    "load",
    "load_data",
    "probe",
    "search",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name == "index":
        return importlib.import_module("avcl.index")
    raise AttributeError(f"module 'avcl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "index"})
