"""`crow eval`."""

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
    Seed,
)
from crow.cli.show import show, show_measurements


def evaluate(
    model: Model,
    output: Output,
    triggered: Annotated[Path | None, typer.Option(help="Prompts with the trigger.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Prompts without; their responses serve for perplexity.")] = None,
    target: Annotated[str | None, typer.Option(help="What crow attack calls it; or compliance.")] = None,
    target_text: Annotated[str | None, typer.Option(help="The text to look for instead of its own.")] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", min=1, help="Prompts, problems, questions and documents; all by default."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The suspect that MODEL was made from: what is kept of it?")
    ] = None,
    code: Annotated[
        str | None, typer.Option(help="Does its code run? humaneval, bundled, or a file of such problems.")
    ] = None,
    mt_bench: Annotated[Path | None, typer.Option(help="Folder of MT-Bench's files; needs --judge.")] = None,
    judge: Annotated[Path | None, typer.Option(help="YAML file: base_url and model of a judge.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Of lm-evaluation-harness, such as hellaswag,arc_easy.")] = None,
    tasks_folder: Annotated[Path | None, typer.Option(help="Further tasks, as the harness's YAML files.")] = None,
    engine: Annotated[str, typer.Option(help="What answers prompts: transformers or vllm.")] = "transformers",
    adapter: Adapter = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    overwrite: Overwrite = False,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure attack success with and without the trigger, perplexity, and what MODEL can do."""
    from crow.attacks.targets import get_target
    from crow.evaluation.endpoint import read_endpoint
    from crow.workflows.abilities import Abilities
    from crow.workflows.common import Options
    from crow.workflows.evaluate import EvalRequest, run_eval

    options = Options(output, seed, device, dtype, batch_size, max_length, overwrite, quiet=quiet)
    named = get_target(target).marker if target is not None else None
    marker = named if target_text is None else target_text
    judged_by = read_endpoint(judge) if judge else None
    names = tuple(name.strip() for name in (tasks or "").split(",") if name.strip())
    abilities = Abilities(code, mt_bench, judged_by, names, tasks_folder, n)
    request = EvalRequest(triggered, clean, marker, n, against, abilities, engine)
    results = run_eval(model, request, adapter, options)
    show(results, json_output, lambda: show_measurements({"measured": results}))
