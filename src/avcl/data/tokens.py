"""Text as a stream: one token per UTF-8 byte (0..255), one token a second; longer vocabularies are the business of
systems.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from avcl.errors import DataError
from avcl.types import Batch, Stream


def text_stream(text: str) -> Stream:
    """tokens [1, T] int64, T = number of UTF-8 bytes; no text at all is one step with mask False."""
    values = list(text.encode())
    data = torch.tensor([values or [0]], dtype=torch.long)
    return Stream(data, torch.full(data.shape, bool(values)), 1.0)


def text_of(stream: Stream) -> tuple[str, ...]:
    """The strings of a batch of token streams: the inverse of ``text_stream``."""
    rows = zip(stream.data.tolist(), stream.mask.tolist(), strict=True)
    return tuple(bytes(v for v, there in zip(*row, strict=True) if there).decode("utf-8", "replace") for row in rows)


BYTES = 160  # of the longest sentence that outputs of a task hold


def said_in(batch: Batch) -> tuple[str, ...]:
    """What is said in every clip: the stream "transcript", else "text". DataError where the data have neither."""
    name = "transcript" if "transcript" in batch.streams else "text"
    if name not in batch.streams:
        raise DataError("the data have no transcripts.", hint='Add a "text" column to the manifest.')
    return text_of(batch.streams[name])


def bytes_of(sentences: Sequence[str]) -> np.ndarray:
    """UTF-8, uint8 [N, 160], zeros behind the end: sentences as rows of equal length. DataError for a longer one."""
    rows = np.zeros((len(sentences), BYTES), np.uint8)
    for row, text in zip(rows, sentences, strict=True):
        code = text.encode()
        if len(code) > BYTES:
            raise DataError(f'the sentence "{text[:40]}..." is longer than {BYTES} bytes.')
        row[: len(code)] = list(code)
    return rows


def strings_of(rows: np.ndarray) -> list[str]:
    """The inverse of ``bytes_of``."""
    return [bytes(v for v in row if v).decode("utf-8", "replace") for row in rows.tolist()]
