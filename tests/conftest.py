"""Fixtures that many rooms share."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# In the background of a shell Ctrl-C is ignored, and what is started from here would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Fixed seeds, and no verdict that depends on how busy the machine is.
settings.register_profile("avcl", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("avcl")


def find_shared_data() -> Path | None:
    """The folder of private test data: $AVCL_TEST_DATA, or ``shared/data`` beside the checkout."""
    root = Path(__file__).resolve().parents[1]
    places = [Path(os.environ["AVCL_TEST_DATA"])] if "AVCL_TEST_DATA" in os.environ else []
    places += [root / "shared" / "data", root.parent / "shared" / "data"]
    return next((p for p in places if p.is_dir()), None)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """``shared_data("av_clips")``: that folder of the private test data; the test is skipped where it is absent."""

    def folder(name: str) -> Path:
        root = find_shared_data()
        if root is None or not (root / name).exists():
            pytest.skip(f"private test data {name} is not here")
        return root / name

    return folder


@pytest.fixture(autouse=True)
def _cache_of_this_test(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("AVCL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """``recipe("events")``: that program of recipes/, whose modules are forgotten afterwards."""
    folder = str(Path(__file__).resolve().parents[1] / "recipes")
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module
    for name in [n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(folder)]:
        del sys.modules[name]
