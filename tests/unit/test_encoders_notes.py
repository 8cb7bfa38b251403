"""Tunes as events and back; joints along a graph."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl.data import collate
from avcl.data.world import World
from avcl.encoders.notes import NoteCode
from avcl.encoders.skeleton import SkeletonConv, partition
from avcl.errors import BatchError, ConfigError
from avcl.types import Stream


def stream(notes: list[list[float]]) -> Stream:
    data = torch.tensor([notes], dtype=torch.float32).reshape(1, -1, 4)
    return Stream(data, torch.ones(1, data.shape[1], dtype=torch.bool), 1.0)


def test_the_vocabulary_of_the_paper() -> None:
    code = NoteCode.paper()
    assert code.pitches == 88
    assert code.stop == 240  # the sheet's 240 events; start and padding are the decoder's and the mask's affair
    assert code.shifts[0] == pytest.approx(0.0154, abs=1e-4)
    assert code.shifts[-1] == pytest.approx(1.17, abs=0.01)
    assert float(code.seconds[: code.first_shift].abs().sum()) == 0
    assert code.seconds[code.first_shift :][:32].tolist() == pytest.approx(list(code.shifts))


def test_the_events_of_two_notes() -> None:
    code = NoteCode(60, 72, 4, (0.1, 0.2, 0.5))
    tokens = code.encode(stream([[0.2, 0.5, 60, 0.9], [0.7, 0.1, 72, 0.3]]), length=20)
    on, off, loud, shift = 0, 13, 26, 30
    wanted = [shift + 1, loud + 3, on + 0, shift + 2, off + 0, loud + 1, on + 12, shift + 0, off + 12, code.stop]
    assert tokens.data[0, tokens.mask[0]].tolist() == wanted
    back = code.decode(tokens)
    torch.testing.assert_close(back.data[0], torch.tensor([[0.2, 0.5, 60, 0.875], [0.7, 0.1, 72, 0.375]]))


note = st.tuples(st.floats(0, 4), st.floats(0.1, 1.5), st.integers(57, 81), st.floats(0.05, 1.0))


@pytest.mark.parametrize("code", [NoteCode(), NoteCode.paper()], ids=["small", "paper"])
@given(notes=st.lists(note, max_size=8, unique_by=lambda n: n[2]))
@settings(max_examples=40)
def test_a_tune_comes_back(code: NoteCode, notes: list[tuple[float, float, int, float]]) -> None:
    """Exact in pitch, and every onset and offset within half of the smallest shift, however many there are."""
    tune = stream([list(n) for n in notes])
    back = code.decode(code.encode(tune, length=400))
    found = sorted(back.data[0][back.mask[0]].tolist(), key=lambda n: n[2])
    wanted = sorted(notes, key=lambda n: n[2])
    assert [n[2] for n in found] == [n[2] for n in wanted]
    half = code.shifts[0] / 2 + 1e-4
    for one, other in zip(found, wanted, strict=True):
        assert abs(one[0] - other[0]) <= half
        assert abs(one[0] + one[1] - max(other[0] + other[1], one[0] + 0.05)) <= 2 * half + 0.05
        assert abs(one[3] - other[3]) <= 0.5 / code.velocities + 1e-6


def test_a_long_tune_is_cut_and_open_notes_end() -> None:
    code = NoteCode()
    tune = stream([[0.3 * k, 0.2, 60.0 + k, 0.5] for k in range(9)])
    short = code.encode(tune, length=8)
    assert short.mask.all()
    assert short.data[0, -1] == code.stop
    back = code.decode(short)
    assert back.mask.sum() >= 1
    open_ = code.decode(Stream(torch.tensor([[3]]), torch.ones(1, 1, dtype=torch.bool), 1.0))
    assert open_.data[0, 0].tolist() == pytest.approx([0.0, 1.0, 60.0, 0.5])


@given(st.lists(st.integers(0, NoteCode().stop), max_size=40))
@settings(max_examples=40)
def test_whatever_is_written_is_a_tune(tokens: list[int]) -> None:
    code = NoteCode()
    data = torch.tensor([tokens], dtype=torch.int64).reshape(1, -1)
    notes = code.decode(Stream(data, torch.ones(data.shape, dtype=torch.bool), 1.0))
    rows = notes.data[0][notes.mask[0]]
    assert bool((rows[:, 1] > 0).all())
    assert rows[:, 0].tolist() == sorted(rows[:, 0].tolist())


def test_what_is_no_tune_is_refused() -> None:
    with pytest.raises(BatchError, match="pitch 30"):
        NoteCode().encode(stream([[0, 1, 30, 0.5]]), length=9)
    with pytest.raises(BatchError):
        NoteCode().encode(Stream(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), 1.0), length=9)
    for wrong in ({"lowest": 90}, {"velocities": 0}, {"shifts": ()}, {"shifts": (0.2, 0.1)}, {"shifts": (0.0, 0.1)}):
        with pytest.raises(ConfigError):
            NoteCode(**wrong)


# -------------------------------------------------------------------------------------------------------------- joints
def test_the_three_parts_of_a_star() -> None:
    parts = partition(3, [(0, 1), (0, 2)], 0)
    assert parts.sum(0).sum(0).tolist() == pytest.approx([1, 1, 1])
    third, half = 1 / 3, 1 / 2
    assert parts[0].tolist() == [pytest.approx([third, 0, 0]), pytest.approx([0, half, 0]), pytest.approx([0, 0, half])]
    assert parts[1][0].tolist() == pytest.approx([0, half, half])  # the center is nearer than the hands
    assert parts[2][:, 0].tolist() == pytest.approx([0, third, third])
    with pytest.raises(ConfigError, match="joint 2"):
        partition(3, [(0, 1)], 0)
    with pytest.raises(ConfigError):
        partition(2, [(0, 5)], 0)


def test_a_joint_sees_its_neighbors_only() -> None:
    torch.manual_seed(0)
    net = SkeletonConv(4, edges=[(0, 1), (1, 2), (2, 3)], widths=(8,), strides=(1,), dim=4, reach=1).eval()
    net.last = torch.nn.Identity()
    pose = torch.randn(1, 5, 8)
    changed = pose.clone()
    changed[:, :, 6:] += 1  # joint 3
    mask = torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        moved = (net(Stream(changed, mask, 25.0)).data - net(Stream(pose, mask, 25.0)).data).unflatten(2, (4, 8))
    assert moved.abs().amax((0, 1, 3)).gt(1e-6).tolist() == [False, False, True, True]


# --------------------------------------------------------------------------------------------------------------- world
def test_pose_and_notes_are_those_of_the_picture_and_the_sound() -> None:
    light = World("music", clips=3, split="val", streams=("pose", "notes"))
    full = World("music", clips=3, split="val", streams=("audio", "video", "pose", "notes"), truth=True)
    assert light.spec.streams["pose"].shape == (6,)
    for i in range(3):
        one, other = light.clip(i), full.clip(i)
        assert (one.id, one.label) == (other.id, other.label)
        for name in ("pose", "notes"):
            assert torch.equal(one.streams[name].data, other.streams[name].data)
        assert one.streams["pose"].data.shape == (1, 75, 6)
        hands = other.extras["hands"].reshape(75, 4).double()
        pose = one.streams["pose"].data[0, :, 2:].double()
        for k in range(4):  # pixels are a scaling and a shift of the body's units
            line = torch.stack([pose[:, k], torch.ones(75, dtype=torch.float64)], 1)
            made = line @ torch.linalg.lstsq(line, hands[:, k : k + 1], driver="gelsd").solution
            torch.testing.assert_close(made[:, 0], hands[:, k], atol=0.01, rtol=0)
    batch = collate([light.clip(i) for i in range(3)])
    assert batch.streams["notes"].data.shape[2] == 4
    with pytest.raises(ConfigError, match="nobody plays"):
        World("sync", clips=1, streams=("pose", "notes")).clip(0)
