"""The loader: the same batches from 0, 1 or 2 workers, from any start; errors and deaths arrive as themselves."""

from __future__ import annotations

import warnings

import pytest
import torch
from data_toys import Toy

import avcl.data.loader as loader_module
from avcl.data import Loader
from avcl.data.loader import clip_seed, epoch_order
from avcl.errors import ConfigError, NoAudioStream, WorkerError
from avcl.types import Batch, Clip


def jitter(clip: Clip, view: int, generator: torch.Generator) -> Clip:
    stream = clip.streams["audio"]
    noise = torch.rand(stream.data.shape, generator=generator)
    return Clip(**{**vars(clip), "streams": {"audio": stream._replace(data=stream.data + noise)}})


def make(workers: int, n: int = 11, **options) -> Loader:
    settings = {"batch_size": 3, "seed": 7, "shuffle": True, "views": 2, "transforms": (jitter,), **options}
    return Loader(Toy(n), workers=workers, **settings)


def same(a: Batch, b: Batch) -> bool:
    return (
        a.id == b.id
        and a.group == b.group
        and torch.equal(a.audio.data, b.audio.data)
        and torch.equal(a.audio.mask, b.audio.mask)
        and torch.equal(a.index, b.index)
        and torch.equal(a.view, b.view)
        and torch.equal(a.label, b.label)
    )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("roomy", [True, False])
def test_the_same_batches_from_any_number_of_workers(
    workers: int, roomy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "_shared_memory", lambda: 1 << 40 if roomy else 1 << 20)
    with make(workers) as loader:
        for epoch in (0, 1, 5):
            expected = list(make(0).batches(epoch))
            found = list(loader.batches(epoch))
            assert len(found) == len(expected) == len(loader) == 4
            assert all(same(a, b) for a, b in zip(expected, found, strict=True))
        for start in (1, 3, 4):
            found = list(loader.batches(5, start=start))
            assert [b.id for b in found] == [b.id for b in expected[start:]]
            assert all(same(a, b) for a, b in zip(expected[start:], found, strict=True))


def test_epochs_orders_and_views() -> None:
    batches = list(make(0).batches(2))
    rows = [i for b in batches for i in b.index.tolist()]
    assert sorted(rows) == sorted([i for i in range(11) for _ in range(2)])
    assert rows[0::2] == rows[1::2] == epoch_order(11, 7, 2)
    assert batches[0].view.tolist() == [0, 1] * 3
    assert not torch.equal(batches[0].audio.data[0], batches[0].audio.data[1])
    assert batches[0].audio.data[0, 0, 1].floor() == 200
    assert epoch_order(11, 7, 2) != epoch_order(11, 7, 3) != epoch_order(11, 8, 3)
    plain = Loader(Toy(7), batch_size=3)
    assert [b.index.tolist() for b in plain] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [b.index.tolist() for b in Loader(Toy(7), batch_size=3, drop_last=True)] == [[0, 1, 2], [3, 4, 5]]
    assert len(Loader(Toy(7), batch_size=3, drop_last=True)) == 2
    assert list(Loader(Toy(0), batch_size=3)) == []


def test_what_a_clip_becomes_does_not_depend_on_its_neighbors() -> None:
    alone = {c.id[0]: c for c in Loader(Toy(11), batch_size=1, seed=7, transforms=(jitter,))}
    for batch in Loader(Toy(11), batch_size=4, seed=7, shuffle=True, transforms=(jitter,)).batches(0):
        for row, id in enumerate(batch.id):
            steps = alone[id].audio.data.shape[1]
            assert torch.equal(batch.audio.data[row, :steps], alone[id].audio.data[0])
    assert clip_seed(0, 0, "a", 0) != clip_seed(0, 0, "a", 1) != clip_seed(0, 1, "a", 0) != clip_seed(1, 0, "a", 0)
    assert clip_seed(3, 1, "x", 0) == 3266191014508334665


def test_a_pass_can_be_left_and_another_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(make(0).batches(1))
    with make(2) as loader:
        for batch in loader.batches(0):
            assert batch is not None
            break
        assert all(same(a, b) for a, b in zip(expected, loader.batches(1), strict=True))
        first = loader.batches(1)
        head = next(first)
        inside = list(loader.batches(1))  # while the first is under way
        assert all(same(a, b) for a, b in zip(expected, inside, strict=True))
        assert all(same(a, b) for a, b in zip(expected, [head, *first], strict=True))
        loader.close()
        assert all(same(a, b) for a, b in zip(expected, loader.batches(1), strict=True))


def test_the_global_random_state_is_not_touched() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with make(2) as loader:
        list(loader.batches(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_arrive_whole_and_in_order(workers: int) -> None:
    with Loader(Toy(9, broken=(4, 8)), batch_size=3, workers=workers) as loader:
        batches = loader.batches(0)
        assert next(batches).index.tolist() == [0, 1, 2]
        with pytest.raises(NoAudioStream) as caught:
            next(batches)
        error = caught.value
        assert (error.what, error.file, error.time, error.hint) == ("has no sound.", "row4.mp4", 1.5, "Leave it out.")
        assert next(loader.batches(0)).index.tolist() == [0, 1, 2]


def test_a_dead_worker_is_a_typed_error_and_the_next_pass_works() -> None:
    data = Toy(6, deadly=(3,))
    with Loader(data, batch_size=3, workers=1) as loader:
        with pytest.raises(WorkerError) as caught:
            list(loader.batches(0))
        assert caught.value.code == "E-WORKER"
        assert "workers=0" in str(caught.value)
        data.deadly = ()
        assert len(list(loader.batches(0))) == 2


def test_more_workers_than_cores_is_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with make(3, n=4) as loader:
            assert len(list(loader.batches(0))) == 2


def test_wrong_settings() -> None:
    for wrong in ({"batch_size": 0}, {"views": 0}, {"workers": -1}):
        with pytest.raises(ConfigError):
            Loader(Toy(3), **{"batch_size": 1, **wrong})
