"""Sync: the lag between sound and picture of files, as a gate, and its repair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from avcl.ops.base import Op

WORDS = {
    "ok": "in sync",
    "undecidable": "UNDECIDABLE",
    "at_search_limit": "AT THE LIMIT OF THE SEARCH",
    "inconsistent": "INCONSISTENT",
}
FAILING = ("late", "early", "at_search_limit", "inconsistent")


class Sync(Op):
    """Measure by how much the sound of videos is late or early; exit status 1 if a file fails the gate."""

    name: ClassVar[str] = "sync"
    positional: ClassVar[tuple[str, ...]] = ("files",)
    files: list[Path] = Field(min_length=1, description="video files with sound")
    model: Path = Field(description="run folder, or folder of a saved model, of a system that aligns")
    max_ms: float = Field(45.0, gt=0, description="the gate: lags up to this are in sync")
    search_ms: float = Field(400.0, gt=0, description="look for lags up to this, either way")
    min_confidence: float = Field(
        0.9, ge=0, le=1, description="undecidable below this posterior mass within 40 ms of the answer"
    )
    strict: bool = Field(False, description="files that are undecidable or cannot be read fail too")
    fix: bool = Field(
        False, description="write the files that are late or early anew with the sound moved, not re-encoded"
    )
    out: Path | None = Field(None, description="where --fix writes: a file; of several files a folder")
    force: bool = Field(False, description="replace files that are there")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.apply.sync import SyncResult, check_files
        from avcl.errors import MediaError

        last: MediaError | None = None
        read = 0
        for found in check_files(
            self.files,
            self.model,
            max_ms=self.max_ms,
            search_ms=self.search_ms,
            min_confidence=self.min_confidence,
            fix=self.fix,
            out=self.out,
            force=self.force,
            progress=progress,
        ):
            if isinstance(found, SyncResult):
                read += 1
                yield found.as_dict()
                continue
            if len(self.files) == 1:
                raise found
            last = found
            yield {"file": found.file, "error": found.as_dict()}
        if last is not None and read == 0:
            raise last

    def human(self, result: Mapping[str, Any]) -> str:
        if "error" in result:
            error = result["error"]
            return f"{error['code']} {result['file']}: {error['message']} {error['hint']}"
        lines = [f"{result['file']}: {self._said(result)}"]
        for section in result.get("sections", ()):
            lines.append(f"  {section['start']:.2f}–{section['end']:.2f} s: {_late(section['offset_ms'])}")
        fix = result.get("fix")
        if fix and fix["refused"]:
            lines.append(f"  nothing written: {fix['refused']}")
        elif fix:
            way = "later" if fix["moved_ms"] > 0 else "earlier"
            again = fix["recheck"]
            lag = f"{again['offset_ms']:.0f} ms " if "offset_ms" in again else ""
            less = f", without {fix['left_out']} further streams" if fix["left_out"] else ""
            lines.append(
                f"  moved the sound {way} by {abs(fix['moved_ms']):.0f} ms by rewriting timestamps; streams "
                f"copied{less}, not re-encoded; re-check: {lag}{again['status']} → {fix['out']}"
            )
        return "\n".join(lines)

    def _said(self, result: Mapping[str, Any]) -> str:
        status, reason = result["status"], result.get("reason", "")
        if result.get("offset_ms") is None:
            return f"{WORDS[status]}: {reason}"
        low, high = result["ci_ms"]
        words = f"{_late(result['offset_ms'])} ({low:.0f} to {high:.0f} ms)"
        words = words if status in ("late", "early") else f"{WORDS[status]}: {words}"
        more = [f"{result['segments_used']} of {result['segments']} segments"]
        if "drift_ms_per_min" in result:
            more.append(f"drift {result['drift_ms_per_min']:g} ms/min")
        if result["container_offset_ms"]:
            more.append(f"of which the container declares {result['container_offset_ms']:g} ms")
        return f"{words}; {', '.join(more)}" + (f"; {reason}" if reason else "")

    def status(self, results: list[dict[str, Any]]) -> int:
        failing = (*FAILING, "undecidable") if self.strict else FAILING
        bad = [
            r for r in results if ("error" in r and self.strict) or (r.get("status") in failing and not _repaired(r))
        ]
        return 1 if bad else 0


def _late(offset_ms: float) -> str:
    if round(offset_ms) == 0:
        return "audio in time"
    return f"audio is {'LATE' if offset_ms > 0 else 'EARLY'} by {abs(offset_ms):.0f} ms"


def _repaired(result: Mapping[str, Any]) -> bool:
    return bool(result.get("fix", {}).get("recheck", {}).get("status") == "ok")
