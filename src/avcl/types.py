"""Plain values that every room shares: Stream, Clip, Batch, specifications, Card, Report, Hits.

Letters: B batch, T time, D feature, C channels or classes, F frequency, H W image.
One clock: t = 0 is the first video frame of a file (the file's own start where it has no video); for a clip cut at
``start``, t = 0 is ``start``. Element i of a Stream stands at ``i / rate`` seconds of that clock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from avcl.errors import BatchError

Kind = Literal["audio", "spectrum", "video", "features", "map", "tokens"]


class Stream(NamedTuple):
    """One modality with its clock.

    ``data`` [B, T, ...]: audio [B,T,C] float32 (C = 1 mono; L, R; ambisonics W, Y, Z, X) · spectrum [B,T,F,C] · video
    [B,T,3,H,W], uint8 until the batch is on its device, then float32 in [0, 1] (an image is T = 1) · features [B,T,D]
    or [B,T,H,W,D] · tokens [B,T] int64. ``mask`` [B,T] bool: False where nothing was recorded (gap or padding; data are
    zeros). ``rate``: steps per second.
    """

    data: Tensor
    mask: Tensor
    rate: float

    def to(self, device: torch.device | str) -> Stream:
        return Stream(self.data.to(device, non_blocking=True), self.mask.to(device, non_blocking=True), self.rate)

    @property
    def duration(self) -> float:
        """Seconds from t = 0 to the end of the last recorded step (0 where nothing was recorded)."""
        steps = torch.nonzero(self.mask.any(0))
        return 0.0 if len(steps) == 0 else (int(steps[-1]) + 1) / self.rate


class Source(NamedTuple):
    """Where a clip comes from: the file, and seconds of the file's clock (None: from its start, to its end)."""

    path: str
    start: float | None = None
    end: float | None = None


def _frozen(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping if isinstance(mapping, MappingProxyType) else MappingProxyType(dict(mapping))


@dataclass(frozen=True)
class Clip:
    """One data item: streams with B = 1, what is known about it, and where it came from.

    ``index``: position in its data set · ``view``: which augmented view this is · ``label``: class number, or None ·
    ``group``: what may not be split between train and test · ``extras``: further tensors (no batch axis; stacked by
    collate).
    """

    id: str
    streams: Mapping[str, Stream]
    index: int = 0
    view: int = 0
    label: int | None = None
    group: str = ""
    source: Source | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", _frozen(self.streams))
        object.__setattr__(self, "extras", _frozen(self.extras))
        if not self.group:
            object.__setattr__(self, "group", self.id)

    def __reduce__(self):  # a MappingProxyType cannot be pickled between worker processes
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        return _rebuild, (Clip, {**state, "streams": dict(self.streams), "extras": dict(self.extras)})


@dataclass(frozen=True)
class Batch:
    """B clips side by side. ``label`` is -1 where a clip has none; ``require`` names what is missing."""

    id: tuple[str, ...]
    streams: Mapping[str, Stream]
    index: Tensor
    view: Tensor
    label: Tensor
    group: tuple[str, ...]
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", _frozen(self.streams))
        object.__setattr__(self, "extras", _frozen(self.extras))

    def __reduce__(self):
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        return _rebuild, (Batch, {**state, "streams": dict(self.streams), "extras": dict(self.extras)})

    def __len__(self) -> int:
        return len(self.id)

    @property
    def audio(self) -> Stream:
        return self.require("audio")[0]

    @property
    def video(self) -> Stream:
        return self.require("video")[0]

    @property
    def text(self) -> Stream:
        return self.require("text")[0]

    def require(self, *names: str) -> tuple[Stream, ...]:
        missing = [name for name in names if name not in self.streams]
        if missing:
            raise BatchError(f"the batch has no {', '.join(missing)} (it has {', '.join(self.streams) or 'nothing'}).")
        return tuple(self.streams[name] for name in names)

    def complete(self, *names: str) -> Tensor:
        """[B] bool: the clips of which something of every stream ``names`` was recorded."""
        return torch.stack([stream.mask.any(1) for stream in self.require(*names)]).all(0)

    def without(self, *names: str) -> Batch:
        """The same clips with these streams removed: a task hands a system no more than it may see."""
        return replace(self, streams={k: v for k, v in self.streams.items() if k not in names})

    def to(self, device: torch.device | str) -> Batch:
        """On ``device``, with uint8 pictures turned into float32 in [0, 1]."""
        streams = {}
        for name, stream in self.streams.items():
            moved = stream.to(device)
            streams[name] = moved._replace(data=moved.data.float() / 255) if moved.data.dtype == torch.uint8 else moved
        return replace(
            self,
            streams=streams,
            index=self.index.to(device),
            view=self.view.to(device),
            label=self.label.to(device),
            extras={k: v.to(device) for k, v in self.extras.items()},
        )


def _rebuild(cls: type, state: dict[str, Any]) -> Any:
    return cls(**state)


# ------------------------------------------------------------------------------------------------------ specifications
def jsonable(value: Any) -> Any:
    """Dataclasses, mappings, tuples and paths as what ``json`` writes, deterministically."""
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: jsonable(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if hasattr(value, "_asdict"):
        return jsonable(value._asdict())
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, Tensor):
        return value.tolist()
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    return str(value)


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of a value."""
    text = json.dumps(jsonable(value), sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class StreamSpec:
    """What one stream of a data set looks like: ``shape`` is that of one step (after [B, T])."""

    kind: Kind
    shape: tuple[int, ...]
    rate: float

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StreamSpec:
        return cls(value["kind"], tuple(value["shape"]), float(value["rate"]))


@dataclass(frozen=True)
class DataSpec:
    """What a system must know of the data it is built for; saved beside its config."""

    streams: Mapping[str, StreamSpec]
    labels: tuple[str, ...] = ()
    n_items: int = 0
    vocabulary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", _frozen(self.streams))

    @property
    def n_classes(self) -> int:
        return len(self.labels)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataSpec:
        streams = {name: StreamSpec.from_json(s) for name, s in value["streams"].items()}
        return cls(streams, tuple(value["labels"]), int(value["n_items"]), tuple(value["vocabulary"]))


@dataclass(frozen=True)
class Inputs:
    """How media are decoded for a system: what loader, cache, index and fingerprint use.

    ``fps`` frames per second on the constant grid · ``size`` (height, width) in pixels · ``sample_rate`` Hz ·
    ``channels`` 1 mono, 2 stereo · ``window`` seconds of one clip · ``views`` augmented views per item ·
    ``fit`` how a picture of another aspect meets ``size``: "stretch", "crop" (center) or "pad".
    """

    fps: float = 8.0
    size: tuple[int, int] = (64, 64)
    sample_rate: int = 16_000
    channels: int = 1
    window: float = 3.0
    views: int = 1
    fit: Literal["stretch", "crop", "pad"] = "crop"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Inputs:
        return cls(**{**value, "size": tuple(value["size"])})


# --------------------------------------------------------------------------------------------------------- Card, Report
@dataclass(frozen=True)
class Card:
    """What a system is: the claim, where it comes from, how faithful this is, and what it may not do.

    ``survey``: the row of Table 1 verbatim, empty for a baseline · ``paper``: reported numbers with table and source ·
    ``fidelity``: one sentence · ``deviations``: each with its reason · ``limits``: {contract check: reason it must
    fail}.
    """

    title: str
    year: int
    venue: str
    authors: str = ""
    survey: Mapping[str, str] = field(default_factory=dict)
    paper: tuple[str, ...] = ()
    fidelity: str = ""
    deviations: tuple[str, ...] = ()
    original_license: str = "none"
    limits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """One measured result; the terminal table, JSON, the HTML page and ``results/`` all render this one value.

    ``scores``, ``chance``, ``interval``: {direction: {metric: value}}, an interval being (low, high) at 95 %; so are
    the controls ``untrained`` (a copy of the system under another seed) and ``wrong_partner`` (every query meets
    another clip's partner). Beyond retrieval a direction is a condition ("both", "audio only", ...), and ``baselines``
    holds answers that need no learning; ``control_interval`` has the interval of every control by name.
    ``per_class``: {direction: {label: {metric: value}}}. ``task`` and ``data`` are fingerprints; ``protocol`` is the
    task in words.
    """

    system: str
    task: str
    data: str
    scores: Mapping[str, Mapping[str, float]]
    chance: Mapping[str, Mapping[str, float]]
    interval: Mapping[str, Mapping[str, tuple[float, float]]]
    n_scored: int
    n_official: int
    protocol: Mapping[str, Any] = field(default_factory=dict)
    split: str = ""
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    untrained: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    wrong_partner: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    control_interval: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]] = field(default_factory=dict)
    per_class: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    leaking: int = 0  # groups that stand in more than one split: scores may be inflated
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The one JSON object of ``avcl evaluate --json``: directions on top, everything else beside them."""
        rest = {f.name: jsonable(getattr(self, f.name)) for f in fields(self) if f.name != "scores"}
        return {**jsonable(self.scores), **rest}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Report:
        names = {f.name for f in fields(cls)} - {"scores"}
        scores = {k: v for k, v in value.items() if k not in names}
        interval = {d: {m: (lo, hi) for m, (lo, hi) in row.items()} for d, row in value["interval"].items()}
        rest = {k: value[k] for k in names if k in value}
        return cls(**{**rest, "scores": scores, "interval": interval})

    @property
    def controls(self) -> dict[str, Mapping[str, Mapping[str, float]]]:
        """The scores of everything that was measured beside the system: untrained copy, wrong partners, baselines."""
        pair = {"untrained": self.untrained, "wrong partner": self.wrong_partner}
        return {name: scores for name, scores in pair.items() if scores} | dict(self.baselines)

    def not_beaten(self) -> tuple[str, ...]:
        """Which of chance and controls the deciding metric does not beat: its interval does not lie beyond theirs."""
        decides = self.protocol["headline"]
        condition, metric, sign = decides["condition"], decides["metric"], 1 if decides["better"] == "higher" else -1
        worst = min(sign * bound for bound in self.interval[condition][metric])
        best = {"chance": [self.chance.get(condition, {}).get(metric)]}
        for name, scores in self.controls.items():
            span = self.control_interval.get(name, {}).get(condition, {}).get(metric)
            best[name] = list(span) if span is not None else [scores.get(condition, {}).get(metric)]
        return tuple(name for name, bounds in best.items() if any(b is not None and sign * b >= worst for b in bounds))

    def table(self) -> str:
        """The scores as plain text, with 95 % intervals; chance and the controls that were scored stand beside them."""
        lines = [f"{self.system} · {self.n_scored} of {self.n_official} scored · task {self.task} · data {self.data}"]
        return "\n".join([*lines, *(self._directions() if "mean" in self.scores else self._conditions())])

    def _directions(self) -> list[str]:
        """A line a metric, a column a direction, three directions a block; beside them the mean of each control."""
        beside = {name: scores for name, scores in {"chance": self.chance, **self.controls}.items() if "mean" in scores}
        directions, lines = list(self.scores), []
        for at in range(0, len(directions), 3):  # six directions of three modalities: two blocks
            block = directions[at : at + 3]
            lines.append(
                f"{'':9}" + "".join(f"{d:<26}" for d in block) + "".join(f"{name:<15}" for name in beside).rstrip()
            )
            for metric in self.scores[block[0]]:
                cells = [self._cell(direction, metric) for direction in block]
                means = [f"{scores['mean'][metric]:<15.4g}" for scores in beside.values()]
                lines.append(f"{metric:<9}" + "".join(f"{c:<26}" for c in cells) + "".join(means).rstrip())
        return lines

    def _conditions(self) -> list[str]:
        """A block a condition, in it a line a metric and a column each for the score, chance and every control."""
        beside = {"chance": self.chance, **self.controls}
        lines = []
        for condition, row in self.scores.items():
            shown = [name for name, scores in beside.items() if condition in scores]
            wide = max(9, *(len(metric) + 2 for metric in row))
            widths = [max(15, len(name) + 2) for name in shown]
            heads = "".join(f"{name:<{w}}" for name, w in zip(shown, widths, strict=True))
            lines.append(f"{condition:<{wide}}{'':<26}{heads}".rstrip())
            for metric in row:
                values = [beside[name][condition].get(metric) for name in shown]
                cells = ["" if v is None else f"{v:.4g}" for v in values]
                others = "".join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=True))
                lines.append(f"{metric:<{wide}}{self._cell(condition, metric):<26}{others}".rstrip())
        return lines

    def _cell(self, direction: str, metric: str) -> str:
        value, span = self.scores[direction][metric], self.interval.get(direction, {}).get(metric)
        return f"{value:.4g}" + (f" [{span[0]:.3g}, {span[1]:.3g}]" if span is not None else "")

    __str__ = table


@dataclass(frozen=True)
class Hit:
    """One segment that a search found: rank from 1, seconds of the file's clock, similarity (higher is nearer)."""

    rank: int
    path: str
    start: float
    end: float
    score: float
    modality: str
    info: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(replace(self, info=dict(self.info)))


class Hits(tuple[Hit, ...]):
    """The hits of one query, best first."""

    def __new__(cls, hits: Sequence[Hit] = ()) -> Hits:
        return super().__new__(cls, tuple(hits))
