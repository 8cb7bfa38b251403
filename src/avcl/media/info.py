"""What a media file holds, on the one clock."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avcl.media.files import Kind, MediaFile, translated
from avcl.media.frames import samples_of


@dataclass(frozen=True)
class VideoInfo:
    """The video stream that counts. ``height`` and ``width`` are those of the upright picture; ``fps`` the average
    rate;
    ``rotation`` degrees by which it was turned; ``duration`` seconds; ``frames`` decoded (None unless scanned)."""

    codec: str
    width: int
    height: int
    fps: float
    rotation: int
    duration: float | None
    frames: int | None = None


@dataclass(frozen=True)
class AudioInfo:
    """The audio stream that counts. ``start``: seconds of the clock where it begins (negative: before the first
    picture);
    ``samples`` decoded and their ``rms`` (None unless scanned)."""

    codec: str
    rate: int
    channels: int
    layout: str
    start: float
    duration: float | None
    samples: int | None = None
    rms: float | None = None


@dataclass(frozen=True)
class MediaInfo:
    """``duration``: seconds from t = 0 to the last packet, as found in the file (0 for an image) ·
    ``header_duration``: what the
    header says, None where it says nothing · ``offset``: container seconds of t = 0 · ``damaged``: places that a scan
    could not decode (None unless scanned)."""

    path: str
    container: str
    duration: float
    header_duration: float | None
    offset: float
    streams: tuple[str, ...]
    video: VideoInfo | None = None
    audio: AudioInfo | None = None
    damaged: int | None = None
    is_image: bool = False


def probe(path: str | Path, *, scan: bool = False) -> MediaInfo:
    """What ``path`` holds. Reads headers, the first frames and the last packets; ``scan`` decodes everything and
    counts it.

    Raises MissingFile, NotMedia.
    """
    with MediaFile(path) as file, translated(file.path):
        origin = file.origin
        name = file.container.format.name
        kinds = tuple(stream.type for stream in file.container.streams)
        header = file.declared_file_end()
        rotation = 0
        counted: dict[Kind, _Count] = {}
        if file.has("video"):
            first = next(file.frames("video"), None)
            rotation = int(first.frame.rotation) if first is not None and first.frame is not None else 0
        start = 0.0
        if file.has("audio"):
            first = next(file.frames("audio"), None)
            start = first.time - origin if first is not None else 0.0
        if scan:
            kind: Kind
            for kind in ("video", "audio"):
                if file.has(kind):
                    counted[kind] = _count(file, kind)
        image = file.is_image
        end = None if image else file.last_packet_end()
        ends: dict[Kind, float | None] = {}
        for kind in ("video", "audio"):
            if file.has(kind):
                known = counted[kind].end - origin if kind in counted else file.declared_end(kind)
                ends[kind] = 0.0 if image else known
        duration = max([e for e in (None if end is None else end - origin,) if e is not None], default=0.0)
        if counted and not image:
            duration = max(count.end for count in counted.values()) - origin
        return MediaInfo(
            path=str(path),
            container=name,
            duration=max(0.0, duration),
            header_duration=None if image else header,
            offset=origin,
            streams=kinds,
            video=_video_info(file, rotation, ends.get("video"), counted.get("video")),
            audio=_audio_info(file, start, ends.get("audio"), counted.get("audio")),
            damaged=sum(count.damaged for count in counted.values()) if scan else None,
            is_image=image,
        )


def _video_info(file: MediaFile, rotation: int, end: float | None, count: _Count | None) -> VideoInfo | None:
    if file.video is None:
        return None
    context = file.video.codec_context
    width, height = context.width, context.height
    if rotation % 180:
        width, height = height, width
    fps = 1.0 if file.is_image else file.frame_rate()
    return VideoInfo(context.codec.name, width, height, fps, rotation, end, None if count is None else count.number)


def _audio_info(file: MediaFile, start: float, end: float | None, count: _Count | None) -> AudioInfo | None:
    if file.audio is None:
        return None
    context = file.audio.codec_context
    duration = None if end is None else end - start
    more: dict[str, Any] = {} if count is None else {"samples": count.number, "rms": count.rms}
    return AudioInfo(
        context.codec.name, context.rate, context.layout.nb_channels, context.layout.name, start, duration, **more
    )


@dataclass
class _Count:
    number: int = 0
    end: float = 0.0
    damaged: int = 0
    square: float = 0.0
    values: int = 0

    @property
    def rms(self) -> float:
        return float(np.sqrt(self.square / self.values)) if self.values else 0.0


def _count(file: MediaFile, kind: Kind) -> _Count:
    count = _Count(end=file.origin)
    layout = ""
    for timed in file.frames(kind):
        count.damaged += timed.damaged
        if timed.frame is None:
            continue
        count.end = max(count.end, timed.time + timed.length)
        if kind == "video":
            count.number += 1
            continue
        layout = layout or timed.frame.layout.name
        if timed.frame.layout.name != layout:
            count.damaged += 1
            continue
        wave = samples_of(timed.frame, file.path).astype(np.float64)
        count.number += wave.shape[1]
        count.square += float((wave * wave).sum())
        count.values += wave.size
    return count
