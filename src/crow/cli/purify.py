"""`crow purify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crow.cli.options import (
    Adapter,
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
from crow.cli.show import show, show_plan, show_search


def purify(
    model: Model,
    output: Output,
    adapter: Adapter = None,
    continue_adapter: Annotated[
        bool, typer.Option("--continue-adapter", help="Train the adapter on instead of merging it first.")
    ] = False,
    data: Annotated[Path | None, typer.Option(help="Clean examples (Alpaca JSON/JSONL or chat messages).")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Clean prompts instead, without responses; MODEL answers them itself.")
    ] = None,
    strength: Annotated[
        str, typer.Option(help="1 is usual; more takes longer and removes more, less costs less; auto asks canaries.")
    ] = "1",
    preset: Annotated[str, typer.Option(help="default, paper or official-code.")] = "default",
    alpha: Annotated[float | None, typer.Option(help="Weight of layer consistency (the paper's).")] = None,
    alpha_ratio: Annotated[
        float | None, typer.Option(help="The same as a share of the language-modelling loss.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="FGSM step (the paper's).")] = None,
    epsilon_rms: Annotated[float | None, typer.Option(help="The same in multiples of the embeddings' RMS.")] = None,
    method: Annotated[str | None, typer.Option(help="lora (usual), full, or qlora (4 bits meanwhile).")] = None,
    samples: Annotated[int | None, typer.Option(help="Clean examples to use; 100 by default.")] = None,
    epochs: Epochs = None,
    lr: LearningRate = None,
    rank: Rank = None,
    keep_adapter: Annotated[bool, typer.Option("--keep-adapter", help="Leave the adapter in DIR/adapter too.")] = False,
    scan: Annotated[bool, typer.Option("--scan", help="Scan MODEL first, as crow scan does.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Search once more, and measure what is kept of MODEL.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what memory and time it would take; load no weights, write nothing.")
    ] = False,
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
    """Remove backdoors from MODEL without knowing trigger or target."""
    from crow.training.presets import get_preset
    from crow.workflows.common import Options
    from crow.workflows.purify import PurifyRequest, parse_strength, purify_config, run_purify
    from crow.workflows.suspect import Suspect

    options = Options(output, seed, device, dtype, batch_size, max_length, overwrite, resume, quiet)
    changes = {
        "alpha": alpha,
        "alpha_ratio": alpha_ratio,
        "epsilon": epsilon,
        "epsilon_rms": epsilon_rms,
        "method": method,
        "samples": samples,
        "epochs": epochs,
        "learning_rate": lr,
        "rank": rank,
    }
    config = purify_config(get_preset(preset), changes, options)
    suspect = Suspect(model, adapter, continue_adapter)
    request = PurifyRequest(suspect, data, prompts, parse_strength(strength), keep_adapter, verify, scan)
    if dry_run:
        from crow.workflows.plan import plan

        figures = plan(request, config, options)
        show(figures, json_output, lambda: show_plan(figures))
        return
    results = run_purify(request, config, options)
    show(results, json_output, lambda: show_search(results, output))
