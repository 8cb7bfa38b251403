"""Between two players: freezing, balancing, a fixed classifier, and spectral norm that bounds what it should."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from avcl.nn.discriminators import PatchDiscriminator, SequenceDiscriminator, VectorDiscriminator, still
from avcl.nn.judging import Condition
from avcl.nn.players import FrozenClassifier, GradientBalance, frozen, normalized
from avcl.nn.wave_discriminators import PeriodDiscriminator, WaveDiscriminator
from avcl.objectives.adversarial import gan_discriminator, gan_generator, gradient_penalty
from avcl.types import Stream


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def number(x: torch.Tensor) -> float:
    return float(x.detach())


def whole(data: torch.Tensor, rate: float = 8.0) -> Stream:
    return Stream(data, torch.ones(data.shape[:2], dtype=torch.bool), rate)


# ------------------------------------------------------------------------------------------------------------- players
def test_frozen_keeps_the_graph_to_the_input() -> None:
    torch.manual_seed(0)
    disc = VectorDiscriminator(4, hidden=(8,), norm="spectral")
    next(disc.parameters()).requires_grad_(False)
    before = [p.requires_grad for p in disc.parameters()]
    made = draw(5, 4).requires_grad_()
    real = gan_discriminator(disc(draw(5, 4, seed=1)).mean, disc(made.detach()).mean)
    with frozen(disc), frozen(disc):
        assert not any(p.requires_grad for p in disc.parameters())
        fooled = gan_generator(disc(made).mean)
    assert [p.requires_grad for p in disc.parameters()] == before
    fooled.backward()
    assert made.grad.abs().sum() > 0
    assert all(p.grad is None for p in disc.parameters())
    real.backward()
    assert sum(p.grad is not None for p in disc.parameters()) == len(before) - 1
    with pytest.raises(ZeroDivisionError), frozen(disc):
        raise ZeroDivisionError
    assert [p.requires_grad for p in disc.parameters()] == before


def test_frozen_under_autocast() -> None:
    """Casts that autocast remembers from the open pass must not bring gradients into the frozen one, or lose them."""
    torch.manual_seed(0)
    disc = VectorDiscriminator(4, hidden=(8,))
    x, made = draw(5, 4), draw(5, 4, seed=1).requires_grad_()
    gradients = {}
    for order in ("open first", "frozen first", "alone"):
        disc.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if order == "frozen first":
                with frozen(disc):
                    fooled = gan_generator(disc(made).mean)
            loss = gan_discriminator(disc(x).mean, disc(made.detach()).mean)
            if order == "open first":
                with frozen(disc):
                    fooled = gan_generator(disc(made).mean)
        if order != "alone":
            fooled.backward()
            assert all(p.grad is None for p in disc.parameters())
        loss.backward()
        gradients[order] = [p.grad.clone() for p in disc.parameters()]
    for order in ("open first", "frozen first"):
        for one, two in zip(gradients[order], gradients["alone"], strict=True):
            assert torch.equal(one, two)


def test_gradient_balance() -> None:
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    rec, adv = (3 * w).sum(), (torch.tensor([0.6, 0.8]) * w).sum()  # norms 3 √2 and 1
    balance = GradientBalance(eps=1e-12)
    weighted = balance(rec, adv, w)
    assert number(weighted) == pytest.approx(3 * math.sqrt(2) * number(adv), rel=1e-5)
    weighted.backward()
    assert number(w.grad.norm()) == pytest.approx(3 * math.sqrt(2), rel=1e-5)
    with torch.no_grad():  # in evaluation the last value is used
        assert number(balance(rec, adv, w)) == pytest.approx(number(weighted))
    slow = GradientBalance(decay=0.5, scale=0.1, eps=1e-12)
    values = [number(slow((3 * w).sum(), (torch.tensor([0.6, 0.8]) * w).sum(), w)) for _ in range(2)]
    full = 3 * math.sqrt(2) * number(adv)
    assert values == pytest.approx([0.05 * full, 0.075 * full], rel=1e-5)
    assert "value" in slow.state_dict()


def test_gradient_balance_may_be_asked_twice_in_one_graph() -> None:
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    balance = GradientBalance()
    first = balance((3 * w).sum(), w.square().sum(), w)
    second = balance((5 * w).sum(), w.square().sum(), w)
    (first + second).backward()  # the buffer moved in between
    assert torch.isfinite(w.grad).all()


# ------------------------------------------------------------------------------------------------------- spectral norm
def spectral_value(layer: nn.Module) -> float:
    return number(torch.linalg.matrix_norm(layer.weight.detach().float().flatten(1), 2))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (lambda: nn.Linear(9, 7), draw(4, 9)),
        (lambda: nn.Conv1d(3, 6, 5), draw(2, 3, 20)),
        (lambda: nn.Conv2d(3, 8, 3), draw(2, 3, 9, 9)),
    ],
)
def test_spectral_norm_converges_and_is_saved(layer, x) -> None:
    torch.manual_seed(0)
    made = normalized(layer(), "spectral")
    with torch.no_grad():
        made.parametrizations["weight"].original.mul_(10)
    for _ in range(60):
        made(x)
    made.eval()
    assert spectral_value(made) == pytest.approx(1.0, abs=2e-3)
    buffers = {k: v.clone() for k, v in made.state_dict().items()}
    made(x)
    assert all(torch.equal(v, made.state_dict()[k]) for k, v in buffers.items())  # evaluation does not move them
    other = normalized(layer(), "spectral").eval()
    other.load_state_dict(buffers)
    assert torch.equal(other(x), made(x))
    assert torch.equal(copy.deepcopy(made)(x), made(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.weight, other.weight)
        assert made.weight.dtype == torch.float32
    half = copy.deepcopy(made).bfloat16().train()
    for _ in range(20):
        half(x.bfloat16())
    assert spectral_value(half) == pytest.approx(1.0, abs=0.03)
    made.train()
    made(x).sum().backward()
    assert made.parametrizations["weight"].original.grad is not None


def test_a_spectral_discriminator_is_lipschitz() -> None:
    torch.manual_seed(0)
    disc = VectorDiscriminator(6, hidden=(16, 16), norm="spectral")
    with torch.no_grad():
        for p in disc.parameters():
            p.mul_(5)
    for _ in range(50):
        disc(draw(8, 6))
    disc.eval()
    x, y = draw(500, 6, seed=1), draw(500, 6, seed=2)
    slope = (disc(x).mean - disc(y).mean).abs() / (x - y).norm(dim=1)
    assert number(slope.max()) <= 1.001


def test_a_gradient_penalty_through_each() -> None:
    """Second derivatives, with and without spectral norm; a critic takes its item's mean."""
    for disc, shape, made in (
        (VectorDiscriminator(5), (3, 5), lambda x: x),
        (VectorDiscriminator(5, norm="spectral"), (3, 5), lambda x: x),
        (PatchDiscriminator(2, widths=(4, 4), kernel=3, strides=(2, 2)), (3, 2, 8, 8), still),
        (SequenceDiscriminator(5, widths=(4,), strides=(2,)), (3, 6, 5), whole),
        (WaveDiscriminator(1, widths=(4, 8, 8), strides=(4, 2), per_group=2), (3, 64, 1), whole),
        (PeriodDiscriminator(3, widths=(4, 4)), (3, 31, 1), whole),
    ):
        real, fake = draw(*shape), draw(*shape, seed=1)
        gradient_penalty(lambda x, disc=disc, made=made: disc(made(x)).mean, real, fake).backward()
        weights = [p for name, p in disc.named_parameters() if "bias" not in name]
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in weights)


def test_weight_norm_is_a_reparametrization() -> None:
    torch.manual_seed(0)
    layer = nn.Conv1d(2, 3, 5)
    before = layer.weight.detach().clone()
    torch.testing.assert_close(normalized(layer, "weight").weight.detach(), before)


def test_the_prediction_of_a_classifier() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))
    judge = FrozenClassifier(net, temperature=2.0).train()
    assert not net.training
    x = draw(5, 4).requires_grad_()
    assert torch.equal(judge(x), judge(x))
    torch.testing.assert_close(judge(x), (judge.logits(x) / 2).softmax(1))
    disc = VectorDiscriminator(4, hidden=(8,), condition=Condition("vector", 3, "head", mix=8))
    gan_generator(disc(x, judge(x)).mean).backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
