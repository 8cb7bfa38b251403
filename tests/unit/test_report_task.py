"""The page of a task: the deciding figure beside every control, escaped, self-contained."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from avcl.report import write_task_html
from avcl.types import Report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>alert(1)</script>"


def report() -> Report:
    spans = {"untrained": {"both": {"accuracy": (0.1, 0.2)}}, HOSTILE: {"both": {"accuracy": (0.3, 0.4)}}}
    return Report(
        system="toy",
        task="t",
        data="d",
        scores={"both": {"accuracy": 0.8, "F1": float("nan")}, "audio": {"accuracy": 0.6}},
        chance={"both": {"accuracy": 0.1}},
        interval={"both": {"accuracy": (0.7, 0.9)}},
        n_scored=90,
        n_official=100,
        protocol={
            "name": "recognition",
            "words": f"the class named first is right {HOSTILE}.",
            "headline": {"condition": "both", "metric": "accuracy", "better": "higher"},
        },
        untrained={"both": {"accuracy": 0.15}},
        baselines={HOSTILE: {"both": {"accuracy": 0.35}}},
        control_interval=spans,
        per_class={"both": {HOSTILE: {"recall": 0.5}}},
        skipped={"E-DECODE": 10},
    )


def test_every_figure_and_no_foreign_markup(tmp_path: Path) -> None:
    write_task_html(report(), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert HOSTILE not in html
    assert all(text in html for text in ("0.8", "0.7 to 0.9", "0.15", "0.35", "n/a", "E-DECODE 10", "10 of 100 items"))
    assert "http://" not in re.sub(r'xmlns[:\w]*="[^"]*"', "", html)
    assert "Not beaten" not in html


def test_what_is_not_beaten_is_said(tmp_path: Path) -> None:
    lost = replace(report(), interval={"both": {"accuracy": (0.38, 0.9)}})
    write_task_html(lost, tmp_path / "page.html")
    assert "Not beaten: &lt;script&gt;" in (tmp_path / "page.html").read_text()
    write_task_html(replace(report(), untrained={}, baselines={}), tmp_path / "bare.html")
    assert "No control was scored" in (tmp_path / "bare.html").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_has_nothing_to_complain_about(tmp_path: Path) -> None:
    write_task_html(report(), tmp_path / "page.html")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,1400"]
    command = [str(CHROMIUM), *flags, f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (tmp_path / "page.png").exists(), done.stderr
    assert "CONSOLE" not in done.stderr
