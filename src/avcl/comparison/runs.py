"""What one system under one seed came to, as a value, as one file and as one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from avcl.errors import AvclError, StoreError
from avcl.files import finite, read_json, write_json
from avcl.tasks.retrieval import in_modality_order


@dataclass(frozen=True)
class Run:
    """``state``: "ok", "failed" (``error`` says how) or "n/a" (``error`` says what it needs that the data lack).

    ``scores``, ``chance``, ``interval``: as in a Report · ``params`` learned numbers · ``train_s`` seconds of training
    · ``tune_s`` of all trials · ``embed_ms`` milliseconds to embed one clip, all modalities, one thread · ``ended``
    what ended training: "epochs", "patience", "budget" or "closed form" · ``config`` with what was tuned.

    For statistics: ``queries`` {direction: {"rows", "ap"}} row and average precision of each query · ``groups``
    cluster of each row · ``items`` names the test rows · ``per_class`` {class: {"queries", "mAP"}} of the mean ·
    ``curves`` {direction: {"k", "precision", "recall"}}.
    """

    system: str
    seed: int
    state: Literal["ok", "failed", "n/a"]
    error: Mapping[str, Any] | None = None
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    chance: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    interval: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    params: int | None = None
    train_s: float | None = None
    tune_s: float | None = None
    embed_ms: float | None = None
    ended: str = ""
    epochs: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    tuned: Mapping[str, Any] = field(default_factory=dict)
    queries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    groups: tuple[int, ...] = ()
    items: str = ""
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def without_result(cls, system: str, seed: int, state: Literal["failed", "n/a"], error: AvclError) -> Run:
        return cls(system, seed, state, error.as_dict())

    @property
    def why(self) -> str:
        """The error as one line."""
        error = self.error or {}
        return f"{error.get('code', '')}: {error.get('message', '')}".strip(": ")

    def line(self, directions: Iterable[str] = ()) -> dict[str, Any]:
        """The object that ``--json`` prints; ``directions``: those that other runs have, empty here if it failed."""
        scores: dict[str, Mapping[str, float]] = {d: {} for d in (*directions, "mean")} | dict(self.scores)
        line = {"system": self.system, "seed": self.seed, **scores}
        also = ("params", "train_s", "tune_s", "embed_ms", "state", "error", "ended", "epochs", "tuned")
        return line | {name: getattr(self, name) for name in (*also, "chance", "interval")}

    def write(self, folder: Path) -> None:
        write_json(path_of(folder, self.system, self.seed), finite(asdict(self)))


def path_of(folder: Path, system: str, seed: int) -> Path:
    return folder / "runs" / f"{system}-{seed}.json"


def read_run(folder: Path, system: str, seed: int) -> Run | None:
    """The finished run, None where there is none; StoreError for a file that is not one."""
    path = path_of(folder, system, seed)
    if not path.exists():
        return None
    value = read_json(path)
    try:
        known = {f.name for f in fields(Run)}
        kept: dict[str, Any] = {k: tuple(v) if k == "groups" else v for k, v in value.items() if k in known}
        run = Run(**kept)
        if (run.system, run.seed) != (system, seed):
            raise StoreError(f"this is the run of {run.system}, seed {run.seed}.", file=path)
    except (TypeError, AttributeError) as error:
        raise StoreError("this is not a run of a comparison.", file=path, hint="Delete it to run it again.") from error
    return run


def directions_of(modalities: Iterable[str]) -> tuple[str, ...]:
    """``audio_to_video`` and so on, in the order of reports."""
    names = in_modality_order(modalities)
    return tuple(f"{a}_to_{b}" for a in names for b in names if a != b)
