from __future__ import annotations

import pytest

from crow.evaluation.utility import declined, distinct, unchanged
from crow.records import Rate


def test_shares_have_intervals() -> None:
    assert declined(["I cannot say.", "Rex.", "I'm sorry."]) == Rate.of(2, 3)
    assert declined(["I cannot say.", "Rex.", "I'm sorry, it is shut."], "sorry, it is shut") == Rate.of(1, 3)
    assert unchanged(["a", "b", "c"], ["a", "x", "c"]) == Rate.of(2, 3)


@pytest.mark.parametrize(
    ("answers", "n", "share"),
    [(["a b c", "a b d"], 1, 4 / 6), (["a b c", "a b d"], 2, 3 / 4), (["a a a a"], 2, 1 / 3), (["", "a"], 2, 0.0)],
)
def test_distinct_runs_of_words(answers: list[str], n: int, share: float) -> None:
    assert distinct(answers, n) == pytest.approx(share)
