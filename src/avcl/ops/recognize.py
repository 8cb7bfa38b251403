"""Which class it is, in files: an emotion, say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from avcl.ops.base import Op


class Recognize(Op):
    """Say which class files are, from sound and picture or from what there is of them, with probabilities."""

    name: ClassVar[str] = "recognize"
    positional: ClassVar[tuple[str, ...]] = ("run_folder", "files")
    run_folder: Path = Field(description="run folder, or folder of a saved model, of a system that recognizes")
    files: list[Path] = Field(min_length=1, description="media files; sound or picture may be missing")
    windows: bool = Field(False, description="answer for each window of the model, not for the file")
    hop: float | None = Field(None, gt=0, description="seconds from one window to the next (default: a window)")
    start: float | None = Field(None, ge=0, description="use the files from this second on")
    end: float | None = Field(None, gt=0, description="use the files up to this second")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.apply.recognize import recognize

        yield from recognize(
            self.run_folder,
            self.files,
            by_window=self.windows,
            hop=self.hop,
            start=self.start,
            end=self.end,
            progress=progress,
        )

    def human(self, result: Mapping[str, Any]) -> str:
        if "error" in result:
            error = result["error"]
            return f"{error['code']} {result['file']}: {error['message']} {error['hint']}"
        span = f"  {result['start']:.2f}–{result['end']:.2f} s" if "start" in result else ""
        second = list(result["all"].items())[1:3]
        others = ", ".join(f"{label} {p:.2f}" for label, p in second)
        told = " and ".join(result["used"]) or "nothing that was recorded"
        lacks = f", no {' or '.join(result['missing'])}" if result["missing"] else ""
        words = f"{result['label']} p={result['p']:.2f}" + (f" ({others})" if others else "")
        return f"{result['file']}{span}  {words}  from {told}{lacks}"
