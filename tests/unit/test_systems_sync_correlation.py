"""The correlation of two tracks: where it peaks, how clips without a known lag are moved, and no edge that tells it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import avcl
from avcl import trials
from avcl.apply.sync import check_sync
from avcl.data import collate
from avcl.data.world import PRESETS, World
from avcl.errors import ConfigError
from avcl.media import write_video
from avcl.metrics.alignment import estimate_offsets
from avcl.seeds import seeded
from avcl.system import Step
from avcl.systems.sync_correlation import SyncCorrelation, SyncCorrelationConfig, _between
from avcl.task import bare
from avcl.tasks.sync import Sync
from avcl.types import Batch, Clip, DataSpec, Stream, StreamSpec

CONFIG = SyncCorrelationConfig.tiny()
SPEC = DataSpec({"audio": StreamSpec("audio", (1,), 16_000.0), "video": StreamSpec("video", (3, 32, 32), 25.0)})
GRID = torch.arange(-24, 25) * 0.02


def made(config: SyncCorrelationConfig = CONFIG) -> SyncCorrelation:
    with seeded(0, "init"):
        return SyncCorrelation(config, SPEC).eval()


def batch_of(n: int = 3, *, known: bool = False, seconds: float = 1.0) -> Batch:
    """Random clips, the last one a little shorter."""
    generator = torch.Generator().manual_seed(0)
    clips = []
    for i in range(n):
        cut = 1.0 if i < n - 1 else 0.9
        sound = torch.randn(1, round(16_000 * seconds * cut), 1, generator=generator)
        picture = torch.rand(1, round(25 * seconds * cut), 3, 32, 32, generator=generator)
        streams = {
            "audio": Stream(sound, torch.ones(sound.shape[:2], dtype=torch.bool), 16_000.0),
            "video": Stream(picture, torch.ones(picture.shape[:2], dtype=torch.bool), 25.0),
        }
        extras = {"offset": torch.tensor(0.03 * i)} if known else {}
        clips.append(Clip(str(i), streams, index=i, extras=extras))
    return collate(clips)


@pytest.mark.parametrize("lag", [0, 7, -11])
def test_a_track_that_comes_later_scores_at_its_lag(lag: int) -> None:
    system = made()
    track = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
    late = torch.zeros_like(track)
    late[:, max(0, lag) : 60 + min(0, lag)] = track[:, max(0, -lag) : 60 - max(0, lag)]
    scores = system._correlation(track, late, 15)
    assert scores.shape == (2, 31)
    assert (scores.argmax(1) - 15).tolist() == [lag, lag]


def test_scores_between_two_lags_are_linear() -> None:
    scores = torch.tensor([[0.0, 1.0, 4.0]])
    place = torch.tensor([[0.0, 0.5, 1.25, 2.0]])
    torch.testing.assert_close(_between(scores, place), torch.tensor([[0.0, 0.5, 1.75, 4.0]]))


def test_any_range_and_any_length() -> None:
    system, batch = made(), batch_of()
    near = system.offsets(bare(batch), GRID)
    far = system.offsets(bare(batch), torch.arange(-60, 61) * 0.02)
    torch.testing.assert_close(far[:, 36:85], near)
    assert system.offsets(bare(batch_of(seconds=2.3)), GRID).shape == (3, 49)
    fine = system.offsets(bare(batch), torch.arange(-96, 97) * 0.005)
    torch.testing.assert_close(fine[:, ::4], near)
    alone = system.offsets(bare(batch_of(n=3)), GRID)[2]
    torch.testing.assert_close(alone, near[2])


def test_padding_changes_nothing() -> None:
    """The shorter clip alone, and beside longer ones."""
    system = made()
    among = batch_of()
    alone = Batch(
        among.id[2:],
        {
            n: Stream(s.data[2:, : (k := int(s.mask[2].sum()))], s.mask[2:, :k], s.rate)
            for n, s in among.streams.items()
        },
        among.index[2:],
        among.view[2:],
        among.label[2:],
        among.group[2:],
    )
    torch.testing.assert_close(
        system.offsets(alone, GRID)[0], system.offsets(bare(among), GRID)[2], atol=1e-5, rtol=1e-4
    )


def test_where_nothing_is_recorded_the_scores_are_flat() -> None:
    system, batch = made(), batch_of()
    for name in ("audio", "video"):
        stream = batch.streams[name]
        blank = stream._replace(data=torch.zeros_like(stream.data), mask=torch.zeros_like(stream.mask))
        scores = system.offsets(bare(replace(batch, streams={**batch.streams, name: blank})), GRID)
        assert not bool(scores.any())


# ------------------------------------------------------------------------------------------------------ moved inside
def test_a_clip_that_knows_no_lag_is_moved_and_no_edge_tells_it() -> None:
    system, batch = made(), batch_of()
    with seeded(1, "x"):
        sound, lag = system.train()._moved(batch.audio, batch)
    assert float(lag.abs().max()) <= CONFIG.search
    assert len(set(lag.tolist())) == 3
    edge = round(CONFIG.search * 16_000)
    for i in range(3):
        late, end = round(float(lag[i]) * 16_000), int(batch.audio.mask[i].sum())
        heard = sound.mask[i].nonzero().flatten()
        assert (int(heard[0]), int(heard[-1])) == (edge, end - edge - 1), "the edges depend on the lag"
        assert len(heard) == end - 2 * edge
        torch.testing.assert_close(sound.data[i, heard], batch.audio.data[i, heard - late])
        assert not bool(sound.data[i][~sound.mask[i]].any())


def test_in_evaluation_the_same_row_is_moved_alike_whatever_stands_beside_it() -> None:
    system, batch = made(), batch_of()
    first, second = system._moved(batch.audio, batch)[1], system._moved(batch.audio, batch)[1]
    assert torch.equal(first, second)
    many = torch.stack([system._moved(batch.audio, replace(batch, index=batch.index + 3 * i))[1] for i in range(200)])
    assert abs(float(many.mean())) < 0.02
    assert float(many.min()) < -0.19
    assert float(many.max()) > 0.19


def test_a_known_lag_is_kept_and_a_lag_of_zero_is_moved() -> None:
    system, batch = made(), batch_of(known=True)  # lags 0, 0.03, 0.06
    offset = system.encode(batch)["offset"]
    torch.testing.assert_close(offset[1:], batch.extras["offset"][1:])
    assert float(offset[0]) != 0
    assert system.heard(batch.audio).rate == system.seen(batch.video).rate == 50
    track = system._tracks(batch.video, batch.audio)[1]
    torch.testing.assert_close(system.encode(batch)["audio"][1, : track.shape[1]], track[1])


def test_losses_are_those_of_a_density() -> None:
    system, batch = made(), batch_of(known=True)
    terms = system.losses(system.encode(batch), batch, Step(0, 1, 0, 0.0, torch.Generator()))
    assert set(terms) == {"offset", "unrelated"}
    assert float(terms["offset"].detach()) == pytest.approx(np.log(29), abs=1.0)  # 29 lags within ±0.28 s
    assert float(terms["unrelated"].detach()) >= 0


def test_what_cannot_be_is_refused() -> None:
    for bad in ({"fps": 8.0}, {"window": 0.8}, {"step": 0.03}):
        with pytest.raises(ConfigError):
            SyncCorrelationConfig(**bad)
    with pytest.raises(ConfigError):
        SyncCorrelation(CONFIG, replace(SPEC, streams={"audio": SPEC.streams["audio"]}))


def test_a_folder_of_videos_is_enough(tmp_path) -> None:
    data = World(replace(PRESETS["sync"], offset=0.0), clips=8, split="train")
    settings = {"epochs": 1, "batch_size": 4, "channels": 4, "side": 16, "size": (16, 16)}
    for i in range(8):
        clip = data.clip(i)
        picture = clip.streams["video"].data[0].permute(0, 2, 3, 1).numpy()
        write_video(tmp_path / f"{i}.mp4", picture, clip.streams["audio"].data[0].numpy(), fps=25, sample_rate=16_000)
    model = avcl.train("sync_correlation", tmp_path, settings=settings, workers=0)
    report = avcl.evaluate(
        model, tmp_path, task="sync", split="all", controls=True, protocol={"bootstrap": 20}, workers=0
    )
    assert report.n_scored == 8
    assert set(report.controls) == {"untrained", "wrong partner", "always 0"}
    assert check_sync(tmp_path / "0.mp4", model).status in ("ok", "late", "early", "undecidable", "at_search_limit")


# ------------------------------------------------------------------------------------------------------ what is learned
@pytest.mark.slow
def test_what_cannot_be_told_is_undecidable() -> None:
    """Trained for half of the trial: clips without an event, or with the wrong one, are hardly ever decided."""
    trial = SyncCorrelation.trial
    assert trial is not None
    data = trials.world_of(trial, clips=trial.clips, split="train", fresh=True)
    model = avcl.train(SyncCorrelation, data, settings={**trial.settings, "epochs": 5}, workers=1)
    test = trials.world_of(trial, clips=100, split="test").configure(model.inputs)
    clips = [test.clip(i) for i in range(100)]
    generator = torch.Generator().manual_seed(0)

    def decided(change) -> tuple[float, float]:
        batch = collate([change(i, clip) for i, clip in enumerate(clips)]).to("cpu")
        truth = batch.extras["offset"].numpy()
        found = estimate_offsets(model.system.offsets(bare(batch), Sync().grid), Sync().grid.double())
        sure = Sync().decided(found)
        right = np.abs(found.offset - truth) <= 0.04
        return float(sure.mean()), float(right[sure].mean()) if sure.any() else float("nan")

    def with_stream(clip: Clip, name: str, data: torch.Tensor) -> Clip:
        return replace(clip, streams={**clip.streams, name: clip.streams[name]._replace(data=data)})

    share, right = decided(lambda i, clip: clip)
    assert share > 0.3
    assert right > 0.85
    still = decided(lambda i, c: with_stream(c, "video", c.streams["video"].data[:, :1].expand(-1, 50, -1, -1, -1)))
    silent = decided(lambda i, c: with_stream(c, "audio", torch.zeros_like(c.streams["audio"].data)))
    noise = decided(
        lambda i, c: with_stream(c, "audio", 0.01 * torch.randn(c.streams["audio"].data.shape, generator=generator))
    )
    foreign = decided(lambda i, c: with_stream(c, "video", clips[i - 1].streams["video"].data))
    assert max(still[0], silent[0], noise[0]) <= 0.05
    assert foreign[0] < 0.5 * share
