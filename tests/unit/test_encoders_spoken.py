"""Cepstra, the residual network along time, and which stream is the picture."""

from __future__ import annotations

import math

import pytest
import torch

from avcl.encoders.audio import log_mel_stream
from avcl.encoders.spoken import ResDAVEnet, mfcc_stream, picture_and_caption
from avcl.errors import ConfigError
from avcl.types import DataSpec, Stream, StreamSpec


def sound(seconds: float = 0.6, rate: int = 8000, *, seed: int = 0) -> Stream:
    wave = torch.randn(2, int(seconds * rate), 1, generator=torch.Generator().manual_seed(seed))
    wave[1] *= torch.linspace(0.1, 1, wave.shape[1])[:, None]
    return Stream(wave, torch.ones(wave.shape[:2], dtype=torch.bool), float(rate))


def test_cepstra_are_the_cosine_transform_of_the_log_mel_and_their_slopes() -> None:
    stream = sound()
    found = mfcc_stream(stream, coefficients=3, bands=20)
    mel = log_mel_stream(stream, bands=20, hop=0.01, window=0.025)
    assert found.rate == mel.rate == 100.0
    c2 = sum(mel.data[0, :, m] * math.cos(math.pi * 2 * (m + 0.5) / 20) for m in range(20))
    expected = (c2 - c2.mean()) / c2.std(correction=0)
    torch.testing.assert_close(found.data[0, :, 2], expected, atol=1e-4, rtol=1e-3)
    assert found.data.shape[2] == 4 * 3  # c_0 to c_3, slopes, slopes of slopes
    t = 20
    slope = (expected[t + 1] - expected[t - 1] + 2 * (expected[t + 2] - expected[t - 2])) / 10
    assert float(found.data[0, t, 4 + 2]) == pytest.approx(float(slope), abs=1e-4)
    edge = (expected[1] - expected[0] + 2 * (expected[2] - expected[0])) / 10  # what is missing counts as frame 0
    assert float(found.data[0, 0, 4 + 2]) == pytest.approx(float(edge), abs=1e-4)
    assert mfcc_stream(stream).data.shape[2] == 39
    assert mfcc_stream(stream, deltas=0).data.shape[2] == 13


def test_gain_and_padding_do_not_reach_the_cepstra() -> None:
    stream = sound()
    found = mfcc_stream(stream)
    louder = mfcc_stream(stream._replace(data=7 * stream.data))
    torch.testing.assert_close(louder.data, found.data, atol=1e-3, rtol=1e-3)
    data = torch.cat([stream.data, torch.full((2, 1000, 1), 9.0)], 1)
    mask = torch.cat([stream.mask, torch.zeros(2, 1000, dtype=torch.bool)], 1)
    padded = mfcc_stream(Stream(data, mask, stream.rate))
    torch.testing.assert_close(padded.data[:, : found.data.shape[1]], found.data, atol=1e-4, rtol=1e-4)
    assert not padded.data[:, found.data.shape[1] :].any()
    nothing = mfcc_stream(stream._replace(mask=torch.zeros_like(stream.mask)))
    assert not nothing.data.any()
    short = mfcc_stream(Stream(stream.data[:, :1], stream.mask[:, :1], stream.rate))
    assert bool(torch.isfinite(short.data).all())


def test_ten_seconds_are_63_steps() -> None:
    net = ResDAVEnet(widths=(2, 2, 2, 2), depths=(1, 1, 1, 1), bands=20).eval()
    with torch.no_grad():
        out = net(sound(10.0))
    assert out.data.shape == (2, 63, 2)
    assert out.rate == pytest.approx(100 / 16)
    sizes = [p.shape for p in ResDAVEnet.paper().trunk.stem.parameters()]
    assert sizes == [torch.Size([128, 1, 1, 40])]
    assert ResDAVEnet.paper().dim == 1024
    with pytest.raises(ConfigError, match="odd"):
        ResDAVEnet(kernel=8)


def test_which_stream_is_the_picture() -> None:
    streams = {
        "video": StreamSpec("video", (3, 8, 8), 1.0),
        "audio": StreamSpec("audio", (1,), 8000.0),
        "speech": StreamSpec("audio", (1,), 8000.0),
        "seen": StreamSpec("map", (2, 2, 4), 1.0),
    }
    spec = DataSpec(streams)
    assert picture_and_caption(("audio", "video"), spec) == ("video", "audio")
    assert picture_and_caption(("speech", "seen"), spec) == ("seen", "speech")
    features = DataSpec({name: StreamSpec("features", (4,), 1.0) for name in ("audio", "image")})
    assert picture_and_caption(("audio", "image"), features) == ("image", "audio")
    for names in (("audio", "speech"), ("video", "seen"), ("video", "audio", "speech")):
        with pytest.raises(ConfigError, match="one picture and one caption"):
            picture_and_caption(names, spec)
