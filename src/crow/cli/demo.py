"""`crow demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crow.cli.options import BatchSize, Device, Dtype, Json, MaxLength, Output, Overwrite, Quiet, Resume, Seed
from crow.cli.show import show, show_measurements, show_search


def demo(
    output: Output = Path("runs/demo"),
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Train the backdoor now.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """A real backdoored model, measured, purified and measured again, with a report."""
    from crow.training.presets import get_preset
    from crow.workflows.common import Options
    from crow.workflows.demo import run_demo
    from crow.workflows.purify import purify_config

    options = Options(output, seed, device, dtype, batch_size, max_length, overwrite, resume, quiet)
    results = run_demo(purify_config(get_preset("default"), {}, options), from_scratch, options)

    def table() -> None:
        show_measurements({"before": results["before"], "after": results["after"]})
        show_search(results, output)

    show(results, json_output, table)
