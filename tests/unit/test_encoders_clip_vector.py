"""A clip as one vector: of features, tokens and media, with gaps, padding and rows that hold nothing."""

from __future__ import annotations

import pytest
import torch

from avcl.encoders.clip_vector import ClipVector, learn_vectors
from avcl.encoders.statistics import summarize, summary_dim
from avcl.testing import stream_of
from avcl.types import Batch, Stream, StreamSpec

SPECS = {
    "features": StreamSpec("features", (5,), 2.0),
    "map": StreamSpec("map", (2, 3, 5), 2.0),
    "audio": StreamSpec("audio", (1,), 4000.0),
    "video": StreamSpec("video", (3, 16, 16), 8.0),
    "tokens": StreamSpec("tokens", (), 1.0),
}


def batch_of(**streams: Stream) -> Batch:
    n = len(next(iter(streams.values())).data)
    index = torch.arange(n)
    return Batch(tuple(map(str, range(n))), streams, index, index * 0, index % 2, ("",) * n)


@pytest.mark.parametrize("frames", [0, 2])
@pytest.mark.parametrize("kind", SPECS)
def test_one_row_a_clip_whatever_stands_behind_its_end(kind: str, frames: int) -> None:
    spec = SPECS[kind]
    vector = ClipVector(spec, seconds=1.0, frames=frames).eval()
    steps = 4000 if kind == "audio" else 6
    stream = stream_of(spec, batch=4, steps=steps)
    mask = stream.mask.clone()
    mask[1, steps // 2 :] = False
    mask[3] = False
    blank = mask.reshape(*mask.shape, *[1] * (stream.data.ndim - 2))
    stream = Stream(stream.data * blank, mask, stream.rate)
    found = vector(stream)
    assert found.shape == (4, vector.dim)
    assert found.dtype == torch.float32
    assert not bool(found[3].any())
    assert bool(found[:3].any(1).all())
    half = Stream(stream.data[1:2, : steps // 2], mask[1:2, : steps // 2], stream.rate)
    torch.testing.assert_close(vector(half)[0], found[1], atol=2e-5, rtol=1e-4)
    learned = frames > 0 and kind in ("audio", "video")
    assert bool(list(vector.parameters())) is learned


def test_fixed_vectors_are_standardized_by_what_was_recorded() -> None:
    spec = SPECS["features"]
    data = 3 + 2 * torch.randn(20, 4, 5, generator=torch.Generator().manual_seed(0))
    data[..., 4] = 7.0
    mask = torch.ones(20, 4, dtype=torch.bool)
    mask[:5] = False
    stream = Stream(data * mask[:, :, None], mask, 2.0)
    vector = ClipVector(spec, seconds=1.0)
    torch.testing.assert_close(vector(stream), summarize(stream, spec, seconds=1.0).float())
    plain = ClipVector(spec, seconds=1.0, standardize=False)
    learn_vectors({"a": vector, "b": plain}, [batch_of(a=stream, b=stream)])
    found = vector(stream)[5:]
    torch.testing.assert_close(found.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, :4].std(0, correction=0), torch.ones(4))
    assert not bool(found[:, 4].any())  # a column that never changes is zero, not noise
    torch.testing.assert_close(plain(stream), summarize(stream, spec, seconds=1.0).float())
    assert not list(vector.parameters())


def test_media_without_frames_are_summaries_and_uint8_pictures_are_read_alike() -> None:
    spec = SPECS["video"]
    data = torch.randint(0, 256, (3, 4, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mask = torch.ones(3, 4, dtype=torch.bool)
    vector = ClipVector(spec, seconds=1.0, standardize=False)
    assert vector.dim == summary_dim(spec)
    assert vector.scale is not None  # the columns of a summary have units of their own
    torch.testing.assert_close(vector(Stream(data, mask, 8.0)), vector(Stream(data.float() / 255, mask, 8.0)))


def test_scales_come_from_all_batches() -> None:
    ones = Stream(torch.ones(4, 1, 5), torch.ones(4, 1, dtype=torch.bool), 2.0)
    vectors = {"a": ClipVector(SPECS["features"], seconds=1.0)}
    learn_vectors(vectors, [batch_of(a=ones), batch_of(a=ones._replace(data=torch.full((4, 1, 5), 5.0)))])
    assert vectors["a"].scale is not None
    assert vectors["a"].scale.mean.tolist() == [3.0] * 5
    assert vectors["a"].scale.deviation.tolist() == [2.0] * 5
