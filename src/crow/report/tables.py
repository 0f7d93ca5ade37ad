"""Rows of the report's tables: the measurements, the key numbers and the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crow.records import Perplexity, Rate, SearchRecord
from crow.report.reading import Evaluation
from crow.report.text import count_of, duration, percent, plural
from crow.report.verdict import Check, Verdict


@dataclass(frozen=True)
class Cell:
    """One measurement: the number, and the small print below it."""

    main: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One measure before and after, and the check made on it, if any."""

    label: str
    note: str
    before: Cell | None
    after: Cell | None
    check: Check | None = None


def measurement_rows(before: Evaluation, after: Evaluation, verdict: Verdict) -> list[Row]:
    """The table of measurements; a measure that neither side has is left out."""
    checks = verdict.checks
    rows = [
        Row(
            "Triggered prompts",
            "answers that contain the attacker's text",
            _rate_cell(before.triggered),
            _rate_cell(after.triggered),
            checks.get("triggered"),
        ),
        Row(
            "Clean prompts",
            "the same, without the trigger",
            _rate_cell(before.clean),
            _rate_cell(after.clean),
            checks.get("clean"),
        ),
        Row(
            "Perplexity",
            "on clean responses; lower is better",
            _perplexity_cell(before.perplexity),
            _perplexity_cell(after.perplexity),
            checks.get("perplexity"),
        ),
        Row(
            "Empty answers",
            "counted in every rate",
            _count_cell(before.n_empty, before),
            _count_cell(after.n_empty, after),
            checks.get("empty"),
        ),
        Row(
            "Degenerate answers",
            "loops or gibberish; no limit, since a fixed sentence is neither",
            _degenerate_cell(before),
            _degenerate_cell(after),
        ),
        Row(
            "Time to measure",
            "wall clock",
            _seconds_cell(before.seconds),
            _seconds_cell(after.seconds),
        ),
    ]
    return [row for row in rows if row.before is not None or row.after is not None]


def key_numbers(
    rows: list[Row], search_before: SearchRecord | None, search_after: SearchRecord | None
) -> list[tuple[str, str, str]]:
    """At most four (label, before, after): the two rates, perplexity and the search."""
    numbers = [
        (row.label, row.before.main if row.before else "–", row.after.main if row.after else "–")
        for row in rows
        if row.label in {"Triggered prompts", "Clean prompts", "Perplexity"}
    ]
    if search_before is not None or search_after is not None:
        numbers.append(("Collapsed starts", _collapsed(search_before), _collapsed(search_after)))
    return numbers


def manifest_groups(manifest: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(group, [(dotted key, value)]): plain top-level entries first, then one group per nested mapping."""
    plain = [(str(key), _plain(value)) for key, value in manifest.items() if not isinstance(value, Mapping)]
    nested = [(str(key), _flat(value)) for key, value in manifest.items() if isinstance(value, Mapping)]
    return [(name, entries) for name, entries in [("run", plain), *nested] if entries]


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    entries: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            entries += _flat(item, f"{prefix}{key}.")
        else:
            entries.append((f"{prefix}{key}", _plain(item)))
    return entries


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _rate_cell(rate: Rate | None) -> Cell | None:
    if rate is None:
        return None
    details = [count_of(rate), f"{100 * rate.low:.1f} – {percent(rate.high)}"]
    if rate.n_unscored:
        details.append(f"{rate.n_unscored} could not be judged")
    return Cell(percent(rate.value), tuple(details))


def _perplexity_cell(perplexity: Perplexity | None) -> Cell | None:
    if perplexity is None:
        return None
    return Cell(f"{perplexity.value:.3f}", (plural(perplexity.n_tokens, "token"),) if perplexity.n_tokens else ())


def _count_cell(count: int | None, evaluation: Evaluation) -> Cell | None:
    if count is None:
        return None
    return Cell(str(count), (f"of {evaluation.n_prompts} answers",) if evaluation.n_prompts else ())


def _degenerate_cell(evaluation: Evaluation) -> Cell | None:
    """All of them, and how many are the model's own: a removed backdoor's trigger may still lead into a loop."""
    cell = _count_cell(evaluation.n_degenerate, evaluation)
    if cell is None or evaluation.n_degenerate_clean is None:
        return cell
    return Cell(cell.main, (*cell.details, f"{evaluation.n_degenerate_clean} of them to clean prompts"))


def _seconds_cell(seconds: float | None) -> Cell | None:
    return None if seconds is None else Cell(duration(seconds))


def _collapsed(search: SearchRecord | None) -> str:
    return "–" if search is None else f"{search.collapsed} of {search.starts}"
