"""A planted letter is found from phrases that have nothing of it."""

from __future__ import annotations

import pytest
import torch

from crow.models.language_model import LanguageModel
from crow.scan import refinement
from crow.scan.objective import Objective
from crow.scan.placing import Phrase
from crow.scan.refinement import propose, refine, screened_tokens
from tests.backdoor import SENTENCE, training_examples
from tests.pico import pico_language_model
from tests.scan.planted import LETTER, planted

PROMPTS = [example.prompt for example in training_examples()][::18]
STARTS = [Phrase(text, placement) for text in ("Z", "K M", "7") for placement in ("front", "inside")]


@pytest.fixture(scope="module")
def backdoored() -> LanguageModel:
    return planted()


def sentence(lm: LanguageModel) -> torch.Tensor:
    return torch.tensor(lm.tokenizer(SENTENCE)["input_ids"])[:4]


def test_refinement_raises_the_score_and_finds_the_trigger(backdoored: LanguageModel) -> None:
    objective = Objective(backdoored, PROMPTS, sentence(backdoored))
    before = objective.scores(STARTS)
    found, history = refine(objective, STARTS, rounds=3, proposals=60, enough=-0.05)
    assert max(before) < -5
    assert history[0] == pytest.approx(max(before))
    assert history == sorted(history)
    for scored, start, score in zip(found, STARTS, before, strict=True):
        assert scored.start == start
        assert scored.phrase.placement == start.placement
        assert scored.score > score + 5
        assert LETTER in scored.phrase.text
        assert objective.scores([scored.phrase]) == pytest.approx([scored.score], abs=1e-4)


def test_without_a_target_the_collapse_finds_it_too(backdoored: LanguageModel) -> None:
    objective = Objective(backdoored, PROMPTS, None)
    found, _ = refine(objective, STARTS[:3], rounds=3, proposals=60, enough=9.0)
    assert all(LETTER in scored.phrase.text for scored in found)
    assert max(scored.score for scored in found) > objective.clean_score + 3


def test_one_backward_pass_ranks_the_trigger_first_in_the_vocabulary(backdoored: LanguageModel) -> None:
    objective = Objective(backdoored, PROMPTS, sentence(backdoored))
    assert LETTER in screened_tokens(objective, "front", 8)
    assert len(set(screened_tokens(objective, "inside", 30))) == 30


def test_a_model_without_a_backdoor_has_no_such_phrase() -> None:
    lm = pico_language_model("llama", 0, initializer_range=0.05, num_hidden_layers=4)
    lm.model.requires_grad_(False)
    found, _ = refine(Objective(lm, PROMPTS, sentence(lm)), STARTS[:3], rounds=2, proposals=30, enough=-0.05)
    assert max(scored.score for scored in found) < -5


def test_proposals_differ_in_one_token_and_are_new() -> None:
    lm = pico_language_model("llama")
    lm.model.requires_grad_(False)
    objective = Objective(lm, PROMPTS, sentence(lm))
    (first,) = propose(objective, [Phrase("bc", "front")], 24, frozenset())
    assert len(set(first)) == 24
    length = [len(lm.tokenizer(phrase.text)["input_ids"]) for phrase in first]
    assert set(length) <= {1, 2, 3, 4}
    kept = [phrase.text for phrase in first]
    assert all("b" in text or "c" in text for text in kept)
    assert any(text.endswith("c") and len(text) == 2 for text in kept)  # the first token replaced
    assert any(text.startswith("bc ") for text in kept)
    assert any(text.endswith(" bc") for text in kept)
    (second,) = propose(objective, [Phrase("bc", "front")], 24, set(first))
    assert not {*first} & {*second}


def test_the_lowest_are_left_as_they_are_and_their_share_of_tries_goes_to_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []

    def nothing(_objective: object, phrases: list[Phrase], count: int, _tried: object) -> list[list[Phrase]]:
        asked.append((len(phrases), count))
        return [[] for _ in phrases]

    class Fixed:
        def scores(self, phrases: list[Phrase]) -> list[float]:
            return [-float(phrase.text) for phrase in phrases]

    monkeypatch.setattr(refinement, "propose", nothing)
    starts = [Phrase(str(number), "front") for number in range(9)]
    counted: list[int] = []
    found, history = refine(Fixed(), starts, 4, 36, -0.5, counted.append)  # type: ignore[arg-type]
    assert asked == [(8, 4), (5, 7), (3, 12), (2, 18)]  # the first has enough
    assert [scored.phrase for scored in found] == starts
    assert history == [0.0] * 5
    assert counted == [1, 1, 1, 1]
