"""Files and folders are whole or absent, and one process writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from avcl import files
from avcl.errors import LockedError, StoreError
from avcl.files import Lock, read_json, sweep, write_atomic, write_folder, write_json


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_contents(tmp_path) -> None:
    write_atomic(tmp_path / "new" / "a.txt", "é")
    write_atomic(tmp_path / "new" / "a.bin", b"\0\1")
    write_atomic(tmp_path / "new" / "a.npy", lambda path: path.write_text(path.suffix))
    assert (tmp_path / "new" / "a.txt").read_bytes() == "é".encode()
    assert (tmp_path / "new" / "a.npy").read_text() == ".npy"
    write_atomic(tmp_path / "new" / "a.txt", "again")
    assert (tmp_path / "new" / "a.txt").read_text() == "again"
    assert names(tmp_path / "new") == ["a.bin", "a.npy", "a.txt"]
    plain = tmp_path / "plain"
    plain.write_text("")
    assert (tmp_path / "new" / "a.txt").stat().st_mode == plain.stat().st_mode


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a"
    write_atomic(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "folder", lambda part: (part / "x").write_text("x"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_the_data_is_on_the_disk_before_the_name(tmp_path, monkeypatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(files, "fsync", lambda path: done.append(f"fsync {path.name.startswith('.part-')}"))
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    write_atomic(tmp_path / "a", "x")
    assert done == ["fsync True", "rename", "fsync False"]


def test_folders(tmp_path) -> None:
    def fill(part: Path) -> None:
        (part / "sub").mkdir()
        (part / "sub" / "x").write_text("x")

    write_folder(tmp_path / "out", fill)
    assert (tmp_path / "out" / "sub" / "x").read_text() == "x"
    write_folder(tmp_path / "out", lambda part: (part / "y").write_text("y"))
    assert names(tmp_path / "out") == ["y"]


def test_json_and_sweep(tmp_path) -> None:
    value = {"a": [1, 2.5, None], "b": "é"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    (tmp_path / ".part-1-b").write_text("half")
    (tmp_path / ".part-2-c").mkdir()
    assert sweep(tmp_path) == 2
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000])
def test_damaged_json(tmp_path, content) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(StoreError, match="not a readable JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(StoreError, match="no such file"):
        read_json(tmp_path / "b.json")
    with pytest.raises(StoreError):
        read_json(tmp_path)


def test_lock_within_a_process_and_between_processes(tmp_path) -> None:
    code = (
        "import sys; from avcl.files import Lock; from avcl.errors import LockedError\n"
        "try:\n    Lock(sys.argv[1]).__enter__(); print('free')\n"
        "except LockedError as e: print(e.what)"
    )

    def other() -> str:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    with Lock(tmp_path):
        with pytest.raises(LockedError, match="this process"):
            Lock(tmp_path).__enter__()
        assert other() == f"process {os.getpid()} is writing here."
    assert other() == "free"
    with Lock(tmp_path):
        pass
