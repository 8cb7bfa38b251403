"""Transforms: worked values, seeded, masks kept true, sound and picture kept together."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl.data.transforms import Crop, Flip, Gain, Mask, Noise, Shift, Window
from avcl.errors import ConfigError
from avcl.types import Clip, Stream


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def media(channels: int = 2, seconds: int = 2) -> Clip:
    """Sound at 80 a second, pictures at 8: values tell the moment. The last picture is a gap."""
    samples, frames = 80 * seconds, 8 * seconds
    audio = (torch.arange(samples) // 10 + 1.0).reshape(1, samples, 1).repeat(1, 1, channels)
    audio[..., -1] *= -1 if channels == 2 else 1
    video = (torch.arange(frames) + 1).reshape(1, frames, 1, 1, 1).expand(1, frames, 3, 6, 8).to(torch.uint8).clone()
    video[..., 0] += 100
    mask = torch.ones(1, frames, dtype=torch.bool)
    mask[0, -1], video[0, -1] = False, 0
    return Clip(
        "a",
        {
            "audio": Stream(audio, torch.ones(1, samples, dtype=torch.bool), 80.0),
            "video": Stream(video, mask, 8.0),
            "text": Stream(torch.tensor([[104, 105]]), torch.ones(1, 2, dtype=torch.bool), 1.0),
        },
        label=1,
    )


ALL = [Gain(), Noise(), Flip(), Crop(), Shift(), Window(1.0)]


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_seeded_pure_and_true_to_types(transform) -> None:
    clip = media()
    before = {k: s.data.clone() for k, s in clip.streams.items()}
    outcomes = [transform(clip, 0, seeded(s)) for s in (1, 1, 2, 3, 4, 5)]
    for name, value in before.items():
        assert torch.equal(clip.streams[name].data, value)
        assert torch.equal(outcomes[0].streams[name].data, outcomes[1].streams[name].data)
    differs = [
        any(not torch.equal(o.streams[k].data, outcomes[0].streams[k].data) for k in before) for o in outcomes[2:]
    ]
    assert any(differs)
    for outcome in outcomes:
        assert (outcome.id, outcome.label) == ("a", 1)
        assert torch.equal(outcome.streams["text"].data, before["text"])
        for name, stream in outcome.streams.items():
            assert stream.data.dtype == before[name].dtype
            assert stream.mask.shape == stream.data.shape[:2]
            assert stream.data[~stream.mask].abs().sum() == 0
            assert stream.rate == clip.streams[name].rate


@pytest.mark.parametrize("transform", [*ALL, Mask("audio")], ids=lambda t: type(t).__name__)
def test_streams_that_are_not_there_are_no_error(transform) -> None:
    assert dict(transform(Clip("a", {}), 0, seeded()).streams) == {}


def test_gain_is_within_its_decibels() -> None:
    clip = media()
    factors = [float(Gain(-6, 6)(clip, 0, seeded(s)).streams["audio"].data[0, 0, 0]) for s in range(200)]
    assert 10 ** (-6 / 20) <= min(factors) < 0.6
    assert 1.8 < max(factors) <= 10 ** (6 / 20)


def test_noise_has_the_power_it_says() -> None:
    audio = Stream(torch.full((1, 40_000, 1), 2.0), torch.ones(1, 40_000, dtype=torch.bool), 8000.0)
    audio.data[0, 20_000:] = 0
    audio.mask[0, 20_000:] = False
    noisy = Noise(10, 10)(Clip("a", {"audio": audio}), 0, seeded()).streams["audio"].data
    noise = noisy - audio.data
    assert noise[0, 20_000:].abs().max() == 0
    assert math.isclose(float(noise[0, :20_000].square().mean()), 4.0 / 10, rel_tol=0.05)
    silent = Clip("a", {"audio": audio._replace(data=torch.zeros_like(audio.data))})
    assert Noise()(silent, 0, seeded()).streams["audio"].data.abs().max() == 0


def test_flip_takes_the_sound_with_it() -> None:
    clip = media()
    flipped = Flip(1.0)(clip, 0, seeded())
    assert torch.equal(flipped.streams["video"].data, clip.streams["video"].data.flip(-1))
    assert torch.equal(flipped.streams["audio"].data, -clip.streams["audio"].data)
    mono = media(channels=1)
    assert torch.equal(Flip(1.0)(mono, 0, seeded()).streams["audio"].data, mono.streams["audio"].data)
    assert torch.equal(Flip(0.0)(clip, 0, seeded()).streams["video"].data, clip.streams["video"].data)


def test_crop_keeps_size_and_zooms_in() -> None:
    ramp = torch.arange(32, dtype=torch.float32).mul(8).expand(1, 2, 3, 32, 32).to(torch.uint8).contiguous()
    clip = Clip("a", {"video": Stream(ramp, torch.ones(1, 2, dtype=torch.bool), 8.0)})
    for seed in range(10):
        cropped = Crop(0.25)(clip, 0, seeded(seed)).streams["video"].data
        assert cropped.shape == ramp.shape
        assert torch.equal(cropped[0, 0], cropped[0, 1])
        assert int(cropped[0, 0, 0, 0, -1]) - int(cropped[0, 0, 0, 0, 0]) <= 248
        assert (cropped[0, 0, 0, 0].diff() >= 0).all()
    assert torch.equal(Crop(1.0)(clip, 0, seeded()).streams["video"].data, ramp)
    with pytest.raises(ConfigError):
        Crop(0.0)


@given(st.integers(0, 10_000), st.floats(0.0, 3.0))
@settings(max_examples=60, deadline=None)
def test_shift_keeps_sound_and_picture_together(seed: int, seconds: float) -> None:
    clip = media(channels=1)
    moved = Shift(seconds)(clip, 0, seeded(seed))
    audio, video = moved.streams["audio"], moved.streams["video"]
    assert audio.data.shape == clip.streams["audio"].data.shape
    for frame in range(16):
        block = audio.data[0, frame * 10 : frame * 10 + 10, 0]
        value = int(video.data[0, frame, 0, 0, 1])
        if video.mask[0, frame]:
            assert (block == value).all()
        else:
            assert value == 0
        assert audio.mask[0, frame * 10 : frame * 10 + 10].equal(block != 0)


@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 1.5, 2.0, 5.0]))
@settings(max_examples=60, deadline=None)
def test_window_takes_the_same_moment_of_every_stream(seed: int, seconds: float) -> None:
    clip = media(channels=1)
    cut = Window(seconds)(clip, 0, seeded(seed))
    audio, video = cut.streams["audio"], cut.streams["video"]
    kept = min(seconds, 2.0)
    assert (audio.data.shape[1], video.data.shape[1]) == (round(80 * kept), round(8 * kept))
    for frame in range(video.data.shape[1]):
        if video.mask[0, frame]:
            assert (audio.data[0, frame * 10 : frame * 10 + 10, 0] == int(video.data[0, frame, 0, 0, 1])).all()


def test_window_reaches_both_ends_and_a_still_stays() -> None:
    clip = media(channels=1)
    starts = {int(Window(1.0)(clip, 0, seeded(s)).streams["audio"].data[0, 0, 0]) for s in range(100)}
    assert starts == set(range(1, 10))
    still = Stream(torch.ones(1, 1, 3, 2, 2, dtype=torch.uint8), torch.ones(1, 1, dtype=torch.bool), 8.0)
    both = Clip("a", {"audio": clip.streams["audio"], "video": still})
    assert Window(1.0)(both, 0, seeded()).streams["video"].data.shape[1] == 1
    assert Shift(1.0)(both, 0, seeded()).streams["video"].mask.all()
    with pytest.raises(ConfigError):
        Window(0.0)


@given(st.integers(0, 10_000), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_mask_hides_whole_steps_and_bands(seed: int, times: int, bands: int) -> None:
    stream = Stream(torch.ones(1, 20, 10), torch.ones(1, 20, dtype=torch.bool), 1.0)
    data = Mask("audio", times, bands, 0.3)(Clip("a", {"audio": stream}), 0, seeded(seed)).streams["audio"].data[0]
    rows, columns = (data == 0).all(1), (data == 0).all(0)
    assert torch.equal(data == 0, rows[:, None] | columns[None])
    assert rows.sum() <= times * 6 or columns.all()
    assert columns.sum() <= bands * 3 or rows.all()


def test_mask_along_the_frequencies_of_a_spectrum() -> None:
    stream = Stream(torch.ones(1, 4, 100, 2), torch.ones(1, 4, dtype=torch.bool), 1.0)
    hidden = [Mask("audio", 0, 1, 0.5)(Clip("a", {"audio": stream}), 0, seeded(s)).streams["audio"] for s in range(20)]
    assert all(torch.equal(h.data[0, 0], h.data[0, 3]) and h.mask.all() for h in hidden)
    assert any((h.data == 0).any() for h in hidden)
    with pytest.raises(ConfigError, match="no steps and features"):
        Mask("video")(media(), 0, seeded())
