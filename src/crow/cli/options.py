"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Alias (smollm2-135m), hub id, model folder, adapter folder or GGUF file.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda:0, ...")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Prompts, or examples of a training, in one forward pass.")]
MaxLength = Annotated[int | None, typer.Option(min=16, help="Tokens of prompt and answer; longer answers are cut.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the output folder holds.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run of the same request.")]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON to standard output, nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars, no remarks.")]
Adapter = Annotated[Path | None, typer.Option(help="PEFT adapter folder to put on MODEL.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the data, instead of the usual.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate, instead of the usual.")]
Rank = Annotated[int | None, typer.Option(help="Rank of the LoRA adapter, instead of the usual.")]
