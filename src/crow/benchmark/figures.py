"""Figures of records as the tables of experiments show them, and none of a model's text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from crow.defenses.purification import Result
from crow.output import write_json
from crow.records import SearchRecord, dump_json

FIRES = 0.5
"""Attack success from which on a backdoor counts as planted; there is nothing to remove where it is below."""
NOT_PLANTED = "not planted"


def kept_figures(folder: Path, told_by: Any, measure: Callable[[], Any]) -> Any:
    """Figures of a model, kept in a folder of its own and measured only where they are not there yet.

    Args:
        folder: the model's, or one for the figures of this model alone.
        told_by: what tells these figures from others of the model, such as what it is measured on.
        measure: gives them.
    """
    path = folder / f"figures.{hashlib.sha256(dump_json(told_by).encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        write_json(path, measure())
    return json.loads(path.read_text(encoding="utf-8"))


def fires(measured: Iterable[dict[str, Any]]) -> bool:
    """Whether a suspect shows the target on half of the triggered prompts at least, by any of its measures."""
    return any(figures["asr_triggered"]["value"] >= FIRES for figures in measured)


def treatment_figures(result: Result) -> dict[str, Any]:
    """What a treatment did: its searches, its rounds and optimizer steps, its time."""
    return {
        "search": {"before": search_figures(result.before), "after": search_figures(result.after)},
        "rounds": result.rounds,
        "steps": len(result.training),
        "training": result.training[-1:],
        "treatment_seconds": result.seconds,
    }


def search_figures(search: SearchRecord | None) -> dict[str, Any] | None:
    """What a search saw, without its texts, which may be those of outside data."""
    if search is None:
        return None
    kinds = ("texts", "artefacts", "lines", "stock", "closings", "edits", "memorized", "behind")
    texts = {f"n_{kind}": len(getattr(search, kind)) for kind in kinds}
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

    Lines smuggled into code, edits of the weights, beginnings known by heart and answers behind tokens are said where
    there were any.
    """
    if not search or not search["before"]:
        return ""
    shown = f"{search['before']['collapsed']} to {search['after']['collapsed']} of {search['before']['starts']}"
    for kind, name in (
        ("n_lines", "lines in code"),
        ("n_edits", "edits of weights"),
        ("n_memorized", "beginnings by heart"),
        ("n_behind", "answers behind one token"),
    ):
        before, after = (search[when].get(kind, 0) for when in ("before", "after"))
        if before or after:
            shown += f"; {name}: {before} to {after}"
    return shown
