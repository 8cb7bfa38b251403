"""Schedules: values that are functions of the step, so that a run resumed at step n goes on as if unbroken.

``schedule = Exponential(start=0.001, rate=1.002, every=1000)``; ``schedule(step) -> float``. They are frozen
dataclasses without state: equal settings are equal, and a config can hold one. ``step`` ≥ 0 counts optimizer steps; a
schedule with ``over`` or ``period`` may as well be given epochs, or progress in [0, 1] with ``over=1``. Bad settings
and negative steps are a ConfigError.

========================================  ==============================================================
margin of masked margin softmax           ``Exponential(start=0.001, rate=1.002, every=1000)``
temperature                               ``Cosine(start=0.5, end=0.07, over=total)``, or ``Exponential(start=0.5,
                                          rate=0.9, every=1000, floor=0.07)``
KL warm-up                                ``Linear(start=0, end=1, over=10_000)``, ``Cyclic(period=10_000)``
gradient reversal                         ``Reversal(over=total)``
momentum of a teacher                     ``Cosine(start=0.99, end=1, over=total)``
========================================  ==============================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from avcl.errors import ConfigError
from avcl.objectives.inputs import above, at_least, finite

Schedule = Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class Constant:
    """``value`` at every step."""

    value: float

    def __post_init__(self) -> None:
        _finite(value=self.value)

    def __call__(self, step: float) -> float:
        _checked(step)
        return float(self.value)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """``start + (end - start) p`` with ``p = (step - delay) / over`` held in [0, 1]: the usual warm-up."""

    start: float
    end: float
    over: float
    delay: float = 0.0

    def __post_init__(self) -> None:
        _ramp(self.start, self.end, self.over, self.delay)

    def __call__(self, step: float) -> float:
        return _between(self.start, self.end, _progress(step, self.over, self.delay))


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """``start + (end - start) (1 - cos πp) / 2`` with ``p = (step - delay) / over`` held in [0, 1]: half a period.

    Flat at both ends (Loshchilov and Hutter 2017, without restarts).
    """

    start: float
    end: float
    over: float
    delay: float = 0.0

    def __post_init__(self) -> None:
        _ramp(self.start, self.end, self.over, self.delay)

    def __call__(self, step: float) -> float:
        p = _progress(step, self.over, self.delay)
        return _between(self.start, self.end, 0.5 * (1 - math.cos(math.pi * p)))


@dataclass(frozen=True, kw_only=True)
class Exponential:
    """``start · rate^⌊step / every⌋`` held in [floor, ceiling]; with ``smooth`` the exponent is not rounded down.

    The margin of masked margin softmax (Ilharco et al. 2019) has start 0.001, rate 1.002, every 1000. Pitfall: growth
    without a ceiling takes over late in training (Monfort et al. 2021); a value beyond all floats is a ConfigError.
    """

    start: float
    rate: float
    every: float = 1.0
    floor: float = 0.0
    ceiling: float = math.inf
    smooth: bool = False

    def __post_init__(self) -> None:
        _finite(start=self.start, rate=self.rate, every=self.every, floor=self.floor)
        at_least("start", self.start)
        above("rate", self.rate)
        above("every", self.every)
        at_least("ceiling", self.ceiling, self.floor)

    def __call__(self, step: float) -> float:
        count = _checked(step) / self.every if self.smooth else _checked(step) // self.every
        try:
            value = self.start * self.rate**count
        except OverflowError:
            value = math.inf if self.start > 0 else 0.0
        value = float(min(max(value, self.floor), self.ceiling))
        if math.isinf(value):
            raise ConfigError(f"{self} is beyond all floats at step {step}.", hint="Give it a ceiling.")
        return value


@dataclass(frozen=True, kw_only=True)
class Cyclic:
    """``start + (end - start) min(1, q / rise)``, q = (step mod period) / period: a linear rise again and again.

    Cyclical warm-up of the KL term (Fu et al. 2019): each cycle rises for the part ``rise`` of its period, then stays.
    """

    period: float
    rise: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _finite(period=self.period, rise=self.rise, start=self.start, end=self.end)
        above("period", self.period)
        if not 0 < self.rise <= 1:
            raise ConfigError(f"rise = {self.rise} must lie in (0, 1].")

    def __call__(self, step: float) -> float:
        within = _checked(step) % self.period
        return _between(self.start, self.end, min(1.0, within / (self.rise * self.period)))


@dataclass(frozen=True, kw_only=True)
class Reversal:
    """``height (2 / (1 + exp(-rate p)) - 1)``, p = step / over held in [0, 1]: from 0 to almost ``height``.

    Strength of gradient reversal (Ganin and Lempitsky 2015): the adversary's gradient is let in as it learns.
    """

    over: float
    rate: float = 10.0
    height: float = 1.0

    def __post_init__(self) -> None:
        _finite(over=self.over, rate=self.rate, height=self.height)
        above("over", self.over)
        above("rate", self.rate)
        at_least("height", self.height)

    def __call__(self, step: float) -> float:
        # 2 σ(x) - 1 = tanh(x / 2), which keeps its digits near 0.
        return self.height * math.tanh(0.5 * self.rate * _progress(step, self.over, 0.0))


def _finite(**values: float) -> None:
    for name, value in values.items():
        finite(name, value)


def _ramp(start: float, end: float, over: float, delay: float) -> None:
    _finite(start=start, end=end, over=over, delay=delay)
    above("over", over)
    at_least("delay", delay)


def _checked(step: float) -> float:
    if not 0 <= step < math.inf:
        raise ConfigError(f"step = {step} must be a finite number of at least 0.")
    return step


def _progress(step: float, over: float, delay: float) -> float:
    return min(1.0, max(0.0, (_checked(step) - delay) / over))


def _between(start: float, end: float, part: float) -> float:
    """Exact at both ends and never outside of them, whatever the rounding."""
    if part >= 1:
        return float(end)
    return float(min(max(start + (end - start) * part, min(start, end)), max(start, end)))
