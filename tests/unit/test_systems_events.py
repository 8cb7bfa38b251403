"""The two event localizers: equations, both kinds of supervision, matching that hears and sees for itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from avcl.data import collate
from avcl.data.world import World
from avcl.encoders.segments import CellConv, SegmentTowers
from avcl.errors import BatchError, ConfigError
from avcl.nn.events import EventTerms, SegmentMatch, blank, looked
from avcl.seeds import seeded
from avcl.system import Matches, Segments, Step
from avcl.systems.duan2021_jca import Jca, JcaConfig
from avcl.systems.tian2018_avel import Avel, AvelConfig
from avcl.types import Batch, DataSpec, Stream, StreamSpec

TINY = {"dim": 8, "widths": (4, 4, 6), "units": 4, "frames": 1}
BOTH = [(Avel, AvelConfig, {"hidden": 4}), (Jca, JcaConfig, {"width": 8, "repeats": 1, "dropout": 0.0})]


def step(seed: int = 0) -> Step:
    return Step(0, 10, 0, 0.0, torch.Generator().manual_seed(seed))


def batch_of(n: int = 6) -> tuple[Batch, DataSpec]:
    world = World("events", clips=n, split="train").configure(Avel.inputs(AvelConfig()))
    return collate([world.clip(i) for i in range(n)]).to("cpu"), world.spec


def made(cls, config, more, spec: DataSpec, **settings):
    with seeded(0, "init"):
        return cls(config(**{**TINY, **more, **settings}), spec)


# ------------------------------------------------------------------------------------------------------------- towers
def test_frames_are_those_in_the_middle_of_equal_parts() -> None:
    spec = DataSpec({"audio": StreamSpec("audio", (1,), 8000.0), "video": StreamSpec("video", (3, 32, 32), 4.0)})
    video = Stream(torch.arange(20.0)[None, :, None, None, None], torch.ones(1, 20, dtype=torch.bool), 4.0)
    one = SegmentTowers(spec, seconds=5.0, steps=10, frames=1, dim=4, widths=(4, 4, 4))
    assert one.picked(video).data.flatten().tolist() == list(range(1, 20, 2))  # a half second's second frame
    two = SegmentTowers(spec, seconds=5.0, steps=10, frames=2, dim=4, widths=(4, 4, 4))
    assert two.picked(video).data.flatten().tolist() == list(range(20))
    short = one.picked(Stream(video.data[:, :7], video.mask[:, :7], 4.0))
    assert short.mask[0].tolist() == [True] * 3 + [False] * 7
    assert short.rate == 2.0


def test_features_become_segments_of_unit_steps() -> None:
    spec = DataSpec({"audio": StreamSpec("features", (4,), 1.0), "video": StreamSpec("map", (2, 3, 5), 1.0)})
    towers = SegmentTowers(spec, seconds=10.0, steps=10)
    assert (towers.sound_dim, towers.region_dim, towers.placed) == (4, 5, True)
    mask = torch.ones(2, 10, dtype=torch.bool)
    streams = {
        "audio": Stream(torch.randn(2, 10, 4), mask, 1.0),
        "video": Stream(torch.randn(2, 10, 2, 3, 5), mask, 1.0),
    }
    rows = torch.arange(2)
    batch = Batch(("a", "b"), streams, rows, rows, rows, ("a", "b"))
    sound, regions = towers.encode(batch)
    assert sound.data.norm(dim=2) == pytest.approx(torch.ones(2, 10).numpy(), abs=1e-5)
    expected = torch.nn.functional.normalize(streams["video"].data, dim=4)
    torch.testing.assert_close(regions.data, expected)
    again = towers.pair(towers.encode(batch).tensors())
    assert again.regions.rate == regions.rate
    with pytest.raises(ConfigError, match="cannot be read from audio"):
        SegmentTowers(
            replace(spec, streams={**spec.streams, "audio": StreamSpec("map", (2, 2, 3), 1.0)}), seconds=1, steps=1
        )
    with pytest.raises(ConfigError, match="three numbers"):
        SegmentTowers(spec, seconds=1, steps=1, widths=(1, 2))


def test_cells_lie_where_the_picture_is() -> None:
    tower = CellConv((4, 6, 8)).eval()
    picture = torch.full((1, 1, 3, 64, 64), 0.5)
    one = torch.ones(1, 1, dtype=torch.bool)
    plain = tower(Stream(picture, one, 4.0)).data
    assert plain.shape == (1, 1, 4, 4, 8)
    spot = picture.clone()
    spot[..., 52:60, 4:12] = 1.0  # cells stand at every 16th pixel and see 15 to each side
    changed = (tower(Stream(spot, one, 4.0)).data - plain).abs().sum(4)[0, 0]
    assert {tuple(cell) for cell in changed.nonzero().tolist()} == {(3, 0), (3, 1)}


# ------------------------------------------------------------------------------------------------------ both systems
@pytest.mark.parametrize(("cls", "config", "more"), BOTH)
def test_full_supervision_reaches_every_parameter(cls, config, more) -> None:
    batch, spec = batch_of()
    system = made(cls, config, more, spec, sides=0.5).train()
    terms, _ = system(batch, step())
    assert set(terms) == {"events", "sides", "match"}
    sum(terms.values()).backward()
    without = [n for n, p in system.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not without
    assert isinstance(system, Segments)
    assert isinstance(system, Matches)
    logits = system.eval().events(batch)
    assert logits.shape == (6, 10, 13)
    assert system.match(batch, "audio").shape == system.match(batch, "video").shape == (6, 10, 64)


@pytest.mark.parametrize(("cls", "config", "more"), BOTH)
def test_weak_supervision_reads_no_segment(cls, config, more) -> None:
    batch, spec = batch_of()
    system = made(cls, config, more, spec, weak=True).eval()
    terms, _ = system(replace(batch, extras={}), step())
    assert set(terms) == {"events", "swapped"}
    same, _ = system(batch, step())
    assert all(torch.equal(terms[name], same[name]) for name in terms)
    assert system.match(batch, "audio") is None
    with pytest.raises(BatchError, match="needs a label"):
        system(replace(batch, label=torch.full_like(batch.label, -1)), step())
    full = made(cls, config, more, spec)
    with pytest.raises(BatchError, match="weak=true"):
        full(replace(batch, extras={}), step())
    with pytest.raises(BatchError, match="window and segment"):
        full(replace(batch, extras={"segments": batch.extras["segments"][:, :7]}), step())


@pytest.mark.parametrize(("cls", "config", "more"), BOTH)
def test_an_embedding_of_one_modality_does_not_know_the_other(cls, config, more) -> None:
    """Else "which second of the picture fits this sound" would be answered by having read the sound."""
    batch, spec = batch_of(4)
    system = made(cls, config, more, spec).eval()
    for name, other in (("audio", "video"), ("video", "audio")):
        stream = batch.streams[other]
        turned = replace(batch, streams={**batch.streams, other: stream._replace(data=stream.data.flip(0))})
        empty = replace(batch, streams={**batch.streams, other: blank(stream)})
        for changed in (turned, empty):
            torch.testing.assert_close(system.match(batch, name), system.match(changed, name))
    assert not torch.allclose(system.events(batch), system.events(turned), atol=1e-6)


@pytest.mark.parametrize(("cls", "config", "more"), BOTH)
def test_a_model_of_one_modality_does_not_read_the_other(cls, config, more) -> None:
    batch, spec = batch_of(4)
    for use, other in (("audio", "video"), ("video", "audio")):
        system = made(cls, config, more, spec, use=use).eval()
        stream = batch.streams[other]
        turned = replace(batch, streams={**batch.streams, other: stream._replace(data=stream.data.flip(0))})
        torch.testing.assert_close(system.events(batch), system.events(turned))
    with pytest.raises(ConfigError, match='Did you mean "both"'):
        made(cls, config, more, spec, use="bot")


@pytest.mark.parametrize(("cls", "config", "more"), BOTH)
def test_a_clip_that_ends_early_and_one_with_nothing(cls, config, more) -> None:
    batch, spec = batch_of(3)
    system = made(cls, config, more, spec).eval()
    short = {n: Stream(s.data.clone(), s.mask.clone(), s.rate) for n, s in batch.streams.items()}
    for stream in short.values():
        steps = stream.mask.shape[1]
        stream.data[0, steps // 2 :] = 0
        stream.mask[0, steps // 2 :] = False
        stream.mask[1] = False
    cut = replace(batch, streams=short)
    assert bool(torch.isfinite(system.events(cut)).all())
    ended = {
        n: Stream(s.data[:1, : s.mask.shape[1] // 2], s.mask[:1, : s.mask.shape[1] // 2], s.rate)
        for n, s in short.items()
    }
    alone = Batch(("x",), ended, batch.index[:1], batch.view[:1], batch.label[:1], ("x",))
    torch.testing.assert_close(system.events(alone)[0, :5], system.events(cut)[0, :5], atol=1e-5, rtol=1e-4)


def test_repeats_that_are_shared_have_the_parameters_of_one() -> None:
    _, spec = batch_of(2)

    def count(**settings) -> int:
        system = made(Jca, JcaConfig, {"width": 8, "dropout": 0.0}, spec, **settings)
        return sum(p.numel() for p in system.parameters())

    assert count(repeats=3, shared=True) == count(repeats=1) < count(repeats=3)
    assert count(repeats=0) < count(repeats=1)
    assert count(repeats=1, keys="linear") == count(repeats=1) + 2 * (10 * 10 + 10)
    with pytest.raises(ConfigError, match="keys"):
        count(keys="cubic")


def test_the_residual_fusion_is_its_equation() -> None:
    batch, spec = batch_of(2)
    system = made(Avel, AvelConfig, {"hidden": 4}, spec, fusion="residual").eval()
    sound, regions = system.towers.encode(batch)
    a, v = system.along_sound(sound).data, system.along_picture(looked(system.look, sound, regions)).data
    m = (system.fuse.of_sound(a) + system.fuse.of_picture(v)) / 2
    expected = system.fuse.last((torch.tanh(v + m) + torch.tanh(a + m)) / 2)
    torch.testing.assert_close(system.events(batch), expected)
    with pytest.raises(ConfigError, match="fusion"):
        made(Avel, AvelConfig, {"hidden": 4}, spec, fusion="sum")


# -------------------------------------------------------------------------------------------------------- objectives
def pair(n: int = 4, steps: int = 3) -> tuple[Stream, Stream]:
    mask = torch.ones(n, steps, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    sound = torch.randn(n, steps, 2, generator=generator)
    return Stream(sound, mask, 2.0), Stream(torch.randn(n, steps, 1, 1, 2, generator=generator), mask, 2.0)


def labeled(label: list[int], segments: list[list[int]] | None = None) -> Batch:
    extras = {} if segments is None else {"segments": torch.tensor(segments)}
    rows = torch.arange(len(label))
    ids = tuple(map(str, rows.tolist()))
    return Batch(ids, {}, rows, rows, torch.tensor(label), ids, extras)


def test_terms_are_their_equations() -> None:
    sound, regions = pair()
    logits = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(1))
    table = {id(sound): logits}

    def name(heard: Stream, seen: Stream) -> torch.Tensor:
        return table.get(id(heard), heard.data.sum(2, keepdim=True) * torch.tensor([1.0, 0.0, -1.0]))

    segments = [[0, 2, 1], [1, 1, 2], [2, 2, 2], [0, 0, 0]]
    width = {"sound_dim": 2, "region_dim": 2}
    full = EventTerms(2, sides=0.0, swapped=0.0, **width)(name, sound, regions, labeled([0, 1, 0, 1], segments))
    assert set(full) == {"events"}
    assert float(full["events"]) == pytest.approx(crossed(logits, segments))

    weak = EventTerms(2, weak=True, swapped=0.5, sides=0.0, **width)(name, sound, regions, labeled([0, 0, 1, 1]))
    pooled = logits.amax(1).log_softmax(1)
    assert float(weak["events"]) == pytest.approx(float(-pooled[torch.arange(4), torch.tensor([0, 0, 1, 1])].mean()))
    # Clip 0 hears 3 (another label), 2 hears 1; 1 hears 0 and 3 hears 2, of the same label, which are left out.
    other = sound.data[[3, 1]].sum(2, keepdim=True) * torch.tensor([1.0, 0.0, -1.0])
    assert float(weak["swapped"]) == pytest.approx(float(-0.5 * other.log_softmax(2)[..., 2].mean()))
    alike = EventTerms(2, weak=True, sides=0.0, **width)(name, sound, regions, labeled([1, 1, 1, 1]))
    assert float(alike["swapped"]) == 0


def test_each_modality_is_classified_by_itself() -> None:
    sound, regions = pair(4, 3)
    segments = [[0, 2, 1], [1, 1, 2], [2, 2, 2], [0, 0, 0]]
    terms = EventTerms(2, sound_dim=2, region_dim=2, sides=0.5, swapped=0.0)
    sound = sound._replace(mask=sound.mask & (torch.arange(4) > 0)[:, None])  # a clip without sound has no term of it

    def name(heard: Stream, seen: Stream) -> torch.Tensor:
        return torch.zeros(4, 3, 3)

    with torch.no_grad():
        found = terms(name, sound, regions, labeled([0, 0, 0, 0], segments))
        cells = regions.data[:, :, 0, 0]
        heard, seen = terms.of_sound(sound.data), terms.of_picture(torch.cat([cells, cells], 2))
    expected = 0.5 * (crossed(heard[1:], segments[1:]) + crossed(seen, segments))
    assert float(found["sides"]) == pytest.approx(expected, rel=1e-5)


def crossed(logits: torch.Tensor, segments: list[list[int]]) -> float:
    flat, label = logits.log_softmax(2).flatten(0, 1), torch.tensor(segments).flatten()
    return float(-flat[torch.arange(len(label)), label].mean())


def test_the_loss_of_the_authors_code_is_near_log_two() -> None:
    sound, regions = pair(1, 1)
    right, wrong = (torch.tensor([[[x, -x, 0.0]]]) for x in (30.0, -30.0))
    terms = EventTerms(2, sound_dim=2, region_dim=2, sides=0.0, swapped=0.0, legacy=True)
    cost = [float(terms(lambda h, s, z=z: z, sound, regions, labeled([0], [[0]]))["events"]) for z in (right, wrong)]
    sigma = torch.tensor([1.0, 0.0, 0.0]).sigmoid()
    assert cost[0] == pytest.approx(float(-(sigma[0].log() + 2 * torch.tensor(0.5).log()) / 3), abs=1e-4)
    assert 0.5 < cost[0] < cost[1] < 1.1
    with pytest.raises(ConfigError, match="pool"):
        EventTerms(2, sound_dim=2, region_dim=2, pool="noisy-or")
    with pytest.raises(ConfigError, match="at least one class"):
        EventTerms(0, sound_dim=2, region_dim=2)


def test_matching_is_its_equation_and_leaves_the_towers_alone() -> None:
    sound, regions = pair(2, 2)
    sound.data.requires_grad_()
    regions.data.requires_grad_()
    event = torch.tensor([[True, False], [True, True]])
    for every in (False, True):
        match = SegmentMatch(2, 2, hidden=3, dim=2, every_pair=every)
        loss = match(sound, regions, event)
        a, v = match.of_sound(sound), match.of_picture(regions, steps=2)
        terms = []
        for b in range(2):
            for s in range(2):
                for t in range(2) if every else [s]:
                    d = (a[b, s] - v[b, t]).norm()
                    both = bool(event[b, s] & event[b, t])
                    terms.append(0.5 * (d**2 if both else (2 - d).clamp(min=0) ** 2))
        assert float(loss.detach()) == pytest.approx(float(torch.stack(terms).mean().detach()), rel=1e-5)
        loss.backward()
        assert sound.data.grad is None
        assert regions.data.grad is None
        empty = match(blank(sound), blank(regions), event)
        assert float(empty.detach()) == 0
