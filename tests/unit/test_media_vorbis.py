"""Ogg Vorbis: blocks of two sizes, whose stamps are estimates. Every sample is there, once, in its place."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from avcl.media import read_audio


def test_every_sample_is_read_in_its_place(
    shared_data: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Real recordings: no encoder at hand makes such files."""
    files = sorted((shared_data("esc10") / "audio").glob("*.ogg"))[::40]
    jumps = 0
    for path in files:
        with av.open(str(path)) as file:
            frames = list(file.decode(file.streams.audio[0]))
        ends = np.array([frame.pts + frame.samples for frame in frames])
        jumps += int((ends[:-1] != [frame.pts for frame in frames[1:]]).sum())
        plain = np.concatenate([frame.to_ndarray()[0] for frame in frames])
        read = read_audio(path)
        assert bool(read.mask.all())
        np.testing.assert_array_equal(read.data[0, :, 0].numpy(), plain)
    assert jumps > 100  # the stamps do contradict the samples
    assert not [record for record in caplog.records if "missing" in record.getMessage()]


def pages_of(content: bytes) -> Iterator[bytes]:
    """The pages of an Ogg file."""
    at = 0
    while at < len(content):
        segments = content[at + 26]
        size = 27 + segments + sum(content[at + 27 : at + 27 + segments])
        yield content[at : at + size]
        at += size


def test_a_page_that_is_gone_is_missed_at_its_length(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Estimated stamps are forgiven, a real hole is not."""
    for path in sorted((shared_data("esc10") / "audio").glob("*.ogg"))[::80]:
        pages = list(pages_of(path.read_bytes()))
        ends = [struct.unpack("<q", page[6:14])[0] for page in pages]
        gone = len(pages) // 2
        (tmp_path / "hole.ogg").write_bytes(b"".join(pages[:gone] + pages[gone + 1 :]))
        read = read_audio(tmp_path / "hole.ogg")
        assert float((~read.mask).sum()) == pytest.approx(ends[gone] - ends[gone - 1], rel=0.02)
