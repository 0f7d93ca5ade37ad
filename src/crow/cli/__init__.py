"""The command line: parse, call, print. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import errno
import inspect
import logging
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import typer
from safetensors import SafetensorError

from crow.cli.analyze import analyze
from crow.cli.attack import attack
from crow.cli.bench import bench
from crow.cli.calibrate import calibrate
from crow.cli.demo import demo
from crow.cli.evaluate import evaluate
from crow.cli.purify import purify
from crow.cli.scan import scan
from crow.errors import CrowError, ResourceError

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

VERBS = {
    "attack": attack,
    "purify": purify,
    "calibrate": calibrate,
    "scan": scan,
    "demo": demo,
    "eval": evaluate,
    "analyze": analyze,
    "bench": bench,
}
for name, verb in VERBS.items():
    app.command(name)(verb)


def main() -> None:
    """Entry point: one line on standard error and exit code 2 for whatever the user can mend."""
    # Renamings inside the libraries are not the user's business.
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Asks for a package that would fetch a kernel from a hub, on every start on some CPUs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except UsageError as error:
        fail(f"{error.format_message()} (see crow --help)")  # type: ignore[attr-defined]
    except CrowError as error:
        fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        fail(interrupted(sys.argv[1:2]))
    except (MemoryError, OSError, RuntimeError, SafetensorError) as error:
        exhausted = resource_error(error)
        if exhausted is None:
            raise
        fail(str(exhausted))
    if code == INTERRUPTED:
        fail(interrupted(sys.argv[1:2]))
    if code:  # a verb's own, as the verdict of a scan
        sys.exit(code)


def interrupted(verb: Sequence[str]) -> str:
    """What became of an interrupted run of a verb, and how to go on."""
    if verb == ["bench"]:
        return "interrupted; finished cells have their records, the same command goes on with the others"
    resumes = "resume" in inspect.signature(VERBS.get("".join(verb), analyze)).parameters
    return f"interrupted; nothing was written to the output folder{', --resume continues' if resumes else ''}"


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
