"""What every page of a report shares: the frame around its parts, the line of facts, the panel, the details."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from avcl.files import finite, write_atomic
from avcl.report.figures import short
from avcl.types import Report, jsonable


def write_page(path: str | Path, report: Report, *, title: str, **parts: str) -> None:
    """The page of one report with these parts (HTML), whole or not at all; nothing in it points to the network."""
    write_parts(path, title=title, meta=meta(report), details=details(report), value=report.as_dict(), **parts)


def write_parts(path: str | Path, *, title: str, meta: str, details: str, value: Any, **parts: str) -> None:
    """A page: ``meta`` its line of facts (HTML), ``details`` plain text, ``value`` what programs find in it as JSON."""
    known = {"warnings": "", "tiles": "", "charts": "", "gallery": "", "tables": "", "glossary": "", "lead": ""}
    page = Template(files("avcl.report").joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        meta=meta,
        details=escape(details),
        json=json.dumps(finite(value)).replace("<", "\\u003c"),
        **{**known, **parts},
    )
    write_atomic(path, page)


def meta(report: Report) -> str:
    protocol = report.protocol
    spans = [
        f"system {report.system}",
        f"model {report.model}" if report.model else "",
        f"{report.n_scored} of {report.n_official} items scored",
        f"split {report.split}" if report.split else "",
        f"relevance {protocol['relevance']}" if "relevance" in protocol else "",
        f"seed {report.seed}",
        f"task {report.task}",
        f"data {report.data}",
    ]
    return facts(spans)


def facts(words: Iterable[str]) -> str:
    """The line of facts under the title."""
    return "".join(f"<span>{escape(short(s, 80))}</span>" for s in words if s)


def details(report: Report) -> str:
    keep = ("protocol", "config", "versions", "skipped", "task", "data", "model", "split", "seed", "seconds")
    return json.dumps(finite({k: jsonable(getattr(report, k)) for k in keep}), indent=2, ensure_ascii=False)


def panel(title: str, words: str, svg: str, *, wide: bool = False) -> str:
    return (
        f'<section class="panel{" wide" if wide else ""}"><h3>{escape(title)}</h3><p>{escape(words)}</p>{svg}</section>'
    )
