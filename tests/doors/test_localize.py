"""From the shell: localize a file, and evaluate a localizer on exported clips with their truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import avcl
from avcl import cli
from avcl.media import read_video, write_audio, write_image, write_video

SMALL = ["batch_size=8", "dim=16", "widths=8,16", "heard=8,16", "bands=32"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Sixteen exported clips and a model that has hardly looked at them."""
    root = tmp_path_factory.mktemp("localize")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVCL_CACHE", str(root / "cache"))
        for tokens in (
            ["world", root / "clips", "--preset", "localization", "--clips", 16, "--workers", 0],
            [
                "train",
                root / "clips",
                "--system",
                "chen2021_lvs",
                "--out",
                root / "run",
                "--epochs",
                1,
                "--set",
                *SMALL,
            ],
        ):
            assert cli.run([str(t) for t in [*tokens, "--quiet"]]) == 0
    return root / "clips", root / "run"


def test_exported_clips_are_scored_with_their_truth(paths, shell) -> None:
    clips, run = paths
    got = shell("evaluate", run, clips, "--task", "localization", "--split", "all", "--controls", "--json")
    assert got.status == 0, got.err
    [line] = got.lines
    assert line["n_scored"] == 16
    assert set(line["pointing"]) == {"source - distractor", "on source", "on distractor", "neither"}
    assert set(line["area"]) == {"cIoU@0.5", "AUC", "IoU", "IoU distractor"}
    assert set(line["baselines"]) == {"whole image", "center box", "motion"}
    assert 0.01 < line["median"]["f"] < 0.1
    assert line["median"]["can reach 0.5"] == 0
    # The same clips straight from the world, with the same truth: what differs is the codec.
    world = avcl.data.world.World("localization", clips=16)
    report = avcl.evaluate(run, world, task="localization", workers=0)
    assert line["median"]["f"] == pytest.approx(report.scores["median"]["f"], abs=1e-6)
    one = shell("evaluate", run, clips, "--task", "localization", "--split", "all", "--set", "frames=1", "--json")
    assert one.lines[0]["protocol"]["frames"] == 1


def test_clips_without_truth_are_an_error_that_says_what_is_missing(paths, shell, tmp_path: Path) -> None:
    clips, run = paths
    (tmp_path / "bare").mkdir()
    for file in sorted(clips.glob("*.webm"))[:3]:
        (tmp_path / "bare" / file.name).write_bytes(file.read_bytes())
    got = shell("evaluate", run, tmp_path / "bare", "--task", "localization", "--split", "all", "--json")
    assert (got.status, got.lines[-1]["code"]) == (2, "E-DATA")
    assert "masks" in got.lines[-1]["message"]
    assert "truth/<id>.npz" in got.lines[-1]["hint"]


def test_a_moment_and_a_span(paths, shell, tmp_path: Path) -> None:
    clips, run = paths
    clip = sorted(clips.glob("*.webm"))[0]
    got = shell("localize", run, clip, "--at", 1.3, "--out", tmp_path / "map.png", "--min-p", 0, "--json")
    assert got.status == 0, got.err
    [line] = got.lines
    assert line["time"] == 1.3
    assert read_video(line["out"]).data.shape[-2:] == (64, 64)
    written = json.loads(Path(line["boxes_file"]).read_text())
    assert written["frames"][0]["boxes"] == line["boxes"]
    assert "probable" in written["score"]
    for found in line["boxes"]:
        x0, y0, x1, y1 = found["box"]
        assert 0 <= x0 < x1 <= 64
        assert 0 <= y0 < y1 <= 64
    # A span into a folder; the boxes where they are asked for.
    boxes = tmp_path / "b.json"
    got = shell(
        "localize", run, clip, "--start", 0.5, "--end", 1.5, "--out", tmp_path / "o", "--boxes", boxes, "--json"
    )
    [line] = got.lines
    assert (line["frames"], Path(line["out"])) == (8, tmp_path / "o" / f"{clip.stem}.mp4")
    assert [f["time"] for f in json.loads(boxes.read_text())["frames"]] == [0.5 + i / 8 for i in range(8)]
    info = shell("probe", line["out"], "--json").lines[0]
    assert info["audio"] is not None
    assert info["duration"] == pytest.approx(1.0, abs=0.1)


def test_no_box_is_said_in_words(paths, shell, tmp_path: Path) -> None:
    clips, run = paths
    clip = sorted(clips.glob("*.webm"))[1]
    got = shell("localize", run, clip, "--at", 1, "--out", tmp_path / "m.png", "--min-p", 1)
    assert got.status == 0
    assert "no box" in got.out
    assert "best 0." in got.out


def test_errors(paths, main_path, shell, tmp_path: Path) -> None:
    clips, run = paths
    clip = sorted(clips.glob("*.webm"))[0]
    write_audio(tmp_path / "a.wav", np.zeros((16_000, 1), np.float32), 16_000)
    write_video(tmp_path / "mute.mp4", np.zeros((8, 32, 32, 3), np.uint8), fps=8)
    write_image(tmp_path / "i.png", np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "there.png").write_text("mine")
    for model, file, more, status, code in (
        (run, tmp_path / "a.wav", ("--out", "x.png"), 4, "E-NOVIDEO"),
        (run, tmp_path / "mute.mp4", ("--out", "x.png"), 4, "E-NOAUDIO"),
        (run, tmp_path / "i.png", ("--out", "x.png"), 4, "E-NOAUDIO"),
        (run, tmp_path / "gone.mp4", ("--out", "x.png"), 4, "E-NOFILE"),
        (run, clip, ("--out", "xs/x.png", "--at", 99), 2, "E-CONFIG"),
        (run, clip, ("--out", "x.gif"), 2, "E-CONFIG"),
        (run, clip, ("--out", "there.png"), 2, "E-EXISTS"),
        (main_path.run, clip, ("--out", "x.png"), 2, "E-CAPABILITY"),
    ):
        out = [tmp_path / m if str(m).endswith((".png", ".gif")) else m for m in more]
        got = shell("localize", model, file, *out, "--json")
        assert (got.status, got.lines[-1]["code"]) == (status, code), got.err
        assert got.err.count("\n") <= 1
    assert "chen2021_lvs" in got.lines[-1]["hint"]
    assert (tmp_path / "there.png").read_text() == "mine"
    assert not list(tmp_path.glob("x*"))


def test_real_files(paths, shell, shared_data, tmp_path: Path) -> None:
    """A picture of another shape, 30 frames a second, ten seconds: the whole frame is looked at."""
    _, run = paths
    folder = shared_data("av_clips")
    for name in ("vgg_3qesirWAGt4_000020", "fc_vgg_0"):
        video = folder / "video" / f"{name}.mp4"
        got = shell("localize", run, video, "--at", 5, "--out", tmp_path / f"{name}.png", "--min-p", 0, "--json")
        assert got.status == 0, got.err
        assert read_video(got.lines[0]["out"]).data.shape[-2:] == (224, 398)
        assert all(x1 <= 398 and y1 <= 224 for _, _, x1, y1 in (b["box"] for b in got.lines[0]["boxes"]))
    span = ("--start", 2, "--end", 3, "--fps", 5)
    got = shell("localize", run, video, *span, "--out", tmp_path / "v.mp4", "--json")
    assert got.lines[0]["frames"] == 5
