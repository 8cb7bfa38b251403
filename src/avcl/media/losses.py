"""What is missing from a file, and how it is said: one warning with the count, or an error of ``avcl.errors``."""

from __future__ import annotations

import logging

from avcl.errors import MediaError, NoAudioStream, NoVideoStream, TooShort, Truncated
from avcl.media.files import Kind, MediaFile

log = logging.getLogger("avcl.media")

MAX_BYTES = 8 << 30  # of one decoded stream: more is a mistake (a whole film at full size), not a clip
JUMP = 10.0  # seconds past the declared end of the file from which a timestamp is not believed
SHORT = 0.15  # seconds that a header may promise too much (padding of codecs, rounding)


def bounded(amount: float, file: MediaFile, at: float) -> None:
    if amount > MAX_BYTES:
        raise MediaError(
            f"the decoded stream would take more than {MAX_BYTES >> 30} GiB.",
            file=file.path,
            time=at,
            hint="Read a part (start, end), or ask for a smaller size, fps or rate.",
        )


def lost(file: MediaFile, text: str, at: float, strict: bool) -> None:
    if strict:
        raise Truncated(text, file=file.path, time=at, hint="Repair or re-copy it, or read it with strict=False.")
    log.warning(
        "E-TRUNCATED %s at %.3f s: %s They are zeros with mask False, or missing at the end.", file.path, at, text
    )


def nothing(file: MediaFile, kind: Kind, start: float, last: float | None) -> MediaError:
    """Why nothing was decoded from ``start`` on: the file is shorter, its header lies, or it is broken."""
    word = "sound" if kind == "audio" else "video"
    if last is None:
        if (file.declared_end(kind) or 0.0) > 0 or start > 0 or file.last_packet_end(kind) is not None:
            return Truncated(f"nothing of its {word} can be decoded.", file=file.path, hint="Copy or export it again.")
        empty = NoAudioStream if kind == "audio" else NoVideoStream
        return empty(f"its {word} stream is empty.", file=file.path, hint="Record or export it again.")
    declared = promised_end(file, kind, last)
    if start < declared - SHORT:
        text = f"its header promises {declared:.2f} s of {word}, but it ends at {last:.2f} s."
        return Truncated(text, file=file.path, time=start, hint="Ask for a part before that, or copy the file again.")
    text = f"its {word} ends at {last:.2f} s."
    return TooShort(text, file=file.path, time=start, hint="Ask for a part before that.")


def promised_end(file: MediaFile, kind: Kind, last: float) -> float:
    """Clock seconds where the header says that this stream ends, ``last`` where it says nothing that was not found."""
    promised = file.declared_end(kind)
    if promised is None:
        promised = file.declared_file_end()
        if promised is not None and last < promised - SHORT:
            # The header speaks of the longest stream only: another one may reach it.
            other = file.last_packet_end()
            if other is not None and other - file.origin >= promised - SHORT:
                promised = None
    return last if promised is None else promised


def check_end(file: MediaFile, kind: Kind, last: float, end: float | None, strict: bool) -> None:
    """Warns where the stream ends before the time that was asked for and that the header promises."""
    promised = promised_end(file, kind, last)
    wanted = promised if end is None else min(end, promised)
    if wanted - last > SHORT:
        word = "sound" if kind == "audio" else "video"
        lost(file, f"{wanted - last:.2f} s of {word} are missing at the end (of {promised:.2f} s).", last, strict)


def latest(file: MediaFile) -> float:
    """Container seconds up to which timestamps are believed, as far as the header knows the length of the file."""
    return (file.declared_file_end() or 0.0) + file.origin + JUMP


def believed(time: float, expected: float, limit: float) -> float:
    """``time``, or ``expected`` where it lies far from there and outside of the file (``limit``, see ``latest``)."""
    return expected if time > max(expected + JUMP, limit) or time < expected - JUMP else time
