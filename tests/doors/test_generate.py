"""avcl generate: sound for a picture and a picture for a sound, as files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import avcl
from avcl.apply.generate import Piece, joined, joined_notes, write_stream
from avcl.data.features import FeatureData
from avcl.data.world import World
from avcl.errors import CapabilityError, ConfigError
from avcl.media import probe, read_video, write_audio, write_image, write_video
from avcl.types import Stream

SYSTEM = "zhu2021b_msvae_crossmodal_generation"
SMALL = {"epochs": 1, "batch_size": 8, "dim": 4, "hidden": 16, "frames": 2, "bands": 16, "side": 6}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A model of moving pictures, one of stills, one of features; a clip of 4.5 s with sound."""
    root = tmp_path_factory.mktemp("generate")
    world = World("retrieval", clips=16, split="train")
    for name, settings in (("moving", {}), ("still", {"still": True})):
        avcl.train(SYSTEM, world, settings={**SMALL, **settings}, workers=0).save(root / name)
    tunes = World("music", clips=16, split="train", streams=("pose", "notes"))
    few = {"epochs": 1, "batch_size": 8, "skeleton": (8,), "width": 8, "depth": 1, "heads": 2, "hidden": 8}
    avcl.train("gan2020a_foley_music", tunes, settings=few, workers=0).save(root / "music")
    poses = np.concatenate([tunes.clip(i).streams["pose"].data[0].numpy() for i in range(2)])
    np.save(root / "pose.npy", poses[:100])  # 4 s: two windows that overlap
    rng = np.random.default_rng(0)
    arrays = {"audio": rng.normal(size=(16, 5)), "video": rng.normal(size=(16, 7))}
    avcl.train(SYSTEM, FeatureData.from_arrays(arrays), settings=SMALL, workers=0).save(root / "features")
    pictures = rng.integers(0, 255, (45, 64, 64, 3), dtype=np.uint8)
    sound = 0.1 * rng.normal(size=(72_000, 1)).astype(np.float32)
    write_video(root / "clip.webm", pictures, sound, fps=10, sample_rate=16_000)
    write_audio(root / "clip.wav", sound[:20_000], 16_000)
    write_image(root / "clip.png", pictures[0])
    np.save(root / "video.npy", np.ones(7, np.float32))
    return {path.name: path for path in root.iterdir()}


def test_a_sound_and_its_seed(runs, shell, tmp_path: Path) -> None:
    made = []
    for name, seed in (("a.wav", 0), ("b.wav", 0), ("c.wav", 1)):
        got = shell(
            "generate",
            runs["moving"],
            runs["clip.webm"],
            "--want",
            "audio",
            "-o",
            tmp_path / name,
            "--seed",
            seed,
            "--json",
        )
        assert got.status == 0, got.err
        [line] = got.lines
        assert (line["kind"], line["sample_rate"], line["windows"]) == ("audio", 16_000, 2)
        assert line["seconds"] == pytest.approx(4.5, abs=0.05)
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1] != made[2]
    assert probe(tmp_path / "a.wav").audio is not None


def test_a_video_and_a_part_of_the_file(runs, shell, tmp_path: Path) -> None:
    out = tmp_path / "made.webm"
    got = shell("generate", runs["moving"], runs["clip.webm"], "--want", "video", "-o", out, "--start", 1, "--end", 4)
    assert got.status == 0, got.err
    assert "video →" in got.out
    pictures = read_video(out, fps=8.0, size=(64, 64)).data
    assert pictures.shape[1] == 24


def test_a_picture_from_a_sound(runs, shell, tmp_path: Path) -> None:
    got = shell("generate", runs["still"], runs["clip.wav"], "--want", "video", "-o", tmp_path / "x.png", "--json")
    assert got.status == 0, got.err
    assert got.lines[0]["kind"] == "picture"
    assert probe(tmp_path / "x.png").video is not None


def test_a_sound_from_a_picture(runs, shell, tmp_path: Path) -> None:
    got = shell("generate", runs["still"], runs["clip.png"], "--want", "audio", "-o", tmp_path / "x.wav", "--json")
    assert got.status == 0, got.err
    assert got.lines[0]["seconds"] == pytest.approx(3.0)


def test_features(runs, shell, tmp_path: Path) -> None:
    got = shell("generate", runs["features"], runs["video.npy"], "--want", "audio", "-o", tmp_path / "x.npy", "--json")
    assert got.status == 0, got.err
    assert np.load(tmp_path / "x.npy", allow_pickle=False).shape == (1, 5)


def test_notes_and_their_sound(runs, shell, tmp_path: Path) -> None:
    tokens = ("generate", runs["music"], runs["pose.npy"])
    got = shell(*tokens, "--want", "notes", "-o", tmp_path / "tune.csv", "--json")
    assert got.status == 0, got.err
    [line] = got.lines
    rows = (tmp_path / "tune.csv").read_text().splitlines()
    assert rows[0] == "onset,duration,pitch,velocity"
    assert (line["kind"], line["notes"], line["windows"]) == ("notes", len(rows) - 1, 2)
    again = shell(*tokens, "--want", "notes", "-o", tmp_path / "tune.npy", "--json")
    assert np.load(tmp_path / "tune.npy").shape == (again.lines[0]["notes"], 4)
    sound = shell(*tokens, "--want", "audio", "-o", tmp_path / "tune.wav", "--instrument", "marimba", "--json")
    assert sound.status == 0, sound.err
    assert (sound.lines[0]["kind"], sound.lines[0]["instrument"]) == ("audio", "marimba")
    assert probe(tmp_path / "tune.wav").audio is not None
    for want, name, says in (("notes", "x.mid", ".csv"), ("video", "x.png", "generates notes")):
        got = shell(*tokens, "--want", want, "-o", tmp_path / name)
        assert got.status == 2
        assert says in got.err
    assert shell(*tokens, "--want", "audio", "-o", tmp_path / "x.wav", "--instrument", "kazoo").status == 2


def test_notes_of_windows_are_joined_once() -> None:
    def piece(start: float, *onsets: float) -> Piece:
        notes = torch.tensor([[[o, 0.2, 60.0, 0.5] for o in onsets]])
        return Piece(start, start + 3, Stream(notes, torch.ones(1, len(onsets), dtype=torch.bool), 1.0))

    rows = joined_notes([piece(1.0, 0.5, 2.5), piece(4.0, 0.1), piece(5.0, 0.5, 2.5)])
    assert rows[:, 0].tolist() == pytest.approx([0.5, 2.5, 3.1, 6.5])


def test_what_is_refused(runs, shell, main_path, tmp_path: Path) -> None:
    clip, out = runs["clip.webm"], tmp_path / "x.wav"
    (tmp_path / "there.wav").write_text("years of work")
    wide = tmp_path / "wide.npy"
    np.save(wide, np.ones(9, np.float32))
    for tokens, code, says in (
        ((main_path.run, clip, "--want", "audio", "-o", out), "E-CAPABILITY", SYSTEM),
        ((runs["moving"], clip, "--want", "smell", "-o", out), "E-CAPABILITY", "not smell"),
        ((runs["features"], clip, "--want", "audio", "-o", out), "E-CAPABILITY", "features of video"),
        ((runs["features"], wide, "--want", "audio", "-o", out), "E-FEATURE", "does not fit"),
        ((runs["features"], runs["video.npy"], "--want", "audio", "-o", out), "E-CONFIG", ".npy"),
        ((runs["features"], tmp_path / "no.npy", "--want", "audio", "-o", out), "E-NOFILE", "no such file"),
        ((runs["moving"], clip, "--want", "audio", "-o", tmp_path / "there.wav"), "E-EXISTS", "--force"),
        ((runs["moving"], clip, "--want", "audio", "-o", tmp_path / "x.mp5"), "E-CONFIG", ".wav"),
        ((runs["moving"], clip, "--want", "video", "-o", tmp_path / "x.png"), "E-CONFIG", ".webm"),
        ((runs["moving"], runs["clip.wav"], "--want", "audio", "-o", out), "E-NOVIDEO", "no video"),
        ((runs["moving"], runs["clip.png"], "--want", "video", "-o", out), "E-NOAUDIO", "audio"),
        ((runs["moving"], tmp_path / "no.webm", "--want", "audio", "-o", out), "E-NOFILE", "no.webm"),
    ):
        got = shell("generate", *tokens, "--json")
        assert (got.status > 0, got.lines[-1]["code"]) == (True, code), (tokens, got.err)
        assert says in got.err
    assert (tmp_path / "there.wav").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there.wav", "wide.npy"]
    assert (
        shell("generate", runs["moving"], clip, "--want", "audio", "-o", tmp_path / "there.wav", "--force").status == 0
    )


def test_pieces_are_joined_by_their_times() -> None:
    def piece(start: float, value: float) -> Piece:
        return Piece(start, start + 2, Stream(torch.full((1, 4, 1), value), torch.ones(1, 4, dtype=torch.bool), 2.0))

    whole = joined([piece(1.0, 1.0), piece(3.0, 2.0), piece(4.0, 3.0)])  # the last overlaps by a second
    assert whole.data[0, :, 0].tolist() == [1, 1, 1, 1, 2, 2, 3, 3, 3, 3]
    assert whole.rate == 2.0
    gap = joined([piece(0.0, 1.0), piece(3.0, 2.0)])
    assert gap.mask[0].tolist() == [True] * 4 + [False] * 2 + [True] * 4


def test_streams_without_a_file() -> None:
    tokens = Stream(torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool), 1.0)
    with pytest.raises(CapabilityError):
        write_stream(Path("x.txt"), tokens)
    nothing = Stream(torch.zeros(1, 3, 1), torch.zeros(1, 3, dtype=torch.bool), 8000.0)
    with pytest.raises(ConfigError, match="nothing recorded"):
        write_stream(Path("x.wav"), nothing)
