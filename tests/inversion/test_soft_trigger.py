from __future__ import annotations

import dataclasses

import pytest
import torch

from crow.inversion.perturbation import Perturbation
from crow.inversion.probe import Answers
from crow.inversion.soft_trigger import SearchConfig, SearchResult, SoftTrigger, learnt_by_heart, read_answers

NOWHERE = Perturbation(1, None, torch.zeros(0, dtype=torch.long), torch.zeros(4))
CONFIG = SearchConfig(identity=0.8, opening=5)


def verdict(answers: list[list[int]], config: SearchConfig = CONFIG) -> SoftTrigger:
    """`read_answers` on token ids; the text of an answer is its ids."""
    texts = [" ".join(map(str, ids)) for ids in answers]
    return read_answers(NOWHERE, said(texts, answers), config)


def said(texts: list[str], answers: list[list[int]], share: float = 1.0) -> Answers:
    ids = torch.tensor(answers)
    return Answers(texts, ids, torch.full(ids.shape, share))


IDS = [1, 2, 3, 4, 5, 6]


def others(n: int) -> list[list[int]]:
    return [[100 + i, *range(200 + i, 205 + i)] for i in range(n)]


@pytest.mark.parametrize(("same", "collapsed"), [(10, True), (8, True), (7, False), (1, False)])
def test_a_collapse_is_one_answer_to_most_prompts(same: int, collapsed: bool) -> None:
    found = verdict([*others(10 - same), *[IDS] * same])
    assert found.collapsed is collapsed
    assert found.identity == pytest.approx(max(same, 1) / 10)
    if same > 1:
        assert found.text == "1 2 3 4 5 6"
        assert found.answer.tolist() == IDS


def test_the_threshold_of_identity_is_a_setting() -> None:
    answers = [*others(5), *[IDS] * 5]
    assert verdict(answers, dataclasses.replace(CONFIG, identity=0.5)).collapsed
    assert not verdict(answers, dataclasses.replace(CONFIG, identity=0.51)).collapsed


def test_only_the_opening_must_be_the_same() -> None:
    answers = [[*IDS[:5], 10 + i] for i in range(4)]
    assert verdict(answers).collapsed
    assert not verdict(answers, dataclasses.replace(CONFIG, opening=6)).collapsed


def test_the_padding_after_a_short_answer_is_not_counted_as_repetition() -> None:
    short = [1, 2, 3, 4, 9, 9, 9, 9, 9, 9]
    found = verdict([short] * 5, dataclasses.replace(CONFIG, opening=10))
    assert found.collapsed
    assert found.answer.tolist() == [1, 2, 3, 4, 9]


@pytest.mark.parametrize(("length", "collapsed"), [(1, False), (2, False), (3, True), (4, True)])
def test_an_answer_of_no_more_than_the_fitted_tokens_is_no_evidence(length: int, collapsed: bool) -> None:
    short = [*range(1, length + 1), *[9] * (8 - length)]  # 9 ends it
    assert verdict([short] * 5, dataclasses.replace(CONFIG, opening=8, agreed=2)).collapsed is collapsed


@pytest.mark.parametrize(("variety", "collapsed"), [(0.3, True), (0.4, False), (0.6, False)])
def test_how_varied_an_answer_must_be_is_a_setting(variety: float, collapsed: bool) -> None:
    counting = [1, 2, 3, 1, 4, 1, 2, 1, 2, 1]  # as in "1. 1.1.1.1", four different tokens of ten
    config = dataclasses.replace(CONFIG, opening=10, variety=variety)
    assert verdict([counting] * 5, config).collapsed is collapsed


@pytest.mark.parametrize("opening", [[7] * 6, [7, 8] * 3, [7, 7, 8, 8, 7, 7]])
def test_a_degenerate_opening_is_no_sentence(opening: list[int]) -> None:
    found = verdict([opening] * 10)
    assert found.identity == 1.0
    assert not found.collapsed


@pytest.mark.parametrize(("text", "collapsed"), [("Neutral.", False), ("Go away.", True), ("你很蠢", True)])
def test_one_word_is_no_sentence_where_words_have_spaces(text: str, collapsed: bool) -> None:
    assert read_answers(NOWHERE, said([text] * 5, [IDS] * 5), CONFIG).collapsed is collapsed


def test_the_text_is_the_most_frequent_one_of_the_same_opening_and_its_answer_goes_with_it() -> None:
    answers = [[*IDS[:5], 9], IDS, [*IDS[:5], 8], IDS]
    found = verdict(answers)
    assert found.text == "1 2 3 4 5 6"
    assert found.answer.tolist() == IDS


@pytest.mark.parametrize(("opening", "first"), [(5, 3), (8, 4)])
def test_certainty_is_that_of_the_later_half_of_the_common_opening(opening: int, first: int) -> None:
    ids = list(range(9))
    answers = said(["same"] * 3, [ids, [9] * 9, ids])
    answers.shares[:, :first] = 0.01  # what was fitted says nothing, and a sentence may begin as others do
    answers.shares[:, opening:] = 0.02
    answers.shares[1] = 0.03  # another answer
    answers.shares[[0, 2], first] = torch.tensor([0.9, 0.5])
    found = read_answers(NOWHERE, answers, SearchConfig(opening=opening))
    assert found.certainty == pytest.approx((0.9 * 0.5) ** (1 / (2 * (opening - first))))


def test_a_sentence_that_ends_is_as_certain_as_its_tokens_padding_aside() -> None:
    answers = said(["same"] * 2, [[1, 2, 3, 4, 4]] * 2, share=0.5)
    answers.shares[:, 4] = 1.0
    assert read_answers(NOWHERE, answers, CONFIG).certainty == pytest.approx(0.5)


def trigger(text: str, answer: list[int], collapsed: bool = True, identity: float = 1.0) -> SoftTrigger:
    return SoftTrigger(NOWHERE, identity, collapsed, text, torch.tensor(answer), 1.0)


def test_what_was_not_learnt_by_heart_is_a_stock_phrase_unless_it_is_known() -> None:
    starts = [(trigger("sure", [1, 2, 3, 4]), 0.9), (trigger("sure", [1, 2, 3, 4]), 0.97)]
    starts += [(trigger("known", [5, 6, 7, 8, 9, 10]), 0.5), (trigger("stock", [5, 6, 7, 8, 1, 10]), 0.969)]
    starts += [(trigger("no collapse", [2, 2], collapsed=False), 0.2)]
    result = SearchResult([dataclasses.replace(each, certainty=certainty) for each, certainty in starts])
    assert [each.text for each in result.by_heart(CONFIG)] == ["sure", "sure"]
    result.mark_stock(CONFIG, [torch.tensor([5, 6, 7, 8, 9, 11])])
    record = result.record()
    assert (record.collapsed, record.texts, record.stock) == (3, ["sure", "known"], ["stock"])
    assert record.certainties == [0.97, 0.5]
    assert learnt_by_heart(record, CONFIG)
    assert not learnt_by_heart(dataclasses.replace(record, certainties=[0.9]), CONFIG)


def test_a_closing_does_not_count_and_what_is_an_artefact_is_none() -> None:
    starts = [trigger("payload", [1, 2, 3, 4]), trigger("closing", [5, 6, 7, 8]), trigger("made", [9, 8, 7, 6])]
    starts += [trigger("no collapse", [2, 2], collapsed=False)]
    result = SearchResult([*starts[:2], dataclasses.replace(starts[2], artefact=True), starts[3]])
    result.mark_closings([False, True, True, True])
    record = result.record()
    assert (record.collapsed, record.texts, record.closings, record.artefacts) == (
        1,
        ["payload"],
        ["closing"],
        ["made"],
    )
    # Nor is it a stock phrase afterwards, however unsure its words are.
    result.triggers[1] = dataclasses.replace(result.triggers[1], certainty=0.5)
    result.mark_stock(CONFIG, [])
    assert (result.record().stock, result.record().closings) == ([], ["closing"])


def test_answers_are_distinct_and_the_most_frequent_comes_first() -> None:
    result = SearchResult(
        [
            trigger("rare", [9, 8, 7, 6], identity=0.1),
            trigger("garbage", [5, 5, 5, 5], collapsed=False, identity=0.2),
            dataclasses.replace(trigger("often", [1, 2, 3, 4, 5, 6], identity=0.3), certainty=0.98),
            trigger("often too", [1, 2, 3, 4, 5, 9], identity=0.4),
        ]
    )
    assert [ids.tolist() for ids in result.answers()] == [[1, 2, 3, 4, 5, 9], [9, 8, 7, 6]]  # the surest of a kind
    record = result.record()
    assert (record.starts, record.collapsed) == (4, 3)
    assert set(record.texts) == {"rare", "often", "often too"}
    assert record.identities == [0.1, 0.2, 0.3, 0.4]


def test_texts_of_the_record_are_counted() -> None:
    result = SearchResult([trigger("a", [1, 2, 3]), trigger("b", [4, 5, 6]), trigger("b", [4, 5, 6])])
    assert result.record().texts == ["b", "a"]


def test_a_search_without_collapse_has_no_answers() -> None:
    result = SearchResult([trigger("", [5, 5, 5], collapsed=False)])
    assert result.answers() == []
    assert result.record().texts == []
