"""wu2019_univse: parts of captions, their negatives, the regional hinge, and that it learns."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from avcl.data import collate
from avcl.data.tokens import text_stream
from avcl.errors import BatchError, ConfigError
from avcl.seeds import seeded
from avcl.system import Step
from avcl.systems.wu2019_univse import UniVSE, UniVSEConfig, drawn, regional
from avcl.types import Batch, Clip, DataSpec, Stream, StreamSpec

A = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
V = torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.6, -0.8]])
TINY = UniVSEConfig.tiny()
SPEC = DataSpec({"video": StreamSpec("video", (3, 32, 32), 2.0), "text": StreamSpec("tokens", (), 1.0)})
COLORS = {"red": (1.0, 0.1, 0.1), "green": (0.1, 1.0, 0.1), "blue": (0.1, 0.1, 1.0)}


def at(epoch: int = 5) -> Step:
    return Step(0, 10, epoch, 0.5, torch.Generator().manual_seed(0))


def made(spec: DataSpec = SPEC, **settings) -> UniVSE:
    with seeded(0, "init"):
        return UniVSE(dataclasses.replace(TINY, **settings), spec).eval()


def scenes() -> Batch:
    """A block or a ring, of three colors, on the left or on the right: every scene once."""
    clips = []
    for color, rgb in COLORS.items():
        for shape in ("block", "ring"):
            for side in ("left", "right"):
                picture = torch.full((3, 32, 32), 0.5)
                x = 2 if side == "left" else 18
                picture[:, 10:22, x : x + 12] = torch.tensor(rgb)[:, None, None]
                if shape == "ring":
                    picture[:, 13:19, x + 3 : x + 9] = 0.5
                text = text_stream(f"a {color} {shape} rests on the {side}")
                video = Stream(picture[None, None], torch.ones(1, 1, dtype=torch.bool), 2.0)
                clips.append(Clip(str(len(clips)), {"video": video, "text": text}, index=len(clips)))
    return collate(clips).to("cpu")


def test_the_regional_hinge_of_equal_regions_is_the_global_one() -> None:
    regions = V[:, None].expand(-1, 49, -1)
    negative = torch.stack([A.roll(1, 0), A.roll(2, 0)], 1)
    found = regional(A, negative, regions, margin=0.2)
    match = (A * V).sum(1)
    worst = torch.maximum((A.roll(1, 0) * V).sum(1), (A.roll(2, 0) * V).sum(1))
    torch.testing.assert_close(found, (0.2 + worst - match).clamp(min=0).mean())
    # Where regions differ, the one that shows the part weighs more.
    two = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    value = regional(A[:1], torch.tensor([[[0.0, 1.0]]]), two, margin=0.2)
    weights = torch.tensor([1.0, 0.0]).softmax(0)
    assert float(value) == pytest.approx(float(weights[1] * 1.2), abs=1e-6)


def test_negatives_are_other_words_than_those_of_the_caption() -> None:
    number = torch.tensor([5, 7, 5, 9])
    own = torch.tensor([[5, 7], [5, 7], [5, 0], [9, 5]])
    where, fine = drawn(number, own, 50, torch.Generator().manual_seed(0))
    assert fine.all()
    for i in range(4):
        assert not set(number[where[i]].tolist()) & set(own[i].tolist())
    assert set(number[where[2]].tolist()) == {7, 9}
    _, none = drawn(number[:1], own[:1], 3, torch.Generator())
    assert not none.any()


def test_the_sentence_has_the_hinge_with_the_hardest_negative() -> None:
    system, batch = made(), scenes()
    encoded = {name: value[:3] for name, value in system.encode(batch).items()}
    encoded |= {"picture": V, "sentence": A, "component": A, "regions": torch.zeros(3, 4, TINY.dim)}
    system._relations = lambda e, generator: torch.zeros(())  # its codes are of another width
    terms = system.losses(encoded, batch, at())
    assert float(terms["sentence"]) == pytest.approx(4.72 / 3, abs=1e-5)
    assert float(terms["component"]) == pytest.approx(0.5 * 4.72 / 3, abs=1e-5)
    system.config = dataclasses.replace(TINY, sum_epochs=6)
    assert float(system.losses(encoded, batch, at())["sentence"]) == pytest.approx(7.04 / 3, abs=1e-5)


def test_a_caption_is_read_part_by_part() -> None:
    system = made()
    read = system.read(["a red block rests on the left", "a ring", "the left", "..."])
    assert (read["thing#"] > 0).sum(1).tolist() == [2, 1, 1, 0]
    assert (read["attribute#"][:, :, 0] > 0).sum(1).tolist() == [2, 0, 0, 0]  # "rests" is on no list of verbs
    assert len({int(read["thing#"][0, 1]), int(read["thing#"][2, 0])}) == 1  # left is left
    component = read["component"].norm(dim=1)
    assert component.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0], abs=1e-5)
    again = system.read(["a ring"])
    for name in ("sentence", "component"):  # other captions of the batch change nothing
        torch.testing.assert_close(again[name][0], read[name][1], atol=1e-5, rtol=1e-4)
    relations = system.read(["a man on a red horse", "a man under a horse"])
    assert (relations["relation#"][:, 0] > 0).all()
    assert int(relations["relation#"][0, 0, 1]) != int(relations["relation#"][1, 0, 1])


def test_relations_begin_later_and_a_batch_may_have_no_parts() -> None:
    system, batch = made(relations_from=2), scenes()
    encoded = {name: value.detach() for name, value in system.encode(batch).items()}
    assert float(system.losses(encoded, batch, at(1))["relation"].detach()) == 0.0
    assert float(system.losses(encoded, batch, at(2))["relation"].detach()) > 0
    dots = Stream(torch.full((2, 3), ord(".")), torch.ones(2, 3, dtype=torch.bool), 1.0)
    pictures = batch.video._replace(data=batch.video.data[:2], mask=batch.video.mask[:2])
    of_two = {name: getattr(batch, name)[:2] for name in ("id", "index", "view", "label", "group")}
    bare = Batch(streams={"video": pictures, "text": dots}, **of_two)
    terms = {name: value.detach() for name, value in system(bare, at())[0].items()}
    assert all(bool(torch.isfinite(value)) for value in terms.values())
    assert float(terms["thing"]) == float(terms["attribute"]) == float(terms["relation"]) == 0.0
    silent = dataclasses.replace(
        bare, streams={**bare.streams, "text": bare.text._replace(mask=bare.text.mask & False)}
    )
    with pytest.raises(BatchError, match="both text and video"):
        system(silent, at())


def test_pictures_may_be_maps_or_features() -> None:
    for kind, shape in (("map", (3, 4, 6)), ("features", (6,))):
        system = made(DataSpec({"image": StreamSpec(kind, shape, 1.0), "text": SPEC.streams["text"]}))
        data, mask = torch.randn(2, 5, *shape), torch.ones(2, 5, dtype=torch.bool)
        mask[0, 3:] = False
        data[0, 3:] = 9.0
        seen = system._looked_at(Stream(data * mask.reshape(2, 5, *[1] * len(shape)), mask, 1.0))
        short = system._looked_at(Stream(data[:1, :3], mask[:1, :3], 1.0))
        assert seen["regions"].shape == (2, 12 if kind == "map" else TINY.regions, TINY.dim)
        torch.testing.assert_close(seen["picture"][0], short["picture"][0], atol=1e-5, rtol=1e-4)


def test_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="a picture and a text"):
        made(DataSpec({"video": SPEC.streams["video"], "speech": StreamSpec("audio", (1,), 8000.0)}))
    with pytest.raises(ConfigError, match='no pictures of kind "audio"'):
        made(DataSpec({"audio": StreamSpec("audio", (1,), 8000.0), "text": SPEC.streams["text"]}))
    with pytest.raises(ConfigError, match='no "txet"'):
        made().embed(scenes(), "txet")


def test_learns_which_caption_is_of_which_picture() -> None:
    batch = scenes()
    system = made(dim=32, basic=16, modifier=16, sum_epochs=100).train()
    optimizer = torch.optim.Adam(system.parameters(), lr=5e-3)
    for _ in range(150):
        terms, _ = system(batch, at())
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    system.eval()
    scores = system.similarity(system.embed(batch, "text"), system.embed(batch, "video"))
    right = (scores.argmax(1) == torch.arange(12)).float().mean()
    assert float(right) > 0.7  # chance .08
