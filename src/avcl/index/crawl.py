"""Build and update: make the index hold what the media folder holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avcl.errors import ConfigError, ExistsError, ModelError
from avcl.index import meta, rows
from avcl.index.columns import read_columns
from avcl.index.folder import Index, prepare
from avcl.index.job import Job, Progress
from avcl.index.listing import listing, media_root, no_media
from avcl.index.meta import Embedder, Meta
from avcl.index.writer import Writer


def build(
    media: str | Path,
    out: str | Path,
    embedder: Embedder,
    *,
    segment: float | None = None,
    hop: float | None = None,
    factory: str = "Flat",
    modalities: tuple[str, ...] | None = None,
    columns: str | Path | None = None,
    model_path: str | Path | None = None,
    jobs: int = 1,
    quick: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Index every media file below the folder ``media`` into the folder ``out``; the same call goes on after a kill.

    A file becomes the segments [k·``hop``, k·``hop`` + ``segment``] (default: the embedder's window and a third of
    it), each with a vector for every modality in which it holds something; a silent sound gets none. Hidden files are
    left out; a file that cannot be used goes into ``skipped.csv``. ``factory``: a FAISS factory string of the IVF or
    HNSW family, or "Flat" (exact). ``columns``: CSV with a path column and further columns for ``where``.
    ``model_path`` is noted, for those who search later. ``jobs``: files decoded at a time. ``quick``: a file of the
    same size and time of change is taken for unchanged.

    Returns counts: {"files", "segments", "silent", "skipped", "new", "changed", "renamed", "copied", "removed",
    "unchanged", "media_seconds", "seconds", "folder"}. Raises ModelError for an index of another model, ExistsError
    for one with other settings or a folder with other things, LockedError while another process writes, DataError for
    a folder without media.
    """
    root, folder = media_root(media), Path(out)
    if folder.exists() and not folder.is_dir():
        raise ExistsError("this is a file, not a folder.", file=folder, hint="Choose another --out.")
    length = float(segment if segment is not None else embedder.window)
    stride = float(hop if hop is not None else length / 3)
    chosen = modalities or tuple(m for m in rows.MODALITIES if m in embedder.modalities)
    wanted = Meta(
        model=embedder.fingerprint,
        inputs=embedder.inputs,
        similarity=embedder.similarity_name,
        dim=int(embedder.dim),
        modalities=chosen,
        factory=factory,
        segment=length,
        hop=stride,
        media=str(root),
        model_path="" if model_path is None else str(Path(model_path).absolute()),
    )
    if set(chosen) - set(embedder.modalities):
        raise ConfigError(f"the model embeds {', '.join(embedder.modalities)}, not {', '.join(chosen)}.")
    if (folder / meta.NAME).exists():
        known = meta.read(folder)
        known.require(folder, wanted.model, wanted.inputs)
        different = known.same_settings(wanted)
        if known.media and known.media != wanted.media:
            different.append("media")
        if different:
            name = different[0]
            hint = "Choose another --out, or give the settings of the index."
            if name == "media":
                hint = "Choose another --out; if the media have moved: avcl index update IDX --media FOLDER."
            raise ExistsError(
                f"this is an index with {name} = {getattr(known, name)}, not {getattr(wanted, name)}."[:180],
                file=folder,
                hint=hint,
            )
    else:
        if not listing(root):
            raise no_media(root)
        prepare(folder, wanted)
    return update(
        folder, embedder, media=root, columns=columns, model_path=model_path, jobs=jobs, quick=quick, progress=progress
    )


def update(
    folder: str | Path,
    embedder: Embedder,
    *,
    media: str | Path | None = None,
    columns: str | Path | None = None,
    model_path: str | Path | None = None,
    jobs: int = 1,
    quick: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Make the index hold what its media folder holds now; arguments, result and errors as ``build``.

    Files are told apart by the hash of their bytes: new and changed ones are embedded, one that stands at another
    path (or at several) is not embedded again, one that is gone is dropped at once. ``media``: where the folder is
    now, if it has moved.
    """
    folder = Path(folder)
    built = meta.read(folder)
    built.require(folder, embedder.fingerprint, embedder.inputs)
    if embedder.dim != built.dim:
        raise ModelError(f"the model gives {embedder.dim} dimensions, the index has {built.dim}.", file=folder)
    root = media_root(media if media is not None else built.media or ".")
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, not {jobs}.")
    table = None if columns is None else read_columns(columns, root)
    moved = built.moved(media=str(root), model_path=None if model_path is None else str(Path(model_path).absolute()))
    with Writer(folder, moved) as writer:
        if moved != built:
            moved.write(folder)
        job = Job(writer, root, embedder, jobs, quick, progress)
        try:
            if table is not None:
                with rows.typed(folder), rows.transaction(writer.connection):
                    rows.set_columns(writer.connection, *table)
                    rows.bump(writer.connection)
            job.run()
        finally:
            writer.write_skipped()
        writer.tidy()
    with Index.open(folder) as index:
        said = index.info()
    return {
        "files": said["files"],
        "segments": said["segments"],
        "silent": said["silent"],
        "skipped": sum(said["skipped"].values()),
        **job.tally,
        "media_seconds": said["media_seconds"],
        "seconds": round(time.monotonic() - job.began, 3),
        "folder": str(folder),
    }
