"""Sound of Pixels and Sound of Motions: what the two separators promise beyond the contract of every system."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from avcl import api
from avcl.data import collate
from avcl.data.mixtures import Mixtures, guides_of
from avcl.data.world import World
from avcl.errors import BatchError, ConfigError
from avcl.metrics.separation import si_sdr
from avcl.seeds import seeded
from avcl.system import Separates, Step, System
from avcl.systems.zhao2018_sound_of_pixels import SoundOfPixels
from avcl.systems.zhao2019_sound_of_motions import SoundOfMotions
from avcl.types import Batch, Clip, Stream

BOTH = pytest.mark.parametrize("cls", [SoundOfPixels, SoundOfMotions])


def at(progress: float = 0.0, seed: int = 0) -> Step:
    return Step(0, 10, 0, progress, torch.Generator().manual_seed(seed))


def made(cls: Any, **settings: Any) -> System:
    config = dataclasses.replace(cls.Config.tiny(), **settings)
    spec = World("separation", clips=4).configure(cls.inputs(config)).spec
    with seeded(0, "init"):
        return cls(config, spec).eval()


def mixtures(cls: Any, clips: int = 8) -> Batch:
    data = World("separation", clips=clips, split="val").configure(cls.inputs(cls.Config.tiny()))
    rows = Mixtures(data)
    return collate([rows.clip(i) for i in range(len(rows))]).to("cpu")


def whole(cls: Any, clips: int = 8) -> Batch:
    data = World("separation", clips=clips, split="val").configure(cls.inputs(cls.Config.tiny()))
    return collate([data.clip(i) for i in range(clips)]).to("cpu")


@BOTH
def test_equal_guides_give_equal_stems_and_the_order_of_guides_is_that_of_the_stems(cls: Any) -> None:
    system, batch = made(cls), mixtures(cls)
    assert isinstance(system, Separates)
    first, second = guides_of(batch)
    there = system.separate(batch.audio, [first, second])
    assert there.shape == (4, 2, *batch.audio.data.shape[1:])
    assert there.dtype == torch.float32
    torch.testing.assert_close(system.separate(batch.audio, [second, first]), there.flip(1), atol=1e-6, rtol=1e-4)
    same = system.separate(batch.audio, [first, first])
    torch.testing.assert_close(same[:, 0], same[:, 1])
    assert not torch.allclose(there[:, 0], there[:, 1])
    torch.testing.assert_close(system.separate(batch.audio, [first])[:, 0], there[:, 0], atol=1e-6, rtol=1e-4)
    with pytest.raises(BatchError, match="a guide for every source"):
        system.separate(batch.audio, [])


@BOTH
def test_padding_of_mixture_and_guides_changes_nothing(cls: Any) -> None:
    system, batch = made(cls), mixtures(cls)
    guides = guides_of(batch)
    there = system.separate(batch.audio, guides)
    longer = [dataclasses.replace(g, streams={"video": padded(g.video, 3)}) for g in guides]
    found = system.separate(padded(batch.audio, 500), longer)
    torch.testing.assert_close(found[:, :, : there.shape[2]], there, atol=1e-4, rtol=1e-3)
    assert float(found[:, :, there.shape[2] :].abs().max()) == 0


def padded(stream: Stream, steps: int) -> Stream:
    """Behind the end: values that were never recorded."""
    tail = torch.rand_like(stream.data[:, :1]).expand(-1, steps, *stream.data.shape[2:])
    mask = torch.zeros(len(stream.mask), steps, dtype=torch.bool)
    return Stream(torch.cat([stream.data, tail], 1), torch.cat([stream.mask, mask], 1), stream.rate)


@BOTH
def test_stills_blank_guides_and_two_ears(cls: Any) -> None:
    system, batch = made(cls), mixtures(cls)
    guides = guides_of(batch)
    still = [dataclasses.replace(g, streams={"video": cut(g.video, 1)}) for g in guides]
    blank = [dataclasses.replace(g, streams={"video": blind(g.video)}) for g in guides]
    for chosen in (still, blank):
        assert bool(torch.isfinite(system.separate(batch.audio, chosen)).all())
    ears = batch.audio._replace(data=batch.audio.data * torch.tensor([1.0, 0.5]))
    left, right = system.separate(ears, guides).unbind(3)
    torch.testing.assert_close(0.5 * left, right, atol=1e-6, rtol=1e-4)


def cut(stream: Stream, steps: int) -> Stream:
    return Stream(stream.data[:, :steps], stream.mask[:, :steps], stream.rate)


def blind(stream: Stream) -> Stream:
    return Stream(torch.zeros_like(stream.data), torch.zeros_like(stream.mask), stream.rate)


@BOTH
def test_mixing_follows_from_the_generator_alone(cls: Any) -> None:
    system, batch = made(cls), whole(cls)
    encoded = system.encode(batch)
    first, again, other = (float(system.losses(encoded, batch, at(seed=s))["mask"].detach()) for s in (0, 0, 1))
    assert first == again
    assert first != other
    without = dataclasses.replace(batch, streams={})
    assert float(system.losses(encoded, without, at())["mask"].detach()) == first  # the losses need no streams
    more = made(cls, rounds=3)
    assert float(more.losses(encoded, batch, at())["mask"].detach()) > 0


def test_the_curriculum_of_motions_goes_from_any_two_to_one_class() -> None:
    staged = made(SoundOfMotions, curriculum=("any", "same"))
    batch = whole(SoundOfMotions)
    encoded = staged.encode(batch)
    unlabeled = dataclasses.replace(batch, label=torch.full_like(batch.label, -1))
    staged.losses(encoded, unlabeled, at(0.2))
    with pytest.raises(BatchError, match="label for every clip"):
        staged.losses(encoded, unlabeled, at(0.7))
    with pytest.raises(ConfigError, match=r"stage.*other"):
        made(SoundOfMotions, curriculum=("othr",))


def test_pixels_know_no_time_and_motions_do() -> None:
    """Frames in reverse: what is there is the same, how it moves is not."""
    for cls, alike in ((SoundOfPixels, True), (SoundOfMotions, False)):
        system, batch = made(cls), mixtures(cls)
        guides = guides_of(batch)
        turned = [dataclasses.replace(g, streams={"video": backward(g.video)}) for g in guides]
        there, back = system.separate(batch.audio, guides), system.separate(batch.audio, turned)
        assert torch.allclose(there, back, atol=1e-5) == alike


def backward(stream: Stream) -> Stream:
    return Stream(stream.data.flip(1), stream.mask.flip(1), stream.rate)


def test_displacements_are_those_of_the_picture_in_sixteenths_of_it() -> None:
    """A disk that moves by one pixel a frame, on pictures of 32 pixels looked at with 16: half a pixel each."""
    system = made(SoundOfMotions)
    assert isinstance(system, SoundOfMotions)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    frames = [torch.exp(-((x - 10 - t).square() + (y - 15).square()) / 30) for t in range(6)]
    video = torch.stack(frames)[None, :, None].expand(-1, -1, 3, -1, -1)
    moved, mask = system.seen.motion.displacements(Stream(video, torch.ones(1, 6, dtype=torch.bool), 8.0))
    assert moved.shape == (1, 6, 16, 16, 2)
    assert mask.tolist() == [[True] * 5 + [False]]
    torch.testing.assert_close(moved[0, :5, 7, 5, 0], torch.full((5,), 0.5), atol=0.15, rtol=0)
    assert float(moved[0, :5, 7, 5, 1].abs().max()) < 0.1


class Beeps(World):
    """A color and a tone that belong together: what any separator that looks must learn in a moment."""

    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        given = super().clip(index, epoch=epoch, view=view)
        kind = self.targets[index]
        sound, video = given.streams["audio"], given.streams["video"]
        time = torch.arange(sound.data.shape[1]) / sound.rate
        tone = torch.sin(2 * torch.pi * (250 * 1.7**kind + 5 * (index % 7)) * time)
        color = torch.tensor([[250, 20, 20], [20, 250, 20], [20, 20, 250], [240, 240, 20]], dtype=torch.uint8)[kind]
        picture = color[None, None, :, None, None].expand(video.data.shape).contiguous()
        streams = {"audio": sound._replace(data=0.2 * tone[None, :, None]), "video": video._replace(data=picture)}
        return dataclasses.replace(given, streams=streams)


def test_pixels_learn_which_color_has_which_tone() -> None:
    settings = {"size": (16, 16), "window": 0.5, "fps": 2.0, "fft": 256, "hop": 128, "bands": 32, "components": 8}
    settings |= {"widths": (8, 16), "picture": (8, 12, 12), "batch_size": 16, "epochs": 8, "pairing": "other"}
    model = api.train(SoundOfPixels, Beeps("separation", clips=64, split="train"), settings=settings, workers=0)
    data = Beeps("separation", clips=16, split="test").configure(model.inputs)
    rows = Mixtures(data)
    batch = collate([rows.clip(i) for i in range(len(rows))]).to("cpu")
    guides, stems = guides_of(batch), batch.extras["stems"][..., 0].numpy()
    right, wrong = (model.system.separate(batch.audio, g)[..., 0].numpy() for g in (guides, guides[::-1]))
    gain = [si_sdr(s, e).value.mean() for s, e in zip(stems, right, strict=True)]
    lost = [si_sdr(s, e).value.mean() for s, e in zip(stems, wrong, strict=True)]
    assert sum(gain) / len(gain) > 4
    assert sum(lost) / len(lost) < -4
