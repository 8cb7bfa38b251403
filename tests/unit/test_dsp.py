"""Spectra, resampling and resizing against their definitions and against other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl.dsp import log_mel, mel_filters, resample, resize, stft
from avcl.errors import ConfigError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def test_stft_is_its_definition():
    wave = noise(1, 50).double()
    n_fft, hop = 16, 6
    out = stft(wave, n_fft=n_fft, hop=hop)
    assert out.shape == (1, 9, 9)
    padded = np.pad(wave[0].numpy(), n_fft)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    for n in range(9):
        piece = padded[n_fft + n * hop - n_fft // 2 :][:n_fft]
        for f in range(9):
            expected = sum(piece[t] * window[t] * np.exp(-2j * np.pi * f * t / n_fft) for t in range(n_fft))
            assert complex(out[0, n, f]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("scale", "htk"), [("slaney", False), ("htk", True)])
def test_filters_equal_those_of_librosa(scale, htk):
    librosa = pytest.importorskip("librosa")
    ours = mel_filters(16_000, n_fft=512, n_mels=40, fmin=50, fmax=7600, scale=scale)
    theirs = librosa.filters.mel(sr=16_000, n_fft=512, n_mels=40, fmin=50, fmax=7600, htk=htk)
    np.testing.assert_allclose(ours.T.numpy(), theirs, atol=1e-8)


@pytest.mark.parametrize("length", [16_000, 15_999, 500])
def test_log_mel_equals_librosa(length):
    librosa = pytest.importorskip("librosa")
    wave = noise(2, length, seed=3)
    ours = log_mel(wave, sample_rate=16_000, n_fft=400, hop=160, n_mels=64)
    theirs = librosa.feature.melspectrogram(
        y=wave.numpy(), sr=16_000, n_fft=400, hop_length=160, n_mels=64, center=True, pad_mode="constant"
    )
    steps = -(-length // 160)
    assert ours.shape == (2, steps, 64)
    np.testing.assert_allclose(
        ours.transpose(1, 2), np.log(np.maximum(theirs, 1e-6))[..., :steps], rtol=1e-3, atol=1e-3
    )


def test_channels_are_independent_and_the_gradient_flows():
    wave = noise(2, 800, 3).requires_grad_()
    out = log_mel(wave, sample_rate=8000, n_fft=128, hop=64, n_mels=12)
    assert out.shape == (2, 13, 12, 3)
    alone = log_mel(wave[..., 1], sample_rate=8000, n_fft=128, hop=64, n_mels=12)
    torch.testing.assert_close(out[..., 1], alone)
    out.sum().backward()
    assert torch.isfinite(wave.grad).all()
    assert log_mel(torch.zeros(1, 0), sample_rate=8000, n_fft=128, hop=64, n_mels=12).shape == (1, 0, 12)


def test_spectra_refuse_what_does_not_fit():
    for call in (
        lambda: stft(noise(4), n_fft=16, hop=4),
        lambda: stft(noise(1, 40), n_fft=16, hop=0),
        lambda: stft(noise(1, 40), n_fft=16, hop=17),
        lambda: log_mel(noise(1, 40), sample_rate=8000, fmax=5000),
        lambda: log_mel(noise(1, 40), sample_rate=8000, scale="bark"),
    ):
        with pytest.raises(ConfigError):
            call()


# ---------------------------------------------------------------------------------------------------------- resampling
@settings(deadline=None, max_examples=30)
@given(st.sampled_from([8000, 11_025, 16_000, 22_050, 44_100, 48_000]), st.sampled_from([8000, 16_000, 44_100, 48_000]))
def test_a_tone_stays_where_it_is(rate, target):
    t = torch.arange(rate // 2) / rate
    out = resample(torch.sin(2 * torch.pi * 500 * t)[None], rate, target)
    assert out.shape[1] == -(-(rate // 2) * target // rate)
    expected = torch.sin(2 * torch.pi * 500 * torch.arange(out.shape[1]) / target)
    assert (out[0] - expected)[200:-200].abs().max() < 5e-3


def test_resampling_equals_scipy_along_any_axis():
    from scipy.signal import resample_poly

    wave = noise(2, 4410, 2)
    expected = resample_poly(wave.numpy(), 160, 441, axis=1)
    np.testing.assert_allclose(resample(wave, 44_100, 16_000), expected, atol=1e-6)
    np.testing.assert_allclose(resample(wave[0], 44_100, 16_000, dim=0), expected[0], atol=1e-6)
    assert resample(wave, 8000, 8000) is wave
    assert resample(wave.double(), 2, 1).dtype == torch.float64
    for rates in ((0, 8000), (8000, -1), (8000, float("nan"))):
        with pytest.raises(ConfigError):
            resample(wave, *rates)


# ------------------------------------------------------------------------------------------------------------ resizing
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["crop", "pad", "stretch"]),
)
@settings(deadline=None, max_examples=60)
def test_resize_always_gives_the_size(height, width, rows, columns, fit):
    out = resize(torch.full((2, 3, height, width), 90, dtype=torch.uint8), (rows, columns), fit)
    assert out.shape == (2, 3, rows, columns)
    assert out.dtype == torch.uint8
    assert set(out.unique().tolist()) <= ({90} if fit != "pad" else {0, 90})


def test_halving_is_a_weighted_mean_without_aliasing():
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::2] = 1.0
    assert resize(stripes, (16, 16), "stretch")[..., 1:-1].sub(0.5).abs().max() < 1e-6


def test_crop_and_pad_are_centered():
    picture = torch.zeros(1, 8, 16)
    picture[..., 4:12] = 1.0
    assert (resize(picture, (8, 8), "crop") == 1).all()
    padded = resize(picture, (16, 16), "pad")
    assert (padded[:, :4] == 0).all()
    assert (padded[:, 4:12, 4:12] == 1).all()
    assert resize(picture.new_zeros(0, 3, 8, 8), (4, 4)).shape == (0, 3, 4, 4)
    with pytest.raises(ConfigError):
        resize(picture, (4, 4), "squash")
