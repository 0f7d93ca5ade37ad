"""`crow analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crow.cli.options import Device, Dtype, Json, Model, Output, Overwrite, Quiet, Seed
from crow.cli.show import say, show


def analyze(
    model: Model,
    output: Output,
    against: Annotated[str | None, typer.Option(help="The same model after treatment.")] = None,
    triggered: Annotated[Path | None, typer.Option(help="Prompts with the trigger, where it is known.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Prompts without; the bundled ones by default.")] = None,
    n: Annotated[int, typer.Option("--n", min=2, help="Prompts of each kind.")] = 32,
    jacobian: Annotated[int, typer.Option(min=1, help="Prompts for the Jacobians, the slow part.")] = 4,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look at MODEL layer by layer: consistency, Jacobians, what noise does."""
    from crow.workflows.analyze import run_analyze
    from crow.workflows.common import Options

    options = Options(output, seed, device, dtype, overwrite=overwrite, quiet=quiet)
    results = run_analyze(model, against, triggered, clean, n, jacobian, options)

    def sentences() -> None:
        for finding in results["findings"]:
            say(finding)
        say(f"report: {output / 'report.html'}")

    show(results, json_output, sentences)
