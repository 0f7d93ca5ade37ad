"""What a verb prints: for a machine, or for a person."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from crow.records import Rate, SearchRecord, dump_json, to_json


def show(results: dict[str, Any], as_json: bool, otherwise: Callable[[], None]) -> None:
    """Print results for a machine or for a person; once, however many processes had them."""
    from crow.models.processes import is_first

    if not is_first():
        return
    if as_json:
        sys.stdout.write(dump_json(results))
    else:
        otherwise()


def say(text: str) -> None:
    """One line for a person; model text in it cannot steer the terminal."""
    from crow.report.text import visible

    Console(highlight=False, soft_wrap=True).print(visible(text), markup=False, emoji=False)


def show_measurements(columns: dict[str, dict[str, Any]]) -> None:
    """A table of measurements, one column each."""
    table = Table("", *columns)

    def rate(value: Rate) -> str:
        return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}] (n={value.n})"

    if all("asr_triggered" in item for item in columns.values()):
        table.add_row("attack success, triggered", *(rate(item["asr_triggered"]) for item in columns.values()))
        table.add_row("attack success, clean", *(rate(item["asr_clean"]) for item in columns.values()))
        table.add_row("perplexity", *(f"{item['perplexity'].value:.2f}" for item in columns.values()))
    for item in columns.values():
        show_abilities(table, item, rate)
    Console(markup=False, emoji=False).print(table)


def show_abilities(table: Table, item: dict[str, Any], rate: Callable[[Rate], str]) -> None:
    """Rows for what `crow eval` was asked for besides."""
    if "code" in item:
        table.add_row(f"working code, {item['code']['problems']}", rate(item["code"]["pass_at_1"]))
    if "mt_bench" in item:
        found = item["mt_bench"]
        score = "none" if found["score"] is None else f"{found['score']:.2f}"
        table.add_row("MT-Bench", f"{score} (n={found['n']}, {found['n_unscored']} unscored)")
    for task, figures in item.get("tasks", {}).items():
        for metric, value in figures.items():
            if isinstance(value, dict):
                table.add_row(f"{task}, {metric}", f"{value['value']:.4f} (n={figures.get('n')})")


def show_plan(figures: dict[str, Any]) -> None:
    """What a purification would take."""
    say(f"{figures['parameters']:,} parameters, {figures['trained']:,} trained in {figures['steps']} steps")
    for part, size in figures["memory"].items():
        say(f"  {part:10} {size / 2**30:8.2f} GiB")
    say(
        f"about {figures['training_seconds'] / 60:.1f} minutes of training for an answer that a search finds, for "
        f"several twice that, at {figures['operations_per_second'] / 1e9:,.0f} GFLOP/s here; the searches come on top"
    )


FOUND = {
    "texts": "",
    "stock": "left alone, a phrase that the model falls back on: ",
    "closings": "left alone, said anyway further on in ordinary answers: ",
    "edits": "taken out, written into the weights without training: ",
    "memorized": "known by heart, an answer's beginning: ",
    "lines": "code begins with a line that it never uses: ",
}
"""What is said before each text of a search record."""


def show_search(results: dict[str, Any], output: Path) -> None:
    """What searches, scan, canaries and verification saw, and what that comes to."""
    from crow.report.view import read_view

    view = read_view(to_json(results))
    search: dict[str, SearchRecord | None] = results["search"]
    for when, record in search.items():
        if record is None:
            continue
        say(f"search {when}: {record.collapsed} of {record.starts} starts ended in one answer to unrelated prompts")
        for kind, label in FOUND.items():
            for text in getattr(record, kind):
                say(f"  {label}{' '.join(text.split())}")
        for text, token in zip(record.behind, record.tokens, strict=True):
            say(f"  known by heart, behind {token!r} at the end of the prompts: {' '.join(text.split())}")
    if not results["training"]:
        say("nothing was trained: the model is as it was" if view.untouched else "nothing was trained")
    if view.scan:
        say(f"scan: {view.scan}")
    if view.verified:
        found = view.verified
        seen = f"{found.collapsed} of {found.starts} starts ended in one answer, {len(found.lines)} lines in code"
        seen += f", {len(found.memorized)} beginnings known by heart, {len(found.behind)} answers behind one token"
        say(f"verification: {seen}, {len(found.edits)} edits of the weights")
    if view.calibration:
        say(f"strength {view.calibration.strength}; canaries left: {', '.join(view.calibration.left) or 'none'}")
    say(f"{view.verdict.headline}. {view.verdict.sentence}")
    say(f"report: {output / 'report.html'}")
