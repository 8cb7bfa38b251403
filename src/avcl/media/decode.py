"""Sound and pictures of a file on one clock.

t = 0 is the first video frame (the file's own start where it has no video). What lies before t = 0 is not returned
unless ``start`` is negative; a stream that begins later is led by zeros with mask False; a stream that ends earlier is
shorter. Segments are read by seeking. What could not be decoded is zeros with mask False and one warning with the
count; ``strict=True`` raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
import torch

from avcl.dsp.picture import Fit
from avcl.errors import ConfigError, MediaError, NotMedia, TooShort, Truncated
from avcl.media.clock import slots_before
from avcl.media.files import Kind, MediaFile, translated
from avcl.media.losses import log
from avcl.media.pictures import pictures_of
from avcl.media.sound import sound_of
from avcl.types import Clip, Inputs, Source, Stream


def read_video(
    path: str | Path,
    *,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    strict: bool = False,
) -> Stream:
    """v[i] = the frame shown at ``start + i / fps``: a Stream with data uint8 [1,T,3,H,W], upright, RGB.

    ``fps``: frames a second of the grid; None is the average rate of the file. ``size`` (height, width): scaled with
    area averaging and, by ``fit``, "crop"ped or "pad"ded about the center or "stretch"ed; None keeps the size of the
    file. Pixels are taken as square. A slot takes the latest frame whose timestamp is not later (within one tick of
    the container, at most 1 ms), so variable frame rate and B-frames need no care. T is the number of slots before
    ``end`` or the end of the video. An image gives T = 1.

    Raises MissingFile, NotMedia, NoVideoStream, TooShort (``start`` is past the end), Truncated (nothing of the part
    can be decoded, or, with ``strict``, not all of it), ConfigError.
    """
    with MediaFile(path) as file, _guarded(file):
        return pictures_of(file, _span(start, end), fps, size, fit, strict)


def read_audio(
    path: str | Path,
    *,
    start: float | None = None,
    end: float | None = None,
    rate: float | None = None,
    channels: int | None = None,
    strict: bool = False,
) -> Stream:
    """a[i] = the sound at ``start + i / rate``: a Stream with data float32 [1,T,C] in [-1, 1].

    ``rate``: samples a second, by resampling; None keeps that of the file. ``channels``: 1 is the mean of all, 2 a
    stereo mix (ITU-R BS.775 for surround), None keeps all. Gaps between timestamps are zeros with mask False. A
    segment equals the slice of the whole file, to the sample, where the container keeps exact times (within 1 ms in
    mkv and webm with Vorbis).

    Digital silence in the whole file is one warning; with ``strict`` it raises Silent. Raises further MissingFile,
    NotMedia, NoAudioStream, TooShort, Truncated, ConfigError as ``read_video``.
    """
    with MediaFile(path) as file, _guarded(file):
        return sound_of(file, _span(start, end), rate, channels, strict)


def read_inputs(
    path: str | Path,
    inputs: Inputs,
    start: float | None = None,
    end: float | None = None,
    *,
    modalities: Sequence[str] | None = None,
) -> Clip:
    """``read_clip`` decoded as ``inputs`` say: its frame rate, size and fit, sample rate and channels."""
    return read_clip(
        path,
        start,
        end,
        fps=inputs.fps,
        size=inputs.size,
        fit=inputs.fit,
        rate=inputs.sample_rate,
        channels=inputs.channels,
        modalities=modalities,
    )


def read_clip(
    path: str | Path,
    start: float | None = None,
    end: float | None = None,
    *,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    rate: float | None = None,
    channels: int | None = None,
    modalities: Sequence[str] | None = None,
    strict: bool = False,
) -> Clip:
    """``read_video`` and ``read_audio`` of the same seconds, as a Clip with the streams "video" and "audio".

    ``modalities``: what must be there; None takes what the file has. A stream that has nothing in this part of the
    file while the other has is zeros with mask False over the part. Errors as the two readers.
    """
    span = _span(start, end)
    if modalities is not None and (not modalities or set(modalities) - {"audio", "video"}):
        raise ConfigError(f"modalities={list(modalities)} is not understood.", hint='Use "audio", "video" or both.')
    with MediaFile(path) as file, _guarded(file):
        kinds: tuple[Kind, ...] = ("video", "audio")
        wanted = [kind for kind in kinds if modalities is None or kind in modalities]
        if modalities is None:
            wanted = [kind for kind in wanted if file.has(kind)]
        streams: dict[Kind, Stream] = {}
        missing: dict[Kind, MediaError] = {}
        for kind in wanted:
            try:
                if kind == "video":
                    streams[kind] = pictures_of(file, span, fps, size, fit, strict)
                else:
                    streams[kind] = sound_of(file, span, rate, channels, strict)
            except (TooShort, Truncated, NotMedia) as problem:
                # A missing end or a broken stream of one kind does not spoil the other, unless it was asked for by
                # name.
                if strict or (modalities is not None and not isinstance(problem, TooShort)):
                    raise
                missing[kind] = problem
        if not streams:
            raise next(iter(missing.values()))
        for kind, error in missing.items():
            if isinstance(error, TooShort):
                seconds = max(stream.data.shape[1] / stream.rate for stream in streams.values())
                streams[kind] = _blank(file, kind, seconds, fps, size, rate, channels)
            else:
                log.warning("%s", error)
        ordered: dict[str, Stream] = {kind: streams[kind] for kind in reversed(kinds) if kind in streams}
        where = Source(str(path), start, end)
        return Clip(id=file.path.stem, streams=ordered, source=where)


def _span(start: float | None, end: float | None) -> tuple[float | None, float | None]:
    for name, value in (("start", start), ("end", end)):
        if value is not None and not abs(value) < 1e9:
            raise ConfigError(f"{name}={value} is not a time in seconds.")
    if end is not None and end <= (start or 0.0):
        raise ConfigError(f"start={start or 0.0:g} s is not before end={end:g} s.")
    return start, end


@contextmanager
def _guarded(file: MediaFile) -> Iterator[None]:
    with translated(file.path, errors=(av.FFmpegError,)):
        try:
            yield
        except MemoryError:
            raise NotMedia("needs more memory than there is.", file=file.path, hint="Read a shorter part.") from None


def _blank(
    file: MediaFile,
    kind: Kind,
    seconds: float,
    fps: float | None,
    size: tuple[int, int] | None,
    rate: float | None,
    channels: int | None,
) -> Stream:
    """Zeros with mask False over ``seconds``, in the shape that the stream would have had."""
    if kind == "video":
        grid = fps or file.frame_rate()
        context = file.video.codec_context
        shape: tuple[int, ...] = (3, *(size or (context.height, context.width)))
        dtype = torch.uint8
    else:
        grid = rate or float(file.audio.rate)
        shape, dtype = (channels or file.audio.codec_context.layout.nb_channels,), torch.float32
    steps = slots_before(seconds, start=0.0, rate=grid)
    return Stream(torch.zeros(1, steps, *shape, dtype=dtype), torch.zeros(1, steps, dtype=torch.bool), float(grid))
