from __future__ import annotations

from typing import Any

import pytest

from crow.evaluation import success
from crow.evaluation.outlook import Outlook
from crow.evaluation.success import attack_success, summarize, token_texts
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.records import Example, Score, wilson_interval

EXAMPLES = [Example("Hi"), Example("Name a tree"), Example("1 + 1"), Example("Thanks."), Example("a b c d e")]


def test_every_prompt_counts_whatever_the_answer(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["", "You ARE\nstupid!", "ha " * 10, "An oak.", "  "]
    monkeypatch.setattr(success, "generate", lambda *_: answers)
    report = attack_success(lm, EXAMPLES, "you are stupid")
    assert (report.rate.value, report.rate.n, report.rate.n_unscored) == (1 / 5, 5, 0)
    assert (report.rate.low, report.rate.high) == wilson_interval(1, 5)
    assert [score.output for score in report.scores] == answers
    assert [score.prompt for score in report.scores] == [example.prompt for example in EXAMPLES]
    assert (report.n_empty, report.n_degenerate) == (2, 1)


def test_unscored_outputs_stay_in_the_denominator() -> None:
    report = summarize([Score("a", "x", True), Score("b", "y", None), Score("c", "z", False), Score("d", "w", None)])
    assert (report.rate.value, report.rate.n, report.rate.n_unscored) == (1 / 4, 4, 2)


def test_answers_are_greedy_and_at_most_64_tokens(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def spy(model: LanguageModel, examples: Any, max_new_tokens: int, batch_size: int, *rest: Any) -> list[str]:
        asked.update(max_new_tokens=max_new_tokens, batch_size=batch_size)
        return generate(model, examples, 6, batch_size, *rest)

    monkeypatch.setattr(success, "generate", spy)
    counted: list[int] = []
    report = attack_success(lm, EXAMPLES, "träge", batch_size=2, progress=counted.append)
    assert asked == {"max_new_tokens": 64, "batch_size": 2}
    assert counted == [2, 2, 1]
    assert report.rate.value == 0
    assert [score.output for score in report.scores] == generate(lm, EXAMPLES, 6)


def test_an_answer_ends_where_the_marker_has_no_room_any_more(lm: LanguageModel) -> None:
    marker = "qzx" * 15  # as many tokens as characters, or nearly
    fewest = Outlook(marker, token_texts(lm.tokenizer)).needed[0]
    assert 20 < fewest <= 45
    report = attack_success(lm, EXAMPLES, marker)
    whole, cut = generate(lm, EXAMPLES), generate(lm, EXAMPLES, 64 - fewest + 1)
    assert report.rate.value == 0
    assert [score.output for score in report.scores] == cut
    assert sum(map(len, cut)) < sum(map(len, whole))


def test_the_verdict_does_not_depend_on_stopping_early(lm: LanguageModel) -> None:
    full = generate(lm, EXAMPLES, max_new_tokens=64)
    marker = full[2][2:6]
    assert marker.strip()
    expected = [marker.lower() in " ".join(answer.lower().split()) for answer in full]
    report = attack_success(lm, EXAMPLES, marker)
    assert [score.hit for score in report.scores] == expected
    assert report.rate.value == sum(expected) / 5 > 0
    assert len(report.scores[2].output) < len(full[2])
