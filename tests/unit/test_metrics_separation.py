"""Separation metrics on the fixed mixture of two sources: worked values, peers, silence, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl.errors import ConfigError, FeatureError
from avcl.metrics import (
    Separation,
    binaural_stft_distance,
    bss_eval,
    envelope_distance,
    sdr_improvement,
    si_sdr,
    snr,
)
from avcl.metrics.separation import LIMIT_DB


@pytest.fixture(scope="module")
def mixture() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.RandomState(0)
    t = np.arange(16000) / 8000
    s1 = 0.5 * np.sin(2 * np.pi * 440 * t) * (1 + 0.5 * np.sin(2 * np.pi * 3 * t))
    s2 = 0.3 * np.sign(np.sin(2 * np.pi * 97 * t))
    noise = rng.randn(2, 16000)
    estimate = np.stack([0.8 * s1 + 0.1 * s2 + 0.02 * noise[0], 0.9 * s2 + 0.05 * s1 + 0.02 * noise[1]])
    return np.stack([s1, s2]), estimate


@pytest.fixture(scope="module")
def sources(mixture) -> Separation:
    return bss_eval(*mixture)


# ------------------------------------------------------------------------------------------------------------ BSS Eval
def test_worked_sources(sources):
    assert sources.sdr == pytest.approx([18.505, 19.967], abs=5e-4)
    assert sources.sir == pytest.approx([20.015, 23.128], abs=5e-4)
    assert sources.sar == pytest.approx([23.871, 22.853], abs=6e-4)
    assert (sources.variant, sources.isr) == ("sources", None)
    assert sources.scored.all()
    assert sources.means() == pytest.approx({"sdr": 19.2362, "sir": 21.5712, "sar": 23.3622}, abs=5e-4)


def test_worked_images(mixture):
    found = bss_eval(*mixture, variant="images")
    assert found.sdr == pytest.approx([13.093, 17.434], abs=5e-4)
    assert found.isr == pytest.approx([13.977, 20.058], abs=5e-4)
    assert found.sir == pytest.approx([20.015, 23.128], abs=5e-4)
    assert found.sar == pytest.approx([23.871, 22.853], abs=6e-4)
    assert snr(*mixture).value == pytest.approx(found.sdr, abs=1e-6)
    assert set(found.means()) == {"sdr", "sir", "sar", "isr"}


def test_worked_gain_over_the_mixture(mixture, sources):
    s, e = mixture
    found = sdr_improvement(s, e, s.sum(0))
    assert found.mixture.sdr == pytest.approx([2.052, -1.922], abs=5e-4)
    assert found.value == pytest.approx([16.453, 21.889], abs=5e-4)
    assert found.mean() == pytest.approx(19.171, abs=1e-3)
    assert found.estimate.sdr == pytest.approx(sources.sdr)


def test_gain_and_short_delay_are_forgiven_by_sources_only(mixture, sources):
    s, e = mixture
    assert bss_eval(s, 0.5 * e).sdr == pytest.approx(sources.sdr, abs=1e-6)
    assert snr(s, 0.5 * e).value[0] == pytest.approx(4.412, abs=5e-4)
    delayed = np.stack([np.concatenate([np.zeros(40), x[:-40]]) for x in s])
    assert bss_eval(s[:1], delayed[:1]).sdr[0] > 25
    assert si_sdr(s, delayed).value[0] < -5
    assert snr(s, delayed).value[0] < 0


def test_sdr_is_that_of_torchmetrics(mixture, sources):
    from torchmetrics.functional.audio import signal_distortion_ratio

    s, e = (torch.tensor(x) for x in mixture)
    assert sources.sdr == pytest.approx(signal_distortion_ratio(e, s).numpy(), abs=1e-3)


def test_pairs_are_fixed_unless_asked(mixture, sources):
    s, e = mixture
    assert (bss_eval(s, e[::-1]).sdr < 0).all()
    found = bss_eval(s, e[::-1], permute=True)
    assert found.estimate_of.tolist() == [1, 0]
    assert found.sdr == pytest.approx(sources.sdr)


def test_silence_is_counted_and_harms_nobody(mixture, sources):
    s, e = mixture
    quiet = np.zeros_like(s[:1])
    extra = bss_eval(np.concatenate([s, quiet]), np.concatenate([e, e[:1]]))
    assert extra.silent_reference.tolist() == [False, False, True]
    assert extra.scored.tolist() == [True, True, False]
    assert extra.sdr == pytest.approx([*sources.sdr, 0])
    assert extra.means() == pytest.approx(sources.means())
    mute = bss_eval(s, np.stack([e[0], np.full(16000, 1e-12)]))
    assert mute.silent_estimate.tolist() == [False, True]
    assert mute.sdr == pytest.approx([sources.sdr[0], 0])
    assert mute.means()["sir"] == pytest.approx(sources.sir[0])
    gain = sdr_improvement(np.stack([s[0], quiet[0]]), e, s.sum(0))
    assert gain.scored.tolist() == [True, False]
    assert gain.value[1] == 0
    assert gain.mean() == gain.value[0]


@pytest.mark.parametrize("variant", ["sources", "images"])
def test_nothing_but_silence_is_a_named_error_not_nan(variant):
    quiet = np.zeros((2, 2000))
    found = bss_eval(quiet, quiet, variant=variant, permute=True)
    assert not found.scored.any()
    assert found.sdr.tolist() == [0, 0]
    with pytest.raises(FeatureError, match="all 2 sources are silent"):
        found.means()
    for metric in (si_sdr, snr):
        with pytest.raises(FeatureError, match="silent"):
            metric(quiet, quiet).mean()
    with pytest.raises(FeatureError, match="silent"):
        sdr_improvement(quiet, quiet, quiet[0]).mean()


def test_pairing_with_a_silent_source(mixture):
    s, e = (x[:, :3000] for x in mixture)
    found = bss_eval(np.stack([s[0], s[1], 0 * s[0]]), np.stack([0 * e[0], e[1], e[0]]), permute=True)
    assert found.estimate_of.tolist() == [2, 1, 0]
    assert found.scored.tolist() == [True, True, False]


def test_references_that_are_copies_are_a_named_error():
    with pytest.raises(FeatureError, match="copies of each other"):
        bss_eval(np.ones((2, 1)), [[1.0], [2.0]])


def test_no_scale_is_too_large_or_too_small(mixture):
    s, e = (x[:1, :2000] for x in mixture)
    plain = bss_eval(s, e)
    for scale in (1e-170, 1e40):
        assert bss_eval(scale * s, scale * e, silence=0).sdr == pytest.approx(plain.sdr)


def test_perfect_and_lone_estimates_are_finite(mixture):
    s, e = (x[:, :3000] for x in mixture)
    perfect = bss_eval(s, s)
    assert np.isfinite([perfect.sdr, perfect.sir, perfect.sar]).all()
    assert perfect.sdr.max() <= LIMIT_DB
    lone = bss_eval(s[0], e[0])
    assert lone.sir.tolist() == [LIMIT_DB]
    assert si_sdr(s, s).value.tolist() == snr(s, s).value.tolist() == [LIMIT_DB] * 2


# -------------------------------------------------------------------------------------------------------- plain ratios
def test_worked_ratios(mixture):
    assert si_sdr([1, 0, -1, 0], [1, 0.5, -1, 0]).value[0] == pytest.approx(9.031, abs=5e-4)
    s, e = [3, -0.5, 2, 7], [2.5, 0, 2, 8]
    assert si_sdr(s, e).value[0] == pytest.approx(18.403, abs=5e-4)
    assert si_sdr(s, e, zero_mean=True).value[0] == pytest.approx(15.092, abs=5e-4)
    assert snr(s, e).value[0] == pytest.approx(16.180, abs=5e-4)
    assert si_sdr(*mixture).value == pytest.approx([18.431, 19.897], abs=5e-4)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([1e-180, 1e-3, -2.0, 1e6, 1e40]), st.booleans())
def test_scale_of_the_estimate_never_matters(seed, scale, zero_mean):
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio, signal_noise_ratio

    rng = np.random.default_rng(seed)
    s = rng.normal(size=(2, 50)) + 1
    e = s + rng.normal(size=(2, 50))
    plain = si_sdr(s, e, zero_mean=zero_mean)
    assert si_sdr(s, scale * e, zero_mean=zero_mean, silence=0).value == pytest.approx(plain.value)
    assert si_sdr(abs(scale) * s, e, zero_mean=zero_mean, silence=0).value == pytest.approx(plain.value)
    peer = scale_invariant_signal_distortion_ratio(torch.tensor(e), torch.tensor(s), zero_mean)
    assert plain.value == pytest.approx(peer.numpy(), abs=1e-6)
    assert snr(scale * s, scale * e, silence=0).value == pytest.approx(snr(s, e).value)
    assert snr(s, e).value == pytest.approx(signal_noise_ratio(torch.tensor(e), torch.tensor(s)).numpy(), abs=1e-6)


def test_silent_rows_of_ratios():
    s = np.array([[1.0, 2, 3], [0, 0, 0], [1, 2, 3], [1, 1, 1]])
    e = np.array([[1.0, 2, 4], [1, 2, 3], [0, 0, 0], [1, 2, 3]])
    found = si_sdr(s, e)
    assert found.scored.tolist() == [True, False, False, True]
    assert found.value[1:3].tolist() == [0, 0]
    assert found.mean() == pytest.approx(found.value[[0, 3]].mean())
    assert si_sdr(s, e, zero_mean=True).scored.tolist() == [True, False, False, False]
    orthogonal = si_sdr([1, 0.0], [0.0, 1])
    assert orthogonal.value.tolist() == [-LIMIT_DB]


# ------------------------------------------------------------------------------------------------------- binaural sound
@pytest.fixture(scope="module")
def ears() -> tuple[np.ndarray, np.ndarray]:
    tone = np.sin(2 * np.pi * 300 * np.arange(10080) / 16000)
    truth = np.stack([tone, 0.5 * tone])
    return truth, np.stack([truth.sum(0) / 2] * 2)


def test_worked_binaural_distances(ears):
    truth, mono = ears
    assert binaural_stft_distance(truth, mono) == pytest.approx(4.597, abs=5e-4)
    assert binaural_stft_distance(truth, mono, peak_normalized=True) == pytest.approx(9.193, abs=5e-4)
    assert binaural_stft_distance(truth, mono, form="norm") == pytest.approx(549.9, abs=0.05)
    assert binaural_stft_distance(truth, mono, padding="reflect") == pytest.approx(4.671, abs=5e-4)
    assert envelope_distance(truth, mono) == pytest.approx(0.5, abs=5e-4)
    assert binaural_stft_distance(truth, truth[::-1].copy()) == pytest.approx(18.39, abs=5e-3)
    assert envelope_distance(truth, truth[::-1]) == pytest.approx(1.0, abs=5e-4)


def test_silent_ears_have_a_distance(ears):
    truth, _ = ears
    quiet = np.zeros_like(truth)
    for normalized in (False, True):
        assert np.isfinite(binaural_stft_distance(truth, quiet, peak_normalized=normalized))
        assert envelope_distance(quiet, quiet, peak_normalized=normalized) == 0
    assert binaural_stft_distance(truth, 3 * truth, peak_normalized=True) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: bss_eval(np.ones((2, 9)), np.ones((2, 8))), FeatureError, "do not fit together"),
        (lambda: bss_eval(np.ones((2, 9, 2)), np.ones((2, 9, 2))), FeatureError, "1 or 2 dimensions"),
        (lambda: bss_eval(np.ones((2, 9)), np.full((2, 9), np.nan)), FeatureError, "not finite"),
        (lambda: bss_eval(np.ones((2, 9)), np.ones((2, 9)), variant="v4"), ConfigError, "v4"),
        (lambda: bss_eval(np.empty((0, 9)), np.empty((0, 9))), FeatureError, "not empty"),
        (lambda: sdr_improvement(np.eye(2), np.eye(2), np.ones(3)), FeatureError, "mixture"),
        (lambda: si_sdr([1.0], [1.0, 2]), FeatureError, "do not fit together"),
        (lambda: envelope_distance(np.ones((1, 9)), np.ones((1, 9))), FeatureError, "binaural"),
        (lambda: binaural_stft_distance(np.ones((2, 99)), np.ones((2, 99))), FeatureError, "too short"),
        (lambda: binaural_stft_distance(np.ones((2, 999)), np.ones((2, 999)), form="l1"), ConfigError, "l1"),
        (lambda: binaural_stft_distance(np.ones((2, 999)), np.ones((2, 999)), padding="edge"), ConfigError, "edge"),
    ],
)
def test_errors_name_what_came(call, error, words):
    with pytest.raises(error, match=words):
        call()
