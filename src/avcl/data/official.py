"""What a published data set is: its facts, the rows of its official lists, and what of them is in a folder.

A set is one module ``avcl.data.sets.<name>`` whose ``SET`` is an ``OfficialSet``. ``entries(folder)`` are the rows that
the official lists in that folder name, with split, label and time. ``verify(folder)`` counts what is missing of them.
``manifest(folder, media, out)`` writes the rows whose files are there, as a manifest (``MediaSet``) or a feature file
(``FeatureSet``) that ``load_data`` reads. Nothing is fetched; the media are the user's.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from avcl.errors import ConfigError, MissingFile, did_you_mean

Column = Literal["video", "audio", "image", "text"]  # text: a .txt file, read into the row
SHOWN = 5  # missing names that are shown


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a row. ``names``: what it may be called, without suffix, with as many folders as tell it apart; the
    file is the row. A name that ends in "/" is a folder: each file in it is one row. ``recording``: names of a longer
    file, of which the row is from ``start`` to ``end``. ``sound``: a file of sound does where there is no video.
    """

    column: Column
    names: tuple[str, ...]
    recording: tuple[str, ...] = ()
    sound: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of an official list.

    ``part``: which list it is from, a key of ``OfficialSet.counts`` · ``split``: train, val, test, or "" where the set
    has none · ``item`` (default: the id): what is counted, as one image with five captions · ``group`` (default: the
    item): what may not be on both sides of a split.
    """

    id: str
    part: str
    media: tuple[Part, ...] = ()
    split: str = ""
    label: str = ""
    text: str = ""
    start: float | None = None
    end: float | None = None
    item: str = ""
    group: str = ""
    info: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "item", self.item or self.id)
        object.__setattr__(self, "group", self.group or self.item)


@dataclass(frozen=True)
class Check:
    """What is there of one official list.

    ``official``: rows there should be (None: not known) · ``listed``: rows that the list in the folder names, 0 where
    there is no list · ``missing``: of the larger of both · ``first``: names of the first that are missing.
    """

    part: str
    official: int | None
    listed: int
    found: int
    missing: int
    first: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OfficialSet(ABC):
    """The facts of a data set. ``counts``: {list or split: rows of the publication} · ``lists``: the official files
    that are read · ``labels``: its classes, where the publication fixes them.
    """

    name: str
    title: str
    about: str
    license: str
    source: str
    citation: str
    counts: Mapping[str, int]
    lists: tuple[str, ...]
    labels: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Everything that is known without its files."""
        facts = ("name", "title", "about", "license", "source", "citation")
        about = {key: getattr(self, key) for key in facts} | {"counts": dict(self.counts), "lists": list(self.lists)}
        return about | ({"labels": list(self.labels)} if self.labels else {})

    @abstractmethod
    def entries(self, folder: str | Path) -> Iterable[Entry]:
        """The rows that the official lists in ``folder`` name. MissingFile: there is no list. DataError, LabelError:
        a line that is none, with its file and line.
        """

    @abstractmethod
    def verify(self, folder: str | Path, lists: str | Path | None = None) -> Iterator[Check]:
        """What of each official list is in ``folder``; ``lists``: where the lists are (default: the same folder)."""

    @abstractmethod
    def manifest(
        self, folder: str | Path, media: str | Path, out: str | Path, *, only: Sequence[str] = ()
    ) -> dict[str, int]:
        """Write what of the lists in ``folder`` has its files in ``media``; {"rows", "missing", ...}. ``only``: names
        of ``counts``. DataError: nothing is there.
        """

    def check_only(self, only: Sequence[str]) -> None:
        """ConfigError, with the nearest name, for one that is no list of this set."""
        for name in only:
            if name not in self.counts:
                raise ConfigError(f'"{name}" is not a list of {self.name}.', hint=did_you_mean(name, set(self.counts)))

    def no_list(self, folder: Path) -> MissingFile:
        """The error of a folder without any of the lists."""
        return MissingFile(
            f"holds no official list of {self.name}.", file=folder, hint=f"Any of: {listed(self.lists)}."
        )


def existing(folder: str | Path) -> Path:
    """``folder``; MissingFile where it is none."""
    path = Path(folder)
    if not path.is_dir():
        raise MissingFile("there is no such folder.", file=path)
    return path


def checked(part: str, official: int | None, listed: int, found: int, gone: Iterable[str]) -> Check:
    """A Check of ``gone``, the items that are not there, of which few are kept."""
    missing = max(official or 0, listed) - found
    return Check(part, official, listed, found, missing, tuple(itertools.islice(gone, SHOWN)))


def listed(names: Iterable[str]) -> str:
    """The names in a message."""
    return ", ".join(names) or "nothing"
