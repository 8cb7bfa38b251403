"""Small data and systems that use every hook of the loop; shared by the tests of loop, store and discover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from avcl import system
from avcl.data.dataset import Data
from avcl.loop import FitResult, fit
from avcl.seeds import seeded
from avcl.system import Phase
from avcl.types import Card, Clip, DataSpec, Stream, StreamSpec, fingerprint

WIDTH = 6
SPEC = DataSpec({n: StreamSpec("features", (WIDTH,), 1.0) for n in ("audio", "video")}, ("a", "b", "c"))


class Pairs(Data):
    """Rows of one class share a direction in both modalities."""

    kind = "features"
    modalities = ("audio", "video")
    labels = SPEC.labels
    skipped: ClassVar[Mapping[str, int]] = {}

    def __init__(self, rows: int = 24, seed: int = 0, keep: Sequence[int] | None = None, broken: int | None = None):
        generator = torch.Generator().manual_seed(seed)
        centers = torch.randn(3, WIDTH, generator=generator)
        self.audio = centers[torch.arange(rows) % 3] + 0.3 * torch.randn(rows, WIDTH, generator=generator)
        self.video = -centers[torch.arange(rows) % 3] + 0.3 * torch.randn(rows, WIDTH, generator=generator)
        if broken is not None:
            self.video[broken, 2] = float("nan")
        self.keep = tuple(range(rows) if keep is None else keep)
        self.made = (rows, seed, broken)
        self.n_official = len(self.keep)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"clip{i}" for i in self.keep)

    @property
    def targets(self) -> tuple[int, ...]:
        return tuple(i % 3 for i in self.keep)

    groups = ids
    spec = SPEC

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.made, self.keep])

    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        row, mask = self.keep[index], torch.ones(1, 1, dtype=torch.bool)
        streams = {n: Stream(getattr(self, n)[row].reshape(1, 1, WIDTH), mask, 1.0) for n in self.modalities}
        return Clip(f"clip{row}", streams, index, view, row % 3)

    def subset(self, indices: Sequence[int], *, split: str | None = None) -> Pairs:
        rows, seed, broken = self.made
        return Pairs(rows, seed, [self.keep[i] for i in indices], broken)


@dataclass(frozen=True)
class Config(system.Config):
    epochs: int = 4
    batch_size: int = 6
    learning_rate: float = 0.02
    warmup: float = 0.25
    players: int = 1
    noise: float = 0.1


class Towers(system.System):
    """Two towers with dropout (global randomness), batch statistics, a bank (after_step) and a center (begin_epoch)."""

    card: ClassVar[Card] = Card("Toy towers", 2024, "Nowhere", fidelity="None is claimed")
    Config: ClassVar[type[system.Config]] = Config

    def __init__(self, config: Config, spec: DataSpec):
        super().__init__(config, spec)
        self.audio = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4))
        self.video = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4))
        self.temperature = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("bank", torch.zeros(5, 4))
        self.register_buffer("center", torch.zeros(WIDTH, dtype=torch.float64))
        self.register_buffer("finished", torch.tensor(0))

    def encode(self, batch):
        audio, video = batch.require("audio", "video")
        return {"audio": self.audio(audio.data[:, 0]), "video": self.video(video.data[:, 0])}

    def losses(self, encoded, batch, at):
        a, v = encoded["audio"], encoded["video"]
        noise = self.config.noise * torch.randn(a.shape, generator=at.generator, device=a.device)
        score = (a + noise) @ v.T * self.temperature.exp()
        target = torch.arange(len(a), device=a.device)
        pull = (self.bank.mean(0) - v).square().mean() + 0.01 * self.center.float().mean()
        return {"nce": nn.functional.cross_entropy(score, target), "bank": 0.1 * pull}

    def phases(self):
        if self.config.players == 1:
            return super().phases()
        audio = Phase(
            "audio", (*self.audio.parameters(), self.temperature), ("nce",), {"learning_rate": 0.01}, repeat=2
        )
        return audio, Phase("video", tuple(self.video.parameters()), every=2, start=0.2, end=0.9)

    def begin_epoch(self, batches, epoch):
        rows = [batch.audio.data[:, 0].double() for batch in batches]
        self.center.copy_(0.5 * self.center + torch.cat(rows).mean(0) + epoch)

    def after_step(self, encoded, batch, at):
        self.bank.copy_(torch.cat([encoded["audio"][:1], self.bank[:-1]]))

    def finish(self, batches):
        self.finished += sum(len(batch) for batch in batches)


TRAIN, VAL = Pairs(36).subset(range(24)), Pairs(36).subset(range(24, 36))
EVERYTHING = {"players": 2, "ema": 0.8, "patience": 2}  # two optimizers, moving average, early stopping


def make(seed: int = 0, **settings) -> Towers:
    with seeded(seed, "init"):
        return Towers(Config(**settings), SPEC)


def quiet(cls: type[Towers] = Towers, **settings) -> Towers:
    """Rows that do not know of each other in training either: without dropout, with running statistics."""
    with seeded(0, "init"):
        system = cls(Config(**settings), SPEC)
    for module in system.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.0
            module.train = lambda mode=True, module=module: nn.Module.train(module, False)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return system


def run(out: Path | None = None, *, system: Towers | None = None, seed: int = 0, settings=None, **options) -> FitResult:
    """A run of 16 steps in 4 epochs, quiet, with validation, in this process, unless told otherwise."""
    options = {"val": VAL, "workers": 0, "progress": False, "checkpoint_steps": 3, **options}
    train = options.pop("train", TRAIN)
    return fit(system or make(seed, **(settings or {})), train, seed=seed, out=out, **options)


def noisy(clip: Clip, view: int, generator: torch.Generator) -> Clip:
    audio = clip.streams["audio"]
    audio = audio._replace(data=audio.data + 0.1 * torch.randn(audio.data.shape, generator=generator))
    return replace(clip, streams={**clip.streams, "audio": audio})


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) and one[k].dtype == two[k].dtype for k in one)
