"""``avcl sync`` on real files: sign, container offsets, edits, drift, the limit of the search, repair, exit status.

The model is a stand-in that reads flashes and clicks, so that the verb is tested and not the learning; what a trained
system makes of the world is tested in ``tests/unit/test_systems_sync_correlation.py``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import avcl
from avcl.apply import reading
from avcl.apply import sync as verb
from avcl.apply.sync import check_sync
from avcl.errors import CapabilityError, ConfigError, ExistsError, NoAudioStream
from avcl.media import probe, remux_with_offset, write_video
from avcl.model import Model
from avcl.systems.sync_correlation import SyncCorrelation
from avcl.testing.systems import media_spec
from avcl.types import Batch, DataSpec, Inputs, StreamSpec

RATE, FPS = 8000, 25.0
INPUTS = Inputs(fps=FPS, size=(16, 16), sample_rate=RATE, window=2.0)
SPEC = DataSpec({"audio": StreamSpec("audio", (1,), RATE), "video": StreamSpec("video", (3, 16, 16), FPS)})


class Flashes(nn.Module):
    """Every flash and every click within reach of each other vote for their distance."""

    spec = SPEC

    def offsets(self, batch: Batch, grid: Tensor) -> Tensor:
        rows = []
        for i in range(len(batch)):
            bright = batch.video.data[i].mean((1, 2, 3)) > 0.5
            loud = nn.functional.max_pool1d(batch.audio.data[i, :, 0].abs()[None, None], 161, 1, 80)[0, 0] > 0.2
            seen, heard = _rises(bright) / FPS, (_rises(loud) + 80) / RATE
            lags = (heard[:, None] - seen[None]).flatten()
            rows.append((9 * torch.exp(-0.5 * ((grid[:, None] - lags) / 0.015) ** 2)).sum(1))
        return torch.stack(rows)


def _rises(on: Tensor) -> Tensor:
    return (on[1:] & ~on[:-1]).nonzero().flatten() + 1


class Cannot(nn.Module):
    spec = SPEC


MODEL = Model(Flashes(), INPUTS, {}, fingerprint="flashes")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the verb takes for the stand-in's."""
    monkeypatch.setattr(reading.Model, "load", classmethod(lambda cls, folder: MODEL))
    return Path("flashes")


def film(
    path: Path, *, seconds: float = 8.0, lag: float = 0.0, later: float = 0.0, drift: float = 0.0, seed: int = 0
) -> Path:
    """Flashes at irregular instants, each with a click ``lag`` seconds after it (from the middle of the film on
    ``later`` more; ``drift`` more for every second)."""
    rng = np.random.default_rng(seed)
    instants = np.cumsum(rng.uniform(0.35, 1.3, int(seconds / 0.35)))
    instants = np.round(instants[instants < seconds - 0.3] * FPS) / FPS
    picture = np.zeros((round(seconds * FPS), 32, 32, 3), np.uint8)
    sound = 0.002 * rng.normal(size=(round(seconds * RATE), 1)).astype(np.float32)
    for t in instants:
        picture[round(t * FPS) : round(t * FPS) + 2] = 230
        heard = t + lag + drift * t + (later if t > seconds / 2 else 0.0)
        first = round(heard * RATE)
        if 0 <= first < len(sound) - 400:
            sound[first : first + 400, 0] += 0.7 * np.sin(np.arange(400) * 0.8)
    write_video(path, picture, sound, fps=FPS, sample_rate=RATE)
    return path


# ------------------------------------------------------------------------------------------------------------ measuring
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("lag", [0.0, 0.187, -0.26])
def test_the_lag_of_a_file(tmp_path: Path, suffix: str, lag: float) -> None:
    found = check_sync(film(tmp_path / f"a{suffix}", lag=lag), MODEL)
    assert found.status == ("ok" if lag == 0 else "late" if lag > 0 else "early")
    assert found.offset_ms == pytest.approx(1000 * lag, abs=15)
    assert found.interval is not None
    assert found.interval[0] <= found.offset_ms <= found.interval[1]
    assert found.segments_used > 3
    assert (found.p_in_sync or 0) > 0.9 if lag == 0 else (found.p_in_sync or 0) < 0.1
    assert avcl.check_sync is check_sync


@pytest.mark.parametrize("delay", [0.3, -0.22])
def test_what_the_container_declares_is_part_of_the_lag_and_said_apart(tmp_path: Path, delay: float) -> None:
    source, moved = film(tmp_path / "a.webm", lag=0.05), tmp_path / "b.webm"
    remux_with_offset(source, moved, delay)
    before, after = check_sync(source, MODEL), check_sync(moved, MODEL)
    assert before.offset_ms is not None
    assert after.offset_ms == pytest.approx(before.offset_ms + 1000 * delay, abs=5)
    assert after.container_offset_ms - before.container_offset_ms == pytest.approx(1000 * delay, abs=25)
    info = probe(moved)
    assert info.audio is not None
    assert after.container_offset_ms == pytest.approx(1000 * info.audio.start, abs=0.1)


def test_a_whole_file_that_starts_late_is_in_sync(tmp_path: Path) -> None:
    """Both streams begin at 0.22 s of the container: that is no lag."""
    source, once, twice = film(tmp_path / "a.mkv"), tmp_path / "b.mkv", tmp_path / "c.mkv"
    remux_with_offset(source, once, -0.22)
    remux_with_offset(once, twice, 0.22)
    found = check_sync(twice, MODEL)
    assert found.status == "ok"
    assert found.offset_ms == pytest.approx(0, abs=15)


def test_at_the_limit_of_the_search_it_is_no_measurement(tmp_path: Path) -> None:
    for lag in (0.3, -0.3, 0.335):
        path = film(tmp_path / f"{lag}.mp4", lag=lag)
        found = check_sync(path, MODEL, search_ms=280)
        assert found.status == "at_search_limit"
        assert found.offset_ms is None
        assert "search wider" in found.reason
        wide = check_sync(path, MODEL, search_ms=400)
        assert wide.offset_ms == pytest.approx(1000 * lag, abs=15)


def test_a_search_wider_than_the_window(tmp_path: Path) -> None:
    found = check_sync(film(tmp_path / "a.mp4", lag=1.45, seconds=20), MODEL, search_ms=2000)
    assert found.offset_ms == pytest.approx(1450, abs=15)


def test_windows_that_are_sure_but_contradict_the_answer_make_it_undecidable() -> None:
    grid = np.arange(-24, 25) * 0.02
    lags = [0.1, -0.3, 0.1, 0.35, 0.1, -0.1, 0.24, -0.22]
    flat = np.zeros((8, len(grid)))
    sure = np.stack([-0.5 * ((grid - lag) / 0.02) ** 2 for lag in lags])

    def judged(scores: np.ndarray) -> verb.SyncResult:
        spans = [(float(i), i + 1.0) for i in range(len(scores))]
        return verb._judged(verb._Votes(spans, scores, grid, np.ones(len(scores)), ""), 0.4, 0.045, 0.8)

    found = judged(sure)
    assert (found.status, found.segments_used) == ("undecidable", 8)
    assert found.reason == "the segments do not agree on a lag"
    assert judged(np.concatenate([sure[:5], flat])).status == "late", "three of five agree, the others saw nothing"
    assert judged(flat).reason == "no audible event coincides with visible motion"


def test_nothing_that_happens_is_undecidable(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.normal(size=(6 * RATE, 1)).astype(np.float32)
    picture = rng.integers(0, 60, (150, 32, 32, 3), dtype=np.uint8)
    cases = {
        "the picture stands still": (np.zeros_like(picture), noise),
        "the sound is silent": (picture, np.zeros_like(noise)),
        "no audible event coincides with visible motion": (picture, noise),
    }
    for i, (reason, (video, audio)) in enumerate(cases.items()):
        path = tmp_path / f"{i}.mkv"
        write_video(path, video, audio, fps=FPS, sample_rate=RATE)
        found = check_sync(path, MODEL)
        assert found.status == "undecidable"
        assert found.offset_ms is None
        assert found.reason == reason


def test_an_edit_in_the_middle_is_inconsistent(tmp_path: Path) -> None:
    found = check_sync(film(tmp_path / "a.mp4", seconds=24, lag=0.1, later=-0.25), MODEL)
    assert found.status == "inconsistent"
    assert found.offset_ms is None
    assert [section.offset_ms for section in found.sections] == pytest.approx([100, -150], abs=20)
    assert found.sections[0].start == 0
    assert found.sections[0].end == found.sections[1].start == pytest.approx(12, abs=1.5)
    assert found.sections[1].end == pytest.approx(24, abs=0.2)


def test_a_drift_is_measured_and_too_much_of_it_is_inconsistent(tmp_path: Path) -> None:
    little = check_sync(film(tmp_path / "a.mp4", seconds=30, lag=0.1, drift=0.0015), MODEL)
    assert little.status == "late"
    assert little.drift_ms_per_min == pytest.approx(90, abs=15)
    assert little.offset_ms == pytest.approx(100 + 1.5 * 15, abs=20)
    much = check_sync(film(tmp_path / "b.mp4", seconds=30, lag=-0.1, drift=0.006), MODEL)
    assert much.status == "inconsistent"
    assert much.drift_ms_per_min == pytest.approx(360, abs=20)
    none = check_sync(film(tmp_path / "c.mp4", seconds=30), MODEL)
    assert none.drift_ms_per_min == pytest.approx(0, abs=40)


def test_short_files(tmp_path: Path) -> None:
    found = check_sync(film(tmp_path / "a.mp4", seconds=2.9, lag=0.1), MODEL)
    assert found.offset_ms == pytest.approx(100, abs=15)
    assert found.drift_ms_per_min is None


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", seconds=3)
    for bad in ({"max_ms": 500.0}, {"max_ms": 0.0}, {"min_confidence": 1.5}):
        with pytest.raises(ConfigError):
            check_sync(path, MODEL, **bad)
    with pytest.raises(CapabilityError) as caught:
        check_sync(path, Model(Cannot(), INPUTS, {}, fingerprint="x"))
    assert "sync_correlation" in caught.value.hint
    silent = tmp_path / "b.mp4"
    write_video(silent, np.zeros((30, 32, 32, 3), np.uint8), fps=FPS)
    with pytest.raises(NoAudioStream):
        check_sync(silent, MODEL)


# ------------------------------------------------------------------------------------------------------------ the shell
def test_the_gate(shell, model: Path, tmp_path: Path) -> None:
    good, late = film(tmp_path / "a.mp4"), film(tmp_path / "b.mp4", lag=0.2)
    text = tmp_path / "c.mp4"
    text.write_text("no media")
    got = shell("sync", good, "--model", model, "--json")
    assert got.status == 0
    assert got.lines[0]["status"] == "ok"
    assert got.lines[0]["file"] == str(good)
    assert set(got.lines[0]) >= {"offset_ms", "ci_ms", "p_in_sync", "segments_used", "container_offset_ms"}
    got = shell("sync", good, late, text, "--model", model, "--json")
    assert got.status == 1
    assert [line.get("status") for line in got.lines] == ["ok", "late", None]
    assert got.lines[2]["error"]["code"] == "E-DECODE"
    assert shell("sync", good, late, "--model", model, "--max-ms", 250).status == 0
    assert shell("sync", good, text, "--model", model).status == 0
    assert shell("sync", good, text, "--model", model, "--strict").status == 1
    got = shell("sync", text, text, "--model", model, "--json")
    assert got.status == 4
    assert got.lines[-1]["code"] == "E-DECODE"
    still = tmp_path / "d.mkv"
    write_video(
        still, np.zeros((75, 32, 32, 3), np.uint8), np.ones((3 * RATE, 1), np.float32) * 0.1, fps=FPS, sample_rate=RATE
    )
    assert shell("sync", still, "--model", model).status == 0
    assert shell("sync", still, "--model", model, "--strict").status == 1


def test_the_sign_is_said_in_words(shell, model: Path, tmp_path: Path) -> None:
    for lag, words in ((0.2, "audio is LATE by 2"), (-0.2, "audio is EARLY by "), (0.0, "in sync: ")):
        got = shell("sync", film(tmp_path / "a.mp4", lag=lag), "--model", model)
        assert words in got.out
    got = shell("sync", film(tmp_path / "a.mp4", seconds=24, later=0.3), "--model", model)
    assert "INCONSISTENT" in got.out
    assert len(got.out.splitlines()) == 3


@pytest.mark.parametrize(("suffix", "lag"), [(".mp4", 0.31), (".mkv", -0.2), (".webm", 0.15)])
def test_fix_copies_the_streams(shell, model: Path, tmp_path: Path, suffix: str, lag: float) -> None:
    source, target = film(tmp_path / f"a{suffix}", lag=lag), tmp_path / f"fixed{suffix}"
    [line] = shell("sync", source, "--model", model, "--fix", "-o", target, "--json").lines
    assert line["status"] in ("late", "early")
    assert line["fix"]["recheck"]["status"] == "ok"
    assert line["fix"]["moved_ms"] == pytest.approx(-1000 * lag, abs=15)
    assert check_sync(target, MODEL).offset_ms == pytest.approx(0, abs=15)
    assert packets(source) == packets(target)
    got = shell("sync", source, "--model", model, "--fix", "-o", target)
    assert got.status == 2
    assert "E-EXISTS" in got.err
    got = shell("sync", source, "--model", model, "--fix", "-o", target, "--force")
    assert got.status == 0
    assert "not re-encoded; re-check: " in got.out


def packets(path: Path) -> list[bytes]:
    import av

    with av.open(str(path)) as file:
        found = [(p.stream.type, bytes(p)) for p in file.demux() if p.size]
    return [data for kind, data in sorted(found, key=lambda x: x[0]) if data]


def test_fix_refuses_what_no_shift_repairs(shell, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = [
        film(tmp_path / "ok.mp4"),
        film(tmp_path / "edit.mp4", seconds=24, later=0.3),
        film(tmp_path / "drift.mp4", seconds=30, drift=0.008),
        film(tmp_path / "late.mp4", lag=0.2),
    ]
    out.mkdir()
    got = shell("sync", *files, "--model", model, "--fix", "-o", out, "--json")
    assert got.status == 1
    assert [bool(line["fix"].get("out")) for line in got.lines] == [False, False, False, True]
    assert [path.name for path in out.iterdir()] == ["late.mp4"]
    assert got.lines[0]["fix"]["refused"] == "it is in sync"
    assert "drifts" in got.lines[2]["fix"]["refused"]
    assert "nothing written" in shell("sync", files[1], "--model", model, "--fix", "-o", tmp_path / "x.mp4").out
    assert not (tmp_path / "x.mp4").exists()


def test_fix_needs_a_place_of_its_own(shell, model: Path, tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", lag=0.2)
    for tokens in (["--fix"], ["-o", tmp_path / "b.mp4"], ["--fix", "-o", path, "--force"]):
        got = shell("sync", path, "--model", model, *tokens, "--json")
        assert got.status == 2
        assert got.lines[-1]["code"] == "E-CONFIG"
    (tmp_path / "b.mp4").write_text("mine")
    with pytest.raises(ExistsError):
        list(verb.check_files([path], MODEL, fix=True, out=tmp_path / "b.mp4"))
    assert (tmp_path / "b.mp4").read_text() == "mine"


def test_the_result_is_plain(tmp_path: Path) -> None:
    found = check_sync(film(tmp_path / "a.mp4", lag=0.1), MODEL)
    value = found.as_dict()
    assert value["status"] == "late"
    assert "sections" not in value
    assert dataclasses.replace(found, offset_ms=None).as_dict().keys() == value.keys() - {"offset_ms"}


# ----------------------------------------------------------------------------------------------------------- real films
@pytest.mark.parametrize("name", ["grid_raw/s1_bbaf2n.mpg", "grid_raw/s22_lbbc2a.mpg", "grid_s1/video"])
def test_real_films_whose_sound_is_moved(shared_data, tmp_path: Path, name: str) -> None:
    """The scores of a system, even of one that has learned nothing, move with the sound of a real file."""
    place = shared_data(name)
    source = sorted(place.glob("*.mp4"))[0] if place.is_dir() else place
    moved = tmp_path / "moved.mkv"
    remux_with_offset(source, moved, 0.12)
    config = SyncCorrelation.Config()
    torch.manual_seed(0)
    model = Model(SyncCorrelation(config, media_spec(config.decoding)), config.decoding, {}, fingerprint="untrained")
    one, two = (verb._votes(model, path, 0.4).scores.sum(0) for path in (source, moved))
    same, later = (float(np.corrcoef(one[: len(one) - k], two[k:])[0, 1]) for k in (0, 6))
    assert later > max(0.7, same)


def test_real_films_that_lack_something(shared_data, shell, model: Path) -> None:
    folder = shared_data("loader_cases")
    every = (path for path in folder.iterdir() if path.suffix in (".mp4", ".avi", ".webm"))
    files = sorted(every, key=lambda path: path.stat().st_size)[:8]
    got = shell("sync", *files, "--model", model, "--json")
    assert len(got.lines) == len(files)
    assert got.status in (0, 1)
    assert all("status" in line or line["error"]["code"].startswith("E-") for line in got.lines)
