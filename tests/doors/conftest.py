"""One small run of the main path, made once: 24 clips of the world as files, a trained model, an index."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from avcl import cli


@dataclass(frozen=True)
class MainPath:
    clips: Path
    run: Path
    index: Path


@dataclass(frozen=True)
class Outcome:
    status: int
    lines: list[dict[str, Any]]
    out: str
    err: str


@pytest.fixture
def shell(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """``shell("train", ..., "--json")``: the exit status, the JSON lines of standard output, and both texts."""

    def call(*tokens: object) -> Outcome:
        capfd.readouterr()
        status = cli.run([str(t) for t in tokens])
        out, err = capfd.readouterr()
        lines = [json.loads(line) for line in out.splitlines()] if "--json" in map(str, tokens) else []
        return Outcome(status, lines, out, err)

    return call


@pytest.fixture(scope="session")
def main_path(tmp_path_factory: pytest.TempPathFactory) -> MainPath:
    root = tmp_path_factory.mktemp("main")
    paths = MainPath(root / "clips", root / "run", root / "index")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVCL_CACHE", str(root / "cache"))
        for tokens in (
            ["world", paths.clips, "--clips", 24, "--workers", 0],
            ["train", paths.clips, "--out", paths.run, "--epochs", 1, "--set", "batch_size=8", "--workers", 0],
            ["index", "build", paths.clips, "--model", paths.run, "--out", paths.index],
        ):
            assert cli.run([str(t) for t in [*tokens, "--quiet"]]) == 0
    return paths
