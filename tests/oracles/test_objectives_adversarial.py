"""Adversarial objectives against the worked values, loops in Python floats, and what is special to each."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from avcl.errors import BatchError, ConfigError
from avcl.objectives.adversarial import (
    adversarial_weight,
    gan_discriminator,
    gan_generator,
    gradient_penalty,
    hinge_gan_discriminator,
    hinge_gan_generator,
    lsgan_discriminator,
    lsgan_generator,
    modality_confusion,
    modality_discriminator,
    reverse_gradient,
    score_gan_discriminator,
    score_gan_generator,
    wgan_critic,
    wgan_generator,
)
from avcl.objectives.conditional import (
    auxiliary_classifier,
    matching_discriminator,
    projection_logits,
    semi_supervised_discriminator,
    semi_supervised_generator,
)

REAL = torch.tensor([2.0, 0.5], dtype=torch.float64)
FAKE = torch.tensor([-1.0, 0.3], dtype=torch.float64)
LOGITS = torch.tensor([[1, -1], [0.2, 0.4], [0, 2], [-1, 0.5]], dtype=torch.float64)
MODALITY = torch.tensor([0, 0, 1, 1])

Pair = Callable[[Tensor, Tensor], Tensor]
PAIRS: list[Pair] = [
    gan_discriminator,
    lsgan_discriminator,
    hinge_gan_discriminator,
    wgan_critic,
    score_gan_discriminator,
    lambda r, f: matching_discriminator(r, f, f),
]
SINGLES: list[Callable[[Tensor], Tensor]] = [
    gan_generator,
    lambda f: gan_generator(f, saturating=True),
    lsgan_generator,
    hinge_gan_generator,
    wgan_generator,
    score_gan_generator,
]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# -------------------------------------------------------------------------------------------------------- worked values
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (gan_discriminator(REAL, FAKE), 0.884311),
        (gan_generator(FAKE), 0.933808),
        (gan_generator(FAKE, saturating=True), -0.583808),
        (lsgan_discriminator(REAL, FAKE), 0.585000),
        (lsgan_generator(FAKE), 1.122500),
        (hinge_gan_discriminator(REAL, FAKE), 0.9),
        (wgan_critic(REAL, FAKE), -1.6),
        (modality_discriminator(LOGITS, MODALITY), 0.313352),
        (modality_confusion(LOGITS, MODALITY, target="swapped"), 1.638352),
        (modality_confusion(LOGITS, MODALITY), 0.975852),
        (modality_confusion(LOGITS), 0.975852),
    ],
)
def test_worked_values(value: Tensor, expected: float) -> None:
    assert float(value) == pytest.approx(expected, abs=1e-6)


def test_worked_projection() -> None:
    features = torch.tensor([[1, 0.5], [0.2, -1]], dtype=torch.float64)
    weight = torch.tensor([0.3, -0.2], dtype=torch.float64)
    logits = projection_logits(features, weight, 0.1, torch.eye(2, dtype=torch.float64))
    assert logits.tolist() == pytest.approx([1.3, -0.64])
    assert float(gan_generator(logits)) == pytest.approx(0.652252, abs=1e-6)  # mean softplus(-l): wants "real"
    learned = projection_logits(features, weight, torch.tensor([0.1]), torch.eye(2))
    assert torch.allclose(learned, logits)


def test_worked_penalty_of_a_linear_critic() -> None:
    w = torch.tensor([3.0, 4.0], dtype=torch.float64)
    penalty = gradient_penalty(lambda x: x @ w, drawn(5, 2), drawn(5, 2, seed=1))
    assert float(penalty) == pytest.approx(16.0, abs=1e-9)
    assert float(10 * penalty) == pytest.approx(160.0, abs=1e-8)
    assert float(gradient_penalty(lambda x: x @ w, drawn(5, 2), drawn(5, 2, seed=1), target=0)) == pytest.approx(25.0)


def test_a_player_that_knows_nothing_pays_the_chance_value() -> None:
    zero = torch.zeros(4)
    assert float(gan_discriminator(zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(gan_generator(zero)) == pytest.approx(math.log(2))
    assert float(gan_generator(zero, saturating=True)) == pytest.approx(-math.log(2))
    assert float(matching_discriminator(zero, zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(hinge_gan_discriminator(zero, zero)) == 2.0
    assert float(score_gan_discriminator(zero, zero)) == 2.0
    for size in (2, 3):
        logits, modality = torch.zeros(6, size), torch.arange(6) % size
        values = [modality_discriminator(logits, modality), modality_confusion(logits, modality)]
        values.append(modality_confusion(logits, modality, target="swapped"))
        assert [float(x) for x in values] == pytest.approx([math.log(size)] * 3)


# ---------------------------------------------------------------------------------------------------------- loop oracle
def test_games_equal_their_loops() -> None:
    real, fake, other = 2 * drawn(3, 4), 2 * drawn(5, seed=1), drawn(2, 2, seed=2)  # patches, items: any shapes
    r, f, o = (x.flatten().tolist() for x in (real, fake, other))
    scored = [mean([-math.log(sigmoid(x)) for x in r]), mean([-math.log(1 - sigmoid(x)) for x in f])]
    expected = {
        gan_discriminator: sum(scored),
        lsgan_discriminator: mean([(x - 1) ** 2 / 2 for x in r]) + mean([x * x / 2 for x in f]),
        hinge_gan_discriminator: mean([max(0, 1 - x) for x in r]) + mean([max(0, 1 + x) for x in f]),
        wgan_critic: mean(f) - mean(r),
        score_gan_discriminator: mean([abs(1 - x) for x in r]) + mean([abs(-1 - x) for x in f]),
    }
    for function, value in expected.items():
        assert float(function(real, fake)) == pytest.approx(value, rel=1e-10)
    alone = [
        mean([-math.log(sigmoid(x)) for x in f]),
        mean([math.log(1 - sigmoid(x)) for x in f]),
        mean([(x - 1) ** 2 / 2 for x in f]),
        -mean(f),
        -mean(f),
        mean([abs(1 - x) for x in f]),
    ]
    for single, value in zip(SINGLES, alone, strict=True):
        assert float(single(fake)) == pytest.approx(value, rel=1e-10)
    wrong = mean([-math.log(1 - sigmoid(x)) for x in o])
    assert float(matching_discriminator(real, fake, other)) == pytest.approx(scored[0] + (scored[1] + wrong) / 2)


def test_original_game_is_the_cross_entropy_of_torch() -> None:
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    peer = 2 * binary_cross_entropy_with_logits(torch.cat([REAL, FAKE]), labels)
    assert torch.allclose(gan_discriminator(REAL, FAKE), peer)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_modality_losses_equal_their_loops(size: int) -> None:
    logits, modality = drawn(7, size), torch.arange(7) % size
    shares = [softmax(row) for row in logits.tolist()]
    named, uniform, swapped = [], [], []
    for row, own in zip(shares, modality.tolist(), strict=True):
        named.append(-math.log(row[own]))
        uniform.append(-mean([math.log(p) for p in row]))
        swapped.append(-mean([math.log(p) for m, p in enumerate(row) if m != own]))
    assert float(modality_discriminator(logits, modality)) == pytest.approx(mean(named), rel=1e-10)
    assert float(modality_confusion(logits, modality)) == pytest.approx(mean(uniform), rel=1e-10)
    assert float(modality_confusion(logits, modality, target="swapped")) == pytest.approx(mean(swapped), rel=1e-10)
    if size == 2:
        flipped = modality_discriminator(logits, 1 - modality)
        assert torch.allclose(modality_confusion(logits, modality, target="swapped"), flipped)
    assert float(modality_confusion(logits)) >= math.log(size)


def test_class_heads_equal_their_loops() -> None:
    real, fake, label, fake_label = drawn(4, 3), drawn(2, 3, seed=1), torch.tensor([0, 2, 1, 1]), torch.tensor([2, 0])
    both = [(real, label), (fake, fake_label)]
    expected = sum(mean([-math.log(softmax(r)[y]) for r, y in zip(x.tolist(), t, strict=True)]) for x, t in both)
    assert float(auxiliary_classifier(real, fake, label, fake_label)) == pytest.approx(expected, rel=1e-10)
    assert torch.allclose(auxiliary_classifier(real, real, label), 2 * cross_entropy(real, label))


def test_semi_supervised_game_equals_its_loop() -> None:
    labeled, unlabeled, fake, label = drawn(3, 4), drawn(5, 4, seed=1), drawn(2, 4, seed=2), torch.tensor([0, 2, 1])
    known = [-math.log(softmax(row[:-1])[y]) for row, y in zip(labeled.tolist(), label.tolist(), strict=True)]
    real = [-math.log(1 - softmax(row)[-1]) for row in unlabeled.tolist()]
    made = [-math.log(softmax(row)[-1]) for row in fake.tolist()]
    value = semi_supervised_discriminator(labeled, label, unlabeled, fake)
    assert float(value) == pytest.approx(mean(known) + mean(real) + mean(made), rel=1e-10)
    wanted = [-math.log(softmax(row)[y]) for row, y in zip(fake.tolist(), (1, 0), strict=True)]
    assert float(semi_supervised_generator(fake, torch.tensor([1, 0]))) == pytest.approx(mean(wanted), rel=1e-10)


def test_mismatched_pairs_cost_a_discriminator_that_ignores_its_condition() -> None:
    real, fake = torch.full((8,), 6.0), torch.full((8,), -6.0)
    assert float(matching_discriminator(real, fake, fake)) < float(matching_discriminator(real, fake, real))


# ----------------------------------------------------------------------------------------------------- gradient penalty
def slope_of_net(x: Tensor, w: Tensor, u: Tensor) -> list[list[float]]:
    """∇_x Σ_h u_h tanh(w_h · x), one number at a time."""
    return [
        [
            sum(
                float(u[h]) * (1 - math.tanh(sum(float(p) * float(q) for p, q in zip(row, w[h], strict=True))) ** 2)
                * float(w[h, d])
                for h in range(len(u))
            )
            for d in range(x.shape[1])
        ]
        for row in x
    ]  # fmt: skip


def test_penalty_equals_its_loop_at_the_points_between() -> None:
    w, u, real, fake = drawn(4, 3), drawn(4, seed=1), drawn(6, 3, seed=2), drawn(6, 3, seed=3)
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return torch.tanh(x @ w.T) @ u

    value = gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(5), target=0.7)
    (between,) = seen
    share = ((between - fake) / (real - fake)).mean(1, keepdim=True)
    assert ((share >= 0) & (share <= 1)).all()
    assert torch.allclose(between, share * real + (1 - share) * fake)
    assert share.std() > 0.1  # one ε for each item
    slow = mean([(math.sqrt(sum(g * g for g in row)) - 0.7) ** 2 for row in slope_of_net(between, w, u)])
    assert value.item() == pytest.approx(slow, rel=1e-9)
    assert value.item() == gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(5), target=0.7)


def test_penalty_is_differentiable_twice_through_the_critic() -> None:
    w, u = drawn(4, 3).requires_grad_(), drawn(4, seed=1).requires_grad_()
    real, fake = drawn(2, 3, seed=2), drawn(2, 3, seed=3)

    def penalty(w: Tensor, u: Tensor) -> Tensor:
        seeded = torch.Generator().manual_seed(0)
        return gradient_penalty(lambda x: torch.tanh(x @ w.T) @ u, real, fake, generator=seeded)

    assert torch.autograd.gradcheck(penalty, (w, u))
    assert torch.autograd.gradgradcheck(penalty, (w, u))


def test_penalty_of_a_flat_critic_is_finite() -> None:
    w = torch.zeros(3, requires_grad=True)
    x = drawn(4, 3).float()
    value = gradient_penalty(lambda x: x @ w, x, x)
    assert value.item() == 1.0
    (gradient,) = torch.autograd.grad(value, w, create_graph=True)
    assert (gradient == 0).all()


def test_penalty_takes_maps_and_patches_and_gives_the_data_no_gradient() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.LeakyReLU(0.2), torch.nn.Conv2d(4, 1, 3))
    real, fake = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8, requires_grad=True)
    value = gradient_penalty(net, real, fake)
    value.backward()
    assert fake.grad is None
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in list(net.parameters())[:1])
    with torch.no_grad():
        assert not gradient_penalty(net, real, fake).requires_grad
    half = gradient_penalty(lambda x: net(x.float()), real.bfloat16(), fake.bfloat16())
    assert half.dtype == torch.float32
    assert torch.isfinite(half)


# ------------------------------------------------------------------------------------------------------------- reversal
def test_reversal_is_the_identity_with_a_turned_gradient() -> None:
    x = drawn(3, 2).requires_grad_()
    for strength in (0.0, 0.25, 1.0, 3):
        turned = reverse_gradient(x, strength)
        assert torch.equal(turned, x)
        (gradient,) = torch.autograd.grad((turned**2).sum(), x)
        assert torch.allclose(gradient, -strength * 2 * x)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda y: reverse_gradient(y, 1.0), x)  # a gradient that is none of the function
    assert torch.autograd.gradcheck(lambda y: reverse_gradient(reverse_gradient(y, 1.0), 1.0), x)
    assert torch.autograd.gradgradcheck(lambda y: reverse_gradient(reverse_gradient(y, 2.0), 0.5) ** 3, x)


def test_reversal_trains_both_players_with_one_loss() -> None:
    codes, modality = drawn(8, 3).requires_grad_(), torch.arange(8) % 2
    weight = drawn(2, 3, seed=1).requires_grad_()
    plain = torch.autograd.grad(modality_discriminator(codes @ weight.T, modality), (codes, weight))
    turned = torch.autograd.grad(
        modality_discriminator(reverse_gradient(codes, 0.5) @ weight.T, modality), (codes, weight)
    )
    assert torch.allclose(turned[0], -0.5 * plain[0])
    assert torch.allclose(turned[1], plain[1])


def test_reversal_in_half_precision_keeps_the_type() -> None:
    x = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = torch.autograd.grad(reverse_gradient(x, 0.5).sum(), x)
    assert gradient.dtype == torch.bfloat16
    assert (gradient == -0.5).all()


# ------------------------------------------------------------------------------------------------------ adaptive weight
def test_adaptive_weight_equals_the_ratio_of_gradients() -> None:
    layer = drawn(2, 3).requires_grad_()
    inputs = drawn(5, 3, seed=1)
    out = inputs @ layer.T
    reconstruction, adversarial = out.square().mean(), 0.01 * out.tanh().sum()
    norms = [float(torch.autograd.grad(x, layer, retain_graph=True)[0].norm()) for x in (reconstruction, adversarial)]
    weight = adversarial_weight(reconstruction, adversarial, layer)
    assert not weight.requires_grad
    assert float(weight) == pytest.approx(norms[0] / (norms[1] + 1e-6), rel=1e-9)
    (reconstruction + weight * adversarial).backward()  # the graph is still there
    scaled = adversarial_weight((inputs @ layer.T).square().mean(), 1000 * (inputs @ layer.T).tanh().sum(), layer)
    assert float(scaled) == pytest.approx(norms[0] / (norms[1] * 1e5 + 1e-6), rel=1e-9)


def test_adaptive_weight_is_limited_where_the_adversary_is_silent() -> None:
    layer = torch.ones(3, requires_grad=True)
    assert float(adversarial_weight(layer.sum(), 0 * layer.sum(), layer)) == 1e4
    assert float(adversarial_weight(layer.sum(), 0 * layer.sum(), layer, limit=7.0)) == 7.0
    with pytest.raises(BatchError, match="adversarial loss does not depend"):
        adversarial_weight(layer.sum(), torch.ones(1, requires_grad=True).sum(), layer)
    with pytest.raises(BatchError, match="reconstruction loss does not depend"):
        adversarial_weight(torch.tensor(1.0), layer.sum(), layer)
    with pytest.raises(BatchError, match="scalar"):
        adversarial_weight(layer, layer.sum(), layer)
    with pytest.raises(ConfigError, match="eps"):
        adversarial_weight(layer.sum(), layer.sum(), layer, eps=0.0)
    with pytest.raises(ConfigError, match="limit"):
        adversarial_weight(layer.sum(), layer.sum(), layer, limit=0.0)


# ---------------------------------------------------------------------------------------------------- common properties
def test_gradients() -> None:
    real, fake = (x.requires_grad_() for x in drawn(2, 3, 2).unbind())
    label = torch.tensor([0, 1, 1])
    for pair in PAIRS:
        assert torch.autograd.gradcheck(pair, (real, fake))
    for single in SINGLES:
        assert torch.autograd.gradcheck(single, (fake,))
    wide = drawn(3, 4, seed=3).requires_grad_()
    heads: list[Callable[[Tensor], Tensor]] = [
        lambda x: modality_discriminator(x, label),
        lambda x: modality_confusion(x, label),
        lambda x: modality_confusion(x, label, target="swapped"),
        lambda x: auxiliary_classifier(x, x * 0.5, label),
        lambda x: semi_supervised_discriminator(x, label, x, x * 0.5),
        lambda x: semi_supervised_generator(x, label),
    ]
    for head in heads:
        assert torch.autograd.gradcheck(head, (wide,))
    bias = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    weight = drawn(2, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(projection_logits, (real, weight, bias, fake))


def test_order_does_not_matter() -> None:
    order = torch.tensor([2, 0, 3, 1])
    real, fake = drawn(2, 4)
    for pair in PAIRS:
        assert torch.allclose(pair(real[order], fake), pair(real, fake))
        assert torch.allclose(pair(real, fake[order]), pair(real, fake))
    for target in ("uniform", "swapped"):
        turned = modality_confusion(LOGITS[order], MODALITY[order], target=target)  # type: ignore[arg-type]
        assert torch.allclose(turned, modality_confusion(LOGITS, MODALITY, target=target))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_huge_logits_stay_finite(kind: torch.dtype) -> None:
    for real, fake in ((1e4, -1e4), (-1e4, 1e4), (1e4, 1e4), (0.0, 0.0)):
        r = torch.full((3,), real, dtype=kind, requires_grad=True)
        f = torch.full((3,), fake, dtype=kind, requires_grad=True)
        wide = torch.stack([r, f, r * 0], 1)
        label = torch.tensor([0, 1, 1])
        values = [pair(r, f) + 0 * r.float().sum() for pair in PAIRS] + [single(f) for single in SINGLES]
        values += [modality_discriminator(wide, label), modality_confusion(wide)]
        values += [modality_confusion(wide, label, target="swapped"), auxiliary_classifier(wide, wide, label)]
        values += [semi_supervised_discriminator(wide, label, wide, wide), semi_supervised_generator(wide, label)]
        for value in values:
            assert value.dtype == torch.float32
            assert torch.isfinite(value)
            assert torch.isfinite(torch.autograd.grad(value, f, retain_graph=True)[0]).all()


def test_projection_under_autocast_keeps_float32() -> None:
    x, w, e = drawn(4, 8).float(), drawn(8, seed=1).float(), drawn(4, 8, seed=2).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = projection_logits(x, w, 0.1, e)
    assert torch.equal(inside, projection_logits(x, w, 0.1, e))


# --------------------------------------------------------------------------------------------------------------- errors
def test_what_does_not_fit_is_named() -> None:
    empty = torch.zeros(0)
    for pair in PAIRS:
        with pytest.raises(BatchError, match="at least one value"):
            pair(REAL, empty)
    for single in SINGLES:
        with pytest.raises(BatchError, match="at least one value"):
            single(empty)
    with pytest.raises(ConfigError, match="strength"):
        reverse_gradient(REAL, -1.0)
    with pytest.raises(BatchError, match="one shape"):
        gradient_penalty(lambda x: x, drawn(3, 2), drawn(2, 2))
    with pytest.raises(ConfigError, match="target"):
        gradient_penalty(lambda x: x, drawn(3, 2), drawn(3, 2), target=-1.0)
    for constant in (torch.ones(3), torch.ones(3, requires_grad=True)):
        with pytest.raises(BatchError, match="depend on its input"):
            gradient_penalty(lambda _, c=constant: c * 1, drawn(3, 2), drawn(3, 2))


def test_labels_that_do_not_fit_are_named() -> None:
    with pytest.raises(BatchError, match="N, M"):
        modality_discriminator(LOGITS[:, :1], MODALITY)
    with pytest.raises(BatchError, match="N, M"):
        modality_confusion(LOGITS[:0])
    with pytest.raises(BatchError, match=r"not in 0\.\.1"):
        modality_discriminator(LOGITS, MODALITY + 1)
    with pytest.raises(BatchError, match="integer labels"):
        modality_discriminator(LOGITS, MODALITY.double())
    with pytest.raises(BatchError, match="needs the modality"):
        modality_confusion(LOGITS, target="swapped")
    with pytest.raises(ConfigError, match="target"):
        modality_confusion(LOGITS, MODALITY, target="flipped")  # type: ignore[arg-type]
    with pytest.raises(BatchError, match="same classes"):
        auxiliary_classifier(drawn(4, 2), drawn(4, 3), MODALITY)
    with pytest.raises(BatchError, match="projection_logits"):
        projection_logits(drawn(4, 2), drawn(3), 0.0, drawn(4, 2))
    with pytest.raises(BatchError, match="one bias"):
        projection_logits(drawn(4, 2), drawn(2), torch.zeros(4), drawn(4, 2))
    with pytest.raises(BatchError, match="of one C"):
        semi_supervised_discriminator(drawn(4, 3), MODALITY, drawn(4, 2), drawn(4, 3))
    with pytest.raises(BatchError, match=r"not in 0\.\.1"):
        semi_supervised_discriminator(drawn(4, 3), MODALITY + 1, drawn(4, 3), drawn(4, 3))
    with pytest.raises(BatchError, match="the last is 'generated'"):
        semi_supervised_generator(drawn(4, 3), MODALITY + 1)
