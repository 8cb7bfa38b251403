"""Two real processes share every batch: what one process would have learned, one writer, no process left behind."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from loop_toys import TRAIN, Config, Towers, noisy, quiet, run, same
from safetensors.torch import load_file

from avcl.loop.processes import Form, Processes, form_of, packed, unpacked
from avcl.systems.infonce import InfoNCE, InfoNCEConfig

SCRIPT = Path(__file__).with_name("loop_together.py")
LIMIT = 200  # seconds


def free_port() -> int:
    """Below the ports that the system hands out: nobody else is given it before the first process listens there."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def together(case: str, folder: Path, count: int = 2, script: Path = SCRIPT) -> list[tuple[int, str]]:
    """Exit status and standard error of each process."""
    paths = [str(Path(__file__).parents[2] / "src"), str(SCRIPT.parent)]
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    command = [sys.executable, "-W", "error", str(script), case, str(folder)]
    children = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        errors = [child.communicate(timeout=LIMIT)[1] for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    return [(child.returncode, error) for child, error in zip(children, errors, strict=True)]


def found_in(folder: Path, count: int = 2) -> tuple[list[dict], list[dict[str, torch.Tensor]]]:
    reports = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]
    return reports, [load_file(folder / f"{rank}.safetensors") for rank in range(count)]


def part(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, list[dict], list[dict[str, torch.Tensor]]]:
    """All cases, which one pair of processes goes through."""
    folder = tmp_path_factory.mktemp("together")
    for status, error in together("all", folder):
        assert status == 0, error
    return folder, *found_in(folder)


def alone(name: str):
    """The same in one process."""
    if name == "infonce":
        torch.manual_seed(0)
        config = replace(InfoNCEConfig.tiny(), dropout=0.0, batch_size=8, epochs=3)
        return run(system=InfoNCE(config, TRAIN.spec))
    if name == "dropout":  # that of a row follows from its place in the batch, not from who encodes it
        torch.manual_seed(0)
        return run(system=Towers(Config(micro_batch=3), TRAIN.spec))
    if name == "ragged":
        return run(system=quiet(batch_size=50), train=TRAIN.subset(range(23)))
    return run(system=quiet(players=2 if name == "players" else 1), transforms=(noisy,))


@pytest.mark.parametrize("name", ["quiet", "players", "dropout", "ragged", "infonce", "workers"])
def test_two_processes_learn_what_one_learns(name, folders) -> None:
    _, reports, tensors = folders
    one, (first, second) = alone(name), (part(t, name) for t in tensors)
    assert same(first, second)
    assert reports[0][name] == reports[1][name]
    running = ("running_mean", "running_var") if name == "dropout" else ()  # of each process's rows, then averaged
    for key, expected in one.system.state_dict().items():
        if not key.endswith((*running, "num_batches_tracked")):
            torch.testing.assert_close(first[key], expected, rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    for entry, expected in zip(reports[0][name]["history"], one.history, strict=True):
        assert entry["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        if name != "dropout":
            assert entry["validation"] == pytest.approx(expected["validation"], abs=1e-5)


def test_exact_resume_of_both(folders) -> None:
    folder, reports, tensors = folders
    for report, found in zip(reports, tensors, strict=True):
        assert report["cut"] == {"error": "Crash"}
        assert report["again"] == report["whole"] == report["finished"]
        assert same(part(found, "whole"), part(found, "again"))
        assert same(part(found, "whole"), part(tensors[0], "finished"))
    logs = [(folder / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    lines = [[{k: v for k, v in json.loads(line).items() if k != "clips_per_second"} for line in log] for log in logs]
    assert lines[0] == lines[1]
    assert sorted(p.name for p in (folder / "cut").iterdir()) == [".lock", "checkpoints", "metrics.jsonl"]


def test_ctrl_c_in_one_stops_both_at_a_checkpoint(folders) -> None:
    folder, reports, _ = folders
    assert [report["interrupted"] for report in reports] == [{"error": "KeyboardInterrupt"}] * 2
    assert (folder / "interrupted" / "checkpoints" / "step-00000006").is_dir()


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("broken", "E-NOFILE", "no such file"),
        ("nan", "E-NAN", 'clip "clip5" has values that are not finite'),
        ("indivisible", "E-CONFIG", "batch_size = 7 cannot be shared by 2 processes"),
        ("limited", "E-CONFIG", "several processes: its loss reads whole spectrograms"),
        ("few", "E-CONFIG", "1 clips cannot be shared by 2"),
        ("locked", "E-LOCKED", "is writing here"),
    ],
)
def test_an_error_of_one_is_raised_in_both(name, code, words, folders) -> None:
    for report in folders[1]:
        assert report[name]["error"] == code
        assert words in report[name]["what"]


def test_the_first_process_alone_validates(folders) -> None:
    assert [entry["validation"] for report in folders[1] for entry in report["score"]["history"]] == [0.0] * 8


@pytest.mark.slow
def test_the_others_end_when_one_is_killed(tmp_path) -> None:
    (status, error), (killed, _) = together("killed", tmp_path)
    assert killed == -9
    assert status == 0, error
    report = json.loads((tmp_path / "0.json").read_text())["killed"]
    assert report["error"] == "E-WORKER"


@pytest.mark.slow
def test_the_shell_under_a_launcher(tmp_path) -> None:
    """``torchrun -m avcl train``: one run folder, one line of JSON."""
    draw = np.random.default_rng(0)
    arrays = {name: draw.normal(size=(60, 6)).astype(np.float32) for name in ("audio", "video")}
    np.savez(tmp_path / "data.npz", **arrays)
    launcher = f"-m torch.distributed.run --nproc-per-node=2 --master-addr=127.0.0.1 --master-port={free_port()}"
    verb = f"-m avcl train {tmp_path}/data.npz --out {tmp_path}/run --epochs 2 --batch-size 8 --micro-batch 2 --json"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher.split(), *verb.split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert json.loads(done.stdout)["run"] == str(tmp_path / "run")
    assert (tmp_path / "run" / "weights.safetensors").exists()


def test_tensors_as_bytes() -> None:
    tensors = [
        torch.randn(3, 2),
        torch.ones(2, dtype=torch.bool),
        torch.zeros(0, 4),
        torch.randn(2, 3).T.bfloat16(),
        torch.arange(3),
    ]
    forms = [form_of(t) for t in tensors]
    assert forms[2] == Form(torch.float32, (0, 4))
    for found, tensor in zip(unpacked(packed(tensors), forms), tensors, strict=True):
        assert torch.equal(found, tensor)
        assert found.dtype == tensor.dtype


def test_alone_nothing_is_asked_of_anyone() -> None:
    one, p = Processes(), torch.nn.Parameter(torch.ones(2))
    assert (one.rank, one.count, one.first) == (0, 1, True)
    assert one.shared(lambda: 3) == [3]
    assert one.from_first(lambda: 4) == 4
    assert one.after_first(lambda: 5) == 5
    assert one.any(True)
    assert one.gathered([p], [[form_of(p)]])[0][0] is p
    one.add_gradients([p])
    one.average([p.data])
    assert p.grad is None
