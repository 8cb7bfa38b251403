"""Heat maps of a whole file from a model that sees small pictures at a few frames a second.

A picture of another shape than the model's is scaled until the model's fits into it, and looked at in overlapping
parts; where two parts overlap the surer one counts. Frames between those of the model's rate come from the same window
moved by a part of a step, so that a model always gets clips as it was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from avcl.apply.reading import batch_of
from avcl.dsp.picture import margins, scaled_size
from avcl.media import MediaInfo, is_silent, read_clip
from avcl.model import Media, Model
from avcl.types import Clip, Inputs, Stream

Floats = NDArray[np.float32]
AT_ONCE = 16  # clips that the model looks at side by side


class Seen(NamedTuple):
    """One frame: seconds of the file's clock, the map [h, w] in [0, 1] over the whole picture, and whether there was
    any sound."""

    time: float
    heat: Floats
    heard: bool


@torch.inference_mode()
def seen_in_window(model: Model, path: Media, info: MediaInfo, start: float, *, per_step: int) -> list[Seen]:
    """The frames of one window from ``start``, ``per_step`` for each of the model's own; errors as ``read_clip``."""
    inputs = model.inputs
    assert info.video is not None
    rows, columns = scaled_size((info.video.height, info.video.width), inputs.size, inputs.fit)
    rate = inputs.fps * per_step
    stop = min(start + inputs.window + (per_step - 1) / rate, max(info.duration, start + 1 / rate))
    how = {"fps": rate, "size": (rows, columns), "rate": inputs.sample_rate, "channels": inputs.channels}
    clip = read_clip(path, start, stop, fit="stretch", modalities=("audio", "video"), **how)  # type: ignore[arg-type]
    count = clip.streams["video"].mask.shape[1]
    maps, heard = np.zeros((count, rows, columns), np.float32), np.zeros(count, bool)
    moved = ((k, _moved(clip, k, per_step, inputs)) for k in range(min(per_step, count)))
    looks = [(k, place, part) for k, whole in moved for place, part in _parts(whole, inputs)]
    for at in range(0, len(looks), AT_ONCE):
        some = looks[at : at + AT_ONCE]
        batch = batch_of(model, [part for _, _, part in some])
        heat = model.system.heatmap(batch).float().cpu().numpy()  # type: ignore[operator]
        for (k, place, part), found in zip(some, heat, strict=True):
            if is_silent(part.streams["audio"]):
                continue
            for t, i in enumerate(range(k, min(count, k + per_step * len(found)), per_step)):
                heard[i] = True
                np.maximum(maps[i][place.whole], found[t][place.part], out=maps[i][place.whole])
    return [Seen(start + i / rate, maps[i], bool(heard[i])) for i in range(count)]


def _moved(clip: Clip, k: int, per_step: int, inputs: Inputs) -> Clip:
    """The clip as the model would read it from its frame ``k`` on: every ``per_step``-th frame, a window of sound."""
    video, sound = clip.streams["video"], clip.streams["audio"]
    first, steps = round(k / video.rate * sound.rate), max(1, round(inputs.window * inputs.fps))
    length = max(1, round(inputs.window * inputs.sample_rate))
    pictures = Stream(video.data[:, k::per_step][:, :steps], video.mask[:, k::per_step][:, :steps], inputs.fps)
    wave = Stream(sound.data[:, first : first + length], sound.mask[:, first : first + length], sound.rate)
    return Clip(clip.id, {"audio": _filled(wave, length), "video": _filled(pictures, steps)})


def _filled(stream: Stream, steps: int) -> Stream:
    missing = steps - stream.data.shape[1]
    if missing <= 0:
        return stream
    data = torch.cat([stream.data, stream.data.new_zeros(1, missing, *stream.data.shape[2:])], 1)
    return Stream(data, torch.cat([stream.mask, stream.mask.new_zeros(1, missing)], 1), stream.rate)


class Place(NamedTuple):
    """Where a part lies: ``part`` of what the model sees is ``whole`` of the scaled picture."""

    part: tuple[slice, slice]
    whole: tuple[slice, slice]


def _parts(clip: Clip, inputs: Inputs) -> Iterator[tuple[Place, Clip]]:
    """The scaled picture in pieces of the model's size, overlapping where they do not fit evenly; padded where it is
    smaller."""
    video = clip.streams["video"]
    (rows, columns), (height, width) = video.data.shape[-2:], inputs.size
    if rows < height or columns < width:
        top, bottom, left, right = margins((rows, columns), inputs.size)
        data = torch.nn.functional.pad(video.data, (left, right, top, bottom))
        place = Place((slice(top, top + rows), slice(left, left + columns)), (slice(0, rows), slice(0, columns)))
        yield place, _with_picture(clip, data)
        return
    for y in _offsets(rows, height):
        for x in _offsets(columns, width):
            whole = slice(y, y + height), slice(x, x + width)
            yield Place((slice(0, height), slice(0, width)), whole), _with_picture(clip, video.data[..., *whole])


def _offsets(length: int, part: int) -> list[int]:
    count = math.ceil(length / part - 1e-9)
    return [round(i * (length - part) / max(1, count - 1)) for i in range(count)]


def _with_picture(clip: Clip, data: torch.Tensor) -> Clip:
    return Clip(clip.id, {**clip.streams, "video": clip.streams["video"]._replace(data=data)})
