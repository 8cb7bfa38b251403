"""Small two-player systems and their data for the tests of the loop: a GAN, and a modality adversary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from avcl import system
from avcl.data.dataset import Data
from avcl.loop import FitResult, fit
from avcl.nn.adversary import ModalityAdversary
from avcl.nn.discriminators import VectorDiscriminator
from avcl.objectives.adversarial import (
    gan_discriminator,
    gan_generator,
    gradient_penalty,
    hinge_gan_discriminator,
    hinge_gan_generator,
    wgan_critic,
    wgan_generator,
)
from avcl.objectives.regularizers import invariance
from avcl.seeds import seeded
from avcl.system import Phase
from avcl.types import Card, Clip, DataSpec, Stream, StreamSpec, fingerprint

CARD = Card("Toy players", 2024, "Nowhere", fidelity="None is claimed")


class Table(Data):
    """Rows of numbers; a clip holds ``rows`` of them as steps, so that a batch of a few clips has many."""

    kind = "features"
    labels: ClassVar[tuple[str, ...]] = ()
    skipped: ClassVar[Mapping[str, int]] = {}

    def __init__(self, columns: Mapping[str, Tensor], rows: int):
        self.columns, self.rows = dict(columns), rows
        self.modalities = tuple(columns)
        self.n_official = len(next(iter(columns.values()))) // rows

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"clip{i}" for i in range(self.n_official))

    groups = ids

    @property
    def targets(self) -> tuple[int, ...]:
        return (-1,) * self.n_official

    @property
    def spec(self) -> DataSpec:
        return DataSpec({n: StreamSpec("features", tuple(x.shape[1:]), 1.0) for n, x in self.columns.items()})

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.rows, {n: [list(x.shape), float(x.sum())] for n, x in self.columns.items()}])

    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        mask, first = torch.ones(1, self.rows, dtype=torch.bool), index * self.rows
        streams = {n: Stream(x[None, first : first + self.rows], mask, 1.0) for n, x in self.columns.items()}
        return Clip(f"clip{index}", streams, index, view)

    def subset(self, indices: Sequence[int], *, split: str | None = None) -> Table:
        rows = [i * self.rows + k for i in indices for k in range(self.rows)]
        return Table({n: x[rows] for n, x in self.columns.items()}, self.rows)


def run(system: system.System, train: Data, out: Path | None = None, *, seed: int = 0, **options) -> FitResult:
    return fit(system, train, seed=seed, out=out, **{"workers": 0, "progress": False, **options})


# ----------------------------------------------------------------------------------------------------------------- GAN
MODES, SPREAD = 4, 0.15


def mixture(rows: int, seed: int = 0) -> Tensor:
    """Four Gaussians on a circle around (½, 0)."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randint(MODES, (rows,), generator=generator) * (2 * math.pi / MODES)
    center = torch.stack([angle.cos() + 0.5, angle.sin()], 1)
    return center + SPREAD * torch.randn(rows, 2, generator=generator)


def noisy_table(clips: int, rows: int, seed: int = 0) -> Table:
    """The mixture, and the noise that a generator starts from."""
    noise = torch.randn(clips * rows, 4, generator=torch.Generator().manual_seed(seed + 1000))
    return Table({"video": mixture(clips * rows, seed), "noise": noise}, rows)


@dataclass(frozen=True)
class GanConfig(system.Config):
    epochs: int = 10
    batch_size: int = 4
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    warmup: float = 0.0
    game: str = "gan"  # "gan", "hinge", "wgan"
    norm: str = "none"
    critic_steps: int = 1
    generator_every: int = 1
    width: int = 64
    fresh: bool = True  # noise of its own at each turn; else that of the data


class Gan(system.System):
    """Noise to points. The critic's loss sees fakes without their graph; the generator's goes through the critic."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = GanConfig

    def __init__(self, config: GanConfig, spec: DataSpec):
        super().__init__(config, spec)
        w = config.width
        self.generator = nn.Sequential(
            nn.Linear(4, w), nn.LeakyReLU(0.2), nn.Linear(w, w), nn.LeakyReLU(0.2), nn.Linear(w, 2)
        )
        self.critic = VectorDiscriminator(2, hidden=(w, w), norm=config.norm)

    def encode(self, batch):
        video, noise = batch.require("video", "noise")
        z = torch.randn_like(noise.data) if self.config.fresh else noise.data
        return {"real": video.data, "fake": self.generator(z)}

    def judged(self, points: Tensor) -> Tensor:
        return self.critic(points).mean

    def losses(self, encoded, batch, at):
        real, fake = (encoded[name].flatten(0, 1) for name in ("real", "fake"))
        known, made, fooled = self.judged(real), self.judged(fake.detach()), self.judged(fake)
        if self.config.game == "wgan":
            penalty = gradient_penalty(self.judged, real, fake, generator=at.generator)
            return {"critic": wgan_critic(known, made) + penalty, "generator": wgan_generator(fooled)}
        if self.config.game == "hinge":
            return {"critic": hinge_gan_discriminator(known, made), "generator": hinge_gan_generator(fooled)}
        return {"critic": gan_discriminator(known, made), "generator": gan_generator(fooled)}

    def phases(self):
        betas = {"beta1": 0.5, "beta2": 0.9}
        config = self.config
        return (
            Phase("critic", tuple(self.critic.parameters()), ("critic",), betas, repeat=config.critic_steps),
            Phase("generator", tuple(self.generator.parameters()), ("generator",), betas, every=config.generator_every),
        )

    @torch.no_grad()
    def sample(self, rows: int, seed: int = 0) -> Tensor:
        return self.generator(torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)))


def make_gan(seed: int = 0, cls: type[Gan] = Gan, **settings) -> Gan:
    with seeded(seed, "init"):
        return cls(GanConfig(**settings), noisy_table(1, 1).spec)


# --------------------------------------------------------------------------------------------------- modality adversary
class Pairs(NamedTuple):
    audio: Tensor
    video: Tensor
    label: Tensor


def pairs(rows: int = 2000, seed: int = 0) -> Pairs:
    """z around one of four class means in 8 dimensions, seen through two random networks: 64 and 128 numbers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    label = torch.randint(4, (rows,), generator=generator)
    z = 1.5 * draw(4, 8)[label] + draw(rows, 8)
    views = []
    for width in (64, 128):
        x = torch.tanh(z @ draw(8, 32) / math.sqrt(8)) @ draw(32, width) / math.sqrt(32)
        views.append((x - x.mean(0)) / x.std(0) + 0.2 * draw(rows, width))
    return Pairs(*views, label)


@dataclass(frozen=True)
class AlignConfig(system.Config):
    epochs: int = 29  # of 28 batches
    batch_size: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    warmup: float = 0.0
    mode: str = ""  # of the adversary; empty: none
    pair: float = 1.0
    strength: float = 1.0
    steps: int = 2  # of the adversary for one of the encoders


class Align(system.System):
    """Two encoders with a class loss, a pair term and an adversary that reads the modality."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = AlignConfig

    def __init__(self, config: AlignConfig, spec: DataSpec):
        super().__init__(config, spec)
        self.audio, self.video = (
            nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
            for width in (64, 128)
        )
        self.classify = nn.Linear(16, 4)
        self.adversary: ModalityAdversary | None = None
        if config.mode:
            self.adversary = ModalityAdversary(16, mode=config.mode, strength=config.strength, hidden=(64, 64))

    def encode(self, batch):
        audio, video, label = batch.require("audio", "video", "label")
        return {"audio": self.audio(audio.data), "video": self.video(video.data), "label": label.data}

    def losses(self, encoded, batch, at):
        audio, video, label = (encoded[name].flatten(0, 1) for name in ("audio", "video", "label"))
        named = nn.functional.cross_entropy(self.classify(torch.cat([audio, video])), label[:, 0].long().repeat(2))
        terms = {"class": named, "pair": self.config.pair * invariance(audio, video, distance="squared") / 16}
        if self.adversary is not None:
            game = self.adversary({"audio": audio, "video": video}, step=at.progress, generator=at.generator)
            terms |= {"discriminator": game.discriminator, "hide": game.encoders}
        return terms

    def phases(self):
        betas = {"beta1": 0.5, "beta2": 0.9}
        others = tuple(p for name, p in self.named_parameters() if not name.startswith("adversary"))
        if self.adversary is None:
            return (Phase("encoders", others, (), betas),)
        mine = tuple(self.adversary.parameters())
        steps = self.config.steps
        return (
            Phase("adversary", mine, ("discriminator",), betas, repeat=steps),
            Phase("encoders", others, ("class", "pair", "hide"), betas),
        )

    @torch.no_grad()
    def codes(self, given: Pairs) -> tuple[Tensor, Tensor]:
        return self.audio(given.audio), self.video(given.video)
