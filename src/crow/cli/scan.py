"""`crow scan`."""

from __future__ import annotations

import typer

from crow.cli.options import Adapter, Device, Dtype, Json, Model, Output, Overwrite, Quiet, Resume, Seed
from crow.cli.show import say, show


def scan(
    model: Model,
    output: Output,
    adapter: Adapter = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    resume: Resume = False,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say whether MODEL is likely backdoored: exit code 0 no evidence, 1 suspicious, 3 inconclusive, 2 error."""
    from crow.scan.gather import ScanConfig
    from crow.workflows.common import Options
    from crow.workflows.scan import EXIT_CODES, run_scan

    options = Options(output, seed, device, dtype, overwrite=overwrite, resume=resume, quiet=quiet)
    results = run_scan(model, adapter, ScanConfig(), options)

    def sentences() -> None:
        say(results["verdict"])
        for reason in results["reasons"]:
            say(f"  {reason}")
        say(f"report: {output / 'report.html'}")

    show(results, json_output, sentences)
    raise typer.Exit(EXIT_CODES[results["verdict"]])
