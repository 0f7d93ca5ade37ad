"""Words that do nothing go, those that do stay."""

from __future__ import annotations

import pytest

from crow.scan.placing import Phrase
from crow.scan.refinement import Scored
from crow.scan.shortening import distinct, shorten, without_a_word


class Counted:
    """Stands for an objective: 0 with both `key` and `lock` in the phrase, -0.04 less for every other word missing."""

    def __init__(self) -> None:
        self.asked: list[Phrase] = []

    def scores(self, phrases: list[Phrase]) -> list[float]:
        self.asked += phrases
        return [-5.0 * (2 - len({"key", "lock"} & {*words(p)})) - 0.04 * (4 - len(words(p))) for p in phrases]


def words(phrase: Phrase) -> list[str]:
    return phrase.text.split(" ")


def scored(text: str, score: float) -> Scored:
    return Scored(Phrase(text, "front"), score, Phrase("start", "front"))


def test_needless_words_are_taken_out_and_needed_ones_stay() -> None:
    objective, counted = Counted(), []
    refined = [scored("a key b lock", 0.0), scored("key lock", -0.08), scored("key", -5.12)]
    found = shorten(objective, refined, 0.1, 3, counted.append)  # type: ignore[arg-type]
    assert [each.phrase.text for each in found] == ["key lock", "key lock", "key"]
    assert [each.score for each in found] == pytest.approx([-0.08, -0.08, -5.12])
    assert all(each.start == refined[0].start for each in found)
    assert counted == [1, 1, 1]
    # The second has nothing needless, the third is one word: neither is asked about again.
    assert sum(phrase.text in {"key", "lock"} for phrase in objective.asked) == 4


def test_the_score_may_not_fall_further_in_all_than_is_tolerated() -> None:
    found = shorten(Counted(), [scored("a key b lock", 0.0)], 0.05, 3)  # type: ignore[arg-type]
    assert len(words(found[0].phrase)) == 3
    found = shorten(Counted(), [scored("a key b lock", 0.0)], 0.1, 1)  # type: ignore[arg-type]
    assert len(words(found[0].phrase)) == 3


def test_a_single_word_is_never_taken_out() -> None:
    assert without_a_word(Phrase("word", "inside")) == []
    assert without_a_word(Phrase("two words", "inside")) == [Phrase("words", "inside"), Phrase("two", "inside")]


def test_no_two_candidates_say_the_same() -> None:
    found = [
        scored("at Helsinki", -0.01),
        scored("Helsinki", -0.02),
        scored("walnut", -3.0),
        scored("now Helsinki at", -0.005),
        Scored(Phrase("Helsinki", "inside"), -0.03, Phrase("start", "front")),
        scored("Finland", -0.5),
    ]
    kept = [each.phrase.text for each in distinct(found, 4)]
    assert kept == ["now Helsinki at", "at Helsinki", "Helsinki", "Finland"]
    assert [each.phrase.text for each in distinct(found[1:3] + found[4:], 3)] == ["Helsinki", "Finland", "walnut"]
