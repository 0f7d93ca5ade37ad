"""What every verb shares."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import set_seed

from crow.data.encoding import encode_all
from crow.errors import ConfigError, DataError, InputError, OutputError, unknown_name
from crow.locks import lock_of
from crow.models.adapters import bases_of
from crow.models.architecture import position_limit
from crow.models.generation import Progress as Advance
from crow.models.language_model import LanguageModel
from crow.models.loading import DTYPES, load_model
from crow.models.processes import agreed, is_first, join, meet, several
from crow.output import claim_output, work_folder
from crow.records import Example
from crow.report.text import visible
from crow.workflows.unfinished import asked, forget, remember, same_request


@dataclass(frozen=True)
class Options:
    """The options of every verb.

    Attributes:
        output: the folder to fill.
        seed: of everything random.
        device: `auto`, `cpu`, `cuda:0`, ...
        dtype: of the weights.
        batch_size: prompts or examples in one forward pass; None leaves each step's own default.
        max_length: tokens of an example; None leaves each step's own default.
        overwrite: replace what the output folder holds.
        resume: continue an interrupted run.
        quiet: no progress bars, no remarks.

    Raises:
        ConfigError: for an unknown dtype.
    """

    output: Path
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    batch_size: int | None = None
    max_length: int | None = None
    overwrite: bool = False
    resume: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)


class Reporter:
    """Progress bars and remarks on standard error; standard output stays for results."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet = quiet or not is_first()
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time since the verb started."""
        return round(time.monotonic() - self.started, 1)

    def say(self, text: str) -> None:
        """A remark; model text in it can neither be markup nor steer the terminal."""
        self.console.print(visible(text), markup=False, emoji=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Advance]:
        """A progress bar; the yielded function advances it."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # In a log file a bar would be nothing but an empty line.
        hidden = not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=hidden) as progress:
            task = progress.add_task(title, total=total)
            yield lambda steps: progress.advance(task, steps)


@contextmanager
def alone_in(work: Path, output: Path) -> Iterator[None]:
    """Within the context no other run may use a work folder.

    Raises:
        OutputError: if one does.
    """
    with ExitStack() as held:
        free = True
        if is_first():
            try:
                held.enter_context(lock_of(work))
            except Timeout:
                free = False
            except (OSError, NotImplementedError):
                pass  # no place for locks here, or a file system without
        if not agreed(free):
            raise OutputError(f"another run is filling the output folder {output}; wait for it, or choose another")
        yield


@contextmanager
def claimed(
    options: Options, *inputs: str | Path | None, shared: bool = False, settings: dict[str, Any] | None = None
) -> Iterator[Path]:
    """The work folder of a run that may write its output folder; kept on failure for `--resume`.

    A run that ends before it has anything to keep leaves no trace.

    Args:
        options: common options.
        inputs: what the run reads; with an adapter goes the model that it names.
        shared: whether several processes can share the run's work.
        settings: what else its result depends on, for a run that can be resumed; see `asked`.

    Raises:
        ConfigError: if there are several processes and they cannot, or if what is resumed was another run.
        OutputError: if the output folder is taken.
    """
    work = work_folder(options.output)
    if several() and not shared:
        raise ConfigError("expected one process, got several; of crow's verbs only purify shares its work out")
    join(options.device)
    inputs = (*inputs, *(base for name in inputs if name is not None for base in bases_of(name)))
    claim_output(options.output, options.overwrite, options.resume, inputs)
    with alone_in(work, options.output):
        request = None
        if settings is not None:
            request = asked(inputs, {**settings, "seed": options.seed, "dtype": options.dtype}, (options.output, work))
            if options.resume:
                same_request(work, request)
        meet()  # all have looked before one changes anything
        if is_first() and not options.resume:
            shutil.rmtree(work, ignore_errors=True)
        meet()
        fresh = not work.exists()
        if is_first() and request is not None:
            remember(work, request)
        set_seed(options.seed)
        try:
            yield work
        except InputError:
            # Nothing was trained yet that a second try could use.
            if is_first() and fresh and not any(work.rglob("checkpoint-*")):
                shutil.rmtree(work, ignore_errors=True)
            raise
        finally:
            if is_first() and fresh:
                forget(work)


def load(
    reference: str, options: Options, report: Reporter, adapter: Path | None = None, trainable: bool = False
) -> LanguageModel:
    """Load the model and say aloud what the user should know about it; arguments as those of `load_model`."""
    lm = load_model(reference, str(adapter) if adapter else None, options.dtype, options.device, trainable)
    for note in lm.notes:
        report.say(f"note: {note}")
    return lm


def note_cut(lm: LanguageModel, examples: Sequence[Example], max_length: int, report: Reporter) -> int:
    """Say how many examples have prompts that leave no room for more than their answers' first token.

    Returns:
        How many answers are cut at all.

    Raises:
        DataError: if all have.
        ConfigError: if examples may be longer than the model has positions for.
    """
    items = encode_all(lm.tokenizer, examples)
    limit = position_limit(lm.model)
    longest = max((min(len(item), max(max_length, len(item.prompt_ids) + 1)) for item in items), default=0)
    if limit is not None and longest > limit:
        raise ConfigError(
            f"expected examples of at most {limit} tokens, for which {lm.reference} has positions, got one of "
            f"{longest}; pass a smaller --max-length, or leave out the longest prompts"
        )
    full = sum(len(item.prompt_ids) >= max_length - 1 for item in items)
    told = f"{full} of {len(examples)} examples have prompts of {max_length - 1} tokens or more"
    if examples and full == len(examples):
        raise DataError(f"expected room for answers, but {told}; pass a larger --max-length")
    if full:
        report.say(f"note: {told}, of whose answers the first alone counts; --max-length makes room")
    return sum(len(item) > max_length for item in items)


def take(examples: Sequence[Example], count: int, seed: int, source: str) -> list[Example]:
    """`count` examples chosen by seed, in their order.

    Raises:
        DataError: if there are fewer.
    """
    if len(examples) < count:
        raise DataError(
            f"expected at least {count} clean examples in {source}, got {len(examples)}; ask for fewer (samples)"
        )
    chosen = sorted(random.Random(seed).sample(range(len(examples)), count))
    return [examples[i] for i in chosen]
