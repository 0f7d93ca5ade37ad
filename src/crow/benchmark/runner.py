"""Running a grid so that it can be killed anywhere: finished cells stay, none is lost or counted twice."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from filelock import Timeout

from crow.benchmark.cells import run_cell
from crow.benchmark.executors import Executor, in_process
from crow.benchmark.grid import Cell, Grid, asked
from crow.errors import ConfigError
from crow.locks import lock_of
from crow.output import write_json
from crow.report.grid_page import write_grid_report
from crow.workflows.common import Reporter
from crow.workflows.unfinished import changed


def record_path(grid: Grid, cell: Cell) -> Path:
    """Where a finished cell's record is."""
    return grid.output / f"{cell.name}.json"


def failure_path(grid: Grid, cell: Cell) -> Path:
    """Where the error of a failed cell is."""
    return grid.output / f"{cell.name}.failed.json"


def status(grid: Grid) -> dict[str, int]:
    """How many cells there are, and how many of them are finished, have failed and are left."""
    finished = [cell for cell in grid.cells if record_path(grid, cell).is_file()]
    failed = [cell for cell in grid.cells if cell not in finished and failure_path(grid, cell).is_file()]
    left = len(grid.cells) - len(finished) - len(failed)
    return {"cells": len(grid.cells), "finished": len(finished), "failed": len(failed), "left": left}


def check_records(grid: Grid) -> None:
    """Whether the records that are there are of what the grid asks for now; those of older versions do not say.

    Raises:
        ConfigError: naming the first that is not.
    """
    records = read_records(grid)
    for cell in grid.cells:
        known, wanted = records.get(cell.name, {}).get("asked", {}), asked(cell, grid)
        if other := changed(known, wanted):
            raise ConfigError(
                f"{record_path(grid, cell)} was measured with {other[0]} {known[other[0]]!r}, and the grid asks for "
                f"{wanted[other[0]]!r}; choose another output, or remove the record"
            )


def run_one(grid: Grid, cell: Cell, quiet: bool) -> None:
    """Run a cell unless it is finished or somebody else is at it; an error is recorded in its place."""
    report = Reporter(quiet)
    try:
        with lock_of(record_path(grid, cell)):
            if record_path(grid, cell).is_file():
                return
            report.say(f"\n{cell.name}")
            try:
                record = run_cell(cell, grid, report)
            except Exception as error:  # noqa: BLE001 whatever it is, the other cells go on
                kind, text = type(error).__name__, " ".join(str(error).split())
                report.say(f"failed: {kind}: {text}")
                write_json(failure_path(grid, cell), {"cell": cell.name, "error": kind, "message": text})
                return
            write_json(record_path(grid, cell), record)
            failure_path(grid, cell).unlink(missing_ok=True)
    except Timeout:
        return


def run_grid(grid: Grid, report: Reporter, execute: Executor = in_process, retry: bool = False) -> dict[str, int]:
    """Run what is left of a grid.

    Args:
        grid: what to run.
        report: shows progress.
        execute: where the cells run.
        retry: run failed cells again.

    Returns:
        The status afterwards.
    """
    left = [cell for cell in grid.cells if not record_path(grid, cell).is_file()]
    left = [cell for cell in left if retry or not failure_path(grid, cell).is_file()]
    started = report.seconds
    for done, _ in enumerate(execute(partial(run_one, grid, quiet=report.quiet), left), start=1):
        minutes = (report.seconds - started) / done * (len(left) - done) / 60
        report.say(f"{done} of {len(left)} cells, about {minutes:.0f} minutes left")
    return status(grid)


def read_records(grid: Grid) -> dict[str, dict[str, Any]]:
    """Name to record of all finished cells, in the grid's order."""
    paths = {cell.name: record_path(grid, cell) for cell in grid.cells}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def report_grid(grid: Grid) -> None:
    """Write the tables and the page of what is finished, beside the records."""
    failures = {cell.name: failure_path(grid, cell) for cell in grid.cells if not record_path(grid, cell).is_file()}
    failed = {
        name: json.loads(path.read_text(encoding="utf-8"))["message"]
        for name, path in failures.items()
        if path.is_file()
    }
    write_grid_report(read_records(grid), failed, grid.output, grid.name)
