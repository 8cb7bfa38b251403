"""Localization: which place of the picture does the sound come from?

Each scene has an object that sounds and one of another class that moves in silence, so a map that merely finds objects
is right half of the time. **Recipe.** One frame a second is enough for a model of single frames, which makes clips
cheap to render. Training starts with a softmax-pooled similarity whose softness falls from 1 to 0.1, and turns to the
tri-map loss of the paper once that loss, smoothed, is below 0.93 log B. **Traps.** From scratch the tri-map loss stayed
at log B (400 steps): no place reaches its threshold. A fixed pooling leaves the plateau or not by the seed; a switch at
a fixed time can come before the model has found anything. With one object in the picture a map of the frame difference,
which hears nothing, points at "the source" in more than 70 % of the frames: read the wrong partner, and put a second
object beside it. Objects cover 4 % of the picture on average, so the papers' rule, half of the picture as foreground,
can never reach an overlap of 0.5; pointing decides, and overlap is measured with as many pixels as the object has. A
model of single frames cannot tell twins of one class and size apart, which differ in timing alone.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from avcl import trials
from avcl.data import collate
from avcl.files import write_atomic
from avcl.model import Model
from avcl.tasks.localization import Localization
from avcl.types import Stream

SYSTEM = "chen2021_lvs"

CLIPS = 200
SHOWN = 5
SOURCE, SILENT = "#35e06f", "#ff5f5f"


def draw(model_folder: Path, out: Path) -> str:
    """Frames of held-out clips of the world, the map for their own sound and for that of another clip."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    model = Model.load(model_folder)
    _, trial = trials.trial_of(type(model.system))
    world = trials.world_of(trial, clips=CLIPS, split="test").configure(model.inputs)
    task = Localization(bootstrap=0)
    scores = task.score(task.predict(model.system, world)).scores["pointing"]
    chosen = _telling(world, SHOWN)
    batch = collate([world.with_truth().clip(i) for i in chosen]).to("cpu")
    own = _maps(model, batch, batch.audio)
    wrong = _maps(model, batch, batch.audio._replace(data=batch.audio.data.roll(1, 0)))
    figure, rows = pyplot.subplots(3, SHOWN, figsize=(1.7 * SHOWN, 5.4))
    middle = batch.video.data.shape[1] // 2
    for i in range(SHOWN):
        frame = batch.video.data[i, middle].permute(1, 2, 0).numpy()
        for ax, heat, words in zip(rows[:, i], (None, own, wrong), ("frame", "its sound", "another's"), strict=True):
            ax.imshow(frame if heat is None else frame.mean(2), cmap="gray", vmin=0, vmax=1)
            if heat is not None:
                ax.imshow(heat[i, middle], cmap="inferno", vmin=0, vmax=1, alpha=0.75)
            for slot, color in ((0, SOURCE), (1, SILENT)):
                mask = batch.extras["masks"][i, middle, slot].numpy()
                if mask.any():
                    ax.contour(mask, levels=[0.5], colors=color, linewidths=1.2)
            ax.set(xticks=[], yticks=[])
            if i == 0:
                ax.set_ylabel(words, fontsize=9)
    figure.tight_layout(pad=0.4)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    pyplot.close(figure)
    small = io.BytesIO()
    Image.open(drawn).convert("RGB").quantize(128).save(small, format="png", optimize=True)
    write_atomic(out, small.getvalue())
    return (
        f"Held-out scenes with a sounding object (green) and a silent one (red), and the maps of {model.name} for "
        f"their own sound and for another clip's; over {CLIPS} clips the peak lies on the source in "
        f"{scores['on source']:.0%} of the frames and on the silent object in {scores['on distractor']:.0%}."
    )


def _maps(model: Model, batch, sound: Stream) -> np.ndarray:
    from dataclasses import replace

    with torch.no_grad():
        heat: torch.Tensor = model.system.heatmap(replace(batch, streams={**batch.streams, "audio": sound}))
    return heat.numpy()


def _telling(world, count: int) -> list[int]:
    """The first clips of different classes."""
    first: dict[int, int] = {}
    for i, label in enumerate(world.targets):
        first.setdefault(label, i)
    return sorted(first.values())[:count]
