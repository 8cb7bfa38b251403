"""Every task that there is keeps the contract; a new file in ``tasks/`` is found by itself."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from avcl import discover, trials
from avcl.data import collate
from avcl.errors import CapabilityError
from avcl.task import Task

# the rows of retrieval are pairs: tests/unit/test_retrieval.py
TASKS = [name for name in discover.task_names() if name != "retrieval"]
TRIALS = {
    discover.system_class(name).trial.task: name
    for name in discover.system_names()
    if discover.system_class(name).trial is not None
}


@pytest.mark.parametrize("name", TASKS)
def test_the_protocol_is_an_object(name: str) -> None:
    cls = discover.task_class(name)
    assert issubclass(cls, Task)
    assert cls.__dataclass_params__.frozen
    assert cls.name == name
    assert (cls.__doc__ or "").strip()
    task = cls()
    assert task.fingerprint == cls().fingerprint
    assert task.fingerprint != dataclasses.replace(task, seed=1).fingerprint
    json.dumps(task.protocol)
    assert task.words


@pytest.mark.parametrize("name", TASKS)
def test_what_cannot_do_it_is_told_who_can(name: str) -> None:
    class Nothing:
        pass

    task = discover.task_class(name)()
    with pytest.raises(CapabilityError) as caught:
        task.require(Nothing())
    assert "Systems that can: " in caught.value.hint


@pytest.mark.parametrize("name", TASKS)
def test_the_target_is_hidden(name: str) -> None:
    """Neither label nor truth of the scene reaches a system, and no stream that it is shown holds the target."""
    if name not in TRIALS:
        pytest.skip(f"no system has a trial of {name} yet")
    cls, trial = trials.trial_of(TRIALS[name])
    task = discover.task_class(name)(**trial.protocol)
    inputs = cls.inputs(cls.Config.from_json({**trial.settings}))
    data = trials.world_of(trial, clips=3, split="val").configure(inputs)
    rows = task.items(data)
    batch = collate([rows.clip(i) for i in range(len(rows))][:3])
    shown = task.shown(batch)
    assert not shown.extras
    assert bool((shown.label == -1).all())
    truths = [value for value in task.truth(batch).values() if value.is_floating_point() and value.ndim > 1]
    for stream in shown.streams.values():
        assert not any(value.data_ptr() == stream.data.data_ptr() for value in truths)
        assert not any(v.shape == stream.data.shape and torch.equal(v.float(), stream.data.float()) for v in truths)
