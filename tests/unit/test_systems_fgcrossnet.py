"""he2019_fgcrossnet: how sounds and texts become pictures, the stages, the terms, one network for them all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hashing_toys import at, class_map, classed, whole

import avcl
from avcl.encoders.conv2d import glimpses
from avcl.errors import BatchError, ConfigError
from avcl.objectives.lifted import quadruplet
from avcl.seeds import seeded
from avcl.systems.he2019_fgcrossnet import (
    COLORS,
    FGCrossNet,
    FGCrossNetConfig,
    SoundPicture,
    TextPicture,
    one_frame,
)
from avcl.testing.systems import FEATURES, clips_of
from avcl.types import Batch, DataSpec, Stream, StreamSpec

MEDIA = DataSpec(
    {
        "audio": StreamSpec("audio", (1,), 8000.0),
        "video": StreamSpec("video", (3, 32, 32), 8.0),
        "text": StreamSpec("tokens", (), 1.0),
    },
    labels=("a", "b", "c"),
    n_items=16,
)
SMALL = replace(FGCrossNetConfig.tiny(), size=(32, 32), sample_rate=8000, window=1.0)


def made(spec: DataSpec = FEATURES, **settings: object) -> FGCrossNet:
    with seeded(0, "init"):
        return FGCrossNet(replace(SMALL, **settings), spec)


def full(data: torch.Tensor, rate: float) -> Stream:
    return Stream(data, torch.ones(data.shape[:2], dtype=torch.bool), rate)


def three_media(n: int = 9, seed: int = 0) -> Batch:
    """The class is a pitch, a color and a word."""
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 3
    time = torch.arange(8000) / 8000
    tone = torch.sin(6.283 * 400 * 2.0 ** label[:, None] * time) + 0.05 * torch.randn(n, 8000, generator=g)
    color = (0.6 * torch.eye(3)[label] + 0.2)[:, None, :, None, None].expand(n, 8, 3, 32, 32)
    words = torch.tensor([[98, 105, 114, 100], [111, 119, 108, 33], [99, 114, 111, 119]])[label]
    noise = 0.1 * torch.randn(n, 8, 3, 32, 32, generator=g)
    streams = {
        "audio": full(tone[:, :, None], 8000.0),
        "video": full((color + noise).clamp(0, 1), 8.0),
        "text": full(words, 1.0),
    }
    ids = tuple(map(str, range(n)))
    return Batch(ids, streams, torch.arange(n), torch.zeros(n, dtype=torch.long), label, ids)


def test_a_sound_is_a_picture_on_the_clock_of_the_window() -> None:
    draw, time = SoundPicture((24, 20), 1.0), torch.arange(4000) / 8000
    tones = torch.stack([torch.sin(6.283 * f * time) for f in (300.0, 3000.0)])[:, :, None]
    seen = draw(full(tones, 8000.0))
    assert seen.data.shape == (2, 1, 3, 24, 20)
    assert 0 <= float(seen.data.min()) <= float(seen.data.max()) <= 1
    light = seen.data[:, 0].mean(1)  # [2, 24, 20]
    assert float(light[:, :, 12:].std()) < 0.01  # nothing was recorded in the second half of the window
    low, high = light[:, :, 2:8].mean(2).argmax(1).tolist()
    assert low > 16 > 8 > high  # low pitches are below
    louder, longer = draw(full(9 * tones, 8000.0)), torch.cat([tones, torch.ones(2, 4000, 1)], 1)
    torch.testing.assert_close(louder.data, seen.data, atol=1e-3, rtol=0)
    mask = (torch.arange(8000) < 4000).expand(2, -1)
    torch.testing.assert_close(draw(Stream(longer, mask, 8000.0)).data, seen.data, atol=1e-4, rtol=0)
    blank = draw(Stream(torch.zeros(1, 8000, 1), torch.zeros(1, 8000, dtype=torch.bool), 8000.0))
    torch.testing.assert_close(blank.data[0, 0, :, 3, 3], torch.tensor(COLORS[0]))
    assert not bool(blank.mask.any())


def test_false_colors() -> None:
    painted = SoundPicture((4, 4), 1.0)._painted(torch.tensor([[[0.0, 0.25, 0.375, 1.0]]]))[0, :, 0].T
    between = torch.tensor([COLORS[1], COLORS[2]]).mean(0)
    torch.testing.assert_close(
        painted, torch.stack([*torch.tensor([COLORS[0], COLORS[1]]), between, torch.tensor(COLORS[4])])
    )


def test_a_text_is_a_picture_and_moves_in_training() -> None:
    draw, tokens = TextPicture((16, 12), 256, dim=4, shift=8).eval(), torch.arange(40)[None] + 60
    first = draw(full(tokens[:, :5], 1.0))
    assert first.data.shape == (1, 1, 3, 16, 12)
    padded = Stream(tokens[:, :9], torch.arange(9)[None] < 5, 1.0)
    torch.testing.assert_close(draw(padded).data, first.data)
    torch.testing.assert_close(draw(full(tokens, 1.0)).data, draw(full(tokens[:, :12], 1.0)).data)  # cut at the width
    torch.manual_seed(0)
    views = torch.stack([draw.train()(full(tokens[:, :5], 1.0)).data for _ in range(40)])
    assert len({round(float(view.sum().detach()), 3) for view in views}) == 5  # 0, 2, 4, 6 or 8 blanks
    assert bool((TextPicture((16, 12), 256, dim=4, shift=0).train()(padded).data == 0).logical_not().any())


def test_one_frame_is_a_recorded_one() -> None:
    data = torch.arange(24.0).view(2, 12, 1)
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[0, [2, 5, 9]] = True
    torch.manual_seed(0)
    drawn = [one_frame(Stream(data, mask, 8.0)) for _ in range(60)]
    assert {float(d.data[0]) for d in drawn} == {2.0, 5.0, 9.0}
    assert all(d.mask.tolist() == [[True], [False]] for d in drawn)


def test_the_terms_are_what_the_equations_say() -> None:
    system, batch = made(center=0.5, ranking=0.3).eval(), avcl.data.collate(clips_of(FEATURES, n=8)).to("cpu")
    system.centers.centers.copy_(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    encoded = system.encode(batch)
    terms = system.losses(encoded, batch, at())
    z, label = torch.cat([encoded["audio"], encoded["video"]]), batch.label.repeat(2)
    both = [torch.nn.functional.cross_entropy(encoded[name], batch.label) for name in ("audio", "video")]
    torch.testing.assert_close(terms["classes"], sum(both))
    torch.testing.assert_close(terms["center"], 0.5 * (z - system.centers.centers[label]).square().sum(1).mean())
    torch.testing.assert_close(terms["ranking"], 0.3 * quadruplet(z, label, margins=(1.0, 0.5), clip="one"))
    two = made(clip="two", ranking=0.3).losses(encoded, batch, at())["ranking"]
    torch.testing.assert_close(two, 0.3 * quadruplet(z, label, margins=(1.0, 0.5), clip="two"))
    pair = replace(batch, label=batch.label.clamp(max=1))
    assert float(system(pair, at())[0]["ranking"].detach()) == 0  # two classes make no quadruplet
    before = system.centers.centers.clone()
    system.after_step(encoded, batch, at())
    torch.testing.assert_close(
        system.centers.centers[0], before[0] - 0.5 * (before[0] - z[label == 0]).sum(0) / (1 + (label == 0).sum())
    )


def test_stages() -> None:
    first, second = made(stage=0.4).phases()
    assert (first.end, second.start) == (0.4, 0.4)
    assert [len(p.losses) for p in (first, second)] == [2, 3]
    assert "ranking" not in made()(avcl.data.collate(clips_of(FEATURES, n=8)).to("cpu"), at("stage 1"))[0]
    assert [p.name for p in made(stage=0.0).phases()] == ["stage 2"]
    assert [p.name for p in made(ranking=0.0).phases()] == ["stage 1"]


def test_one_network_learns_to_read_sound_picture_and_text() -> None:
    system = made(MEDIA, widths=(16, 32)).train()
    assert sum(p.numel() for p in system.pictures.parameters()) > 0.5 * sum(p.numel() for p in system.parameters())
    optimizer = torch.optim.AdamW(system.parameters(), lr=5e-3)
    torch.manual_seed(0)
    for step in range(60):
        loss = torch.stack(list(system(three_media(seed=step), at())[0].values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    silent = [name for name, p in system.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not silent
    system.eval()
    batch = three_media(seed=1000)
    found = {name: system.embed(batch.without(*(set(batch.streams) - {name})), name) for name in batch.streams}
    for name, score in found.items():
        torch.testing.assert_close(score.sum(1), torch.ones(9))
        assert float((score.argmax(1) == batch.label).float().mean()) > 0.85, name
    torch.testing.assert_close(system.embed(batch, "audio+text"), found["audio"] + found["text"])
    frames = glimpses(batch.video, 2)
    logits = [system._logits(Stream(frames.data[:, [i]], frames.mask[:, [i]], 1.0), "video") for i in range(2)]
    torch.testing.assert_close(system.encode(batch)["video"], sum(logits) / 2)


def test_feature_arrays_are_classified_and_found() -> None:
    settings = {"epochs": 10, "batch_size": 30, "width": 32, "widths": (32,), "depths": (1,)}
    model = avcl.train("he2019_fgcrossnet", classed(), settings=settings, workers=0)
    assert class_map(model, classed(100, seed=1)) > 0.8  # chance .2
    assert "ranking" in model.meta["history"][-1]["losses"]
    assert "ranking" not in model.meta["history"][0]["losses"]


def test_what_it_cannot_learn_from() -> None:
    batch = whole(classed(10))
    with pytest.raises(BatchError, match="needs a label"):
        made(classed(10).spec)(replace(batch, label=torch.full((10,), -1)), at())
    with pytest.raises(ConfigError, match="learns from classes"):
        made(replace(FEATURES, labels=()))
    with pytest.raises(ConfigError, match="no picture"):
        made(DataSpec({**MEDIA.streams, "audio": StreamSpec("spectrum", (4, 1), 1.0)}, labels=("a", "b")))
    for settings in ({"clip": "three"}, {"margins": (1.0,)}, {"stage": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            made(**settings)
    with pytest.raises(ConfigError, match="audoi"):
        made().embed(batch, "audoi")
