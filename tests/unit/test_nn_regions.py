"""Sound and places against loops over frames and regions: maps, missing regions, other rates, the consistency term."""

from __future__ import annotations

import math

import pytest
import torch
from attention_toys import D, build, features, looked_up, softmax
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.context import clock_of
from avcl.nn.regions import (
    AudioGuidedAttention,
    InstanceAttention,
    ProjectorCoAttention,
    RegionAttention,
    RegionCoAttention,
    RegionSelfAttention,
    SlowFastAttention,
    attention_consistency,
)
from avcl.types import Stream

H, W = 2, 3


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def pictures(*lengths: int, steps: int = 0, rate: float = 4.0, dim: int = D, seed: int = 5) -> Stream:
    flat = features(*lengths, steps=steps, rate=rate, dim=H * W * dim, seed=seed)
    return flat._replace(data=flat.data.unflatten(2, (H, W, dim)))


def some_places(regions: Stream, seed: int = 7) -> Tensor:
    """Places, a third of them missing; frame 0 of the first clip has none."""
    there = torch.rand(regions.data.shape[:4], generator=torch.Generator().manual_seed(seed)) > 0.33
    there[0, 0] = False
    return there


# -------------------------------------------------------------------------------------------------- against their loops
def guided_loop(part: nn.Module, sound: Tensor | None, cells: Tensor) -> tuple[list[float], Tensor]:
    """The weights and the reading of one frame, region by region."""
    scores = []
    for region in cells:
        if isinstance(part, AudioGuidedAttention):
            inner = part.of_region.weight @ torch.relu(part.region(region))
            if sound is not None:
                inner = inner + part.of_sound.weight @ torch.relu(part.sound(sound))
            scores.append(float(part.weigh(torch.tanh(inner))))
            continue
        q = part.query(sound) if sound is not None else torch.zeros(part.query.out_features, dtype=torch.float64)
        k = part.key(region)
        name = part.score.name
        if name == "additive":
            scores.append(float(part.score.weight.flatten() @ torch.tanh(q + k)))
        elif name == "cosine":
            scores.append(float(nn.functional.cosine_similarity(q, k, dim=0) * part.score.log_scale.exp()))
        else:
            scores.append(float(q @ k) / (math.sqrt(len(k)) if name == "scaled_dot" else 1))
    shares = softmax(scores)
    return shares, sum(p * region for p, region in zip(shares, cells, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("form", ["scaled_dot", "dot", "cosine", "additive", "avel"])
def test_regions_are_weighed_as_in_the_loop(form: str) -> None:
    part = build(
        AudioGuidedAttention(6, D, hidden=5, units=7) if form == "avel" else RegionAttention(6, D, hidden=5, score=form)
    )
    sound, regions = features(6, 4, dim=6, rate=8.0), pictures(4, 3)
    places = some_places(regions)
    out, attended = part(sound, regions, places=places, return_attention=True)
    assert attended.shape == (2, 4, H, W)
    assert torch.allclose(part(sound, regions, places=places).data, out.data)
    assert (out.rate, part.dim) == (4.0, D)
    heard = clock_of(sound, regions)
    for i in range(2):
        for t in range(4):
            there = places[i, t] & regions.mask[i, t]
            assert bool(out.mask[i, t]) == bool(there.any())
            assert not attended[i, t][~there].any()
            if not there.any():
                assert not out.data[i, t].any()
                continue
            shares, read = guided_loop(part, heard.data[i, t] if heard.mask[i, t] else None, regions.data[i, t][there])
            assert torch.allclose(attended[i, t][there], torch.tensor(shares, dtype=torch.float64), atol=1e-12)
            assert torch.allclose(out.data[i, t], read, atol=1e-12)
            if not heard.mask[i, t] and form not in ("additive", "avel"):
                assert torch.allclose(attended[i, t][there], 1 / there.sum().double())


def test_the_size_of_the_paper() -> None:
    count = sum(p.numel() for p in AudioGuidedAttention.paper().parameters())
    assert count == (128 * 512 + 512) + (512 * 512 + 512) + 2 * 512 * 49 + 49


@torch.no_grad()
def test_objects_look_at_each_other_within_a_frame() -> None:
    part = build(RegionSelfAttention(D, heads=2))
    regions = pictures(3, 2)
    places = some_places(regions)
    out = part(regions, places=places)
    assert out.data.shape == regions.data.shape
    for i in range(2):
        for t in range(3):
            there = places[i, t] & regions.mask[i, t]
            assert not out.data[i, t][~there].any()
            if there.any():
                cells = regions.data[i, t][there]
                assert torch.allclose(out.data[i, t][there], part.norm(cells + looked_up(part.attention, cells, cells)))
    turned = part(regions._replace(data=regions.data.flip(2, 3)), places=places.flip(2, 3))
    assert torch.allclose(turned.data.flip(2, 3), out.data)
    both = build(InstanceAttention(6, D, heads=2, hidden=5))
    sound = features(3, 2, dim=6)
    first = both.guided(sound, both.instances(regions, places=places), places=places)
    assert torch.allclose(both(sound, regions, places=places).data, first.data)
    assert both(sound, regions, return_attention=True)[1].shape == (2, 3, H, W)


@torch.no_grad()
@pytest.mark.parametrize("gate", [False, True])
def test_sound_and_regions_read_each_other(gate: bool) -> None:
    part = build(RegionCoAttention(D, heads=2, gate=gate, past=0.25, future=0.0))
    sound, regions = features(8, 3, rate=8.0), pictures(4, 3)
    places = some_places(regions)
    (told, shown), attended = part(sound, regions, places=places, return_attention=True)
    assert told.data.shape == sound.data.shape
    assert shown.data.shape == regions.data.shape
    assert attended.shape == (2, 4, H, W)
    now = clock_of(sound, regions)
    for i in range(2):
        read = torch.zeros(4, D, dtype=torch.float64)
        for t in range(4):
            there = places[i, t] & regions.mask[i, t]
            if there.any() and now.mask[i, t]:
                read[t] = looked_up(part.looks, now.data[i, t][None], regions.data[i, t][there])[0]
                assert float(attended[i, t].sum()) == pytest.approx(1)
            else:
                assert not attended[i, t].any()
            assert not shown.data[i, t][~there].any()
            if not there.any():
                continue
            near = [j for j in range(8) if sound.mask[i, j] and (j + 1) / 8 > t / 4 - 0.25 and j / 8 < (t + 1) / 4]
            cells = regions.data[i, t][there]
            heard = looked_up(part.hears, cells, sound.data[i, near]) if near else torch.zeros_like(cells)
            heard = part.gates[1](cells, heard) if gate else heard
            assert torch.allclose(shown.data[i, t][there], part.norms[1](cells + heard), atol=1e-12)
        for j in range(8):
            if sound.mask[i, j]:
                seen = part.gates[0](sound.data[i, j], read[j // 2]) if gate else read[j // 2]
                assert torch.allclose(told.data[i, j], part.norms[0](sound.data[i, j] + seen), atol=1e-12)
    assert not told.data[~sound.mask].any()


@torch.no_grad()
@pytest.mark.parametrize("scaled", [True, False])
def test_the_slow_path_places_the_fast_one(scaled: bool) -> None:
    part = build(SlowFastAttention(6, D, 4, dim=3, hidden=5, scaled=scaled))
    sound, slow, fast = features(5, 0, dim=6), pictures(2, 1, rate=1.0), pictures(8, 3, dim=4, seed=6)
    out, attended = part(sound, slow, fast, return_attention=True)
    assert (out.rate, part.dim) == (4.0, 3)
    assert out.data.shape == (2, 8, 3)
    for i in range(2):
        query = part.sound(sound.data[i, sound.mask[i]]).mean(0) if sound.mask[i].any() else None
        key = part.slow(slow.data[i, slow.mask[i]]).mean(0).flatten(0, 1)
        scores = [0.0 if query is None else float(query @ k) / (math.sqrt(5) if scaled else 1) for k in key]
        shares = softmax(scores)
        assert attended[i].flatten().tolist() == pytest.approx(shares)
        for t in range(8):
            cells = fast.data[i, t].flatten(0, 1)
            expected = part.fast(sum(p * c for p, c in zip(shares, cells, strict=True)))
            assert torch.allclose(out.data[i, t], expected * fast.mask[i, t], atol=1e-12)
    even = slow._replace(data=slow.data[:, :, :1, :1].expand_as(slow.data))
    assert torch.allclose(part(sound, even, fast, return_attention=True)[1], torch.tensor(1 / 6, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("read", ["alone", "guided", "both"])
def test_two_maps_and_the_term_that_ties_them(read: str) -> None:
    part = build(ProjectorCoAttention(D, 6, hidden=5, read=read))
    regions, guide = pictures(3, 2, 2), features(4, 0, 3, dim=6, rate=8.0)
    places = some_places(regions)
    places[1, :, 0, 0] = False
    (vector, term), (alone, guided) = part(regions, guide, places=places, return_attention=True)
    assert vector.shape == (3, D)
    assert alone.shape == guided.shape == (3, H, W)
    gaps = []
    for i in range(3):
        means, where = [], []
        for p in range(H * W):
            kept = [t for t in range(3) if places[i, t].flatten()[p] and regions.mask[i, t]]
            if kept:
                means.append(regions.data[i, kept].flatten(1, 2)[:, p].mean(0))
                where.append(p)
        a = softmax([float(part.weigh(torch.tanh(part.alone(m)))) for m in means])
        heard = part.guide(guide.data[i, guide.mask[i]]).mean(0) if guide.mask[i].any() else None
        b = softmax([0.0 if heard is None else float(heard @ part.place(m)) / math.sqrt(5) for m in means])
        assert alone[i].flatten()[where].tolist() == pytest.approx(a)
        assert guided[i].flatten()[where].tolist() == pytest.approx(b)
        used = {"alone": a, "guided": b, "both": [(x + y) / 2 for x, y in zip(a, b, strict=True)]}[read]
        assert torch.allclose(vector[i], sum(u * m for u, m in zip(used, means, strict=True)))
        if heard is not None:
            la, lb = (math.sqrt(sum(x * x for x in m)) for m in (a, b))
            gaps.append(math.sqrt(sum((x / la - y / lb) ** 2 for x, y in zip(a, b, strict=True))))
    assert float(term) == pytest.approx(sum(gaps) / len(gaps), rel=1e-5)  # clip 1 heard nothing: it does not count


def test_the_consistency_term_by_hand() -> None:
    half, corner = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]), torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    both, first = torch.tensor([True, True]), torch.tensor([True, False])
    cosine = math.sqrt(0.5)
    for distance, expected in (("l2", math.sqrt(2 - 2 * cosine)), ("cosine", 1 - cosine), ("kl", math.log(2))):
        assert float(attention_consistency(half, corner, first, distance=distance)) == pytest.approx(expected, abs=1e-6)
        assert float(attention_consistency(half, corner, both, distance=distance)) == pytest.approx(
            expected / 2, abs=1e-6
        )
        alone, guided = half.clone().requires_grad_(), corner.clone().requires_grad_()
        attention_consistency(alone, guided, both, distance=distance, stop_gradient=False).backward()
        assert torch.isfinite(alone.grad).all()
        assert torch.isfinite(guided.grad).all()
        assert guided.grad.any()
    alone, guided = half.clone().requires_grad_(), corner.clone().requires_grad_()
    attention_consistency(alone, guided, both).backward()
    assert alone.grad.any()
    assert guided.grad is None  # a target
    assert attention_consistency(alone, guided, ~both).item() == 0
    with pytest.raises(ConfigError, match="distance"):
        attention_consistency(half, corner, both, distance="js")
    with pytest.raises(BatchError, match="mask"):
        attention_consistency(half, corner, torch.tensor([True]))


# ------------------------------------------------------------------------------------------------------ what they share
PARTS = {
    "dot": lambda: RegionAttention(D, D, hidden=5),
    "bilinear": lambda: RegionAttention(D, D, hidden=5, score="bilinear"),
    "additive": lambda: RegionAttention(D, D, hidden=5, score="additive"),
    "avel": lambda: AudioGuidedAttention(D, D, hidden=5, units=7),
    "instances": lambda: InstanceAttention(D, D, heads=2, hidden=5),
    "both-ways": lambda: RegionCoAttention(D, heads=2),
    "both-ways-gated": lambda: RegionCoAttention(D, heads=2, gate=True, past=0.25, future=0.25),
    "slow-fast": lambda: SlowFastAttention(D, D, D, dim=4, hidden=5),
    "projectors": lambda: ProjectorCoAttention(D, D, hidden=5),
}


def tensors(part: nn.Module, sound: Stream, regions: Stream) -> list[Tensor]:
    """Everything a part returns, streams as (data, mask)."""
    if isinstance(part, SlowFastAttention):
        out, attended = part(sound, regions, regions, return_attention=True)
    elif isinstance(part, ProjectorCoAttention):
        (vector, term), maps = part(regions, sound, return_attention=True)
        return [vector, term, *maps]
    else:
        out, attended = part(sound, regions, return_attention=True)
    streams = [out] if isinstance(out, Stream) else list(out)
    for stream in streams:
        assert not stream.data[~stream.mask].any()
    return [*(s.data for s in streams), attended]


@pytest.fixture(params=list(PARTS))
def part(request: pytest.FixtureRequest) -> nn.Module:
    return build(PARTS[request.param]())


@torch.no_grad()
def test_padding_and_partners_change_nothing(part: nn.Module) -> None:
    sound, regions = features(7, 4, rate=8.0), pictures(3, 4)
    alone = tensors(part, sound, regions)
    longer = features(7, 4, rate=8.0, steps=12), pictures(3, 4, steps=9)
    for long, short in zip(longer, (sound, regions), strict=True):
        long.data[:, : short.data.shape[1]] = short.data
        long.data[~long.mask] = -77.0
    for after, before in zip(tensors(part, *longer), alone, strict=True):
        kept = after[:, : before.shape[1]] if after.shape != before.shape else after
        assert torch.allclose(kept, before, atol=1e-6 if after.ndim == 0 else 1e-12)
    one = [s._replace(data=s.data[1:], mask=s.mask[1:]) for s in (sound, regions)]
    for single, both in zip(tensors(part, *one), alone, strict=True):
        assert single.ndim == 0 or torch.allclose(single[0], both[1], atol=1e-12)


def test_without_sound_or_pictures_nothing_is_nan(part: nn.Module) -> None:
    for heard, seen in (((5, 0), (4, 4)), ((5, 5), (4, 0)), ((0, 0), (0, 0))):
        sound, regions = features(*heard, steps=5), pictures(*seen, steps=4)
        sound, regions = (s._replace(data=s.data.clone().requires_grad_()) for s in (sound, regions))
        out = tensors(part, sound, regions)
        sum(o.sum() for o in out).backward()
        assert all(torch.isfinite(o).all() for o in out)
        assert all(torch.isfinite(s.data.grad).all() for s in (sound, regions) if s.data.grad is not None)
        assert all(torch.isfinite(p.grad).all() for p in part.parameters() if p.grad is not None)
        part.zero_grad()


def test_both_modalities_and_every_parameter_get_a_gradient(part: nn.Module) -> None:
    sound, regions = (
        s._replace(data=s.data.clone().requires_grad_()) for s in (features(6, 5, rate=8.0), pictures(3, 2))
    )
    out = tensors(part, sound, regions)[:2]
    sum((o * torch.randn_like(o)).sum() for o in out if o.ndim != 4).backward()
    for s in (sound, regions):
        assert s.data.grad[s.mask].any()
        assert not s.data.grad[~s.mask].any()
    for name, parameter in part.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(list(PARTS)),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 5),
    st.floats(0.5, 30),
    st.floats(0.5, 30),
)
def test_any_lengths_and_rates(name: str, batch: int, ta: int, tv: int, ra: float, rv: float) -> None:
    out = tensors(PARTS[name]().double().eval(), features(*[ta] * batch, rate=ra), pictures(*[tv] * batch, rate=rv))
    assert all(torch.isfinite(o).all() for o in out)
    shape = (batch, H, W) if name in ("slow-fast", "projectors") else (batch, tv, H, W)
    assert out[-1].shape == shape
    assert name.startswith("both") or torch.allclose(out[-1].sum((-2, -1)), torch.ones(1, dtype=torch.float64))


def test_errors_name_the_part_and_the_shape() -> None:
    sound, regions = features(4, 4), pictures(4, 4)
    for build_one in PARTS.values():
        part = build(build_one())
        with pytest.raises(BatchError, match=r"needs features \[B, T, 8\]"):
            tensors(part, features(4, 4, dim=D + 1), regions)
        with pytest.raises(BatchError, match=r"needs a map \[B, T, H, W, 8\]"):
            tensors(part, sound, sound)
        with pytest.raises(BatchError, match="same clips"):
            tensors(part, features(4), regions)
    part = build(RegionAttention(D, D))
    for places in (torch.ones(2, 4, H, W), torch.ones(2, 4, W, H, dtype=torch.bool)):
        with pytest.raises(BatchError, match="places bool"):
            part(sound, regions, places=places)
    turned = regions._replace(data=regions.data.transpose(2, 3))
    with pytest.raises(BatchError, match="one grid"):
        build(SlowFastAttention(D, D, D, dim=4))(sound, regions, turned)
    for wrong, said in (
        (lambda: RegionAttention(D, D, score="sum"), "score"),
        (lambda: RegionCoAttention(D, past=-1.0), "past"),
        (lambda: ProjectorCoAttention(D, D, read="none"), "read"),
        (lambda: ProjectorCoAttention(D, D, distance="js"), "distance"),
    ):
        with pytest.raises(ConfigError, match=said):
            wrong()
