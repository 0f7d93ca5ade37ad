"""The report of `crow bench`: one HTML file beside the records, its tables sortable, every number led to its record."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from markupsafe import Markup

from crow.output import write_text
from crow.report.drawing import Picture
from crow.report.environment import environment
from crow.report.figures import ablation_figure, tradeoff_figure
from crow.report.grid import (
    KEPT,
    UNTREATED,
    Entry,
    ablations,
    best,
    cell_text,
    columns,
    entries,
    latex_table,
    markdown_table,
    rows,
)

_SCRIPT = (Path(__file__).parent / "sort.js").read_text(encoding="utf-8")


def write_grid_report(
    records: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str], folder: Path, title: str
) -> None:
    """Write `report.html`, `table.md` and `table.tex` into the folder of the records.

    Args:
        records: name to record.
        failed: name to message of the cells that failed.
        folder: of the records.
        title: of the page.
    """
    made = entries(records)
    write_text(folder / "table.md", markdown_table(made))
    write_text(folder / "table.tex", latex_table(made))
    write_text(folder / "report.html", render_grid(made, failed, title))


def render_grid(made: Sequence[Entry], failed: Mapping[str, str], title: str) -> str:
    """The page as one HTML document."""
    table = rows(made)
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return (
        environment()
        .get_template("grid.html.j2")
        .render(
            title=title,
            model=None,
            duration=None,
            manifest=[],
            kept=KEPT,
            columns=columns(made),
            rows=table,
            best={attack: best(row) for attack, row in table.items()},
            texts={attack: {name: cell_text(entry) for name, entry in row.items()} for attack, row in table.items()},
            entries=made,
            measures=list(dict.fromkeys(label for entry in made for label in entry.utility)),
            figures=figures(made),
            failed=failed,
            script=Markup(_SCRIPT),  # noqa: S704 our own file
            script_hash=f"sha256-{digest}",
        )
    )


def figures(made: Sequence[Entry]) -> list[Picture]:
    """Attack success against utility for every attack, and against every setting that was varied."""
    found = []
    for number, (attack, row) in enumerate(rows(made).items()):
        points = [
            (entry.ratio, entry.triggered.value, entry.defense)
            for entry in row.values()
            if entry.ratio is not None and isfinite(entry.ratio)
        ]
        if len(points) > 1:
            found.append(tradeoff_figure(f"tradeoff-{number}", attack, points, UNTREATED))
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for (setting, label), points in ablations(made).items():
        lines.setdefault(setting, {})[label] = [(value, entry.triggered.value) for value, entry in points]
    return found + [ablation_figure(f"ablation-{number}", *line) for number, line in enumerate(lines.items())]
