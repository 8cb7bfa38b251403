"""The cache of decoded clips on disk: each file is decoded once per preprocessing, by whichever process comes first.

``$AVCL_CACHE`` (default ``~/.cache/avcl``) holds ``clips/<xx>/<key>.safetensors`` and ``hashes/<xx>/<path hash>``.
Entries are written beside and renamed, so that any number of processes may read and write; an entry that is damaged is
decoded again; a folder that cannot be written is no error. Above ``$AVCL_CACHE_GB`` gigabytes (default 20) what was
used longest ago goes. Pictures are kept as uint8 and sound as float32: what comes out is bit for bit what went in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from avcl.errors import ConfigError, MissingFile, NotMedia
from avcl.types import Stream

log = logging.getLogger("avcl.data")

DEFAULT_GB = 20.0
_SUFFIX = ".safetensors"


def cache_folder() -> Path:
    """``$AVCL_CACHE``, or ``avcl`` in the user's cache folder."""
    given = os.environ.get("AVCL_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "avcl"


def cache_limit() -> int:
    """``$AVCL_CACHE_GB`` in bytes; ConfigError where it is no number."""
    text = os.environ.get("AVCL_CACHE_GB", str(DEFAULT_GB))
    try:
        size = float(text)
        if not size >= 0:
            raise ValueError
    except ValueError as error:
        raise ConfigError(f"AVCL_CACHE_GB = {text!r} is not a size in gigabytes.", hint="Write it as 20.") from error
    return int(min(size, 1e9) * 1e9)


class StreamCache:
    """Decoded streams by key. ``limit``: bytes (default: ``$AVCL_CACHE_GB``)."""

    def __init__(self, folder: str | Path | None = None, limit: int | None = None):
        self.folder = cache_folder() if folder is None else Path(folder)
        self.limit = cache_limit() if limit is None else limit
        self._written = 0
        self._warned = False
        self._hashes: dict[str, tuple[str, str]] = {}

    # ----------------------------------------------------------------------------------------------------- entries
    def path(self, key: str) -> Path:
        return self.folder / "clips" / key[:2] / (key + _SUFFIX)

    def get(self, key: str) -> dict[str, Stream] | None:
        """The streams kept under ``key``; None where there are none, or only damaged ones."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                notes = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            if notes.get("checksum") != _checksum(tensors):
                raise ValueError("checksum")
            streams = {
                name: Stream(tensors[f"{name}.data"], tensors[f"{name}.mask"], float(rate))
                for name, rate in json.loads(notes["rates"]).items()
            }
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
            log.warning("%s: a damaged cache entry is made again", path)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # eviction goes by the time of the last use
        return streams

    def put(self, key: str, streams: Mapping[str, Stream]) -> None:
        """Keep ``streams`` (B = 1) under ``key``; a folder that cannot be written is logged once and is no error."""
        tensors = {}
        for name, stream in streams.items():
            # copies: safetensors refuses tensors that share memory, as slices of one mask do
            tensors[f"{name}.data"] = stream.data.clone(memory_format=torch.contiguous_format)
            tensors[f"{name}.mask"] = stream.mask.clone(memory_format=torch.contiguous_format)
        rates = json.dumps({name: stream.rate for name, stream in streams.items()})
        path = self.path(key)
        beside = path.with_name(f".{key}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, beside, metadata={"rates": rates, "checksum": _checksum(tensors)})
            size = beside.stat().st_size
            os.replace(beside, path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            self._warn(error)
            return
        self._written += size
        if self._written > self.limit // 16:
            self.evict()

    def evict(self) -> None:
        """Remove what was used longest ago until nine tenths of the limit are left; also temporary files a day old."""
        self._written = 0
        entries: list[tuple[float, int, Path]] = []
        with contextlib.suppress(OSError):
            for path in (self.folder / "clips").glob("*/*"):
                with contextlib.suppress(OSError):
                    status = path.stat()
                    entries.append((status.st_mtime, status.st_size, path))
        newest = max((used for used, _, _ in entries), default=0.0)
        total = sum(size for _, size, _ in entries)
        crowded = total > self.limit
        for used, size, path in sorted(entries):
            abandoned = path.suffix == ".tmp" and used < newest - 86_400
            if abandoned or (crowded and path.suffix == _SUFFIX and total > 0.9 * self.limit):
                with contextlib.suppress(OSError):
                    path.unlink()
                    total -= size

    # ------------------------------------------------------------------------------------------------ content hash
    def content_hash(self, path: str | Path) -> str:
        """BLAKE2b (16 bytes, hex) of a file's bytes, remembered under (path, size, times, inode).

        MissingFile: there is no such file, or it may not be read. NotMedia: it is a directory.
        """
        path = Path(path).absolute()
        try:
            status = path.stat()
        except OSError as error:
            raise MissingFile("there is no such file.", file=path) from error
        if not path.is_file():
            raise NotMedia("is not a file.", file=path)
        stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
        known = self._hashes.get(str(path))
        if known is not None and known[0] == stamp:
            return known[1]
        name = hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest()
        note = self.folder / "hashes" / name[:2] / name
        found = _read_note(note, stamp)
        if found is None:
            found = _hash_file(path)
            self._write_note(note, f"{stamp}\n{found}\n")
        self._hashes[str(path)] = (stamp, found)
        return found

    def _write_note(self, note: Path, text: str) -> None:
        beside = note.with_name(f".{note.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(text)
            os.replace(beside, note)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            why = getattr(error, "strerror", None) or type(error).__name__
            log.warning("%s: the cache cannot be written (%s); set AVCL_CACHE to another folder", self.folder, why)


def stream_key(contents: Iterable[str], preprocessing: object) -> str:
    """The key of an entry: hash of the contents of the files and of everything that decides how they are decoded."""
    text = json.dumps([list(contents), preprocessing], sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        if tensor.numel():
            value = zlib.crc32(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data, value)
    return f"{value:08x}"


def _read_note(note: Path, stamp: str) -> str | None:
    try:
        lines = note.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return lines[1] if len(lines) == 2 and lines[0] == stamp and len(lines[1]) == 32 else None


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise MissingFile("the file may not be read.", file=path, hint="Check its permissions.") from error
