"""`crow bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crow.cli.options import Json, Quiet
from crow.cli.show import say, show


def bench(
    grid: Annotated[Path, typer.Argument(help="YAML file: attacks x models x defenses x seeds x settings.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what is finished and what is left.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed cells again.")] = False,
    executor: Annotated[str, typer.Option(help="in-process, or ray (extra crow-llm[ray]).")] = "in-process",
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the experiments of GRID that have no record yet; kill it anywhere and run it again."""
    from crow.benchmark.executors import get_executor
    from crow.benchmark.grid import read_grid
    from crow.benchmark.runner import check_records, report_grid, run_grid, status
    from crow.errors import InputError
    from crow.workflows.common import Reporter

    whole, report = read_grid(grid), Reporter(quiet)
    execute = get_executor(executor)
    check_records(whole)
    if whole.data is not None and not whole.data.is_dir():
        report.say(f"note: no public sets in {whole.data}; all attacks are planted from crow's own data")
    counts = status(whole) if dry_run else run_grid(whole, report, execute, retry)
    if not dry_run:
        report_grid(whole)
    show(counts, json_output, lambda: say(", ".join(f"{value} {name}" for name, value in counts.items())))
    if counts["failed"] and not dry_run:
        raise InputError(
            f"{counts['failed']} cells failed, see *.failed.json in {whole.output}; mend what they name, then --retry"
        )
