"""Where does the sound come from, in a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from avcl.ops.base import Op


class Localize(Op):
    """Show where in the picture the sound comes from: a heat map over a frame or a span, and boxes; no box where
    nothing fits."""

    name: ClassVar[str] = "localize"
    positional: ClassVar[tuple[str, ...]] = ("run_folder", "file")
    run_folder: Path = Field(description="run folder, or folder of a saved model, of a system that localizes")
    file: Path = Field(description="a video with sound")
    out: Path = Field(
        description="overlay to write: .png or .jpg of a moment, .mp4, .mkv, .mov or .webm of a span; or a folder"
    )
    at: float | None = Field(None, ge=0, description="the moment, in seconds (default of a picture: the middle)")
    start: float | None = Field(None, ge=0, description="first second of the span (default: the beginning)")
    end: float | None = Field(None, gt=0, description="last second of the span (default: the end)")
    boxes: Path | None = Field(
        None, description="where the boxes go, .json (default: beside the overlay, <overlay>.json)"
    )
    min_p: float = Field(0.5, ge=0, le=1, description="draw no box around what is less probable")
    fps: float | None = Field(None, gt=0, le=120, description="frames a second of a video (default: the file's, to 25)")
    force: bool = Field(False, description="replace files that are there")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.apply.localize import localize

        yield localize(
            self.run_folder,
            self.file,
            out=self.out,
            boxes=self.boxes,
            at=self.at,
            start=self.start,
            end=self.end,
            fps=self.fps,
            min_p=self.min_p,
            force=self.force,
            progress=progress,
        )

    def human(self, result: Mapping[str, Any]) -> str:
        files = f"→ {result['out']}, {result['boxes_file']}"
        if "frames" in result:
            span = f"{result['start']:.2f}–{result['end']:.2f} s"
            return f"{span}: a box in {result['with_box']} of {result['frames']} frames {files}"
        if not result["boxes"]:
            return f"{result['time']:.2f} s: no box, {result['reason']} (best {result['score']:.2f}) {files}"
        said = ", ".join(f"p={b['score']:.2f} box ({','.join(map(str, b['box']))})" for b in result["boxes"])
        return f"{result['time']:.2f} s: {said} {files}"
