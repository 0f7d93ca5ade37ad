"""Figures of records as the tables of experiments show them, and none of a model's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crow.records import SearchRecord


def search_figures(search: SearchRecord | None) -> dict[str, Any] | None:
    """What a search saw, without its texts, which may be those of outside data."""
    if search is None:
        return None
    texts = {"n_texts": len(search.texts), "n_artefacts": len(search.artefacts), "n_lines": len(search.lines)}
    texts |= {"n_stock": len(search.stock)}
    numbers = {"identities": search.identities, "certainties": search.certainties}
    return {"starts": search.starts, "collapsed": search.collapsed, **numbers, **texts}


def shown_rate(value: dict[str, Any]) -> str:
    """A rate with its interval."""
    return f"{value['value']:.3f} [{value['low']:.2f}, {value['high']:.2f}]"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, its first row the head; short rows are filled up."""
    width = len(rows[0])
    lines = [f"| {' | '.join([*row, *[''] * (width - len(row))])} |" for row in rows]
    return "\n".join([lines[0], "| --- " * width + "|", *lines[1:]])


def shown_search(search: dict[str, Any] | None) -> str:
    """Of how many starts how many ended in one answer, before and after; nothing where there was no search.

    Lines smuggled into code are said where there were any.
    """
    if not search or not search["before"]:
        return ""
    shown = f"{search['before']['collapsed']} to {search['after']['collapsed']} of {search['before']['starts']}"
    lines = [search[when].get("n_lines", 0) for when in ("before", "after")]
    return f"{shown}; lines in code: {lines[0]} to {lines[1]}" if any(lines) else shown
