"""The benchmarks run, both sides of each comparison compute one value, and whether an aim is met is computed."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from avcl.data import collate
from avcl.system import Step

ROOT = Path(__file__).resolve().parents[2]
SMOKE = {
    "objectives.py": ["--only", "info_nce", "triplet, hard", "--rounds", "1"],
    "ranking.py": [],
    "correlation.py": [],
    "gradient_cache.py": [],
    "encoders.py": [],
    "systems.py": [],
}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """A script of benchmarks/ as a module, under its own name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield module
    for name in ("measure", "lengths", *(Path(script).stem for script in SMOKE)):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("script", SMOKE)
def test_runs_and_writes_its_result(script: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--small", "--out", str(out), *SMOKE[script]]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert result["title"]
    assert result["about"]
    assert result["versions"]["python"]
    assert result["tables"]
    for table in result["tables"]:
        assert table["rows"]
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_both_sides_of_every_objective_compute_one_value(load) -> None:
    script = load("objectives")
    batch = script.batch_of(40, 256)
    for name, comparison in script.COMPARISONS.items():
        values = [script.step(loss, batch) for loss in (comparison.ours, comparison.peer)]
        assert values[0] > 0, name
        near = values[0] == pytest.approx(values[1], rel=1e-4)
        assert near != bool(comparison.differs), (name, values)


def test_every_ranking_computes_one_value(load) -> None:
    script = load("ranking")
    data = script.data(60, 8, 4)
    values = [call(*data) for side, call in script.SIDES.items() if side not in script.BOUNDS]
    assert values == pytest.approx([values[0]] * 3, abs=1e-6)
    assert 0.25 < values[0] < 1


@torch.no_grad()
def test_attention_beside_torch_is_one_computation(load) -> None:
    script = load("encoders")
    for name, make in script.PARTS.items():
        part = make((3, 8, 8, 2))
        peer = part.formula if part.peer is None else part.peer
        values = [side()[part.keep] for side in (part.ours, peer, part.formula)]
        assert float(values[0].abs().max()) > 0.01, name
        for other in values[1:]:
            assert torch.allclose(values[0], other, atol=script.NEAR), name


@torch.no_grad()
def test_every_script_takes_the_step_of_its_system(load) -> None:
    script = load("systems")
    rows = script.data(90)
    some = list(range(60))
    batch = collate([rows.clip(i) for i in some]).to("cpu")
    for name, (_, _, kind) in script.SYSTEMS.items():
        system = script.system_of(name, rows)
        side = kind(system, rows)
        side.strength = script.ACMRConfig().adversarial * (2 / (1 + math.exp(-5.0)) - 1)
        system.eval()
        ours, _ = system(batch, Step(1, 2, 0, 0.5, torch.Generator()))
        theirs = side.losses(torch.tensor(some))
        assert ours.keys() == theirs.keys(), name
        for term, value in ours.items():
            assert abs(float(value)) > 1e-5, (name, term)
            assert float(value) == pytest.approx(float(theirs[term]), rel=1e-4), (name, term)
    a, v, label = script.embedded(80)
    values = [call(a, v, label) for call in script.MAPS.values()]
    assert values == pytest.approx([values[0]] * 3, abs=1e-6)


def test_the_steps_of_both_sides_change_the_same_parameters(load) -> None:
    script = load("systems")
    rows = script.data(220)
    for name, (_, _, kind) in script.SYSTEMS.items():
        moved = []
        for make in (script.Ours, kind):
            system = script.system_of(name, rows)
            before = {key: p.detach().clone() for key, p in system.named_parameters()}
            make(system, rows).steps(2)
            moved.append({key for key, p in system.named_parameters() if not torch.equal(p, before[key])})
        assert moved[0] == moved[1] != set(), name


def test_the_cost_of_a_second_counts_from_a_minute_on(load) -> None:
    spread = load("encoders").spread
    rows = [{"way": "a", "seconds": s, "ms_per_second": c} for s, c in ((10.0, 9.0), (60.0, 2.0), (600.0, 3.0))]
    assert spread(rows, "a") == 1.5
    assert spread(rows, "b") is None


def test_an_aim_is_met_where_all_of_it_is(load) -> None:
    aim = load("objectives").Aim
    both = aim(time=1.0, memory=10.0)
    assert both.words() == "time ≤ 1 ×, ≥ 10 × less memory"
    assert both.met({"ratio": 0.9, "memory_ratio": 12.0}) is True
    assert both.met({"ratio": 0.9, "memory_ratio": 9.0}) is False
    assert both.met({"ratio": 1.1, "memory_ratio": 12.0}) is False
    assert both.met({"ratio": 0.9}) is None  # the peer died: there is nothing to compare with
    assert aim().met({"ratio": 0.9}) is None
    assert aim(seconds=5.0, mib=100.0).met({"ours_seconds": 4.0, "ours_mib": 50.0}) is True


def test_a_measurement_sees_the_peak_and_a_limit_ends_it(load, tmp_path: Path) -> None:
    measure = load("measure")
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import torch; from measure import measured; "
    code += "print(measured(lambda: torch.ones(1 << 24).sum())['mib'])"  # a process that has freed nothing before
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 60 < float(done.stdout) < 90  # 64 MiB that are gone again
    child = tmp_path / "child.py"
    child.write_text(
        "import json, sys, time\n"
        f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "from measure import answer, limited\n"
        "size = json.loads(sys.argv[2])['size']\n"
        "limited(0.05)\n"
        "answer(lambda: {'bytes': len(bytearray(size))} if size else time.sleep(60))\n"
    )
    assert measure.in_child(str(child), {"size": 1000}, timeout=60) == {"bytes": 1000}
    assert measure.in_child(str(child), {"size": 1 << 28}, timeout=60) == {"died": "out of memory"}
    assert measure.in_child(str(child), {"size": 0}, timeout=0.5) == {"died": "more than 0.5 s"}
