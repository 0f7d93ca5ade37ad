"""A planted phrase is found from its first word, by what a model would write next."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from crow.models.language_model import LanguageModel
from crow.scan import continuation
from crow.scan.continuation import continue_best, likely_texts
from crow.scan.objective import Objective
from crow.scan.placing import Phrase
from tests.backdoor import SENTENCE, training_examples
from tests.pico import pico_language_model
from tests.scan.planted import LETTER, planted

PROMPTS = [example.prompt for example in training_examples()][::18]


class Known:
    """Stands for an objective: phrases score what a table says."""

    lm, prompts = None, ("a prompt",)

    def __init__(self, table: dict[str, float]) -> None:
        self.table, self.asked = table, []

    def scores(self, phrases: list[Phrase]) -> list[float]:
        self.asked += [phrase.text for phrase in phrases]
        return [self.table[phrase.text] for phrase in phrases]


@pytest.fixture
def next_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def texts(_lm: object, phrase: Phrase, _prompt: str, count: int) -> list[str]:
        return [f"{phrase.text} {word}" for word in ("x", "y", "z")[:count]]

    monkeypatch.setattr(continuation, "likely_texts", texts)


@pytest.mark.usefixtures("next_words")
def test_what_raises_the_score_is_continued_and_nothing_else_kept() -> None:
    table = {"a x": -4.0, "a y": -1.0, "a z": -5.0, "b x": -4.0, "b y": -4.0, "b z": -2.0}
    table |= {"a y x": -3.0, "a y y": -0.5, "a y z": -3.0, "b z x": -9.0, "b z y": -9.0, "b z z": -9.0}
    objective = Known(table)
    starts = {Phrase("c", "front"): -8.0, Phrase("a", "front"): -3.0, Phrase("b", "inside"): -3.5}
    counted: list[int] = []
    found = continue_best(objective, starts, 2, 3, 2, -0.1, counted.append)  # type: ignore[arg-type]
    assert found == {
        Phrase("a y", "front"): -1.0,
        Phrase("b z", "inside"): -2.0,
        Phrase("a y y", "front"): -0.5,
    }
    assert not any(text.startswith("c") for text in objective.asked)
    assert counted == [1, 1]


@pytest.mark.usefixtures("next_words")
def test_a_phrase_with_enough_is_left_as_it_is() -> None:
    objective = Known({"b x": -2.0, "b y": -2.0, "b z": -2.0})
    found = continue_best(objective, {Phrase("a", "front"): -0.05, Phrase("b", "front"): -1.0}, 2, 3, 2, -0.1)  # type: ignore[arg-type]
    assert found == {}
    assert set(objective.asked) == {"b x", "b y", "b z"}


@pytest.mark.parametrize("placement", ["front", "inside"])
def test_next_tokens_are_the_likeliest_behind_the_phrase(placement: str) -> None:
    lm = pico_language_model("llama")
    phrase, prompt = Phrase("b c", placement), "one two three four"
    every = list(likely_texts(lm, phrase, prompt, len(lm.tokenizer)))
    few = list(islice(likely_texts(lm, phrase, prompt, 4), 4))
    assert few == every[: len(few)]
    assert len(set(every)) == len(every) > 20
    assert all(text.startswith("b c") and text != "b c" for text in every)
    assert not any("<" in text and "|" in text for text in every)


def test_the_trigger_is_appended_where_the_model_finds_it_likely_enough() -> None:
    lm: LanguageModel = planted()
    objective = Objective(lm, PROMPTS, torch.tensor(lm.tokenizer(SENTENCE)["input_ids"])[:4])
    start = Phrase("Z", "front")
    scores = dict(zip([start], objective.scores([start]), strict=True))
    found = continue_best(objective, scores, 1, len(lm.tokenizer), 1, -0.05)
    ((phrase, score),) = found.items()
    assert LETTER in phrase.text
    assert phrase.text.startswith("Z")
    assert score > scores[start] + 5
