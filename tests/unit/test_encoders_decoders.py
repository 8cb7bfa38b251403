"""Decoders: exact sizes and clocks, no checkerboard, silence where nothing was recorded, and small things learned."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from avcl.encoders.decoders import (
    Enlarging,
    PictureDecoder,
    SpectrogramDecoder,
    VideoDecoder,
    WaveformDecoder,
    strides_for,
)
from avcl.errors import BatchError, ConfigError
from avcl.types import Stream


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(data: Tensor, rate: float = 25.0) -> Stream:
    return Stream(data, torch.ones(data.shape[:2], dtype=torch.bool), rate)


BUILD = {
    "video": lambda: VideoDecoder(5, size=(10, 12), hidden=8, per_step=2, widths=(8, 4)),
    "spectrogram": lambda: SpectrogramDecoder(5, bands=11, per_step=4, widths=(8, 8, 4), channels=2),
    "waveform": lambda: WaveformDecoder(5, strides=(5, 2), width=8),
    "waveform-nearest": lambda: WaveformDecoder(5, strides=(3, 2), width=8, upsampling="nearest"),
}


@pytest.mark.parametrize("name", list(BUILD))
@given(there=st.lists(st.booleans(), min_size=1, max_size=7), extra=st.integers(0, 4))
@settings(max_examples=12)
@torch.no_grad()
def test_padding_and_gaps_are_never_seen(name: str, there: list[bool], extra: int) -> None:
    torch.manual_seed(0)
    net = BUILD[name]()
    mask, x = torch.tensor([there]), random(1, len(there), 5)
    long = torch.cat([mask, torch.zeros(1, extra, dtype=torch.bool)], 1)
    filled = torch.cat([x, torch.zeros(1, extra, 5)], 1).masked_fill(~long[:, :, None], 4e3)
    out, other = net(Stream(x, mask, 25.0)), net(Stream(filled, long, 25.0))
    factor = out.data.shape[1] // len(there)
    assert out.data.shape[1] == factor * len(there)
    assert out.rate == 25.0 * factor
    assert torch.equal(out.mask, mask.repeat_interleave(factor, 1))
    assert out.data.shape[-1] == net.dim
    assert torch.allclose(other.data[:, : out.data.shape[1]], out.data, atol=1e-5)
    assert float(other.data[~other.mask].abs().sum()) == 0


# ------------------------------------------------------------------------------------------------------------ pictures
@settings(max_examples=20)
@given(st.integers(1, 37), st.integers(1, 37), st.integers(1, 4), st.sampled_from(["nearest", "bilinear"]))
@torch.no_grad()
def test_a_picture_has_its_size_and_range(height: int, width: int, levels: int, upsampling: Enlarging) -> None:
    torch.manual_seed(0)
    net = PictureDecoder(6, size=(height, width), widths=(4,) * levels, upsampling=upsampling)
    out = net(5 * random(2, 6))
    assert out.shape == (2, 3, height, width)
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert not torch.allclose(out[0], out[1])


@torch.no_grad()
def test_a_flat_grid_gives_a_flat_picture_without_a_checkerboard() -> None:
    """Every pixel that is far from the border is made of the same sum, where a strided transposed convolution
    alternates."""
    torch.manual_seed(0)
    net = PictureDecoder(6, size=(32, 32), widths=(8, 8, 8), squash=False)
    cells = net.grid.weight.unflatten(0, (8, -1))
    cells.copy_(cells[:, :1].expand_as(cells))  # every cell of the grid alike
    bias = net.grid.bias.unflatten(0, (8, -1))
    bias.copy_(bias[:, :1].expand_as(bias))
    inner = net(random(1, 6))[:, :, 14:18, 14:18]
    assert float((inner.amax((2, 3)) - inner.amin((2, 3))).max()) < 1e-5
    up = nn.ConvTranspose2d(8, 3, 3, stride=2)(torch.ones(1, 8, 8, 8))[:, :, 4:8, 4:8]
    assert float((up.amax((2, 3)) - up.amin((2, 3))).max()) > 1e-2


def test_a_picture_of_a_position_is_learned() -> None:
    """A bright square where the latent says, better than the mean picture by far."""
    torch.manual_seed(0)
    where = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    pictures = torch.zeros(16, 3, 16, 16)
    for row, (y, x) in enumerate(where.tolist()):
        pictures[row, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = 1
    latents = where.float() / 1.5 - 1
    net = PictureDecoder(2, size=(16, 16), widths=(24, 16), squash=False)
    hidden = nn.Sequential(nn.Linear(2, 32), nn.GELU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam([*net.parameters(), *hidden.parameters()], 1e-2)
    for _ in range(150):
        loss = nn.functional.binary_cross_entropy_with_logits(net(hidden(latents)), pictures)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = (torch.sigmoid(net(hidden(latents))) - pictures).square().mean()
    assert float(error.detach()) < 0.4 * float((pictures.mean(0) - pictures).square().mean())


@torch.no_grad()
def test_a_video_is_its_pictures_and_motion_reaches_neighbors() -> None:
    torch.manual_seed(0)
    net = VideoDecoder(5, size=(8, 8), hidden=8, depth=1, reach=3, per_step=2, widths=(8, 4))
    x = random(1, 9, 5)
    out = net(whole(x))
    assert out.data.shape == (1, 18, 3, 8, 8)
    changed = x.clone()
    changed[:, 4] += 1
    moved = (net(whole(changed)).data - out.data).abs().sum((0, 2, 3, 4))
    assert torch.nonzero(moved > 1e-6)[:, 0].tolist() == [6, 7, 8, 9, 10, 11]


# --------------------------------------------------------------------------------------------------------------- sound
@settings(max_examples=25)
@given(
    st.lists(st.integers(2, 9), min_size=1, max_size=3),
    st.integers(1, 5),
    st.sampled_from(["transposed", "nearest"]),
)
@torch.no_grad()
def test_samples_are_exactly_steps_times_strides(strides: list[int], steps: int, upsampling: str) -> None:
    torch.manual_seed(0)
    net = WaveformDecoder(3, strides=tuple(strides), width=8, upsampling=upsampling)  # type: ignore[arg-type]
    out = net(whole(random(1, steps, 3), 4.0))
    assert out.data.shape == (1, steps * math.prod(strides), 1)
    assert out.data.shape[1] == net.samples(steps)
    assert out.rate == 4.0 * math.prod(strides)
    assert float(out.data.abs().max()) <= 1


@torch.no_grad()
def test_sound_stands_where_its_step_is() -> None:
    """Output samples of step i are centered on step i, whatever the strides (odd ones included)."""
    for strides in ((5, 4), (3, 3), (8,), (2, 5)):
        torch.manual_seed(0)
        net = WaveformDecoder(3, strides=strides, width=8, kernels=(3,), dilations=(1,))
        x, changed = random(1, 15, 3), random(1, 15, 3)
        changed[:, 7] += 1
        moved = (net(whole(x)).data - net(whole(changed)).data).abs()[0, :, 0] > 1e-7
        at = torch.nonzero(moved)[:, 0].double() + 0.5
        middle = (7 + 0.5) * math.prod(strides)
        assert abs(float(at.min() + at.max()) / 2 - middle) <= math.prod(strides) / 2


def test_strides_for_frame_and_sample_rates() -> None:
    assert strides_for(25, 16_000) == (8, 8, 5, 2)
    assert strides_for(25, 8_000) == (8, 8, 5)
    assert strides_for(22_050 / 256, 22_050) == (8, 8, 4)
    assert strides_for(8, 16_000) == (8, 5, 5, 5, 2)
    assert strides_for(25, 275, largest=4) == (11,)
    for rate, samples in ((24, 16_000), (30_000 / 1001, 16_000), (16_000, 16_000), (0, 16_000)):
        with pytest.raises(ConfigError):
            strides_for(rate, samples)


def test_the_papers_size() -> None:
    with torch.device("meta"):
        net = WaveformDecoder.paper()
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(13.92e6, rel=0.01)  # as Kong et al. 2020 report
    assert net.samples(1) == 256


def test_a_tone_of_a_pitch_is_learned() -> None:
    """Loudness follows the features: the correlation of envelopes rises above 0.9."""
    torch.manual_seed(0)
    net = WaveformDecoder(1, strides=(8, 4), width=16, kernels=(3,), dilations=(1, 3))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)

    def loudness(wave: Tensor) -> Tensor:
        return wave[..., 0].unflatten(1, (-1, 32)).square().mean(2).add(1e-6).sqrt()

    for step in range(80):
        wanted = torch.rand(8, 20, 1, generator=torch.Generator().manual_seed(step)) * 0.5
        loss = (loudness(net(whole(wanted)).data) - wanted[..., 0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wanted = torch.rand(8, 20, 1, generator=torch.Generator().manual_seed(1000)) * 0.5
    heard = loudness(net(whole(wanted)).data.detach())
    assert float(torch.corrcoef(torch.stack([heard.flatten(), wanted.flatten()]))[0, 1]) > 0.9


@settings(max_examples=15)
@given(st.integers(1, 33), st.integers(0, 3), st.integers(1, 4))
@torch.no_grad()
def test_a_spectrogram_has_its_bands_and_steps(bands: int, doublings: int, steps: int) -> None:
    torch.manual_seed(0)
    net = SpectrogramDecoder(4, bands=bands, per_step=2**doublings, widths=(6, 4, 4))
    out = net(whole(random(2, steps, 4), 3.0))
    assert out.data.shape == (2, steps * 2**doublings, bands, 1)
    assert out.rate == 3.0 * 2**doublings


# -------------------------------------------------------------------------------------------------------------- errors
def test_settings_and_shapes_are_checked() -> None:
    for build in (
        lambda: PictureDecoder(0),
        lambda: PictureDecoder(4, widths=()),
        lambda: PictureDecoder(4, upsampling="cubic"),  # type: ignore[arg-type]
        lambda: VideoDecoder(4, reach=2),
        lambda: VideoDecoder(4, per_step=0),
        lambda: SpectrogramDecoder(4, per_step=3),
        lambda: SpectrogramDecoder(4, per_step=16),
        lambda: WaveformDecoder(4, strides=(4, 1)),
        lambda: WaveformDecoder(4, strides=()),
        lambda: WaveformDecoder(4, kernels=(4,)),
        lambda: WaveformDecoder(4, dilations=(0,)),
        lambda: WaveformDecoder(4, strides=(2, 2, 2), width=4),
        lambda: WaveformDecoder(4, upsampling="sinc"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError):
            build()
    with pytest.raises(BatchError, match=r"\[B, 4\]"):
        PictureDecoder(4)(random(2, 5))
    for net in (VideoDecoder(4), SpectrogramDecoder(4), WaveformDecoder(4)):
        with pytest.raises(BatchError, match=r"\[B, T, 4\]"):
            net(whole(random(2, 3, 5)))
