"""The report of `crow calibrate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crow.output import write_text
from crow.report.canaries import read_calibration
from crow.report.page import environment
from crow.report.reading import as_mapping, as_number
from crow.report.tables import manifest_groups
from crow.report.text import duration


def render_calibration(results: Mapping[str, Any], title: str) -> str:
    """The report as one HTML document.

    Args:
        results: what `crow calibrate` writes as `results.json`.
        title: heading of the page.
    """
    seconds = as_number(results.get("seconds"))
    template = environment().get_template("calibration.html.j2")
    return template.render(
        title=title,
        model=results.get("model"),
        calibration=read_calibration(results.get("calibration")),
        duration=None if seconds is None else duration(seconds),
        manifest=manifest_groups(as_mapping(results.get("manifest"))),
    )


def write_calibration(results: Mapping[str, Any], path: Path, title: str) -> None:
    """Writes the report to `path`, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, render_calibration(results, title))
