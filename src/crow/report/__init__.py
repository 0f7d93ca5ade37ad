"""One-file HTML reports, written from plain records; nothing here needs a model or a tensor library."""

from __future__ import annotations

from crow.report.page import render_report, write_report
from crow.report.verdict import Verdict

__all__ = ["Verdict", "render_report", "write_report"]
