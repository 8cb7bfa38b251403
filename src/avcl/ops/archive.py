"""Using what was learned on archives: embed, features, export, index, search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from avcl.ops.base import Op, short
from avcl.ops.learn import ReadsData


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


class Features(ReadsData):
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
        return "\n".join(f"{key:<14} {short(value)}" for key, value in result.items())


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
