"""Localization: where in the picture is the source of the sound? Heat maps against masks of what sounds and what only
moves.

Of each clip ``frames`` frames are scored, evenly spread over what was recorded (1: the middle one), in which some of
the source is seen; a clip counts with the mean of its frames. A system sees pictures and sound and nothing else: no
masks, boxes or labels. Conditions:

- ``pointing``: the largest value of the map lies in the box of the source (``on source``), of what is seen but silent
(``on distractor``), or of neither; equal largest values share. ``source - distractor`` decides: a map that finds
objects, but not which of them sounds, gets 0 however well it finds them.
- ``area``: as many pixels of the map as the source has, against its mask: share of frames with IoU >= 0.5
(``cIoU@0.5``), the area under that share over all thresholds (``AUC``), the mean (``IoU``), and the mean IoU with the
mask of what is silent (``IoU distractor``).
- ``median``: the same by the rule of the papers, half of the picture being foreground. A source that covers the share f
of the picture reaches at most 2 f there: ``f`` is its mean and ``can reach 0.5`` the share of frames with f >= 1/4.

With one object in the picture everything that finds objects scores, and neither "on source" nor any overlap tells
whether the sound was used: look at the wrong partner and at ``motion``, a map of the frame difference alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avcl.encoders.conv2d import change_channels
from avcl.errors import ConfigError, DataError
from avcl.metrics.overlap import ciou, heat_mask, mask_iou, pointing_game, success_auc, success_rate
from avcl.nn.pooling import evenly
from avcl.system import Localizes
from avcl.task import Floats, Measure, Outputs, Table, Task, bare, truth_of
from avcl.types import Batch, Stream

Bools = NDArray[np.bool_]
CELL = 4  # pixels over which a frame is averaged before it is compared: camera jitter and noise are below that


@dataclass(frozen=True)
class Localization(Task):
    """The localization protocol.

    ``frames`` scored of each clip · ``source`` the slots of ``masks`` that sound, ``silent`` those that do not (slots
    that the data do not have count as not there).
    """

    name: ClassVar[str] = "localization"
    words: ClassVar[str] = (
        "how often the peak of the map lies in the box of the source, less how often in that of the silent object"
    )
    needs: ClassVar[type] = Localizes
    headline: ClassVar[tuple[str, str]] = ("pointing", "source - distractor")
    lower: ClassVar[frozenset[str]] = frozenset({"on distractor", "neither", "IoU distractor"})
    partner: ClassVar[str] = "audio"

    frames: int = 3
    source: tuple[int, ...] = (0,)
    silent: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 1:
            raise ConfigError(f"frames = {self.frames} must be at least 1.")
        if not self.source or min((*self.source, *self.silent)) < 0 or set(self.source) & set(self.silent):
            raise ConfigError(f"source = {self.source} and silent = {self.silent} must be different slots from 0 on.")

    # ------------------------------------------------------------------------------------------------ what is asked
    def shown(self, batch: Batch) -> Batch:
        """Pictures and sound; no label and no truth."""
        return bare(batch, *(name for name in batch.streams if name not in ("audio", "video")))

    def answer(self, system: Any, shown: Batch) -> Mapping[str, Tensor]:
        """``heat`` [B, F, H, W] of the scored frames."""
        heat = system.heatmap(shown)
        want = (*shown.video.mask.shape, *shown.video.data.shape[-2:])
        if tuple(heat.shape) != want:
            raise DataError(f"a heat map must be of the shape {list(want)}, as the frames, not {list(heat.shape)}.")
        return {"heat": _picked(heat.float(), evenly(shown.video.mask, self.frames))}

    def truth(self, batch: Batch) -> Mapping[str, Tensor]:
        """``source`` and ``silent`` bool [B, F, H, W], ``motion`` [B, F, H, W] of the picture alone, ``label`` [B]."""
        (masks,) = truth_of(batch, self.name, "masks")
        (video,) = batch.require("video")
        if masks.ndim != 5 or (*masks.shape[:2], *masks.shape[3:]) != (*video.mask.shape, *video.data.shape[-2:]):
            raise DataError(
                f'the masks {list(masks.shape)} of "{batch.id[0]}" are not [T, O, H, W] of its frames '
                f"{list(video.data.shape)}."
            )
        where = evenly(video.mask, self.frames)
        return {
            "source": _picked(_united(masks, self.source), where),
            "silent": _picked(_united(masks, self.silent), where),
            "motion": _picked(motion(video), where),
            "label": batch.label,
        }

    # ----------------------------------------------------------------------------------------------- what is scored
    def measures(self, outputs: Outputs) -> Mapping[str, Mapping[str, Measure]]:
        source = outputs["source"]
        every = [_frame(outputs, n, t) for n, t in np.ndindex(source.shape[:2])]
        found = {
            condition: {metric: _per_clip([frame[condition][metric] for frame in every], source) for metric in row}
            for condition, row in every[0].items()
        }
        difference = found["pointing"]["on source"] - found["pointing"]["on distractor"]
        f = _per_clip([m.mean() for m in source.reshape(-1, *source.shape[2:])], source)
        large = _per_clip([m.mean() >= 0.25 for m in source.reshape(-1, *source.shape[2:])], source)
        return {
            "pointing": {"source - distractor": difference, **found["pointing"]},
            "area": found["area"],
            "median": {**found["median"], "f": f, "can reach 0.5": large},
        }

    def chance(self, outputs: Outputs) -> Table:
        """Pointing at a pixel drawn at random; the sizes, which are what they are."""
        source, silent = outputs["source"], outputs["silent"]
        shares = {"on source": [], "on distractor": [], "neither": []}  # type: dict[str, list[float]]
        for n, t in np.ndindex(source.shape[:2]):
            one, other = _box(source[n, t]), _box(silent[n, t])
            shares["on source"].append(one.mean())
            shares["on distractor"].append(other.mean())
            shares["neither"].append(1 - (one | other).mean())
        means = {name: float(np.nanmean(_per_clip(values, source))) for name, values in shares.items()}
        return {"pointing": {"source - distractor": means["on source"] - means["on distractor"], **means}}

    def baselines(self, outputs: Outputs) -> Mapping[str, Outputs]:
        """The whole picture, a box of half the height and width in its center, and the motion of the picture."""
        shape = outputs["source"].shape
        whole, center = np.ones(shape, bool), np.zeros(shape, bool)
        height, width = shape[2:]
        center[..., height // 4 : height - height // 4, width // 4 : width - width // 4] = True
        answers = {"whole image": whole, "center box": center}
        marked = {k: outputs.with_arrays(heat=v.astype(np.float32), marked=v) for k, v in answers.items()}
        return {**marked, "motion": outputs.with_arrays(heat=outputs["motion"])}

    def per_class(self, outputs: Outputs) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
        """The deciding difference for each class of source."""
        names, label = outputs.notes.get("labels", []), outputs["label"]
        values = np.asarray(self.measures(outputs)["pointing"]["source - distractor"])
        rows = {name: values[(label == i) & np.isfinite(values)] for i, name in enumerate(names)}
        return {"pointing": {name: {"source - distractor": float(v.mean())} for name, v in rows.items() if len(v)}}

    def notes(self, data: Any) -> Mapping[str, Any]:
        return {**super().notes(data), "rules": {"area": "as many pixels as the source has", "median": "half of them"}}


def motion(video: Stream) -> Tensor:
    """Float32 [B, T, H, W]: how much changed since the frame before and changes until the next, and once more the
    lesser of both (something that was not there before and will not be there later), of gray cells of ``CELL`` pixels.
    At the ends of a clip the one neighbor decides; a single frame has no motion."""
    height, width = video.data.shape[-2:]
    data = video.data.float() / 255 if video.data.dtype == torch.uint8 else video.data
    small = change_channels(Stream(data, video.mask, video.rate), max(4, min(height, width) // CELL))
    change = small[:, :, 2]  # |change| since the frame before, 0 at the start
    later = torch.cat([change[:, 1:], change[:, -1:]], 1)
    change = torch.cat([later[:, :1], change[:, 1:]], 1) if change.shape[1] > 1 else change
    moved = change + later + torch.minimum(change, later)
    return torch.nn.functional.interpolate(moved, (height, width), mode="bilinear")


def _picked(values: Tensor, where: Tensor) -> Tensor:
    """The frames ``where`` [B, F] of ``values`` [B, T, ...]."""
    return values[torch.arange(len(where), device=where.device)[:, None], where.to(values.device)]


def _united(masks: Tensor, slots: tuple[int, ...]) -> Tensor:
    there = [s for s in slots if s < masks.shape[2]]
    return masks[:, :, there].bool().any(2)


def _box(mask: Bools) -> Bools:
    """The box of a mask, filled."""
    box = np.zeros_like(mask)
    if mask.any():
        rows, columns = np.nonzero(mask)
        box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return box


def _frame(outputs: Outputs, n: int, t: int) -> dict[str, dict[str, float]]:
    """Every measure of one frame; NaN where nothing of the source is seen."""
    heat, source, silent = (outputs[name][n, t] for name in ("heat", "source", "silent"))
    given = outputs["marked"][n, t] if "marked" in outputs.arrays else None
    if not source.any():
        pointing = dict.fromkeys(("on source", "on distractor", "neither"), np.nan)
        overlap = dict.fromkeys(("cIoU@0.5", "AUC", "IoU", "IoU distractor"), np.nan)
        return {"pointing": pointing, "area": overlap, "median": overlap}
    one, other = _box(source), _box(silent)
    hit = pointing_game([heat], [one])
    on_other = pointing_game([heat], [other]) if other.any() else 0.0
    result = {"pointing": {"on source": hit, "on distractor": on_other}}
    result["pointing"]["neither"] = 1 - pointing_game([heat], [one | other])
    for condition, rule in (("area", "object"), ("median", "median")):
        mask = heat_mask(heat, rule=rule, truth=source if rule == "object" else None) if given is None else given
        value = ciou(mask, source)
        away = mask_iou(mask, silent) if (mask | silent).any() else 0.0
        success = {"cIoU@0.5": success_rate([value]), "AUC": success_auc([value])}
        result[condition] = {**success, "IoU": value, "IoU distractor": away}
    return result


def _per_clip(values: Any, source: Bools) -> Floats:
    """[N] the mean over the frames of each clip in which the source is seen; NaN where it never is."""
    table = np.asarray(values, np.float64).reshape(source.shape[:2])
    seen: Bools = np.any(source, axis=(2, 3))
    total = np.where(seen, table, 0.0).sum(1)
    return np.divide(total, seen.sum(1), out=np.full(len(table), np.nan), where=seen.any(1))
