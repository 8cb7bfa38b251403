"""Tiny media files and data for the tests of avcl.data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from avcl.data import Data
from avcl.errors import NoAudioStream
from avcl.media import write_audio, write_image, write_video
from avcl.types import Clip, DataSpec, Inputs, Stream, StreamSpec

RATE = 8000
SMALL = Inputs(fps=4.0, size=(16, 16), sample_rate=RATE, channels=1, window=1.0)


def tone(seconds: float, seed: int = 0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * (300 + 50 * seed) * time)).astype(np.float32)[:, None]


def pictures(seconds: float, seed: int = 0, fps: float = 4.0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 255, (1, 1, 1, 3))
    return np.broadcast_to(values, (max(1, round(seconds * fps)), 16, 16, 3)).astype(np.uint8)


def video_file(path: Path, seconds: float = 1.0, seed: int = 0, *, sound: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, pictures(seconds, seed), tone(seconds, seed) if sound else None, fps=4.0, sample_rate=RATE)
    return path


def audio_file(path: Path, seconds: float = 1.0, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, tone(seconds, seed), RATE)
    return path


def image_file(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, pictures(0.25, seed)[0])
    return path


class Toy(Data):
    """Rows drawn when asked for: values tell index, epoch and view; lengths differ; some fail or kill their process."""

    kind = "world"

    def __init__(self, n: int, *, broken: tuple[int, ...] = (), deadly: tuple[int, ...] = ()):
        self.n, self.broken, self.deadly = n, broken, deadly
        self.modalities, self.labels, self.skipped, self.n_official = ("audio",), ("a", "b"), {}, n

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"row{i}" for i in range(self.n))

    @property
    def targets(self) -> tuple[int, ...]:
        return tuple(i % 2 for i in range(self.n))

    @property
    def groups(self) -> tuple[str, ...]:
        return self.ids

    @property
    def spec(self) -> DataSpec:
        return DataSpec({"audio": StreamSpec("features", (2,), 1.0)}, self.labels, self.n)

    @property
    def fingerprint(self) -> str:
        return f"toy{self.n}"

    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        if index in self.broken:
            raise NoAudioStream("has no sound.", file=f"row{index}.mp4", time=1.5, hint="Leave it out.")
        if index in self.deadly and torch.utils.data.get_worker_info() is not None:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)
        steps = 2 + index % 3
        data = torch.tensor([float(index), 100.0 * epoch + view]).expand(1, steps, 2).clone()
        stream = Stream(data, torch.ones(1, steps, dtype=torch.bool), 1.0)
        return Clip(id=f"row{index}", streams={"audio": stream}, index=index, view=view, label=index % 2)

    def subset(self, indices, *, split=None):
        raise NotImplementedError
