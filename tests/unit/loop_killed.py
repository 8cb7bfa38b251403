"""Run by a test: trains once unbroken, then in children that are killed (SIGKILL) until one gets through; compares.

Every second child kills itself at a random file operation of a checkpoint, the others at a random step. Forked children
of a process with one thread and no OpenMP region are safe.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

import torch
from loop_toys import EVERYTHING, Towers, make, noisy, run, same

from avcl import files
from avcl.loop import checkpoint
from avcl.loop.checkpoint import latest_checkpoint

SETTINGS = EVERYTHING | {"epochs": 4, "patience": 3, "micro_batch": 3}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def child(folder: Path, kill: tuple[str, int] | None, workers: int) -> None:
    """Train in ``folder``; ("step", k): die in step k; ("file", k): die at the k-th file operation of a checkpoint."""
    if kill and kill[0] == "step":
        losses = Towers.losses

        def dying(self, encoded, batch, at):
            if at.step == kill[1]:
                die()
            return losses(self, encoded, batch, at)

        Towers.losses = dying
    if kill and kill[0] == "file":
        count = [0]

        def counted(operation):
            def wrapped(*args, **kwargs):
                count[0] += 1
                if count[0] == kill[1]:
                    die()
                return operation(*args, **kwargs)

            return wrapped

        checkpoint.save_file, files.fsync = counted(checkpoint.save_file), counted(files.fsync)
        files.os.replace = counted(os.replace)
        files.shutil.rmtree = counted(files.shutil.rmtree)
    run(folder, system=make(**SETTINGS), transforms=(noisy,), workers=workers)


def forked(folder: Path, kill: tuple[str, int] | None, workers: int) -> int:
    process = os.fork()
    if process == 0:
        code = 1
        try:
            child(folder, kill, workers)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(root: Path) -> None:
    torch.set_num_threads(1)
    run(max_steps=1)  # imports everything once, for all children
    assert forked(root / "whole", None, 0) == 0
    draw, kills = random.Random(0), {"step": 0, "file": 0}
    for turn in range(14):
        reached = max((int(p.name[5:]) for p in (root / "cut" / "checkpoints").glob("step-*")), default=0)
        if turn % 2:
            kill = ("step", reached + draw.randrange(4))
        else:
            kill = ("file", draw.randrange(1, 24))
        code = forked(root / "cut", kill, workers=turn % 3 == 0)
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        kills[kill[0]] += 1
    assert forked(root / "cut", None, 1) == 0
    whole, cut = latest_checkpoint(root / "whole" / "checkpoints"), latest_checkpoint(root / "cut" / "checkpoints")
    equal = same(whole.tensors, cut.tensors) and whole.state["history"] == cut.state["history"]
    print(json.dumps({"kills": sum(kills.values()), "in_checkpoint": kills["file"], "same": equal}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
