"""Towers: parameter counts of the papers by hand, true clocks, geometry of maps, and that they learn."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from avcl.encoders import resnet
from avcl.encoders.audio import log_mel_stream
from avcl.encoders.conv2d import centered
from avcl.encoders.conv3d import VideoResNet, middle_channels
from avcl.encoders.norm import norm_layer
from avcl.encoders.patches import PatchTransformer, SpectrogramTransformer, VideoTransformer, placed
from avcl.encoders.resnet import FrameResNet, LogMelResNet, ResidualBlock, SpectrumResNet, wake
from avcl.encoders.vggish import VGGish
from avcl.encoders.waveform import WaveformConv, WaveLayer
from avcl.errors import BatchError, ConfigError
from avcl.nn.pooling import masked_mean, strided_mask
from avcl.types import Stream


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def whole(data: Tensor, rate: float) -> Stream:
    return Stream(data, torch.ones(data.shape[:2], dtype=torch.bool), rate)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ------------------------------------------------------------------------------------------- sizes of papers by hand
def resnet18(channels: int) -> int:
    """7 × 7 stem, eight basic blocks, three projections; each convolution has a norm of two numbers a channel."""
    total = 49 * channels * 64 + 128
    for inside, width in ((64, 64), (64, 128), (128, 256), (256, 512)):
        total += 9 * inside * width + 3 * 9 * width * width + 4 * 2 * width
        total += inside * width + 2 * width if inside != width else 0
    return total


def resnet3d18(factorized: bool, shared_middle: bool = False) -> int:
    total = 147 * 45 + 90 + 3 * 45 * 64 + 128 if factorized else 3 * 147 * 64 + 128
    for inside, width in ((64, 64), (64, 128), (128, 256), (256, 512)):
        for i, (a, b) in enumerate(((inside, width), (width, width), (width, width), (width, width))):
            first = inside if shared_middle and i == 1 else a
            middle = math.floor(27 * first * b / (9 * first + 3 * b))
            total += 9 * a * middle + 2 * middle + 3 * middle * b if factorized else 27 * a * b
            total += 2 * b
        total += inside * width + 2 * width if inside != width else 0
    return total


def transformer(dim: int, depth: int) -> int:
    """Queries, keys, values with biases, output without; two layers of 4 · dim; two norms; and one norm at the end."""
    return depth * (4 * dim**2 + 3 * dim + 8 * dim**2 + 5 * dim + 4 * dim) + 2 * dim


PAPERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ResNet-18": (FrameResNet.paper, resnet18(3)),
    "ResNet-18, batch norm": (lambda: FrameResNet.paper(norm="batch"), 11_176_512),
    "ResNet-18, log-mel": (LogMelResNet.paper, resnet18(1)),
    "ResNet-50": (
        lambda: FrameResNet(widths=(64, 128, 256, 512), depths=(3, 4, 6, 3), bottleneck=True),
        25_557_032 - (2048 * 1000 + 1000),  # the published model without its classifier of 1,000
    ),
    "R3D-18": (VideoResNet.paper, resnet3d18(False)),
    "R(2+1)D-18": (lambda: VideoResNet.paper(factorized=True), resnet3d18(True)),
    "wav2vec 2.0": (WaveformConv.wav2vec, 10 * 512 + (4 * 3 + 2 * 2) * 512**2 + 7 * 3 * 512),
    "M5": (WaveformConv.m5, 80 * 128 + 3 * (128 * 128 + 128 * 256 + 256 * 512) + 3 * (128 + 128 + 256 + 512)),
    "VGGish": (VGGish.paper, 72_141_184),
    "ViT-B/16": (VideoTransformer.paper, 768 * (768 + 1 + 196 + 1) + transformer(768, 12)),
    "ViViT, factorized": (
        lambda: VideoTransformer.paper(mixing="factorized", tubelet=2),
        768 * (2 * 768 + 1 + 196 + 1) + transformer(768, 12) + 12 * (4 * 768**2 + 3 * 768 + 2 * 768) + 1,
    ),
    "AST": (SpectrogramTransformer.paper, 768 * (256 + 1 + 12 + 1) + transformer(768, 12) + 1),
}


@pytest.mark.parametrize("name", PAPERS)
def test_parameters_of_the_papers(name: str) -> None:
    make, expected = PAPERS[name]
    with torch.device("meta"):
        assert count(make()) == expected


def test_numbers_in_the_documentation() -> None:
    assert resnet18(3) == 11_176_512
    assert resnet18(1) == 11_170_240
    assert resnet3d18(False) + 512 * 400 + 400 == 33_371_472  # with a classifier of 400: the published count
    assert resnet3d18(True) == 33_165_639
    assert resnet3d18(True, shared_middle=True) == 31_300_125
    assert PAPERS["wav2vec 2.0"][1] == 4_210_176
    assert PAPERS["ViT-B/16"][1] == 85_788_672
    assert PAPERS["AST"][1] == 85_254_145


TINY: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "frames": (FrameResNet.tiny, "video"),
    "video": (VideoResNet.tiny, "video"),
    "video, factorized": (lambda: VideoResNet.tiny(factorized=True), "video"),
    "patches": (VideoTransformer.tiny, "video"),
    "patches, joint": (lambda: VideoTransformer.tiny(mixing="joint", tubelet=2), "video"),
    "patches, factorized": (lambda: VideoTransformer.tiny(mixing="factorized"), "video"),
    "log-mel": (LogMelResNet.tiny, "audio"),
    "waveform": (WaveformConv.tiny, "audio"),
    "vggish": (VGGish.tiny, "audio"),
    "spectrogram": (SpectrogramTransformer.tiny, "audio"),
}


@pytest.fixture(params=list(TINY))
def tower(request: pytest.FixtureRequest) -> tuple[nn.Module, Stream]:
    make, kind = TINY[request.param]
    torch.manual_seed(0)
    data = random(2, 7, 3, 20, 26) if kind == "video" else random(2, 9001, 1) - 0.5
    return make().eval(), whole(data, 8.0 if kind == "video" else 8000.0)


def test_tiny_is_tiny(tower: tuple[nn.Module, Stream]) -> None:
    assert count(tower[0]) < 13_000


# --------------------------------------------------------------------------------------------------------------- clocks
@torch.no_grad()
def test_padding_of_huge_numbers_and_not_a_numbers_changes_nothing(tower: tuple[nn.Module, Stream]) -> None:
    module, stream = tower
    mask = stream.mask.clone()
    mask[1, : mask.shape[1] // 2] = False
    alone = module(stream._replace(mask=mask))
    for junk in (3e38, -1e30):
        tail = torch.full_like(stream.data[:, : mask.shape[1] // 2 + 1], junk)
        data = torch.where(mask.reshape(*mask.shape, *[1] * (stream.data.ndim - 2)), stream.data, junk)
        longer = Stream(
            torch.cat([data, tail], 1), torch.cat([mask, torch.zeros(tail.shape[:2], dtype=torch.bool)], 1), stream.rate
        )
        out = module(longer)
        steps = alone.mask.shape[1]
        assert torch.allclose(out.data[:, :steps], alone.data, atol=1e-5)
        assert torch.equal(out.mask[:, :steps], alone.mask)
        assert not out.data[:, steps:].any()
    assert not alone.data[~alone.mask].any()


@pytest.mark.parametrize("steps", range(9, 17))
@torch.no_grad()
def test_a_maximum_of_the_last_steps_does_not_stand_past_the_end(steps: int) -> None:
    net = SpectrumResNet(widths=(8, 12), depths=(1, 1), strides=(1, 2)).eval()
    wake(net)  # a new block is its shortcut: only one that speaks can tell what its convolutions see past the end
    alone = whole(random(2, steps, 16), 64.0)
    padded = Stream(*(torch.cat([x, torch.zeros_like(x[:, :8])], 1) for x in alone[:2]), alone.rate)
    short, long = net(alone), net(padded)
    assert torch.allclose(long.data[:, : short.data.shape[1]], short.data, atol=1e-5)


def test_an_empty_item_gives_zeros_and_finite_gradients(tower: tuple[nn.Module, Stream]) -> None:
    module, stream = tower
    mask = stream.mask.clone()
    mask[0] = False
    out = module(stream._replace(mask=mask))
    assert not out.data[0].any()
    assert not out.mask[0].any()
    assert out.data[1].any()
    out.data.square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in module.parameters())


@settings(max_examples=60)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 4))
def test_strided_masks_compose(steps: list[bool], first: int, second: int) -> None:
    mask = torch.tensor([steps])
    out = strided_mask(mask, first)
    assert out.tolist() == [[any(steps[i : i + first]) for i in range(0, len(steps), first)]]
    assert torch.equal(strided_mask(out, second), strided_mask(mask, first * second))


STAGES = st.lists(st.integers(1, 3), min_size=1, max_size=3)
MASKS = st.lists(st.booleans(), min_size=1, max_size=14)


def check_clock(out: Stream, mask: Tensor, rate: float, stride: int) -> None:
    """T' = ceil(T / stride), the rate of the input over the stride, recorded where any step under it is."""
    assert out.rate == pytest.approx(rate / stride)
    assert torch.equal(out.mask, strided_mask(mask, stride))
    assert out.data.shape[:2] == out.mask.shape
    assert not out.data[~out.mask].any()


@settings(max_examples=20)
@given(STAGES, MASKS, st.booleans(), st.integers(1, 19), st.integers(1, 19))
@torch.no_grad()
def test_clock_of_video_networks(
    strides: list[int], steps: list[bool], factorized: bool, height: int, width: int
) -> None:
    n, mask = len(strides), torch.tensor([steps])
    net = VideoResNet(
        widths=(4,) * n, depths=(1,) * n, strides=(1,) * n, time_strides=strides, factorized=factorized
    ).eval()
    assert net.time_stride == math.prod(strides)
    stream = Stream(random(1, len(steps), 3, height, width), mask, 8.0)
    check_clock(net(stream), mask, 8.0, net.time_stride)
    assert net.maps(stream).data.shape[2:] == (-(-height // net.stride), -(-width // net.stride), 4)
    frames = FrameResNet(widths=(4,) * n, depths=(1,) * n, strides=strides, pool=factorized).eval()
    check_clock(frames(stream), mask, 8.0, 1)
    assert frames.stride == math.prod(strides) * (4 if factorized else 2)
    cells = frames.maps(stream)
    assert cells.data.shape[2:] == (-(-height // frames.stride), -(-width // frames.stride), 4)
    assert torch.allclose(cells.data.mean((2, 3)), frames(stream).data)


@settings(max_examples=20)
@given(
    MASKS, st.integers(1, 4), st.sampled_from(["step", "joint", "factorized"]), st.integers(1, 19), st.integers(1, 19)
)
@torch.no_grad()
def test_clock_of_patch_networks(steps: list[bool], tubelet: int, mixing: str, height: int, width: int) -> None:
    net = VideoTransformer.tiny(mixing=mixing, tubelet=tubelet).eval()  # type: ignore[arg-type]
    mask = torch.tensor([steps])
    stream = Stream(random(1, len(steps), 3, height, width), mask, 8.0)
    check_clock(net(stream), mask, 8.0, tubelet)
    cells = net.maps(stream)
    check_clock(cells, mask, 8.0, tubelet)
    assert cells.data.shape[2:] == (-(-height // 8), -(-width // 8), 16)


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=3),
    st.lists(st.booleans(), min_size=1, max_size=60),
)
@torch.no_grad()
def test_clock_of_waveform_networks(plan: list[tuple[int, int, int]], steps: list[bool]) -> None:
    layers = tuple(WaveLayer(4, stride + more, stride, pool) for stride, more, pool in plan)
    net, mask = WaveformConv(layers).eval(), torch.tensor([steps])
    out = net(Stream(random(1, len(steps), 2) - 0.5, mask, 44_100.0))
    check_clock(out, mask, 44_100.0, math.prod(layer.stride * layer.pool for layer in layers))


@settings(max_examples=15)
@given(st.integers(2, 5000), st.sampled_from([8000.0, 11_025.0, 16_000.0, 44_100.0]), st.integers(0, 3000))
@torch.no_grad()
def test_clock_of_spectrogram_networks(samples: int, rate: float, missing: int) -> None:
    torch.manual_seed(0)
    mask = torch.ones(1, samples, dtype=torch.bool)
    mask[:, max(1, samples - missing) :] = False
    stream = Stream(random(1, samples, 1) - 0.5, mask, rate)
    mel = log_mel_stream(stream, bands=32)
    check_clock(LogMelResNet.tiny().eval()(stream), mel.mask, mel.rate, 16)
    check_clock(SpectrogramTransformer.tiny().eval()(stream), mel.mask, mel.rate, 5)
    fine = log_mel_stream(stream, bands=64, hop=0.01, window=0.025)
    check_clock(VGGish.tiny().eval()(stream), fine.mask, fine.rate, 96)


def test_rates_of_the_papers() -> None:
    second = whole(torch.zeros(1, 16_000, 1), 16_000.0)
    with torch.no_grad():
        assert VGGish.tiny()(second).rate == pytest.approx(1 / 0.96)
        assert VGGish.tiny()(second).mask.shape == (1, 2)  # 0.96 s, and a patch of 0.04 s
    assert 16_000 / WaveformConv.wav2vec(4).stride == 50
    assert 8_000 / WaveformConv.m5().stride == 7.8125
    assert (VideoResNet.paper(factorized=False).time_stride, FrameResNet.paper().stride) == (8, 32)


@torch.no_grad()
def test_an_event_stands_where_it_happens() -> None:
    """What changes at second t changes the step of second t most, after any stride."""
    torch.manual_seed(0)
    quiet = 0.1 * torch.sin(torch.arange(64_000) * (2 * math.pi * 440 / 16_000))[None, :, None]
    click = quiet.clone()
    click[0, 40_000:40_160] += random(160, 1, seed=1) - 0.5  # at 2.5 s
    for net in (LogMelResNet.tiny(), WaveformConv.tiny(), SpectrogramTransformer.tiny()):
        a, b = (net.eval()(whole(x, 16_000.0)) for x in (quiet, click))
        change = (a.data - b.data).norm(dim=2)[0]
        assert int(change.argmax()) / a.rate == pytest.approx(2.5, abs=1.01 / a.rate)
    still = random(1, 1, 3, 32, 32).expand(-1, 24, -1, -1, -1)
    blink = still.clone()
    blink[0, 16] = random(3, 32, 32, seed=1)
    for video in (VideoResNet.tiny(), VideoResNet.tiny(factorized=True), VideoTransformer.tiny(mixing="factorized")):
        a, b = (video.eval()(whole(x, 8.0)) for x in (still, blink))
        change = (a.data - b.data).norm(dim=2)[0]
        assert int(change.argmax()) / a.rate == pytest.approx(2.0, abs=1.01 / a.rate)


# ------------------------------------------------------------------------------------------------ equations and masks
@torch.no_grad()
def test_a_block_by_hand() -> None:
    """relu(norm(1 × 1) + norm(conv(relu(norm(conv)))) ) with the mask before every convolution over time."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3, stride=(2, 1), padding=1, bias=False)
    second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    block = ResidualBlock([first, second])
    assert not block.norms[1].norm.weight.any()
    for p in block.parameters():
        p.copy_(torch.randn(p.shape))
    mask = torch.tensor([[True, True, False, False, True]])
    x = random(1, 3, 5, 6) * mask[:, None, :, None]
    out, kept = block(x, mask)
    assert kept.tolist() == [[True, False, True]]

    def norm(i: int, v: Tensor, layers: nn.ModuleList = block.norms) -> Tensor:
        inner = layers[i].norm
        mean, var = v.mean(1, keepdim=True), v.var(1, keepdim=True, correction=0)
        return (v - mean) / (var + inner.eps).sqrt() * inner.weight[:, None, None] + inner.bias[:, None, None]

    y = norm(0, nn.functional.conv2d(x, first.weight, stride=(2, 1), padding=1)).relu()
    y[:, :, 1] = 0
    y = norm(1, nn.functional.conv2d(y, second.weight, padding=1))
    side = nn.functional.conv2d(x, block.shortcut[0].weight, stride=(2, 1))
    expected = (y + norm(1, side, block.shortcut)).relu()  # type: ignore[arg-type]
    expected[:, :, 1] = 0
    assert torch.allclose(out, expected, atol=1e-5)


def test_deep_networks_start_as_their_shortcuts() -> None:
    """Inputs stay apart in a deep network that was not trained: the branches begin at zero."""
    torch.manual_seed(0)
    net = FrameResNet(widths=(16, 16), depths=(1, 12), strides=(1, 2)).eval()
    frames = nn.functional.interpolate(random(8, 3, 4, 4), (32, 32), mode="bilinear")[None]
    with torch.no_grad():
        out = net(whole(frames, 8.0)).data[0]
        for block in net.trunk.blocks:
            block.norms[-1].norm.weight.fill_(1.0)
        loud = net(whole(frames, 8.0)).data[0]

    def apart(x: Tensor) -> float:
        x = nn.functional.normalize(x, dim=1)
        return float(1 - (x @ x.T).mean())

    assert apart(out) > 0.03
    assert apart(out) > 1.5 * apart(loud)


@torch.no_grad()
def test_brightness_leaves_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat pictures of any brightness would be one picture to norms that scale everything to unit variance."""
    walls = torch.tensor([0.6, 0.75, 0.95])[None, :, None, None, None].expand(-1, -1, 3, 32, 32)

    def apart() -> float:
        torch.manual_seed(0)
        return float(torch.pdist(FrameResNet().eval()(whole(walls, 8.0)).data[0]).min())

    ours = apart()
    monkeypatch.setattr(resnet, "NORM_EPS", 1e-5)
    assert ours > 20 * apart()


def test_batch_norm_is_offered_and_breaks_the_contract() -> None:
    torch.manual_seed(0)
    net = FrameResNet(widths=(4,), depths=(1,), strides=(1,), norm="batch").train()
    frames = random(2, 3, 3, 16, 16)
    both, alone = net(whole(frames, 8.0)).data[:1], net(whole(frames[:1], 8.0)).data
    assert not torch.allclose(both, alone, atol=1e-3)
    net.eval()
    assert torch.allclose(net(whole(frames, 8.0)).data[:1], net(whole(frames[:1], 8.0)).data, atol=1e-5)
    assert isinstance(norm_layer("batch", 4, axes=3), nn.BatchNorm3d)
    assert count(norm_layer("batch", 4, axes=1)) == count(norm_layer("channel", 4, axes=1))


# ---------------------------------------------------------------------------------------------- factorized convolutions
@settings(max_examples=50)
@given(st.integers(1, 600), st.integers(1, 600))
def test_factorized_convolutions_have_the_weights_of_whole_ones(inside: int, outside: int) -> None:
    middle, weights = middle_channels(inside, outside), 27 * inside * outside
    per_channel = 9 * inside + 3 * outside
    assert weights - per_channel < middle * per_channel <= weights


def test_worked_middle_channels() -> None:
    """27 · 64 · 64 / (9 · 64 + 3 · 64) = 110,592 / 768 = 144; 64 to 128: 221,184 / 960 = 230.4."""
    assert (middle_channels(64, 64), middle_channels(64, 128), middle_channels(256, 512)) == (144, 230, 921)


@torch.no_grad()
def test_a_whole_network_and_a_factorized_one_give_the_same_shapes() -> None:
    stream = whole(random(2, 9, 3, 33, 30), 8.0)
    one, two = VideoResNet.tiny(), VideoResNet.tiny(factorized=True)
    assert one.maps(stream).data.shape == two.maps(stream).data.shape == (2, 5, 9, 8, 8)
    assert (one.stride, one.time_stride, one.reach) == (two.stride, two.time_stride, two.reach)
    assert abs(count(one) - count(two)) < 0.03 * count(one)


@torch.no_grad()
def test_separable_weights_give_the_same_convolution() -> None:
    """A 3-D kernel that is the product of one of space and one of time equals the two convolutions in turn."""
    space, time = torch.randn(4, 3, 1, 3, 3), torch.randn(5, 4, 3, 1, 1)
    product = torch.einsum("mcxhw,omtyz->octhw", space, time)
    x = torch.randn(2, 3, 6, 7, 8)
    inner = nn.functional.conv3d(x, space, stride=(1, 2, 2), padding=(0, 1, 1))
    both = nn.functional.conv3d(inner, time, stride=(2, 1, 1), padding=(1, 0, 0))
    assert torch.allclose(both, nn.functional.conv3d(x, product, stride=2, padding=1), atol=1e-4)


# ------------------------------------------------------------------------------------------------------------- geometry
@pytest.mark.parametrize(
    "net",
    [
        FrameResNet.tiny(),
        FrameResNet(widths=(4, 6), depths=(1, 1), strides=(1, 2), pool=False),
        FrameResNet(widths=(4, 6), depths=(1, 2), strides=(2, 1), bottleneck=True),
        VideoResNet.tiny(),
        VideoResNet.tiny(factorized=True),
    ],
    ids=["tiny", "no pool", "bottleneck", "3-D", "(2+1)D"],
)
def test_a_cell_sees_the_pixels_it_says(net: FrameResNet | VideoResNet) -> None:
    """The gradient of a cell covers pixel · stride ± reach and nothing else, its middle being offset + i · stride."""
    torch.manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    frames = random(1, 1, 3, 5, 6 * net.stride + 2 * net.reach).requires_grad_()
    net.eval().maps(whole(frames, 8.0)).data[0, 0, 0, -(-net.reach // net.stride) + 1].sum().backward()
    center = net.offset + (-(-net.reach // net.stride) + 1) * net.stride
    assert frames.grad is not None
    seen = frames.grad.abs().sum((0, 1, 2, 3)).nonzero()[:, 0]
    # A maximum takes one of three: the outermost pixels may be out of the game in one drawing.
    assert center - net.reach <= int(seen.min()) <= center - net.reach + 4
    assert center + net.reach - 4 <= int(seen.max()) <= center + net.reach


@torch.no_grad()
def test_a_patch_is_made_of_the_pixels_it_says() -> None:
    net = VideoTransformer.tiny().eval()
    assert (net.stride, net.offset) == (8, 3.5)
    frames = torch.full((1, 1, 3, 32, 32), 0.5)
    spot = frames.clone()
    spot[0, 0, :, 17, 9] = 1.0
    change = net._cells(whole(spot, 1.0)).data - net._cells(whole(frames, 1.0)).data
    assert change.abs().sum(-1).nonzero().tolist() == [[0, 0, 2, 1]]
    assert abs(2 * net.stride + net.offset - 17) < net.stride / 2
    table = random(2, 3, 5)
    cells = torch.zeros(1, 1, 2, 3, 5)
    assert torch.equal(placed(cells, table)[0, 0], table)
    flat = placed(torch.zeros(1, 1, 7, 4, 5), torch.ones(2, 3, 5))
    assert torch.allclose(flat, torch.ones_like(flat), atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- patches
@torch.no_grad()
def test_mixing_of_one_step_is_the_same_in_three_ways() -> None:
    """With a single recorded step, joint attention is attention within the step."""
    torch.manual_seed(0)
    step = VideoTransformer.tiny(mixing="step").eval()
    joint = VideoTransformer.tiny(mixing="joint").eval()
    joint.load_state_dict(step.state_dict(), strict=False)
    joint.net.gain.zero_()
    stream = whole(random(2, 1, 3, 24, 24), 8.0)
    assert torch.allclose(step(stream).data, joint(stream).data, atol=1e-5)
    longer = whole(random(2, 3, 3, 24, 24), 8.0)
    assert not torch.allclose(step(longer).data, joint(longer).data, atol=1e-3)
    gap = longer._replace(mask=torch.tensor([[False, True, False]] * 2))
    assert torch.allclose(step(gap).data, joint(gap).data, atol=1e-5)


@torch.no_grad()
def test_positions_are_seconds() -> None:
    """The same patches at half the rate stand at other seconds; at the same seconds they get the same code."""
    torch.manual_seed(0)
    net = PatchTransformer(8, depth=1, heads=2, mixing="joint", readout="mean", keep=1.0, dropout=0.0).eval()
    cells = random(1, 3, 2, 8)
    a, b = net(whole(cells, 4.0))[0], net(whole(cells, 2.0))[0]
    assert not torch.allclose(a, b, atol=1e-4)
    spread = torch.zeros(1, 5, 2, 8)
    spread[:, ::2] = cells
    mask = torch.tensor([[True, False, True, False, True]])
    assert torch.allclose(net(Stream(spread, mask, 4.0))[0][:, ::2], b, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mixing", ["step", "joint", "factorized"])
@pytest.mark.parametrize("readout", ["agg", "mean"])
def test_maps_of_attention(mixing: str, readout: str) -> None:
    torch.manual_seed(0)
    net = VideoTransformer(dim=16, heads=2, mixing=mixing, readout=readout, keep=0.5).eval()  # type: ignore[arg-type]
    stream = whole(random(2, 4, 3, 24, 20), 8.0)._replace(mask=torch.tensor([[True] * 4, [True, True, False, True]]))
    out, shown = net(stream, return_attention=True)
    assert torch.allclose(out.data, net(stream).data, atol=1e-5)
    assert shown.shape == (2, 4, 2, 3, 3)
    assert not shown[1, 2].any()
    total = shown.sum((3, 4))[stream.mask]
    assert bool((total <= 1 + 1e-5).all())
    assert bool((total > 0.5).all())
    if readout == "mean":
        assert torch.allclose(total, torch.ones_like(total), atol=1e-5)


@pytest.mark.parametrize("mixing", ["step", "joint", "factorized"])
def test_dropped_patches(mixing: str) -> None:
    """In training a part of the patches of every step stays, and the clock stays true; evaluation sees all."""
    torch.manual_seed(0)
    net = PatchTransformer(8, depth=1, heads=2, mixing=mixing, readout="mean", keep=0.3, dropout=0.0)  # type: ignore[arg-type]
    cells = whole(torch.arange(10.0)[:, None].expand(2, 3, 10, 8).contiguous(), 8.0)
    kept = net._some(cells.data)
    assert kept.shape == (2, 3, 3, 8)
    places = kept[..., 0]
    assert all(len(set(row)) == 3 for row in places.flatten(0, 1).tolist())
    same = bool((places == places[:, :1]).all())
    assert same == (mixing == "factorized")
    steps, patches, _ = net(cells)
    assert (steps.shape, patches.shape) == ((2, 3, 8), (2, 3, 3, 8))
    assert net(cells, whole=True)[1].shape == (2, 3, 10, 8)
    assert net.eval()(cells)[1].shape == (2, 3, 10, 8)


# ------------------------------------------------------------------------------------------------------------ waveforms
@torch.no_grad()
def test_a_waveform_layer_by_hand() -> None:
    """Even kernel 4, stride 3: step i is made of the samples 3 i - 1 … 3 i + 2; the pool takes recorded steps alone."""
    torch.manual_seed(0)
    net = WaveformConv((WaveLayer(2, 4, 3, 2),), channels=2)
    data = random(1, 11, 2) - 0.5
    mask = torch.tensor([[True] * 6 + [False] * 3 + [True] * 2])
    out = net(Stream(data, mask, 30.0))
    conv = net.convs[0]
    heard = (data * mask[:, :, None])[0]
    rows = []
    for i in range(4):
        total = conv.bias.clone()
        for k in range(4):
            if 0 <= 3 * i - 1 + k < 11:
                total += conv.weight[:, :, k] @ heard[3 * i - 1 + k]
        rows.append(nn.functional.gelu((total - total.mean()) / (total.var(correction=0) + 1e-5).sqrt()))
    assert out.mask.tolist() == [[True, True]]
    assert out.rate == 5
    assert torch.allclose(out.data[0, 0], torch.maximum(rows[0], rows[1]), atol=1e-5)
    assert torch.allclose(out.data[0, 1], rows[3], atol=1e-5)  # step 2 covers samples 6 to 8, which are missing


@torch.no_grad()
def test_level_of_a_waveform_is_heard() -> None:
    torch.manual_seed(0)
    net = WaveformConv.tiny().eval()
    tone = torch.sin(torch.arange(4000) * 0.3)[None, :, None]
    soft, loud = (net(whole(tone * g, 8000.0)).data for g in (0.01, 0.5))
    assert float((soft - loud).norm() / loud.norm()) > 0.2


# --------------------------------------------------------------------------------------------------------------- errors
def test_errors_are_named() -> None:
    video, sound = random(1, 2, 3, 8, 8), random(1, 400, 2)
    with pytest.raises(BatchError, match="uint8"):
        FrameResNet.tiny()(whole((video * 255).to(torch.uint8), 8.0))
    with pytest.raises(BatchError, match=r"\[1, 2, 8, 8, 3\]"):
        centered(whole(video.permute(0, 1, 3, 4, 2), 8.0))
    with pytest.raises(BatchError, match="3"):
        WaveformConv((WaveLayer(4, 3),), channels=3)(whole(sound, 8000.0))
    with pytest.raises(BatchError, match="spectrum"):
        SpectrumResNet(widths=(4,), depths=(1,), strides=(1,))(whole(sound[..., None].expand(-1, -1, 2, 2), 8000.0))
    wrong: list[tuple[str, Callable[[], object]]] = [
        ("one width", lambda: FrameResNet(widths=(4, 4), depths=(1,))),
        ("depth", lambda: VideoResNet(widths=(4,), depths=(0,), strides=(1,))),
        ("norm", lambda: FrameResNet(norm="group")),  # type: ignore[arg-type]
        ("skips", lambda: WaveformConv((WaveLayer(4, 2, 3),))),
        ("at least one layer", lambda: WaveformConv(())),
        ("layer 6", lambda: VGGish(hidden=(0, 4))),
        ("mixing", lambda: VideoTransformer(mixing="both")),  # type: ignore[arg-type]
        ("readout", lambda: VideoTransformer(readout="max")),  # type: ignore[arg-type]
        ("stride", lambda: SpectrogramTransformer(patch=4)),
        ("hop", lambda: SpectrogramTransformer(hop=0)),
        ("window", lambda: LogMelResNet(window=-1)),
        ("part", lambda: VideoTransformer(keep=0.0)),
    ]
    for message, make in wrong:
        with pytest.raises(ConfigError, match=message):
            make()


# ------------------------------------------------------------------------------------------------------------- learning
def learn(net: nn.Module, make: Callable[[int, int], tuple[Stream, Tensor]], steps: int, rate: float = 5e-3) -> float:
    """Accuracy on new clips of three classes after ``steps`` steps of 24 clips."""
    head = nn.Linear(net.dim, 3)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], rate)
    for step in range(steps):
        stream, label = make(24, step)
        out = net.train()(stream)
        loss = nn.functional.cross_entropy(head(masked_mean(out.data, out.mask)), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        stream, label = make(90, 10_000)
        out = net.eval()(stream)
        return float((head(masked_mean(out.data, out.mask)).argmax(1) == label).float().mean())


def shapes(count: int, seed: int) -> tuple[Stream, Tensor]:
    """A disk, a square or a cross anywhere in one noisy frame, in any color."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (count,), generator=generator)
    x, y = torch.rand(2, count, 1, 1, generator=generator) * 12 + 10
    row, column = torch.arange(32.0)[None, :, None] - y, torch.arange(32.0)[None, None] - x
    disk = (row**2 + column**2 < 64).float()
    square = (row.abs().maximum(column.abs()) < 7).float()
    cross = ((row.abs() < 2.5) | (column.abs() < 2.5)).float() * square
    picture = torch.stack([disk, square, cross], 1)[torch.arange(count), label]
    color = torch.rand(count, 3, 1, 1, generator=generator) * 0.6 + 0.3
    frames = picture[:, None] * color + 0.1 * torch.rand(count, 3, 32, 32, generator=generator)
    return whole(frames[:, None].clamp(0, 1), 1.0), label


def motions(count: int, seed: int) -> tuple[Stream, Tensor]:
    """A bar that moves left, right or not at all: no single frame tells which."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (count,), generator=generator)
    at = torch.rand(count, 1, generator=generator) * 24 + (label[:, None] - 1) * 3 * torch.arange(6.0)
    bar = ((torch.arange(24.0)[None, None] - at[:, :, None]).remainder(24) < 5).float()
    frames = bar[:, :, None, None].expand(-1, -1, 3, 16, -1) * 0.8
    return whole(frames + 0.1 * torch.rand(frames.shape, generator=generator), 8.0), label


def sweeps(count: int, seed: int) -> tuple[Stream, Tensor]:
    """A tone of any pitch that rises, falls or stays."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (count,), generator=generator)
    start = 400 * 2 ** (torch.rand(count, 1, generator=generator) * 2)
    seconds = torch.arange(3200) / 8000
    # phase = 2 π ∫ start · 2^(3 k t) dt, with k = -1, 0, 1
    speed = (label[:, None] - 1) * 3 * math.log(2) + 1e-6
    wave = torch.sin(2 * math.pi * start * torch.expm1(speed * seconds) / speed)
    return whole((0.3 * wave + 0.01 * torch.randn(wave.shape, generator=generator))[..., None], 8000.0), label


def pitches(count: int, seed: int) -> tuple[Stream, Tensor]:
    """Low, middle or high, at any phase and level."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (count,), generator=generator)
    hertz = torch.tensor([250.0, 700.0, 1900.0])[label][:, None] * (
        0.9 + 0.2 * torch.rand(count, 1, generator=generator)
    )
    phase, level = torch.rand(2, count, 1, generator=generator)
    wave = (0.05 + 0.5 * level) * torch.sin(2 * math.pi * (hertz * torch.arange(1600) / 8000 + phase))
    return whole((wave + 0.01 * torch.randn(wave.shape, generator=generator))[..., None], 8000.0), label


LESSONS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], tuple[Stream, Tensor]], int]] = {
    "frames": (FrameResNet.tiny, shapes, 220),
    "video": (VideoResNet.tiny, motions, 70),
    "video, factorized": (lambda: VideoResNet.tiny(factorized=True), motions, 70),
    "patches, joint": (lambda: VideoTransformer.tiny(mixing="joint", tubelet=2), motions, 50),
    "patches, factorized": (lambda: VideoTransformer.tiny(mixing="factorized", tubelet=2), motions, 50),
    "log-mel": (LogMelResNet.tiny, sweeps, 100),
    "spectrogram": (SpectrogramTransformer.tiny, sweeps, 50),
    "waveform": (WaveformConv.tiny, pitches, 40),
    "vggish": (VGGish.tiny, pitches, 40),
}


@pytest.mark.parametrize("name", LESSONS)
def test_a_tiny_tower_learns(name: str) -> None:
    make, lesson, steps = LESSONS[name]
    torch.manual_seed(0)
    assert learn(make(), lesson, steps) > 0.8  # chance: a third
