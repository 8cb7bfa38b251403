"""The protocol of music: notes hidden, matched one to one, the encoder of the bins named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avcl.data.world import World
from avcl.data.world.scores import played
from avcl.errors import BatchError, CapabilityError, ConfigError, DataError
from avcl.task import Outputs
from avcl.tasks.music import Music, _match
from avcl.types import Batch, Stream

TASK = Music(bins=4, fit_rows=24, bootstrap=50)


def world(clips: int = 12, split: str = "test") -> World:
    return World("music", clips=clips, split=split, streams=("pose", "notes"))


class Known:
    """Knows the tunes by the pose; ``late`` seconds late."""

    def __init__(self, data: World, late: float = 0.0):
        self.seen: list[set[str]] = []
        self.late = late
        clips = [data.clip(i) for i in range(len(data))]
        self.tunes = [(c.streams["pose"].data[0], c.streams["notes"].data[0]) for c in clips]

    def generate(self, batch: Batch, generator: torch.Generator) -> Stream:
        self.seen.append(set(batch.streams))
        rows = []
        for pose in batch.streams["pose"].data:
            rows.append(min(self.tunes, key=lambda t: float((t[0] - pose).abs().sum()))[1].clone())
        most = max(len(r) for r in rows)
        data, mask = torch.zeros(len(rows), most, 4), torch.zeros(len(rows), most, dtype=torch.bool)
        for i, row in enumerate(rows):
            data[i, : len(row)], mask[i, : len(row)] = row, True
        data[:, :, 0] += self.late
        return Stream(data, mask, 1.0)


def test_the_right_tune_wins_and_the_wrong_partner_does_not() -> None:
    data, fit = world(), world(24, "train")
    system = Known(data)
    made = TASK.predict(system, data, fit=fit)
    scores = TASK.score(made).scores["tune"]
    assert scores["note F1"] == scores["onset F1"] == pytest.approx(1.0)
    assert all(seen == {"pose"} for seen in system.seen)
    wrong = TASK.score(TASK.predict(system, data, fit=fit, wrong_partner=True)).scores["tune"]
    assert wrong["note F1"] < 0.2
    for outputs in TASK.baselines(made).values():
        assert TASK.score(outputs).scores["tune"]["note F1"] < 0.2


def test_the_tolerance_is_that_of_the_onset() -> None:
    data, fit = world(), world(24, "train")
    for late, low, high in ((0.08, 0.99, 1.0), (0.2, 0.0, 0.2)):
        made = TASK.predict(Known(data, late), data, fit=fit)
        assert low <= TASK.score(made).scores["tune"]["note F1"] <= high


def test_matching_by_hand() -> None:
    true = np.array([[0.5, 0.2, 60, 0.5], [1.0, 0.2, 64, 0.5], [2.0, 0.2, 67, 0.5]])
    made = np.array([[0.55, 0.9, 60, 0.1], [1.0, 0.2, 65, 0.5]])  # one right, one of another pitch, one missing
    f1, precision, recall, onset = _match(made, true, 0.1)
    assert (precision, recall) == (pytest.approx(1 / 2), pytest.approx(1 / 3))
    assert f1 == pytest.approx(0.4)
    assert onset == pytest.approx(0.8)
    assert _match(made[:0], true, 0.1) == (0, 0, 0, 0)


def test_no_bins_without_the_name_of_their_encoder() -> None:
    data, fit = world(), world(24, "train")
    made = TASK.predict(Known(data), data, fit=fit)
    [metric] = [m for m in TASK.score(made).scores["tune"] if m.startswith("NDB")]
    assert metric == f"NDB of 4@{made.notes['encoder']['tag']}"
    assert "piano of the world" in made.notes["encoder"]["tune"]
    with pytest.raises(DataError, match="do not name"):
        TASK.score(Outputs(made.ids, made.groups, made.arrays, {"counts": made.notes["counts"]}))


def test_bins_see_that_all_tunes_are_one() -> None:
    """A generator of one good tune is right in sound and wrong as a set."""
    data, fit = world(40), world(60, "train")
    task = Music(bins=6, fit_rows=60, bootstrap=0)
    made = task.predict(Known(data), data, fit=fit)
    one = task.baselines(made)["most common tune"]
    ndb = [next(v for k, v in task.score(o).scores["tune"].items() if k.startswith("NDB")) for o in (made, one)]
    assert ndb[0] < ndb[1]


def test_what_cannot_be_scored_is_refused() -> None:
    data, fit = world(4), world(24, "train")
    with pytest.raises(CapabilityError):
        TASK.predict(object(), data, fit=fit)
    with pytest.raises(ConfigError):
        TASK.predict(Known(data), data)
    with pytest.raises(DataError, match="bins"):
        TASK.predict(Known(data), data, fit=world(3, "train"))
    with pytest.raises(ConfigError):
        Music(bins=0)

    class Sound(Known):
        def generate(self, batch: Batch, generator: torch.Generator) -> Stream:
            return Stream(torch.zeros(len(batch), 10, 1), torch.ones(len(batch), 10, dtype=torch.bool), 8000.0)

    with pytest.raises(BatchError, match=r"\[B, K, 4\]"):
        TASK.predict(Sound(data), data, fit=fit)


def test_notes_are_played() -> None:
    notes = np.array([[0.5, 0.4, 69, 0.8]], np.float32)
    wave = played(notes, seconds=1.5, sample_rate=8000, instrument="cello")
    assert wave.shape == (12_000,)
    assert not wave[:3900].any()
    spectrum = np.abs(np.fft.rfft(wave[4400:6800]))
    assert abs(np.argmax(spectrum[:400]) * 8000 / 2400 - 440) < 12 or spectrum[132] > 0.2 * spectrum.max()
    assert not played(notes[:0], seconds=1.0, sample_rate=8000).any()
    with pytest.raises(ConfigError, match="kazoo"):
        played(notes, seconds=1.0, instrument="kazoo")
