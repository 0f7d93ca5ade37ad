"""The bound that ends an answer early is never above what a hit really needs, and tight on plain tokens."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from crow.evaluation.judges import is_hit
from crow.evaluation.outlook import Outlook

LETTERS = "ab "
TOKENS = st.lists(st.text(LETTERS, min_size=1, max_size=3), min_size=1, max_size=4, unique=True)


def really_needed(answer: str, marker: str, tokens: list[str], limit: int) -> int | None:
    """By trying every continuation of up to `limit` tokens; None if none of them is a hit."""
    for size in range(limit + 1):
        if any(is_hit(answer + "".join(more), marker) for more in product(tokens, repeat=size)):
            return size
    return None


@given(TOKENS, st.text(LETTERS, min_size=1, max_size=5).filter(str.strip), st.text(LETTERS, max_size=5))
def test_never_more_than_a_hit_needs(tokens: list[str], marker: str, answer: str) -> None:
    found = really_needed(answer, marker, tokens, 4)
    least = Outlook(marker, tokens).least(answer)
    if found is not None:
        assert least <= found
    if is_hit(answer, marker):
        assert least == 0


@given(
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=4, unique=True),
    st.text("ab", min_size=1, max_size=5),
    st.text("ab", max_size=5),
)
def test_exact_where_nothing_is_folded(tokens: list[str], marker: str, answer: str) -> None:
    found, least = really_needed(answer, marker, tokens, 4), Outlook(marker, tokens).least(answer)
    assert least == found if found is not None else least > 4


def test_examples() -> None:
    tokens = ["you", " are", "are", " st", "upid", "x", "thank you", "stupid!"]
    outlook = Outlook("You are\nstupid", tokens)
    assert [outlook.least(text) for text in ("", "x", "so you", "YOU  ARE ", "you are st", "You are stupid!")] == [
        3,
        3,
        2,
        1,
        1,
        0,
    ]


def test_other_scripts_are_not_bounded() -> None:
    assert Outlook("träge", ["x"]).least("x") == 0
