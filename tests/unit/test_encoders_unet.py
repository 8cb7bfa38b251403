"""U-Net: any size, padding that nobody sees, every condition felt, and two tones told apart by a vector."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from avcl.dsp.spectrum import stft
from avcl.encoders.unet import Conditioning, Output, UNet, Upsampling
from avcl.errors import BatchError, ConfigError
from avcl.metrics.separation import si_sdr
from avcl.objectives.reconstruction import mask_loss
from avcl.types import Stream

UPS: tuple[Upsampling, ...] = ("bilinear", "transposed")
CONDITIONS: tuple[Conditioning, ...] = ("concat", "film", "attention", "product")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(data: Tensor, rate: float = 8.0) -> Stream:
    return Stream(data, torch.ones(data.shape[:2], dtype=torch.bool), rate)


def conditions(kind: Conditioning, batch: int, k: int = 6) -> dict[str, Tensor | Stream]:
    """Every shape of a condition that ``kind`` takes."""
    found: dict[str, Tensor | Stream] = {
        "vector": random(batch, k, seed=1),
        "sequence": whole(random(batch, 3, k, seed=2), 2.0),
        "map": whole(random(batch, 2, 2, 3, k, seed=3), 1.0),
    }
    return {**found, "several": random(batch, 2, k, seed=4)} if kind == "product" else found


# -------------------------------------------------------------------------------------------------------------- shapes
@settings(max_examples=25)
@given(st.integers(1, 19), st.integers(1, 19), st.integers(1, 4), st.sampled_from(UPS), st.integers(1, 2))
@torch.no_grad()
def test_any_size_comes_back_as_it_went_in(bands: int, steps: int, levels: int, up: Upsampling, outputs: int) -> None:
    torch.manual_seed(0)
    net = UNet(inputs=2, outputs=outputs, widths=(4,) * levels, upsampling=up, standardize=True)
    given = whole(random(2, steps, bands, 2))
    out = net(given)
    assert out.data.shape == (2, steps, bands, net.dim)
    assert net.dim == outputs
    assert out.rate == given.rate
    assert torch.isfinite(out.data).all()


@settings(max_examples=25)
@given(
    st.lists(st.booleans(), min_size=1, max_size=14),
    st.integers(0, 9),
    st.sampled_from(UPS),
    st.sampled_from(CONDITIONS),
    st.booleans(),
)
@torch.no_grad()
def test_padding_and_gaps_are_never_seen(
    there: list[bool], extra: int, up: Upsampling, condition: Conditioning, standardize: bool
) -> None:
    torch.manual_seed(0)
    net = UNet(
        widths=(4, 6, 8),
        condition=condition,
        condition_dim=6,
        heads=2,
        upsampling=up,
        standardize=standardize,
    )
    mask, x = torch.tensor([there]), random(1, len(there), 7)
    long = torch.cat([mask, torch.zeros(1, extra, dtype=torch.bool)], 1)
    filled = torch.cat([x, torch.zeros(1, extra, 7)], 1).masked_fill(~long[:, :, None], -3e4)
    for steer in conditions(condition, 1).values():
        out = net(Stream(x, mask, 8.0), steer).data
        other = net(Stream(filled, long, 8.0), steer).data
        assert torch.allclose(other[:, : len(there)], out, atol=1e-4)
        assert float(other[~long].abs().sum()) == 0
        assert torch.isfinite(other).all()


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.no_grad()
def test_unrecorded_steps_of_the_condition_are_never_seen(condition: Conditioning) -> None:
    torch.manual_seed(0)
    net = UNet(widths=(4, 8), condition=condition, condition_dim=6, heads=2)
    given = whole(random(2, 9, 8))
    for shape in ((2, 4, 6), (2, 4, 2, 3, 6)):
        data, mask = random(*shape), torch.tensor([[True, False, True, False], [False] * 4])
        a = net(given, Stream(data, mask, 4.0))
        b = net(given, Stream(torch.where(mask.reshape(2, 4, *[1] * (data.ndim - 2)), data, 1e5), mask, 4.0))
        assert torch.allclose(a.data, b.data, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- conditions
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("up", UPS)
def test_every_condition_is_felt_and_learns(condition: Conditioning, up: Upsampling) -> None:
    torch.manual_seed(0)
    net = UNet(widths=(4, 6, 8), condition=condition, condition_dim=6, heads=2, upsampling=up, norm="channel")
    given = whole(random(3, 10, 9))
    for name, steer in conditions(condition, 3).items():
        net.zero_grad()
        data = (steer if isinstance(steer, Tensor) else steer.data).clone().requires_grad_()
        felt = data if isinstance(steer, Tensor) else steer._replace(data=data)
        out = net(given, felt)
        assert out.data.shape == (3, 10, 9, 2 if name == "several" else 1)
        out.data.square().sum().backward()
        assert float(data.grad.abs().flatten(1).sum(1).min()) > 0, name
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters()), name
        with torch.no_grad():
            other = net(given, data.flip(0) if isinstance(steer, Tensor) else steer._replace(data=data.flip(0)))
        change = (other.data - out.data).norm() / out.data.norm()
        assert float(change.detach()) > 1e-3, name


@pytest.mark.parametrize("condition", ["concat", "film", "product"])
@torch.no_grad()
def test_a_constant_sequence_is_the_vector_and_a_map_is_the_mean_of_its_cells(condition: Conditioning) -> None:
    torch.manual_seed(0)
    net = UNet(widths=(4, 6), condition=condition, condition_dim=6)
    given, vector = whole(random(2, 16, 8)), random(2, 6, seed=1)
    expected = net(given, vector).data
    constant = whole(vector[:, None].expand(-1, 5, -1), 2.5)  # two seconds, as the sound
    assert torch.allclose(net(given, constant).data, expected, atol=1e-5)
    spread = random(2, 5, 2, 2, 6)
    spread = spread - spread.mean((2, 3), keepdim=True) + vector[:, None, None, None]
    assert torch.allclose(net(given, constant._replace(data=spread)).data, expected, atol=1e-5)


@torch.no_grad()
def test_film_of_a_sequence_acts_when_it_happens() -> None:
    """Averaging the sequence first would lose what moves (the trap of Sound of Motions)."""
    torch.manual_seed(0)
    net = UNet(widths=(4, 6), condition="film", condition_dim=6)
    given, code = whole(random(1, 64, 8)), random(1, 16, 6)
    changed = code.clone()
    changed[:, 12] += 3
    moved = (net(given, whole(code, 2.0)).data - net(given, whole(changed, 2.0)).data).abs().sum((0, 2, 3))
    assert float(moved[:42].max()) == 0  # four convolutions and two doublings on the way
    assert int(moved.argmax()) in range(46, 54)  # step 12 of 2 a second is steps 48 to 51 of 8 a second


@torch.no_grad()
def test_the_inner_product_by_hand_and_for_several_vectors_at_once() -> None:
    torch.manual_seed(0)
    net = UNet(widths=(4, 6), condition="product", condition_dim=3)
    net.scale.copy_(torch.tensor([1.0, 2.0, 0.5]))
    net.bias.fill_(0.25)
    given = whole(random(2, 6, 8))
    f = torch.cat([net(given, torch.eye(3)[k].expand(2, 3)).data - 0.25 for k in range(3)], 3)  # s_k f_k
    v = random(2, 3, seed=1)
    assert torch.allclose(net(given, v).data[..., 0], (f * v[:, None, None]).sum(3) + 0.25, atol=1e-5)
    pixels = random(2, 5, 3, seed=2)
    each = torch.cat([net(given, pixels[:, n]).data for n in range(5)], 3)
    assert torch.allclose(net(given, pixels).data, each, atol=1e-5)


@torch.no_grad()
def test_the_map_of_attention_and_the_deep_features() -> None:
    torch.manual_seed(0)
    net = UNet(widths=(4, 6, 8), condition="attention", condition_dim=6, heads=2)
    given, look = whole(random(2, 9, 10)), whole(random(2, 3, 2, 2, 6), 2.0)
    look.mask[1, 2] = False
    out, weights = net(given, look, return_attention=True)
    assert torch.allclose(out.data, net(given, look).data, atol=1e-5)
    assert weights.shape == (2, 2, 2, 2, 12)  # heads, F', T', N = 3 · 2 · 2
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
    assert float(weights[1, ..., 8:].abs().max()) == 0
    same, deep = net.with_deep(given, look)
    assert torch.equal(same.data, net(given, look).data)
    assert deep.data.shape == (2, 3, 3, 6)
    assert deep.rate == 2.0
    with pytest.raises(BatchError, match="no attention map"):
        UNet()(given, return_attention=True)


# ------------------------------------------------------------------------------------------------------------- outputs
@torch.no_grad()
def test_outputs_are_what_they_are_called() -> None:
    x = random(2, 7, 9, 2)
    results = {}
    for output in ("logits", "complex", "signal"):
        torch.manual_seed(0)
        results[output] = UNet(inputs=2, outputs=4, output=output)(whole(x)).data
    z, mask, signal = results["logits"], results["complex"], results["signal"]
    assert torch.allclose(mask, 2 * torch.sigmoid(z) - 1, atol=1e-6)
    spectrum = torch.view_as_complex(x)[..., None]
    product = torch.view_as_complex(mask.reshape(2, 7, 9, 2, 2)) * spectrum
    assert torch.allclose(signal, torch.view_as_real(product).flatten(3), atol=1e-6)
    torch.manual_seed(0)
    z = UNet(outputs=2)(whole(x[..., 0])).data
    torch.manual_seed(0)
    assert torch.allclose(UNet(outputs=2, output="signal")(whole(x[..., 0])).data, torch.sigmoid(z) * x[..., :1])


@torch.no_grad()
def test_standardizing_removes_level_and_gain() -> None:
    torch.manual_seed(0)
    net = UNet(widths=(4, 6), standardize=True)
    x, mask = random(2, 12, 8), torch.ones(2, 12, dtype=torch.bool)
    mask[0, 7:] = False
    a, b = net(Stream(x, mask, 8.0)).data, net(Stream(5 * x - 23, mask, 8.0)).data
    assert torch.allclose(a, b, atol=1e-3)


def test_the_papers_sizes() -> None:
    with torch.device("meta"):
        pixels, objects, ears = UNet.sound_of_pixels(), UNet.co_separation(norm="batch"), UNet.binaural(masks=2)
    assert [tuple(c.weight.shape[:2]) for c in pixels.ups] == [
        (512, 512),
        (512, 1024),
        (512, 1024),
        (256, 1024),
        (128, 512),
        (64, 256),
        (32, 128),
    ]
    assert [tuple(c.weight.shape[:2]) for c in objects.ups][:2] == [(1024, 512), (1024, 512)]
    assert [tuple(c.weight.shape[:2]) for c in ears.ups] == [(1296, 512), (1024, 256), (512, 128), (256, 64), (128, 4)]
    assert ears.dim == 4


def test_batch_norm_is_offered_and_depends_on_the_batch() -> None:
    torch.manual_seed(0)
    net, given = UNet(widths=(4, 6), norm="batch"), whole(random(3, 8, 8))
    both, alone = net(given).data, net(Stream(given.data[:1], given.mask[:1], 8.0)).data
    assert not torch.allclose(both[:1], alone, atol=1e-3)


# ------------------------------------------------------------------------------------------------------------ learning
RATE, SAMPLES, FFT, HOP = 4_000, 2_048, 126, 64
PITCHES = (400.0, 1_100.0)


def tones(count: int, seed: int) -> Tensor:
    """One tone of each pitch [count, 2, SAMPLES], with random pitch within a semitone, phase and slow envelope."""
    g = torch.Generator().manual_seed(seed)
    t = torch.arange(SAMPLES) / RATE
    pitch = torch.tensor(PITCHES)[None, :, None] * 2 ** ((torch.rand(count, 2, 1, generator=g) - 0.5) / 6)
    phase, beat = (torch.rand(count, 2, 1, generator=g) * 2 * math.pi for _ in range(2))
    return torch.sin(2 * math.pi * pitch * t + phase) * (1 + 0.8 * torch.sin(2 * math.pi * 3 * t + beat)) / 4


def spectra(wave: Tensor) -> Tensor:
    return stft(wave.flatten(0, -2), n_fft=FFT, hop=HOP).unflatten(0, wave.shape[:-1])


def heard(spectrum: Tensor) -> Tensor:
    """The wave of a spectrum [N, T, F], by torch's inverse; frame n is centered on n · HOP."""
    closed = torch.nn.functional.pad(spectrum.transpose(1, 2), (0, 1))
    return torch.istft(closed, FFT, HOP, window=torch.hann_window(FFT), length=SAMPLES)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_vector_says_which_of_two_tones_to_keep(condition: Conditioning) -> None:
    """Mix and separate, on tones that were not trained on: SI-SDR above that of the mixture, below it if swapped."""
    torch.manual_seed(0)
    net = UNet(widths=(8, 16, 16), condition=condition, condition_dim=4, heads=2, standardize=True)
    codes = torch.nn.functional.pad(torch.eye(2), (0, 2))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(120 if condition == "attention" else 40):  # attention starts late, when depends on rounding
        parts = spectra(tones(8, step)).abs()
        mixture = spectra(tones(8, step).sum(1)).abs()
        which = torch.arange(8) % 2
        logits = net(whole((mixture + 1e-5).log(), RATE / HOP), codes[which]).data[..., 0]
        target = (parts[torch.arange(8), which] > parts[torch.arange(8), 1 - which]).float()
        loss = mask_loss(logits, target, mixture=mixture)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    waves = tones(12, 10_000)
    mixed = spectra(waves.sum(1))
    gains = {}
    with torch.no_grad():
        for swapped in (False, True):
            code = codes[1 - torch.arange(2) if swapped else torch.arange(2)]
            parts = []
            for which in range(2):
                mask = net(whole((mixed.abs() + 1e-5).log(), RATE / HOP), code[which].expand(12, 4)).data[..., 0]
                parts.append(heard(mixed * torch.sigmoid(mask)))
            kept = torch.stack(parts, 1)
            score = si_sdr(waves.flatten(0, 1).numpy(), kept.flatten(0, 1).numpy()).mean()
            gains[swapped] = (
                score - si_sdr(waves.flatten(0, 1).numpy(), waves.sum(1).repeat_interleave(2, 0).numpy()).mean()
            )
    assert gains[False] > 3
    assert gains[True] < 0


# -------------------------------------------------------------------------------------------------------------- errors
def test_settings_and_shapes_are_checked() -> None:
    wrong: list[dict[str, object]] = [
        {"inputs": 0},
        {"widths": ()},
        {"widths": (4, 0)},
        {"condition": "film"},
        {"condition_dim": 4},
        {"condition": "sum", "condition_dim": 4},
        {"output": "wave"},
        {"output": "complex"},
        {"inputs": 3, "output": "signal"},
        {"inputs": 2, "output": "signal"},
        {"upsampling": "cubic"},
        {"norm": "group"},
    ]
    for arguments in wrong:
        with pytest.raises(ConfigError):
            UNet(**arguments)  # type: ignore[arg-type]
    given = whole(random(2, 6, 8))
    net = UNet(condition="film", condition_dim=4)
    for shape in ((2, 5), (3, 4), (2, 3, 4)):
        with pytest.raises(BatchError, match=r"\[2, 4\]"):
            net(given, random(*shape))
    for steer in (random(2, 4), None):
        with pytest.raises(BatchError, match="condition"):
            (UNet() if steer is not None else net)(given, steer)
    with pytest.raises(BatchError, match="spectrum"):
        net(whole(random(2, 6, 8, 2)), random(2, 4))


def test_an_empty_item_has_finite_gradients() -> None:
    output: Output
    for output in ("logits", "signal"):
        net = UNet(widths=(4, 6), output=output, standardize=True)
        data = random(2, 6, 8).requires_grad_()
        mask = torch.tensor([[True] * 6, [False] * 6])
        net(Stream(data, mask, 8.0)).data.sum().backward()
        assert torch.isfinite(data.grad).all()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters())
