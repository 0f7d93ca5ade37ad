"""The report: one HTML file that opens offline, loads nothing and trusts no text of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crow.output import write_text
from crow.report.account import account
from crow.report.environment import environment
from crow.report.figures import curve_figures, identity_figure, loss_figures
from crow.report.reading import as_list, as_mapping, as_number
from crow.report.scan import scan_parts
from crow.report.tables import key_numbers, manifest_groups, measurement_rows
from crow.report.text import duration
from crow.report.view import read_view

_MARKS = {True: "✓ held", False: "✗ did not hold", None: "– not measured"}


def render_report(results: Mapping[str, Any], title: str) -> str:
    """The report of `crow demo` or `crow purify` as one HTML document.

    Args:
        results: what `results.json` holds. Every key is optional and a part without data is left out:
            `before`, `after` (as `crow eval` writes them), `training` (one mapping a step), `search`
            (`before`, `after`), `scan`, `calibration`, `verification`, `consistency_curves`, `answers`, `model`,
            `seconds`, `manifest`.
        title: heading of the page.
    """
    view = read_view(results)
    rows = measurement_rows(view.before, view.after, view.verdict)
    searches = (("before", view.search_before), ("after", view.search_after))
    seconds, scan = as_number(results.get("seconds")), as_mapping(results.get("scan"))
    # A model may come as its reference or as a record about it; the record joins the manifest.
    model = results.get("model")
    named = {"model": model} if isinstance(model, Mapping) else {}
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            model=model if isinstance(model, str) else None,
            verdict=view.verdict,
            key_numbers=key_numbers(rows, view.search_before, view.search_after),
            account=account(results, view),
            scan=scan_parts(scan) if scan else None,
            rows=rows,
            marks=_MARKS,
            answers=[as_mapping(answer) for answer in as_list(results.get("answers"))],
            searches=[(side, found) for side, found in searches if found],
            identity_figure=identity_figure(view.search_before, view.search_after),
            calibration=view.calibration,
            loss_figures=loss_figures(as_list(results.get("training"))),
            curve_figures=curve_figures(results.get("consistency_curves")),
            duration=None if seconds is None else duration(seconds),
            manifest=manifest_groups({**named, **as_mapping(results.get("manifest"))}),
        )
    )


def write_report(results: Mapping[str, Any], path: Path, title: str) -> None:
    """Writes the report to `path`, whole or not at all; an existing file stays until the new one is complete.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, render_report(results, title))
