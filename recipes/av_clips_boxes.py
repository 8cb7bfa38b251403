"""Real clips with boxes of what sounds: a localizer trained on the world, and one trained on other real clips.

The boxes are those of VGG-SS (fractions of the picture, on the middle frame). Scored is the center square of the middle
frame, heard with the three seconds around it, by the task ``localization``; there is no second object whose silence is
known, so "on source" and the overlaps stand beside what a sound-blind answer gets. Very few clips: see the intervals.

    python recipes/av_clips_boxes.py AV_CLIPS MODEL     AV_CLIPS holds clips.csv and video/; MODEL: trained on the world
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import main, write_table
from families import cells

import avcl
from avcl.metrics.overlap import union_map
from avcl.types import Report

WINDOW = 3.0
SIDE = 112  # rows and columns of a mask as it is written
HERE: Mapping[str, Any] = {"epochs": 24, "batch_size": 32, "window": WINDOW}
CONTROLS = ("untrained", "wrong partner", "whole image", "center box", "motion")
METRICS = (("pointing", "on source"), *((c, m) for c in ("area", "median") for m in ("cIoU@0.5", "AUC", "IoU")))


def boxes_of(clip: Mapping[str, str]) -> list[list[float]]:
    """The boxes [x0, y0, x1, y1] of a clip in fractions of the picture; none where it has no annotation."""
    return [[float(x) for x in box] for box in json.loads(clip["vggss_bbox"] or "[]")]


def boxed(folder: Path, clips: Sequence[Mapping[str, str]], out: Path) -> Path:
    """A manifest of the middle three seconds of the clips that have boxes, with the truth beside it."""
    (out / "truth").mkdir(parents=True)
    rows = []
    for clip in clips:
        if not boxes_of(clip):
            continue
        seconds, fps = float(clip["duration"]), float(clip["fps"])
        # Boxes are drawn on a square: it is stretched to the picture's shape, as the fractions say.
        square = union_map(boxes_of(clip), size=SIDE) > 0
        width = round(SIDE * float(clip["width"]) / float(clip["height"]))
        columns = np.minimum((np.arange(width) + 0.5) * SIDE / width, SIDE - 1).astype(int)
        mask = square[:, columns]
        frames = int(seconds * fps) + 2
        masks = np.broadcast_to(mask[None, None], (frames, 1, *mask.shape))
        np.savez_compressed(out / "truth" / f"{clip['id']}.npz", masks=masks)
        start = round(seconds / 2 - 1, 3)  # frames at 0, 1 and 2 s of the window: the one in the middle is scored
        video = (folder / "video" / f"{clip['id']}.mp4").resolve()
        rows.append({"id": clip["id"], "video": video, "start": start, "end": start + WINDOW, "group": clip["id"]})
    return write_table(out / "manifest.csv", rows)


def others(folder: Path, clips: Sequence[Mapping[str, str]]) -> Iterable[dict[str, Any]]:
    """Windows of all clips without boxes, one every half second, in one group a clip."""
    for clip in clips:
        if boxes_of(clip):
            continue
        video = (folder / "video" / f"{clip['id']}.mp4").resolve()
        for i in range(max(1, int((float(clip["duration"]) - WINDOW) / 0.5) + 1)):
            row = {"id": f"{clip['id']}@{i / 2:g}", "video": video, "start": i / 2, "end": i / 2 + WINDOW}
            yield {**row, "group": clip["id"]}


def lines(name: str, report: Report) -> list[list[Any]]:
    """The figures that an annotation of the source alone allows."""
    rows = {(row[1], row[2]): row for row in cells(report)}
    return [
        [name, condition, metric, *rows[condition, metric][3:5], *map(rows[condition, metric][5].get, CONTROLS)]
        for condition, metric in METRICS
    ]


def run(folder: Path, model: Path, *, seed: int = 0, here: Mapping[str, Any] = HERE) -> Mapping[str, Any]:
    """Real clips with boxes: where is the source of the sound?"""
    with open(folder / "clips.csv", newline="") as file:
        clips = list(csv.DictReader(file))
    with tempfile.TemporaryDirectory() as place:
        test = avcl.load_data(boxed(folder, clips, Path(place) / "boxed")).all
        train = avcl.load_data(write_table(Path(place) / "others.csv", list(others(folder, clips)))).all
        models = {"trained on the world": avcl.load(model)}
        models["trained on the other clips"] = avcl.train(
            models["trained on the world"].name, train, seed=seed, settings=here, workers=1
        )
        reports = {
            name: avcl.evaluate(one, test, task="localization", protocol={"frames": 1}, controls=True, workers=0)
            for name, one in models.items()
        }
        for name, report in reports.items():
            print(name, report, sep="\n", flush=True)
    report = next(iter(reports.values()))
    share = report.scores["median"]["f"]
    return {
        "title": "Real clips with boxes: where is the source of the sound?",
        "about": f"The middle frame of {report.n_scored} clips with boxes of VGG-SS, its center square. Boxes cover "
        f"{share:.0%} of it on average, so the whole picture has that overlap. Intervals over {report.n_scored} clips. "
        "The models: chen2021_lvs trained on the world (preset localization), and the same trained on "
        f"{len(train)} windows of the clips without boxes. Seed {seed}.",
        "n": report.n_scored,
        "tables": [
            {
                "columns": ["model", "condition", "metric", "value", "interval", *CONTROLS],
                "rows": [row for name, one in reports.items() for row in lines(name, one)],
            }
        ],
    }


if __name__ == "__main__":
    main(run, "av_clips", "model", result="localization/av_clips_boxes")
