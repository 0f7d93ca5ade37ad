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
        exhausted = resource_error(error, sys.argv[1:2])
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
    resumes = ", --resume continues" if "resume" in options_of(verb) else ""
    return f"interrupted; nothing was written to the output folder{resumes}"


def options_of(verb: Sequence[str]) -> set[str]:
    """The names of a verb's arguments and options; none of what is no verb."""
    return {option for name in verb if name in VERBS for option in inspect.signature(VERBS[name]).parameters}


def resource_error(error: BaseException, verb: Sequence[str]) -> ResourceError | None:
    """What `error` says about memory or disk, whatever library raised it; None where it is about something else.

    Args:
        error: that ended a verb.
        verb: its name, whose options may help.
    """
    known = options_of(verb)
    text, number = str(error), getattr(error, "errno", None)
    # PyTorch reports a failed allocation on the CPU as a plain RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in text:
        helps = {
            "batch_size": "a smaller --batch-size",
            "max_length": "a smaller --max-length",
            "dtype": "--dtype bfloat16",
        }
        ways = " or ".join(way for option, way in helps.items() if option in known)
        return ResourceError(f"out of memory{'; try ' if ways else ''}{ways}")
    # A full disk likewise, from the zip writer of its checkpoints; safetensors has an error of its own.
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "inline_container" in text:
        again = " with --resume" if "resume" in known else ""
        return ResourceError(f"no disk space left; free some, then run again{again}")
    if number in (errno.EACCES, errno.EROFS):
        return ResourceError(f"cannot write: {text}; choose another folder")
    return None


def fail(message: str) -> NoReturn:
    """Print one line, in which text of a model cannot steer the terminal, and exit with 2."""
    from crow.report.text import visible

    sys.stderr.write(f"crow: {visible(' '.join(message.split()))}\n")
    sys.exit(2)
