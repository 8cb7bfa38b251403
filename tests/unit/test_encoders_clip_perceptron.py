"""ClipPerceptron and CanonicalPair: what reaches the statistics, and what makes two outputs comparable."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from avcl.encoders.clip_perceptron import CanonicalPair, ClipPerceptron
from avcl.encoders.statistics import summarize
from avcl.errors import BatchError, ConfigError
from avcl.nn.canonical import ClusterCCA
from avcl.seeds import seeded
from avcl.types import Batch, Stream, StreamSpec

SPEC = StreamSpec("features", (6,), 2.0)


def made(spec: StreamSpec = SPEC, **more) -> ClipPerceptron:
    with seeded(0, "init"):
        return ClipPerceptron(spec, **{"hidden": (8, 5), "dim": 4, "activation": "tanh", "frames": 2, **more})


def some(n: int = 7, steps: int = 3, width: int = 6, seed: int = 0) -> Stream:
    data = torch.randn(n, steps, width, generator=torch.Generator().manual_seed(seed))
    return Stream(data, torch.ones(n, steps, dtype=torch.bool), 2.0)


def batch_of(label: list[int], **streams: Stream) -> Batch:
    n = len(label)
    ids, zero = tuple(map(str, range(n))), torch.zeros(n, dtype=torch.long)
    return Batch(ids, streams, torch.arange(n), zero, torch.tensor(label), ids)


def test_is_the_perceptron_of_the_normalized_mean() -> None:
    part, stream = made(), some()
    x = stream.data.mean(1)
    h = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    for layer in (m for m in part.net if isinstance(m, nn.Linear)):
        h = layer(h if layer.in_features == 6 else h.tanh())
    torch.testing.assert_close(part(stream), h)
    torch.testing.assert_close(part.clip(stream), x)
    assert part(stream).shape == (7, part.dim) == (7, 4)


def test_clips_without_the_modality_are_zeros_and_no_part_of_the_statistics() -> None:
    stream = some()
    mask = stream.mask.clone()
    mask[2] = False
    gap = stream._replace(mask=mask, data=torch.where(mask[:, :, None], stream.data, 1e4))
    rest = [i for i in range(7) if i != 2]
    one, two = made(), made()
    found, expected = one(gap), two(stream._replace(data=stream.data[rest], mask=stream.mask[rest]))
    torch.testing.assert_close(found[rest], expected)
    assert not bool(found[2].any())
    torch.testing.assert_close(one.net[0].running_mean, two.net[0].running_mean)
    with pytest.raises(BatchError, match="two clips or more"):
        made()(stream._replace(mask=mask & torch.tensor([True] + [False] * 6)[:, None]))
    assert bool(torch.isfinite(made().eval()(stream._replace(mask=torch.zeros_like(mask)))).all())


@pytest.mark.parametrize("kind", ["audio", "video", "tokens"])
def test_reads_media_and_words(kind: str) -> None:
    specs = {
        "audio": StreamSpec("audio", (1,), 8000.0),
        "video": StreamSpec("video", (3, 16, 16), 4.0),
        "tokens": StreamSpec("tokens", (), 1.0),
    }
    shape = {"audio": (4, 4000, 1), "video": (4, 4, 3, 16, 16), "tokens": (4, 5)}[kind]
    g = torch.Generator().manual_seed(0)
    data = torch.randint(9, shape, generator=g) if kind == "tokens" else torch.rand(shape, generator=g)
    stream = Stream(data, torch.ones(shape[:2], dtype=torch.bool), specs[kind].rate)
    part = made(specs[kind], vocabulary=9)
    assert part(stream).shape == (4, 4)
    assert (part.tower is None) == (kind == "tokens")
    if kind == "tokens":
        expected = summarize(stream, specs[kind], seconds=1.0, vocabulary=9).float()
        torch.testing.assert_close(part.clip(stream), expected)
    if kind == "video":  # as it comes from the file
        bytes_ = stream._replace(data=(data * 255).round().to(torch.uint8))
        torch.testing.assert_close(part.eval()(bytes_), part(stream._replace(data=bytes_.data.float() / 255)))


def test_another_pooling_reads_the_steps() -> None:
    class Last(nn.Module):
        def forward(self, stream: Stream) -> torch.Tensor:
            return stream.data[:, -1]

    part, stream = made(pool=lambda width: Last()), some()
    torch.testing.assert_close(part.clip(stream), stream.data[:, -1])
    with pytest.raises(ConfigError, match="tahn"):
        made(activation="tahn")


# ----------------------------------------------------------------------------------------------------- the common space
def pair(classes: int = 0, **more) -> CanonicalPair:
    return CanonicalPair({"audio": made(), "video": made()}, 4, classes=classes, **more).eval()


def test_the_pair_is_the_networks_and_the_cca_of_their_outputs() -> None:
    batch = batch_of([0, 1, 2] * 10, audio=some(30), video=some(30, seed=1))
    for classes, beta in ((0, 1.0), (3, 0.3)):
        both = pair(classes, ridge=0.1, pair_weight=beta)
        both.fit([batch])
        expected = ClusterCCA({"audio": 4, "video": 4}, 4, classes=3, ridge=0.1, pair_weight=beta)
        h = {name: both.views[name](batch.streams[name]).detach() for name in both.views}
        expected.fit([(h, batch.label)])
        torch.testing.assert_close(both.cca.correlation, expected.correlation)
        z = both.embed(batch, "video")
        torch.testing.assert_close(z, nn.functional.normalize(expected(h["video"], "video"), dim=1).float())
        sum_of_both = both.embed(batch, "audio+video")
        torch.testing.assert_close(sum_of_both.norm(dim=1), torch.ones(30))
        followed = pair(classes, ridge=0.1, pair_weight=beta)
        followed.follow(followed.encode(batch), batch)
        torch.testing.assert_close(followed.cca.correlation, both.cca.correlation)


def test_the_pair_asks_for_labels_only_where_it_has_classes() -> None:
    batch = batch_of([0, -1, 1, 0], audio=some(4), video=some(4, seed=1))
    pair().rows(pair().encode(batch), batch)
    with pytest.raises(BatchError, match="label for every clip"):
        pair(2).rows(pair(2).encode(batch), batch)
    mask = batch.audio.mask.clone()
    mask[1] = False  # without a label, and without sound
    gap = dataclasses.replace(batch, streams={**batch.streams, "audio": batch.audio._replace(mask=mask)})
    views, label = pair(2).rows(pair(2).encode(gap), gap)
    assert label.tolist() == [0, 1, 0]
    assert all(len(x) == 3 for x in views.values())
    assert not bool(pair(2).embed(gap, "audio")[1].any())
    with pytest.raises(ConfigError, match="two modalities, not 1"):
        CanonicalPair({"audio": made()}, 4)
    with pytest.raises(ConfigError, match="vidoe"):
        pair().embed(batch, "vidoe")
