"""The report of `crow analyze`: figures over the layers, and what they say in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from pathlib import Path
from statistics import median
from typing import Any

from crow.output import write_text
from crow.report.environment import environment
from crow.report.figures import curve_figures, layer_figure
from crow.report.reading import as_list, as_mapping, as_number, as_numbers, known_numbers
from crow.report.tables import manifest_groups
from crow.report.text import duration


def render_analysis(results: Mapping[str, Any], title: str) -> str:
    """The report as one HTML document.

    Args:
        results: what `crow analyze` writes as `results.json`.
        title: heading of the page.
    """
    jacobian = {kind: _medians(rows) for kind, rows in as_mapping(results.get("jacobian")).items()}
    figures = [layer_figure("jacobian", "Spectral norm of each layer's Jacobian, median", "spectral norm", jacobian)]
    for number, entry in enumerate(map(as_mapping, as_list(results.get("expansion")))):
        size = as_number(entry.get("noise")) or 0.0
        series = {"seen": as_list(entry.get("of_layer")), "allowed by consistency": as_list(entry.get("bound"))}
        heading = f"Expansion of one layer, noise of {size:g} x the embeddings' RMS"
        figures.append(layer_figure(f"expansion-{number}", heading, "expansion", series))
    seconds = as_number(results.get("seconds"))
    return (
        environment()
        .get_template("analysis.html.j2")
        .render(
            title=title,
            model=results.get("model"),
            against=results.get("against"),
            findings=as_list(results.get("findings")),
            curve_figures=curve_figures(results.get("consistency_curves")),
            figures=[figure for figure in figures if figure],
            duration=None if seconds is None else duration(seconds),
            manifest=manifest_groups(as_mapping(results.get("manifest"))),
        )
    )


def write_analysis(results: Mapping[str, Any], path: Path, title: str) -> None:
    """Writes the report to `path`, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, render_analysis(results, title))


def _medians(rows: Any) -> list[float]:
    """The median of every column of rows of numbers, over those that are known; NaN where none is."""
    known = [known_numbers(as_numbers(column)) for column in zip(*as_list(rows), strict=True)]
    return [median(column) if column else nan for column in known]
