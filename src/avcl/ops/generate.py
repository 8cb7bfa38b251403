"""Generate: the modality that a file lacks, or another one for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from avcl.ops.base import Op, short


class Generate(Op):
    """Generate the sound for a picture, the picture for a sound or the notes for a player, and write them as a file."""

    name: ClassVar[str] = "generate"
    positional: ClassVar[tuple[str, ...]] = ("run_folder", "file")
    run_folder: Path = Field(description="run folder, or folder of a saved model, of a system that generates")
    file: Path = Field(description="media file; for a model of features an .npy")
    want: str = Field(description="what is generated, from the rest of the file: audio, video, notes")
    out: Path = Field(description="the file: sound .wav, a picture .png, several .webm, notes .csv, features .npy")
    start: float | None = Field(None, ge=0, description="use the file from this second on")
    end: float | None = Field(None, description="use the file up to this second")
    seed: int = Field(0, ge=0, description="the same seed, the same output")
    instrument: str = Field("piano", description="what plays the notes where their sound is wanted")
    force: bool = Field(False, description="replace the file if it is there")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.apply.generate import generate

        yield generate(
            self.run_folder,
            self.file,
            self.out,
            want=self.want,
            start=self.start,
            end=self.end,
            seed=self.seed,
            instrument=self.instrument,
            force=self.force,
        )

    def human(self, result: Mapping[str, Any]) -> str:
        known = ("file", "want", "out", "kind", "windows", "seed")
        facts = ", ".join(f"{k.replace('_', ' ')} {short(v)}" for k, v in result.items() if k not in known)
        return f"{result['kind']} → {result['out']} ({facts})"
