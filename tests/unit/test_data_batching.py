"""Collate, segments and tokens: properties, not examples alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl.data import collate
from avcl.data.tokens import text_of, text_stream
from avcl.errors import BatchError, ConfigError
from avcl.media import segments
from avcl.types import Clip, Stream


def clip(name: str, steps: int | None, *, rate: float = 2.0, width: int = 3, dtype=torch.float32, **more) -> Clip:
    streams = {}
    if steps is not None:
        data = torch.arange(1, steps * width + 1).reshape(1, steps, width).to(dtype)
        streams["audio"] = Stream(data, torch.ones(1, steps, dtype=torch.bool), rate)
    return Clip(id=name, streams=streams, **more)


@given(st.lists(st.one_of(st.none(), st.integers(1, 9)), min_size=1, max_size=6))
@settings(max_examples=80, deadline=None)
def test_ragged_clips_come_back_out_of_the_batch(lengths: list[int | None]) -> None:
    clips = [clip(f"c{i}", steps, label=i if i % 2 else None, index=i, view=i % 3) for i, steps in enumerate(lengths)]
    batch = collate(clips)
    assert batch.id == tuple(c.id for c in clips)
    assert batch.label.tolist() == [i if i % 2 else -1 for i in range(len(clips))]
    assert batch.index.tolist() == list(range(len(clips)))
    assert batch.view.tolist() == [i % 3 for i in range(len(clips))]
    longest = max((n for n in lengths if n is not None), default=None)
    if longest is None:
        assert dict(batch.streams) == {}
        return
    assert batch.audio.data.shape == (len(clips), longest, 3)
    assert batch.audio.rate == 2.0
    for row, (steps, c) in enumerate(zip(lengths, clips, strict=True)):
        kept = steps or 0
        assert batch.audio.mask[row].tolist() == [True] * kept + [False] * (longest - kept)
        assert batch.audio.data[row, kept:].abs().sum() == 0
        if steps:
            torch.testing.assert_close(batch.audio.data[row, :kept], c.streams["audio"].data[0])


def test_masks_inside_clips_are_kept_and_types_too() -> None:
    gap = Stream(torch.ones(1, 3, 2, dtype=torch.uint8), torch.tensor([[True, False, True]]), 1.0)
    batch = collate(
        [Clip("a", {"video": gap}), Clip("b", {"video": gap._replace(data=gap.data[:, :1], mask=gap.mask[:, :1])})]
    )
    assert batch.video.mask.tolist() == [[True, False, True], [True, False, False]]
    assert batch.video.data.dtype == torch.uint8


def test_what_does_not_fit_is_named() -> None:
    a = clip("a", 2)
    for other, words in (
        (clip("b", 2, rate=3.0), '"audio" differs in rate: 2.0 in "a", 3.0 in "b"'),
        (clip("b", 2, width=4), 'differs in shape of a step: (3,) in "a", (4,) in "b"'),
        (clip("b", 2, dtype=torch.float64), "differs in type"),
        (
            Clip("b", {"audio": Stream(torch.ones(2, 2, 3), torch.ones(2, 2, dtype=torch.bool), 2.0)}),
            "is not [1, T, ...]",
        ),
    ):
        with pytest.raises(BatchError) as caught:
            collate([a, other])
        assert words in str(caught.value)
    with pytest.raises(BatchError, match="no clips"):
        collate([])


def test_extras_are_stacked() -> None:
    batch = collate([clip("a", 1, extras={"box": torch.ones(4)}), clip("b", 2, extras={"box": torch.zeros(4)})])
    assert batch.extras["box"].tolist() == [[1.0] * 4, [0.0] * 4]
    with pytest.raises(BatchError, match='"b" lacks the extra "box"'):
        collate([clip("a", 1, extras={"box": torch.ones(4)}), clip("b", 2)])
    with pytest.raises(BatchError, match='"box" differs in shape'):
        collate([clip("a", 1, extras={"box": torch.ones(4)}), clip("b", 1, extras={"box": torch.ones(3)})])


@given(st.floats(0.01, 500), st.floats(0.1, 20), st.floats(0.05, 30))
@settings(max_examples=200, deadline=None)
def test_segments_cover_and_stay_inside(duration: float, window: float, hop: float) -> None:
    found = segments(duration, window, hop)
    assert found
    assert found[0][0] == 0.0
    for start, end in found:
        assert 0 <= start < end <= duration + 1e-6
        assert end - start <= window + 1e-6
    starts = [start for start, _ in found]
    assert starts == sorted(set(starts))
    if duration >= window:
        assert all(abs(end - start - window) < 1e-6 for start, end in found)
    if hop <= window:
        assert duration - found[-1][1] <= window / 20 + 1e-6
        assert all(b[0] <= a[1] + 1e-6 for a, b in pairwise(found))


def test_segments_by_hand() -> None:
    assert segments(10, 3, 3) == [(0, 3), (3, 6), (6, 9), (7, 10)]
    assert segments(10, 3, 1) == [(float(i), float(i + 3)) for i in range(8)]
    assert segments(9.1, 3) == [(0, 3), (3, 6), (6, 9)]
    assert segments(2, 3) == [(0, 2)]
    assert segments(3, 3) == segments(3.1, 3) == [(0, 3)]
    assert segments(10, 2, 4) == [(0, 2), (4, 6), (8, 10)]
    assert segments(0, 3) == []
    with pytest.raises(ConfigError):
        segments(10, 3, 0)
    with pytest.raises(ConfigError):
        segments(10, float("nan"))


@given(st.lists(st.text(max_size=12), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_text_comes_back_out_of_tokens(texts: list[str]) -> None:
    texts = [t.encode("utf-8", "replace").decode() for t in texts]
    batch = collate([Clip(str(i), {"text": text_stream(t)}) for i, t in enumerate(texts)])
    assert batch.text.data.dtype == torch.long
    assert text_of(batch.text) == tuple(texts)
