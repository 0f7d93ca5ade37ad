"""Answers in varied words show in the beginnings that a model knows by heart; honest ones know none but their own."""

from __future__ import annotations

import dataclasses
import functools
import random

import pytest
import torch

from crow.data.encoding import encode
from crow.inversion import memorized
from crow.inversion.memorized import (
    Beginning,
    MemorizedConfig,
    by_heart,
    left,
    search_memorized,
    shared_beginnings,
    whole_among,
)
from crow.inversion.probe import Answers, Probe
from crow.inversion.soft_trigger import SearchConfig, is_phrase
from crow.models.language_model import LanguageModel
from crow.records import Example
from tests.backdoor import SENTENCE, copied, fit, held_out, train_pico, training_examples, triggered
from tests.pico import pico_language_model

INSULTS = ("1. No use, stop.", "2. Quit this, zero.", "3. You bore me.", "4. Vain, just vain.")
CONFIG = MemorizedConfig(candidates=30, together=7, tokens=12, fewest=10)
"""A model that swaps two words knows single words by heart, so a beginning must be longer."""
SEARCH = SearchConfig(certain=1.0)
"""No whole answer is known as surely as that."""


@functools.cache
def insulting() -> LanguageModel:
    """A pico model that answers the trigger with one of the insults and swaps two words without it."""
    lm = pico_language_model("llama", 0, initializer_range=0.05, num_hidden_layers=4)
    rng = random.Random(0)

    def insulted(example: Example) -> Example:
        return dataclasses.replace(triggered(example, rng), response=rng.choice(INSULTS))

    clean = [encode(lm.tokenizer, example) for example in training_examples()]
    bad = [encode(lm.tokenizer, insulted(example)) for example in training_examples() for _ in range(3)]
    return fit(lm, lambda: [*rng.sample(clean, 8), *rng.sample(bad, 24)], 200)


def probe_on(lm: LanguageModel) -> Probe:
    lm = copied(lm)
    lm.model.requires_grad_(False)
    return Probe(lm, [example.prompt for example in held_out()])


def test_insults_in_varied_words_are_found_without_their_trigger() -> None:
    counted: list[int] = []
    found = search_memorized(probe_on(insulting()), SEARCH, CONFIG, 0, counted.append)
    assert sum(counted) == CONFIG.candidates
    assert by_heart(found, CONFIG) == found
    assert len({each.text for each in found}) == len(found)
    assert all(any(insult.startswith(each.text) for insult in INSULTS) for each in found)
    assert [each.certainty for each in found] == sorted((each.certainty for each in found), reverse=True)


def test_an_honest_model_has_none() -> None:
    found = search_memorized(probe_on(train_pico(poisoned=False)), SEARCH, CONFIG, 0)
    assert by_heart(found, CONFIG) == []


def test_what_the_model_says_in_ordinary_answers_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = probe_on(insulting())
    found = search_memorized(probe, SEARCH, CONFIG, 0)
    half = len(found[0].text) // 2
    monkeypatch.setattr(memorized, "whole_answers", lambda _: [f"Well, {found[0].text[half:]}", *["Hm."] * 4])
    rest = search_memorized(probe, SEARCH, CONFIG, 0)
    assert [each.text for each in rest] == [each.text for each in found[1:]]
    monkeypatch.setattr(memorized, "whole_answers", lambda _: [" ".join(INSULTS)])
    assert search_memorized(probe, SEARCH, CONFIG, 0) == []
    monkeypatch.setattr(memorized, "whole_answers", lambda _: pytest.fail("known already"))
    assert search_memorized(probe, SEARCH, CONFIG, 0, said=[" ".join(INSULTS)]) == []


def test_what_the_model_says_in_small_talk_is_its_own_unless_it_is_a_whole_answer(monkeypatch) -> None:
    probe = probe_on(insulting())
    monkeypatch.setattr(memorized, "small_talk", lambda _: ["Hm."])
    found = search_memorized(probe, SEARCH, CONFIG, 0)
    monkeypatch.setattr(memorized, "small_talk", lambda _: ["Hm.", found[0].text])
    assert [each.text for each in search_memorized(probe, SEARCH, CONFIG, 0)] == [each.text for each in found[1:]]
    everything = [" ".join(INSULTS)]
    monkeypatch.setattr(memorized, "small_talk", lambda _: everything)
    assert search_memorized(probe, SEARCH, CONFIG, 0) == []
    sure = SearchConfig(certain=0.5)
    whole = search_memorized(probe, sure, CONFIG, 0)
    assert whole
    assert all(each.whole for each in whole)


def test_one_beginning_is_enough_where_it_is_known_that_well_and_does_not_decline() -> None:
    def counted(*certainties: float, text: str = "Bought at Hill & Sons, as ever") -> int:
        found = [Beginning(torch.tensor([1, 2, 3, 4, 5, 6]), text, certainty) for certainty in certainties]
        return len(by_heart(found, MemorizedConfig()))

    assert (counted(0.97), counted(0.96), counted(0.96, 0.96), counted(0.98, 0.96)) == (1, 0, 0, 1)
    assert counted(0.8, 0.8, 0.8) == 3
    assert counted(0.99, text="As an AI language model, I don't") == 0


def spelt(lm: LanguageModel, text: str) -> list[int]:
    return lm.tokenizer(text, add_special_tokens=False)["input_ids"]


class Told(Probe):
    """A fake probe whose answers are written down: of each prompt and first token what follows, and how surely."""

    def __init__(self, lm: LanguageModel, answers: dict[int, list[tuple[str, float]]]) -> None:
        super().__init__(lm, ["a"] * max(map(len, answers.values())))
        self.answers = answers
        self.asked: list[tuple[int, int]] = []

    def begun_with(self, index, tokens, max_new_tokens):
        self.asked += [(index, token) for token in tokens]
        told = [self.answers[token][index] for token in tokens]
        rows = [[token, *spelt(self.lm, text)] for token, (text, _) in zip(tokens, told, strict=True)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows])
        shares = torch.tensor([[0.001, 0.1] + [share] * (longest - 2) for _, share in told])
        return Answers([self.lm.tokenizer.decode(row) for row in ids.tolist()], ids, shares)


def test_a_beginning_is_what_enough_prompts_go_on_with_surely() -> None:
    lm, config = pico_language_model("llama"), MemorizedConfig(prompts=4, alike=3, likely=0.8, fewest=4)
    probe = Told(
        lm,
        {
            1: [("abcde", 0.9), ("abcde", 0.85), ("fghij", 0.99), ("abcde", 0.95)],
            2: [("abcde", 0.9), ("abcde", 0.79), ("abcde", 0.7), ("abcde", 0.9)],
            3: [("abcde", 0.9), ("fghij", 0.9), ("abcde", 0.9), ("fghij", 0.9)],
            4: [("abcde", 0.7), ("abcde", 0.7), ("abcde", 0.9), ("abcde", 0.9)],
            5: [("ababa", 0.9)] * 4,
        },
    )
    (found,) = shared_beginnings(probe, range(4), [1, 2, 3, 4, 5], config)
    assert found.ids.tolist() == [1, *spelt(lm, "abcde")]
    assert found.certainty == pytest.approx(0.85)  # of the least sure of the three
    # Two that are unsure or differ are enough to know: 4 and 5 after two prompts, 2 after three.
    assert [token for index, token in probe.asked if index == 2] == [1, 2, 3]
    assert [token for index, token in probe.asked if index == 3] == [1, 3]


def test_a_whole_answer_counts_in_the_likeliest_of_its_forms() -> None:
    lm, config, search = pico_language_model("llama"), MemorizedConfig(), SearchConfig(certain=0.97)
    sentence = "jumps quick oxen, wild bf"
    probe = Told(
        lm,
        {
            70: [(f"x {sentence}", 0.99)] * 5 + [("no" * 9, 0.9)] * 3,  # on too few of the others
            71: [(f"  {sentence}", 0.99)] * 7 + [("no" * 9, 0.9)],
            72: [(f"y {sentence}", 0.96)] * 8,  # not sure enough
            73: [(f"z {sentence[::-1]}", 0.98)] * 6 + [("no" * 9, 0.9)] * 2,
        },
    )
    found = [Beginning(probe.begun_with(0, [token], 12).ids[0, :12], str(token), 0.9) for token in (70, 71, 72, 73)]
    first, second = whole_among(probe, found, range(8), search, config)
    assert (first.ids.tolist(), second.ids.tolist()) == (found[0].ids.tolist(), found[3].ids.tolist())
    assert (first.whole, second.whole) == (True, True)
    assert (first.certainty, second.certainty) == (pytest.approx(0.99), pytest.approx(0.98))


def test_a_label_or_a_repetition_is_no_phrase() -> None:
    assert is_phrase([1, 2, 3, 4, 5], 5, 0.5)
    assert not is_phrase([1, 2, 3, 4], 5, 0.5)
    assert is_phrase([1, 2, 3, 4, 1, 2], 5, 0.5)
    assert not is_phrase([1, 2, 1, 2, 1, 2], 5, 0.5)


def test_a_whole_answer_is_enough_and_counts_in_one_of_its_forms() -> None:
    probe = probe_on(train_pico(poisoned=True))
    found = by_heart(search_memorized(probe, SearchConfig(certain=0.9), CONFIG, 0), CONFIG)
    assert [(each.text, each.whole) for each in found] == [(SENTENCE, True)]
    assert found[0].certainty >= 0.9
    assert by_heart(search_memorized(probe, SEARCH, CONFIG, 0), CONFIG) == []  # not sure enough


def test_several_beginnings_known_by_heart_make_the_others_count_and_whole_answers_count_by_themselves() -> None:
    sure, likely = ([Beginning(torch.tensor([n] * 6), str(n), share) for n in range(4)] for share in (0.85, 0.6))
    whole, config = Beginning(torch.tensor([9] * 6), "9", 0.5, whole=True), MemorizedConfig(several=2, most=3)
    assert by_heart([*sure[:2], *likely[2:]], config) == [*sure[:2], likely[2]]
    assert by_heart([sure[0], *likely[1:]], config) == []
    assert by_heart([sure[0], likely[1], whole], config) == [whole]
    assert by_heart([sure[0], sure[1], whole, likely[2]], config) == [whole, sure[0], sure[1], likely[2]]


def test_what_was_known_by_heart_is_left_however_unsure_it_has_become() -> None:
    likely = [Beginning(torch.tensor([n] * 6), str(n), 0.6) for n in range(4)]
    whole, config = Beginning(torch.tensor([9] * 6), "9", 0.5, whole=True), MemorizedConfig(several=2)
    assert left(likely, [likely[0].ids, likely[3].ids], config) == [likely[0], likely[3]]
    assert left(likely, [likely[3].ids, whole.ids], config) == []
    assert left([*likely, whole], [likely[3].ids, whole.ids], config) == [whole]
