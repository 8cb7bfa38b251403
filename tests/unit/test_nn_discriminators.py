"""Discriminators: padding neither scores nor is seen, conditions by hand, bounds that hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, leaky_relu, one_hot

from avcl.errors import BatchError, ConfigError
from avcl.nn.discriminators import PatchDiscriminator, SequenceDiscriminator, VectorDiscriminator, still
from avcl.nn.judging import Condition, Head, Layer, Verdict, feature_matching
from avcl.nn.players import FrozenClassifier, GradientBalance
from avcl.nn.pooling import strided_mask
from avcl.nn.wave_discriminators import (
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    PeriodDiscriminator,
    WaveDiscriminator,
    slower,
)
from avcl.objectives.adversarial import gan_discriminator, gan_generator, hinge_gan_generator
from avcl.objectives.conditional import (
    auxiliary_classifier,
    matching_discriminator,
    semi_supervised_discriminator,
    semi_supervised_generator,
)
from avcl.testing.encoders import check_encoder, stream_of
from avcl.types import Stream, StreamSpec


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def number(x: torch.Tensor) -> float:
    return float(x.detach())


def whole(data: torch.Tensor, rate: float = 8.0) -> Stream:
    return Stream(data, torch.ones(data.shape[:2], dtype=torch.bool), rate)


def everything(module: nn.Module, *inputs: object) -> tuple:
    """All that a discriminator says, as an encoder's outputs."""
    found = module(*inputs)
    verdicts = [found] if isinstance(found, Verdict) else found
    parts = [part for v in verdicts for part in (v.scores, *v.features, v.mean, v.classes)]
    return tuple(part for part in parts if part is not None)


# -------------------------------------------------------------------------------------------------------- the contract
SMALL = {"widths": (4, 8, 8), "strides": (4, 2), "per_group": 2}
LATENT = draw(3, 4, seed=9)
LABEL = torch.tensor([0, 2, 1])
PARTS = {
    "sequence": (lambda: SequenceDiscriminator(6, widths=(8, 8), strides=(1, 2)), "features", None),
    "sequence-label-input": (
        lambda: SequenceDiscriminator(6, widths=(8,), strides=(2,), condition=Condition("label", 3, "input")),
        "features",
        LABEL,
    ),
    "sequence-classes": (
        lambda: SequenceDiscriminator(6, widths=(8,), strides=(2,), head="auxiliary", classes=3, norm="none"),
        "features",
        None,
    ),
    "sequence-semi": (
        lambda: SequenceDiscriminator(6, widths=(8,), strides=(1,), head="semi-supervised", classes=3),
        "features",
        None,
    ),
    "patch-spectrum": (lambda: PatchDiscriminator(2, widths=(4, 8), kernel=3, strides=(2, 2)), "spectrum", None),
    "patch-latent-head": (
        lambda: PatchDiscriminator(2, widths=(4,), kernel=3, strides=(2,), condition=Condition("vector", 4, "head")),
        "spectrum",
        LATENT,
    ),
    "patch-frames": (
        lambda: PatchDiscriminator(3, widths=(4, 8), kernel=3, strides=(2, 2), head="auxiliary", classes=2),
        "video",
        None,
    ),
    "patch-frames-label": (
        lambda: PatchDiscriminator(3, widths=(4,), kernel=3, strides=(2,), condition=Condition("label", 3)),
        "video",
        LABEL,
    ),
    "wave": (lambda: WaveDiscriminator(2, **SMALL), "audio", None),
    "wave-latent": (lambda: WaveDiscriminator(2, condition=Condition("vector", 4), **SMALL), "audio", LATENT),
    "period": (lambda: PeriodDiscriminator(3, 2, widths=(4, 8)), "audio", None),
    "scales": (lambda: MultiScaleDiscriminator(2, 2, **SMALL), "audio", None),
    "periods": (lambda: MultiPeriodDiscriminator((2, 5), 2, widths=(4, 8)), "audio", None),
}
STREAMS = {
    "features": stream_of(StreamSpec("features", (6,), 8.0)),
    "spectrum": stream_of(StreamSpec("spectrum", (7, 2), 8.0)),
    "video": stream_of(StreamSpec("video", (3, 9, 7), 8.0), steps=5),
    "audio": stream_of(StreamSpec("audio", (2,), 64.0), steps=61),
}
NEEDED = ("padding", "gradient", "autocast", "half", "store", "determinism", "empty")


@pytest.mark.parametrize("name", PARTS)
def test_contract(name) -> None:
    make, kind, given = PARTS[name]
    told = () if given is None else (given,)
    checks = dict(check_encoder(make, STREAMS[kind], call=lambda module, stream: everything(module, stream, *told)))
    for check in NEEDED:
        checks[check]()
    if given is None:  # a condition goes with its row
        checks["order"]()
        checks["clock"]()


@torch.no_grad()
def test_a_condition_goes_with_its_row() -> None:
    order = torch.tensor([2, 0, 1])
    for name, (make, kind, given) in PARTS.items():
        if given is None:
            continue
        torch.manual_seed(0)
        module, stream = make().eval(), STREAMS[kind]
        turned = Stream(stream.data[order], stream.mask[order], stream.rate)
        for one, two in zip(everything(module, stream, given), everything(module, turned, given[order]), strict=True):
            one, two = (x.data if isinstance(x, Stream) else x for x in (one, two))
            torch.testing.assert_close(one[order], two, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
        other = everything(module, stream, given.roll(1, 0))[0]
        assert not torch.allclose(other.data, everything(module, stream, given)[0].data)


def test_padding_does_not_score() -> None:
    """The loss of a padded batch is that of what was recorded; zeros behind the end would count as a score of 0."""
    torch.manual_seed(0)
    disc = SequenceDiscriminator(6, widths=(8,), strides=(1,), norm="none")
    short, long = draw(1, 4, 6), draw(1, 9, 6, seed=1)
    both = Stream(torch.cat([torch.cat([short, torch.full((1, 5, 6), 7.0)], 1), long]), torch.arange(9) < 9, 8.0)
    both = both._replace(mask=torch.arange(9)[None] < torch.tensor([[4], [9]]))
    alone = torch.cat([disc(whole(x)).recorded for x in (short, long)])
    torch.testing.assert_close(disc(both).recorded, alone)
    assert number(gan_generator(disc(both).recorded)) == pytest.approx(number(gan_generator(alone)), rel=1e-5)
    means = torch.stack([disc(whole(x)).mean[0] for x in (short, long)])
    torch.testing.assert_close(disc(both).mean, means)


# ------------------------------------------------------------------------------------------------------------- oracles
def test_reach_is_what_a_score_sees() -> None:
    disc = SequenceDiscriminator(2, widths=(3, 3, 3), kernel=3, strides=(1, 2, 2))
    x = draw(1, 40, 2).requires_grad_()
    disc(whole(x)).scores.data[0, 5].backward()
    seen = x.grad[0].abs().sum(1).nonzero().flatten()
    assert (int(seen[0]), int(seen[-1]) - int(seen[0]) + 1) == (5 * 4 - disc.reach // 2, 9)
    assert disc.reach == 9
    patch = PatchDiscriminator()
    assert patch.reach == 61
    assert PatchDiscriminator(widths=(4,), kernel=3, strides=(2,)).reach == 3


def test_patches_by_hand() -> None:
    torch.manual_seed(0)
    disc = PatchDiscriminator(3, widths=(4, 5), kernel=3, strides=(2, 1), norm="none")
    x = draw(2, 3, 8, 6)
    one, two = (conv for conv in disc.convs.convs)
    hidden = leaky_relu(two(leaky_relu(one(x), 0.2)), 0.2)
    expected = torch.einsum("bchw,c->bhw", hidden, disc.head.score.weight[0]) + disc.head.score.bias
    verdict = disc(still(x))
    torch.testing.assert_close(verdict.scores.data[:, 0], expected)
    torch.testing.assert_close(verdict.mean, expected.mean((1, 2)))
    assert verdict.recorded.shape == (2 * 4 * 3,)
    torch.testing.assert_close(verdict.features[-1].data[:, 0], hidden.movedim(1, -1))
    # a spectrum is the same picture with time first
    spectrum = disc(whole(x.movedim(1, -1), 10.0))
    torch.testing.assert_close(spectrum.scores.data, expected)
    assert spectrum.scores.rate == 5.0


def test_a_period_is_every_pth_sample() -> None:
    """A tone of period 3 is constant in each column, and columns do not meet."""
    torch.manual_seed(0)
    disc = PeriodDiscriminator(3, widths=(4, 4))
    tone = torch.tensor([1.0, -0.5, 0.2]).repeat(60)[None, :, None]
    scores = disc(whole(tone, 30.0)).scores
    assert scores.data.shape == (1, 20, 3)
    assert scores.rate == pytest.approx(30 / 9)
    torch.testing.assert_close(scores.data[0, 8], scores.data[0, 12])
    other = tone.clone()
    other[0, 1::3] = 3.0
    changed = disc(whole(other, 30.0)).scores.data - scores.data
    assert not changed[..., [0, 2]].any()
    assert changed[..., 1].abs().min() > 0


def test_slower_is_a_mean_of_what_was_recorded() -> None:
    x, mask = draw(2, 7, 1), torch.ones(2, 7, dtype=torch.bool)
    mask[1, 3:5] = False
    half = slower(Stream(x, mask, 10.0))
    assert (half.rate, half.data.shape) == (5.0, (2, 4, 1))
    for row in range(2):
        for i in range(4):
            near = [k for k in range(2 * i - 1, 2 * i + 3) if 0 <= k < 7 and mask[row, k]]
            recorded = any(mask[row, k] for k in (2 * i, 2 * i + 1) if k < 7)
            assert bool(half.mask[row, i]) == recorded
            expected = sum(number(x[row, k, 0]) for k in near) / len(near) if recorded else 0.0
            assert number(half.data[row, i, 0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_strided_masks(stride) -> None:
    mask = draw(4, 11) > 0.3
    found = strided_mask(mask, stride)
    expected = [[any(row[i : i + stride]) for i in range(0, 11, stride)] for row in mask.tolist()]
    assert found.tolist() == expected


def test_multi_scale_and_period() -> None:
    wave = whole(0.1 * draw(2, 256, 1), 256.0)
    scales, periods = MultiScaleDiscriminator(3, **SMALL)(wave), MultiPeriodDiscriminator((2, 3), widths=(4, 4))(wave)
    assert [v.scores.rate for v in scales] == [32.0, 16.0, 8.0]
    assert [v.scores.data.shape[1] for v in scales] == [32, 16, 8]
    assert [v.scores.data.shape[2] for v in periods] == [2, 3]
    assert [len(v.features) for v in (*scales, *periods)] == [4] * 3 + [2] * 2
    loss = sum(hinge_gan_generator(v.recorded) for v in (*scales, *periods))
    assert loss.ndim == 0


def test_feature_matching() -> None:
    disc = MultiScaleDiscriminator(2, **SMALL)
    real, other = 0.1 * draw(2, 64, 1), (0.1 * draw(2, 64, 1, seed=1)).requires_grad_()
    with torch.no_grad():
        known, found = disc(whole(real)), disc(whole(other))
    terms = [(y.data - x.data).abs().mean() for v, w in zip(known, found, strict=True) for x, y in zip(v[1], w[1])]  # noqa: B905
    assert number(feature_matching(known, found)) == pytest.approx(number(torch.stack(terms).mean()), rel=1e-5)
    assert feature_matching(known, disc(whole(real))) == 0
    loss = feature_matching(disc(whole(other)), disc(whole(real)))  # the real side gets no gradient
    loss.backward()
    assert other.grad is None
    feature_matching(known, disc(whole(other))).backward()
    assert other.grad.abs().sum() > 0
    # what is recorded in one of the two alone does not count
    mask = torch.arange(64)[None] < torch.tensor([[64], [33]])
    terms = []
    for v, w in zip(disc(Stream(real, mask, 8.0)), found, strict=True):
        for x, y in zip(v.features, w.features, strict=True):
            terms.append((y.data - x.data)[x.mask].abs().mean())
    cut = feature_matching(disc(Stream(real, mask, 8.0)), found)
    assert number(cut) == pytest.approx(number(torch.stack(terms).mean()), rel=1e-5)
    with pytest.raises(BatchError, match="as many real verdicts"):
        feature_matching(known, known[:1])


# ---------------------------------------------------------------------------------------------------------- conditions
def test_projection_is_that_of_the_objective_and_by_hand() -> None:
    torch.manual_seed(0)
    disc = VectorDiscriminator(5, hidden=(6,), condition=Condition("label", 3))
    x, label = draw(4, 5), torch.tensor([0, 2, 2, 1])
    phi = leaky_relu(disc.layers[0](x), 0.2)
    table = disc.head.embed.weight.T
    expected = phi @ disc.head.score.weight[0] + disc.head.score.bias + (table[label] * phi).sum(1)
    torch.testing.assert_close(disc(x, label).mean, expected)


def test_label_map_beside_the_picture() -> None:
    torch.manual_seed(0)
    plain = PatchDiscriminator(3 + 4, widths=(5,), kernel=3, strides=(2,), norm="none")
    disc = PatchDiscriminator(
        3, widths=(5,), kernel=3, strides=(2,), norm="none", condition=Condition("label", 4, "input")
    )
    disc.load_state_dict(plain.state_dict())
    x, label = draw(2, 3, 6, 6), torch.tensor([1, 3])
    map_ = one_hot(label, 4).float()[:, :, None, None].expand(-1, -1, 6, 6)
    torch.testing.assert_close(disc(still(x), label).scores.data, plain(still(torch.cat([x, map_], 1))).scores.data)


def test_a_latent_laid_out_as_a_map() -> None:
    """512 as 128 × 2 × 2 beside 256 × 2 × 2, in small."""
    torch.manual_seed(0)
    condition = Condition("vector", 8, "head", mix=0, cells=(2, 2))
    disc = PatchDiscriminator(3, widths=(5,), kernel=3, strides=(4,), norm="none", condition=condition)
    x, latent = draw(2, 3, 8, 8), draw(2, 8)
    features = disc(still(x), latent).features[-1].data[:, 0]
    beside = torch.cat([features, latent.reshape(2, 2, 2, 2).permute(0, 2, 3, 1)], -1)
    torch.testing.assert_close(disc(still(x), latent).scores.data[:, 0], disc.head.score(beside)[..., 0])
    with pytest.raises(BatchError, match=r"the last map is \(3, 3\)"):
        disc(still(draw(2, 3, 12, 12)), latent)


@pytest.mark.parametrize("mix", [0, 16])
def test_a_linear_last_layer_cannot_tell_a_match(mix) -> None:
    """s(x, h) + s(x', h') = s(x, h') + s(x', h): the literal reading of "concatenated before the last layer"."""
    torch.manual_seed(0)
    disc = VectorDiscriminator(5, hidden=(16,), condition=Condition("vector", 5, "head", mix=mix))
    x, h = draw(2, 5), draw(2, 5, seed=1)
    own, crossed = disc(x, h).mean.sum(), disc(x, h.flip(0)).mean.sum()
    assert torch.allclose(own, crossed, atol=1e-6) == (mix == 0)


@pytest.mark.parametrize("how", ["projection", "input", "head", "literal"])
def test_mismatched_negatives_teach_the_condition(how) -> None:
    """D(x, own h) > D(x, another's h) after training with mismatched real pairs, on pairs it has not seen."""
    torch.manual_seed(0)
    condition = Condition("vector", 6, "head", mix=0) if how == "literal" else Condition("vector", 6, how)
    disc = VectorDiscriminator(6, hidden=(64, 64), condition=condition)
    turn = torch.linalg.qr(draw(6, 6, seed=3)).Q
    optimizer = torch.optim.Adam(disc.parameters(), 3e-3)
    for step in range(250):
        x = draw(128, 6, seed=step)
        h = x @ turn
        fake = draw(128, 6, seed=1000 + step)
        loss = matching_discriminator(disc(x, h).mean, disc(fake * 2, h).mean, disc(x, h.roll(1, 0)).mean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = draw(256, 6, seed=9999)
    with torch.no_grad():
        right = (disc(x, x @ turn).mean > disc(x, (x @ turn).roll(1, 0)).mean).float().mean()
    assert (0.4 < right < 0.6) if how == "literal" else (right > 0.85)


def test_class_heads() -> None:
    torch.manual_seed(0)
    aux = VectorDiscriminator(5, hidden=(8,), head="auxiliary", classes=3, condition=Condition("label", 3, "head"))
    x, label = draw(6, 5), torch.arange(6) % 3
    verdict = aux(x, label)
    assert verdict.classes.shape == (6, 3)
    assert torch.equal(verdict.classes, aux(x, label.roll(1)).classes)  # it is not told the answer
    assert not torch.equal(verdict.mean, aux(x, label.roll(1)).mean)
    expected = cross_entropy(verdict.classes, label)
    assert number(auxiliary_classifier(verdict.classes, verdict.classes, label)) == pytest.approx(2 * number(expected))

    semi = VectorDiscriminator(5, hidden=(8,), head="semi-supervised", classes=3)
    verdict = semi(x)
    assert verdict.classes.shape == (6, 4)
    p = verdict.classes.softmax(1)
    torch.testing.assert_close(verdict.mean.sigmoid(), 1 - p[:, 3])  # the score is the log-odds of "real"
    with torch.no_grad():
        some, other = semi(x), semi(draw(4, 5, seed=1))
    loss = semi_supervised_discriminator(some.classes, label, some.classes, other.classes)
    known = cross_entropy(some.classes[:, :3], label)
    assert number(loss) == pytest.approx(number(known + gan_discriminator(some.mean, other.mean)), rel=1e-5)
    assert semi_supervised_generator(other.classes, torch.tensor([0, 1, 2, 0])) > 0


def test_class_logits_are_means_over_what_was_recorded() -> None:
    torch.manual_seed(0)
    disc = SequenceDiscriminator(4, widths=(5,), strides=(1,), kernel=1, head="auxiliary", classes=3)
    x = draw(1, 6, 4)
    mask = torch.tensor([[True, True, False, True, False, False]])
    found = disc.eval()(Stream(x, mask, 1.0)).classes
    torch.testing.assert_close(found, disc(whole(x[:, [0, 1, 3]])).classes)


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    "make",
    [
        lambda: Condition("labels", 3),
        lambda: Condition("label", 0),
        lambda: Condition("label", 3, "head", cells=(1, 1)),
        lambda: Condition("vector", 7, "head", cells=(2, 2)),
        lambda: Layer(4, (4,), (2,)),
        lambda: Layer(4, (3,), (0,)),
        lambda: Head(4, kind="auxiliary", norm="none"),
        lambda: Head(4, classes=3, norm="none"),
        lambda: Head(4, kind="semi-supervised", classes=3, condition=Condition("label", 3), norm="none"),
        lambda: VectorDiscriminator(4, head="auxiliary", classes=3, condition=Condition("label", 3, "input")),
        lambda: VectorDiscriminator(4, hidden=()),
        lambda: VectorDiscriminator(4, condition=Condition("vector", 4, "head", cells=(2, 2))),
        lambda: VectorDiscriminator(4, norm="batch"),
        lambda: SequenceDiscriminator(4, widths=(4,), strides=(1, 2)),
        lambda: PatchDiscriminator(1, widths=(4,), strides=(1, 2)),
        lambda: WaveDiscriminator(1, widths=(4,), strides=(2,)),
        lambda: WaveDiscriminator(1, widths=(4, 6), strides=(2,), per_group=1),
        lambda: PeriodDiscriminator(0),
        lambda: MultiScaleDiscriminator(0),
        lambda: MultiPeriodDiscriminator((2, 2)),
        lambda: GradientBalance(decay=1.0),
        lambda: GradientBalance(limit=0.0),
        lambda: FrozenClassifier(nn.Linear(2, 2), temperature=0.0),
    ],
)
def test_bad_settings(make) -> None:
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize(
    "call",
    [
        lambda: VectorDiscriminator(4)(draw(3, 5)),
        lambda: VectorDiscriminator(4)(draw(3, 4), torch.tensor([0, 1, 2])),
        lambda: VectorDiscriminator(4, condition=Condition("label", 3))(draw(3, 4)),
        lambda: VectorDiscriminator(4, condition=Condition("label", 3))(draw(3, 4), torch.tensor([0, 1, 3])),
        lambda: VectorDiscriminator(4, condition=Condition("vector", 3))(draw(3, 4), draw(3, 4)),
        lambda: SequenceDiscriminator(4)(whole(draw(3, 5, 6))),
        lambda: PatchDiscriminator(3)(whole(draw(3, 5, 6))),
        lambda: WaveDiscriminator(1)(whole(draw(3, 5, 2))),
        lambda: still(draw(3, 4, 5)),
    ],
)
def test_bad_inputs(call) -> None:
    with pytest.raises(BatchError):
        call()
