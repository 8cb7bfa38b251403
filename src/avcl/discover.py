"""What there is, found by module name: systems, tasks and data sets. There are no registries.

A system is one module ``avcl.systems.<name>`` that defines exactly one ``System``; a task is one module
``avcl.tasks.<name>`` that defines exactly one class with ``predict`` and ``score``; a data set is one module
``avcl.data.sets.<name>``. Another package adds to them through the entry-point groups ``avcl.systems``, ``avcl.tasks``
and ``avcl.data``, e.g.
``mine = "my_package.mine"`` (a module, or ``module:Class``). Listing names imports none of them.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from avcl.errors import CapabilityError, ConfigError, ExtraError, did_you_mean

if TYPE_CHECKING:
    from avcl.system import System

_SYSTEMS, _TASKS, _DATA = "avcl.systems", "avcl.tasks", "avcl.data"
_HOMES = {_SYSTEMS: "avcl.systems", _TASKS: "avcl.tasks", _DATA: "avcl.data.sets"}


def system_names() -> tuple[str, ...]:
    """The names that ``system_class`` knows, sorted."""
    return _names(_SYSTEMS)


def task_names() -> tuple[str, ...]:
    """The names that ``task_class`` knows, sorted."""
    return _names(_TASKS)


def data_names() -> tuple[str, ...]:
    """The names of the data sets that have a reader of their own, sorted."""
    return _names(_DATA)


def system_class(name: str) -> type[System]:
    """The System of that name. ConfigError, with the nearest name, where there is none."""
    from avcl.system import System  # here, so that listing names does not import torch

    return _one_class(_SYSTEMS, name, "system", lambda c: issubclass(c, System))


def systems_that(capability: type) -> tuple[str, ...]:
    """Names of the systems whose class has every method of a capability protocol of ``avcl.system``; imports them."""
    asked = [name for name, value in vars(capability).items() if inspect.isfunction(value) and not name.startswith("_")]
    able = (name for name in system_names() if all(hasattr(system_class(name), method) for method in asked))
    return tuple(able)


def require(system: Any, capability: type, what: str) -> None:
    """CapabilityError, with the systems that can, unless ``system`` has ``capability``; ``what`` asks for it."""
    if not isinstance(system, capability):
        name = type(system).__module__.rpartition(".")[2]
        raise CapabilityError(
            f"{name} cannot {what}.",
            hint=f"Systems that can: {', '.join(systems_that(capability)) or 'none yet'}.",
        )


def task_class(name: str) -> type[Any]:
    """The protocol of that name. ConfigError, with the nearest name, where there is none."""
    return _one_class(_TASKS, name, "task", lambda c: hasattr(c, "predict") and hasattr(c, "score"))


def data_module(name: str) -> ModuleType:
    """The module that reads the data set of that name. ConfigError, with the nearest name, where there is none."""
    found = _load(_DATA, name, "data set")
    if not isinstance(found, ModuleType):
        raise ConfigError(f'the entry point of the data set "{name}" must name a module.')
    return found


def system_name(system: System | type[System]) -> str:
    """The name under which ``system_class`` finds this system's class; ConfigError where it would not."""
    cls = system if isinstance(system, type) else type(system)
    home, _, name = cls.__module__.rpartition(".")
    if home == _HOMES[_SYSTEMS]:
        return name
    for point in entry_points(group=_SYSTEMS):
        if point.module == cls.__module__:
            return point.name
    raise ConfigError(
        f"{cls.__module__}.{cls.__qualname__} cannot be found by name, so it could not be loaded again.",
        hint=f'Put it into avcl/systems/, or declare it in the entry-point group "{_SYSTEMS}" of its package.',
    )


def _own(group: str) -> set[str]:
    """The modules in the group's folder. Found without importing its parents, some of which import torch."""
    home = _HOMES[group]
    paths: Iterable[str] = [str(Path(__file__).parent)]
    for part in home.split(".")[1:]:
        spec = PathFinder.find_spec(part, list(paths))
        if spec is None or spec.submodule_search_locations is None:
            return set()
        paths = spec.submodule_search_locations
    if home in sys.modules:
        paths = sys.modules[home].__path__
    return {m.name for m in pkgutil.iter_modules(list(paths)) if not m.name.startswith("_")}


def _names(group: str) -> tuple[str, ...]:
    return tuple(sorted(_own(group) | {point.name for point in entry_points(group=group)}))


def _load(group: str, name: str, kind: str) -> Any:
    """The module or class behind a name. Only a listed name is ever imported: a name from a file is not a path."""
    own = _own(group)
    if name in own:
        return importlib.import_module(f"{_HOMES[group]}.{name}")
    for point in entry_points(group=group):
        if point.name == name:
            try:
                return point.load()
            except ImportError as error:
                distribution = point.dist.name if point.dist else point.module
                raise ExtraError(
                    f'the {kind} "{name}" of {distribution} cannot be imported ({error}).',
                    hint=f"pip install --upgrade {distribution}",
                ) from error
            except AttributeError as error:
                raise ConfigError(f'the entry point of the {kind} "{name}" names nothing: {point.value}.') from error
    raise ConfigError(f'there is no {kind} "{str(name)[:60]}".', hint=did_you_mean(str(name)[:60], _names(group)))


def _one_class(group: str, name: str, kind: str, fits: Any) -> type[Any]:
    found = _load(group, name, kind)
    if isinstance(found, type) and fits(found):
        return found
    here = [
        c
        for c in vars(found).values()
        if isinstance(c, type) and c.__module__ == found.__name__ and fits(c) and not inspect.isabstract(c)
    ]
    if len(here) != 1:
        names = ", ".join(c.__name__ for c in here) or "none"
        raise ConfigError(f"{found.__name__} must define exactly one {kind}; it defines {names}.")
    return here[0]
