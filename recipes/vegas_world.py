"""The order of the published VEGAS table, examined on generated clips of its shape.

VEGAS (Zhou et al. 2018; features of Zeng et al. 2020) has 28,103 clips of 10 classes, sound features of 128 and picture
features of 1,024 numbers, a fifth of them for the test. Here: ten classes of the world's preset ``retrieval``, the same
counts (or a ``--share`` of them), features from two frozen random towers (the same seed always), mean and, for sound,
maximum over time, and a PCA of the training rows to 128 and 1,024 numbers. ``avcl.compare`` trains the systems of the
published table under its own rules; Spearman's correlation of our order with the papers' is reported with its interval.

    python recipes/vegas_world.py [--share 0.25] [--seeds 2] [--budget 2] [--work FOLDER]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import compared, comparison_parser, workplace, write_result

import avcl
from avcl.data import Loader
from avcl.data.world import PRESETS, Preset, World
from avcl.encoders.audio import LogMelConv
from avcl.encoders.segments import CellConv
from avcl.progress import Progress
from avcl.seeds import seeded
from avcl.types import Inputs

SYSTEMS = ("cca", "c_cca", "c_dcca", "zeng2020_tnn_c_cca", "zeng2021_eics", "zhang2021_vae_cca", "semantic_matching")
COUNTS = {"train": 20_230, "val": 2_252, "test": 5_621}  # a tenth of the training rows to stop by
CLASSES, SOUND, PICTURE = 10, 128, 1024
CELLS, FRAMES_PER_SECOND = 4, 2.0  # a picture of 64 pixels has 4 × 4 cells of 64 numbers: 1,024


def towers() -> tuple[LogMelConv, CellConv]:
    """Random, the same ones always."""
    with seeded(0, "vegas-like towers"):
        return LogMelConv(dim=SOUND).eval(), CellConv((32, 64, PICTURE // CELLS**2)).eval()


@torch.no_grad()
def features(preset: Preset, split: str, clips: int, *, seed: int, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows of one split before the PCA: sound [N, 2 · 128], picture [N, 1024], and labels as words."""
    world = World(preset, clips=clips, split=split, seed=seed)  # type: ignore[arg-type]
    shown = world.configure(Inputs(fps=FRAMES_PER_SECOND, size=(64, 64), sample_rate=8000, window=preset.seconds))
    rows = [i for i, target in enumerate(shown.targets) if world.labels[target] in classes]
    hear, see = towers()
    found: dict[str, list[np.ndarray]] = {"audio": [], "video": [], "label": []}
    with Loader(shown.subset(rows), batch_size=64, workers=1) as loader, Progress(len(rows), split, shown=True) as bar:
        for batch in loader.batches(0):
            batch = batch.to("cpu")
            sound, picture = hear(batch.audio).data, see(batch.video).data
            found["audio"].append(torch.cat([sound.mean(1), sound.amax(1)], 1).numpy())
            found["video"].append(picture.mean(1).flatten(1).numpy())
            found["label"].append(np.array([world.labels[i] for i in batch.label.tolist()]))
            bar.update(sum(len(part) for part in found["label"]), "")
    return {name: np.concatenate(parts) for name, parts in found.items()}


def principal(rows: np.ndarray, fit: np.ndarray, dim: int) -> np.ndarray:
    """The first ``dim`` principal components of ``fit``, of ``rows``."""
    mean = fit.mean(0)
    _, vectors = np.linalg.eigh(np.cov((fit - mean).T.astype(np.float64)))
    return ((rows - mean) @ vectors[:, ::-1][:, :dim]).astype(np.float32)


def made_of_world(
    path: Path,
    *,
    share: float = 1.0,
    seed: int = 0,
    preset: Preset = PRESETS["retrieval"],
    counts: Mapping[str, int] = COUNTS,
    classes: int = CLASSES,
) -> Path:
    """The feature file ``path`` of the first ``classes`` of a preset; made once."""
    if path.exists():
        return path
    names, whole = preset.labels[:classes], len(preset.labels)
    parts = {
        s: features(preset, s, round(share * n * whole / classes), seed=seed, classes=names) for s, n in counts.items()
    }
    fit = parts["train"]
    arrays: dict[str, Any] = {
        name: principal(np.concatenate([p[name] for p in parts.values()]), fit[name], dim)
        for name, dim in (("audio", SOUND), ("video", PICTURE))
    }
    arrays["label"] = np.concatenate([p["label"] for p in parts.values()])
    arrays["split"] = np.concatenate([np.full(len(p["label"]), name) for name, p in parts.items()])
    np.savez(path, **arrays)
    return path


def main(argv: Sequence[str] | None = None) -> None:
    parser = comparison_parser(__doc__, systems=",".join(SYSTEMS), seeds=2, budget=2.0)
    parser.add_argument("--share", type=float, default=0.25, help="of the counts of VEGAS")
    given = parser.parse_args(argv)
    with workplace(given.work) as work:
        data = made_of_world(work / "features.npz", share=given.share, counts=COUNTS)
        made = avcl.compare(
            data, out=work / "runs", systems=given.systems, seeds=given.seeds, budget=given.budget, progress=True
        )
    counts = ", ".join(f"{round(given.share * n):,} {name}" for name, n in COUNTS.items())
    about = (
        f"Ten classes of the world, {counts} clips ({given.share:g} of VEGAS' counts), frozen random towers and PCA to "
        f"{SOUND} and {PICTURE} numbers; {given.seeds} seeds, at most {given.budget:g} minutes each, default settings."
    )
    print(made)
    write_result(
        given.results,
        "retrieval/vegas_world",
        compared(made, "The published VEGAS table, on clips of the world", about, vegas=True),
    )


if __name__ == "__main__":
    main()
