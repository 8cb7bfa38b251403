"""The modality adversary: both sides of each game by hand, equal weight of modalities, the anchor, the critic."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from avcl.errors import BatchError, ConfigError
from avcl.nn.adversary import ModalityAdversary
from avcl.objectives.adversarial import modality_confusion, reverse_gradient
from avcl.objectives.schedules import Linear, Reversal
from avcl.types import Stream

NAMES = ("audio", "video")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def number(x: torch.Tensor) -> float:
    return float(x.detach())


def made(**settings) -> ModalityAdversary:
    torch.manual_seed(0)
    norm = None if settings.get("mode") == "wgan" else "none"  # spectral norm would move from one use to the next
    return ModalityAdversary(4, **{"hidden": (8,), "norm": norm} | settings)


def codes(**rows: int) -> dict[str, torch.Tensor]:
    return {name: draw(n, 4, seed=i).requires_grad_() for i, (name, n) in enumerate(rows.items())}


def plain(adversary: ModalityAdversary, z: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy, the modalities with one weight."""
    terms = [
        cross_entropy(adversary.logits(rows), torch.full((len(rows),), adversary.modalities.index(name)))
        for name, rows in z.items()
    ]
    return torch.stack(terms).mean()


def gradients(loss: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor | None]:
    return list(torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True))


@pytest.mark.parametrize("mode", ["reversal", "minmax", "uniform", "swapped"])
def test_each_loss_reaches_its_own_player_only(mode) -> None:
    adversary, z = made(mode=mode, strength=0.5), codes(audio=5, video=5)
    game = adversary(z)
    weights = list(adversary.parameters())
    assert all(g is None for g in gradients(game.discriminator, list(z.values())))
    assert all(g is not None and g.any() for g in gradients(game.discriminator, weights))
    assert all(g is None for g in gradients(game.encoders, weights))
    assert all(g is not None and g.any() for g in gradients(game.encoders, list(z.values())))
    assert all(p.requires_grad for p in weights)
    torch.testing.assert_close(game.discriminator, plain(adversary, z))


def test_reversal_and_minmax_are_uphill_of_the_discriminator() -> None:
    z = codes(audio=5, video=5)
    uphill = [-0.3 * g for g in gradients(plain(made(), z), list(z.values()))]
    for mode in ("reversal", "minmax"):
        game = made(mode=mode, strength=0.3)(z)
        for found, expected in zip(gradients(game.encoders, list(z.values())), uphill, strict=True):
            torch.testing.assert_close(found, expected)
        sign = 1.0 if mode == "reversal" else -0.3
        assert number(game.encoders) == pytest.approx(sign * number(game.discriminator), rel=1e-5)


def test_one_loss_with_the_reversed_gradient_is_the_sum_of_both() -> None:
    """What `reverse_gradient` does to both players at once is this game in one phase."""
    adversary, z = made(mode="reversal", strength=0.7), codes(audio=5, video=5)
    everything = [*adversary.parameters(), *z.values()]
    game = adversary(z)
    once = plain(adversary, {name: reverse_gradient(rows, 0.7) for name, rows in z.items()})
    for found, expected in zip(
        gradients(game.discriminator + game.encoders, everything), gradients(once, everything), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("target", ["uniform", "swapped"])
def test_confusion_is_that_of_the_objective(target) -> None:
    adversary, z = made(mode=target, strength=2.0), codes(audio=5, video=5)
    rows = torch.cat(list(z.values()))
    expected = 2 * modality_confusion(adversary.logits(rows), torch.arange(10) // 5, target=target)
    torch.testing.assert_close(adversary(z).encoders, expected)


def test_worked_values_where_it_knows_nothing() -> None:
    for mode, value in (("reversal", 1.0), ("minmax", -1.0), ("uniform", 1.0), ("swapped", 1.0)):
        adversary = made(mode=mode, modalities=("audio", "video", "text"))
        with torch.no_grad():
            for p in adversary.last.parameters():
                p.zero_()
        game = adversary(codes(audio=3, video=4, text=2))
        assert number(game.discriminator) == pytest.approx(math.log(3))
        assert number(game.encoders) == pytest.approx(value * math.log(3))
        assert number(game.accuracy) == pytest.approx(1 / 3)


def test_modalities_count_alike_however_many_rows() -> None:
    """Steps at twice the rate are no reason to answer "audio"; chance stays 1 / M."""
    adversary, z = made(), codes(audio=12, video=3)
    game = adversary(z)
    torch.testing.assert_close(game.discriminator, plain(adversary, z))
    tripled = {"audio": z["audio"], "video": z["video"].repeat(4, 1)}
    for one, two in zip(game, adversary(tripled), strict=True):
        torch.testing.assert_close(one, two)


def test_recorded_steps_of_streams_count() -> None:
    adversary = made()
    data, mask = draw(3, 5, 4), draw(3, 5, seed=1) > 0
    other = draw(6, 4, seed=2)
    padded = torch.where(mask[..., None], data, torch.tensor(1e4))
    one = adversary({"audio": Stream(padded, mask, 8.0), "video": other})
    two = adversary({"audio": data[mask], "video": other})
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)
    nothing = adversary({"audio": Stream(padded, torch.zeros_like(mask), 8.0), "video": other})
    torch.testing.assert_close(nothing.discriminator, plain(adversary, {"video": other}))


def test_an_anchor_stands_still() -> None:
    """ "swapped" with an anchor is the non-saturating game: -log p(anchor) of the others."""
    adversary, z = made(mode="swapped", anchor="video"), codes(audio=5, video=6)
    game = adversary(z)
    found = gradients(game.encoders, [z["audio"], z["video"]])
    assert found[0].any()
    assert found[1] is None
    expected = cross_entropy(adversary.logits(z["audio"]), torch.ones(5, dtype=torch.long))
    torch.testing.assert_close(game.encoders, expected)
    torch.testing.assert_close(game.discriminator, plain(adversary, z))
    assert number(adversary({"video": z["video"]}).encoders) == 0


def test_the_label_is_told() -> None:
    adversary, z = made(classes=3), codes(audio=4, video=4)
    label = torch.tensor([0, 1, 2, 2])
    assert not torch.equal(adversary(z, label=label)[0], adversary(z, label=label.flip(0))[0])
    stream = Stream(draw(4, 2, 4), torch.tensor([[1, 1], [1, 0], [0, 0], [1, 1]]).bool(), 2.0)
    rows = {"audio": stream.data[stream.mask], "video": z["video"][:5]}
    one = adversary({"audio": stream}, label=label)
    two = adversary({"audio": rows["audio"]}, label=torch.tensor([0, 0, 1, 2, 2]))
    torch.testing.assert_close(one.discriminator, two.discriminator)


def test_strength_is_a_schedule_of_the_step() -> None:
    adversary, z = made(strength=Linear(start=0.0, end=2.0, over=10)), codes(audio=4, video=4)
    values = [number(adversary(z, step=s).encoders) for s in (0, 5, 10, 99)]
    assert values == pytest.approx([0.0, values[2] / 2, values[2], values[2]])
    reversed_ = made(mode="reversal", strength=Reversal(over=1))
    for progress in (0.0, 0.5):
        game = reversed_(z, step=progress)
        uphill = gradients(game.encoders, [z["audio"]])[0]
        assert bool(uphill.any()) == (progress > 0)


# ---------------------------------------------------------------------------------------------------------- the critic
def test_critic_by_hand() -> None:
    adversary, z = made(mode="wgan", strength=0.5).eval(), codes(audio=5, video=7)  # spectral norm stands still
    real, fake = adversary.logits(z["audio"]), adversary.logits(z["video"])
    game = adversary(z)
    torch.testing.assert_close(game.discriminator, fake.mean() - real.mean())
    torch.testing.assert_close(game.encoders, 0.5 * (real.mean() - fake.mean()))
    assert all(g.any() for g in gradients(game.encoders, list(z.values())))
    anchored = made(mode="wgan", anchor="video").eval()
    game = anchored(z)
    torch.testing.assert_close(game.discriminator, real.mean() - fake.mean())
    found = gradients(game.encoders, [z["audio"], z["video"]])
    assert found[0].any()
    assert found[1] is None


def test_the_penalty_of_a_linear_critic() -> None:
    """One layer that passes everything through: slope 5, penalty (5 - 1)² = 16, whatever the data."""
    adversary = ModalityAdversary(2, hidden=(2,), mode="wgan", penalty=10.0)
    with torch.no_grad():
        adversary.layers[0].weight.copy_(torch.eye(2))
        adversary.layers[0].bias.fill_(100.0)  # far on the right side of the leaky ReLU
        adversary.last.weight.copy_(torch.tensor([[3.0, 4.0]]))
    z = {"audio": draw(9, 2), "video": draw(4, 2, seed=1)}
    bare = adversary.logits(z["video"]).mean() - adversary.logits(z["audio"]).mean()
    value = adversary(z, generator=torch.Generator().manual_seed(0)).discriminator
    assert number(value - bare) == pytest.approx(160, abs=1e-2)
    first, second = (adversary(z, generator=torch.Generator().manual_seed(3)).discriminator for _ in range(2))
    assert torch.equal(first, second)


def test_clipping_holds_every_weight() -> None:
    adversary, z = made(mode="wgan", clip=0.01), codes(audio=5, video=5)
    optimizer = torch.optim.SGD(adversary.parameters(), 10.0)
    values = []
    for _ in range(3):
        optimizer.zero_grad()
        game = adversary(z)  # several uses of one set of weights, then a backward pass
        values.append(number(game.discriminator))
        game.discriminator.backward()
        optimizer.step()
    assert max(number(p.abs().max()) for p in adversary.parameters()) > 0.01  # the last step left
    adversary(z)
    assert max(number(p.abs().max()) for p in adversary.parameters()) <= 0.01
    assert values[-1] < values[0]


def test_the_critic_learns_and_says_how_often_it_is_right() -> None:
    z = {"audio": draw(200, 4) + 1.0, "video": draw(200, 4, seed=1) - 1.0}
    for settings in ({"penalty": 10.0}, {"clip": 0.05}, {"norm": "spectral"}):
        adversary = made(mode="wgan", **settings)
        optimizer = torch.optim.Adam(adversary.parameters(), 1e-2)
        generator = torch.Generator().manual_seed(0)
        for _ in range(100):
            optimizer.zero_grad()
            game = adversary(z, generator=generator)
            game.discriminator.backward()
            optimizer.step()
        assert number(game.accuracy) > 0.9, settings
    constant = made(mode="wgan", penalty=10.0)
    with torch.no_grad():
        constant.last.weight.zero_()
    assert number(constant(z).accuracy) == 0.5


# ------------------------------------------------------------------------------------------------------------ numerics
@pytest.mark.parametrize("mode", ["reversal", "minmax", "uniform", "swapped", "wgan"])
def test_bf16_and_dropout_and_spectral_norm(mode) -> None:
    torch.manual_seed(0)
    adversary = ModalityAdversary(4, mode=mode, norm="spectral", dropout=0.3).train()
    z = codes(audio=6, video=6)
    with torch.autocast("cpu", torch.bfloat16):
        game = adversary(z)
    assert game.discriminator.dtype == game.encoders.dtype == torch.float32
    (game.discriminator + game.encoders).backward()
    assert all(torch.isfinite(p.grad).all() for p in adversary.parameters())
    with torch.no_grad():
        assert all(torch.isfinite(x) for x in adversary.eval()(z))


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "flip"},
        {"modalities": ("audio",)},
        {"modalities": ("audio", "audio")},
        {"mode": "wgan", "modalities": ("audio", "video", "text")},
        {"anchor": "text"},
        {"strength": -1.0},
        {"penalty": -1.0},
        {"clip": -0.1},
        {"mode": "wgan", "clip": 0.1, "penalty": 1.0},
        {"mode": "wgan", "norm": "none"},
        {"hidden": ()},
    ],
)
def test_bad_settings(settings) -> None:
    with pytest.raises(ConfigError):
        ModalityAdversary(4, **settings)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"audio": draw(3, 5)}, r"audio must be \[N, 4\]"),
        ({"audio": draw(3, 2, 4)}, r"audio must be \[N, 4\]"),
        ({"speech": draw(3, 4)}, '"speech" is not a modality'),
        ({}, "nothing was recorded"),
        ({"audio": draw(0, 4), "video": draw(0, 4)}, "nothing was recorded"),
    ],
)
def test_bad_codes(given, match) -> None:
    with pytest.raises(BatchError, match=match):
        made()(given)


def test_bad_calls() -> None:
    z = codes(audio=3, video=3)
    with pytest.raises(BatchError, match="needs the label"):
        made(classes=3)(z)
    with pytest.raises(BatchError, match="without needs none"):
        made()(z, label=torch.tensor([0, 1, 2]))
    with pytest.raises(BatchError, match="3 rows for 2 labels"):
        made(classes=3)(z, label=torch.tensor([0, 1]))
    with pytest.raises(BatchError, match="one of them"):
        made(mode="wgan")({"audio": draw(3, 4)})
    with pytest.raises(ConfigError, match="at least 0"):
        made(strength=lambda step: -1.0)(z)
