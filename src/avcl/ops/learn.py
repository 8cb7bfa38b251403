"""The main path: render a world, train, evaluate; and the demo that does all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from avcl.errors import ConfigError
from avcl.ops.base import Op

OnError = Literal["skip", "raise"]


class ReadsData(Op):
    """What ``train`` and ``evaluate`` share: which data, and how they are read."""

    data: str = Field(description="folder of media, manifest, feature file, or world:PRESET")
    seed: int = Field(0, ge=0, description="seed of every random choice")
    layout: Literal["auto", "manifest", "features", "paired", "plain", "splits", "classes"] = Field(
        "auto", description="how the data are laid out"
    )
    split_by: str | None = Field(
        None, description="column whose values may not be torn between splits (default: group)"
    )
    window: float | None = Field(None, gt=0, description="cut long files into windows of so many seconds")
    hop: float | None = Field(None, gt=0, description="seconds from one window to the next (default: the window)")
    allow_leak: bool = Field(False, description="accept the same group in two splits (stamped on the result)")
    drop_bad: bool = Field(False, description="drop feature rows that are not finite (counted) instead of stopping")
    on_error: OnError = Field("skip", description="what to do with a file that cannot be read: skip and count, or stop")
    workers: int | None = Field(None, ge=0, description="loading processes (default: one less than cores)")

    def splits(self) -> Any:
        from avcl import api

        return api.load_data(
            self.data,
            seed=self.seed,
            layout=self.layout,
            split_by=self.split_by,
            allow_leak=self.allow_leak,
            window=self.window,
            hop=self.hop,
            drop_bad=self.drop_bad,
        )


class World(Op):
    """Render clips of the generated world as real video files with their truth."""

    name: ClassVar[str] = "world"
    positional: ClassVar[tuple[str, ...]] = ("out",)
    out: Path = Field(description="folder to write: <id>.webm, truth.jsonl, truth/<id>.npz, manifest.csv")
    preset: str = Field("retrieval", description='what the scenes hold; "avcl list data" shows the presets')
    clips: int = Field(200, ge=1, description="how many clips")
    seed: int = Field(0, ge=0, description="another seed, other clips")
    container: Literal["webm", "mp4", "mkv"] = Field("webm", description="webm: VP9 + Opus; mp4, mkv: MPEG-4 + AAC")
    workers: int | None = Field(None, ge=0, description="rendering processes (default: one per core)")
    force: bool = Field(False, description="replace what is in the folder")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.data import world

        yield world.export(
            self.preset,
            self.out,
            clips=self.clips,
            seed=self.seed,
            container=self.container,
            workers=self.workers,
            force=self.force,
            progress=progress,
        )


class Train(ReadsData):
    """Learn a common space for sound and picture from a folder, a manifest, a feature file or a world."""

    name: ClassVar[str] = "train"
    positional: ClassVar[tuple[str, ...]] = ("data",)
    out: Path = Field(description="run folder to write")
    system: str = Field("infonce", description='method; "avcl list systems" shows them')
    epochs: int | None = Field(None, ge=1, description="passes over the training data (default: the system's)")
    batch_size: int | None = Field(None, ge=1, description="clips of one step (default: the system's)")
    micro_batch: int | None = Field(
        None, ge=0, description="clips decoded and encoded at a time, for batches larger than the memory (0: all)"
    )
    set: list[str] = Field(default_factory=list, description="settings of the system, key=value")
    select: Literal["pair", "class", "group"] = Field(
        "pair", description="what the kept epoch is best at in the val part"
    )
    force: bool = Field(False, description="replace another run in the folder")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl import api
        from avcl.loop import launched

        settings = settings_of(self.set)
        if self.epochs is not None:
            settings["epochs"] = self.epochs
        model = api.train(
            self.system,
            self.splits(),
            seed=self.seed,
            settings=settings,
            batch_size=self.batch_size,
            micro_batch=self.micro_batch,
            out=self.out,
            on_error=self.on_error,
            workers=self.workers,
            select=self.select,
            force=self.force,
            progress=progress,
        )
        if launched().first:  # of several processes one speaks
            yield {"run": str(self.out), "model": model.fingerprint, **model.meta["training"]}


def settings_of(pairs: list[str]) -> dict[str, Any]:
    """``["a=1", "b=x"]`` as ``{"a": "1", "b": "x"}``; the system's Config gives the types."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f'--set {pair!r} is not of the form "key=value".')
        settings[key.strip()] = value.strip()
    return settings


class Evaluate(ReadsData):
    """Measure a trained model: scores with 95 % intervals beside chance."""

    name: ClassVar[str] = "evaluate"
    positional: ClassVar[tuple[str, ...]] = ("run_folder", "data")
    run_folder: Path = Field(description="run folder, or folder of a saved model")
    task: str = Field("retrieval", description='what is measured; "avcl list tasks" shows the protocols')
    set: list[str] = Field(default_factory=list, description="fields of the task, key=value")
    relevance: Literal["pair", "class", "group"] = Field("pair", description="what counts as a right answer")
    split: Literal["train", "val", "test", "all"] | None = Field(None, description="which rows (default: test)")
    controls: bool = Field(False, description="score an untrained copy and wrong partners too")
    report: Path | None = Field(None, description="write a self-contained HTML page here")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl import api

        model = api.load(self.run_folder)
        report = api.evaluate(
            model,
            self.splits(),
            task=self.task,
            relevance=self.relevance,
            protocol=settings_of(self.set),
            split=self.split,
            controls=self.controls,
            report=self.report,
            on_error=self.on_error,
            workers=self.workers,
            progress=progress,
        )
        yield report.as_dict()

    def human(self, result: Mapping[str, Any]) -> str:
        from avcl.types import Report

        return Report.from_dict(result).table()


class Demo(Op):
    """The main job on the built-in world: train, measure, index, search, report."""

    name: ClassVar[str] = "demo"
    out: Path = Field(Path("demo"), description="folder to write: report.html, run, index, media")
    seed: int = Field(0, ge=0, description="seed of everything")
    steps: int | None = Field(None, ge=1, description="training steps (default: what the promise was measured with)")
    clips: int = Field(200, ge=10, description="held-out clips")
    force: bool = Field(False, description="replace an earlier demo in the folder")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.showcase import demo

        yield demo(self.out, seed=self.seed, steps=self.steps, clips=self.clips, force=self.force, progress=progress)

    def human(self, result: Mapping[str, Any]) -> str:
        # The last line of the demo is one JSON object in either mode: people read the lines above it.
        import json

        return json.dumps(result)
