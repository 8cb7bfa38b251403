"""Pictures to another size: bilinear with anti-aliasing, in torch."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avcl.errors import ConfigError

Fit = Literal["stretch", "crop", "pad"]
FITS: tuple[str, ...] = ("stretch", "crop", "pad")
CHUNK = 64  # pictures resized at once: the float copy of a long video would not fit beside it


def scaled_size(source: tuple[int, int], target: tuple[int, int], fit: str) -> tuple[int, int]:
    """(height, width) to which a ``source`` picture is scaled before it is cropped or padded to ``target``.

    "stretch": the target itself · "crop": the smallest size of the same aspect that covers it · "pad": the largest
    inside it.
    """
    if fit not in FITS:
        raise ConfigError(f'fit="{fit}" is unknown.', hint=f"Use one of {', '.join(FITS)}.")
    if min(target) < 1 or min(source) < 1:
        raise ConfigError(f"a picture of size {target} cannot be made from one of size {source}.")
    if fit == "stretch":
        return target
    (height, width), (rows, columns) = source, target
    if (rows * width >= columns * height) == (fit == "crop"):  # the height decides
        return rows, max(1, round(width * rows / height))
    return max(1, round(height * columns / width)), columns


def margins(scaled: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) to add on each side, centered; negative numbers are cut off."""
    rows, columns = target[0] - scaled[0], target[1] - scaled[1]
    return rows // 2, rows - rows // 2, columns // 2, columns - columns // 2


def resize(pictures: Tensor, size: tuple[int, int], fit: Fit = "crop") -> Tensor:
    """``pictures`` [..., C, H, W] (uint8 or float) scaled to ``size`` (height, width), cropped or padded with zeros
    about the center.

    Each output pixel is the triangle-weighted mean of the input pixels under it (so a small picture does not alias);
    uint8 comes back rounded to uint8. The pixel grid is taken as square. Raises ConfigError for an unknown ``fit`` or
    an empty size.
    """
    target = (int(size[0]), int(size[1]))
    lead, (height, width) = pictures.shape[:-3], (int(pictures.shape[-2]), int(pictures.shape[-1]))
    rows, columns = scaled_size((height, width), target, fit)
    top, bottom, left, right = margins((rows, columns), target)
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    parts = []
    for part in flat.split(CHUNK):
        moved = part if part.is_floating_point() else part.float()
        if (rows, columns) != (height, width):
            moved = F.interpolate(moved, (rows, columns), mode="bilinear", antialias=True, align_corners=False)
        moved = F.pad(moved, (left, right, top, bottom))
        parts.append(moved if part.is_floating_point() else moved.round_().clamp_(0, 255).to(part.dtype))
    empty = pictures.new_zeros(0, pictures.shape[-3], *target)
    return torch.cat(parts or [empty]).reshape(*lead, pictures.shape[-3], *target)
