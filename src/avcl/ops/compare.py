"""Rank systems on the same data under the same rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from avcl.ops.learn import ReadsData, settings_of


class Compare(ReadsData):
    """Train systems on the same data under the same rules, each in its own process, and rank them with tests."""

    name: ClassVar[str] = "compare"
    positional: ClassVar[tuple[str, ...]] = ("data",)
    out: Path = Field(description="folder to write: tables, report.html, a file a run; a rerun does what is missing")
    systems: str = Field("all", description='methods, as in "cca,infonce"; "all": every one that embeds')
    seeds: int = Field(3, ge=1, description="training runs of each system, under seeds 0, 1, ...")
    seed: int = Field(0, ge=0, description="seed of the split, where the data bring none")
    budget: float = Field(5.0, ge=0, description="minutes of processor time to train one system and seed (0: no limit)")
    patience: int = Field(20, ge=0, description="epochs without a better validation score before training stops")
    tune: int = Field(0, ge=0, description="trials of settings on the validation split, as many for each (0: none)")
    baseline: str = Field("", description="what the others are tested against (default: cca, or the first one)")
    relevance: Literal["pair", "class", "group"] = Field("class", description="what counts as a right answer")
    set: list[str] = Field(
        default_factory=list, description="settings: system.key=value, or key=value for all that know the key"
    )
    workers: int | None = Field(None, ge=1, description="processes at a time, one thread each (default: one per core)")
    memory: float | None = Field(None, gt=0, description="GiB that all processes share equally (default: no limit)")
    retry: bool = Field(False, description="run again what failed before")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.comparison.study import compare

        same = ("out", "systems", "seeds", "budget", "patience", "tune", "baseline", "relevance", "workers", "memory")
        reading = ("seed", "layout", "split_by", "allow_leak", "window", "hop", "drop_bad")
        how = {name: getattr(self, name) for name in (*same, "retry", "on_error", *reading)}
        yield from compare(self.data, settings=self._settings(), progress=progress, **how).lines()

    def _settings(self) -> dict[str, dict[str, Any]]:
        """``system.key=value`` by system, ``key=value`` under "all"."""
        found: dict[str, dict[str, Any]] = {}
        for key, value in settings_of(self.set).items():
            system, dot, name = key.rpartition(".")
            found.setdefault(system if dot else "all", {})[name] = value
        return found

    def human(self, result: Mapping[str, Any]) -> str:
        """A line a run; the table comes after all of them."""
        head = f"{result['system']} seed {result['seed']}  {result['state']}"
        if result["state"] != "ok":
            return f"{head}  {result['error']['code']} {result['error']['message']}"
        return f"{head}  mAP {result['mean']['mAP']:.4f}  {result['train_s']:.1f} s"

    def closing(self, results: list[dict[str, Any]]) -> str:
        return f"\n{(self.out / 'table.txt').read_text()}\n{self.out / 'report.html'}"

    def status(self, results: list[dict[str, Any]]) -> int:
        """1 where no run came to a result: one that failed does not spoil the others."""
        return 0 if any(result["state"] == "ok" for result in results) else 1
