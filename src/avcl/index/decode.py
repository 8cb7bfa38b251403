"""From a media file to segments: decoded once, in chunks of bounded size, and sliced."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from avcl.errors import TooShort, Truncated
from avcl.media import IMAGE_SUFFIXES, is_silent, probe, read_inputs, segments
from avcl.types import Clip, Inputs, Source, Stream

log = logging.getLogger("avcl.index")

CHUNK_BYTES = 64 << 20  # of decoded pictures and sound
CHUNK_SECONDS = 120.0


class Piece(NamedTuple):
    """One segment: seconds of the file's clock, whether its sound is digital silence, and the streams that hold
    something.
    """

    start: float
    end: float
    silent: bool
    clip: Clip


class Chunk(NamedTuple):
    """The next segments of a file. ``duration``: seconds known so far · ``done``: these are the last ones ·
    ``reached``: the number of the segment to go on with."""

    pieces: list[Piece]
    duration: float
    done: bool
    reached: int


def chunks(
    path: Path, inputs: Inputs, modalities: tuple[str, ...], segment: float, hop: float, *, first: int = 0
) -> Iterator[Chunk]:
    """The segments of ``path`` from number ``first`` on. Raises what ``read_clip`` raises where nothing can be used.

    A part in the middle of a long file that cannot be decoded is left out with a warning.
    """
    height, width = inputs.size
    per_second = 3 * height * width * inputs.fps + 4 * inputs.channels * inputs.sample_rate
    span = max(segment + hop, min(CHUNK_SECONDS, CHUNK_BYTES / per_second))
    wanted = None if set(modalities) == {"audio", "video"} else modalities
    if first == 0:
        clip = read_inputs(path, inputs, None, span, modalities=wanted)
        still = path.suffix.lower() in IMAGE_SUFFIXES
        duration = 0.0 if still else max(s.duration for s in clip.streams.values())
        if duration < span - 1.0 / inputs.fps:
            parts = [(0.0, 0.0)] if still else segments(duration, segment, hop)
            pieces = _slice(clip, 0.0, parts, path)
            if not pieces:
                raise Truncated("nothing of it can be decoded.", file=path, hint="Copy or export it again.")
            yield Chunk(pieces, duration, True, len(parts))
            return
        del clip
    duration = probe(path).duration
    parts = segments(duration, segment, hop, first=first)
    at, any_yet = 0, first > 0
    while at < len(parts):
        begin = parts[at][0]
        stop = at + 1
        while stop < len(parts) and parts[stop][1] - begin <= span:
            stop += 1
        pieces = []
        try:
            pieces = _slice(
                read_inputs(path, inputs, begin, parts[stop - 1][1], modalities=wanted), begin, parts[at:stop], path
            )
        except (TooShort, Truncated) as error:
            if not any_yet and stop == len(parts):
                raise
            log.warning("%s Segments from %.1f to %.1f s are left out.", error, begin, parts[stop - 1][1])
        any_yet = any_yet or bool(pieces)
        at = stop
        if at == len(parts) and not any_yet:
            raise Truncated("nothing of it can be decoded.", file=path, hint="Copy or export it again.")
        yield Chunk(pieces, duration, at == len(parts), first + at)
    if not parts:
        yield Chunk([], duration, True, first)


def _slice(clip: Clip, begin: float, parts: list[tuple[float, float]], path: Path) -> list[Piece]:
    """The parts of a clip that begins at ``begin``; a step belongs to the segment whose start is nearest, to half a
    step.
    """
    pieces = []
    for start, end in parts:
        streams: dict[str, Stream] = {}
        silent = False
        for name, stream in clip.streams.items():
            first = round((start - begin) * stream.rate)
            count = max(1, round((end - start) * stream.rate))
            part = Stream(stream.data[:, first : first + count], stream.mask[:, first : first + count], stream.rate)
            if not part.mask.any():
                continue
            if name == "audio" and is_silent(part):
                silent = True
                continue
            streams[name] = part
        if streams or silent:
            source = Source(str(path), start, end)
            pieces.append(Piece(start, end, silent, Clip(f"{path.stem}@{start:g}", streams, source=source)))
    return pieces
