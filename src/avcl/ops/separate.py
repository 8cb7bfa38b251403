"""Separate: one stem for each region of the picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from avcl.ops.base import Op


class Separate(Op):
    """Separate the sound of a file by who is seen: a WAV for each box, and the rest; together they are the mixture."""

    name: ClassVar[str] = "separate"
    positional: ClassVar[tuple[str, ...]] = ("run_folder", "file")
    run_folder: Path = Field(description="run folder, or folder of a saved model, of a system that separates")
    file: Path = Field(description="media file with sound and picture")
    out: Path = Field(description="folder to write: NAME.wav for each box, residual.wav")
    box: list[str] = Field(default_factory=list, description="a source: NAME=x0,y0,x1,y1 in pixels; once for each")
    start: float | None = Field(None, ge=0, description="use the file from this second on")
    end: float | None = Field(None, description="use the file up to this second")
    mono: bool = Field(False, description="the mean of the channels alone (default: all, under one mask)")
    force: bool = Field(False, description="replace the files if they are there")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.apply.separate import boxes_of, separate

        yield separate(
            self.run_folder,
            self.file,
            self.out,
            boxes=boxes_of(self.box),
            start=self.start,
            end=self.end,
            mono=self.mono,
            force=self.force,
        )

    def human(self, result: Mapping[str, Any]) -> str:
        gap = result["difference_db"]
        within = "exactly" if gap is None else f"within {gap:g} dB"
        stems = "  ".join([*result["stems"].values(), result["residual"]])
        return f"{stems}  sum equals mix {within}"
