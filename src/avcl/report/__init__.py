"""A Report as files: JSON, and one self-contained HTML page with plots, pictures and players."""

from __future__ import annotations

from avcl.report.page import read_json, write_html, write_json
from avcl.report.task_page import write_task_html

__all__ = ["read_json", "write_html", "write_json", "write_task_html"]
