"""Modal synthesis and two ears, against the formulas evaluated sample by sample."""

from __future__ import annotations

import numpy as np
import pytest

from avcl.data.world import modal, spatial

RATE = 16_000


def slow_struck(body: modal.Modes, times, forces, samples: int) -> np.ndarray:
    """s(n) = sum over strikes and modes of F a exp(-d t) sin(2 pi f t), t = n / rate - instant, t >= 0."""
    out = np.zeros(samples)
    for instant, force in zip(times, forces, strict=True):
        t = np.arange(samples) / RATE - instant
        for f, a, d in zip(*body, strict=True):
            out += np.where(t >= 0, force * a * np.exp(-d * np.maximum(t, 0)) * np.sin(2 * np.pi * f * t), 0.0)
    return out


@pytest.mark.parametrize("shape", modal.SHAPES)
@pytest.mark.parametrize("material", list(modal.MATERIALS))
def test_struck_equals_the_sum_over_strikes_and_modes(shape, material):
    body = modal.modes(shape, material, 8.0, np.linspace(0.6, 1.4, 6))
    body = modal.Modes(*(x[body.frequency < 0.46 * RATE] for x in body))
    times, forces = [-0.2, 0.0, 0.100_013, 0.350_04, 0.7, 3.0], [0.5, 1.0, 0.7, 1.3, 0.2, 1.0]
    fast = modal.struck(body, times, forces, 12_000, RATE)
    np.testing.assert_allclose(fast, slow_struck(body, times, forces, 12_000), atol=2e-5)


def test_onsets_fall_between_samples():
    """Half a sample later, the same sound: the phase of the lowest mode turns by pi f / rate."""
    body = modal.Modes(np.array([500.0]), np.array([1.0]), np.array([20.0]))
    a, b = (modal.struck(body, [at / RATE], [1.0], 8192, RATE) for at in (100.0, 100.5))
    turn = np.angle(np.fft.rfft(a)[256] * np.conj(np.fft.rfft(b)[256]))  # bin 256 is 500 Hz
    assert turn == pytest.approx(np.pi * 500 / RATE, rel=0.02)


def test_size_sets_the_pitch_material_the_decay_force_the_level():
    f = [modal.modes("bar", "metal", r).frequency[0] for r in (7.0, 14.0)]
    assert f[0] == pytest.approx(420 * 1.1)
    assert f[0] / f[1] == pytest.approx(4.0)
    for name, kind in modal.MATERIALS.items():
        body = modal.modes("disk", name, 8.0)
        lowest = modal.Modes(*(x[:1] for x in body))
        wave = modal.struck(lowest, [0.0], [1.0], 2 * RATE, RATE).astype(float)
        window = round(kind.t60 * RATE / 4)
        early, late = np.abs(wave[:window]).max(), np.abs(wave[2 * window : 3 * window]).max()
        assert 20 * np.log10(early / late) == pytest.approx(30.0, abs=2.0)  # half of T60 later: 30 dB down
        double = modal.struck(lowest, [0.0], [2.0], 2 * RATE, RATE)
        np.testing.assert_allclose(double, 2 * wave, atol=1e-5)


def test_the_registers_of_the_materials_do_not_overlap_in_the_retrieval_sizes():
    bounds = {m: [modal.modes("disk", m, r).frequency[0] for r in (9.5, 7.0)] for m in modal.MATERIALS}
    assert bounds["wood"][1] < bounds["metal"][0]
    assert bounds["metal"][1] < bounds["glass"][0]


def test_partials_above_the_band_are_left_out():
    body = modal.Modes(np.array([9000.0]), np.array([1.0]), np.array([5.0]))
    assert not modal.struck(body, [0.0], [1.0], 1000, RATE).any()
    assert not modal.bowed(body, np.ones(1000, np.float32), np.zeros(1000, np.float32), RATE).any()


def test_a_bowed_mode_is_a_steady_sine_times_the_speed():
    body = modal.Modes(np.array([440.0]), np.array([0.8]), np.array([5.0]))
    envelope = np.linspace(0, 1, 4000, dtype=np.float32)
    expected = 0.8 * np.sin(2 * np.pi * 440 * np.arange(4000) / RATE) * envelope
    np.testing.assert_allclose(modal.bowed(body, envelope, np.zeros(4000, np.float32), RATE), expected, atol=1e-4)


def test_ears():
    """At 60 degrees: ITD = .0875 / 343 (pi/3 + sin 60) = 488 us, ILD = 8 sin 60 = 6.9 dB."""
    right = spatial.FIELD
    assert spatial.itd(right) == pytest.approx(0.0875 / 343 * (np.pi / 3 + np.sqrt(0.75)))
    assert spatial.ild_db(right) == pytest.approx(8 * np.sqrt(0.75))
    assert spatial.azimuth(np.array([0.0, 32.0, 64.0]), 64.0) == pytest.approx([-right, 0.0, right])
    wave = np.convolve(np.random.default_rng(0).standard_normal(8000), np.hanning(9), "same").astype(np.float32)
    for theta in (-0.9, -0.3, 0.3, 0.9):
        ears = spatial.binaural(wave, np.float64(theta), RATE).astype(float)
        level = 10 * np.log10((ears[:, 1] ** 2).sum() / (ears[:, 0] ** 2).sum())
        assert level == pytest.approx(spatial.ild_db(theta), abs=0.3)
        spectrum = np.conj(np.fft.rfft(ears[:, 1])) * np.fft.rfft(ears[:, 0])
        fine = np.fft.irfft(np.pad(spectrum, (0, 15 * 4000)), 16 * 8000)  # 16-fold finer lags
        lag = int(np.argmax(fine))
        lag = lag - len(fine) if lag > len(fine) // 2 else lag
        assert lag / 16 / RATE == pytest.approx(spatial.itd(theta), abs=1e-5)
    ahead = spatial.binaural(wave, np.float64(0.0), RATE)
    np.testing.assert_allclose(ahead, np.stack([wave, wave], axis=1), atol=1e-6)
