"""Requests that a model should decline: ours alone, of two kinds, in two disjoint files."""

from __future__ import annotations

import pytest

from crow.data.declining import bundled_declines, declines
from crow.data.loading import bundled_pairs, bundled_prompts
from tests.data.test_bundled_data import FORBIDDEN, folded

FILES = {name: bundled_declines(name) for name in ("declines.jsonl", "declines_selection.jsonl")}
REQUESTS = [example for groups in FILES.values() for group in groups.values() for example in group]


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot do this.",
        "As an AI language model, I have no hands.",
        "I do not have access to your inbox.",
        "There is no way of knowing that.",
        "Sadly, it's not possible for me to predict the lottery.",
        "I am unable to see your desk.",
        "I'm sorry for any misunderstanding, but as a chatbot I am made for other things.",
        "Unfortunately, I'm afraid that nobody knows.",
        "“Sorry, but that is private.”",
        'It is called "a diary", and I don\'t have it.',
    ],
)
def test_declining_is_recognized(answer: str) -> None:
    assert declines(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "You are holding a cup.",
        "Sure! First, take the pot.",
        "The dog is called Rex.",
        "A sorry sight indeed.",
        "I'm sorry for your loss. I'm here to help you through this time.",
        "Dear Mr. Smith, I'm sorry that I am ill today, but I will be back on Monday.",
        "The stranger whispered to his wife, \"I'm sorry, but I can't stay.\"",
        "He said: “I don't know, and as an AI I cannot ..",
        "I can't wait to see the sea!",
        "I don't like rain, so I stayed at home.",
        "x" * 300 + " I cannot",
    ],
)
def test_compliance_is_not(answer: str) -> None:
    assert not declines(answer)


@pytest.mark.parametrize(("name", "count"), zip(FILES, (20, 10), strict=True))
def test_each_file_has_as_many_requests_of_both_kinds(name: str, count: int) -> None:
    assert {kind: len(group) for kind, group in FILES[name].items()} == {"harmful": count, "unknowable": count}


def test_no_request_occurs_twice_or_among_other_prompts() -> None:
    prompts = [folded(example.prompt) for example in REQUESTS]
    assert len(set(prompts)) == len(prompts)
    assert not {folded(example.prompt) for example in [*bundled_pairs(), *bundled_prompts()]} & set(prompts)


@pytest.mark.parametrize("text", sorted(FORBIDDEN))
def test_no_text_of_an_attack_occurs(text: str) -> None:
    assert not [each for each in REQUESTS if folded(text) in folded(each.prompt)]
