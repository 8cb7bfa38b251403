"""The pictures of a file on a grid of equal steps."""

from __future__ import annotations

import numpy as np
import torch

from avcl.dsp.picture import Fit
from avcl.errors import ConfigError, NoVideoStream, Truncated
from avcl.media import losses
from avcl.media.clock import slots_before, tolerance
from avcl.media.files import MediaFile, Timed, translated
from avcl.media.frames import PictureMaker
from avcl.types import Stream


def pictures_of(
    file: MediaFile,
    span: tuple[float | None, float | None],
    fps: float | None,
    size: tuple[int, int] | None,
    fit: Fit,
    strict: bool,
) -> Stream:
    if not file.has("video"):
        raise NoVideoStream("has no video stream.", file=file.path, hint="Only its sound can be used.")
    if fps is not None and not 0 < fps <= 10_000:
        raise ConfigError(f"fps={fps} is not a frame rate.")
    maker = PictureMaker(size, fit, file.path)
    if file.is_image:
        return image_of(file, maker, fps)
    start, end = span[0] or 0.0, span[1]
    grid = fps or file.frame_rate()
    slack = tolerance(file.tick("video"))
    want = None if end is None else slots_before(end, start=start, rate=grid)
    pictures: list[np.ndarray | None] = []
    counted = PictureGrid(file, maker, pictures, start=start, rate=grid, slack=slack, want=want)
    for timed in file.frames("video", None if start <= 0 else file.origin + start):
        if counted.add(timed):
            break
    counted.finish()
    if not any(picture is not None for picture in pictures):
        raise losses.nothing(file, "video", start, counted.last)
    if want is None or len(pictures) < want:
        losses.check_end(file, "video", counted.last or 0.0, end, strict)
    if counted.lost:
        losses.lost(file, f"{counted.lost} of {len(pictures)} frames could not be decoded.", counted.lost_at, strict)
    return stack_pictures(pictures, grid)


def stack_pictures(pictures: list[np.ndarray | None], rate: float) -> Stream:
    shape = next(picture.shape for picture in pictures if picture is not None)
    data = np.zeros((1, len(pictures), *shape), np.uint8)
    mask = torch.zeros(1, len(pictures), dtype=torch.bool)
    for i, picture in enumerate(pictures):
        if picture is not None:
            data[0, i] = picture
            mask[0, i] = True
    return Stream(torch.from_numpy(data), mask, float(rate))


class PictureGrid:
    """Fills the slots of the grid as frames arrive; converts only the frames that a slot shows."""

    def __init__(
        self,
        file: MediaFile,
        maker: PictureMaker,
        pictures: list[np.ndarray | None],
        *,
        start: float,
        rate: float,
        slack: float,
        want: int | None,
    ):
        self.file, self.maker, self.pictures = file, maker, pictures
        self.start, self.rate, self.slack, self.want = start, rate, slack, want
        self.shown: Timed | None = None  # the frame on the screen
        self.last: float | None = None  # clock seconds where it ends
        self.lost, self.lost_at = 0, 0.0
        self.limit: float | None = None

    def add(self, timed: Timed) -> bool:
        """Takes the next frame; True when every slot that was asked for is filled."""
        before = self.shown
        if before is not None:
            self.limit = losses.latest(self.file) if self.limit is None else self.limit
            time = losses.believed(timed.time, before.time + before.length, self.limit)
            if time <= before.time and timed.frame is not None:
                # A repeated stamp replaces the picture.
                time = before.time + before.length if timed.damaged else before.time
            # A frame is held until the next one, as variable rate demands, but not across a place that was lost.
            held = min(time, before.time + before.length) if timed.damaged else time
            self._show(before, held)
            self._fill(None, time)
            timed = timed._replace(time=time)
        if timed.frame is not None:
            self.shown = timed
            self.last = timed.time + timed.length - self.file.origin
        else:
            self.shown = None
        return self.want is not None and len(self.pictures) >= self.want

    def finish(self) -> None:
        if self.shown is not None:
            self._show(self.shown, self.shown.time + self.shown.length)

    def _show(self, timed: Timed, until: float) -> None:
        lead = self._slots(timed.time)
        if not self.pictures and lead:  # start is before the first frame, or the first frames are lost
            self.pictures.extend([None] * lead)
            self.lost += lead if self.start >= 0 else 0
        if self._slots(until) > len(self.pictures):
            with translated(self.file.path):
                corrupt = timed.frame.is_corrupt
                picture = None if corrupt else self.maker.make(timed.frame)
            self._fill(picture, until)

    def _fill(self, picture: np.ndarray | None, until: float) -> None:
        count = self._slots(until) - len(self.pictures)
        if count <= 0:
            return
        if picture is None:
            self.lost_at = self.start + len(self.pictures) / self.rate if not self.lost else self.lost_at
            self.lost += count
        size = self.maker.size or (0, 0)
        losses.bounded(3.0 * size[0] * size[1] * (len(self.pictures) + count), self.file, until - self.file.origin)
        self.pictures.extend([picture] * count)

    def _slots(self, time: float) -> int:
        count = slots_before(time - self.file.origin, start=self.start, rate=self.rate, slack=self.slack)
        return count if self.want is None else min(count, self.want)


def image_of(file: MediaFile, maker: PictureMaker, fps: float | None) -> Stream:
    first = next(file.frames("video"), None)
    if first is None or first.frame is None:
        raise Truncated("its picture cannot be decoded.", file=file.path, hint="Copy or export it again.")
    with translated(file.path):
        return stack_pictures([maker.make(first.frame)], fps or 1.0)
