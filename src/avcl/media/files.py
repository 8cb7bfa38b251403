"""An open media file: which streams count, where t = 0 is, and decoded frames with their times, from the start or
from a seek.

Nothing of PyAV leaves this room: its errors become those of ``avcl.errors``, its log is off, and only local files of
the formats listed here are opened (a playlist in disguise must not make us read other files or the network).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import torch
from av.stream import Discard

from avcl.errors import MissingFile, NotMedia, Truncated

Kind = Literal["audio", "video"]

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".flv", ".gif"}
)
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff"})
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
MEDIA_SUFFIXES = VIDEO_SUFFIXES | AUDIO_SUFFIXES | IMAGE_SUFFIXES

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,gif,asf,h264,hevc,m4v,ivf,"
    "wav,w64,flac,ogg,mp3,aac,aiff,caf,au,ac3,eac3,amr,"
    "image2,jpeg_pipe,png_pipe,bmp_pipe,webp_pipe"
)
MAX_PIXELS = 1 << 27  # one picture: 134 million pixels (a 16k frame); a header that claims more is damaged or an attack
MAX_ERRORS = 200  # refused packets in a row before a stream is given up
# Containers whose pictures carry no presentation time: the frames stand in the order of the decoder, one for each
# packet.
WITHOUT_PTS = frozenset({"avi", "h264", "hevc", "m4v", "mpegvideo"})
BACK = {
    "video": (0.0, 2.0, 10.0),
    "audio": (0.5, 2.0, 4.0, 10.0),
}  # seconds before the wanted time, first try and next tries
WARM = {
    "video": 0.0,
    "audio": 0.25,
}  # seconds a decoder runs before its output counts (MP3 reservoir, Opus, AAC overlap)
# Containers whose index makes a seek to the start exact; the others are opened again.
INDEXED = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "wav"})
# Streams in which a seek may land inside of a frame: the first packet after it is a fragment, and timestamps are
# guesses until the next packet that begins a block of the container (it has a position).
FRAGMENTS = frozenset({"mpeg", "mpegts", "mpegvideo", "h264", "hevc", "m4v"})
BACKWARD = 10.0  # seconds by which the second frame may be earlier than the first before the first is not believed
THREADED_PIXELS = 320 * 240  # starting threads costs more than it saves on smaller pictures


class Timed(NamedTuple):
    """A decoded frame, its time and length in seconds of the container, and whether something was lost just before
    it."""

    time: float
    length: float
    frame: Any
    damaged: bool


# What PyAV raises of its own and of Python's, for damaged content.
PYAV_ERRORS = (av.FFmpegError, ValueError, LookupError, OverflowError, RuntimeError)


@contextmanager
def translated(path: Path, *, errors: tuple[type[Exception], ...] = PYAV_ERRORS) -> Iterator[None]:
    """Errors of PyAV, and of Python inside PyAV, as NotMedia."""
    try:
        yield
    except errors as error:
        text = f"cannot be decoded ({reason(error)})."
        raise NotMedia(text, file=path, hint="Re-encode it, or leave it out.") from None


def reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:80]


def checked(path: str | Path) -> Path:
    """The path of a file that exists, is a file, may be read and is not empty."""
    path = Path(path)
    try:
        if not path.exists():
            raise MissingFile("there is no such file.", file=path, hint="Check the path.")
        if path.is_dir():
            raise NotMedia("is a folder, not a media file.", file=path, hint="Name a file in it.")
        with path.open("rb") as stream:
            if not stream.read(1):
                raise NotMedia("is empty (0 bytes).", file=path, hint="Copy or download it again.")
    except PermissionError:
        raise MissingFile("may not be read.", file=path, hint="Check its permissions.") from None
    except (OSError, ValueError) as error:
        raise MissingFile(f"cannot be opened ({reason(error)}).", file=path, hint="Check the path.") from None
    return path


def first_bytes(path: Path) -> str:
    with path.open("rb") as stream:
        return ascii(stream.read(8).decode("latin-1"))


class MediaFile:
    """An open file. ``has("audio")``, ``origin`` (container seconds of t = 0), ``frames(kind, at)``; a context manager.

    ``decoded`` counts the frames that came out of the decoders: what a seek saves can be measured.
    """

    def __init__(self, path: str | Path):
        self.path = checked(path)
        self.decoded = 0
        self._origin: float | None = None
        self._open()
        if self.video is None and self.audio is None:
            kinds = ", ".join(sorted({s.type for s in self.container.streams})) or "none"
            self.close()
            raise NotMedia(f"has no sound and no pictures that can be decoded (streams: {kinds}).", file=self.path)

    # ------------------------------------------------------------------------------------------------ opening, choosing
    def _open(self) -> None:
        # "file:" keeps a name such as "concat:..." or "http:..." from being taken for a protocol.
        try:
            self.container = av.open(
                f"file:{self.path.absolute()}",
                metadata_errors="replace",
                options={"format_whitelist": FORMATS, "protocol_whitelist": "file", "pattern_type": "none"},
            )
        except PYAV_ERRORS as error:
            raise NotMedia(
                f"is not a media file that can be opened ({reason(error)}; first bytes {first_bytes(self.path)}).",
                file=self.path,
                hint="Convert it to mp4, mkv, webm, wav or flac, or leave it out.",
            ) from None
        self.video = self._best("video")
        self.audio = self._best("audio")
        self._fresh = True
        for stream in (self.video, self.audio):
            if stream is not None:
                stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        if self.video is not None:
            context = self.video.codec_context
            if context.width * context.height >= THREADED_PIXELS:
                context.thread_type = "AUTO"
                context.thread_count = min(torch.get_num_threads(), 8)
            else:
                context.thread_count = 1

    def _best(self, kind: Kind) -> Any:
        """The stream a player would choose; cover art is not a video."""

        def counts(stream: Any) -> bool:
            if stream is None or stream.codec_context is None:
                return False
            return not stream.disposition & av.stream.Disposition.attached_pic

        with translated(self.path):
            best = self.container.streams.best(kind)
            if counts(best):
                return best
            return next((s for s in getattr(self.container.streams, kind) if counts(s)), None)

    def close(self) -> None:
        self.container.close()

    def __enter__(self) -> MediaFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def has(self, kind: Kind) -> bool:
        return self.stream(kind) is not None

    def stream(self, kind: Kind) -> Any:
        return self.video if kind == "video" else self.audio

    @property
    def is_image(self) -> bool:
        name = self.container.format.name
        return name == "image2" or name.endswith("_pipe")

    def tick(self, kind: Kind) -> float:
        base = self.stream(kind).time_base
        return float(base) if base else 0.0

    # -------------------------------------------------------------------------------------------------------- the clock
    @property
    def origin(self) -> float:
        """Container seconds of t = 0: the first video frame, or the start of the sound where there is no video."""
        if self._origin is None:
            kind: Kind = "video" if self.video is not None else "audio"
            first = next(self.frames(kind), None)
            if first is None and kind == "video" and self.audio is not None:
                first = next(self.frames("audio"), None)
            self._set_origin(first)
        assert self._origin is not None
        return self._origin

    def _set_origin(self, first: Timed | None) -> None:
        if self._origin is not None:
            return
        self._origin = 0.0 if first is None else first.time
        stream = self.video if self.video is not None else self.audio
        if (first is None or first.damaged) and stream.start_time is not None and stream.time_base:
            # The first pictures are lost: the header still says when they were due.
            self._origin = min(float(stream.start_time * stream.time_base), self._origin if first else float("inf"))

    def declared_end(self, kind: Kind) -> float | None:
        """Seconds of the clock where the header says that this stream ends; None where it says nothing."""
        stream = self.stream(kind)
        if stream.duration is not None and stream.duration > 0 and stream.time_base:
            return float((stream.duration + (stream.start_time or 0)) * stream.time_base) - self.origin
        return None

    def declared_file_end(self) -> float | None:
        """Seconds of the clock where the header says that the whole file ends."""
        if not self.container.duration or self.container.duration < 0:
            return None
        return (self.container.duration + (self.container.start_time or 0)) / av.time_base - self.origin

    def frame_rate(self) -> float:
        """Average frames a second of the video, from the header; 25 where it says nothing that can be believed."""
        for rate in (self.video.average_rate, self.video.guessed_rate, self.video.base_rate):
            if rate and 0.05 <= float(rate) <= 1000:
                return float(rate)
        return 25.0

    # ----------------------------------------------------------------------------------------------------------- frames
    def frames(self, kind: Kind, at: float | None = None) -> Iterator[Timed]:
        """Decoded frames in order of time: from the start of the file, or (``at``, container seconds) from a seek.

        After a seek the first frame begins no later than ``at`` and the decoder is warm; where the format cannot do
        that, frames come from the start of the file. A broken packet is skipped and the next frame is marked
        ``damaged``.
        """
        if at is not None:
            for back in BACK[kind]:
                found = self._seek(kind, at, back)
                if found is not None:
                    yield from found
                    return
        yield from self._from_start(kind)

    def _from_start(self, kind: Kind) -> Iterator[Timed]:
        if not self._fresh:
            self._rewind(kind)
        found = self._decode(kind)
        first = next(found, None)
        if first is None:
            return
        second = next(found, None)
        if second is not None and second.time < first.time - BACKWARD:  # all others would be before it: it lies
            first = first._replace(time=second.time - first.length, damaged=True)
        if kind == ("video" if self.video is not None else "audio"):
            self._set_origin(first)
        yield first
        if second is not None:
            yield second
        yield from found

    def _rewind(self, kind: Kind) -> None:
        stream = self.stream(kind)
        if self.container.format.name in INDEXED and stream.time_base:
            self._only(stream)
            with suppress(*PYAV_ERRORS):
                self.container.seek(min(0, stream.start_time or 0) - int(10 / stream.time_base), stream=stream)
                return
        self.container.close()
        self._open()

    def _seek(self, kind: Kind, at: float, back: float) -> Iterator[Timed] | None:
        stream = self.stream(kind)
        start = float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0
        target = at - back
        if self.is_image or not stream.time_base or target <= start:
            return None
        self._only(stream)  # before the seek, which reads timestamps of this stream
        try:
            self.container.seek(int(target / stream.time_base), stream=stream)
        except PYAV_ERRORS:
            return None
        found = self._decode(kind, whole=self.container.format.name not in FRAGMENTS)
        for timed in found:
            if timed.frame is None:
                return None
            if kind == "video" and not timed.frame.key_frame:
                continue  # pictures before the first key frame lean on ones that were not read
            return _chained(timed._replace(damaged=False), found) if timed.time <= at - WARM[kind] else None
        return None

    def _decode(self, kind: Kind, *, whole: bool = True) -> Iterator[Timed]:
        """Frames from where the container stands now; unless this is a ``whole`` packet, from the next block of the
        container."""
        stream = self.stream(kind)
        self._only(stream)
        heads = 0 if whole else 2
        tick = self.tick(kind)
        usual = 1.0 / self.frame_rate() if kind == "video" else 0.0
        by_order = kind == "video" and self.container.format.name in WITHOUT_PTS
        if by_order and not 0.001 <= tick * self.frame_rate() <= 1000:
            tick = usual  # the header's length of a frame cannot be believed, only that frames follow each other
        queue: deque[int] = deque()  # decoding times of the packets whose frames have not come out yet
        damaged = False
        last: Timed | None = None
        for packet in self._packets(stream):
            if packet is None:
                damaged = True
                continue
            if heads and packet.size:
                heads -= packet.pos is not None
                if heads:
                    continue
            if packet.dts is not None and packet.size:
                queue.append(packet.dts)
            try:
                frames = packet.decode()
            except av.EOFError:
                return
            except (*PYAV_ERRORS, MemoryError):
                damaged = True
                if queue:
                    queue.popleft()
                continue
            for frame in frames:
                self.decoded += 1
                order = queue.popleft() if queue else None
                stamp = order if by_order or (frame.pts is None and last is None) else frame.pts
                if kind == "audio":
                    length = frame.samples / frame.sample_rate if frame.sample_rate else 0.0
                else:
                    length = frame.duration * tick if frame.duration else usual
                    length = length if length < 10 * usual + 1 else usual
                time = stamp * tick if stamp is not None else (0.0 if last is None else last.time + last.length)
                last = Timed(time, length, frame, damaged or frame.is_corrupt)
                damaged = False
                yield last
        if damaged and last is not None:
            yield Timed(last.time + last.length, 0.0, None, True)

    def _only(self, *streams: Any) -> None:
        """Lets the demuxer skip everything but these streams."""
        self._fresh = False
        wanted = {stream.index for stream in streams}
        for stream in self.container.streams:
            stream.discard = Discard.default if stream.index in wanted else Discard.all

    def _packets(self, stream: Any) -> Iterator[Any]:
        """Packets up to the flushing one; None stands for a place where the file could not be read."""
        errors = 0
        while errors < MAX_ERRORS:
            try:
                for packet in self.container.demux(stream):
                    if packet.size:
                        errors = 0
                    yield packet
                return
            except PYAV_ERRORS:
                errors += 1
                yield None
        raise Truncated("cannot be read on: the file is damaged from here.", file=self.path)

    def last_packet_end(self, kind: Kind | None = None) -> float | None:
        """Container seconds where the last packet (of one kind, or of any stream) ends: what is really in the file.

        Looks near the declared end first and reads every packet (without decoding) only where nothing is found there.
        """
        chosen = [s for s in (self.video, self.audio) if s is not None and (kind is None or s is self.stream(kind))]
        self._only(*chosen)
        end = (self.container.duration or 0) + (self.container.start_time or 0)
        if end > 5 * av.time_base and self.container.format.name not in WITHOUT_PTS:
            with suppress(*PYAV_ERRORS):
                self.container.seek(end - av.time_base)
                found = self._packet_ends(chosen)
                if len(found) == len(chosen):
                    return max(found.values())
        self.container.close()
        self._open()
        chosen = [s for s in (self.video, self.audio) if s is not None and (kind is None or s is self.stream(kind))]
        self._only(*chosen)
        found = self._packet_ends(chosen)
        return max(found.values(), default=None)

    def _packet_ends(self, chosen: list[Any]) -> dict[int, float]:
        ends: dict[int, float] = {}
        with suppress(*PYAV_ERRORS):
            for packet in self.container.demux(*chosen):
                stamp = packet.dts if packet.pts is None else packet.pts
                if packet.size and stamp is not None and packet.time_base:
                    end = float((stamp + (packet.duration or 0)) * packet.time_base)
                    ends[packet.stream_index] = max(end, ends.get(packet.stream_index, end))
        return ends


def _chained(first: Timed, rest: Iterator[Timed]) -> Iterator[Timed]:
    yield first
    yield from rest
