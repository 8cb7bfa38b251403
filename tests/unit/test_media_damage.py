"""Damaged, lying and hostile files: a typed error or a correct part with a count; never a crash, a hang or silence."""

from __future__ import annotations

import logging
import os
import struct
import zlib

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media_samples import FPS, RATE, chirp, flash_and_click, mux, numbers_of, ramp

from avcl.errors import (
    ConfigError,
    MediaError,
    MissingFile,
    NoAudioStream,
    NotMedia,
    NoVideoStream,
    TooShort,
    Truncated,
)
from avcl.media import probe, read_audio, read_clip, read_video, write_audio, write_image, write_video
from avcl.types import Clip, Stream

SUFFIXES = ("mp4", "mkv", "webm", "avi", "mpg", "ts", "mp3", "ogg", "flac", "wav", "m4a", "png", "jpg")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The bytes of one small whole file of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    video, audio = flash_and_click(0.1, seconds=1.0, at=0.5)
    out = {}
    for suffix in SUFFIXES:
        path = folder / f"x.{suffix}"
        if suffix in ("png", "jpg"):
            write_image(path, video[14])
        elif suffix in ("mp3", "ogg", "flac", "wav", "m4a"):
            write_audio(path, audio, RATE)
        else:
            write_video(path, video, audio, fps=FPS, sample_rate=RATE)
        out[suffix] = path.read_bytes()
    return out


def try_everything(path) -> list[MediaError]:
    """Reads the file in all ways; what they raise must be ours, what they return must be sound."""
    raised = []
    parts = ({"size": (32, 32)}, {"size": (32, 32), "start": 0.4, "end": 0.7})
    calls = [lambda o=o: read_video(path, **o) for o in parts] + [lambda o=o: read_clip(path, **o) for o in parts]
    calls += [lambda: read_audio(path), lambda: read_audio(path, start=0.4, end=0.7, rate=8000)]
    calls += [lambda: probe(path), lambda: probe(path, scan=True)]
    for call in calls:
        try:
            result = call()
        except MediaError as error:
            raised.append(error)
            continue
        if isinstance(result, Stream):
            check_stream(result)
        elif isinstance(result, Clip):
            for stream in result.streams.values():
                check_stream(stream)
    for error in raised:
        assert error.code.startswith("E-")
        assert error.file
        assert len(str(error).replace(str(path), "")) < 260
    return raised


def check_stream(stream: Stream) -> None:
    assert stream.data.shape[:2] == stream.mask.shape
    assert stream.data.numel() < 50_000_000
    assert stream.data[~stream.mask].abs().sum() == 0
    if stream.data.is_floating_point():
        assert torch.isfinite(stream.data).all()


# ------------------------------------------------------------------------------------------------------ not media at
# all
def test_what_is_not_a_media_file(tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    text = tmp_path / "text.mp4"
    text.write_text("<html>not a film</html>" * 40)
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{text}\n")
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    for path, error, word in (
        (tmp_path / "missing.mp4", MissingFile, "no such file"),
        (empty, NotMedia, "empty"),
        (text, NotMedia, "<html>no"),
        (playlist, NotMedia, "not a media file"),
        (folder, NotMedia, "folder"),
        ("http://127.0.0.1:9/x.mp4", MissingFile, "no such file"),
        ("concat:a.mp4|b.mp4", MissingFile, "no such file"),
        ("a\0b.mp4", MissingFile, "E-NOFILE"),
    ):
        for read in (read_video, read_audio, read_clip, probe):
            with pytest.raises(error, match=word) as caught:
                read(path)
            assert caught.value.exit == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "x.wav"
    path.write_bytes(b"RIFF")
    path.chmod(0)
    with pytest.raises(MissingFile, match="may not be read"):
        read_audio(path)


def test_names_that_libraries_take_for_patterns(tmp_path):
    write_image(tmp_path / "a%03d[1].png", np.full((8, 8, 3), 77, np.uint8))
    assert read_video(tmp_path / "a%03d[1].png").data.unique().tolist() == [77]
    write_audio(tmp_path / "pipe:1 ü.wav", chirp(0.2, RATE), RATE)
    assert read_audio(tmp_path / "pipe:1 ü.wav").data.shape == (1, 3200, 1)


def test_arguments_that_make_no_sense(tmp_path):
    path = tmp_path / "x.mp4"
    write_video(path, ramp(0.4), chirp(0.4, RATE), fps=FPS, sample_rate=RATE)
    for call in (
        lambda: read_video(path, start=1.0, end=0.5),
        lambda: read_video(path, start=float("nan")),
        lambda: read_video(path, fps=0),
        lambda: read_video(path, fps=-3),
        lambda: read_video(path, size=(0, 8)),
        lambda: read_video(path, size=(8, 8), fit="squash"),
        lambda: read_video(path, size=(100_000, 100_000)),
        lambda: read_audio(path, rate=0),
        lambda: read_audio(path, channels=0),
        lambda: read_clip(path, modalities=("smell",)),
        lambda: read_clip(path, modalities=()),
    ):
        with pytest.raises(ConfigError):
            call()


# ----------------------------------------------------------------------------------------------------- too short, empty
def test_reading_past_the_end(tmp_path):
    path = tmp_path / "x.mp4"
    write_video(path, ramp(1), chirp(1, RATE), fps=FPS, sample_rate=RATE)
    for read in (read_video, read_audio, read_clip):
        with pytest.raises(TooShort, match=r"ends at 1\.00 s") as caught:
            read(path, start=1.5, end=2.0)
        assert caught.value.time == 1.5
    assert read_video(path, start=0.8, end=9.0).data.shape[1] == 5
    assert read_audio(path, start=0.8, end=9.0).data.shape[1] == pytest.approx(3200, abs=2)


def test_a_stream_that_ends_earlier(tmp_path):
    path = tmp_path / "x.mkv"
    write_video(path, ramp(2), chirp(1, RATE), fps=FPS, sample_rate=RATE)
    whole = read_clip(path)
    assert whole.streams["video"].data.shape[1] == 50
    assert whole.streams["audio"].duration == pytest.approx(1.0, abs=0.07)
    late = read_clip(path, 1.2, 1.8, size=(8, 8))
    assert late.streams["video"].mask.all()
    assert not late.streams["audio"].mask.any()
    assert late.streams["audio"].data.shape == (1, round(0.6 * RATE), 1)
    with pytest.raises(TooShort):
        read_audio(path, start=1.2)


def test_one_frame_and_one_sample(tmp_path):
    write_video(tmp_path / "one.mp4", ramp(1)[:1], fps=FPS)
    stream = read_video(tmp_path / "one.mp4")
    assert stream.data.shape[:2] == (1, 1)
    assert read_video(tmp_path / "one.mp4", fps=8).data.shape[1] == 1
    assert probe(tmp_path / "one.mp4", scan=True).video.frames == 1
    write_audio(tmp_path / "one.wav", np.full((1, 1), 0.5, np.float32), RATE)
    assert read_audio(tmp_path / "one.wav").data.tolist() == [[[0.5]]]
    assert read_audio(tmp_path / "one.wav", rate=8000).data.shape[1] == 1


def test_streams_without_content(tmp_path):
    with pytest.raises(ConfigError, match="not empty"):
        write_audio(tmp_path / "zero.wav", np.zeros((0, 1), np.float32), RATE)
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36, b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16, b"data", 0
    )
    (tmp_path / "zero.wav").write_bytes(header)
    with pytest.raises(MediaError, match=r"E-(NOAUDIO|TRUNCATED|DECODE)"):
        read_audio(tmp_path / "zero.wav")
    path = tmp_path / "header.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        sound = out.add_stream("aac", rate=16_000)
        sound.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32) + 0.1, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    with pytest.raises(MediaError, match=r"E-(NOVIDEO|TRUNCATED|DECODE)"):
        read_video(path)
    assert set(read_clip(path).streams) == {"audio"}
    with pytest.raises(MediaError):
        read_clip(path, modalities=("audio", "video"))


def test_cover_art_is_not_a_video(tmp_path):
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as out:
        sound = out.add_stream("libmp3lame", rate=44_100)
        sound.layout = "mono"
        art = out.add_stream("png", rate=1)
        art.width = art.height = 16
        art.pix_fmt = "rgb24"
        art.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 200, np.uint8), format="rgb24")
        out.mux(art.encode(frame))
        out.mux(art.encode(None))
        wave = chirp(0.5, 44_100).T
        for first in range(0, wave.shape[1], 1152):
            part = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(wave[:, first : first + 1152]), format="fltp", layout="mono"
            )
            part.sample_rate, part.pts = 44_100, first
            out.mux(sound.encode(part))
        out.mux(sound.encode(None))
    with pytest.raises(NoVideoStream):
        read_video(path)
    assert probe(path).video is None
    assert set(read_clip(path).streams) == {"audio"}


# ----------------------------------------------------------------------------------------------------- lies and bombs
HOURS = 8 * 3600


def test_an_mp4_header_that_lies_about_eight_hours(tmp_path, caplog):
    path = tmp_path / "lie.mp4"
    write_video(path, ramp(2), chirp(2, RATE), fps=FPS, sample_rate=RATE)
    data = bytearray(path.read_bytes())
    boxes = [(b"mvhd", 16, 1000), (b"tkhd", 20, 1000), (b"mdhd", 16, RATE), (b"elst", 8, 1000)]
    for box, where, scale in boxes:
        at = data.find(box)
        while at >= 0:
            data[at + 4 + where : at + 8 + where] = struct.pack(">I", HOURS * scale)
            at = data.find(box, at + 4)
    last = data.rfind(b"stts")  # the sound: its last frame is to last eight hours
    (entries,) = struct.unpack(">I", data[last + 8 : last + 12])
    data[last + 8 + 8 * entries : last + 12 + 8 * entries] = struct.pack(">I", HOURS * RATE)
    path.write_bytes(data)
    assert probe(path).header_duration == pytest.approx(HOURS, rel=0.1)
    with caplog.at_level(logging.WARNING):
        clip = read_clip(path)
    assert clip.streams["video"].data.shape[1] == 50
    assert clip.streams["audio"].data.shape[1] == pytest.approx(2 * RATE, abs=1024)
    assert any("missing at the end" in r.getMessage() for r in caplog.records)
    with pytest.raises(Truncated, match="ends at 2"):
        read_audio(path, start=3600.0, end=3601.0)


def test_an_mkv_header_that_lies_about_eight_hours(tmp_path, caplog):
    path = tmp_path / "lie.mkv"
    write_video(path, ramp(2), chirp(2, RATE), fps=FPS, sample_rate=RATE)
    data = bytearray(path.read_bytes())
    at = data.find(b"\x44\x89\x88") + 3
    data[at : at + 8] = struct.pack(">d", HOURS * 1000.0)
    path.write_bytes(data)
    info = probe(path)
    assert info.header_duration == pytest.approx(HOURS)
    assert info.duration == pytest.approx(2.0, abs=0.1)
    with caplog.at_level(logging.WARNING):
        clip = read_clip(path)
    assert clip.streams["video"].data.shape[1] == 50
    assert clip.streams["audio"].data.shape[1] == pytest.approx(2 * RATE, abs=1024)
    assert sum("missing at the end" in r.getMessage() for r in caplog.records) == 2
    for read in (read_video, read_audio, read_clip):
        with pytest.raises(Truncated, match="ends at 2"):
            read(path, start=3600.0, end=3601.0)
    with pytest.raises(Truncated):
        read_clip(path, strict=True)


def test_a_picture_that_claims_to_be_enormous(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
        + chunk(b"IEND", b"")
    )
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb)
    with pytest.raises(MediaError):
        read_video(path, size=(8, 8))


def test_more_memory_than_a_clip_may_take(tmp_path, monkeypatch):
    write_video(tmp_path / "x.mp4", ramp(2), chirp(2, RATE), fps=FPS, sample_rate=RATE)
    monkeypatch.setattr("avcl.media.losses.MAX_BYTES", 30_000)
    for read in (read_video, read_audio):
        with pytest.raises(MediaError, match="GiB"):
            read(tmp_path / "x.mp4")
    read_video(tmp_path / "x.mp4", size=(8, 8))


# ---------------------------------------------------------------------------------------------------------- damage
def test_a_truncated_file_gives_what_it_has_and_says_so(tmp_path, caplog):
    whole = tmp_path / "whole.mkv"
    write_video(whole, ramp(4), chirp(4, RATE), fps=FPS, sample_rate=RATE)
    path = tmp_path / "half.mkv"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        stream = read_video(path)
    count = stream.data.shape[1]
    assert 25 <= count < 100
    assert numbers_of(stream) == pytest.approx(list(range(count)), abs=1)
    assert any("missing at the end" in r.getMessage() for r in caplog.records)
    with pytest.raises(Truncated, match="missing at the end"):
        read_video(path, strict=True)
    read_video(path, end=0.5, strict=True)  # this part is whole
    assert probe(path).duration == pytest.approx(count / FPS, abs=1.2)


def test_damage_in_the_middle_is_masked_and_counted(tmp_path, caplog):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (50, 48, 64, 3), dtype=np.uint8)
    path = mux(tmp_path / "x.mkv", noise, codecs=("mpeg4", "aac"))
    with av.open(str(path)) as file:
        packets = [(p.pos, p.size) for p in file.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for pos, size in packets[20:24]:
        body = data.find(b"\x00\x00\x01\xb6", pos)
        data[body : body + size] = bytes(size)
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        stream = read_video(path)
    assert stream.data.shape[1] == pytest.approx(50, abs=1)
    lost = int((~stream.mask).sum())
    assert 1 <= lost <= 12
    assert stream.mask[0, :18].all()
    assert stream.mask[0, 40:].all()
    assert [r for r in caplog.records if f"{lost} of" in r.getMessage()]
    with pytest.raises(Truncated, match="could not be decoded"):
        read_video(path, strict=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_truncation_of_every_format(tmp_path, originals, suffix):
    data = originals[suffix]
    path = tmp_path / f"cut.{suffix}"
    for share in (0.02, 0.3, 0.6, 0.9, 0.99):
        path.write_bytes(data[: max(1, int(len(data) * share))])
        try_everything(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(SUFFIXES),
    cut=st.floats(0.3, 1.0),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    holes=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 400)), max_size=2),
)
def test_fuzzed_bytes(tmp_path, originals, suffix, cut, flips, holes):
    data = bytearray(originals[suffix])
    for where, value in flips:
        data[int(where * (len(data) - 1))] = value
    for where, length in holes:
        first = int(where * (len(data) - 1))
        del data[first : first + length]
    path = tmp_path / f"fuzz.{suffix}"
    path.write_bytes(bytes(data[: max(1, int(len(data) * cut))]))
    try_everything(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from(SUFFIXES), body=st.binary(min_size=0, max_size=300), keep=st.integers(0, 64))
def test_garbage_behind_a_true_beginning(tmp_path, originals, suffix, body, keep):
    path = tmp_path / f"garbage.{suffix}"
    path.write_bytes(originals[suffix][:keep] + body)
    try_everything(path)


def test_nothing_is_written_to_the_terminal(tmp_path, originals, capfd):
    path = tmp_path / "x.mp4"
    path.write_bytes(originals["mp4"][: len(originals["mp4"]) * 2 // 3])
    try_everything(path)
    data = bytearray(originals["mpg"])
    data[len(data) // 3 : len(data) // 2] = os.urandom(len(data) // 2 - len(data) // 3)
    path.write_bytes(data)
    try_everything(path)
    assert capfd.readouterr() == ("", "")


def test_no_sound_in_a_video_and_no_video_in_a_sound(tmp_path):
    write_video(tmp_path / "mute.mp4", ramp(0.4), fps=FPS)
    with pytest.raises(NoAudioStream, match="E-NOAUDIO") as caught:
        read_audio(tmp_path / "mute.mp4")
    assert caught.value.hint
    with pytest.raises(NoAudioStream):
        read_clip(tmp_path / "mute.mp4", modalities=("audio", "video"))
    assert set(read_clip(tmp_path / "mute.mp4").streams) == {"video"}


def test_a_first_timestamp_that_lies(tmp_path):
    path = tmp_path / "x.mkv"
    write_video(path, ramp(2), chirp(2, RATE), fps=FPS, sample_rate=RATE)
    sound = read_audio(path)
    with av.open(str(path)) as source, av.open(str(tmp_path / "lie.ts"), "w") as out:
        copies = {s.index: out.add_stream_from_template(s) for s in source.streams}
        honest = False
        for packet in (p for p in source.demux() if p.dts is not None):
            if packet.stream.type == "audio" and not honest:
                packet.pts, honest = packet.pts + round(4000 / packet.time_base), True
            packet.stream = copies[packet.stream_index]
            out.mux(packet)
    lie = read_audio(tmp_path / "lie.ts")
    assert lie.data.shape[1] == pytest.approx(sound.data.shape[1], abs=2048)
