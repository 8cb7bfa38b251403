"""Where does the sound come from, in files: heat maps over the picture, boxes, and no box where nothing fits.

Each frame is heard with the sound of its window (``avcl.apply.heatmaps``); a window of digital silence has no source.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from avcl.apply.heatmaps import Seen, seen_in_window
from avcl.apply.overlay import Box, as_json, boxes_of, overlaid
from avcl.apply.reading import opened
from avcl.dsp import resize
from avcl.errors import ConfigError, ExistsError, NoAudioStream, NoVideoStream
from avcl.files import write_json
from avcl.media import MediaInfo, probe, read_audio, read_video, write_image, write_video
from avcl.model import Media, Model
from avcl.progress import tracked
from avcl.system import Localizes

Floats = NDArray[np.float32]
PICTURES, VIDEOS = (".png", ".jpg", ".jpeg"), (".mp4", ".mkv", ".mov", ".webm")
MAX_FPS = 25.0  # frames a second of an overlay video, unless asked for more
MAX_BYTES = 1 << 30  # of the frames of an overlay video, which are in memory until it is written
NUMBER = (
    "the largest value of the map in the box: how probable it is that the sound comes from there, as the system "
    "learned it from its training clips with their own and with foreign sounds in equal numbers; on other material it "
    "only ranks"
)


@dataclass(frozen=True)
class Located:
    """What is found in one frame. ``score``: the peak of the map, at ``peak`` (x, y) · ``boxes``: in pixels of the
    frame, none where nothing reaches ``min_p`` · ``heat`` [H, W] at the size of the frame."""

    time: float
    score: float
    peak: tuple[int, int]
    boxes: tuple[Box, ...]
    heat: Floats
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        found = {"time": round(self.time, 6), "score": self.score, "peak": list(self.peak)}
        return {**found, "boxes": as_json([*self.boxes]), **({"reason": self.reason} if self.reason else {})}


def localize_at(model: Model | Media, path: Media, at: float, *, min_p: float = 0.5) -> Located:
    """The source in the frame at ``at`` seconds, heard with the window around it.

    NoAudioStream, NoVideoStream; ConfigError: not in the file; CapabilityError, with the systems that can.
    """
    model, info = _ready(model, path)
    end = _end(info)
    if not 0 <= at < end:
        raise ConfigError(f"{at:g} s is not in the file, whose pictures end at {end:.2f} s.", file=path)
    step, steps = 1 / model.inputs.fps, max(1, round(model.window * model.inputs.fps))
    # Frames of the window before this one: half of them, as far as the ends of the file allow.
    most = min(steps - 1, math.floor(at / step + 1e-6))
    before = min(max(steps // 2, math.ceil((at + model.window - end) / step - 1e-6)), most)
    seen = seen_in_window(model, path, info, at - before * step, per_step=1)
    return _located(seen[min(before, len(seen) - 1)], info, min_p, at)


def localize_span(
    model: Model | Media, path: Media, start: float, end: float, *, fps: float, min_p: float = 0.5
) -> Iterator[Located]:
    """The source in every frame from ``start`` to ``end``, ``fps`` a second. Errors as ``localize_at``."""
    model, info = _ready(model, path)
    per_step = math.ceil(fps / model.inputs.fps - 1e-9)
    grid = model.inputs.fps * per_step
    times = start + np.arange(round((end - start) * fps)) / fps
    done, begin = 0, start
    while done < len(times):
        # The last window ends with the span, so that its frames are heard with as much sound as the others; windows
        # stand on one grid from ``start``.
        steps = math.floor((max(0.0, min(begin, end - model.window)) - start) * grid + 1e-6)
        first = max(0.0, start + steps / grid)
        seen = seen_in_window(model, path, info, first, per_step=per_step)
        instants = np.array([s.time for s in seen])
        while done < len(times) and times[done] < first + model.window - 1e-6:
            near = seen[int(np.abs(instants - times[done]).argmin())]
            yield _located(near, info, min_p, float(times[done]))
            done += 1
        begin = first + model.window


def localize(
    model: Model | Media,
    path: Media,
    *,
    out: Media,
    boxes: Media | None = None,
    at: float | None = None,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    min_p: float = 0.5,
    force: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the overlay of one moment (``at``: a picture) or of a span (a video with its sound) and the boxes as JSON;
    returns what was written, and of a moment what was found.

    ``out``: a picture or video file, or a folder, in which the files are named after ``path``. ``boxes``: default
    ``<out>.json``. Without times: the whole file where a video is asked for, its middle where a picture is. Errors:
    those of ``localize_at``, ExistsError unless ``force``, ConfigError for times or a suffix that do not go together.
    """
    if not 0 <= min_p <= 1:
        raise ConfigError(f"min_p = {min_p:g} is a probability, from 0 to 1.")
    if at is not None and (start is not None or end is not None):
        raise ConfigError("--at is one moment, --start and --end are a span.", hint="Give one or the other.")
    picture, target, table = _targets(Path(out), Path(path), None if boxes is None else Path(boxes), at, start, end)
    for file in (target, table):
        if file.exists() and not force:
            raise ExistsError("is there already.", file=file, hint="Choose another --out, or replace it with --force.")
    model, info = _ready(model, path)
    assert info.video is not None
    about = {"file": str(path), "model": model.fingerprint, "system": model.name, "min_p": min_p, "score": NUMBER}
    about |= {"size": [info.video.width, info.video.height]}
    if picture:
        found = localize_at(model, path, _end(info) / 2 if at is None else at, min_p=min_p)
        frame = read_video(path, start=found.time, end=found.time + 1 / info.video.fps, fps=info.video.fps)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_image(target, overlaid(frame.data[0, 0].permute(1, 2, 0).numpy(), found.heat, [*found.boxes]))
        write_json(table, {**about, "frames": [found.as_dict()]})
        return {"file": str(path), **found.as_dict(), "min_p": min_p, "out": str(target), "boxes_file": str(table)}
    rate = min(info.video.fps, MAX_FPS) if fps is None else fps
    first, last = start or 0.0, _end(info) if end is None else min(end, _end(info))
    if last - first < 1 / rate:
        raise ConfigError(f"there is nothing between {first:g} s and {last:g} s.", file=path)
    frames = _video(model, path, info, (first, last), rate, target, min_p, progress)
    write_json(table, {**about, "fps": rate, "frames": frames})
    there = sum(bool(frame["boxes"]) for frame in frames)
    done = {"file": str(path), "start": first, "end": last, "frames": len(frames), "with_box": there, "min_p": min_p}
    return {**done, "out": str(target), "boxes_file": str(table)}


# -------------------------------------------------------------------------------------------------------------- writing
def _targets(
    out: Path, path: Path, boxes: Path | None, at: float | None, start: float | None, end: float | None
) -> tuple[bool, Path, Path]:
    """Whether a picture is wanted, where the overlay goes, and where the boxes."""
    suffix = out.suffix.lower()
    span = start is not None or end is not None
    if out.is_dir() or not suffix:
        picture = not span and (at is not None)
        target = out / f"{path.stem}{'.png' if picture else '.mp4'}"
    elif suffix in (*PICTURES, *VIDEOS):
        picture, target = suffix in PICTURES, out
        if picture and span:
            raise ConfigError("a span is no picture.", file=out, hint="Give --at, or an --out that ends in .mp4.")
        if not picture and at is not None:
            raise ConfigError("one moment is no video.", file=out, hint="Give --start and --end, or an --out in .png.")
    else:
        known = ", ".join((*PICTURES, *VIDEOS))
        raise ConfigError(f'"{suffix}" is no overlay.', file=out, hint=f"Known: {known}, or a folder.")
    if boxes is not None and (boxes.suffix.lower() != ".json" or boxes.is_dir()):
        raise ConfigError("boxes are written as .json.", file=boxes)
    return picture, target, target.with_name(f"{target.name}.json") if boxes is None else boxes


def _video(
    model: Model,
    path: Media,
    info: MediaInfo,
    span: tuple[float, float],
    rate: float,
    target: Path,
    min_p: float,
    progress: bool,
) -> list[dict[str, Any]]:
    """Write the overlaid frames of the span with their sound; what was found in each."""
    assert info.video is not None
    start, end = span
    # Codecs halve the colors, so sides are even; what is odd loses a line.
    height, width = (n - n % 2 or 2 for n in (info.video.height, info.video.width))
    count = round((end - start) * rate)
    if 3 * height * width * count > MAX_BYTES:
        raise ConfigError(
            f"{end - start:.0f} s of {width} x {height} at {rate:g} frames a second do not fit into memory.",
            file=path,
            hint="Give a shorter span with --start and --end, or a lower --fps.",
        )
    shown = read_video(path, start=start, end=end, fps=rate).data[0, :count, :, :height, :width]
    pictures = shown.permute(0, 2, 3, 1).contiguous().numpy()
    del shown  # one copy is enough
    frames, every = [], localize_span(model, path, start, end, fps=rate, min_p=min_p)
    for i, found in enumerate(tracked(every, count, "localize", shown=progress)):
        frames.append(found.as_dict())
        if i < len(pictures):
            pictures[i] = overlaid(pictures[i], found.heat[:height, :width], [*found.boxes])
    sound = read_audio(path, start=start, end=end)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_video(target, pictures, sound.data[0].numpy(), fps=rate, sample_rate=round(sound.rate))
    return frames[: len(pictures)]


# -------------------------------------------------------------------------------------------------------------- looking
def _ready(model: Model | Media, path: Media) -> tuple[Model, MediaInfo]:
    model = opened(model, Localizes, "say where a sound comes from")
    for name in ("audio", "video"):
        model.require_media(name)
    info = probe(path)
    for name, there, error in (("audio", info.audio, NoAudioStream), ("video", info.video, NoVideoStream)):
        if there is None:
            raise error(f"the file has no {name} stream.", file=path, hint="Give a video with sound.")
    return model, info


def _end(info: MediaInfo) -> float:
    """Seconds to the end of the pictures."""
    return info.duration if info.video is None or info.video.duration is None else info.video.duration


def _located(seen: Seen, info: MediaInfo, min_p: float, time: float) -> Located:
    """A map over the whole picture in pixels of the file, and its boxes, for the frame at ``time``."""
    assert info.video is not None
    size = info.video.height, info.video.width
    heat = resize(torch.from_numpy(seen.heat)[None], size, "stretch")[0].clamp(0, 1).numpy()
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    score = round(float(heat[y, x]), 4)
    boxes = tuple(boxes_of(heat, least=min_p))
    reason = "" if boxes else "there is no sound" if not seen.heard else f"nothing in the picture reaches {min_p:g}"
    return Located(time, score, (int(x), int(y)), boxes, heat, reason)
