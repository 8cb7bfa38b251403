"""What is known of a media file, as ``avcl world`` writes it: ``truth/<id>.npz`` beside the manifest, no pickle in it.

The arrays are on the clock of the file: one row a frame, one a sample. A clip is decoded on another grid (its frame
rate, size, sample rate, its window from ``start``), so the truth is brought to that grid by the rules by which the
media are: a slot shows the latest frame that is not later, pictures are scaled and cropped or padded about the center,
sound is resampled. Where nothing was recorded, and behind the end, it is zeros.

Named arrays, F frames and L samples of the file: ``masks`` [F,O,H,W] · ``boxes`` [F,O,4] and ``positions`` [F,O,2],
``hands`` [F,2,2] in pixels (x, y) · ``gap`` [F] in pixels of height · ``lips``, ``pitch``, ``formants`` [F,...] ·
``stems`` [S,L,C] · ``segments`` [n], one each half second. Arrays of any other name come as they are; ``speech`` does
not come, for it is a stream of its own. ``truth.jsonl`` beside the manifest tells rates and ``offset``, where it is
there; else frames are those of the video's average rate, samples those of its sound.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avcl.data.manifest import Row
from avcl.dsp import resample, resize
from avcl.dsp.picture import margins, scaled_size
from avcl.errors import DataError, StoreError
from avcl.files import read_json
from avcl.media import probe
from avcl.types import Inputs, Stream

Array = NDArray[Any]
PER_FRAME = ("masks", "boxes", "positions", "hands", "gap", "lips", "pitch", "formants")
NOT_TRUTH = ("speech",)
SEGMENT = 0.5  # seconds of one entry of ``segments``
SLACK = 1e-3  # seconds by which a frame may be later than its slot, as the reader allows


@dataclass(frozen=True)
class Known:
    """The folder of the arrays, what ``truth.jsonl`` says of each id (fps, sample_rate, offset), and the names behind
    class numbers as ``world.json`` says (None: no such file)."""

    folder: Path
    lines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None


def known_beside(where: str | Path) -> Known | None:
    """What stands beside the manifest (or in the folder) ``where``; None without a folder ``truth``. DataError where
    ``truth.jsonl`` is damaged."""
    home = Path(where) if Path(where).is_dir() else Path(where).parent
    if not (home / "truth").is_dir():
        return None
    table, lines = home / "truth.jsonl", {}
    if table.is_file():
        try:
            for text in table.read_text(encoding="utf-8").splitlines():
                line = json.loads(text)
                facts = {k: float(line[k]) for k in ("fps", "sample_rate", "offset") if line.get(k) is not None}
                lines[str(line["id"])] = facts
        except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError("is not what avcl world writes.", file=table, hint="Export it again.") from error
    note, labels = home / "world.json", None
    if note.is_file():
        try:
            labels = tuple(str(name) for name in read_json(note)["preset"]["labels"])
        except (StoreError, KeyError, TypeError) as error:
            raise DataError("is not what avcl world writes.", file=note, hint="Export it again.") from error
    return Known(home / "truth", lines, labels)


def truth_of_row(
    known: Known, row: Row, inputs: Inputs, streams: Mapping[str, Stream], labels: Sequence[str]
) -> dict[str, Tensor]:
    """Every array of a row on the grid of ``inputs``, as tensors; {} where there is no file of it.

    ``streams`` of the decoded clip say where anything was recorded; ``labels``: the classes of the data, in whose
    numbers ``segments`` must be. DataError: a damaged file, an array of another shape than its name has, arrays that
    disagree, other classes.
    """
    name = str(row.info.get("row", row.id))  # the windows of a file share its truth
    path = known.folder / f"{name}.npz"
    if not path.is_file():
        return {}
    arrays = {k: v for k, v in _arrays(path).items() if k not in NOT_TRUTH}
    facts, start = known.lines.get(name, {}), row.start or 0.0
    found = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}
    try:
        shown = {k: v for k, v in found.items() if k in PER_FRAME}
        if shown:
            rate = facts.get("fps") or _rate(row, "video")
            found |= _frames(shown, rate, _size(shown, row), start, inputs, streams.get("video"))
        if "stems" in found:
            rate = facts.get("sample_rate") or _rate(row, "audio")
            found["stems"] = _stems(found["stems"], rate, start, inputs, streams.get("audio"))
        if "segments" in found:
            if known.labels is not None and known.labels != tuple(labels):
                hint = "Ask avcl world for it again: it adds labels.txt."
                raise DataError("counts its segments in classes of another order than the data.", file=path, hint=hint)
            found["segments"] = _segments(found["segments"], start, inputs, len(labels))
    except (ValueError, IndexError, RuntimeError) as error:
        raise DataError(f"its arrays do not have the shapes of truth ({error}).", file=path) from error
    if "offset" in facts:
        found["offset"] = torch.tensor(facts["offset"], dtype=torch.float32)
    return found


def _arrays(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # NumPy leaks a handle it opened itself
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, NumPy and OS errors of a damaged file share no base class
        raise DataError("is not a readable .npz of arrays.", file=path, hint="Export it again.") from error


def _rate(row: Row, kind: str) -> float:
    """Frames or samples a second of the row's file."""
    info = probe((row.audio or row.video or row.file) if kind == "audio" else row.file)
    stream = info.video.fps if kind == "video" and info.video else info.audio.rate if info.audio else 0.0
    if not stream:
        raise DataError(f"has truth of its {kind}, but no {kind}.", file=row.file)
    return float(stream)


def _size(arrays: Mapping[str, Tensor], row: Row) -> tuple[int, int]:
    """(height, width) of the pictures that the truth is about."""
    if "masks" in arrays:
        return int(arrays["masks"].shape[-2]), int(arrays["masks"].shape[-1])
    video = probe(row.file).video
    if video is None:
        raise DataError("has truth of its pictures, but no pictures.", file=row.file)
    return video.height, video.width


# ------------------------------------------------------------------------------------------------------------- pictures
def _frames(
    arrays: Mapping[str, Tensor],
    rate: float,
    size: tuple[int, int],
    start: float,
    inputs: Inputs,
    video: Stream | None,
) -> dict[str, Tensor]:
    """What is known of the frames, at the instants ``start + k / fps`` and in pixels of the decoded pictures."""
    count = {name: len(array) for name, array in arrays.items()}
    if len(set(count.values())) > 1:
        raise ValueError(f"frames: {count}")
    [frames] = set(count.values())
    steps = max(1, round(inputs.window * inputs.fps)) if video is None else video.mask.shape[1]
    at = [math.floor((start + k / inputs.fps + SLACK) * rate) for k in range(steps)]
    there = torch.tensor([0 <= i < frames for i in at])
    there = there if video is None else there & video.mask[0]
    rows = torch.tensor(at).clamp(0, max(0, frames - 1))
    change: Mapping[str, Callable[[Tensor], Tensor]] = _geometry(size, inputs)
    found = {}
    for name, array in arrays.items():
        picked = array[rows] if frames else array.new_zeros(steps, *array.shape[1:])
        picked = picked.masked_fill(~there.view(-1, *[1] * (array.ndim - 1)), 0)
        found[name] = change[name](picked) if name in change else picked
    return found


def _geometry(size: tuple[int, int], inputs: Inputs) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """How what is measured in pixels of a picture of ``size`` is measured in pixels of the decoded one."""
    if tuple(size) == tuple(inputs.size):
        return {}
    scaled = scaled_size(size, inputs.size, inputs.fit)
    top, _, left, _ = margins(scaled, inputs.size)
    factor = torch.tensor([scaled[1] / size[1], scaled[0] / size[0]])  # x, y
    shift = torch.tensor([left, top], dtype=torch.float32)
    corner = torch.tensor([inputs.size[1], inputs.size[0]], dtype=torch.float32)

    def points(xy: Tensor) -> Tensor:
        known = (xy != 0).any(-1, keepdim=True)  # zeros: off the stage
        return torch.where(known, xy * factor + shift, 0)

    def boxes(box: Tensor) -> Tensor:
        moved = box * factor.repeat(2) + shift.repeat(2)
        moved = torch.minimum(moved.clamp(min=0), corner.repeat(2))
        seen = (box[..., 2:] > box[..., :2]).all(-1) & (moved[..., 2:] > moved[..., :2]).all(-1)
        return torch.where(seen[..., None], moved, 0)

    def masks(mask: Tensor) -> Tensor:
        return resize(mask.float(), inputs.size, inputs.fit) > 0.5

    return {"masks": masks, "boxes": boxes, "positions": points, "hands": points, "gap": lambda g: g * factor[1]}


# ---------------------------------------------------------------------------------------------------------------- sound
def _stems(stems: Tensor, rate: float, start: float, inputs: Inputs, audio: Stream | None) -> Tensor:
    """[S, window * sample_rate, channels] from ``start``: resampled, then cut; one channel is the mean of all."""
    if stems.ndim != 3:
        raise ValueError(f"stems {list(stems.shape)} are not [S, L, C]")
    moved = resample(stems, rate, inputs.sample_rate)
    steps = max(1, round(inputs.window * inputs.sample_rate)) if audio is None else audio.mask.shape[1]
    first = round(start * inputs.sample_rate)
    part = moved[:, first : first + steps]
    part = torch.nn.functional.pad(part, (0, 0, 0, steps - part.shape[1]))
    part = part if audio is None else part * audio.mask[0][None, :, None]
    if part.shape[2] == inputs.channels:
        return part
    if inputs.channels == 1:
        return part.mean(2, keepdim=True)
    if part.shape[2] == 1:
        return part.expand(-1, -1, inputs.channels).contiguous()
    raise ValueError(f"stems of {part.shape[2]} channels for {inputs.channels}")


def _segments(segments: Tensor, start: float, inputs: Inputs, background: int) -> Tensor:
    """The entries of the window; half seconds cannot be cut, so a window that begins inside of one is an error."""
    first = start / SEGMENT
    if abs(first - round(first)) > 1e-6:
        raise ValueError(f"segments of {SEGMENT} s cannot begin at {start:g} s")
    count = math.ceil(inputs.window / SEGMENT - 1e-9)
    part = segments[round(first) : round(first) + count]
    return torch.nn.functional.pad(part, (0, count - len(part)), value=background)
