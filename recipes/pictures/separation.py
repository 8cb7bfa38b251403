"""The picture of the family "separation": spectrograms before and after, beside the picture that guided."""

from __future__ import annotations

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

FFT, HOP = 512, 64
FLOOR = -50  # dB below the loudest bin of the mixture


def draw(model_folder: Path, out: Path) -> str:
    """One held-out mixture of the world and what the model makes of it; the caption says what it gains."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

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
    write_atomic(out, lambda part: figure.savefig(part, dpi=90, format="png"))
    pyplot.close(figure)
    return (
        f"Two sounds at equal level, a {names[0]} and a {names[1]}, taken apart by {model.name}, each guided by its own "
        f"picture: SI-SDR gain {gains[one].mean():.1f} dB (median of {len(gains)} held-out mixtures {np.median(gains.mean(1)):.1f} dB)."
    )


def _gain(stems: torch.Tensor, mixture: torch.Tensor, made: torch.Tensor) -> np.ndarray:
    """SI-SDR of the answer [S, T] above that of the mixture [T], of each source."""
    whole = mixture.expand_as(stems).numpy()
    return si_sdr(stems.numpy(), made.numpy()).value - si_sdr(stems.numpy(), whole).value


def _level(wave: torch.Tensor) -> np.ndarray:
    """dB [F, N]."""
    power = stft(wave[None], n_fft=FFT, hop=HOP)[0].abs().square().T
    return (10 * torch.log10(power.clamp(min=1e-12))).numpy()
