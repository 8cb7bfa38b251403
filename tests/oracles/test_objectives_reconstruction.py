"""Reconstruction objectives against worked values, loops (a discrete Fourier sum among them), and their contract."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives.reconstruction import charbonnier, l1, l2, mask_loss, spectral

A = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)
V = torch.tensor([[0.8, 0.6], [0, 1], [0.6, -0.8]], dtype=torch.float64)
ERRORS: dict[Callable[..., Tensor], Callable[[float], float]] = {
    l1: abs,
    l2: lambda d: d * d,
    charbonnier: lambda d: math.sqrt(d * d + 1e-6),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(x: Tensor) -> list[float]:
    return x.double().flatten().tolist()


# -------------------------------------------------------------------------------------------------- cell by cell
def test_worked_values() -> None:
    assert float(charbonnier(A, V)) == pytest.approx(0.666668, abs=1e-6)
    assert float(l1(A, V)) == pytest.approx(4 / 6, abs=1e-12)
    assert float(l2(A, V)) == pytest.approx(4.4 / 6, abs=1e-12)
    assert float(l2(torch.tensor([[1.0, 2], [0, 1]]), torch.tensor([[0.5, 2.5], [0.2, 0.7]]))) == pytest.approx(0.1575)


@given(st.sampled_from(list(ERRORS)), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000), st.integers(0, 3))
def test_equals_the_loop(objective: Callable[..., Tensor], b: int, t: int, seed: int, kind: int) -> None:
    x, y = normal(b, t, 2, seed=seed), normal(b, t, 2, seed=seed + 1)
    weight = [None, normal(b, t, 1, seed=seed).abs(), normal(b, t, 1, seed=seed) > -1, normal(1, 1, 2, seed=seed).abs()]
    w = weight[kind]
    if w is not None and not bool((w > 0).any()):
        w = torch.ones_like(w)
    each = flat(torch.ones_like(x) if w is None else w.expand_as(x))
    cells = [ERRORS[objective](p - q) for p, q in zip(flat(x), flat(y), strict=True)]
    slow = sum(c * k for c, k in zip(cells, each, strict=True)) / sum(each)
    assert float(objective(x, y, weight=w)) == pytest.approx(slow, abs=1e-9)


def test_torch_says_the_same() -> None:
    x, y = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    assert torch.allclose(l1(x, y), F.l1_loss(x, y))
    assert torch.allclose(l2(x, y), F.mse_loss(x, y))
    assert float(charbonnier(x, y, epsilon=1e-9)) == pytest.approx(float(l1(x, y)))
    assert float(charbonnier(x, x, epsilon=0.5)) == pytest.approx(0.5)
    pseudo = charbonnier(x, y, epsilon=2.0) - 2.0
    assert torch.allclose(pseudo, 2 * ((1 + ((x - y) / 2).square()).sqrt() - 1).mean())


@pytest.mark.parametrize("objective", list(ERRORS))
@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
def test_a_gap_never_counts(objective: Callable[..., Tensor], rubbish: float) -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])[..., None]
    x, y = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    clean = torch.cat([x[0, :2], x[1, :1]]), torch.cat([y[0, :2], y[1, :1]])
    x = torch.where(mask, x, rubbish).requires_grad_()
    y = torch.where(mask, y, -rubbish).requires_grad_()
    value = objective(x, y, weight=mask)
    assert torch.allclose(value, objective(*clean))
    for gradient in torch.autograd.grad(value, (x, y)):
        assert gradient.isfinite().all()
        assert bool((gradient.masked_select(~mask) == 0).all())


@pytest.mark.parametrize("objective", list(ERRORS))
def test_gradients_and_zero_difference(objective: Callable[..., Tensor]) -> None:
    x, y = normal(2, 3).requires_grad_(), normal(2, 3, seed=1).requires_grad_()
    w = normal(2, 1, seed=2).abs().requires_grad_()
    assert torch.autograd.gradcheck(lambda p, q, k: objective(p, q, weight=k), (x, y, w))
    assert bool((torch.autograd.grad(objective(x, x.detach().clone()), x)[0] == 0).all())
    far = torch.full((2, 2), 1e4, requires_grad=True)
    assert torch.autograd.grad(objective(far, -far.detach()), far)[0].isfinite().all()


# ------------------------------------------------------------------------------------------------- separation masks
def slow_mask_loss(m: Tensor, goal: Tensor, mixture: Tensor, recorded: Tensor, error: str) -> float:
    total = count = 0.0
    for p, t, x, w in zip(*(flat(k.expand_as(m)) for k in (m, goal, mixture, recorded)), strict=True):
        if error == "bce":
            cost = max(p, 0) + math.log1p(math.exp(-abs(p))) - t * p
        else:
            cost = abs(p - t) if error == "l1" else (p - t) ** 2
        total += w * min(max(math.log(1 + x), 1e-3), 10) * cost
        count += w
    return total / count


@given(st.integers(0, 1000), st.sampled_from(["bce", "l1", "l2"]), st.booleans())
def test_mask_loss_equals_the_loop(seed: int, error: str, gaps: bool) -> None:
    parts = normal(2, 3, 4, 5, seed=seed).abs() * torch.tensor([1e-5, 1.0, 1e5, 1e3, 10.0])
    mixture = parts.sum(1, keepdim=True)
    target = (parts > 0.5 * mixture).double() if error == "bce" else (parts / mixture).clamp(0, 5)
    predicted = normal(2, 3, 4, 5, seed=seed + 1)
    recorded = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    if gaps:
        recorded[1, ..., 3:] = False
    value = mask_loss(predicted, target, mixture=mixture, error=error, weight=recorded if gaps else None)
    slow = slow_mask_loss(predicted, target, mixture, recorded, error)
    assert float(value) == pytest.approx(slow, rel=1e-9)


def test_energy_weights_are_those_of_the_sound_of_pixels() -> None:
    predicted, target = normal(2, 1, 4, 5), (normal(2, 1, 4, 5, seed=1) > 0).double()
    loud = normal(2, 1, 4, 5, seed=2).abs() * 50
    published = F.binary_cross_entropy(predicted.sigmoid(), target, weight=loud.log1p().clamp(1e-3, 10))
    assert torch.allclose(mask_loss(predicted, target, mixture=loud), published)
    silence = mask_loss(predicted, target, mixture=torch.zeros(2, 1, 1, 1))
    assert torch.allclose(silence, 1e-3 * mask_loss(predicted, target))
    for objective, error in ((l1, "l1"), (l2, "l2")):
        assert torch.allclose(mask_loss(predicted, target, error=error), objective(predicted, target))


def test_mask_loss_is_finite_where_masks_are_sure_or_missing() -> None:
    target = torch.tensor([[0.0, 1.0, math.nan]])
    z = torch.tensor([[1e4, -1e4, math.nan]], requires_grad=True)
    loud = torch.tensor([[1.0, 1e30, math.nan]])
    value = mask_loss(z, target, mixture=loud, weight=torch.tensor([[True, True, False]]))
    assert value.isfinite()
    assert torch.autograd.grad(value, z)[0].isfinite().all()
    loss = lambda m: mask_loss(m, target[:, :2], mixture=loud[:, :2].double())  # noqa: E731
    assert torch.autograd.gradcheck(loss, (normal(1, 2).requires_grad_(),))


# ------------------------------------------------------------------------------------------------------------ spectra
def slow_magnitudes(wave: list[float], size: int, hop: int, window: int, floor: float) -> list[list[float]]:
    """Frames [N][F] by the sum of the discrete Fourier transform, zeros beside the wave."""
    shape = [0.5 - 0.5 * math.cos(2 * math.pi * t / window) for t in range(window)]
    shape = [0.0] * ((size - window) // 2) + shape
    frames = []
    for start in range(0, len(wave), hop):
        bins = []
        for f in range(size // 2 + 1):
            total = 0j
            for t, w in enumerate(shape):
                at = start - size // 2 + t
                if 0 <= at < len(wave):
                    total += wave[at] * w * cmath.exp(-2j * math.pi * f * t / size)
            bins.append(math.sqrt(max(abs(total) ** 2, floor)))
        frames.append(bins)
    return frames


def slow_spectral(x: Tensor, y: Tensor, sizes: tuple[int, ...], hops: list[int], windows: tuple[int, ...]) -> float:
    total = 0.0
    for size, hop, window in zip(sizes, hops, windows, strict=True):
        for one, other in zip(x.tolist(), y.tolist(), strict=True):
            p, q = ([m for frame in slow_magnitudes(w, size, hop, window, 1e-7) for m in frame] for w in (one, other))
            gap = math.sqrt(sum((i - j) ** 2 for i, j in zip(p, q, strict=True)))
            logs = sum(abs(math.log(i) - math.log(j)) for i, j in zip(p, q, strict=True)) / len(p)
            total += (gap / math.sqrt(sum(j * j for j in q)) + logs) / len(x) / len(sizes)
    return total


@pytest.mark.parametrize(("length", "windows"), [(20, (8, 12)), (3, (8, 12)), (1, (8, 12)), (20, (4, 8))])
def test_spectral_equals_the_loop(length: int, windows: tuple[int, ...]) -> None:
    x, y = normal(2, length), normal(2, length, seed=1)
    slow = slow_spectral(x, y, (8, 12), [2, 3], windows)
    assert float(spectral(x, y, sizes=(8, 12), windows=windows)) == pytest.approx(slow, abs=1e-8)
    one = slow_spectral(x, y, (8,), [5], (8,))
    assert float(spectral(x, y, sizes=(8,), hops=(5,))) == pytest.approx(one, abs=1e-8)


def test_spectral_is_blind_to_phase_and_sees_level_and_pitch() -> None:
    time = torch.arange(4000, dtype=torch.float64) / 8000
    tone = torch.sin(2 * math.pi * 440 * time)[None]
    assert float(spectral(tone, tone)) == 0
    assert float(spectral(-tone, tone)) == pytest.approx(0, abs=1e-12)
    assert float(spectral(2 * tone, tone, magnitude=0)) == pytest.approx(1, abs=1e-3)  # ‖2Y - Y‖ = ‖Y‖
    other = torch.sin(2 * math.pi * 660 * time)[None]
    noise = tone + 0.01 * normal(1, 4000)
    assert spectral(noise, tone, convergence=1, magnitude=0) < spectral(other, tone, convergence=1, magnitude=0)
    loud, soft = normal(1, 4000), 0.5 * normal(1, 4000)
    # of noise every bin stands above the floor: half the level is ln 2 less everywhere
    assert float(spectral(soft, loud, convergence=0)) == pytest.approx(math.log(2), rel=1e-6)
    assert torch.allclose(spectral(soft, loud, convergence=0, magnitude=2), 2 * spectral(soft, loud, convergence=0))


def test_padding_and_what_stands_in_a_gap_change_nothing() -> None:
    x, y = normal(1, 1000), normal(1, 1000, seed=1)
    alone = spectral(x, y)
    long = torch.full((3, 2500), math.nan, dtype=torch.float64)
    mask = torch.zeros(3, 2500, dtype=torch.bool)
    mask[0, :1000] = mask[2, :1000] = True  # the second clip was not recorded at all
    p, q = long.clone(), long.clone()
    p[[0, 2], :1000], q[[0, 2], :1000] = x, y
    p.requires_grad_()
    value = spectral(p, q, mask=mask)
    assert torch.allclose(value, alone)
    (gradient,) = torch.autograd.grad(value, p)
    assert gradient.isfinite().all()
    assert bool((gradient[~mask] == 0).all())


def test_spectral_gradients_and_silence() -> None:
    x, y = normal(2, 16).requires_grad_(), normal(2, 16, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, q: spectral(p, q, sizes=(8,)), (x, y))
    silent, sound = torch.zeros(2, 600, requires_grad=True), normal(2, 600).float()
    for value in (spectral(silent, sound), spectral(silent, silent.detach()), spectral(sound + silent, 0 * sound)):
        assert value.isfinite()
        assert torch.autograd.grad(value, silent)[0].isfinite().all()


# ----------------------------------------------------------------------------------------------------------- contract
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_even_under_autocast(kind: torch.dtype) -> None:
    x, y = normal(2, 300).to(kind), normal(2, 300, seed=1).to(kind)
    for objective in (*ERRORS, spectral):
        with torch.autocast("cpu", torch.bfloat16):
            value = objective(x, y)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(objective(x.double(), y.double())), rel=1e-5)
    assert l1(torch.zeros(2, 2, dtype=torch.uint8), torch.full((2, 2), 255, dtype=torch.uint8)) == 255  # not 1


def test_what_does_not_fit_is_named() -> None:
    x = normal(2, 3, 2)
    for objective in (*ERRORS, mask_loss):
        with pytest.raises(BatchError, match="one shape"):
            objective(x, x[:1])
        with pytest.raises(BatchError, match="with values"):
            objective(x[:0], x[:0])
        with pytest.raises(BatchError, match="real"):
            objective(torch.complex(x, x), torch.complex(x, x))
        half = x.abs().clamp(max=1)
        with pytest.raises(BatchError, match="of the rank"):
            objective(half, half, weight=torch.ones(2, 3))
        with pytest.raises(BatchError, match="sizes 1 or equal"):
            objective(half, half, weight=torch.ones(2, 3, 5))
        with pytest.raises(BatchError, match="zero everywhere"):
            objective(half, half, weight=torch.zeros(2, 3, 1))
        for bad in (-1.0, math.nan, math.inf):
            with pytest.raises(BatchError, match="not negative"):
                objective(half, half, weight=torch.full((2, 3, 1), bad))
    with pytest.raises(ConfigError, match="epsilon"):
        charbonnier(x, x, epsilon=0.0)
    with pytest.raises(ConfigError, match="error"):
        mask_loss(x, x, error="kl")  # type: ignore[arg-type]
    with pytest.raises(BatchError, match=r"\[0, 1\]"):
        mask_loss(x, x + 2)
    with pytest.raises(BatchError, match="magnitudes"):
        mask_loss(x, x, error="l1", mixture=-x.abs())
    with pytest.raises(BatchError, match="mixture"):
        mask_loss(x, x, error="l1", mixture=x[0])


def test_what_spectra_refuse_is_named() -> None:
    x = normal(2, 30)
    with pytest.raises(BatchError, match=r"waves \[B, L\]"):
        spectral(x[0], x[0])
    with pytest.raises(BatchError, match="bool mask"):
        spectral(x, x, mask=torch.ones(2, 30))
    with pytest.raises(BatchError, match="one shape"):
        spectral(x, x[:, :20])
    with pytest.raises(BatchError, match="with values"):
        spectral(x[:, :0], x[:, :0])
    with pytest.raises(BatchError, match="zero everywhere"):
        spectral(x, x, mask=torch.zeros(2, 30, dtype=torch.bool))
    off_grid = torch.zeros(2, 30, dtype=torch.bool)
    off_grid[:, 1] = True
    with pytest.raises(BatchError, match="grid of hop 2"):
        spectral(x, x, sizes=(8,), mask=off_grid)
    for sizes, hops, windows in (((), None, None), ((8,), (2, 3), None), ((1,), None, None), ((8,), (0,), None)):
        with pytest.raises(ConfigError):
            spectral(x, x, sizes=sizes, hops=hops, windows=windows)
    with pytest.raises(ConfigError, match="window"):
        spectral(x, x, sizes=(8,), windows=(9,))
    with pytest.raises(ConfigError, match="magnitude"):
        spectral(x, x, magnitude=-1.0)
    with pytest.raises(ConfigError, match="floor"):
        spectral(x, x, floor=0.0)
