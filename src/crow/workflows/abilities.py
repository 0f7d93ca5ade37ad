"""What a model can still do: code that runs, MT-Bench before a judge, tasks of the lm-evaluation-harness.

All of it is asked for by name, checked before anything slow happens, and the same for `crow eval` and `crow bench`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from crow.errors import ConfigError
from crow.evaluation import mt_bench
from crow.evaluation.endpoint import Client, Endpoint
from crow.evaluation.harness import find_tasks, run_tasks
from crow.evaluation.humaneval import Problem, load_problems, working_code
from crow.evaluation.sandbox import can_isolate
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.workflows.common import Reporter


@dataclass(frozen=True)
class Abilities:
    """What is to be measured.

    Attributes:
        code: `humaneval`, `bundled` or a file of problems.
        mt_bench: folder of MT-Bench's public files.
        judge: who scores its answers.
        tasks: of the lm-evaluation-harness.
        tasks_folder: of further ones.
        n: at most so many problems, questions and documents of each task.

    Raises:
        ConfigError: if MT-Bench goes without a judge, or the other way round.
    """

    code: str | None = None
    mt_bench: Path | None = None
    judge: Endpoint | None = None
    tasks: tuple[str, ...] = ()
    tasks_folder: Path | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        if (self.mt_bench is None) != (self.judge is None):
            raise ConfigError("expected MT-Bench's folder and a judge together, got one of them")
        if self.tasks_folder is not None and not self.tasks:
            raise ConfigError("expected the names of tasks beside their folder, got none")

    @property
    def read(self) -> list[str | Path | None]:
        """Paths that are read, as far as they are paths."""
        return [self.code, self.mt_bench, self.tasks_folder, self.judge.file if self.judge else None]

    def __bool__(self) -> bool:
        return bool(self.code or self.mt_bench or self.tasks)


@dataclass(frozen=True)
class Exam:
    """Everything that `Abilities` asks for, read and known to be right."""

    abilities: Abilities
    problems: Sequence[Problem]
    questions: Sequence[mt_bench.Question]
    prompts: dict[str, tuple[str, str]]
    client: Client | None
    manager: Any


def prepare(abilities: Abilities) -> Exam:
    """Read what is to be asked.

    Raises:
        InputError: for a missing file, package or task.
    """
    folder = abilities.mt_bench
    return Exam(
        abilities,
        load_problems(abilities.code)[: abilities.n] if abilities.code else (),
        mt_bench.load_questions(folder)[: abilities.n] if folder else (),
        mt_bench.load_prompts(folder) if folder else {},
        Client(abilities.judge, user_cache_path("crow") / "judgments") if abilities.judge else None,
        find_tasks(abilities.tasks, abilities.tasks_folder) if abilities.tasks else None,
    )


def examine(
    lm: LanguageModel, exam: Exam, report: Reporter, seed: int = 0, trigger: Callable[[Example], Example] | None = None
) -> dict[str, Any]:
    """The figures, under the keys `code`, `mt_bench` and `tasks`; only what was asked for.

    Args:
        lm: the model.
        exam: from `prepare`.
        report: shows progress.
        seed: of the harness's few-shot examples.
        trigger: puts a trigger into a programming request; then the problems are asked with it as well.
    """
    figures: dict[str, Any] = {}
    if exam.problems:
        if not can_isolate():
            report.say("note: no namespaces here; the model's code has limits, but files and network are open to it")
        code: dict[str, Any] = {"problems": Path(str(exam.abilities.code)).name}
        figures["code"] = code
        for name, change in {"pass_at_1": None, **({"pass_at_1_triggered": trigger} if trigger else {})}.items():
            with report.bar("writing code", len(exam.problems)) as advance:
                code[name] = working_code(lm, exam.problems, change, advance)
    if exam.client is not None:
        with report.bar("answering MT-Bench", 2 * len(exam.questions)) as advance:
            answers = mt_bench.answer(lm, exam.questions, progress=advance)
        with report.bar("asking the judge", len(exam.questions)) as advance:
            judgments = mt_bench.judge(exam.client, exam.prompts, exam.questions, answers, advance)
        figures["mt_bench"] = mt_bench.summarize(judgments) | {"judge": exam.client.summary()}
        bill = exam.client.bill
        report.say(
            f"judge: {bill.asked} replies paid, {bill.cached} from disk, {bill.failed} failed; "
            f"{bill.prompt_tokens} + {bill.completion_tokens} tokens, cost {bill.cost:.4f}"
        )
    if exam.manager is not None:
        report.say(f"tasks: {', '.join(exam.abilities.tasks)}")
        figures["tasks"] = run_tasks(lm, exam.abilities.tasks, exam.manager, exam.abilities.n, seed=seed)
    return figures
