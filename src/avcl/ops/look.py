"""Looking at things: the installation, files, what there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from avcl.errors import MediaError
from avcl.ops.base import Op, failure, short


class Doctor(Op):
    """Check the installation: versions, decoders, encoders, threads, cache."""

    name: ClassVar[str] = "doctor"

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.environment import doctor

        yield from doctor()

    def human(self, result: Mapping[str, Any]) -> str:
        return f"{'ok ' if result['ok'] else 'BAD'} {result['check']:<10} {result['detail']}"

    def status(self, results: list[dict[str, Any]]) -> int:
        return 0 if all(r["ok"] for r in results) else 1


class Probe(Op):
    """Say what is in media files, on one clock: streams, rates, start offsets."""

    name: ClassVar[str] = "probe"
    positional: ClassVar[tuple[str, ...]] = ("files",)
    files: list[Path] = Field(min_length=1, description="media files")
    scan: bool = Field(False, description="decode the whole file and count what is lost")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.media import probe
        from avcl.types import jsonable

        last: MediaError | None = None
        read = 0
        for file in self.files:
            try:
                yield jsonable(probe(file, scan=self.scan))
                read += 1
            except MediaError as error:
                if len(self.files) == 1:
                    raise
                last = error
                yield failure(error)
        if last is not None and read == 0:
            raise last

    def human(self, result: Mapping[str, Any]) -> str:
        if "error" in result:
            error = result["error"]
            return f"{error['code']} {error['file']}: {error['message']} {error['hint']}"
        lines = [str(result["path"])]
        lines += [f"  {key:<16} {short(value)}" for key, value in result.items() if key != "path" and value is not None]
        return "\n".join(lines)


class List(Op):
    """List the systems, data sets, tasks or pretrained towers that can be named."""

    name: ClassVar[str] = "list"
    positional: ClassVar[tuple[str, ...]] = ("what",)
    what: Literal["systems", "data", "tasks", "towers"] = Field(description="systems, data, tasks or towers")

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.catalog import entries

        yield from entries(self.what)

    def human(self, result: Mapping[str, Any]) -> str:
        return f"{result['name']:<24} {result['about']}"


class Describe(Op):
    """Describe a system, data set, task, saved model or index."""

    name: ClassVar[str] = "describe"
    positional: ClassVar[tuple[str, ...]] = ("thing",)
    thing: str = Field(description='a name that "avcl list" shows, or the folder of a model or an index')

    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        from avcl.catalog import describe

        yield describe(self.thing)

    def human(self, result: Mapping[str, Any]) -> str:
        lines = []
        for key, value in result.items():
            if isinstance(value, Mapping):
                lines.append(f"{key}")
                lines += [f"  {k:<16} {short(v)}" for k, v in value.items()]
            else:
                lines.append(f"{key:<18} {short(value)}")
        return "\n".join(lines)
