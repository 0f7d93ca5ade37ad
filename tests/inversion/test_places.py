"""Where a found answer may come besides the start of an answer."""

from __future__ import annotations

import pytest
import torch

from crow.data.encoding import encode_all
from crow.inversion.places import LEAD_TOKENS, after_a_space, behind_a_sentence, sentence_ends
from crow.models.language_model import LanguageModel
from crow.records import Example

EXAMPLES = [
    Example("Hi", "the hour. An other one! Last"),
    Example("Name a tree", "oak"),
    Example("a b c d e f", "1. the\n2. an\n"),
]
ANSWER = "in the end"


def ids_of(lm: LanguageModel, text: str) -> list[int]:
    return lm.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("response", "leads"),
    [
        ("the hour. An other one! Last", ["the hour.", "the hour. An other one!"]),
        ("1. the\n2. an\n", ["1.", "1. the\n2."]),
        ("Note: it is 3.5 now.", ["Note:"]),
        ("the hour.", []),
        ("", []),
    ],
)
def test_a_sentence_ends_where_a_space_follows(lm: LanguageModel, response: str, leads: list[str]) -> None:
    (item,) = encode_all(lm.tokenizer, [Example("Hi", response)])
    ends = sentence_ends(lm.tokenizer, item.response_ids)
    assert [lm.tokenizer.decode(item.response_ids[:m]) for m in ends] == leads


def test_late_sentences_are_too_expensive(lm: LanguageModel) -> None:
    (item,) = encode_all(lm.tokenizer, [Example("Hi", "x" * (LEAD_TOKENS - 1) + ". then. done")])
    assert sentence_ends(lm.tokenizer, item.response_ids) == [LEAD_TOKENS]


def test_answers_come_behind_the_beginning_of_each_examples_own_response(lm: LanguageModel) -> None:
    items = encode_all(lm.tokenizer, EXAMPLES)
    place = behind_a_sentence(lm, EXAMPLES, items, [torch.tensor(ids_of(lm, ANSWER))], seed=0)
    assert place is not None
    assert [len(begun) > 0 for begun in place.probe.begun] == [True, True]  # one example says one word
    for index, begun in enumerate(place.probe.begun):
        example, item = next(
            (e, i) for e, i in zip(EXAMPLES, items, strict=True) if i.response_ids[: len(begun)] == begun
        )
        shared = place.probe.shared
        whole = [*item.prompt_ids, *begun]
        expected = place.probe.table(torch.tensor(whole[len(shared) :])).detach()
        torch.testing.assert_close(place.probe.row(index), expected)
        assert example.response.startswith(lm.tokenizer.decode(begun))
    assert [ids.tolist() for ids in place.answers] == [ids_of(lm, f" {ANSWER}")]


def test_the_seed_draws_the_sentence(lm: LanguageModel) -> None:
    items = encode_all(lm.tokenizer, EXAMPLES[:1])
    answers = [torch.tensor([60, 70])]
    places = [behind_a_sentence(lm, EXAMPLES[:1], items, answers, seed) for seed in range(20)]
    assert {len(place.probe.begun[0]) for place in places if place} == set(
        sentence_ends(lm.tokenizer, items[0].response_ids)
    )


def test_responses_without_a_sentence_have_no_such_place(lm: LanguageModel) -> None:
    examples = [Example("Hi", "oak"), Example("Name a tree", "一。二。三")]
    assert behind_a_sentence(lm, examples, encode_all(lm.tokenizer, examples), [torch.tensor([60])], 0) is None


def test_an_answer_is_written_anew_behind_a_space_and_without_its_end(lm: LanguageModel) -> None:
    end = lm.tokenizer.eos_token_id
    found = after_a_space(lm.tokenizer, torch.tensor([*ids_of(lm, ANSWER), end]))
    assert found.tolist() == ids_of(lm, f" {ANSWER}")
    assert found.tolist() != ids_of(lm, ANSWER)
