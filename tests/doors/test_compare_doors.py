"""``avcl compare``: the same in Python and shell, one object a run, killed in the middle and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import avcl
from avcl.ops.compare import Compare

ENV = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 90)
    latent = rng.normal(size=(3, 4))[label] + 0.5 * rng.normal(size=(90, 4))
    views = {m: (latent @ rng.normal(size=(4, d))).astype(np.float32) for m, d in (("audio", 8), ("video", 9))}
    path = tmp_path_factory.mktemp("data") / "features.npz"
    np.savez(path, **views, label=label, split=np.array(["train", "train", "train", "val", "test"])[np.arange(90) % 5])
    return path


def test_python_and_shell_say_the_same(features: Path, tmp_path: Path, shell) -> None:
    how = ("--systems", "cca,infonce,chen2021_lvs", "--seeds", 1, "--set", "infonce.epochs=2", "--memory", 6)
    got = shell("compare", features, *how, "-o", tmp_path / "shell", "--json")
    assert got.status == 0
    assert [(line["system"], line["seed"], line["state"]) for line in got.lines] == [
        ("cca", 0, "ok"), ("infonce", 0, "ok"), ("chen2021_lvs", 0, "n/a"),
    ]  # fmt: skip
    for line in got.lines:
        wanted = {
            "system",
            "seed",
            "audio_to_video",
            "video_to_audio",
            "mean",
            "params",
            "train_s",
            "embed_ms",
            "state",
        }
        assert wanted <= set(line)
        if line["state"] == "ok":
            assert set(line["mean"]) >= {"R@1", "R@5", "R@10", "MRR", "mAP"}
            assert line["chance"].keys() == {"audio_to_video", "video_to_audio", "mean"}
    assert got.err.count("compare: [") == 3
    made = avcl.compare(
        features, out=tmp_path / "python", systems="cca,infonce,chen2021_lvs", seeds=1, memory=6,
        settings={"infonce": {"epochs": 2}},
    )  # fmt: skip
    mine = json.loads(json.dumps(made.lines()))
    for line in (*got.lines, *mine):
        for name in ("train_s", "embed_ms"):
            line.pop(name)
    assert got.lines == mine
    shown = shell("compare", features, *how, "-o", tmp_path / "shell")  # everything is there: only the table
    assert "mAP mean" in shown.out
    assert "report.html" in shown.out
    assert "3 of 3 are there already" in shown.err
    refused = shell("compare", features, *how, "--patience", 3, "-o", tmp_path / "shell", "--json")
    assert (refused.status, refused.lines[-1]["code"]) == (2, "E-PROTOCOL")


def test_settings_of_the_shell() -> None:
    op = Compare.parse({"data": "x", "out": "y", "set": ["epochs=2", "infonce.temperature=0.1"]})
    assert op._settings() == {"all": {"epochs": "2"}, "infonce": {"temperature": "0.1"}}


def test_killed_in_the_middle_it_goes_on_and_repeats_nothing(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "avcl", "compare", str(features), "--systems", "cca,infonce", "--seeds", "2"]
    command += ["--workers", "1", "--set", "epochs=2", "-o", str(out)]
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(12000):
        if list(out.glob("runs/*.json")) or process.poll() is not None:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    first = {p.name: p.stat().st_mtime_ns for p in out.glob("runs/*.json")}
    assert 0 < len(first) < 4
    assert not (out / "report.html").exists()
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "are there already" in done.stderr
    after = {p.name: p.stat().st_mtime_ns for p in out.glob("runs/*.json")}
    assert len(after) == 4
    assert {name: after[name] for name in first} == first
    assert (out / "report.html").exists()
