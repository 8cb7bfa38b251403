"""Self-supervised representation.

Recipe. GDT contrasts one-second views, 64 clips a step, 240 steps; the shift is invariant (the other modality at
another moment of the clip is the positive), and 70 % of the training sounds are those of the same object at another
moment, for a network that has found the timing stops learning classes. The projection has batch statistics as in the
paper: with layer norm in their place the same towers stayed at the loss of a blind guess for 120 steps, for what is
common to all clips was never taken out. LLA judges pairs (in step or not): its head must see right and wrong pairs in
one batch of statistics, and how far each token agrees with what it read; means of tokens alone stayed at log 2 for 200
steps.

Traps. An untrained network tells classes already (of sound 0.71 to 0.75, chance 0.08), and so do raw statistics (0.85
to 0.88): a probe without both beside it says little. A probe never reads the partner, so the wrong-partner control puts
another clip's stream in the place of the one that is scored: it finds leaks, not whether pairs taught anything. Rows or
sources that stand on both sides of a probe are refused. LLA learns its pretext, and its sound tells the action at
0.87 (raw statistics 0.80; the intervals touch); its picture is no better than untrained (0.45, untrained 0.47, raw
statistics 0.54): it does not count as working.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from avcl import trials
from avcl.data.derived import Kept
from avcl.files import write_atomic
from avcl.metrics.classification import class_scores
from avcl.model import Model
from avcl.seeds import seeded
from avcl.tasks.probe import RAW, Probe

SYSTEM = "patrick2020_gdt"
CLIPS = 300
COLORS = {"trained": "#2f7d4f", "untrained": "#9fb8a8", RAW: "#e0a34c"}


def draw(model_folder: Path, out: Path) -> str:
    """A frame of every class, what a linear probe of the frozen picture tower takes it for, and the scores beside the
    untrained copy and raw statistics; the caption with the scores."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    model = Model.load(model_folder)
    cls, trial = trials.trial_of(type(model.system))
    worlds = {part: trials.world_of(trial, clips=n, split=part) for part, n in (("test", CLIPS), ("train", 800))}
    test, fit = (Kept(world.configure(model.inputs)) for world in worlds.values())
    task = Probe(bootstrap=0)
    outputs = task.predict(model.system, test, fit=fit)
    with seeded(0, "untrained"):
        copy = cls(model.system.config, model.spec).eval()
    told = {"trained": outputs, "untrained": task.predict(copy, test, fit=fit), RAW: task.baselines(outputs)[RAW]}
    scores = {name: {c: row["accuracy"] for c, row in task.score(o).scores.items()} for name, o in told.items()}

    names, label = list(test.labels), outputs["label"]
    figure = pyplot.figure(figsize=(10.5, 4.4))
    grid = figure.add_gridspec(1, 3, width_ratios=[0.9, 2.6, 2.2], wspace=0.45)
    frames = grid[0].subgridspec(len(names) // 2, 2, wspace=0.05, hspace=0.05)
    for number in range(len(names)):
        axis = figure.add_subplot(frames[number // 2, number % 2])
        video = test.clip(int(np.flatnonzero(label == number)[0])).streams["video"].data[0]
        axis.imshow(video[len(video) // 2].permute(1, 2, 0).numpy())
        axis.set(xticks=[], yticks=[])
    confusion = figure.add_subplot(grid[1])
    table = class_scores(label, outputs["video"], n_classes=len(names)).confusion
    confusion.imshow(table / table.sum(1, keepdims=True).clip(1), cmap="Greens", vmin=0, vmax=1)
    confusion.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    confusion.set_yticks(range(len(names)), names, fontsize=7)
    confusion.set_xlabel("taken for, by the picture alone", fontsize=8)
    bars = figure.add_subplot(grid[2])
    at = np.arange(len(task.conditions))
    for k, (name, color) in enumerate(COLORS.items()):
        heights = [scores[name][c] for c in task.conditions]
        bars.bar(at + 0.27 * (k - 1), heights, 0.25, color=color, label=name)
        for x, y in zip(at, heights, strict=True):
            bars.text(x + 0.27 * (k - 1), y + 0.01, f"{y:.2f}".lstrip("0"), ha="center", fontsize=7)
    bars.axhline(1 / len(names), color="gray", linewidth=0.8, linestyle=":")
    bars.text(at[-1] + 0.45, 1 / len(names), "chance", va="center", fontsize=7, color="gray")
    bars.set_xticks(at, task.conditions, fontsize=8)
    bars.set(ylim=(0, 1.05), yticks=[0, 0.5, 1])
    bars.tick_params(axis="y", labelsize=7)
    bars.set_ylabel("accuracy of a linear probe", fontsize=8)
    bars.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    for side in ("top", "right"):
        bars.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    picture = Image.open(buffer).convert("RGB").quantize(128)
    write_atomic(out, lambda part: picture.save(part, format="PNG", optimize=True))
    own = scores["trained"]
    blank, raw = scores["untrained"], scores[RAW]
    return (
        f"GDT, never told a class: a linear probe of its frozen features names the one of {len(names)} objects from "
        f"the picture alone in {own['video']:.2f} of {CLIPS} held-out clips (untrained {blank['video']:.2f}, raw "
        f"statistics {raw['video']:.2f}, chance {1 / len(names):.2f}), from the sound in {own['audio']:.2f} (untrained "
        f"{blank['audio']:.2f}, raw statistics {raw['audio']:.2f})."
    )
