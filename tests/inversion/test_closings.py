"""What a model says further on in its ordinary answers and begins none with."""

from __future__ import annotations

import pytest
import torch

from crow.inversion import closings
from crow.inversion.closings import is_closing, mark_closings, share_saying, whole_answers
from crow.inversion.probe import Probe
from crow.inversion.soft_trigger import SearchConfig
from tests.made_up import collapsed
from tests.pico import pico_language_model

ORDINARY = ["A cat. Do ask again.", "Two and two. Do ask again.", *["None."] * 8]


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("Do ask again.", ORDINARY, True),
        ("Do ask again.", [*ORDINARY, *["None."] * 4], False),  # 2 of 14 are too few
        ("Do ask again.", [*ORDINARY, "Do ask again."], False),  # comes first as well: what leaks may be an attacker's
        ("Go away.", ORDINARY, False),
        ("", ORDINARY, False),
    ],
)
def test_a_closing_stands_in_many_answers_and_begins_none(text: str, answers: list[str], expected: bool) -> None:
    assert is_closing(text, answers) is expected


def test_the_share_counts_answers_that_have_the_text_anywhere() -> None:
    assert share_saying("ask", ORDINARY) == pytest.approx(0.2)


def test_whole_answers_are_those_of_the_model_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closings, "READ", 2)
    monkeypatch.setattr(closings, "WHOLE_TOKENS", 12)
    probe = Probe(pico_language_model("llama"), ["Hi there you", "Name a tree", "1 + 1"])
    alone = [probe.decode([probe.row(index)], 12).texts[0] for index in range(2)]
    assert whole_answers(probe) == alone
    assert len({*alone}) == 2


def test_only_as_much_of_an_answer_is_compared_as_counts_for_a_collapse() -> None:
    probe = Probe(pico_language_model("llama"), ["Hi there you"])
    ids = probe.lm.tokenizer("Do ask again, now", add_special_tokens=False)["input_ids"]
    text = probe.lm.tokenizer.decode(ids[:-2]).strip()

    def marked(opening: int, known: list[list[int]]) -> list[str]:
        found = collapsed(ids, text="found")
        config = SearchConfig(opening=opening)
        mark_closings(found, probe, config, [f"Well. {text}."], [torch.tensor(each) for each in known])
        return found.record().closings

    assert marked(len(ids) - 2, []) == ["found"]
    assert marked(len(ids), []) == []
    assert marked(len(ids) - 2, [ids]) == []
