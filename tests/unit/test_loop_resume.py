"""Exact resume: a run cut anywhere and started again ends with the bits, and the log, of an unbroken one."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loop_toys import EVERYTHING, SPEC, Config, Towers, noisy, run, same

from avcl.errors import StoreError
from avcl.loop.checkpoint import latest_checkpoint
from avcl.seeds import seeded

CASES = {
    "plain": {},
    "ema": {"ema": 0.8},
    "players": {"players": 2},
    "everything": EVERYTHING,
    "bf16": {"precision": "bf16"},
    "chunks": {**EVERYTHING, "micro_batch": 3},
}


class Crash(BaseException):
    """As abrupt as an exception can be."""


class Crashing(Towers):
    at_step: int | None = None

    def losses(self, encoded, batch, at):
        if at.step == self.at_step:
            raise Crash
        return super().losses(encoded, batch, at)


def crashing(settings, at_step: int | None) -> Towers:
    with seeded(0, "init"):
        system = Crashing(Config(**settings), SPEC)
    system.at_step = at_step
    return system


def log_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "clips_per_second"} for line in lines]


@pytest.mark.parametrize("case", CASES)
def test_resume_after_a_crash_at_any_step(case, tmp_path) -> None:
    settings = CASES[case]
    whole = run(tmp_path / "whole", system=crashing(settings, None), transforms=(noisy,))
    for step in (0, 4, 7, 10):
        folder = tmp_path / str(step)
        if step < whole.steps:
            with pytest.raises(Crash):
                run(folder, system=crashing(settings, step), transforms=(noisy,))
        again = run(folder, system=crashing(settings, None), transforms=(noisy,))
        assert same(whole.system.state_dict(), again.system.state_dict()), step
        assert whole.history == again.history
        assert (whole.best, whole.stopped_early) == (again.best, again.stopped_early)
        assert log_of(folder) == log_of(tmp_path / "whole")


def test_resume_again_and_again_with_workers(tmp_path) -> None:
    whole = run(tmp_path / "whole", system=crashing(EVERYTHING, None), transforms=(noisy,))
    for step in (2, 5, 9, 11):
        with pytest.raises(Crash):
            run(tmp_path / "cut", system=crashing(EVERYTHING, step), transforms=(noisy,), workers=1)
    again = run(tmp_path / "cut", system=crashing(EVERYTHING, None), transforms=(noisy,), workers=2)
    assert same(whole.system.state_dict(), again.system.state_dict())
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")


def test_a_finished_run_is_returned_as_it_is(tmp_path) -> None:
    whole = run(tmp_path, system=crashing(EVERYTHING, None))
    again = run(tmp_path, system=crashing(EVERYTHING, 0))  # would crash if it took a step
    assert same(whole.system.state_dict(), again.system.state_dict())
    assert (whole.steps, whole.epochs, whole.history, whole.best) == (
        again.steps,
        again.epochs,
        again.history,
        again.best,
    )
    assert (whole.stopped_early, again.system.training) == (again.stopped_early, False)


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncate", "flip", "empty", "remove"])
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_damage_falls_back_to_the_checkpoint_before(how, name, tmp_path, caplog) -> None:
    whole = run(None, system=crashing({}, None))
    with pytest.raises(Crash):
        run(tmp_path, system=crashing({}, 11))
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000008", "step-00000009"]
    damage(folder / "step-00000009" / name, how)
    with caplog.at_level(logging.WARNING, "avcl"):
        again = run(tmp_path, system=crashing({}, None))
    assert "E-STORE" in caplog.text
    assert "Falling back" in caplog.text
    assert same(whole.system.state_dict(), again.system.state_dict())


def test_no_whole_checkpoint_is_an_error(tmp_path) -> None:
    with pytest.raises(Crash):
        run(tmp_path, system=crashing({}, 11))
    for path in (tmp_path / "checkpoints").glob("*/state.json"):
        damage(path, "flip")
    with pytest.raises(StoreError, match="no checkpoint of this run is whole"):
        run(tmp_path, system=crashing({}, None))


def test_other_weights_do_not_fit(tmp_path) -> None:
    with pytest.raises(Crash):
        run(tmp_path, system=crashing({}, 11))
    system = crashing({}, None)
    system.register_buffer("extra", system.bank.clone())
    with pytest.raises(StoreError, match="does not fit"):
        run(tmp_path, system=system)


def test_checkpoints_hold_no_pickle_and_two_are_kept(tmp_path) -> None:
    run(tmp_path, system=crashing(EVERYTHING, None))
    folder = tmp_path / "checkpoints"
    assert sorted(p.name[:5] for p in folder.iterdir()) == ["final", "step-"]
    assert len(list(folder.iterdir())) == 2
    assert {p.name for p in folder.glob("*/*")} == {"tensors.safetensors", "state.json"}
    (folder / ".part-left-by-a-kill").mkdir()
    assert latest_checkpoint(folder).path.name == "final"
    assert len(list(folder.iterdir())) == 2


def test_killed_processes(tmp_path) -> None:
    """SIGKILL at random moments, the writing of checkpoints included, until the run is through: the same bits."""
    script = Path(__file__).with_name("loop_killed.py")
    paths = [str(Path(__file__).parents[2] / "src"), str(script.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] >= 6
    assert report["in_checkpoint"] >= 3
    assert report["same"]
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_on_an_accelerator(tmp_path) -> None:
    whole = run(None, system=crashing(EVERYTHING, None), workers=1)
    assert whole.system.audio[0].weight.is_cuda
    with pytest.raises(Crash):
        run(tmp_path, system=crashing(EVERYTHING, 7), workers=1)
    again = run(tmp_path, system=crashing(EVERYTHING, None), workers=1)
    for name, tensor in whole.system.state_dict().items():
        torch.testing.assert_close(tensor, again.system.state_dict()[name])
