"""The model card of a purified model: what was done and shown, in the folder's `README.md`.

It is Markdown that others' software renders, so it holds figures and crow's own words, and no text of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crow.output import write_text
from crow.report.account import account
from crow.report.view import View, read_view


def render_card(results: Mapping[str, Any]) -> str:
    """The card as Markdown.

    Args:
        results: what `crow purify` writes as `results.json`.
    """
    view = read_view(results)
    told = f"**{view.verdict.headline}.** {view.verdict.sentence}"
    lines = ["---", "tags:", "- crow", "---", "", f"# {title(view)}", "", told, ""]
    for heading, sentences in account(results, view):
        lines += [f"## {heading}", "", *sentences, ""]
    if calibration := view.calibration:
        lines += ["## Canaries", "", *calibration.sentences, ""]
        header = ["strength", *calibration.canaries, "clean prompts", "perplexity"]
        lines += [f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
        lines += [f"| {' | '.join([name, *cells, clean, cost])} |" for name, cells, clean, cost in calibration.rows]
        lines.append("")
    lines.append("Figures, settings, seeds, versions and hashes: `results.json`; the same to look at: `report.html`.")
    return "\n".join(lines) + "\n"


def title(view: View) -> str:
    """What may be said of the model in a line: one that nothing was changed in is none that was purified."""
    return "A model that crow left as it was" if view.untouched else "A model purified by crow"


def write_card(results: Mapping[str, Any], path: Path) -> None:
    """Writes the card to `path`, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, render_card(results))
