"""What every encoder asks of its sizes and its streams, with errors that say what was given."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.types import Stream


def at_least_one(sizes: Mapping[str, int], who: str) -> None:
    """ConfigError where a size is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{who}: {name} = {size} must be at least 1.")


def a_share(value: float, name: str, who: str) -> None:
    """ConfigError where a dropout or another share is not in [0, 1)."""
    if not 0 <= value < 1:
        raise ConfigError(f"{who}: {name} = {value} must be in [0, 1).")


def one_of(value: str, names: tuple[str, ...], name: str, who: str) -> None:
    """ConfigError where a setting is not one of its names."""
    if value not in names:
        raise ConfigError(f'{who}: {name} = "{value}" is none of {", ".join(names)}.')


def recorded(stream: Stream, features: int, who: str) -> Tensor:
    """The data [B, T, features] with zeros where nothing was recorded; BatchError for another shape."""
    if stream.data.ndim != 3 or stream.data.shape[2] != features or stream.data.shape[1] < 1:
        raise BatchError(f"{who} needs features [B, T, {features}], not {list(stream.data.shape)}.")
    if stream.mask.shape != stream.data.shape[:2]:
        raise BatchError(
            f"{who}: mask {list(stream.mask.shape)} does not belong to data {list(stream.data.shape)}.",
        )
    return stream.data.masked_fill(~stream.mask[:, :, None], 0)


def recorded_tokens(stream: Stream, who: str) -> Tensor:
    """The tokens [B, T] int64 with 0 where nothing was recorded; BatchError for another shape or type."""
    if stream.data.ndim != 2 or stream.data.is_floating_point() or stream.data.shape[1] < 1:
        raise BatchError(
            f"{who} needs tokens [B, T] of whole numbers, not {list(stream.data.shape)} {stream.data.dtype}."
        )
    if stream.mask.shape != stream.data.shape:
        raise BatchError(
            f"{who}: mask {list(stream.mask.shape)} does not belong to tokens {list(stream.data.shape)}.",
        )
    return stream.data.long().masked_fill(~stream.mask, 0)


def looked_up(table: nn.Embedding, tokens: Tensor, who: str) -> Tensor:
    """``table[token]``; BatchError for a token outside the table (on a CPU; an accelerator stops by itself)."""
    try:
        return table(tokens)
    except IndexError:
        raise BatchError(f"{who}: a token is outside 0..{table.num_embeddings - 1}, the rows of its table.") from None
