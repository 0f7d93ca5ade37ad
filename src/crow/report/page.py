"""The report: one HTML file that opens offline, loads nothing and trusts no text of a model."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from crow.output import write_text
from crow.report.account import account
from crow.report.canaries import read_calibration
from crow.report.figures import curve_figures, identity_figure, loss_figures
from crow.report.reading import as_list, as_mapping, as_number, read_evaluation, read_search
from crow.report.tables import key_numbers, manifest_groups, measurement_rows
from crow.report.text import clip, duration, plural, visible
from crow.report.verdict import judge

_FOLDER = Path(__file__).parent
_MARKS = {True: "✓ held", False: "✗ did not hold", None: "– not measured"}


def render_report(results: Mapping[str, Any], title: str) -> str:
    """The report of `crow demo` or `crow purify` as one HTML document.

    Args:
        results: what `results.json` holds. Every key is optional and a part without data is left out:
            `before`, `after` (as `crow eval` writes them), `training` (one mapping a step), `search`
            (`before`, `after`), `calibration`, `verification`, `consistency_curves`, `answers`, `model`, `seconds`,
            `manifest`.
        title: heading of the page.
    """
    before, after = read_evaluation(results.get("before")), read_evaluation(results.get("after"))
    searches = as_mapping(results.get("search"))
    search_before, search_after = read_search(searches.get("before")), read_search(searches.get("after"))
    verdict = judge(before, after, search_before, search_after)
    rows = measurement_rows(before, after, verdict)
    seconds = as_number(results.get("seconds"))
    # A model may come as its reference or as a record about it; the record joins the manifest.
    model = results.get("model")
    named = {"model": model} if isinstance(model, Mapping) else {}
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            model=model if isinstance(model, str) else None,
            verdict=verdict,
            key_numbers=key_numbers(rows, search_before, search_after),
            account=account(results, verdict, after, search_before, search_after),
            rows=rows,
            marks=_MARKS,
            answers=[as_mapping(answer) for answer in as_list(results.get("answers"))],
            searches=[(side, found) for side, found in (("before", search_before), ("after", search_after)) if found],
            identity_figure=identity_figure(search_before, search_after),
            calibration=read_calibration(results.get("calibration")),
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


@functools.cache
def environment() -> Environment:
    """Templates with escaping always on; every string that is printed goes through `visible` first."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters.update(clip=clip, plural=plural, figure=_figure_markup)
    return environment


def _printable(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _figure_markup(svg: str) -> Markup:
    """Markup of a figure of ours, which holds no text of a model. Nothing else may be marked safe."""
    return Markup(svg)  # noqa: S704
