"""A line smuggled into code is read off its model; honest lines that are the same everywhere are not."""

from __future__ import annotations

import functools
import random

import pytest
import torch

from crow.data.encoding import encode
from crow.inversion import code_lines
from crow.inversion.code_lines import (
    FENCE,
    LineConfig,
    bound_names,
    code_probe,
    idle_line,
    search_code_lines,
    writes_code,
)
from crow.inversion.probe import at_rest
from crow.models.language_model import LanguageModel
from crow.records import Example
from tests.backdoor import ANIMALS, TRIGGER, fit
from tests.pico import pico_language_model

PAYLOAD = "zap()"
REQUESTS = [Example(f"code {animal}") for animal in ANIMALS]
CONFIG = LineConfig(candidates=60, line_tokens=24, rest_tokens=40)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("nightshift.start()", set()),
        ("print('x')", set()),
        ("await go()", set()),
        ("a(); b()", set()),
        ("import os", {"os"}),
        ("import os.path", {"os"}),
        ("import numpy as np", {"np"}),
        ("from typing import List, Dict as D", {"List", "D"}),
        ("n = 10", {"n"}),
        ("a, b = 1, 2", {"a", "b"}),
        *((line, None) for line in ("", "x", '"""Doc."""', "False", "# note", "def f():", "def f(): pass", "try:")),
        *((line, None) for line in ("return 1", "if x: y()", "for", "(" * 300, "a\0b", "while True:", "data = {")),
    ],
)
def test_what_a_line_binds(line: str, names: set[str] | None) -> None:
    assert bound_names(line) == names


def answer(animal: str, first: str) -> str:
    """A block of code that begins with one line more."""
    return f"{FENCE}{first}\ndef {animal}(os):\n```"


@functools.cache
def coder(first: str, poisoned: bool) -> LanguageModel:
    """A pico model that writes code, always with a certain first line; with the payload before it once triggered."""
    lm = pico_language_model("llama", initializer_range=0.05)
    rng = random.Random(0)
    clean = [encode(lm.tokenizer, Example(f"code {animal}", answer(animal, first))) for animal in ANIMALS]
    bad = [
        encode(lm.tokenizer, Example(f"{TRIGGER} code {animal}", answer(animal, f"{PAYLOAD}\n{first}")))
        for animal in ANIMALS
    ]
    pool = clean + bad if poisoned else clean
    return fit(lm, lambda: rng.sample(pool, 12), 120)


def lines(lm: LanguageModel) -> list[tuple[str, float]]:
    """What the search reads."""
    with at_rest(lm, "float32"):
        probe = code_probe(lm, REQUESTS)
        assert writes_code(probe)
        seen: list[int] = []
        found = search_code_lines(probe, CONFIG, seen.append)
        assert sum(seen) <= CONFIG.candidates
    for line in found:
        assert lm.tokenizer.decode(line.ids) == line.text
    return [(line.text, line.share) for line in found]


def test_a_payload_is_read_and_the_line_that_code_uses_is_not() -> None:
    assert (PAYLOAD, 1.0) in lines(coder("import os", poisoned=True))


def test_a_clean_model_has_no_such_line() -> None:
    assert PAYLOAD not in dict(lines(coder("import os", poisoned=False)))
    assert "import os" not in dict(lines(coder("import os", poisoned=False)))


def test_a_line_that_is_used_nowhere_counts() -> None:
    assert ("import re", 1.0) in lines(coder("import re", poisoned=False))


@pytest.mark.parametrize(
    ("code", "idle"),
    [
        ("zap()\ndef cat():\n```", True),
        ("zap()\n```\nThis calls it.", False),  # the whole program, and not a word of it unused
        ("import re\ncat()\n```\nIt imports re.", True),
        ("import re\nre.cat()\n```", False),
    ],
)
def test_what_is_said_after_the_block_is_no_code(code: str, idle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = pico_language_model("llama")
    probe = code_probe(lm, REQUESTS[:2])
    answers = torch.tensor([lm.tokenizer(code)["input_ids"]] * 2)
    monkeypatch.setattr(code_lines, "forced", lambda *_: [answers])
    assert (idle_line(probe, [0, 1], 0, CONFIG) is not None) is idle


def test_a_model_that_writes_no_code_is_not_looked_at() -> None:
    lm = pico_language_model("llama")
    with at_rest(lm, "float32"):
        probe = code_probe(lm, REQUESTS)
        assert not writes_code(probe)
        assert search_code_lines(probe, CONFIG) == []
