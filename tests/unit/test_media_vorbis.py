"""Ogg Vorbis: blocks of two sizes, whose stamps are estimates. Every sample is there, once, in its place."""

from __future__ import annotations

from collections.abc import Callable
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
