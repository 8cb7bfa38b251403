"""Spatial sound: the two ears are hidden, distances are those of the metrics, and mono is the answer to be beaten."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from avcl.data import Loader, collate
from avcl.data.world import World
from avcl.errors import ConfigError, DataError, FeatureError
from avcl.metrics.separation import binaural_stft_distance, envelope_distance
from avcl.task import Outputs
from avcl.tasks.spatial import RATE, Spatial
from avcl.types import Batch, Inputs, Stream

INPUTS = Inputs(channels=2, sample_rate=8000, fps=4.0, size=(32, 32))


@pytest.fixture(scope="module")
def world() -> World:
    return World("spatial", clips=6, split="test").configure(INPUTS)


class Ears:
    """Answers with ``make(mono, batch)`` [B, L, 2] and remembers what it was shown."""

    def __init__(self, make) -> None:
        self.make, self.seen = make, []  # type: ignore[var-annotated]

    def generate(self, batch: Batch, generator: torch.Generator) -> Stream:
        self.seen.append(batch)
        return batch.audio._replace(data=self.make(batch.audio.data, batch))


def same_on_both(mono: torch.Tensor, batch: Batch) -> torch.Tensor:
    return torch.cat([mono, mono], 2) / 2


def test_the_two_ears_are_hidden(world: World) -> None:
    """One channel, the sum: what was left and what was right is nowhere in the batch, and cannot be had from it."""
    batch = collate([world.clip(i) for i in range(4)])
    other = replace(batch, streams={**batch.streams, "audio": batch.audio._replace(data=batch.audio.data.flip(2))})
    task = Spatial()
    one, two = task.shown(batch), task.shown(other)
    assert set(one.streams) == {"audio", "video"}
    assert one.audio.data.shape[2] == 1
    assert not one.extras
    assert bool((one.label == -1).all())
    for name in one.streams:  # the same whichever ear was which
        assert torch.equal(one.streams[name].data, two.streams[name].data)
    assert not torch.equal(task.truth(batch)["binaural"], task.truth(other)["binaural"])
    with_stems = collate([world.with_truth().clip(0)])
    assert "stems" in with_stems.extras
    assert not task.shown(with_stems).extras


def test_scores_are_the_distances_at_one_level(world: World) -> None:
    task, system = Spatial(level=0.1), Ears(same_on_both)
    outputs = task.predict(system, world)
    assert outputs["ears"].shape == (6, 3 * RATE, 2)
    truth = world.clip(2).streams["audio"]
    np.testing.assert_allclose(outputs["binaural"][2, ::2], truth.data[0].numpy(), atol=2e-3)
    s, e = (outputs[name][2].T.astype(float) for name in ("binaural", "ears"))
    factor = 0.1 / np.sqrt((s**2).mean())
    measured = task.measures(outputs)["both ears"]
    assert measured["STFT"][2] == pytest.approx(binaural_stft_distance(factor * s, factor * e))
    assert measured["ENV"][2] == pytest.approx(envelope_distance(factor * s, factor * e))
    louder = outputs.with_arrays(binaural=outputs["binaural"] * 8, ears=outputs["ears"] * 8)
    np.testing.assert_allclose(task.measures(louder)["both ears"]["STFT"], measured["STFT"])
    raw = Spatial(level=0).measures(louder)["both ears"]
    assert raw["STFT"][2] == pytest.approx(64 * binaural_stft_distance(s, e), rel=1e-3)


def test_the_truth_has_no_distance_and_mono_does_not_know_the_side(world: World) -> None:
    ears = {clip.id: clip.streams["audio"].data[0] for clip in map(world.clip, range(6))}
    task = Spatial(bootstrap=50)
    right = task.predict(Ears(lambda mono, batch: torch.stack([ears[i] for i in batch.id])), world)
    wrong = right.with_arrays(ears=right["ears"][:, :, ::-1])
    mono = task.baselines(right)["mono"]
    rows = {name: task.score(o).scores["both ears"] for name, o in {"r": right, "w": wrong, "m": mono}.items()}
    assert rows["r"]["STFT"] == pytest.approx(0, abs=1e-9)
    assert [rows[n]["louder ear"] for n in "rwm"] == [1.0, 0.0, 0.5]
    # The difference of the ears is missed once by mono and twice where they are exchanged: squared, four times as much.
    assert rows["w"]["STFT"] == pytest.approx(4 * rows["m"]["STFT"], rel=1e-6)
    assert set(task.baselines(right)) == {"mono", "left ear", "right ear", "ears exchanged"}
    assert task.chance(right) == {"both ears": {"louder ear": 0.5}}


class Blind(nn.Module):
    """Two ears by a fixed rule for each frequency, as a network ends that learned from stereo without the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.tensor([0.01, -0.02, 0.01]))

    def generate(self, batch: Batch, generator: torch.Generator) -> Stream:
        mono = batch.audio.data
        difference = torch.conv1d(mono.transpose(1, 2), self.filter[None, None], padding=1).transpose(1, 2)
        return batch.audio._replace(data=torch.cat([mono + difference, mono - difference], 2) / 2)


def test_mono_is_not_beaten_by_what_ignores_the_picture(world: World) -> None:
    """The trap: its spectra are near the true ones, far nearer than one ear alone, and it knows nothing of the side."""
    from avcl.task import Scores

    task, system = Spatial(bootstrap=100), Blind()
    outputs = task.predict(system, world)
    own = task.score(outputs)
    beside: dict[str, Scores] = {name: task.score(o) for name, o in task.baselines(outputs).items()}
    beside["wrong partner"] = task.score(task.predict(system, world, wrong_partner=True))

    def beaten(name: str) -> bool:
        return own.interval["both ears"]["STFT"][1] < beside[name].interval["both ears"]["STFT"][0]

    assert beaten("left ear")
    assert beaten("right ear")
    assert not beaten("mono")
    assert not beaten("ears exchanged")
    assert not beaten("wrong partner")
    assert beside["wrong partner"].scores == own.scores


def test_the_wrong_partner_is_another_clips_picture(world: World) -> None:
    task, system = Spatial(), Ears(same_on_both)
    task.predict(system, world, wrong_partner=True)
    shown, true = system.seen[0], collate([world.clip(i) for i in range(6)])
    torch.testing.assert_close(shown.audio.data, true.audio.data.sum(2, keepdim=True))
    assert not any(torch.equal(shown.video.data[i].float(), true.video.data[i].float()) for i in range(6))


def test_silence_is_counted_and_short_clips_are_scored_as_far_as_they_go(world: World) -> None:
    task = Spatial(seconds=1.0)
    batch = next(iter(Loader(world, batch_size=6).batches(0)))
    mask = batch.audio.mask.clone()
    mask[0], mask[1, 4000:] = False, False
    short = replace(batch, streams={**batch.streams, "audio": batch.audio._replace(mask=mask)})
    truth = {name: value.numpy() for name, value in task.truth(short).items()}
    assert truth["recorded"].tolist() == [0, 8000, *[RATE] * 4]
    outputs = Outputs(batch.id, batch.id, {**truth, "ears": truth["binaural"] + 0.01}, {})
    scores = task.score(outputs)
    assert scores.n_scored == 5
    assert np.isnan(task.measures(outputs)["both ears"]["STFT"][0])
    assert np.isfinite(task.measures(outputs)["both ears"]["STFT"][1])


def test_says_what_does_not_fit(world: World) -> None:
    with pytest.raises(ConfigError, match="seconds"):
        Spatial(seconds=0.0)
    with pytest.raises(DataError, match="stereo"):
        Spatial().predict(Ears(same_on_both), world.configure(replace(INPUTS, channels=1)))
    with pytest.raises(FeatureError, match="stereo like the mono sound"):
        Spatial().predict(Ears(lambda mono, batch: mono), world)
