"""Run by a test in several processes that a launcher's variables bind together: trains, and writes what each found.

``python loop_together.py CASE FOLDER``: each process writes ``FOLDER/<rank>.safetensors`` and ``FOLDER/<rank>.json``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from loop_toys import EVERYTHING, SPEC, TRAIN, Config, Pairs, Towers, noisy, quiet, run
from safetensors.torch import save_file

from avcl.errors import AvclError, MissingFile
from avcl.files import Lock
from avcl.loop import launched
from avcl.systems.infonce import InfoNCE, InfoNCEConfig
from avcl.types import Card

RANK = int(os.environ["RANK"])


class Broken(Pairs):
    """The clip at which only one process can fail."""

    def clip(self, index, *, epoch=0, view=0):
        if self.keep[index] == 5:
            raise MissingFile("there is no such file.", file="clip5.mp4")
        return super().clip(index, epoch=epoch, view=view)


class Crash(BaseException):
    pass


class Crashing(Towers):
    at_step = None

    def losses(self, encoded, batch, at):
        if at.step == self.at_step:
            raise Crash
        return super().losses(encoded, batch, at)


class Interrupted(Towers):
    """The second process alone hears Ctrl-C."""

    def losses(self, encoded, batch, at):
        if at.step == 5 and RANK == 1:
            signal.raise_signal(signal.SIGINT)
        return super().losses(encoded, batch, at)


class Limited(Towers):
    card = Card("Toy", 2024, "Nowhere", limits={"cache": "its loss reads whole spectrograms"})


class Killed(Towers):
    def losses(self, encoded, batch, at):
        if at.step == 2 and RANK == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().losses(encoded, batch, at)


def built(cls, seed: int = 0, **settings) -> Towers:
    """Without a seed of its own in each process but the first: the loop hands its weights on."""
    torch.manual_seed(seed + RANK)
    return cls(Config(**settings), SPEC)


def infonce(**settings) -> InfoNCE:
    torch.manual_seed(0)
    return InfoNCE(replace(InfoNCEConfig.tiny(), dropout=0.0, batch_size=8, epochs=3, **settings), SPEC)


def outcome(call) -> dict:
    try:
        result = call()
    except AvclError as error:
        return {"error": error.code, "what": error.what}
    except (KeyboardInterrupt, Crash) as error:
        return {"error": type(error).__name__}
    return {"history": result.history, "best": result.best, "steps": result.steps, "early": result.stopped_early}


def main(case: str, folder: Path) -> None:
    torch.set_num_threads(1)
    launched()
    found, tensors = {}, {}

    def keep(name: str, system, **options) -> None:
        found[name] = outcome(lambda: run(system=system, **options))
        tensors.update({f"{name}/{key}": t for key, t in system.state_dict().items()})

    if case == "all":
        keep("quiet", quiet(), transforms=(noisy,))
        keep("players", quiet(players=2, micro_batch=2), transforms=(noisy,))
        keep("dropout", built(Towers))
        keep("ragged", quiet(batch_size=50), train=TRAIN.subset(range(23)))
        keep("infonce", infonce())
        keep("workers", quiet(), transforms=(noisy,), workers=1)

        everything = {**EVERYTHING, "batch_size": 12, "micro_batch": 4, "epochs": 8, "patience": 5}
        keep("whole", built(Towers, **everything), out=folder / "whole")
        for step in (0, 4, 7):
            system = built(Crashing, **everything)
            system.at_step = step
            keep("cut", system, out=folder / "cut")
        # the same class, or the run in the folder would be another one
        keep("again", built(Crashing, **everything), out=folder / "cut")
        keep("finished", built(Crashing, **everything), out=folder / "cut")
        keep("interrupted", built(Interrupted), out=folder / "interrupted")
        keep("broken", built(Towers), train=Broken(24))
        keep("nan", built(Towers), train=Pairs(24, broken=5))
        keep("score", built(Towers), validate=lambda system: 1 / 0 if RANK else float(launched().rank))
        keep("indivisible", built(Towers, batch_size=7))
        keep("limited", built(Limited))
        keep("few", built(Towers), train=TRAIN.subset([0]))
        with Lock(folder / "locked") if RANK == 1 else Lock(folder / "other"):
            launched().any(False)
            keep("locked", built(Towers), out=folder / "locked")
    if case == "killed":
        keep("killed", built(Killed))
    save_file({key: t.contiguous().clone() for key, t in tensors.items()}, folder / f"{RANK}.safetensors")
    (folder / f"{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
