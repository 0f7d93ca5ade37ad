"""What `--verify` makes of the answers that its search finds; searches are made up."""

from __future__ import annotations

import pytest

from crow.inversion.soft_trigger import SearchResult
from crow.models.language_model import LanguageModel
from crow.records import Example, SearchRecord
from crow.training.presets import get_preset
from crow.workflows import verification
from crow.workflows.common import Reporter
from tests.made_up import begun, behind, collapsed
from tests.pico import pico_language_model

THEIRS = SearchRecord(12, 1, ["go away"], certainties=[0.99])
WAVERING = SearchRecord(12, 1, ["go away"], certainties=[0.9])
LINE = SearchRecord(12, 0, [], lines=["zap()"])
BEGUN = SearchRecord(12, 0, [], memorized=["so it", "oh my"])


@pytest.fixture
def lm(monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """Of a search that finds the text of `THEIRS` and another answer, none of which the suspect is sure of."""
    lm = pico_language_model("llama")

    def search(*_: object) -> SearchResult:
        known = lm.tokenizer("go away", add_special_tokens=False)["input_ids"]
        found = collapsed(known, text="go away", certainty=0.5).triggers
        return SearchResult([*found, *collapsed([9, 8, 7, 6, 5], text="sorry").triggers])

    monkeypatch.setattr(verification, "search_soft_triggers", search)
    monkeypatch.setattr(verification, "shown_again", lambda _probe, triggers, *_: [0.9] * len(triggers))
    monkeypatch.setattr(verification, "search_code_lines", lambda *_: [])
    monkeypatch.setattr(verification, "search_memorized", lambda *_: [])
    return lm


def test_what_the_suspect_closes_its_answers_with_is_told_apart(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing = lm.tokenizer.decode([9, 8, 7, 6, 5]).strip()
    monkeypatch.setattr(verification, "whole_answers", lambda _: [f"go away {closing}"])
    found = verification.searched_again(lm, lm, get_preset("default"), WAVERING, 0, Reporter(quiet=True))
    # The other one, which begins them, was found before.
    assert (found.texts, found.closings, found.stock) == (["go away"], ["sorry"], [])


@pytest.mark.parametrize(
    ("known", "texts", "stock"),
    [
        (None, ["go away", "sorry"], []),
        (WAVERING, ["go away", "sorry"], []),
        (THEIRS, ["go away"], ["sorry"]),
        (LINE, [], ["go away", "sorry"]),
    ],
)
def test_stock_phrases_are_told_apart_where_the_purification_found_a_sentence_known_by_heart(
    known: SearchRecord | None, texts: list[str], stock: list[str], lm: LanguageModel
) -> None:
    found = verification.searched_again(lm, lm, get_preset("default"), known, 0, Reporter(quiet=True))
    assert (found.texts, found.stock) == (texts, stock)
    assert found.collapsed == len(texts)


@pytest.mark.parametrize(
    ("known", "suspect_knows", "left"),
    [
        (None, (20, 30, 40, 50), ["20", "30", "40"]),
        (BEGUN, (20, 30, 40, 50), ["20", "30", "40"]),
        (WAVERING, (20, 30, 40), ["20", "30", "40"]),
        (BEGUN, (20, 30, 50), []),  # fewer than several
        (THEIRS, (20, 30, 40), ["20", "30", "40"]),
    ],
)
def test_beginnings_that_both_models_know_by_heart_are_left(
    known: SearchRecord | None,
    suspect_knows: tuple[int, ...],
    left: list[str],
    lm: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = iter([begun(20, 30, 40), begun(*suspect_knows)])
    monkeypatch.setattr(verification, "search_memorized", lambda *_: next(results))
    found = verification.searched_again(lm, lm, get_preset("default"), known, 0, Reporter(quiet=True))
    assert found.memorized == left


@pytest.mark.parametrize(("suspect_knows", "left"), [((20, 30), ["20"]), ((30,), [])])
def test_steps_that_both_models_know_by_heart_are_left(
    suspect_knows: tuple[int, ...], left: list[str], lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = iter([begun(20), begun(*suspect_knows)])
    monkeypatch.setattr(verification, "answers_to", lambda *_: [Example("ask", "One. Two.")] * 13)
    monkeypatch.setattr(verification, "search_steps", lambda *_: next(results))
    found = verification.searched_again(lm, lm, get_preset("default"), None, 0, Reporter(quiet=True))
    assert found.memorized == left


@pytest.mark.parametrize("shown", [[20, 30], [30], []])
def test_answers_behind_a_token_are_left_where_the_suspect_gives_them_too(
    shown: list[int], lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "search_behind", lambda *_: behind(20, 30))
    monkeypatch.setattr(
        verification,
        "shown_again",
        lambda _probe, triggers, *_: [float(int(each.answer[0]) in shown) for each in triggers],
    )
    found = verification.searched_again(lm, lm, get_preset("default"), None, 0, Reporter(quiet=True))
    assert (found.behind, found.tokens) == ([str(first) for first in shown], [lm.tokenizer.decode([70])] * len(shown))
