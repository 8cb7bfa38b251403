"""Counting what is missing of a published data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from avcl.ops.base import Op


class Verify(Op):
    """Count what is missing of the official lists of a published data set in a folder; write a manifest of the rest."""

    name: ClassVar[str] = "verify"
    positional: ClassVar[tuple[str, ...]] = ("data", "folder")
    data: str = Field(description='the name of a set with a reader ("avcl list data"; "avcl describe NAME": its lists)')
    folder: Path = Field(description="folder of its media or features, at any depth")
    lists: Path | None = Field(None, description="folder of the official lists (default: the same folder)")
    only: list[str] = Field(default_factory=list, description="only these lists or splits")
    out: Path | None = Field(None, description="write what is there: .csv for media, .npz for features; train reads it")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.catalog import published

        found = published(self.data)
        found.check_only(self.only)
        for check in found.verify(self.folder, self.lists):
            if not self.only or check.part in self.only:
                row = {"part": check.part, "official": check.official, "listed": check.listed, "found": check.found}
                yield {"data": self.data, **row, "missing": check.missing, "first": list(check.first)}
        if self.out is not None:
            rows = found.manifest(self.lists or self.folder, self.folder, self.out, only=self.only)
            yield {"data": self.data, "out": str(self.out), **rows}

    def human(self, result: Mapping[str, Any]) -> str:
        if "out" in result:
            rows = ", ".join(f"{n} {key}" for key, n in result.items() if key not in ("data", "out"))
            return f"{result['out']}: {rows}"
        of = "" if result["official"] is None else f" of {result['official']}"
        line = f"{result['part']:<16} {result['found']} found{of}, {result['missing']} missing"
        if result["listed"] == 0:
            return f"{line}; its list is not here"
        return f"{line}; first: {', '.join(result['first'])}" if result["first"] else line

    def status(self, results: list[dict[str, Any]]) -> int:
        """1 where anything is missing."""
        return int(any(result["missing"] for result in results if "part" in result))
