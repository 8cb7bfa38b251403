"""Sound moved by a known lag: exactly, without an edge that tells it, and the same every time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from avcl.data import Loader
from avcl.data.derived import WrongPartner
from avcl.data.shifted import Shifted
from avcl.data.world import PRESETS, World
from avcl.errors import ConfigError, DataError
from avcl.types import Clip, Inputs, Stream

INPUTS = Inputs(fps=25.0, size=(16, 16), sample_rate=8000, window=1.6)
IN_TIME = replace(PRESETS["sync"], offset=0.0)


def world(clips: int = 4) -> World:
    return World(IN_TIME, clips=clips, split="val")


def test_the_sound_is_late_by_what_the_clip_says() -> None:
    whole = world().configure(replace(INPUTS, window=2.4))
    shifted = Shifted(world()).configure(INPUTS)
    lags = []
    for i in range(4):
        clip, source = shifted.clip(i), whole.clip(i)
        late = round(float(clip.extras["offset"]) * 8000)
        lags.append(late)
        assert clip.streams["audio"].data.shape == (1, 12_800, 1)
        assert bool(clip.streams["audio"].mask.all())
        # t = 0 of the clip is 0.4 s of the source; what is heard at t was made at t - offset
        expected = source.streams["audio"].data[:, 3200 - late :][:, :12_800]
        torch.testing.assert_close(clip.streams["audio"].data, expected)
        torch.testing.assert_close(clip.streams["video"].data, source.streams["video"].data[:, 10:50])
    assert min(lags) < 0 < max(lags)
    assert len({late % 320 for late in lags}) > 1, "the lags are rounded to frames"


def test_the_lag_is_added_to_what_is_known() -> None:
    shifted = Shifted(World("sync", clips=3, split="val")).configure(INPUTS)
    own = World("sync", clips=3, split="val").configure(INPUTS)
    for i in range(3):
        added = shifted.lag(own.ids[i])
        assert float(shifted.clip(i).extras["offset"]) == pytest.approx(
            float(own.clip(i).extras["offset"]) + added, abs=1 / 8000
        )


def test_it_is_drawn_by_seed_and_id_and_in_training_by_epoch() -> None:
    data = Shifted(world()).configure(INPUTS)
    assert torch.equal(data.clip(0).extras["offset"], data.clip(0, epoch=3).extras["offset"])
    assert torch.equal(data.clip(2).extras["offset"], data.subset([2]).clip(0).extras["offset"])
    assert data.lag("a") != Shifted(world(), seed=1).lag("a")
    fresh = Shifted(world(), fresh=True).configure(INPUTS)
    assert not torch.equal(fresh.clip(0).extras["offset"], fresh.clip(0, epoch=3).extras["offset"])
    assert len({data.fingerprint, fresh.fingerprint, Shifted(world(), most=0.2).fingerprint}) == 3
    lags = [Shifted(world()).lag(str(i)) for i in range(400)]
    assert -0.4 <= min(lags) < -0.38
    assert 0.38 < max(lags) <= 0.4


def test_configured_before_or_after_is_the_same() -> None:
    after, before = Shifted(world()).configure(INPUTS), Shifted(world().configure(INPUTS))
    again = after.configure(INPUTS)
    wrong = Shifted(WrongPartner(world().configure(INPUTS), "video"))
    for data in (before, again, after.with_truth(), after.prepare()):
        assert torch.equal(data.clip(1).streams["audio"].data, after.clip(1).streams["audio"].data)
        assert torch.equal(data.clip(1).streams["video"].data, after.clip(1).streams["video"].data)
    assert torch.equal(wrong.clip(1).streams["audio"].data, after.clip(1).streams["audio"].data)
    assert not torch.equal(wrong.clip(1).streams["video"].data, after.clip(1).streams["video"].data)
    batch = next(iter(Loader(after, batch_size=4)))
    assert batch.extras["offset"].shape == (4,)


class Short(World):
    """Half a second is missing at the end of the sound."""

    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        clip = super().clip(index, epoch=epoch, view=view)
        data, mask, rate = clip.streams["audio"]
        end = data.shape[1] - 4000
        there = mask & (torch.arange(data.shape[1]) < end)
        return replace(clip, streams={**clip.streams, "audio": Stream(data * there[:, :, None], there, rate)})


def test_where_a_file_ends_early_its_end_does_not_tell_the_lag() -> None:
    data = Shifted(Short(IN_TIME, clips=6, split="val")).configure(INPUTS)
    ends = {int(data.clip(i).streams["audio"].mask.sum()) for i in range(6)}
    assert len({round(float(data.clip(i).extras["offset"]), 3) for i in range(6)}) == 6
    assert ends == {round((2.4 - 0.5 - 0.8) * 8000)}
    clip = data.clip(0).streams["audio"]
    assert not bool(clip.data[~clip.mask].any())


def test_what_cannot_be_shifted_is_refused() -> None:
    with pytest.raises(ConfigError):
        Shifted(world(), most=0)
    with pytest.raises(ConfigError):
        Shifted(world()).clip(0)
    with pytest.raises(DataError):
        Shifted(World("sync", clips=2, streams=("video",)))


def test_features_have_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    data = world()
    monkeypatch.setattr(data, "kind", "features", raising=False)
    with pytest.raises(DataError, match="clock"):
        Shifted(data)
