"""Views of streams and the way back; phases and waves from magnitudes."""

from __future__ import annotations

import pytest
import torch

from avcl.data import collate
from avcl.data.world import World
from avcl.dsp import stft
from avcl.dsp.phase import griffin_lim, istft, power_of_mel
from avcl.dsp.spectrum import mel_filters
from avcl.encoders.views import FeatureView, PictureView, SoundView, block_scale, kind_of, spec_of, view_of
from avcl.errors import ConfigError
from avcl.types import Stream, StreamSpec


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of what differs between the rows."""
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.mark.parametrize(("n_fft", "hop", "length"), [(64, 16, 500), (64, 32, 1), (128, 33, 777)])
def test_istft_is_the_inverse(n_fft: int, hop: int, length: int) -> None:
    wave = torch.randn(2, length, dtype=torch.float64)
    back = istft(stft(wave, n_fft=n_fft, hop=hop), n_fft=n_fft, hop=hop, length=length)
    torch.testing.assert_close(back, wave, atol=1e-9, rtol=1e-7)
    with pytest.raises(ConfigError):
        istft(stft(wave, n_fft=n_fft, hop=hop), n_fft=n_fft, hop=n_fft, length=length)


def test_griffin_lim_finds_a_wave_of_these_magnitudes() -> None:
    t = torch.arange(4000) / 8000
    wave = torch.stack([torch.sin(2 * torch.pi * 440 * t), torch.sin(2 * torch.pi * 900 * t) * (t > 0.2)])
    wanted = stft(wave, n_fft=256, hop=64).abs()
    seed = torch.Generator().manual_seed(0)
    found = griffin_lim(wanted, n_fft=256, hop=64, length=4000, generator=seed)
    off = (stft(found, n_fft=256, hop=64).abs() - wanted).norm() / wanted.norm()
    assert off < 0.2
    # The answer to a row does not depend on the others.
    alone = griffin_lim(wanted[1:], n_fft=256, hop=64, length=4000, generator=seed.manual_seed(0))
    torch.testing.assert_close(alone[0], found[1], atol=1e-4, rtol=1e-3)


def test_powers_of_mel_bands() -> None:
    bank = mel_filters(8000, n_fft=256, n_mels=20, fmin=50.0, scale="htk")
    power = torch.rand(3, 129, dtype=torch.float64) + 0.5
    found = power_of_mel(power @ bank, sample_rate=8000, n_fft=256, fmin=50.0, scale="htk")
    assert bool((found >= 0).all())
    torch.testing.assert_close(found @ bank, power @ bank, atol=1e-3, rtol=0.05)


@pytest.fixture(scope="module")
def batch():
    world = World("retrieval", clips=10, split="val")
    return collate([world.clip(i) for i in range(10)]).to("cpu")


def test_a_sound_comes_back_from_its_view(batch) -> None:
    stream = batch.audio
    view = view_of(spec_of(stream), seconds=3.0)
    assert isinstance(view, SoundView)
    rows = view.of(stream)
    assert rows.shape == (10, view.dim) == (10, 24 + 40 + 24 * 40)
    parts = [part.var(0).sum() for part in rows.split(view.blocks, 1)]
    assert min(parts) > 0
    mel = view.cells(rows)
    torch.testing.assert_close(mel.mean(2), rows[:, :24], atol=1e-4, rtol=1e-3)  # the clip's mean is 0
    back = view.stream(rows, generator=torch.Generator().manual_seed(0))
    assert back.data.shape == stream.data.shape
    assert back.rate == stream.rate
    assert float(back.data.abs().max()) <= 1.0
    assert correlation(view.of(back), rows) > 0.85
    torch.testing.assert_close(view.of(stream._replace(data=stream.data * 0.1)), rows, atol=1e-3, rtol=1e-2)  # no level


def test_a_picture_and_its_motion_come_back_from_their_view(batch) -> None:
    stream = batch.video
    view = view_of(spec_of(stream), seconds=3.0)
    assert isinstance(view, PictureView)
    assert view.blocks == (3 * 12 * 12, 36, 24)
    rows = view.of(stream)
    back = view.stream(rows)
    assert back.data.shape == (10, 24, 3, 64, 64)
    assert back.rate == 8.0
    for mine, true in zip(view.of(back).split(view.blocks, 1), rows.split(view.blocks, 1), strict=True):
        assert correlation(mine, true) > 0.9
    bytes_ = Stream((stream.data * 255).round().to(torch.uint8), stream.mask, stream.rate)
    torch.testing.assert_close(view.of(bytes_), rows, atol=2e-3, rtol=1e-2)


def test_a_still_picture(batch) -> None:
    one = Stream(batch.video.data[:, :1], batch.video.mask[:, :1], batch.video.rate)
    view = view_of(spec_of(one), seconds=1.0, side=32, still=True)
    back = view.stream(view.of(one))
    assert back.data.shape == (10, 1, 3, 64, 64)
    assert float((back.data - one.data).abs().mean()) < 0.03
    moving = view_of(spec_of(one), seconds=1.0)
    assert not moving.of(one)[:, 3 * 12 * 12 :].any()  # one picture does not move


def test_padding_changes_no_view(batch) -> None:
    for stream in batch.streams.values():
        view = view_of(spec_of(stream), seconds=3.0)
        steps = stream.data.shape[1] * 2 // 3
        short = Stream(stream.data[:, :steps], stream.mask[:, :steps], stream.rate)
        mask = stream.mask.clone()
        mask[:, steps:] = False
        padded = stream._replace(
            data=torch.where(mask.reshape(*mask.shape, *[1] * (stream.data.ndim - 2)), stream.data, 0)
        )
        torch.testing.assert_close(view.of(padded._replace(mask=mask)), view.of(short), atol=1e-4, rtol=1e-3)


def test_features_are_their_own_view() -> None:
    stream = Stream(torch.randn(2, 3, 5), torch.tensor([[True, True, False], [True, True, True]]), 1.0)
    view = view_of(spec_of(stream), seconds=3.0)
    assert view == FeatureView(5)
    torch.testing.assert_close(view.of(stream)[0], stream.data[0, :2].mean(0))
    torch.testing.assert_close(view.of(view.stream(view.of(stream))), view.of(stream))
    grid = Stream(torch.randn(2, 3, 4, 4, 5), torch.ones(2, 3, dtype=torch.bool), 1.0)
    torch.testing.assert_close(view_of(spec_of(grid), seconds=3.0).of(grid), grid.data.mean((1, 2, 3)))
    with pytest.raises(ConfigError):
        view_of(StreamSpec("tokens", (), 1.0), seconds=3.0)


def test_kinds_are_told_by_form_and_clock() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    shapes = {"audio": ((1, 4, 2), 8000.0), "features": ((1, 4, 2), 10.0), "video": ((1, 4, 3, 8, 8), 8.0)}
    shapes |= {"map": ((1, 4, 8, 8, 5), 8.0), "tokens": ((1, 4), 1.0)}
    for kind, (shape, rate) in shapes.items():
        assert kind_of(Stream(torch.zeros(shape), mask, rate)) == kind


def test_blocks_count_alike() -> None:
    scale = block_scale((3, 12))
    assert float(scale.square().sum()) == pytest.approx(1.0)
    assert float(scale[:3].square().sum()) == pytest.approx(0.5)
