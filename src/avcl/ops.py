"""One pydantic model per verb: the only door to the outside, shared by shell and HTTP.

A model holds paths, numbers and literals; unknown keys are errors with a did-you-mean. ``run()`` yields one plain,
JSON-able dict per result; ``human`` says the same to a person. Nothing here imports torch until a verb runs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from avcl.errors import AvclError, ConfigError, MediaError, did_you_mean

OnError = Literal["skip", "raise"]


class Op(BaseModel):
    """A verb and its arguments. ``positional``: which fields the shell takes without a name, in this order."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=False)
    positional: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str]  # the words of the shell: "train", "index build"

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """The request from plain values; ConfigError instead of pydantic's own."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                hint = did_you_mean(key, set(cls.model_fields))
                raise ConfigError(f'"{key}" is not an argument of {cls.name}.', hint=hint) from None
            if first["type"] == "missing":
                raise ConfigError(f'{cls.name} needs "{key}".') from None
            raise ConfigError(f"{key} = {first['input']!r}: {first['msg']}.") from None

    @abstractmethod
    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        """The results, one plain dict each, as soon as they are known."""

    def human(self, result: Mapping[str, Any]) -> str:
        """One result as a person reads it."""
        return "  ".join(f"{k} {_short(v)}" for k, v in result.items())

    def status(self, results: list[dict[str, Any]]) -> int:
        """The exit status after all results: 0, or 1 where a check failed."""
        return 0


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return ", ".join(_short(v) for v in value) if len(value) <= 8 else f"{len(value)} values"
    return str(value)


def _failure(error: AvclError) -> dict[str, Any]:
    return {"error": error.as_dict()}


# ------------------------------------------------------------------------------------------------- looking at things
class Doctor(Op):
    """Check the installation: versions, decoders, encoders, threads, cache."""

    name: ClassVar[str] = "doctor"

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.environment import doctor

        yield from doctor()

    def human(self, result: Mapping[str, Any]) -> str:
        return f"{'ok ' if result['ok'] else 'BAD'} {result['check']:<10} {result['detail']}"

    def status(self, results: list[dict[str, Any]]) -> int:
        return 0 if all(r["ok"] for r in results) else 1


class Probe(Op):
    """Say what is in media files, on one clock: streams, rates, start offsets."""

    name: ClassVar[str] = "probe"
    positional: ClassVar[tuple[str, ...]] = ("files",)
    files: list[Path] = Field(min_length=1, description="media files")
    scan: bool = Field(False, description="decode the whole file and count what is lost")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.media import probe
        from avcl.types import jsonable

        last: MediaError | None = None
        read = 0
        for file in self.files:
            try:
                yield jsonable(probe(file, scan=self.scan))
                read += 1
            except MediaError as error:
                if len(self.files) == 1:
                    raise
                last = error
                yield _failure(error)
        if last is not None and read == 0:
            raise last

    def human(self, result: Mapping[str, Any]) -> str:
        if "error" in result:
            error = result["error"]
            return f"{error['code']} {error['file']}: {error['message']} {error['hint']}"
        lines = [str(result["path"])]
        lines += [
            f"  {key:<16} {_short(value)}" for key, value in result.items() if key != "path" and value is not None
        ]
        return "\n".join(lines)


class List(Op):
    """List the systems, data sets, tasks or pretrained towers that can be named."""

    name: ClassVar[str] = "list"
    positional: ClassVar[tuple[str, ...]] = ("what",)
    what: Literal["systems", "data", "tasks", "towers"] = Field(description="systems, data, tasks or towers")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.catalog import entries

        yield from entries(self.what)

    def human(self, result: Mapping[str, Any]) -> str:
        return f"{result['name']:<24} {result['about']}"


class Describe(Op):
    """Describe a system, data set, task, saved model or index."""

    name: ClassVar[str] = "describe"
    positional: ClassVar[tuple[str, ...]] = ("thing",)
    thing: str = Field(description='a name that "avcl list" shows, or the folder of a model or an index')

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.catalog import describe

        yield describe(self.thing)

    def human(self, result: Mapping[str, Any]) -> str:
        lines = []
        for key, value in result.items():
            if isinstance(value, Mapping):
                lines.append(f"{key}")
                lines += [f"  {k:<16} {_short(v)}" for k, v in value.items()]
            else:
                lines.append(f"{key:<18} {_short(value)}")
        return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------- the main path
class _ReadsData(Op):
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


class Train(_ReadsData):
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
    select: Literal["pair", "class"] = Field("pair", description="what the kept epoch is best at in the val part")
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


class Evaluate(_ReadsData):
    """Measure a trained model: scores with 95 % intervals beside chance."""

    name: ClassVar[str] = "evaluate"
    positional: ClassVar[tuple[str, ...]] = ("run_folder", "data")
    run_folder: Path = Field(description="run folder, or folder of a saved model")
    task: Literal["retrieval"] = Field("retrieval", description="what is measured")
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


class Embed(Op):
    """Embed files: one vector per file on standard output, or an .npz with ids and vectors."""

    name: ClassVar[str] = "embed"
    positional: ClassVar[tuple[str, ...]] = ("run_folder", "files")
    run_folder: Path = Field(description="run folder, or folder of a saved model")
    files: list[Path] = Field(min_length=1, description="media files")
    modality: Literal["audio", "video"] | None = Field(
        None, description="which stream (default: every one the file has)"
    )
    out: Path | None = Field(None, description="write one .npz (path, modality, vector) instead of printing vectors")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl import archive

        yield from archive.embed_files(self.run_folder, self.files, modality=self.modality, out=self.out)


class Features(_ReadsData):
    """Write what pretrained towers make of data as a feature file to train on (nothing is fetched)."""

    name: ClassVar[str] = "features"
    positional: ClassVar[tuple[str, ...]] = ("data",)
    out: Path = Field(description="the .npz to write")
    video: str | None = Field(None, description='tower for pictures, by name ("avcl list towers") or folder')
    audio: str | None = Field(None, description="tower for sound: the folder of a transformers model")
    text: str | None = Field(None, description="tower for text: the folder of a sentence-transformers model")
    commercial: bool = Field(False, description="refuse towers whose license is not known to allow commercial use")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl import archive

        given = {"video": self.video, "audio": self.audio, "text": self.text}
        yield archive.write_features(
            self.splits(),
            self.out,
            towers={name: tower for name, tower in given.items() if tower is not None},
            commercial=self.commercial,
            on_error=self.on_error,
            workers=self.workers or 0,
            progress=progress,
        )


class Export(Op):
    """Write the embeddings of a model as ONNX files, each checked against torch by running it."""

    name: ClassVar[str] = "export"
    positional: ClassVar[tuple[str, ...]] = ("run_folder",)
    run_folder: Path = Field(description="run folder, or folder of a saved model")
    out: Path = Field(description="folder to write: audio.onnx, video.onnx, ... (batch dynamic, clips of one window)")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.adapters.onnx_export import export_model

        yield from export_model(self.run_folder, self.out)


class IndexBuild(Op):
    """Index every segment of a media folder for search; the same command goes on after a kill."""

    name: ClassVar[str] = "index build"
    positional: ClassVar[tuple[str, ...]] = ("media",)
    media: Path = Field(description="folder of media files")
    model: Path = Field(description="run folder, or folder of a saved model")
    out: Path = Field(description="index folder to write")
    segment: float | None = Field(None, gt=0, description="seconds of a segment (default: the model's window)")
    hop: float | None = Field(None, gt=0, description="seconds from one segment to the next (default: a third of it)")
    factory: str = Field("Flat", description="FAISS factory string: Flat is exact; IVF and HNSW are approximate")
    columns: Path | None = Field(None, description="CSV with a path column; its further columns can be used in --where")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl import archive

        yield archive.build(
            self.media,
            model=self.model,
            out=self.out,
            segment=self.segment,
            hop=self.hop,
            factory=self.factory,
            columns=self.columns,
            progress=progress,
        )


class IndexUpdate(Op):
    """Bring an index up to date: new and changed files are embedded, files that are gone are dropped."""

    name: ClassVar[str] = "index update"
    positional: ClassVar[tuple[str, ...]] = ("index",)
    index: Path = Field(description="index folder")
    media: Path | None = Field(None, description="the folder of the media, if it has moved")
    model: Path | None = Field(None, description="the model's folder, if it has moved")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl import archive

        yield archive.update(self.index, model=self.model, media=self.media, progress=progress)


class IndexRemove(Op):
    """Remove files from an index (the media themselves stay)."""

    name: ClassVar[str] = "index remove"
    positional: ClassVar[tuple[str, ...]] = ("index", "paths")
    index: Path = Field(description="index folder")
    paths: list[str] = Field(default_factory=list, description="paths as the index knows them")
    where: str | None = Field(None, description="an SQLite expression over the columns that info shows")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl import index

        yield index.remove(self.index, paths=self.paths, where=self.where)


class IndexInfo(Op):
    """Say what an index holds: model, files, segments, columns for --where, skipped files."""

    name: ClassVar[str] = "index info"
    positional: ClassVar[tuple[str, ...]] = ("index",)
    index: Path = Field(description="index folder")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl import index

        yield index.info(self.index)

    def human(self, result: Mapping[str, Any]) -> str:
        return "\n".join(f"{key:<14} {_short(value)}" for key, value in result.items())


class Search(Op):
    """Find the sound for a picture or the picture for a sound: ranked segments with time codes."""

    name: ClassVar[str] = "search"
    positional: ClassVar[tuple[str, ...]] = ("index",)
    index: Path = Field(description="index folder")
    audio: Path | None = Field(None, description="search with the sound of this file")
    video: Path | None = Field(None, description="search with the picture of this file")
    k: int = Field(10, ge=1, description="how many hits")
    want: Literal["audio", "video"] | None = Field(None, description="what is searched (default: the other modality)")
    per_file: int | None = Field(None, ge=1, description="at most so many hits of one file")
    where: str | None = Field(None, description="an SQLite expression over the columns that info shows")
    start: float | None = Field(None, ge=0, description="use the query file from this second on")
    end: float | None = Field(None, description="use the query file up to this second")
    model: Path | None = Field(None, description="the model's folder, if it has moved")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl import archive

        hits = archive.search(
            self.index,
            audio=self.audio,
            video=self.video,
            k=self.k,
            want=self.want,
            per_file=self.per_file,
            where=self.where,
            start=self.start,
            end=self.end,
            model=self.model,
        )
        for hit in hits:
            row = hit.as_dict()
            yield {key: row[key] for key in ("rank", "path", "start", "end", "score", "modality")}

    def human(self, result: Mapping[str, Any]) -> str:
        span = f"{result['start']:.2f}–{result['end']:.2f} s"
        return f"{result['rank']:>3}  sim={result['score']:.3f}  {span:<18} {result['modality']:<6} {result['path']}"


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


VERBS: tuple[type[Op], ...] = (
    Doctor,
    Probe,
    World,
    Train,
    Evaluate,
    Embed,
    Features,
    Export,
    IndexBuild,
    IndexUpdate,
    IndexRemove,
    IndexInfo,
    Search,
    List,
    Describe,
    Demo,
)
