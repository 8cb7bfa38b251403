"""``load_data``: a path, or the name of a generated world, becomes train, val and test."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from avcl.data.dataset import Splits
from avcl.data.feature_files import FEATURE_SUFFIXES
from avcl.data.features import FeatureData, load_features
from avcl.data.folders import Layout, read_folder
from avcl.data.manifest import MANIFEST_SUFFIXES, MANIFESTS, read_manifest
from avcl.data.media_data import MediaData
from avcl.data.split import make_splits
from avcl.errors import ConfigError, DataError, MissingFile, did_you_mean
from avcl.media import MEDIA_SUFFIXES

log = logging.getLogger("avcl.data")

WORLD = "world:"
LAYOUTS = ("auto", "manifest", "features", "plain", "classes", "splits", "paired")
_ARRAYS = ("audio.npy", "video.npy", "text.npy")


def load_data(
    path: str | Path,
    *,
    seed: int = 0,
    layout: Layout = "auto",
    split_by: str | None = None,
    allow_leak: bool = False,
    modalities: Sequence[str] | None = None,
    window: float | None = None,
    hop: float | None = None,
    drop_bad: bool = False,
) -> Splits:
    """The data behind ``path``, split: official where they bring a ``split``, else a seeded group-aware 80/10/10.

    ``path``: a manifest (.csv, .jsonl, .parquet), a feature file (.npz, .h5, .mat), a folder, or ``"world:<preset>"``.
    A folder with ``manifest.csv`` (.jsonl, .parquet) is read as that, one with at least one of ``audio.npy video.npy
    text.npy`` as features, any other by the rules of ``avcl.data.folders``; ``layout`` fixes which. Nothing is decoded
    yet.

    ``split_by``: a column ("group", or any other of the data): our own split by its values, also where there is an
    official one · ``allow_leak``: an official split may have a group on both sides (counted in ``Splits.leaking``) ·
    ``modalities``: which streams a clip of media must have (default: those of every row) · ``window``, ``hop``: media
    in windows of so many seconds, one group a file · ``drop_bad``: feature rows with non-finite values are left out and
    counted instead of an error.

    Errors: MissingFile, DataError, LabelError, LeakError, FeatureError, and ConfigError for an option that does not
    apply.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f'"{layout}" is not a layout.', hint=did_you_mean(layout, LAYOUTS))
    if isinstance(path, str) and path.startswith(WORLD):
        return _world(path.removeprefix(WORLD), seed)
    path = Path(path)
    if not path.exists():
        raise MissingFile("there is no such file or folder.", file=path, hint=_near_files(path))
    data = (
        _features(path, drop_bad, modalities, window, hop)
        if is_features(path, layout)
        else _media(path, layout, modalities, window, hop)
    )
    official, groups = data.official, None
    if split_by is not None:
        official = None
        groups = [value or f"row {id}" for value, id in zip(data.column(split_by), data.ids, strict=True)]
    splits = make_splits(data, official, seed=seed, groups=groups, allow_leak=allow_leak, where=str(path))
    _warn_of_shared_files(splits, str(path))
    return splits


def _warn_of_shared_files(splits: Splits, where: str) -> None:
    """Rows of one file (its segments, say) on both sides: no group was broken, but scores may be inflated."""
    files = [
        {name for row in part.rows for name in (row.video, row.audio, row.image) if name is not None}
        for part in (splits.train, splits.test)
        if isinstance(part, MediaData)
    ]
    both = sorted(set.intersection(*files)) if files else []
    if both:
        log.warning(
            "%s: %d files have rows in train and in test (first: %s); scores may be inflated. "
            "Give the rows of one file one `group`, or split by the file: --split-by video.",
            where,
            len(both),
            both[0],
        )


def is_features(path: Path, layout: Layout = "auto") -> bool:
    """Whether ``load_data`` reads ``path`` as features."""
    if path.is_dir():
        if layout == "features":
            return True
        return layout == "auto" and not _manifest_in(path, layout) and any((path / name).is_file() for name in _ARRAYS)
    if path.suffix.lower() == ".npy":
        raise DataError("is one array; two or more are needed.", file=path, hint=f"Give the folder: {path.parent}")
    return path.suffix.lower() in FEATURE_SUFFIXES


def _features(
    path: Path, drop_bad: bool, modalities: Sequence[str] | None, window: float | None, hop: float | None
) -> FeatureData:
    for name, value in (("modalities", modalities), ("window", window), ("hop", hop)):
        if value is not None:
            raise ConfigError(f"{name} is for media, not for features.", file=path)
    return load_features(path, drop_bad=drop_bad)


def _media(
    path: Path, layout: Layout, modalities: Sequence[str] | None, window: float | None, hop: float | None
) -> MediaData:
    manifest = _manifest_in(path, layout)
    if path.is_dir() and manifest is None:
        table = read_folder(path, layout)
    elif path.is_dir() or path.suffix.lower() in MANIFEST_SUFFIXES:
        table = read_manifest(manifest or path)
    else:
        known = ", ".join(sorted(MANIFEST_SUFFIXES | FEATURE_SUFFIXES))
        hint = (
            f"Give its folder: {path.parent}" if path.suffix.lower() in MEDIA_SUFFIXES else f"Known: {known}, a folder."
        )
        raise DataError("is not a set of data.", file=path, hint=hint)
    data = MediaData.from_table(table, modalities=modalities)
    if hop is not None and window is None:
        raise ConfigError("hop needs window.", hint="Give both, in seconds.")
    return data if window is None else data.windows(window, hop)


def _manifest_in(path: Path, layout: Layout) -> Path | None:
    if not path.is_dir() or layout not in ("auto", "manifest"):
        return None
    found = [path / name for name in MANIFESTS if (path / name).is_file()]
    if len(found) > 1:
        raise DataError(
            f"holds {' and '.join(f.name for f in found)}.", file=path, hint="Give one of them as the path."
        )
    if not found and layout == "manifest":
        raise DataError("holds no manifest.", file=path, hint=f"One of {', '.join(MANIFESTS)} is meant.")
    return found[0] if found else None


def _near_files(path: Path) -> str:
    try:
        names = {item.name for item in path.parent.iterdir()}
    except OSError:
        return "Check the path."
    hint = did_you_mean(path.name, names) if names else ""
    return hint if hint.startswith("Did") else 'Check the path, or give "world:retrieval" for generated data.'


def _world(preset: str, seed: int) -> Splits:
    from avcl.data.world import world_splits

    return world_splits(preset, seed=seed)
