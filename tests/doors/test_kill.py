"""The shell's long jobs can be killed and go on: training with the same weights, Ctrl-C with status 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

COMMAND = [sys.executable, "-m", "avcl", "train"]
ENV = os.environ | {"OMP_NUM_THREADS": "1"}  # equal to the bit means: with the same number of threads


@pytest.fixture
def features(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(300, 8))
    views = {name: (shared @ rng.normal(size=(8, 12))).astype(np.float32) for name in ("audio", "video")}
    np.savez(tmp_path / "features.npz", **views)
    return tmp_path / "features.npz"


def train(features: Path, out: Path) -> list[str]:
    settings = ["--epochs", "12", "--set", "batch_size=32", "hidden=32", "--workers", "0", "--quiet"]
    return [*COMMAND, str(features), "--out", str(out), *settings]


def stop_after_first_checkpoint(command: list[str], out: Path, how: signal.Signals) -> int:
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(6000):
        whole = list((out / "checkpoints").glob("*/state.json"))
        if whole or process.poll() is not None:
            break
        time.sleep(0.01)
    process.send_signal(how)
    process.communicate(timeout=60)
    return process.returncode


def test_a_killed_training_goes_on_to_the_same_weights(features: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert subprocess.run(train(features, whole), capture_output=True, env=ENV, check=False).returncode == 0
    assert stop_after_first_checkpoint(train(features, broken), broken, signal.SIGKILL) == -signal.SIGKILL
    assert not (broken / "config.json").exists()  # nothing looks finished
    assert subprocess.run(train(features, broken), capture_output=True, env=ENV, check=False).returncode == 0
    assert (broken / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


def test_ctrl_c_ends_with_130_and_one_line(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert stop_after_first_checkpoint(train(features, out), out, signal.SIGINT) == 130
    assert not (out / "config.json").exists()
