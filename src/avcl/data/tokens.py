"""Text as a stream: one token per UTF-8 byte (0..255), one token a second; longer vocabularies are the business of
systems.
"""

from __future__ import annotations

import torch

from avcl.types import Stream


def text_stream(text: str) -> Stream:
    """tokens [1, T] int64, T = number of UTF-8 bytes; no text at all is one step with mask False."""
    values = list(text.encode())
    data = torch.tensor([values or [0]], dtype=torch.long)
    return Stream(data, torch.full(data.shape, bool(values)), 1.0)


def text_of(stream: Stream) -> tuple[str, ...]:
    """The strings of a batch of token streams: the inverse of ``text_stream``."""
    rows = zip(stream.data.tolist(), stream.mask.tolist(), strict=True)
    return tuple(bytes(v for v, there in zip(*row, strict=True) if there).decode("utf-8", "replace") for row in rows)
