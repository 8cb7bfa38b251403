"""System: network + objective + what it can do; and the capability protocols that tasks ask for.

A system file reads like the method section of its paper: claim, equations, ``card``, ``Config``, network, losses,
capability. It owns no loop: ``avcl.loop.fit`` is the only one, and calls the hooks below.
"""

from __future__ import annotations

import dataclasses
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from avcl.errors import ConfigError, did_you_mean
from avcl.types import Batch, Card, DataSpec, Inputs, Stream


class Step(NamedTuple):
    """Where training stands: optimizer step (from 0) of ``total``, epoch (from 0), progress in [0, 1], named random
    state, and whose ``turn`` it is (name of the phase; empty: nobody's, all losses are asked for).
    """

    step: int
    total: int
    epoch: int
    progress: float
    generator: torch.Generator
    turn: str = ""


@dataclass(frozen=True)
class Phase:
    """A player of the training: whose parameters move, by which of the named losses, when and how often.

    ``losses`` empty: all of them. Takes part from ``start`` to ``end`` (progress in [0, 1]), every ``every``-th step,
    ``repeat`` times.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    losses: tuple[str, ...] = ()
    optimizer: Mapping[str, float] = dataclasses.field(default_factory=dict)
    every: int = 1
    repeat: int = 1
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class Trial:
    """How a system proves itself on the generated world: what ``avcl.testing.check_system`` and
    ``recipes/families.py`` train and measure, beside chance and all controls.

    ``task`` and ``protocol``: the task's name and fields · ``preset`` with ``knobs`` (its fields) changed · ``clips``
    training clips an epoch (``fresh``: drawn anew in each), ``test`` held-out ones · ``retime``: see ``World`` ·
    ``truth``: training reads the truth of the scene · ``streams`` of the world (empty: sound and picture) ·
    ``settings`` of the system's Config.

    The short form, at most ten seconds: ``short_clips`` fixed clips under ``settings`` and then ``short``; the loss
    ``watch`` (empty: the sum of all) must fall, and be higher when another clip's ``partner`` stream is put in.
    """

    task: str
    preset: str
    protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    knobs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    clips: int = 1600
    test: int = 200
    fresh: bool = True
    retime: float = 0.0
    truth: bool = False
    streams: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    short: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    short_clips: int = 64
    watch: str = ""
    partner: str = "audio"


MAX = sys.float_info.max


@dataclass(frozen=True)
class Config:
    """The table of hyper-parameters: a frozen dataclass of plain values. ``tiny()`` is what tests and demos can afford.

    The fields below are those of the optimization, which the one loop reads; systems add their own. ``ranges``: least
    and greatest value of a number (of every number of a tuple), extended by systems.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "epochs": (0, MAX),
        "batch_size": (1, MAX),
        "micro_batch": (0, MAX),
        "learning_rate": (0.0, MAX),
        "weight_decay": (0.0, MAX),
        "warmup": (0.0, 1.0),
        "clip_norm": (0.0, MAX),
        "ema": (0.0, 1.0),
        "patience": (0, MAX),
    }

    epochs: int = 20
    batch_size: int = 64
    micro_batch: int = 0  # clips that are encoded at a time, the loss being that of the whole batch; 0: all of them
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup: float = 0.05  # share of all steps with linearly rising learning rate, then cosine to zero
    clip_norm: float = 2.0  # 0: no gradient clipping
    ema: float = 0.0  # decay of the moving average of the weights that is evaluated and saved; 0: none
    patience: int = 0  # epochs without a better validation score before training stops; 0: never
    precision: str = "no"  # "no" (float32) or "bf16" (autocast)

    def __post_init__(self) -> None:
        """ConfigError for a value that no training can have."""
        for name, (low, high) in self.ranges.items():
            value = getattr(self, name)
            if not all(low <= v <= high for v in (value if isinstance(value, tuple) else (value,))):  # NaN never is
                bounds = f"at least {low:g}" if high == MAX else f"from {low:g} to {high:g}"
                raise ConfigError(f"{name} = {value} must be {bounds}.")

    @classmethod
    def tiny(cls) -> Self:
        return cls()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The configuration from plain values; an unknown key or a value of another type is a ConfigError."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        default = cls()
        resolved: dict[str, Any] = {}
        for key, given in value.items():
            if key not in known:
                raise ConfigError(f'"{key}" is not a setting of {cls.__module__}.', hint=did_you_mean(key, set(known)))
            resolved[key] = coerce(key, given, getattr(default, key))
        return cls(**resolved)


def coerce(key: str, given: Any, default: Any) -> Any:
    """``given`` (a JSON value, or the text of ``--set key=value``) as the type of the default value."""
    try:
        if isinstance(default, bool):
            if isinstance(given, bool):
                return given
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[str(given).lower()]
        if isinstance(default, int):
            if isinstance(given, bool) or float(given) != int(float(given)):
                raise ValueError
            return int(float(given))
        if isinstance(default, float):
            return float(given)
        if isinstance(default, tuple):
            parts = given.strip("()[] ").split(",") if isinstance(given, str) else list(given)
            like = default[0] if default else ""
            return tuple(coerce(key, p.strip() if isinstance(p, str) else p, like) for p in parts if p != "")
        if isinstance(default, str) and isinstance(given, str):
            return given
    except (ValueError, TypeError, KeyError):
        pass
    raise ConfigError(f"{key} = {given!r} is not a {type(default).__name__} (default: {default!r}).")


@dataclass(frozen=True)
class MediaConfig(Config):
    """Config of a system that can learn from media: which streams it reads, and how they are decoded for it."""

    modalities: tuple[str, ...] = ()  # which streams; empty: all of the data
    fps: float = 8.0
    size: tuple[int, ...] = (64, 64)  # height, width; one number: a square
    sample_rate: int = 16_000
    window: float = 3.0  # seconds of a clip

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **Config.ranges,
        "fps": (0.1, 1000),
        "size": (8, 8192),
        "sample_rate": (1000, 384_000),
        "window": (0.02, MAX),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) not in (1, 2):
            raise ConfigError(f"size = {self.size} must be height and width, or one number.")

    @property
    def decoding(self) -> Inputs:
        height, width = self.size if len(self.size) == 2 else self.size * 2
        return Inputs(fps=self.fps, size=(height, width), sample_rate=self.sample_rate, window=self.window)

    def chosen(self, spec: DataSpec) -> tuple[str, ...]:
        """The streams of the data that are learned from; ConfigError unless there are two or more."""
        names = self.modalities or tuple(spec.streams)
        for name in names:
            if name not in spec.streams:
                raise ConfigError(f'the data has no modality "{name}".', hint=did_you_mean(name, set(spec.streams)))
        if len(names) < 2:
            raise ConfigError(f"two modalities are needed, not {', '.join(names) or 'none'} alone.")
        return names


AnyConfig = Config  # the base class, under a name that the attribute ``System.Config`` does not hide


class System(nn.Module, ABC):
    """What every method is. Subclasses define ``card``, ``Config``, ``encode``, ``losses`` and a capability."""

    card: ClassVar[Card]
    Config: ClassVar[type[Config]]
    # True: fitted in closed form by ``finish`` alone; the loop takes no gradient step.
    closed_form: ClassVar[bool] = False
    # What it can be built for: arrays of features, decoded media, or both.
    learns_from: ClassVar[tuple[str, ...]] = ("features", "media")
    # True: can also learn from one modality alone, against other views of itself.
    alone: ClassVar[bool] = False
    trial: ClassVar[Trial | None] = None

    def __init__(self, config: AnyConfig, spec: DataSpec):
        super().__init__()
        self.config, self.spec = config, spec

    @classmethod
    def inputs(cls, config: Any) -> Inputs:
        """How media must be decoded for this configuration."""
        return config.decoding if isinstance(config, MediaConfig) else Inputs()

    @abstractmethod
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """The row-wise part, tensors of one row per clip: what may be chunked, cached and gathered."""

    @abstractmethod
    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """Named scalars; their sum is minimized, their names go to the log.

        With ``micro_batch`` or several processes ``batch`` has no streams. A loss that needs them, or an ``encode``
        that looks across rows, is declared: ``Card.limits = {"cache": reason}``.
        """

    def forward(self, batch: Batch, at: Step) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        encoded = self.encode(batch)
        return self.losses(encoded, batch, at), encoded

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("main", tuple(p for p in self.parameters() if p.requires_grad)),)

    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Before each epoch (epoch 0: before the first step): dictionaries, centers, pseudo-labels."""

    def after_step(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> None:
        """Once per optimizer step: EMA teacher, memory bank, ring buffer."""

    def finish(self, batches: Iterable[Batch]) -> None:
        """Closed forms after training: CCA, class centers."""


# -------------------------------------------------------------------------------------------------------- capabilities
@runtime_checkable
class Embeds(Protocol):
    """``embed`` [B, D] of one modality; ``similarity`` [Q, G], higher is nearer; its name is stored with every
    index.
    """

    similarity_name: str

    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor: ...

    def similarity(self, q: Tensor, g: Tensor) -> Tensor: ...


@runtime_checkable
class Represents(Protocol):
    def features(self, batch: Batch, modality: str) -> Tensor: ...


@runtime_checkable
class Localizes(Protocol):
    """``heatmap`` [B, T, H, W] in [0, 1] for every frame at its own size: how sure the system is that the sound comes
    from there. The peak of a frame is how sure it is that the sound comes from anything in it, so it must be low where
    nothing fits; 0 in frames that were not recorded.
    """

    def heatmap(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class Detects(Protocol):
    def boxes(self, batch: Batch) -> Any: ...


@runtime_checkable
class Segments(Protocol):
    """``events``: logits of the segments that divide the window evenly [B, S, C + 1], the last class background."""

    def events(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class Matches(Protocol):
    """``match``: each segment of one modality in a space common to both [B, S, D], near (L2) what belongs to it and
    told by that modality alone; None where this configuration did not learn one.
    """

    def match(self, batch: Batch, modality: str) -> Tensor | None: ...


@runtime_checkable
class Recognizes(Protocol):
    def logits(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class Regresses(Protocol):
    def values(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class Transcribes(Protocol):
    """``words``: numbers of the words said at every place [B, places]; ``spelled``: such rows as sentences."""

    def words(self, batch: Batch) -> Tensor: ...

    def spelled(self, words: Tensor) -> list[str]: ...


@runtime_checkable
class Separates(Protocol):
    def separate(self, mixture: Stream, guides: Sequence[Batch]) -> Tensor: ...


@runtime_checkable
class Generates(Protocol):
    """``generate``: the modality that the batch lacks, from those that it has, as a Stream of the form that the data
    have (a waveform where they have sound); BatchError where it is not clear which. A system that cannot make each of
    its modalities names those that it can: the attribute ``targets`` (``targets_of``).
    """

    def generate(self, batch: Batch, generator: torch.Generator) -> Stream: ...


def targets_of(system: Generates) -> tuple[str, ...]:
    """The modalities that a system can generate: its ``targets``, or else all that it was made for."""
    spec: DataSpec | None = getattr(system, "spec", None)
    return tuple(getattr(system, "targets", () if spec is None else spec.streams))


@runtime_checkable
class Aligns(Protocol):
    """``offsets``: log-scores [B, K] of the lags ``grid`` [K] in seconds, above zero: the sound is late. Their softmax
    is the posterior of the lag: flat where nothing can be told.
    """

    def offsets(self, batch: Batch, grid: Tensor) -> Tensor: ...
