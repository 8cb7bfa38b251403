"""agah: the memory of the classes, whose turn it is, every term as its equation says, and that codes find the class."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hashing_toys import at, class_map, classed, whole

import avcl
from avcl.errors import BatchError, ConfigError
from avcl.objectives.classification import cross_entropy
from avcl.seeds import seeded
from avcl.systems.agah import AGAH, AGAHConfig, ClassMemory


def made(**settings: object) -> AGAH:
    with seeded(0, "init"):
        return AGAH(replace(AGAHConfig.tiny(), **settings), classed(10).spec)


def test_memory_of_the_classes() -> None:
    memory = ClassMemory(3, 2, 2)
    assert set(memory.codes.unique().tolist()) <= {-1.0, 1.0}
    before, f = memory.codes[2].clone(), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    torch.testing.assert_close(memory.attended(f, 0.8), 0.8 * f)  # no centers yet
    memory.add(f, torch.tensor([[0.5, -0.1], [-0.2, -0.4], [-0.9, 0.3]]), torch.tensor([0, 0, 1]))
    assert not bool(memory.centers.any())  # not before the epoch is over
    memory.renew()
    expected = torch.tensor([[2**-0.5, 2**-0.5], [0.6, 0.8], [0.0, 0.0]])
    torch.testing.assert_close(memory.centers, expected)
    torch.testing.assert_close(memory.codes, torch.stack([torch.tensor([1.0, -1]), torch.tensor([-1.0, 1]), before]))
    weight = torch.sigmoid(5 * f[0] @ expected.T)
    mixed = 0.8 * f[0] + 0.2 * (weight[:, None] * expected).sum(0) / weight.sum()
    torch.testing.assert_close(memory.attended(f, 0.8)[0], mixed)
    assert not bool(memory.feature_sum.any() or memory.code_sum.any())


def test_the_terms_are_what_the_equations_say() -> None:
    weights = {"code": 0.3, "quantization": 0.4, "balance": 0.5, "classify": 0.6, "adversarial": 0.7, "margin": 0.3}
    system, batch = made(**weights).eval(), whole(classed(10))
    encoded = system.encode(batch)
    terms = system.losses(encoded, batch, at())
    unit = [torch.nn.functional.normalize(encoded[name], dim=1) for name in ("audio", "video")]
    same, triplets = batch.label[:, None] == batch.label, []
    for s in (unit[0] @ unit[1].T, unit[1] @ unit[0].T):
        over = (s[:, None, :] - s[:, :, None] + 0.3).clamp(min=0)  # anchor, positive, negative
        triplets.append(over[same[:, :, None] & ~same[:, None, :]].mean())
    torch.testing.assert_close(terms["triplet"], sum(triplets))
    sought = 2.0 * torch.nn.functional.one_hot(batch.label, 5) - 1
    expected = {"code": 0.0, "quantization": 0.0, "balance": 0.0, "class": 0.0, "mislead": 0.0}
    for name, other in (("audio", "video"), ("video", "audio")):
        h, f, critic = encoded[name], encoded[f"{name} f"], system.critics[name]
        expected["code"] += 0.3 * (h @ system.memory.codes.T / 12 - sought).square().mean()
        expected["quantization"] += 0.4 * (h - torch.where(h >= 0, 1.0, -1.0)).square().mean()
        expected["balance"] += 0.5 * h.mean(0).square().mean()
        logits = system.classifiers[name](system.memory.attended(f, 0.8))
        expected["class"] += 0.6 * cross_entropy(logits, batch.label)
        expected["mislead"] += 0.7 * (critic.logits(f).mean() - critic.logits(encoded[f"{other} f"]).mean())
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    assert set(terms) == {*expected, "triplet", "critics"}


def test_each_player_moves_its_own_parameters() -> None:
    system = made()
    networks, critics = system.phases()
    assert {id(p) for p in (*networks.parameters, *critics.parameters)} == {id(p) for p in system.parameters()}
    for phase, other in ((networks, critics), (critics, networks)):
        system.zero_grad()
        terms, _ = system.train()(whole(classed(10)), at(phase.name))
        torch.stack([terms[name] for name in phase.losses]).sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in phase.parameters if p.ndim > 1)
        assert not any(p.grad is not None and bool(p.grad.any()) for p in other.parameters)
    assert set(system(whole(classed(10)), at("critics"))[0]) == {"critics"}
    (alone,) = made(adversarial=0.0, classify=0.0).phases()
    assert len(alone.parameters) == len(list(made(adversarial=0.0, classify=0.0).parameters()))


@pytest.mark.parametrize("adversarial", [0.1, 0.0])
def test_binary_codes_find_the_class(adversarial: float) -> None:
    settings = {"bits": 16, "hidden": (32,), "dim": 32, "critic": (16,), "batch_size": 50, "learning_rate": 5e-3}
    model = avcl.train("agah", classed(), settings={**settings, "epochs": 8, "adversarial": adversarial}, workers=0)
    test = classed(100, seed=1)
    assert class_map(model, test) > 0.7  # chance .2
    assert set(model.system.embed(whole(test), "audio+video").unique().tolist()) == {-1.0, 1.0}
    assert bool(model.system.memory.centers.any())


def test_what_it_cannot_learn_from() -> None:
    batch = whole(classed(10))
    with pytest.raises(BatchError, match="needs a label"):
        made()(replace(batch, label=torch.full((10,), -1)), at())
    with pytest.raises(ConfigError, match="learns from classes"):
        AGAH(AGAHConfig.tiny(), replace(classed(10).spec, labels=()))
    with pytest.raises(ConfigError, match="audoi"):
        made().embed(batch, "audoi")
