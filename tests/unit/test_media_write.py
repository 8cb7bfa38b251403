"""What is written comes back: codecs by suffix, channels, rates, sizes, pictures; and what cannot be written says
why."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from media_samples import FPS, RATE, chirp, mux, ramp

from avcl.dsp import resize
from avcl.errors import AvclError, ConfigError, MediaError
from avcl.media import (
    MEDIA_SUFFIXES,
    encode_image,
    probe,
    read_audio,
    read_clip,
    read_video,
    write_audio,
    write_image,
    write_video,
)


@pytest.mark.parametrize(
    ("suffix", "video_codec", "audio_codec"),
    [
        ("mp4", "mpeg4", "aac"),
        ("mov", "mpeg4", "aac"),
        ("mkv", "mpeg4", "aac"),
        ("webm", "vp9", "opus"),
        ("avi", "mpeg4", "mp3float"),
        ("mpg", "mpeg2video", "mp2"),
        ("ts", "mpeg2video", "mp2"),
    ],
)
def test_codecs_follow_the_suffix(tmp_path, suffix, video_codec, audio_codec):
    path = tmp_path / f"x.{suffix}"
    rng = np.random.default_rng(0)
    gray = torch.from_numpy(rng.integers(0, 255, (25, 1, 6, 6), dtype=np.uint8)).expand(-1, 3, -1, -1)
    pictures = resize(gray, (64, 64)).permute(0, 2, 3, 1)
    wave = np.concatenate([chirp(1, RATE), 0.5 * chirp(1, RATE)[::-1]], 1)
    write_video(path, pictures, wave, fps=FPS, sample_rate=RATE)
    info = probe(path, scan=True)
    assert (info.video.codec, info.audio.codec) == (video_codec, audio_codec)
    assert info.damaged == 0
    clip = read_clip(path, rate=RATE)
    back = clip.streams["video"].data[0, -25:].permute(0, 2, 3, 1)
    assert (back.float() - pictures.float()).abs().mean() < 5
    sound = clip.streams["audio"].data[0].numpy()
    assert sound.shape[1] == 2
    count = min(len(sound), len(wave)) - 2000
    if suffix != "avi":
        assert np.abs(sound[1000:count] - wave[1000:count]).mean() < 0.03
    assert ".part" not in " ".join(p.name for p in tmp_path.iterdir())


@pytest.mark.parametrize("fps", [8, 12.5, 29.97])
def test_frame_rates_and_odd_sizes(tmp_path, fps):
    pictures = ramp(2, size=(44, 36))[:17, :43, :35]
    write_video(tmp_path / "x.webm", pictures, fps=fps)
    stream = read_video(tmp_path / "x.webm")
    assert stream.data.shape == (1, 17, 3, 43, 35)
    assert stream.rate == pytest.approx(fps, rel=1e-3)


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_lossless_sound_is_exact_to_16_bits(tmp_path, suffix, rate):
    wave = np.concatenate([chirp(0.3, rate)] * 2, 1)
    write_audio(tmp_path / f"x.{suffix}", wave, rate)
    back = read_audio(tmp_path / f"x.{suffix}")
    assert back.rate == rate
    torch.testing.assert_close(back.data[0], torch.from_numpy(wave), rtol=0, atol=1.01 / 32768)


def test_any_rate_and_channel_layout_is_read(tmp_path):
    six = np.stack([0.1 * (i + 1) * np.ones(4800, np.float32) for i in range(6)], 1)
    write_audio(tmp_path / "six.flac", six, 48_000)
    assert read_audio(tmp_path / "six.flac").data.shape == (1, 4800, 6)
    assert read_audio(tmp_path / "six.flac", channels=1).data.mean() == pytest.approx(0.35, abs=1e-3)
    stereo = read_audio(tmp_path / "six.flac", channels=2).data[0, 100]
    side = 2**-0.5  # FL FR FC LFE BL BR: L = (FL + s FC + s BL) / (1 + 2 s)
    assert stereo[0] == pytest.approx((0.1 + side * 0.3 + side * 0.5) / (1 + 2 * side), abs=1e-3)
    assert stereo[1] == pytest.approx((0.2 + side * 0.3 + side * 0.6) / (1 + 2 * side), abs=1e-3)
    with pytest.raises(ConfigError, match="cannot make 3"):
        read_audio(tmp_path / "six.flac", channels=3)
    write_audio(tmp_path / "mono.wav", chirp(0.1, 11_025)[:, 0], 11_025)
    two = read_audio(tmp_path / "mono.wav", channels=2)
    assert torch.equal(two.data[..., 0], two.data[..., 1])


@pytest.mark.parametrize("suffix", ["wav", "flac", "m4a", "ogg"])
def test_eight_channels(tmp_path, suffix):
    """Frames of eight planes and more are a trap of PyAV: reading them plainly can crash the process."""
    t = np.arange(48_000) / 48_000
    wave = np.stack([0.4 * np.sin(2 * np.pi * 110 * (i + 1) * t) for i in range(8)], 1).astype(np.float32)
    write_audio(tmp_path / f"x.{suffix}", wave, 48_000)
    for _ in range(3):
        back = read_audio(tmp_path / f"x.{suffix}").data[0]
        assert back.shape[1] == 8
        assert probe(tmp_path / f"x.{suffix}", scan=True).audio.channels == 8
    pitches = torch.fft.rfft(back[4000:44_000], dim=0).abs().argmax(0) * 48_000 / 40_000
    if suffix in ("wav", "flac"):
        assert torch.allclose(pitches, 110.0 * torch.arange(1, 9), atol=2)
    assert (pitches > 0).sum() >= 7  # the low-frequency channel of a lossy codec keeps only what is low


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"])
def test_sample_formats(tmp_path, codec):
    wave = 0.5 * np.sin(np.arange(3200) / 9)
    path = tmp_path / "x.wav"
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=RATE)
        stream.layout = "mono"
        kind = stream.codec_context.format.name
        scale = {"u8": 128, "s16": 2**15, "s32": 2**31}.get(kind, 1)
        types = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "flt": np.float32, "dbl": np.float64}
        raw = (wave * scale + (128 if kind == "u8" else 0)).astype(types[kind])
        frame = av.AudioFrame.from_ndarray(raw[None], format=kind, layout="mono")
        frame.sample_rate = RATE
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    np.testing.assert_allclose(read_audio(path).data[0, :, 0], wave, atol=0.01 if codec == "pcm_u8" else 1e-4)


def test_resampled_reads_keep_the_pitch(tmp_path):
    t = np.arange(44_100) / 44_100
    write_audio(tmp_path / "x.wav", 0.5 * np.sin(2 * np.pi * 440 * t).astype(np.float32), 44_100)
    stream = read_audio(tmp_path / "x.wav", rate=16_000)
    assert stream.data.shape == (1, 16_000, 1)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(stream.data[0, 100:-100, 0], expected[100:-100], atol=2e-3)


# -------------------------------------------------------------------------------------------------------------- images
def test_images(tmp_path):
    rng = np.random.default_rng(0)
    picture = (
        resize(torch.from_numpy(rng.integers(0, 255, (3, 5, 7), dtype=np.uint8)), (50, 70)).permute(1, 2, 0).numpy()
    )
    for suffix, error in (("png", 0), ("jpg", 3)):
        write_image(tmp_path / f"x.{suffix}", picture)
        stream = read_video(tmp_path / f"x.{suffix}")
        assert stream.data.shape == (1, 1, 3, 50, 70)
        assert stream.mask.all()
        assert np.abs(stream.data[0, 0].permute(1, 2, 0).numpy().astype(int) - picture).mean() <= error
        assert read_video(tmp_path / f"x.{suffix}", size=(20, 20), start=3.0).data.shape == (1, 1, 3, 20, 20)
        info = probe(tmp_path / f"x.{suffix}")
        assert (info.is_image, info.duration, info.video.width) == (True, 0.0, 70)
    assert encode_image(picture)[:4] == b"\x89PNG"
    assert encode_image(picture, "jpeg")[:2] == b"\xff\xd8"
    assert set(read_clip(tmp_path / "x.png").streams) == {"video"}


def test_transparent_pictures_lie_on_white(tmp_path):
    layers = np.zeros((16, 16, 4), np.uint8)
    layers[:8] = (200, 10, 10, 255)
    frame = av.VideoFrame.from_ndarray(layers, format="rgba")
    context = av.CodecContext.create("png", "w")
    context.width = context.height = 16
    context.pix_fmt, context.time_base = "rgba", Fraction(1, 1)
    (tmp_path / "x.png").write_bytes(b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)]))
    picture = read_video(tmp_path / "x.png").data[0, 0]
    assert picture[:, 2, 2].tolist() == [200, 10, 10]
    assert picture[:, 12, 2].tolist() == [255, 255, 255]


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(24, 24), (20, 60), (96, 128)])
def test_scaling_while_decoding_agrees_with_resizing(tmp_path, fit, size):
    rng = np.random.default_rng(1)
    small = torch.from_numpy(rng.integers(0, 255, (3, 6, 8), dtype=np.uint8))
    picture = resize(small, (48, 64)).permute(1, 2, 0).numpy()
    write_image(tmp_path / "x.png", picture)
    read = read_video(tmp_path / "x.png", size=size, fit=fit).data[0, 0]
    expected = resize(torch.from_numpy(picture).permute(2, 0, 1), size, fit)
    assert read.shape == (3, *size)
    assert (read.float() - expected.float()).abs().mean() < 5


# ------------------------------------------------------------------------------------------------------------- refusals
def test_what_cannot_be_written(tmp_path):
    video, audio = ramp(0.2), chirp(0.2, RATE)
    for call in (
        lambda: write_video(tmp_path / "x.xyz", video, fps=25),
        lambda: write_video(tmp_path / "x.wav", video, fps=25),
        lambda: write_video(tmp_path / "x.mp4", video.astype(np.float32), fps=25),
        lambda: write_video(tmp_path / "x.mp4", video[:0], fps=25),
        lambda: write_video(tmp_path / "x.mp4", video, fps=0),
        lambda: write_video(tmp_path / "x.mpg", video, fps=8),
        lambda: write_video(tmp_path / "x.mp4", video, audio, fps=25),
        lambda: write_video(tmp_path / "x.mp4", video, audio * np.nan, fps=25, sample_rate=RATE),
        lambda: write_audio(tmp_path / "x.png", audio, RATE),
        lambda: write_audio(tmp_path / "x.wav", audio[None], RATE),
        lambda: write_image(tmp_path / "x.tga", video[0]),
        lambda: encode_image(video[0], "tiff"),
        lambda: encode_image(video),
    ):
        with pytest.raises(ConfigError):
            call()
    with pytest.raises(MediaError, match="cannot be written"):
        write_video(tmp_path / "no" / "x.mp4", video, fps=25)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_video(tmp_path / "x.mp4", ramp(0.2), fps=25)
    before = (tmp_path / "x.mp4").read_bytes()
    with pytest.raises(AvclError):
        write_video(tmp_path / "x.mp4", ramp(0.2), chirp(0.2, RATE)[:, [0] * 9], fps=25, sample_rate=RATE)
    assert (tmp_path / "x.mp4").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_every_public_function_twice_and_suffixes(tmp_path):
    path = mux(tmp_path / "x.mkv", ramp(0.4), None, chirp(0.4, RATE))
    for _ in range(2):
        assert probe(path).video.height == 48
        assert read_clip(path, 0.08, 0.2).streams["video"].data.shape[1] == 3
    assert {
        ".mp4",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".m4a",
        ".wav",
        ".flac",
        ".ogg",
        ".mp3",
        ".jpg",
        ".png",
    } <= MEDIA_SUFFIXES
