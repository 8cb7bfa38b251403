"""Cross-modal generation

Each modality alone must explain both, through one code and one decoder. **Recipe.** Clips are read and generated as
fixed views that can be turned back into a stream: of sound how loud it is in each slot of time, its spectrum and the
rest of its log-mel; of pictures the mean picture, and where and when they change. Every number is standardized and the
blocks of a view count alike, in the input, in the loss and in the score; 3,000 clips of 32 × 32 pixels and 8 kHz are
kept in memory and seen 25 times. With unscaled inputs and the log-mel in one block the reciprocal rank stayed at .05 to
.08 (432 numbers of a picture that no sound tells drown the 24 that say when); convolutional towers trained
along were at .05 after 200 steps that cost as much as 1,000 of these. **Traps.** The squared error yields the mean of
what is possible: of frames a gray haze that does not move, so how much a picture changes is a target of its own, and
the picture that is made brightens and darkens instead of pretending to show an object. The Fréchet distance does not
see a wrong partner at all; an untrained copy that answers everything alike scores exactly chance; and in these views
even the true pictures are given their class in 14 to 19 % only (chance 8 %), so the class of a generated picture says
nothing here. The rank of the own clip decides, and it rests on the sound that is made (.17 and .20) more than on the
picture (.07 and .08, just clear of a random training picture, whose interval ends at .05).
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from avcl import trials
from avcl.data import collate
from avcl.data.derived import Kept
from avcl.encoders.views import PLACES, SoundView
from avcl.files import write_atomic
from avcl.model import Model
from avcl.task import bare
from avcl.tasks.generation import Generation
from avcl.types import Batch, Stream

SYSTEM = "zhu2021b_msvae_crossmodal_generation"

CLIPS = 200
SHOWN = 3
TRUE, MADE = "#333333", "#2f7d4f"


def draw(model_folder: Path, out: Path) -> str:
    """Three held-out clips: the picture made of their sound and the sound made of their picture; the caption with the
    scores of all.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    model = Model.load(model_folder)
    _, trial = trials.trial_of(type(model.system))
    world = trials.world_of(trial, clips=CLIPS, split="test").configure(model.inputs)
    fit = trials.world_of(trial, clips=trial.clips, split="train").configure(model.inputs)
    kept, task = Kept(world), Generation(bootstrap=0)
    scores = task.score(task.predict(model.system, kept, fit=fit))
    batch = collate([kept.clip(i) for i in range(SHOWN)]).to("cpu")
    made = {name: _made(model, batch, name) for name in ("audio", "video")}
    figure = pyplot.figure(figsize=(10, 1.75 * SHOWN))
    grid = figure.add_gridspec(SHOWN, 5, width_ratios=[1, 1, 2, 1.7, 1.7], wspace=0.12, hspace=0.18)
    heads = ("a frame", "made of the sound", "change of the picture", "sound (log-mel)", "made of the picture")
    for row in range(SHOWN):
        axes = [figure.add_subplot(grid[row, k]) for k in range(5)]
        for k, stream in enumerate((batch.video, made["video"])):
            axes[k].imshow(stream.data[row, stream.data.shape[1] // 2].permute(1, 2, 0).clamp(0, 1).numpy())
        seconds = (np.arange(1, task.slots) + 0.5) * task.seconds / task.slots
        for stream, color, label in ((batch.video, TRUE, "true"), (made["video"], MADE, "made of the sound")):
            axes[2].plot(seconds, _change(task, stream)[row], color=color, label=label, lw=1.5)
        for k, stream in ((3, batch.audio), (4, made["audio"])):
            bands = _bands(task, stream)[row]
            axes[k].imshow(
                bands.T, origin="lower", aspect="auto", cmap="magma", extent=(0, task.seconds, 0, task.bands)
            )
        for k, one in enumerate(axes):
            one.set(yticks=[])
            one.tick_params(labelsize=7)
            if k < 2 or row + 1 < SHOWN:
                one.set(xticks=[])
            if row == 0:
                one.set_title(heads[k], fontsize=8)
    lines = axes[2].get_legend_handles_labels()
    figure.legend(*lines, fontsize=7, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.44, 0.99))
    axes[3].set_xlabel("seconds", fontsize=7)
    whole = io.BytesIO()
    figure.savefig(whole, dpi=90, bbox_inches="tight")
    pyplot.close(figure)
    write_atomic(out, lambda part: Image.open(whole).convert("RGB").quantize(128).save(part, "PNG", optimize=True))
    ranks = [scores.scores[way]["MRR"] for way in ("audio_to_video", "video_to_audio")]
    return (
        f"{model.name} on three held-out clips of the world: a frame, the picture made of the sound (what sound cannot "
        "tell, color and place, is the mean), when the picture changes, and the sound made of the picture; among "
        f"{CLIPS} clips the true picture of a generated one has the reciprocal rank {ranks[0]:.2f}, the true sound "
        f"{ranks[1]:.2f} (chance {scores.chance['both']['MRR']:.2f})."
    )


def _made(model: Model, batch: Batch, target: str) -> Stream:
    shown = bare(batch).without(target).to(model.device)
    return model.system.generate(shown, torch.Generator().manual_seed(0))


def _change(task: Generation, stream: Stream) -> np.ndarray:
    """[B, slots - 1]: how much the picture changes, in units of the clip."""
    view = task._view(stream)
    still = 3 * task.side**2 + PLACES**2
    rows = view.of(stream)[:, still + 1 :].numpy()  # nothing comes before the first frame
    return (rows - rows.mean(1, keepdims=True)) / np.maximum(rows.std(1, keepdims=True), 1e-6)


def _bands(task: Generation, stream: Stream) -> np.ndarray:
    view = task._view(stream)
    assert isinstance(view, SoundView)
    return view.cells(view.of(stream)).numpy()
