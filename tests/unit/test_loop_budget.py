"""The budget of a training: no step is begun after it, what was learned is scored and kept, a resumed run goes on
counting."""

from __future__ import annotations

from pathlib import Path

import pytest
from loop_toys import make, run

from avcl.errors import ExistsError


class Clock:
    """A second a look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_a_spent_budget_ends_the_run_after_a_whole_step_and_scores_it() -> None:
    result = run(settings={"epochs": 50}, budget=6.0, clock=Clock())
    assert result.out_of_time
    assert not result.stopped_early
    assert 0 < result.steps < 10
    assert result.history[-1]["step"] == result.steps
    assert result.history[-1]["validation"] is not None
    assert result.best is not None
    assert result.system.finished


def test_at_least_one_step_is_taken() -> None:
    assert run(budget=1e-9).steps == 1


def test_a_budget_that_lasts_changes_nothing() -> None:
    one, two = run(), run(budget=1e6)
    assert one.history == two.history
    assert not two.out_of_time


def test_a_resumed_run_has_what_is_left(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(system: object) -> float:
        raise Stop

    with pytest.raises(Stop):  # in the validation of the first epoch, after the checkpoint at step 3
        run(tmp_path, settings={"epochs": 50}, budget=1000.0, clock=Clock(), validate=stop)
    calls = Clock()
    result = run(tmp_path, settings={"epochs": 50}, budget=1000.0, clock=calls, validate=lambda system: 0.0)
    assert result.out_of_time is (result.steps < 200)
    with pytest.raises(ExistsError):
        run(tmp_path, system=make(epochs=50), budget=2000.0, validate=lambda system: 0.0)
