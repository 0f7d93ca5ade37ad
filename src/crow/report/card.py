"""The model card of a purified model: what was done and shown, in the folder's `README.md`.

It is Markdown that others' software renders, so it holds figures and crow's own words, and no text of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crow.output import write_text
from crow.report.account import account
from crow.report.canaries import read_calibration
from crow.report.reading import as_mapping, read_evaluation, read_search
from crow.report.verdict import judge


def render_card(results: Mapping[str, Any]) -> str:
    """The card as Markdown.

    Args:
        results: what `crow purify` writes as `results.json`.
    """
    before, after = read_evaluation(results.get("before")), read_evaluation(results.get("after"))
    searches = as_mapping(results.get("search"))
    search_before, search_after = read_search(searches.get("before")), read_search(searches.get("after"))
    verdict = judge(before, after, search_before, search_after)
    lines = ["---", "tags:", "- crow", "---", "", "# A model purified by crow", "", verdict.sentence, ""]
    for heading, sentences in account(results, verdict, after, search_before, search_after):
        lines += [f"## {heading}", "", *sentences, ""]
    calibration = read_calibration(results.get("calibration"))
    if calibration:
        lines += ["## Canaries", "", *calibration.sentences, ""]
        header = ["strength", *calibration.canaries, "clean prompts", "perplexity"]
        lines += [f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
        lines += [f"| {' | '.join([name, *cells, clean, cost])} |" for name, cells, clean, cost in calibration.rows]
        lines.append("")
    lines.append("Figures, settings, seeds, versions and hashes: `results.json`; the same to look at: `report.html`.")
    return "\n".join(lines) + "\n"


def write_card(results: Mapping[str, Any], path: Path) -> None:
    """Writes the card to `path`, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, render_card(results))
