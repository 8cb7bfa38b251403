"""ugach: the graph beside brute force, which way a reward moves the generator, what is drawn when, every term as its
equation says, and that codes learned from pairs alone find the class.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hashing_toys import at, class_map, classed, whole

import avcl
from avcl.errors import BatchError, ConfigError
from avcl.seeds import seeded
from avcl.system import Embeds, Represents
from avcl.systems.ugach import UGACH, UGACHConfig, apart, drawn, joined_neighbors, policy_loss, rewards
from avcl.types import DataSpec, Stream, StreamSpec

SMALL = {"bits": 16, "hidden": (32,), "batch_size": 50, "learning_rate": 5e-3}


def made(**settings: object) -> UGACH:
    with seeded(0, "init"):
        return UGACH(replace(UGACHConfig.tiny(), **settings), replace(classed(10).spec, labels=()))


def trained(epochs: int, **settings: object) -> avcl.Model:
    return avcl.train("ugach", classed(), settings={**SMALL, "epochs": epochs, **settings}, workers=0)


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


# ---------------------------------------------------------------------------------------------------------------- graph
@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_graph_is_that_of_brute_force(k: int) -> None:
    x, y = torch.randn(20, 5, generator=seed()), torch.randn(20, 7, generator=seed(1))
    near = joined_neighbors([x, y], k)
    for i in range(20):
        expected = {i}
        for view in (x, y):
            far = {j: sum((float(p) - float(q)) ** 2 for p, q in zip(view[i], view[j], strict=True)) for j in range(20)}
            expected |= set(sorted(far.keys() - {i}, key=far.__getitem__)[:k])
        assert set(near[i].nonzero().flatten().tolist()) == expected
        assert len(expected) <= 2 * k + 1
    assert not torch.equal(near, near.T)  # to be among the nearest of another is no mutual thing


def test_a_small_batch_keeps_something_that_is_no_neighbor() -> None:
    for n in (2, 3, 4, 5, 8):
        views = [torch.randn(n, 3, generator=seed(n)), torch.randn(n, 3, generator=seed(n + 1))]
        near = joined_neighbors(views, 50)
        assert bool(near.diagonal().all())
        assert not bool(near.all(1).any())
    assert torch.equal(joined_neighbors(views[:1] * 2, 1).sum(1), torch.full((8,), 2))  # both views say the same
    twins = joined_neighbors([torch.zeros(6, 3), torch.zeros(6, 3)], 1)  # at equal distance, still k of each view
    assert bool((twins.sum(1) <= 3).all() and (twins.sum(1) >= 2).all())


# -------------------------------------------------------------------------------------------------------------- rewards
def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf], [3.0, -torch.inf, 3.0, 3.0]])
    share = torch.stack([(drawn(logits, 20_000, seed()) == j).float().mean(1) for j in range(4)], 1)
    torch.testing.assert_close(share, logits.softmax(1), atol=0.01, rtol=0)


def test_rewards_are_the_sigmoid_of_the_hinge() -> None:
    distance = torch.tensor([[1.0, 0.5, 9.0], [2.0, 3.0, 4.0]])
    found = rewards(distance, torch.tensor([[0], [2]]), 2.0)
    expected = torch.tensor([[[2.0, 2.5, 0.0]], [[4.0, 3.0, 2.0]]]).sigmoid()
    torch.testing.assert_close(found, expected)
    assert float(found.min()) == 0.5  # so far away that the hinge is closed


@pytest.mark.parametrize("baseline", [True, False])
def test_what_the_discriminator_ranks_close_gets_more_probability(baseline: bool) -> None:
    """Of four candidates that the generator draws alike the discriminator has the third one close."""
    score = torch.zeros(1, 4, requires_grad=True)
    reward = rewards(torch.tensor([[1.0, 6.0, 0.2, 6.0]]), torch.tensor([[0]]).expand(1, 2000), 2.0)
    policy_loss(score, reward, seed(), baseline=baseline).backward()
    with torch.no_grad():
        after = (score - 0.1 * score.grad).softmax(1)[0]
    assert int(after.argmax()) == 2
    assert float(after[2]) > 0.25
    assert float(after[[1, 3]].max()) < 0.25


def test_policy_gradient_is_that_of_the_expected_reward() -> None:
    score = torch.randn(3, 5, generator=seed()).requires_grad_()
    distance = 4 * torch.rand(3, 5, generator=seed(1))
    reward = rewards(distance, torch.tensor([[0], [1], [2]]), 1.0)
    expected = torch.autograd.grad(-(score.softmax(1) * reward[:, 0]).sum(1).mean(), score)[0]
    spread = {}
    for baseline in (True, False):
        draws = [policy_loss(score, reward.expand(3, 40, 5), seed(i), baseline=baseline) for i in range(500)]
        slopes = torch.stack([torch.autograd.grad(loss, score)[0] for loss in draws])
        torch.testing.assert_close(slopes.mean(0), expected, atol=3e-3, rtol=0)
        spread[baseline] = float(slopes.var(0).sum())
    assert spread[True] < 0.3 * spread[False]  # what the baseline is for
    assert float(expected.abs().max()) > 0.01


def test_nothing_moves_where_all_candidates_are_worth_the_same() -> None:
    score = torch.randn(3, 5, generator=seed()).requires_grad_()
    policy_loss(score, torch.full((3, 2, 5), 0.7), seed()).backward()
    assert float(score.grad.abs().max()) < 1e-6


# ---------------------------------------------------------------------------------------------------------------- terms
@pytest.mark.parametrize("progress", [0.1, 0.9])
def test_the_hinge_is_what_the_equation_says(progress: float) -> None:
    """Its mean over many draws: beside a neighbor drawn evenly, a stranger drawn evenly or as the generator ranks."""
    system, batch = made(draws=20_000, margin=0.5).eval(), whole(classed(10))
    encoded = {name: value.detach() for name, value in system.encode(batch).items()}
    encoded |= {name: 6 * encoded[name] for name in ("audio g", "video g")}  # ranks that differ
    near, expected = joined_neighbors([encoded["audio x"], encoded["video x"]], 2), 0.0
    for q, other in (("audio", "video"), ("video", "audio")):
        far = (encoded[q][:, None] - encoded[other]).square().sum(2)
        rank = -(encoded[f"{q} g"][:, None] - encoded[f"{other} g"]).square().sum(2)
        for i in range(10):
            strangers = (~near[i]).nonzero().flatten()
            share = rank[i, strangers].softmax(0) if progress > 0.2 else torch.full((len(strangers),), 1.0)
            hinge = (0.5 * 12 + far[i, near[i]][:, None] - far[i, strangers]).clamp(min=0).mean(0)
            expected += float((hinge * share / share.sum()).sum()) / 10
    terms = system.losses(encoded, batch, at("discriminator", progress))
    assert terms.keys() == {"hinge"}
    assert float(terms["hinge"]) == pytest.approx(expected, abs=0.02)


def test_each_player_moves_its_own_parameters() -> None:
    system, batch = made(pretraining=0.3, generator_steps=3, generator_rate=2e-3), whole(classed(10))
    judge, forger = system.phases()
    assert {id(p) for p in (*judge.parameters, *forger.parameters)} == {id(p) for p in system.parameters()}
    assert (judge.start, forger.start, forger.repeat, forger.optimizer) == (0.0, 0.3, 3, {"learning_rate": 2e-3})
    for phase, other in ((judge, forger), (forger, judge)):
        system.zero_grad()
        terms, _ = system.train()(batch, at(phase.name, 0.5))
        assert tuple(terms) == phase.losses
        terms[phase.losses[0]].backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in phase.parameters)
        assert not any(p.grad is not None and bool(p.grad.any()) for p in other.parameters)
    assert set(system(batch, at())[0]) == {"hinge", "policy"}


def test_a_generator_alone_finds_what_the_discriminator_confuses() -> None:
    """Its player, against a discriminator that stands still: what it draws comes to be ranked closer."""
    system, batch = made(bits=16, draws=8).train(), whole(classed(40))
    with torch.no_grad():
        for last in (system.discriminator[name][-2] for name in ("audio", "video")):
            last.weight.mul_(6)  # codes that differ

    def closeness() -> float:
        with torch.no_grad():
            e = system.encode(batch)
            far = apart(e["audio"], e["video"])
            return float((far.mean(1) - ((-apart(e["audio g"], e["video g"])).softmax(1) * far).sum(1)).mean())

    before, optimizer, at_work = (
        closeness(),
        torch.optim.Adam(system.generator.parameters(), 5e-3),
        at("generator", 0.5),
    )
    for _ in range(100):
        optimizer.zero_grad()
        system(batch, at_work)[0]["policy"].backward()
        optimizer.step()
    assert closeness() > before + 0.5


def test_clips_that_lack_a_modality_take_no_part() -> None:
    batch, system = whole(classed(20)), made().eval()
    mask = batch.video.mask.clone()
    mask[5:9] = False
    holes = replace(batch, streams={**batch.streams, "video": batch.video._replace(mask=mask)})
    rest = torch.tensor([i for i in range(20) if not 5 <= i < 9])
    streams = {n: Stream(s.data[rest], s.mask[rest], s.rate) for n, s in batch.streams.items()}
    less = replace(batch, id=tuple(str(int(i)) for i in rest), streams=streams, label=batch.label[rest])
    for turn in ("discriminator", "generator"):
        one, two = (system(given, at(turn, 0.5))[0] for given in (holes, less))
        torch.testing.assert_close(one, two)


# ------------------------------------------------------------------------------------------------------------- learning
def test_binary_codes_find_the_class_without_a_label() -> None:
    model, untrained, test = trained(12), trained(0), classed(100, seed=1)
    assert class_map(untrained, test) < 0.35  # a guess has .2
    assert class_map(model, test) > 0.75
    assert set(model.system.embed(whole(test), "audio+video").unique().tolist()) == {-1.0, 1.0}
    history = [entry["losses"] for entry in model.meta["history"]]
    assert history[-1]["hinge"] < 0.7 * history[0]["hinge"]
    assert ["policy" in losses for losses in history] == [False] * 2 + [True] * 10  # the generator came in later


def test_real_codes_find_the_class_too() -> None:
    test = classed(100, seed=1)
    assert class_map(trained(12, codes="real"), test) > 0.75
    assert class_map(trained(0, codes="real"), test) < 0.35


def test_labels_change_nothing() -> None:
    data = classed(60)
    batch = whole(data)
    blind = replace(batch, label=torch.full_like(batch.label, -1))
    system = made()
    torch.testing.assert_close(system(batch, at())[0], system(blind, at())[0], atol=0, rtol=0)


# ---------------------------------------------------------------------------------------------------------------- codes
def test_codes_are_those_of_the_discriminator() -> None:
    system, batch = made().eval(), whole(classed(10))
    assert isinstance(system, Embeds)
    assert isinstance(system, Represents)
    s = system.encode(batch)["video"].detach()
    torch.testing.assert_close(system.embed(batch, "video"), torch.where(s >= 0.5, 1.0, -1.0))
    torch.testing.assert_close(system.features(batch, "video"), 2 * s - 1)
    both = (system.features(batch, "audio") + system.features(batch, "video")) / 2
    torch.testing.assert_close(system.features(batch, "audio+video"), both)
    code = system.embed(batch, "video")
    hamming = (code[:, None] != code).sum(2)
    torch.testing.assert_close(system.similarity(code, code), (12 - 2 * hamming).float())
    real = made(codes="real").eval()
    z = real.embed(batch, "video")
    torch.testing.assert_close(z, torch.nn.functional.normalize(s, dim=1))
    cosine = torch.nn.functional.cosine_similarity(s[:, None], s, dim=2)
    torch.testing.assert_close(real.similarity(z, z), cosine)
    blank = Stream(torch.zeros_like(batch.video.data), torch.zeros_like(batch.video.mask), 1.0)
    nothing = replace(batch, streams={"video": blank})
    assert not bool(real.embed(nothing, "video").any())
    assert bool((system.embed(nothing, "video") == 1).all())


def test_what_it_cannot_learn_from() -> None:
    batch = whole(classed(10))
    with pytest.raises(BatchError, match="two clips or more"):
        made()(whole(classed(1)), at())
    with pytest.raises(ConfigError, match="codes") as refused:
        made(codes="reel")
    assert "real" in (refused.value.hint or "")
    spec = classed(10).spec
    three = DataSpec({**spec.streams, "text": StreamSpec("features", (5,), 1.0)})
    with pytest.raises(ConfigError, match=r"two modalities, not audio, video, text"):
        UGACH(UGACHConfig.tiny(), three)
    with pytest.raises(ConfigError, match="audoi"):
        made().embed(batch, "audoi")
    for wrong in ({"pretraining": 1.0}, {"neighbors": 0}, {"draws": 0}, {"margin": -1.0}, {"generator_steps": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            made(**wrong)
