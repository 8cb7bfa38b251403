"""The localization protocol: what is scored, what is hidden, and that a map that hears nothing is found out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from avcl import api
from avcl.data import Loader
from avcl.data.world import PRESETS, World
from avcl.errors import CapabilityError, ConfigError, DataError
from avcl.model import Model
from avcl.system import MediaConfig, System
from avcl.task import Outputs
from avcl.tasks.localization import Localization, motion
from avcl.types import Batch, Card, Inputs, Report, Stream


def outputs_of(heat, source, silent, label=(0,)) -> Outputs:
    """One frame a clip, maps [N, H, W]."""
    heat, source, silent = (np.asarray(a)[:, None] for a in (heat, source, silent))
    ids = tuple(map(str, range(len(heat))))
    arrays = {"heat": heat.astype(np.float32), "source": source.astype(bool), "silent": silent.astype(bool)}
    arrays |= {"motion": arrays["heat"], "label": np.array(list(label) * len(ids))[: len(ids)]}
    return Outputs(ids, ids, arrays, {"labels": ["a", "b"]})


def square(y: int, x: int, side: int = 4, size: int = 16) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[y : y + side, x : x + side] = True
    return mask


class Blind(System):
    """Finds what moves and hears nothing."""

    card: ClassVar[Card] = Card(title="toy", year=0, venue="", fidelity="toy")
    Config: ClassVar = MediaConfig

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.weight = nn.Parameter(torch.zeros(1))
        self.shown: list[Batch] = []

    def encode(self, batch):
        return {"x": batch.video.data.flatten(1).mean(1)}

    def losses(self, encoded, batch, at):
        return {"x": encoded["x"].mean()}

    def heatmap(self, batch: Batch) -> Tensor:
        self.shown.append(batch)
        return motion(batch.video)


def made(system_class, preset, **knobs):
    inputs = Inputs(fps=4.0)
    world = World(replace(PRESETS[preset], **knobs), clips=60, split="test").configure(inputs)
    return Model(system_class(MediaConfig(fps=4.0), world.spec), inputs, {}, fingerprint="toy"), world


# ------------------------------------------------------------------------------------------------------------- figures
def test_worked_frames() -> None:
    source, silent = square(2, 2), square(10, 10)
    right, wrong = square(2, 2) * np.arange(1, 257).reshape(16, 16), square(10, 10) * 1.0
    found = Localization(frames=1).score(outputs_of([right, wrong, np.zeros((16, 16))], [source] * 3, [silent] * 3))
    row = found.scores["pointing"]
    share = 16 / 256
    assert row["on source"] == pytest.approx((1 + 0 + share) / 3)
    assert row["on distractor"] == pytest.approx((0 + 1 + share) / 3)
    assert row["source - distractor"] == pytest.approx(0)
    assert row["neither"] == pytest.approx((1 - 2 * share) / 3)
    # The right map has 16 different values on the source: the "as many pixels" rule takes them all.
    assert found.scores["area"]["cIoU@0.5"] == pytest.approx(1 / 3)
    assert found.scores["area"]["IoU"] == pytest.approx(1 / 3)
    assert found.scores["median"]["f"] == pytest.approx(share)
    assert found.scores["median"]["can reach 0.5"] == 0
    assert found.chance["pointing"]["on source"] == pytest.approx(share)
    assert found.chance["pointing"]["source - distractor"] == 0
    assert found.protocol["headline"] == {
        "condition": "pointing",
        "metric": "source - distractor",
        "better": "higher",
    }


def test_the_median_rule_cannot_reach_half_for_a_small_object() -> None:
    """A perfect map of an object of share f gets 2 f at most: 0.125 here, however right it is."""
    source = square(2, 2)
    perfect = source + 0.1 * np.random.default_rng(0).random((16, 16))
    found = Localization(frames=1).score(outputs_of([perfect], [source], [square(10, 10)])).scores
    assert found["median"]["IoU"] == pytest.approx(2 * 16 / 256, rel=0.02)
    assert found["median"]["cIoU@0.5"] == 0
    assert found["area"]["IoU"] == 1


def test_a_clip_counts_with_the_mean_of_the_frames_in_which_its_source_is_seen() -> None:
    task, one = Localization(frames=2), square(2, 2)
    heat = np.stack([[one * 1.0, one * 1.0], [one * 1.0, np.zeros((16, 16))], [one * 1.0, one * 1.0]])
    source = np.stack([[one, np.zeros_like(one)], [one, one], [np.zeros_like(one)] * 2])
    arrays = {"heat": heat.astype(np.float32), "source": source, "silent": np.zeros_like(source)}
    arrays |= {"motion": arrays["heat"], "label": np.zeros(3, int)}
    found = task.score(Outputs(("a", "b", "c"), ("a", "b", "c"), arrays, {"labels": ["x"]}))
    assert found.n_scored == 2
    assert found.n_official == 3
    assert found.scores["pointing"]["on source"] == pytest.approx((1 + (1 + 16 / 256) / 2) / 2)
    assert found.per_class["pointing"]["x"]["source - distractor"] == found.scores["pointing"]["on source"]


def test_baselines() -> None:
    task, source = Localization(frames=1), square(6, 6)
    made = outputs_of([source * 1.0], [source], [square(0, 0)])
    beside = {name: task.score(o).scores for name, o in task.baselines(made).items()}
    assert set(beside) == {"whole image", "center box", "motion"}
    assert beside["whole image"]["pointing"]["source - distractor"] == 0
    assert beside["whole image"]["area"]["IoU"] == pytest.approx(16 / 256)  # the whole picture, not nothing
    assert beside["center box"]["pointing"]["on source"] == pytest.approx(16 / 64)
    assert beside["center box"]["area"]["IoU"] == pytest.approx(16 / 64)
    assert beside["motion"]["area"] == task.score(made).scores["area"]


# -------------------------------------------------------------------------------------------------------- what is seen
def test_a_system_sees_pictures_and_sound_and_nothing_else() -> None:
    model, world = made(Blind, "localization")
    Localization().predict(model.system, world.subset(range(4)))
    [shown] = model.system.shown
    assert set(shown.streams) == {"audio", "video"}
    assert dict(shown.extras) == {}
    assert shown.label.tolist() == [-1] * 4
    # The truth is there all the same, and pictures do not carry it: the same clip without truth is the same bytes.
    batch = next(iter(Loader(world.with_truth().subset(range(4)), batch_size=4)))
    assert {"masks", "boxes", "positions", "stems"} <= set(batch.extras)
    plain = next(iter(Loader(world.subset(range(4)), batch_size=4)))
    assert torch.equal(batch.video.data, plain.video.data)
    assert torch.equal(Localization().shown(batch).video.data, plain.video.data)


def test_the_wrong_partner_brings_another_sound_and_leaves_the_truth() -> None:
    world = World("localization", clips=4, split="test").configure(Inputs(fps=1.0))
    task = Localization()
    own, wrong = (next(iter(Loader(d, batch_size=4))) for d in (task.items(world), task.wrong_partners(world)))
    assert torch.equal(own.video.data, wrong.video.data)
    assert torch.equal(own.extras["masks"], wrong.extras["masks"])
    assert not any(torch.equal(own.audio.data[i], wrong.audio.data[i]) for i in range(4))


# ------------------------------------------------------------------------------------------------------------ the trap
def measured(**knobs) -> Report:
    model, world = made(Blind, "localization", **knobs)
    return api.evaluate(model, world, task="localization", controls=True, workers=0)


def test_a_map_that_hears_nothing_looks_right_with_one_object_and_is_found_out_by_a_second() -> None:
    alone, beside = measured(distractor=0.0), measured()
    # One object: it points at "the source" nearly always, far above chance and an empty map.
    assert alone.scores["pointing"]["on source"] > 0.7
    assert alone.interval["pointing"]["source - distractor"][0] > 0.5
    assert not {"chance", "whole image", "center box"} & set(alone.not_beaten())
    # Another clip's sound and the motion baseline say that it does not listen.
    assert {"wrong partner", "motion"} <= set(alone.not_beaten())
    assert alone.wrong_partner["pointing"] == alone.scores["pointing"]
    # A second object that is silent: found as often as the source.
    assert (
        beside.interval["pointing"]["source - distractor"][0]
        < 0
        < beside.interval["pointing"]["source - distractor"][1]
    )
    assert {"chance", "whole image", "wrong partner", "motion"} <= set(beside.not_beaten())


# -------------------------------------------------------------------------------------------------------------- errors
def test_errors() -> None:
    _, world = made(Blind, "localization")
    with pytest.raises(ConfigError, match="frames"):
        Localization(frames=0)
    with pytest.raises(ConfigError, match="slots"):
        Localization(source=(0,), silent=(0, 1))
    with pytest.raises(CapabilityError, match="localization"):
        Localization().predict(object(), world)
    small = world.subset(range(2)).with_truth()
    batch = next(iter(Loader(small, batch_size=2)))
    with pytest.raises(DataError, match="masks"):
        Localization().truth(replace(batch, extras={}))
    with pytest.raises(DataError, match="frames"):
        Localization().truth(replace(batch, extras={"masks": batch.extras["masks"][:, :5]}))
    with pytest.raises(DataError, match="heat map"):
        Localization().answer(Flat(), Localization().shown(batch).to("cpu"))


@dataclass
class Flat:
    def heatmap(self, batch: Batch) -> Tensor:
        return torch.zeros(len(batch), 8, 8)


def test_slots_that_are_not_there_hold_nothing() -> None:
    world = World(replace(PRESETS["localization"], distractor=0.0), clips=2).configure(Inputs(fps=1.0)).with_truth()
    batch = next(iter(Loader(world, batch_size=2)))
    truth = Localization().truth(batch)
    assert truth["source"].any()
    assert not truth["silent"].any()
    duet = World("separation-duet", clips=2).configure(Inputs(fps=1.0)).with_truth()
    both = Localization(source=(0, 1), silent=()).truth(next(iter(Loader(duet, batch_size=2))))
    assert torch.equal(both["source"], next(iter(Loader(duet, batch_size=2))).extras["masks"].any(2))


def test_motion_is_where_the_object_is_now() -> None:
    video = torch.zeros(1, 5, 3, 32, 32)
    for t in range(5):
        video[0, t, :, 8:16, 6 * t : 6 * t + 8] = 1.0
    found = motion(Stream(video, torch.ones(1, 5, dtype=torch.bool), 1.0))
    assert found.shape == (1, 5, 32, 32)
    y, x = divmod(int(found[0, 2].argmax()), 32)
    assert 8 <= y < 16
    assert 12 <= x < 20
    assert not motion(Stream(video[:, :1], torch.ones(1, 1, dtype=torch.bool), 1.0)).any()
