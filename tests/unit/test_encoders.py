"""The encoder contract: padding changes nothing, order does not matter, the rate is true; pooling on the clock."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avcl.encoders.audio import LogMelConv, halve, log_mel_stream
from avcl.encoders.conv2d import ChangeConv, FrameConv, change_channels, glimpses
from avcl.encoders.mlp import MLP
from avcl.encoders.statistics import summarize, summary_dim
from avcl.encoders.tokens import TokenConv
from avcl.errors import BatchError
from avcl.nn.pooling import evenly, masked_max, masked_mean, masked_std, on_clock
from avcl.nn.projection import WhatWhen
from avcl.types import Stream, StreamSpec


def random(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def stream(kind: str, batch: int = 3, seed: int = 0) -> Stream:
    shape, rate = {
        "audio": ((batch, 8123, 2), 16_000.0),
        "video": ((batch, 7, 3, 24, 20), 8.0),
        "features": ((batch, 5, 6), 2.0),
        "map": ((batch, 5, 2, 3, 6), 2.0),
        "tokens": ((batch, 9), 1.0),
    }[kind]
    data = random(shape, seed) - (0.5 if kind == "audio" else 0)
    if kind == "tokens":
        data = (data * 256).long()
    return Stream(data, torch.ones(shape[:2], dtype=torch.bool), rate)


def padded(given: Stream, extra: int) -> Stream:
    """Steps behind the end, mask False; not zeros, to prove that nobody looks."""
    tail = given.data[:, :1].expand(-1, extra, *given.data.shape[2:])
    mask = torch.zeros(len(given.mask), extra, dtype=torch.bool)
    return Stream(torch.cat([given.data, tail], 1), torch.cat([given.mask, mask], 1), given.rate)


ENCODERS = {
    "mlp": (lambda: MLP(6, hidden=8, dim=4), "features"),
    "mlp-map": (lambda: MLP(6, hidden=8, dim=4, depth=2), "map"),
    "tokens": (lambda: TokenConv(256, dim=8), "tokens"),
    "frames": (FrameConv, "video"),
    "change": (ChangeConv, "video"),
    "log-mel": (LogMelConv, "audio"),
}


@pytest.fixture(params=list(ENCODERS))
def encoder_and_stream(request: pytest.FixtureRequest) -> tuple[nn.Module, Stream]:
    build, kind = ENCODERS[request.param]
    torch.manual_seed(0)
    return build().eval(), stream(kind)


@torch.no_grad()
def test_padding_never_changes_what_was_recorded(encoder_and_stream: tuple[nn.Module, Stream]) -> None:
    encoder, given = encoder_and_stream
    alone = encoder(given)
    for extra in (1, 2, 3, 1000 if given.rate > 100 else 4):
        long = encoder(padded(given, extra))
        steps = alone.data.shape[1]
        assert torch.allclose(long.data[:, :steps], alone.data, atol=1e-5)
        assert torch.equal(long.mask[:, :steps], alone.mask)
        assert not long.mask[:, steps:].any()
        assert torch.isfinite(long.data).all()


@torch.no_grad()
def test_rows_do_not_meet(encoder_and_stream: tuple[nn.Module, Stream]) -> None:
    encoder, given = encoder_and_stream
    out = encoder(given)
    order = torch.tensor([2, 0, 1])
    turned = encoder(given._replace(data=given.data[order], mask=given.mask[order]))
    assert torch.allclose(turned.data, out.data[order], atol=1e-5)
    single = encoder(given._replace(data=given.data[:1], mask=given.mask[:1]))
    assert torch.allclose(single.data, out.data[:1], atol=1e-5)


@torch.no_grad()
def test_dim_and_rate_are_true(encoder_and_stream: tuple[nn.Module, Stream]) -> None:
    encoder, given = encoder_and_stream
    out = encoder(given)
    assert out.data.shape == (3, out.mask.shape[1], encoder.dim)
    # Both clocks end at the same second, to within one step of the slower one.
    assert abs(out.duration - given.duration) <= 1 / out.rate
    assert out.mask.all()


@torch.no_grad()
def test_a_clip_without_a_modality_gives_finite_numbers(encoder_and_stream: tuple[nn.Module, Stream]) -> None:
    encoder, given = encoder_and_stream
    out = encoder(given._replace(data=torch.zeros_like(given.data), mask=torch.zeros_like(given.mask)))
    assert torch.isfinite(out.data).all()
    assert not out.mask.any()


@torch.no_grad()
def test_an_event_shows_up_where_it_sounds() -> None:
    """A click at 1.5 s moves the steps around 1.5 s of the encoder's own clock, and only those."""
    torch.manual_seed(0)
    encoder = LogMelConv().eval()
    quiet = torch.full((1, 48_000, 1), 0.0)
    quiet[0, :, 0] = 0.1 * torch.sin(torch.arange(48_000) * (2 * math.pi * 440 / 16_000))
    click = quiet.clone()
    click[0, 24_000:24_160] += random((160, 1), 1) - 0.5
    mask = torch.ones(1, 48_000, dtype=torch.bool)
    a, b = encoder(Stream(quiet, mask, 16_000.0)), encoder(Stream(click, mask, 16_000.0))
    moved = (a.data - b.data).norm(dim=2)[0]
    assert int(moved.argmax()) / a.rate == pytest.approx(1.5, abs=1.5 / a.rate)


def test_level_does_not_matter_to_the_spectrum_and_other_rates_are_the_same_picture() -> None:
    seconds = torch.arange(16_000) / 16_000
    tone = (0.5 * torch.sin(2 * math.pi * 880 * seconds))[None, :, None]
    mask = torch.ones(1, 16_000, dtype=torch.bool)
    loud, soft = (log_mel_stream(Stream(tone * g, mask, 16_000.0), bands=48) for g in (1.0, 0.05))
    assert torch.allclose(loud.data, soft.data, atol=1e-3)
    assert loud.rate == 64.0
    half = log_mel_stream(Stream(tone[:, ::2], mask[:, ::2], 8_000.0), bands=48)
    assert half.data.shape == loud.data.shape
    odd = log_mel_stream(Stream(tone[:, :11_025], mask[:, :11_025], 11_025.0), bands=48)
    assert odd.rate == pytest.approx(11_025 / 172)
    silence = log_mel_stream(Stream(tone * 0, mask, 16_000.0), bands=48)
    assert float(silence.data.abs().max()) == 0


@torch.no_grad()
def test_change_is_zero_at_the_start_across_a_gap_and_in_a_still() -> None:
    given = stream("video", batch=1)
    mask = given.mask.clone()
    mask[0, 3] = False
    gray, change, size = change_channels(Stream(given.data, mask, 8.0), 4).unbind(2)
    assert float(change[0, 0].abs().max()) == 0  # no frame before
    assert float(change[0, 3].abs().max()) == 0  # not recorded
    assert float(change[0, 4].abs().max()) == 0  # the frame before was not recorded
    assert float(change[0, 5].abs().max()) > 0
    assert torch.allclose(size, 2 * change.abs())
    still = change_channels(Stream(given.data[:, :1].expand(-1, 4, -1, -1, -1), given.mask[:, :4], 8.0), 4)
    assert float(still[:, :, 1:].abs().max()) == 0
    assert float(gray[0, 3].abs().max()) == 0


def test_glimpses_are_spread_over_what_was_recorded() -> None:
    mask = torch.tensor([[True] * 8 + [False] * 4, [True] * 12, [False] * 3 + [True] + [False] * 8, [False] * 12])
    assert evenly(mask, 4).tolist() == [[1, 3, 5, 7], [1, 4, 7, 10], [3, 3, 3, 3], [0, 0, 0, 0]]
    data = torch.arange(12.0).reshape(1, 12, 1, 1, 1).expand(4, 12, 3, 2, 2)
    seen = glimpses(Stream(data, mask, 8.0), 4)
    assert seen.data[:, :, 0, 0, 0].tolist()[0] == [1, 3, 5, 7]
    assert seen.mask.tolist()[3] == [False] * 4
    assert glimpses(Stream(data[:, :1], mask[:, :1], 8.0), 4).data.shape[1] == 1


# ------------------------------------------------------------------------------------------------------------- pooling
def test_masked_pooling_by_hand() -> None:
    data = torch.tensor([[[1.0], [3.0], [99.0]], [[5.0], [0.0], [0.0]], [[7.0], [7.0], [7.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    assert masked_mean(data, mask)[:, 0].tolist() == [2, 5, 0]
    assert masked_std(data, mask)[:, 0].tolist() == [1, 0, 0]
    assert masked_max(data, mask)[:, 0].tolist() == [3, 5, 0]
    assert masked_max(-data, mask)[:, 0].tolist() == [-1, -5, 0]


def test_on_clock_by_hand() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    given = Stream(torch.tensor([[[1.0], [2.0], [3.0], [4.0]]]), mask, 4.0)
    assert on_clock(given, steps=4, seconds=1.0)[0, :, 0].tolist() == [1, 2, 3, 4]
    assert on_clock(given, steps=2, seconds=1.0)[0, :, 0].tolist() == [1.5, 3.5]
    assert on_clock(given, steps=4, seconds=2.0)[0, :, 0].tolist() == [1.5, 3.5, 0, 0]
    assert on_clock(given, steps=8, seconds=1.0)[0, :, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    uneven = on_clock(given, steps=3, seconds=1.0)[0, :, 0].tolist()  # slots of 4/3 steps
    assert uneven == pytest.approx([(1 + 2 / 3) / (4 / 3), (2 * 2 / 3 + 3 * 2 / 3) / (4 / 3), (3 / 3 + 4) / (4 / 3)])
    gap = given._replace(mask=torch.tensor([[True, False, True, True]]))
    assert on_clock(gap, steps=2, seconds=1.0)[0, :, 0].tolist() == [1, 3.5]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.floats(0.7, 60), st.integers(1, 24), st.floats(0.2, 5), st.integers(0, 9))
def test_on_clock_keeps_a_constant_and_ignores_padding(
    steps: int, rate: float, slots: int, seconds: float, extra: int
) -> None:
    given = Stream(torch.full((1, steps, 2), 3.0), torch.ones(1, steps, dtype=torch.bool), rate)
    out = on_clock(given, steps=slots, seconds=seconds)
    reached = torch.arange(slots) * (seconds / slots) < steps / rate - 1e-5 / rate
    assert torch.allclose(out[0, reached], torch.tensor(3.0), atol=1e-5)
    assert torch.allclose(on_clock(padded(given, extra), steps=slots, seconds=seconds), out, atol=1e-6)


def test_what_and_when_have_their_shares_of_the_cosine() -> None:
    torch.manual_seed(0)
    head = WhatWhen(5, 3, 8, channels=2, steps=6, seconds=1.5, weight=0.3)
    assert head.dim == 20
    a, b = random((2, 5), 1), random((2, 5), 2)
    track = Stream(random((2, 6, 3), 3), torch.ones(2, 6, dtype=torch.bool), 4.0)
    still = Stream(torch.ones(2, 1, 3), torch.ones(2, 1, dtype=torch.bool), 4.0)
    same_time = (head(a, track) * head(b, track)).sum(1)
    what = torch.nn.functional.cosine_similarity(head.what(a), head.what(b))
    assert torch.allclose(same_time, 0.7 * what + 0.3, atol=1e-6)
    assert torch.allclose(head(a, still)[:, 8:], torch.zeros(2, 12), atol=1e-3)  # one picture has no timing


def test_halving_a_mask_keeps_the_last_odd_step() -> None:
    assert halve(torch.tensor([[True, False, False, True, True]])).tolist() == [[True, True, True]]
    assert halve(torch.tensor([[True, True, False, False]])).tolist() == [[True, False]]


# ---------------------------------------------------------------------------------------------------------- statistics
SPECS = {
    "audio": StreamSpec("audio", (2,), 16_000.0),
    "video": StreamSpec("video", (3, 24, 20), 8.0),
    "features": StreamSpec("features", (6,), 2.0),
    "map": StreamSpec("map", (2, 3, 6), 2.0),
    "tokens": StreamSpec("tokens", (), 1.0),
}


@pytest.mark.parametrize("kind", list(SPECS))
def test_summaries_have_their_width_and_ignore_padding(kind: str) -> None:
    spec, given = SPECS[kind], stream(kind)
    out = summarize(given, spec, seconds=1.0)
    assert out.shape == (3, summary_dim(spec))
    assert out.dtype == torch.float64
    assert torch.isfinite(out).all()
    assert torch.allclose(summarize(padded(given, 5), spec, seconds=1.0), out, atol=1e-6)
    assert not torch.allclose(out[0], out[1])
    empty = given._replace(data=torch.zeros_like(given.data), mask=torch.zeros_like(given.mask))
    assert torch.isfinite(summarize(empty, spec, seconds=1.0)).all()


def test_summaries_by_hand() -> None:
    features = Stream(torch.tensor([[[1.0, 2.0], [3.0, 6.0]]]), torch.ones(1, 2, dtype=torch.bool), 1.0)
    assert summarize(features, StreamSpec("features", (2,), 1.0), seconds=1.0).tolist() == [[2, 4]]
    tokens = Stream(torch.tensor([[97, 97, 98, 0]]), torch.tensor([[True, True, True, False]]), 1.0)
    share = summarize(tokens, SPECS["tokens"], seconds=1.0)[0]
    assert [round(float(share[i]), 4) for i in (97, 98, 0)] == [0.6667, 0.3333, 0]
    frame = torch.full((1, 2, 3, 24, 20), 255, dtype=torch.uint8)
    white = summarize(Stream(frame, torch.ones(1, 2, dtype=torch.bool), 8.0), SPECS["video"], seconds=1.0)[0]
    assert white[:3].tolist() == [1, 1, 1]
    assert white[3:10].abs().max() < 1e-6
    assert white[10 + 144 :].abs().max() == 0
    with pytest.raises(BatchError, match="spectrum"):
        summary_dim(StreamSpec("spectrum", (4, 1), 1.0))
