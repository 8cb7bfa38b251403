"""Files that are whole or absent: written beside, fsynced, renamed; and one writer per folder.

A process killed at any moment leaves the old file or the new one, never half of one; what it may leave besides is a
``.part-*`` file or folder, which ``sweep`` removes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from avcl.errors import LockedError, StoreError

PART = ".part-"
_held: set[str] = set()  # folders locked by this process: record locks do not exclude their own process
_held_guard = threading.Lock()


def write_atomic(path: str | Path, content: bytes | str | Callable[[Path], object]) -> None:
    """``path`` holds ``content`` afterwards, or what it held before if the process dies on the way.

    A callable gets the temporary path (same folder and suffix) and writes that file itself. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=PART, suffix=f"-{path.name}", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        if callable(content):
            content(part)
        else:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.chmod(part, 0o666 & ~_umask())
        fsync(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def write_folder(folder: str | Path, fill: Callable[[Path], object]) -> None:
    """``folder`` is filled by ``fill(temporary folder)``, then renamed into place; an older one of that name gives way.

    A folder cannot be exchanged in one motion: between the removal of an old one and the rename there is none. Where
    that matters, give each folder a new name.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=PART, suffix=f"-{folder.name}", dir=folder.parent))
    try:
        fill(part)
        os.chmod(part, 0o777 & ~_umask())
        for base, _, names in os.walk(part):
            for name in names:
                fsync(Path(base, name))
            fsync(Path(base))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    fsync(folder.parent)


def sweep(folder: str | Path) -> int:
    """Remove what killed writers left in ``folder`` (hold its ``Lock``); the number of things removed."""
    parts = list(Path(folder).glob(PART + "*"))
    for part in parts:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
    return len(parts)


def fsync(path: Path) -> None:
    """What was written to this file, or the names in this folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str | Path, value: Any) -> None:
    """``value`` as readable JSON, written atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """``value`` with None where a number is NaN or infinite: JSON has neither."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: str | Path) -> Any:
    """The value in a JSON file; StoreError where there is none or it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError("there is no such file.", file=path) from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise StoreError(f"this is not a readable JSON file ({type(error).__name__}).", file=path) from None


class Lock:
    """``with Lock(folder):`` one writer at a time; LockedError at once if another process (or thread) is writing.

    The lock is the process's own: it ends with the process however that ends, and forked workers do not keep it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / ".lock"
        self._handle: int | None = None

    def __enter__(self) -> Self:
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        key = str(self.folder.resolve())
        with _held_guard:
            if key in _held:
                raise self._refusal("this process")
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                owner = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
                os.close(handle)
                raise self._refusal(f"process {owner}") from None
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
            _held.add(key)
            self._handle, self._key = handle, key
        return self

    def __exit__(self, *_: object) -> None:
        with _held_guard:
            if self._handle is not None:
                os.close(self._handle)  # this releases; the file stays: removing it would race with the next writer
                self._handle = None
                _held.discard(self._key)

    def _refusal(self, owner: str) -> LockedError:
        return LockedError(f"{owner} is writing here.", file=self.folder, hint="Wait for it to end, or stop it.")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
