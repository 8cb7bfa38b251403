"""A small deterministic embedder and small media for the tests of the index; also run as a program, to be killed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from avcl.errors import TooShort
from avcl.media import write_audio, write_video
from avcl.types import Clip, Inputs

RATE = 8000
INPUTS = Inputs(fps=8, size=(16, 16), sample_rate=RATE, channels=1, window=2.0)
DIM = 12


class Bands:
    """Sound: energy in twelve bands. Picture: mean and spread of the colors in two halves."""

    fingerprint = "bands-1"
    dim = DIM
    modalities: tuple[str, ...] = ("audio", "video")
    window = 2.0
    similarity_name = "cosine"
    inputs = INPUTS

    def __init__(self) -> None:
        self.clips: list[tuple[str, float, str]] = []

    def embed_clips(self, clips: list[Clip], modality: str) -> np.ndarray:
        self.clips += [(Path(c.source.path).name, c.source.start, modality) for c in clips]
        return np.stack([self.vector(c.streams[modality].data[0].numpy(), modality) for c in clips])

    def vector(self, data: np.ndarray, modality: str) -> np.ndarray:
        if modality == "audio":
            if len(data) < 100:
                raise TooShort("needs 100 samples.")
            power = np.abs(np.fft.rfft(data[:, 0].astype(float))) ** 2
            return np.log1p([band.mean() for band in np.array_split(power, DIM)])
        x = data.astype(float) / 255
        halves = [x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]]
        return np.concatenate([[h[:, c].mean(), h[:, c].std()] for h in halves for c in range(3)])


def tone(path: Path, seconds: float, seed: int) -> Path:
    """A sound whose pitch goes up: every segment sounds different."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    low, slope = rng.uniform(200, 1500), rng.uniform(50, 300)
    wave = 0.3 * np.sin(2 * np.pi * (low + slope * t) * t) + 0.01 * rng.standard_normal(len(t))
    write_audio(path, wave.astype(np.float32)[:, None], RATE)
    return path


def film(path: Path, seconds: float, seed: int, *, sound: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    n = int(seconds * 8)
    video = np.broadcast_to(rng.integers(0, 255, (1, 1, 2, 3)), (n, 1, 2, 3)) + np.arange(n)[:, None, None, None] * 3
    video = np.repeat(np.repeat(video % 256, 32, 1), 16, 2).astype(np.uint8)
    wave = rng.standard_normal((int(seconds * RATE), 1)).astype(np.float32) * 0.1 if sound else None
    write_video(path, video, wave, fps=8, sample_rate=RATE)
    return path


def sounds(folder: Path, count: int = 12) -> Path:
    for i in range(count):
        tone(folder / f"{'ab'[i % 2]}" / f"{i:02d}.wav", 1.0 + 0.7 * i, i)
    return folder


if __name__ == "__main__":  # build MEDIA OUT, one line of progress per file
    from avcl import index

    def say(step: index.Progress) -> None:
        print(step.done, flush=True)

    print("ready", flush=True)
    index.build(sys.argv[1], sys.argv[2], Bands(), segment=2, hop=0.5, progress=say)
