"""``avcl events``: what happens when, in files; windows, several files, three formats, what is refused."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import avcl
from avcl import store
from avcl.apply.events import Event, Timeline, find_events, merged, timeline
from avcl.data.world import World, export
from avcl.errors import CapabilityError, ConfigError
from avcl.media import write_audio, write_video
from avcl.model import Model
from avcl.types import Batch

SETTINGS = {"epochs": 1, "batch_size": 4, "dim": 8, "widths": (4, 4, 6), "hidden": 4, "units": 4, "frames": 1}
ROW = {"file", "start", "end", "label", "p"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows nothing, but has everything a trained one has."""
    trained = avcl.train("tian2018_avel", World("events", clips=8, split="train"), settings=SETTINGS, workers=0)
    return trained.save(tmp_path_factory.mktemp("model") / "run")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    export("events", folder, clips=2, workers=0)
    return folder


class Loud:
    """Stands in for a system: an event of class 0 in the segments of which the sound is loud."""

    def __init__(self, p: float = 0.9):
        self.p = p

    def events(self, batch: Batch) -> torch.Tensor:
        sound = batch.audio.data[:, :, 0].abs()
        steps = 10
        wanted = round(5.0 * batch.audio.rate)
        level = torch.nn.functional.pad(sound, (0, max(0, wanted - sound.shape[1])))[:, :wanted]
        loud = level.unflatten(1, (steps, -1)).mean(2) > 0.05
        p = torch.full((*loud.shape, 13), (1 - self.p) / 12)
        p.scatter_(2, torch.where(loud, 0, 12)[:, :, None], self.p)
        return p.log()


@pytest.fixture
def loud(model: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    found = Model.load(model)
    monkeypatch.setattr(type(found.system), "events", lambda self, batch: Loud().events(batch))
    return found


def bursts(path: Path, seconds: float, spans: list[tuple[float, float]]) -> Path:
    """A film whose sound is loud in ``spans`` alone."""
    at = np.arange(round(seconds * 16_000)) / 16_000
    sound = sum(((at >= a) & (at < b)) * 0.3 * np.sin(2 * np.pi * 440 * at) for a, b in spans)
    picture = np.full((round(seconds * 4), 64, 64, 3), 120, np.uint8)
    write_video(path, picture, np.asarray(sound, np.float32)[:, None], fps=4, sample_rate=16_000)
    return path


# ---------------------------------------------------------------------------------------------------------- in Python
def test_events_of_a_long_file_are_whole_across_windows(loud: Model, tmp_path: Path) -> None:
    """13 s, windows of 5 s: one event crosses the end of a window, and is one."""
    film = bursts(tmp_path / "long.mkv", 13.2, [(1.0, 2.0), (4.0, 7.5), (12.0, 13.2)])
    for step in (None, 5.0, 2.0):
        found = [(e.start, e.end) for e in timeline(loud, film, step=step).events()]
        assert len(found) == 3, (step, found)
        assert found[0] == pytest.approx((1.0, 2.0), abs=0.3)
        assert found[1] == pytest.approx((4.0, 7.5), abs=0.51)
        assert found[2] == pytest.approx((12.0, 13.2), abs=0.51)
    short = bursts(tmp_path / "short.mkv", 1.2, [(0.5, 1.2)])
    [event] = timeline(loud, short).events()
    assert (event.start, event.end) == pytest.approx((0.5, 1.25), abs=0.01)
    assert event.p == pytest.approx(0.9, abs=1e-3)


def test_runs_of_one_label_are_one_event() -> None:
    p = np.full((6, 3), 0.1)
    for i, (label, value) in enumerate([(0, 0.8), (0, 0.6), (1, 0.9), (2, 0.8), (1, 0.5), (1, 0.5)]):
        p[i, label] = value
    line = Timeline(np.arange(7) / 2, p, ("cat", "dog"))
    assert line.events() == [
        Event(0.0, 1.0, "cat", 0.7),
        Event(1.0, 1.5, "dog", 0.9),
        Event(2.0, 3.0, "dog", 0.5),
    ]
    assert [e.label for e in line.events(min_p=0.65)] == ["cat", "dog"]
    assert line.events(min_p=0.95) == []


def test_overlapping_windows_are_averaged_by_overlap() -> None:
    edges, p = merged(np.array([[0.0, 1.0], [1.0, 2.0], [0.5, 1.5]]), np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
    assert edges.tolist() == [0.0, 1.0, 2.0]
    assert p[0] == pytest.approx([(1.0 + 0.25) / 1.5, 0.25 / 1.5])
    edges, p = merged(np.array([[0.0, 1.0], [3.0, 3.4]]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert edges.tolist() == [0.0, 1.0, 2.0, 3.0, 3.4]
    assert p[1].tolist() == [0.0, 1.0]  # nobody looked there


# ----------------------------------------------------------------------------------------------------------- the shell
def test_a_row_for_every_event(loud: Model, model: Path, shell, tmp_path: Path) -> None:
    film = bursts(tmp_path / "film.mkv", 8.0, [(1.0, 2.0), (5.0, 6.0)])
    got = shell("events", model, film, "--json")
    assert got.status == 0
    assert all(set(line) == ROW for line in got.lines)
    assert [(line["start"], line["end"], line["label"]) for line in got.lines] == [
        (1.0, 2.0, "wood disk"),
        (5.0, 6.0, "wood disk"),
    ]
    assert "1.00–2.00 s" in shell("events", model, film).out
    assert shell("events", model, film, "--json", "--min-p", "0.95").lines == []
    assert shell("events", model, film, "--json", "--step", "5").status == 0


def test_csv_webvtt_and_audacity(loud: Model, model: Path, shell, tmp_path: Path) -> None:
    film = bursts(tmp_path / "film.mkv", 6.0, [(1.0, 2.0)])
    [said] = shell("events", model, film, film, "-o", tmp_path / "events.csv", "--json").lines
    assert {k: said[k] for k in ("files", "unreadable", "events")} == {"files": 2, "unreadable": 0, "events": 2}
    with open(tmp_path / "events.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "start", "end", "label", "p"]
    assert [(r["file"], r["start"], r["end"]) for r in rows] == [(str(film), "1.0", "2.0")] * 2
    assert shell("events", model, film, "-o", tmp_path / "e.vtt").status == 0
    assert (tmp_path / "e.vtt").read_text() == "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\nwood disk (0.90)\n"
    assert shell("events", model, film, "-o", tmp_path / "e.txt").status == 0
    assert (tmp_path / "e.txt").read_text() == "1.000000\t2.000000\twood disk (0.90)\n"
    # Nothing is written over, unless it is asked for; two files do not fit into one track of cues.
    assert shell("events", model, film, "-o", tmp_path / "e.vtt", "--json").lines[-1]["code"] == "E-EXISTS"
    assert shell("events", model, film, "-o", tmp_path / "e.vtt", "--force").status == 0
    assert shell("events", model, film, film, "-o", tmp_path / "f.vtt", "--json").lines[-1]["code"] == "E-CONFIG"
    assert shell("events", model, film, "-o", tmp_path / "f.xml", "--json").lines[-1]["code"] == "E-CONFIG"
    assert not (tmp_path / "f.vtt").exists()


def test_labels_cannot_break_the_formats() -> None:
    from avcl.apply.events import FORMATS

    rows = [("a,b.mp4", Event(3661.5, 3662.0, "a <b>\n\n& c --> d", 0.5))]
    vtt = FORMATS[".vtt"](rows)
    assert "01:01:01.500 --> 01:01:02.000\na &lt;b&gt; &amp; c --&gt; d (0.50)\n" in vtt
    assert len(re.findall("-->", vtt)) == 1
    assert FORMATS[".txt"](rows).count("\n") == 1
    assert list(csv.reader(FORMATS[".csv"](rows).splitlines()))[1][0] == "a,b.mp4"


def test_a_real_model_on_a_folder_of_clips(model: Path, clips: Path, shell, tmp_path: Path) -> None:
    got = shell("events", model, clips, "--min-p", "0", "-o", tmp_path / "e.csv", "--json")
    assert got.status == 0
    assert (got.lines[0]["files"], got.lines[0]["unreadable"]) == (2, 0)
    python = list(find_events(model, [clips], min_p=0.0))
    assert len(python) == got.lines[0]["events"]
    for row in python:
        assert 0 <= row["start"] < row["end"] <= 5.05
        assert 0 <= row["p"] <= 1


def test_files_that_cannot_be_read_are_listed_and_counted(model: Path, clips: Path, shell, tmp_path: Path) -> None:
    good = next(iter(sorted(clips.glob("*.webm"))))
    bad, mute, deaf = tmp_path / "bad.mp4", tmp_path / "mute.mkv", tmp_path / "deaf.wav"
    bad.write_text("<html>")
    write_video(mute, np.zeros((8, 32, 32, 3), np.uint8), fps=4)
    write_audio(deaf, np.zeros((8000, 1), np.float32), 8000)
    got = shell("events", model, bad, mute, deaf, tmp_path / "none.mp4", good, "-o", tmp_path / "e.csv", "--json")
    assert got.status == 0
    codes = [line["error"]["code"] for line in got.lines[:-1]]
    assert codes == ["E-DECODE", "E-NOAUDIO", "E-NOVIDEO", "E-NOFILE"]
    assert (got.lines[-1]["files"], got.lines[-1]["unreadable"]) == (1, 4)
    got = shell("events", model, bad, mute)
    assert got.status == 4  # not one of them
    assert got.out.splitlines()[0].startswith(f"E-DECODE {bad}")
    assert shell("events", model, mute, "-o", tmp_path / "f.csv").status == 4
    assert not (tmp_path / "f.csv").exists()
    (tmp_path / "empty").mkdir()
    assert shell("events", model, tmp_path / "empty").status == 4


def test_what_it_cannot_do_is_said(main_path, model: Path, clips: Path, shell) -> None:
    film = next(iter(sorted(clips.glob("*.webm"))))
    got = shell("events", main_path.run, film, "--json")
    assert got.status == 2
    assert got.lines[-1]["code"] == "E-CAPABILITY"
    assert "duan2021_jca" in got.lines[-1]["hint"]
    assert "tian2018_avel" in got.lines[-1]["hint"]
    assert shell("events", model, film, "--min-p", "1.5", "--json").lines[-1]["code"] == "E-CONFIG"
    assert shell("events", model, film, "--step", "0", "--json").lines[-1]["code"] == "E-CONFIG"
    with pytest.raises(ConfigError):
        list(find_events(model, [film], min_p=2.0))
    found = store.load(model)
    features = Model(found.system, found.inputs, found.meta)
    spec = features.spec.streams["audio"]
    features.system.spec = type(features.spec)(
        {"audio": type(spec)("features", (4,), 1.0), "video": features.spec.streams["video"]}, features.spec.labels
    )
    with pytest.raises(CapabilityError, match="features"):
        list(find_events(features, [film]))
