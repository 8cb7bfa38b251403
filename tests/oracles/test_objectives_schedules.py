"""Schedules: worked values, ends, bounds, monotony, and what they refuse."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avcl.errors import ConfigError
from avcl.objectives.schedules import Constant, Cosine, Cyclic, Exponential, Linear, Reversal, Schedule

ALL: list[Schedule] = [
    Constant(value=0.2),
    Linear(start=0, end=1, over=100, delay=10),
    Cosine(start=0.5, end=0.07, over=100),
    Exponential(start=0.001, rate=1.002, every=1000),
    Cyclic(period=100),
    Reversal(over=100),
]
values = st.floats(-1e6, 1e6)
steps = st.one_of(st.integers(0, 10**9), st.floats(0, 1e9))


def test_worked_margins() -> None:
    margin = Exponential(start=0.001, rate=1.002, every=1000)
    for step, value in ((0, 0.001), (999, 0.001), (1000, 0.001002), (10_000, 0.001020181), (100_000, 0.001221159)):
        assert margin(step) == pytest.approx(value, abs=5e-10)
    smooth = Exponential(start=0.001, rate=1.002, every=1000, smooth=True)
    assert smooth(100_000) == pytest.approx(0.001221159, abs=5e-10)
    assert margin(0) < smooth(999) < margin(1000)


def test_worked_reversal() -> None:
    for p, value in ((0, 0), (0.25, 0.848284), (0.5, 0.986614), (1, 0.999909), (7, 0.999909)):
        assert Reversal(over=1)(p) == pytest.approx(value, abs=5e-7)
        assert Reversal(over=400, height=2)(400 * p) == pytest.approx(2 * value, abs=1e-6)
        assert Reversal(over=1)(p) == pytest.approx(2 / (1 + math.exp(-10 * min(p, 1))) - 1, abs=1e-12)


def test_temperatures_and_warm_ups() -> None:
    temperature = Cosine(start=0.5, end=0.1, over=100)
    assert [temperature(s) for s in (0, 50, 100, 500)] == pytest.approx([0.5, 0.3, 0.1, 0.1])
    decay = Exponential(start=0.5, rate=0.5, every=10, floor=0.07)
    assert [decay(s) for s in (0, 10, 20, 30, 10**9)] == pytest.approx([0.5, 0.25, 0.125, 0.07, 0.07])
    warm = Linear(start=0, end=2, over=10, delay=5)
    assert [warm(s) for s in (0, 5, 10, 15, 99)] == pytest.approx([0, 0, 1, 2, 2])
    cyclic = Cyclic(period=10, rise=0.5)
    assert [cyclic(s) for s in (0, 2, 5, 9, 10, 12, 15, 20)] == pytest.approx([0, 0.4, 1, 1, 0, 0.4, 1, 0])
    assert Cyclic(period=4, rise=1.0, start=1, end=3)(3) == pytest.approx(2.5)


@given(values, values, st.floats(1e-3, 1e6), st.floats(0, 1e6), steps, steps)
def test_ramps_reach_their_ends_and_never_turn_back(
    start: float, end: float, over: float, delay: float, one: float, other: float
) -> None:
    for kind in (Linear, Cosine):
        ramp = kind(start=start, end=end, over=over, delay=delay)
        assert ramp(0) == start
        assert ramp(delay + 2 * over) == end
        first, second = ramp(min(one, other)), ramp(max(one, other))
        assert min(start, end) <= first <= max(start, end)
        assert (second - first) * (end - start) >= 0


@given(st.floats(0.5, 2), st.floats(0.01, 1e4), st.booleans(), steps, steps)
def test_exponentials_keep_their_bounds_and_direction(
    rate: float, every: float, smooth: bool, one: float, other: float
) -> None:
    schedule = Exponential(start=0.3, rate=rate, every=every, floor=0.01, ceiling=5.0, smooth=smooth)
    first, second = schedule(min(one, other)), schedule(max(one, other))
    assert 0.01 <= first <= 5
    assert (second - first) * (rate - 1) >= 0


@given(st.floats(0.1, 1e4), st.floats(0.1, 50), steps, steps)
def test_reversal_rises_within_its_height(over: float, rate: float, one: float, other: float) -> None:
    schedule = Reversal(over=over, rate=rate, height=0.7)
    assert 0 <= schedule(min(one, other)) <= schedule(max(one, other)) <= 0.7


@given(st.floats(0.1, 1e3), st.floats(0.01, 1), st.integers(0, 10**6))
def test_cycles_repeat(period: float, rise: float, step: int) -> None:
    schedule = Cyclic(period=period, rise=rise)
    assert 0 <= schedule(step) <= 1
    assert schedule(step) == pytest.approx(schedule(math.fmod(step, period)), abs=1e-9)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_a_schedule_is_a_value(schedule: Schedule) -> None:
    again = dataclasses.replace(schedule)  # type: ignore[type-var]
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert [schedule(s) for s in (7, 0, 7)] == [again(s) for s in (7, 0, 7)]  # no step is remembered
    assert all(type(schedule(s)) is float for s in (0, 3.5, 10**6))
    for step in (-1, -1e-9, math.nan, math.inf):
        with pytest.raises(ConfigError, match="step"):
            schedule(step)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="value"):
        Constant(value=math.nan)
    for kind in (Linear, Cosine):
        with pytest.raises(ConfigError, match="over"):
            kind(start=0, end=1, over=0)
        with pytest.raises(ConfigError, match="delay"):
            kind(start=0, end=1, over=1, delay=-1)
        with pytest.raises(ConfigError, match="end"):
            kind(start=0, end=math.inf, over=1)
    good = {"start": 1.0, "rate": 1.1}
    for name, value in (("start", -1.0), ("rate", 0.0), ("every", 0.0), ("floor", math.nan), ("ceiling", -1.0)):
        with pytest.raises(ConfigError, match=name):
            Exponential(**{**good, name: value})
    for name, value in (("period", 0.0), ("rise", 0.0), ("rise", 1.5), ("end", math.nan)):
        with pytest.raises(ConfigError, match=name):
            Cyclic(**{"period": 1.0, name: value})
    for name, value in (("over", 0.0), ("rate", 0.0), ("height", -1.0)):
        with pytest.raises(ConfigError, match=name):
            Reversal(**{"over": 1.0, name: value})


def test_growth_beyond_all_floats_is_named_or_held() -> None:
    with pytest.raises(ConfigError, match="ceiling"):
        Exponential(start=0.001, rate=2)(10_000)
    assert Exponential(start=0.001, rate=2, ceiling=0.5)(10_000) == 0.5
    assert Exponential(start=0.0, rate=2)(10_000) == 0
    assert Exponential(start=1.0, rate=0.5)(10_000) == 0
