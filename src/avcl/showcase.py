"""``demo``: the main job from end to end on the built-in world, in a few minutes on two cores, without a file of one's
own.

Train on freshly rendered clips → export held-out clips as real video files → measure → index → search both ways →
report.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from avcl import api, archive
from avcl.data.dataset import Splits
from avcl.data.world import World, export
from avcl.errors import ExistsError
from avcl.files import read_json, write_json
from avcl.model import Media

PRESET = "retrieval"
STEPS = 300  # with a batch of 64: the figures in docs/results.md were measured with this many
STEPS_PER_EPOCH = 50
BATCH = 64
RETIME = 0.7  # share of training sounds that are of the same object at another moment, so that class is learned too
MARKER = "demo.json"


def demo(
    out: Media = "demo",
    *,
    seed: int = 0,
    steps: int | None = None,
    clips: int = 200,
    force: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Returns {"mean", "chance", "untrained", "report", ...}: R@k by pair and mAP by class over ``clips`` held-out
    clips.
    """
    steps = steps or STEPS
    settings = {"seed": seed, "steps": steps, "clips": clips}
    folder = _prepare(Path(out), settings, force=force)
    started = time.monotonic()

    def say(text: str) -> None:
        if progress:
            print(f"[{time.monotonic() - started:5.0f} s] {text}", file=sys.stderr, flush=True)

    epochs = max(1, round(steps / STEPS_PER_EPOCH))
    per_epoch = BATCH * max(1, steps // epochs)
    total = epochs * per_epoch
    say(f"training infonce on {total} fresh clips of the world ({total // BATCH} steps of {BATCH})")
    fresh = World(PRESET, clips=per_epoch, seed=seed, split="train", fresh=True, retime=RETIME)
    val = World(PRESET, clips=100, seed=seed, split="val")
    test = World(PRESET, clips=clips, seed=seed, split="test")
    if (folder / "run" / "config.json").exists():  # of a demo that was stopped after its training
        model = api.load(folder / "run")
    else:
        model = api.train(
            "infonce",
            Splits(all=test, train=fresh, val=val, test=test, official=True),
            seed=seed,
            settings={"epochs": epochs, "batch_size": BATCH},
            out=folder / "run",
            workers=1,
            progress=progress,
        )

    say(f"exporting {clips} held-out clips as video files")
    export(PRESET, folder / "media", clips=clips, seed=seed, split="test", workers=2, progress=progress)
    held_out = api.load_data(folder / "media").all

    say("measuring")
    page = folder / "report.html"
    by_pair, by_class = api.evaluate_each(model, held_out, ("pair", "class"), controls=True, report=page)

    say("indexing and searching")
    counts = archive.build(folder / "media", model=folder / "run", out=folder / "index", progress=progress)
    query = sorted((folder / "media").glob("*.webm"))[0]
    sounds = archive.search(folder / "index", video=query, k=3)
    pictures = archive.search(folder / "index", audio=query, k=3)
    for name, hits in (("sounds for the picture", sounds), ("pictures for the sound", pictures)):
        say(f"{name} of {query.name}: " + ", ".join(f"{Path(h.path).name} {h.score:.2f}" for h in hits))

    def row(field: str) -> dict[str, float]:
        pair, cls = getattr(by_pair, field)["mean"], getattr(by_class, field)["mean"]
        return {"R@1": pair["R@1"], "R@10": pair["R@10"], "mAP": cls["mAP"]}

    seconds = round(time.monotonic() - started, 1)
    say(f"done; open {page}")
    result = {
        "mean": row("scores"),
        "chance": row("chance"),
        "untrained": row("untrained"),
        "wrong_partner": row("wrong_partner"),
        "interval": row("interval"),
        "report": str(page),
        "segments": counts["segments"],
        "seconds": seconds,
    }
    write_json(folder / MARKER, {"settings": settings, "finished": True, **result})
    return result


def _prepare(folder: Path, settings: dict[str, int], *, force: bool) -> Path:
    """``folder``, empty or with an unfinished demo of these settings to go on with; ``force`` replaces another demo."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARKER).exists())):
        raise ExistsError("holds something that is not a demo.", file=folder, hint="Choose another --out.")
    if (folder / MARKER).exists():
        earlier = read_json(folder / MARKER)
        if earlier.get("finished") or earlier.get("settings") != settings:
            if not force:
                raise ExistsError("holds another demo.", file=folder, hint="Replace it with --force.")
            shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MARKER, {"settings": settings, "finished": False})
    return folder
