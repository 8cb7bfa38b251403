"""An archive of media with a model: ``build`` and ``update`` an index, ``search`` it, ``embed_files``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from avcl import index
from avcl.errors import ConfigError, MediaError, ModelError, NoAudioStream, NoVideoStream
from avcl.files import write_atomic
from avcl.media import probe
from avcl.model import Media, Model
from avcl.progress import Progress as ProgressBar
from avcl.types import Hit, Hits

OTHER = {"audio": "video", "video": "audio"}


def build(
    media: Media,
    *,
    model: Model | Media,
    out: Media,
    segment: float | None = None,
    hop: float | None = None,
    factory: str = "Flat",
    columns: Media | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Index every segment of the files below ``media``; goes on where a killed build stopped. Returns the counts."""
    embedder, place = _model(model)
    for modality in ("audio", "video"):
        embedder.require_media(modality)
    with _shown(progress) as show:
        return index.build(
            media,
            out,
            embedder,
            segment=segment,
            hop=hop,
            factory=factory,
            columns=columns,
            model_path=place,
            progress=show,
        )


def update(
    folder: Media, *, model: Model | Media | None = None, media: Media | None = None, progress: bool = False
) -> dict[str, Any]:
    """Embed new and changed files, drop those that are gone. Returns the counts. ``media``, ``model``: where they are
    now, if they have moved; remembered from then on.
    """
    embedder = _model_of(folder, model)
    place = _model(model)[1] if model is not None else None
    with _shown(progress) as show:
        return index.update(folder, embedder, media=media, model_path=place, progress=show)


@contextmanager
def _shown(progress: bool) -> Iterator[Callable[[index.Progress], None] | None]:
    """A callback that moves a bar on a terminal and prints plain lines elsewhere; None where nothing is asked for."""
    if not progress:
        yield None
        return
    with ProgressBar(1, "indexing") as bar:

        def show(at: index.Progress) -> None:
            bar.total = at.files
            left = "" if at.remaining is None else f"  about {at.remaining:.0f} s left"
            bar.update(at.done, f"files  {at.segments} segments  {at.skipped} skipped{left}")

        yield show


def search(
    folder: Media,
    *,
    audio: Media | None = None,
    video: Media | None = None,
    k: int = 10,
    want: str | None = None,
    per_file: int | None = None,
    where: str | None = None,
    start: float | None = None,
    end: float | None = None,
    model: Model | Media | None = None,
) -> Hits:
    """The ``k`` nearest segments of the other modality (or of ``want``), best first.

    The query is cut into windows as long as a segment of the index, half overlapping; a segment's score is that of the
    window it fits best. A query no longer than a segment is compared as it is.
    """
    if (audio is None) == (video is None):
        raise ConfigError("search takes one of audio and video.", hint="Give --audio FILE or --video FILE.")
    modality, path = ("audio", audio) if audio is not None else ("video", video)
    assert path is not None
    target = want or OTHER[modality]
    with index.Index.open(folder) as opened:
        embedder = _model_of(folder, model)
        opened.require(embedder.fingerprint, embedder.inputs)
        _, vectors = embedder.embed_windows(path, modality, start=start, end=end, length=opened.meta.segment)
        found = opened.search_many(vectors, target, k=k, where=where, per_file=per_file)
    return _best(found, k, per_file)


def _best(found: Sequence[Hits], k: int, per_file: int | None) -> Hits:
    """The union of several queries' hits: each segment at its best score, at most ``per_file`` of a file, ``k`` in
    all.
    """
    best: dict[tuple[str, float, float], Hit] = {}
    for hit in (hit for hits in found for hit in hits):
        key = (hit.path, hit.start, hit.end)
        if key not in best or hit.score > best[key].score:
            best[key] = hit
    kept: list[Hit] = []
    seen: dict[str, int] = {}
    for hit in sorted(best.values(), key=lambda h: (-h.score, h.path, h.start)):
        seen[hit.path] = seen.get(hit.path, 0) + 1
        if per_file is None or seen[hit.path] <= per_file:
            kept.append(hit)
    return Hits([Hit(i + 1, h.path, h.start, h.end, h.score, h.modality, h.info) for i, h in enumerate(kept[:k])])


def embed_files(
    model: Model | Media, files: Sequence[Media], *, modality: str | None = None, out: Media | None = None
) -> Iterator[dict[str, Any]]:
    """Yields {"path", "modality", "vector"} for every stream of every file; with ``out`` one .npz and a summary
    instead.
    """
    embedder, _ = _model(model)
    rows: list[dict[str, Any]] = []
    failed: MediaError | None = None
    for file in files:
        try:
            has = probe(file).streams
            wanted = [modality] if modality else [m for m in embedder.modalities if m in has]
            if not wanted:
                lacking = NoVideoStream if "audio" in has else NoAudioStream
                raise lacking(f"this model embeds {' and '.join(embedder.modalities)}.", file=file)
            for name in wanted:
                vector = embedder.embed(**{name: file})  # type: ignore[arg-type]
                row = {"path": str(file), "modality": name, "vector": vector.tolist()}
                if out is None:
                    yield row
                rows.append(row)
        except MediaError as error:
            if len(files) == 1:
                raise
            failed = error
            yield {"path": str(file), "error": error.as_dict()}
    if failed is not None and not rows:  # not one of several files
        raise failed
    if out is not None:
        arrays = {
            "path": np.array([r["path"] for r in rows]),
            "modality": np.array([r["modality"] for r in rows]),
            "vector": np.array([r["vector"] for r in rows], dtype=np.float32),
        }

        def save(path: Path) -> None:
            with path.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)

        write_atomic(Path(out), save)
        yield {"out": str(out), "vectors": len(rows), "dim": embedder.dim, "model": embedder.fingerprint}


def _model(model: Model | Media) -> tuple[Model, Path | None]:
    return (model, None) if isinstance(model, Model) else (Model.load(model), Path(model).resolve())


def _model_of(folder: Media, model: Model | Media | None) -> Model:
    """The given model, or the one whose folder the index remembers."""
    if model is not None:
        return _model(model)[0]
    place = index.info(folder).get("model_path")
    if not place or not Path(place).is_dir():
        raise ModelError(
            "the model of this index is not where it was.", file=folder, hint="Give its folder with --model."
        )
    return Model.load(place)
