"""Truth of exported clips: on the grid on which they are decoded, equal to what the world says, typed errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from avcl.data import load_data
from avcl.data.world import World, export
from avcl.errors import BatchError, DataError
from avcl.task import truth_of
from avcl.types import Inputs

SMALL = Inputs(fps=8.0, size=(64, 64))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    export("localization", root, clips=3, workers=0)
    return root


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(exported, tmp_path / "copy"))


def read(root: Path, inputs: Inputs = SMALL):
    return load_data(root).all.configure(inputs).with_truth()


def test_on_its_own_grid_it_is_the_truth_of_the_world(exported: Path) -> None:
    data, world = read(exported), World("localization", clips=3, truth=True)
    for i in range(3):
        mine, theirs = data.clip(i), world.clip(i)
        assert mine.id == theirs.id
        assert set(mine.extras) == set(theirs.extras) - {"motion"}  # a word of truth.jsonl, no array
        for name, value in mine.extras.items():
            torch.testing.assert_close(value, theirs.extras[name])
    assert not load_data(exported).all.configure(SMALL).clip(0).extras  # only where a task asks
    assert data.fingerprint == load_data(exported).all.configure(SMALL).fingerprint


def test_at_another_rate_each_slot_has_the_truth_of_the_frame_it_shows(exported: Path) -> None:
    native = read(exported).clip(1)
    for fps, frames in ((1.0, [0, 8, 16]), (4.0, list(range(0, 24, 2))), (16.0, [k // 2 for k in range(48)])):
        clip = read(exported, Inputs(fps=fps)).clip(1)
        for name in ("masks", "boxes", "positions"):
            torch.testing.assert_close(clip.extras[name], native.extras[name][frames])
        torch.testing.assert_close(clip.streams["video"].data[0], native.streams["video"].data[0, frames])


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_at_another_size_masks_boxes_and_centers_go_with_the_picture(exported: Path, fit) -> None:
    clip = read(exported, Inputs(size=(32, 48), fit=fit)).clip(0)
    masks, boxes, places = (clip.extras[name] for name in ("masks", "boxes", "positions"))
    assert masks.shape == (24, 2, 32, 48)
    for t, o in np.ndindex(24, 2):
        where = masks[t, o].nonzero()
        if len(where) < 30:
            continue
        low, high = where.amin(0), where.amax(0) + 1
        box = torch.stack([low[1], low[0], high[1], high[0]]).float()
        assert float((box - boxes[t, o]).abs().max()) <= 1.5
        assert low[1] - 2 <= places[t, o, 0] <= high[1] + 2
    # What the mask covers looks unlike the picture without the object: it lies where the object is.
    seen = clip.streams["video"].data[0].float()
    inside = seen.mean(1)[masks[:, 0]].std()
    assert float(inside) > 0


def test_windows_share_the_truth_of_their_file(exported: Path) -> None:
    whole = read(exported).clip(2)
    parts = load_data(exported, window=1.0).all.configure(Inputs(window=1.0)).with_truth()
    assert len(parts) == 9
    for k in range(3):
        clip = parts.clip(6 + k)
        frames = slice(8 * k, 8 * k + 8)
        torch.testing.assert_close(clip.extras["masks"], whole.extras["masks"][frames])
        stems = whole.extras["stems"][:, 16_000 * k : 16_000 * (k + 1)]
        torch.testing.assert_close(clip.extras["stems"], stems)


def test_stems_at_another_rate_and_behind_the_end(exported: Path) -> None:
    native, clip = read(exported).clip(0), read(exported, Inputs(sample_rate=8000, channels=2, window=4.0)).clip(0)
    stems = clip.extras["stems"]
    assert stems.shape == (3, 32_000, 2)
    assert not stems[:, 24_100:].any()
    assert not clip.extras["masks"][24:].any()
    mix = clip.streams["audio"].data[0, :24_000]
    error = (stems.sum(0)[:24_000] - mix).square().mean() / mix.square().mean()
    assert float(error) < 0.02  # what Opus changes
    torch.testing.assert_close(stems[0, :, 0], stems[0, :, 1])
    assert native.extras["stems"].shape == (3, 48_000, 1)


def test_events_have_segments_and_sync_its_offset(tmp_path: Path) -> None:
    export("events", tmp_path / "events", clips=2, workers=0)
    data, world = read(tmp_path / "events", Inputs(window=5.0)), World("events", clips=2)
    for i in range(2):
        assert data.clip(i).extras["segments"].tolist() == world.clip(i).extras["segments"].tolist()
    assert data.labels == world.labels
    cut = read(tmp_path / "events", Inputs(window=6.0)).clip(0).extras["segments"]
    assert cut.tolist() == [*world.clip(0).extras["segments"].tolist(), len(world.labels), len(world.labels)]
    (tmp_path / "events" / "labels.txt").unlink()  # now the classes are those that occur, in the order of the alphabet
    with pytest.raises(DataError, match="another order"):
        read(tmp_path / "events", Inputs(window=5.0)).clip(0)
    export("sync", tmp_path / "sync", clips=2, workers=0)
    offset = read(tmp_path / "sync").clip(1).extras["offset"]
    assert float(offset) == pytest.approx(float(World("sync", clips=2).clip(1).extras["offset"]), abs=1e-5)


def test_people(tmp_path: Path) -> None:
    export("music", tmp_path, clips=1, workers=0)
    clip, world = read(tmp_path, Inputs(fps=25.0)).clip(0), World("music", clips=1, truth=True).clip(0)
    for name in ("masks", "boxes", "hands", "stems"):
        torch.testing.assert_close(clip.extras[name], world.extras[name], atol=1e-4, rtol=1e-4)


def test_without_a_truth_folder_nothing_changes(copied: Path) -> None:
    import shutil

    shutil.rmtree(copied / "truth")
    data = load_data(copied).all
    assert data.with_truth() is data


def test_damage_is_named(copied: Path) -> None:
    first = read(copied).ids[0]
    path = copied / "truth" / f"{first}.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=first):
        read(copied).clip(0)
    np.savez(path, masks=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="npz"):  # never unpickled
        read(copied).clip(0)
    np.savez(path, masks=np.zeros((24, 1, 64, 64), bool), boxes=np.zeros((23, 1, 4), np.float32))
    with pytest.raises(DataError, match="shapes"):
        read(copied).clip(0)
    path.unlink()
    assert not read(copied).clip(0).extras
    (copied / "truth.jsonl").write_text('{"id": 1\n')
    with pytest.raises(DataError, match=r"truth\.jsonl"):
        read(copied)


def test_truth_of_ones_own(copied: Path) -> None:
    """Without truth.jsonl the arrays are on the clock of the file itself; other names come as they are."""
    (copied / "truth.jsonl").unlink()
    data = read(copied)
    path = copied / "truth" / f"{data.ids[0]}.npz"
    masks = np.zeros((24, 2, 64, 64), bool)
    masks[8, 0, :32] = True
    np.savez(path, masks=masks, mood=np.array([3, 4]))
    clip = read(copied, Inputs(fps=1.0, size=(32, 32))).clip(0)
    assert clip.extras["mood"].tolist() == [3, 4]
    assert [int(m.sum()) for m in clip.extras["masks"][:, 0]] == [0, 16 * 32, 0]
    from avcl.data import collate

    with pytest.raises(BatchError, match="lacks"):
        collate([data.clip(1), data.clip(0)])
    with pytest.raises(DataError, match="masks"):
        truth_of(collate([load_data(copied).all.configure(SMALL).clip(0)]), "localization", "masks")
