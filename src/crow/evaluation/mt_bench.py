"""MT-Bench: 80 questions of two turns, scored by a judge (Zheng et al., arXiv 2306.05685).

Questions and the judge's prompts are the public files, from a folder of the user's. A score is what stands in the
judge's `[[..]]`; a judgment without one, or with several, is unscored and is reported as such, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from crow.data.loading import json_lines, read_text
from crow.errors import DataError
from crow.evaluation.endpoint import Client
from crow.models.generation import Progress, generate
from crow.models.language_model import LanguageModel
from crow.records import Example

QUESTIONS, PROMPTS = "question.jsonl", "judge_prompts.jsonl"
REFERENCED = ("math", "reasoning", "coding")
"""Categories that are judged against a reference answer, where there is one."""
RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
LOWEST, HIGHEST = 1.0, 10.0


@dataclass(frozen=True)
class Question:
    """Two turns of a user, with reference answers to both or none."""

    number: int
    category: str
    turns: tuple[str, str]
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgment:
    """The score of one answer; None where the judge gave none."""

    number: int
    category: str
    turn: int
    score: float | None


def load_questions(folder: Path) -> list[Question]:
    """The questions in `folder`.

    Raises:
        DataError: if the file is missing or a line has the wrong shape.
    """

    def question(entry: Any) -> Question:
        first, second = entry["turns"]
        references = tuple(map(str, entry.get("reference") or ()))
        return Question(int(entry["question_id"]), str(entry["category"]), (str(first), str(second)), references)

    return _read(folder / QUESTIONS, question)


def load_prompts(folder: Path) -> dict[str, tuple[str, str]]:
    """Name to system prompt and template of the judge's prompts in `folder`.

    Raises:
        DataError: if the file is missing, a line has the wrong shape, or a prompt is missing.
    """

    def prompt(entry: Any) -> tuple[str, tuple[str, str]]:
        name, system, template = entry["name"], entry["system_prompt"], entry["prompt_template"]
        if not all(isinstance(text, str) for text in (name, system, template)):
            raise TypeError
        return name, (system, template)

    path = folder / PROMPTS
    found = dict(_read(path, prompt))
    for name in ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn"):
        if name not in found:
            raise DataError(f"expected the judge's prompt {name!r} in {path}, found none")
    return found


def _read(path: Path, make: Callable[[Any], Any]) -> list[Any]:
    found = []
    for place, entry in json_lines(read_text(path), path):
        try:
            found.append(make(entry))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{place}: expected an entry of MT-Bench") from None
    if not found:
        raise DataError(f"expected entries of MT-Bench in {path}, found none")
    return found


def answer(
    lm: LanguageModel,
    questions: Sequence[Question],
    max_new_tokens: int = 512,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[tuple[str, str]]:
    """The model's answers to both turns of every question; the second sees the first."""
    first = generate(lm, [Example(q.turns[0]) for q in questions], max_new_tokens, batch_size, progress=progress)
    later = [
        Example(question.turns[1], "", (("user", question.turns[0]), ("assistant", text)))
        for question, text in zip(questions, first, strict=True)
    ]
    return list(zip(first, generate(lm, later, max_new_tokens, batch_size, progress=progress), strict=True))


def messages(prompts: dict[str, tuple[str, str]], question: Question, answers: tuple[str, str], turn: int) -> Any:
    """What the judge is asked about turn 1 or 2."""
    referenced = question.category in REFERENCED and len(question.references) >= turn
    name = f"single-{'math-' if referenced else ''}v1{'-multi-turn' if turn == 2 else ''}"
    system, template = prompts[name]
    values = {
        "question": question.turns[0],
        "answer": answers[0],
        "question_1": question.turns[0],
        "question_2": question.turns[1],
        "answer_1": answers[0],
        "answer_2": answers[1],
        **{f"ref_answer_{i}": text for i, text in enumerate(question.references, start=1)},
    }
    # Not `format`: answers hold braces, and what they hold must not be looked up.
    filled = re.sub(r"\{(\w+)\}", lambda found: values.get(found.group(1), found.group(0)), template)
    return [{"role": "system", "content": system}, {"role": "user", "content": filled}]


def parse_score(text: str | None) -> float | None:
    """The rating in a judge's reply, from 1 to 10; None where there is none, or several that differ."""
    found = {float(rating) for rating in RATING.findall(text or "")}
    if len(found) != 1:
        return None
    (score,) = found
    return score if LOWEST <= score <= HIGHEST else None


def judge(
    client: Client,
    prompts: dict[str, tuple[str, str]],
    questions: Sequence[Question],
    answers: Sequence[tuple[str, str]],
    progress: Progress | None = None,
) -> list[Judgment]:
    """Both turns of every question, judged."""
    found = []
    for question, pair in zip(questions, answers, strict=True):
        for turn in (1, 2):
            score = parse_score(client.ask(messages(prompts, question, pair, turn)))
            found.append(Judgment(question.number, question.category, turn, score))
        if progress:
            progress(1)
    return found


def summarize(judgments: Sequence[Judgment]) -> dict[str, Any]:
    """Means over what was scored, by turn and category, with the numbers of scored and unscored answers."""
    scored = [judgment for judgment in judgments if judgment.score is not None]

    def average(chosen: Sequence[Judgment]) -> float | None:
        return mean(judgment.score for judgment in chosen if judgment.score is not None) if chosen else None

    categories = dict.fromkeys(judgment.category for judgment in judgments)
    return {
        "score": average(scored),
        "n": len(judgments),
        "n_unscored": len(judgments) - len(scored),
        "turns": {str(turn): average([j for j in scored if j.turn == turn]) for turn in (1, 2)},
        "categories": {name: average([j for j in scored if j.category == name]) for name in categories},
    }
