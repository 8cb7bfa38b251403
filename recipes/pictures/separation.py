"""Separation: two sounds at once, and the pictures of their sources to take them apart by.

**Recipe.** Clips of a batch are mixed with each other at equal level, so the truth costs nothing; two seconds at 8 kHz,
64 logarithmic bands, a small U-Net in bfloat16. The pictures of both sides of a mixture go through one batch
normalization, and what the picture network says is normalized before it steers the sound: then masks begin to follow
the picture within a hundred steps. Sound of Pixels renders three frames a clip, as it looks for no motion. **Traps.**
With a residual frame network and codes that hardly differ between clips the masks stay at one half (a loss of ln 2 a
bin, nothing in 320 steps); a stem of 4 x 4 patches with layer norm and GELU, and normalized codes, cured it. They were
changed together: which of them did it was not measured.
Hard masks, as in the papers, are 3 to 6 dB below soft ones at this size and swing by as much from one measurement to
the next. A separator that falls silent where it fails would look better if silent answers were dropped: here they count
as -30 dB. The mixture itself gains 0 dB by definition, and so does any answer that ignores the pictures; with the
pictures exchanged a model that looks is far below zero.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from avcl import trials
from avcl.data import collate
from avcl.data.mixtures import guides_of
from avcl.dsp.spectrum import stft
from avcl.files import write_atomic
from avcl.metrics.separation import si_sdr
from avcl.model import Model
from avcl.task import bare
from avcl.tasks.separation import Separation

SYSTEM = "zhao2018_sound_of_pixels"
FFT, HOP = 512, 64
FLOOR = -50  # dB below the loudest bin of the mixture


def draw(model_folder: Path, out: Path) -> str:
    """One held-out mixture of the world and what the model makes of it; the caption says what it gains."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    model = Model.load(model_folder)
    _, trial = trials.trial_of(type(model.system))
    rows = Separation().items(trials.world_of(trial, clips=48, split="test").configure(model.inputs))
    batch = collate([rows.clip(i) for i in range(len(rows))])
    shown = bare(batch).to("cpu")
    made = model.system.separate(shown.audio, guides_of(shown))[..., 0]
    stems, mixture = batch.extras["stems"][..., 0], batch.audio.data[..., 0]
    gains = np.stack([_gain(s, m, e) for s, m, e in zip(stems, mixture, made, strict=True)])
    one = int(np.abs(gains.mean(1) - np.median(gains.mean(1))).argmin())  # neither the best nor the worst
    names = [rows.labels[k] for k in batch.extras["classes"][one].tolist()]
    rate = batch.audio.rate
    top = _level(mixture[one]).max()

    figure, axes = pyplot.subplots(2, 4, figsize=(11, 4.6), width_ratios=[0.72, 1, 1, 1], layout="constrained")
    seconds, nyquist = mixture.shape[1] / rate, rate / 2000
    how = {"origin": "lower", "aspect": "auto", "extent": (0, seconds, 0, nyquist), "vmin": top + FLOOR, "vmax": top}
    for k, row in enumerate(axes):
        frame = batch.streams[f"guide{k}:video"].data[one, 0].permute(1, 2, 0).numpy()
        row[0].imshow(frame)
        row[0].set_title(f"the guide: {names[k]}", fontsize=9)
        row[0].axis("off")
        for axis, wave, title in (
            (row[1], mixture[one], "the mixture"),
            (row[2], made[one, k], f"separated: {gains[one, k]:+.1f} dB"),
            (row[3], stems[one, k], "what it was"),
        ):
            axis.imshow(_level(wave), cmap="magma", **how)
            axis.set_title(title, fontsize=9)
            axis.tick_params(labelsize=7)
        row[1].set_ylabel("kHz", fontsize=8)
    for axis in axes[1, 1:]:
        axis.set_xlabel("seconds", fontsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90, format="png")
    few = Image.open(drawn).convert("RGB").quantize(128)  # a third of the bytes
    write_atomic(out, lambda part: few.save(part, format="png", optimize=True))
    pyplot.close(figure)
    middle = np.median(gains.mean(1))
    return (
        f"Two sounds at equal level, a {names[0]} and a {names[1]}, taken apart by {model.name}, each guided by its "
        f"own picture: SI-SDR gain {gains[one].mean():.1f} dB (median of {len(gains)} held-out mixtures: {middle:.1f})."
    )


def _gain(stems: torch.Tensor, mixture: torch.Tensor, made: torch.Tensor) -> np.ndarray:
    """SI-SDR of the answer [S, T] above that of the mixture [T], of each source."""
    whole = mixture.expand_as(stems).numpy()
    return si_sdr(stems.numpy(), made.numpy()).value - si_sdr(stems.numpy(), whole).value


def _level(wave: torch.Tensor) -> np.ndarray:
    """dB [F, N]."""
    power = stft(wave[None], n_fft=FFT, hop=HOP)[0].abs().square().T
    return (10 * torch.log10(power.clamp(min=1e-12))).numpy()
