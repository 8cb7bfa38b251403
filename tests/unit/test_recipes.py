"""The recipes run from end to end on small made-up data of the same form, and write what they say."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from avcl.media import write_audio, write_video


def test_wikipedia_cca(recipe, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("tr", 60), ("te", 30)):
        label = np.arange(n) % 3 + 1
        shared = np.eye(3)[label - 1] + 0.3 * rng.normal(size=(n, 3))
        arrays |= {
            f"I_{part}": shared @ rng.normal(size=(3, 8)),
            f"T_{part}": shared @ np.eye(3, 4),
            f"L_{part}": label,
        }
    np.savez(tmp_path / "wikipedia_sift128_lda10.npz", **arrays)
    module = recipe("wikipedia_cca")
    found = module.run(tmp_path, ridges=(0.1, 1.0), components=(2, 3))
    assert len(found["table"]) == 4
    best = max(cell["validation"]["mean"] for cell in found["table"])
    assert {"components": 2, "ridge": 0.1}.keys() == found["chosen"].keys()
    assert any(
        cell["validation"]["mean"] == best and cell["components"] == found["chosen"]["components"]
        for cell in found["table"]
    )
    value = found["test"]["mean"]["mAP"]
    assert value["interval"][0] <= value["value"] <= value["interval"][1]


def test_avmnist(recipe, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "recordings").mkdir()
    np.savez(tmp_path / "mnist_images.npz", images=rng.integers(0, 255, (48, 28, 28), dtype=np.uint8))
    rows = []
    for i in range(48):
        name = f"{i % 2}_s{i % 6}_{i}.flac"
        tone = 0.3 * np.sin(np.arange(3000) * 0.2 * (1 + i % 2)).astype(np.float32)
        write_audio(tmp_path / "recordings" / name, tone[:, None], 8000)
        rows.append({"fsdd_filename": name, "mnist_index": i, "digit": i % 2, "speaker": f"s{i % 6}"})
    table(tmp_path / "pairs.csv", rows)
    module = recipe("avmnist")
    tiny = {**module.MEDIA, "epochs": 1, "batch_size": 8}
    systems = {"cca": ("cca", [module.MEDIA, {**module.MEDIA, "ridge": 1.0}]), "infonce": ("infonce", [tiny])}
    found = module.run(tmp_path, tmp_path, folds=1, systems=systems)
    assert [cell["test_speakers"] for cell in found["folds"]["cca"]] == [["s0", "s1"]]
    assert set(found["mean_over_folds"]) == {"cca", "infonce"}
    assert set(found["mean_over_folds"]["cca"]) == {"audio_to_video", "video_to_audio", "mean"}


def test_real_clips(recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "video").mkdir()
    rows = []
    for i in range(6):
        sound = 0.1 * rng.normal(size=(48_000, 1)).astype(np.float32)
        picture = rng.integers(0, 255, (30, 32, 32, 3), dtype=np.uint8)
        write_video(tmp_path / "video" / f"c{i}.mp4", picture, sound, fps=10, sample_rate=16_000)
        rows.append({"id": f"c{i}", "group": f"g{i % 3}", "duration": 3.0})
    table(tmp_path / "clips.csv", rows)
    module = recipe("real_clips")
    tiny = {"cca": {**module.MEDIA, "components": 2}}
    found = module.av_clips(tmp_path, folds=1, systems=tiny)["folds"][0]
    assert found["train_windows"] == 2 * 2 * 3  # two of three groups (too few to set one aside), 2 clips, 3 windows
    assert found["systems"]["cca"]["queries"] == 2
    infonce = {"infonce": {**module.SYSTEMS["infonce"], "epochs": 1, "batch_size": 4}}
    found = module.grid_s1(tmp_path, test=4, systems=infonce)
    assert found["train_windows"] == 4  # 4 sentences to test, 1 to validate, 1 to train with its 4 windows
    scores = found["systems"]["infonce"]["scores"]["mean"]
    assert scores["R@10"]["chance"] == 1.0

    # The command line writes the result where it is told to.
    common = recipe("common")
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--results", str(tmp_path / "results")])
    common.main(
        lambda folder, *, seed: {"files": len(list(folder.glob("video/*"))), "seed": seed}, "folder", result="a/b"
    )
    assert json.loads((tmp_path / "results" / "a" / "b.json").read_text()) == {"files": 6, "seed": 0}


def table(path: Path, rows: list[dict[str, object]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
