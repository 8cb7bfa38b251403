"""Spatial audio: from one channel and the picture, the sound at each ear.

**Recipe.** 200 steps of 32 fresh clips at 8 kHz, two segments of a third of a second of each; the two ears of 60 % of
the clips are used, the others teach by the consistency of what is louder and what is seen alone. The world shows one
source instead of the preset's two: which of two objects makes which partials was not tried for lack of time. **Traps.**
The same sound on both ears is a strong answer, and a network that does not look ends exactly there. Ours did for 200
steps, with the score of mono to three digits, the picture of another clip changing nothing, and the ears as good
exchanged: layer norm at every cell of the visual tower made cells in which nothing is as strong as the one with the
object. With each color brought to mean 0 and variance 1 over the picture and no norm behind, the side is learned within
a hundred steps. Hence the controls "mono" and "ears exchanged" beside the wrong partner: one ear alone is beaten by
anything. No flip of the picture may be among the augmentations.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from avcl import trials
from avcl.data import collate
from avcl.dsp.spectrum import stft
from avcl.files import write_atomic
from avcl.model import Model
from avcl.tasks.spatial import Spatial
from avcl.types import Batch

SYSTEM = "lin2021_spatial_audio_partial_supervision"
CLIPS, ROWS = 100, 3
FFT, HOP = 256, 64
RANGE = 10  # dB between the ears at which the colors end


def draw(model_folder: Path, out: Path) -> str:
    """Held-out clips of the world: picture, which ear is the louder one as it is, as it is made, and as it is made from
    the mirrored picture; the caption with the scores.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    model = Model.load(model_folder)
    _, trial = trials.trial_of(type(model.system))
    world = trials.world_of(trial, clips=CLIPS, split="test").configure(model.inputs)
    task = Spatial(bootstrap=0)
    outputs = task.predict(model.system, world)
    scores = task.score(outputs).scores["both ears"]
    mono = task.score(task.baselines(outputs)["mono"]).scores["both ears"]
    error = np.asarray(task.measures(outputs)["both ears"]["STFT"])
    plain = np.asarray(task.measures(task.baselines(outputs)["mono"])["both ears"]["STFT"])
    chosen = np.argsort(plain)[-ROWS * 8 :: 8][::-1]  # clips in which the ears differ
    batch = collate([world.clip(int(i)) for i in chosen])
    shown = task.shown(batch).to("cpu")
    mirrored = Batch(
        shown.id,
        {**shown.streams, "video": shown.video._replace(data=shown.video.data.flip(4))},
        shown.index,
        shown.view,
        shown.label,
        shown.group,
    )
    maps = {"the two ears": _louder(batch.audio.data)}
    for title, given in (("made from one channel", shown), ("made with the mirrored picture", mirrored)):
        maps[title] = _louder(model.system.generate(given, torch.Generator().manual_seed(0)).data)
    figure, axes = pyplot.subplots(ROWS, 4, figsize=(9, 4.6), gridspec_kw={"width_ratios": [1, 2, 2, 2]})
    for row in range(ROWS):
        frames = shown.video.data[row].permute(0, 2, 3, 1).numpy()
        axes[row, 0].imshow(frames[len(frames) // 2])
        axes[row, 0].set_ylabel(f"{error[chosen[row]]:.2f}, mono {plain[chosen[row]]:.2f}", fontsize=7)
        for axis, (title, louder) in zip(axes[row, 1:], maps.items(), strict=True):
            axis.imshow(louder[row].T, origin="lower", aspect="auto", cmap="coolwarm", vmin=-RANGE, vmax=RANGE)
            if row == 0:
                axis.set_title(title, fontsize=8)
        for axis in axes[row]:
            axis.set(xticks=[], yticks=[])
    whole = io.BytesIO()
    figure.savefig(whole, dpi=90, bbox_inches="tight")
    pyplot.close(figure)
    write_atomic(out, lambda part: Image.open(whole).convert("RGB").quantize(64).save(part, "PNG", optimize=True))
    return (
        f"{model.name} on held-out clips of the world: time (to the right) and frequency (up), red where the right ear "
        f"is the louder one and blue where the left one is; beside it the STFT distance of the clip and of mono. "
        f"Of {CLIPS} clips the mean is {scores['STFT']:.2f} (mono {mono['STFT']:.2f}), the louder ear is right in "
        f"{scores['louder ear']:.0%} of the quarter seconds (mono 50%)."
    )


def _louder(ears: torch.Tensor) -> NDArray[np.float64]:
    """[B, N, F] dB by which the right ear is louder, 0 where the sound is 35 dB below its loudest bin."""
    left, right = (stft(ears[:, :, c], n_fft=FFT, hop=HOP).abs().double().numpy() for c in (0, 1))
    total = np.maximum(left, right)
    decibels = 20 * np.log10((right + 1e-9) / (left + 1e-9))
    return np.where(total > 10 ** (-35 / 20) * total.max((1, 2), keepdims=True), decibels, 0.0)
