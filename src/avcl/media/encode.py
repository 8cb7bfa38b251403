"""Writing media files: pictures and sound from arrays, images, and streams copied with another delay.

Codecs follow the suffix and are free to use: webm is VP9 + Opus, mp4, mov and mkv are MPEG-4 part 2 + AAC, avi is
MPEG-4 + MP3, mpg and ts are MPEG-2 + MP2. Every file is written beside its name and renamed when it is whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch

from avcl.dsp.rates import resample
from avcl.errors import ConfigError, MediaError
from avcl.media.clock import rational_rate
from avcl.media.files import MediaFile, reason
from avcl.media.frames import PLANES


class Container(NamedTuple):
    """How a suffix is written: libav's format, its codecs, and the sample rates the sound codec takes."""

    format: str
    video: str | None
    audio: str | None
    rates: tuple[int, ...] = ()


AAC = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
MP3 = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
MP2 = (16000, 22050, 24000, 32000, 44100, 48000)
OPUS = (48000,)
CONTAINERS = {
    ".mp4": Container("mp4", "mpeg4", "aac", AAC),
    ".m4v": Container("mp4", "mpeg4", "aac", AAC),
    ".mov": Container("mov", "mpeg4", "aac", AAC),
    ".mkv": Container("matroska", "mpeg4", "aac", AAC),
    ".webm": Container("webm", "libvpx-vp9", "libopus", OPUS),
    ".avi": Container("avi", "mpeg4", "libmp3lame", MP3),
    ".mpg": Container("mpeg", "mpeg2video", "mp2", MP2),
    ".ts": Container("mpegts", "mpeg2video", "mp2", MP2),
    ".wav": Container("wav", None, "pcm_s16le"),
    ".flac": Container("flac", None, "flac"),
    ".ogg": Container("ogg", None, "libopus", OPUS),
    ".opus": Container("ogg", None, "libopus", OPUS),
    ".mp3": Container("mp3", None, "libmp3lame", MP3),
    ".m4a": Container("ipod", None, "aac", AAC),
}
MPEG2_RATES = (Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, 50, Fraction(60000, 1001), 60)
KBITS = {
    "aac": 128,
    "libopus": 96,
    "libmp3lame": 128,
    "mp2": 128,
}  # for each stereo pair: transparent for tests and demos


def write_video(
    path: str | Path,
    video: np.ndarray | torch.Tensor,
    audio: np.ndarray | torch.Tensor | None = None,
    *,
    fps: float,
    sample_rate: int | None = None,
    quality: int = 3,
    keyframes: int = 12,
) -> None:
    """Writes ``video`` uint8 [T,H,W,3] at ``fps`` and ``audio`` float32 [L,C] at ``sample_rate``: both begin at t = 0.

    The suffix chooses container and codecs. Sound of a rate that the codec does not take is resampled to the next
    that it takes. ``quality`` 1 (best) to 31; ``keyframes``: one picture in so many can be sought. Raises ConfigError
    for arrays, rates or a suffix that cannot be written, MediaError where the file cannot be.
    """
    path = Path(path)
    pictures = np.asarray(video)
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or 0 in pictures.shape:
        raise ConfigError(
            f"video must be uint8 [T,H,W,3] and not empty, not {pictures.dtype} {list(pictures.shape)}.", file=path
        )
    kind = _container(path, "video")
    rate = rational_rate(fps) if 0 < fps <= 1000 else Fraction(0)
    if rate <= 0 or (kind.video == "mpeg2video" and rate not in MPEG2_RATES):
        raise ConfigError(
            f"{path.suffix} cannot hold {fps:g} frames a second.", file=path, hint="Use 24, 25 or 30, or mp4 or mkv."
        )
    wave = None if audio is None else _wave(path, audio, sample_rate)
    with _writing(path, kind.format) as out:
        picture = _video_stream(out, kind, rate, pictures.shape[1:3], quality, keyframes)
        sound = None if wave is None else _audio_stream(out, kind, wave, sample_rate)
        # Interleaved by about a second, so that no reader must look far ahead.
        block = max(1, round(rate))
        sent = 0
        for first in range(0, len(pictures), block):
            for i in range(first, min(first + block, len(pictures))):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pictures[i]), format="rgb24")
                frame.pts, frame.time_base = i, 1 / rate
                out.mux(picture.encode(frame))
            if sound is not None:
                until = round(float((first + block) / rate) * sound.rate)
                sent = _send(out, sound, sent, until)
        out.mux(picture.encode(None))
        if sound is not None:
            _send(out, sound, sent, None)


def write_audio(path: str | Path, audio: np.ndarray | torch.Tensor, rate: int) -> None:
    """Writes ``audio`` float32 [L,C] (or [L]) in [-1, 1]; wav is 16-bit PCM, the others follow the suffix. Raises as
    write_video."""
    path = Path(path)
    kind = _container(path, "audio")
    wave = _wave(path, audio, rate)
    with _writing(path, kind.format) as out:
        _send(out, _audio_stream(out, kind, wave, rate), 0, None)


def write_image(path: str | Path, picture: np.ndarray | torch.Tensor) -> None:
    """Writes ``picture`` uint8 [H,W,3] as .png or .jpg, by the suffix."""
    path = Path(path)
    formats = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
    if path.suffix.lower() not in formats:
        raise ConfigError(f'an image cannot be written as "{path.suffix}".', file=path, hint="Use .png or .jpg.")
    data = encode_image(picture, formats[path.suffix.lower()])
    with _beside(path) as part:
        part.write_bytes(data)


def encode_image(picture: np.ndarray | torch.Tensor, format: str = "png") -> bytes:
    """``picture`` uint8 [H,W,3] as the bytes of a "png" (exact) or "jpeg" (quality about 95) file."""
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ConfigError(f"a picture must be uint8 [H,W,3] and not empty, not {pixels.dtype} {list(pixels.shape)}.")
    codecs = {"png": ("png", "rgb24"), "jpeg": ("mjpeg", "yuvj444p")}
    if format not in codecs:
        raise ConfigError(f'image format "{format}" is unknown.', hint="Use png or jpeg.")
    name, layout = codecs[format]
    context: Any = av.CodecContext.create(name, "w")
    context.height, context.width = pixels.shape[:2]
    context.pix_fmt, context.time_base = layout, Fraction(1, 1)
    if format == "jpeg":
        context.color_range = 2
        context.options = {"qmin": "2", "qmax": "2"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    if format == "jpeg":
        frame = frame.reformat(format=layout, dst_color_range=2)
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def remux_with_offset(source: str | Path, target: str | Path, audio_delay: float) -> None:
    """Copies the streams of ``source`` to ``target``, not re-encoded, with the sound ``audio_delay`` seconds later
    (negative: earlier).

    Only timestamps change: what was encoded stays as it was. The suffix of ``target`` names the container. Raises
    NotMedia, ConfigError where the container does not take these codecs, MediaError where it cannot be written.
    """
    target = Path(target)
    kind = _container(target, "video")
    with MediaFile(source) as file, _writing(target, kind.format) as out:
        copies = {}
        for stream in (file.video, file.audio):
            if stream is not None:
                copies[stream.index] = out.add_stream_from_template(stream)
        # Everything is moved up by the delay of an earlier sound, so that no timestamp is negative.
        shift = {file.video.index: max(0.0, -audio_delay)} if file.video is not None else {}
        if file.audio is not None:
            shift[file.audio.index] = max(0.0, audio_delay)
        for packet in file.container.demux([s for s in (file.video, file.audio) if s is not None]):
            if packet.dts is None:
                continue
            ticks = round(shift[packet.stream_index] / packet.time_base)
            packet.dts += ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.stream = copies[packet.stream_index]
            out.mux(packet)


# ------------------------------------------------------------------------------------------------------------------
# parts
class _Sound(NamedTuple):
    stream: Any
    wave: np.ndarray  # [C, L] float32
    rate: int
    layout: str


def _container(path: Path, use: str) -> Container:
    kind = CONTAINERS.get(path.suffix.lower())
    if kind is None or (use == "video" and kind.video is None):
        known = sorted(suffix for suffix, c in CONTAINERS.items() if use == "audio" or c.video)
        raise ConfigError(f'{use} cannot be written as "{path.suffix}".', file=path, hint=f"Use {', '.join(known)}.")
    return kind


def _wave(path: Path, audio: Any, rate: int | None) -> np.ndarray:
    wave = np.asarray(audio, dtype=np.float32)
    wave = wave[:, None] if wave.ndim == 1 else wave
    if rate is None or not 1000 <= rate <= 400_000:
        raise ConfigError(f"sample_rate={rate} is not a sample rate.", file=path)
    if wave.ndim != 2 or not 1 <= wave.shape[1] <= 8 or len(wave) == 0:
        raise ConfigError(f"audio must be [L,C] with 1 to 8 channels and not empty, not {list(wave.shape)}.", file=path)
    if not np.isfinite(wave).all():
        raise ConfigError("audio has values that are not finite.", file=path)
    return wave


def _video_stream(
    out: Any, kind: Container, rate: Fraction, size: tuple[int, ...], quality: int, keyframes: int
) -> Any:
    stream = out.add_stream(kind.video, rate=rate)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.gop_size = keyframes
    context.thread_count = 1
    if kind.video == "libvpx-vp9":
        level = str(min(63, 4 + 5 * quality))
        context.bit_rate = 0
        context.options = {"crf": level, "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}
    else:
        context.bit_rate = max(200_000, int(size[0] * size[1] * float(rate)))
        context.options = {"qmin": str(quality), "qmax": str(quality)}
    return stream


LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}


def _audio_stream(out: Any, kind: Container, wave: np.ndarray, rate: int | None) -> _Sound:
    assert rate is not None
    allowed = kind.rates or (rate,)
    target = rate if rate in allowed else next((r for r in allowed if r > rate), allowed[-1])
    if target != rate:
        wave = resample(torch.from_numpy(wave), rate, target, dim=0).numpy()
    stream = out.add_stream(kind.audio, rate=target)
    layout = LAYOUTS[wave.shape[1]]
    stream.layout = layout
    if kind.audio in KBITS:
        stream.bit_rate = KBITS[kind.audio] * 500 * max(2, wave.shape[1])
    return _Sound(stream, np.ascontiguousarray(wave.T), target, layout)


def _send(out: Any, sound: _Sound, sent: int, until: int | None) -> int:
    """Encodes the samples up to ``until`` (None: all, and flush); returns how many are sent by now."""
    context = sound.stream.codec_context
    step = context.frame_size or 1024
    length = sound.wave.shape[1]
    stop = length if until is None else min(until // step * step, length)
    while sent < stop:
        chunk = sound.wave[:, sent : min(sent + step, stop)]
        frame = av.AudioFrame.from_ndarray(*as_format(chunk, context.format.name), layout=sound.layout)
        frame.sample_rate, frame.pts, frame.time_base = sound.rate, sent, Fraction(1, sound.rate)
        out.mux(sound.stream.encode(frame))
        sent += chunk.shape[1]
    if until is None:
        out.mux(sound.stream.encode(None))
    return sent


def as_format(wave: np.ndarray, name: str) -> tuple[np.ndarray, str]:
    """[C, n] float32 as the array and the name of a sample format that the encoder takes."""
    if name.startswith("s16") and len(wave) < PLANES:
        whole = np.clip(np.round(wave * 32768.0), -32768, 32767).astype(np.int16)
        if name == "s16p":
            return np.ascontiguousarray(whole), name
        return np.ascontiguousarray(whole.T).reshape(1, -1), "s16"
    if name == "flt" or len(wave) >= PLANES:  # the encoder converts from packed samples itself
        return np.ascontiguousarray(wave.T).reshape(1, -1), "flt"
    return np.ascontiguousarray(wave), "fltp"


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise MediaError(
            f"cannot be written ({reason(error)}).", file=path, hint="Check the folder and the disk."
        ) from None
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path, format: str) -> Iterator[Any]:
    with _beside(path) as part:
        try:
            # bitexact: Matroska would else draw a random identity, and equal clips would be unequal files
            out = av.open(f"file:{part.absolute()}", "w", format=format, container_options={"fflags": "+bitexact"})
            try:
                yield out
            finally:
                out.close()
        except av.FFmpegError as error:
            raise MediaError(
                f"cannot be written ({reason(error)}).", file=path, hint="Check folder and disk."
            ) from None
        except ValueError as error:
            text = f"this container does not take these streams ({reason(error)})."
            raise ConfigError(text, file=path, hint="Use .mkv.") from None
