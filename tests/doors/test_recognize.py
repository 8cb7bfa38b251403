"""The verb recognize on real files: with sound and picture, with one of them, window by window, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import avcl
from avcl.apply.recognize import recognize_file
from avcl.data.world import World, export
from avcl.errors import CapabilityError, NoVideoStream
from avcl.media import read_clip, write_audio, write_image, write_video

LABELS = ("neutral", "happy", "sad", "angry", "fearful", "surprised")
SETTINGS = {"epochs": 1, "batch_size": 8, "size": (32, 32), "fps": 2.0, "steps": 6, "hidden": 8, "components": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hardly trained emotion model on disk."""
    folder = tmp_path_factory.mktemp("recognize") / "run"
    data = World("emotion", clips=16, split="train")
    avcl.train("rajan2021_sew", data, settings={**SETTINGS, "sample_rate": 8000}, workers=0).save(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A talking face, the same without sound, its sound alone, one picture of it, and nine seconds of it."""
    folder = tmp_path_factory.mktemp("faces")
    export("emotion", folder / "world", clips=1, workers=0)
    clip = next((folder / "world").glob("*.webm"))
    read = read_clip(clip)
    video, sound = read.streams["video"], read.streams["audio"]
    frames = np.ascontiguousarray(video.data[0].permute(0, 2, 3, 1).numpy())
    wave, rate = sound.data[0].numpy(), int(sound.rate)
    paths = SimpleNamespace(both=clip, mute=folder / "mute.mp4", heard=folder / "heard.wav", still=folder / "still.png")
    paths.long = folder / "long.mp4"
    write_video(paths.mute, frames, fps=video.rate)
    write_audio(paths.heard, wave, rate)
    write_image(paths.still, frames[0])
    write_video(paths.long, np.concatenate([frames] * 3), np.concatenate([wave] * 3), fps=video.rate, sample_rate=rate)
    return paths


def test_a_file_is_answered_from_what_it_has(shell, run: Path, files: SimpleNamespace) -> None:
    got = shell("recognize", run, files.both, files.mute, files.heard, files.still, "--json")
    assert got.status == 0
    assert [(line["used"], line["missing"]) for line in got.lines] == [
        (["audio", "video"], []),
        (["video"], ["audio"]),
        (["audio"], ["video"]),
        (["video"], ["audio"]),
    ]
    for line in got.lines:
        assert set(line["all"]) == set(LABELS)
        assert sum(line["all"].values()) == pytest.approx(1, abs=1e-3)
        assert line["label"] == next(iter(line["all"]))
        assert line["p"] == max(line["all"].values())
    # Both modalities together are the product of the two, up to a factor.
    both, seen, heard = (np.array([line["all"][name] for name in LABELS]) for line in got.lines[:3])
    product = seen * heard / (seen * heard).sum()
    assert np.abs(both - product).max() < 0.03  # the mute file was encoded once more
    said = shell("recognize", run, files.mute).out
    assert "from video, no audio" in said


def test_window_by_window(shell, run: Path, files: SimpleNamespace) -> None:
    lines = shell("recognize", run, files.long, "--windows", "--json").lines
    assert [round(line["start"]) for line in lines] == [0, 3, 6]
    [whole] = shell("recognize", run, files.long, "--json").lines
    for name in LABELS:
        assert whole["all"][name] == pytest.approx(np.mean([line["all"][name] for line in lines]), abs=2e-4)
    [part] = shell("recognize", run, files.long, "--windows", "--start", 3, "--end", 6, "--json").lines
    assert (part["start"], part["end"]) == (3.0, 6.0)
    assert len(shell("recognize", run, files.long, "--windows", "--hop", 1, "--json").lines) == 7
    got = shell("recognize", run, files.long, "--start", 20, "--json")
    assert (got.status, got.lines[-1]["code"]) == (2, "E-CONFIG")


def test_what_cannot_be_read_is_an_error_in_its_place(shell, run: Path, files: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_text("no media")
    got = shell("recognize", run, tmp_path / "broken.mp4", files.heard, "--json")
    assert got.status == 0
    assert got.lines[0]["error"]["code"] == "E-DECODE"
    assert got.lines[1]["used"] == ["audio"]
    got = shell("recognize", run, tmp_path / "broken.mp4", tmp_path / "gone.mp4", "--json")
    assert got.status == 4


def test_who_cannot_is_told_who_can(shell, main_path, files: SimpleNamespace, tmp_path: Path) -> None:
    got = shell("recognize", main_path.run, files.both, "--json")
    assert (got.status, got.lines[-1]["code"]) == (2, "E-CAPABILITY")
    assert "rajan2021_sew" in got.lines[-1]["hint"]
    rng = np.random.default_rng(0)
    arrays = {"audio": rng.normal(size=(24, 5)), "video": rng.normal(size=(24, 4)), "label": np.arange(24) % 2}
    np.savez(tmp_path / "f.npz", **arrays)
    settings = {"epochs": 1, "batch_size": 12, "components": 2}
    avcl.train("rajan2021_sew", tmp_path / "f.npz", settings=settings).save(tmp_path / "features")
    got = shell("recognize", tmp_path / "features", files.both, "--json")
    assert (got.status, got.lines[-1]["code"]) == (2, "E-CAPABILITY")


def test_a_model_that_needs_both_says_what_is_missing(run: Path, files: SimpleNamespace) -> None:
    model = avcl.load(run)
    plain = model.system.logits

    def both(batch) -> torch.Tensor:
        batch.require("audio", "video")
        return plain(batch)

    model.system.logits = both  # type: ignore[method-assign]
    with pytest.raises(NoVideoStream, match="cannot tell from audio alone"):
        recognize_file(files.heard, model)
    assert recognize_file(files.both, model).label in LABELS

    class Deaf:
        pass

    model.system = Deaf()  # type: ignore[assignment]
    with pytest.raises(CapabilityError):
        recognize_file(files.both, model)


def test_real_files_of_a_face(shell, run: Path, shared_data) -> None:
    some: Sequence[Path] = sorted(shared_data("grid_s1").rglob("*.mp4"))[:2]
    if not some:
        pytest.skip("no clips of a face here")
    got = shell("recognize", run, *some, "--json")
    assert got.status == 0
    assert all(line["used"] == ["audio", "video"] for line in got.lines)
