"""Every part that there is keeps the contract; a new public module of ``avcl.encoders`` or ``avcl.nn`` is found by
itself and must have a case, or a reason for having none.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from part_cases import CASES, OTHERS
from torch import nn

import avcl.encoders
import avcl.nn
from avcl.testing import check_encoder, stream_of
from avcl.types import Stream, StreamSpec


def public_modules() -> Iterator[type[nn.Module]]:
    """Every module class that a file of the two rooms defines under a public name."""
    for package in (avcl.encoders, avcl.nn):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            for name, value in vars(module).items():
                public = not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
                if public and inspect.isclass(value) and issubclass(value, nn.Module) and not inspect.isabstract(value):
                    yield value


def test_every_public_module_has_a_case() -> None:
    cased = {name.partition(":")[0] for name in CASES}
    there = {cls.__name__ for cls in public_modules()}
    assert not there - cased - OTHERS.keys(), f"no case: {', '.join(sorted(there - cased - OTHERS.keys()))}"
    assert not (cased | OTHERS.keys()) - there, f"gone: {', '.join(sorted((cased | OTHERS.keys()) - there))}"
    assert not cased & OTHERS.keys()


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=3, phases=[Phase.generate], report_multiple_bugs=False)
@given(drawn=st.data())
def test_contract(name: str, drawn: st.DataObject) -> None:
    case = CASES[name]
    batch, seed = drawn.draw(st.integers(2, 3), "batch"), drawn.draw(st.integers(0, 9), "seed")
    steps = [drawn.draw(st.integers(i.least, i.most), "steps") for i in case.inputs]
    longest = [i.most for i in case.inputs]  # one step alone moves no score of attention

    def checks(lengths: list[int]) -> list[tuple[str, Callable[[], None]]]:
        specs = [StreamSpec(i.kind, i.shape, i.rate) for i in case.inputs]
        streams = [
            stream_of(spec, batch=batch, steps=length, seed=seed + i)
            for i, (spec, length) in enumerate(zip(specs, lengths, strict=True))
        ]
        return check_encoder(case.make, streams, call=case.call, limits=case.limits)

    failed = {}
    gradient = [pair for pair in checks(longest) if pair[0] == "gradient"]
    for check, run in [pair for pair in checks(steps) if pair[0] != "gradient"] + gradient:
        try:
            run()
        except AssertionError as error:
            failed[check] = str(error).partition("\n")[0]
        except Exception as error:
            failed[check] = f"{type(error).__name__}: {error}".partition("\n")[0]
    assert not failed, f"{name}: {failed}"


# --------------------------------------------------------------------------------- the suite finds what it says it does
class Broken(nn.Module):
    """A linear map of every step, right but for one thing."""

    def __init__(self, wrong: str):
        super().__init__()
        self.wrong, self.dim = wrong, 6
        self.net, self.drop, self.norm = nn.Linear(6, 6), nn.Dropout(0.5), nn.LayerNorm(6)
        if wrong == "unused":
            self.more = nn.Linear(6, 6)
        if wrong == "statistics":
            self.batch = nn.BatchNorm1d(6)
        if wrong == "dim":
            self.dim = 5
        self.draws = 0

    def forward(self, stream: Stream) -> Stream:
        data, mask, rate = stream
        keep = mask[:, :, None]
        if self.wrong == "gap":  # what was not recorded leaks into its neighbors
            data = data + 1e-3 * data.roll(1, 1)
        elif self.wrong == "infinite":
            data = torch.where(keep, data, torch.inf)
        elif self.wrong == "mean":  # padding counts in the divisor
            data = (data * keep).mean(1, keepdim=True) + data * keep
        elif self.wrong == "rows":
            data = data * keep - 0.1 * (data * keep).sum((0, 1))
        x = self.net(data * keep)
        if self.wrong == "random":
            x = nn.functional.dropout(x, 0.5)
        if self.wrong == "nan":  # the gradient of the norm of nothing
            x = x * (x * keep).square().sum((1, 2), keepdim=True).sqrt()
        if self.wrong == "half":
            x = x + 1e3 - 1e3 if x.dtype == torch.float32 else x + torch.tensor(1e3).to(x) - torch.tensor(1e3).to(x)
        if self.wrong == "statistics":
            x = self.batch(x.flatten(0, 1)).view_as(x)
        if self.wrong == "in place":
            data.mul_(2)
        if self.wrong == "rate":
            rate = 2 * rate
        if self.wrong == "mask":
            mask = torch.ones_like(mask)
        return Stream(self.norm(x) if self.wrong == "bias" else x * mask[:, :, None], mask, rate)


FOUND = {
    "gap": "padding",
    "bias": "padding",
    "infinite": "dim",
    "mean": "padding",
    "rows": "order",
    "random": "determinism",
    "in place": "determinism",
    "nan": "empty",
    "half": "half",
    "unused": "gradient",
    "statistics": "order",
    "rate": "clock",
    "mask": "clock",
    "dim": "dim",
}


def outcome(run: Callable[[], None]) -> bool:
    try:
        run()
    except (AssertionError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("wrong", FOUND)
def test_a_broken_encoder_is_found(wrong: str) -> None:
    stream = stream_of(StreamSpec("features", (6,), 2.0))
    checks = dict(check_encoder(lambda: Broken(wrong), stream))
    assert not outcome(checks[FOUND[wrong]])
    limited = dict(check_encoder(lambda: Broken(wrong), stream, limits={FOUND[wrong]: "declared"}))
    assert outcome(limited[FOUND[wrong]])


def test_a_limit_that_does_not_hold_is_an_error() -> None:
    stream = stream_of(StreamSpec("features", (6,), 2.0))

    class Right(Broken):
        def __init__(self) -> None:
            super().__init__("")
            del self.norm

    for name, run in check_encoder(Right(), stream):
        assert outcome(run), name
    for name, run in check_encoder(Right, stream, limits={"padding": "not so", "clock": "not so"}):
        if name in ("padding", "clock"):
            with pytest.raises(AssertionError, match="remove the limit"):
                run()
    with pytest.raises(ValueError, match="there is no check pading"):
        check_encoder(Right, stream, limits={"pading": ""})
