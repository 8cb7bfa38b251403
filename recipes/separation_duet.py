"""The verb ``separate`` on duets: two objects in one picture, each cut out by its box, measured against the true stems.

A separator that was trained on solo clips, mixed in pairs, is given what it never saw: both sources in one file. The
box of each is its half of the picture.

    python recipes/separation_duet.py RUNS        RUNS/<system>/0 are the models that recipes/families.py kept
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import main

from avcl.apply.separate import Box, separate
from avcl.data.world import World
from avcl.media import read_audio, write_video
from avcl.metrics.intervals import bootstrap, mean_statistic
from avcl.metrics.separation import si_sdr
from avcl.model import Model
from avcl.types import Clip, Inputs

SYSTEMS = ("zhao2018_sound_of_pixels", "zhao2019_sound_of_motions")
PRESET, RATE, FPS = "separation-duet", 16_000, 25.0


def lanes(clip: Clip) -> dict[str, Box]:
    """The half of the picture in which each of the two sources is, in the order of the stems."""
    where = clip.extras["positions"][:, :2, 0].mean(0)
    side = clip.streams["video"].data.shape[-1]
    left, right = Box(0, 0, side // 2, side), Box(side // 2, 0, side, side)
    return {name: left if x < side / 2 else right for name, x in zip(("one", "two"), where.tolist(), strict=True)}


def gains(model: Model, duets: World, folder: Path) -> np.ndarray:
    """[N, 2]: mean SI-SDR gain of both stems of each file, as they are named and with the names exchanged."""
    found = []
    for i in range(len(duets)):
        clip = duets.clip(i)
        pictures = clip.streams["video"].data[0].permute(0, 2, 3, 1).numpy()
        path = folder / f"{i}.mkv"
        write_video(path, pictures, clip.streams["audio"].data[0], fps=FPS, sample_rate=RATE)
        result = separate(model, path, folder / str(i), boxes=lanes(clip))
        true = clip.extras["stems"][:2, :, 0].double().numpy()
        made = np.stack([read_audio(file).data[0, :, 0].double().numpy() for file in result["stems"].values()])
        steps = min(true.shape[1], made.shape[1])  # AAC may add some samples
        true, made = true[:, :steps], made[:, :steps]
        before = si_sdr(true, np.broadcast_to(true.sum(0), true.shape)).value
        found.append([(si_sdr(true, answer).value - before).mean() for answer in (made, made[::-1])])
    return np.array(found)


def run(runs: Path, *, seed: int = 0, files: int = 64, systems: Sequence[str] = SYSTEMS) -> Mapping[str, Any]:
    """Both separators on files with two sounding objects."""
    rows = []
    for name in systems:
        model = Model.load(runs / name / str(seed))
        inputs = Inputs(fps=FPS, sample_rate=RATE, window=3.0)
        duets = World(PRESET, clips=files, seed=seed, split="test", truth=True).configure(inputs)
        with tempfile.TemporaryDirectory() as folder:
            found = gains(model, duets, Path(folder))
        named = {"gain": found[:, 0], "names exchanged": found[:, 1]}
        spans = bootstrap(mean_statistic(named, np.arange(len(found)), len(found)), len(found))
        rows += [[name, k, round(float(v.mean()), 2), [round(x, 2) for x in spans[k]]] for k, v in named.items()]
        print(*rows[-2:], flush=True)
    return {
        "title": "Two sounding objects in one file, taken apart by boxes",
        "about": f"avcl separate on {files} files of world:{PRESET} (3 s, 25 pictures a second, MPEG-4 and AAC), each "
        f"box half of the picture; models trained on solo clips mixed in pairs, seed {seed}. Mean SI-SDR gain over the "
        "mixture in dB, with 95 % intervals; below it the same stems under each other's names.",
        "tables": [{"columns": ["system", "what", "SI-SDR gain", "interval"], "rows": rows}],
    }


if __name__ == "__main__":
    main(run, "runs", result="separation/duet")
