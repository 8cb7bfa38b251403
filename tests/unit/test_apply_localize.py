"""Heat maps of files: the whole picture is looked at, at the right instants, in pixels of the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from avcl.apply.heatmaps import seen_in_window
from avcl.apply.localize import localize, localize_at, localize_span
from avcl.apply.overlay import boxes_of, overlaid
from avcl.errors import CapabilityError, ConfigError, ExistsError, NoAudioStream, NoVideoStream
from avcl.media import probe, read_audio, read_video, write_audio, write_video
from avcl.model import Model
from avcl.system import MediaConfig, System
from avcl.testing.systems import media_spec
from avcl.types import Batch, Card, Inputs

FPS, RATE = 10.0, 16_000
INPUTS = Inputs(fps=2.0, size=(32, 32), sample_rate=8000, window=1.0)


class Bright(System):
    """Says that the sound comes from whatever is bright; notes the clips it was given."""

    card: ClassVar[Card] = Card(title="toy", year=0, venue="", fidelity="toy")
    Config: ClassVar = MediaConfig

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[Batch] = []

    def encode(self, batch):
        return {}

    def losses(self, encoded, batch, at):
        return {}

    def heatmap(self, batch: Batch) -> Tensor:
        self.seen.append(batch)
        return batch.video.data.mean(2)


def model_of(inputs: Inputs = INPUTS) -> Model:
    return Model(Bright(MediaConfig(), media_spec(inputs)), inputs, {}, fingerprint="toy")


def video(path: Path, *, height: int = 64, width: int = 160, seconds: float = 2.0, sound: bool = True) -> Path:
    """A white square of 16 pixels, 8 pixels farther down and 8 farther right in each frame from (0, 0); the sound is a
    tone that gets louder."""
    frames = round(seconds * FPS)
    pictures = np.zeros((frames, height, width, 3), np.uint8)
    for i in range(frames):
        y, x = square(i, height, width)
        pictures[i, y : y + 16, x : x + 16] = 255
    t = np.arange(round(seconds * RATE)) / RATE
    wave = (0.1 + 0.2 * t)[:, None] * np.sin(2 * np.pi * 440 * t)[:, None]
    write_video(path, pictures, wave.astype(np.float32) if sound else None, fps=FPS, sample_rate=RATE, quality=1)
    return path


def square(i: int, height: int, width: int) -> tuple[int, int]:
    return (8 * i) % (height - 15), (8 * i) % (width - 15)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video(tmp_path_factory.mktemp("wide") / "wide.mkv")


# ------------------------------------------------------------------------------------------------------------ geometry
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(64, 160), (160, 64), (64, 64)])
def test_boxes_are_in_pixels_of_the_file_wherever_the_source_is(tmp_path: Path, fit, shape) -> None:
    height, width = shape
    path = video(tmp_path / "v.mkv", height=height, width=width)
    model = model_of(replace(INPUTS, fit=fit))
    for i in (0, 7, 13, 18):
        found = localize_at(model, path, i / FPS)
        y, x = square(i, height, width)
        assert len(found.boxes) == 1
        assert np.abs(np.array(found.boxes[0].box) - (x, y, x + 16, y + 16)).max() <= 5  # the model's pixel has 2 to 5
        assert x <= found.peak[0] <= x + 16
        assert y <= found.peak[1] <= y + 16
        assert found.heat.shape == shape
        assert found.score == found.boxes[0].score > 0.9


def test_the_model_sees_clips_as_it_was_trained_on(wide: Path) -> None:
    model = model_of()
    seen_in_window(model, wide, probe(wide), 0.3, per_step=5)
    for batch in model.system.seen:
        assert batch.video.data.shape[1:] == (2, 3, 32, 32)
        assert batch.video.rate == 2.0
        assert batch.audio.data.shape[1:] == (8000, 1)
        assert batch.video.data.max() <= 1


def test_frames_between_those_of_the_model_have_their_own_time(wide: Path) -> None:
    seen = seen_in_window(model_of(), wide, probe(wide), 0.0, per_step=5)  # 2 a second become 10
    assert [round(s.time, 3) for s in seen] == [round(i / 10, 3) for i in range(len(seen))]
    assert len(seen) >= 10
    for i, one in enumerate(seen[:10]):
        y, x = np.unravel_index(one.heat.argmax(), one.heat.shape)
        top, left = square(i, 64, 160)
        assert top / 2 - 1 <= y <= top / 2 + 9
        assert left / 2 - 1 <= x <= left / 2 + 9


def test_each_part_of_a_step_hears_its_own_window(wide: Path) -> None:
    model = model_of(replace(INPUTS, size=(64, 64)))
    seen_in_window(model, wide, probe(wide), 0.5, per_step=2)
    sound = read_audio(wide, rate=8000, channels=1).data[0]
    clips = [b.audio.data[i] for b in model.system.seen for i in range(len(b))]
    for k, clip in ((0, clips[0]), (1, clips[-1])):
        first = round((0.5 + k / 4) * 8000)
        torch.testing.assert_close(clip, sound[first : first + 8000], atol=2e-3, rtol=0)


def test_a_span_is_covered_frame_by_frame(wide: Path) -> None:
    found = list(localize_span(model_of(), wide, 0.4, 2.0, fps=FPS))
    assert [round(f.time, 3) for f in found] == [round(0.4 + i / 10, 3) for i in range(16)]
    for i, one in enumerate(found, 4):
        y, x = square(i, 64, 160)
        assert np.abs(np.array(one.boxes[0].box) - (x, y, x + 16, y + 16)).max() <= 3


# -------------------------------------------------------------------------------------------------------- what is said
def test_no_box_where_nothing_is_sure_enough_or_nothing_is_heard(tmp_path: Path, wide: Path) -> None:
    dark = tmp_path / "dark.mkv"
    write_video(dark, np.full((20, 64, 64, 3), 40, np.uint8), 0.1 * np.ones((32_000, 1)), fps=FPS, sample_rate=RATE)
    found = localize_at(model_of(), dark, 1.0)
    assert found.boxes == ()
    assert found.score < 0.5
    assert "0.5" in found.reason
    assert localize_at(model_of(), wide, 1.0, min_p=1.0).boxes == ()
    silent = tmp_path / "silent.mkv"
    pictures = read_video(wide).data[0].permute(0, 2, 3, 1).numpy()
    write_video(silent, pictures, np.zeros((32_000, 1), np.float32), fps=FPS, sample_rate=RATE)
    found = localize_at(model_of(), silent, 1.0)
    assert (found.boxes, found.score, found.reason) == ((), 0.0, "there is no sound")


def test_boxes_of_a_map() -> None:
    heat = np.zeros((40, 40), np.float32)
    heat[5:10, 5:10], heat[20:30, 20:28] = 0.9, 0.7
    heat[35, 35] = 0.3
    first, second = boxes_of(heat, least=0.5)
    assert (first.box, round(first.score, 3)) == ((5, 5, 10, 10), 0.9)
    assert (second.box, round(second.score, 3)) == ((20, 20, 28, 30), 0.7)
    assert boxes_of(heat, least=0.95) == []
    assert boxes_of(np.full((8, 8), 0.9, np.float32), least=0.5) == []  # the same everywhere points nowhere
    assert boxes_of(0.6 + 0.05 * heat, least=0.5) == []  # nearly the same
    slope = np.linspace(0, 1, 400).reshape(20, 20).astype(np.float32)
    assert len(boxes_of(slope, least=0.5)) == 1


def test_overlay() -> None:
    picture, heat = np.full((40, 60, 3), 100, np.uint8), np.zeros((40, 60), np.float32)
    heat[10:20, 10:20] = 1.0
    drawn = overlaid(picture, heat, boxes_of(heat, least=0.5))
    assert (drawn[30, 30] == 100).all()  # nothing there: the picture itself
    assert drawn[15, 15, 0] > 150 > drawn[15, 15, 2]
    assert tuple(drawn[10, 12]) == (64, 255, 96)
    assert (picture == 100).all()


# --------------------------------------------------------------------------------------------------------------- files
def test_a_picture_and_a_video_with_the_sound(tmp_path: Path, wide: Path) -> None:
    done = localize(model_of(), wide, out=tmp_path / "map.png", at=0.7)
    shown = read_video(tmp_path / "map.png").data[0, 0]
    assert shown.shape == (3, 64, 160)
    [box] = done["boxes"]
    assert box["score"] > 0.9
    written = json.loads((tmp_path / "map.png.json").read_text())
    assert written["frames"][0]["boxes"] == done["boxes"]
    assert written["size"] == [160, 64]
    done = localize(model_of(), wide, out=tmp_path / "map.mp4", start=0.5, end=1.5)
    assert (done["frames"], done["with_box"]) == (10, 10)
    found = read_video(tmp_path / "map.mp4")
    assert found.data.shape == (1, 10, 3, 64, 160)
    heard, own = read_audio(tmp_path / "map.mp4", channels=1), read_audio(wide, start=0.5, end=1.5, channels=1)
    n = min(heard.data.shape[1], own.data.shape[1]) - 2000
    one, two = heard.data[0, 1000:n, 0], own.data[0, 1000:n, 0]
    assert float(torch.corrcoef(torch.stack([one, two]))[0, 1]) > 0.95


def test_errors(tmp_path: Path, wide: Path) -> None:
    model = model_of()
    write_audio(tmp_path / "a.wav", np.zeros((16_000, 1), np.float32), RATE)
    mute = video(tmp_path / "mute.mkv", sound=False)
    for file, error in ((tmp_path / "a.wav", NoVideoStream), (mute, NoAudioStream)):
        with pytest.raises(error):
            localize(model, file, out=tmp_path / "x.png")
    for what in (
        {"out": "x.png", "at": 5.0},
        {"out": "x.png", "at": -1.0},
        {"out": "x.png", "at": 1.0, "start": 0.0},
        {"out": "x.png", "start": 0.0},
        {"out": "x.mp4", "at": 1.0},
        {"out": "x.gif"},
        {"out": "x.png", "boxes": "y.csv"},
        {"out": "x.png", "min_p": 2.0},
        {"out": "x.mp4", "start": 3.0},
    ):
        with pytest.raises(ConfigError):
            localize(model, wide, **{**what, "out": tmp_path / str(what["out"])})  # type: ignore[arg-type]
    assert not list(tmp_path.glob("x*"))
    (tmp_path / "there.png.json").write_text("{}")
    with pytest.raises(ExistsError):
        localize(model, wide, out=tmp_path / "there.png", at=1.0)
    localize(model, wide, out=tmp_path / "there.png", at=1.0, force=True)
    with pytest.raises(CapabilityError):
        localize(
            Model(Deaf(MediaConfig(), media_spec(INPUTS)), INPUTS, {}, fingerprint="x"), wide, out=tmp_path / "z.png"
        )


class Deaf(System):
    """Localizes nothing."""

    card: ClassVar[Card] = Card(title="toy", year=0, venue="", fidelity="toy")
    Config: ClassVar = MediaConfig

    def encode(self, batch):
        return {}

    def losses(self, encoded, batch, at):
        return {}
