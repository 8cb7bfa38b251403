"""An archive of media with a model: ``build`` and ``update`` an index, ``search`` it, ``embed_files``; and with the
towers of others: ``write_features``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from avcl import index
from avcl.data import Loader, Splits, load_data
from avcl.data.tokens import text_of
from avcl.encoders.pretrained import Tower, load_tower, permitted
from avcl.encoders.statistics import summarize
from avcl.environment import threads_beside
from avcl.errors import ConfigError, MediaError, ModelError, NoAudioStream, NoVideoStream
from avcl.files import write_atomic
from avcl.media import probe
from avcl.model import Media, Model
from avcl.nn.pooling import masked_mean
from avcl.progress import Progress as ProgressBar
from avcl.progress import tracked
from avcl.types import Hit, Hits, Inputs, Stream, StreamSpec

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
        write_atomic(Path(out), partial(_save, arrays=arrays))
        yield {"out": str(out), "vectors": len(rows), "dim": embedder.dim, "model": embedder.fingerprint}


def write_features(
    data: Splits | Media,
    out: Media,
    *,
    towers: Mapping[str, Tower | Media],
    commercial: bool = False,
    inputs: Inputs | None = None,
    batch_size: int = 16,
    on_error: Literal["skip", "raise"] = "skip",
    workers: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """What pretrained towers make of ``data`` as one .npz that ``load_data`` reads; returns its counts.

    ``towers`` {modality: a Tower, its name, or the folder of one}: the row of a clip is the mean over the steps that
    were recorded. Of a modality without a tower, sound and picture are summarized (``encoders.statistics``), features
    averaged, and text kept. id, label, group and an official split go along. ``inputs``: how media are decoded; size
    and sample rate are those of the towers. ``commercial`` refuses towers whose license is not known to allow it.
    """
    splits = data if isinstance(data, Splits) else load_data(data)
    for name in towers:
        if name not in splits.all.modalities:
            raise ConfigError(f"the data have no {name}.", hint=f"They have {', '.join(splits.all.modalities)}.")
    used = {n: t if isinstance(t, Tower) else load_tower(t, commercial=commercial) for n, t in towers.items()}
    decoding = inputs or Inputs()
    for name, tower in used.items():
        if commercial:
            permitted(tower.license, f"the tower of {name}", commercial=True)
        if tower.kind != name:
            raise ConfigError(f"the tower given for {name} reads {tower.kind}.")
        size, rate = tower.size or decoding.size, tower.sample_rate or decoding.sample_rate
        decoding = replace(decoding, size=size, sample_rate=rate)
    part = splits.all.configure(decoding).prepare(workers=workers, on_error=on_error, progress=progress)
    found: dict[str, list[np.ndarray]] = {name: [] for name in part.modalities}
    with Loader(part, batch_size=batch_size, workers=workers) as loader, threads_beside(workers):
        for batch in tracked(loader.batches(0), len(loader), "features", shown=progress):
            for name in part.modalities:
                made = _features(batch.require(name)[0], part.spec.streams[name], used.get(name), decoding.window)
                found[name].append(made)
    arrays = {name: np.concatenate(rows) for name, rows in found.items()}
    arrays |= {"id": np.array(part.ids), "group": np.array(part.groups)}
    if part.labels:
        arrays["label"] = np.array([part.labels[i] if i >= 0 else "" for i in part.targets])
    if splits.official:
        where = {id: name for name in ("train", "val", "test") for id in splits.part(name).ids}
        arrays["split"] = np.array([where[id] for id in part.ids])
    licenses = {name: tower.license for name, tower in used.items()}
    arrays["licenses"] = np.array(json.dumps(licenses))
    write_atomic(Path(out), partial(_save, arrays=arrays))
    widths = {name: array.shape[1:] for name, array in arrays.items() if name in found}
    return {"out": str(out), "clips": len(part), "skipped": dict(part.skipped), "shapes": widths, "licenses": licenses}


@torch.no_grad()
def _features(stream: Stream, spec: StreamSpec, tower: Tower | None, window: float) -> np.ndarray:
    """One row for each clip, float32 (text without a tower: its strings)."""
    if stream.data.dtype == torch.uint8:
        stream = stream._replace(data=stream.data.float() / 255)
    if tower is None and spec.kind == "tokens":
        return np.array(text_of(stream))
    if tower is None:
        return summarize(stream, spec, seconds=window).float().numpy()
    made = tower(stream)
    return (masked_mean(made.data, made.mask) if isinstance(made, Stream) else made).float().cpu().numpy()


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


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
