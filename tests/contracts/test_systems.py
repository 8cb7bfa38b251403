"""Every system that there is keeps the contract; a new file in ``systems/`` is found by itself."""

from __future__ import annotations

import pytest

from avcl import discover
from avcl.testing import check_system

CASES = [(name, *case) for name in discover.system_names() for case in check_system(discover.system_class(name))]


@pytest.mark.parametrize(("system", "name", "check"), CASES, ids=[f"{s}-{n}" for s, n, _ in CASES])
def test_contract(system: str, name: str, check) -> None:
    check()
