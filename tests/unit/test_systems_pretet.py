"""pretet2021_music_video: the triplet over the hardest of the batch, and what the paper compares it with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import avcl
from avcl.data import collate
from avcl.data.features import FeatureData
from avcl.errors import BatchError, ConfigError
from avcl.objectives.margin import hinge
from avcl.objectives.triplets import triplet
from avcl.seeds import seeded
from avcl.system import Step
from avcl.systems.pretet2021_music_video import MusicVideo, MusicVideoConfig, hardest_negatives, order_kept
from avcl.types import Batch, Stream

A = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
V = torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.6, -0.8]])
QUICK = {
    "epochs": 15,
    "batch_size": 100,
    "learning_rate": 3e-3,
    "dim": 24,
    "hidden": (48, 32),
    "hidden_video": (48,),
    "hardest": 20,
    "norm_decay": 0.9,
}


def pairs(n: int = 400, *, seed: int = 0) -> FeatureData:
    """Six hidden numbers a pair, bent differently into each modality, in noise; columns of very different scales."""
    mix, rng = np.random.default_rng(7), np.random.default_rng(seed)
    hidden, arrays = rng.normal(size=(n, 6)), {}
    for name, width in (("audio", 20), ("video", 30)):
        x = np.tanh(hidden @ mix.normal(size=(6, width)) / 2) + 0.05 * rng.normal(size=(n, width))
        arrays[name] = (x * 10.0 ** mix.uniform(-2, 2, width) + mix.normal(size=width)).astype(np.float32)
    return FeatureData.from_arrays({**arrays, "id": [f"{seed}-{i}" for i in range(n)]})


def whole(data: FeatureData) -> Batch:
    return collate([data.clip(i) for i in range(len(data))]).to("cpu")


def at() -> Step:
    return Step(0, 10, 0, 0.0, torch.Generator().manual_seed(0))


def made(data: FeatureData, **settings: object) -> MusicVideo:
    with seeded(0, "init"):
        system = MusicVideo(MusicVideoConfig.from_json({**QUICK, **settings}), data.spec)
    system.begin_epoch([whole(data)], 0)
    return system.eval()


# ------------------------------------------------------------------------------------------------------- the objective
def test_with_all_negatives_it_is_the_hinge_and_half_the_triplet_loss_of_twice_the_margin() -> None:
    scores = A @ V.T
    both = hardest_negatives(scores, margin=0.2, count=0) + hardest_negatives(scores.T, margin=0.2, count=0)
    assert float(both) == pytest.approx(7.04 / 6, abs=1e-5)  # the toy batch: 7.04 in all, mean over 2 negatives of 3
    assert float(both) == pytest.approx(float(hinge(A, V, margin=0.2)) / 2, abs=1e-5)
    assert float(both) == pytest.approx(float(triplet(A, V, margin=0.4)) / 2, abs=1e-5)


def test_only_the_hardest_count() -> None:
    scores = A @ V.T
    one = hardest_negatives(scores, margin=0.2, count=1) + hardest_negatives(scores.T, margin=0.2, count=1)
    assert float(one) == pytest.approx(4.72 / 3, abs=1e-5)
    for count in (2, 5, 0):  # more than there are: all of them
        assert torch.equal(
            hardest_negatives(scores, margin=0.2, count=count), hardest_negatives(scores, margin=0.2, count=2)
        )
    generator = torch.Generator().manual_seed(0)
    a, v = (normalize(torch.randn(30, 8, generator=generator), dim=1) for _ in range(2))
    scores = (a @ v.T).requires_grad_()
    hardest_negatives(scores, margin=0.1, count=4).backward()
    assert int((scores.grad > 0).sum()) <= 30 * 4  # a negative that is not among the four gets no gradient


@torch.no_grad()
def test_music_asks_three_times_as_loudly() -> None:
    data = pairs(60)
    batch = whole(data)
    losses = {}
    for weights in ((1.0, 0.0), (0.0, 1.0), (3.0, 1.0)):
        system = made(data, weights=weights)
        losses[weights] = float(system(batch, at())[0]["triplet"])
    assert losses[3.0, 1.0] == pytest.approx(3 * losses[1.0, 0.0] + losses[0.0, 1.0], rel=1e-5)
    assert losses[1.0, 0.0] != pytest.approx(losses[0.0, 1.0], rel=1e-3)


def test_the_order_of_distances_costs_where_it_is_turned_round() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    turn = normalize(torch.cat([torch.cos(x / 5), torch.sin(x / 5)], 1), dim=1)  # the same order on a circle
    assert float(order_kept(turn, x)) == 0
    other = turn.flip(0)[[2, 0, 3, 1]]
    found = float(order_kept(other, x))
    by_hand = 0.0
    for i in range(4):
        j, k = (i + 1) % 4, (i + 2) % 4
        gap = float(other[i] @ (other[j] - other[k]))
        before = float((x[i] - x[k]).norm() - (x[i] - x[j]).norm())
        by_hand += abs(np.sign(gap) - np.sign(before)) * abs(gap) / 4
    assert found == pytest.approx(by_hand, abs=1e-6)
    assert found > 0
    assert float(order_kept(turn[:2], x[:2])) == 0  # two rows have no order


# --------------------------------------------------------------------------------------------------------- the networks
def test_layers_are_those_of_vm_net_and_outputs_have_unit_length() -> None:
    data = pairs(40)
    with seeded(0, "init"):
        paper = MusicVideo(MusicVideoConfig(), data.spec)
    sizes = {n: [m.out_features for m in b.net if isinstance(m, torch.nn.Linear)] for n, b in paper.branches.items()}
    assert sizes == {"audio": [2048, 1024, 512], "video": [2048, 512]}
    assert paper.branches["audio"].norm.eps == 1e-3
    assert paper.branches["audio"].norm.momentum == pytest.approx(0.01)
    system = made(data)
    for name in ("audio", "video", "audio+video"):
        torch.testing.assert_close(system.embed(whole(data), name).norm(dim=1), torch.ones(40))


def test_a_linear_branch_has_no_relu() -> None:
    system = made(pairs(20), linear=("audio",), dropout=0.0)
    kinds = {name: [type(m).__name__ for m in branch.net] for name, branch in system.branches.items()}
    assert "ReLU" not in kinds["audio"]
    assert "ReLU" in kinds["video"]
    x, net = torch.randn(3, 20), system.branches["audio"].net
    torch.testing.assert_close(net(x[:1] + x[1:2]) + net(0 * x[:1]), net(x[:1]) + net(x[1:2]), atol=1e-5, rtol=1e-5)


def test_in_training_the_batch_normalizes_and_later_what_was_seen() -> None:
    data = pairs(50)
    system, batch = made(data, dropout=0.0), whole(data)
    still = system.encode(batch)["audio"]
    torch.testing.assert_close(system.encode(batch)["audio"], still)
    alone = system.embed(whole(data.subset([3])), "audio")
    torch.testing.assert_close(alone[0], still[3], atol=1e-5, rtol=1e-4)
    system.train()
    moved = system.encode(batch)["audio"]
    assert not torch.allclose(moved, still, atol=0.1)
    with pytest.raises(BatchError, match="two or more"):
        system.encode(whole(data.subset([0])))


def test_columns_of_any_scale_count_alike() -> None:
    system, batch = made(pairs(300)), whole(pairs(300))
    for name in ("audio", "video"):
        x = system.features(batch, name)
        torch.testing.assert_close(x.std(0), torch.ones(x.shape[1]), atol=0.02, rtol=0)
        assert float(x.mean(0).abs().max()) < 1e-3


def test_clips_without_one_of_the_two_take_no_part() -> None:
    data = pairs(40)
    system, batch = made(data, structure=0.2), whole(data)
    audio = batch.streams["audio"]
    mask = audio.mask.clone()
    mask[:5] = False
    blank = Stream(audio.data.masked_fill(~mask[:, :, None], 0), mask, audio.rate)
    partial = Batch(
        batch.id, {**batch.streams, "audio": blank}, batch.index, batch.view, batch.label, batch.group, batch.extras
    )
    found, encoded = system(partial, at())
    rest, _ = system(whole(data.subset(range(5, 40))), at())
    for name, value in rest.items():
        torch.testing.assert_close(found[name], value)
    assert not encoded["both"][:5].any()
    assert not system.embed(partial, "audio")[:5].any()
    nothing = Stream(0 * blank.data, torch.zeros_like(mask), audio.rate)
    with pytest.raises(BatchError, match="two clips"):
        system(Batch(batch.id, {**batch.streams, "audio": nothing}, *_rest(batch)), at())


def _rest(batch: Batch) -> tuple:
    return batch.index, batch.view, batch.label, batch.group, batch.extras


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "quadruplet"}, "quadruplet"),
        ({"weights": (1.0, 1.0, 1.0)}, "two numbers"),
        ({"linear": ("audoi",)}, "audoi"),
        ({"margin": -0.1}, "margin"),
        ({"modalities": ("audio", "vido")}, "vido"),
    ],
)
def test_refuses(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        made(pairs(10), **settings)


# ------------------------------------------------------------------------------------------------------------- learning
@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    """Recall@1 of held-out pairs, the mean of the directions, by objective and weight of the structure term."""
    scores = {}
    for objective, structure in (("triplet", 0.0), ("triplet", 0.2), ("correspondence", 0.0)):
        settings = {**QUICK, "objective": objective, "structure": structure}
        model = avcl.train("pretet2021_music_video", pairs(), seed=0, settings=settings, workers=0)
        report = avcl.evaluate(model, pairs(200, seed=1), relevance="pair", workers=0)
        scores[f"{objective} {structure:g}"] = report.scores["mean"]["R@1"]
    return scores


def test_learns_pairs_with_every_objective(found: dict[str, float]) -> None:
    """Chance is .005 of 200."""
    assert min(found.values()) > 0.2, found


def test_the_triplet_is_better_than_the_correspondence_loss(found: dict[str, float]) -> None:
    """The paper's second finding."""
    assert found["triplet 0"] > found["correspondence 0"] + 0.1, found
