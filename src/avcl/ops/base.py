"""What a verb is: a pydantic model whose fields are its arguments."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from avcl.errors import AvclError, ConfigError, did_you_mean


class Op(BaseModel):
    """A verb and its arguments. ``positional``: which fields the shell takes without a name, in this order."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=False)
    positional: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str]  # the words of the shell: "train", "index build"

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """The request from plain values; ConfigError instead of pydantic's own."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                hint = did_you_mean(key, set(cls.model_fields))
                raise ConfigError(f'"{key}" is not an argument of {cls.name}.', hint=hint) from None
            if first["type"] == "missing":
                raise ConfigError(f'{cls.name} needs "{key}".') from None
            raise ConfigError(f"{key} = {first['input']!r}: {first['msg']}.") from None

    @abstractmethod
    def run(self, *, progress: bool = False) -> Iterator[dict[str, Any]]:
        """The results, one plain dict each, as soon as they are known."""

    def human(self, result: Mapping[str, Any]) -> str:
        """One result as a person reads it."""
        return "  ".join(f"{k} {short(v)}" for k, v in result.items())

    def closing(self, results: list[dict[str, Any]]) -> str:
        """What a person reads after all results; nothing by default."""
        return ""

    def status(self, results: list[dict[str, Any]]) -> int:
        """The exit status after all results: 0, or 1 where a check failed."""
        return 0


def short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {short(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return ", ".join(short(v) for v in value) if len(value) <= 8 else f"{len(value)} values"
    return str(value)


def failure(error: AvclError) -> dict[str, Any]:
    return {"error": error.as_dict()}
