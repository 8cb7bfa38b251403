"""The demo from end to end, as small as it goes: what it writes, what it prints, and that it does not overwrite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import avcl


def test_demo(shell, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    got = shell("demo", "--out", out, "--steps", 2, "--clips", 12)
    assert got.status == 0
    result = json.loads(got.out.splitlines()[-1])
    assert set(result) >= {"mean", "chance", "untrained", "report"}
    for part in ("mean", "chance", "untrained", "wrong_partner"):
        assert set(result[part]) == {"R@1", "R@10", "mAP"}
        assert all(0 <= value <= 1 for value in result[part].values())
    assert result["chance"]["R@1"] == pytest.approx(1 / 12)
    assert result["chance"]["R@10"] == pytest.approx(10 / 12)
    page = Path(result["report"]).read_text()
    assert page.startswith("<!doctype html>")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert avcl.load(out / "run").modalities == ("audio", "video")
    assert avcl.index.info(out / "index")["files"] == 12
    again = shell("demo", "--out", out, "--steps", 2, "--clips", 12, "--json")
    assert (again.status, again.lines[-1]["code"]) == (2, "E-EXISTS")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    refused = shell("demo", "--out", tmp_path / "notes", "--force")
    assert refused.status == 2
    assert (tmp_path / "notes" / "mine.txt").exists()


def test_a_demo_that_was_stopped_after_training_goes_on(shell, tmp_path: Path, monkeypatch) -> None:
    from avcl import archive

    out = tmp_path / "demo"
    with monkeypatch.context() as patch:
        patch.setattr(archive, "build", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert shell("demo", "--out", out, "--steps", 2, "--clips", 10).status == 130
    weights = (out / "run" / "weights.safetensors").stat().st_mtime_ns
    assert shell("demo", "--out", out, "--steps", 2, "--clips", 10).status == 0
    assert (out / "run" / "weights.safetensors").stat().st_mtime_ns == weights
