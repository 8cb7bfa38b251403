"""Synchronization

`sync_correlation` is no row of Table 1: it was made so that the task and the verb `sync` have a system. Two learned
tracks, one of the picture and one of the sound, are correlated on a grid of 20 ms; the softmax over the lags is the
posterior of the lag, its mass within 40 ms of the answer the confidence. Below one half a clip is *undecidable*.

**Recipe.** Windows of 2 s at 25 frames a second, 32 × 32 gray, lags uniform in ±400 ms and not rounded to frames; 80
steps of 48 fresh clips. Bounces alone are too easy (all but one in 200 within 40 ms after 30 steps), so the trial adds
plucks (windows without an event), a silent mover and a sound off screen in half of the clips each.

**Traps.** A sound that is moved inside of its window brings an edge that tells the lag: data are cut out of a longer
recording (`avcl.data.shifted`), and where the system moves the sound itself, the same seconds are heard whatever the
lag. A lag that is 0 in every clip teaches to answer 0: such clips are moved. A flat posterior must be taught: sound and
picture of two clips, and a picture that stands still, are trained towards it; its weight trades how much is decided
against how often a foreign pair is. A lag at the end of the search range is never a measurement.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from avcl import trials
from avcl.files import write_atomic
from avcl.metrics.calibration import reliability
from avcl.model import Model
from avcl.tasks.sync import NEAR, Sync

SYSTEM = "sync_correlation"
CLIPS = 200
SURE, UNSURE = "#4c78a8", "#bbbbbb"


def draw(model_folder: Path, out: Path) -> str:
    """Held-out clips of the world: estimate against truth, errors, confidence against correctness; the caption with
    the figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    model = Model.load(model_folder)
    _, trial = trials.trial_of(type(model.system))
    task = Sync(bootstrap=0, **trial.protocol)
    world = trials.world_of(trial, clips=CLIPS, split="test").configure(model.inputs)
    made = task.predict(model.system, world)
    wrong = task.predict(model.system, world, wrong_partner=True)
    found = task.estimate(made)
    truth = 1000 * made["offset"].astype(np.float64)
    error = np.abs(1000 * found.offset - truth)
    sure, right = task.decided(found), error <= 1000 * NEAR
    foreign = float(task.decided(task.estimate(wrong)).mean())

    figure, (left, middle, last) = pyplot.subplots(1, 3, figsize=(11, 3.6))
    for chosen, color, words in ((~sure, UNSURE, "undecidable"), (sure, SURE, "decided")):
        left.plot(truth[chosen], 1000 * found.offset[chosen], ".", color=color, markersize=4, label=words)
    left.plot([-480, 480], [-480, 480], color="black", linewidth=0.5)
    left.set(
        xlabel="true lag, ms (positive: sound late)", ylabel="estimated lag, ms", xlim=(-480, 480), ylim=(-480, 480)
    )
    left.legend(fontsize=8, loc="upper left")

    edges = np.concatenate([[0.5], np.geomspace(1, 1000, 25)])
    middle.hist(
        [np.maximum(error[sure], 0.6), np.maximum(error[~sure], 0.6)], edges, stacked=True, color=[SURE, UNSURE]
    )
    middle.axvline(1000 * NEAR, color="black", linewidth=0.5)
    middle.set(xscale="log", xlabel="error, ms (line: 40 ms)", ylabel="clips")

    table = reliability(found.confidence, right, bins=8, binning="mass")
    last.plot([0, 1], [0, 1], color="black", linewidth=0.5)
    last.plot(table.confidence, table.accuracy, "o-", color=SURE, markersize=4)
    last.axvline(task.threshold, color="black", linewidth=0.5, linestyle=":")
    last.set(xlabel="confidence (dotted: threshold)", ylabel="share within 40 ms", xlim=(0, 1), ylim=(0, 1.02))
    for axes in (left, middle, last):
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    whole = io.BytesIO()
    figure.savefig(whole, dpi=100)
    pyplot.close(figure)
    few = Image.open(whole).convert("RGB").quantize(64)
    write_atomic(out, lambda part: few.save(part, "PNG", optimize=True))
    return (
        f"{model.name} on {CLIPS} held-out clips of the world: estimated against true lag, the errors, and whether the "
        f"confidence means something; {right.mean():.0%} of all clips lie within 40 ms (median error "
        f"{np.median(error):.0f} ms), {sure.mean():.0%} are decided, of these {right[sure].mean():.0%} within 40 ms; "
        f"with the picture of another clip {foreign:.0%} are decided."
    )
