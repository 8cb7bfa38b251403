"""GDT: the pairs of every hypothesis one by one, and what the loss makes of them."""

from __future__ import annotations

import math

import pytest
import torch

from avcl.data import collate
from avcl.errors import ConfigError
from avcl.objectives.contrastive import info_nce
from avcl.system import Step
from avcl.systems.patrick2020_gdt import GDT, HYPOTHESES, GDTConfig, View, contrasts, within_one
from avcl.testing.systems import media_spec, world_clips

N, R, S, SR = View(), View(reversed=True), View(shifted=True), View(True, True)


def table(hypothesis: int) -> dict[tuple[View, int], dict[tuple[View, int], list[str]]]:
    """Of a batch of two clips: {query (view, clip): {key (view, clip): signs}}, one sign for each contrast."""
    found: dict = {}
    for c in contrasts(hypothesis):
        for clip in (0, 1):
            row = found.setdefault((c.query, clip), {})
            for other in (0, 1):
                for view in c.views:
                    if other == clip:
                        sign = "+" if view == c.positive else ("-" if c.own else "")
                    else:
                        sign = "-"
                    if sign:
                        row.setdefault((view, other), []).append(f"{c.name} {sign}")
    return found


def test_hypothesis_1_is_the_clip_alone() -> None:
    assert table(1) == {(N, i): {(N, i): ["base +"], (N, 1 - i): ["base -"]} for i in (0, 1)}


@pytest.mark.parametrize(("hypothesis", "name", "twin"), [(2, "reversal", R), (4, "shift", S)])
def test_a_distinctive_transformation_makes_the_own_clip_a_negative(hypothesis: int, name: str, twin: View) -> None:
    expected = {}
    for i in (0, 1):
        for query, other in ((N, twin), (twin, N)):
            expected[query, i] = {
                (query, i): [f"{name} +"],
                (other, i): [f"{name} -"],  # the hard one: the same clip, transformed
                (query, 1 - i): [f"{name} -"],
                (other, 1 - i): [f"{name} -"],
            }
    assert table(hypothesis) == expected


@pytest.mark.parametrize(("hypothesis", "name", "twin"), [(3, "reversal", R), (5, "shift", S)])
def test_an_invariant_transformation_makes_the_own_clip_the_positive(hypothesis: int, name: str, twin: View) -> None:
    found = table(hypothesis)
    for i in (0, 1):
        for query, other in ((N, twin), (twin, N)):
            row = found[query, i]
            assert row[other, i] == [f"{name} +"]
            assert row[query, i] == ["base +"]  # no negative of the invariance: left out, and positive of the base
            assert row[other, 1 - i] == [f"{name} -"]
            assert sorted(row[query, 1 - i]) == ["base -", f"{name} -"]


@pytest.mark.parametrize(("hypothesis", "weight"), [(6, 1 / 4), (7, 1 / 5), (8, 1 / 5), (9, 1 / 6)])
def test_two_transformations_are_averaged_over_their_terms(hypothesis: int, weight: float) -> None:
    """Reversal at either moment, shift forward and backward, and a base for each invariance."""
    found = contrasts(hypothesis)
    roles = HYPOTHESES[hypothesis]
    assert sum(c.weight for c in found) == pytest.approx(1)
    pairs = {"reversal": ({N, R}, {S, SR}), "shift": ({N, S}, {R, SR})}
    for name, role in roles.items():
        for pair in pairs[name]:
            mine = [c for c in found if c.name == name and set(c.views) == pair]
            assert {c.query for c in mine} == pair
            assert sum(c.weight for c in mine) == pytest.approx(weight)
            assert all(c.own == (role == "distinctive") for c in mine)
            assert all((c.query == c.positive) == (role == "distinctive") for c in mine)
    invariances = sum(role == "invariant" for role in roles.values())
    assert sum(c.weight for c in found if c.name == "base") == pytest.approx(weight * invariances)


def made(**settings) -> GDT:
    config = GDTConfig.from_json(
        {**{k: getattr(GDTConfig.tiny(), k) for k in ("size", "sound", "hidden", "dim")}, **settings}
    )
    return GDT(config, media_spec(GDT.inputs(config)))


def encoded(views: int, clips: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    there = torch.ones(clips, dtype=torch.bool)
    found = {n: torch.randn(clips, views, 8, generator=generator) for n in ("audio", "video")}
    return {**{n: torch.nn.functional.normalize(v, dim=2) for n, v in found.items()}, "audio?": there, "video?": there}


AT = Step(0, 1, 0, 0.0, torch.Generator())


def test_hypothesis_1_equals_symmetric_info_nce() -> None:
    z = encoded(1)
    terms = made(hypothesis=1, temperature=0.1).losses(z, None, AT)
    assert set(terms) == {"base"}
    torch.testing.assert_close(terms["base"], info_nce(z["audio"][:, 0], z["video"][:, 0], temperature=0.1))


@pytest.mark.parametrize("hypothesis", [4, 5])
def test_the_loss_is_written_out(hypothesis: int) -> None:
    """Pair by pair, in plain Python, for the shift."""
    z, tau = encoded(2), 0.1
    terms = made(hypothesis=hypothesis, temperature=tau).losses(z, None, AT)
    total = 0.0
    for one, other in (("audio", "video"), ("video", "audio")):
        for i in range(5):
            for x in (0, 1):
                y = 1 - x

                def score(j: int, view: int, i=i, x=x, one=one, other=other) -> float:
                    return math.exp(float(z[one][i, x] @ z[other][j, view]) / tau)

                others = sum(score(j, v) for j in range(5) for v in (0, 1) if j != i)
                if hypothesis == 4:
                    total += 0.25 * -math.log(score(i, x) / (score(i, x) + score(i, y) + others)) / 5
                else:
                    apart = sum(score(j, x) for j in range(5) if j != i)
                    total += 0.125 * -math.log(score(i, y) / (score(i, y) + others)) / 5
                    total += 0.125 * -math.log(score(i, x) / (score(i, x) + apart)) / 5
    assert float(sum(terms.values())) == pytest.approx(total, rel=1e-5)


def test_keys_can_be_left_without_gradient() -> None:
    """Then sounds are moved by the sounds' queries alone, each pair costing the same."""
    z = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in encoded(1).items()}
    costs, gradients = [], []
    for detach in (False, True):
        term = made(hypothesis=1, detach=detach).losses(z, None, AT)["base"]
        costs.append(float(term.detach()))
        gradients.append(torch.autograd.grad(term, z["audio"])[0])
    assert costs[0] == costs[1]
    assert not torch.allclose(*gradients)


def test_one_modality_is_contrasted_with_itself() -> None:
    found = within_one(contrasts(5))
    assert {c.name for c in found} == {"shift"}
    assert sum(c.weight for c in found) == pytest.approx(1)
    with pytest.raises(ConfigError, match="invariance"):
        within_one(contrasts(4))
    system = made(modalities="audio", hypothesis=5, temperature=0.1)
    z = {k: v for k, v in encoded(2).items() if k.startswith("audio")}
    found = float(system.losses(z, None, AT)["shift"])
    total = 0.0
    for i in range(5):
        for x in (0, 1):
            own = math.exp(float(z["audio"][i, x] @ z["audio"][i, 1 - x]) / 0.1)
            others = sum(
                math.exp(float(z["audio"][i, x] @ z["audio"][j, v]) / 0.1) for j in range(5) for v in (0, 1) if j != i
            )
            total -= math.log(own / (own + others)) / 10
    assert found == pytest.approx(total, rel=1e-5)


def test_every_hypothesis_can_be_trained_on() -> None:
    clips = world_clips(GDT)
    for hypothesis in HYPOTHESES:
        system = made(hypothesis=hypothesis).train()
        terms, found = system(collate(clips).to("cpu"), AT)
        assert found["video"].shape[:2] == (8, len(system.views))
        assert {1: 1, 2: 2, 3: 2, 4: 2, 5: 2}.get(hypothesis, 4) == len(system.views)
        assert bool(torch.isfinite(sum(terms.values())))
    with pytest.raises(ConfigError, match="hypothesis"):
        GDTConfig(hypothesis=10)


def test_an_embedding_is_made_of_the_views_of_a_clip() -> None:
    system, batch = made(looks=3).eval(), collate(world_clips(GDT)).to("cpu")
    z, f = system.embed(batch, "video"), system.features(batch, "video")
    assert z.shape == (8, 3 * 8)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(8))
    assert f.shape == (8, system.towers["video"].dim)
    with pytest.raises(ConfigError, match="text"):
        system.embed(batch, "text")
