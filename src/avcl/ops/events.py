"""What happens when, in files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from avcl.ops.base import Op


class Events(Op):
    """Find what is both seen and heard in videos, and when: events with begin, end, label and probability."""

    name: ClassVar[str] = "events"
    positional: ClassVar[tuple[str, ...]] = ("run_folder", "files")
    run_folder: Path = Field(description="run folder, or folder of a saved model, of a system that finds events")
    files: list[Path] = Field(min_length=1, description="video files, or folders of them")
    out: Path | None = Field(
        None, description="write the events here: .csv; of one file also .vtt (WebVTT) or .txt (labels of Audacity)"
    )
    min_p: float = Field(0.5, ge=0, le=1, description="leave out what is less probable")
    step: float | None = Field(
        None, gt=0, description="seconds from one window of the model to the next (default: half a window)"
    )
    force: bool = Field(False, description="replace the file that is there")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.apply.events import find_events

        yield from find_events(
            self.run_folder,
            self.files,
            min_p=self.min_p,
            step=self.step,
            out=self.out,
            force=self.force,
            progress=progress,
        )

    def human(self, result: Mapping[str, Any]) -> str:
        if "error" in result:
            error = result["error"]
            return f"{error['code']} {result['file']}: {error['message']}"
        if "out" in result:
            bad = f", {result['unreadable']} unreadable" if result["unreadable"] else ""
            return f"{result['events']} events of {result['files']} files{bad} → {result['out']}"
        span = f"{result['start']:.2f}–{result['end']:.2f} s"
        return f"{span:<18} p={result['p']:.2f}  {result['label']:<24} {result['file']}"
