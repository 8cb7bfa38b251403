"""``avcl separate``: stems that add up to the mixture, regions as guides, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avcl import discover
from avcl.apply.separate import Box, boxes_of, cropped, separate
from avcl.data.world import World
from avcl.errors import RegionError
from avcl.media import read_audio, write_audio, write_video
from avcl.model import Model
from avcl.seeds import seeded

LEFT, RIGHT = "0,0,32,64", "32,0,64,64"


def untrained(name: str, folder: Path) -> Path:
    cls = discover.system_class(name)
    config = cls.Config.tiny()
    inputs = cls.inputs(config)
    spec = World("separation-duet", clips=2).configure(inputs).spec
    with seeded(0, "init"):
        Model(cls(config, spec), inputs, {}).save(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained("zhao2018_sound_of_pixels", tmp_path_factory.mktemp("model") / "run")


@pytest.fixture(scope="module")
def duet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two objects side by side for 2.3 s, in stereo at 16 kHz."""
    data = World("separation-duet", clips=1, split="test")
    clip = data.clip(0)
    video = clip.streams["video"].data[0].permute(0, 2, 3, 1).numpy()
    mono = clip.streams["audio"].data[0, : round(2.3 * 16_000)].numpy()
    path = tmp_path_factory.mktemp("duet") / "duet.mkv"
    write_video(path, video[:19], np.hstack([mono, 0.5 * mono]), fps=8, sample_rate=16_000)
    return path


def waves(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    files = {**result["stems"], "residual": result["residual"]}
    return {name: read_audio(file).data[0].double() for name, file in files.items()}


def test_stems_and_residual_are_files_that_sum_to_the_mixture(model: Path, duet: Path, tmp_path: Path, shell) -> None:
    out = tmp_path / "stems"
    got = shell("separate", model, duet, "--box", f"a={LEFT}", "--box", f"b={RIGHT}", "-o", out, "--json")
    assert got.status == 0, got.err
    [line] = got.lines
    assert set(line["stems"]) == {"a", "b"}
    assert sorted(p.name for p in out.iterdir()) == ["a.wav", "b.wav", "residual.wav"]
    assert (line["sample_rate"], line["channels"], line["warnings"]) == (16_000, 2, [])
    assert line["windows"] > 4
    mixture = read_audio(duet).data[0].double()
    found = waves(line)
    assert all(wave.shape == mixture.shape for wave in found.values())
    gap = (sum(found.values()) - mixture).square().mean().sqrt()
    assert float(gap) < 2 / 32768
    assert line["difference_db"] < -90
    assert line["difference_db"] == pytest.approx(20 * float(gap.log10()), abs=0.2)
    assert all(level < 0 for level in line["level_db"].values())
    # One mask for both ears: the right one is half of the left one in every stem, but for the last bit.
    for name in ("a", "b"):
        left, right = found[name].unbind(1)
        assert float(left.abs().max()) > 0.01
        assert float((0.5 * left - right).abs().max()) < 0.1 * float(left.abs().max())
    human = shell("separate", model, duet, "--box", f"a={LEFT}", "-o", tmp_path / "other")
    assert "sum equals mix within" in human.out


def test_it_refuses_to_overwrite_unless_forced(model: Path, duet: Path, tmp_path: Path, shell) -> None:
    (tmp_path / "residual.wav").write_bytes(b"mine")
    asked = ("separate", model, duet, "--box", f"a={LEFT}", "-o", tmp_path, "--json")
    got = shell(*asked)
    assert (got.status, got.lines[0]["code"]) == (2, "E-EXISTS")
    assert (tmp_path / "residual.wav").read_bytes() == b"mine"
    assert not (tmp_path / "a.wav").exists()
    assert shell(*asked, "--force").status == 0
    assert (tmp_path / "a.wav").exists()


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([], "no region"),
        (["a=0,0,32"], "no region"),
        (["a"], "no region"),
        (["a=0,0,65,64"], "does not lie in the picture"),
        (["a=40,0,20,64"], "does not lie in the picture"),
        ([f"a={LEFT}", f"a={RIGHT}"], "two regions are named"),
        ([f"a={LEFT}", "b=0,0,32,63"], "the same region"),
        ([f"residual={LEFT}"], "cannot be the name"),
        ([f"../a={LEFT}"], "cannot be the name"),
    ],
)
def test_regions_that_cannot_be_used_are_named(
    boxes: list[str], words: str, model: Path, duet: Path, tmp_path: Path, shell
) -> None:
    given = [token for box in boxes for token in ("--box", box)]
    got = shell("separate", model, duet, *given, "-o", tmp_path / "out", "--json")
    assert (got.status, got.lines[0]["code"]) == (2, "E-REGION")
    assert words in got.lines[0]["message"] or words in got.lines[0]["hint"]
    assert got.lines[0]["hint"]
    assert not (tmp_path / "out").exists()
    if not boxes:
        assert "64 x 64" in got.lines[0]["hint"]


def test_boxes_that_overlap_are_warned_of(model: Path, duet: Path, tmp_path: Path, shell) -> None:
    boxes = ("--box", "cello=0,0,40,64", "--box", "flute=8,0,48,64")
    got = shell("separate", model, duet, *boxes, "-o", tmp_path / "out", "--json")
    assert got.status == 0
    [warning] = got.lines[0]["warnings"]
    assert warning.startswith("W-REGION boxes cello and flute overlap 67%")
    assert Box(0, 0, 2, 2).overlap(Box(1, 0, 3, 2)) == pytest.approx(1 / 3)


def test_what_cannot_be_separated_says_why(model: Path, duet: Path, tmp_path: Path, shell) -> None:
    other = untrained("infonce", tmp_path / "infonce")
    box = ("--box", f"a={LEFT}", "--json")
    got = shell("separate", other, duet, *box, "-o", tmp_path / "out")
    assert (got.status, got.lines[0]["code"]) == (2, "E-CAPABILITY")
    assert "zhao2018_sound_of_pixels" in got.lines[0]["hint"]
    assert "zhao2019_sound_of_motions" in got.lines[0]["hint"]
    write_audio(tmp_path / "a.wav", np.zeros((8000, 1), np.float32) + 0.1, 8000)
    got = shell("separate", model, tmp_path / "a.wav", *box, "-o", tmp_path / "out")
    assert (got.status, got.lines[0]["code"]) == (4, "E-NOVIDEO")
    write_video(tmp_path / "mute.mkv", np.zeros((8, 64, 64, 3), np.uint8), fps=8)
    got = shell("separate", model, tmp_path / "mute.mkv", *box, "-o", tmp_path / "out")
    assert (got.status, got.lines[0]["code"]) == (4, "E-NOAUDIO")


def test_how_many_windows_are_computed_at_a_time_changes_no_stem(model: Path, duet: Path, tmp_path: Path) -> None:
    boxes = boxes_of([f"a={LEFT}", f"b={RIGHT}"])
    found = [
        waves(separate(model, duet, tmp_path / str(n), boxes=boxes, batch=n)) for n in (1, 3)
    ]  # the last bit of 16 may differ
    for name in ("a", "b", "residual"):
        assert float((found[0][name] - found[1][name]).abs().max()) < 3 / 32768


def test_part_of_a_file_in_mono_and_a_picture_that_ends_early(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sound = 0.1 * rng.normal(size=(44_100 * 2, 2)).astype(np.float32)
    picture = rng.integers(0, 255, (10, 48, 64, 3), dtype=np.uint8)  # half of the time
    write_video(tmp_path / "half.mkv", picture, sound, fps=10, sample_rate=44_100)
    boxes = {"one": (0, 0, 30, 40), "two": (34, 0, 64, 40)}
    result = separate(model, tmp_path / "half.mkv", tmp_path / "out", boxes=boxes, start=0.25, end=1.75, mono=True)
    assert (result["sample_rate"], result["channels"], result["seconds"]) == (44_100, 1, 1.5)
    mixture = read_audio(tmp_path / "half.mkv", start=0.25, end=1.75, channels=1).data[0].double()
    assert float((sum(waves(result).values()) - mixture).abs().max()) < 2 / 32768
    # What lies above the band of the model, which hears 8 kHz, stays in the residual.
    spectrum = np.abs(np.fft.rfft(waves(result)["one"][:, 0].numpy()))
    assert spectrum[: len(spectrum) // 6].max() > 100 * spectrum[len(spectrum) // 4 :].max()


def test_silence_is_separated_into_silence(model: Path, tmp_path: Path) -> None:
    write_video(
        tmp_path / "quiet.mkv",
        np.full((10, 48, 64, 3), 90, np.uint8),
        np.zeros((16_000, 1), np.float32),
        fps=10,
        sample_rate=16_000,
    )
    result = separate(model, tmp_path / "quiet.mkv", tmp_path / "out", boxes={"a": (0, 0, 30, 40)})
    assert result["difference_db"] is None
    assert result["level_db"] == {"a": None}


def test_a_box_is_cut_and_never_stretched() -> None:
    picture = torch.zeros(1, 2, 3, 60, 80, dtype=torch.uint8)
    picture[..., 10:30, 20:40] = 200  # a square
    square = cropped(picture, Box(10, 0, 50, 40), (32, 32))
    assert square.shape == (1, 2, 3, 32, 32)
    lit = square[0, 0, 0] > 100
    assert lit.any(0).sum() == lit.any(1).sum() == 16
    tall = cropped(picture, Box(20, 0, 40, 60), (30, 30))[0, 0, 0] > 100  # a lane: its border is repeated sideways
    assert tall.any(1).sum() == 10
    assert tall.all(1).sum() == 10
    with pytest.raises(RegionError, match="no region"):
        boxes_of(["a=1,2,3,x"])


def test_an_exported_duet_is_read_at_another_rate_than_the_model_hears(duet: Path, tmp_path: Path) -> None:
    run = untrained("zhao2019_sound_of_motions", tmp_path / "run")
    loaded = Model.load(run)
    assert dataclasses.is_dataclass(loaded.system.config)
    result = separate(loaded, duet, tmp_path / "out", boxes=boxes_of([f"a={LEFT}", f"b={RIGHT}"]))
    assert result["difference_db"] < -90
