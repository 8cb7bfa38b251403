"""What every page of a report shares: the frame around its parts, the line of facts, the panel, the details."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from avcl.files import finite, write_atomic
from avcl.report.figures import short
from avcl.types import Report, jsonable


def write_page(path: str | Path, report: Report, *, title: str, **parts: str) -> None:
    """The page with these parts (HTML), whole or not at all; nothing in it points to the network."""
    known = {"warnings": "", "tiles": "", "charts": "", "gallery": "", "tables": "", "glossary": "", "lead": ""}
    page = Template(files("avcl.report").joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        meta=meta(report),
        details=escape(details(report)),
        json=json.dumps(finite(report.as_dict())).replace("<", "\\u003c"),
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
    return "".join(f"<span>{escape(short(s, 80))}</span>" for s in spans if s)


def details(report: Report) -> str:
    keep = ("protocol", "config", "versions", "skipped", "task", "data", "model", "split", "seed", "seconds")
    return json.dumps(finite({k: jsonable(getattr(report, k)) for k in keep}), indent=2, ensure_ascii=False)


def panel(title: str, words: str, svg: str, *, wide: bool = False) -> str:
    return (
        f'<section class="panel{" wide" if wide else ""}"><h3>{escape(title)}</h3><p>{escape(words)}</p>{svg}</section>'
    )
