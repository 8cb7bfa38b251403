"""Every system with a trial really learns: minutes a seed, run by `make test-slow`."""

from __future__ import annotations

import pytest

from avcl import discover
from avcl.testing import check_trial

CASES = [
    (name, *case)
    for name in discover.system_names()
    if discover.system_class(name).trial is not None
    for case in check_trial(discover.system_class(name))
]


@pytest.mark.slow
@pytest.mark.parametrize(("system", "name", "check"), CASES, ids=[f"{s}-{n}" for s, n, _ in CASES])
def test_trial(system: str, name: str, check) -> None:
    check()
