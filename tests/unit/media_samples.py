"""Small media files made for the tests of the media room: a flash and a click, moving ramps, and files with peculiar
times."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avcl.media import read_clip
from avcl.types import Clip, Stream

FPS = 25
RATE = 16_000


def flash_and_click(lag: float, *, seconds: float = 2.0, at: float = 1.0, fps: int = FPS, rate: int = RATE):
    """A white flash at ``at`` and a tone burst ``lag`` seconds later: video uint8 [T,64,64,3], audio float32 [L,1]."""
    video = np.full((int(seconds * fps), 64, 64, 3), 20, np.uint8)
    video[int(at * fps) : int(at * fps) + 3] = 235
    audio = np.zeros((int(seconds * rate), 1), np.float32)
    first = round((at + lag) * rate)
    audio[first : first + 400, 0] = 0.8 * np.sin(np.arange(400) * 0.8)
    return video, audio


def measured_lag(clip: Clip) -> float:
    """Seconds from the flash to the click, by their onsets."""
    video, audio = clip.streams["video"], clip.streams["audio"]
    light = video.data[0].float().mean((1, 2, 3))
    sound = audio.data[0].abs().amax(1)
    flash = int((light > 120).nonzero()[0]) / video.rate
    click = int((sound > 0.25 * sound.max()).nonzero()[0]) / audio.rate
    return click - flash


def lag_of(path: Path, **options) -> float:
    return measured_lag(read_clip(path, **options))


def ramp(seconds: float, fps: int = FPS, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Frame t has the mean 15 + 2 t (mod 220) over a fixed texture: each frame tells its number. uint8 [T,H,W,3]."""
    count = int(seconds * fps)
    texture = np.random.default_rng(0).integers(-5, 6, (size[0] // 4, size[1] // 4)).repeat(4, 0).repeat(4, 1)
    texture = texture - texture[:, ::-1]  # no mean
    level = 15 + np.arange(count) * 2 % 220
    return np.broadcast_to((level[:, None, None] + texture)[..., None], (count, *size, 3)).astype(np.uint8)


def numbers_of(stream: Stream) -> list[int]:
    """The numbers (mod 110) of the frames of ``ramp`` that a Stream shows."""
    return [round(x) for x in ((stream.data[0].float().mean((1, 2, 3)) - 15) / 2).tolist()]


def chirp(seconds: float, rate: int) -> np.ndarray:
    """A tone whose pitch rises, with a little noise: no two moments are alike. float32 [L,1]."""
    t = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * (200 + 30 * t) * t) + 0.05 * noise).astype(np.float32)[:, None]


def mux(
    path: Path,
    video: np.ndarray | None,
    times: Sequence[float] | None = None,
    audio: np.ndarray | None = None,
    *,
    audio_start: float = 0.0,
    video_start: float = 0.0,
    rate: int = RATE,
    format: str | None = None,
    codecs: tuple[str, str] = ("mpeg4", "aac"),
    b_frames: int = 0,
    rotation: int = 0,
    gaps: Sequence[tuple[float, float]] = (),
) -> Path:
    """A file with exactly these timestamps: frame i at ``video_start + times[i]``, sound from ``audio_start`` on,
    without ``gaps``."""
    base = Fraction(1, 90_000)
    with av.open(str(path), "w", format=format) as out:
        jobs = []
        if video is not None:
            stream = out.add_stream(codecs[0], rate=FPS)
            stream.height, stream.width, stream.pix_fmt = video.shape[1], video.shape[2], "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000) if codecs[0] == "mpeg4" else base
            stream.codec_context.gop_size = 12
            stream.codec_context.max_b_frames = b_frames
            fast = {"deadline": "realtime", "cpu-used": "8"}
            stream.codec_context.options = {"qmin": "2", "qmax": "2"} if codecs[0] == "mpeg4" else fast
            if rotation:
                stream.set_display_rotation(rotation)
            shown = [i / FPS for i in range(len(video))] if times is None else times
            for picture, time in zip(video, shown, strict=True):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.time_base = stream.codec_context.time_base
                frame.pts = round((video_start + time) / frame.time_base)
                jobs.append((video_start + time, stream, frame))
        if audio is not None:
            sound = out.add_stream(codecs[1], rate=rate)
            sound.layout = "mono" if audio.shape[1] == 1 else "stereo"
            step = sound.codec_context.frame_size or 1024
            for first in range(0, len(audio), step):
                time = audio_start + first / rate
                if any(low <= first / rate < high for low, high in gaps):
                    continue
                chunk = np.ascontiguousarray(audio[first : first + step].T)
                kind = sound.codec_context.format.name
                if kind.startswith("s16"):
                    chunk = np.round(chunk * 32767).astype(np.int16)
                    chunk = chunk if kind == "s16p" else np.ascontiguousarray(chunk.T).reshape(1, -1)
                elif kind == "flt":
                    chunk = np.ascontiguousarray(chunk.T).reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(chunk, format=kind, layout=sound.layout)
                frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(time * rate)
                jobs.append((time, sound, frame))
        for _, stream, frame in sorted(jobs, key=lambda job: job[0]):
            out.mux(stream.encode(frame))
        for stream in out.streams:
            out.mux(stream.encode(None))
    return path
