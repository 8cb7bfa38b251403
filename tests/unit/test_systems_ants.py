"""zheng2021b_ants: co-attention over segments, one space for both views, and what does not fit into it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import avcl
from avcl.data import collate
from avcl.data.features import FeatureData
from avcl.errors import BatchError, ConfigError
from avcl.objectives.classification import binary_cross_entropy, cross_entropy
from avcl.seeds import seeded
from avcl.system import Embeds, Recognizes, Step
from avcl.systems.zheng2021b_ants import ANTS, ANTSConfig, CoAttention, Segments
from avcl.types import Batch, Stream

CLASSES = ("a", "b", "c", "d", "e")
QUICK = {
    "epochs": 12,
    "batch_size": 60,
    "dim": 24,
    "hidden": 48,
    "units": 32,
    "judge": (32, 16),
    "updates": (1, 1, 1),
    "learning_rate": 3e-3,
}


def features(n: int = 300, *, seed: int = 0, steps: int = 0) -> FeatureData:
    """Class centers of 5 classes, bent differently in each modality, in noise; nothing is shared beyond the class."""
    mix, rng = np.random.default_rng(7), np.random.default_rng(seed)
    label, arrays = np.arange(n) % len(CLASSES), {}
    for name, width in (("audio", 12), ("video", 16)):
        center = np.tanh(2 * mix.normal(size=(len(CLASSES), width)))
        x = np.repeat(center[label][:, None], steps, 1) if steps else center[label]
        arrays[name] = (x + 0.5 * rng.normal(size=x.shape)).astype(np.float32)
    words = [CLASSES[i] for i in label]
    return FeatureData.from_arrays({**arrays, "label": words, "id": [f"{seed}-{i}" for i in range(n)]})


def whole(data: FeatureData) -> Batch:
    return collate([data.clip(i) for i in range(len(data))]).to("cpu")


def at(turn: str = "") -> Step:
    return Step(0, 10, 0, 0.0, torch.Generator().manual_seed(0), turn)


def made(data: FeatureData, **settings: object) -> ANTS:
    with seeded(0, "init"):
        system = ANTS(ANTSConfig.from_json({**QUICK, **settings}), data.spec)
    system.begin_epoch([whole(data)], 0)
    return system.eval()


def without(batch: Batch, name: str, rows: slice = slice(None)) -> Batch:
    """The batch with nothing recorded of ``name`` in those rows."""
    stream = batch.streams[name]
    mask = stream.mask.clone()
    mask[rows] = False
    blank = Stream(stream.data.masked_fill(~mask[:, :, None], 0), mask, stream.rate)
    streams = {**batch.streams, name: blank}
    return Batch(batch.id, streams, batch.index, batch.view, batch.label, batch.group, batch.extras)


# --------------------------------------------------------------------------------------------------------- co-attention
@torch.no_grad()
def test_the_weights_of_segments_by_hand() -> None:
    net = CoAttention((2, 1), 1)
    net.affinity.weight.copy_(torch.tensor([[1.0, -1.0]]))  # W: z W = z_1 - z_2
    net.lift[0].weight.copy_(torch.tensor([[0.5, 0.0]]))
    net.lift[1].weight.copy_(torch.tensor([[2.0]]))
    net.score[0].weight.fill_(1.0)
    net.score[1].weight.fill_(3.0)
    one = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    two = torch.tensor([[[1.0], [0.5]]])
    there = torch.ones(1, 2, dtype=torch.bool)
    first, second = net(Segments(one, there), Segments(two, there))
    affinity = np.tanh([[1.0, 0.5], [-2.0, -1.0]])
    a, b = np.array([0.5, 0.0]), np.array([2.0, 1.0])
    left, right = np.exp(np.tanh(a + affinity @ b)), np.exp(3 * np.tanh(b + affinity.T @ a))
    np.testing.assert_allclose(first[0], left / left.sum(), rtol=1e-5)
    np.testing.assert_allclose(second[0], right / right.sum(), rtol=1e-5)


def test_weights_sum_to_one_and_follow_their_segments() -> None:
    torch.manual_seed(0)
    net = CoAttention((5, 4), 6)
    one, two = torch.randn(7, 3, 5), torch.randn(7, 3, 4)
    there = torch.ones(7, 3, dtype=torch.bool)
    first, second = net(Segments(one, there), Segments(two, there))
    for weights in (first, second):
        torch.testing.assert_close(weights.sum(1), torch.ones(7))
    order = torch.tensor([2, 0, 1])
    turned, same = net(Segments(one[:, order], there), Segments(two, there))
    torch.testing.assert_close(turned, first[:, order])
    torch.testing.assert_close(same, second)
    nowhere = torch.zeros(7, 3, dtype=torch.bool)
    alone, none = net(Segments(one, there), Segments(two, nowhere))
    torch.testing.assert_close(alone.sum(1), torch.ones(7))
    assert not none.any()
    other, _ = net(Segments(one, there), Segments(torch.randn(7, 3, 4), nowhere))
    torch.testing.assert_close(alone, other)  # what was not recorded says nothing
    assert not torch.allclose(alone, first)  # the partner does


def test_the_partner_changes_the_weights_and_a_lone_view_needs_none() -> None:
    data = features(30)
    system, batch = made(data), whole(data)
    seen = system.attention(batch)
    assert seen["audio"].shape == (30, 3)
    other = Batch(
        batch.id,
        {**batch.streams, "video": batch.streams["video"]._replace(data=batch.streams["video"].data.roll(1, 0))},
        batch.index,
        batch.view,
        batch.label,
        batch.group,
        batch.extras,
    )
    assert not torch.allclose(system.attention(other)["audio"], seen["audio"])
    torch.testing.assert_close(system.embed(other, "audio"), system.embed(batch.without("video"), "audio"))
    torch.testing.assert_close(system.embed(batch, "audio+video").norm(dim=1), torch.ones(30))


# --------------------------------------------------------------------------------------------------------- the segments
def test_columns_are_filled_up_to_equal_segments() -> None:
    data = features(20)
    system = made(data, segments=5)
    encoded = system.encode(whole(data))
    assert encoded["audio x"].shape == (20, 5, 3)  # 12 columns and 3 of zeros
    assert encoded["video x"].shape == (20, 5, 4)  # 16 and 4
    assert not encoded["audio x"].flatten(1)[:, 12:].any()
    torch.testing.assert_close(encoded["audio x"].flatten(1)[:, :12].mean(0), torch.zeros(12), atol=1e-5, rtol=0)


def test_segments_of_time_are_means_of_what_was_recorded() -> None:
    data = features(40, steps=6)
    system, batch = made(data, split="time", window=6.0), whole(data)
    encoded = system.encode(batch)
    scale = system.views[0].scale
    parts = batch.streams["audio"].data.unflatten(1, (3, 2)).mean(2)
    torch.testing.assert_close(encoded["audio x"], scale(parts), atol=1e-5, rtol=1e-4)
    stream = batch.streams["audio"]
    mask = stream.mask.clone()
    mask[:, 4:] = False  # the last third is gone
    short = Batch(
        batch.id,
        {**batch.streams, "audio": Stream(stream.data.masked_fill(~mask[:, :, None], 0), mask, stream.rate)},
        batch.index,
        batch.view,
        batch.label,
        batch.group,
        batch.extras,
    )
    weights = system.attention(short)["audio"]
    assert not weights[:, 2].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(40))
    terms, _ = system(short, at())
    assert all(bool(torch.isfinite(term)) for term in terms.values())


# ----------------------------------------------------------------------------------------------------------- the losses
@torch.no_grad()
def test_the_losses_are_those_of_the_equations() -> None:
    data = features(25)
    batch = whole(data)
    system = made(data, adversarial=0.5, classification=2.0, cycle=3.0)
    terms, e = system(batch, at())
    z, judge = (e["audio"], e["video"]), system.judge
    real, fake = (judge(c)[:, 0] for c in z)
    assert float(terms["discriminate"]) == pytest.approx(float(((real - 1) ** 2).mean() + (fake**2).mean()), rel=1e-5)
    swapped = 0.5 * float((real**2).mean() + ((fake - 1) ** 2).mean())
    assert float(terms["mislead"]) == pytest.approx(swapped, rel=1e-5)
    gap, chosen = (z[0] - z[1]).abs().mean(), torch.zeros(25, 5)
    for number, name in enumerate(("audio", "video")):
        view, x = system.views[number], e[f"{name} x"]
        made_of = [view.rebuilt(c) for c in z]
        gap = gap + sum((e[f"{name} s"] * (x - m).abs().mean(2)).sum(1).mean() for m in made_of)
        rest = view.leftover((x - (made_of[0] + made_of[1]) / 2).flatten(1))
        chosen += 0.5 * view.classify(torch.cat([z[number], rest], 1)).softmax(1)
    assert float(terms["cycle"]) == pytest.approx(3.0 / 5 * float(gap), rel=1e-5)
    common = system.common((z[0] + z[1]) / 2)
    told = -chosen.log()[torch.arange(25), batch.label].mean() + cross_entropy(common, batch.label)
    assert float(terms["classify"]) == pytest.approx(2 * float(told), rel=1e-5)
    torch.testing.assert_close(system.logits(batch), chosen.log(), atol=1e-5, rtol=1e-4)


def test_the_released_loss_flattens_the_gradient_and_is_behind_a_flag() -> None:
    data = features(25)
    batch, slopes, values = whole(data), {}, {}
    for literal in (False, True):
        system = made(data, literal=literal)
        value = system(batch, at())[0]["classify"]
        value.backward()
        slopes[literal] = float(system.common[-1].weight.grad.norm())
        values[literal] = float(value.detach())
    assert slopes[True] < 0.2 * slopes[False]
    with torch.no_grad():
        system = made(data)
        encoded = system.encode(batch)
        judged = system._judged(encoded)
        target = torch.nn.functional.one_hot(batch.label, 5).float()
        by_hand = sum(float(binary_cross_entropy(log.exp(), target)) for log in (judged.views, judged.common))
    assert values[True] == pytest.approx(by_hand, rel=1e-5)


def test_every_player_moves_its_own_parameters() -> None:
    data = features(30)
    system = made(data, updates=(2, 2, 3), learn_mix=True)
    phases = {phase.name: phase for phase in system.phases()}
    assert [phase.repeat for phase in phases.values()] == [2, 2, 3]
    every = [id(p) for phase in phases.values() for p in phase.parameters]
    assert len(every) == len(set(every))
    assert set(every) == {id(p) for p in system.parameters()}
    for name, phase in phases.items():
        terms, _ = system(whole(data), at(name))
        assert set(phase.losses) <= set(terms), name
        assert ("discriminate" in terms) == (name == "discriminator")
    system.zero_grad()
    terms, _ = system(whole(data), at("networks"))
    terms["mislead"].backward()
    assert all(p.grad is None for p in system.judge.parameters())
    assert bool(system.attend.affinity.weight.grad.any())


def test_the_mix_of_the_views_is_learned_within_bounds() -> None:
    data = features(20)
    assert not made(data).mix.requires_grad
    system = made(data, learn_mix=True)
    with torch.no_grad():
        system.mix.copy_(torch.tensor([9.0, 1.0]))
        batch = whole(data)
        both = system.logits(batch).exp()
        judged = []
        for number, name in enumerate(("audio", "video")):
            e, view = system.encode(batch), system.views[number]
            mean = sum(view.rebuilt(e[n]) for n in ("audio", "video")) / 2
            rest = view.leftover((e[f"{name} x"] - mean).flatten(1))
            judged.append(view.classify(torch.cat([e[name], rest], 1)).softmax(1))
        torch.testing.assert_close(both, 0.7 * judged[0] + 0.3 * judged[1], atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------ what is missing
@torch.no_grad()
def test_a_missing_view_has_no_say_and_its_clip_no_part() -> None:
    data = features(30)
    system, batch = made(data), whole(data)
    partial = without(batch, "video", slice(0, 4))
    terms, _ = system(partial, at())
    rest, _ = system(whole(data.subset(range(4, 30))), at())
    for name, value in rest.items():
        torch.testing.assert_close(terms[name], value)
    one = system.logits(partial)
    torch.testing.assert_close(one.exp().sum(1), torch.ones(30))
    torch.testing.assert_close(one[4:], system.logits(batch)[4:])
    nothing = system.logits(without(without(batch, "video"), "audio"))
    assert bool(torch.isfinite(nothing).all())
    with pytest.raises(BatchError, match="two clips"):
        system(without(batch, "audio"), at())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"split": "space"}, "space"),
        ({"updates": (1, 1)}, "three numbers"),
        ({"segments": 0}, "segments"),
        ({"modalities": ("audio", "vido")}, "vido"),
    ],
)
def test_refuses(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        made(features(10), **settings)


def test_needs_labels() -> None:
    arrays = {"audio": np.ones((8, 4), np.float32), "video": np.ones((8, 4), np.float32)}
    with pytest.raises(ConfigError, match="labels"):
        ANTS(ANTSConfig.tiny(), FeatureData.from_arrays(arrays).spec)
    data = features(12)
    batch = whole(data)
    unknown = Batch(batch.id, batch.streams, batch.index, batch.view, batch.label - 1, batch.group, batch.extras)
    with pytest.raises(BatchError, match="label"):
        made(data)(unknown, at())


# ------------------------------------------------------------------------------------------------------------- learning
@pytest.fixture(scope="module")
def trained() -> avcl.Model:
    settings = {**QUICK, "epochs": 30, "cycle": 10.0, "adversarial": 0.1}
    return avcl.train("zheng2021b_ants", features(), seed=0, settings=settings, workers=0)


def test_learns_classes_and_one_space_for_both_views(trained: avcl.Model) -> None:
    system, test = trained.system, features(100, seed=1)
    assert isinstance(system, Embeds)
    assert isinstance(system, Recognizes)
    batch = whole(test)
    right = (system.logits(batch).argmax(1) == batch.label).float().mean()
    assert float(right) > 0.9  # chance .2
    report = avcl.evaluate(trained, test, relevance="class", workers=0)
    assert report.scores["mean"]["mAP"] > 0.6  # chance .2


def test_a_heavy_cycle_brings_the_codes_of_a_clip_together() -> None:
    """Two views that hold the same, no discriminator, α large: z₁ ≈ z₂ beside how far the codes of two clips are
    apart. In one segment, for a mean of several is no linear map of the view any more.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 12)).astype(np.float32)
    turned = x @ rng.normal(size=(12, 16)).astype(np.float32)
    data = FeatureData.from_arrays({"audio": x, "video": turned, "label": [CLASSES[i] for i in x[:, :5].argmax(1)]})
    apart = {}
    for cycle in (0.0, 50.0):
        settings = {**QUICK, "cycle": cycle, "adversarial": 0.0, "classification": 0.1, "epochs": 40}
        settings |= {"segments": 1, "learning_rate": 1e-2}
        model = avcl.train("zheng2021b_ants", data, seed=0, settings=settings, workers=0)
        with torch.no_grad():
            encoded = model.system.encode(whole(data))
        a, v = encoded["audio"], encoded["video"]
        apart[cycle] = float((a - v).norm(dim=1).mean() / torch.cdist(a, v).mean())
    assert apart[50.0] < 0.1 < 0.8 < apart[0.0], apart
