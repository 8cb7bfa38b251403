"""Video to speech

The silent mouth speaks. **Recipe.** 1,000 sentences of four speakers, 25 frames a second, 8 kHz, kept in memory and
seen 12 times. A linear head announces the log-mel of every frame over the *whole* clip, and its error counts ten times;
the wave is made, compared and judged in random windows of 0.32 s. At weight 1 the made words stayed near the errors of
a fixed sentence (WER .72 against .75); weight 10 and a slow warm-up brought .46. The critics come in for the last
tenth: before the spectrum stands there is nothing to polish. **Traps.** A recognizer that is not itself perfect on true
speech measures itself: with batches of 32 it missed four keywords in five after 20 epochs and none with batches of 16
after 30, so its own errors are printed beside. How loud somebody speaks cannot be seen: every clip is brought to one
loudness. mama, papa and baba have equal lips. STOI decides, for it grades what a recognizer calls all or nothing; a
voice that says something else well still scores .2.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

import avcl
from avcl import trials
from avcl.data import collate
from avcl.data.derived import Kept
from avcl.data.tokens import strings_of
from avcl.encoders.audio import log_mel_stream
from avcl.files import write_atomic
from avcl.model import Model
from avcl.task import bare
from avcl.tasks.speech import Speech
from avcl.types import Stream

SYSTEM = "mira2021_video_to_speech_gan"

CLIPS = 120
SHOWN = 3
FRAMES = 25


def draw(model_folder: Path, out: Path) -> str:
    """Held-out clips of the world: the mouth, the true sound and the sound made of the mouth; the caption with the
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
    kept, task = Kept(world), Speech(bootstrap=0, **trial.protocol)
    reads = {"sample_rate": model.inputs.sample_rate, "fps": model.inputs.fps, "size": model.inputs.size}
    settings = reads | dict(task.judge_settings(fit))
    judge = avcl.train(task.judge, Kept(fit), seed=task.seed, settings=settings, workers=0)
    outputs = task.predict(model.system, kept, fit=fit, judge=judge)
    scores = task.score(outputs).scores
    said, heard = strings_of(outputs["said"]), strings_of(outputs["heard"])
    batch = collate([kept.clip(i) for i in range(SHOWN)]).to("cpu")
    made = model.system.generate(bare(batch, "audio", "transcript", "text"), torch.Generator().manual_seed(0))
    figure, rows = pyplot.subplots(3 * SHOWN, 1, figsize=(9, 2.7 * SHOWN), height_ratios=[1.0, 1.5, 1.5] * SHOWN)
    for i in range(SHOWN):
        film, true, spoken = rows[3 * i : 3 * i + 3]
        film.imshow(_mouths(model, batch.video, i), aspect="auto")
        for axes, sound, words, text in (
            (true, batch.audio, "true", said[i]),
            (spoken, made, "made", f"understood: {heard[i]}"),
        ):
            mel = log_mel_stream(sound).data[i].numpy()
            axes.imshow(mel.T, origin="lower", aspect="auto", cmap="magma")
            axes.set_ylabel(words, fontsize=8)
            axes.text(0.01, 0.93, text, color="white", fontsize=9, va="top", transform=axes.transAxes)
        for axes in (film, true, spoken):
            axes.set(xticks=[], yticks=[])
    figure.subplots_adjust(left=0.04, right=0.995, top=0.995, bottom=0.005, hspace=0.06)
    whole = io.BytesIO()
    figure.savefig(whole, dpi=80)
    pyplot.close(figure)
    few = Image.open(whole).convert("RGB").quantize(128)
    write_atomic(out, lambda part: few.save(part, "PNG", optimize=True))
    found, true_wer = scores["generated"], scores["true speech"]["WER"]
    return (
        f"{model.name} on three held-out clips of the world: the mouth, the true sound with what is said, the sound "
        f"made of the silent mouth with what a recognizer of true speech understands. Over {CLIPS} clips WER "
        f"{found['WER']:.2f} (of the true sound {true_wer:.2f}), STOI {found['STOI']:.2f}."
    )


def _mouths(model: Model, video: Stream, row: int) -> np.ndarray:
    """``FRAMES`` crops of the mouth side by side [h, w · FRAMES, 3]."""
    top, bottom, left, right = model.system.config.mouth
    height, width = video.data.shape[3:]
    at = np.linspace(0, video.data.shape[1] - 1, FRAMES).astype(int)
    crop = video.data[row, at, :, int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
    return np.concatenate([frame.permute(1, 2, 0).numpy() for frame in crop], 1)
