"""What lies in the media folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from avcl.errors import DataError, MissingFile
from avcl.media import MEDIA_SUFFIXES


class Found(NamedTuple):
    path: str
    size: int
    mtime: int


def media_root(media: str | Path) -> Path:
    root = Path(media).absolute()
    if not root.exists():
        raise MissingFile(
            "there is no such folder.",
            file=media,
            hint="Check the path; if the media of an index have moved: avcl index update IDX --media FOLDER.",
        )
    if not root.is_dir():
        raise MissingFile("this is a file; an index is made of a folder.", file=media, hint="Name the folder it is in.")
    return root


def listing(root: Path) -> list[Found]:
    """Every file below ``root`` with the suffix of a media file, sorted by path; hidden files and folders are left
    out.
    """
    found = []
    for base, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in MEDIA_SUFFIXES:
                path = Path(base, name)
                try:
                    stat = path.stat()
                    size, mtime = stat.st_size, stat.st_mtime_ns
                except OSError:  # a link to nothing: it is reported when it is read
                    size, mtime = 0, 0
                found.append(Found(path.relative_to(root).as_posix(), size, mtime))
    return sorted(found)


def digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise MissingFile(f"cannot be read ({error.strerror}).", hint="Check its permissions.") from None


def printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def no_media(root: Path, known: int = 0) -> DataError:
    suffixes = " ".join(sorted(MEDIA_SUFFIXES))
    if known:
        what = f"there is no media file here, but the index knows {known}; nothing was removed."
        return DataError(what, file=root, hint="Is the disk mounted? To empty the index, use avcl index remove.")
    return DataError("there is no media file below this folder.", file=root, hint=f"Looked for {suffixes}.")
