"""The direction of imports (docs/architecture.md), proved by reading every module with ``ast``.

A module imports from strictly lower layers or its own folder. Imports inside functions count too, except those that
reach into a leaf, and the lazy ones of ``ops``, ``cli`` and ``avcl/__init__``, which exist to keep torch out of ``avcl
--help``.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "avcl"

# The layer of each room; a room is a file or a folder of src/avcl.
LAYERS = (
    ("errors",),
    ("types", "files", "seeds", "progress"),
    ("objectives", "dsp", "metrics"),
    ("nn", "media", "system"),
    ("data", "encoders", "index", "discover"),
    ("store", "task"),
    ("systems", "tasks"),
    ("loop", "report", "environment"),
    ("model",),
    ("api", "archive", "catalog", "apply"),
    ("showcase", "trials", "comparison"),
    ("ops",),
    ("cli",),
    ("__main__",),
)
LAYER = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
LEAVES = ("testing", "adapters")
LAZY = ("ops", "cli", "__init__")  # whose imports inside functions may reach upward or into heavy rooms
FORBIDDEN = ("torchvision", "torchaudio", "torchcodec", "pickle", "dill", "joblib", "cloudpickle")

MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def module_name(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def imports_of(tree: ast.AST, *, inside_functions: bool) -> list[tuple[str, int]]:
    """(absolute module name, line) of every import; with ``inside_functions`` only those in a function body, else the
    others.
    """
    found: list[tuple[str, int]] = []

    def visit(node: ast.AST, in_function: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue  # for the type checker only
            nested = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if in_function == inside_functions:
                if isinstance(child, ast.Import):
                    found.extend((alias.name, child.lineno) for alias in child.names)
                elif isinstance(child, ast.ImportFrom):
                    assert child.level == 0, "imports are absolute"
                    whole = [f"{child.module}.{alias.name}" for alias in child.names]
                    named = [name if name in NAMES else str(child.module) for name in whole]
                    found.extend((name, child.lineno) for name in dict.fromkeys(named))
            visit(child, nested)

    visit(tree, False)
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_downward(path: Path) -> None:
    tree, room = ast.parse(path.read_text()), room_of(path)
    if room == "__init__":
        assert not [name for name, _ in imports_of(tree, inside_functions=False) if name.startswith("avcl")]
        return
    assert room in LAYER or room in LEAVES, f"{room} has no layer: give it one in this test and in docs/architecture.md"
    for inside in (False, True):
        for name, line in imports_of(tree, inside_functions=inside):
            assert name.split(".")[0] not in FORBIDDEN, f"{path}:{line} imports {name}"
            if not name.startswith("avcl") or (inside and room in LAZY):
                continue
            if name == "avcl":
                continue  # its version
            target = name.split(".")[1]
            assert target in LAYER or target in LEAVES, f"{path}:{line} imports unknown {name}"
            if room in LEAVES:
                continue
            if target in LEAVES:
                assert inside, f"{path}:{line}: {target} is a leaf"
                assert room in ("api", "loop", "encoders"), f"{path}:{line}: {target} is a leaf"
                continue
            if target == room:
                if room in ("systems", "tasks"):  # two systems never import each other, nor two tasks
                    assert name.count(".") < 2 or name == module_name(path), f"{path}:{line} imports {name}"
                continue
            assert LAYER[target] < LAYER[room], f"{path}:{line}: {room} (layer {LAYER[room]}) imports {name}"


def test_no_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        found = imports_of(ast.parse(path.read_text()), inside_functions=False)
        graph[module_name(path)] = {n for n, _ in found if n in NAMES and n != module_name(path)}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail[trail.index(name) :], name))}"
        if name in done:
            return
        for target in sorted(graph[name]):
            walk(target, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        walk(name, ())


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_forbidden_calls(path: Path) -> None:
    text, room = path.read_text(), room_of(path)
    assert ".cuda(" not in text, "devices are Accelerate's business"
    assert "torch.load(" not in text or room == "adapters", "loading a model never executes code"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert "weights_only=True" in [ast.unparse(keyword) for keyword in node.keywords], f"{path}:{node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"
    if LAYER.get(room, 0) < LAYER["loop"]:
        assert "torch.distributed" not in text, "distribution stays in the loop"


@pytest.mark.parametrize("module", ["avcl", "avcl.errors", "avcl.ops", "avcl.cli"])
def test_doors_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'scipy', 'faiss', 'av')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", check=False).returncode == 0


def test_no_submodule_bears_the_name_of_a_public_function() -> None:
    import importlib
    import pkgutil
    import types

    import avcl

    for name in (module_name(p) for p in MODULES if p.name == "__init__.py"):
        package = importlib.import_module(name)
        public = [n for n in (avcl.__all__ if name == "avcl" else dir(package)) if not n.startswith("_")]
        functions = {n for n in public if isinstance(getattr(package, n), types.FunctionType | type)}
        submodules = {m.name for m in pkgutil.iter_modules(package.__path__)}
        assert not functions & submodules, f"{name}: {functions & submodules}"


def test_public_functions_survive_the_import_of_every_submodule() -> None:
    code = """
import importlib, pkgutil, avcl
before = {name: getattr(avcl, name) for name in avcl.__all__}
assert {name: getattr(avcl, name) for name in avcl.__all__} == before
for module in pkgutil.walk_packages(avcl.__path__, "avcl."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = {name: getattr(avcl, name) for name in avcl.__all__}
assert before == after, [n for n in before if before[n] is not after[n]]
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
