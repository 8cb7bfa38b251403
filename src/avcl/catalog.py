"""What there is: ``entries`` lists systems, data, tasks and towers; ``describe`` tells about one of them, or about a
saved model or index.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from avcl import discover, index, store
from avcl.data import official
from avcl.data.world import PRESETS
from avcl.encoders.pretrained import NAMES
from avcl.errors import ConfigError, did_you_mean
from avcl.types import jsonable

FOLDERS = {
    "plain": "a plain folder of videos",
    "classes": "a folder of class folders: their names are the labels",
    "splits": "a folder of the folders train, val and test, each plain, paired or of class folders",
    "paired": "folders audio/ and video/ (or images/) joined by file stem",
    "manifest": "CSV, JSONL or Parquet: id, video, audio, image, text, start, end, label, split, group",
    "features": ".npz, .npy + ids, .h5 or .mat with two or more of audio, video, text",
}


def entries(what: Literal["systems", "data", "tasks", "towers"]) -> Iterator[dict[str, Any]]:
    """Yields {"name", "about", ...}, sorted by name."""
    if what == "systems":
        for name in discover.system_names():
            cls = discover.system_class(name)
            yield {"name": name, "about": cls.card.title, "year": cls.card.year, "venue": cls.card.venue}
    elif what == "tasks":
        for name in discover.task_names():
            yield {"name": name, "about": _first_line(importlib.import_module(f"avcl.tasks.{name}"))}
    elif what == "towers":
        for name, about in NAMES.items():
            yield {"name": name, "about": about}
        yield {"name": "FOLDER", "about": "a model that transformers or sentence-transformers saved there"}
    else:
        for name, about in FOLDERS.items():
            yield {"name": name, "about": about}
        for name in discover.data_names():
            yield {"name": name, "about": _published(name)["about"]}
        for name, preset in PRESETS.items():
            yield {"name": f"world:{name}", "about": preset.about}


def describe(thing: str) -> dict[str, Any]:
    """Facts about a system (card and settings), task (protocol), data set, saved model or index."""
    folder = Path(thing)
    if (folder / "config.json").exists():
        saved = store.load(folder)
        return {
            "kind": "model",
            "system": discover.system_name(saved.system),
            "fingerprint": saved.fingerprint,
            "inputs": jsonable(saved.inputs),
            "config": jsonable(saved.system.config),
            "streams": jsonable(saved.system.spec.streams),
            "labels": list(saved.system.spec.labels),
            "training": saved.meta.get("training"),
        }
    if (folder / "meta.json").exists():
        return {"kind": "index", **index.info(folder)}
    if thing in discover.system_names():
        cls = discover.system_class(thing)
        settings = {f.name: getattr(cls.Config(), f.name) for f in dataclasses.fields(cls.Config)}
        return {
            "kind": "system",
            "name": thing,
            "about": inspect.getdoc(inspect.getmodule(cls)) or "",
            "card": jsonable(cls.card),
            "settings": jsonable(settings),
        }
    if thing in discover.task_names():
        about = inspect.getdoc(importlib.import_module(f"avcl.tasks.{thing}"))
        also = {"data set": _published(thing)} if thing in discover.data_names() else {}  # "music" is both
        return {"kind": "task", "name": thing, "about": about, **also}
    if thing in FOLDERS:
        return {"kind": "data", "name": thing, "about": FOLDERS[thing]}
    if thing in discover.data_names():
        return {"kind": "data", **_published(thing)}
    preset = thing.removeprefix("world:")
    if preset in PRESETS:
        return {"kind": "data", **jsonable(PRESETS[preset]), "name": f"world:{preset}"}
    known = {*discover.system_names(), *discover.task_names(), *discover.data_names(), *FOLDERS}
    known |= {f"world:{name}" for name in PRESETS}
    raise ConfigError(
        f'"{thing}" is not a system, data set, task, model folder or index.', hint=did_you_mean(thing, known)
    )


def published(name: str) -> official.OfficialSet:
    """The published data set of that name. ConfigError, with the nearest name, where there is none."""
    found = getattr(discover.data_module(name), "SET", None)
    if not isinstance(found, official.OfficialSet):
        raise ConfigError(f'the module of the data set "{name}" has no SET.')
    return found


def _published(name: str) -> dict[str, Any]:
    """Facts about a published data set; of another package's that has no ``SET``, the first line of its module."""
    module = discover.data_module(name)
    return published(name).describe() if hasattr(module, "SET") else {"name": name, "about": _first_line(module)}


def _first_line(module: Any) -> str:
    return (inspect.getdoc(module) or "").partition("\n")[0]
