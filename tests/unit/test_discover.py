"""Things are found by the name of their module, and nothing else is ever imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from avcl import discover
from avcl.errors import ConfigError, ExtraError
from avcl.system import System


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package of another author: write(module, source), declare({group: {name: value}})."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(module: str, source: str) -> None:
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)

    def declare(points: dict[str, dict[str, str]]) -> None:
        info = tmp_path / "other-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
        lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in rows.items()) for group, rows in points.items()]
        (info / "entry_points.txt").write_text("\n".join(lines))

    return write, declare


TOY = "from loop_toys import Config, Towers\nclass Mine(Towers):\n    pass\n"


def test_our_systems_and_tasks() -> None:
    assert {"cca", "infonce"} <= set(discover.system_names())
    for name in discover.system_names():
        cls = discover.system_class(name)
        assert issubclass(cls, System)
        assert cls.__module__ == f"avcl.systems.{name}"
        assert discover.system_name(cls) == name
    assert "retrieval" in discover.task_names()
    assert discover.task_class("retrieval").__name__ == "Retrieval"


def test_listing_names_imports_no_torch() -> None:
    code = "import sys; from avcl import discover as d\nprint(d.system_names(), d.task_names(), d.data_names())\n"
    code += "assert 'torch' not in sys.modules and not [m for m in sys.modules if m.startswith('avcl.systems')]"
    source = Path(__file__).parents[2] / "src"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={"PYTHONPATH": str(source)}, check=True, capture_output=True, text=True)
    assert all(f"'{name}'" in done.stdout for name in ("cca", "infonce"))


@pytest.mark.parametrize("name", ["cc", "os", "../cca", "avcl.loop", "", "__init__", "cca.Config", "_private"])
def test_unknown_names(name, monkeypatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr(discover.importlib, "import_module", imported.append)
    with pytest.raises(ConfigError, match="there is no system"):
        discover.system_class(name)
    assert imported == []


def test_did_you_mean() -> None:
    with pytest.raises(ConfigError, match='Did you mean "infonce"'):
        discover.system_class("infonse")
    with pytest.raises(ConfigError, match=r'there is no task "retreival"\. Did you mean "retrieval"'):
        discover.task_class("retreival")
    with pytest.raises(ConfigError, match="there is no data set"):
        discover.data_module("nowhere")


def test_systems_of_others(package) -> None:
    write, declare = package
    write("other_mine", TOY)
    write("other_two", TOY + "class Second(Towers):\n    pass\n")
    write("other_broken", "import a_package_that_is_not_there\n")
    points = {"mine": "other_mine", "direct": "other_mine:Mine", "two": "other_two", "none": "other_mine:Nobody"}
    declare({"avcl.systems": points | {"broken": "other_broken"}, "avcl.data": {"set": "other_mine"}})
    assert {*points, "broken"} <= set(discover.system_names())
    mine = discover.system_class("mine")
    assert mine.__module__ == "other_mine"
    assert discover.system_class("direct") is mine
    assert discover.system_name(mine) in ("mine", "direct")
    with pytest.raises(ConfigError, match="exactly one system; it defines Mine, Second"):
        discover.system_class("two")
    with pytest.raises(ConfigError, match="names nothing"):
        discover.system_class("none")
    with pytest.raises(ExtraError, match=r"of other cannot be imported .*a_package_that_is_not_there"):
        discover.system_class("broken")
    assert "set" in discover.data_names()
    assert discover.data_module("set").__name__ == "other_mine"


def test_a_class_that_cannot_be_found_has_no_name() -> None:
    from loop_toys import Towers

    with pytest.raises(ConfigError, match="cannot be found by name"):
        discover.system_name(Towers)
