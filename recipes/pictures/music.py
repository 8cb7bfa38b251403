"""Music from video

The body is three key points (neck, two hands), and the target the tune as events: velocity, note on, note off, time
shift. **Recipe.** Key points and notes of the world cost next to nothing, so every epoch has new clips, 25,600 in all.
A decoder that must add up its time shifts and search the memory for the place had learned neither after 400 steps
(note F1 .03, no better than another clip's body). Told the second it stands at and the body then, and given the
coordinates with sine and cosine at several wavelengths (neighboring keys are a thirtieth of the picture apart), it had
nine onsets of ten after as many steps; pitch follows. The changes came together and are not told apart. **Traps.** A
third of the onsets of any tune are matched by any other (F1 of the onset alone .32 to .37): only the pitch shows that
the body was read. NDB does not see a wrong partner at all, since the tune of another clip sounds like a tune: it says
that a set is varied, not that it is right. Of the notes that are in time and wrong in pitch, seven of ten are one
semitone off. The model reads key points, not pictures: a file needs a pose estimator first.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from avcl import trials
from avcl.encoders.notes import DURATION, ONSET, PITCH
from avcl.files import write_atomic
from avcl.model import Model
from avcl.tasks.music import Music

SYSTEM = "gan2020a_foley_music"

CLIPS = 200
SHOWN = 3
RIGHT, WRONG, TRUE = "#2f7d4f", "#c2453d", "#333333"
HANDS = {"left hand": "#4c7fb8", "right hand": "#e0a34c"}


def draw(model_folder: Path, out: Path) -> str:
    """Three held-out players: where the hands are, and the tune that was played and that was written; the caption with
    the score of all.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    model = Model.load(model_folder)
    _, trial = trials.trial_of(type(model.system))
    world = trials.world_of(trial, clips=CLIPS, split="test").configure(model.inputs)
    fit = trials.world_of(trial, clips=trial.clips, split="train").configure(model.inputs)
    task = Music(bootstrap=0)
    outputs = task.predict(model.system, world, fit=fit)
    row = task.score(outputs).scores["tune"]
    other = task.score(task.baselines(outputs)["most common tune"]).scores["tune"]
    chosen = _one_of_each(world)
    figure, axes = pyplot.subplots(2, SHOWN, figsize=(10, 4.2), sharex=True, height_ratios=[1, 1.7])
    for column, i in enumerate(chosen):
        clip = world.clip(i)
        pose = clip.streams["pose"]
        seconds = np.arange(pose.data.shape[1]) / pose.rate
        for k, (name, color) in enumerate(HANDS.items()):
            across, down = pose.data[0, :, 2 + 2 * k].numpy(), pose.data[0, :, 3 + 2 * k].numpy()
            axes[0, column].plot(seconds, across, color=color, lw=1.4, label=f"{name}, to the right")
            axes[0, column].plot(seconds, down, color=color, lw=1.0, ls=":", label=f"{name}, down")
        axes[0, column].set_title(world.labels[clip.label or 0], fontsize=9)
        _tune(axes[1, column], *(outputs[name][i][outputs[f"{name}?"][i]] for name in ("true", "made")), task.tolerance)
        axes[1, column].set_xlabel("seconds", fontsize=8)
        axes[0, column].set_ylim(-1.05, 1.05)
        for one in axes[:, column]:
            one.tick_params(labelsize=7)
            one.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("place of the hand", fontsize=8)
    axes[1, 0].set_ylabel("MIDI pitch", fontsize=8)
    lines = axes[0, 0].get_legend_handles_labels()
    figure.legend(*lines, fontsize=7, frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.0))
    whole = io.BytesIO()
    figure.savefig(whole, dpi=90, bbox_inches="tight")
    pyplot.close(figure)
    write_atomic(out, lambda part: Image.open(whole).convert("RGB").quantize(128).save(part, "PNG", optimize=True))
    return (
        f"{model.name} on three held-out players of the world: the way of the hands, and the notes that were played "
        "(outlines) and written (green where onset and pitch are right, red where not); over "
        f"{CLIPS} clips the note F1 is {row['note F1']:.2f}, {other['note F1']:.2f} for the most common tune."
    )


def _one_of_each(world: Any) -> list[int]:
    """Clips of three different instruments."""
    found: dict[int, int] = {}
    for i, label in enumerate(world.targets):
        found.setdefault(label, i)
    return list(found.values())[:SHOWN]


def _tune(axes: Any, true: np.ndarray, made: np.ndarray, tolerance: float) -> None:
    from matplotlib.patches import Rectangle

    for note in true:
        box = {"width": note[DURATION], "height": 1.0, "fill": False, "ec": TRUE, "lw": 1.2}
        axes.add_patch(Rectangle((note[ONSET], note[PITCH] - 0.5), **box))
    for note in made:
        near = np.abs(true[:, ONSET] - note[ONSET]) <= tolerance
        right = bool((near & (true[:, PITCH] == note[PITCH])).any())
        box = {"width": note[DURATION], "height": 0.7, "fc": RIGHT if right else WRONG, "alpha": 0.6, "lw": 0}
        axes.add_patch(Rectangle((note[ONSET], note[PITCH] - 0.35), **box))
    pitches = np.concatenate([true[:, PITCH], made[:, PITCH]])
    middle, reach = (pitches.min() + pitches.max()) / 2, max(6.0, (pitches.max() - pitches.min()) / 2 + 2)
    axes.set(xlim=(0, 3), ylim=(middle - reach, middle + reach))
