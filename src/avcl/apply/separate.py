"""One sound file for each region of the picture: who is in the box is who is heard.

The model's masks are made at its own sample rate, window by window with overlap-add, and what they cut out is brought
to the rate of the file. ``residual.wav`` is the rest, what lies above the model's band included, so the files add up to
the sound of the file.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from avcl.apply.reading import batch_of, opened
from avcl.dsp import resample, resize
from avcl.errors import ExistsError, NoAudioStream, NoVideoStream, RegionError, TooShort
from avcl.media import MediaInfo, probe, read_audio, read_video, segments, write_audio
from avcl.model import Media, Model
from avcl.system import Separates
from avcl.types import Clip, Inputs, Stream

log = logging.getLogger("avcl.apply")

RESIDUAL = "residual"
ALIKE, SAME = 0.5, 0.95  # intersection over union from which two boxes are warned of, and refused
FULL = 32768  # a 16-bit sample of full scale
BATCH = 8  # windows at a time


class Box(NamedTuple):
    """A region of the upright picture in pixels: from (x0, y0) to before (x1, y1)."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def area(self) -> float:
        return max(0.0, self.x1 - self.x0) * max(0.0, self.y1 - self.y0)

    def overlap(self, other: Box) -> float:
        """Intersection over union."""
        shared = Box(max(self.x0, other.x0), max(self.y0, other.y0), min(self.x1, other.x1), min(self.y1, other.y1))
        return shared.area / (self.area + other.area - shared.area)


def boxes_of(texts: Sequence[str]) -> dict[str, Box]:
    """``["cello=120,80,300,420", ...]`` as {name: Box}; RegionError for anything else, or a name that comes twice."""
    boxes: dict[str, Box] = {}
    for text in texts:
        name, _, numbers = text.partition("=")
        try:
            box = Box(*(float(n) for n in numbers.split(",")))
        except (TypeError, ValueError):
            raise RegionError(f'"{text}" is no region.', hint="Write NAME=x0,y0,x1,y1, in pixels.") from None
        if name in boxes:
            raise RegionError(f'two regions are named "{name}".', hint="Give each source its own name.")
        boxes[name] = box
    return boxes


def separate(
    model: Model | Media,
    path: Media,
    out: Media,
    *,
    boxes: Mapping[str, Box | Sequence[float]],
    start: float | None = None,
    end: float | None = None,
    mono: bool = False,
    force: bool = False,
    batch: int = BATCH,
) -> dict[str, Any]:
    """Write ``out/<name>.wav`` for every box and ``out/residual.wav``, 16-bit at the file's sample rate and channels.

    Returns {file, out, stems {name: path}, residual, sample_rate, channels, seconds, windows, level_db {name: level of
    the stem, dB of the mixture's}, difference_db (mixture minus the sum of all files, dB of full scale), warnings}.
    ``mono``: the mean of the channels alone · ``batch``: windows at a time; it changes no stem.

    RegionError: no box, one outside of the picture, or two that are the same (two that overlap strongly are a warning);
    CapabilityError, NoAudioStream, NoVideoStream, ExistsError (a file is there and ``force`` is not given).
    """
    model, out = opened(model, Separates, "separate the sounds of a file"), Path(out)
    info = _readable(path)
    regions = {name: Box(*box) for name, box in boxes.items()}
    warnings = _checked(regions, info, path)
    files = {name: out / f"{name}.wav" for name in (*regions, RESIDUAL)}
    if not force:
        for file in files.values():
            if file.exists():
                raise ExistsError("is already there.", file=file, hint="Choose another -o, or replace it with --force.")
    whole = read_audio(path, start=start, end=end, channels=1 if mono else None)
    heard = read_audio(path, start=start, end=end, rate=model.inputs.sample_rate, channels=1 if mono else None)
    parts, windows = _parts(model, path, heard, list(regions.values()), start or 0.0, batch)

    rate, steps = round(whole.rate), whole.data.shape[1]
    mixture = (whole.data[0] * FULL).numpy()
    rest = np.round(mixture).astype(np.int32)
    power, levels = float(np.square(mixture, dtype=np.float64).sum()), {}
    out.mkdir(parents=True, exist_ok=True)
    for name, part in zip(regions, parts, strict=True):
        wave = resample(part, heard.rate, whole.rate, dim=0)[:steps]
        stem = _sixteen(pad(wave, (0, 0, 0, steps - len(wave))).numpy() * FULL)
        rest -= stem
        levels[name] = _decibels(float(np.square(stem, dtype=np.float64).sum()), power)
        write_audio(files[name], stem.astype(np.float32) / FULL, rate)
    residual = _sixteen(rest)
    write_audio(files[RESIDUAL], residual.astype(np.float32) / FULL, rate)
    # mixture - (stems + residual), the stems being what the rest has lost of the rounded mixture
    gap = mixture - (np.round(mixture) - rest) - residual
    return {
        "file": str(path),
        "out": str(out),
        "stems": {name: str(files[name]) for name in regions},
        "residual": str(files[RESIDUAL]),
        "sample_rate": rate,
        "channels": whole.data.shape[2],
        "seconds": round(steps / rate, 3),
        "windows": windows,
        "level_db": levels,
        "difference_db": _decibels(float(np.square(gap, dtype=np.float64).sum()), gap.size * FULL**2),
        "warnings": warnings,
    }


def _readable(path: Media) -> MediaInfo:
    info = probe(path)
    if info.audio is None:
        raise NoAudioStream("the file has no audio stream.", file=path, hint="There is nothing to separate.")
    if info.video is None:
        raise NoVideoStream("the file has no video stream.", file=path, hint="The sources are named by their picture.")
    return info


def _checked(regions: Mapping[str, Box], info: MediaInfo, path: Media) -> list[str]:
    """RegionError for regions that cannot be used; what is to be said of the others."""
    assert info.video is not None
    width, height = info.video.width, info.video.height
    how = f"Name each source: --box NAME=x0,y0,x1,y1 in pixels of the picture, {width} x {height}."
    if not regions:
        raise RegionError("no region says whose sound is wanted.", file=path, hint=how)
    for name, box in regions.items():
        if not re.fullmatch(r"[\w][\w .-]*", name) or name == RESIDUAL:
            raise RegionError(f'"{name}" cannot be the name of a stem.', hint="Use letters and digits.")
        inside = 0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height
        if not inside or min(box.x1 - box.x0, box.y1 - box.y0) < 2:
            raise RegionError(f"box {name} {_words(box)} does not lie in the picture.", file=path, hint=how)
    warnings = []
    for (one, a), (two, b) in combinations(regions.items(), 2):
        share = a.overlap(b)
        if share >= SAME:
            raise RegionError(f"boxes {one} and {two} are the same region ({share:.0%}).", file=path, hint=how)
        if share >= ALIKE:
            text = f"W-REGION boxes {one} and {two} overlap {share:.0%}; their stems will be much alike."
            log.warning("%s", text)
            warnings.append(text)
    return warnings


def _words(box: Box) -> str:
    return ",".join(f"{n:g}" for n in box)


# ------------------------------------------------------------------------------------------------------------- windows
def _parts(
    model: Model, path: Media, heard: Stream, boxes: Sequence[Box], start: float, batch: int
) -> tuple[Tensor, int]:
    """The stems [S, T, C] of the sound [1, T, C] at the model's rate, and how many windows were used.

    Windows overlap by half and are faded into each other; the weights of all that cover a sample sum to one.
    """
    steps, window = heard.data.shape[1], model.window
    spans = segments(steps / heard.rate, window, window / 2)
    total = torch.zeros(len(boxes), steps, heard.data.shape[2])
    weight = torch.zeros(steps)
    for first in range(0, len(spans), batch):
        some = spans[first : first + batch]
        for (a, _), made in zip(some, _separated(model, path, heard, boxes, start, some), strict=True):
            at = round(a * heard.rate)
            length = min(made.shape[1], steps - at)
            fade = torch.hann_window(made.shape[1] + 2, periodic=False)[1 : length + 1].clamp(min=1e-4)
            total[:, at : at + length] += made[:, :length] * fade[:, None]
            weight[at : at + length] += fade
    # What the last window leaves uncovered, a twentieth of a window at most, is left to the residual.
    return total / weight.clamp(min=1e-4)[:, None], len(spans)


def _separated(
    model: Model, path: Media, heard: Stream, boxes: Sequence[Box], start: float, spans: Sequence[tuple[float, float]]
) -> list[Tensor]:
    """The stems [S, T', C] of each window, its mixture cut out of the sound that was read once."""
    seen = [_guides(path, model.inputs, boxes, start + a, start + b) for a, b in spans]
    cuts = [slice(round(a * heard.rate), round(b * heard.rate)) for a, b in spans]
    clips = []
    for n, (cut, pictures) in enumerate(zip(cuts, seen, strict=True)):
        sound = Stream(heard.data[:, cut], heard.mask[:, cut], heard.rate)
        streams = {"audio": sound} | {f"video{k}": guide for k, guide in enumerate(pictures)}
        clips.append(Clip(str(n), streams, index=n))
    together = batch_of(model, clips)
    guides = [replace(together, streams={"video": together.streams[f"video{k}"]}) for k in range(len(boxes))]
    system = model.system
    assert isinstance(system, Separates)
    made = system.separate(together.audio, guides).float().cpu()
    return [made[n, :, : clip.streams["audio"].data.shape[1]] for n, clip in enumerate(clips)]


def _guides(path: Media, inputs: Inputs, boxes: Sequence[Box], start: float, end: float) -> list[Stream]:
    """What is seen in each box from start to end, as the model looks at pictures: its frame rate and size."""
    try:
        video = read_video(path, start=start, end=end, fps=inputs.fps)
    except TooShort:  # the sound goes on after the last picture: nothing is seen
        blank = torch.zeros(1, 1, 3, *inputs.size, dtype=torch.uint8)
        return [Stream(blank, torch.zeros(1, 1, dtype=torch.bool), inputs.fps) for _ in boxes]
    return [video._replace(data=cropped(video.data, box, inputs.size)) for box in boxes]


def cropped(pictures: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """uint8 pictures [1, T, 3, H, W] cut to the box and scaled to ``size``; nothing is stretched: where the box has
    another aspect, its border is repeated on both sides.
    """
    x0, y0, x1, y1 = (round(n) for n in box)
    part = pictures[0, :, :, y0:y1, x0:x1]
    height, width = part.shape[2:]
    wanted = size[1] / size[0]
    sides = max(0, round(height * wanted) - width), max(0, round(width / wanted) - height)
    margins = (sides[0] // 2, sides[0] - sides[0] // 2, sides[1] // 2, sides[1] - sides[1] // 2)
    whole = pad(part.float(), margins, mode="replicate")
    return resize(whole, size, "stretch").round().clamp(0, 255).to(torch.uint8)[None]


# --------------------------------------------------------------------------------------------------------------- levels
def _sixteen(wave: np.ndarray) -> np.ndarray:
    """What a 16-bit file can hold of it."""
    return np.clip(np.round(wave), -FULL, FULL - 1).astype(np.int32)


def _decibels(power: float, full: float) -> float | None:
    """Power in dB of full; None for nothing at all."""
    return round(10 * math.log10(power / full), 1) if power > 0 and full > 0 else None
