"""The arithmetic of the clock, and lag, offset, variable rate, rotation and segments on real files."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from media_samples import FPS, RATE, chirp, flash_and_click, lag_of, measured_lag, mux, numbers_of, ramp

import avcl.media.decode
from avcl.dsp import resample
from avcl.media import probe, read_audio, read_clip, read_video, remux_with_offset, write_audio, write_video
from avcl.media.clock import native_window, placement, sample_at, slots_before, snap, tolerance
from avcl.media.files import MediaFile

EXACT = ("mp4", "mov", "mkv", "webm")
# What stays in the others when this library writes and reads them. avi stores no timestamps: its sound loses the
# priming of MP3 and its pictures are moved by whole frames to make up for it.
RESIDUAL = {"mpg": 0.005, "ts": 0.005, "avi": 0.040}


# ------------------------------------------------------------------------------------------------------- arithmetic
@given(st.integers(0, 10_000), st.sampled_from([1, 8, 12.5, 24, 25, 30000 / 1001, 16_000]), st.floats(-50, 50))
def test_slots_end_where_they_should(count, rate, start):
    assert slots_before(start + count / rate, start=start, rate=rate) == count
    if count:
        assert slots_before(start + (count - 0.5) / rate, start=start, rate=rate) == count


@given(st.floats(0, 1e5), st.floats(0, 10), st.sampled_from([8, 25, 44_100]))
def test_slots_never_decrease_with_time(time, more, rate):
    assert slots_before(time, start=0, rate=rate) <= slots_before(time + more, start=0, rate=rate)


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(1, 5000), st.integers(0, 200))
def test_a_frame_ends_up_near_its_stamp(position, stamped, length, slack):
    missing, surplus = placement(position, stamped, length, slack)
    assert missing >= 0
    assert 0 <= surplus <= length
    if surplus < length:
        assert abs(position + missing - (stamped + surplus)) <= slack


@given(st.integers(0, 10**6), st.integers(0, 2000), st.integers(1, 2048), st.integers(0, 70))
def test_snap_finds_frame_boundaries(k, anchor, step, slack):
    truth = anchor + k * step
    for error in (-slack, 0, slack):
        snapped = snap(truth + error, anchor, step, slack)
        assert abs(snapped - truth - error) <= slack
        if 2 * slack < step:
            assert snapped == truth


def test_tolerance_is_one_tick_and_at_most_a_millisecond():
    assert tolerance(1 / 90_000) == 1 / 90_000
    assert tolerance(0.001) == 0.001
    assert tolerance(1 / 25) == 0.001


def test_sample_numbers_round_half_up():
    assert [sample_at(t, 10) for t in (0.0, 0.04, 0.05, 0.15, -0.04)] == [0, 0, 1, 2, 0]


@settings(deadline=None, max_examples=50)  # the first call imports SciPy's filters
@given(st.integers(0, 3000), st.integers(1, 2000), st.sampled_from([(160, 441), (2, 1), (1, 3), (80, 147)]))
def test_a_part_of_a_resampled_wave_equals_the_whole(first, count, ratio):
    up, down = ratio
    wave = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 9000))).float()
    whole = resample(wave, down, up)
    stop = min(first + count, whole.shape[1])
    low, high, drop = native_window(first, stop, up=up, down=down, margin=10 * max(up, down) // up + 1)
    lead = torch.zeros(1, max(0, -low))
    part = resample(torch.cat([lead, wave[:, max(0, low) : high]], 1), down, up)
    torch.testing.assert_close(part[:, drop : drop + stop - first], whole[:, first:stop], rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- true lag
@pytest.mark.parametrize("suffix", EXACT)
@pytest.mark.parametrize("lag", [0.32, -0.2, 0.0])
def test_written_files_keep_a_lag_of_320_ms(tmp_path, suffix, lag):
    path = tmp_path / f"lag.{suffix}"
    video, audio = flash_and_click(lag)
    write_video(path, video, audio, fps=FPS, sample_rate=RATE)
    assert lag_of(path) == pytest.approx(lag, abs=0.005)
    assert lag_of(path, start=0.6, end=1.8) == pytest.approx(lag, abs=0.005)
    assert lag_of(path, rate=8000) == pytest.approx(lag, abs=0.005)


@pytest.mark.parametrize("suffix", EXACT)
@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_a_late_sound_stream_is_late(tmp_path, suffix, offset):
    """The sound is in step with the picture as content, and 320 ms late by its timestamps; the file may begin at 1.5
    s."""
    codecs = ("libvpx-vp9", "libopus") if suffix == "webm" else ("mpeg4", "aac")
    rate = 48_000 if suffix == "webm" else 44_100
    video, audio = flash_and_click(0.0, rate=rate)
    path = mux(
        tmp_path / f"late.{suffix}",
        video,
        None,
        audio,
        rate=rate,
        codecs=codecs,
        video_start=offset,
        audio_start=offset + 0.32,
    )
    clip = read_clip(path)
    assert measured_lag(clip) == pytest.approx(0.32, abs=0.005)
    lead = clip.streams["audio"].mask[0].long().argmax() / clip.streams["audio"].rate
    assert 0.25 < lead < 0.33  # the part before the sound begins was not recorded
    assert probe(path).offset == pytest.approx(offset, abs=0.06)


@pytest.mark.parametrize("suffix", EXACT)
@pytest.mark.parametrize("delay", [0.32, -0.32])
def test_a_remuxed_delay_is_measured(tmp_path, suffix, delay):
    video, audio = flash_and_click(0.0)
    write_video(tmp_path / f"sync.{suffix}", video, audio, fps=FPS, sample_rate=RATE)
    remux_with_offset(tmp_path / f"sync.{suffix}", tmp_path / f"moved.{suffix}", delay)
    assert lag_of(tmp_path / f"moved.{suffix}") == pytest.approx(delay, abs=0.005)
    assert lag_of(tmp_path / f"moved.{suffix}", start=0.48, end=1.8) == pytest.approx(delay, abs=0.005)


@pytest.mark.parametrize("suffix", sorted(RESIDUAL))
def test_the_residual_of_containers_with_less_timing(tmp_path, suffix):
    video, audio = flash_and_click(0.32)
    write_video(tmp_path / f"lag.{suffix}", video, audio, fps=FPS, sample_rate=RATE)
    assert abs(lag_of(tmp_path / f"lag.{suffix}") - 0.32) <= RESIDUAL[suffix]


def test_what_lies_before_the_first_picture_is_cut_unless_asked_for(tmp_path):
    video, audio = flash_and_click(0.0)
    path = mux(tmp_path / "early.mkv", video, None, audio, video_start=0.5)
    assert lag_of(path) == pytest.approx(-0.5, abs=0.005)
    assert probe(path).audio.start == pytest.approx(-0.5, abs=0.07)
    early = read_audio(path, start=-0.5, end=0.0)
    assert early.data.shape[1] == RATE // 2
    whole = read_audio(path)
    both = read_audio(path, start=-0.5)
    torch.testing.assert_close(both.data[:, RATE // 2 :], whole.data)
    pictures = read_video(path, start=-0.2, end=0.2)
    assert pictures.mask[0].tolist() == [False] * 5 + [True] * 5


# -------------------------------------------------------------------------------------------------------- the grid
def test_variable_rate_is_put_on_the_grid_by_timestamp(tmp_path):
    times = [0.0, 0.1, 0.5, 0.52, 1.0]
    path = mux(tmp_path / "vfr.mp4", ramp(2)[[0, 10, 20, 30, 40]], times)
    stream = read_video(path, fps=10, end=1.0)
    assert numbers_of(stream) == [0, 10, 10, 10, 10, 20, 30, 30, 30, 30]
    assert stream.mask.all()
    assert numbers_of(read_video(path, fps=50, start=0.48, end=0.56)) == [10, 20, 30, 30]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_b_frames_come_in_the_order_of_the_screen(tmp_path, suffix):
    path = mux(tmp_path / f"b.{suffix}", ramp(2), b_frames=2)
    numbers = numbers_of(read_video(path))
    assert numbers[-40:] == sorted(numbers[-40:])
    if suffix != "avi":
        assert numbers == pytest.approx(list(range(50)), abs=1)
        assert numbers_of(read_video(path, start=1.0, end=1.4)) == pytest.approx(range(25, 35), abs=1)


@pytest.mark.parametrize("fps", [5, 8, 12.5, 50, 30000 / 1001])
@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_each_slot_shows_the_frame_of_its_time(tmp_path, fps, suffix):
    path = tmp_path / f"grid.{suffix}"
    write_video(path, ramp(2), fps=FPS)
    numbers = numbers_of(read_video(path, fps=fps))
    expected = [int(i / fps * FPS + 0.026) for i in range(len(numbers))]
    assert len(numbers) == slots_before(2.0, start=0, rate=fps)
    assert np.abs(np.array(numbers) - expected).max() <= 1


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_rotation_is_honored(tmp_path, turn):
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = 240  # a bright top left corner as it is coded
    path = mux(tmp_path / "turned.mp4", np.stack([picture] * 5), rotation=turn)
    upright = np.rot90(picture, turn // 90)
    stream = read_video(path)
    assert tuple(stream.data.shape[-2:]) == upright.shape[:2]
    assert np.abs(stream.data[0, 0].permute(1, 2, 0).numpy().astype(int) - upright).mean() < 6
    info = probe(path).video
    assert (info.height, info.width) == upright.shape[:2]
    small = read_video(path, size=(32, 32), fit="stretch")
    assert tuple(small.data.shape[-2:]) == (32, 32)


def test_gaps_in_the_sound_are_masked(tmp_path, caplog):
    audio = chirp(2.0, RATE)
    path = mux(tmp_path / "gap.mkv", None, None, audio, codecs=("", "flac"), gaps=[(0.7, 1.2)])
    with caplog.at_level(logging.WARNING):
        stream = read_audio(path)
    held = stream.mask[0].numpy()
    assert not held[int(0.95 * RATE) : int(1.1 * RATE)].any()
    assert held[: int(0.6 * RATE)].all()
    assert held[int(1.5 * RATE) :].all()
    assert stream.data[0][~stream.mask[0]].abs().max() == 0
    np.testing.assert_allclose(stream.data[0, -4000:, 0], audio[-4000:, 0], atol=1e-3)
    assert sum("E-TRUNCATED" in r.getMessage() for r in caplog.records) == 1


# ---------------------------------------------------------------------------------------------------------- segments
class Counting(MediaFile):
    """A MediaFile that leaves its count of decoded frames behind."""

    total = 0

    def close(self):
        Counting.total = self.decoded
        super().close()


@pytest.fixture
def decoded(monkeypatch):
    """How many frames the last read decoded."""
    monkeypatch.setattr(avcl.media.decode, "MediaFile", Counting)
    return lambda: Counting.total


# Decoded for a part of a file of 20 s, as a share of the whole: seeking in mpg and ts is by search, and needs several
# tries.
SHARE = {"ts": 0.9, "mpg": 0.3}


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "avi", "mpg", "ts"])
def test_segments_of_videos_equal_the_slice_and_are_sought(tmp_path, suffix, decoded):
    path = tmp_path / f"long.{suffix}"
    write_video(path, ramp(20), chirp(20, 44_100), fps=FPS, sample_rate=44_100)
    sound, sound_frames = read_audio(path), decoded()
    pictures, picture_frames = read_video(path), decoded()
    for start, end in ((3.32, 4.12), (12.36, 13.0), (18.0, 19.52)):
        part = read_audio(path, start=start, end=end)
        assert decoded() < sound_frames * SHARE.get(suffix, 0.15)
        first = sample_at(start, sound.rate)
        torch.testing.assert_close(part.data, sound.data[:, first : first + part.data.shape[1]], rtol=0, atol=1e-3)
        assert part.data.shape[1] == round((end - start) * sound.rate)
        part = read_video(path, start=start, end=end)
        assert decoded() < picture_frames * SHARE.get(suffix, 0.2)
        first = round(start * FPS)
        difference = part.data.int() - pictures.data[:, first : first + part.data.shape[1]].int()
        assert part.data.shape[1] == round((end - start) * FPS)
        assert difference.abs().max() <= 2


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a"])
@pytest.mark.parametrize("rate", [None, 16_000])
def test_segments_of_sounds_equal_the_slice_and_are_sought(tmp_path, suffix, rate, decoded):
    path = tmp_path / f"long.{suffix}"
    wave = chirp(20, 44_100)
    write_audio(path, wave, 44_100)
    whole, frames = read_audio(path, rate=rate), decoded()
    assert whole.data.shape[1] == pytest.approx(20 * whole.rate, abs=0.05 * whole.rate)
    for start, end in ((0.0, 0.5), (3.3, 4.1), (12.345, 13.0), (18.5, 19.5)):
        part = read_audio(path, start=start, end=end, rate=rate)
        assert decoded() < 0.15 * frames
        first = sample_at(start, whole.rate)
        torch.testing.assert_close(part.data, whole.data[:, first : first + part.data.shape[1]], rtol=0, atol=1e-3)
        assert part.data.shape[1] == pytest.approx((end - start) * whole.rate, abs=1)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a"])
def test_sounds_come_back_in_step_with_what_was_written(tmp_path, suffix):
    wave = chirp(3, 48_000)
    write_audio(tmp_path / f"x.{suffix}", wave, 48_000)
    back = read_audio(tmp_path / f"x.{suffix}").data[0, :, 0].numpy()
    count = min(len(back), len(wave)) - 4800
    shifts = range(-30, 31)
    errors = [np.square(back[2400 + s : count + s] - wave[2400:count, 0]).mean() for s in shifts]
    assert abs(shifts[int(np.argmin(errors))]) <= 1
    assert min(errors) < 0.003
