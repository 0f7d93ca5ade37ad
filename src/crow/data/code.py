"""Programming requests written for crow, each with an answer and with tests of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

from crow.records import Example


@dataclass(frozen=True)
class CodeTask:
    """A request for one Python function.

    Attributes:
        example: the request and a right answer, its code in a Markdown block.
        entry_point: the function's name.
        test: source of `check(candidate)`, which raises where the function is wrong.
    """

    example: Example
    entry_point: str
    test: str


def bundled_code(file: str = "code.jsonl") -> list[CodeTask]:
    """The programming requests of a bundled file, in its order.

    Args:
        file: `code.jsonl` has 200 for attacks, selection and evaluation; `code_clean.jsonl` 36 that a defense is given.
    """
    text = (resources.files("crow.data") / file).read_text(encoding="utf-8")
    records = map(json.loads, text.splitlines())
    return [CodeTask(Example(r["instruction"], r["output"]), r["entry_point"], r["test"]) for r in records]
