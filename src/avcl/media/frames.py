"""Decoded frames to arrays: pictures scaled by swscale straight to the size that is wanted, sound to float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter

from avcl.dsp.picture import Fit, margins, resize, scaled_size
from avcl.errors import ConfigError, NotMedia
from avcl.media.files import PYAV_ERRORS, reason

MAX_PIXELS_OUT = 1 << 27


class PictureMaker:
    """``make(frame)`` -> uint8 [3, H, W], upright, at ``size`` (None: the size of the first frame).

    One call of swscale does color, scaling (area averaging, so that small pictures do not alias) and the copy; what a
    crop does not show is cut afterwards. Transparent pictures are laid on white.
    """

    def __init__(self, size: tuple[int, int] | None, fit: Fit, path: Path):
        self.size, self.fit, self.path = size, fit, path
        self.reformatter = VideoReformatter()
        if size is not None:
            scaled_size((1, 1), size, fit)
            if size[0] * size[1] > MAX_PIXELS_OUT:
                raise ConfigError(f"a picture of {size[0]} x {size[1]} pixels is too large.")

    def make(self, frame: Any) -> np.ndarray:
        turns = round(frame.rotation / 90) % 4  # counterclockwise quarter turns
        height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        if self.size is None:
            self.size = (height, width)
        if frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components):
            return self._transparent(frame, turns)
        rows, columns = scaled_size((height, width), self.size, self.fit)
        if self.fit == "crop":  # swscale is twice as fast on even sizes; the odd pixel is cut
            rows, columns = (
                n + n % 2 if n > wanted else n for n, wanted in zip((rows, columns), self.size, strict=True)
            )
        if rows * columns > MAX_PIXELS_OUT:
            raise NotMedia(f"a picture of {height} x {width} cannot be fitted to {self.size}.", file=self.path)
        across, down = (rows, columns) if turns % 2 else (columns, rows)
        picture: Any = self.reformatter.reformat(
            frame, width=across, height=down, format="rgb24", interpolation=Interpolation.AREA, threads=1
        ).to_ndarray()
        if turns:
            picture = np.rot90(picture, turns)
        top, bottom, left, right = margins((rows, columns), self.size)
        picture = picture[max(0, -top) : rows - max(0, -bottom), max(0, -left) : columns - max(0, -right)]
        if max(top, bottom, left, right) > 0:
            edges = [(max(0, top), max(0, bottom)), (max(0, left), max(0, right)), (0, 0)]
            picture = np.pad(picture, edges)
        return picture.transpose(2, 0, 1)

    def _transparent(self, frame: Any, turns: int) -> np.ndarray:
        layers = np.rot90(self.reformatter.reformat(frame, format="rgba", threads=1).to_ndarray(), turns).astype(
            np.float32
        )
        opacity = layers[..., 3:] / 255
        flat = np.round(layers[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)
        assert self.size is not None
        return resize(torch.from_numpy(flat.transpose(2, 0, 1).copy()), self.size, self.fit).numpy()


# A frame has eight pointers to planes. PyAV counts planes up to the first empty pointer, and so reads past the last of
# eight (a crash, not an exception): frames with so many channels are packed first.
PLANES = 8


def samples_of(frame: Any, path: Path) -> np.ndarray:
    """The samples of a sound frame as float32 [C, n] in [-1, 1]; NotMedia for a sample format that cannot be read."""
    channels = frame.layout.nb_channels
    try:
        if frame.format.is_planar and channels >= PLANES:
            packed = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
            frame = packed.resample(frame)[0]
        raw = frame.to_ndarray()
    except PYAV_ERRORS as error:
        raise NotMedia(f"its sound cannot be read ({reason(error)}).", file=path, hint="Re-encode it.") from None
    if not frame.format.is_planar:
        raw = raw.reshape(-1, channels).T
    if raw.dtype == np.float32:
        return raw
    if raw.dtype == np.uint8:
        return (raw.astype(np.float32) - 128) / 128
    if np.issubdtype(raw.dtype, np.integer):
        return (raw / float(-np.iinfo(raw.dtype).min)).astype(np.float32)
    return raw.astype(np.float32)


# ITU-R BS.775: what a loudspeaker of a surround layout adds to the left and right of a stereo mix.
SIDE = 2**-0.5
TO_STEREO = {
    "FL": (1.0, 0.0),
    "FR": (0.0, 1.0),
    "FC": (SIDE, SIDE),
    "BL": (SIDE, 0.0),
    "BR": (0.0, SIDE),
    "SL": (SIDE, 0.0),
    "SR": (0.0, SIDE),
    "BC": (SIDE / 2, SIDE / 2),
    "LFE": (0.0, 0.0),
    "DL": (1.0, 0.0),
    "DR": (0.0, 1.0),
}


def mixing_matrix(names: tuple[str, ...], channels: int | None, path: Path) -> np.ndarray | None:
    """[channels, len(names)] that makes ``channels`` of the named ones; None where nothing is to be done.

    1: the mean of all · 2 of 1: the same twice · 2 of a surround layout: ITU-R BS.775, scaled so that nothing clips.
    """
    have = len(names)
    if channels is None or channels == have:
        return None
    if channels < 1:
        raise ConfigError(f"channels={channels} makes no sense.", hint="Use 1, 2, or None for all that the file has.")
    if channels == 1:
        return np.full((1, have), 1.0 / have, np.float32)
    if have == 1:
        return np.ones((channels, 1), np.float32)
    if channels == 2 and all(name in TO_STEREO for name in names):
        matrix = np.array([TO_STEREO[name] for name in names], np.float32).T
        return matrix / matrix.sum(1, keepdims=True)
    raise ConfigError(
        f"cannot make {channels} channels of {have} ({' '.join(names)}).",
        file=path,
        hint="Use channels=1 or leave it out.",
    )
