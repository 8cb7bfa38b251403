"""The world as real files: ``<id>.webm``, ``truth.jsonl``, ``truth/<id>.npz``, ``manifest.csv``, ``labels.txt`` and
``world.json`` (what it is).

Every file is written beside and renamed. An export that was cut short goes on where it stopped: a clip counts as done
when both its files are there. The two tables come last; a folder without them is not finished.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from avcl.data.world.generated import World, spoken
from avcl.data.world.presets import RENDER_VERSIONS, render
from avcl.data.world.values import Preset, Rendered
from avcl.errors import ConfigError, ExistsError, WorkerError
from avcl.files import Lock, read_json, sweep, write_atomic, write_json
from avcl.media import write_video
from avcl.progress import tracked
from avcl.types import jsonable

CONTAINERS = ("webm", "mp4", "mkv")
_NOTE = "world.json"


@dataclass(frozen=True)
class _Job:
    """One clip to write; a plain value, for it travels to worker processes."""

    preset: Preset
    seed: int
    split: str
    index: int
    id: str
    video: str
    truth: str


def export(
    preset: str | Preset,
    out: str | Path,
    *,
    clips: int,
    seed: int = 0,
    split: str = "all",
    container: Literal["webm", "mp4", "mkv"] = "webm",
    workers: int | None = None,
    force: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Write ``World(preset, clips=clips, seed=seed, split=split)`` to the folder ``out``; the ids are the same.

    ``container``: webm is VP9 + Opus, mp4 and mkv are MPEG-4 + AAC · ``workers``: processes (None: one per core; 0 or
    1: this one) · ``force``: replace an export of something else. Asking again for more clips adds to what is there.
    truth.jsonl has one line a clip: id, video, preset, seed, split, index, label and the truth of the scene. npz:
    masks, boxes, stems and whatever else the preset knows, by name; the spoken caption where captions are the task.
    Raises ``ExistsError`` where ``out`` holds anything else.
    """
    if container not in CONTAINERS:
        raise ConfigError(f'container "{container}" is not one of {", ".join(CONTAINERS)}.', hint="Use webm.")
    world = World(preset, clips=clips, seed=seed, split=split)
    folder = Path(out)
    began = time.monotonic()
    _refuse_strangers(folder)
    with Lock(folder):
        _claim(folder, world, container, force)
        jobs = [
            _Job(
                world.preset,
                seed,
                split,
                i,
                name,
                str(folder / f"{name}.{container}"),
                str(folder / "truth" / f"{name}.npz"),
            )
            for i, name in enumerate(world.ids)
        ]
        done = dict(tracked(_results(jobs, workers), len(jobs), f"rendering {world.preset.name}", shown=progress))
        lines = [done[job.index][0] for job in jobs]
        write_atomic(folder / "truth.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        if world.labels:  # so that class numbers are the same here and in the world
            write_atomic(folder / "labels.txt", "".join(f"{name}\n" for name in world.labels))
        write_atomic(folder / "manifest.csv", _manifest(lines, world.labels))
    written = sum(new for _, new in done.values())
    return {
        "out": str(folder),
        "preset": world.preset.name,
        "seed": seed,
        "split": split,
        "container": container,
        "clips": clips,
        "written": written,
        "kept": clips - written,
        "labels": list(world.labels),
        "seconds": round(time.monotonic() - began, 2),
    }


# ---------------------------------------------------------------------------------------------------------- the folder
def _refuse_strangers(folder: Path) -> None:
    """``ExistsError`` where ``folder`` holds anything but an export; nothing is touched."""
    if folder.exists() and not folder.is_dir():
        raise ExistsError("is a file.", file=folder, hint="Give a folder.")
    there = {p.name for p in folder.iterdir()} - {".lock"} if folder.exists() else set()
    if there and _NOTE not in there:
        raise ExistsError("the folder holds something else than a world.", file=folder, hint="Give an empty folder.")


def _claim(folder: Path, world: World, container: str, force: bool) -> None:
    """Make the locked folder ready for this export: the note says what it is, leftovers of killed writers are gone."""
    note = {"preset": world.preset.identity, "seed": world.seed, "split": world.split, "container": container}
    note = json.loads(json.dumps(jsonable({**note, "version": RENDER_VERSIONS[world.preset.scene]})))
    known = read_json(folder / _NOTE) if (folder / _NOTE).exists() else note
    if known != note:
        if not force:
            hint = "Use force to replace it, or another folder."
            same = _words(known) == _words(note)
            what = "this world with other settings or of another version" if same else "another world"
            raise ExistsError(f"the folder holds {what} ({_words(known)}).", file=folder, hint=hint)
        _clear(folder, known)
    (folder / "truth").mkdir(exist_ok=True)
    for place in (folder, folder / "truth"):
        sweep(place)
    write_json(folder / _NOTE, note)


def _words(note: dict[str, Any]) -> str:
    return f"{note['preset']['name']}, seed {note['seed']}, split {note['split']}, {note['container']}"


def _clear(folder: Path, note: dict[str, Any]) -> None:
    """Remove what the export described by ``note`` wrote, and nothing else."""
    for name in ("truth.jsonl", "manifest.csv", "labels.txt", _NOTE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "truth", ignore_errors=True)
    for path in folder.glob(f"{note['preset']['name']}-{note['seed']}-{note['split']}-*.{note['container']}"):
        path.unlink()


def _manifest(lines: Sequence[dict[str, Any]], labels: Sequence[str]) -> str:
    grouped = any("group" in line for line in lines)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    # A column "text" is a stream to learn from; elsewhere than in the preset that is about them, captions only inform.
    words = "text" if any(line["preset"] == "captions" for line in lines) else "caption"
    writer.writerow(["id", "video", "label", words, *(["group"] if grouped else [])])
    for line in lines:
        label = labels[line["label"]] if line["label"] >= 0 else ""
        group = [line.get("group", line["id"])] if grouped else []
        writer.writerow([line["id"], line["video"], label, line.get("caption", ""), *group])
    return table.getvalue()


# ----------------------------------------------------------------------------------------------------------- the clips
def _results(jobs: Sequence[_Job], workers: int | None) -> Iterator[tuple[int, tuple[dict[str, Any], bool]]]:
    count = min((os.cpu_count() or 1) if workers is None else workers, len(jobs))
    if count <= 1:
        yield from map(_write_clip, jobs)
        return
    # spawned, for a forked child of a process with threads may hang
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread)
    try:
        with pool:
            yield from pool.map(_write_clip, jobs, chunksize=4)
    except BrokenProcessPool:
        raise WorkerError("a rendering process died.", hint="Use fewer workers; asking again goes on.") from None


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _write_clip(job: _Job) -> tuple[int, tuple[dict[str, Any], bool]]:
    """Render a clip and write what is not there yet; its line of truth.jsonl and whether anything was written."""
    clip = render(job.preset, job.seed, job.index, stream=job.split, truth=True)
    video, truth = Path(job.video), Path(job.truth)
    new = not (video.exists() and truth.exists())
    if new:
        arrays = dict(clip.arrays)
        if job.preset.task == "captions":
            arrays["speech"] = spoken(job.preset.name, job.seed, job.index, job.split, clip)
        write_atomic(truth, lambda part: _save_arrays(part, arrays))
        write_atomic(
            video, lambda part: write_video(part, clip.video, clip.audio, fps=clip.fps, sample_rate=clip.sample_rate)
        )
    return job.index, (_line(job, clip), new)


def _line(job: _Job, clip: Rendered) -> dict[str, Any]:
    head = {"id": job.id, "video": Path(job.video).name, "preset": job.preset.name, "seed": job.seed}
    head |= {"split": job.split, "index": job.index, "label": clip.label}
    if job.preset.disjoint:
        head["group"] = job.preset.labels[clip.label]
    head |= {"fps": clip.fps, "sample_rate": clip.sample_rate}
    return {**head, **jsonable(clip.truth)}


def _save_arrays(part: Path, arrays: dict[str, np.ndarray]) -> None:
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
