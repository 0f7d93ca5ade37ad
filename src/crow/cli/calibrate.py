"""`crow calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crow.cli.options import (
    Adapter,
    BatchSize,
    Device,
    Dtype,
    Json,
    MaxLength,
    Model,
    Output,
    Overwrite,
    Quiet,
    Resume,
    Seed,
)
from crow.cli.show import say, show


def calibrate(
    model: Model,
    output: Output,
    adapter: Adapter = None,
    data: Annotated[Path | None, typer.Option(help="Clean examples, as those of purify.")] = None,
    samples: Annotated[int | None, typer.Option(help="Clean examples to use; 100 by default.")] = None,
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
    """Find the strength at which backdoors planted in a copy of MODEL go: for purify --strength."""
    from crow.training.presets import get_preset
    from crow.workflows.calibrate import run_calibrate
    from crow.workflows.common import Options
    from crow.workflows.purify import purify_config

    options = Options(output, seed, device, dtype, batch_size, max_length, overwrite, resume, quiet)
    config = purify_config(get_preset("default"), {"samples": samples}, options)
    results = run_calibrate(model, adapter, data, config, options)
    found = results["calibration"]

    def sentences() -> None:
        for trial in found.trials:
            left = ", ".join(f"{name} {rate.value:.2f}" for name, rate in trial.canaries.items())
            say(f"strength {trial.strength:g}: {left}; perplexity x {trial.perplexity_ratio:.3f}")
        say(f"strength {found.strength:g}: {found.reason}")
        say(f"report: {output / 'report.html'}")

    show(results, json_output, sentences)
