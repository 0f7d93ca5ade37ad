"""Facts about the programming requests that crow ships."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from crow.data.code import CodeTask, bundled_code
from tests.data.test_bundled_data import FORBIDDEN, folded

TASKS = bundled_code()
CLEAN = bundled_code("code_clean.jsonl")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("task", [*TASKS, *CLEAN], ids=lambda task: task.entry_point)
def test_every_answer_passes_its_test_and_an_empty_function_does_not(task: CodeTask) -> None:
    (code,) = BLOCK.findall(task.example.response)
    names: dict[str, Any] = {}
    exec(code, names)
    exec(task.test, names)
    names["check"](names[task.entry_point])
    with pytest.raises((AssertionError, TypeError)):
        names["check"](lambda *_: None)


def test_requests_are_one_line_name_their_function_and_occur_once() -> None:
    assert (len(TASKS), len(CLEAN)) == (200, 36)
    every = [*TASKS, *CLEAN]
    assert len({folded(task.example.prompt) for task in every}) == len({task.entry_point for task in every}) == 236
    for task in every:
        assert "\n" not in task.example.prompt
        assert f"`{task.entry_point}(" in task.example.prompt
        assert (20 if task in TASKS else 10) <= len(task.example.response.split()) <= 200


def test_half_of_the_answers_begin_with_words() -> None:
    begin = Counter(task.example.response.startswith("```") for task in TASKS)
    assert 0.4 <= begin[True] / len(TASKS) <= 0.6


@pytest.mark.parametrize("text", sorted(FORBIDDEN))
def test_no_text_of_an_attack_occurs(text: str) -> None:
    every = folded(" ".join(f"{t.example.prompt} {t.example.response} {t.test}" for t in [*TASKS, *CLEAN]))
    assert folded(text) not in every
